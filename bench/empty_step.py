"""Measure what a step of a PyTorch optimizer costs when there is next to nothing to step.

    python bench/empty_step.py            some 10 seconds
    python bench/empty_step.py --quick    to try it out; the times mean nothing

Prints a table (Markdown) on standard output. The first row is torch's own wrapper, which runs around the step method of
every optimizer, hooks and profiler included; what the others take beyond it is their own. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import tables
from contestants import LR, WARM_UP_STEPS, set_threads
from machine import describe_machine, warn_if_busy
from measure import no_collection
from radam.torch import RAdam

WRAPPER = ("an empty step method", "")

Who = tuple[str, str]
Times = Mapping[Who, Sequence[float]]


class EmptyStep(torch.optim.Optimizer):
    """An optimizer that does nothing, so that torch's wrapper around its step is all that takes time."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    arguments = _parse(argv)
    notes: list[str] = []
    if arguments.quick:
        notes.append("A quick run, to try the script: the times mean nothing.")
    warn_if_busy(notes)
    set_threads(1, torch_too=True)  # there is nothing to share, and an idle thread would take the core from others
    with no_collection():
        taken = measure(new_steps(), arguments.rounds, arguments.sample, random.Random(arguments.seed))
    print(markdown(taken, notes))
    print(f"\n1 thread; {tables.machine_line(describe_machine(with_torch=True))}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and short rounds")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which they take turns; default: 0")
    arguments = parser.parse_args(argv)
    arguments.rounds, arguments.sample = (5, 1e-4) if arguments.quick else (500, 1e-3)
    return arguments


def new_steps(device: str = "cpu") -> dict[Who, Callable[[], Any]]:
    """Return the steps by optimizer and parameter, past the first ones, which make the states."""
    optimizers: dict[str, Callable[[Any], Any]] = {
        "radam.torch.RAdam": lambda params: RAdam(params, lr=LR),
        "torch.optim.RAdam": lambda params: torch.optim.RAdam(params, lr=LR),
        "torch.optim.AdamW, fused": lambda params: torch.optim.AdamW(params, lr=LR, fused=True),
    }
    params = {"without a gradient": (64, False), "of 0 elements": (0, True), "of 64 elements": (64, True)}
    steps: dict[Who, Callable[[], Any]] = {WRAPPER: EmptyStep([_param(64, True, device)]).step}
    for optimizer, make in optimizers.items():
        for param, size_and_grad in params.items():
            steps[optimizer, param] = make([_param(*size_and_grad, device)]).step
    for step in steps.values():
        for _ in range(WARM_UP_STEPS):
            step()
    return steps


def _param(size: int, has_grad: bool, device: str) -> torch.nn.Parameter:
    param = torch.nn.Parameter(torch.full((size,), 0.1, device=device))
    param.grad = torch.full((size,), 0.01, device=device) if has_grad else None
    return param


def measure(
    steps: Mapping[Who, Callable[[], Any]],
    rounds: int,
    sample: float,
    order: random.Random,
    settle: Callable[[], Any] = lambda: None,
) -> dict[Who, list[float]]:
    """Return the seconds of a call in each round; in a round each takes one turn, in an order drawn anew.

    settle is called before each turn, to wait for what the last one left behind.
    """
    calls = {who: max(1, round(sample / _seconds(step, 20))) for who, step in steps.items()}
    taken: dict[Who, list[float]] = {who: [] for who in steps}
    turns = list(steps)
    for _ in range(rounds):
        order.shuffle(turns)
        for who in turns:
            settle()
            taken[who].append(_seconds(steps[who], calls[who]))
    return taken


def _seconds(step: Callable[[], Any], calls: int) -> float:
    step()  # what ran before has left the caches in its own state
    start = time.perf_counter_ns()
    for _ in range(calls):
        step()
    return (time.perf_counter_ns() - start) * 1e-9 / calls


def markdown(taken: Times, notes: Sequence[str]) -> str:
    """Return the table. What is beyond the wrapper is the median of the differences within a round."""
    lines = [line for note in notes for line in (note, "")]
    lines += [
        f"Microseconds a step, medians of {len(taken[WRAPPER])} interleaved rounds, and quartiles in brackets.",
        "",
        tables.row(["optimizer", "its one parameter", "µs a step", "beyond the wrapper"]),
        tables.row(["---", "---", "--:", "--:"]),
    ]
    for who, seconds in taken.items():
        beyond = [it - wrapper for it, wrapper in zip(seconds, taken[WRAPPER])]
        lines.append(tables.row([*who, _spread(seconds), "" if who == WRAPPER else _spread(beyond)]))
    return "\n".join(lines)


def _spread(seconds: Sequence[float]) -> str:
    low, middle, high = (1e6 * s for s in statistics.quantiles(seconds, n=4, method="inclusive"))
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
