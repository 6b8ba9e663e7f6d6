"""Fewer bits and clipping on CUDA tensors, on doubles of them: the bits of the CPU, and nobody waits for a norm."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from low_precision_ways import ways
from radam.torch import RAdam
from stand_in_library import StandIn
from test_torch_cuda import SHAPES, bits, make, set_gradients
from torch_cuda_double import no_waiting, taken_for_plain


@pytest.fixture(autouse=True)
def _doubles(stand_in: StandIn) -> Iterator[None]:
    with taken_for_plain():
        yield


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@ways
def test_steps_have_the_bits_of_the_cpu(way: dict[str, Any], dtype: torch.dtype) -> None:
    here, there = make(SHAPES, dtype)
    ours, theirs = (RAdam(params, lr=0.01, **way) for params in (here, there))
    for seed in range(5):
        for params, optimizer in ((here, ours), (there, theirs)):
            set_gradients(params, seed)
            optimizer.step()
        assert bits(theirs) == bits(ours)
    assert all(x.is_cuda for entry in theirs.state.values() for key, x in entry.items() if key != "step")


@ways
def test_a_state_goes_from_the_cpu_to_a_device_and_back(way: dict[str, Any]) -> None:
    here, there = make(SHAPES, torch.bfloat16)
    ours, theirs = (RAdam(params, lr=0.01, **way) for params in (here, there))
    set_gradients(here, 1)
    ours.step()
    theirs.load_state_dict(ours.state_dict())
    assert [tensors[1:] for tensors in bits(theirs)[::2]] == [tensors[1:] for tensors in bits(ours)[::2]]
    back = RAdam(here, lr=0.01, **way)
    back.load_state_dict(theirs.state_dict())
    assert bits(back) == bits(ours)


@pytest.mark.parametrize("option", ["max_grad_norm", "max_tensor_grad_norm", "max_grad_value"])
def test_clipping_on_one_device_has_the_bits_of_the_cpu_and_waits_only_where_the_norm_is_read(option: str) -> None:
    here, there = make(SHAPES)
    ours, theirs = (RAdam(params, lr=0.01, **{option: 0.5}) for params in (here, there))
    for seed in range(4):
        set_gradients(here, seed)
        set_gradients(there, seed)
        ours.step()
        if seed:  # the first makes states
            with no_waiting():
                theirs.step()
        else:
            theirs.step()
        assert bits(theirs) == bits(ours)
        assert theirs.grad_norm == ours.grad_norm
        assert (ours.grad_norm is None) == (option == "max_grad_value")


def test_a_norm_over_a_device_and_the_cpu_is_one() -> None:
    here, there = make(SHAPES)
    both, alone = RAdam([*here[:2], *there[2:]], lr=0.01, max_grad_norm=0.5), RAdam(here, lr=0.01, max_grad_norm=0.5)
    set_gradients(here, 1)
    set_gradients(there, 1)
    both.step()
    assert both.grad_norm is not None
    assert math.isfinite(both.grad_norm)
    for param in here:
        param.grad = None
    set_gradients(here, 1)
    alone.step()
    assert both.grad_norm == alone.grad_norm


def test_a_norm_that_a_graph_would_make_anew_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, there = make(SHAPES)
    optimizer = RAdam(there, lr=0.01, capturable=True)
    set_gradients(there, 1)
    optimizer.step()
    before = bits(optimizer)
    optimizer.max_grad_norm = 1.0
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="take one step with clipping before"):
        optimizer.step()
    assert bits(optimizer) == before
