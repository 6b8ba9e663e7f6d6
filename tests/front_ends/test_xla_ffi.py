"""The native side of XLA's interface: the layout that it reads, the versions it knows, and what it refuses."""

from __future__ import annotations

import ctypes as c
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import jax

from call_frame import (
    ATTRIBUTES,
    CAPSULES,
    Call,
    Metadata,
    MetadataExtension,
    Version,
    arrays_of,
    at,
    attribute,
    field,
    shape,
)
from radam import _step

BINDINGS = Path(__file__).resolve().parents[2] / "python" / "bindings"

LAYOUT = """
#include <xla/ffi/api/c_api.h>
#include <cstddef>
#include "xla_ffi.hpp"
namespace ours = radam::python::xla;
#define SIZE(a, b) static_assert(sizeof(a) == sizeof(ours::b) && alignof(a) == alignof(ours::b), #a)
#define AT(a, x, b, y) static_assert(offsetof(a, x) == offsetof(ours::b, y) && \\
    sizeof(((a*)0)->x) == sizeof(((ours::b*)0)->y), #a "." #x)
#define IS(a, b) static_assert(static_cast<int>(a) == static_cast<int>(ours::b), #a)
IS(XLA_FFI_API_MAJOR, major_version);
static_assert(sizeof(ours::Metadata) <= sizeof(XLA_FFI_Metadata), "a smaller interface");
static_assert(XLA_FFI_API_MINOR >= ours::oldest_minor && XLA_FFI_API_MINOR <= ours::newest_minor, "a newer interface");
"""
SIZES = [
    *(("Extension_Base", "Extension"), ("Api_Version", "Version"), ("Error_Create_Args", "ErrorCreate")),
    *(
        ("Stream_Get_Args", "StreamGet"),
        ("DeviceOrdinal_Get_Args", "DeviceGet"),
        ("Buffer", "Buffer"),
        ("Args", "Buffers"),
        ("Rets", "Buffers"),
    ),
    *(("ByteSpan", "Span"), ("Scalar", "Scalar"), ("Array", "Array"), ("Attrs", "Attributes")),
    ("Metadata_Extension", "MetadataExtension"),
]
FIELDS = """
Extension_Base struct_size type:kind next | Extension
Api_Version struct_size extension_start:extensions major_version:major minor_version:minor | Version
Error_Create_Args struct_size extension_start:extensions message errc:code | ErrorCreate
Stream_Get_Args struct_size extension_start:extensions ctx:context stream | StreamGet
DeviceOrdinal_Get_Args struct_size extension_start:extensions ctx:context device_ordinal:device | DeviceGet
Buffer struct_size extension_start:extensions dtype data rank dims | Buffer
Args struct_size extension_start:extensions size types:kinds args:buffers | Buffers
Rets struct_size extension_start:extensions size types:kinds rets:buffers | Buffers
ByteSpan ptr:data len:size | Span
Scalar dtype value | Scalar
Array dtype size data | Array
Attrs struct_size extension_start:extensions size types:kinds names attrs:values | Attributes
Api struct_size extension_start:extensions api_version:version internal_api:internal | Api
Api XLA_FFI_Error_Create:create_error XLA_FFI_Stream_Get:get_stream XLA_FFI_DeviceOrdinal_Get:get_device | Api
CallFrame struct_size extension_start:extensions api ctx:context stage args:arguments rets:results | CallFrame
CallFrame attrs:attributes | CallFrame
Metadata struct_size api_version:version traits | Metadata
Metadata_Extension extension_base:base metadata | MetadataExtension
"""
VALUES = """
Extension_Metadata ExtensionKind::metadata
Error_Code_INVALID_ARGUMENT ErrorCode::invalid_argument
Error_Code_UNIMPLEMENTED ErrorCode::unimplemented
Error_Code_INTERNAL ErrorCode::internal
DataType_PRED Type::pred
DataType_S32 Type::s32
DataType_S64 Type::s64
DataType_U32 Type::u32
DataType_F16 Type::f16
DataType_F32 Type::f32
DataType_F64 Type::f64
DataType_BF16 Type::bf16
ArgType_BUFFER BufferKind::buffer
RetType_BUFFER BufferKind::buffer
AttrType_ARRAY AttributeKind::array
AttrType_SCALAR AttributeKind::scalar
ExecutionStage_INSTANTIATE Stage::instantiate
ExecutionStage_PREPARE Stage::prepare
ExecutionStage_INITIALIZE Stage::initialize
ExecutionStage_EXECUTE Stage::execute
"""


def layout_program() -> str:
    lines = [f"SIZE(XLA_FFI_{theirs}, {ours});" for theirs, ours in SIZES]
    for line in FIELDS.strip().splitlines():
        fields, ours = line.split(" | ")
        struct, *names = fields.split()
        pairs = [name.split(":") if ":" in name else (name, name) for name in names]
        lines += [f"AT(XLA_FFI_{struct}, {theirs}, {ours}, {own});" for theirs, own in pairs]
    lines += ["IS(XLA_FFI_{}, {});".format(*line.split()) for line in VALUES.strip().splitlines()]
    return LAYOUT + "\n".join(lines) + "\nint main() {}\n"


