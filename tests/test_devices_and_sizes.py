"""Arrays on another device, and arrays larger than 32 bits count."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import radam
from radam import _step
from snapshots import frozen
from stand_in_library import REAL


def fp32() -> np.ndarray:
    return np.ones(4, np.float32)


class Elsewhere:
    """Says through DLPack that it is on another device."""

    def __init__(self, kind: int) -> None:
        self.kind = kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.kind, 0)

    def __dlpack__(self, **keywords: Any) -> Any:
        capsule = fp32().__dlpack__()
        at = ctypes.pythonapi.PyCapsule_GetPointer
        at.restype, at.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        device = at(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)
        ctypes.c_int32.from_address(device).value = self.kind
        return capsule


CUDA, METAL = 2, 8  # DLPack's numbers


@pytest.fixture
def _no_cuda(tmp_path: Path) -> Iterator[None]:
    _step.set_cuda_library(str(tmp_path / "missing.so"))
    yield
    _step.set_cuda_library(str(REAL))


@pytest.mark.usefixtures("_no_cuda")
def test_an_array_on_a_gpu_is_an_error_that_says_why_and_names_the_remedy() -> None:
    why = r"this radam is built without CUDA .*"
    with pytest.raises(
        RuntimeError, match=f"^parameter 0 of group 0 is on a CUDA device, and {why}; or move it to the CPU$"
    ):
        radam.RAdam([Elsewhere(CUDA)])
    optimizer = radam.RAdam([fp32()])
    before = frozen(optimizer)
    with pytest.raises(
        ValueError, match=r"gradient of parameter 0 .* is on CUDA device 0, the parameter on the CPU; mov"
    ):
        optimizer.step(grads=[Elsewhere(CUDA)])
    assert frozen(optimizer) == before


def test_an_array_on_a_device_that_nobody_reaches_is_an_error_that_names_the_remedy() -> None:
    with pytest.raises(
        RuntimeError, match=r"^parameter 0 of group 0 is on a device \(DLPack type 8\) that radam cannot"
    ):
        radam.RAdam([Elsewhere(METAL)])
    optimizer = radam.RAdam([fp32()])
    before = frozen(optimizer)
    with pytest.raises(
        ValueError, match=r"gradient of parameter 0 .* is on another device \(DLPack type 8\) than the par"
    ):
        optimizer.step(grads=[Elsewhere(METAL)])
    assert frozen(optimizer) == before


@pytest.mark.skipif(os.name != "posix", reason="elsewhere memory is taken before it is touched, and this is 26 GB")
def test_more_than_2_to_the_31_elements_are_all_looked_at() -> None:
    count = 2**31 + 77
    try:  # of pages that are only read, or never touched: they take no memory
        param, grad = np.zeros(count, np.float16), np.zeros(count, np.float16)
        optimizer = radam.RAdam([param], nonfinite="raise")
        grad[-1] = np.nan
        with pytest.raises(FloatingPointError, match="gradient of parameter 0 of group 0 holds an inf or a NaN"):
            optimizer.step(grads=[grad])
    except MemoryError:
        pytest.skip("this system gives no memory that is not there")
    assert optimizer.state == [{}]
