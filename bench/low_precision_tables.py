"""What was found of weights and moments in fewer bits, as Markdown: the goals, the tables, and the spread."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from low_precision_contestants import (
    ADAMW,
    CLIPPED,
    CLIPPED_ADAMW,
    EIGHT_BIT,
    FP32,
    LIMIT,
    SPLIT_8_BIT,
)
from tables import Found, machine_line, ms, row, threads

MISSED = "†"


@dataclasses.dataclass(frozen=True)
class Goal:
    """A figure that is to be reached.

    Args:
        what: the figure.
        of: the contestant.
        over: its rival; None for the bytes that it moves.
        at_most: what the figure is to be.
    """

    what: str
    of: str
    over: str | None
    at_most: float


GOALS = (
    Goal("8-bit moments: over its limit", EIGHT_BIT, LIMIT + EIGHT_BIT, 1.15),
    Goal("8-bit moments: over the fp32 step", EIGHT_BIT, FP32, 0.68),
    Goal("8-bit moments: over torch fused AdamW", EIGHT_BIT, ADAMW, 0.70),
    Goal("bf16, split master, 8-bit moments: bytes a parameter", SPLIT_8_BIT, None, 14.2),
    Goal("bf16, split master, 8-bit moments: over its limit", SPLIT_8_BIT, LIMIT + SPLIT_8_BIT, 1.18),
    Goal("bf16, split master, 8-bit moments: over the fp32 step", SPLIT_8_BIT, FP32, 0.62),
    Goal("fp32: clip and step over step alone", CLIPPED, FP32, 1.18),
)
GOAL_CASES = ("33.5M", "134M")


def markdown(found: Found) -> str:
    """Return the tables of a run."""
    lines = [line for note in found["notes"] for line in (note, "")]
    lines += ["Medians of one interleaved run; ratios are paired within its rounds.", ""]
    if any(case["name"] in GOAL_CASES for case in found["cases"]):
        lines += [*goals_table(found), ""]
    for case in found["cases"]:
        for run in case["runs"]:
            lines += [f"**{case['what']}, {threads(run)}**", "", *run_table(case, run), ""]
        lines += [f"Left out: {name}: {reason}.\n" for name, reason in case["left_out"].items()]
    lines += [
        "A limit reads and writes the same arrays and computes nothing. Bytes are what a step reads and writes for a",
        "parameter, by the arrays themselves. A step that clips is compared with PyTorch's that clips, the others with",
        "the one that does not. All ask Linux for huge pages.",
        "",
        f"`{found['command']}`: {machine_line(found['machine'])}",
        "",
        "With the spread (quartiles):",
        "",
        *spread_table(found),
    ]
    return "\n".join(lines) + "\n"


def goals_table(found: Found) -> list[str]:
    """Return a row for each goal, a column for each run that it speaks of."""
    runs = [(case, run) for case in found["cases"] if case["name"] in GOAL_CASES for run in case["runs"]]
    head = ["", "goal: at most", *(f"{case['name']}, {threads(run)}" for case, run in runs)]
    lines = [row(head), row(["---", *["--:"] * (len(head) - 1)])]
    any_missed = False
    for goal in GOALS:
        cells = []
        for case, run in runs:
            figure = reached(goal, case, run)
            is_missed = figure is not None and round(figure, 2 if goal.over else 1) > goal.at_most
            any_missed |= is_missed
            cells.append("" if figure is None else _figure(goal, figure) + MISSED * is_missed)
        lines.append(row([goal.what, _figure(goal, goal.at_most), *cells]))
    return [*lines, "", f"{MISSED} Above the goal."] if any_missed else lines


def reached(goal: Goal, case: Found, run: Found) -> float | None:
    """Return the figure that a goal is about; None where who it is about did not take part."""
    if goal.over is None:
        moved: float | None = case["moved_bytes"].get(goal.of)
        return moved
    ratio: float | None = run["contestants"].get(goal.of, {}).get("over", {}).get(goal.over, {}).get("ratio")
    return ratio


def run_table(case: Found, run: Found) -> list[str]:
    """Return a row for each way to step."""
    head = ["", "bytes a parameter", "limit, ms", "step, ms", "over its limit", "over the fp32 step"]
    head.append("over torch fused AdamW")
    lines = [row(head), row(["---", *["--:"] * (len(head) - 1)])]
    for name, it in steps_of(run):
        over = it["over"]
        limit = run["contestants"].get(LIMIT + name)
        rival = CLIPPED_ADAMW if name == CLIPPED else ADAMW
        cells = [f"{case['moved_bytes'][name]:.1f}", "" if limit is None else ms(limit["median_s"]), ms(it["median_s"])]
        cells += [f"{over[key]['ratio']:.2f}" if key in over else "" for key in (LIMIT + name, FP32, rival)]
        lines.append(row([name, *cells]))
    return lines


def spread_table(found: Found) -> list[str]:
    """Return every figure with its quartiles: a row for each contestant, its limit before it."""
    head = ["case", "threads", "", "repeats", "ms a step", "GB/s", "µs a tensor", "over"]
    lines = [row(head), row(["---", "--:", "---", "--:", "--:", "--:", "--:", "---"])]
    for case in found["cases"]:
        for run in case["runs"]:
            for name, it in run["contestants"].items():
                low, high = it["quartiles_s"]
                cells = [
                    f"{ms(it['median_s'])} [{ms(low)}, {ms(high)}]",
                    f"{it['gb_per_s']:.1f}",
                    f"{it['us_per_tensor']:.3g}" if case["tensors"] >= 50 else "",
                    "; ".join(f"{rival}: {_spread(ratio)}" for rival, ratio in it["over"].items()),
                ]
                lines.append(row([case["name"], str(run["threads"]), name, str(it["repeats"]), *cells]))
    return lines


def steps_of(run: Found) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (name, figures) of all but the limits, PyTorch's last."""
    names = [name for name in run["contestants"] if not name.startswith(LIMIT)]
    for name in sorted(names, key=lambda name: name in (ADAMW, CLIPPED_ADAMW)):
        yield name, run["contestants"][name]


def _figure(goal: Goal, figure: float) -> str:
    return f"{figure:.2f}" if goal.over else f"{figure:.1f}"


def _spread(it: Mapping[str, Any]) -> str:
    low, high = it["quartiles"]
    return f"{it['ratio']:.3f} [{low:.3f}, {high:.3f}]"