@pytest.mark.skipif(not BINDINGS.is_dir(), reason="needs the source tree")
def test_what_is_declared_lies_as_in_the_header_of_this_jaxlib(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("clang++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    if not Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").is_file():
        pytest.skip("this jaxlib comes without its headers")
    source = tmp_path / "layout.cpp"
    source.write_text(layout_program())
    includes = [f"-I{BINDINGS}", f"-I{jax.ffi.include_dir()}"]
    ended = subprocess.run(
        [compiler, "-std=c++17", "-Wno-invalid-offsetof", "-fsyntax-only", *includes, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("kind", CAPSULES)
def test_a_valid_frame_is_computed_and_its_operands_stay(kind: str) -> None:
    arguments, results = arrays_of(kind)
    before = [x.tobytes() for x in arguments]
    assert Call(arguments, results, ATTRIBUTES).run(CAPSULES[kind]) == []
    assert [x.tobytes() for x in arguments] == before
    assert not any((x == -1).any() for x in results)
    if kind == "step":
        assert results[0] == 7
    wide, into = arrays_of(kind)
    wide[0] = np.array(2**33, np.int64)
    if kind == "step":
        into[0] = np.array(-1, np.int64)
    assert Call(wide, into, ATTRIBUTES).run(CAPSULES[kind]) == []
    assert (into[0] == 2**33 + 1) if kind == "step" else (into[0][11] > results[0][11])  # the step size has grown
    again, aliased = arrays_of(kind)  # and in place
    if kind == "step":
        aliased = [again[0], *again[2:4], *again[6:10]]
        assert Call(again, aliased, ATTRIBUTES).run(CAPSULES[kind]) == []
        assert all((a == b).all() for a, b in zip(aliased, results))


@pytest.mark.parametrize("minor", range(6))
@pytest.mark.parametrize("kind", CAPSULES)
def test_the_version_it_was_made_for_is_told_and_xla_s_own_where_that_is_the_same(kind: str, minor: int) -> None:
    call = Call([], [], {}, minor=minor)
    metadata = Metadata(c.sizeof(Metadata), Version(0, None, -1, -1), 77, 77)
    extension = MetadataExtension(c.sizeof(MetadataExtension), 1, None, c.addressof(metadata))
    call.frame.extensions = c.addressof(extension)
    assert call.run(CAPSULES[kind]) == []
    assert (metadata.version.major, metadata.version.minor) == (0, minor if 1 <= minor <= 3 else 3)
    assert metadata.traits == 0
    assert metadata.state_type == 77  # XLA's own, and no part of what its struct_size tells


def test_metadata_that_is_too_small_is_not_written() -> None:
    call = Call([], [], {})
    metadata = Metadata(8, Version(0, None, -1, -1), 77, 77)
    extension = MetadataExtension(c.sizeof(MetadataExtension), 1, None, c.addressof(metadata))
    call.frame.extensions = c.addressof(extension)
    assert "too small" in call.run(_step.jax_step())[0][1]
    assert metadata.version.major == -1
    extension.struct_size = 8
    call.errors.clear()
    assert "extension is too small" in call.run(_step.jax_step())[0][1]


HOSTILE: dict[str, tuple[Callable[[Call], Any], str]] = {
    "a smaller frame": (lambda call: setattr(call.frame, "struct_size", 40), "frame is too small"),
    "another stage": (lambda call: setattr(call.frame, "stage", 0), "only be executed"),
    "no operands": (lambda call: call.arguments.clear(), "operands|operand"),
    "an operand less": (lambda call: call.arguments.pop(), "wrong number|missing"),
    "an operand more": (lambda call: call.arguments.append(call.arguments[0]), "wrong number"),
    "no results": (lambda call: call.results.clear(), "wrong number"),
    "a result more": (lambda call: call.results.append(call.results[0]), "wrong number"),
    **{
        f"no {name} of {part}": (lambda call, part=part, name=name: call.missing.append((part, name)), "missing")
        for part in ("arguments", "results", "attributes")
        for name in ("kinds", "values" if part == "attributes" else "buffers")
    },
    "no names of attributes": (lambda call: call.missing.append(("attributes", "names")), "missing"),
    "a smaller buffer struct": (at("arguments", 0, field("struct_size", 8)), "buffer is too small"),
    "no data": (at("arguments", 0, field("data", None)), "no data"),
    "no data of a number": (at("arguments", 1, field("data", None)), "no data"),
    "no result data": (at("results", 0, field("data", None)), "no data"),
    "no dimensions": (at("results", 1, lambda call, b: (shape(2)(call, b), setattr(b, "dims", None))[0]), "no shape"),
    "a negative rank": (at("arguments", 0, field("rank", -1)), "no shape"),
    "a negative dimension": (at("arguments", 1, shape(-1)), "negative dimension"),
    "dimensions beyond all memory": (at("results", 0, shape(2**40, 2**40)), "too large"),
    "a number of floats for the count": (at("arguments", 0, field("dtype", 11)), "int32 or int64"),
    "whole numbers for a hyperparameter": (at("arguments", 1, field("dtype", 4)), "must be float32"),
    "too many of a hyperparameter": (at("arguments", 1, shape(2)), "another size"),
    "too few parts of a number": (at("arguments", 1, field("dtype", 8)), "another size"),
    "no attributes": (lambda call: call.attributes.clear(), "attributes must be"),
    "another attribute": (attribute("more", np.int64(1)), "attributes must be"),
    "a scalar for numbers": (attribute("numbers", np.float64(1)), "must be an array"),
    "six numbers": (attribute("numbers", np.zeros(6)), "seven of float64"),
    "numbers of float32": (attribute("numbers", np.zeros(7, np.float32)), "seven of float64"),
    "an array of flags": (attribute("flags", np.zeros(2, np.int64)), "must be scalars"),
    "flags of int32": (attribute("flags", np.int32(1)), "must be int64"),
    "an unknown flag": (attribute("flags", np.int64(32)), "unknown"),
    "an unknown operand": (attribute("operands", np.int64(128)), "unknown"),
    "more operands than there are": (attribute("operands", np.int64(127)), "missing|hyperparameter"),
    "a b2 of 1": (attribute("numbers", np.array([0.1, 0.9, 1.0, 1e-8, 0.0, 5.0, 0.0])), "b2 must be"),
}
HOSTILE_STEP: dict[str, tuple[Callable[[Call], Any], str]] = {
    "a count below zero": (lambda call: c.memset(call.arguments[0].data, 255, 4), "not be negative"),
    "two counts": (at("arguments", 0, shape(2)), "one number|another size"),
    "another count in the result": (at("results", 0, field("dtype", 5)), "not like it"),
    "whole parameters": (at("arguments", 2, field("dtype", 4)), "none of float32"),
    "float64 with float32": (at("arguments", 4, field("dtype", 12)), "does not go with"),
    "a gradient of another shape": (at("arguments", 4, shape(2, 3)), "another shape"),
    "a gradient without data": (at("arguments", 4, field("data", None)), "no data"),
    "a moment of another shape": (at("arguments", 6, shape(6)), "result is not like|another shape"),
    "a moment and its result of another shape": (
        lambda call: [shape(7)(call, b) for b in (call.arguments[6], call.results[3])],
        "moment has another shape",
    ),
    "moments of 16 bits": (
        lambda call: [setattr(b, "dtype", 10) for b in (call.arguments[7], call.results[4])],
        "moment must be float32",
    ),
    "a result of another dtype": (at("results", 1, field("dtype", 10)), "not like its operand"),
    "a result of another shape": (at("results", 1, shape(6)), "not like its operand"),
    "a result without data": (at("results", 6, field("data", None)), "no data"),
}
HOSTILE_COEFFICIENTS: dict[str, tuple[Callable[[Call], Any], str]] = {
    "a step of 0": (lambda call: c.memset(call.arguments[0].data, 0, 4), "at least 1"),
    "coefficients of whole numbers": (at("results", 0, field("dtype", 4)), "float32 or float64"),
    "too few coefficients": (at("results", 0, shape(15)), "another size"),
    "a float for rectified": (at("results", 1, field("dtype", 11)), "one pred"),
}
CASES = [
    *(("coefficients", what, *case) for what, case in (HOSTILE | HOSTILE_COEFFICIENTS).items()),
    *(("step", what, *case) for what, case in (HOSTILE | HOSTILE_STEP).items()),
]


@pytest.mark.parametrize(("kind", "what", "spoil", "text"), CASES, ids=[f"{kind}-{what}" for kind, what, *_ in CASES])
def test_what_does_not_fit_is_an_error_and_nothing_is_written(
    kind: str, what: str, spoil: Callable[[Call], Any], text: str
) -> None:
    arguments, results = arrays_of(kind)
    call = Call(arguments, results, ATTRIBUTES)
    spoil(call)
    before = [x.tobytes() for x in (*arguments, *results)]
    ((code, message),) = call.run(CAPSULES[kind])
    assert code == "invalid argument"
    assert message.startswith("radam: ")
    assert any(part in message for part in text.split("|")), message
    assert [x.tobytes() for x in (*arguments, *results)] == before


def test_more_leaves_than_memory_can_list_are_an_error_that_says_whose_it_is() -> None:
    arguments, results = arrays_of("step")
    call, many = Call(arguments, results, ATTRIBUTES), 2**58
    make = call.buffers

    def claim(parts: list[Any]) -> Any:
        made = make(parts)
        made.size = 2 + 4 * many + 1 if parts is call.arguments else 1 + 3 * many
        return made

    call.buffers = claim  # type: ignore[method-assign]
    ((code, message),) = call.run(_step.jax_step())
    assert code == "internal"
    assert message.startswith("radam: ")
