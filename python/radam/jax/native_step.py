"""The step of all leaves as one operation of JAX's: what it is under jit, vmap, grad and with sharded arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import mlir

from . import calls, law_step

# Operands are count, numbers ..., then params, grads, exp_avgs, exp_avg_sqs, as many of each; results count, params,
# exp_avgs, exp_avg_sqs.
Step = Callable[..., tuple[jax.Array, ...]]


def step(
    count: jax.Array, numbers: Sequence[Any], leaves: Sequence[Sequence[jax.Array]], settings: calls.Settings
) -> tuple[jax.Array, Sequence[jax.Array], Sequence[jax.Array], Sequence[jax.Array]]:
    """Return the count and the leaves (params, exp_avgs, exp_avg_sqs) after one step.

    Args:
        count: the steps taken so far.
        numbers: those hyperparameters that are operands, as calls.settings_of gave them.
        leaves: params, grads, exp_avgs and exp_avg_sqs, of equal length.
        settings: the other hyperparameters.
    """
    n = len(leaves[0])
    after = _operation(n, settings)(count, *numbers, *(x for kind in leaves for x in kind))
    return after[0], after[1 : 1 + n], after[1 + n : 1 + 2 * n], after[1 + 2 * n :]


def _kept(args: Sequence[Any], n: int) -> tuple[Any, ...]:
    """Return those operands that come back changed: all but the numbers and the gradients."""
    first = len(args) - 4 * n
    return (args[0], *args[first : first + n], *args[first + 2 * n :])


@functools.lru_cache(maxsize=64)
def _operation(n: int, settings: calls.Settings) -> Step:
    """Return the step of n leaves, with what it does where it is not simply called."""

    def of_part(*args: Any) -> Any:
        # XLA runs a program of less than 1000 operations in the thread that calls it, and counts none for a native
        # call: with these the caller goes on, as it does from a step in XLA's own operations.
        work = jnp.arange(1024, dtype=args[0].dtype) + args[0]
        return tuple(_step_p.bind(*args, work, leaves=n, settings=settings))

    def partition(mesh: Any, arg_shapes: Any, result_shape: Any) -> Any:
        operands = _where(arg_shapes, n)
        return mesh, of_part, _kept(operands, n), operands

    def result_shardings(mesh: Any, arg_shapes: Any, result_shape: Any) -> Any:
        return _kept(_where(arg_shapes, n), n)

    cut = custom_partitioning(of_part)
    cut.def_partition(
        partition, infer_sharding_from_operands=result_shardings, sharding_rule=partial(_sharding_rule, n)
    )
    batched = custom_vmap(lambda *args: cut(*args))
    operation: jax.custom_jvp[Any] = jax.custom_jvp(lambda *args: batched(*args))

    def batch(size: int, is_batched: Sequence[bool], *args: Any) -> Any:
        """Step a whole batch at once where it shares count and numbers, else one element after the other."""
        first = len(args) - 4 * n
        shared = not any(is_batched[:first])
        whole = [
            x if b or (shared and i < first) else jnp.broadcast_to(x, (size, *x.shape))
            for i, (x, b) in enumerate(zip(args, is_batched))
        ]
        if shared:
            return operation(*whole), (False, *(True,) * (3 * n))
        return jax.lax.map(lambda one: operation(*one), whole), (True,) * (1 + 3 * n)

    batched.def_vmap(batch)

    def refuse(*args: Any) -> Any:
        raise TypeError(
            "radam.jax.fused_step has no derivative: it writes over its operands; differentiate through "
            "radam.jax.radam, whose update is the same step in JAX's own operations. Where none is wanted, hand it "
            "jax.lax.stop_gradient of params, grads, state and learning_rate"
        )

    operation.defjvp(refuse)
    return operation


def _where(arg_shapes: Sequence[Any], n: int) -> tuple[Any, ...]:
    """Return where each operand is wanted: what belongs to a leaf, where its exp_avg is."""
    first = len(arg_shapes) - 4 * n
    of_leaves = [x.sharding for x in arg_shapes[first + 2 * n : first + 3 * n]]
    return (*(x.sharding for x in arg_shapes[:first]), *of_leaves * 4)


def _sharding_rule(n: int, mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> SdyShardingRule:
    """Return that a leaf's arrays may be cut in any dimension, all alike, and numbers in none."""
    first = len(operands) - 4 * n
    numbers = [ArrayMapping(*(f"n{i}_{d}" for d in range(x.rank))) for i, x in enumerate(operands[:first])]
    leaves = [ArrayMapping(*(f"l{i}_{d}" for d in range(x.rank))) for i, x in enumerate(operands[first : first + n])]
    of_numbers = tuple(factor for mapping in numbers for factor in mapping)
    return SdyShardingRule((*numbers, *leaves * 4), (numbers[0], *leaves * 3), need_replication_factors=of_numbers)


