"""Measure radam's LibTorch optimizer beside torch.optim.RAdam in Python, in one interleaved run.

    python bench/libtorch.py                the whole run: some 3 minutes on 2 cores, and 2 to build the program
    python bench/libtorch.py --quick        with small tensors, to try it out; the times mean nothing
    python bench/libtorch.py --build FOLDER --output bench/results/libtorch

Builds bench/cpp/libtorch with CMake against the LibTorch inside the installed torch, prints a table for each case, and
writes OUTPUT.json (every time taken) and OUTPUT.md (the tables). Needs PyTorch, CMake, a C++ compiler, and xsimd's
headers, as the build of radam does.
"""

from __future__ import annotations

import argparse
import functools
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

import report
import tables
from command_line import positive, say
from contestants import LR, WARM_UP_STEPS, set_threads
from machine import describe_machine, warn_if_busy
from measure import WARM_SECONDS, in_turns, no_collection, one_step
from radam.torch import RAdam

FORMAT = 1  # of the JSON
# Tensors and elements of each, and the same to try the script.
CASES = {"1000 tensors of 4096": ((1000, 4096), (20, 64)), "33.5 M in 4 tensors": ((4, 1 << 23), (4, 4096))}
OWN, FRONT_END = "torch.optim.RAdam (Python)", "radam.torch.RAdam (Python)"
PROGRAMS = {
    "radam::torch::dispatched::RAdam": "dispatched",
    "radam::torch::RAdam": "header-only",
    "torch::optim::AdamW (LibTorch)": "AdamW",
}
GOAL_CASE, GOAL_OF, GOAL = "1000 tensors of 4096", "radam::torch::dispatched::RAdam", 0.1


