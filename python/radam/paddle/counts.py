"""The step count that Paddle keeps as powers of the betas: how they are written, and how it is found in them again.

Paddle multiplies a power by its beta at every step, in the accumulator's precision, with the beta rounded to float32.
So the powers of step t are one sequence of numbers, the same in every run, which names t exactly until it ends in
numbers too small to go on falling. Beyond that every t gives the same step: 1 - beta^t is 1 in double precision too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import _step

Array = np.ndarray[Any, Any]

_CHUNK = 1 << 16
_MOST_STEPS = 1 << 28  # as far as a sequence is searched


class Powers(NamedTuple):
    """What Paddle's accumulators hold of a step count."""

    beta1_pow: float
    beta2_pow: float
    rho: float


class Exact(NamedTuple):
    """A step count that was saved beside the powers, and the betas that they are of."""

    steps: float
    beta1: float
    beta2: float


@functools.lru_cache(maxsize=256)
def powers(count: int, beta1: float, beta2: float, dtype: str) -> Powers:
    """Return what Paddle's accumulators hold after so many steps, in the parameter's precision."""
    if count == 0:
        return Powers(1.0, 1.0, 1.0)  # as they begin; rho's first value is never read
    single = float(np.float32(beta2))  # Paddle's own rho, and what it subtracts it from, are of this one
    rho = max(0.0, (_step.rho_infinity(single) - _step.rho(single, count)) / 2) if single < 1.0 else 1.0
    return Powers(_power(beta1, count, dtype), _power(beta2, count, dtype), rho)


def find(found: Powers, exact: Exact | None, beta1: float, beta2: float, dtype: str) -> tuple[int, bool]:
    """Return the step count that powers stand for, or the nearest one, and whether they are the powers of that step.

    Args:
        found: what the accumulators hold.
        exact: what was saved beside them; used where it says the same as they do.
        beta1, beta2: of the optimizer; those of the powers where exact is None or of no use.
        dtype: "float32" or "float64", the accumulators' precision.

    Raises:
        ValueError: if a power is none.
    """
    for name, power in zip(("beta1_pow", "beta2_pow"), found):
        if not 0.0 <= power <= 1.0:
            raise ValueError(f"{name} must be a power of a beta, from 0 to 1, got {power}")
    if exact is not None and _is_of(exact, found, dtype):
        return int(exact.steps), True
    if found.beta1_pow == 1.0 and found.beta2_pow == 1.0:
        return 0, True
    tiny = float(np.finfo(dtype).tiny)
    going_on: list[tuple[int, bool]] = []
    ended: list[tuple[int, bool]] = []
    for power, beta in ((found.beta1_pow, beta1), (found.beta2_pow, beta2)):
        count, is_exact = _count(power, beta, dtype)
        if is_exact and tiny <= power < 1.0:
            return count, True
        (going_on if tiny <= power < 1.0 else ended).append((count, is_exact))
    if going_on:
        return going_on[0]
    return max(1, *(count for count, _ in ended)), any(is_exact for _, is_exact in ended)


def _is_of(exact: Exact, found: Powers, dtype: str) -> bool:
    if not (0 <= exact.steps < 2**53 and exact.steps == int(exact.steps)):
        return False
    if not (0.0 <= exact.beta1 < 1.0 and 0.0 <= exact.beta2 < 1.0):
        return False
    return powers(int(exact.steps), exact.beta1, exact.beta2, dtype)[:2] == found[:2]


def _sequence(beta: float, dtype: str) -> Iterator[Array]:
    """Yield the powers from the first on, in chunks, until they fall no more."""
    factor = np.dtype(dtype).type(np.float32(beta))
    last = np.dtype(dtype).type(1)
    while True:
        chunk = np.full(_CHUNK, factor)
        chunk[0] = chunk[0] * last
        np.multiply.accumulate(chunk, out=chunk)
        yield chunk
        if chunk[-1] == chunk[-2]:
            return
        last = chunk[-1]


def _power(beta: float, count: int, dtype: str) -> float:
    for chunk in _sequence(beta, dtype):
        if count <= _CHUNK:
            return float(chunk[count - 1])
        count -= _CHUNK
    return float(chunk[-1])


@functools.lru_cache(maxsize=256)
def _count(power: float, beta: float, dtype: str) -> tuple[int, bool]:
    """Return the first count with this power, or with the nearest one, and whether it is this power."""
    before, last = 0, 1.0
    for chunk in _sequence(beta, dtype):
        place = int(np.searchsorted(-chunk, -power))  # the first that is not above it
        if place < _CHUNK:
            value = float(chunk[place])
            above = float(chunk[place - 1]) if place else last
            count = before + place + 1
            return (count, True) if value == power else (count - (above - power < power - value), False)
        before, last = before + _CHUNK, float(chunk[-1])
        if before >= _MOST_STEPS:
            break
    return before, False
