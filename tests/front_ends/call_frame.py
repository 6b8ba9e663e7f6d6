"""Call frames as XLA makes them, by hand: to hand the native side what XLA never would."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from radam import _step

ERRORS = {3: "invalid argument", 12: "unimplemented", 13: "internal"}
# The structs of xla_ffi.hpp once more, which test_xla_ffi.py holds to jaxlib's header.
Size = c.c_size_t


class Version(c.Structure):
    _fields_ = [("struct_size", Size), ("extensions", c.c_void_p), ("major", c.c_int), ("minor", c.c_int)]


class ErrorCreate(c.Structure):
    _fields_ = [("struct_size", Size), ("extensions", c.c_void_p), ("message", c.c_char_p), ("code", c.c_int32)]


class Buffer(c.Structure):
    _fields_ = [
        *(("struct_size", Size), ("extensions", c.c_void_p), ("dtype", c.c_int32), ("data", c.c_void_p)),
        *(("rank", c.c_int64), ("dims", c.c_void_p)),
    ]


class Buffers(c.Structure):
    _fields_ = [
        *(("struct_size", Size), ("extensions", c.c_void_p), ("size", c.c_int64)),
        *(("kinds", c.c_void_p), ("buffers", c.c_void_p)),
    ]


class Attributes(c.Structure):
    _fields_ = [
        *(("struct_size", Size), ("extensions", c.c_void_p), ("size", c.c_int64)),
        *(("kinds", c.c_void_p), ("names", c.c_void_p), ("values", c.c_void_p)),
    ]


class Span(c.Structure):
    _fields_ = [("data", c.c_char_p), ("size", Size)]


class Scalar(c.Structure):
    _fields_ = [("dtype", c.c_int32), ("value", c.c_void_p)]


class Array(c.Structure):
    _fields_ = [("dtype", c.c_int32), ("size", Size), ("data", c.c_void_p)]


class Api(c.Structure):
    _fields_ = [
        *(("struct_size", Size), ("extensions", c.c_void_p), ("version", Version), ("internal", c.c_void_p)),
        *(("create_error", c.c_void_p), ("unused", c.c_void_p * 3), ("get_stream", c.c_void_p)),
        *(("others", c.c_void_p * 12), ("get_device", c.c_void_p)),
    ]


class CallFrame(c.Structure):
    _fields_ = [
        *(("struct_size", Size), ("extensions", c.c_void_p), ("api", c.c_void_p), ("context", c.c_void_p)),
        *(("stage", c.c_int32), ("arguments", Buffers), ("results", Buffers), ("attributes", Attributes)),
    ]


class Metadata(c.Structure):
    _fields_ = [("struct_size", Size), ("version", Version), ("traits", c.c_uint32), ("state_type", c.c_int64)]


class MetadataExtension(c.Structure):
    _fields_ = [("struct_size", Size), ("kind", c.c_int32), ("next", c.c_void_p), ("metadata", c.c_void_p)]


class StreamGet(c.Structure):
    _fields_ = [("struct_size", Size), ("extensions", c.c_void_p), ("context", c.c_void_p), ("stream", c.c_void_p)]


class DeviceGet(c.Structure):
    _fields_ = [("struct_size", Size), ("extensions", c.c_void_p), ("context", c.c_void_p), ("device", c.c_int32)]


CreateError = c.CFUNCTYPE(c.c_void_p, c.POINTER(ErrorCreate))
DTYPES = {"bool": 1, "int32": 4, "int64": 5, "uint32": 8, "float16": 10, "float32": 11, "float64": 12}


def handler(capsule: Any) -> Callable[[Any], int | None]:
    pointer = c.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = c.c_void_p, (c.py_object, c.c_char_p)
    return c.CFUNCTYPE(c.c_void_p, c.c_void_p)(pointer(capsule, None))


class Call:
    """A call frame as XLA would make it, whose parts a test may spoil before it is handed over."""

    def __init__(self, arguments: list[Any], results: list[Any], attributes: dict[str, Any], minor: int = 3) -> None:
        self.keep: list[Any] = []
        self.errors: list[tuple[str, str]] = []
        self.missing: list[tuple[str, str]] = []

        def create_error(args: Any) -> int:
            self.errors.append((ERRORS[args.contents.code], args.contents.message.decode()))
            return 1

        self.create_error = CreateError(create_error)
        address = c.cast(self.create_error, c.c_void_p)
        self.api = Api(c.sizeof(Api), None, Version(c.sizeof(Version), None, 0, minor), None, address)
        self.refuses = False
        for kind, field, value in ((StreamGet, "stream", 0x5EED), (DeviceGet, "device", 2)):
            get = c.CFUNCTYPE(c.c_void_p, c.POINTER(kind))(partial(self.answer, field, value))
            setattr(self.api, f"get_{field}", c.cast(self.kept(get), c.c_void_p))
        self.arguments = [self.buffer(x) for x in arguments]
        self.results = [self.buffer(x) for x in results]
        self.attributes = dict(attributes)
        self.frame = CallFrame(c.sizeof(CallFrame), None, c.addressof(self.api), None, 3)

    def answer(self, field: str, value: int, args: Any) -> int | None:
        if self.refuses:
            self.errors.append(("refused", field))
            return 1
        setattr(args.contents, field, value)
        return None

    def kept(self, x: Any) -> Any:
        self.keep.append(x)
        return x

    def buffer(self, x: Any) -> Buffer:
        dims = self.kept((c.c_int64 * x.ndim)(*x.shape))
        return Buffer(c.sizeof(Buffer), None, DTYPES[x.dtype.name], self.kept(x).ctypes.data, x.ndim, c.addressof(dims))

    def pointers(self, parts: list[Any]) -> int:
        return c.addressof(self.kept((c.c_void_p * len(parts))(*(c.addressof(self.kept(x)) for x in parts))))

    def buffers(self, parts: list[Any]) -> Buffers:
        kinds = self.kept((c.c_int32 * len(parts))(*[1] * len(parts)))
        return Buffers(c.sizeof(Buffers), None, len(parts), c.addressof(kinds), self.pointers(parts))

    def attribute(self, x: Any) -> tuple[int, Any]:
        data = self.kept(np.array(x))
        if data.ndim:
            return 1, Array(DTYPES[data.dtype.name], data.size, data.ctypes.data)
        return 3, Scalar(DTYPES[data.dtype.name], data.ctypes.data)

    def run(self, capsule: Any) -> list[tuple[str, str]]:
        self.frame.arguments, self.frame.results = self.buffers(self.arguments), self.buffers(self.results)
        made = [self.attribute(x) for x in self.attributes.values()]
        kinds = self.kept((c.c_int32 * len(made))(*(kind for kind, _ in made)))
        names = [Span(name.encode(), len(name)) for name in self.attributes]
        self.frame.attributes = Attributes(
            c.sizeof(Attributes), None, len(made), c.addressof(kinds), self.pointers(names),
            self.pointers([value for _, value in made]),
        )  # fmt: skip
        for part, name in self.missing:
            setattr(getattr(self.frame, part), name, None)
        returned = handler(capsule)(c.addressof(self.frame))
        assert (returned == 1) is (len(self.errors) == 1)
        return self.errors


ATTRIBUTES = {
    "flags": np.int64(5),
    "numbers": np.array([0.1, 0.9, 0.999, 1e-8, 0.0, 5.0, 0.0]),
    "operands": np.int64(1),
}
CAPSULES = {"coefficients": _step.jax_coefficients(), "step": _step.jax_step()}


def arrays_of(kind: str) -> tuple[list[Any], list[Any]]:
    """Valid operands and results, with lr as an operand."""
    number, lr = np.array(6, np.int32), np.array(0.1, np.float32)
    if kind == "coefficients":
        return [number, lr], [np.full(16, -1.0, np.float32), np.array(False)]
    rng = np.random.default_rng(0)
    leaves = [rng.random(shape).astype(np.float32) for _ in range(4) for shape in ((3, 2), (5,))]
    results = [np.full_like(x, -1.0) for x in leaves[:2] + leaves[4:]]
    return [number, lr, *leaves, np.zeros(3, np.float32)], [np.array(-1, np.int32), *results]


# What spoils a valid one.


def shape(*dims: int) -> Callable[[Call, Buffer], None]:
    def spoil(call: Call, buffer: Buffer) -> None:
        buffer.rank, buffer.dims = len(dims), c.addressof(call.kept((c.c_int64 * len(dims))(*dims)))

    return spoil


def field(name: str, value: Any) -> Callable[[Call, Buffer], None]:
    return lambda call, buffer: setattr(buffer, name, value)


def at(which: str, index: int, spoil: Callable[[Call, Buffer], None]) -> Callable[[Call], None]:
    return lambda call: spoil(call, getattr(call, which)[index])


def attribute(name: str, value: Any) -> Callable[[Call], None]:
    return lambda call: call.attributes.__setitem__(name, value)
