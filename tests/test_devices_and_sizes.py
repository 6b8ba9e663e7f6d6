"""Arrays on another device, and arrays larger than 32 bits count."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
import pytest

import radam
from snapshots import frozen


def fp32() -> np.ndarray:
    return np.ones(4, np.float32)


class Elsewhere:
    """Says through DLPack that it is on a GPU."""

    def __dlpack__(self, **keywords: Any) -> Any:
        capsule = fp32().__dlpack__()
        at = ctypes.pythonapi.PyCapsule_GetPointer
        at.restype, at.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        ctypes.c_int32.from_address(at(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)).value = 2  # kDLCUDA
        return capsule


def test_an_array_on_a_gpu_is_an_error_that_names_the_remedy() -> None:
    with pytest.raises(
        RuntimeError, match=r"parameter 0 of group 0 is on a CUDA device.*move it to the CPU, or install"
    ):
        radam.RAdam([Elsewhere()])
    optimizer = radam.RAdam([fp32()])
    before = frozen(optimizer)
    with pytest.raises(ValueError, match=r"gradient of parameter 0 .* \(DLPack type 2, number 0\) than the parameter"):
        optimizer.step(grads=[Elsewhere()])
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
