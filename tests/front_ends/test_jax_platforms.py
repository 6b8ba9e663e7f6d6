"""Where radam.jax runs: by the core or without it, for another platform, on several devices, exported."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.export
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import radam
import radam.jax
from in_a_process import in_a_process
from radam.jax import calls

CALL = "radam_coefficients"


def step_of(optimizer: Any) -> Any:
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def test_a_program_holds_the_way_of_its_platform_alone() -> None:
    assert calls.is_here()
    params = jnp.ones(8)
    optimizer = radam.jax.radam(0.1)
    traced = jax.jit(step_of(optimizer)).trace(params, optimizer.init(params), params)
    for platform in ("cpu", "tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert (CALL in text) is (platform == "cpu")
        assert ("stablehlo.while" in text) is (platform != "cpu")


def test_one_step_makes_one_small_call_however_many_leaves() -> None:
    params = {str(k): jnp.ones(3) for k in range(50)}
    optimizer = radam.jax.radam(0.1)
    compiled = jax.jit(step_of(optimizer)).lower(params, optimizer.init(params), params).compile()
    assert len(re.findall(rf'custom_call_target="{CALL}"', compiled.as_text())) == 1


def test_an_exported_step_is_the_same() -> None:
    optimizer = radam.jax.radam(0.1)
    params = jnp.array([1.0, -2.0])
    state = optimizer.init(params)
    step = jax.jit(step_of(optimizer))
    allowed = [jax.export.DisabledSafetyCheck.custom_call(CALL)]
    flat, tree = jax.tree.flatten((params, state, params))

    def of_arrays(*arrays: Any) -> list[Any]:
        return jax.tree.leaves(step(*jax.tree.unflatten(tree, arrays)))

    exported = jax.export.export(jax.jit(of_arrays), disabled_checks=allowed)(*flat)
    for a, b in zip(exported.call(*flat), of_arrays(*flat)):
        assert np.array_equal(a, b)


def trajectory() -> list[float]:
    """Twenty steps with a beta2 that float32 alone does not bear, jitted and not."""
    params = jnp.array([1.0, -2.0, 0.5])
    optimizer = radam.jax.radam(0.05, b2=0.9999)
    state = optimizer.init(params)
    plain = step_of(optimizer)
    jitted = jax.jit(plain)
    with jax.disable_jit():
        params, state = plain(params, state, params)
    for k in range(20):
        params, state = (jitted if k % 2 else plain)(params, state, jnp.sin(params + k))
    found: list[float] = params.tolist()
    return found


def without_the_core() -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for make in (radam.jax.radam, radam.jax.radam, optax.inject_hyperparams(radam.jax.radam)):
            make(0.1).init(jnp.ones(2))
        radam.jax.scale_by_radam()
        after = trajectory()
        params, state = jnp.ones(2), radam.jax.radam(0.1).init(jnp.ones(2))
        radam.jax.fused_step(params, params, state, 0.1)
    return {
        "after": after,
        "here": calls.is_here(),
        "warnings": [[w.category.__name__, str(w.message), Path(w.filename).name] for w in seen],
    }


def test_without_the_core_there_is_one_warning_and_nearly_the_same_result() -> None:
    found = in_a_process(__name__, "here.without_the_core()", RADAM_JAX_FFI="0")
    assert found["here"] is False
    ((kind, text, file),) = found["warnings"]
    assert (kind, file) == ("RuntimeWarning", Path(__file__).name)
    assert re.search(r"native core.*right to 1e-6.*RADAM_JAX_FFI is 0; unset it", text)
    native = trajectory()
    assert np.allclose(found["after"], native, rtol=0, atol=1e-6)


def on_four_devices() -> dict[str, Any]:
    mesh = Mesh(np.array(jax.devices()), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    rng = np.random.default_rng(1)
    params, grads = ({"w": jnp.array(rng.normal(size=(8, 3)), jnp.float32), "b": jnp.ones(4)} for _ in range(2))
    optimizer = radam.jax.radam(0.1)
    step = jax.jit(step_of(optimizer))
    alone = step(params, optimizer.init(params), grads)
    split, split_grads = (jax.device_put(tree, sharding) for tree in (params, grads))
    state = optimizer.init(split)
    compiled = step.lower(split, state, split_grads).compile()
    together = compiled(split, state, split_grads)
    # The old way: a step on every device, with the mean of the gradients.
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 4), (params, optimizer.init(params), grads))
    mapped = jax.pmap(step_of(optimizer))(*stacked)
    by_hand = {}
    for name, axis in {"replicated": None, "sharded": "x"}.items():
        of_params = PartitionSpec(axis)
        of_state = (optax.ScaleByAdamState(PartitionSpec(), of_params, of_params), optax.EmptyState())
        specs = (of_params, of_state, of_params)
        mapped_step = jax.shard_map(step_of(optimizer), mesh=mesh, in_specs=specs, out_specs=specs[:2])
        after = jax.jit(mapped_step)(params["w"], optimizer.init(params["w"]), grads["w"])
        by_hand[name] = bool(np.array_equal(after[0], alone[0]["w"]))
    return {
        "by hand": by_hand,
        "devices": len(jax.devices()),
        "collectives": re.findall(r"all-gather|all-reduce|all-to-all|collective-permute", compiled.as_text()),
        "split": [x.sharding == sharding for x in jax.tree.leaves((state[0].mu, together[0], together[1][0].nu))],
        "same": [bool(np.array_equal(a, b)) for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together))],
        "mapped": [bool(np.all(b == a)) for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(mapped))],
    }


def test_sharded_parameters_step_where_they_are() -> None:
    found = in_a_process(__name__, "here.on_four_devices()", XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert found["devices"] == 4
    assert found["collectives"] == []
    assert found["split"] == [True] * 6
    assert found["by hand"] == {"replicated": True, "sharded": True}
    assert found["same"] == found["mapped"] == [True] * 7


def test_the_array_level_optimizer_refuses_jax_arrays_and_takes_their_gradients() -> None:
    for optimizer in (radam.RAdam, radam.Adam):
        with pytest.raises(ValueError, match=r"parameter 0 of group 0 is a JAX array.*radam\.jax"):
            optimizer([jnp.ones(3)])
    param = np.ones(3, np.float32)
    radam.RAdam([param], lr=0.5).step(grads=[jnp.ones(3)])
    assert param.tolist() == [0.5] * 3
