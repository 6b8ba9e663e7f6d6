"""Every bit that an optimizer and its arrays hold, to compare before and after."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

import radam
from radam.groups import array_of


def as_numpy(array: Any) -> np.ndarray:
    """Return an array of any framework as NumPy's, bfloat16 as its 16 bits."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):
        array = array.detach()
        return array.view(dtype=_torch().uint16).numpy() if array.dtype == _torch().bfloat16 else array.numpy()
    return np.asarray(array)


def _torch() -> Any:
    import torch

    return torch


def bits(array: Any) -> bytes:
    """Return the bits of an array in C order."""
    return as_numpy(array).tobytes()


def frozen(optimizer: Any) -> dict[str, Any]:
    """Return copies of the parameters, the state and the groups of an optimizer, comparable with ==."""
    saved = optimizer.state_dict()
    return {
        "params": [bits(array_of(param)) for group in optimizer.param_groups for param in group["params"]],
        "state": {
            index: {
                key: value if key == "step" else (str(value.dtype), value.shape, value.tobytes())
                for key, value in entry.items()
            }
            for index, entry in saved["state"].items()
        },
        "param_groups": copy.deepcopy(saved["param_groups"]),
    }


def arrays(seed: int, *shapes: tuple[int, ...], dtype: Any = np.float32) -> list[np.ndarray]:
    """Return random arrays, the same ones for the same seed."""
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def trained(steps: int, params: list[Any], seed: int = 7, **keywords: Any) -> radam.RAdam:
    """Return an RAdam over params that has taken some steps."""
    optimizer = radam.RAdam(params, **{"lr": 0.1, **keywords})
    for k in range(steps):
        optimizer.step(
            grads=arrays(seed + k, *[as_numpy(array_of(p)).shape for g in optimizer.param_groups for p in g["params"]])
        )
    return optimizer
