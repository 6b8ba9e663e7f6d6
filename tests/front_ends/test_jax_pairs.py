"""The schedule in pairs of float32 against exact numbers and the core, whatever the compiler does."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp

import radam
from in_a_process import in_a_process
from radam import _core
from radam.jax import pairs

TABLE = Path(__file__).resolve().parents[1] / "rectification.csv"
R = 1e-6
LAST = 2**31 - 1
STEPS = np.array([1, 2, 3, 4, 5, 6, 7, 8, 17, 100, 1000, 12345, 10**6, 2**24 + 1, 10**9, 2**30, LAST], np.int32)
BETAS = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 1 - 1e-6]
Found = dict[str, Any]


def pair(x: np.ndarray[Any, Any]) -> pairs.Pair:
    hi = x.astype(np.float32)
    return pairs.Pair(jnp.array(hi), jnp.array((x - hi).astype(np.float32)))


def worst_of_the_table() -> dict[str, float]:
    """The largest relative errors over all rows of the table that an int32 can count."""
    with TABLE.open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if int(row["t"]) <= LAST]
    beta2 = np.array([float(row["beta2"]) for row in rows])
    t = np.array([int(row["t"]) for row in rows], np.int32)

    def of_row(beta: pairs.Pair, complement: pairs.Pair, t: jax.Array) -> tuple[Any, ...]:
        s0, s1 = pairs.power_sums(beta, complement, t)
        return complement * s0, *pairs.rectification(s0, s1, complement)

    correction, rho, r = jax.jit(jax.vmap(of_row))(pair(beta2), pair(1 - beta2), jnp.array(t))
    worst = {}
    for name, got in {"one_minus_beta2_pow_t": correction, "rho_t": rho, "r_t": r}.items():
        exact = np.array([float(row[name] or "nan") for row in rows])
        wide = np.float64(got.hi) + np.float64(got.lo) if isinstance(got, pairs.Pair) else np.float64(got)
        worst[name] = float(np.nanmax(np.abs(wide / exact - 1)))
    assert len(rows) > 800
    return worst


@pytest.mark.parametrize(
    "flags",
    ["", "--xla_cpu_enable_fast_math=true", "--xla_backend_optimization_level=0", "--xla_disable_hlo_passes=algsimp"],
)
def test_no_compiler_takes_the_pairs_apart(flags: str) -> None:
    worst = in_a_process(__name__, "here.worst_of_the_table()", XLA_FLAGS=flags) if flags else worst_of_the_table()
    assert worst["r_t"] < R / 4
    assert worst["rho_t"] < 1e-11
    assert worst["one_minus_beta2_pow_t"] < 1e-12


def test_no_residue_of_a_vanished_power_swamps_the_sum() -> None:
    beta = np.random.default_rng(1).uniform(0.0, 0.9999, 1000)
    t = jnp.full(beta.shape, LAST, jnp.int32)
    _, s1 = jax.jit(jax.vmap(pairs.power_sums))(pair(beta), pair(1 - beta), t)
    assert np.max(np.abs((np.float64(s1.hi) + np.float64(s1.lo)) * (1 - beta) ** 2 - 1)) < 1e-10


def of_step(dtype: Any = jnp.float32, **given: Any) -> Callable[..., Found]:
    """The coefficients, arrays alone, as a function of t and of b2 if that is an array."""
    numbers = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0, "threshold": 5.0, "nesterov": False, **given}

    def found(t: jax.Array, **operands: jax.Array) -> Found:
        c = pairs.coefficients(t, dtype, **{**numbers, **operands})
        return {name: x for name, x in c.items() if isinstance(x, jax.Array)}

    return jax.jit(jax.vmap(found))


def assert_near_the_core(got: Found, hyperparameters: Any, dtype: str, tolerance: float) -> None:
    """Compare each coefficient at each of STEPS. The rest of a beta counts against the beta itself."""
    for k, t in enumerate(STEPS.tolist()):
        core = _core.coefficients(hyperparameters, t, dtype)
        assert bool(got["rectified"][k]) == (core["mode"] == "rectified"), t
        assert [float(got[name][k]) for name in ("beta1", "beta2")] == [core["beta1"], core["beta2"]]
        assert (float(got["beta2_low"][k]) > 0) == (core["beta2_low"] > 0)  # or an infinite v would become a NaN
        for name, expected in core.items():
            if isinstance(expected, float):
                size = core[name.removesuffix("_low")] if name.endswith("_low") else expected
                assert abs(float(got[name][k]) - expected) <= tolerance * abs(size), (name, t)


@pytest.mark.parametrize("b2", BETAS)
def test_the_coefficients_of_a_python_float_are_the_core_s(b2: float) -> None:
    h = radam.CONVENTIONS["optax"].hyperparameters(lr=1.0, betas=(0.9, b2))
    got = of_step(b2=b2)(STEPS)
    assert_near_the_core(got, h, "float32", R / 4)


@pytest.mark.parametrize("convention", ["torch", "lucid_docs", "author"])
def test_conventions_are_those_of_the_core(convention: str) -> None:
    way = dataclasses.replace(radam.CONVENTIONS[convention], nesterov=True, eps_root=1e-3)
    got = of_step(b2=0.98, eps_root=1e-3, nesterov=True, threshold=way.threshold, convention=convention)(STEPS)
    assert_near_the_core(got, way.hyperparameters(lr=1.0, betas=(0.9, 0.98), eps=1e-8), "float32", R / 4)


@pytest.mark.parametrize("b2", [0.3, 0.999, 0.99999])
def test_an_array_counts_as_its_float32_value(b2: float) -> None:
    near = np.float32(b2)
    got = of_step()(STEPS, b2=np.full(STEPS.shape, near))
    h = radam.CONVENTIONS["optax"].hyperparameters(lr=1.0, betas=(0.9, float(near)))
    assert_near_the_core(got, h, "float32", R / 4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2.0**-23), ("float64", 1e-13)])
def test_float64_is_used_where_it_is(dtype: str, tolerance: float) -> None:
    with jax.enable_x64(True):
        for counts in (STEPS, STEPS.astype(np.int64)):
            got = of_step(jnp.dtype(dtype), b2=0.99999)(counts)
            h = radam.CONVENTIONS["optax"].hyperparameters(lr=1.0, betas=(0.9, 0.99999))
            assert got["step_size"].dtype == dtype
            assert_near_the_core(got, h, dtype, tolerance)
