"""How weights and moments are kept in fewer bits: the options, what a parameter's state holds for them, conversions."""

from __future__ import annotations

import dataclasses
import importlib
import operator
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from . import _step

HostArray = np.ndarray[Any, Any]
StateDtype = Literal["float32", "bfloat16", "8bit"]

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
MASTERS = {"remainder": "int16", "master": "float32"}  # of bfloat16 and of float16 parameters
STATE_DTYPES = ("float32", "bfloat16", "8bit")
BLOCK = 128  # elements that share a scale, in the parameter's memory order


@dataclasses.dataclass(frozen=True)
class Precision:
    """What of an optimizer is kept in fewer bits, and how it is rounded.

    Raises:
        TypeError, ValueError: if an option is of the wrong kind, out of range, or contradicts another one.
    """

    master_weights: bool = False
    stochastic_rounding: bool = False
    state_dtype: StateDtype = "float32"
    min_8bit_size: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("master_weights", "stochastic_rounding"):
            value = getattr(self, name)
            if not (isinstance(value, (bool, np.bool_)) or (isinstance(value, int) and value in (0, 1))):
                raise TypeError(f"{name} must be True or False, got {value!r}")
            object.__setattr__(self, name, bool(value))
        if self.master_weights and self.stochastic_rounding:
            raise ValueError(
                "master_weights and stochastic_rounding are two ways to the same end, choose one: master_weights keeps "
                "every bit for 2 (bfloat16) or 4 (float16) bytes a parameter, stochastic_rounding needs no memory"
            )
        dtype: object = self.state_dtype
        if not isinstance(dtype, str) or dtype not in STATE_DTYPES:
            raise ValueError(f"state_dtype must be 'float32', 'bfloat16' or '8bit', got {dtype!r}")
        for name, limit in (("min_8bit_size", 2**63), ("seed", 2**64)):
            value = getattr(self, name)
            if isinstance(value, (bool, np.bool_)) or not hasattr(type(value), "__index__"):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
            number = operator.index(value)
            if not 0 <= number < limit:
                raise ValueError(f"{name} must be at least 0 and below 2^{limit.bit_length() - 1}, got {number}")
            object.__setattr__(self, name, number)

    @property
    def is_plain(self) -> bool:
        """Whether every state is float32 (float64 for float64), and weights are rounded to nearest."""
        return not (self.master_weights or self.stochastic_rounding or self.state_dtype != "float32")

    def reason(self, dtype: str) -> str:
        """Return the option that asks for a dtype, as a user writes it."""
        return "master_weights=True" if dtype == "int16" else f"state_dtype={self.state_dtype!r}"

    def moment(self, name: str, dtype: str, size: int) -> dict[str, str]:
        """Return the dtypes of what one moment is kept in, by key, for a parameter of a dtype and a size."""
        if dtype == "float64":
            return {name: "float64"}
        if self.state_dtype == "8bit" and size >= self.min_8bit_size:
            return {code_key(name): "int8" if name == "exp_avg" else "uint8", scale_key(name): "float32"}
        return {name: "bfloat16" if self.state_dtype == "bfloat16" else "float32"}

    def master(self, dtype: str) -> dict[str, str]:
        """Return the dtype of what the low bits of a parameter's weights are kept in, by key; empty for none."""
        if not self.master_weights:
            return {}
        key = {"bfloat16": "remainder", "float16": "master"}.get(dtype)
        return {} if key is None else {key: MASTERS[key]}

    def entries(self, dtype: str, size: int, amsgrad: bool = False) -> dict[str, str]:
        """Return the dtypes of all that the state of a parameter holds, by key, but for its step count.

        Args:
            dtype: the parameter's: "float64", "float32", "bfloat16" or "float16".
            size: how many elements it has.
            amsgrad: whether there is a third moment.
        """
        found: dict[str, str] = {}
        for name in MOMENTS if amsgrad else MOMENTS[:2]:
            found.update(self.moment(name, dtype, size))
        return {**found, **self.master(dtype)}


