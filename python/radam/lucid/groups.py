"""Lucid's parameter groups: betas beside beta1 and beta2, and parameters that can be updated in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..groups import Group, array_of

Betas = tuple[Any, Any]

METAL = 8  # as DLPack counts kinds of devices


def pair(betas: Any, what: str) -> Betas:
    """Return betas as a tuple of two; ValueError for what is none."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"{what}: betas must be a tuple of two numbers, got {betas!r}")
    return betas[0], betas[1]


def begin_betas(group: Group, defaults: Mapping[str, Any], what: str) -> None:
    """Give a new group betas, beta1 and beta2; where it says beta1 or beta2, they count more than its betas."""
    first, second = pair(group.get("betas", defaults.get("betas")), what)
    first, second = group.get("beta1", first), group.get("beta2", second)
    group["betas"], group["beta1"], group["beta2"] = (first, second), first, second


def check_params(params: Sequence[Any], g: int) -> None:
    """Refuse what is no parameter, and what cannot be updated in place."""
    for i, param in enumerate(params):
        if not (hasattr(param, "data") and hasattr(param, "grad")):
            raise TypeError(
                f"parameter {i} of group {g} is a {type(param).__name__}, which has no .data and .grad as Lucid's "
                "parameters do; radam.RAdam takes arrays as they are"
            )
    check_memory(params, g)


def check_memory(params: Sequence[Any], g: int) -> None:
    """Refuse what looks like an array and cannot be updated in place: the core would step a copy."""
    for i, param in enumerate(params):
        array = array_of(param)
        if isinstance(array, np.ndarray):
            again = array_of(param)
            if again is not array and array.size and _address(again) != _address(array):
                raise ValueError(
                    f"parameter {i} of group {g} ({type(param).__qualname__}) cannot be updated in place: its .data is "
                    "another array each time; let it return the one that the parameter keeps"
                )
            continue
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        why = ""
        if type(array).__module__.partition(".")[0] == "mlx":
            why = "MLX's arrays cannot be written"
        elif hasattr(type(array), "__dlpack_device__") and int(array.__dlpack_device__()[0]) == METAL:
            why = "it lies on the Metal device"
        elif hasattr(type(array), "__dlpack__") and _hands_out_copies(array):
            why = "it hands out copies of its elements"
        if why:
            raise ValueError(
                f"parameter {i} of group {g} ({kind}) cannot be updated in place: {why}; keep the parameters of this "
                "optimizer on the CPU, as float32 or float64, or take Lucid's own optimizer"
            )


def _address(array: Any) -> Any:
    return array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else None


def _hands_out_copies(array: Any) -> bool:
    """Whether two looks at the elements of an array find them in two places; the core's own look is the second."""
    detached = array.detach() if getattr(array, "requires_grad", False) and hasattr(array, "detach") else array
    try:
        first, second = np.from_dlpack(array), np.from_dlpack(detached)
    except (TypeError, ValueError, RuntimeError, BufferError):
        return False  # the core reads what NumPy cannot, or says why it cannot either
    return first.size > 0 and first.ctypes.data != second.ctypes.data
