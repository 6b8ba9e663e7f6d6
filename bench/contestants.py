"""Who is measured: radam, the limit, and PyTorch's optimizers, each on arrays of its own from its own allocator."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

import radam
from cases import ITEM_BYTES, Shapes, element_count
from front_ends import NUMPY, TORCH, FrontEnd
from radam import _step

Step = Callable[[], Any]


class Make(Protocol):
    """Allocates parameters and gradients of some shapes and a dtype, and returns the step."""

    def __call__(self, shapes: Shapes, dtype: str, device: str = "cpu") -> Step: ...


# RAdam with beta2 = 0.999 takes its first rectified step, the kind that is measured, at t = 6.
WARM_UP_STEPS = 7
LR = 1e-3

# All values are these again and again: drawing 134 M of them would take too long.
_block = np.random.default_rng(0).standard_normal(1 << 18, np.float32)


# ---- arrays of NumPy, or of a library with its functions


def filled(library: str, shapes: Shapes, dtype: Any, scale: float) -> list[Any]:
    """Return arrays of a library with numbers in them."""
    xp = importlib.import_module(library)
    block = xp.asarray(_block * np.float32(scale))
    arrays = [xp.empty(shape, dtype) for shape in shapes]
    for array in arrays:
        flat = array.reshape(-1)
        for start in range(0, flat.size, block.size):
            part = flat[start : start + block.size]
            part[:] = block[: part.size]
    return arrays


def radam_on(library: str) -> Make:
    """Return what makes a step of radam.RAdam on this library's arrays, which lie where the library puts them."""

    def make(shapes: Shapes, dtype: str, device: str = "cpu") -> Step:
        optimizer, grads = _over(library, shapes, dtype)
        return lambda: optimizer.step(grads=grads)

    return make


def limit_on(library: str) -> Make:
    """Return what makes a step of the limit on this library's arrays."""

    def make(shapes: Shapes, dtype: str, device: str = "cpu") -> Step:
        optimizer, grads = _over(library, shapes, dtype)
        optimizer.step(grads=grads)  # makes the moments
        plan = optimizer._plan(0, optimizer.param_groups[0], optimizer._states[0], grads, [])
        return functools.partial(_step.limit, (plan,))

    return make


def _over(library: str, shapes: Shapes, dtype: str) -> tuple[radam.RAdam, list[Any]]:
    return radam.RAdam(filled(library, shapes, dtype, 0.1), lr=LR), filled(library, shapes, dtype, 0.01)


# ---- PyTorch tensors


def torch_params(shapes: Shapes, dtype: str, device: str) -> list[Any]:
    """Return parameters with their gradients."""
    import torch

    def filled_tensor(shape: tuple[int, ...], scale: float) -> Any:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        flat, block = tensor.view(-1), torch.from_numpy(_block * np.float32(scale)).to(device)
        for start in range(0, len(flat), len(block)):
            part = flat[start : start + len(block)]
            part.copy_(block[: len(part)])
        return tensor

    params = [torch.nn.Parameter(filled_tensor(shape, 0.1)) for shape in shapes]
    for param in params:
        param.grad = filled_tensor(param.shape, 0.01)
    return params


def radam_torch(**options: Any) -> Make:
    """Return what makes a step of radam.torch.RAdam with these options."""

    def make(shapes: Shapes, dtype: str, device: str = "cpu") -> Step:
        from radam.torch import RAdam

        step: Step = RAdam(torch_params(shapes, dtype, device), lr=LR, **options).step
        return step

    return make


