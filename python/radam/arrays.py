"""An array's own library: zeros beside an array, copies of it, and the ways to and from NumPy. Imports none of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from ._step import describe
from .precision import Precision, as_float32, bfloat16

Array = Any  # of any library
HostArray = np.ndarray[Any, Any]

CUDA, CUDA_MANAGED = 2, 13  # as DLPack counts kinds of devices
HOST = (1, 0)


def cuda_device(thing: Any) -> int | None:
    """Return the number of the CUDA device that an array says it lies on; None for others, and for what is no array."""
    if isinstance(thing, np.ndarray) or not hasattr(type(thing), "__dlpack_device__"):
        return None
    kind, number = thing.__dlpack_device__()
    return int(number) if int(kind) in (CUDA, CUDA_MANAGED) else None


class Library(Protocol):
    """What a state needs of the library that its arrays are of."""

    def dtype(self, name: str) -> Any:
        """Return its dtype of this name; TypeError or ImportError where it has none."""

    def zeros(self, shape: Sequence[int], dtype: str, beside: Array) -> Array:
        """Return zeros on the device of another array."""

    def permuted(self, array: Array, axes: Sequence[int]) -> Array:
        """Return a view with the axes in another order."""

    def copied(self, array: Array) -> Array:
        """Return a copy on the same device, in the same memory order."""

    def to_numpy(self, array: Array) -> HostArray:
        """Return the elements on the host."""

    def assign(self, target: Array, source: Array) -> None:
        """Write the elements of an array of any library, of the same shape, into one of this."""

    def has_negative(self, array: Array) -> bool:
        """Whether some element is below zero."""


class _NumPy:
    def dtype(self, name: str) -> Any:
        return bfloat16() if name == "bfloat16" else np.dtype(name)

    def zeros(self, shape: Sequence[int], dtype: str, beside: Array) -> Array:
        return np.zeros(shape, self.dtype(dtype))

    def permuted(self, array: Array, axes: Sequence[int]) -> Array:
        return array.transpose(tuple(axes))

    def copied(self, array: Array) -> Array:
        return array.copy("K")

    def to_numpy(self, array: Array) -> HostArray:
        return np.asarray(array)

    def assign(self, target: Array, source: Array) -> None:
        target[...] = to_numpy(source)

    def has_negative(self, array: Array) -> bool:
        return bool((np.asarray(array) < 0).any())


class _CuPy:
    """CuPy works on the current device and makes new arrays there, wherever the ones at hand lie."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def dtype(self, name: str) -> Any:
        found = NUMPY.dtype(name)
        if name == "bfloat16":
            try:
                self._cupy.zeros((), found)
            except (TypeError, ValueError, KeyError):  # older ones know only NumPy's own
                raise TypeError(f"this CuPy has no {name}") from None
        return found

    def zeros(self, shape: Sequence[int], dtype: str, beside: Array) -> Array:
        with beside.device:
            return self._cupy.zeros(shape, NUMPY.dtype(dtype))

    def permuted(self, array: Array, axes: Sequence[int]) -> Array:
        return array.transpose(tuple(axes))

    def copied(self, array: Array) -> Array:
        with array.device:
            return array.copy("K")

    def to_numpy(self, array: Array) -> HostArray:
        host: HostArray = array.get()
        return host

    def assign(self, target: Array, source: Array) -> None:
        with target.device:
            own = source if isinstance(source, self._cupy.ndarray) else self._cupy.asarray(_on_host(source))
            self._cupy.copyto(target, own)

    def has_negative(self, array: Array) -> bool:
        with array.device:
            return bool((array < 0).any())


class _Torch:
    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def dtype(self, name: str) -> Any:
        return getattr(self._torch, name)

    def zeros(self, shape: Sequence[int], dtype: str, beside: Array) -> Array:
        return self._torch.zeros(tuple(shape), dtype=self.dtype(dtype), device=beside.device)

    def permuted(self, array: Array, axes: Sequence[int]) -> Array:
        return array.permute(tuple(axes))

    def copied(self, array: Array) -> Array:
        return array.detach().clone()

    def to_numpy(self, array: Array) -> HostArray:
        on_host = array.detach().cpu()
        if on_host.dtype is self._torch.bfloat16:  # which NumPy can take as bits alone
            return np.asarray(on_host.view(self._torch.int16).numpy().view(bfloat16()))
        return np.asarray(on_host.numpy())

    def assign(self, target: Array, source: Array) -> None:
        if not isinstance(source, self._torch.Tensor):
            # from_numpy takes no negative strides and warns of what is read-only.
            source = self._torch.from_numpy(np.require(_on_host(source), requirements=["C", "W"]))
        target.copy_(source.detach())

    def has_negative(self, array: Array) -> bool:
        return bool((array < 0).any())