# What a device does of the step: a native call where its platform has one. One more operand is not looked at.
_step_p = Primitive("radam_step")
_counted_p = Primitive("radam_step_on_cuda")  # the same with a count for each leaf in the place of the count


def _jitted(primitive: Primitive, *args: Any, **params: Any) -> Any:
    """Step where jit is disabled."""
    with jax.disable_jit(False):
        return jax.jit(partial(primitive.bind, **params))(*args)


def _results(*args: Any, leaves: int, settings: calls.Settings) -> Any:
    """Return what comes back: a leaf differs between the devices of a shard_map if anything that went into it does."""
    first = len(args) - 1 - 4 * leaves
    varying = [x.manual_axis_type.varying for x in args[:-1]]
    shared = frozenset().union(*varying[:first])
    of_leaves = [shared.union(*varying[first + i :: leaves]) for i in range(leaves)]
    return [
        x.update(weak_type=False, manual_axis_type=type(x.manual_axis_type)(varying=names))
        for x, names in zip(_kept(args[:-1], leaves), [varying[0], *of_leaves * 3])
    ]


def _call(ctx: Any, *args: Any, target: str, leaves: int, settings: calls.Settings) -> Any:
    n, first = leaves, len(args) - 1 - 4 * leaves
    aliases = {0: 0, **{first + i: 1 + i for i in range(n)}}
    aliases.update({first + 2 * n + i: 1 + n + i for i in range(2 * n)})
    # Said to have a side effect, or else XLA considers at length, cubic in the number of leaves, to fuse it.
    call = jax.ffi.ffi_lowering(target, has_side_effect=True, operand_output_aliases=aliases)
    return call(ctx, *args, **settings.attributes())


def _by_law(ctx: Any, *args: Any, leaves: int, settings: calls.Settings) -> Any:
    return mlir.lower_fun(partial(law_step.step, leaves=leaves, settings=settings), multiple_results=True)(ctx, *args)


def _on_cuda(ctx: Any, *args: Any, leaves: int, settings: calls.Settings) -> Any:
    """Lower to the call that schedules on the device, which keeps a count for each leaf in float32."""
    if not calls.is_on_cuda() or not {"lr", "b1", "b2"}.issuperset(settings.operands):
        return _by_law(ctx, *args, leaves=leaves, settings=settings)

    def counted(count: jax.Array, *rest: jax.Array) -> Any:
        counts = jnp.full(leaves, count.astype(jnp.float32))
        _, *after = _counted_p.bind(counts, *rest, leaves=leaves, settings=settings)
        return [optax.safe_increment(count), *after]

    return mlir.lower_fun(counted, multiple_results=True)(ctx, *args)


for _primitive in (_step_p, _counted_p):
    _primitive.multiple_results = True
    _primitive.def_impl(partial(_jitted, _primitive))
    _primitive.def_abstract_eval(_results)
mlir.register_lowering(_step_p, _by_law)
mlir.register_lowering(_step_p, _on_cuda, platform="cuda")
mlir.register_lowering(_counted_p, partial(_call, target=calls.STEP_ON_CUDA), platform="cuda")
if calls.is_here():
    mlir.register_lowering(_step_p, partial(_call, target=calls.STEP), platform="cpu")
