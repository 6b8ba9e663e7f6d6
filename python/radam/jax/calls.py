"""The native calls of a jitted step, through XLA's foreign function interface."""

from __future__ import annotations

import functools
import os
import struct
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _step
from ..conventions import Convention, find_convention

COEFFICIENTS = "radam_coefficients"
STEP = "radam_step"
STEP_ON_CUDA = "radam_step_on_cuda"

# In the order of the bindings (jax_ffi.hpp), which say it once more.
NUMBERS = ("lr", "b1", "b2", "eps", "eps_root", "threshold", "weight_decay")
_NAMES = tuple(
    name
    for name, value in _step.coefficients(find_convention("optax").hyperparameters(), 1).items()
    if isinstance(value, float)
)


def _register() -> str:
    """Register the targets; return why that is not possible, or nothing."""
    if os.environ.get("RADAM_JAX_FFI", "") == "0":
        return "the environment variable RADAM_JAX_FFI is 0"
    try:
        jax.ffi.register_ffi_target(COEFFICIENTS, _step.jax_coefficients(), platform="cpu")
        jax.ffi.register_ffi_target(STEP, _step.jax_step(), platform="cpu")
    except Exception as error:  # what a jaxlib of another version raises is its own affair
        return f"{type(error).__name__}: {error}"
    return ""


_why_not = _register()


def is_here() -> bool:
    """Return whether XLA on the CPU can call the native core."""
    return not _why_not


def why_not() -> str:
    """Return why XLA cannot call the native core; empty where it can."""
    return _why_not


class Settings(NamedTuple):
    """What a call is told once, when it is compiled."""

    constants: tuple[tuple[str, float], ...]
    operands: tuple[str, ...]
    convention: Convention
    nesterov: bool
    decoupled: bool

    def attributes(self) -> dict[str, Any]:
        """Return it as the bindings take it: see jax_ffi.hpp."""
        known = dict(self.constants)
        flags = (
            1 * self.convention.rectify_at_threshold
            + 2 * (self.convention.warmup == "moments_only")
            + 4 * (self.convention.eps_on == "sqrt_v_hat")
            + 8 * self.nesterov
            + 16 * self.decoupled
        )
        return {
            "flags": np.int64(flags),
            "numbers": np.array([known.get(name, 0.0) for name in NUMBERS], np.float64),
            "operands": np.int64(sum(1 << k for k, name in enumerate(NUMBERS) if name in self.operands)),
        }


def settings_of(
    numbers: Mapping[str, Any], convention: Convention, *, nesterov: bool, decoupled: bool = False
) -> tuple[Settings, list[Any]]:
    """Return what a call is told once, and those numbers that are operands of it, which are arrays."""
    constants = tuple((name, numbers[name]) for name in NUMBERS if isinstance(numbers[name], float))
    operands = tuple(name for name in NUMBERS if not isinstance(numbers[name], float))
    return Settings(constants, operands, convention, nesterov, decoupled), [numbers[name] for name in operands]


@functools.cache
def is_on_cuda() -> bool:
    """Return whether XLA can call the native step on CUDA: where radam has its CUDA library, and a device for it.

    To be asked only where a program for CUDA is compiled: it loads that library.
    """
    if not is_here() or _step.why_cuda_is_off():
        return False
    try:
        jax.ffi.register_ffi_target(STEP_ON_CUDA, _step.jax_step_on_cuda(), platform="CUDA")
    except Exception as error:  # as in _register
        warnings.warn(
            f"radam.jax cannot call its kernels on CUDA and steps by JAX's own operations there, which are slower. The "
            f"reason: {type(error).__name__}: {error}; a newer radam may know this plugin of JAX's.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


_WIDE = (jnp.dtype(jnp.float32), jnp.dtype(jnp.float64))


def number(x: Any, name: str) -> Any:
    """Return a hyperparameter as a call takes it: a float, or an array of JAX's of float32 or float64.

    A number of NumPy's is a float as well, or else the float64 that it may be would be lost.

    Raises:
        TypeError: if it is no number and no array of one real number.
    """
    if isinstance(x, (jax.Array, np.ndarray, np.generic)):
        if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)) or x.ndim != 0:
            raise TypeError(f"{name} must be one real number, got {x.dtype} of shape {x.shape}")
        if isinstance(x, jax.Array):
            # Strictly of that dtype: of a weak one there would be another program.
            return jax.lax.convert_element_type(x, x.dtype if x.dtype in _WIDE else jnp.float32)
    if isinstance(x, (bool, str, bytes)):
        raise TypeError(f"{name} must be a number, got {x!r}")
    try:
        return float(x)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {x!r}") from None


