"""The schedule of schedule.hpp in JAX's own operations, for platforms that the native call does not reach.

float32 alone would lose it (with beta2 = 0.9999 rho is off by more than it is), so numbers are pairs of float32 here:
hi + lo, some 45 bits. Where JAX has float64, that is used instead.

The sums and products are those of Dekker, "A floating-point technique for extending the available precision",
Numerische Mathematik 18, 1971. They live by rounding, and compilers do not: XLA's turn a * b + c into one fma in one
place and not in another that uses the same product, and with xla_cpu_enable_fast_math they cancel what cancels on
paper. So every result goes through its bits (_seen), where no compiler looks through.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..conventions import find_convention

Scalar = Any  # a Python float, or a 0-d array of JAX
Number = Any  # a Pair, or a float64 array of JAX

_LEAST_POWER = {"pairs": 2.0**-44, "float64": 2.0**-52}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    """An unevaluated sum of two float32 arrays, |lo| at most half a unit in the last place of hi."""

    hi: jax.Array
    lo: jax.Array

    def __add__(self, other: Pair) -> Pair:
        total, error = _sum(self.hi, other.hi)
        return Pair(*_ordered_sum(total, _seen(error + _seen(self.lo + other.lo))))

    def __neg__(self) -> Pair:
        return Pair(-self.hi, -self.lo)

    def __sub__(self, other: Pair) -> Pair:
        return self + -other

    def __mul__(self, other: Pair) -> Pair:
        product, error = _product(self.hi, other.hi)
        return Pair(*_ordered_sum(product, _seen(error + _seen(_seen(self.hi * other.lo) + _seen(self.lo * other.hi)))))

    def __truediv__(self, other: Pair) -> Pair:
        quotient = _seen(self.hi / other.hi)
        rest = self - Pair(quotient, jnp.zeros_like(quotient)) * other
        return Pair(*_ordered_sum(quotient, _seen(rest.hi / other.hi)))

    def __getitem__(self, index: int) -> Pair:
        return Pair(self.hi[index], self.lo[index])


def _sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a + b as rounded, and what rounding took away."""
    total = _seen(a + b)
    b_part = _seen(total - a)
    a_part = _seen(total - b_part)
    return total, _seen(_seen(a - a_part) + _seen(b - b_part))


def _ordered_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same where |a| >= |b|."""
    total = _seen(a + b)
    return total, _seen(b - _seen(total - a))


def _product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a * b as rounded, and what rounding took away."""
    product = _seen(a * b)
    (a_hi, a_lo), (b_hi, b_lo) = _halves(a), _halves(b)
    error = _seen(_seen(a_hi * b_hi) - product)
    error = _seen(error + _seen(a_hi * b_lo))
    error = _seen(error + _seen(a_lo * b_hi))
    return product, _seen(error + _seen(a_lo * b_lo))


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return x as a sum of two numbers of at most 12 bits, whose products are exact."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    hi = lax.bitcast_convert_type((bits + 0x800) & ~0xFFF, jnp.float32)
    return hi, _seen(x - hi)


