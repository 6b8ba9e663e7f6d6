"""Compare codes for moments in fewer bits, in simulation: which loses least of fp32's training?

    python bench/codes.py                                all of it, some 22 minutes on one core
    python bench/codes.py --parts stop,wide,direction    without the trainings, 4 minutes
    python bench/codes.py --quick                        to try it out; the figures mean little

The law is radam's, in PyTorch's operations and fp32; only what is kept between two steps goes through a code and back.
Prints tables (Markdown) on standard output. Needs PyTorch and Rich.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moment_codes import FP32, Way
from radam import _law, _step

BATCH, WIDTH, LAYERS, LR = 8, 64, 6, 8e-3  # of examples/tiny_gpt.py
LAST = 50  # the training loss is the mean of so many steps

M_ALONE = [
    Way(f"{code}, {rounding}", m=code, round_m=rounding)
    for code in ("linear7", "square7", "log8x15", "log16x7", "log32x3")
    for rounding in ("nearest", "lattice")
]
M_ALONE += [
    Way("log8x15, random", m="log8x15", round_m="random"),
    Way("log8x15, lattice, scale 2^n", m="log8x15", round_m="lattice", power_of_two=True),
]
V_ALONE = [
    Way(f"{code}, {rounding}", v=code, round_v=rounding)
    for code in ("square8", "log8x31", "log16x15")
    for rounding in ("nearest", "lattice")
]
V_ALONE += [
    Way("square8 unbiased, lattice", v="square8 unbiased", round_v="lattice"),
    Way("log8x31, random", v="log8x31", round_v="random"),
    Way("log8x31, lattice, scale 2^n", v="log8x31", round_v="lattice", power_of_two=True),
]
BF16 = [Way(f"bf16, {rounding}", "bf16", "bf16", rounding, rounding) for rounding in ("nearest", "random")]


def _both(name: str, m: str, v: str, round_m: str, round_v: str = "", **others: Any) -> Way:
    return Way(name, m, v, round_m, round_v or round_m, **others)


FAVOURITE = _both("log8x15 + log8x31, lattice", "log8x15", "log8x31", "lattice")
ONE_DRAW = dataclasses.replace(FAVOURITE, name="log8x15 + log8x31, one lattice for both", one_draw=True)
M_NEAREST = dataclasses.replace(FAVOURITE, name="log8x15 nearest + log8x31 lattice", round_m="nearest")
NEAREST = _both("log8x15 + log8x31, nearest", "log8x15", "log8x31", "nearest")
FINER = _both("log16x7 + log16x15, lattice", "log16x7", "log16x15", "lattice")
PAIRS = [
    _both("linear7 + square8, nearest", "linear7", "square8", "nearest"),
    _both("square7 + square8, nearest", "square7", "square8", "nearest"),
    _both("square7 + square8, lattice", "square7", "square8", "lattice"),
    NEAREST,
    *(dataclasses.replace(FAVOURITE, block=block) for block in (64, 128, 256, 512)),
    M_NEAREST,
    ONE_DRAW,
    _both("log8x15 + log16x15, lattice", "log8x15", "log16x15", "lattice"),
    _both("log16x7 + log8x31, lattice", "log16x7", "log8x31", "lattice"),
    FINER,
    *BF16,
]
# Rounding errors grow in training: a run from a start nudged in the last bits tells by how much runs part anyway.
NUDGED = Way("fp32, start nudged by 1e-7")
FINALISTS = [FAVOURITE, FINER]


def coefficients(t: int, lr: float = 1.0, beta2: float = 0.999, weight_decay: float = 0.0) -> Mapping[str, Any]:
    settings = _step.Hyperparameters(
        lr=lr, beta1=0.9, beta2=beta2, eps=1e-8, weight_decay=weight_decay, decoupled_weight_decay=True
    )
    return _step.coefficients(settings, t)


class Moments:
    """The moments of one flat array, kept as a way says."""

    def __init__(self, way: Way, size: int, seed: int = 0) -> None:
        self._way = way
        self._generator = torch.Generator().manual_seed(seed)
        self.m, self.v = torch.zeros(size), torch.zeros(size)

    def step(self, c: Mapping[str, Any], p: Tensor, g: Tensor) -> Tensor:
        """Return the parameters after a step. It sees the new moments exactly, only the next step sees what is kept."""
        p, m, v, _ = _law.update(torch, c, p, g, self.m, self.v)
        self.m, self.v = self._way.keep(m, v, self._generator)
        return p


class Training:
    """The model of examples/tiny_gpt.py, its matrices in one flat array and its vectors in another."""

    def __init__(self, way: Way, seed: int, steps: int) -> None:
        tiny_gpt = _tiny_gpt()
        torch.manual_seed(seed)
        self.model = tiny_gpt.GPT(WIDTH, LAYERS)
        self._steps = steps
        if way is NUDGED:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.mul_(1 + 1e-7 * torch.randn(parameter.shape))
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        # No block straddles tensors, and none is short: so all of them can be seen as one.
        assert all(p.numel() >= 4096 and p.numel() % 512 == 0 for p in matrices)
        self.flat = [_flatten(matrices), _flatten(vectors)]
        self._moments = [Moments(way, len(self.flat[0][0]), seed), Moments(FP32, len(self.flat[1][0]))]
        self.losses: list[float] = []

    def gradient(self, batch: Tensor) -> None:
        """Leave the gradients in flat, clipped."""
        for _, g in self.flat:
            g.zero_()
        loss = self.model.loss(batch)
        loss.backward()
        self.losses.append(loss.item())
        norm = math.sqrt(sum(float(g.square().sum()) for _, g in self.flat))
        for _, g in self.flat:
            g.mul_(min(1.0, 1.0 / (norm + 1e-6)))

    def step(self) -> None:
        t = len(self.losses)
        lr = LR * (1 + math.cos(math.pi * (t - 1) / self._steps)) / 2
        for (p, g), moments, decay in zip(self.flat, self._moments, (0.1, 0.0)):
            p.copy_(moments.step(coefficients(t, lr, weight_decay=decay), p, g))


def _tiny_gpt() -> Any:
    folder = str(Path(__file__).resolve().parents[1] / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("tiny_gpt")


def _flatten(parameters: Sequence[torch.nn.Parameter]) -> tuple[Tensor, Tensor]:
    """Move parameters and gradients into two flat arrays, of which they become parts."""
    flat = torch.cat([p.detach().flatten() for p in parameters])
    gradients = torch.zeros_like(flat)
    begin = 0
    for p in parameters:
        here = slice(begin, begin := begin + p.numel())
        p.data, p.grad = flat[here].view(p.shape), gradients[here].view(p.shape)
    return flat, gradients


def batches(seed: int, steps: int) -> Iterator[Tensor]:
    tiny_gpt = _tiny_gpt()
    text, _ = tiny_gpt.standard_library()
    generator = torch.Generator().manual_seed(seed)
    window = torch.arange(tiny_gpt.CONTEXT + 1)
    for _ in range(steps):
        yield text[torch.randint(len(text) - tiny_gpt.CONTEXT, (BATCH, 1), generator=generator) + window]


def train(way: Way, seed: int, steps: int) -> tuple[float, float]:
    """Return the training and the held-out loss at the end, in bits per byte."""
    training = Training(way, seed, steps)
    for batch in batches(seed, steps):
        training.gradient(batch)
        with torch.no_grad():
            training.step()
    _, held_out = _tiny_gpt().standard_library()
    window = torch.arange(_tiny_gpt().CONTEXT + 1)
    unseen = held_out[torch.linspace(0, len(held_out) - len(window), 1024).long()[:, None] + window]
    with torch.no_grad():
        loss = statistics.fmean(training.model.loss(part).item() for part in unseen.split(128))
    return statistics.fmean(training.losses[-LAST:]), loss


def show_training(ways: Sequence[Way], seeds: Sequence[int], steps: int) -> None:
    """Print by how much the losses of each way differ from fp32's."""
    reference = [train(FP32, seed, steps) for seed in seeds]
    print(f"\ntiny_gpt, {steps} steps, seeds {', '.join(map(str, seeds))}. fp32 ends at a training loss (last {LAST}")
    print(f"steps) of {_means(reference)[0]:.4f} and a held-out loss of {_means(reference)[1]:.4f} bits per byte.\n")
    print("| moments | block | bytes | training loss over fp32's | held-out loss over fp32's | of each seed |")
    print("| --- | --: | --: | --: | --: | --: |")
    for way in ways:
        found = [train(way, seed, steps) for seed in seeds]
        ratios = [tuple(100 * (a / b - 1) for a, b in zip(*pair)) for pair in zip(found, reference)]
        mean, each = _means(ratios), ", ".join(f"{ratio[1]:+.2f}" for ratio in ratios)
        print(f"| {way.row()} | {mean[0]:+.2f} % | {mean[1]:+.2f} % | {each} |", flush=True)


