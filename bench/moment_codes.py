"""Codes for moments in fewer bits, simulated: what comes back of a number that went through one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

GOLDEN, ALMOST_ONE = 0.6180339887, 1 - 2**-24
Rounded = Callable[[Tensor, Tensor], Tensor]  # magnitudes over their scale, fractions in [0, 1) -> what comes back


def log_code(octaves: int, kept_bits: int) -> Rounded:
    """Codes that are evenly spread below 2^-octaves of the scale, and 2^kept_bits to an octave above it.

    Lifted by 2^-octaves, a magnitude is a float whose upper bits are the code. Rounding it at random has no bias:
    between two codes a float grows evenly with its bits.
    """
    lift, shift = 2.0**-octaves, 23 - kept_bits
    base, last = (127 - octaves) << 23, octaves << kept_bits

    def round_trip(x: Tensor, fraction: Tensor) -> Tensor:
        bits = (x * (1 - lift) + lift).view(torch.int32) - base
        code = ((bits + (fraction * 2**shift).int()) >> shift).clamp_max(last)
        lifted: Tensor = ((code << shift) + base).view(torch.float32)
        return (lifted - lift) / (1 - lift)

    return round_trip


def even_code(last: int) -> Rounded:
    return lambda x, fraction: (x * last + fraction).floor().clamp_max(last) / last


def square_code(last: int) -> Rounded:
    """Even codes of the root. Random fractions leave a bias, for the root and not its square is what they round."""
    even = even_code(last)
    return lambda x, fraction: even(x.sqrt(), fraction).square()


def unbiased_square_code(last: int) -> Rounded:
    """The same codes, up or down with the probabilities that leave no bias in the square."""

    def round_trip(x: Tensor, fraction: Tensor) -> Tensor:
        below = (x.sqrt() * last).floor().clamp_max(last - 1)
        up = (x * last**2 - below.square()) / (2 * below + 1) > fraction
        return ((below + up) / last).square()

    return round_trip


CODES: dict[str, Rounded] = {
    "linear7": even_code(127),
    "square7": square_code(127),
    "square7 unbiased": unbiased_square_code(127),
    "log8x15": log_code(15, 3),
    "log16x7": log_code(7, 4),
    "log32x3": log_code(3, 5),
    "square8": square_code(255),
    "square8 unbiased": unbiased_square_code(255),
    "log8x31": log_code(31, 3),
    "log16x15": log_code(15, 4),
}
# What code 1 of a v stands for.
LEAST_V = {
    "square8": torch.tensor(255.0**-2),
    "square8 unbiased": torch.tensor(255.0**-2),
    "log8x31": torch.tensor(2.0**-34),
    "log16x15": torch.tensor(2.0**-19 / (1 - 2.0**-15)),
}


@dataclasses.dataclass(frozen=True)
class Way:
    """How both moments are kept between two steps; None is fp32."""

    name: str
    m: str | None = None
    v: str | None = None
    round_m: str = "nearest"
    round_v: str = "nearest"
    block: int = 128
    power_of_two: bool = False
    one_draw: bool = False

    def keep(self, m: Tensor, v: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what is left of the moments after their code."""
        fractions = [self._fractions(m, rounding, generator) for rounding in (self.round_m, self.round_v)]
        if self.m:
            m = self._kept(m, self.m, fractions[0])
        if self.v:
            v = self._kept(v, self.v, fractions[0 if self.one_draw else 1])
        return m, v

    def _fractions(self, like: Tensor, rounding: str, generator: torch.Generator) -> Tensor:
        shape = (len(like) // self.block, self.block)
        if rounding == "lattice":  # one random number a block; each element's fraction is uniform
            steps = torch.arange(self.block) * GOLDEN
            return ((torch.rand(shape[0], 1, generator=generator) + steps.frac()).frac()).clamp_max(ALMOST_ONE)
        return torch.rand(shape, generator=generator) if rounding == "random" else torch.full(shape, 0.5)

    def _kept(self, x: Tensor, code: str, fraction: Tensor) -> Tensor:
        if code == "bf16":
            bits = x.view(torch.int32) + (fraction.flatten() * 2**16).int()
            return (bits & -(2**16)).view(torch.float32)
        blocks = x.view(-1, self.block)
        magnitude = blocks.abs()
        scale = magnitude.amax(1, keepdim=True)
        if self.power_of_two:
            part, exponent = scale.frexp()
            scale = torch.where(part == 0.5, scale, torch.ones_like(scale).ldexp(exponent))
        inverse = torch.where(scale > 0, 1 / scale, 0)
        kept = CODES[code]((magnitude * inverse).clamp_max(1), fraction)
        if code == self.v:  # m would be divided by eps alone
            kept = torch.where(magnitude > 0, kept.maximum(LEAST_V[code]), kept)
        return (kept * scale).copysign(blocks).flatten()

    def row(self) -> str:
        if not self.m and not self.v:
            return f"{self.name} | | 8"
        if self.m == "bf16":
            return f"{self.name} | | 4"
        per_moment = [4.0 if code is None else 1 + 4 / self.block for code in (self.m, self.v)]
        return f"{self.name} | {self.block} | {sum(per_moment):.4g}"


FP32 = Way("fp32")