class Program:
    """The C++ program, waiting with an optimizer of its own for its turn."""

    def __init__(self, path: Path, who: str, threads: int, tensors: int, size: int) -> None:
        command = [str(path), who, str(threads), str(tensors), str(size)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._read()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def one_step(self) -> float:
        """Return the seconds of one step, warmed up as measure.one_step does."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{WARM_SECONDS}\n")
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the program ended with status {self._process.wait()}")
        return line


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    arguments = _parse(argv)
    notes: list[str] = []
    if arguments.quick:
        notes.append("A quick run with small tensors, to try the benchmark: the times mean nothing.")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # rather fail now than after the run
    if arguments.build is None:
        with tempfile.TemporaryDirectory() as folder:
            return _run(build(Path(folder)), arguments, notes, argv)
    return _run(build(arguments.build), arguments, notes, argv)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="small tensors and few rounds")
    add("--threads", type=positive(int), default=torch.get_num_threads(), help="of all; default: PyTorch's own number")
    add("--rounds", type=positive(int), help="at most this many timed steps; default: 100, quick 5")
    add("--seconds", type=positive(float), help="about this long per case; default: 60, quick 2")
    add("--seed", type=int, default=0, help="of the order in which they take turns; default: 0")
    add(
        "--build", type=Path, metavar="FOLDER", help="where to build the program, or where it is; default: a new folder"
    )
    add("--output", type=Path, metavar="NAME", default=Path(__file__).parent / "results" / "libtorch")
    arguments = parser.parse_args(argv)
    arguments.rounds = arguments.rounds or (5 if arguments.quick else 100)
    arguments.seconds = arguments.seconds or (2.0 if arguments.quick else 60.0)
    return arguments


def build(folder: Path) -> Path:
    """Return the program, built where it is not there yet or its sources are newer."""
    say("building bench/cpp/libtorch")
    source = Path(__file__).parent / "cpp" / "libtorch"
    found = f"-DTorch_DIR={Path(torch.utils.cmake_prefix_path) / 'Torch'}"
    python = f"-DPython3_EXECUTABLE={sys.executable}"  # which may have xsimd's headers
    for command in (
        ["cmake", "-S", str(source), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", found, python],
        ["cmake", "--build", str(folder)],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}")
    return folder / "libtorch"


def _run(program: Path, arguments: argparse.Namespace, notes: list[str], argv: Sequence[str] | None) -> int:
    warn_if_busy(notes)
    for note in notes:
        say(note)
    set_threads(arguments.threads, torch_too=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        machine = describe_machine(with_torch=True)
    found: dict[str, Any] = {
        "radam_libtorch_bench": FORMAT,
        "machine": machine,
        "command": report.command("libtorch.py", sys.argv[1:] if argv is None else argv),
        "quick": arguments.quick,
        "notes": notes,
        "threads": arguments.threads,
        "cases": [],
    }
    for case, (full, quick) in CASES.items():
        say(case)
        tensors, size = quick if arguments.quick else full
        times = measured(case, program, tensors, size, arguments)
        found["cases"].append({"name": case, "tensors": tensors, "size": size, "times_s": times})
    print(markdown(found))
    path = arguments.output.with_name(arguments.output.name + ".md")
    path.write_text(markdown(found), encoding="utf-8")
    for written in (report.write_json(found, arguments.output), path):
        say(f"wrote {written}")
    return 0


def measured(
    case: str, program: Path, tensors: int, size: int, arguments: argparse.Namespace
) -> dict[str, dict[int, float]]:
    """Return the seconds of each contestant's steps in one case, by round."""
    steps: dict[str, Callable[[], float]] = {
        name: functools.partial(one_step, _step_of(optimizer, tensors, size))
        for name, optimizer in ((OWN, torch.optim.RAdam), (FRONT_END, RAdam))
    }
    running = {name: Program(program, who, arguments.threads, tensors, size) for name, who in PROGRAMS.items()}
    try:
        steps.update({name: one.one_step for name, one in running.items()})
        every = {name: 4 if name == OWN or "AdamW" in name else 1 for name in steps}
        order = random.Random(f"{arguments.seed} {case}")
        with no_collection():
            return in_turns(steps, every, arguments.rounds, arguments.seconds, order, lambda turn: turn())
    finally:
        for one in running.values():
            one.__exit__(None, None, None)


def _step_of(optimizer: Callable[..., Any], tensors: int, size: int) -> Callable[[], Any]:
    params = [torch.nn.Parameter(torch.randn(size)) for _ in range(tensors)]
    for param in params:
        param.grad = 0.01 * torch.randn(size)
    step: Callable[[], Any] = optimizer(params, lr=LR).step
    for _ in range(WARM_UP_STEPS):
        step()
    return step


def markdown(found: Mapping[str, Any]) -> str:
    """Return the tables of a run."""
    lines = [line for note in found["notes"] for line in (note, "")]
    lines += [
        "Medians of one interleaved run [quartiles]; ratios are paired within its rounds. All take float32 tensors and "
        f"{tables.threads(found)}.",
    ]
    for case in found["cases"]:
        lines += ["", *table(case["name"], case["times_s"], case["tensors"])]
    return "\n".join([*lines, "", f"`{found['command']}`: {tables.machine_line(found['machine'])}", ""])


def table(case: str, times: Mapping[str, Mapping[int, float]], tensors: int) -> list[str]:
    """Return a row for each contestant."""
    per_tensor = tensors >= 20
    head = ["", "steps", "ms a step", f"over {OWN}", "goal: at most", *(["µs a tensor"] if per_tensor else [])]
    lines = [f"**{case}**", "", tables.row(head), tables.row(["---", *["--:"] * (len(head) - 1)])]
    for name, taken in times.items():
        median, (low, high) = report.spread(list(taken.values()))
        both = [taken[k] / times[OWN][k] for k in taken if k in times[OWN]]
        ratio, (least, most) = report.spread(both)
        cells = [name, str(len(taken)), f"{tables.ms(median)} [{tables.ms(low)}, {tables.ms(high)}]"]
        cells += [f"{ratio:.3g} [{least:.3g}, {most:.3g}]"]
        cells += [f"{GOAL:g}" if (case, name) == (GOAL_CASE, GOAL_OF) else ""]
        lines.append(tables.row([*cells, *([f"{1e6 * median / tensors:.3g}"] if per_tensor else [])]))
    return lines


if __name__ == "__main__":
    sys.exit(main())
