"""The runs that the tests of the C interface share: two groups of parameters, and gradients for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from precisions import DTYPES

SHAPES = [(300,), (17, 23), (2, 3, 5, 7), (0,), (128,), (1, 129), (1,)]


def groups_of(dtype: str, seed: int = 1) -> list[dict[str, Any]]:
    """Two groups, the second with options of its own."""
    rng = np.random.default_rng(seed)
    made = [np.asarray(rng.standard_normal(shape)).astype(DTYPES[dtype]) for shape in SHAPES]
    return [{"params": made[:4]}, {"params": made[4:], "lr": 0.03, "betas": (0.8, 0.99)}]


def grads_of(step: int, dtype: str) -> list[Any]:
    """Gradients of a step; the parameter numbered 1 has none in every third."""
    rng = np.random.default_rng(1000 + step)
    made = [np.asarray(rng.standard_normal(shape)).astype(DTYPES[dtype]) for shape in SHAPES]
    return [None if i == 1 and step % 3 == 0 else grad for i, grad in enumerate(made)]


def params_of(groups: list[dict[str, Any]]) -> list[bytes]:
    return [param.tobytes() for group in groups for param in group["params"]]
