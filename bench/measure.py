"""How a step is measured: in turns, with everything else kept out of the way."""

from __future__ import annotations

import contextlib
import gc
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from contestants import Step
from front_ends import FrontEnd

WARM_SECONDS = 0.02  # before each timed step: an idle thread of PyTorch's (libgomp) spins for up to 16 ms
FEWEST_ROUNDS = 3


def one_step(step: Step) -> float:
    """Return the seconds of one step, after steps that are not timed, until what ran before it has left the cores."""
    began = time.perf_counter()
    while True:
        step()
        if time.perf_counter() - began >= WARM_SECONDS:
            break
    start = time.perf_counter_ns()
    step()
    return (time.perf_counter_ns() - start) * 1e-9


def rounds(
    steps: dict[str, Step],
    front_ends: dict[str, FrontEnd],
    most: int,
    seconds: float,
    order: random.Random,
    take_turn: Callable[[Step], Any] = one_step,
) -> dict[str, dict[int, Any]]:
    """Return what a turn gave by contestant and round. In a round each takes one, in an order drawn anew."""
    turns = {}
    for name, step in steps.items():
        began = time.perf_counter()
        take_turn(step)
        turns[name] = time.perf_counter() - began
    # Who takes long sits rounds out, so that the time goes to those that are close to each other.
    every = {}
    for name, turn in turns.items():
        limit, is_radam = turns[front_ends[name].limit], name == front_ends[name].radam
        every[name] = 1 if is_radam else max(1, min(10, round(turn / (3 * limit))))
    return in_turns(steps, every, most, seconds, order, take_turn)


def in_turns(
    steps: Mapping[str, Step],
    every: Mapping[str, int],
    most: int,
    seconds: float,
    order: random.Random,
    take_turn: Callable[[Step], Any] = one_step,
) -> dict[str, dict[int, Any]]:
    """Return what a turn gave by contestant and round; in each round, or in each second one (every: 2), and so on."""
    times: dict[str, dict[int, Any]] = {name: {} for name in steps}
    began = time.perf_counter()
    for round_ in range(most):
        if round_ >= FEWEST_ROUNDS and time.perf_counter() - began > seconds:
            break
        names = [name for name in steps if round_ % every[name] == 0 or round_ < FEWEST_ROUNDS]
        order.shuffle(names)
        for name in names:
            times[name][round_] = take_turn(steps[name])
    return times


def peak_extra_bytes(step: Step) -> int:
    """Return what a step takes from Python's and NumPy's allocators at its peak."""
    tracemalloc.start()
    try:
        step()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the timed steps, as timeit does."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