OPTIONS = tuple(field.name for field in dataclasses.fields(Precision))


def code_key(moment: str) -> str:
    """Return the key of a moment's codes."""
    return f"{moment}_code"


def scale_key(moment: str) -> str:
    """Return the key of the scales of a moment's blocks."""
    return f"{moment}_scale"


def is_scale(key: str) -> bool:
    """Whether a key of a state is of the scales of blocks, which have a shape of their own."""
    return key.endswith("_scale")


def is_code(key: str) -> bool:
    """Whether a key of a state is of a moment's codes."""
    return key.endswith("_code")


KEYS = (*MOMENTS, *map(code_key, MOMENTS), *map(scale_key, MOMENTS), *MASTERS)
"""Every key that a state may have, but for its step count."""


def blocks_of(size: int) -> int:
    """Return how many scales a tensor of so many elements has."""
    return -(-size // BLOCK)


def same_order(shape: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether elements lie in the same order, with the axes from the outermost to the innermost as given."""
    if 0 in shape:
        return True
    return [axis for axis in a if shape[axis] > 1] == [axis for axis in b if shape[axis] > 1]


def as_float32(values: HostArray) -> HostArray:
    """Return bfloat16 numbers, of ml_dtypes or as their 16 bits (uint16), as float32, exactly; float32 as it is."""
    if values.dtype == np.float32:
        return values
    if values.dtype.name not in ("bfloat16", "uint16"):
        raise TypeError(f"moments are float32 or bfloat16, got {values.dtype}")
    wide = values.view(np.uint16).astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def bfloat16() -> np.dtype[Any]:
    """Return NumPy's bfloat16, which the package ml_dtypes brings.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        ml_dtypes = importlib.import_module("ml_dtypes")
    except ImportError as error:
        raise ImportError(
            "NumPy has no bfloat16 of its own: state_dtype='bfloat16' for arrays of NumPy or CuPy, or on the CPU, "
            "needs the package ml_dtypes (pip install ml_dtypes)",
            name="ml_dtypes",
        ) from error
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def decoded(codes: HostArray, scales: HostArray, order: Sequence[int]) -> HostArray:
    """Return the float32 numbers that codes stand for, in the shape of the codes.

    Args:
        codes: int8 (of exp_avg) or uint8, in any layout on the host.
        scales: float32, one for each block.
        order: the axes, outermost first, of the memory order that blocks were cut in.
    """
    flat = _flat(codes, order)
    values = np.empty(flat.size, np.float32)
    _step.decode_blocks(flat, _flat(scales, (0,)), values)
    return _shaped(values, codes.shape, order)


def encoded(values: HostArray, order: Sequence[int], signed: bool) -> tuple[HostArray, HostArray]:
    """Return the codes of float32 numbers, rounded to nearest, and the scales of their blocks.

    Args:
        values: float32, in any layout on the host.
        order: the axes, outermost first, of the memory order to cut blocks in; that of the codes returned.
        signed: whether they are of exp_avg (int8), or of averages of squares (uint8).
    """
    flat = _flat(values, order)
    codes = np.empty(flat.size, np.int8 if signed else np.uint8)
    scales = np.empty(blocks_of(flat.size), np.float32)
    _step.encode_blocks(flat, codes, scales)
    return _shaped(codes, values.shape, order), scales


def _flat(array: HostArray, order: Sequence[int]) -> HostArray:
    """Return the elements in a memory order, in memory that the core takes: without gaps, and writable."""
    flat: HostArray = np.require(array.transpose(tuple(order)), requirements=["C", "W"]).reshape(-1)
    return flat


def _shaped(flat: HostArray, shape: Sequence[int], order: Sequence[int]) -> HostArray:
    """Return the elements of a memory order in their shape, without a copy."""
    axes = sorted(range(len(order)), key=lambda axis: order[axis])
    shaped: HostArray = flat.reshape([shape[axis] for axis in order]).transpose(axes)
    return shaped
