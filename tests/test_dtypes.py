"""Storage types: 16-bit numbers widen exactly and narrow to nearest even; a multiply-add is rounded once."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import reference as ref
from radam import _core

HALVES = ("bfloat16", "float16")
halves = pytest.mark.parametrize("dtype", HALVES)
wides = pytest.mark.parametrize("dtype", ["float32", "float64"])

MOMENTUM = {"beta1": 0.0, "beta2": 0.999, "eps": 1e-8}  # at step 1: p = fma(-lr, g, p), g as it came


def all_numbers(dtype: str) -> Any:
    return np.arange(65536, dtype=np.uint16).view(ref.DTYPES[dtype])


def slot(param: Any, grad: Any) -> ref.Buffers:
    moments = (np.zeros(param.shape, np.float64 if param.dtype == np.float64 else np.float32) for _ in range(3))
    return ref.Buffers(param, grad, *moments)


@halves
def test_every_16_bit_parameter_goes_through_a_step_of_size_0_as_it_is(dtype: str, every_isa: str) -> None:
    before = all_numbers(dtype)
    b = slot(before.copy(), np.ones(65536, np.float32))
    ref.step(_core.Hyperparameters(lr=0.0, **MOMENTUM), 1, b)
    # p = fma(-0, 1, p), which also keeps the sign of a zero.
    assert np.array_equal(ref.bits(b.param), ref.bits(before))


@halves
def test_every_16_bit_gradient_widens_exactly(dtype: str, every_isa: str) -> None:
    grad = all_numbers(dtype)
    b = slot(np.zeros(65536, np.float32), grad)
    ref.step(_core.Hyperparameters(lr=1.0, **MOMENTUM), 1, b)
    # With beta1 = 0 the moment is the gradient, and the parameter moves by it from 0. Moments below 2^-126 are flushed.
    with np.errstate(invalid="ignore"):  # signalling NaNs
        exact = grad.astype(np.float32)
        exact[abs(exact) < 2.0**-126] = 0.0
        moment, moved = exact + np.float32(0.0), np.float32(0.0) - exact
    assert np.array_equal(ref.bits(b.exp_avg), ref.bits(moment))
    assert np.array_equal(ref.bits(b.param), ref.bits(moved))


def float32_to_narrow(dtype: str) -> Any:
    """All neighbours of the middles between two 16-bit numbers, both ends of the range, and a random sample."""
    rng = np.random.default_rng(17)
    numbers = all_numbers(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        numbers = np.unique(numbers[np.isfinite(numbers)].astype(np.float64))
    middles = ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32)
    largest = np.float32(numbers[-1])
    over = np.float32(float(largest) + float(largest - np.float32(numbers[-2])) / 2)
    directed = np.concatenate([numbers.astype(np.float32), middles, [largest, over, 3.4028235e38, np.inf]]).astype(
        np.float32
    )
    with np.errstate(over="ignore"):
        around = [np.nextafter(directed, np.float32(way)) for way in (np.inf, -np.inf)]
    anything = rng.integers(0, 2**32, 400_000, dtype=np.uint32).view(np.float32)
    low, high = (-150, 128) if dtype == "bfloat16" else (-30, 17)
    inside = ref.spread(rng, 400_000, "float32", low, high)
    x = np.concatenate([directed, *around, -directed, anything, inside]).astype(np.float32)
    # The gradient passes through a moment, where what is below 2^-126 becomes zero.
    return x[~(abs(x) < 2.0**-126)]


@halves
def test_float32_narrows_to_nearest_even(dtype: str, every_isa: str) -> None:
    x = float32_to_narrow(dtype)
    b = slot(np.zeros(x.size, ref.DTYPES[dtype]), -x)
    ref.step(_core.Hyperparameters(lr=1.0, **MOMENTUM), 1, b)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (x + np.float32(0.0)).astype(ref.DTYPES[dtype])
    got = ref.bits(b.param)
    wrong = np.flatnonzero(got != ref.bits(expected))
    assert wrong.size == 0, f"{x[wrong[0]]!r} became {got[wrong[0]]:#x}, not {ref.bits(expected)[wrong[0]]:#x}"


@halves
def test_results_below_the_normal_numbers_narrow_to_nearest_even(dtype: str, every_isa: str) -> None:
    # p = fma(-lr, g, 0) is subnormal, in bfloat16 also before it is narrowed.
    rng = np.random.default_rng(19)
    lr, low, high = (2.0**-100, -40, -20) if dtype == "bfloat16" else (1.0, -27, -13)
    grad = ref.spread(rng, 50_000, "float32", low, high)
    b = slot(np.zeros(grad.size, ref.DTYPES[dtype]), grad)
    ref.step(_core.Hyperparameters(lr=lr, **MOMENTUM), 1, b)
    once = (np.float64(-lr) * grad).astype(np.float32) + np.float32(0.0)
    assert np.array_equal(ref.bits(b.param), ref.bits(once.astype(ref.DTYPES[dtype])))


# ---- fma


def fma_cases(dtype: str, a: float) -> tuple[Any, Any]:
    """b and c for fma(-a, b, c): products that cancel but for their last bits, ties, and exponents far apart."""
    precision, smallest = ref.FORMATS[dtype]
    np_dtype = ref.DTYPES[dtype].type
    rng = np.random.default_rng(23)
    n = 60
    near = 1.0 + rng.integers(0, 2**12, n) * 2.0 ** -(precision - 1)
    b = np.concatenate([near, 1.0 - near / 4, ref.spread(rng, n, "float64", -20, 20)]).astype(np_dtype)
    product = (np_dtype(a) * b).astype(np_dtype)
    ulp = np_dtype(2.0) ** (np.frexp(product)[1] - precision).astype(np_dtype)
    pairs = [(b, c) for c in (product, product + ulp, product - ulp, -product, 2 * product, product * np_dtype(0.5))]
    # c so large, or so small, that the product only decides a tie or the sign of what is lost.
    for shift in (precision - 1, precision, precision + 1, 2 * precision, 2 * precision + 1, 3 * precision):
        scale = np_dtype(2.0) ** np_dtype(shift)
        pairs += [(b, product * scale), (b, product / scale), (b, -product * scale), (b, -product / scale)]
        pairs += [(b, (np.exp2(np.frexp(product)[1] + shift)).astype(np_dtype))]  # a power of two: ulps of two sizes
    tiny = np.ldexp(near, smallest + 1).astype(np_dtype)
    subnormal = (rng.integers(-(2**20), 2**20, n) * 2.0**-40).astype(np_dtype) * np_dtype(2.0) ** np_dtype(smallest)
    pairs += [
        (tiny, subnormal),
        (-tiny, subnormal),
        (tiny, tiny),
        (tiny, np.ones(n, np_dtype)),
        (-tiny, np.ones(n, np_dtype)),
    ]
    huge = np.ldexp(near, -smallest - 3).astype(np_dtype)
    pairs += [(huge, huge), (huge, -huge), (huge, np.ones(n, np_dtype)), (huge, tiny)]
    return tuple(np.concatenate(side) for side in zip(*pairs, strict=True))  # type: ignore[return-value]


MULTIPLIERS = {
    "float32": [
        1.0,
        1 + 2.0**-23,
        1 - 2.0**-24,
        0.75,
        1 / 3,
        1.5 - 2.0**-23,
        2.0**-30,
        2.0**12 + 1,
        2.0**-126,
        2.0**-149,
    ],
    "float64": [
        1.0,
        1 + 2.0**-52,
        1 - 2.0**-53,
        0.75,
        1 / 3,
        1.5 - 2.0**-52,
        2.0**-30,
        2.0**27 + 1,
        2.0**-1022,
        2.0**-1074,
    ],
}


@wides
def test_a_multiply_add_is_rounded_once(dtype: str, every_isa: str) -> None:
    largest = Fraction(float(np.finfo(dtype).max))
    for a in (float(np.dtype(dtype).type(x)) for x in MULTIPLIERS[dtype]):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            b, c = fma_cases(dtype, a)
        finite = np.isfinite(b) & np.isfinite(c)
        b, c = b[finite], c[finite]
        assert np.all(abs(b) >= np.finfo(dtype).smallest_normal)  # else the moment would be flushed on its way
        done = slot(c.copy(), b)
        ref.step(_core.Hyperparameters(lr=a, **MOMENTUM), 1, done)
        for x, y, got in zip(b, c, done.param, strict=True):
            exact = ref.rounded(Fraction(-a) * Fraction(float(x)) + Fraction(float(y)), dtype)
            if abs(exact) > largest:
                assert np.isinf(got)
                assert (got > 0) == (exact > 0)
            else:
                assert Fraction(float(got)) == exact, f"fma({-a!r}, {x!r}, {y!r}) gave {got!r}"


@wides
@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        (1.0, np.inf, 1.0, -np.inf),
        (1.0, np.inf, np.inf, np.nan),
        (1.0, -np.inf, np.inf, np.inf),
        (0.0, np.inf, 1.0, np.nan),
        (1.0, 1.0, np.inf, np.inf),
        (1.0, np.nan, 1.0, np.nan),
        (1.0, 1.0, np.nan, np.nan),
        (1.0, 1.0, 1.0, 0.0),
        (0.0, 1.0, -0.0, -0.0),
        (0.0, 1.0, 0.0, 0.0),
        (0.0, -1.0, -0.0, 0.0),
        (2.0, 3e38, 3e38, -3e38),
    ],
)
def test_a_multiply_add_treats_special_numbers_as_ieee_754_does(
    a: float, b: float, c: float, expected: float, dtype: str, every_isa: str
) -> None:
    done = slot(np.full(37, c, dtype), np.full(37, b, dtype))
    ref.step(_core.Hyperparameters(lr=a, **MOMENTUM), 1, done)
    assert np.array_equal(ref.bits(done.param), ref.bits(np.full(37, expected, dtype)))
