"""Who is measured: radam, the limit, and PyTorch's optimizers, each on arrays of its own from its own allocator."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

import radam
from cases import ITEM_BYTES, Shapes, element_count
from front_ends import NUMPY, TORCH, FrontEnd
from radam import _step

Step = Callable[[], Any]
Make = Callable[[Shapes, str], Step]

# RAdam with beta2 = 0.999 takes its first rectified step, the kind that is measured, at t = 6.
WARM_UP_STEPS = 7
LR = 1e-3

# All values are these again and again: drawing 134 M of them would take too long.
_block = np.random.default_rng(0).standard_normal(1 << 18, np.float32)


# ---- NumPy arrays


def _numpy_arrays(shapes: Shapes, dtype: str, scale: float) -> list[np.ndarray[Any, Any]]:
    block = _block * np.float32(scale)
    arrays = [np.empty(shape, dtype) for shape in shapes]
    for array in arrays:
        flat = array.reshape(-1)
        for start in range(0, flat.size, block.size):
            part = flat[start : start + block.size]
            part[:] = block[: part.size]
    return arrays


def _radam(shapes: Shapes, dtype: str) -> Step:
    optimizer, grads = radam.RAdam(_numpy_arrays(shapes, dtype, 0.1), lr=LR), _numpy_arrays(shapes, dtype, 0.01)
    return lambda: optimizer.step(grads=grads)


def _limit(shapes: Shapes, dtype: str) -> Step:
    optimizer, grads = radam.RAdam(_numpy_arrays(shapes, dtype, 0.1), lr=LR), _numpy_arrays(shapes, dtype, 0.01)
    optimizer.step(grads=grads)  # makes the moments
    plan = optimizer._plan(0, optimizer.param_groups[0], optimizer._states[0], grads, [])
    return functools.partial(_step.limit, (plan,))


# ---- PyTorch tensors


def _torch_params(shapes: Shapes, dtype: str) -> list[Any]:
    """Return parameters with their gradients."""
    import torch

    def filled(shape: tuple[int, ...], scale: float) -> Any:
        tensor, block = torch.empty(shape, dtype=getattr(torch, dtype)), torch.from_numpy(_block * np.float32(scale))
        flat = tensor.view(-1)
        for start in range(0, len(flat), len(block)):
            part = flat[start : start + len(block)]
            part.copy_(block[: len(part)])
        return tensor

    params = [torch.nn.Parameter(filled(shape, 0.1)) for shape in shapes]
    for param in params:
        param.grad = filled(param.shape, 0.01)
    return params


def _radam_torch(shapes: Shapes, dtype: str) -> Step:
    from radam.torch import RAdam

    step: Step = RAdam(_torch_params(shapes, dtype), lr=LR).step
    return step


def _limit_torch(shapes: Shapes, dtype: str) -> Step:
    from radam.torch import RAdam

    params = _torch_params(shapes, dtype)
    optimizer = RAdam(params, lr=LR)
    optimizer.step()  # makes the moments
    exp_avgs, exp_avg_sqs, steps = (
        tuple(optimizer.state[param][key] for param in params) for key in ("exp_avg", "exp_avg_sq", "step")
    )
    grads = tuple(param.grad for param in params)
    hyperparameters = optimizer.convention.hyperparameters(lr=LR)
    # What the front end hands to the core for a group, with neither a schedule of lr, nor amsgrad, nor names.
    plan = (hyperparameters, None, tuple(params), grads, exp_avgs, exp_avg_sqs, None, steps, None)
    return functools.partial(_step.limit, (plan,))


def _torch(optimizer: str, **options: bool) -> Make:
    def make(shapes: Shapes, dtype: str) -> Step:
        import torch

        step: Step = getattr(torch.optim, optimizer)(_torch_params(shapes, dtype), lr=LR, **options).step
        return step

    return make


# ---- all of them


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to take a step.

    Args:
        name: how the report calls it.
        front_end: what arrays it steps, and so which limit and which radam it is compared with.
        make: allocates parameters and gradients of some shapes and a dtype, and returns the step.
        wide_moments: whether it keeps float32 moments of 16-bit parameters too; else the parameter's dtype.
        copies: how many arrays like all the parameters a step allocates at its peak.
        array_copies: how many like the largest one.
    """

    name: str
    front_end: FrontEnd
    make: Make
    wide_moments: bool = True
    copies: int = 0
    array_copies: int = 0

    def lasting_bytes(self, shapes: Shapes, dtype: str) -> int:
        """Return what param, grad and two moments take."""
        return 2 * (ITEM_BYTES[dtype] + self._moment_bytes(dtype)) * element_count(shapes)

    def passing_bytes(self, shapes: Shapes, dtype: str) -> int:
        """Return what a step allocates and frees again, roughly."""
        largest = max(math.prod(shape) for shape in shapes)
        return ITEM_BYTES[dtype] * (self.copies * element_count(shapes) + self.array_copies * largest)

    def least_moved_bytes(self, dtype: str) -> int:
        """Return what a step must move for a parameter: param, grad and moments in, param and moments out."""
        return 3 * ITEM_BYTES[dtype] + 4 * self._moment_bytes(dtype)

    def _moment_bytes(self, dtype: str) -> int:
        return ITEM_BYTES["float32" if self.wide_moments else dtype]


def _peer(name: str, make: Make, **memory: int) -> Contestant:
    return Contestant(name, TORCH, make, wide_moments=False, **memory)


# In order of importance: where memory runs out, the last ones stay out.
CONTESTANTS = {
    c.name: c
    for c in (
        Contestant(TORCH.limit, TORCH, _limit_torch),
        Contestant(TORCH.radam, TORCH, _radam_torch),
        Contestant(NUMPY.limit, NUMPY, _limit),
        Contestant(NUMPY.radam, NUMPY, _radam),
        _peer("torch fused AdamW", _torch("AdamW", fused=True)),
        _peer("torch RAdam foreach", _torch("RAdam", foreach=True), copies=2),
        _peer("torch RAdam default", _torch("RAdam", foreach=False), array_copies=2),
    )
}


def has_torch() -> bool:
    """Whether PyTorch is installed. Does not import it."""
    return importlib.util.find_spec("torch") is not None


def ask_for_huge_pages() -> None:
    """Let PyTorch ask Linux for huge pages, as NumPy does by itself. To be called before PyTorch allocates."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def set_threads(count: int, torch_too: bool) -> None:
    """Set the number of threads of a step, for radam and, if it takes part, PyTorch."""
    radam.set_num_threads(count)
    if torch_too:
        import torch

        torch.set_num_threads(count)
