"""On a GPU low precision and clipping have the bits of the CPU: in turns, in graphs, in tables of any size."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from low_precision_ways import WAYS
from radam.torch import RAdam
from test_gpu import DEVICE, DTYPES, back, drawn, leaves, set_gradients
from test_gpu_graphs import capture, warm_up
from test_gpu_streams import FEW, MANY

pytestmark = pytest.mark.gpu

LARGE = [(1_000_003,), (70_000,), (128,), (129,), (300, 1001)]
CLIPS: dict[str, dict[str, Any]] = {
    "unclipped": {},
    "by the norm of all": {"max_grad_norm": 0.7},
    "by the norm of each": {"max_tensor_grad_norm": 0.7},
    "by value": {"max_grad_value": 0.01},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
clips = pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
low = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def bits(tensor: Tensor) -> Any:
    """Return the bits of a tensor, any NaN as one."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point():
        tensor = torch.where(tensor.isnan(), torch.full_like(tensor, torch.nan), tensor)
    return back(tensor).tobytes()


def same(got: RAdam, expected: RAdam, what: str) -> None:
    """Assert that parameters, states, counts and norms are the same."""
    for i, (a, b) in enumerate(zip(got.param_groups[0]["params"], expected.param_groups[0]["params"])):
        assert bits(a) == bits(b), f"{what}, parameter {i}"
        ours, theirs = got.state[a], expected.state[b]
        assert set(ours) == set(theirs), f"{what}, parameter {i}"
        for key in ours:
            assert key == "step" or ours[key].device == a.device, f"{what}, parameter {i}: {key}"
            assert bits(ours[key].double() if key == "step" else ours[key]) == bits(
                theirs[key].double() if key == "step" else theirs[key]
            ), f"{what}, parameter {i}: {key}"
    assert got.grad_norm == expected.grad_norm, what


def both(shapes: Any, dtype: torch.dtype, capturable: bool, **settings: Any) -> tuple[RAdam, RAdam]:
    """Return an optimizer on the CPU and the same one on the device."""
    return (
        RAdam(leaves(shapes, dtype, "cpu"), lr=0.01, **settings),
        RAdam(leaves(shapes, dtype, DEVICE), lr=0.01, capturable=capturable, **settings),
    )


@pytest.mark.parametrize("capturable", [False, True], ids=["counted here", "counted there"])
@pytest.mark.parametrize("shapes", [LARGE, MANY], ids=["large", "many"])
@low
@ways
def test_it_trains_as_on_the_cpu(way: dict[str, Any], dtype: torch.dtype, shapes: Any, capturable: bool) -> None:
    here, there = both(shapes, dtype, capturable, **way)
    for t in range(8):
        for optimizer in (here, there):
            set_gradients(optimizer, t)
            optimizer.step()
    same(there, here, "after 8 steps")


@pytest.mark.parametrize("capturable", [False, True], ids=["counted here", "counted there"])
@pytest.mark.parametrize("shapes", [LARGE, MANY, [(3_000_001,)]], ids=["large", "many", "one"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@clips
def test_clipping_is_that_of_the_cpu(clip: dict[str, Any], dtype: torch.dtype, shapes: Any, capturable: bool) -> None:
    here, there = both(shapes, dtype, capturable, **clip)
    for t in range(4):
        for optimizer in (here, there):
            set_gradients(optimizer, t, times=10.0 ** (t % 3 - 2))
            optimizer.step()
        same(there, here, f"step {t}")


@clips
@low
@ways
def test_replays_step_and_clip_what_they_find(way: dict[str, Any], dtype: torch.dtype, clip: dict[str, Any]) -> None:
    here, there = both(FEW, dtype, True, **way, **clip)
    for optimizer in (here, there):
        warm_up(optimizer)
    graph = capture(there.step)
    for t in range(10):
        for optimizer in (here, there):
            set_gradients(optimizer, 10 + t)
        here.step()
        graph.replay()
        same(there, here, f"replay {t}")


@pytest.mark.parametrize("clip", ["max_grad_norm", "max_tensor_grad_norm"])
def test_an_inf_is_skipped_within_a_graph_and_the_norm_says_so(clip: str) -> None:
    _, there = both(FEW, torch.bfloat16, True, master_weights=True, nonfinite="skip", **{clip: 1.0})
    warm_up(there)
    graph = capture(there.step)
    params = there.param_groups[0]["params"]
    before = [bits(x) for param in params for x in (param, *there.state[param].values())]
    params[0].grad[-1] = torch.inf
    graph.replay()
    assert [bits(x) for param in params for x in (param, *there.state[param].values())] == before
    assert there.grad_norm == torch.inf
    params[0].grad[-1] = 1.0
    graph.replay()
    assert [bits(x) for param in params for x in (param, *there.state[param].values())] != before


def test_a_piece_that_stands_anywhere_in_its_memory_has_the_bits_of_one_that_stands_well() -> None:
    for way, shift in itertools.product(WAYS.values(), (1, 3)):
        well, shifted = ([drawn(i, (size,), torch.bfloat16) for i, size in enumerate((1000, 4099))] for _ in range(2))
        optimizers = []
        for tensors, by in ((well, 0), (shifted, shift)):
            on_device = [torch.cat([t.new_zeros(by), t]).to(DEVICE)[by:].requires_grad_() for t in tensors]
            optimizers.append(RAdam(on_device, lr=0.01, **way))
        for t in range(4):
            for optimizer in optimizers:
                set_gradients(optimizer, t)
                optimizer.step()
        same(*optimizers, f"{way}, {shift}")


# What compute-sanitizer sees: it is slow.


@pytest.mark.sanitized
@pytest.mark.parametrize("clip", ["unclipped", "by the norm of all", "by the norm of each"])
def test_a_step_of_every_way(clip: str) -> None:
    for way, dtype in itertools.product(WAYS.values(), (torch.bfloat16, torch.float16, torch.float32)):
        here, there = both([(4099,), (129,), (0,), (1,)], dtype, True, **way, **CLIPS[clip])
        for t in range(2):
            for optimizer in (here, there):
                set_gradients(optimizer, t)
                optimizer.step()
        same(there, here, f"{way}")
