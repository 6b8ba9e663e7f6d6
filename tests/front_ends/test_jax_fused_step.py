"""radam.jax.fused_step: the core's bits, in place where donated, under everything that JAX does to a function."""

from __future__ import annotations

import re
import threading
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

import radam
import radam.jax
from radam import _step
from radam.conventions import CONVENTIONS
from radam.jax import fused

LOW = ("float32", "bfloat16", "float16")
PAIRS = [(p, g) for p in LOW for g in LOW] + [("float64", "float64")]
SHAPES = {"w": (5, 7), "b": (), "empty": (0, 4), "row": (130,)}
Tree = Any


def problem(param: str = "float32", grad: str = "float32", seed: int = 0, count: int = 6) -> tuple[Tree, Tree, Tree]:
    """Parameters, gradients, and the state after 6 steps, so that the next one is rectified, or other ones."""
    rng = np.random.default_rng(seed)
    params = {name: jnp.asarray(rng.normal(size=shape), param) for name, shape in SHAPES.items()}
    grads = {name: jnp.asarray(rng.normal(size=shape), grad) for name, shape in SHAPES.items()}
    state = radam.jax.radam(0.1).init(params)
    moments = [jax.tree.map(lambda m: jnp.asarray(rng.random(m.shape), m.dtype), state[0].mu) for _ in range(2)]
    return params, grads, (optax.ScaleByAdamState(jnp.int32(count), *moments), *state[1:])


def by_the_core(params: Tree, grads: Tree, state: Tree, convention: str = "optax", **settings: Any) -> dict[str, Any]:
    """What the core makes of copies, leaf by leaf: a parameter, mu and nu."""
    way = CONVENTIONS[convention]
    decoupled = not way.decay or way.is_decoupled(None, 0.0)
    h = way.hyperparameters(**{"lr": 0.1, "decoupled_weight_decay": decoupled, **settings})
    after = {}
    for name in params:
        p, g, m, v = (np.array(x[name]) for x in (params, grads, state[0].mu, state[0].nu))
        _step.step(((h, None, (p,), (g,), (m,), (v,), None, np.array([int(state[0].count)]), None),), "propagate")
        after[name] = (p, m, v)
    return after


def assert_same(got: Tree, expected: Tree) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_is_the_core_s(params: Tree, state: Tree, expected: dict[str, Any]) -> None:
    assert_same({name: (p, state[0].mu[name], state[0].nu[name]) for name, p in params.items()}, expected)


def near(a: Any, b: Any) -> bool:
    return all(np.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.parametrize(("param", "grad"), PAIRS)
@pytest.mark.parametrize("how", ["jitted", "eagerly"])
def test_every_pair_of_dtypes_gets_the_bits_of_the_core(param: str, grad: str, how: str) -> None:
    with jax.enable_x64(param == "float64"):
        params, grads, state = problem(param, grad)
        step = partial(radam.jax.fused_step, learning_rate=0.1)
        after, new_state = (jax.jit(step) if how == "jitted" else step)(params, grads, state)
        assert_is_the_core_s(after, new_state, by_the_core(params, grads, state))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("decay", "count"), [(0.0, 0), (0.25, 1), (0.0, 6), (0.25, 9)])
def test_every_convention_gets_the_bits_of_the_core(convention: str, decay: float, count: int) -> None:
    params, grads, state = problem(count=count)
    after, new_state = radam.jax.fused_step(params, grads, state, 0.1, convention=convention, weight_decay=decay)
    assert_is_the_core_s(after, new_state, by_the_core(params, grads, state, convention, weight_decay=decay))
    assert int(new_state[0].count) == count + 1


def test_numbers_in_arrays_count_as_what_they_hold_and_python_s_as_float64() -> None:
    params, grads, state = problem()
    given = {"lr": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1}

    @jax.jit
    def step(numbers: Any) -> Any:
        rest = {name: x for name, x in numbers.items() if name != "lr"}
        return radam.jax.fused_step(params, grads, state, numbers["lr"], **rest)

    rounded = {name: float(np.float32(x)) for name, x in given.items()}
    betas = (rounded.pop("b1"), rounded.pop("b2"))
    assert_is_the_core_s(*step(given), by_the_core(params, grads, state, betas=betas, **rounded))
    exact = by_the_core(params, grads, state, betas=(0.9, 0.999), lr=0.1, eps=1e-8, weight_decay=0.1)
    keywords = {name: x for name, x in given.items() if name != "lr"}
    assert_is_the_core_s(*radam.jax.fused_step(params, grads, state, 0.1, **keywords), exact)
    assert not near(by_the_core(params, grads, state, betas=(0.9, 0.99)), exact)


