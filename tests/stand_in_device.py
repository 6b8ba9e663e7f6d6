"""Array libraries whose arrays say that they lie on a CUDA device, and lie in host memory: radam's without a GPU.

The core steps them through the stand-in for its CUDA library, which runs the kernels' bodies on the host. Of CuPy's
ways the stand-in for it has those that a program can trip over: memory that NumPy must not touch, a current device that
everything happens on, a current stream for each device, arrays that cannot be hashed and are neither true nor false.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest

DEVICES = 2


# ---- arrays that claim to lie on a device


def aligned(shape: tuple[int, ...], dtype: Any, offset: int = 0) -> np.ndarray:
    """Zeros in C order, so many bytes behind a multiple of 256, as device memory is handed out."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + 512, np.uint8)
    start = -memory.ctypes.data % 256 + offset
    return memory[start : start + size].view(dtype).reshape(shape)


NUMPY_HAS_VERSIONS = np.lib.NumpyVersion(np.__version__) >= "2.1.0"  # of DLPack


def exported(view: np.ndarray, kind: int, device: int, versioned: bool) -> Any:
    """A DLPack capsule of NumPy's that says its memory lies on a device."""
    bfloat16 = view.dtype.name == "bfloat16"  # which NumPy cannot export
    words = view.view(np.uint16) if bfloat16 else view
    versioned = versioned and NUMPY_HAS_VERSIONS
    capsule = words.__dlpack__(max_version=(1, 0)) if versioned else words.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # The tensor begins with its data pointer, its device and number, its dimensions, and the code of its dtype.
    tensor = get(capsule, b"dltensor_versioned") + 32 if versioned else get(capsule, b"dltensor")
    if view.size == 0:
        ctypes.c_void_p.from_address(tensor).value = None  # as libraries do that allocate nothing for nothing
    ctypes.c_int32.from_address(tensor + 8).value = kind
    ctypes.c_int32.from_address(tensor + 12).value = device
    if bfloat16:
        ctypes.c_uint8.from_address(tensor + 20).value = 4
    return capsule


