"""Where the coefficients of a step come from: the native core where XLA can call it, else pairs of float32."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from jax import lax

from . import calls, pairs

_warned = False


def warn_if_not_here(stacklevel: int = 3) -> None:
    """Warn, once in a process, where XLA cannot call the native core: at the caller of the caller."""
    global _warned
    if calls.is_here() or _warned:
        return
    _warned = True
    why = calls.why_not()
    what_helps = "unset it" if "RADAM_JAX_FFI" in why else "install a newer radam, or one for the jaxlib that is here"
    warnings.warn(
        "radam.jax cannot call its native core and uses JAX's own operations, which are slower, with coefficients that "
        f"are right to 1e-6 only. The reason: {why}; {what_helps} before radam.jax is imported.",
        RuntimeWarning,
        stacklevel=stacklevel,
    )


def coefficients(t: jax.Array, dtype: Any, numbers: Mapping[str, Any], *, nesterov: bool) -> dict[str, jax.Array]:
    """Return the numbers that _law.update takes for step t of Optax's convention, and whether it is rectified.

    They are those for a learning rate of 1 and no weight decay, in 0-d arrays.

    Args:
        t: the number of the step, 1 for the first: a 0-d array of int32 or int64.
        dtype: of the arrays to update: float32 or float64.
        numbers: b1, b2, eps, eps_root and threshold: Python floats, or 0-d arrays.
        nesterov: whether with Nesterov momentum.
    """
    operands = {name: x for name, x in numbers.items() if isinstance(x, jax.Array)}
    constants = tuple((name, x) for name, x in numbers.items() if name not in operands)
    found: dict[str, jax.Array] = _coefficients(t, operands, constants=constants, dtype=dtype, nesterov=nesterov)
    return found


@functools.partial(jax.jit, static_argnames=("constants", "dtype", "nesterov"))
def _coefficients(
    t: jax.Array,
    operands: dict[str, jax.Array],
    *,
    constants: tuple[tuple[str, float], ...],
    dtype: Any,
    nesterov: bool,
) -> dict[str, jax.Array]:
    """Jitted, so that an update outside of jit finds it compiled."""

    def arrays_of(way: Any, t: jax.Array, operands: dict[str, jax.Array]) -> dict[str, jax.Array]:
        found = way.coefficients(t, dtype, **operands, **dict(constants), nesterov=nesterov)
        return {name: x for name, x in found.items() if isinstance(x, jax.Array)}

    in_pairs = functools.partial(arrays_of, pairs)
    if not calls.is_here():
        return in_pairs(t, operands)
    found: dict[str, jax.Array] = lax.platform_dependent(
        t, operands, cpu=functools.partial(arrays_of, calls), default=in_pairs
    )
    return found