def _seen(x: jax.Array) -> jax.Array:
    """Return x by way of its bits, one of which would change if it were infinite."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    infinite = (bits & 0x7F800000) == 0x7F800000
    return lax.bitcast_convert_type(bits ^ infinite.astype(jnp.int32), jnp.float32)


def _has_float64() -> bool:
    return bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64)


def _wide(x: Scalar) -> Number:
    """Return a number: a Python float to 45 bits at least, an array as it is (a float32 one as its value)."""
    if _has_float64():
        return jnp.asarray(x, jnp.float64)
    if isinstance(x, jax.Array):
        hi = x.astype(jnp.float32)
        return Pair(hi, jnp.zeros_like(hi))
    hi_value = np.float32(x)
    lo_value = np.float32(float(x) - float(hi_value)) if np.isfinite(hi_value) else np.float32(0)
    return Pair(jnp.asarray(hi_value), jnp.asarray(lo_value))


def _whole(n: jax.Array) -> Number:
    """Return a whole number, at least 0, as a number."""
    if _has_float64():
        return n.astype(jnp.float64)
    return Pair(*_ordered_sum((n >> 16).astype(jnp.float32) * 65536, (n & 0xFFFF).astype(jnp.float32)))


def _near(x: Number) -> jax.Array:
    return x.hi if isinstance(x, Pair) else x


def _where(which: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), yes, no)


def power_sums(beta: Number, complement: Number, t: jax.Array) -> tuple[Number, Number]:
    """Return S0 = sum_{k<t} beta^k and S1 = sum_{k<t} (k + 1) beta^k, by doubling from the top bit of t.

    Args:
        beta: a number, of any shape.
        complement: 1 - beta.
        t: a whole number, at least 0.
    """
    bits = 8 * t.dtype.itemsize - 1
    one = jax.tree.map(jnp.ones_like, beta)
    if isinstance(one, Pair):
        one = Pair(one.hi, jnp.zeros_like(one.lo))
    zero = jax.tree.map(jnp.zeros_like, beta)
    least = _LEAST_POWER["pairs" if isinstance(beta, Pair) else "float64"]

    def double(i: jax.Array, sums: tuple[Number, Number]) -> tuple[Number, Number]:
        s0, s1 = sums
        bit = jnp.asarray(bits - 1 - i, t.dtype)  # i is an int where jit is disabled
        n = (t >> bit) >> 1
        power = one - complement * s0  # beta^n
        power = _where(_near(power) < least, zero, power)  # else its residue, times n, would swamp s1
        s1 = s1 + power * (_whole(n) * s0 + s1)
        s0 = s0 + power * s0
        one_more = one + beta * s0
        odd = ((t >> bit) & 1) == 1
        return _where(odd, one_more, s0), _where(odd, one_more + beta * s1, s1)

    sums: tuple[Number, Number] = lax.fori_loop(0, bits, double, (zero, zero))
    return sums


def rectification(s0: Number, s1: Number, complement: Number) -> tuple[Number, jax.Array]:
    """Return rho and r from the sums of powers of beta2 and from 1 - beta2."""
    one, two, four = _wide(1.0), _wide(2.0), _wide(4.0)
    rho = two * s1 / s0 - one
    rho_inf = two / complement - one
    # Where rho is at most 4 the variance has no closed form: r is 0.
    above = _near(rho - four)
    ratio = above / _near(rho_inf - four) * (_near(rho - two) / _near(rho_inf - two)) * (_near(rho_inf) / _near(rho))
    return rho, jnp.sqrt(jnp.where(above > 0, ratio, 0))


def coefficients(
    t: jax.Array,
    dtype: Any,
    *,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    eps_root: Scalar,
    threshold: Scalar,
    nesterov: bool,
    convention: Any = "optax",
) -> dict[str, Any]:
    """Return what one step needs beside its arrays, for an lr of 1 and no weight decay: r within 1e-6.

    Args:
        t: the number of the step, 1 for the first: a 0-d int32 or int64 array.
        dtype: of what is returned: float32, or float64.
        b1, b2, eps, eps_root, threshold: Python floats, or 0-d arrays, which count as their float32 value unless
            64-bit numbers are on.
        nesterov: whether with Nesterov momentum.
        convention: whose way to rectify, to warm up and to add eps.

    An array that is out of its range makes a NaN of the step size, and of every parameter: nothing can raise here.

    Returns:
        0-d arrays by the names of _step.coefficients, but ``rectified``, a bool, and ``warmup``, the mode of a step
        that is not, instead of ``mode``.
    """
    way = find_convention(convention)
    one = _wide(1.0)
    betas = [_wide(b1), _wide(b2)]
    # A Python float's complement is exact; that of an array is, as a pair.
    complements = [_wide(1.0 - b) if isinstance(b, (int, float)) else one - wide for b, wide in zip((b1, b2), betas)]
    beta = jax.tree.map(lambda x, y: jnp.stack([x, y]), *betas)
    complement = jax.tree.map(lambda x, y: jnp.stack([x, y]), *complements)

    s0, s1 = power_sums(beta, complement, t)
    corrections = _near(complement * s0)
    bc1, bc2 = corrections[0], corrections[1]
    root_bc2 = jnp.sqrt(bc2)
    rho, r = rectification(s0[1], s1[1], complements[1])
    beyond = _near(rho - _wide(threshold))
    rectified = beyond >= 0 if way.rectify_at_threshold else beyond > 0
    step_size = jnp.where(rectified, r * root_bc2, 1) / bc1

    on_v_hat = way.eps_on == "sqrt_v_hat"
    given_eps, given_eps_root = eps, eps_root
    eps = _near(_wide(eps)) * (root_bc2 if on_v_hat else 1)
    eps_root = _near(_wide(eps_root)) * (bc2 if on_v_hat else 1)
    beta1, beta1_low = _split(betas[0], dtype, below=False)
    beta2, beta2_low = _split(betas[1], dtype, below=True)
    nesterov_m: Any = 1.0
    if nesterov:
        nesterov_m = _near(betas[0] * s0[0] / (one + betas[0] * s0[0]))
    tiny = float(np.finfo(dtype).tiny)
    hides = (2.0**-39, 2.0**-102) if np.dtype(dtype) == np.float32 else (2.0**-458, 2.0**-969)
    numbers = {
        "grad_scale": 1.0,
        "coupled_decay": 0.0,
        "beta1": beta1,
        "beta1_low": beta1_low,
        "one_minus_beta1": _near(complements[0]),
        "beta2": beta2,
        "beta2_low": beta2_low,
        "one_minus_beta2": _near(complements[1]),
        "nesterov_m": nesterov_m,
        "nesterov_g": _near(complements[0]) if nesterov else 0.0,
        "param_decay": 1.0,
        "step_size": step_size,
        "eps": eps,
        "eps_root": eps_root,
        "m_floor": tiny,
        "v_floor": jnp.where(((eps_root == 0) & (eps >= hides[0])) | (eps_root >= hides[1]), tiny, 0),
    }
    found = {
        **{name: jnp.asarray(number, dtype) for name, number in numbers.items()},
        "rectified": rectified,
        "warmup": way.warmup,
        "coupled": False,
        "amsgrad": False,
        "nesterov": nesterov,
    }
    tests = [(b1, is_rate), (b2, is_rate), *((x, is_size) for x in (given_eps, given_eps_root, threshold))]
    in_range = [is_so(x) for x, is_so in tests if isinstance(x, jax.Array)]
    return nan_unless(functools.reduce(jnp.logical_and, in_range), found) if in_range else found


def is_rate(x: jax.Array) -> jax.Array:
    """Return whether it is at least 0 and below 1."""
    return (x >= 0) & (x < 1)


def is_size(x: jax.Array) -> jax.Array:
    """Return whether it is finite and at least 0."""
    return (x >= 0) & (x < jnp.inf)


def nan_unless(holds: jax.Array, c: dict[str, Any]) -> dict[str, Any]:
    """Return coefficients whose step is NaN, also one that would leave the parameters alone, unless something holds."""
    size = c["step_size"]
    return {
        **c,
        "step_size": jnp.where(holds, size, jnp.full_like(size, jnp.nan)),
        "rectified": c["rectified"] | ~holds,
    }


def _split(beta: Number, dtype: Any, *, below: bool) -> tuple[jax.Array, jax.Array]:
    """Return beta as a number of a dtype and the rest; with below, a number below beta wherever beta is above 0."""
    if isinstance(beta, Pair):
        hi, lo = beta.hi, beta.lo
    else:
        hi = beta.astype(dtype)
        lo = (beta - hi.astype(jnp.float64)).astype(dtype)
    if below:
        lower = jnp.where(lo > 0, hi, hi * (1 - np.finfo(dtype).epsneg))
        hi, lo = lower, (hi - lower) + lo
    return hi.astype(dtype), lo.astype(dtype)
