"""Low precision and clipping on CUDA devices, on doubles of tensors and at the native door: the bits of the CPU, nobody
waits, and replays of a graph step and clip anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from low_precision_ways import SHAPES, bits, draw, ways
from radam import _step
from radam.torch import RAdam
from stand_in_device import DeviceArray, aligned, claiming, cupy_imported
from stand_in_library import StandIn
from torch_cuda_double import no_waiting, on_cuda, on_host, taken_for_plain

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
CLIPS: dict[str, dict[str, Any]] = {
    "all": {"max_grad_norm": 0.7},
    "each": {"max_tensor_grad_norm": 0.7},
    "value": {"max_grad_value": 0.01},
    "measured": {"max_grad_norm": float("inf")},
}
clips = pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)


@pytest.fixture(autouse=True)
def _doubles(stand_in: StandIn) -> Iterator[None]:
    with cupy_imported(), taken_for_plain():
        yield


# ---- radam.torch


def made(dtype: torch.dtype, device: bool, **settings: Any) -> RAdam:
    """Return an optimizer of the same numbers on the CPU or on a device."""
    tensors = draw(SHAPES, 1, dtype)
    params = [on_cuda(t, 0, requires_grad=True) if device else torch.nn.Parameter(t) for t in tensors]
    return RAdam(params, lr=0.01, **settings)


def params_of(optimizer: RAdam) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def set_gradients(optimizer: RAdam, seed: int, scale: float = 1.0) -> None:
    params = params_of(optimizer)
    for param, grad in zip(params, draw([tuple(p.shape) for p in params], 100 + seed, torch.bfloat16)):
        grad = (scale * grad).to(param.dtype)
        param.grad = on_cuda(grad, 0) if param.is_cuda else grad


def refill_gradients(optimizer: RAdam, seed: int) -> None:
    """Write new numbers into the gradients that are there, as a replay of a whole training step would."""
    params = params_of(optimizer)
    for param, grad in zip(params, draw([tuple(p.shape) for p in params], 100 + seed, torch.bfloat16)):
        assert param.grad is not None
        on_host(param.grad).copy_(grad)


def everything(optimizer: RAdam) -> list[Any]:
    """Return the bits of parameters and states, wherever they lie, and the counts as numbers."""
    found: list[Any] = []
    for param in params_of(optimizer):
        entry = optimizer.state.get(param, {})
        parts = {key: bits(on_host(value)) for key, value in entry.items() if key != "step"}
        found.append((bits(on_host(param)), parts, float(entry["step"]) if entry else None))
    return found


@pytest.mark.parametrize("capturable", [False, True], ids=["counted here", "counted there"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@ways
def test_every_way_has_the_bits_of_the_cpu(way: dict[str, Any], dtype: torch.dtype, capturable: bool) -> None:
    here, there = made(dtype, False, **way), made(dtype, True, capturable=capturable, **way)
    for seed in range(8):
        for optimizer in (here, there):
            set_gradients(optimizer, seed)
            optimizer.step()
        assert everything(here) == everything(there), seed


@pytest.mark.parametrize("capturable", [False, True], ids=["counted here", "counted there"])
@clips
@pytest.mark.parametrize("way", [{}, {"master_weights": True, "state_dtype": "8bit", "min_8bit_size": 1}], ids=str)
def test_clipping_has_the_bits_of_the_cpu(way: dict[str, Any], clip: dict[str, Any], capturable: bool) -> None:
    settings = {**way, **clip}
    here, there = (
        made(torch.bfloat16, False, **settings),
        made(torch.bfloat16, True, capturable=capturable, **settings),
    )
    for seed in range(8):
        for optimizer in (here, there):
            set_gradients(optimizer, seed, scale=10.0 ** (seed % 3 - 2))
            optimizer.step()
        assert everything(here) == everything(there), seed
        assert here.grad_norm == there.grad_norm
        assert (here.grad_norm is None) == ("max_grad_value" in clip)


@clips
@ways
def test_nobody_waits_and_a_step_is_one_call_of_the_library(
    way: dict[str, Any], clip: dict[str, Any], stand_in: StandIn
) -> None:
    optimizer = made(torch.bfloat16, True, capturable=True, **way, **clip)
    set_gradients(optimizer, 0)
    optimizer.step()
    stand_in.forget()
    with no_waiting():
        optimizer.step()
    assert [line.split()[0] for line in stand_in.log()] == ["step"]


@clips
@ways
def test_replays_step_and_clip_what_they_find(way: dict[str, Any], clip: dict[str, Any], stand_in: StandIn) -> None:
    settings = {**way, **clip}
    here, there = made(torch.bfloat16, False, **settings), made(torch.bfloat16, True, capturable=True, **settings)
    for optimizer in (here, there):
        set_gradients(optimizer, 0)
        optimizer.step()
    before = everything(there)
    stand_in.capture(True)
    there.step()
    stand_in.capture(False)
    assert everything(there) == before
    for seed in range(1, 9):
        for optimizer in (here, there):
            refill_gradients(optimizer, seed)
        here.step()
        stand_in.replay()
        assert everything(here) == everything(there), seed
        assert here.grad_norm == there.grad_norm


# ---- the native door: shards, and moments of amsgrad in codes

WHOLE = (40, 50)
CUTS: dict[str, tuple[slice, slice]] = {
    "rows": (slice(10, 30), slice(None)),
    "columns": (slice(None), slice(7, 39)),
    "a corner": (slice(3, 40), slice(1, 50)),
    "all": (slice(None), slice(None)),
}


class Stored:
    """A coded, stochastically rounded parameter, or a piece of one, and a step of it."""

    def __init__(self, cut: tuple[slice, slice], device: bool, amsgrad: bool) -> None:
        import ml_dtypes

        rng = np.random.default_rng(3)
        self.cut, self.amsgrad = cut, amsgrad
        values = rng.standard_normal((2, *WHOLE)).astype(ml_dtypes.bfloat16)
        self.arrays: dict[str, Any] = {"param": values[0][cut], "grad": values[1][cut]}
        shape = self.arrays["param"].shape
        blocks = (self.arrays["param"].size + 127) // 128
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            self.arrays[name] = np.zeros(shape, np.int8 if name == "exp_avg" else np.uint8)
            self.arrays[f"{name}_scale"] = np.zeros(blocks, np.float32)
        self.arrays = {name: _placed(array, device) for name, array in self.arrays.items()}
        self.steps = np.zeros(1, np.int64)

    def step(self) -> None:
        """Take one step of AMSGrad, or of none."""
        a = {name: (array,) for name, array in self.arrays.items()}
        h = _step.Hyperparameters(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, amsgrad=self.amsgrad)
        offsets = tuple(part.start or 0 for part in self.cut)
        maxima = a["max_exp_avg_sq"] if self.amsgrad else None
        stored = (
            None,
            a["exp_avg_scale"],
            a["exp_avg_sq_scale"],
            a["max_exp_avg_sq_scale"] if self.amsgrad else None,
            11,
            (5,),
            ((WHOLE, offsets),),
            True,
        )
        group = (h, None, a["param"], a["grad"], a["exp_avg"], a["exp_avg_sq"], maxima, self.steps, None, None, stored)
        assert _step.step((group,), "propagate")

    def host(self, name: str) -> Any:
        """Return an array, wherever it claims to lie."""
        array = self.arrays[name]
        return array._view if isinstance(array, DeviceArray) else array

    def bits(self) -> dict[str, bytes]:
        """Return the bits of all that a step writes."""
        return {name: self.host(name).tobytes() for name in self.arrays}


def _placed(array: np.ndarray[Any, Any], device: bool) -> Any:
    made = aligned(array.shape, array.dtype)
    made[...] = array
    return claiming(made, 0) if device else made


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_piece_of_a_parameter_has_the_bits_of_the_cpu(cut: tuple[slice, slice], amsgrad: bool) -> None:
    here, there = Stored(cut, False, amsgrad), Stored(cut, True, amsgrad)
    for _ in range(9):
        here.step()
        there.step()
        assert here.bits() == there.bits()
    assert any(here.host("max_exp_avg_sq_scale")) == amsgrad


def test_random_bits_are_those_of_the_element_in_the_whole_parameter() -> None:
    whole, piece = (Stored(CUTS[name], True, False) for name in ("all", "rows"))
    others = [Stored(CUTS[name], True, False) for name in ("columns", "a corner")]
    for stored in (whole, piece, *others):
        stored.step()  # whose moments are the gradient's, rounded in blocks: but the first step is by the exact ones
    for stored in (piece, *others):
        assert stored.host("param").tobytes() == whole.host("param")[stored.cut].tobytes()
