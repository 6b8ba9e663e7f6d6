"""Checkpoints that were saved once load for ever, and the step after them has the bits that it had then."""

from __future__ import annotations

import pytest
import torch

import make_frozen_checkpoints as frozen
from low_precision_ways import bits
from radam.torch import RAdam


@pytest.mark.parametrize("name", frozen.CHECKPOINTS)
def test_a_saved_checkpoint_loads_for_ever_and_the_next_step_has_the_same_bits(name: str) -> None:
    saved = torch.load(frozen.path_of(name), weights_only=True)
    optimizer, params = frozen.optimizer_of(name, saved["params"])
    optimizer.load_state_dict(saved["state"])
    assert frozen.step(optimizer, params, saved["grads"]) == [bits(param) for param in saved["after"]]


@pytest.mark.parametrize("name", frozen.CHECKPOINTS)
def test_a_saved_checkpoint_of_any_kind_loads_into_an_optimizer_without_options(name: str) -> None:
    saved = torch.load(frozen.path_of(name), weights_only=True)
    params = [torch.nn.Parameter(tensor.clone()) for tensor in saved["params"]]
    optimizer = RAdam(params)
    optimizer.load_state_dict(saved["state"])
    frozen.step(optimizer, params, saved["grads"])
    for param, after in zip(params, saved["after"]):
        assert torch.allclose(param.float(), after.float(), atol=0.03)


def test_every_kind_of_state_and_version_is_among_them() -> None:
    states = [torch.load(frozen.path_of(name), weights_only=True)["state"] for name in frozen.CHECKPOINTS]
    assert {state.get("version") for state in states} == {None, 2}
    keys = {key for state in states for entry in state["state"].values() for key in entry}
    assert {"remainder", "master", "exp_avg_code", "exp_avg_scale", "exp_avg_sq_code", "exp_avg_sq_scale"} <= keys
