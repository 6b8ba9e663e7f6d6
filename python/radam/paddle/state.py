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
Betas = tuple[float, float]
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
    dtype: str
    """The parameter's dtype that all this is for; a model may be cast after its first step."""
    awaited: Array | None = None
    """The float32 weight that a checkpoint brought, which the parameter takes at its next step."""

    @property
    def is_of_another_dtype(self) -> bool:
        """Whether the parameter has been cast since."""
        return dtype_name(self.param) != self.dtype


def dtype_name(param: Tensor) -> str:
    """Return the name of a parameter's dtype, as NumPy has it."""
    return str(param.dtype).removeprefix("paddle.")


def accumulator_dtype(dtype: str) -> str:
    """Return the dtype of the accumulators of a parameter of this dtype."""
    return "float64" if dtype == "float64" else "float32"


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
    dtype = dtype_name(param)
    wide = accumulator_dtype(dtype)
    master = new_master(param, multi_precision)
    if names is None or ("master" in names) != (master is not None):
        names = new_names(param, owner, master is not None)
    moment1, moment2 = zeros_beside(param, wide), zeros_beside(param, wide)
    return State(param, moment1, moment2, np.zeros(1, np.int64), master, names, dtype)


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
    param = state.param.detach().clone()  # without gaps; contiguous() would undo the strides of the parameter itself
    _step.join_weights(param.cpu().flatten(), kept.ravel(), joined)
    return joined.reshape(state.param.shape)


def settle(state: State) -> None:
    """Give a parameter the weight that a checkpoint brought."""
    assert state.awaited is not None
    assert state.master is not None
    wide, shape = np.ascontiguousarray(state.awaited).ravel(), tuple(state.param.shape)
    rounded = paddle.zeros([wide.size], state.param.dtype).cpu()
    kept = np.empty(wide.size, np.int16 if state.param.dtype == paddle.bfloat16 else np.float32)
    _step.split_weights(wide, rounded, kept)
    values = rounded.reshape(shape)
    if not np.array_equal(state.param.numpy().view(np.uint16), values.numpy().view(np.uint16)):  # 0 is not -0
        state.param.set_value(values)  # a Tensor, not an array, which would undo the strides of a view
    put(state.master, kept.reshape(shape))
    state.awaited = None


def recast(held: State, multi_precision: bool, owner: str | None) -> None:
    """Fit a state to a parameter that has been cast: moments as they are or widened, and another master or none.

    Raises:
        ValueError: if moments would have to be rounded.
    """
    dtype = dtype_name(held.param)
    before, wide = accumulator_dtype(held.dtype), accumulator_dtype(dtype)
    if before == "float64" and wide != before:
        raise ValueError(
            f"the parameter {held.param.name} was {before} when its moments were made, and is {dtype} now: rounding "
            f"them is not for a step to decide; cast the parameter back to {before}, or go on with a new optimizer, "
            "whose moments begin at 0"
        )
    if wide != before:
        held.moment1, held.moment2 = held.moment1.astype("float64"), held.moment2.astype("float64")
    master = new_master(held.param, multi_precision)
    if (master is None) != (held.master is None):
        held.names = new_names(held.param, owner, master is not None)
    held.master, held.awaited, held.dtype = master, None, dtype


def keep_masters(states: Iterable[State], multi_precision: bool, owner: str | None) -> None:
    """Make or forget what is kept of 16-bit weights, where somebody has switched that on or off."""
    for held in states:
        master = new_master(held.param, multi_precision)
        if (master is None) != (held.master is None):
            held.master, held.awaited = master, None
            held.names = new_names(held.param, owner, master is not None)
