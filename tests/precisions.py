"""What the tests of low precision share: the ways to keep weights and moments, and the bits behind the numbers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

import radam

Array = np.ndarray[Any, Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float64": np.float64, "float32": np.float32, "bfloat16": BFLOAT16, "float16": np.float16}

# Every way to keep a state, with the dtype of the parameters that it is for.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "float64, 8-bit asked for": ("float64", {"state_dtype": "8bit", "min_8bit_size": 0}),
    "bfloat16 moments": ("float32", {"state_dtype": "bfloat16"}),
    "bfloat16 throughout": ("bfloat16", {"state_dtype": "bfloat16"}),
    "8-bit": ("float32", {"state_dtype": "8bit", "min_8bit_size": 0}),
    "8-bit, large ones alone": ("float32", {"state_dtype": "8bit", "min_8bit_size": 100}),
    "split": ("bfloat16", {"master_weights": True}),
    "split, 8-bit": ("bfloat16", {"master_weights": True, "state_dtype": "8bit", "min_8bit_size": 0}),
    "master": ("float16", {"master_weights": True}),
    "master, bfloat16 moments": ("float16", {"master_weights": True, "state_dtype": "bfloat16"}),
    "stochastic": ("bfloat16", {"stochastic_rounding": True, "seed": 7}),
    "stochastic float16, 8-bit": (
        "float16",
        {"stochastic_rounding": True, "state_dtype": "8bit", "min_8bit_size": 0, "seed": 2**64 - 1},
    ),
}
SHAPES = [(300,), (17, 23), (2, 3, 5, 7), (), (0,), (128,), (1, 129)]


def optimizer_of(way: str, seed: int = 1, **keywords: Any) -> radam.RAdam:
    """Return an optimizer of one of the ways over two groups of parameters, one of them transposed."""
    dtype, options = WAYS[way]
    rng = np.random.default_rng(seed)
    params = [rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in SHAPES]
    transposed = rng.standard_normal((40, 30)).astype(DTYPES[dtype]).T
    groups = [{"params": params}, {"params": {"transposed": transposed}, "lr": 0.03}]
    return radam.RAdam(groups, **{"lr": 0.01, **options, **keywords})


def grads_of(optimizer: radam.RAdam, seed: int) -> list[Array]:
    """Return random gradients of the parameters' dtypes."""
    rng = np.random.default_rng(seed)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [np.asarray(rng.standard_normal(p.shape)).astype(p.dtype) for p in params]


def upper_half(weights: Array) -> Array:
    """Return float32 numbers as the bits of bfloat16 ones, to nearest, ties away from zero, every NaN as one."""
    bits = weights.view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x8000) >> 16).astype(np.uint16)
    return np.where(np.isnan(weights), np.uint16(0x7FC0), rounded)


def joined(param: Array, remainder: Array) -> Array:
    """Return the float32 weights of bfloat16 parameters and their remainders."""
    upper = param.view(np.uint16).astype(np.int64) << 16
    return ((upper + remainder) & 0xFFFFFFFF).astype(np.uint32).view(np.float32)


def state_bits(optimizer: radam.RAdam) -> list[Any]:
    """Return every bit of the parameters and the states, comparable with ==, any NaN as one."""
    found: list[Any] = []
    for param in (param for group in optimizer.param_groups for param in group["params"]):
        found.append(same_nan(param))
    for entry in optimizer.state:
        found.append({key: value if key == "step" else same_nan(value) for key, value in entry.items()})
    return found


def same_nan(array: Array) -> tuple[str, tuple[int, ...], bytes]:
    """Return dtype, shape and bits of an array in C order, every NaN as the same one."""
    copy = np.array(array, order="C")
    if copy.dtype.kind in "fV":  # V: bfloat16
        nan = copy != copy
        words = copy.view(f"u{copy.itemsize}")
        words[nan] = np.iinfo(words.dtype).max
    return str(array.dtype), array.shape, copy.tobytes()
