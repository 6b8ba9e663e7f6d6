"""States that were saved once load for ever, and the step after them has the bits that it had then."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import make_frozen_states as frozen


@pytest.mark.parametrize("name", frozen.STATES)
def test_a_saved_state_loads_for_ever_and_the_next_step_has_the_same_bits(name: str, every_isa: str) -> None:
    found, expected = frozen.load(name)
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
        assert found[key].tobytes() == value.tobytes(), key


def header(name: str) -> dict[str, Any]:
    with safe_open(frozen.DATA / f"{name}.state.safetensors", framework="numpy") as file:
        found: dict[str, Any] = json.loads(file.metadata()["radam"])
        return found


def test_every_version_and_every_kind_of_state_is_among_them() -> None:
    assert header("version_1")["version"] == 1
    assert {header(name)["version"] for name in frozen.STATES if name != "version_1"} == {2}
    keys = set()
    for name in frozen.STATES:
        with safe_open(frozen.DATA / f"{name}.state.safetensors", framework="numpy") as file:
            keys |= {key.partition(".")[2] for key in file.keys()}  # noqa: SIM118  (not a dict)
    moments = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert keys == moments | {f"{m}_{part}" for m in moments for part in ("code", "scale")} | {"remainder", "master"}
    assert header("eight_bit")["block_orders"] == {"1": [1, 0]}


def test_the_frozen_steps_move_every_parameter() -> None:
    for name in frozen.STATES:
        _, expected = frozen.load(name)
        before = frozen.load_file(frozen.DATA / f"{name}.step.safetensors")
        for i in range(len(frozen.SHAPES)):
            assert np.any(expected[f"after.param.{i}"] != before[f"param.{i}"]), (name, i)
