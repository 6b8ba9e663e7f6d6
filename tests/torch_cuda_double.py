"""Torch tensors that say they lie on a CUDA device, and lie in host memory: radam.torch's without a GPU.

The core steps them through the stand-in for its CUDA library, which runs the kernels' bodies on the host.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from radam.torch import unwrap

STREAMS = {0: 0x50, 1: 0x51}
_DEVICE_TYPE_AT = 8 + 8 + 8 + 8 + 8  # in a DLManagedTensorVersioned: version, manager, deleter, flags, data
_CUDA = 2

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]


class CurrentDevice:
    """What torch.cuda.device is: the current device while it is entered."""

    now = 0

    def __init__(self, index: int) -> None:
        self._index, self._before = index, 0

    def __enter__(self) -> None:
        self._before, CurrentDevice.now = CurrentDevice.now, self._index

    def __exit__(self, *_: object) -> None:
        CurrentDevice.now = self._before


WAITS = ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "is_nonzero", "equal")


class CudaDouble(Tensor):
    """A tensor on device `index`. What would wait for a real device is refused where `may_wait` is False."""

    index = 0
    may_wait = True
    exported_for: list[int] = []  # noqa: RUF012  (the streams that __dlpack__ was asked for)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer for a device, and do on the host what it would do."""
        kwargs = dict(kwargs or {})
        first = next((x for x in _tensors(args, kwargs) if isinstance(x, CudaDouble)), None)
        index = first.__dict__.get("index", 0) if first is not None else 0
        name = getattr(func, "__name__", "")
        if name in WAITS and not cls.may_wait:
            raise AssertionError(f"Tensor.{name} would wait for the device")
        args, kwargs, wanted = _on_host(args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            made = func(*args, **kwargs)
        if wanted is not None and wanted.type != "cuda":
            return made.as_subclass(Tensor) if isinstance(made, CudaDouble) else made
        return _as_doubles(made, index if wanted is None else wanted.index or 0)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Return the device it claims."""
        return torch.device("cuda", self.__dict__.get("index", 0))

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Return that it claims one."""
        return True

    def __dlpack_device__(self) -> tuple[int, int]:  # type: ignore[override]
        """Return the device it claims."""
        return _CUDA, self.__dict__.get("index", 0)

    def __dlpack__(self, *, stream: int | None = None, max_version: Any = None, **_: Any) -> Any:  # type: ignore[override]
        """Export the host memory as memory of the device."""
        assert stream is not None
        if CurrentDevice.now != self.__dlpack_device__()[1]:
            raise BufferError("as PyTorch: can't export tensors on a different CUDA device index")
        CudaDouble.exported_for.append(stream)
        with torch._C.DisableTorchFunctionSubclass():
            capsule = self.detach().as_subclass(Tensor).__dlpack__(max_version=(1, 0))
        at = _pointer_of(capsule, b"dltensor_versioned")
        device = (ctypes.c_int32 * 2).from_address(at + _DEVICE_TYPE_AT)
        device[0], device[1] = self.__dlpack_device__()
        return capsule


def _tensors(*things: Any) -> Iterator[Tensor]:
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, (list, tuple)):
            yield from _tensors(*thing)
        elif isinstance(thing, dict):
            yield from _tensors(*thing.values())


def _as_doubles(thing: Any, index: int) -> Any:
    if type(thing) is Tensor:
        return on_cuda(thing, index)
    return type(thing)(_as_doubles(x, index) for x in thing) if type(thing) in (list, tuple) else thing


def _on_host(args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any], torch.device | None]:
    """Return the arguments with the CPU in place of a device, and that device, if there is one."""
    wanted = None
    out = []
    for arg in args:
        if isinstance(arg, torch.device) or (isinstance(arg, str) and arg.split(":")[0] in ("cuda", "cpu")):
            wanted = torch.device(arg)
            arg = torch.device("cpu")
        out.append(arg)
    if kwargs.get("device") is not None:
        wanted = torch.device(kwargs["device"])
        kwargs = {**kwargs, "device": "cpu"}
    return tuple(out), kwargs, wanted


def on_cuda(tensor: Tensor, index: int = 0, requires_grad: bool = False) -> Any:
    """Return a double of a CPU tensor that shares its memory."""
    with torch._C.DisableTorchFunctionSubclass():
        double = tensor.detach().as_subclass(CudaDouble)
        double.requires_grad_(requires_grad)
    double.index = index
    return double


def on_host(tensor: Tensor) -> Tensor:
    """Return the memory of a double, or the tensor itself."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().as_subclass(Tensor)


class MakesDoubles(TorchFunctionMode):
    """Lets torch.zeros(device="cuda:1"), tensor.to("cuda:0") and the like make doubles."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make on the host what is asked for on a device."""
        kwargs = dict(kwargs or {})
        if func is torch.device or any(isinstance(tensor, CudaDouble) for tensor in _tensors(args, kwargs)):
            return func(*args, **kwargs)
        args, kwargs, wanted = _on_host(args, kwargs)
        made = func(*args, **kwargs)
        return _as_doubles(made, wanted.index or 0) if wanted is not None and wanted.type == "cuda" else made


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Refuse what would wait for a device."""
    CudaDouble.may_wait = False
    try:
        yield
    finally:
        CudaDouble.may_wait = True


@contextlib.contextmanager
def taken_for_plain() -> Iterator[None]:
    """Let radam.torch take doubles for plain tensors, and torch have streams and make doubles."""
    with pytest.MonkeyPatch.context() as patch, MakesDoubles():
        patch.setattr(unwrap, "PLAIN", (*unwrap.PLAIN, CudaDouble))
        patch.setattr(torch.cuda, "device", CurrentDevice)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=STREAMS[index]))
        CudaDouble.exported_for.clear()
        yield
