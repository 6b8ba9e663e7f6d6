"""radam.jax.fused_step where it runs: on several devices, for other platforms, without the core, exported."""

from __future__ import annotations

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.export
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import radam.jax
from in_a_process import in_a_process
from radam.jax import calls
from test_jax_fused_step import assert_same, by_the_core, near, problem


def on_four_devices(by_shardy: bool = True) -> list[str]:
    """Check sharded steps against one on one device; return the collectives that the programs have."""
    jax.config.update("jax_use_shardy_partitioner", by_shardy)
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(8, 12)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=6), jnp.float32),
    }
    grads = jax.tree.map(lambda x: x + 1, params)
    whole = radam.jax.radam(0.1).init(params)[0]
    step = jax.jit(lambda p, g, s, lr: radam.jax.fused_step(p, g, s, lr, b2=0.99), donate_argnums=())
    expected = step(params, grads, whole, 0.1)
    found: list[str] = []
    for kind in (AxisType.Auto, AxisType.Explicit):
        for shape, names, specs in (
            ((4,), ("x",), {"w": ("x",), "b": ()}),
            ((2, 2), ("x", "y"), {"w": ("x", "y"), "b": ("y",)}),
            ((2, 2), ("x", "y"), {"w": (None, ("x", "y")), "b": (None,)}),
        ):
            mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
            at = {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in specs.items()}
            put = partial(jax.tree.map, jax.device_put)
            args = (put(params, at), put(grads, at), whole._replace(mu=put(whole.mu, at), nu=put(whole.nu, at)), 0.1)
            after = step(*args)
            assert_same(after, expected)
            for tree in (after[0], after[1].mu, after[1].nu):
                assert all(tree[name].sharding.is_equivalent_to(at[name], tree[name].ndim) for name in at)
            text = step.lower(*args).compile().as_text()
            assert text.count('custom_call_target="radam_step"') == 1
            found += re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|dynamic-slice", text)

            specs_of = {name: PartitionSpec(*spec) for name, spec in specs.items()}
            states = optax.ScaleByAdamState(PartitionSpec(), specs_of, specs_of)
            by_hand = jax.shard_map(
                lambda p, g, s: radam.jax.fused_step(p, g, s, 0.1, b2=0.99),
                mesh=mesh,
                in_specs=(specs_of, specs_of, states),
                out_specs=(specs_of, states),
            )
            assert near(jax.jit(by_hand)(*args[:3]), expected)
    # Moments in shards alone: what is whole is cut there, and only the parameters are put together again.
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    cut = {"w": NamedSharding(mesh, PartitionSpec("x")), "b": NamedSharding(mesh, PartitionSpec())}
    everywhere = partial(jax.tree.map, lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec())))
    put = partial(jax.tree.map, jax.device_put)
    args = (everywhere(params), everywhere(grads), whole._replace(mu=put(whole.mu, cut), nu=put(whole.nu, cut)), 0.1)
    assert_same(step(*args), expected)
    return found


FOUR = "--xla_force_host_platform_device_count=4"


@pytest.mark.parametrize("by_shardy", [True, False])
def test_each_device_steps_its_own_shard_and_gathers_nothing(by_shardy: bool) -> None:
    assert in_a_process(__name__, f"here.on_four_devices({by_shardy})", XLA_FLAGS=FOUR) == []


