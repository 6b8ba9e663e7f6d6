"""The memory of MindSpore's tensors on the CPU, as something that the core reads and writes in place."""

from __future__ import annotations

import ctypes
import functools
import operator
from collections.abc import Sequence
from typing import Any

from mindspore import Tensor
from mindspore import dtype as dtypes

_FLOAT32 = dtypes.float32


class NotOnCpu(RuntimeError):
    """A tensor has no memory on the CPU."""


def memory_of(tensor: Tensor) -> Any:
    """Return what the core can read and write of a tensor in place, once MindSpore has done all that it has queued."""
    address = tensor.data_ptr()  # 0 where there is no memory yet, or none on the CPU
    if address and tensor.dtype is _FLOAT32 and tensor.is_contiguous():
        # The memory of asnumpy, at a tenth of its time, which goes into making up a dtype.
        return _float32_array(tensor.shape).from_address(address)
    return view_of(tensor)


def view_of(tensor: Tensor) -> Any:
    """Return the same as an object that keeps the memory."""
    if tensor.device != "CPU":
        raise NotOnCpu(f"a tensor is on {tensor.device}; radam.mindspore.RAdam steps on the CPU")
    if not tensor.has_init and not tensor.is_contiguous():
        return _Strided(tensor)
    return tensor.asnumpy()


@functools.lru_cache(maxsize=4096)
def _float32_array(shape: tuple[int, ...]) -> Any:
    return functools.reduce(operator.mul, reversed(shape), ctypes.c_float)


class _Strided:
    """The memory of a tensor with gaps, of which asnumpy would make a copy."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **_: Any) -> Any:
        return self._tensor.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU


class KeptViews:
    """Views of moments, from step to step, made anew when the moments got other memory.

    A view keeps its memory from being freed, so that what is at the same address is still that memory.
    """

    def __init__(self) -> None:
        self._places: list[tuple[int, bool]] = []
        self._views: list[Any] = []

    def views_of(self, moments: Sequence[Tensor]) -> list[Any]:
        """Return the views of these, in their order."""
        if self._places != [_place_of(moment) for moment in moments]:
            self._views = [view_of(moment) for moment in moments]
            self._places = [_place_of(moment) for moment in moments]  # once those that were not there are made
        return self._views


def _place_of(tensor: Tensor) -> tuple[int, bool]:
    return tensor.data_ptr(), tensor.is_contiguous()
