"""A whole step in one call: parameters, moments and count, in place where they are donated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..conventions import Convention, find_convention
from ..groups import flag
from . import calls, native_step, schedule


def fused_step(
    params: optax.Params,
    grads: optax.Updates,
    state: Any,
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike | None = None,
    eps_root: jax.typing.ArrayLike | None = None,
    threshold: jax.typing.ArrayLike | None = None,
    *,
    nesterov: bool | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    convention: str | Convention = "optax",
) -> tuple[Any, Any]:
    """Step all parameters by one native call, and return them with the new state.

    In a jitted function that donates params and state they are updated where they lie: nothing is allocated, and no
    update is written and read again. Without donation, and outside of jit, the arrays that were handed in stay as they
    are. learning_rate and the count are operands, as is every hyperparameter that is an array: nothing is compiled
    again when they change. On several devices each steps the part that it has of a leaf: that of its exp_avg.

    Args:
        params: a tree of arrays of float32, bfloat16, float16 or float64.
        grads: a tree like it. float64 goes with float64, the others with each other. Where a leaf is None, that of
            params is left alone.
        state: what ``radam.jax.radam(...).init(params)`` or ``optax.radam`` made, or its ``optax.ScaleByAdamState``
            alone. Moments are float32, float64 for float64. It holds counts and moments only: the hyperparameters that
            its transformation had, a mask of weight decay among them, are not known here, so hand them in again.
        learning_rate: a number, or an array of one, or a schedule, which is called with the count of steps so far. It
            may have any value, as in Optax: a negative one goes up, and a NaN makes NaNs.
        b1: decay rate of the first moment, at least 0 and below 1.
        b2: decay rate of the second moment, at least 0 and below 1.
        eps: the convention's own (1e-8) where it is None.
        eps_root: the convention's own (0) where it is None.
        threshold: of rho, from which on a step is rectified; the convention's own (5) where it is None.
        nesterov: Nesterov momentum, as Optax has it; the convention's own (no) where it is None.
        weight_decay: of the kind that the convention has first; decoupled, as in ``optax.adamw``, where it has none. A
            number, or an array of one, or a schedule as for learning_rate. All parameters decay.
        convention: whose reading of RAdam to follow: a name of ``radam.CONVENTIONS``, or one of your own.

    A number of Python's or NumPy's counts as float64 and is part of the compiled program, but for learning_rate; a
    ``jax.Array`` counts as what it holds.

    Returns:
        params and state, of the same structure, shapes and dtypes.

    Raises:
        TypeError: if an array has a wrong dtype or shape, a number is none, or state is not RAdam's.
        ValueError: if trees differ, a number is out of its range, or a moment has 16 bits.
        jax.errors.JaxRuntimeError, ValueError: when it runs, if a hyperparameter that is an array is out of its range.
            What was handed in is as it was, but what was donated is lost: JAX has given it away before.

    Where XLA cannot call the native core the same is computed by JAX's own operations, after one RuntimeWarning.

    >>> import functools, jax, jax.numpy as jnp
    >>> import radam.jax
    >>> params = {"w": jnp.array([1.0, -2.0])}
    >>> state = radam.jax.radam(0.1).init(params)
    >>> @functools.partial(jax.jit, donate_argnums=(0, 1))
    ... def train_step(params, state):
    ...     grads = jax.tree.map(lambda w: 2 * w, params)
    ...     return radam.jax.fused_step(params, grads, state, 0.1)
    >>> params, state = train_step(params, state)
    >>> params["w"].tolist()
    [0.800000011920929, -1.600000023841858]

    The source is Liu et al. 2020, https://arxiv.org/abs/1908.03265.
    """
    way = find_convention(convention)
    decoupled = not way.decay or way.is_decoupled(None, 0.0)
    adam = _adam_of(state)
    if callable(learning_rate):
        learning_rate = learning_rate(_count_in(state, optax.ScaleByScheduleState, adam.count))
    if callable(weight_decay):
        weight_decay = weight_decay(_count_in(state, _DecayState, adam.count))
    own = {"eps": way.eps, "eps_root": way.eps_root, "threshold": way.threshold}
    given = {"eps": eps, "eps_root": eps_root, "threshold": threshold}
    given = {name: own[name] if x is None else x for name, x in given.items()}
    given.update(b1=b1, b2=b2, weight_decay=weight_decay)
    numbers = {name: calls.number(x, name) for name, x in given.items()}
    numbers["lr"] = calls.number(learning_rate, "learning_rate")
    calls.check_ranges({name: x for name, x in numbers.items() if name != "lr"})
    leaves = _leaves_of(params, grads, adam)

    schedule.warn_if_not_here()
    if isinstance(numbers["lr"], float):
        numbers["lr"] = calls.as_operand(numbers["lr"])
    with_nesterov = way.nesterov if nesterov is None else flag("nesterov", nesterov)
    settings, operands = calls.settings_of(numbers, way, nesterov=with_nesterov, decoupled=decoupled)
    count, *after = _step(_count_of(adam), operands, leaves.arrays, settings=settings)
    new_params, mu, nu = leaves.put_back(after)
    return new_params, _with_parts(state, optax.ScaleByAdamState(count, mu, nu))


_Arrays = Sequence[Sequence[jax.Array]]  # params, grads, exp_avgs, exp_avg_sqs


@partial(jax.jit, static_argnames="settings", inline=True)
def _step(count: jax.Array, operands: Sequence[jax.Array], arrays: _Arrays, *, settings: calls.Settings) -> Any:
    """Jitted, so that a step outside of jit finds it compiled."""
    return native_step.step(count, operands, arrays, settings)


# Optax has no public name for it.
_DecayState: Any = type(optax.add_decayed_weights(lambda count: 0.0).init({}))
_COUNTED = (optax.ScaleByScheduleState, _DecayState)


def _adam_of(state: Any) -> optax.ScaleByAdamState:
    """Return the state of RAdam in one of radam.jax.radam, or of optax.radam."""
    if isinstance(state, optax.ScaleByAdamState):
        return state
    parts = state if isinstance(state, tuple) and not _is_of(state, (*_COUNTED, optax.MaskedState)) else (state,)
    others = [type(x).__name__ for x in parts if not _is_of(x, (optax.ScaleByAdamState, *_COUNTED, optax.EmptyState))]
    found = [x for x in parts if isinstance(x, optax.ScaleByAdamState)]
    if others or len(found) != 1 or not isinstance(parts[0], optax.ScaleByAdamState):
        what = "holds something before it" if found else "holds none"
        what = f"holds {others[0]}" if others else f"holds {len(found)} of them" if len(found) > 1 else what
        raise TypeError(
            "state must be what radam.jax.radam(...).init(params) returns, or its optax.ScaleByAdamState; this "
            f"{what}. What other transformations do is not part of fused_step: apply them to the gradients first, and "
            "hand in the optax.ScaleByAdamState alone"
        )
    return found[0]


def _is_of(part: Any, kinds: tuple[Any, ...]) -> bool:
    """Return whether a part of a state is of one of these types, or a masked one of them."""
    return isinstance(part.inner_state if isinstance(part, optax.MaskedState) else part, kinds)


def _count_in(state: Any, kind: Any, otherwise: Any) -> Any:
    """Return the count of a schedule that has one of its own in state."""
    parts = () if isinstance(state, optax.ScaleByAdamState) else state
    inner = [x.inner_state if isinstance(x, optax.MaskedState) else x for x in parts]
    return next((x.count for x in inner if isinstance(x, kind)), otherwise)


def _with_parts(state: Any, adam: optax.ScaleByAdamState) -> Any:
    """Return the state after a step, of the type that it was."""

    def after(part: Any) -> Any:
        if isinstance(part, optax.ScaleByAdamState):
            return adam
        if isinstance(part, optax.MaskedState):
            return part._replace(inner_state=after(part.inner_state))
        return part._replace(count=optax.safe_increment(part.count)) if isinstance(part, _COUNTED) else part

    if isinstance(state, optax.ScaleByAdamState):
        return adam
    parts = tuple(after(part) for part in state)
    return type(state)(*parts) if hasattr(state, "_fields") else parts


def _count_of(adam: optax.ScaleByAdamState) -> jax.Array:
    count = jnp.asarray(adam.count)
    if count.dtype not in (jnp.int32, jnp.int64) or count.shape != ():
        raise TypeError(f"the count in state must be one int32 or int64, got {count.dtype} of shape {count.shape}")
    return count


class _Leaves(NamedTuple):
    """The leaves that have a gradient, and how all go back into their trees."""

    arrays: _Arrays
    stepped: list[int]
    all: list[list[Any]]  # params, mu, nu
    trees: list[Any]

    def put_back(self, after: Sequence[Sequence[jax.Array]]) -> list[Any]:
        for whole, new in zip(self.all, after):
            for i, x in zip(self.stepped, new):
                whole[i] = x
        return [tree.unflatten(whole) for tree, whole in zip(self.trees, self.all)]


def _leaves_of(params: Any, grads: Any, adam: optax.ScaleByAdamState) -> _Leaves:
    """Flatten the trees and check that their leaves go together."""
    with_paths, tree = jax.tree_util.tree_flatten_with_path(params)
    all_grads = _like(tree, grads, "grads")
    mu, nu = _like(tree, adam.mu, "mu"), _like(tree, adam.nu, "nu")
    # A whole number has a gradient of float0, which is none: see jax.grad's allow_int.
    stepped = [i for i, g in enumerate(all_grads) if g is not None and getattr(g, "dtype", None) != jax.dtypes.float0]
    arrays: list[list[jax.Array]] = [[], [], [], []]
    for i in stepped:
        path, p = with_paths[i]
        leaf = [_array(x, path, what) for x, what in zip((p, all_grads[i], mu[i], nu[i]), _WHAT)]
        _check_leaf(path, *leaf)
        for kind, x in zip(arrays, leaf):
            kind.append(x)
    return _Leaves(arrays, stepped, [[p for _, p in with_paths], mu, nu], [tree] * 3)


_WHAT = ("", "the gradient of ", "mu of ", "nu of ")


def _like(tree: Any, other: Any, name: str) -> list[Any]:
    try:
        leaves: list[Any] = tree.flatten_up_to(other)
    except ValueError as error:
        raise ValueError(f"{name} has not the structure of params: {error}") from None
    return leaves


def _array(x: Any, path: Any, what: str) -> jax.Array:
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what}params{jax.tree_util.keystr(path)} is no array: {error}") from None


def _check_leaf(path: Any, p: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array) -> None:
    name = f"params{jax.tree_util.keystr(path)}"
    if p.dtype not in _FLOATS:
        what = (
            "complex: radam.jax.radam takes it" if jnp.iscomplexobj(p) else "not float32, bfloat16, float16 or float64"
        )
        raise TypeError(f"{name} has dtype {p.dtype}, which is {what}")
    if g.dtype not in _FLOATS or (g.dtype == jnp.float64) != (p.dtype == jnp.float64):
        raise TypeError(
            f"the gradient of {name} has dtype {g.dtype}, the parameter {p.dtype}; float64 goes with float64 only, "
            "float32, bfloat16 and float16 with each other"
        )
    wanted = jnp.float64 if p.dtype == jnp.float64 else jnp.float32
    for what, x in zip(_WHAT[1:], (g, m, v)):
        if x.shape != p.shape:
            raise TypeError(f"{what}{name} has the shape {x.shape}, the parameter {p.shape}")
        if x is g or x.dtype == wanted:
            continue
        if x.dtype in (jnp.bfloat16, jnp.float16):
            raise ValueError(
                f"{what}{name} has dtype {x.dtype}; moments must be float32: radam.jax.radam(...).init(params) makes "
                "such, and state[0]._replace(mu=optax.tree.cast(state[0].mu, jnp.float32), "
                "nu=optax.tree.cast(state[0].nu, jnp.float32)) converts those that you have"
            )
        raise TypeError(f"{what}{name} has dtype {x.dtype}, not {jnp.dtype(wanted).name}")


_FLOATS = tuple(map(jnp.dtype, (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64)))
