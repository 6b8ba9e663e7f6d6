"""What was found of each framework's RAdam, as Markdown.

python bench/framework_tables.py RESULT.json ... prints the table of docs/benchmarks.md from these results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework_contestants import FRAMEWORKS, LIMIT, ON_NUMPY
from tables import machine_line, ms, row

FORMAT = 1  # of the JSON; README.md beside this file says what its keys mean
MISSED = "†"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of docs/benchmarks.md from result files."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0].startswith("-"):
        raise SystemExit(__doc__)
    print(page([json.loads(Path(name).read_text(encoding="utf-8")) for name in arguments]), end="")
    return 0


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each case of each framework: ours, theirs, and the ratio."""
    head = ["float32, 2 cores", "the framework's own, ms", "radam's, ms", "radam's over it"]
    lines = [row(head), row(["---", "--:", "--:", "--:"])]
    for found in results:
        own = FRAMEWORKS[found["framework"]].own
        for case in found["cases"]:
            for name in case["goals"]:
                it, rival = case["contestants"][name], case["contestants"][own]
                ratio = f"**{it['over'][own]['ratio']:.2f}**"
                what = f"`{name}`, {case['what']}"
                lines.append(row([what, ms(rival["median_s"]), ms(it["median_s"]), ratio]))
    return "\n".join(lines) + "\n"


def markdown(found: Mapping[str, Any]) -> str:
    """Return the tables of a run."""
    lines = [line for note in found["notes"] for line in (note, "")]
    lines += ["Medians of one interleaved run [quartiles]; ratios are paired within its rounds.", ""]
    own = FRAMEWORKS[found["framework"]].own
    for case in found["cases"]:
        lines += [f"**{case['what']}, float32, {case['threads']} threads**", ""]
        head = [
            "",
            "steps",
            "ms a step",
            f"over {own}",
            "goal: at most",
            "over radam on NumPy arrays",
            "over the limit",
        ]
        lines += [row(head), row(["---", *["--:"] * (len(head) - 1)])]
        any_missed = False
        for name, it in case["contestants"].items():
            low, high = it["quartiles_s"]
            goal = case["goals"].get(name)
            is_missed = goal is not None and it["over"][own]["ratio"] > goal
            any_missed |= is_missed
            ratios = [_spread(it["over"][rival]) for rival in (own, ON_NUMPY, LIMIT)]
            ratios[0] += MISSED * is_missed
            ratios.insert(1, "" if goal is None else f"{goal:.2f}")
            lines.append(row([name, str(it["repeats"]), f"{ms(it['median_s'])} [{ms(low)}, {ms(high)}]", *ratios]))
        lines += ["", *([f"{MISSED} Above the goal.", ""] if any_missed else [])]
    lines += [
        "The limit reads and writes the same bytes, in NumPy's arrays, and computes nothing.",
        "",
        f"`{found['command']}`: {machine_line(found['machine'])}",
    ]
    return "\n".join(lines) + "\n"


def _spread(it: Mapping[str, Any]) -> str:
    low, high = it["quartiles"]
    return f"{it['ratio']:.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    sys.exit(main())
