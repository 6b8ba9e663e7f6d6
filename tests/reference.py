"""Independent oracles: the law in wide arithmetic with the error it is allowed, exact fma, and the steps to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import mpmath as mp
import numpy as np

from radam import _core

Array = np.ndarray[Any, Any]

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
LOW = ("float32", "bfloat16", "float16")
LOW_PAIRS = [(p, g) for p in LOW for g in LOW]
PAIRS = [("float64", "float64"), *LOW_PAIRS]

# Bits of the significand, the hidden one included, and the exponent of the smallest normal number.
FORMATS = {"float64": (53, -1022), "float32": (24, -126), "bfloat16": (8, -126), "float16": (11, -14)}


# ---- steps


@dataclasses.dataclass
class Buffers:
    """What one parameter's step reads and writes."""

    param: Array
    grad: Array
    exp_avg: Array
    exp_avg_sq: Array
    max_exp_avg_sq: Array

    def copy(self) -> Buffers:
        return Buffers(*(a.copy() for a in self.arrays()))

    def arrays(self) -> tuple[Array, ...]:
        return (self.param, self.grad, self.exp_avg, self.exp_avg_sq, self.max_exp_avg_sq)

    def pick(self, index: Any) -> Buffers:
        return Buffers(*(a[index] for a in self.arrays()))


def group_of(hyperparameters: _core.Hyperparameters, t: int, slots: Sequence[Buffers]) -> tuple[Any, ...]:
    """One group as the core takes it, about to take step t."""
    p, g, m, v, v_max = (tuple(s) for s in zip(*(slot.arrays() for slot in slots), strict=True))
    return (hyperparameters, None, p, g, m, v, v_max, np.full(len(slots), t - 1, np.int64), None)


def step(hyperparameters: _core.Hyperparameters, t: int, *slots: Buffers) -> None:
    """Take step t of the core over the slots, in place."""
    assert _core.step((group_of(hyperparameters, t, slots),), "propagate")


def spread(rng: np.random.Generator, n: int, dtype: str, low: float, high: float) -> Array:
    """Numbers of both signs with magnitudes from 2^low to 2^high."""
    x = np.exp2(rng.uniform(low, high, n)) * rng.choice([-1.0, 1.0], n)
    return x.astype(DTYPES[dtype])


def bits(x: Array) -> Array:
    """The bits of an array in C order, every NaN as the same one."""
    x = np.array(x, order="C")
    with np.errstate(invalid="ignore"):
        nan = x != x
    words = x.view(f"u{x.itemsize}")
    words[nan] = np.iinfo(words.dtype).max
    return words


def same_bits(got: Buffers, expected: Buffers, what: str = "") -> None:
    """Assert that two results of a step are the same, bit for bit."""
    for name in (field.name for field in dataclasses.fields(Buffers)):
        a, b = bits(getattr(got, name)).ravel(), bits(getattr(expected, name)).ravel()
        assert a.shape == b.shape
        different = np.flatnonzero(a != b)
        if different.size:
            i = int(different[0])
            raise AssertionError(f"{what}: {name}[{i}] is {a[i]:#x}, expected {b[i]:#x} ({different.size} differ)")


# ---- the law


@dataclasses.dataclass
class Expected:
    """The exact results and how far from them a step may be."""

    param: Array
    exp_avg: Array
    exp_avg_sq: Array
    param_bound: Array
    exp_avg_bound: Array
    exp_avg_sq_bound: Array