def test_nothing_is_compiled_again_when_numbers_change() -> None:
    params, grads, state = problem()
    step = jax.jit(lambda p, g, s, lr, b2: radam.jax.fused_step(p, g, s, lr, b2=b2))
    for k in range(3):
        _, state = step(params, grads, state, 0.1 / (k + 1), 0.9 + k / 100)
    assert step._cache_size() == 1
    fused._step.clear_cache()
    for k in range(3):  # outside of jit, by numbers of Python
        _, state = radam.jax.fused_step(params, grads, state, 0.1 / (k + 1))
    assert fused._step._cache_size() == 1
    assert int(state[0].count) == 12


def pointers(tree: Tree) -> list[int]:
    return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) if x.size]


def test_what_is_donated_is_updated_where_it_lies() -> None:
    params, grads, state = problem()
    step = jax.jit(partial(radam.jax.fused_step, learning_rate=0.1), donate_argnums=(0, 2))
    expected, before = by_the_core(params, grads, state), pointers((params, state))
    compiled = step.lower(params, grads, state).compile()
    text = compiled.as_text()
    after, new_state = step(params, grads, state)
    assert pointers((after, new_state)) == before
    assert all(x.is_deleted() for x in jax.tree.leaves((params, state)) if x.size)
    assert_is_the_core_s(after, new_state, expected)
    assert len(re.findall(r'custom_call_target="radam_step"', text)) == 1
    assert not [line for line in text.splitlines() if " copy(" in line and "[0,4]" not in line]  # those are empty
    assert "custom_call_has_side_effect=true" in text  # else 1000 leaves compile for a minute
    assert compiled.cost_analysis()["flops"] >= 1000  # else the caller waits for the step


@pytest.mark.parametrize("how", ["jitted", "eagerly"])
def test_what_is_not_donated_stays(how: str) -> None:
    params, grads, state = problem()
    before = jax.tree.map(np.array, (params, grads, state))
    step = partial(radam.jax.fused_step, learning_rate=0.1)
    jax.block_until_ready((jax.jit(step) if how == "jitted" else step)(params, grads, state))
    assert_same((params, grads, state), before)


def test_gradients_may_be_the_parameters_themselves() -> None:
    params, _, state = problem()
    expected = by_the_core(params, params, state)
    step = jax.jit(lambda p, s: radam.jax.fused_step(p, p, s, 0.1), donate_argnums=(0, 1))
    assert_is_the_core_s(*step(params, state), expected)