def limit_torch(**options: Any) -> Make:
    """Return what makes a step of the limit on PyTorch tensors, the states of radam.torch.RAdam with these options."""

    def make(shapes: Shapes, dtype: str, device: str = "cpu") -> Step:
        from radam.torch import RAdam

        params = torch_params(shapes, dtype, device)
        optimizer = RAdam(params, lr=LR, **options)
        optimizer.step()  # makes the moments
        exp_avgs, exp_avg_sqs, steps = (
            tuple(optimizer.state[param][key] for param in params) for key in ("exp_avg", "exp_avg_sq", "step")
        )
        grads = tuple(param.grad for param in params)
        hyperparameters = optimizer.convention.hyperparameters(lr=LR)
        # What the front end hands to the core for a group, with neither a schedule of lr, nor amsgrad, nor names.
        plan = (hyperparameters, None, tuple(params), grads, exp_avgs, exp_avg_sqs, None, steps, None)
        return functools.partial(_step.limit, (plan,))

    return make


def torch_optimizer(optimizer: str, **options: bool) -> Make:
    """Return what makes a step of an optimizer of PyTorch's with these options."""

    def make(shapes: Shapes, dtype: str, device: str = "cpu") -> Step:
        import torch

        step: Step = getattr(torch.optim, optimizer)(torch_params(shapes, dtype, device), lr=LR, **options).step
        return step

    return make


# ---- all of them


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to take a step.

    Args:
        name: how the report calls it.
        front_end: what arrays it steps, and so which limit and which radam it is compared with.
        make: makes the step.
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


def peer(name: str, make: Make, front_end: FrontEnd = TORCH, **memory: int) -> Contestant:
    """Return an optimizer of PyTorch's, whose moments have the parameter's dtype."""
    return Contestant(name, front_end, make, wide_moments=False, **memory)


# In order of importance: where memory runs out, the last ones stay out.
CONTESTANTS = {
    c.name: c
    for c in (
        Contestant(TORCH.limit, TORCH, limit_torch()),
        Contestant(TORCH.radam, TORCH, radam_torch()),
        Contestant(NUMPY.limit, NUMPY, limit_on("numpy")),
        Contestant(NUMPY.radam, NUMPY, radam_on("numpy")),
        peer("torch fused AdamW", torch_optimizer("AdamW", fused=True)),
        peer("torch RAdam foreach", torch_optimizer("RAdam", foreach=True), copies=2),
        peer("torch RAdam default", torch_optimizer("RAdam", foreach=False), array_copies=2),
    )
}


def those_that_fit(
    shapes: Shapes, dtype: str, chosen: Sequence[Contestant], room: float | None
) -> tuple[list[Contestant], dict[str, str]]:
    """Return who takes part, and why the others do not. All stay in memory together, for they take turns."""
    contestants: list[Contestant] = []
    left_out: dict[str, str] = {}
    for contestant in chosen:
        if dtype not in contestant.front_end.dtypes:
            continue
        together = [*contestants, contestant]
        needed = sum(c.lasting_bytes(shapes, dtype) for c in together)
        needed += max(c.passing_bytes(shapes, dtype) for c in together)
        if room is not None and needed > room:
            left_out[contestant.name] = (
                f"with it {needed / 1e9:.1f} GB would be needed; {room / 1e9:.1f} GB may be taken"
            )
        else:
            contestants.append(contestant)
    leave_out_incomparable(contestants, left_out)
    return contestants, left_out


def leave_out_incomparable(contestants: list[Contestant], left_out: dict[str, str]) -> None:
    """Move those to left_out whose limit or radam is there: nobody could compare them."""
    for contestant in list(contestants):
        missing = [name for name in (contestant.front_end.limit, contestant.front_end.radam) if name in left_out]
        if missing:
            left_out[contestant.name] = f"{missing[0]}, with which it is compared, is left out"
            contestants.remove(contestant)


def front_ends_of(cases: Sequence[Mapping[str, Any]], contestants: Iterable[Contestant]) -> list[dict[str, Any]]:
    """Return what a result says of the kinds of arrays: who took part, and with whom each is compared."""
    seen = {name for case in cases for name in case["least_moved_bytes"]}
    names: dict[FrontEnd, list[str]] = {}
    for contestant in contestants:
        if contestant.name in seen:
            names.setdefault(contestant.front_end, []).append(contestant.name)
    return [{**dataclasses.asdict(front_end), "contestants": names[front_end]} for front_end in names]


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
