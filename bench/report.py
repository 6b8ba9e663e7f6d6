"""What was found, as figures (JSON), as tables (Markdown) and as a chart (PNG)."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TIMES = "\N{MULTIPLICATION SIGN}"

# Okabe and Ito's colours, which colour-blind people tell apart.
COLOURS = {
    "radam": "#0072B2",
    "torch fused AdamW": "#56B4E9",
    "torch RAdam foreach": "#E69F00",
    "torch RAdam default": "#D55E00",
}


def command(arguments: Sequence[str]) -> str:
    """Return the command that was run, from the root of the repository."""
    return shlex.join(["python", "bench/run.py", *arguments])


def summaries(times: Mapping[str, Mapping[int, float]], tensors: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each contestant from the seconds of its steps by round."""
    return {name: _summary(taken, times, tensors) for name, taken in times.items()}


def _summary(taken: Mapping[int, float], times: Mapping[str, Mapping[int, float]], tensors: int) -> dict[str, Any]:
    median, quartiles = _spread(list(taken.values()))
    # Rounds pair what ran within a second of each other: a slow minute of the machine cancels out of their ratios.
    ratio, ratio_quartiles = _spread([seconds / times["limit"][k] for k, seconds in taken.items()])
    radam, radam_quartiles = _spread([times["radam"][k] / seconds for k, seconds in taken.items()])
    return {
        "repeats": len(taken),
        "median_s": median,
        "quartiles_s": quartiles,
        "over_limit": ratio,
        "over_limit_quartiles": ratio_quartiles,
        "over_limit_of_medians": median / statistics.median(times["limit"].values()),
        "radam_over_it": radam,
        "radam_over_it_quartiles": radam_quartiles,
        "us_per_tensor": 1e6 * median / tensors,
        "times_s": {str(k): round(seconds, 9) for k, seconds in taken.items()},
    }


def _spread(values: Sequence[float]) -> tuple[float, list[float]]:
    if len(values) == 1:
        return values[0], [values[0], values[0]]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, [low, high]


def write(found: Mapping[str, Any], name: Path) -> list[Path]:
    """Write NAME.json, NAME.md and, where Matplotlib is installed, NAME.png. Returns what was written."""
    paths = [name.with_name(name.name + end) for end in (".json", ".md", ".png")]
    paths[0].write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(markdown(found), encoding="utf-8")
    return paths if _draw(found, paths[2]) else paths[:2]


# ---- tables


def machine_line(found: Mapping[str, Any]) -> str:
    """Return the machine and the versions in one line."""
    machine = found["machine"]
    versions = ", ".join(f"{what} {version}" for what, version in machine["versions"].items())
    memory = f", {machine['memory_gib']:g} GiB" if machine["memory_gib"] else ""
    computer = f"{machine['cpu']}, {machine['cores']} cores{memory}, {machine['isa']}, {machine['system']}"
    return f"{computer}; {versions}; {machine['date'][:10]}"


def markdown(found: Mapping[str, Any]) -> str:
    """Return the tables: one to show, one with the spread."""
    names = _names(found)
    lines = [line for note in found["notes"] for line in (note, "")]
    lines += [
        "Milliseconds a step, fp32, and in brackets how many times the limit that is: the same memory read and",
        "written, nothing computed. Medians of one interleaved run.",
        "",
        _row(["parameters", "threads", *names]),
        _row(["---", "--:", *["--:"] * len(names)]),
    ]
    for case, run in _runs(found):
        cells = []
        for name in names:
            it = run["contestants"].get(name)
            ratio = "" if name == "limit" else f" ({_times(it['over_limit'])})" if it else ""
            cells.append("" if it is None else f"{_ms(it['median_s'])}{ratio}")
        lines.append(_row([case["what"], str(run["threads"]), *cells]))
    lines += ["", f"`{found['command']}`: {machine_line(found)}"]
    lines += ["", "With the spread (quartiles):", ""]
    head = ["case", "threads", "", "repeats", "ms a step", "over the limit", "radam over it", "µs a tensor"]
    lines += [_row(head), _row(["---", "--:", "---", "--:", "--:", "--:", "--:", "--:"])]
    for case, run in _runs(found):
        for name in names:
            it = run["contestants"].get(name)
            if it is None:
                continue
            low, high = it["quartiles_s"]
            cells = [
                f"{_ms(it['median_s'])} [{_ms(low)}, {_ms(high)}]",
                _ratio(it["over_limit"], it["over_limit_quartiles"]),
                "" if name in ("radam", "limit") else _ratio(it["radam_over_it"], it["radam_over_it_quartiles"]),
                f"{it['us_per_tensor']:.3g}" if case["tensors"] >= 50 else "",
            ]
            lines.append(_row([case["name"], str(run["threads"]), name, str(it["repeats"]), *cells]))
    lines.append("")
    extra = ", ".join(f"{case['name']} {case['radam_peak_extra_bytes'] / 1024:.1f} KiB" for case in found["cases"])
    lines.append(f"Memory that a step of radam takes from Python's and NumPy's allocators at its peak: {extra}.")
    for case in found["cases"]:
        lines += [f"\n{case['name']} without {name}: {reason}." for name, reason in case["left_out"].items()]
    return "\n".join(lines) + "\n"


