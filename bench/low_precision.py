"""Measure steps of weights and moments in fewer bits, clipped steps, their limits and PyTorch's fused AdamW.

    python bench/low_precision.py              the whole run: some 5 minutes on 2 cores
    python bench/low_precision.py --quick      the same with small arrays, to try it out; the times mean nothing
    python bench/low_precision.py --seconds 60 --output bench/results/my-machine

Writes NAME.json (every time taken), NAME.md (tables) and NAME.png (a chart). README.md beside this file says how it
measures. PyTorch, ml_dtypes (bfloat16 for NumPy) and Matplotlib are optional.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import low_precision_chart
import low_precision_tables
import radam
import report
from cases import element_count
from command_line import names, positive, say, threads
from contestants import WARM_UP_STEPS, ask_for_huge_pages, has_torch, set_threads
from low_precision_contestants import (
    LOW_PRECISION_CASES,
    Contestant,
    LowPrecisionCase,
    those_that_fit,
)
from machine import available_memory, describe_machine, warn_if_busy
from measure import in_turns, no_collection

FORMAT = 1  # of the JSON; README.md beside this file says what its keys mean
MEMORY_SHARE = 0.85  # of what is free


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    arguments = _parse(argv)
    notes = []
    if arguments.quick:
        notes.append("A quick run with small arrays, to try the benchmark: the times mean nothing.")
    warn_if_busy(notes)
    for note in notes:
        say(note)
    ask_for_huge_pages()

    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # rather fail now than after the run
    began = time.perf_counter()
    found: dict[str, Any] = {
        "radam_low_precision_bench": FORMAT,
        "machine": describe_machine(with_torch=has_torch()),
        "command": report.command("low_precision.py", sys.argv[1:] if argv is None else argv),
        "quick": arguments.quick,
        "seed": arguments.seed,
        "notes": notes,
        "cases": [
            _measure(LOW_PRECISION_CASES[name], arguments, random.Random(f"{arguments.seed} {name}"))
            for name in arguments.cases
        ],
    }
    found["seconds"] = round(time.perf_counter() - began, 1)
    print(low_precision_tables.markdown(found))
    for path in report.write(found, arguments.output, low_precision_tables.markdown, low_precision_chart.draw):
        say(f"wrote {path}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    cores = radam.get_num_threads()
    known = list(LOW_PRECISION_CASES)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="small arrays and few rounds")
    add("--cases", type=names(known), default=known, metavar="A,B", help=f"of: {', '.join(known)}")
    add("--threads", type=threads(cores), default="1,all", metavar="N,M", help=f"default: 1,all (all is {cores} here)")
    add("--rounds", type=positive(int), help="at most this many timed steps; default: 100, quick 10")
    add("--seconds", type=positive(float), help="about this long in all; default: 300, quick 10")
    add("--seed", type=int, default=0, help="of the order in which the contestants take turns; default: 0")
    add(
        "--output",
        type=Path,
        metavar="NAME",
        help="where to write NAME.json, .md and .png; default: bench/results/low-precision, quick: .../quick",
    )
    arguments = parser.parse_args(argv)
    arguments.rounds = arguments.rounds or (10 if arguments.quick else 100)
    arguments.seconds = arguments.seconds or (10.0 if arguments.quick else 300.0)
    name = "quick" if arguments.quick else "low-precision"
    arguments.output = arguments.output or Path(__file__).parent / "results" / name
    return arguments


def _measure(case: LowPrecisionCase, arguments: argparse.Namespace, order: random.Random) -> dict[str, Any]:
    gc.collect()  # the arrays of the case before
    began = time.perf_counter()
    shapes = case.case.shapes(arguments.quick)
    free = available_memory()
    families, left_out = those_that_fit(case, shapes, None if free is None else MEMORY_SHARE * free)
    if not families:
        raise SystemExit(f"{case.case.name}: nothing to measure: {left_out}")
    say(f"{case.case.name}: {element_count(shapes):,} parameters in {len(shapes)} arrays")
    for name, reason in left_out.items():
        say(f"  without {name}: {reason}")
    torch_too = has_torch()
    set_threads(max(arguments.threads), torch_too)
    contestants = {c.name: c for family in families for c in family.make(shapes)}
    for contestant in contestants.values():
        for _ in range(WARM_UP_STEPS):
            contestant.step()

    runs = []
    left = arguments.seconds / len(arguments.cases) - (time.perf_counter() - began)
    for count in arguments.threads:
        set_threads(count, torch_too)
        steps = {name: contestant.step for name, contestant in contestants.items()}
        with no_collection():
            share = left / len(arguments.threads)
            times = in_turns(steps, dict.fromkeys(steps, 1), arguments.rounds, share, order)
        runs.append({"threads": count, "contestants": _summaries(times, contestants, len(shapes))})
        medians = (f"{name} {1e3 * found['median_s']:.3g}" for name, found in runs[-1]["contestants"].items())
        say(f"  {count} thread{'s' * (count > 1)}, ms: " + "; ".join(medians))
    moved = {name: contestant.moved_bytes / element_count(shapes) for name, contestant in contestants.items()}
    described = {"name": case.case.name, "what": case.case.what, "tensors": len(shapes)}
    described["parameters"] = element_count(shapes)
    return {**described, "left_out": left_out, "moved_bytes": moved, "runs": runs}


def _summaries(
    times: Mapping[str, Mapping[int, float]], contestants: Mapping[str, Contestant], tensors: int
) -> dict[str, dict[str, Any]]:
    """Return the figures of each contestant from the seconds of its steps by round."""
    found = {}
    for name, taken in times.items():
        median, quartiles = report.spread(list(taken.values()))
        over = {}
        for rival in contestants[name].rivals:
            if rival in times:
                # Rounds pair what ran within seconds of each other: a slow minute of the machine cancels out.
                ratio, ratio_quartiles = report.spread([taken[k] / times[rival][k] for k in taken])
                over[rival] = {"ratio": ratio, "quartiles": ratio_quartiles}
        found[name] = {
            "repeats": len(taken),
            "median_s": median,
            "quartiles_s": quartiles,
            "over": over,
            "us_per_tensor": 1e6 * median / tensors,
            "gb_per_s": 1e-9 * contestants[name].moved_bytes / median,
            "times_s": {str(k): round(seconds, 9) for k, seconds in taken.items()},
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
