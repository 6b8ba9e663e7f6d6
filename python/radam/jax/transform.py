"""RAdam as Optax has it, a gradient transformation, with a schedule that is exact."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import _law
from ..conventions import CONVENTIONS
from ..groups import flag
from . import calls, schedule

# Of the coefficients, those that are the same in every step of a transformation: as constants, which XLA folds.
_PLAIN = {
    **{"grad_scale": 1.0, "param_decay": 1.0, "coupled_decay": 0.0},
    **{"coupled": False, "amsgrad": False, "warmup": "momentum"},
}


def radam(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    threshold: jax.typing.ArrayLike = 5.0,
    *,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule | None = None,
    mask: Any | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """RAdam in the place of ``optax.radam``, with its arguments, its state and its results, and decoupled weight decay.

    What differs: the rectification is exact at every b2 and step (``optax.radam`` loses it in float32 from b2 = 0.9999
    on), and the moments of 16-bit parameters are float32. docs/jax.md has all of it.

    Args:
        learning_rate: a number, or a schedule, which is called with the count of updates so far.
        b1: decay rate of the first moment, at least 0 and below 1.
        b2: decay rate of the second moment, at least 0 and below 1.
        eps: added to the root of the corrected second moment.
        eps_root: added to the corrected second moment inside the root.
        threshold: a step is rectified where rho is at least this; before, it is one by momentum alone.
        nesterov: whether to use Nesterov momentum, as Optax has it.
        weight_decay: decoupled weight decay, as in ``optax.adamw``: learning_rate * weight_decay * params is taken from
            the parameters besides. A number, or a schedule. Without it, or with 0, the state is ``optax.radam``'s.
        mask: which parameters decay, as in ``optax.adamw``: a tree of bools, or a function of the parameters that
            returns one.

    b1 to threshold may be numbers, which count as float64, or arrays of one number, also traced ones, which count as
    they are (a float32 array as its float32 value), so that changing them compiles nothing anew.

    Returns:
        The transformation. Its state begins with an ``optax.ScaleByAdamState`` of count (int32), mu and nu, which have
        the parameters' shapes and dtypes, but are float32 for parameters of 16 bits. Updates have the dtypes of the
        gradients.

    Raises:
        ValueError: if a number is out of its range; from ``update``, if weight decay misses params.
        TypeError: if a hyperparameter is no number; from ``update``, if a gradient does not fit its state.

    >>> import jax, jax.numpy as jnp, optax
    >>> import radam.jax
    >>> params = {"w": jnp.array([1.0, -2.0])}
    >>> optimizer = radam.jax.radam(0.1)
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(jax.tree.map(lambda w: 2 * w, params), state, params)
    >>> optax.apply_updates(params, updates)["w"].tolist()
    [0.800000011920929, -1.600000023841858]

    The source is Liu et al. 2020, https://arxiv.org/abs/1908.03265, in the reading of Optax 0.2.8.
    """
    if learning_rate is not None and not callable(learning_rate):
        calls.number(learning_rate, "learning_rate")
    links = [_scale(nesterov, b1=b1, b2=b2, eps=eps, eps_root=eps_root, threshold=threshold)]
    if weight_decay is not None and not _is_none(weight_decay):
        links.append(optax.add_decayed_weights(weight_decay, mask))
    links.append(optax.scale_by_learning_rate(learning_rate))
    return optax.with_extra_args_support(optax.chain(*links))


def scale_by_radam(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    threshold: jax.typing.ArrayLike = 5.0,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """``radam`` without the learning rate, in the place of ``optax.scale_by_radam``: a link for ``optax.chain``.

    Args, what it raises and the state: as in ``radam``.

    >>> import jax.numpy as jnp, optax
    >>> import radam.jax
    >>> clip = optax.clip_by_global_norm(1.0)
    >>> optimizer = optax.chain(clip, radam.jax.scale_by_radam(b2=0.9999), optax.scale(-0.1))
    >>> state = optimizer.init(jnp.zeros(2))
    >>> updates, state = optimizer.update(jnp.array([3.0, 4.0]), state)
    >>> [round(x, 6) for x in updates.tolist()]
    [-0.06, -0.08]
    """
    return _scale(nesterov, b1=b1, b2=b2, eps=eps, eps_root=eps_root, threshold=threshold)


def _scale(nesterov: bool, **given: Any) -> optax.GradientTransformation:
    """Return the transformation; its warnings are for the caller of the caller."""
    nesterov = flag("nesterov", nesterov)
    numbers = _checked(**given)
    schedule.warn_if_not_here(stacklevel=4)

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        mu, nu = jax.tree.map(_moment_of, params), jax.tree.map(_moment_of, params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=mu, nu=nu)

    def update(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        flat: Any = jax.tree_util.tree_flatten_with_path(updates, is_leaf=lambda x: x is None)
        given, tree = flat
        try:
            before = list(zip(tree.flatten_up_to(state.mu), tree.flatten_up_to(state.nu)))
        except ValueError as error:
            raise ValueError(f"the gradients have not the structure of the state: {error}") from None
        fixed = {name: x if isinstance(x, float) else _constant(name, x) for name, x in numbers.items()}

        @functools.cache
        def coefficients(dtype: Any) -> dict[str, jax.Array]:
            return schedule.coefficients(jnp.asarray(count), dtype, fixed, nesterov=nesterov)

        after = [_updated(path, g, m, v, coefficients, nesterov) for (path, g), (m, v) in zip(given, before)]
        new, mu, nu = (tree.unflatten(x) for x in (zip(*after) if after else ((), (), ())))
        return new, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def _is_none(weight_decay: Any) -> bool:
    """Return whether it is known to be 0, having checked what is known of it."""
    if callable(weight_decay):
        return False
    found = calls.number(weight_decay, "weight_decay")
    if isinstance(found, jax.Array) and not isinstance(found, jax.core.Tracer):
        calls.check_ranges({"weight_decay": float(found)})  # nothing else would look at it
    calls.check_ranges({"weight_decay": found})
    return isinstance(found, float) and found == 0.0


def _checked(**given: Any) -> dict[str, Any]:
    """Return the numbers as floats or arrays, the floats in their ranges."""
    for name, x in given.items():
        if callable(x):
            raise TypeError(f"{name} must be a number; optax.inject_hyperparams takes a schedule for it")
    numbers = {name: calls.number(x, name) for name, x in given.items()}
    calls.check_ranges(numbers)
    known = {name: x for name, x in numbers.items() if isinstance(x, float)}
    if "b2" in known and "threshold" in known:
        convention = dataclasses.replace(CONVENTIONS["optax"], threshold=known["threshold"])
        if why := convention.why_never_rectified(known["b2"], "b2"):
            warnings.warn(why, UserWarning, stacklevel=4)
    return numbers


def _moment_of(param: Any) -> jax.Array:
    """Return zeros for a parameter: of its dtype, or float32 where that has 16 bits or less."""
    dtype = jnp.result_type(param)
    few_bits = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    return jnp.zeros_like(param, dtype=jnp.float32 if few_bits else dtype)


def _updated(
    path: Any, given: Any, mu: Any, nu: Any, coefficients: Callable[[Any], dict[str, jax.Array]], nesterov: bool
) -> tuple[Any, Any, Any]:
    """Return the update of one leaf, to be added, and its moments. A leaf without a gradient waits."""
    if given is None:
        return None, mu, nu
    name = f"the gradient of params{jax.tree_util.keystr(path)}"
    try:
        g, m, v = jnp.asarray(given), jnp.asarray(mu), jnp.asarray(nu)
    except TypeError as error:
        raise TypeError(f"{name} or a moment of it is no array: {error}") from None
    _check(name, g, m, v)
    dtype = jnp.float64 if any(x.dtype in (jnp.float64, jnp.complex128) for x in (g, m, v)) else jnp.float32
    found: tuple[Any, Any, Any] = _by_law(coefficients(dtype), g, m, v, dtype=dtype, nesterov=nesterov)
    return found


@functools.partial(jax.jit, static_argnames=("dtype", "nesterov"), inline=True)
def _by_law(
    c: dict[str, jax.Array], g: jax.Array, m: jax.Array, v: jax.Array, *, dtype: Any, nesterov: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Jitted, so that an update outside of jit is one program a leaf."""
    is_complex = jnp.iscomplexobj(m)
    of_g = (jnp.complex128 if dtype == jnp.float64 else jnp.complex64) if is_complex else dtype
    wide_g, wide_m, wide_v = g.astype(of_g), m.astype(of_g), jnp.real(v).astype(dtype)
    # Minus, because the law subtracts, and this is to be added.
    step = {**c, **_PLAIN, "step_size": -c["step_size"], "nesterov": nesterov}
    zero = jnp.zeros_like(wide_g)
    new, new_m, new_v, _ = _law.update(jnp, step, zero, wide_g, wide_m, wide_v, are_complex=is_complex)
    return new.astype(g.dtype), new_m.astype(m.dtype), new_v.astype(v.dtype)


