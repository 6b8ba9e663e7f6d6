"""Measure a step of radam beside the limit of the machine's memory and PyTorch's optimizers, in one interleaved run.

    python bench/run.py                        the whole run: some 5 minutes on 2 cores
    python bench/run.py --quick                the same with small arrays, to try it out; the times mean nothing
    python bench/run.py --cases 33.5M,1000x64

Writes NAME.json (every time taken), NAME.md (tables) and NAME.png (a chart). README.md beside this file says how it
measures. PyTorch and Matplotlib are optional: `pip install ".[bench]"` has both.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import random
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import radam
import report
from cases import CASES, Case, Shapes, element_count
from contestants import CONTESTANTS, WARM_UP_STEPS, Contestant, Step, ask_for_huge_pages, has_torch, set_threads
from machine import available_memory, describe_machine, warn_if_busy

WARM_SECONDS = 0.02  # before each timed step: an idle thread of PyTorch's (libgomp) spins for up to 16 ms
FEWEST_ROUNDS = 3
MEMORY_SHARE = 0.85  # of what is free


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    arguments = _parse(argv)
    chosen = [CONTESTANTS[name] for name in arguments.contestants]
    notes = []
    if any(c.torch for c in chosen) and not has_torch():
        notes.append('PyTorch is not installed, so that only radam and the limit run; pip install ".[bench]" has it.')
        chosen = [c for c in chosen if not c.torch]
    if arguments.huge_pages:
        ask_for_huge_pages()
    if arguments.quick:
        notes.append("A quick run with small arrays, to try the benchmark: the times mean nothing.")
    warn_if_busy(notes)
    for note in notes:
        _say(note)

    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # rather fail now than after the run
    began = time.perf_counter()
    found: dict[str, Any] = {
        "radam_bench": 1,
        "machine": describe_machine(with_torch=any(c.torch for c in chosen)),
        "command": report.command(sys.argv[1:] if argv is None else argv),
        "quick": arguments.quick,
        "seed": arguments.seed,
        "notes": notes,
        "cases": [
            _measure(CASES[name], chosen, arguments, random.Random(f"{arguments.seed} {name}"))
            for name in arguments.cases
        ],
    }
    found["seconds"] = round(time.perf_counter() - began, 1)
    print(report.markdown(found))
    for path in report.write(found, arguments.output):
        _say(f"wrote {path}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    cores = radam.get_num_threads()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(known: Sequence[str]) -> Any:
        def parse(text: str) -> list[str]:
            wanted = [name.strip() for name in text.split(",")]
            for name in wanted:
                if name not in known:
                    raise argparse.ArgumentTypeError(f"{name!r} is none of: {', '.join(known)}")
            return list(dict.fromkeys(wanted))

        return parse

    def threads(text: str) -> list[int]:
        try:
            counts = [cores if part.strip() == "all" else int(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} holds neither 'all' nor a number") from None
        if min(counts) < 1:
            raise argparse.ArgumentTypeError("there must be at least one thread")
        return list(dict.fromkeys(counts))

    def positive(kind: type[int] | type[float]) -> Any:
        def parse(text: str) -> int | float:
            number = kind(text)
            if number <= 0:
                raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
            return number

        parse.__name__ = kind.__name__  # for argparse's message
        return parse

    add = parser.add_argument
    add("--quick", action="store_true", help="small arrays and few rounds")
    add(
        "--cases",
        type=names(list(CASES)),
        default=list(CASES),
        metavar="A,B",
        help=f"of: {', '.join(CASES)}; default: all",
    )
    add(
        "--contestants",
        type=names(list(CONTESTANTS)),
        default=list(CONTESTANTS),
        metavar="A,B",
        help=f"of: {', '.join(CONTESTANTS)}; default: all; limit and radam always run",
    )
    add("--huge-pages", action="store_true", help="let PyTorch ask Linux for huge pages, as NumPy always does")
    add("--threads", type=threads, default="1,all", metavar="N,M", help=f"default: 1,all (all is {cores} here)")
    add("--rounds", type=positive(int), help="at most this many timed steps of each; default: 100, quick 10")
    add("--seconds", type=positive(float), help="about this long per case and thread count; default: 25, quick 2")
    add("--seed", type=int, default=0, help="of the order in which the contestants take turns; default: 0")
    add(
        "--output",
        type=Path,
        metavar="NAME",
        help="where to write NAME.json, .md and .png; default: bench/results/latest, quick: bench/results/quick",
    )
    arguments = parser.parse_args(argv)
    arguments.rounds = arguments.rounds or (10 if arguments.quick else 100)
    arguments.seconds = arguments.seconds or (2.0 if arguments.quick else 25.0)
    arguments.output = arguments.output or Path(__file__).parent / "results" / (
        "quick" if arguments.quick else "latest"
    )
    wanted = {"limit", "radam", *arguments.contestants}
    arguments.contestants = [name for name in CONTESTANTS if name in wanted]
    return arguments


def _measure(
    case: Case, chosen: Sequence[Contestant], arguments: argparse.Namespace, order: random.Random
) -> dict[str, Any]:
    shapes = case.shapes(arguments.quick)
    contestants, left_out = _those_that_fit(case, shapes, chosen)
    _say(f"{case.name}: {element_count(shapes):,} parameters in {len(shapes)} arrays")
    for name, reason in left_out.items():
        _say(f"  without {name}: {reason}")
    torch_too = any(c.torch for c in contestants)
    set_threads(max(arguments.threads), torch_too)
    steps = {c.name: c.make(shapes) for c in contestants}
    for step in steps.values():
        for _ in range(WARM_UP_STEPS):
            step()

    runs = []
    for count in arguments.threads:
        set_threads(count, torch_too)
        with _no_collection():
            times = _rounds(steps, arguments.rounds, arguments.seconds, order)
        runs.append({"threads": count, "contestants": report.summaries(times, len(shapes))})
        medians = (f"{name} {1e3 * found['median_s']:.3g}" for name, found in runs[-1]["contestants"].items())
        _say(f"  {count} thread{'s' * (count > 1)}, ms: " + ", ".join(medians))
    return {
        "name": case.name,
        "what": case.what,
        "tensors": len(shapes),
        "parameters": element_count(shapes),
        "left_out": left_out,
        "radam_peak_extra_bytes": _peak_extra_bytes(steps["radam"]),
        "runs": runs,
    }


def _those_that_fit(
    case: Case, shapes: Shapes, chosen: Sequence[Contestant]
) -> tuple[list[Contestant], dict[str, str]]:
    """Return who takes part, and why the others do not. All stay in memory together, for they take turns."""
    free = available_memory()
    contestants: list[Contestant] = []
    left_out: dict[str, str] = {}
    for contestant in chosen:
        together = [*contestants, contestant]
        needed = sum(c.lasting_bytes(shapes) for c in together) + max(c.passing_bytes(shapes) for c in together)
        if free is not None and needed > MEMORY_SHARE * free:
            left_out[contestant.name] = (
                f"with it {needed / 1e9:.1f} GB would be needed; {MEMORY_SHARE * free / 1e9:.1f} GB may be taken"
            )
        else:
            contestants.append(contestant)
    if not {"limit", "radam"} <= {c.name for c in contestants}:
        raise SystemExit(f"{case.name}: too little memory even for radam and the limit: {left_out}")
    return contestants, left_out


def _rounds(steps: dict[str, Step], most: int, seconds: float, order: random.Random) -> dict[str, dict[int, float]]:
    """Return the seconds of a step by contestant and round. In a round each takes one turn, in an order drawn anew."""
    turns = {}
    for name, step in steps.items():
        began = time.perf_counter()
        _turn(step)
        turns[name] = time.perf_counter() - began
    # Who takes long sits rounds out, so that the time goes to those that are close to each other.
    every = {name: max(1, min(10, round(turn / (3 * turns["limit"])))) for name, turn in turns.items()}
    every["radam"] = 1

    times: dict[str, dict[int, float]] = {name: {} for name in steps}
    began = time.perf_counter()
    for round_ in range(most):
        if round_ >= FEWEST_ROUNDS and time.perf_counter() - began > seconds:
            break
        names = [name for name in steps if round_ % every[name] == 0 or round_ < FEWEST_ROUNDS]
        order.shuffle(names)
        for name in names:
            times[name][round_] = _turn(steps[name])
    return times


def _turn(step: Step) -> float:
    """Return the seconds of one step, after steps that are not timed, until what ran before it has left the cores."""
    began = time.perf_counter()
    while True:
        step()
        if time.perf_counter() - began >= WARM_SECONDS:
            break
    start = time.perf_counter_ns()
    step()
    return (time.perf_counter_ns() - start) * 1e-9


def _peak_extra_bytes(step: Step) -> int:
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
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the timed steps, as timeit does."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