def _names(found: Mapping[str, Any]) -> list[str]:
    seen = {name for _, run in _runs(found) for name in run["contestants"]}
    return [name for name in ("limit", *COLOURS) if name in seen]


def _runs(found: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(case, run) for case in found["cases"] for run in case["runs"]]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:#.3g}"


def _times(ratio: float) -> str:
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def _ratio(middle: float, quartiles: Sequence[float]) -> str:
    low, mid, high = (f"{ratio:.3f}" if ratio < 10 else _times(ratio) for ratio in (quartiles[0], middle, quartiles[1]))
    return f"{mid} [{low}, {high}]"


# ---- chart


def _draw(found: Mapping[str, Any], path: Path) -> bool:
    """Draw one panel per thread count: bars that begin at the limit, grouped by case. False without Matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        return False

    names = [name for name in _names(found) if name != "limit"]
    cases = found["cases"]
    counts = [run["threads"] for run in cases[0]["runs"]]
    rows, centres, height = _rows(cases, names)
    size = (4.9 * len(counts) + 1.6, 1.6 + 0.2 * height)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(1, len(counts), sharex=True, sharey=True, squeeze=False)[0]
    for k, panel in enumerate(panels):
        for c, name, y in rows:
            _draw_row(panel, name, cases[c]["runs"][k]["contestants"][name], y)
        panel.axvline(1, color="#222222", linewidth=1)
        panel.set_title(f"{counts[k]} thread{'s' * (counts[k] > 1)}", fontsize=10)
        panel.set_xlabel("time of a step over the limit (log scale)", fontsize=8.5)
        panel.grid(axis="x", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0, labelsize=9)
        panel.tick_params(axis="x", labelsize=8)
    ratios = [it["over_limit"] for _, run in _runs(found) for it in run["contestants"].values()]
    most = max(ratios)
    steps = (1, 1.5, 2, 3, 5, 10, 20) if most < 20 else (1, 3, 10, 30, 100, 300, 1000, 10000, 100000)
    ticks = [tick for tick in steps if tick <= 1.5 * most]
    panels[0].set_xscale("log")
    panels[0].set_xlim(min(0.9, 0.95 * min(ratios)), 1.2 * most**1.45)  # room for the labels
    panels[0].set_xticks(ticks, [f"{tick:g}{TIMES}" for tick in ticks])
    panels[0].minorticks_off()
    panels[0].set_yticks(centres, [_wrapped(case) for case in cases])
    panels[0].set_ylim(height, -0.5)
    colours = [Patch(color=COLOURS[name]) for name in names]
    figure.legend(colours, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=9)
    machine = found["machine"]
    quick = "a quick run, the times mean nothing; " if found["quick"] else ""
    note = f"{quick}{machine['cpu']}, {machine['cores']} cores, {machine['isa']}, fp32; thin lines: quartiles"
    figure.supxlabel(note, fontsize=7, color="#555555")
    figure.savefig(path)
    return True


def _rows(
    cases: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[list[tuple[int, str, float]], list[float], float]:
    """Return (case, contestant, height) of each row from the top, the middle of each case, and the height of all."""
    rows, centres, y = [], [], 0.0
    for c, case in enumerate(cases):
        first = y
        for name in ("limit", *names):
            if name in case["runs"][0]["contestants"]:
                rows.append((c, name, y))
                y += 1
        centres.append((first + y - 1) / 2)
        y += 0.6
    return rows, centres, y - 0.6


def _draw_row(panel: Any, name: str, it: Mapping[str, Any], y: float) -> None:
    ratio, (low, high) = it["over_limit"], it["over_limit_quartiles"]
    if name == "limit":
        text, right, style = f"limit {_ms(it['median_s'])} ms", 1.0, {"color": "#555555"}
    else:
        panel.barh(y, ratio - 1, 0.86, left=1, color=COLOURS[name])
        panel.hlines(y, low, high, color="#222222", linewidth=0.9)
        text, right = f"{_times(ratio)}{TIMES}   {_ms(it['median_s'])} ms", max(ratio, high, 1.0)
        style = {"fontweight": "bold" if name == "radam" else "normal"}
    panel.annotate(text, (right, y), (4, 0), textcoords="offset points", va="center", fontsize=7, **style)


def _wrapped(case: Mapping[str, Any]) -> str:
    return str(case["what"]).replace(" in ", "\nin ").replace(" arrays of ", " arrays\nof ")
