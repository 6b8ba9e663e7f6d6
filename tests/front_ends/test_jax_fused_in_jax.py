"""radam.jax.fused_step as a part of JAX: what is done to it, what is handed to it, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

import radam.jax
from radam.jax import fused
from test_jax_fused_step import assert_same, problem

STEP = partial(radam.jax.fused_step, learning_rate=0.1)


def steps(count: int, params: Any, grads: Any, state: Any) -> Any:
    for _ in range(count):
        params, state = jax.jit(STEP)(params, grads, state)
    return params, state


CONTROL: dict[str, tuple[int, Callable[[Any, Any, Any], Any]]] = {
    "cond, taken": (1, lambda p, g, s: jax.lax.cond(s[0].count == 6, lambda: STEP(p, g, s), lambda: (p, s))),
    "cond, not taken": (0, lambda p, g, s: jax.lax.cond(s[0].count == 5, lambda: STEP(p, g, s), lambda: (p, s))),
    "while_loop": (
        3,
        lambda p, g, s: jax.lax.while_loop(lambda at: at[1][0].count < 9, lambda at: STEP(at[0], g, at[1]), (p, s)),
    ),
    "checkpoint": (1, lambda p, g, s: jax.checkpoint(STEP)(p, g, s)),
}


@pytest.mark.parametrize("how", CONTROL)
def test_under_control_flow_it_is_the_same(how: str) -> None:
    count, function = CONTROL[how]
    given = problem()
    assert_same(jax.jit(function)(*given), steps(count, *given))


def test_vmap_of_cond_is_every_element_by_itself() -> None:
    params, grads, state = problem()

    def one(take: Any) -> Any:
        return jax.lax.cond(take, lambda: STEP(params, grads, state), lambda: (params, state))

    both = jax.jit(jax.vmap(one))(jnp.array([True, False]))
    assert_same(jax.tree.map(lambda x: x[0], both), steps(1, params, grads, state))
    assert_same(jax.tree.map(lambda x: x[1], both), (params, state))


def test_one_array_may_be_several_leaves() -> None:
    x, zero = jnp.linspace(-1, 1, 300), jnp.zeros(300)
    alone, state = STEP(x, x, optax.ScaleByAdamState(jnp.int32(0), zero, zero))
    two, zeros = {"a": x, "b": x}, {"a": zero, "b": zero}
    found = [jax.jit(STEP)(two, two, optax.ScaleByAdamState(jnp.int32(0), zeros, zeros))]
    for donated in ((), (0,)):  # zeros that are made inside are one constant
        made_inside = jax.jit(lambda p: STEP(p, p, radam.jax.radam(0.1).init(p)[0]), donate_argnums=donated)
        found.append(made_inside({"a": jnp.array(x), "b": jnp.array(x)}))
    for after, new in found:
        for name in two:
            assert_same((after[name], new.mu[name], new.nu[name]), (alone, state.mu, state.nu))


def test_an_array_that_is_donated_twice_is_an_error_of_jax_s() -> None:
    x, zero = jnp.ones(300), jnp.zeros(300)
    state = optax.ScaleByAdamState(jnp.int32(0), zero, zero)
    with pytest.raises(Exception, match="donate"):
        jax.block_until_ready(jax.jit(STEP, donate_argnums=(0, 2))(x, jnp.ones(300), state))


@pytest.mark.parametrize(
    "mode",
    [
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.numpy_rank_promotion("raise"),
        jax.checking_leaks,
        lambda: jax.debug_nans(True),
    ],
    ids=["strict promotion of dtypes", "no promotion of ranks", "checking leaks", "debugging NaNs"],
)
def test_jax_may_be_as_strict_as_it_likes(mode: Callable[[], Any]) -> None:
    params, grads, state = problem("bfloat16", "float32")
    numbers = {"b2": jnp.float32(0.5), "weight_decay": 0.1}
    expected = STEP(params, grads, state, **numbers)
    with mode():
        assert_same(jax.jit(partial(STEP, **numbers))(params, grads, state), expected)


def test_a_result_that_nobody_takes_is_not_computed() -> None:
    def dropped(p: Any, g: Any, s: Any) -> Any:
        jax.jit(STEP)(p, g, s)
        return p["w"].sum()

    assert '"radam_step"' not in jax.jit(dropped).lower(*problem()).compile().as_text()


def test_a_number_is_one_program_whatever_kind_of_float32_it_is() -> None:
    params, grads, state = problem()
    fused._step.clear_cache()
    for lr in (jnp.float32(0.1), jnp.asarray(0.1)):  # the second of a weak type
        STEP(params, grads, state, learning_rate=lr)
    assert fused._step._cache_size() == 1
    for lr in (0.1, np.float32(0.1), np.float64(0.1), np.array(0.1)):
        STEP(params, grads, state, learning_rate=lr)
    assert fused._step._cache_size() == 2


def test_a_derivative_that_is_not_wanted_is_said_with_stop_gradient() -> None:
    params, grads, state = problem()

    def loss(p: Any, stop: bool) -> Any:
        given = jax.lax.stop_gradient((p, grads, state)) if stop else (p, grads, state)
        return p["w"].sum() + jax.lax.stop_gradient(STEP(*given)[0]["w"].sum())

    with pytest.raises(TypeError, match=r"hand it jax\.lax\.stop_gradient of params, grads, state and learning_rate"):
        jax.grad(loss)(params, False)
    assert np.all(jax.grad(loss)(params, True)["w"] == 1)


def test_a_donated_step_that_fails_has_lost_what_was_donated_and_one_that_is_not_has_not() -> None:
    params, grads, state = problem()
    with pytest.raises(ValueError, match="b2 must be"):  # a number is looked at before anything is given away
        jax.jit(partial(STEP, b2=1.0), donate_argnums=(0, 2))(params, grads, state)
    kept = jax.tree.map(np.array, (params, grads, state))
    for donated in ((), (0, 2)):
        step = jax.jit(lambda p, g, s, b2: STEP(p, g, s, b2=b2), donate_argnums=donated)
        with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="b2 must be"):
            jax.block_until_ready(step(params, grads, state, 1.0))
        if not donated:
            assert_same((params, grads, state), kept)
    assert all(x.is_deleted() for x in jax.tree.leaves((params, state)) if x.size)
    assert not any(x.is_deleted() for x in jax.tree.leaves(grads))


def test_16_bit_moments_go_on_once_they_are_converted_as_the_error_says() -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = optax.radam(0.1).init(params)
    with pytest.raises(ValueError, match="moments must be float32") as refused:
        STEP(params, params, state)
    text = str(refused.value)
    remedy = text[text.index("state[0]._replace") : text.index(" converts")]
    converted = (eval(remedy, {"state": state, "optax": optax, "jnp": jnp}), *state[1:])
    _, after = STEP(params, params, converted)
    assert int(after[0].count) == 1
    assert after[0].mu["w"].dtype == after[0].nu["w"].dtype == jnp.float32


def ramp(count: Any) -> Any:
    return 0.1 + count / 8.0


MASK = {"w": True, "b": False, "empty": True, "row": True}


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("decay", [0.25, ramp])
@pytest.mark.parametrize("lr", [0.1, ramp])
def test_every_state_that_radam_makes_is_stepped_and_advanced(lr: Any, decay: Any, mask: Any) -> None:
    params, grads, _ = problem()
    optimizer = radam.jax.radam(lr, weight_decay=decay, mask=mask)
    state = optimizer.init(params)
    at = params
    for t in range(3):
        now = [x(jnp.int32(t)) if callable(x) else x for x in (lr, decay)]
        expected = STEP(at, grads, state[0], learning_rate=now[0], weight_decay=now[1])
        at, after = STEP(at, grads, state, learning_rate=lr, weight_decay=decay)
        assert_same((at, after[0]), expected)
        _, wanted = optimizer.update(grads, state, params)
        assert jax.tree.structure(after) == jax.tree.structure(wanted)
        assert [int(x) for x in jax.tree.leaves(after[1:])] == [int(x) for x in jax.tree.leaves(wanted[1:])]
        state = after


def test_a_schedule_s_own_count_counts() -> None:
    params, grads, _ = problem()
    state = radam.jax.radam(ramp, weight_decay=ramp, mask=MASK).init(params)
    assert [int(x) for x in jax.tree.leaves(state[1:])] == [0, 0]
    of_decay = jax.tree.map(lambda x: x + 3, state[1])
    seen: list[int] = []

    def decay(count: Any) -> Any:
        seen.append(int(count))
        return 0.1

    STEP(params, grads, (state[0], of_decay, state[2]), weight_decay=decay)
    STEP(params, grads, state[0], weight_decay=decay)
    assert seen == [3, 0]


class Named(NamedTuple):
    adam: Any
    rest: Any


def test_a_state_with_names_keeps_them() -> None:
    params, grads, state = problem()
    named = Named(*state)
    after, new = jax.lax.scan(lambda at, _: (STEP(at[0], grads, at[1]), None), (params, named), length=2)[0]
    assert isinstance(new, Named)
    assert_same((after, tuple(new)), steps(2, params, grads, state))


def test_a_gradient_of_a_whole_number_is_none() -> None:
    params = {"w": jnp.ones(3), "count": jnp.arange(3)}
    zeros = {"w": jnp.zeros(3), "count": jnp.zeros(3)}
    grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)(params)
    after, state = STEP(params, grads, optax.ScaleByAdamState(jnp.int32(0), zeros, zeros))
    assert_same((after["count"], state.mu["count"]), (params["count"], zeros["count"]))
    assert np.all(after["w"] != params["w"])


def test_a_switch_that_is_none_is_refused_by_both() -> None:
    params = {"w": jnp.ones(2)}
    with pytest.raises(TypeError, match="nesterov must be True or False, got 'no'"):
        radam.jax.radam(0.1, nesterov="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="nesterov must be True or False, got 'no'"):
        radam.jax.fused_step(params, params, radam.jax.radam(0.1).init(params), 0.1, nesterov="no")  # type: ignore[arg-type]
