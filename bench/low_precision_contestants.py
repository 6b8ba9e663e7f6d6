"""Who is measured with weights and moments in fewer bits: radam on NumPy arrays, its limits, and PyTorch's AdamW."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import radam
from cases import CASES, ITEM_BYTES, Case, Shapes, element_count
from contestants import LR, Step, filled, has_torch, torch_params
from radam import _step

MAX_NORM = 1.0  # below what the gradients have, so that they are clipped

LIMIT = "limit of "  # and the name of a way
FP32 = "fp32"
EIGHT_BIT = "fp32 with 8-bit moments"
SPLIT_8_BIT = "bf16, split master, 8-bit moments"
CLIPPED = "fp32, max_grad_norm"
LOOKING = 'fp32, nonfinite="raise"'
ADAMW = "torch fused AdamW"
CLIPPED_ADAMW = "torch fused AdamW after clip_grad_norm_"


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to take a step, over arrays of its own or those of another contestant.

    Args:
        name: how the report calls it.
        step: takes it.
        moved_bytes: what a step reads and writes, all arrays together.
        rivals: the contestants that its time is compared with.
    """

    name: str
    step: Step
    moved_bytes: int
    rivals: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """Contestants that share their arrays, or only have them in common that one is useless without the other.

    Args:
        name: what ``left_out`` calls them.
        item_bytes: what the arrays of all of them take for a parameter.
        make: allocates the arrays.
        module: what must be installed.
    """

    name: str
    item_bytes: float
    make: Callable[[Shapes], list[Contestant]]
    module: str = "numpy"

    def is_there(self) -> bool:
        """Whether what it needs is installed."""
        return has_torch() if self.module == "torch" else importlib.util.find_spec(self.module) is not None


# ---- radam


def _family(name: str, dtype: str, state_bytes: float, **options: Any) -> Family:
    """Return a way to keep weights and moments: its limit and its step, each with arrays of its own."""

    def make(shapes: Shapes) -> list[Contestant]:
        plan, _, _ = _set_up(shapes, dtype, options)
        limit = Contestant(LIMIT + name, functools.partial(_step.limit, (plan,)), moved_bytes(plan))
        plan, optimizer, grads = _set_up(shapes, dtype, options)
        rivals = (LIMIT + name, ADAMW) if name == FP32 else (LIMIT + name, FP32, ADAMW)
        own = Contestant(name, RadamStep(optimizer, grads), moved_bytes(plan), rivals)
        if name != FP32:
            return [limit, own]
        # A second look at the gradients, and nothing else: the arrays are the same ones.
        more = own.moved_bytes + _nbytes(plan[3])
        clipped = Contestant(CLIPPED, RadamStep(optimizer, grads, max_grad_norm=MAX_NORM), more, (FP32, CLIPPED_ADAMW))
        looking = Contestant(LOOKING, RadamStep(optimizer, grads, nonfinite="raise"), more, (FP32,))
        return [limit, own, clipped, looking]

    item_bytes = 2 * (2 * ITEM_BYTES[dtype] + state_bytes)
    return Family(name, item_bytes, make, "ml_dtypes" if dtype == "bfloat16" else "numpy")


def _set_up(shapes: Shapes, dtype: str, options: Mapping[str, Any]) -> tuple[tuple[Any, ...], radam.RAdam, list[Any]]:
    """Return what the core takes for the one group, the optimizer, which has made its moments, and the gradients."""
    kind = importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    optimizer = radam.RAdam(filled("numpy", shapes, kind, 0.1), lr=LR, **options)
    grads = filled("numpy", shapes, kind, 0.01)
    optimizer.step(grads=grads)
    return optimizer._plan(0, optimizer.param_groups[0], optimizer._states[0], grads, []), optimizer, grads


