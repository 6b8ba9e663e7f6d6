"""Measure a framework's own RAdam beside radam's front end for it, in one interleaved run.

    python bench/frameworks.py paddle                the whole run: some 2 minutes on 2 cores
    python bench/frameworks.py jax --quick           the same with small arrays, to try it out; the times mean nothing
    python bench/frameworks.py mindspore --output bench/results/my-machine

Writes NAME.json (every time taken) and NAME.md (tables). The framework must be installed; MindSpore needs an
environment of its own, with numpy < 2. README.md beside this file says how it measures.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import radam
import report
from cases import element_count
from command_line import names, positive, say
from contestants import WARM_UP_STEPS
from framework_contestants import FRAMEWORK_CASES, FRAMEWORKS, LIMIT, ON_NUMPY, Framework, numpy_steps
from framework_tables import FORMAT, markdown
from machine import describe_machine, warn_if_busy
from measure import in_turns, no_collection


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    arguments = _parse(argv)
    framework = FRAMEWORKS[arguments.framework]
    notes = []
    if arguments.quick:
        notes.append("A quick run with small arrays, to try the benchmark: the times mean nothing.")
    warn_if_busy(notes)
    for note in notes:
        say(note)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # rather fail now than after the run
    with warnings.catch_warnings():  # what frameworks say of themselves when they are imported
        warnings.simplefilter("ignore")
        machine = describe_machine(with_torch=False, others=framework.libraries)
    began = time.perf_counter()
    found: dict[str, Any] = {
        "radam_frameworks_bench": FORMAT,
        "framework": arguments.framework,
        "machine": machine,
        "command": report.command("frameworks.py", sys.argv[1:] if argv is None else argv),
        "quick": arguments.quick,
        "seed": arguments.seed,
        "notes": notes,
        "cases": [_measure(name, framework, arguments) for name in arguments.cases or framework.cases],
    }
    found["seconds"] = round(time.perf_counter() - began, 1)
    print(markdown(found))
    for path in (report.write_json(found, arguments.output), _write_markdown(found, arguments.output)):
        say(f"wrote {path}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    known = list(FRAMEWORK_CASES)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("framework", choices=sorted(FRAMEWORKS))
    add("--quick", action="store_true", help="small arrays and few rounds")
    add("--cases", type=names(known), metavar="A,B", help=f"of: {', '.join(known)}; default: the framework's")
    add("--rounds", type=positive(int), help="at most this many timed steps; default: 100, quick 10")
    add("--seconds", type=positive(float), help="about this long per case; default: 40, quick 2")
    add("--seed", type=int, default=0, help="of the order in which the contestants take turns; default: 0")
    add(
        "--output", type=Path, metavar="NAME", help="where to write NAME.json and .md; default: bench/results/FRAMEWORK"
    )
    arguments = parser.parse_args(argv)
    arguments.rounds = arguments.rounds or (10 if arguments.quick else 100)
    arguments.seconds = arguments.seconds or (2.0 if arguments.quick else 40.0)
    arguments.output = arguments.output or Path(__file__).parent / "results" / arguments.framework
    return arguments


def _measure(name: str, framework: Framework, arguments: argparse.Namespace) -> dict[str, Any]:
    case = FRAMEWORK_CASES[name]
    shapes = case.shapes(arguments.quick)
    say(f"{case.name}: {element_count(shapes):,} parameters in {len(shapes)} arrays")
    steps = {**numpy_steps(shapes), **framework.make(shapes)}
    for step in steps.values():
        for _ in range(WARM_UP_STEPS):
            step()
    # The slow ones sit most rounds out, so that the time goes to those that are close to each other.
    every = {one: 4 if one == framework.own else 1 for one in steps}
    with no_collection():
        order = random.Random(f"{arguments.seed} {name}")
        times = in_turns(steps, every, arguments.rounds, arguments.seconds, order)
    contestants = {one: _summary(taken, times, framework) for one, taken in times.items()}
    say("  ms: " + "; ".join(f"{one} {1e3 * it['median_s']:.3g}" for one, it in contestants.items()))
    goals = {one: most for (case_, one), most in framework.goals.items() if case_ == name}
    return {**case.described(shapes), "threads": radam.get_num_threads(), "goals": goals, "contestants": contestants}


def _summary(
    taken: Mapping[int, float], times: Mapping[str, Mapping[int, float]], framework: Framework
) -> dict[str, Any]:
    """Return the figures of one contestant from the seconds of its steps by round."""
    median, quartiles = report.spread(list(taken.values()))
    over = {}
    for rival in (framework.own, ON_NUMPY, LIMIT):
        # Rounds pair what ran within seconds of each other: a slow minute of the machine cancels out.
        ratio, ratio_quartiles = report.spread([taken[k] / times[rival][k] for k in taken if k in times[rival]])
        over[rival] = {"ratio": ratio, "quartiles": ratio_quartiles}
    return {
        "repeats": len(taken),
        "median_s": median,
        "quartiles_s": quartiles,
        "over": over,
        "times_s": {str(k): round(seconds, 9) for k, seconds in taken.items()},
    }


def _write_markdown(found: Mapping[str, Any], name: Path) -> Path:
    path = name.with_name(name.name + ".md")
    path.write_text(markdown(found), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
