"""The law of update.hpp in array operations, where no native kernel reaches: the one transcription.

It takes whole arrays and returns new ones, so that frameworks can differentiate and trace it. Without fma it agrees
with the kernels to rounding, not to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Array = Any


def update(
    xp: Any,
    c: Mapping[str, Any],
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    v_max: Array = None,
    *,
    are_complex: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """Return what one update makes of p, m, v and v_max.

    Args:
        xp: a module with where, sqrt, abs, zeros_like and ones_like: torch, jax.numpy or numpy.
        c: what _step.coefficients returns for the arrays' dtype; any number may be an array. A program that finds the
            step only when it runs has "rectified", an array of one bool, and "warmup" instead of "mode".
        p, g, m, v, v_max: arrays of one shape and one dtype, float32 or float64; v_max with amsgrad only.
        are_complex: p, g and m are complex numbers, and v is of their sizes.
    """
    g = c["grad_scale"] * g
    if c["coupled"]:
        g = g + c["coupled_decay"] * p
    m = c["beta1"] * m + (c["beta1_low"] * m + c["one_minus_beta1"] * g)
    size = xp.abs(g) if are_complex else g
    v = c["beta2"] * v + (c["beta2_low"] * v + (c["one_minus_beta2"] * size) * size)
    # A zero stays the zero that it is, with its derivative.
    m = xp.where((xp.abs(m) < c["m_floor"]) & (m != 0), xp.zeros_like(m), m)
    v = xp.where((v < c["v_floor"]) & (v != 0), xp.zeros_like(v), v)
    if c["amsgrad"]:
        v_max = xp.where(v_max >= v, v_max, v)
    mode = c.get("mode", "found later")
    if mode != "moments_only":
        n = c["nesterov_m"] * m + c["nesterov_g"] * g if c["nesterov"] else m
        if mode in ("rectified", "found later"):
            below = _sqrt(xp, (v_max if c["amsgrad"] else v) + c["eps_root"]) + c["eps"]
            n = n / (below if mode == "rectified" else xp.where(c["rectified"], below, xp.ones_like(below)))
        moved = c["param_decay"] * p - c["step_size"] * n
        stays = mode == "found later" and c["warmup"] == "moments_only"
        p = xp.where(c["rectified"], moved, p) if stays else moved
    return p, m, v, v_max


def _sqrt(xp: Any, x: Array) -> Array:
    """Return the root, with a derivative of zero at zero: the infinite one would make a NaN of the zero it meets."""
    zero = x == 0
    return xp.where(zero, xp.zeros_like(x), xp.sqrt(xp.where(zero, xp.ones_like(x), x)))


def at_learning_rate(c: Mapping[str, Any], lr: Any, weight_decay: Any, xp: Any = None) -> dict[str, Any]:
    """Return the coefficients for an lr that is itself differentiated or traced, from those for an lr of 1.

    Args:
        c: the coefficients; "param_decay" is a float, but where weight_decay is an array, and then not looked at.
        lr: an array of one number.
        weight_decay: a number, or, where it is decoupled, an array of one too.
        xp: the module of an array weight_decay, as in update.
    """
    # Without a decay p is not scaled, also where lr is infinite.
    if isinstance(weight_decay, (int, float)):
        decay = 1 - lr * weight_decay if c["param_decay"] != 1 else c["param_decay"]
    else:
        decay = xp.where(weight_decay == 0, 1.0, 1 - lr * weight_decay)
    return {**c, "step_size": lr * c["step_size"], "param_decay": decay}
