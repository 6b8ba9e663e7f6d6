"""Parameters that somebody exchanges in param_groups by hand never go on with the moments of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import radam


def exchange(optimizer: radam.RAdam, how: str) -> None:
    first, second = optimizer.param_groups
    if how == "a group removed":
        del optimizer.param_groups[0]
    elif how == "a group appended":
        optimizer.param_groups.append(dict(second, params=[np.ones(4)]))
    elif how == "groups swapped":
        optimizer.param_groups.reverse()
    elif how == "parameters swapped":
        first["params"].reverse()
    elif how == "a parameter exchanged":
        second["params"][0] = np.ones(4)
    else:
        del first["params"]


@pytest.mark.parametrize(
    "how",
    [
        "a group removed",
        "a group appended",
        "groups swapped",
        "parameters swapped",
        "a parameter exchanged",
        "params deleted",
    ],
)
def test_no_parameter_goes_on_with_the_moments_of_another(how: str, tmp_path: Path) -> None:
    params = [np.ones(4) for _ in range(3)]
    optimizer = radam.RAdam([{"params": params[:2]}, {"params": params[2:]}])
    optimizer.step(grads=[np.ones(4)] * 3)
    before = [p.tobytes() for p in params]
    exchange(optimizer, how)
    for call in (
        lambda: optimizer.step(grads=[np.ones(4)] * 3),
        optimizer.state_dict,
        lambda: optimizer.load_state_dict({}),
        lambda: optimizer.save(tmp_path / "state"),
    ):
        with pytest.raises(ValueError, match="param_groups no longer holds the parameters it was given"):
            call()
    assert [p.tobytes() for p in params] == before