def _means(rows: Sequence[tuple[float, ...]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*rows)]


@torch.no_grad()
def direction_errors(ways: Sequence[Way], steps: int, sampled_from: int, every: int) -> list[list[float]]:
    """Return how far the direction m / (sqrt(v) + eps) of each way is from fp32's, all fed with the gradients of fp32.

    The median and the 99th percentile of the elements' relative errors, the norm of the error and by how much the
    direction is longer, both over the norm of fp32's.
    """
    training = Training(FP32, 0, steps)
    size = len(training.flat[0][0])
    zeros, exact, kept = torch.zeros(size), Moments(FP32, size), [Moments(way, size) for way in ways]
    samples: list[list[tuple[float, ...]]] = [[] for _ in ways]
    for t, batch in enumerate(batches(0, steps), 1):
        with torch.enable_grad():
            training.gradient(batch)
        # A step of size -1 from zero is the direction itself.
        c = {**coefficients(t), "step_size": -1.0}
        g = training.flat[0][1]
        truth = exact.step(c, zeros, g)
        for moments, into in zip(kept, samples):
            found = moments.step(c, zeros, g)
            if t >= sampled_from and t % every == 0:
                error = (found - truth).abs()
                relative = (error / truth.abs().clamp_min(1e-30)).sort().values
                median, high = relative[size // 2].item(), relative[size * 99 // 100].item()
                whole, length = (norm.item() / truth.norm().item() for norm in (error.norm(), found.norm()))
                into.append((median, high, whole, length - 1))
        training.step()
    return [_means(rows) for rows in samples]


def show_directions(parts: Mapping[str, Sequence[Way]], steps: int) -> None:
    """Print the errors of the update direction along fp32's trajectory."""
    every, first = max(steps // 20, 1), steps // 4
    errors = iter(direction_errors([way for ways in parts.values() for way in ways], steps, first, every))
    print(f"\nError of the direction m / (sqrt(v) + eps) in fp32's training of tiny_gpt, means of every {every}th step")
    print(f"from {first} to {steps}. An element's error is relative to itself, the last two columns to all elements.")
    for name, ways in parts.items():
        print(f"\n| {name} | block | bytes | median | 99th percentile | of the whole | length |")
        print("| --- | --: | --: | --: | --: | --: | --: |")
        for way, (median, high, whole, length) in zip(ways, errors):
            print(f"| {way.row()} | {median:.2%} | {high:.1%} | {whole:.2%} | {length:+.2%} |", flush=True)


@torch.no_grad()
def after_a_stop(ways: Sequence[Way], steps: int, beta2: float = 0.99, size: int = 2048) -> list[list[float]]:
    """Return the largest direction of elements whose gradient has become zero for good, in each third of the steps.

    Their neighbours in the blocks go on. In fp32 m decays faster than sqrt(v), and so the direction goes to zero.
    """
    generator = torch.Generator().manual_seed(3)
    zeros, kept = torch.zeros(size), [Moments(way, size) for way in ways]
    largest = [[0.0, 0.0, 0.0] for _ in ways]
    stop = steps // 10
    for t in range(steps):
        g = torch.randn(size, generator=generator)
        if t >= stop:
            g[::2] = 0
        c = {**coefficients(t + 1, beta2=beta2), "step_size": -1.0}
        for moments, into in zip(kept, largest):
            found = moments.step(c, zeros, g)[::2].abs().max().item()
            if t >= stop:
                third = 3 * (t - stop) // (steps - stop)
                into[third] = max(into[third], found)
    return largest


def show_stop(ways: Sequence[Way], steps: int) -> None:
    print("\nEvery second gradient of a block becomes zero for good, the others stay normal. Largest entry of")
    print(f"their direction in each third of the {steps - steps // 10} steps after that, beta2 = 0.99.\n")
    print("| m + v | block | bytes | first third | second | last |")
    print("| --- | --: | --: | --: | --: | --: |")
    for way, found in zip((FP32, *ways), after_a_stop((FP32, *ways), steps)):
        print(f"| {way.row()} | {' | '.join(f'{x:.2g}' for x in found)} |", flush=True)


@dataclasses.dataclass(frozen=True)
class Wide:
    """What becomes of blocks with 4 decades of gradients: of all elements, the smallest fifth, the largest fifth."""

    v_ratio: list[float]  # mean of v over fp32's v
    error: list[float]  # of the direction, over the direction, root mean squares
    largest: float  # direction of all elements and steps looked at, over fp32's


@torch.no_grad()
def wide_blocks(ways: Sequence[Way], beta2: float, steps: int, size: int = 8192) -> list[Wide]:
    """Feed all ways gradients that are independent and normal, with a size of its own for each element."""
    generator = torch.Generator().manual_seed(1)
    sizes = 10 ** (4 * torch.rand(size, generator=generator) - 4)
    order, fifth = sizes.argsort(), size // 5
    zeros, exact, kept = torch.zeros(size), Moments(FP32, size), [Moments(way, size) for way in ways]
    directions: list[list[Tensor]] = [[] for _ in (FP32, *ways)]
    for t in range(1, steps + 1):
        g = sizes * torch.randn(size, generator=generator)
        c = {**coefficients(t, beta2=beta2), "step_size": -1.0}
        for moments, into in zip((exact, *kept), directions):
            found = moments.step(c, zeros, g)
            if t > steps // 2 and t % max(steps // 40, 1) == 0:
                into.append(found[order])
    truth, *others = (torch.stack(each) for each in directions)
    parts = (slice(None), slice(fifth), slice(-fifth, None))
    return [
        Wide(
            [(moments.v / exact.v)[order][part].mean().item() for part in parts],
            [((found - truth)[:, part].norm() / truth[:, part].norm()).item() for part in parts],
            (found.abs().max() / truth.abs().max()).item(),
        )
        for moments, found in zip(kept, others)
    ]


def show_wide_blocks(v_ways: Sequence[Way], pairs: Sequence[Way], runs: Mapping[float, int]) -> None:
    print("\nGradients are normal, of sizes that differ by up to 4 decades within a block. v over fp32's v, mean over")
    print("all elements (the smallest fifth, the largest fifth); the goal is 1.\n")
    print("| v | block | bytes | " + " | ".join(f"beta2 = {beta2}, step {n}" for beta2, n in runs.items()) + " |")
    print("| --- | --: | --: |" + " --: |" * len(runs))
    for way, *found in zip(v_ways, *(wide_blocks(v_ways, beta2, steps) for beta2, steps in runs.items())):
        cells = ("{:.3g} ({:.3g}, {:.3g})".format(*wide.v_ratio) for wide in found)
        print(f"| {way.row()} | {' | '.join(cells)} |", flush=True)
    beta2, steps = next(iter(runs.items()))
    print(f"\nThe same gradients, beta2 = {beta2}, {steps} steps: error of the direction over the direction,")
    print("root mean squares; the last column is the largest entry of a direction over fp32's largest.\n")
    print("| m + v | block | bytes | all | smallest fifth | largest fifth | largest entry |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for way, wide in zip(pairs, wide_blocks(pairs, beta2, steps)):
        cells = (f"{error:.1%}" for error in wide.error)
        print(f"| {way.row()} | {' | '.join(cells)} | {wide.largest:.3g} |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps of each, to try the script")
    parser.add_argument("--parts", default="stop,wide,direction,screen,final", help="which tables (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of the final trainings (%(default)s)")
    parser.add_argument("--steps", type=int, default=2500, metavar="N", help="of the final trainings (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    quick = arguments.quick
    blocks = [dataclasses.replace(FAVOURITE, name="log8x31, lattice", m=None, block=block) for block in (64, 256, 512)]
    parts: dict[str, Callable[[], None]] = {
        "stop": lambda: show_stop(PAIRS, 30 if quick else 3000),
        "wide": lambda: show_wide_blocks(
            [*V_ALONE, *blocks, *BF16], PAIRS, {0.999: 20, 0.9999: 20} if quick else {0.999: 3000, 0.9999: 12000}
        ),
        "direction": lambda: show_directions(
            {"m alone": M_ALONE, "v alone": V_ALONE, "m + v": PAIRS}, 12 if quick else 300
        ),
        "screen": lambda: show_training([NUDGED, *PAIRS], [0], 12 if quick else 1000),
        "final": lambda: show_training(
            FINALISTS, range(1 if quick else arguments.seeds), 12 if quick else arguments.steps
        ),
    }
    wanted = arguments.parts.split(",")
    if unknown := set(wanted) - set(parts):
        parser.error(f"there is no part {unknown.pop()}; there are {', '.join(parts)}")
    print(f"torch {torch.__version__}, 1 thread")
    for name in wanted:
        begin = time.perf_counter()
        parts[name]()
        print(f"\n{name} took {time.perf_counter() - begin:.0f} s.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
