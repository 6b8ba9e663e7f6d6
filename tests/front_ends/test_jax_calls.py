"""The coefficients of a step that XLA asks the core for: the core's own, under everything that JAX does to them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp

from radam import _step
from radam.conventions import CONVENTIONS
from radam.jax import calls

NUMBERS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 1e-12, "threshold": 5.0}
STEPS = (1, 4, 5, 6, 7, 1000, 2**31 - 1)


def expected(t: int, dtype: str, convention: str = "optax", nesterov: bool = False, **numbers: float) -> dict[str, Any]:
    given = {**NUMBERS, **numbers}
    way = CONVENTIONS[convention]
    h = dataclasses.replace(
        way, eps_root=given["eps_root"], threshold=given["threshold"], nesterov=nesterov
    ).hyperparameters(lr=1.0, betas=(given["b1"], given["b2"]), eps=given["eps"])
    found = dict(_step.coefficients(h, t, dtype))
    found["rectified"] = found.pop("mode") == "rectified"
    return found


def assert_are(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert got.keys() == wanted.keys()
    assert {name: float(x) for name, x in got.items()} == {name: float(x) for name, x in wanted.items()}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_they_are_the_core_s(convention: str, nesterov: bool, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        ask = jax.jit(
            lambda t: calls.coefficients(t, jnp.dtype(dtype), **NUMBERS, nesterov=nesterov, convention=convention)
        )
        for t in STEPS:
            got = ask(jnp.int32(t))
            assert all(x.dtype == dtype for x in got.values() if x.dtype != bool)
            assert_are(got, expected(t, dtype, convention, nesterov))
        assert ask._cache_size() == 1


@pytest.mark.parametrize("b2", [0.9999, 0.99999, 1 - 1e-9])
def test_a_number_of_python_s_counts_as_float64_and_an_array_as_what_it_holds(b2: float) -> None:
    ask = partial(calls.coefficients, jnp.int32(10_000), jnp.float32, nesterov=False)
    assert_are(ask(**{**NUMBERS, "b2": b2}), expected(10_000, "float32", b2=b2))
    if np.float32(b2) < 1:
        traced = jax.jit(lambda b2: ask(**{**NUMBERS, "b2": b2}))
        assert_are(traced(b2), expected(10_000, "float32", b2=float(np.float32(b2))))


def test_every_number_may_be_an_array() -> None:
    ask = jax.jit(lambda numbers: calls.coefficients(jnp.int32(100), jnp.float32, **numbers, nesterov=True))
    rounded = {name: float(np.float32(x)) for name, x in NUMBERS.items()}
    assert_are(ask(NUMBERS), expected(100, "float32", nesterov=True, **rounded))
    assert calls.number(jnp.bfloat16(0.5), "b1").dtype == jnp.float32
    assert calls.number(np.float64(0.1), "b1") == 0.1


def test_they_are_computed_in_the_default_floating_point_mode() -> None:
    with jax.enable_x64(True):  # XLA's own threads flush numbers as small as this one
        got = jax.jit(lambda t: calls.coefficients(t, jnp.float64, **{**NUMBERS, "eps": 1e-310}, nesterov=False))(7)
        assert_are(got, expected(7, "float64", eps=1e-310))
        assert 0 < float(got["eps"]) < 1e-309


def test_vmap_is_every_element_by_itself() -> None:
    def ask(t: Any, b2: Any) -> Any:
        return calls.coefficients(t, jnp.float32, **{**NUMBERS, "b2": b2}, nesterov=False)

    ts, b2s = jnp.array([3, 6, 50]), jnp.array([0.5, 0.9, 0.99, 0.999])
    table = jax.jit(jax.vmap(jax.vmap(ask, (None, 0)), (0, None)))(ts, b2s)
    for i, t in enumerate(ts):
        for k, b2 in enumerate(b2s):
            one = {name: x if isinstance(x, bool) else np.broadcast_to(x, (3, 4))[i, k] for name, x in table.items()}
            assert_are(one, expected(int(t), "float32", b2=float(b2)))


def test_a_scan_asks_in_every_step() -> None:
    ask = partial(calls.coefficients, dtype=jnp.float32, **NUMBERS, nesterov=False)
    _, sizes = jax.lax.scan(lambda t, _: (t + 1, ask(t)["step_size"]), jnp.int32(1), length=8)
    assert [float(x) for x in sizes] == [expected(t, "float32")["step_size"] for t in range(1, 9)]


@pytest.mark.parametrize(
    ("t", "numbers", "text"),
    [
        (0, {}, "step number must be at least 1, got 0"),
        (-5, {}, "got -5"),
        (1, {"b1": 1.0}, "b1 must be at least 0 and below 1, got 1"),
        (1, {"b2": np.nan}, "b2 must be"),
        (1, {"eps": -1.0}, "eps must be"),
        (1, {"threshold": np.inf}, "threshold must be"),
    ],
)
def test_what_is_out_of_range_is_an_error_when_it_runs(t: int, numbers: dict[str, float], text: str) -> None:
    ask = jax.jit(lambda t, given: calls.coefficients(t, jnp.float32, **{**NUMBERS, **given}, nesterov=False))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=f"radam: .*{text}"):
        jax.block_until_ready(ask(t, {name: jnp.float32(x) for name, x in numbers.items()}))


@pytest.mark.parametrize("bad", ["0.9", None, True, 1j, jnp.ones(2), jnp.complex64(1), np.ones(1)])
def test_what_is_no_number_is_a_type_error(bad: Any) -> None:
    with pytest.raises(TypeError, match="b1 must be"):
        calls.coefficients(jnp.int32(1), jnp.float32, **{**NUMBERS, "b1": bad}, nesterov=False)


@pytest.mark.parametrize(("value", "here"), [("0", False), ("1", True), ("", True)])
def test_an_environment_variable_turns_it_off(value: str, here: bool) -> None:
    code = "from radam.jax import calls; print(calls.is_here(), calls.why_not())"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "RADAM_JAX_FFI": value},
        capture_output=True,
        text=True,
        check=True,
    )
    reason = "" if here else "the environment variable RADAM_JAX_FFI is 0"
    assert ended.stdout.strip() == f"{here} {reason}".strip()