class _Namespace:
    """What the array API standard has, and no more."""

    def __init__(self, namespace: Any) -> None:
        self._xp = namespace

    def dtype(self, name: str) -> Any:
        found = getattr(self._xp, name, None)
        if found is None:
            raise TypeError(f"{getattr(self._xp, '__name__', 'its library')} has no {name}")
        return found

    def zeros(self, shape: Sequence[int], dtype: str, beside: Array) -> Array:
        return self._xp.zeros(tuple(shape), dtype=self.dtype(dtype), device=beside.device)

    def permuted(self, array: Array, axes: Sequence[int]) -> Array:
        return self._xp.permute_dims(array, tuple(axes))

    def copied(self, array: Array) -> Array:
        return self._xp.asarray(array, copy=True)

    def to_numpy(self, array: Array) -> HostArray:
        if dtype_name(array) != "bfloat16":
            return np.from_dlpack(_OnHost(array))
        wide = self._xp.astype(array, self._xp.float32)  # NumPy does not know the other in DLPack
        return np.from_dlpack(_OnHost(wide)).astype(bfloat16())

    def assign(self, target: Array, source: Array) -> None:
        target[...] = self._xp.asarray(_on_host(source), device=target.device)

    def has_negative(self, array: Array) -> bool:
        return bool(self._xp.any(array < 0))


def _on_host(source: Array) -> HostArray:
    """Return what other libraries can read: NumPy's own dtypes."""
    host = to_numpy(source)
    return as_float32(host) if host.dtype.name == "bfloat16" else host


class _OnHost:
    """Asks an array on a device for a copy on the host, also for a NumPy that cannot ask."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**{**options, "dl_device": HOST})

    def __dlpack_device__(self) -> tuple[int, int]:
        return HOST


NUMPY = _NumPy()


def library_of(array: Array, what: str = "the array") -> Library:
    """Return an array's own library where it lies on a CUDA device, NumPy elsewhere.

    Raises:
        TypeError: if it lies on a CUDA device and is of a library that we do not know how to ask.
    """
    device = cuda_device(array)
    if device is None:
        return NUMPY
    if is_cupy(array):
        return _CuPy(sys.modules["cupy"])
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _Torch(torch)
    if hasattr(type(array), "__array_namespace__") and hasattr(namespace := array.__array_namespace__(), "zeros"):
        return _Namespace(namespace)
    raise TypeError(
        f"{what} is a {type(array).__module__}.{type(array).__qualname__} on CUDA device {device}, of a library that "
        "radam cannot ask for moments (it knows CuPy, PyTorch, and those with __array_namespace__); hand in a view of "
        "the same memory, cupy.from_dlpack(x) or torch.from_dlpack(x)"
    )


def check_libraries(
    params: Sequence[Array], group: int, names: Sequence[str] | None, precision: Precision | None = None
) -> None:
    """Refuse parameters that no state can be made beside.

    Raises:
        TypeError: of library_of, or if the library has not the dtypes that a precision asks for.
        ImportError: if NumPy needs a package for them.
    """
    for i, param in enumerate(params):
        name = "" if names is None else f" ({names[i]!r})"
        what = f"parameter {i}{name} of group {group}"
        library = library_of(param, what)
        if precision is not None and not precision.is_plain:
            dtype, shape, _ = kind_of(param, i, group)
            for needed in sorted(set(precision.entries(dtype, math.prod(shape)).values())):
                try:
                    library.dtype(needed)
                except TypeError as error:
                    raise TypeError(f"{what}: {error}, which {precision.reason(needed)} needs") from None


def is_cupy(array: Array) -> bool:
    """Whether it is an array of CuPy, which is imported then."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def kind_of(param: Array, index: int = 0, group: int = 0) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Return a parameter's dtype, its shape, and its axes in memory order, outermost first."""
    dtype, shape, order = describe(param, None, group, index)
    return dtype, tuple(shape), tuple(order)


def zeros_like(param: Array, dtype: str, index: int = 0, group: int = 0) -> Array:
    """Return zeros of a dtype in a parameter's shape and memory order, beside it."""
    _, shape, order = kind_of(param, index, group)
    library = library_of(param, f"parameter {index} of group {group}")
    made = library.zeros([shape[d] for d in order], dtype, param)
    return library.permuted(made, sorted(range(len(order)), key=order.__getitem__)) if shape else made


def zeros_beside(param: Array, size: int, dtype: str) -> Array:
    """Return so many zeros of a dtype beside a parameter."""
    return library_of(param).zeros((size,), dtype, param)


def copied(array: Array) -> Array:
    """Return a copy on the same device, in the same memory order."""
    return library_of(array).copied(array)


def to_numpy(array: Array) -> HostArray:
    """Return an array of any library as NumPy's, for reading: a copy, unless it is on the CPU."""
    return library_of(array).to_numpy(array)


def readable(thing: Any) -> Array:
    """Return what assign can read: an array on a CUDA device as it is, of anything else what NumPy makes of it.

    Raises:
        TypeError, ValueError: if it is no array, or one of a library that we do not know how to ask.
    """
    return np.asarray(thing) if library_of(thing) is NUMPY else thing


def assign(target: Array, source: Array) -> None:
    """Write the elements of one array into another one of the same shape, whatever their libraries and devices."""
    library_of(target).assign(target, source)


def dtype_name(array: Array) -> str:
    """Return "float32", say, for NumPy's and PyTorch's alike."""
    return str(array.dtype).rpartition(".")[2]


def has_negative(array: Array) -> bool:
    """Whether some element is below zero."""
    return library_of(array).has_negative(array)


def clear(array: Array) -> None:
    """Write zeros."""
    device: AbstractContextManager[Any] = array.device if is_cupy(array) else nullcontext()
    with device:
        array[...] = 0
