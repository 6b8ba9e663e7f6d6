"""Measure a step of radam beside the limit of the machine's memory and PyTorch's optimizers, in one interleaved run.

    python bench/run.py                        the whole run: some 6 minutes on 2 cores
    python bench/run.py --quick                the same with small arrays, to try it out; the times mean nothing
    python bench/run.py --cases 33.5M,1000x64

Writes NAME.json (every time taken), NAME.md (tables) and NAME.png (a chart). README.md beside this file says how it
measures. PyTorch and Matplotlib are optional: `pip install ".[bench]"` has both.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import radam
import report
import tables
from cases import CASES, Case, Shapes, element_count
from command_line import names, positive, say, threads
from contestants import (
    CONTESTANTS,
    WARM_UP_STEPS,
    Contestant,
    ask_for_huge_pages,
    front_ends_of,
    has_torch,
    set_threads,
    those_that_fit,
)
from front_ends import TORCH
from machine import available_memory, describe_machine, warn_if_busy
from measure import no_collection, peak_extra_bytes, rounds

MEMORY_SHARE = 0.85  # of what is free


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    arguments = _parse(argv)
    chosen = [CONTESTANTS[name] for name in arguments.contestants]
    notes = []
    if _any_torch(chosen) and not has_torch():
        notes.append('PyTorch is not installed, so that only NumPy arrays are measured; pip install ".[bench]" has it.')
        chosen = [c for c in chosen if c.front_end is not TORCH]
    cases = []
    for case in (CASES[name] for name in arguments.cases):
        if any(case.dtype in c.front_end.dtypes for c in chosen):
            cases.append(case)
        else:
            notes.append(f"{case.name} is left out: no contestant of this run takes {case.dtype} arrays.")
    if not cases:
        raise SystemExit("nothing to measure: " + " ".join(notes))
    if arguments.huge_pages:
        ask_for_huge_pages()
    if arguments.quick:
        notes.append("A quick run with small arrays, to try the benchmark: the times mean nothing.")
    warn_if_busy(notes)
    for note in notes:
        say(note)

    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # rather fail now than after the run
    began = time.perf_counter()
    found: dict[str, Any] = {
        "radam_bench": report.FORMAT,
        "machine": describe_machine(with_torch=_any_torch(chosen)),
        "command": report.command("run.py", sys.argv[1:] if argv is None else argv),
        "quick": arguments.quick,
        "seed": arguments.seed,
        "notes": notes,
        "front_ends": [],
        "cases": [_measure(case, chosen, arguments, random.Random(f"{arguments.seed} {case.name}")) for case in cases],
    }
    found["front_ends"] = front_ends_of(found["cases"], CONTESTANTS.values())
    found["seconds"] = round(time.perf_counter() - began, 1)
    print(tables.markdown(found))
    for path in report.write(found, arguments.output):
        say(f"wrote {path}")
    return 0


def _any_torch(contestants: Sequence[Contestant]) -> bool:
    return any(c.front_end is TORCH for c in contestants)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    cores = radam.get_num_threads()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

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
        help=f"of: {', '.join(CONTESTANTS)}; default: all; the limit and radam on the same kind of arrays always run",
    )
    add("--huge-pages", action="store_true", help="let PyTorch ask Linux for huge pages, as NumPy always does")
    add("--threads", type=threads(cores), default="1,all", metavar="N,M", help=f"default: 1,all (all is {cores} here)")
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
    front_ends = [CONTESTANTS[name].front_end for name in arguments.contestants]
    wanted = {*arguments.contestants, *(name for fe in front_ends for name in (fe.limit, fe.radam))}
    arguments.contestants = [name for name in CONTESTANTS if name in wanted]
    return arguments


def _measure(
    case: Case, chosen: Sequence[Contestant], arguments: argparse.Namespace, order: random.Random
) -> dict[str, Any]:
    shapes = case.shapes(arguments.quick)
    contestants, left_out = _those_that_fit(case, shapes, chosen)
    say(f"{case.name}: {element_count(shapes):,} {case.dtype} parameters in {len(shapes)} arrays")
    for name, reason in left_out.items():
        say(f"  without {name}: {reason}")
    torch_too = _any_torch(contestants)
    set_threads(max(arguments.threads), torch_too)
    front_ends = {c.name: c.front_end for c in contestants}
    steps = {c.name: c.make(shapes, case.dtype) for c in contestants}
    for step in steps.values():
        for _ in range(WARM_UP_STEPS):
            step()

    runs = []
    for count in arguments.threads:
        set_threads(count, torch_too)
        with no_collection():
            times = rounds(steps, front_ends, arguments.rounds, arguments.seconds, order)
        runs.append({"threads": count, "contestants": report.summaries(times, front_ends, len(shapes))})
        medians = (f"{name} {1e3 * found['median_s']:.3g}" for name, found in runs[-1]["contestants"].items())
        say(f"  {count} thread{'s' * (count > 1)}, ms: " + ", ".join(medians))
    return {
        **case.described(shapes),
        "left_out": left_out,
        "least_moved_bytes": {c.name: c.least_moved_bytes(case.dtype) for c in contestants},
        "peak_extra_bytes": {
            c.name: peak_extra_bytes(steps[c.name]) for c in contestants if c.name == c.front_end.radam
        },
        "runs": runs,
    }


def _those_that_fit(
    case: Case, shapes: Shapes, chosen: Sequence[Contestant]
) -> tuple[list[Contestant], dict[str, str]]:
    """Return who takes part, and why the others do not."""
    free = available_memory()
    room = None if free is None else MEMORY_SHARE * free
    contestants, left_out = those_that_fit(shapes, case.dtype, chosen, room)
    if not contestants:
        raise SystemExit(f"{case.name}: too little memory even for radam and the limit: {left_out}")
    return contestants, left_out


if __name__ == "__main__":
    sys.exit(main())
