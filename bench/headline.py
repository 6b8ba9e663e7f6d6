"""Draw the picture that the README opens with, from a run of run.py: a step of each optimizer, in milliseconds.

python bench/headline.py bench/results/xeon-2-cores.json docs/speed.png
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chart
import tables
from report import load

NAMES = {
    "limit on torch tensors": "memory alone: the same arrays,\nnothing computed",
    "radam.torch": "radam.torch.RAdam",
    "torch fused AdamW": "torch.optim.AdamW, fused",
    "torch RAdam foreach": "torch.optim.RAdam, foreach",
    "torch RAdam default": "torch.optim.RAdam",
}
CASES = ("33.5M", "1000x4096")


def main(argv: Sequence[str] | None = None) -> int:
    """Read a run and draw it."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 2 or arguments[0].startswith("-"):
        raise SystemExit(__doc__)
    draw(load(Path(arguments[0])), Path(arguments[1]))
    return 0


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw a panel for each case, on all threads: a bar from zero for each contestant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.7), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(CASES))
    cases = {case["name"]: case for case in found["cases"]}
    for panel, name in zip(panels, CASES):
        run = cases[name]["runs"][-1]
        times = [1e3 * run["contestants"][contestant]["median_s"] for contestant in NAMES]
        for y, (contestant, time) in enumerate(zip(NAMES, times)):
            panel.barh(y, time, 0.72, color=chart.COLOURS.get(contestant, "#BBBBBB"))
            weight = "bold" if contestant == "radam.torch" else "normal"
            text = f"{tables.ms(time / 1e3)} ms"
            panel.annotate(text, (time, y), (4, 0), textcoords="offset points", va="center", fontsize=9, weight=weight)
        panel.set_ylim(len(NAMES) - 0.4, -0.6)
        panel.set_xlim(0, 1.2 * max(times))
        panel.set_yticks(range(len(NAMES)), NAMES.values() if panel is panels[0] else [""] * len(NAMES))
        panel.set_xticks([])
        panel.tick_params(axis="y", length=0, labelsize=9)
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        panel.set_title(f"{cases[name]['what']}, {tables.label(run)}", fontsize=10)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
