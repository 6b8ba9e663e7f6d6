"""radam.jax.radam as a part of Optax: what it is put into, its state and its numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

import radam
import radam.jax
import reference as ref
from radam import _core, _law

Tree = Any
Make = Callable[..., optax.GradientTransformation]

# Where the float32 schedule of optax.radam is sound.
SOUND = {"b2": 0.95, "eps": 1e-6}


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def params_and_grads() -> tuple[Tree, Tree]:
    rng = np.random.default_rng(5)
    params = {
        "layer": Layer(jnp.array(rng.normal(size=(3, 4)), jnp.float32), jnp.array(rng.normal(size=4), jnp.float32)),
        "scale": jnp.float32(1.5),
        "none": None,
        "empty": {},
    }
    return params, jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape), x.dtype), params)


def train(optimizer: Any, params: Tree, grads: Tree, steps: int = 12, **extra: Any) -> tuple[Tree, Tree]:
    """Take steps with gradients that change, and return the parameters and the state."""
    state = optimizer.init(params)

    @jax.jit
    def step(params: Tree, state: Tree, k: Any) -> Any:
        now = jax.tree.map(lambda g: g * (1 + k % 3), grads)
        updates, state = optimizer.update(now, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for k in range(steps):
        params, state = step(params, state, k)
    return params, state


def assert_near(got: Tree, expected: Tree, tolerance: float = 2e-6) -> None:
    """The same structure, dtypes and, within the tolerance of max(1, |x|), numbers."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(map(np.asarray, jax.tree.leaves(got)), map(np.asarray, jax.tree.leaves(expected))):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.all(np.abs(1 * a - 1 * b) <= tolerance * np.maximum(1, np.abs(b)))


