"""The schedule is exact at every beta2 and every step: against 25 stored digits, and against mpmath at random."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import radam
from radam import _core

ROWS = list(csv.DictReader(Path(__file__).with_name("rectification.csv").read_text().splitlines()))
PROMISED = 1e-13


def error(got: float, exact: Any) -> float:
    return float(abs(mp.mpf(got) - exact) / abs(exact))


def assert_schedule(beta2: float, t: int, rest: Any, rho_inf: Any, rho: Any, r: Any) -> None:
    assert error(_core.one_minus_power(beta2, t), rest) <= PROMISED
    assert error(_core.rho_infinity(beta2), rho_inf) <= PROMISED
    assert error(_core.rho(beta2, t), rho) <= PROMISED
    got = radam.rectification(t, beta2)
    if r is None:
        assert got is None
    else:
        assert got is not None
        assert error(got, r) <= PROMISED


def test_the_table_is_whole() -> None:
    assert len(ROWS) == 1040
    assert len({(row["beta2"], row["t"]) for row in ROWS}) == 1040


@pytest.mark.parametrize("beta2", dict.fromkeys(row["beta2"] for row in ROWS))
def test_the_schedule_is_that_of_the_table(beta2: str) -> None:
    for row in ROWS:
        if row["beta2"] == beta2:
            with mp.workdps(30):
                rest, rho_inf, rho = (mp.mpf(row[key]) for key in ("one_minus_beta2_pow_t", "rho_inf", "rho_t"))
                r = mp.mpf(row["r_t"]) if row["r_t"] else None
                assert_schedule(float(beta2), int(row["t"]), rest, rho_inf, rho, r)


beta2s = st.one_of(
    st.floats(0.0, 1.0, exclude_max=True),
    st.floats(0.0, 53.0).map(lambda x: 1.0 - 2.0**-x).filter(lambda x: 0.0 <= x < 1.0),
    st.integers(1, 2**20).map(lambda k: 1.0 - k * 2.0**-53),
)
steps = st.one_of(st.integers(1, 100), st.floats(0.0, 62.3).map(lambda x: int(2.0**x)), st.integers(1, 6 * 10**18))


@settings(max_examples=1500)
@given(beta2s, steps)
@example(0.0, 6 * 10**18)
@example(1 - 2.0**-53, 6 * 10**18)
@example(1 - 2.0**-53, 2**53 + 1)
@example(1 - 2.0**-53, 1)
@example(0.5, 53)
def test_the_schedule_is_that_of_110_digits(beta2: float, t: int) -> None:
    with mp.workdps(110):
        exact = mp.mpf(beta2)
        power = exact**t
        rho_inf = 2 / (1 - exact) - 1
        rho = rho_inf - 2 * t * power / (1 - power)
        r = None
        if rho > 5:
            r = mp.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        assert_schedule(beta2, t, 1 - power, rho_inf, rho, r)


@pytest.mark.parametrize("t", [0, -1, -(2**62)])
def test_a_step_number_below_one_is_refused(t: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        radam.rectification(t, 0.999)


@pytest.mark.parametrize(
    ("t", "beta2", "error"), [(7.0, 0.999, TypeError), (2**64, 0.999, ValueError), (7, "0.999", TypeError)]
)
def test_what_is_no_step_number_or_no_beta2_is_refused_by_name(t: Any, beta2: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^(t|beta2) must be"):
        radam.rectification(t, beta2)


@pytest.mark.parametrize("beta2", [-1e-9, 1.0, 1.5, float("nan"), float("inf")])
def test_a_beta2_outside_its_range_is_refused(beta2: float) -> None:
    with pytest.raises(ValueError, match="betas"):
        radam.rectification(10, beta2)


@pytest.mark.parametrize(
    ("threshold", "at_threshold", "rectified"),
    [(1.0, False, False), (1.0, True, True), (0.5, False, True), (1.5, True, False)],
)
def test_the_threshold_itself_counts_where_the_convention_says_so(
    threshold: float, at_threshold: bool, rectified: bool
) -> None:
    # With beta2 = 0 rho is exactly 1 at every step; below 4 the variance has no closed form, and r is 0.
    convention = dataclasses.replace(radam.CONVENTIONS["torch"], threshold=threshold, rectify_at_threshold=at_threshold)
    assert radam.rectification(7, 0.0, convention) == (0.0 if rectified else None)


def test_rectification_grows_to_one() -> None:
    r = [radam.rectification(t, 0.999) for t in range(1, 20_001, 7)]
    found = [x for x in r if x is not None]
    assert r[0] is None
    assert all(0.0 < a < b < 1.0 for a, b in itertools.pairwise(found))
    assert found[-1] > 0.999999


# ---- whole steps at a beta2 where float64, as the frameworks use it, fails


def exact_steps(
    p: list[Any], m: list[Any], v: list[Any], grads: Any, first: int, lr: float, beta1: float, beta2: float
) -> None:
    """radam.RAdam by its definition, in the working precision of mpmath; lists change in place."""
    lr, beta1, beta2, eps = (mp.mpf(x) for x in (lr, beta1, beta2, 1e-8))
    rho_inf = 2 / (1 - beta2) - 1
    for t, gradient in enumerate(grads, start=first):
        power = beta2**t
        rho = rho_inf - 2 * t * power / (1 - power)
        for i, g in enumerate(gradient):
            m[i] = beta1 * m[i] + (1 - beta1) * mp.mpf(float(g))
            v[i] = beta2 * v[i] + (1 - beta2) * mp.mpf(float(g)) ** 2
            move = lr * m[i] / (1 - beta1**t)
            if rho > 5:
                r = mp.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
                move *= r * mp.sqrt(1 - power) / (mp.sqrt(v[i]) + eps)
            p[i] -= move


@pytest.mark.parametrize("done", [0, 10**6, 2**40])
@pytest.mark.parametrize("beta2", [0.999, 0.9999, 0.99999, 1 - 1e-7, 1 - 1e-9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 2e-6)])
def test_a_trajectory_at_high_beta2_is_the_exact_one(done: int, beta2: float, dtype: type, tolerance: float) -> None:
    rng = np.random.default_rng(5)
    grads = rng.normal(1.0, 0.5, (35, 5)).astype(dtype)
    m, v = rng.normal(1.0, 0.1, 5).astype(dtype), rng.uniform(0.5, 2.0, 5).astype(dtype)
    if done == 0:
        m, v = np.zeros_like(m), np.zeros_like(v)
    param = np.zeros(5, dtype)  # so that what it becomes is the sum of its moves, however small
    opt = radam.RAdam([param], lr=0.01, betas=(0.9, beta2))
    if done:
        saved = opt.state_dict()
        saved["state"][0] = {"step": done, "exp_avg": m, "exp_avg_sq": v}
        opt.load_state_dict(saved)
    for g in grads:
        opt.step(grads=[g])
    with mp.workdps(60):
        p, *moments = ([mp.mpf(float(x)) for x in a] for a in (np.zeros(5), m, v))
        exact_steps(p, *moments, grads, done + 1, 0.01, 0.9, beta2)
        for got, exact in zip((param, opt.state[0]["exp_avg"], opt.state[0]["exp_avg_sq"]), (p, *moments), strict=True):
            assert max(error(float(x), y) for x, y in zip(got, exact, strict=True)) <= tolerance
    assert opt.state[0]["step"] == done + 35