class DeviceArray:
    """What the arrays of all stand-in libraries share. NumPy cannot touch it."""

    KIND = 2  # DLPack's number for CUDA memory
    asked: ClassVar[list[tuple[int, int]]]  # (device, stream) of every export, of all arrays of a library

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, view: np.ndarray, number: int) -> None:
        self._view, self._number = view, number

    def _like(self, view: np.ndarray) -> Any:
        return type(self)(view, self._number)

    dtype = property(lambda self: self._view.dtype)
    shape = property(lambda self: self._view.shape)
    strides = property(lambda self: self._view.strides)
    ndim = property(lambda self: self._view.ndim)
    size = property(lambda self: self._view.size)

    def __array__(self, *args: Any, **keywords: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_ufunc__(self, *args: Any, **keywords: Any) -> Any:
        raise TypeError("NumPy cannot work on the memory of a device")

    def __array_function__(self, *args: Any, **keywords: Any) -> Any:
        raise TypeError("NumPy cannot work on the memory of a device")

    def __len__(self) -> int:
        return len(self._view)

    def __bool__(self) -> bool:
        return bool(self._view)  # NumPy refuses more than one element, as all do

    def __getitem__(self, key: Any) -> Any:
        return self._like(self._view[key] if self._view.ndim or key != () else self._view)

    def _may_work(self) -> None:
        """Refuse what the library could not do just now."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self._may_work()
        if isinstance(value, DeviceArray):
            assert type(value) is type(self)
            assert value._number == self._number
            value = value._view
        elif not isinstance(value, (int, float)):
            raise TypeError(f"Unsupported type {type(value)}")
        self._view[key] = value

    def __eq__(self, other: object) -> Any:
        self._may_work()
        return self._like(np.asarray(self._view == (other._view if isinstance(other, DeviceArray) else other)))

    def __lt__(self, other: float) -> Any:
        self._may_work()
        return self._like(np.asarray(self._view < other))

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.KIND, self._number)

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        if dl_device == (1, 0):
            return self._view.copy("K").__dlpack__()
        if not isinstance(stream, int) or stream < -1 or stream == 0:
            raise ValueError(f"the valid stream is -1, 1, 2, or any larger value, but {stream} was provided")
        type(self).asked.append((self._number, stream))
        return exported(self._view, self.KIND, self._number, versioned=max_version is not None)


# ---- CuPy


class Device:
    """cupy.cuda.Device."""

    current = 0

    def __init__(self, device: int | Device | None = None) -> None:
        self.id = Device.current if device is None else device.id if isinstance(device, Device) else int(device)
        assert 0 <= self.id < DEVICES
        self._before: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __enter__(self) -> Device:
        self._before.append(Device.current)
        Device.current = self.id
        return self

    def __exit__(self, *error: object) -> None:
        Device.current = self._before.pop()


class Stream:
    """cupy.cuda.ExternalStream: while entered, the current one of the device that was current then."""

    current: ClassVar[dict[int, list[Stream]]]

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr

    def __enter__(self) -> Stream:
        self._device = Device.current
        Stream.current[self._device].append(self)
        return self

    def __exit__(self, *error: object) -> None:
        Stream.current[self._device].pop()


Stream.current = {device: [Stream(0)] for device in range(DEVICES)}


def get_current_stream(device_id: int = -1) -> Stream:
    return Stream.current[Device.current if device_id < 0 else device_id][-1]


class ndarray(DeviceArray):
    """cupy.ndarray."""

    asked: ClassVar[list[tuple[int, int]]] = []

    device = property(lambda self: Device(self._number))

    def _may_work(self) -> None:
        if self._number != Device.current:
            raise ValueError(
                "Array device must be same as the current device: "
                f"array device = {self._number} while current = {Device.current}"
            )

    def get(self) -> np.ndarray:
        return np.array(self._view, order="C")

    def item(self) -> Any:
        return self.get().item()

    def __float__(self) -> float:
        return float(self.item())

    def transpose(self, *axes: Any) -> ndarray:
        return self._like(self._view.transpose(*axes))

    def any(self) -> ndarray:
        self._may_work()
        return self._like(np.asarray(self._view.any()))

    def copy(self, order: Any = "C") -> ndarray:
        """To the current device, wherever it lies."""
        copy = _new(self._view.shape, self._view.dtype)
        copy._view = self._view.copy(order)
        return copy

    def __deepcopy__(self, memo: Any) -> ndarray:
        with self.device:
            return self.copy()

    def __reduce__(self) -> Any:
        return array, (self.get(),)


created: list[tuple[int, int]] = []  # (device, stream) of all memory that was taken


def _new(shape: Any, dtype: Any) -> ndarray:
    created.append((Device.current, get_current_stream().ptr))
    return ndarray(aligned(tuple(shape) if np.iterable(shape) else (shape,), dtype), Device.current)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return _new(shape, dtype)


def array(thing: Any) -> ndarray:
    if isinstance(thing, ndarray):
        return thing.copy()
    host = np.asarray(thing)
    made = _new(host.shape, host.dtype)
    made._view[...] = host
    return made


def asarray(thing: Any) -> ndarray:
    return thing if isinstance(thing, ndarray) else array(thing)


def copyto(target: ndarray, source: ndarray) -> None:
    if isinstance(source, np.ndarray):
        raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
    target._view[...] = source._view


def claiming(view: np.ndarray, device: int = 0) -> ndarray:
    """An array of CuPy's over this very memory, whatever its layout."""
    return ndarray(view, device)


def _make_cupy() -> types.ModuleType:
    module, cuda = types.ModuleType("cupy"), types.ModuleType("cupy.cuda")
    module.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    for thing in (ndarray, zeros, array, asarray, copyto):
        thing.__module__ = "cupy"
        setattr(module, thing.__name__, thing)
    cuda.Device, cuda.ExternalStream, cuda.get_current_stream = Device, Stream, get_current_stream  # type: ignore[attr-defined]
    module.cuda, module.float32, module.float64 = cuda, np.float32, np.float64  # type: ignore[attr-defined]
    return module


CUPY = _make_cupy()


@contextmanager
def cupy_imported() -> Iterator[None]:
    """Have the stand-in taken for CuPy."""
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("the real CuPy is here, which its stand-in must not hide")
    sys.modules["cupy"] = CUPY
    for library in (ndarray, StandardArray, UnknownArray):
        library.asked.clear()
    created.clear()
    try:
        yield
    finally:
        del sys.modules["cupy"]


# ---- a library that has what the array API standard asks for, and no more


class StandardArray(DeviceArray):
    """An array on a device of which only the standard is known."""

    asked: ClassVar[list[tuple[int, int]]] = []

    device = property(lambda self: f"gpu:{self._number}")

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return STANDARD


class UnknownArray(DeviceArray):
    """An array on a device of a library that has DLPack and nothing else."""

    asked: ClassVar[list[tuple[int, int]]] = []


def _make_standard() -> types.SimpleNamespace:
    def number(device: str) -> int:
        return int(device.removeprefix("gpu:"))

    def zeros(shape: Any, *, dtype: Any, device: str) -> StandardArray:
        return StandardArray(aligned(shape, dtype), number(device))

    def asarray(thing: Any, *, device: str | None = None, copy: bool | None = None) -> StandardArray:
        view = thing._view if isinstance(thing, StandardArray) else memoryview(thing)
        where = thing._number if isinstance(thing, StandardArray) else number(str(device))
        return StandardArray(np.array(view, order="K"), where)

    def permute_dims(thing: StandardArray, axes: tuple[int, ...]) -> StandardArray:
        return StandardArray(thing._view.transpose(axes), thing._number)

    def any_(thing: StandardArray) -> StandardArray:
        return StandardArray(np.asarray(thing._view.any()), thing._number)

    return types.SimpleNamespace(
        zeros=zeros, asarray=asarray, permute_dims=permute_dims, any=any_, float32=np.float32, float64=np.float64
    )


STANDARD = _make_standard()
