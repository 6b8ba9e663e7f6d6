"""The measurements of gpu.py: case by case, the contestants in turns; then empty steps; then launches, counted."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

import empty_step
import report
from cases import Case, Shapes, element_count
from command_line import say
from contestants import (
    WARM_UP_STEPS,
    Contestant,
    Step,
    front_ends_of,
    leave_out_incomparable,
    set_threads,
    those_that_fit,
)
from front_ends import CUPY
from gpu_contestants import EVERYONE, GPU_CASES, GPU_CONTESTANTS, ONLY
from gpu_device import CLOCKS, DEVICE, Stopwatch, free_bytes, launches, memory_given_back, peak_extra_bytes
from machine import describe_gpu, describe_machine, gpu_now, warn_if_busy, why_no_cuda
from measure import no_collection, rounds

MEMORY_SHARE = 0.85  # of what is free
STATE_OF_NOW = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
EMPTY_STEP_SHARE = 0.05  # of all the time
EMPTY_STEP_SAMPLE = 1e-3  # seconds


def measure_all(found: dict[str, Any], most: int, seconds: float) -> Iterator[None]:
    """Put what a run finds into a result that says which run it is; stops after each case, for who wants to keep it."""
    began, quick, seed = time.perf_counter(), found["quick"], found["seed"]
    notes = ["A quick run with small arrays, to try the benchmark: the times mean nothing."] if quick else []
    warn_if_busy(notes)
    without_cupy = why_no_cuda("cupy")
    if without_cupy:
        notes.append(f"Without CuPy arrays: {without_cupy}.")
    everyone = [c for c in EVERYONE.values() if not (without_cupy and c.front_end is CUPY)]

    machine = describe_machine(with_torch=True, with_cupy=not without_cupy)
    machine["gpu"] = describe_gpu()
    set_threads(1, torch_too=True)  # nothing is shared among cores, and idle threads would be in the way
    stopwatch = Stopwatch()
    stopwatch.warm_up(0.1 if quick else 1.0)
    machine["gpu"]["before"] = f"{STATE_OF_NOW}: {gpu_now(STATE_OF_NOW)}"

    found.update(machine=machine, notes=notes, front_ends=[], cases=[], empty_step=[])
    per_case = seconds * (1 - EMPTY_STEP_SHARE) / len(GPU_CASES)
    for case in GPU_CASES.values():
        chosen = [c for c in everyone if c.name in ONLY.get(case.name, GPU_CONTESTANTS)]
        order = random.Random(f"{seed} {case.name}")
        found["cases"].append(_measure(case, case.shapes(quick), chosen, stopwatch, most, per_case, order))
        found["front_ends"] = front_ends_of(found["cases"], everyone)
        yield
    found["empty_step"] = _empty_steps(seconds * EMPTY_STEP_SHARE, random.Random(seed))
    machine["gpu"]["after"] = f"{STATE_OF_NOW}: {gpu_now(STATE_OF_NOW)}"
    yield
    for case, its in zip(GPU_CASES.values(), found["cases"]):  # last, for the profiler slows down what comes after it
        if case.name not in ONLY:
            contestants = [c for c in everyone if c.name in its["least_moved_bytes"]]
            its["launches"] = _launches(case.shapes(quick), case.dtype, contestants)
            if not any(counted["kernels"] for counted in its["launches"].values()):
                del its["launches"]
                notes.append(f"{case.name}: PyTorch's profiler saw no kernel, so that launches are not counted.")
    found["seconds"] = round(time.perf_counter() - began, 1)


def _measure(
    case: Case,
    shapes: Shapes,
    chosen: Sequence[Contestant],
    stopwatch: Stopwatch,
    most: int,
    seconds: float,
    order: random.Random,
) -> dict[str, Any]:
    """Return the figures of a case. One that is about nothing but size is halved until all of it fits."""
    wanted = element_count(shapes)
    while True:
        with memory_given_back():
            contestants, left_out = those_that_fit(shapes, case.dtype, chosen, MEMORY_SHARE * free_bytes())
            if not (left_out and _can_be_halved(shapes)):
                say(f"{case.name}: {element_count(shapes):,} {case.dtype} parameters in {len(shapes)} arrays")
                for name, reason in left_out.items():
                    say(f"  without {name}: {reason}")
                try:
                    steps, failed = _steps(shapes, case.dtype, contestants)
                    _leave_out_failed(contestants, steps, left_out, failed)
                    if not contestants:
                        raise SystemExit(f"{case.name}: nobody is left to measure: {left_out}")
                    figures = _figures(shapes, case.dtype, contestants, steps, stopwatch, most, seconds, order)
                    break
                except torch.OutOfMemoryError:  # others took some meanwhile, or an estimate was too low
                    if not _can_be_halved(shapes):
                        raise
                finally:
                    steps = {}
        shapes = [(shape[0] // 2,) for shape in shapes]
        say(f"{case.name}: the memory is too small, so half as many parameters")
    found = case.described(shapes)
    if found["parameters"] < wanted:
        found["what"] += f", cut to {found['parameters']:,} for lack of memory"
    return {**found, "left_out": left_out, "failed": failed, **figures}


def _leave_out_failed(
    contestants: list[Contestant], steps: dict[str, Step], left_out: dict[str, str], failed: Mapping[str, str]
) -> None:
    """Leave out whose step failed, and who cannot be compared without them."""
    contestants[:] = [c for c in contestants if c.name not in failed]
    left_out.update(failed)
    leave_out_incomparable(contestants, left_out)
    for name in left_out:
        steps.pop(name, None)


def _can_be_halved(shapes: Shapes) -> bool:
    return all(len(shape) == 1 and shape[0] >= 1 << 18 for shape in shapes)


def _steps(shapes: Shapes, dtype: str, contestants: Sequence[Contestant]) -> tuple[dict[str, Step], dict[str, str]]:
    """Return the steps past the first ones, and the errors of those that have some: the others are measured still."""
    steps, failed = {}, {}
    for contestant in contestants:
        try:
            step = contestant.make(shapes, dtype, DEVICE)
            for _ in range(WARM_UP_STEPS):
                step()
            torch.cuda.synchronize()
            steps[contestant.name] = step
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failed[contestant.name] = f"failed: {type(error).__name__}: {error}"
            say(f"  {contestant.name} {failed[contestant.name]}")
    return steps, failed


def _figures(
    shapes: Shapes,
    dtype: str,
    contestants: Sequence[Contestant],
    steps: Mapping[str, Step],
    stopwatch: Stopwatch,
    most: int,
    seconds: float,
    order: random.Random,
) -> dict[str, Any]:
    front_ends = {c.name: c.front_end for c in contestants}
    with no_collection():
        turns = rounds(dict(steps), front_ends, most, seconds, order, stopwatch.take_turn)
    runs: list[dict[str, Any]] = []
    for clock in CLOCKS:
        times = {name: {k: turn[clock] for k, turn in taken.items()} for name, taken in turns.items()}
        runs.append({"clock": clock, "contestants": report.summaries(times, front_ends, len(shapes))})
        medians = (f"{name} {1e3 * found['median_s']:.3g}" for name, found in runs[-1]["contestants"].items())
        say(f"  {clock}, ms: " + ", ".join(medians))
    return {
        "least_moved_bytes": {c.name: c.least_moved_bytes(dtype) for c in contestants},
        "peak_extra_bytes": {name: peak_extra_bytes(step) for name, step in steps.items()},
        "runs": runs,
    }


def _launches(shapes: Shapes, dtype: str, contestants: Sequence[Contestant]) -> dict[str, dict[str, int]]:
    counted = {}
    for contestant in contestants:
        with memory_given_back():
            steps, _ = _steps(shapes, dtype, [contestant])
            counted.update({name: launches(step) for name, step in steps.items()})
            del steps
    return counted


def _empty_steps(seconds: float, order: random.Random) -> list[dict[str, Any]]:
    steps = empty_step.new_steps(DEVICE)
    how_often = max(5, round(seconds / (2 * EMPTY_STEP_SAMPLE * len(steps))))
    with no_collection():
        taken = empty_step.measure(steps, how_often, EMPTY_STEP_SAMPLE, order, torch.cuda.synchronize)
    rows = []
    for (optimizer, param), times in taken.items():
        low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
        rows.append({"optimizer": optimizer, "param": param, "median_s": middle, "quartiles_s": [low, high]})
    return rows
