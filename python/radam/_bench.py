"""How close a step comes to the speed of memory on this machine. Needs NumPy alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import _info, _step
from .conventions import CONVENTIONS

BYTES = 28  # moved per fp32 element and step: reads p, g, m, v; writes p, m, v
Groups = tuple[tuple[Any, ...]]


def cases(quick: bool) -> list[tuple[str, int, int, int]]:
    """Return (name, arrays, elements of each, rounds)."""
    if quick:
        return [("4 M in 4 arrays", 4, 1 << 20, 40), ("1000 x 4096", 1000, 4096, 40), ("1000 x 64", 1000, 64, 200)]
    return [("33.5 M in 4 arrays", 4, 1 << 23, 40), ("1000 x 4096", 1000, 4096, 100), ("1000 x 64", 1000, 64, 1000)]


def new_groups(count: int, size: int) -> Groups:
    """Return one group, past RAdam's first steps, in memory of its own that has been written once."""
    rng = np.random.default_rng(0)
    some = rng.standard_normal(min(size, 1 << 16), np.float32)

    def arrays(block: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        return tuple(np.resize(block, size) for _ in range(count))

    hyperparameters = CONVENTIONS["torch"].hyperparameters()
    steps = np.full(count, 1000, np.int64)
    params, grads, exp_avg, exp_avg_sq = arrays(some), arrays(some[::-1]), arrays(some), arrays(some * some)
    return ((hyperparameters, None, params, grads, exp_avg, exp_avg_sq, None, steps, None),)


def measure(step: Callable[[], object], limit: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each, taken in turn, so that whatever else the machine does meets both alike."""
    taken: tuple[list[float], list[float]] = ([], [])
    both = (step, limit)
    for _ in range(3):
        step()
        limit()
    for i in range(rounds):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            begin = time.perf_counter()
            both[which]()
            taken[which].append(time.perf_counter() - begin)
    return taken


def run(quick: bool, path: Path | None) -> None:
    """Measure all cases with one thread and with all, print a table, and write the figures as JSON where asked to."""
    config = _info.config()
    threads = _step.get_num_threads()
    print(f"radam {config['radam']} ({config['isa']}) on {config['machine']}; float32, medians (quartiles)\n")
    print(f"{'case':<20}{'threads':>7}  {'step, ms':>24}  {'limit, ms':>24}  {'ratio':>5}  {'GB/s':>6}")
    rows, shares = [], []
    try:
        for name, count, size, rounds in cases(quick):
            ours, bare = new_groups(count, size), new_groups(count, size)
            for used in sorted({1, threads}):
                _step.set_num_threads(used)
                begin, cpu_begin = time.perf_counter(), time.process_time()
                taken = measure(partial(_step.step, ours, "propagate"), partial(_step.limit, bare), rounds)
                shares.append((time.process_time() - cpu_begin) / (time.perf_counter() - begin) / used)
                rows.append(figures(name, count, size, used, *taken))
                print(line(rows[-1]), flush=True)
    finally:
        _step.set_num_threads(threads)
    print(
        "\nThe limit reads and writes the same memory as the step and computes nothing. A ratio of 1.05: the step takes"
        "\n5 % longer than that. Nothing that moves the same bytes goes below 1, but for noise."
    )
    share = min(shares[: len(rows) // len(cases(quick))])  # in the first case, which keeps all threads at work
    if share < 0.85:
        print(f"The threads got {100 * share:.0f} % of the cores, and the times are too long: other programs are busy.")
    if path is not None:
        found = {"config": config, "quick": quick, "core_share": round(share, 3), "cases": rows}
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"The figures are in {path.absolute()}")


def figures(name: str, count: int, size: int, threads: int, step: list[float], limit: list[float]) -> dict[str, Any]:
    """Return one row of the table: times in milliseconds, the quartiles in order."""
    step_ms, limit_ms = ([round(1e3 * float(q), 6) for q in np.quantile(s, (0.25, 0.5, 0.75))] for s in (step, limit))
    return {
        "case": name,
        "arrays": count,
        "elements": count * size,
        "threads": threads,
        "rounds": len(step),
        "step_ms_quartiles": step_ms,
        "limit_ms_quartiles": limit_ms,
        "ratio": round(step_ms[1] / limit_ms[1], 4),
        "step_gb_per_second": round(BYTES * count * size / step_ms[1] / 1e6, 2),
    }


def line(row: dict[str, Any]) -> str:
    """Return one row of the table as text."""
    times = (row["step_ms_quartiles"], row["limit_ms_quartiles"])
    step, limit = (f"{median:.3f} ({low:.3f} to {high:.3f})" for low, median, high in times)
    ratio, speed = row["ratio"], row["step_gb_per_second"]
    return f"{row['case']:<20}{row['threads']:>7}  {step:>24}  {limit:>24}  {ratio:>5.2f}  {speed:>6.1f}"
