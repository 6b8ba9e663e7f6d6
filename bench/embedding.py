"""Measure the header-only optimizer: a step beside the limit, and what its headers cost a compiler.

    python bench/embedding.py                        some 3 minutes on 2 cores
    python bench/embedding.py --quick                tries it; the times mean nothing
    python bench/embedding.py --output bench/results/my-machine

It needs a C++ compiler (CXX, or c++) that takes the options of GCC and Clang, and xsimd's headers for the second half
(--xsimd, or the package pythran). Writes NAME.json (every time taken) and NAME.md (tables).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import report
from command_line import positive, say
from machine import describe_machine, warn_if_busy
from tables import machine_line, ms, row

HERE = Path(__file__).resolve().parent
HEADERS = HERE.parent / "cpp" / "include"
FORMAT = 1  # of the JSON
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-pthread"]
GOAL = 1.06  # a step over the limit
COMPILE_GOALS = {"without xsimd": 0.5, "with xsimd": 3.0}  # seconds that the include adds
NOTHING = "int main() {}\n"
INCLUDE = "#include <radam/radam.hpp>\n" + NOTHING
PROGRAM = """#include <radam/radam.hpp>
int main(int count, char**) {
    float weights[4] = {}, gradients[4] = {};
    radam::Optimizer optimizer;
    optimizer.add_param(weights, gradients, 4);
    for (int i = 0; i < count; ++i) optimizer.step();
}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    arguments = _parse(argv)
    notes: list[str] = []
    if arguments.quick:
        notes.append("A quick run with small arrays, to try the benchmark: the times mean nothing.")
    warn_if_busy(notes)
    compiler = os.environ.get("CXX", "c++")
    builds = {"without xsimd": ["-I", str(HEADERS)]}
    if arguments.xsimd is None:
        notes.append("xsimd was not found, so that only the loops without it are measured.")
    else:
        builds["with xsimd"] = [*builds["without xsimd"], "-DRADAM_WITH_XSIMD=1", "-isystem", str(arguments.xsimd)]
    for note in notes:
        say(note)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # rather fail now than after the run
    found: dict[str, Any] = {
        "radam_embedding_bench": FORMAT,
        "machine": describe_machine(with_torch=False),
        "compiler": _first_line([compiler, "--version"]),
        "flags": FLAGS,
        "command": report.command("embedding.py", sys.argv[1:] if argv is None else argv),
        "quick": arguments.quick,
        "notes": notes,
        "parameters": arguments.parameters,
        "steps": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for build, options in builds.items():
            say(f"a step, {build}")
            program = Path(folder) / "header_only"
            _compile(compiler, [*FLAGS, *options, str(HERE / "cpp" / "header_only.cpp"), "-o", str(program)])
            command = [str(program), str(arguments.parameters), str(arguments.rounds), *map(str, arguments.threads)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found["steps"][build] = json.loads(printed)
        found["compile"] = _compile_times(compiler, builds, arguments.compile_rounds, Path(folder))
    print(markdown(found))
    name = arguments.output.with_name(arguments.output.name + ".md")
    name.write_text(markdown(found), encoding="utf-8")
    for path in (report.write_json(found, arguments.output), name):
        say(f"wrote {path}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="small arrays and few rounds")
    add("--rounds", type=positive(int), help="timed steps of each; default: 60, quick 5")
    add("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2], metavar="A,B")
    add("--xsimd", type=Path, metavar="FOLDER", help="that holds xsimd/xsimd.hpp; default: inside the package pythran")
    add("--output", type=Path, metavar="NAME", default=HERE / "results" / "embedding", help="of NAME.json and .md")
    arguments = parser.parse_args(argv)
    arguments.rounds = arguments.rounds or (5 if arguments.quick else 60)
    arguments.compile_rounds = 2 if arguments.quick else 9
    arguments.parameters = 400_000 if arguments.quick else 33_554_432
    if arguments.xsimd is None and (spec := importlib.util.find_spec("pythran")) is not None:
        arguments.xsimd = Path((spec.submodule_search_locations or [""])[0])
    return arguments


def _compile(compiler: str, arguments: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run([compiler, *arguments], check=True)
    return time.perf_counter() - began


def _first_line(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def _compile_times(
    compiler: str, builds: Mapping[str, Sequence[str]], rounds: int, folder: Path
) -> dict[str, dict[str, list[float]]]:
    """Return the seconds to compile nothing, the include, and a small program, by build: in turns."""
    say("compile times")
    texts = {"nothing": NOTHING, "the include": INCLUDE, "a program that steps": PROGRAM}
    times: dict[str, dict[str, list[float]]] = {build: {what: [] for what in texts} for build in builds}
    for what, text in texts.items():
        (folder / f"{what}.cpp").write_text(text, encoding="utf-8")
    for _ in range(rounds + 1):  # the first round only warms the files
        for build, options in builds.items():
            for what in texts:
                source = ["-c", str(folder / f"{what}.cpp"), "-o", str(folder / "out.o")]
                times[build][what].append(_compile(compiler, [*FLAGS, *options, *source]))
    return {build: {what: taken[1:] for what, taken in of.items()} for build, of in times.items()}


def markdown(found: Mapping[str, Any]) -> str:
    """Return the tables of a run."""
    lines = [line for note in found["notes"] for line in (note, "")]
    lines += [
        f"**A header-only step, {found['parameters'] / 1e6:.3g} M float32 parameters in 4 arrays**",
        "",
        f"`{' '.join(found['flags'])}`. Medians of one interleaved run [quartiles]; ratios are paired within rounds.",
        "The limit reads and writes the same bytes, and computes nothing.",
        "",
        row(["", "loops", "threads", "limit, ms", "`radam::Optimizer`, ms", "over the limit", "goal: at most"]),
        row(["---", "---", *["--:"] * 5]),
    ]
    for build, steps in found["steps"].items():
        for threads in (key for key in steps if key != "isa"):
            limit, ours = steps[threads]["limit"], steps[threads]["radam::Optimizer"]
            ratio, quartiles = report.spread([a / b for a, b in zip(ours, limit)])
            cells = [build, steps["isa"], threads, ms(report.spread(limit)[0]), ms(report.spread(ours)[0])]
            cells += [f"{ratio:.3f} [{quartiles[0]:.3f}, {quartiles[1]:.3f}]", f"{GOAL:.2f}"]
            lines.append(row(cells))
    lines += [
        "",
        "**Seconds to compile**",
        "",
        "Medians of interleaved runs. The program steps float32 parameters: only the loops for them are compiled.",
        "",
        row(["", "nothing", "`#include <radam/radam.hpp>`", "adds", "goal: at most", "a program that steps"]),
        row(["---", *["--:"] * 5]),
    ]
    for build, times in found["compile"].items():
        nothing, include, program = (report.spread(times[what])[0] for what in times)
        added = report.spread([a - b for a, b in zip(times["the include"], times["nothing"])])[0]
        cells = [f"{seconds:.2f}" for seconds in (nothing, include, added, COMPILE_GOALS[build], program)]
        lines.append(row([build, *cells]))
    lines += ["", f"{found['compiler']}. `{found['command']}`: {machine_line(found['machine'])}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
