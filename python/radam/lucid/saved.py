"""State dicts in the form of Lucid's optimizers, read as the array-level optimizer has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..groups import Group
from ..precision import MOMENTS
from .groups import Betas, pair


def entry_of(entry: Any) -> Any:
    """Return one parameter's saved state as the base reads it; None if it never took a step."""
    if not isinstance(entry, Mapping):
        return entry
    found = dict(entry)
    if "step" in found:
        step = np.asarray(found["step"])
        if step.size == 1 and step.dtype.kind in "iuf" and float(step.item()).is_integer():
            found["step"] = int(step.item())
            if found["step"] == 0:
                return None
    for name in MOMENTS:
        if name in found and str(getattr(found[name], "dtype", "")).rpartition(".")[2] == "float16":
            found[name] = np.asarray(found[name]).astype(np.float32)  # Lucid keeps them in the parameter's dtype
    return found


def filled(saved: Any, group: Group, seen: Betas, g: int) -> Any:
    """Return a saved group with the entries that it has not from the optimizer's own, and betas in step."""
    if not isinstance(saved, Mapping):
        return saved
    found = {**{key: value for key, value in group.items() if key not in ("params", "param_names")}, **saved}
    both = pair(found["betas"], f"param_groups[{g}]")
    if ("beta1" in saved or "beta2" in saved) and ("betas" not in saved or both == seen):
        both = (found["beta1"], found["beta2"])
    found["betas"], found["beta1"], found["beta2"] = both, *both
    return found