def law(
    c: dict[str, Any], b: Buffers, g: Array, *, amsgrad: bool, decoupled: bool, u: Any, sqrt: Callable[[Any], Any]
) -> Expected:
    """The law in the arithmetic of its inputs (float64 arrays, or mpf objects), g as the law rounded it.

    The bounds leave out the last rounding of the parameter, which depends on its storage.
    """
    beta1, beta2 = c["beta1"] + c["beta1_low"], c["beta2"] + c["beta2_low"]
    kept, new = beta1 * b.exp_avg, c["one_minus_beta1"] * g
    m = kept + new
    m_size = abs(kept) + abs(new)
    v = beta2 * b.exp_avg_sq + c["one_minus_beta2"] * g * g
    n, n_size = m, m_size
    if c["nesterov_g"] != 0:
        n = c["nesterov_m"] * m + c["nesterov_g"] * g
        n_size = c["nesterov_m"] * m_size + abs(c["nesterov_g"] * g)
    below = 1
    if c["mode"] == "rectified":
        below = sqrt((np.maximum(b.max_exp_avg_sq, v) if amsgrad else v) + c["eps_root"]) + c["eps"]
    moved = 0 if c["mode"] == "moments_only" else 1
    decay = c["param_decay"] if moved else 1
    p = decay * b.param - moved * c["step_size"] * n / below
    p_bound = moved * 10 * u * c["step_size"] * n_size / below
    if decoupled:
        p_bound = p_bound + u * abs(b.param) * 3 / 2
    return Expected(p, m, v, p_bound, 3 * u * m_size, 4 * u * v)


def half_ulp(x: Array, dtype: str) -> Array:
    """Half the distance between neighbours of a storage type at x (float64)."""
    precision, smallest = FORMATS[dtype]
    exponent = np.frexp(x)[1] - 1
    return np.ldexp(0.5, np.maximum(exponent, smallest) - (precision - 1))


def fma32(a: Any, b: Any, c: Any) -> Array:
    """Float32 a * b + c, rounded once: the product is exact in float64, the sum is rounded to odd there."""
    product, addend = np.asarray(a, np.float64) * np.asarray(b, np.float64), np.asarray(c, np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    even = (total.view(np.int64) & 1) == 0
    return np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total).astype(np.float32)


def rounded(x: Fraction, dtype: str) -> Fraction:
    """An exact number rounded to nearest even in a storage type, by whole numbers alone. No overflow."""
    precision, smallest = FORMATS[dtype]
    if x == 0:
        return x
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, smallest) - (precision - 1))
    return round(x / unit) * unit  # Python's round is to nearest even


def fma64(a: float, b: float, c: float) -> float:
    """Float64 a * b + c, rounded once."""
    return float(rounded(Fraction(a) * Fraction(b) + Fraction(c), "float64"))


to_mpf = np.frompyfunc(lambda x: mp.mpf(float(x)), 1, 1)
mpf_sqrt = np.frompyfunc(mp.sqrt, 1, 1)


# ---- the conventions, each as its framework writes it, with the scalars of a step in 120-bit arithmetic


@dataclasses.dataclass
class Trajectory:
    """Float64 arrays that a formula moves by one step at a time."""

    p: Array
    m: Array
    v: Array
    v_max: Array

    @classmethod
    def start(cls, p: Array) -> Trajectory:
        return cls(p.copy(), np.zeros_like(p), np.zeros_like(p), np.zeros_like(p))


def _moments(s: Trajectory, g: Array, betas: tuple[float, float]) -> None:
    s.m = betas[0] * s.m + (1 - betas[0]) * g
    s.v = betas[1] * s.v + (1 - betas[1]) * g * g


def _rho(t: int, beta2: float) -> tuple[Any, Any, Any]:
    """The textbook rho_inf, rho_t and beta2^t, in numbers wide enough for the cancellation."""
    with mp.workdps(60):
        power = mp.mpf(beta2) ** t
        rho_inf = 2 / (1 - mp.mpf(beta2)) - 1
        return rho_inf, rho_inf - 2 * t * power / (1 - power), power


