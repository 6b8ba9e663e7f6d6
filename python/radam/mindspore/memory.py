"""The memory of MindSpore's tensors on the CPU, as something that the core reads and writes in place.

The step gives the interpreter free, so that another thread may give a tensor other memory (set_data), or drop it, while
the core still works on it. So everything here comes with what keeps the memory. Parameters and gradients are looked up
anew for every step; for moments, see KeptViews.
"""

from __future__ import annotations

import ctypes
import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from mindspore import Tensor
from mindspore import dtype as dtypes

DTYPES = (dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.float16)
_FLOAT32 = dtypes.float32


class NotOnCpu(RuntimeError):
    """A tensor has no memory on the CPU."""


def count_of(step_t: Tensor, held: list[Any]) -> ctypes.c_int32:
    """Return a step count, whose value can be set.

    Args:
        step_t: a scalar.
        held: is given what keeps its memory as it is.
    """
    if step_t.dtype is not dtypes.int32:
        raise TypeError(f"step_t has dtype {step_t.dtype}; it must be int32")
    storage = step_t.untyped_storage()
    start, address = storage.data_ptr(), step_t.data_ptr()
    if not start <= address <= start + storage.nbytes() - 4:  # as below
        storage = step_t.asnumpy()
        address = storage.ctypes.data
    held.append(storage)
    return ctypes.c_int32.from_address(address)


def memories_of(tensors: Iterable[Tensor], held: list[Any]) -> list[Any]:
    """Return what the core can read and write of tensors in place, once MindSpore has done all that it has queued.

    Args:
        tensors: any on the CPU.
        held: is given what keeps their memory as it is.
    """
    found = []
    for tensor in tensors:
        if tensor.dtype is _FLOAT32 and tensor.is_contiguous():
            # At a tenth of the time that asnumpy or DLPack take.
            try:
                storage = tensor.untyped_storage()
            except RuntimeError:  # not initialized yet
                found.append(_Exchanged(tensor))
                continue
            start, address = storage.data_ptr(), tensor.data_ptr()  # which waits for what is queued
            at, size = _float32_array(tensor.shape)
            # It is not there after set_dtype, which leaves an old storage behind, and if another thread was faster.
            if start and start <= address <= start + storage.nbytes() - size:
                held.append(storage)
                found.append(at(address))
                continue
        _check_device(tensor)
        known = tensor.dtype in DTYPES
        found.append(_Exchanged(tensor) if known else tensor.asnumpy())  # which the core refuses, by name and dtype
    return found


def _check_device(tensor: Tensor) -> None:
    if tensor.device != "CPU":
        raise NotOnCpu(f"a tensor is on {tensor.device}; radam.mindspore.RAdam steps on the CPU")


@functools.lru_cache(maxsize=4096)
def _float32_array(shape: tuple[int, ...]) -> tuple[Any, int]:
    """Return what makes an array of an address, and how many bytes it has."""
    kind: Any = functools.reduce(operator.mul, reversed(shape), ctypes.c_float)
    return kind.from_address, ctypes.sizeof(kind)


class _Exchanged:
    """The memory of any tensor on the CPU; asnumpy would copy one that begins within another, or has gaps."""

    def __init__(self, tensor: Tensor) -> None:
        if tensor.has_init:
            tensor.init_data()
        self._tensor = tensor

    def __dlpack__(self, **_: Any) -> Any:
        return self._tensor.to_dlpack()  # which holds the memory

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU


class KeptViews:
    """Views of moments, from step to step, made anew when the moments got other memory.

    A view keeps its memory from being freed, so that what is at the same address is still that memory. Hence moments
    that were replaced stay in memory until the next step. To look up moments anew, as parameters, would take another
    microsecond for each parameter and step.
    """

    def __init__(self) -> None:
        self._places: list[tuple[int, bool]] = []
        self._views: list[Any] = []

    def __reduce__(self) -> tuple[type[KeptViews], tuple[()]]:
        return KeptViews, ()  # a copy of the optimizer has other moments

    def views_of(self, moments: Sequence[Tensor]) -> list[Any]:
        """Return the views of these, in their order."""
        if self._places != [(moment.data_ptr(), moment.is_contiguous()) for moment in moments]:
            found = [_view_of(moment) for moment in moments]
            self._views, self._places = [view for view, _ in found], [place for _, place in found]
        return self._views


def _view_of(moment: Tensor) -> tuple[Any, tuple[int, bool]]:
    """Return a view of a moment, and where it is."""
    _check_device(moment)
    view = moment.asnumpy()
    place = moment.data_ptr(), moment.is_contiguous()
    return (view if place == (view.ctypes.data, True) else _Exchanged(moment)), place
