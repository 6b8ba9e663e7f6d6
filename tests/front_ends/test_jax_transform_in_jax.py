"""radam.jax.radam as a part of JAX: what is done to it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

from test_jax_transform import SOUND, Make, Tree, assert_near, ours, theirs, train


def stepped(optimizer: Any, params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def test_a_changed_hyperparameter_compiles_nothing() -> None:
    optimizer = optax.inject_hyperparams(ours)(0.1, b1=0.9, b2=0.99, eps=1e-8, eps_root=0.0, threshold=5.0)
    compiled = 0

    @jax.jit
    def step(params: Tree, state: Tree) -> Any:
        nonlocal compiled
        compiled += 1
        return stepped(optimizer, params, state, params)

    params = jnp.ones(3)
    state = optimizer.init(params)
    for k in range(5):
        for name in state.hyperparams:
            state.hyperparams[name] = state.hyperparams[name] * jnp.float32(0.99)
        params, state = step(params, state)
        assert int(state.count) == k + 1
    assert compiled == 1


def test_an_array_counts_as_its_float32_value() -> None:
    b2 = 0.99999
    for given, meant in ((jnp.float32(b2), float(np.float32(b2))), (np.float32(b2), float(np.float32(b2))), (b2, b2)):
        _, state = train(ours(0.1, b2=given), jnp.ones(3), jnp.ones(3), 1)
        assert np.allclose(state[0].nu, 1 - meant, rtol=2e-7)
    assert abs((1 - float(np.float32(b2))) / (1 - b2) - 1) > 1e-3


@pytest.mark.parametrize(
    "mode",
    [
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.numpy_rank_promotion("raise"),
        jax.checking_leaks,
        lambda: jax.debug_nans(True),
        jax.disable_jit,
    ],
    ids=["strict promotion of dtypes", "no promotion of ranks", "checking leaks", "debugging NaNs", "no jit"],
)
def test_jax_may_be_as_strict_as_it_likes(mode: Callable[[], Any]) -> None:
    params = {"w": jnp.ones(3), "low": jnp.ones(2, jnp.bfloat16)}
    optimizer = ours(0.1, **SOUND, nesterov=True, weight_decay=0.1)
    expected = train(optimizer, params, params)
    with mode():
        assert_near(train(optimizer, params, params), expected)


def test_vmap_over_hyperparameters_is_one_run_for_each() -> None:
    params, grads = jnp.array([1.0, -2.0]), jnp.array([0.5, -0.25])

    def run(lr: Any, b1: Any, b2: Any) -> Any:
        optimizer = ours(lr, b1, b2)
        state = optimizer.init(params)
        return jax.lax.fori_loop(0, 30, lambda _, x: stepped(optimizer, *x, grads), (params, state))[0]

    lrs, b1s, b2s = jnp.array([0.1, 0.01, 0.2]), jnp.array([0.9, 0.5, 0.0]), jnp.array([0.9, 0.999, 0.99])
    together = jax.jit(jax.vmap(run))(lrs, b1s, b2s)
    assert_near(together, jnp.stack([run(*each) for each in zip(lrs, b1s, b2s)]), 1e-6)
    assert_near(jax.vmap(lambda lr: run(lr, 0.9, 0.99))(lrs)[1], run(lrs[1], 0.9, 0.99), 1e-6)


def test_an_ensemble_has_a_count_for_each_member() -> None:
    optimizer = ours(0.1, b2=0.99)
    params = jnp.arange(1.0, 13.0).reshape(4, 3)
    state = jax.vmap(optimizer.init)(params)
    state = (state[0]._replace(count=jnp.array([0, 5, 50, 2000], jnp.int32)), *state[1:])
    updates, after = jax.jit(jax.vmap(optimizer.update))(params, state)
    assert after[0].count.tolist() == [1, 6, 51, 2001]
    for k in range(4):
        one = jax.tree.map(lambda x, k=k: x[k], state)
        assert_near(updates[k], optimizer.update(params[k], one)[0], 1e-6)


def test_hyperparameters_that_bfloat16_cannot_hold_are_an_error() -> None:
    params = jnp.ones(3, jnp.bfloat16)  # inject_hyperparams takes its dtype, and b2 = 0.999 is 1 in it
    optimizer = optax.inject_hyperparams(ours)(0.1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="b2 must be at least 0 and below 1, got 1"):
        jax.block_until_ready(optimizer.update(params, optimizer.init(params), params))
    optimizer = optax.inject_hyperparams(ours, hyperparam_dtype=jnp.float32)(0.1)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert np.allclose(updates, -0.1)


def test_scan_gives_the_bits_of_a_loop() -> None:
    optimizer = ours(0.1, b2=0.99)
    params, grads = jnp.array([1.0, -2.0, 3.0]), jnp.linspace(-1, 1, 60).reshape(20, 3)
    scanned = jax.jit(lambda x, gs: jax.lax.scan(lambda x, g: (stepped(optimizer, *x, g), None), x, gs)[0])
    after = (params, optimizer.init(params))
    step = jax.jit(functools.partial(stepped, optimizer))
    for grad in grads:
        after = step(*after, grad)
    for a, b in zip(jax.tree.leaves(scanned((params, optimizer.init(params)), grads)), jax.tree.leaves(after)):
        assert np.array_equal(a, b)


def test_a_donated_state_is_used_up_and_another_is_not() -> None:
    optimizer = ours(0.1)
    params = jnp.ones(1000)
    state = optimizer.init(params)
    kept = jax.tree.map(np.array, (params, state))
    step = functools.partial(stepped, optimizer)
    plain = jax.jit(step)(params, state, params)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves((params, state)), jax.tree.leaves(kept)))
    grads = jnp.ones(1000)
    donated = jax.jit(step, donate_argnums=(0, 1))(params, state, grads)
    assert params.is_deleted()
    assert state[0].mu.is_deleted()
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(donated)))


def loss_after(lr: Any, first: Any, wrap: Any = lambda f: f, make: Make = ours) -> Any:
    """What nine steps come to, of which four are rectified: a function of the learning rate and of gradients."""
    optimizer = make(lr, **SOUND)
    params, state = jnp.ones(3), optimizer.init(first)
    step = wrap(functools.partial(stepped, optimizer))
    for k in range(9):
        params, state = step(params, state, first * (k + 1))
    return jnp.sum(params**2 + params)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit], ids=["plain", "checkpoint", "jit"])
def test_derivatives_are_those_of_differences(wrap: Any) -> None:
    with jax.enable_x64(True):
        lr, first, h = 0.1, jnp.array([0.25, 0.75, -1.0]), 1e-6
        by_lr, by_first = jax.grad(loss_after, (0, 1))(lr, first, wrap)
        assert np.isclose(by_lr, (loss_after(lr + h, first) - loss_after(lr - h, first)) / (2 * h), rtol=1e-6)
        for i in range(3):
            up, down = (loss_after(lr, first.at[i].add(sign * h)) for sign in (1, -1))
            assert np.isclose(by_first[i], (up - down) / (2 * h), rtol=1e-6)


def test_derivatives_are_finite_where_optax_has_none() -> None:
    at_zero = jax.grad(loss_after, (0, 1))(0.1, jnp.array([0.0, 0.5, -1.0]))
    assert all(np.all(np.isfinite(x)) for x in at_zero)
    # The root of a negative number in the branch that a step before the rectification does not take.
    assert np.all(np.isnan(jax.grad(loss_after, 1)(0.1, jnp.ones(3), make=theirs)))


@pytest.mark.parametrize(
    ("name", "value"), [("b1", 0.9), ("b2", 0.99), ("eps", 1e-3), ("eps_root", 1e-3), ("threshold", 5.0)]
)
def test_a_derivative_that_is_not_there_is_an_error(name: str, value: float) -> None:
    def loss(lr: Any, x: Any) -> Any:
        optimizer = ours(lr, **{name: x})
        return jnp.sum(optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))[0])

    with pytest.raises(NotImplementedError, match=f"no derivative with respect to {name}.*stop_gradient"):
        jax.grad(loss, 1)(0.1, value)
    assert float(jax.grad(loss)(0.1, value)) != 0
    stopped = jax.grad(lambda lr, x: loss(lr, jax.lax.stop_gradient(x)), (0, 1))(0.1, value)
    assert float(stopped[0]) != 0
    assert float(stopped[1]) == 0
