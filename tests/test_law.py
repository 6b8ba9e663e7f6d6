"""One step of the core against the same law in wide arithmetic: no further off than the design's bounds."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import mpmath as mp
import numpy as np
import pytest

import radam
import reference as ref
from radam import _core

SIZES = (0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 100_003)
SMALL = sum(SIZES[:-2])
DECAYS = {
    "none": {},
    "coupled": {"weight_decay": 0.37},
    "decoupled": {"weight_decay": 0.37, "decoupled_weight_decay": True},
}
FORMS: dict[str, dict[str, Any]] = {
    f"{mode}-{decay}{'-amsgrad' * amsgrad}": {"t": t, "amsgrad": amsgrad, **DECAYS[decay]}
    for mode, t in (("rectified", 1000), ("momentum", 3))
    for decay in DECAYS
    for amsgrad in (False, True)
} | {
    "nesterov": {"t": 40, "nesterov": True},
    "nesterov-momentum-coupled": {"t": 2, "nesterov": True, "weight_decay": 0.1},
    "nesterov-amsgrad": {"t": 40, "nesterov": True, "amsgrad": True},
    "eps_root": {"t": 77, "eps_root": 1e-3, "eps_on": "sqrt_v_hat"},
    "eps_on_sqrt_v_hat": {"t": 8, "eps": 1e-2, "eps_on": "sqrt_v_hat"},
    "maximize": {"t": 1000, "maximize": True, "weight_decay": 0.37},
    "grad_scale": {"t": 1000, "grad_scale": 0.3, "weight_decay": 0.37},
    "moments_only": {"t": 3, "warmup": "moments_only", "weight_decay": 0.37, "decoupled_weight_decay": True},
    "adam": {"t": 10, "rectify": False, "eps_on": "sqrt_v_hat"},
    "high_betas": {"t": 100_000, "beta1": 0.9999, "beta2": 0.999999},
    "zero_betas": {"t": 1, "beta1": 0.0, "beta2": 0.0},
    "no_eps": {"t": 1000, "eps": 0.0},
}
forms = pytest.mark.parametrize("form", FORMS)


def hyperparameters(form: str) -> tuple[_core.Hyperparameters, int, dict[str, Any]]:
    kwargs = {"lr": 0.0123, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8} | FORMS[form]
    t = kwargs.pop("t")
    return _core.Hyperparameters(**kwargs), t, kwargs


def inputs(param: str, grad: str, form: str) -> ref.Buffers:
    """One long slot with many magnitudes, far from overflow and underflow. Every size is a piece of it."""
    rng = np.random.default_rng([*f"{param} {grad} {form}".encode()])
    n = sum(SIZES)
    moment = "float64" if param == "float64" else "float32"
    return ref.Buffers(
        ref.spread(rng, n, param, -13, 13),
        ref.spread(rng, n, grad, -13, 13),
        ref.spread(rng, n, moment, -30, 10),
        abs(ref.spread(rng, n, moment, -40, 20)),
        abs(ref.spread(rng, n, moment, -40, 20)),
    )


def step_in_pieces(h: _core.Hyperparameters, t: int, whole: ref.Buffers) -> ref.Buffers:
    out = whole.copy()
    ends = np.cumsum((0, *SIZES))
    ref.step(h, t, *(out.pick(slice(a, b)) for a, b in itertools.pairwise(ends)))
    return out


def assert_within(got: Any, exact: Any, bound: Any, what: str) -> None:
    wrong = abs(got - exact) > bound
    if np.any(wrong):
        i = int(np.flatnonzero(wrong)[0])
        raise AssertionError(f"{what}[{i}]: {got[i]} is {abs(got[i] - exact[i])} from {exact[i]}, allowed {bound[i]}")


@forms
@pytest.mark.parametrize(("param", "grad"), ref.LOW_PAIRS)
def test_a_low_precision_step_is_within_the_bounds_of_float64(param: str, grad: str, form: str) -> None:
    h, t, kwargs = hyperparameters(form)
    c = _core.coefficients(h, t, "float32")
    before = inputs(param, grad, form)
    wide = ref.Buffers(*(a.astype(np.float64) for a in before.arrays()))
    g = np.float32(c["grad_scale"]) * before.grad.astype(np.float32)
    if c["coupled_decay"] != 0:
        g = ref.fma32(c["coupled_decay"], before.param, g)
    decoupled, amsgrad = kwargs.get("decoupled_weight_decay", False), kwargs.get("amsgrad", False)
    expected = ref.law(c, wide, g.astype(np.float64), amsgrad=amsgrad, decoupled=decoupled, u=2.0**-24, sqrt=np.sqrt)
    # A float16 parameter can leave its range; where it does the bounds say nothing.
    inside = abs(expected.param) < 65000.0 if param == "float16" else np.full(wide.param.shape, True)
    assert inside.mean() > 0.5

    for isa in radam.isas():
        _core.set_isa(isa)
        after = step_in_pieces(h, t, before)
        got = ref.Buffers(*(a.astype(np.float64) for a in after.arrays()))
        assert_within(got.exp_avg, expected.exp_avg, expected.exp_avg_bound, f"{isa} exp_avg")
        assert_within(got.exp_avg_sq, expected.exp_avg_sq, expected.exp_avg_sq_bound, f"{isa} exp_avg_sq")
        v_max = np.maximum(wide.max_exp_avg_sq, got.exp_avg_sq) if amsgrad else wide.max_exp_avg_sq
        assert np.array_equal(got.max_exp_avg_sq, v_max)
        last = np.maximum(ref.half_ulp(expected.param, param), ref.half_ulp(got.param, param))
        if param != "float32":  # rounded to float32 first
            last = last + ref.half_ulp(expected.param, "float32")
        assert_within(got.param[inside], expected.param[inside], (expected.param_bound + last)[inside], f"{isa} param")
        assert np.array_equal(after.grad, before.grad)


@forms
def test_a_float64_step_is_within_the_bounds_of_120_bits(form: str) -> None:
    h, t, kwargs = hyperparameters(form)
    coefficients = _core.coefficients(h, t, "float64")
    before = inputs("float64", "float64", form)
    rng = np.random.default_rng(7)
    # All of the small slots, some of the two large ones and their very ends.
    sample = np.r_[0:SMALL, SMALL + 999, rng.integers(SMALL, sum(SIZES), 100), sum(SIZES) - 3 : sum(SIZES)]
    picked = before.pick(sample)
    g = coefficients["grad_scale"] * picked.grad
    if coefficients["coupled_decay"] != 0:
        g = np.array([ref.fma64(coefficients["coupled_decay"], p, x) for p, x in zip(picked.param, g, strict=True)])
    decoupled, amsgrad = kwargs.get("decoupled_weight_decay", False), kwargs.get("amsgrad", False)

    with mp.workprec(120):
        c = {name: x if name == "mode" else mp.mpf(x) for name, x in coefficients.items()}
        wide = ref.Buffers(*(ref.to_mpf(a) for a in picked.arrays()))
        u = mp.mpf(2) ** -53
        expected = ref.law(c, wide, ref.to_mpf(g), amsgrad=amsgrad, decoupled=decoupled, u=u, sqrt=ref.mpf_sqrt)
        for isa in radam.isas():
            _core.set_isa(isa)
            after = step_in_pieces(h, t, before).pick(sample)
            got = ref.Buffers(*(ref.to_mpf(a) for a in after.arrays()))
            assert_within(got.exp_avg, expected.exp_avg, expected.exp_avg_bound, f"{isa} exp_avg")
            assert_within(got.exp_avg_sq, expected.exp_avg_sq, expected.exp_avg_sq_bound, f"{isa} exp_avg_sq")
            v_max = np.maximum(picked.max_exp_avg_sq, after.exp_avg_sq) if amsgrad else picked.max_exp_avg_sq
            assert np.array_equal(after.max_exp_avg_sq, v_max)
            last = np.maximum(
                ref.half_ulp(after.param, "float64"), ref.half_ulp(expected.param.astype(float), "float64")
            )
            assert_within(got.param, expected.param, expected.param_bound + ref.to_mpf(last), f"{isa} param")


@pytest.mark.parametrize(("param", "grad"), ref.PAIRS)
def test_the_gradient_is_scaled_decayed_and_rounded_once_each(param: str, grad: str, every_isa: str) -> None:
    # With beta1 = 0 the moment is the gradient as the law rounded it.
    h = _core.Hyperparameters(
        lr=0.0, beta1=0.0, beta2=0.999, eps=1e-8, weight_decay=0.37, grad_scale=0.3, maximize=True
    )
    before = inputs(param, grad, "gradient").pick(slice(0, 2000))
    after = before.copy()
    ref.step(h, 1, after)
    wide = np.float64 if param == "float64" else np.float32
    scaled = wide(-0.3) * before.grad.astype(wide)
    if param == "float64":
        g = np.array([ref.fma64(0.37, p, x) for p, x in zip(before.param, scaled, strict=True)])
    else:
        g = ref.fma32(np.float32(0.37), before.param, scaled)
    assert np.array_equal(after.exp_avg, g)
    parts = [np.abs(np.float64(wide(a)) * x.astype(np.float64)) for a, x in ((0.37, before.param), (0.3, before.grad))]
    exact = np.float64(wide(0.37)) * before.param.astype(np.float64) - np.float64(wide(0.3)) * before.grad.astype(
        np.float64
    )
    if param != "float64":
        assert_within(after.exp_avg.astype(np.float64), exact, 2 * 2.0**-24 * (parts[0] + parts[1]), "gradient")


@pytest.mark.parametrize("beta", [0.9, 0.99, 0.999, 0.9999, 0.99999])
def test_float32_moments_decay_by_the_betas_as_given(beta: float, every_isa: str) -> None:
    # float32(beta) is off by up to 0.5 u, in the same direction at every step; chance leaves 0.002 u of the mean here.
    rng = np.random.default_rng(9)
    x = rng.uniform(1.0, 2.0, 100_000).astype(np.float32)
    b = ref.Buffers(np.zeros_like(x), np.zeros_like(x), x.copy(), x.copy(), np.zeros_like(x))
    ref.step(_core.Hyperparameters(lr=0.1, beta1=beta, beta2=beta, eps=1e-8), 1, b)
    for moment in (b.exp_avg, b.exp_avg_sq):
        assert abs(np.mean(moment.astype(np.float64) / x) / beta - 1) < 0.02 * 2.0**-24


def test_the_oracle_for_fma_is_right() -> None:
    rng = np.random.default_rng(3)
    a, b, c = (ref.spread(rng, 3000, "float32", -12, 12) for _ in range(3))
    c[:1000] = (-a[:1000].astype(np.float64) * b[:1000]).astype(np.float32)  # cancels but for the rounding
    for x, y, z, got in zip(a, b, c, ref.fma32(a, b, c), strict=True):
        assert Fraction(float(got)) == ref.rounded(
            Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), "float32"
        )
