"""How much memory an optimizer and its parameters take, by kind."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from .groups import array_of

_KINDS = {
    "step": "step_counts",
    "exp_avg": "moments",
    "exp_avg_sq": "moments",
    "max_exp_avg_sq": "moments",
    "remainder": "master_weights",
    "master": "master_weights",
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes by kind, as radam.memory finds them. str() of it is a table.

    >>> import numpy as np, radam
    >>> opt = radam.RAdam([np.zeros(1000, np.float32)], state_dtype="8bit", min_8bit_size=0)
    >>> opt.step(grads=[np.zeros(1000, np.float32)])
    >>> print(radam.memory(opt))
    1,000 elements
                    bytes  bytes an element
    parameters      4,000                 4
    gradients           0                 0
    moments         2,000                 2
    scales             64             0.064
    master weights      0                 0
    step counts         8             0.008
    total           6,072             6.072
    """

    elements: int
    """How many numbers the parameters have, together."""

    parameters: int
    """Of the parameters themselves."""

    gradients: int
    """Of the gradients that the parameters hold in .grad; those handed to a step belong to the caller."""

    moments: int
    """Without scales."""

    scales: int
    """Of 8-bit moments."""

    master_weights: int
    """float32 copies of float16 parameters, and the lower halves of the weights of bfloat16 ones."""

    step_counts: int
    """Of the counts of steps, 8 for each parameter in most optimizers."""

    other: int
    """Of entries in the state that radam does not know."""

    @property
    def state(self) -> int:
        """What the optimizer itself holds."""
        return self.moments + self.scales + self.master_weights + self.step_counts + self.other

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.state

    def __str__(self) -> str:
        names = [field.name for field in dataclasses.fields(self) if field.name != "elements"]
        rows = [(name, getattr(self, name)) for name in (*names, "total") if name != "other" or self.other]
        width = max(len(f"{count:,}") for _, count in rows)
        lines = [f"{'':14}  {'bytes':>{width}}  bytes an element"]
        for name, count in rows:
            each = f"{count / self.elements:.4g}" if self.elements else "-"
            lines.append(f"{name.replace('_', ' '):14}  {count:>{width},}  {each:>16}")
        return "\n".join([f"{self.elements:,} elements", *lines])


def memory(optimizer: Any) -> Memory:
    """Return how many bytes an optimizer takes, its parameters and their gradients included.

    Args:
        optimizer: one of radam's, but for JAX, whose state is a tree of arrays that you hold; or any with
            ``param_groups`` and ``state`` like PyTorch's. What is sharded counts as much as this process holds. States
            are made in the first step: before it they count nothing.

    Raises:
        TypeError: if it is something else.

    >>> import numpy as np, radam
    >>> opt = radam.RAdam([np.zeros(1000, np.float32)])
    >>> opt.step(grads=[np.zeros(1000, np.float32)])
    >>> radam.memory(opt).moments
    8000
    """
    counts = dict.fromkeys((field.name for field in dataclasses.fields(Memory)), 0)
    for param, entry in _parameters(optimizer):
        array = array_of(param)
        counts["elements"] += _size(array)
        counts["parameters"] += _bytes(array)
        grad = getattr(param, "grad", None)
        counts["gradients"] += 0 if grad is None else _bytes(array_of(grad))
        for key, value in entry.items():
            counts[_kind(key)] += _bytes(value)
    return Memory(**counts)


def _parameters(optimizer: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Give each parameter once, with its state."""
    if hasattr(optimizer, "_memory_entries"):  # a front end whose framework keeps states in another way
        yield from optimizer._memory_entries()
        return
    if not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
        raise TypeError(f"optimizer must have param_groups and a state, got {type(optimizer).__name__}")
    seen: set[int] = set()
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = optimizer.state
    for i, param in enumerate(params):
        if id(param) not in seen:
            seen.add(id(param))
            yield param, state.get(param, {}) if isinstance(state, Mapping) else state[i]


def _kind(key: str) -> str:
    if key.endswith("_scale"):
        return "scales"
    return _KINDS.get(key.removesuffix("_code"), "other")


def _local(array: Any) -> Any:
    """Return what of a sharded tensor this process holds."""
    return array.to_local() if hasattr(array, "to_local") else array


def _size(array: Any) -> int:
    return math.prod(int(n) for n in _local(array).shape)


def _bytes(thing: Any) -> int:
    """Return the bytes of an array's elements, or of a number (a step count is an int64)."""
    local = _local(thing)
    if hasattr(local, "nbytes"):
        return int(local.nbytes)
    if hasattr(local, "element_size"):
        return _size(local) * int(local.element_size())
    if hasattr(local, "shape") and hasattr(local, "dtype"):
        return _size(local) * int(local.dtype.itemsize)
    if isinstance(local, int):
        return 8
    try:
        return memoryview(local).nbytes
    except TypeError:
        return 0