def refused_by_shard_map() -> dict[str, str]:
    """What a shard_map says whose results are not the same on all devices, though they are said to be."""
    mesh, spec = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,)), PartitionSpec

    def one(p: Any, g: Any, mu: Any, nu: Any, lr: Any) -> Any:
        return radam.jax.fused_step(p, g, optax.ScaleByAdamState(jnp.int32(6), mu, nu), lr[0])[0]

    def many(p: Any, g: Any, mu: Any, nu: Any, lr: Any) -> Any:
        def step(at: Any, _: Any) -> Any:
            return radam.jax.fused_step(at[0], g, at[1], lr[0]), None

        return jax.lax.scan(step, (p, optax.ScaleByAdamState(jnp.int32(6), mu, nu)), length=2)[0][0]

    found = {}
    whole, lrs = jnp.ones(8), jnp.full(4, 0.1)
    for name, function, in_specs in (
        ("none", lambda p, g, *rest: one(p, jax.lax.pmean(g, "x"), *rest), (spec(), spec("x"), *(spec(),) * 3)),
        ("gradients", one, (spec(), spec("x"), *(spec(),) * 3)),
        ("a moment", one, (*(spec(),) * 3, spec("x"), spec())),
        ("learning rates", one, (*(spec(),) * 4, spec("x"))),
        ("in a scan", many, (spec(), spec("x"), *(spec(),) * 3)),
    ):
        sizes = [jnp.ones(32) if at == spec("x") else whole for at in in_specs[:4]]
        step = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=spec())
        try:
            jax.block_until_ready(jax.jit(step)(*sizes, lrs))
            found[name] = ""
        except (ValueError, TypeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def test_shards_that_would_part_are_refused_by_shard_map() -> None:
    found = in_a_process(__name__, "here.refused_by_shard_map()", XLA_FLAGS=FOUR)
    assert found.pop("none") == ""
    assert "manual axis types do not match" in found.pop("in a scan")
    assert set(found) == {"gradients", "a moment", "learning rates"}
    assert all("require replication" in text for text in found.values())


def ensemble() -> list[list[str]]:
    """The collectives of an ensemble with learning rates of its own: by vmap of what is sharded, and by shard_map."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    at = NamedSharding(mesh, PartitionSpec("x"))
    params, lrs = jax.device_put((jnp.linspace(-1, 1, 32).reshape(4, 8), jnp.arange(1.0, 5.0) / 10), at)
    states = jax.vmap(radam.jax.radam(0.1).init)(params)
    states = jax.device_put(states, at)
    step = jax.vmap(lambda p, s, lr: radam.jax.fused_step(p, p, s, lr))
    by_hand = jax.shard_map(step, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x"))
    shared = jax.vmap(
        lambda p, s: radam.jax.fused_step(p, p, s, 0.1)[0], in_axes=(0, optax.ScaleByAdamState(None, 0, 0))
    )
    alone = states[0]._replace(count=jnp.int32(0))
    assert_same(jax.jit(by_hand)(params, states, lrs), jax.jit(step)(params, states, lrs))
    texts = [jax.jit(f).lower(params, states, lrs).compile().as_text() for f in (step, by_hand)]
    texts.append(jax.jit(shared).lower(params, alone).compile().as_text())
    return [sorted(set(re.findall("all-gather|all-reduce|all-to-all|collective-permute", text))) for text in texts]


def test_an_ensemble_on_several_devices_steps_where_it_is_under_shard_map() -> None:
    gathered, *others = in_a_process(__name__, "here.ensemble()", XLA_FLAGS=FOUR)
    assert gathered  # as docs/jax.md says
    assert others == [[], []]


def mapped() -> bool:
    """pmap, three threads that step sharded and whole leaves at once, and no export for several devices."""
    mesh = jax.make_mesh((4,), ("x",))
    params, grads, state = problem()
    step = jax.jit(partial(radam.jax.fused_step, learning_rate=0.1))
    expected = step(params, grads, state)
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 4), (params, grads, state))
    for k in range(4):
        assert_same(jax.tree.map(lambda x, k=k: x[k], jax.pmap(step)(*stacked)), expected)

    x, g = jnp.linspace(-1, 1, 1 << 18), jnp.linspace(0, 1, 1 << 18)
    split = jax.device_put((x, g), NamedSharding(mesh, PartitionSpec("x")))

    def train(x: Any, g: Any) -> Any:
        at = x, radam.jax.radam(0.1).init(x)
        for _ in range(8):
            at = step(at[0], g, at[1])
        return jax.block_until_ready(at)

    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda of: train(*of), [split, (x, g), split]):
            assert_same(found, train(x, g))

    state = radam.jax.radam(0.1).init(split[0])
    checks = [jax.export.DisabledSafetyCheck.custom_call(calls.STEP)]
    with pytest.raises(NotImplementedError):
        jax.export.export(step, disabled_checks=checks)(*split, state)
    return True


def test_pmap_and_threads_over_shards_are_the_same_and_export_is_for_one_device() -> None:
    assert in_a_process(__name__, "here.mapped()", XLA_FLAGS=FOUR)


def without_the_core() -> list[Any]:
    """What fused_step does by JAX's own operations: errors of every convention, dtype and form of lr."""
    import warnings

    assert not calls.is_here()
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for convention, decay, count in (("optax", 0.0, 6), ("torch", 0.25, 6), ("author", 0.25, 6), ("author", 0, 2)):
            params, grads, state = problem(count=count)
            expected = by_the_core(params, grads, state, convention, weight_decay=decay)
            keywords = {"weight_decay": decay, "convention": convention}
            step = jax.jit(partial(radam.jax.fused_step, **keywords), donate_argnums=(0, 2))
            after, new = step(params, grads, state, learning_rate=0.1)
            found.append(near({name: (after[name], new[0].mu[name], new[0].nu[name]) for name in after}, expected))
        params, grads, state = problem("bfloat16", "bfloat16")
        after, new = radam.jax.fused_step(params, grads, state, 0.1)
        found.append(after["w"].dtype == "bfloat16" and new[0].mu["w"].dtype == "float32")
        expected = np.float32(by_the_core(params, grads, state)["w"][0])
        found.append(bool(np.allclose(np.float32(after["w"]), expected, 0.01)))
        with jax.enable_x64(True):
            params, grads, state = problem("float64", "float64")
            after, new = radam.jax.fused_step(params, grads, state, 0.1)
            got = {name: (after[name], new[0].mu[name], new[0].nu[name]) for name in after}
            found.append(near(got, by_the_core(params, grads, state)))
    return [all(found), [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]]


def test_without_the_core_it_is_near_and_warns_once() -> None:
    is_near, (warning,) = in_a_process(__name__, "here.without_the_core()", RADAM_JAX_FFI="0")
    assert is_near
    assert "RADAM_JAX_FFI is 0" in warning


def test_a_program_for_another_platform_has_the_law_in_it() -> None:
    params, grads, state = problem()
    traced = jax.jit(partial(radam.jax.fused_step, learning_rate=0.1)).trace(params, grads, state)
    for platform in ("cpu", "tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("@radam_step" in text) is (platform == "cpu")


def test_a_program_for_cuda_calls_where_there_is_a_device(stand_in: Any) -> None:
    """Not run here: a stand-in for the library says that there is one."""
    params, grads, state = problem()
    calls.is_on_cuda.cache_clear()
    try:
        for numbers, native in (({}, True), ({"b2": jnp.float32(0.9)}, True), ({"eps": jnp.float32(1e-8)}, False)):
            step = jax.jit(lambda p, g, s, numbers: radam.jax.fused_step(p, g, s, 0.1, **numbers))
            text = step.trace(params, grads, state, numbers).lower(lowering_platforms=("cuda",)).as_text()
            assert ("@radam_step_on_cuda" in text) is native
    finally:
        calls.is_on_cuda.cache_clear()


def test_a_plugin_for_cuda_that_refuses_the_call_is_a_warning_and_the_law(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, grads, state = problem()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("another version")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    calls.is_on_cuda.cache_clear()
    try:
        traced = jax.jit(partial(radam.jax.fused_step, learning_rate=0.1)).trace(params, grads, state)
        with pytest.warns(RuntimeWarning, match="another version") as seen:
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert len(seen) == 1
        assert "@radam_step_on_cuda" not in text
    finally:
        calls.is_on_cuda.cache_clear()


def test_a_step_is_exported_for_every_platform_and_any_size() -> None:
    (n,) = jax.export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n, 3), jnp.float32)
    state = optax.ScaleByAdamState(jax.ShapeDtypeStruct((), jnp.int32), shape, shape)

    def step(p: Any, g: Any, count: Any, mu: Any, nu: Any) -> Any:
        after, new = radam.jax.fused_step(p, g, optax.ScaleByAdamState(count, mu, nu), 0.1)
        return after, *new

    given = (shape, shape, *state)
    platforms = ("cpu", "tpu", "cuda")
    with pytest.raises(ValueError, match="radam_step"):
        jax.export.export(jax.jit(step), platforms=platforms)(*given)
    checks = [jax.export.DisabledSafetyCheck.custom_call("radam_step")]  # as docs/jax.md has it
    exported = jax.export.export(jax.jit(step), platforms=platforms, disabled_checks=checks)(*given)
    with contextlib.suppress(ImportError):  # JAX needs flatbuffers for that
        exported = jax.export.deserialize(exported.serialize())
    for size in (2, 5):
        x = jnp.linspace(-1, 1, 3 * size).reshape(size, 3)
        args = (x, x + 1, jnp.int32(6), x / 2, x * x)
        assert_same(exported.call(*args), jax.jit(step)(*args))


def out_of_range() -> list[list[bool]]:
    """By JAX's own operations: whether arrays out of range make NaNs of all parameters, and those in range none."""
    import warnings

    warnings.simplefilter("ignore", RuntimeWarning)  # of the missing core
    found = []
    for convention, count in (("optax", 6), ("optax", 0), ("author", 0)):
        params, grads, state = problem(count=count)
        step = jax.jit(partial(radam.jax.fused_step, learning_rate=0.1, convention=convention))
        for name, values in {
            "b1": (1.0, np.nan, 0.5),
            "b2": (-0.5, 1.0, 0.5),
            "eps": (-1.0, 0.1),
            "eps_root": (np.inf, 0.1),
            "threshold": (-1.0, np.inf, 4.0),
            "weight_decay": (-1.0, 0.1),
        }.items():
            after = [step(params, grads, state, **{name: jnp.float32(x)})[0] for x in values]
            found.append([bool(all(jnp.isnan(x).all() for x in jax.tree.leaves(tree))) for tree in after[:-1]])
            found[-1].append(not any(jnp.isnan(x).any() for x in jax.tree.leaves(after[-1])))
    params, grads, state = problem()
    for decay in (0.0, jnp.float32(0.0)):  # as natively: no decay is none, also where the learning rate is infinite
        after, _ = radam.jax.fused_step(params, grads, state, jnp.inf, weight_decay=decay)
        found.append([bool(jnp.isinf(after["w"]).all())])
    optimizer = radam.jax.radam(0.1, b2=jnp.float32(1.0))
    found.append([bool(jnp.isnan(optimizer.update(params, optimizer.init(params))[0]["w"]).all())])
    return found


def test_without_the_core_numbers_out_of_range_make_nans() -> None:
    found = in_a_process(__name__, "here.out_of_range()", RADAM_JAX_FFI="0")
    assert len(found) == 21
    assert all(all(each) for each in found)
    params, grads, state = problem()
    after, _ = radam.jax.fused_step(params, grads, state, jnp.inf, weight_decay=jnp.float32(0.0))
    assert np.isinf(after["w"]).all()
