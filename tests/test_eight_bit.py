"""Moments of 8 bits: what a block is, what a code may not lose, and that training comes to the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import radam
from precisions import BFLOAT16, state_bits
from radam import _step
from radam.precision import BLOCK, blocks_of, decoded, encoded

EIGHT_BIT: dict[str, Any] = {"state_dtype": "8bit", "min_8bit_size": 0}


def moments(optimizer: radam.RAdam, i: int = 0) -> dict[str, np.ndarray]:
    """Return what the codes of a parameter stand for."""
    entry = optimizer.state[i]
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    return {
        name: decoded(entry[f"{name}_code"], entry[f"{name}_scale"], range(entry[f"{name}_code"].ndim))
        for name in names
        if f"{name}_code" in entry
    }


@pytest.mark.parametrize("shape", [(), (0,), (1,), (127,), (128,), (129,), (3, 43), (5, 128), (4096,)])
def test_codes_are_as_the_parameter_and_scales_one_for_each_block(shape: tuple[int, ...]) -> None:
    optimizer = radam.RAdam([np.zeros(shape, np.float32)], amsgrad=True, **EIGHT_BIT)
    optimizer.step(grads=[np.ones(shape, np.float32)])
    entry = optimizer.state[0]
    for name, dtype in (("exp_avg", np.int8), ("exp_avg_sq", np.uint8), ("max_exp_avg_sq", np.uint8)):
        code, scale = entry[f"{name}_code"], entry[f"{name}_scale"]
        assert (code.dtype, code.shape) == (dtype, shape)
        assert (scale.dtype, scale.shape) == (np.float32, (math.ceil(math.prod(shape) / 128),))
    assert not {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"} & set(entry)


def test_zero_stays_zero(every_isa: str) -> None:
    rng = np.random.default_rng(1)
    p = rng.standard_normal(1000).astype(np.float32)
    start = p.copy()
    still = rng.random(1000) < 0.5
    still[128:256] = True
    optimizer = radam.RAdam([p], lr=0.1, **EIGHT_BIT)
    for _ in range(20):
        optimizer.step(grads=[np.where(still, 0, rng.standard_normal(1000)).astype(np.float32)])
    assert np.array_equal(p[still], start[still])
    assert (p[~still] != start[~still]).all()
    entry = optimizer.state[0]
    assert not entry["exp_avg_code"][still].any()
    assert not entry["exp_avg_sq_code"][still].any()
    assert entry["exp_avg_scale"][1] == entry["exp_avg_sq_scale"][1] == 0


def test_a_v_that_is_not_zero_never_becomes_zero_nor_the_step_large(every_isa: str) -> None:
    rng = np.random.default_rng(2)
    n, lr = 128 * 40, 0.01
    p = np.zeros(n, np.float32)
    # Twelve decades of gradients in every block.
    scales = 10.0 ** rng.uniform(-9, 3, n)
    optimizer = radam.RAdam([p], lr=lr, eps=1e-30, **EIGHT_BIT)
    for t in range(1, 201):
        before = p.copy()
        g = (rng.standard_normal(n) * scales * (rng.random(n) < 0.3)).astype(np.float32)
        optimizer.step(grads=[g])
        v = optimizer.state[0]["exp_avg_sq_code"]
        assert v[g**2 > 0].all()
        if t > 5:  # rectified: |m| is at most 7.3 times the root of v, whatever the gradients; codes may add a part
            assert abs(p - before).max() <= 10 * lr, t


def test_a_gradient_that_overflows_does_not_spoil_its_block(every_isa: str) -> None:
    optimizer = radam.RAdam([np.zeros(256, np.float32)], lr=1e-3, **EIGHT_BIT)
    rng = np.random.default_rng(3)
    for t in range(30):
        g = rng.standard_normal(256).astype(np.float32)
        g[3] = 1e30 if t == 10 else 1.0  # whose square is infinite
        g[5] = np.nan if t == 10 else 1.0
        optimizer.step(grads=[g])
        for name in ("exp_avg_scale", "exp_avg_sq_scale"):
            assert np.isfinite(optimizer.state[0][name]).all()
    p = optimizer.param_groups[0]["params"][0]
    others = np.delete(p, [5])
    assert np.isfinite(others).all()
    assert (others[128:] != 0).all()
    assert abs(others).max() < 0.3


def test_no_block_straddles_tensors_nor_do_blocks_know_each_other() -> None:
    sizes = (200, 5000, 1, 129)

    def run(loud: bool) -> list[Any]:
        params = [np.zeros(size, np.float32) for size in sizes]
        optimizer = radam.RAdam(params, lr=0.1, **EIGHT_BIT)
        rng = np.random.default_rng(4)
        for _ in range(8):
            grads = [rng.standard_normal(size).astype(np.float32) for size in sizes]
            if loud:
                grads[0][199] = 1e6  # the last one of the first tensor, in its second block
            optimizer.step(grads=grads)
        return state_bits(optimizer)

    quiet, loud = run(False), run(True)
    assert loud[1:4] == quiet[1:4]  # the other parameters, and
    assert loud[5:] == quiet[5:]  # their states
    first, changed = (np.frombuffer(result[0][2], np.float32) for result in (quiet, loud))
    assert np.array_equal(first[:128], changed[:128])
    assert (first[128:] != changed[128:]).any()


@pytest.mark.parametrize("shape", [(1000,), (37, 51), (2, 3, 100)])
@pytest.mark.parametrize("kind", ["exp_avg", "exp_avg_sq"])
def test_what_was_decoded_is_encoded_to_the_same_codes(kind: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    x = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 6, shape)).astype(np.float32)
    x[rng.random(shape) < 0.1] = 0
    x = x if kind == "exp_avg" else x**2
    for order in (range(len(shape)), range(len(shape))[::-1]):
        codes, scales = encoded(x, order, signed=kind == "exp_avg")
        assert (codes.shape, scales.shape) == (shape, (blocks_of(x.size),))
        values = decoded(codes, scales, order)
        again = encoded(values, order, signed=kind == "exp_avg")
        assert np.array_equal(again[0], codes)
        assert np.array_equal(again[1], scales)
        assert np.array_equal(values == 0, x == 0) if kind == "exp_avg_sq" else (values[x == 0] == 0).all()
        assert (np.sign(values) * np.sign(x) >= 0).all()
        # The largest of a block is kept exactly; of what is not far smaller an eighth of an octave is one code.
        flat = x.transpose(tuple(order)).ravel()
        back = values.transpose(tuple(order)).ravel()
        for begin in range(0, flat.size, BLOCK):
            here, there = flat[begin : begin + BLOCK], back[begin : begin + BLOCK]
            most = abs(here).max()
            assert there[abs(here).argmax()] == here[abs(here).argmax()]
            large = abs(here) > most * 2.0**-8
            assert (abs(there - here)[large] <= abs(here)[large] * 2.0**-3).all()


def test_blocks_of_a_subnormal_or_the_largest_number_come_back() -> None:
    for most in (1e-45, 1e-39, 2.0**-126, 1e-30, 3.4e38):
        values = np.array([0, most, most / 2, -most], np.float32)
        codes, scales = np.zeros(4, np.int8), np.zeros(1, np.float32)
        _step.encode_blocks(values, codes, scales)
        back = np.zeros(4, np.float32)
        _step.decode_blocks(codes, scales, back)
        assert np.isfinite(back).all()
        assert (abs(back) <= max(float(most), float(scales[0]))).all()
        assert (np.sign(back) * np.sign(values) >= 0).all()


NO_BLOCKS: dict[str, tuple[Any, Any, Any]] = {
    "too few codes": (np.zeros(5, np.float32), np.zeros(4, np.int8), np.zeros(1, np.float32)),
    "too few scales": (np.zeros(129, np.float32), np.zeros(129, np.int8), np.zeros(1, np.float32)),
    "codes of another dtype": (np.zeros(5, np.float32), np.zeros(5, np.int16), np.zeros(1, np.float32)),
    "values of another dtype": (np.zeros(5), np.zeros(5, np.int8), np.zeros(1, np.float32)),
    "scales of another dtype": (np.zeros(5, np.float32), np.zeros(5, np.int8), np.zeros(1)),
    "values with gaps": (np.zeros(10, np.float32)[::2], np.zeros(5, np.int8), np.zeros(1, np.float32)),
    "two dimensions": (np.zeros((5, 1), np.float32), np.zeros((5, 1), np.int8), np.zeros((1, 1), np.float32)),
}


@pytest.mark.parametrize(("values", "codes", "scales"), NO_BLOCKS.values(), ids=NO_BLOCKS)
def test_arrays_that_are_no_blocks_are_refused(values: Any, codes: Any, scales: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        _step.encode_blocks(values, codes, scales)
    with pytest.raises((TypeError, ValueError)):
        _step.decode_blocks(codes, scales, values)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16 with master weights"])
@pytest.mark.parametrize("state_dtype", ["8bit", "bfloat16"])
def test_a_small_problem_is_solved_as_well_as_with_float32_moments(dtype: Any, state_dtype: str) -> None:
    rng = np.random.default_rng(6)
    inputs = rng.standard_normal((400, 64)).astype(np.float32)
    inputs *= 10.0 ** rng.uniform(-1.5, 0.5, 64).astype(np.float32)  # badly scaled, as real ones are
    targets = inputs @ rng.standard_normal((64, 80)).astype(np.float32)

    def loss_after(**options: Any) -> float:
        w = np.zeros((64, 80), dtype)
        optimizer = radam.RAdam([w], lr=0.03, master_weights=True, **options)
        noise = np.random.default_rng(7)
        for _ in range(400):
            rows = noise.integers(0, 400, 50)
            residual = inputs[rows] @ w.astype(np.float32) - targets[rows]
            optimizer.step(grads=[(inputs[rows].T @ residual / 50).astype(dtype)])
        return float(((inputs @ w.astype(np.float32) - targets) ** 2).mean())

    whole = loss_after()
    assert whole < 0.05 * float((targets**2).mean())
    assert loss_after(state_dtype=state_dtype) < 1.2 * whole + 1e-4


@pytest.mark.parametrize("options", [EIGHT_BIT, {"state_dtype": "bfloat16"}], ids=["8-bit", "bfloat16"])
def test_a_slow_average_does_not_freeze(options: dict[str, Any]) -> None:
    # At beta2 = 0.9999 one step changes v by far less than a code is wide: only rounding without bias lets it follow.
    rng = np.random.default_rng(8)
    p, q = np.zeros(8192, np.float32), np.zeros(8192, np.float32)
    coded = radam.RAdam([p], betas=(0.9, 0.9999), **options)
    whole = radam.RAdam([q], betas=(0.9, 0.9999))
    for _ in range(1500):
        g = rng.standard_normal(8192).astype(np.float32)
        coded.step(grads=[g])
        whole.step(grads=[g])
    theirs = whole.state[0]["exp_avg_sq"]
    ours = moments(coded)["exp_avg_sq"] if options is EIGHT_BIT else coded.state[0]["exp_avg_sq"].astype(np.float32)
    assert abs(ours.mean() / theirs.mean() - 1) < 0.02
