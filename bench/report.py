"""What was found, as figures (JSON), as tables (Markdown) and as a chart (PNG).

python bench/report.py RESULT.json prints the tables of docs/benchmarks.md from a run.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import chart
import gpu_tables
import tables
from front_ends import FrontEnd

FORMAT = 2  # of the JSON; README.md beside this file says what its keys mean

Times = Mapping[str, Mapping[int, float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of docs/benchmarks.md from a result file."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise SystemExit(__doc__)
    found = load(Path(arguments[0]))
    print(gpu_tables.page(found) if tables.run_kind(found) == "clock" else tables.page(found), end="")
    return 0


def command(script: str, arguments: Sequence[str]) -> str:
    """Return the command that was run, from the root of the repository."""
    return shlex.join(["python", f"bench/{script}", *arguments])


def summaries(times: Times, front_ends: Mapping[str, FrontEnd], tensors: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each contestant from the seconds of its steps by round."""
    return {name: _summary(taken, times, front_ends[name], tensors) for name, taken in times.items()}


def _summary(taken: Mapping[int, float], times: Times, front_end: FrontEnd, tensors: int) -> dict[str, Any]:
    limit, radam = times[front_end.limit], times[front_end.radam]
    median, quartiles = spread(list(taken.values()))
    # Rounds pair what ran within a second of each other: a slow minute of the machine cancels out of their ratios.
    over_limit, over_limit_quartiles = spread([seconds / limit[k] for k, seconds in taken.items()])
    radam_over_it, radam_over_it_quartiles = spread([radam[k] / seconds for k, seconds in taken.items()])
    return {
        "repeats": len(taken),
        "median_s": median,
        "quartiles_s": quartiles,
        "over_limit": over_limit,
        "over_limit_quartiles": over_limit_quartiles,
        "over_limit_of_medians": median / statistics.median(limit.values()),
        "radam_over_it": radam_over_it,
        "radam_over_it_quartiles": radam_over_it_quartiles,
        "us_per_tensor": 1e6 * median / tensors,
        "times_s": {str(k): round(seconds, 9) for k, seconds in taken.items()},
    }


def spread(values: Sequence[float]) -> tuple[float, list[float]]:
    """Return the median and the quartiles."""
    if len(values) == 1:
        return values[0], [values[0], values[0]]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, [low, high]


def write(
    found: Mapping[str, Any],
    name: Path,
    markdown: Callable[[Mapping[str, Any]], str] = tables.markdown,
    draw: Callable[[Mapping[str, Any], Path], bool] = chart.draw,
) -> list[Path]:
    """Write NAME.json, NAME.md and, where Matplotlib is installed, NAME.png. Returns what was written."""
    paths = [write_json(found, name), *(name.with_name(name.name + end) for end in (".md", ".png"))]
    paths[1].write_text(markdown(found), encoding="utf-8")
    return paths if draw(found, paths[2]) else paths[:2]


def write_json(found: Mapping[str, Any], name: Path) -> Path:
    """Write NAME.json alone."""
    path = name.with_name(name.name + ".json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> dict[str, Any]:
    """Read what write wrote."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found.get("radam_bench") != FORMAT:
        raise SystemExit(f"{path} is of format {found.get('radam_bench')!r}, not {FORMAT}: measure anew")
    return found


if __name__ == "__main__":
    sys.exit(main())