def torch_radam(
    s: Trajectory,
    g: Array,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> None:
    """torch.optim.RAdam; also Paddle's, MindSpore's and Lucid's engine."""
    if decoupled:
        s.p = s.p * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * s.p
    _moments(s, g, betas)
    rho_inf, rho_t, power = _rho(t, betas[1])
    m_hat = s.m / float(1 - mp.mpf(betas[0]) ** t)
    if rho_t > 5:
        rect = float(mp.sqrt((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t)))
        adaptive = float(mp.sqrt(1 - power)) / (np.sqrt(s.v) + eps)
        s.p = s.p - m_hat * lr * adaptive * rect
    else:
        s.p = s.p - m_hat * lr


def lucid_docs_radam(
    s: Trajectory, g: Array, t: int, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
) -> None:
    """The formula on Lucid's page: the paper's threshold, eps beside the root of the corrected v."""
    g = g + weight_decay * s.p
    _moments(s, g, betas)
    rho_inf, rho_t, power = _rho(t, betas[1])
    m_hat = s.m / float(1 - mp.mpf(betas[0]) ** t)
    if rho_t > 4:
        r = float(mp.sqrt((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t)))
        s.p = s.p - lr * r * m_hat / (np.sqrt(s.v / float(1 - power)) + eps)
    else:
        s.p = s.p - lr * m_hat


def author_radam(
    s: Trajectory,
    g: Array,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
    degenerated_to_sgd: bool = False,
) -> None:
    """LiyuanLucasLiu/RAdam: N_sma >= 5, and before that nothing moves but the moments."""
    _moments(s, g, betas)
    n_max, n_sma, power = _rho(t, betas[1])
    bias1 = 1 - mp.mpf(betas[0]) ** t
    if n_sma >= 5:
        ratio = (1 - power) * (n_sma - 4) / (n_max - 4) * (n_sma - 2) / n_sma * n_max / (n_max - 2)
        s.p = s.p - weight_decay * lr * s.p
        s.p = s.p - float(mp.sqrt(ratio) / bias1) * lr * s.m / (np.sqrt(s.v) + eps)
    elif degenerated_to_sgd:
        s.p = s.p - weight_decay * lr * s.p
        s.p = s.p - float(1 / bias1) * lr * s.m


def optax_radam(
    s: Trajectory,
    g: Array,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    nesterov: bool = False,
) -> None:
    """optax.radam: scale_by_radam, then scale by -lr."""
    b1, _ = betas
    _moments(s, g, betas)
    ro_inf, ro, power = _rho(t, betas[1])
    bias1, next_bias1 = float(1 - mp.mpf(b1) ** t), float(1 - mp.mpf(b1) ** (t + 1))
    mu_hat = b1 * (s.m / next_bias1) + (1 - b1) * (g / bias1) if nesterov else s.m / bias1
    nu_hat = s.v / float(1 - power)
    update = mu_hat
    if ro >= threshold:
        r = float(mp.sqrt((ro - 4) * (ro - 2) * ro_inf / ((ro_inf - 4) * (ro_inf - 2) * ro)))
        update = r * mu_hat / (np.sqrt(nu_hat + eps_root) + eps)
    s.p = s.p + -lr * update


def tfa_radam(
    s: Trajectory,
    g: Array,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
    sma_threshold: float = 5.0,
    amsgrad: bool = False,
) -> None:
    """tfa.optimizers.RectifiedAdam."""
    _moments(s, g, betas)
    sma_inf, sma_t, power = _rho(t, betas[1])
    m_corr = s.m / float(1 - mp.mpf(betas[0]) ** t)
    s.v_max = np.maximum(s.v_max, s.v)
    v_corr = np.sqrt((s.v_max if amsgrad else s.v) / float(1 - power))
    update = m_corr
    if sma_t >= sma_threshold:
        r_t = float(mp.sqrt((sma_t - 4) / (sma_inf - 4) * (sma_t - 2) / (sma_inf - 2) * sma_inf / sma_t))
        update = r_t * m_corr / (v_corr + eps)
    s.p = s.p - lr * (update + weight_decay * s.p)


def adam(
    s: Trajectory,
    g: Array,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    amsgrad: bool = False,
) -> None:
    """Kingma and Ba, with torch's amsgrad (the maximum of the uncorrected v) and AdamW's decay."""
    if decoupled:
        s.p = s.p * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * s.p
    _moments(s, g, betas)
    s.v_max = np.maximum(s.v_max, s.v)
    m_hat = s.m / float(1 - mp.mpf(betas[0]) ** t)
    v_hat = (s.v_max if amsgrad else s.v) / float(1 - mp.mpf(betas[1]) ** t)
    s.p = s.p - lr * m_hat / (np.sqrt(v_hat) + eps)