def check_ranges(numbers: Mapping[str, Any]) -> None:
    """Hold those numbers that are floats to their ranges.

    Raises:
        ValueError: if one is out of it.
    """
    known = {name: x for name, x in numbers.items() if isinstance(x, float)}
    try:
        _step.Hyperparameters(
            lr=known.get("lr", 0.0),
            beta1=known.get("b1", 0.0),
            beta2=known.get("b2", 0.0),
            eps=known.get("eps", 0.0),
            eps_root=known.get("eps_root", 0.0),
            threshold=known.get("threshold", 0.0),
            weight_decay=known.get("weight_decay", 0.0),
        )
    except ValueError as error:
        raise ValueError(str(error).replace("betas[0]", "b1").replace("betas[1]", "b2")) from None


def as_operand(x: float) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return a float64 as an operand, for programs that have none: its two halves, and the nearest float32."""
    with np.errstate(over="ignore"):
        nearest = np.float32(x)
    return np.array([*struct.unpack("=II", struct.pack("=d", x)), nearest.view(np.uint32)], np.uint32)


def of_operand(x: jax.Array, dtype: Any) -> jax.Array:
    """Return a number that is an operand as JAX's own operations take it."""
    if x.dtype != jnp.uint32:
        return x.astype(dtype)
    return jax.lax.bitcast_convert_type(x[:2] if dtype == jnp.float64 else x[2], dtype)


def coefficients(
    t: jax.Array,
    dtype: Any,
    *,
    b1: Any,
    b2: Any,
    eps: Any,
    eps_root: Any,
    threshold: Any,
    nesterov: bool,
    convention: str | Convention = "optax",
) -> dict[str, Any]:
    """Return the coefficients of step t, in arrays, from the native core: one small call where the program runs.

    They are those of ``_step.coefficients`` for a learning rate of 1 and no weight decay, computed in double and
    rounded once. Works under jit, vmap (of t and of hyperparameters) and scan, on the CPU.

    Args:
        t: the number of this step, 1 for the first: a scalar of int32 or int64.
        dtype: float32, or float64 where that is enabled.
        b1, b2, eps, eps_root, threshold: numbers, which count as float64, or scalars, which count as what they hold.
        nesterov: Nesterov momentum as Optax has it.
        convention: a name of ``radam.CONVENTIONS``, or one of your own, for what the numbers do not say.

    Returns:
        Scalars of dtype by name. "mode" is not there, but "rectified", a bool array; "coupled", "amsgrad" and
        "nesterov" are plain bools.

    Raises:
        TypeError: if a hyperparameter is no number.
        jax.errors.JaxRuntimeError: when it runs, if t is below 1 or a hyperparameter out of its range.
    """
    given = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root, "threshold": threshold}
    numbers = {"lr": 1.0, "weight_decay": 0.0, **{name: number(x, name) for name, x in given.items()}}
    settings, operands = settings_of(numbers, find_convention(convention), nesterov=nesterov)
    call = jax.ffi.ffi_call(
        COEFFICIENTS,
        (jax.ShapeDtypeStruct((len(_NAMES),), dtype), jax.ShapeDtypeStruct((), jnp.bool_)),
        vmap_method="broadcast_all",
    )
    row, rectified = call(jnp.asarray(t), *operands, **settings.attributes())
    found: dict[str, Any] = {name: row[k] for k, name in enumerate(_NAMES)}
    return {**found, "rectified": rectified, "coupled": False, "amsgrad": False, "nesterov": nesterov}
