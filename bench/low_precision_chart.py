"""What was found of weights and moments in fewer bits, as a chart. Needs Matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tables
from low_precision_contestants import FP32, LIMIT
from low_precision_tables import steps_of

TIMES = "\N{MULTIPLICATION SIGN}"

# Okabe and Ito's colours, which colour-blind people tell apart, by the first word of a contestant's name.
COLOURS = {"fp32": "#0072B2", "bf16": "#E69F00", "torch": "#999999"}
FAMILIES = {"fp32": "radam, float32 parameters", "bf16": "radam, bfloat16 parameters", "torch": "PyTorch, float32"}
LIMIT_COLOUR = "#111111"


def draw(found: Mapping[str, Any], path: Path) -> bool:
    """Draw a panel per case and thread count: bars for the steps, lines for the limits. False without Matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False

    cases = found["cases"]
    columns = len(cases[0]["runs"])
    heights = [len(list(steps_of(case["runs"][0]))) for case in cases]
    size = (4.3 * columns + 2.6, 1.1 + 0.75 * len(cases) + 0.21 * sum(heights))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(len(cases), columns, sharey="row", squeeze=False, height_ratios=heights)
    for case, panels in zip(cases, grid):
        for run, panel in zip(case["runs"], panels):
            _draw_panel(panel, case, run)
    for panel in grid[-1]:
        panel.set_xlabel("milliseconds a step", fontsize=8.5)
    _legend(figure, found, columns)
    figure.savefig(path)
    return True


def _draw_panel(panel: Any, case: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    labels = []
    longest = 1e3 * max(it["median_s"] for it in run["contestants"].values())
    for y, (name, it) in enumerate(steps_of(run)):
        median, (low, high) = 1e3 * it["median_s"], (1e3 * s for s in it["quartiles_s"])
        panel.barh(y, median, 0.8, color=COLOURS[_kind(name)])
        panel.hlines(y, low, high, color="#222222", linewidth=0.9)
        limit = run["contestants"].get(LIMIT + name)
        at = 0.0 if limit is None else 1e3 * limit["median_s"]
        if limit is not None:
            panel.vlines(at, y - 0.4, y + 0.4, color=LIMIT_COLOUR, linewidth=1.6)
        text = f"{tables.ms(it['median_s'])} ms"
        if FP32 in it["over"]:
            text += f"  {it['over'][FP32]['ratio']:.2f}{TIMES}"
        panel.annotate(
            text, (min(max(high, at), 1.1 * longest), y), (4, 0), textcoords="offset points", va="center", fontsize=7
        )
        labels.append(f"{name}  ({case['moved_bytes'][name]:.1f} B)")
    panel.set_xlim(0, 1.5 * longest)  # room for the labels; a quartile beyond is cut off
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.set_title(f"{case['what']}, {tables.threads(run)}", fontsize=9)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0, labelsize=8)
    panel.tick_params(axis="x", labelsize=8)


def _kind(name: str) -> str:
    return name.replace(",", " ").split()[0]


def _legend(figure: Any, found: Mapping[str, Any], columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = {_kind(name) for case in found["cases"] for name, _ in steps_of(case["runs"][0])}
    handles: list[Any] = [Patch(color=COLOURS[kind], label=FAMILIES[kind]) for kind in COLOURS if kind in kinds]
    handles.append(Line2D([], [], color=LIMIT_COLOUR, linewidth=1.6, label="limit: the same memory, nothing computed"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4 if columns > 1 else 2, frameon=False, fontsize=8)
    machine = found["machine"]
    quick = "a quick run, the times mean nothing; " if found["quick"] else ""
    figure.supxlabel(
        f"{quick}{machine['cpu']}, {machine['cores']} cores, {machine['isa']}\n"
        f"in brackets: bytes moved a parameter; {TIMES}: over the fp32 step; thin lines: quartiles",
        fontsize=7,
        color="#555555",
    )