def _check(name: str, g: jax.Array, m: jax.Array, v: jax.Array) -> None:
    """Refuse what would be broadcast, or lost in a conversion."""
    if not jnp.issubdtype(g.dtype, jnp.inexact):
        raise TypeError(f"{name} must be of floating-point or complex numbers, got {g.dtype}")
    if not g.shape == m.shape == v.shape:
        raise TypeError(f"{name} has the shape {g.shape}, its moments have {m.shape} and {v.shape}")
    if not (jnp.issubdtype(m.dtype, jnp.inexact) and jnp.issubdtype(v.dtype, jnp.inexact)):
        raise TypeError(f"{name} has moments of {m.dtype} and {v.dtype}, which are no floating-point numbers")
    if jnp.iscomplexobj(g) and not jnp.iscomplexobj(m):
        raise TypeError(f"{name} is {g.dtype}, its first moment is {m.dtype}: the parameter is not complex")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _constant(name: str, x: Any) -> Any:
    """Return x, which is not differentiated."""
    return x


def _refuse(name: str, primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        f"radam.jax has no derivative with respect to {name}, only to the learning rate, weight decay, the gradients, "
        f"the moments and the parameters; jax.lax.stop_gradient({name}) says that you want none"
    )


_constant.defjvp(_refuse)
