"""What the optimizer keeps of each parameter, under the names that Paddle would give it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.utils import unique_name

from .. import _step
from ..precision import Precision

Array = np.ndarray[Any, Any]
Kept = Array | Tensor
"""What is kept of a parameter: an array of NumPy's where that lies on the CPU, which costs less to look at."""

KINDS = ("beta1_pow", "beta2_pow", "rho", "moment1", "moment2")
"""Paddle's accumulators, as it names them."""
COUNT = "radam_count"
"""Ours beside them: the step count and the betas, which Paddle's optimizer leaves alone."""


@dataclasses.dataclass(eq=False)
class State:
    """What is kept of one parameter."""

    param: Tensor
    moment1: Kept
    moment2: Kept
    count: Array
    """The steps it has taken, one int64, which the core advances; a part of the counts of a bucket."""
    master: Kept | None
    """What rounding the parameter loses: int16 beside bfloat16, the float32 weight beside float16."""
    names: dict[str, str]
    """The names that Paddle gives the accumulators, by kind; "master" is that of the float32 weight."""
    awaited: Array | None = None
    """The float32 weight that a checkpoint brought, which the parameter takes at its next step."""


def is_low(param: Tensor) -> bool:
    """Whether a parameter is of a dtype that may have a master weight."""
    return bool(param.dtype == paddle.bfloat16 or param.dtype == paddle.float16)


def dtype_name(param: Tensor) -> str:
    """Return the name of a parameter's dtype, as NumPy has it."""
    return str(param.dtype).removeprefix("paddle.")


def accumulator_dtype(param: Tensor) -> str:
    """Return the dtype of a parameter's accumulators."""
    return "float64" if param.dtype == paddle.float64 else "float32"


def zeros_beside(param: Tensor, dtype: str) -> Kept:
    """Return zeros of a parameter's shape, where it lies."""
    if param.place.is_cpu_place():
        return np.zeros(param.shape, dtype)
    with paddle.no_grad():
        return paddle.zeros_like(param, dtype=getattr(paddle, dtype))


def put(kept: Kept, values: Array) -> None:
    """Write values of the same shape and dtype."""
    if isinstance(kept, Tensor):
        kept.set_value(values)
    else:
        kept[...] = values


def as_tensor(kept: Kept) -> Tensor:
    """Return a copy of what is kept, as a Tensor."""
    return kept.clone() if isinstance(kept, Tensor) else paddle.to_tensor(kept, place="cpu")


def new_names(param: Tensor, owner: str | None, with_master: bool) -> dict[str, str]:
    """Return the names that Paddle's own optimizer would give now, where owner is the optimizer's name."""
    names = {}
    target = param.name
    if with_master:
        target = names["master"] = unique_name.generate(f"{param.name}_fp32_master")
    between = f"{target}_" if owner is None else f"{target}_{owner}_"
    return names | {kind: unique_name.generate(between + kind) for kind in (*KINDS, COUNT)}


def create(param: Tensor, owner: str | None, multi_precision: bool, names: dict[str, str] | None = None) -> State:
    """Return the state of a parameter before its first step, with these names if they are of the right kind."""
    dtype = accumulator_dtype(param)
    master = new_master(param, multi_precision)
    if names is None or ("master" in names) != (master is not None):
        names = new_names(param, owner, master is not None)
    moment1, moment2 = zeros_beside(param, dtype), zeros_beside(param, dtype)
    return State(param, moment1, moment2, np.zeros(1, np.int64), master, names)


def new_master(param: Tensor, multi_precision: bool) -> Kept | None:
    """Return what is kept of a 16-bit weight, as it is before anything is; None for other parameters."""
    for dtype in Precision(master_weights=multi_precision).master(dtype_name(param)).values():
        return zeros_beside(param, dtype)
    return None


def weight(state: State) -> Array:
    """Return the float32 weight that a 16-bit parameter and what is kept of it stand for."""
    assert state.master is not None
    if state.awaited is not None:
        return state.awaited
    joined = np.empty(state.param.size, np.float32)
    kept = state.master.numpy() if isinstance(state.master, Tensor) else state.master
    _step.join_weights(state.param.detach().cpu().flatten(), kept.ravel(), joined)
    return joined.reshape(state.param.shape)


def settle(state: State) -> None:
    """Give a parameter the weight that a checkpoint brought."""
    assert state.awaited is not None
    assert state.master is not None
    wide, shape = np.ascontiguousarray(state.awaited).ravel(), tuple(state.param.shape)
    rounded = paddle.zeros([wide.size], state.param.dtype).cpu()
    kept = np.empty(wide.size, np.int16 if state.param.dtype == paddle.bfloat16 else np.float32)
    _step.split_weights(wide, rounded, kept)
    values = rounded.numpy().reshape(shape)
    if not np.array_equal(state.param.numpy(), values):
        state.param.set_value(values)
    put(state.master, kept.reshape(shape))
    state.awaited = None


def keep_masters(states: Iterable[State], multi_precision: bool, owner: str | None) -> None:
    """Make or forget what is kept of 16-bit weights, where somebody has switched that on or off."""
    for held in states:
        master = new_master(held.param, multi_precision)
        if (master is None) != (held.master is None):
            held.master, held.awaited = master, None
            held.names = new_names(held.param, owner, master is not None)
