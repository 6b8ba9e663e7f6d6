"""What was found, as a chart. Needs Matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tables
from front_ends import FRONT_ENDS

TIMES = "\N{MULTIPLICATION SIGN}"
RADAM = "#0072B2"

# Okabe and Ito's colours, which colour-blind people tell apart.
COLOURS = {
    **{front_end.radam: RADAM for front_end in FRONT_ENDS},
    "torch fused AdamW": "#56B4E9",
    "torch fused AdamW in a graph": "#56B4E9",
    "torch RAdam foreach": "#E69F00",
    "torch RAdam foreach in a graph": "#E69F00",
    "torch RAdam foreach capturable": "#CC79A7",
    "torch RAdam default": "#D55E00",
}

Row = tuple[Mapping[str, Any], str, float]


def draw(found: Mapping[str, Any], path: Path) -> bool:
    """Draw a panel per kind of arrays and run: bars that begin at the limit. False without Matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False

    front_ends = found["front_ends"]
    labels_of_runs = [tables.label(run) for run in found["cases"][0]["runs"]]
    layouts = [_rows(found["cases"], front_end) for front_end in front_ends]
    heights = [height for _, _, height in layouts]
    size = (4.9 * len(labels_of_runs) + 1.6, 1.2 + 0.5 * len(front_ends) + 0.2 * sum(heights))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(
        len(front_ends), len(labels_of_runs), sharex=True, sharey="row", squeeze=False, height_ratios=heights
    )
    for front_end, (rows, labels, height), panels in zip(front_ends, layouts, grid):
        for k, panel in enumerate(panels):
            for case, name, y in rows:
                _draw_row(panel, case, front_end, name, case["runs"][k]["contestants"][name], y)
            panel.set_title(f"{front_end['name']}, {labels_of_runs[k]}", fontsize=10)
            _plain(panel)
        panels[0].set_yticks([y for _, y in labels], [_wrapped(case) for case, _ in labels])
        panels[0].set_ylim(height, -0.5)
    _scale(grid[0][0], found)
    for panel in grid[-1]:
        panel.set_xlabel("time of a step over the limit (log scale)", fontsize=8.5)
    _legend(figure, found)
    figure.savefig(path)
    return True


def _rows(
    cases: Sequence[Mapping[str, Any]], front_end: Mapping[str, Any]
) -> tuple[list[Row], list[tuple[Mapping[str, Any], float]], float]:
    """Return (case, contestant, height) of each row from the top, the middle of each case, and the height of all."""
    rows: list[Row] = []
    labels, y = [], 0.0
    for case in cases:
        names = [name for name in front_end["contestants"] if name in case["runs"][0]["contestants"]]
        if not names:
            continue
        labels.append((case, y + (len(names) - 1) / 2))
        rows += [(case, name, y + i) for i, name in enumerate(names)]
        y += len(names) + 0.6
    return rows, labels, y - 0.6


def _draw_row(
    panel: Any, case: Mapping[str, Any], front_end: Mapping[str, Any], name: str, it: Mapping[str, Any], y: float
) -> None:
    ratio, (low, high) = it["over_limit"], it["over_limit_quartiles"]
    if name == front_end["limit"]:
        text, right, style = f"limit {tables.ms(it['median_s'])} ms", 1.0, {"color": "#555555"}
    else:
        panel.barh(y, ratio - 1, 0.86, left=1, color=COLOURS.get(name, RADAM))  # other ways are radam's
        panel.hlines(y, low, high, color="#222222", linewidth=0.9)
        mark = tables.mark(case, front_end, name)
        text = f"{tables.times(ratio)}{TIMES}   {tables.ms(it['median_s'])} ms{mark}"
        right, style = max(ratio, high, 1.0), {"fontweight": "bold" if name == front_end["radam"] else "normal"}
    panel.annotate(text, (right, y), (4, 0), textcoords="offset points", va="center", fontsize=7, **style)


def _plain(panel: Any) -> None:
    panel.axvline(1, color="#222222", linewidth=1)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0, labelsize=9)
    panel.tick_params(axis="x", labelsize=8)


def _scale(panel: Any, found: Mapping[str, Any]) -> None:
    """Set the scale that all panels share."""
    all_runs = (run for case in found["cases"] for run in case["runs"])
    ratios = [it["over_limit"] for run in all_runs for it in run["contestants"].values()]
    most, least = max(ratios), min(ratios)
    steps = (0.5, 1, 1.5, 2, 3, 5, 10, 20) if most < 20 else (0.3, 1, 3, 10, 30, 100, 300, 1000, 10000, 100000)
    ticks = [tick for tick in steps if least <= tick <= 1.5 * most]
    panel.set_xscale("log")
    panel.set_xlim(min(0.9, 0.95 * least), 1.2 * most**1.45)  # room for the labels
    panel.set_xticks(ticks, [f"{tick:g}{TIMES}" for tick in ticks])
    panel.minorticks_off()


def _legend(figure: Any, found: Mapping[str, Any]) -> None:
    from matplotlib.patches import Patch

    names: dict[str, list[str]] = {}
    for front_end in found["front_ends"]:
        for name in front_end["contestants"]:
            if name in COLOURS:
                names.setdefault(COLOURS[name], []).append(name)
    patches = [Patch(color=colour) for colour in names]
    labels = [", ".join(shared) for shared in names.values()]
    figure.legend(patches, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    machine = found["machine"]
    quick = "a quick run, the times mean nothing; " if found["quick"] else ""
    computer = f"{tables.gpu_text(machine)}{machine['cpu']}, {machine['cores']} cores, {machine['isa']}"
    notes = [f"{quick}{computer}; thin lines: quartiles"]
    if any(tables.narrow_notes(found, front_end) for front_end in found["front_ends"]):
        notes.append(f"{tables.NARROW} moments in the parameters' 16 bits, where radam keeps float32: fewer bytes")
    figure.supxlabel("\n".join(notes), fontsize=7, color="#555555")


def _wrapped(case: Mapping[str, Any]) -> str:
    return str(case["what"]).replace(" in ", "\nin ").replace(" arrays of ", " arrays\nof ")