@pytest.mark.parametrize("lr", [-0.1, 0.0, np.inf, np.nan])
def test_any_learning_rate_does_what_optax_makes_of_it(lr: float) -> None:
    params, grads, state = problem()
    for given in (lr, jnp.float32(lr)):
        after, new_state = radam.jax.fused_step(params, grads, state, given, b2=0.9)
        updates, expected_state = optax.radam(given, b2=0.9).update(grads, state, params)
        expected = optax.apply_updates(params, updates)
        for name in ("w", "row"):
            np.testing.assert_allclose(after[name], expected[name], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(new_state[0].nu[name], expected_state[0].nu[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [("b1", 1.0), ("b1", np.nan), ("b2", -0.5), ("eps", -1.0), ("eps_root", np.nan), ("threshold", np.inf)],
)
def test_an_error_at_run_time_names_the_number_and_changes_nothing(name: str, value: float) -> None:
    params, grads, state = problem()
    before = jax.tree.map(np.array, (params, grads, state))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=f"radam: {name} must be"):
        jax.block_until_ready(radam.jax.fused_step(params, grads, state, 0.1, **{name: jnp.float32(value)}))
    assert_same((params, grads, state), before)


def test_a_schedule_is_called_with_the_count_before_the_step() -> None:
    params, grads, (adam, _) = problem()
    state = (adam, optax.ScaleByScheduleState(jnp.int32(4)))
    seen = []

    def schedule(count: Any) -> Any:
        seen.append(int(count))
        return 0.1 + count / 8.0

    _, after = radam.jax.fused_step(params, grads, state, schedule)
    radam.jax.fused_step(params, grads, adam._replace(count=jnp.int32(9)), schedule)
    assert seen == [4, 9]  # the schedule's own count, where there is one
    assert int(after[1].count) == 5
    assert isinstance(after[1], optax.ScaleByScheduleState)


def test_states_of_every_form_come_back_in_it() -> None:
    params, grads, (adam, rest) = problem()
    whole, _ = radam.jax.fused_step(params, grads, (adam, rest), 0.1)
    for state in (adam, (adam,), (adam, optax.EmptyState(), optax.ScaleByScheduleState(jnp.int32(0)))):
        after, new = radam.jax.fused_step(params, grads, state, 0.1)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert_same(after, whole)


def test_the_count_stays_at_its_largest_as_in_optax() -> None:
    params, grads, (adam, rest) = problem()
    most = jnp.int32(2**31 - 1)
    after, state = radam.jax.fused_step(params, grads, (adam._replace(count=most), rest), 0.1)
    assert int(state[0].count) == int(optax.safe_increment(most)) == 2**31 - 1
    assert np.isfinite(after["w"]).all()


def test_a_leaf_without_a_gradient_waits_and_no_leaves_are_a_step() -> None:
    params, grads, state = problem()
    expected = by_the_core(params, grads, state)["row"]
    after, new = radam.jax.fused_step(params, {**grads, "w": None}, state, 0.1)
    assert_same([after["row"], new[0].mu["row"], new[0].nu["row"]], list(expected))
    assert_same([after["w"], new[0].mu["w"], new[0].nu["w"]], [params["w"], state[0].mu["w"], state[0].nu["w"]])
    nothing, state = radam.jax.fused_step({}, {}, radam.jax.radam(0.1).init({}), 0.1)
    assert nothing == {}
    assert int(state[0].count) == 1


def test_vmap_is_every_element_by_itself() -> None:
    rng = np.random.default_rng(1)
    _, grads, state = problem()
    many = {"w": jnp.asarray(rng.normal(size=(3, 5, 7)), jnp.float32)}
    alone = (state[0]._replace(mu={"w": state[0].mu["w"]}, nu={"w": state[0].nu["w"]}), state[1])
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), alone)
    lrs = jnp.array([0.1, 0.2, 0.3])
    step = radam.jax.fused_step
    all_own = jax.vmap(step)(many, many, stacked, lrs)
    one_call = jax.jit(jax.vmap(lambda p: step(p, {"w": grads["w"]}, alone, 0.1)))
    assert "stablehlo.while" not in one_call.lower(many).as_text()
    shared = one_call(many)
    along_1 = jax.vmap(lambda p: step(p, {"w": grads["w"]}, alone, 0.1), in_axes=1)({"w": many["w"].swapaxes(0, 1)})
    nested = jax.vmap(lambda lr: jax.vmap(lambda p: step(p, p, alone, lr))(many))(lrs)
    for i in range(3):
        own = {"w": many["w"][i]}
        one = partial(jax.tree.map, lambda x, i=i: x[i])
        assert_same(one(all_own), step(own, own, one(stacked), lrs[i]))
        for got in (shared, along_1):
            assert_same(one(got), step(own, {"w": grads["w"]}, alone, 0.1))
        for k in range(3):
            assert_same(jax.tree.map(lambda x, i=i, k=k: x[k, i], nested), step(own, own, alone, lrs[k]))


def test_a_scan_is_step_after_step() -> None:
    params, grads, state = problem()
    step = partial(radam.jax.fused_step, learning_rate=0.1)
    scanned, _ = jax.lax.scan(lambda at, _: (step(at[0], grads, at[1]), None), (params, state), length=4)
    at = (params, state)
    for _ in range(4):
        at = step(at[0], grads, at[1])
    assert_same(scanned, at)


@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd])
def test_a_derivative_is_refused_and_says_what_has_one(derivative: Any) -> None:
    params, grads, state = problem()
    with pytest.raises(TypeError, match=r"no derivative.*radam\.jax\.radam"):
        derivative(lambda p: radam.jax.fused_step(p, grads, state, 0.1)[0]["w"].sum())(params)
    with pytest.raises(TypeError, match="no derivative"):
        derivative(lambda lr: radam.jax.fused_step(params, grads, state, lr)[0]["w"].sum())(0.1)


def test_without_jit_it_is_the_same() -> None:
    params, grads, state = problem()
    with jax.disable_jit():
        after, new_state = radam.jax.fused_step(params, grads, state, 0.1)
    assert_is_the_core_s(after, new_state, by_the_core(params, grads, state))


def test_two_threads_step_at_once() -> None:
    starts = [problem(seed=seed) for seed in range(2)]
    step = jax.jit(partial(radam.jax.fused_step, learning_rate=0.1))

    def train(params: Tree, grads: Tree, state: Tree) -> Any:
        for _ in range(20):
            params, state = step(params, grads, state)
        return params, state

    expected = [train(*start) for start in starts]
    got: list[Any] = [None, None]
    threads = [threading.Thread(target=lambda i=i: got.__setitem__(i, train(*starts[i]))) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(got, expected)
