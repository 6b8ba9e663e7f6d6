"""The native step on CUDA, as far as a host can show it: by the stand-in for the library that runs the kernels here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

from call_frame import ATTRIBUTES, Call, arrays_of, at, attribute, field, shape
from radam import _step
from stand_in_library import StandIn


def on_cuda(**changes: Any) -> tuple[Call, list[Any], list[Any]]:
    """A valid frame: a count for each leaf in float32, and results that are their operands."""
    (_, lr, *leaves), _ = arrays_of("step")
    leaves.insert(2, np.zeros((0, 3), np.float32))
    for k in (5, 8, 11):
        leaves.insert(k, np.zeros((0, 3), np.float32))
    arguments = [np.full(3, 6, np.float32), lr, *leaves]
    results = [arguments[0], *arguments[2:5], *arguments[8:14]]
    return Call(arguments, results, {**ATTRIBUTES, **changes}), arguments, results


def test_a_step_on_cuda_goes_onto_xla_s_stream_and_has_the_bits_of_the_host(stand_in: StandIn) -> None:
    call, _, results = on_cuda()
    _, arguments, _ = on_cuda()
    assert call.run(_step.jax_step_on_cuda()) == []
    assert stand_in.log() == [f"step device=2 stream={0x5EED} slots=3"]
    host = [np.array(6, np.int32), *arguments[1:]]
    there = [np.array(0, np.int32), *(np.copy(x) for x in (*arguments[2:5], *arguments[8:14]))]
    assert Call(host, there, ATTRIBUTES).run(_step.jax_step()) == []
    assert (results[0] == 7).all()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(results[1:], there[1:]))


@pytest.mark.parametrize("form", ["float32", "float64", "parts"])
def test_numbers_on_cuda_are_read_there(stand_in: StandIn, form: str) -> None:
    call, _, results = on_cuda(operands=np.int64(0b111))
    numbers = [np.array(x, np.float32 if form == "float32" else np.float64) for x in (0.1, 0.9, 0.999)]
    if form == "parts":
        numbers = [np.append(x.reshape(1).view(np.uint32), np.uint32(0)) for x in numbers]
    call.arguments[1:2] = [call.buffer(x) for x in numbers]
    assert call.run(_step.jax_step_on_cuda()) == []
    _, again, _ = on_cuda()
    host = [np.array(6, np.int32), *numbers, *again[2:]]
    there = [np.array(0, np.int32), *(np.copy(x) for x in (*again[2:5], *again[8:14]))]
    assert Call(host, there, {**ATTRIBUTES, "operands": np.int64(0b111)}).run(_step.jax_step()) == []
    assert all(a.tobytes() == b.tobytes() for a, b in zip(results[1:], there[1:]))


CUDA: dict[str, tuple[Callable[[Call], Any], str, str]] = {
    "an older jaxlib": (lambda call: setattr(call.api, "struct_size", 100), "unimplemented", "newer one"),
    **{
        f"{name} there": (attribute("operands", np.int64(8 << k)), "invalid argument", "only lr, b1 and b2")
        for k, name in enumerate(("eps", "eps_root", "threshold", "weight_decay"))
    },
    "one count": (at("arguments", 0, shape(1)), "invalid argument", "one for each leaf"),
    "counts of int32": (at("arguments", 0, field("dtype", 4)), "invalid argument", "must be float32"),
    "counts in another buffer": (at("results", 0, field("data", 8)), "invalid argument", "where they are"),
    "a moment in another buffer": (at("results", 5, field("data", 8)), "invalid argument", "its operand's buffer"),
    "no stream": (lambda call: setattr(call, "refuses", True), "refused", "stream"),
    "a b1 of 1": (attribute("numbers", np.array([0, 1.0, 0.9, 0, 0, 5, 0])), "invalid argument", "b1 must be"),
}


@pytest.mark.parametrize("what", CUDA)
def test_on_cuda_what_does_not_fit_is_an_error_and_nothing_is_written(stand_in: StandIn, what: str) -> None:
    spoil, code, text = CUDA[what]
    call, arguments, _ = on_cuda()
    before = [x.tobytes() for x in arguments]
    spoil(call)
    ((found, message),) = call.run(_step.jax_step_on_cuda())
    assert found == code
    assert text in message
    assert [x.tobytes() for x in arguments] == before
    assert stand_in.log() == []


def test_on_cuda_a_failure_and_a_missing_library_are_errors(stand_in: StandIn) -> None:
    stand_in.fail_after(0)
    assert on_cuda()[0].run(_step.jax_step_on_cuda())[0][0] == "internal"
    stand_in.unload()
    ((code, message),) = on_cuda()[0].run(_step.jax_step_on_cuda())
    assert code == "unimplemented"
    assert "without CUDA" in message