@dataclasses.dataclass(frozen=True)
class RadamStep:
    """A step with these settings, whatever the last one of the same optimizer had."""

    optimizer: radam.RAdam
    grads: list[Any]
    max_grad_norm: float | None = None
    nonfinite: Literal["propagate", "raise"] = "propagate"

    def __call__(self) -> None:
        self.optimizer.max_grad_norm, self.optimizer.nonfinite = self.max_grad_norm, self.nonfinite
        self.optimizer.step(grads=self.grads)


def moved_bytes(plan: tuple[Any, ...]) -> int:
    """Return what a step reads and writes of the arrays that it is handed: all but the gradients both ways."""
    _, _, params, grads, exp_avgs, exp_avg_sqs, *_ = plan
    masters_and_scales = plan[10][:3] if len(plan) > 10 else ()
    written = (params, exp_avgs, exp_avg_sqs, *(arrays for arrays in masters_and_scales if arrays is not None))
    return _nbytes(grads) + 2 * sum(map(_nbytes, written))


def _nbytes(arrays: Iterable[Any]) -> int:
    return sum(array.nbytes for array in arrays if array is not None)


# ---- PyTorch


def _torch_family() -> Family:
    """Return the fused AdamW by itself and with PyTorch's clipping before it, on the same tensors."""

    def make(shapes: Shapes) -> list[Contestant]:
        import torch

        params = torch_params(shapes, "float32", "cpu")
        optimizer = torch.optim.AdamW(params, lr=LR, fused=True)
        optimizer.step()  # makes the moments
        grads = [param.grad for param in params]
        moments = [optimizer.state[param][key] for param in params for key in ("exp_avg", "exp_avg_sq")]
        moved = _nbytes(grads) + 2 * _nbytes([*params, *moments])

        def clipped() -> None:
            torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
            optimizer.step()

        # Clipping reads the gradients for their norm, then reads and writes them.
        own = Contestant(ADAMW, optimizer.step, moved)
        return [own, Contestant(CLIPPED_ADAMW, clipped, moved + 3 * _nbytes(grads), (ADAMW,))]

    return Family(ADAMW, 16, make, "torch")


# ---- all of them

_CODES = 2 + 2 * 4 / 128  # two codes, and two scales for each block of 128

# In order of importance: where memory runs out, the last ones stay out.
FAMILIES = (
    _family(FP32, "float32", 8),
    _torch_family(),
    _family(EIGHT_BIT, "float32", _CODES, state_dtype="8bit"),
    _family(SPLIT_8_BIT, "bfloat16", 2 + _CODES, state_dtype="8bit", master_weights=True),
    _family("bf16, stochastic, 8-bit moments", "bfloat16", _CODES, state_dtype="8bit", stochastic_rounding=True),
    _family("bf16, split master", "bfloat16", 2 + 8, master_weights=True),
    _family("bf16", "bfloat16", 8),
    _family("bf16, bf16 moments", "bfloat16", 4, state_dtype="bfloat16"),
)


@dataclasses.dataclass(frozen=True)
class LowPrecisionCase:
    """Shapes, and how many of the families step them: the others would not fit beside them, or say nothing new."""

    case: Case
    families: tuple[Family, ...]


LOW_PRECISION_CASES = {
    name: LowPrecisionCase(CASES[name], FAMILIES[:count])
    for name, count in (("33.5M", len(FAMILIES)), ("134M", 4), ("1000x4096", 4))
}


def those_that_fit(case: LowPrecisionCase, shapes: Shapes, room: float | None) -> tuple[list[Family], dict[str, str]]:
    """Return who takes part, and why the others do not. All stay in memory together, for they take turns."""
    families: list[Family] = []
    left_out: dict[str, str] = {}
    needed = 0.0
    for family in case.families:
        with_it = needed + family.item_bytes * element_count(shapes)
        if not family.is_there():
            left_out[family.name] = f"{family.module} is not installed"
        elif room is not None and with_it > room:
            left_out[family.name] = f"with it {with_it / 1e9:.1f} GB would be needed; {room / 1e9:.1f} GB may be taken"
        else:
            families.append(family)
            needed = with_it
    return families, left_out
