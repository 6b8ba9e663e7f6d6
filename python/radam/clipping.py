"""How gradients are clipped: the options, checked, as the core takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from . import _step

OPTIONS = ("max_grad_norm", "max_tensor_grad_norm", "max_grad_value")


def check(max_grad_norm: Any, max_tensor_grad_norm: Any, max_grad_value: Any) -> tuple[str, float] | None:
    """Return how to clip ("norm", "tensor" or "value") and how far; None where no option is set.

    Raises:
        TypeError: if one is no number.
        ValueError: if one is negative or NaN, or more than one is set.
    """
    given = dict(zip(OPTIONS, (max_grad_norm, max_tensor_grad_norm, max_grad_value)))
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are ways to clip gradients, choose one")
    if not chosen:
        return None
    name = chosen[0]
    most = _number(name, given[name])
    if math.isnan(most) or most < 0:
        measures = "" if name == "max_grad_value" else " (inf only measures)"
        raise ValueError(f"{name} must be a number, at least 0{measures}, got {most}")
    return ("norm", "tensor", "value")[OPTIONS.index(name)], most


def clip_of(
    max_grad_norm: Any, max_tensor_grad_norm: Any, max_grad_value: Any, reduce: Any = None
) -> _step.Clip | None:
    """Return what the core takes for the options, with the errors of check; None where no option is set."""
    found = check(max_grad_norm, max_tensor_grad_norm, max_grad_value)
    if found is None:
        return None
    kind, most = found
    return _step.Clip(kind, most, reduce if kind == "norm" else None)


def refuse_in_group(group: Mapping[str, Any], others: Iterable[str], what: str) -> None:
    """Refuse a group that sets what holds for the whole optimizer: these options, and others by name.

    Raises:
        ValueError: naming the option.
    """
    for name in (*OPTIONS, *others):
        if name in group:
            raise ValueError(f"{what} has {name!r}, which holds for a whole optimizer: give it there, or make two")


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, (str, bytes, bytearray, bool)):
            return float(value)
    except (TypeError, ValueError):
        pass
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # a whole number that is too large for a float
    raise TypeError(f"{name} must be a number or None, got {value!r}")
