"""The step of all leaves in JAX's own operations, for platforms that have no native one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import _law
from . import calls, pairs


def step(*args: jax.Array, leaves: int, settings: calls.Settings) -> list[jax.Array]:
    """Return the count, params, exp_avgs and exp_avg_sqs after a step.

    Args:
        args: the count, numbers, params, grads, exp_avgs and exp_avg_sqs, and something that is not looked at.
        leaves: how many of each.
        settings: what the numbers are, and the others.
    """
    first = 1 + len(settings.operands)
    numbers = {**dict(settings.constants), **dict(zip(settings.operands, args[1:first]))}
    count = optax.safe_increment(args[0])
    of_dtype: dict[Any, dict[str, Any]] = {}
    after = []
    for i in range(leaves):
        p, g, m, v = (args[first + k * leaves + i] for k in range(4))
        if m.dtype not in of_dtype:
            of_dtype[m.dtype] = _coefficients(count, m.dtype, dict(numbers), settings)
        new, m, v, _ = _law.update(jnp, of_dtype[m.dtype], p.astype(m.dtype), g.astype(m.dtype), m, v)
        after.append((new.astype(p.dtype), m, v))
    return [count, *(x for kind in zip(*after) for x in kind)]


def _coefficients(t: jax.Array, dtype: Any, numbers: dict[str, Any], settings: calls.Settings) -> dict[str, Any]:
    """Return what _law.update takes."""
    lr, decay = (
        x if isinstance(x, float) else calls.of_operand(x, dtype)
        for x in (numbers.pop("lr"), numbers.pop("weight_decay"))
    )
    found = pairs.coefficients(t, dtype, **numbers, nesterov=settings.nesterov, convention=settings.convention)
    if not isinstance(decay, float):
        found = pairs.nan_unless(pairs.is_size(decay), found)
    decoupled = decay if settings.decoupled else 0.0
    found["param_decay"] = 1.0 - decoupled
    return {
        **_law.at_learning_rate(found, lr, decoupled, jnp),
        "coupled": not settings.decoupled and not (isinstance(decay, float) and decay == 0.0),
        "coupled_decay": decay,
        "warmup": settings.convention.warmup,
        "amsgrad": False,
        "nesterov": settings.nesterov,
    }
