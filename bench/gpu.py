"""Measure a step on a CUDA device beside the limit of its memory and PyTorch's optimizers, in one interleaved run.

    python bench/gpu.py --output OUT/gpu      some 2 minutes
    python bench/gpu.py --check               only says whether there is a device to measure on
    python bench/gpu.py --quick               small arrays, to try it out; the times mean nothing

Writes NAME.json, NAME.md and NAME.png, and nothing where there is no CUDA device. Needs PyTorch with CUDA; takes CuPy
along where it is installed. bench/gpu.sh does this and all else that a GPU machine is good for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import gpu_tables
import report
from machine import describe_gpu, gpu_now, why_no_cuda

NO_DEVICE = 3  # the exit status


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    arguments = _parse(argv)
    why_not = why_no_cuda()
    if why_not:
        print(f"no CUDA device: {why_not}", file=sys.stderr)
        return NO_DEVICE
    if arguments.check:
        print(f"{describe_gpu()['name']}, driver {gpu_now('driver_version')}")
        return 0

    from gpu_measure import measure_all  # here, for it needs PyTorch

    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # rather fail now than after the run
    found = {"radam_bench": report.FORMAT, "quick": arguments.quick, "seed": arguments.seed}
    found["command"] = report.command("gpu.py", sys.argv[1:] if argv is None else argv)
    # Kept at every stop on the way, in case that somebody ends the run.
    for _ in measure_all(found, arguments.rounds, arguments.seconds):
        report.write_json(found, arguments.output)
    print(gpu_tables.markdown(found))
    for path in report.write(found, arguments.output, gpu_tables.markdown):
        print(f"wrote {path}", file=sys.stderr)
    return 1 if any(case["failed"] for case in found["cases"]) else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--check", action="store_true", help="only say whether there is a device")
    add("--quick", action="store_true", help="small arrays and few rounds")
    add("--seconds", type=float, help="about this long in all, allocations not counted; default: 100, quick 5")
    add("--rounds", type=int, help="at most this many timed steps of each; default: 100, quick 5")
    add("--seed", type=int, default=0, help="of the order in which the contestants take turns; default: 0")
    add(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results" / "gpu",
        metavar="NAME",
        help="where to write NAME.json, .md and .png; default: bench/results/gpu",
    )
    arguments = parser.parse_args(argv)
    arguments.seconds = arguments.seconds or (5.0 if arguments.quick else 100.0)
    arguments.rounds = arguments.rounds or (5 if arguments.quick else 100)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
