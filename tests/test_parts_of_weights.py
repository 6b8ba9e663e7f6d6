"""Weights of 32 bits come apart into 16-bit parameters and what is kept of them, and together again."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import reference as ref
from radam import _step


@pytest.mark.parametrize(
    ("low", "kept"), [(ml_dtypes.bfloat16, np.int16), (np.float16, np.float32)], ids=["bf16", "fp16"]
)
def test_a_weight_taken_apart_and_put_together_is_itself(low: Any, kept: Any) -> None:
    bits = np.random.default_rng(5).integers(0, 2**32, 50_000, dtype=np.uint64).astype(np.uint32)
    weights = np.concatenate([bits.view(np.float32), np.float32([0.0, -0.0, np.inf, -np.inf, 3.4e38, np.nan, 1.0])])
    params, rest, again = np.empty(weights.shape, low), np.empty(weights.shape, kept), np.empty_like(weights)
    _step.split_weights(weights, params, rest)
    _step.join_weights(params, rest, again)
    assert np.array_equal(ref.bits(again), ref.bits(weights))
    near = np.isfinite(np.float32(params)) & (np.abs(weights) > 1e-4)
    off = np.abs(np.float32(params)[near] / weights[near] - 1)
    assert np.max(off) <= (2**-8 if low is ml_dtypes.bfloat16 else 2**-11)


def test_a_parameter_that_somebody_wrote_is_right() -> None:
    params, rest = np.array([np.inf, 0.0], ml_dtypes.bfloat16), np.array([5, -1], np.int16)
    weights = np.empty(2, np.float32)
    _step.join_weights(params, rest, weights)
    assert weights.tolist() == [np.inf, 0.0]  # neither pair of parts is a number
    _step.join_weights(np.array([2.0, 1.0], np.float16), np.array([3.0, 1.0001], np.float32), weights)
    assert weights.tolist() == [2.0, np.float32(1.0001)]


def test_parts_that_do_not_fit_are_refused() -> None:
    weights = np.zeros(4, np.float32)
    for params, kept in (
        (np.zeros(4, np.float16), np.zeros(4, np.int16)),
        (np.zeros(3, ml_dtypes.bfloat16), np.zeros(4, np.int16)),
        (np.zeros((2, 2), ml_dtypes.bfloat16), np.zeros(4, np.int16)),
        (np.zeros(8, ml_dtypes.bfloat16)[::2], np.zeros(4, np.int16)),
    ):
        with pytest.raises(ValueError, match=r"params|weights must be float32"):
            _step.join_weights(params, kept, weights)


def test_the_callers_float_mode_takes_no_small_weight_away() -> None:
    params, rest = np.array([6e-8, 1e-5], np.float16), np.zeros(2, np.float32)  # somebody wrote both
    weights = np.empty(2, np.float32)
    torch = pytest.importorskip("torch")
    torch.set_flush_denormal(True)
    try:
        _step.join_weights(params, rest, weights)
    finally:
        torch.set_flush_denormal(False)
    assert weights.tolist() == params.astype(np.float64).tolist()