def described(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


# ---- in Optax

ours, theirs = radam.jax.radam, optax.radam

WRAPPED: dict[str, Callable[[Make], optax.GradientTransformation]] = {
    "alone": lambda make: make(0.1, **SOUND),
    "nesterov": lambda make: make(0.1, **SOUND, nesterov=True),
    "eps_root": lambda make: make(0.1, **SOUND, eps_root=1e-3),
    "a threshold of 4": lambda make: make(0.1, **SOUND, threshold=4.0),
    "a high threshold": lambda make: make(0.1, **SOUND, threshold=7.5),
    "chain": lambda make: optax.chain(optax.clip_by_global_norm(0.5), make(0.1, **SOUND), optax.ema(0.9)),
    "schedule": lambda make: make(optax.linear_schedule(0.1, 0.01, 10), **SOUND),
    "inject_hyperparams": lambda make: optax.inject_hyperparams(make)(
        optax.constant_schedule(0.1), **{**SOUND, "b1": optax.linear_schedule(0.5, 0.9, 10)}
    ),
    "MultiSteps": lambda make: optax.MultiSteps(make(0.1, **SOUND), 2).gradient_transformation(),
    "apply_if_finite": lambda make: optax.apply_if_finite(make(0.1, **SOUND), 2),
    "flatten": lambda make: optax.flatten(make(0.1, **SOUND)),
    "masked": lambda make: optax.masked(make(0.1, **SOUND), {"layer": True, "scale": False, "none": None, "empty": {}}),
    "multi_transform": lambda make: optax.multi_transform(
        {"a": make(0.1, **SOUND), "b": optax.sgd(0.1), "c": make(0.2, 0.5, **SOUND)},
        {"layer": Layer("a", "b"), "scale": "c", "none": None, "empty": {}},
    ),
    "lookahead": lambda make: optax.with_extra_args_support(optax.chain(make(0.1, **SOUND), optax.scale(0.5))),
    "conditionally_transform": lambda make: optax.conditionally_transform(
        make(0.1, **SOUND), lambda step: step % 2 == 0
    ),
    "skip_not_finite": lambda make: optax.MultiSteps(
        make(0.1, **SOUND), 1, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation(),
    "no learning rate": lambda make: make(None, **SOUND),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_inside_optax_it_is_optax_s(wrapped: str) -> None:
    params, grads = params_and_grads()
    (a, state_a), (b, state_b) = (train(WRAPPED[wrapped](make), params, grads) for make in (ours, theirs))
    assert_near(a, b)
    assert_near(state_a, state_b)
    assert any(np.any(x != y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(params)))


def test_scale_by_radam_is_the_link_without_the_learning_rate() -> None:
    params, grads = params_and_grads()
    a, b = (train(optax.chain(make(**SOUND), optax.scale(-0.1)), params, grads)[0] for make in SCALES)
    assert_near(a, b)


SCALES = (radam.jax.scale_by_radam, optax.scale_by_radam)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("b2", [0.95, 0.999, 0.9999, 1 - 1e-6])
def test_60_steps_are_those_of_exact_arithmetic(b2: float, nesterov: bool) -> None:
    rng = np.random.default_rng(6)
    settings = {"eps": 1e-6, "eps_root": 1e-4, "threshold": 4.5, "nesterov": nesterov}
    optimizer = radam.jax.radam(0.05, 0.9, b2, **settings)
    param = rng.normal(size=50).astype(np.float32)
    exact, params, state = ref.Trajectory.start(param.astype(np.float64)), param, optimizer.init(param)
    update = jax.jit(optimizer.update)
    for t in range(1, 61):
        grad = rng.normal(size=50).astype(np.float32)
        ref.optax_radam(exact, grad.astype(np.float64), t, lr=0.05, betas=(0.9, b2), **settings)
        updates, state = update(grad, state)
        params = optax.apply_updates(params, updates)
    assert np.max(np.abs(params - exact.p) / np.maximum(1, np.abs(exact.p))) < 3e-6
    assert np.allclose(state[0].mu, exact.m, rtol=0, atol=1e-6)
    assert np.allclose(state[0].nu, exact.v, rtol=1e-5)


STATES: dict[str, Tree] = {
    "a dict": {"w": jnp.ones((2, 3)), "b": jnp.zeros(2)},
    "one array": jnp.ones(3),
    "a scalar": jnp.float32(2.0),
    "nothing": {},
    "None": None,
    "no elements": jnp.ones((0, 3)),
    "MaskedNode": {"w": jnp.ones(2), "frozen": optax.MaskedNode()},
    "complex numbers": jnp.ones(2, jnp.complex64),
    "whole numbers": {"w": jnp.ones(2), "count": jnp.int32(3)},
}


@pytest.mark.parametrize("what", STATES)
@pytest.mark.parametrize(
    "lr", [0.1, optax.constant_schedule(0.1), jnp.float32(0.1)], ids=["number", "schedule", "array"]
)
def test_the_state_has_the_structure_of_optax_s(what: str, lr: Any) -> None:
    a, b = ours(lr).init(STATES[what]), theirs(lr).init(STATES[what])
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert described(a) == described(b)


def test_injected_hyperparameters_have_the_structure_of_optax_s() -> None:
    params, _ = params_and_grads()
    a, b = (optax.inject_hyperparams(make)(0.1, b2=0.99).init(params) for make in (ours, theirs))
    assert_near(a, b, 0)


def test_the_tree_utilities_of_optax_find_their_way() -> None:
    params, grads = params_and_grads()
    optimizer = ours(optax.linear_schedule(0.1, 0.0, 10))
    _, state = train(optimizer, params, grads, 3)
    assert optax.tree.get(state, "mu") is state[0].mu
    zeroed = optax.tree.map_params(optimizer, jnp.zeros_like, state)
    assert not any(np.any(x) for x in jax.tree.leaves(zeroed[0].nu))
    assert int(zeroed[0].count) == int(optax.tree.get(state, "count", filtering=is_adam_s)) == 3


def is_adam_s(path: Any, value: Any) -> bool:
    return any(getattr(key, "tuple_name", None) == "ScaleByAdamState" for key in path)


@pytest.mark.parametrize("lr", [0.1, optax.linear_schedule(0.1, 0.01, 10)], ids=["number", "schedule"])
@pytest.mark.parametrize("mask", [None, {"layer": Layer(True, False), "scale": False, "none": None, "empty": {}}])
def test_weight_decay_is_adamw_s(lr: Any, mask: Any) -> None:
    params, grads = params_and_grads()
    links = [optax.scale_by_radam(**SOUND), optax.add_decayed_weights(0.3, mask), optax.scale_by_learning_rate(lr)]
    (a, state_a), (b, state_b) = (
        train(optimizer, params, grads)
        for optimizer in (ours(lr, **SOUND, weight_decay=0.3, mask=mask), optax.chain(*links))
    )
    assert_near(a, b)
    assert jax.tree.structure(state_a) == jax.tree.structure(state_b)


def test_weight_decay_may_be_a_schedule_and_injected() -> None:
    params, grads = params_and_grads()
    by_schedule = ours(0.1, **SOUND, weight_decay=optax.linear_schedule(0.0, 1.0, 10))
    injected = optax.inject_hyperparams(ours)(0.1, **SOUND, weight_decay=optax.linear_schedule(0.0, 1.0, 10))
    a, b = (train(optimizer, params, grads)[0] for optimizer in (by_schedule, injected))
    assert_near(a, b)
    assert np.max(np.abs(a["scale"] - train(ours(0.1, **SOUND), params, grads)[0]["scale"])) > 0.01


def test_without_decay_no_params_are_needed() -> None:
    for decay in (None, 0, 0.0):
        optimizer = ours(0.1, weight_decay=decay)
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


# ---- numbers


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_parameters_have_float32_moments(dtype: str) -> None:
    params = jnp.ones(64, dtype)
    optimizer = ours(0.01)
    params, state = train(optimizer, params, jnp.full(64, 0.01, dtype))
    assert described(state[0]) == described(optimizer.init(params)[0])
    assert state[0].mu.dtype == state[0].nu.dtype == jnp.float32
    assert params.dtype == dtype
    # 0.001 * 0.01^2 is far below half an ulp of a 16-bit moment.
    exact = sum(0.001 * 0.999 ** (11 - k) * (float(jnp.asarray(0.01, dtype)) * (1 + k % 3)) ** 2 for k in range(12))
    assert np.allclose(state[0].nu, exact, rtol=0.02)


def test_updates_have_the_dtype_of_the_gradients_and_moments_keep_theirs() -> None:
    optimizer = ours(None)
    state = optimizer.init(jnp.ones(3, jnp.bfloat16))
    assert optimizer.update(jnp.ones(3, jnp.bfloat16), state)[0].dtype == jnp.bfloat16
    assert optimizer.update(jnp.ones(3, jnp.float32), state)[0].dtype == jnp.float32
    of_optax = theirs(None).init(jnp.ones(3, jnp.bfloat16))
    after = jax.lax.scan(lambda s, g: (optimizer.update(g, s)[1], None), of_optax, jnp.ones((4, 3), jnp.bfloat16))[0]
    assert after[0].nu.dtype == jnp.bfloat16
    assert int(after[0].count) == 4


def test_complex_numbers_step_as_optax_s() -> None:
    rng = np.random.default_rng(7)
    params, grads = (jnp.array(rng.normal(size=5) + 1j * rng.normal(size=5), jnp.complex64) for _ in range(2))
    for settings in ({}, {"nesterov": True}, {"eps_root": 0.01}):
        (a, state_a), (b, state_b) = (train(make(0.1, **SOUND, **settings), params, grads) for make in (ours, theirs))
        assert_near(a, b)
        assert_near(state_a, state_b)


@pytest.mark.parametrize("b2", [0.99, 1 - 1e-9])
def test_float64_steps_in_float64(b2: float) -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(8)
        optimizer = ours(0.05, 0.9, b2)
        params = jnp.array(rng.normal(size=20))
        exact, state = ref.Trajectory.start(np.array(params)), optimizer.init(params)
        for t in range(1, 21):
            grad = rng.normal(size=20)
            ref.optax_radam(exact, grad, t, lr=0.05, betas=(0.9, b2), eps=1e-8)
            updates, state = optimizer.update(jnp.array(grad), state)
            params = optax.apply_updates(params, updates)
        assert params.dtype == state[0].mu.dtype == jnp.float64
        assert np.max(np.abs(params - exact.p)) < 1e-12


def test_a_count_stays_at_the_largest_int32() -> None:
    optimizer = ours(0.1, b2=0.9999)
    state = optimizer.init(jnp.ones(2))
    state = (state[0]._replace(count=jnp.int32(2**31 - 2), nu=jnp.ones(2)), *state[1:])
    for _ in range(3):
        updates, state = jax.jit(optimizer.update)(jnp.ones(2), state)
        assert int(state[0].count) == 2**31 - 1
    expected = _core.coefficients(radam.CONVENTIONS["optax"].hyperparameters(lr=0.1, betas=(0.9, 0.9999)), 2**31 - 1)
    assert np.allclose(updates, -expected["step_size"] * state[0].mu / np.sqrt(state[0].nu), rtol=1e-6)


def test_a_leaf_without_a_gradient_waits() -> None:
    optimizer = ours(0.1)
    state = optimizer.init({"a": jnp.ones(2), "b": jnp.ones(2)})
    _, state = optimizer.update({"a": jnp.ones(2), "b": jnp.ones(2)}, state)
    updates, after = optimizer.update({"a": None, "b": jnp.ones(2)}, state)
    assert updates["a"] is None
    assert after[0].mu["a"] is state[0].mu["a"]
    assert after[0].nu["a"] is state[0].nu["a"]
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_no_nan_arises_on_the_way() -> None:
    with jax.debug_nans(True):
        optimizer = ours(0.1, eps=0.0, eps_root=1e-8)
        params, _ = train(optimizer, jnp.ones(3), jnp.zeros(3), 8)
    assert np.array_equal(params, np.ones(3))


def test_a_b2_that_never_rectifies_is_said_once_at_construction() -> None:
    with pytest.warns(UserWarning, match="no step is ever rectified") as seen:
        optimizer = ours(0.1, b2=0.5)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    train(optimizer, jnp.ones(3), jnp.ones(3))


# ---- the law


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("mode", ["rectified", "momentum", "moments_only"])
def test_a_step_known_when_it_runs_has_the_bits_of_one_known_before(mode: str, amsgrad: bool) -> None:
    way = radam.CONVENTIONS["author" if mode == "moments_only" else "tfa"]
    t = 50 if mode == "rectified" else 2
    known = _core.coefficients(way.hyperparameters(lr=0.1, weight_decay=0.1, amsgrad=amsgrad, betas=(0.9, 0.99)), t)
    assert known["mode"] == mode
    arrays = np.random.default_rng(9).uniform(0.1, 2.0, (5, 100)).astype(np.float32)
    v_max = arrays[4] if amsgrad else None
    expected = _law.update(np, known, *arrays[:4], v_max)
    for warmup in {mode} - {"rectified"} or ("momentum", "moments_only"):
        later = {name: x for name, x in known.items() if name != "mode"}
        later.update(rectified=np.bool_(mode == "rectified"), warmup=warmup)
        for a, b in zip(_law.update(np, later, *arrays[:4], v_max), expected):
            assert np.array_equal(a, b) if b is not None else a is None
