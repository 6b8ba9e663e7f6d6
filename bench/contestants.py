"""Who is measured: radam, the limit, and PyTorch's optimizers, each on arrays of its own from its own allocator."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

import radam
from cases import Shapes, element_count
from radam import _step

Step = Callable[[], Any]

# RAdam with beta2 = 0.999 takes its first rectified step, the kind that is measured, at t = 6.
WARM_UP_STEPS = 7
LR = 1e-3

_block = np.random.default_rng(0).standard_normal(1 << 18, np.float32)


def fill(array: np.ndarray[Any, Any], scale: float) -> np.ndarray[Any, Any]:
    """Fill with normal numbers, the same ones again and again: drawing 134 M of them would take too long."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _block.size):
        part = flat[start : start + _block.size]
        np.multiply(_block[: part.size], np.float32(scale), out=part)
    return array


def _numpy_arrays(shapes: Shapes, scale: float) -> list[np.ndarray[Any, Any]]:
    return [fill(np.empty(shape, np.float32), scale) for shape in shapes]


def _radam(shapes: Shapes) -> Step:
    optimizer, grads = radam.RAdam(_numpy_arrays(shapes, 0.1), lr=LR), _numpy_arrays(shapes, 0.01)
    return lambda: optimizer.step(grads=grads)


def _limit(shapes: Shapes) -> Step:
    optimizer, grads = radam.RAdam(_numpy_arrays(shapes, 0.1), lr=LR), _numpy_arrays(shapes, 0.01)
    optimizer.step(grads=grads)  # makes the moments
    plan = optimizer._plan(0, optimizer.param_groups[0], optimizer._states[0], grads, [])
    return lambda: _step.limit((plan,))


def _torch(optimizer: str, **options: bool) -> Callable[[Shapes], Step]:
    def make(shapes: Shapes) -> Step:
        import torch

        params = []
        for shape in shapes:
            param, grad = torch.empty(shape), torch.empty(shape)
            fill(param.numpy(), 0.1)
            fill(grad.numpy(), 0.01)
            param.requires_grad_()
            param.grad = grad
            params.append(param)
        step: Step = getattr(torch.optim, optimizer)(params, lr=LR, **options).step
        return step

    return make


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to take a step.

    Args:
        name: how the report calls it.
        make: allocates parameters, gradients and state for some shapes and returns the step.
        copies: how many arrays like all the parameters a step allocates at its peak.
        array_copies: how many like the largest one.
        torch: whether it needs PyTorch.
    """

    name: str
    make: Callable[[Shapes], Step]
    copies: int = 0
    array_copies: int = 0
    torch: bool = False

    def lasting_bytes(self, shapes: Shapes) -> int:
        """Return what param, grad and two moments take."""
        return 16 * element_count(shapes)

    def passing_bytes(self, shapes: Shapes) -> int:
        """Return what a step allocates and frees again, roughly."""
        return 4 * (self.copies * element_count(shapes) + self.array_copies * max(math.prod(shape) for shape in shapes))


# In order of importance: where memory runs out, the last ones stay out.
CONTESTANTS = {
    c.name: c
    for c in (
        Contestant("limit", _limit),
        Contestant("radam", _radam),
        Contestant("torch fused AdamW", _torch("AdamW", fused=True), torch=True),
        Contestant("torch RAdam foreach", _torch("RAdam", foreach=True), copies=2, torch=True),
        Contestant("torch RAdam default", _torch("RAdam", foreach=False), array_copies=2, torch=True),
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
