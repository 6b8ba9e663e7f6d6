"""What was found on a GPU, as Markdown: the goals, then the tables of tables.py with what else a GPU shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tables
from tables import Found, row


@dataclasses.dataclass(frozen=True)
class Goal:
    """A figure that radam is to reach.

    Args:
        what: the figure in words.
        case: where it is found.
        goal: what it should be, in words; empty where it is only told.
        value: finds it in a case; raises KeyError where it was not measured.
        is_met: whether it is what it should be.
        shown: as text.
    """

    what: str
    case: str
    goal: str
    value: Callable[[Found], float]
    is_met: Callable[[float], bool]
    shown: Callable[[float], str] = "{:.3f}".format


def _it(case: Found, clock: str, name: str) -> Mapping[str, Any]:
    (run,) = (run for run in case["runs"] if run["clock"] == clock)
    found: Mapping[str, Any] = run["contestants"][name]
    return found


def _share(name: str) -> Callable[[Found], float]:
    return lambda case: 1 / _it(case, "device", name)["over_limit"]


def _bandwidth(name: str) -> Callable[[Found], float]:
    def found(case: Found) -> float:
        moved = case["least_moved_bytes"][name] * case["parameters"]
        return float(1e-9 * moved / _it(case, "device", name)["median_s"])

    return found


def _radam_over(peer: str, clock: str) -> Callable[[Found], float]:
    return lambda case: float(_it(case, clock, peer)["radam_over_it"])


def _micros(name: str, clock: str, of: str = "median_s") -> Callable[[Found], float]:
    return lambda case: float(_it(case, clock, name)[of]) * (1e6 if of == "median_s" else 1)


def _over(name: str, other: str) -> Callable[[Found], float]:
    return lambda case: float(_it(case, "device", name)["median_s"] / _it(case, "device", other)["median_s"])


def _count(name: str, what: str) -> Callable[[Found], float]:
    return lambda case: float(case["launches"][name][what])


def _at_most(limit: float) -> Callable[[float], bool]:
    return lambda value: value <= limit


def _told(what: str, case: str, value: Callable[[Found], float], shown: Callable[[float], str]) -> Goal:
    return Goal(what, case, "", value, lambda _: True, shown)


_RADAM, _FOREACH, _ADAMW = "radam.torch", "torch RAdam foreach", "torch fused AdamW"
_GRAPH = "radam.torch in a graph"
_EIGHT_BIT, _CLIPPED = "radam.torch, 8-bit moments", "radam.torch, max_grad_norm"
_SPLIT, _STOCHASTIC = "radam.torch, split master, 8-bit moments", "radam.torch, stochastic, 8-bit moments"
_GB, _US = "{:.0f} GB/s".format, "{:.2f} µs".format

GOALS = (
    Goal("fp32, 1 G: share of the limit's bandwidth", "1G", "at least 0.93", _share(_RADAM), lambda x: x >= 0.93),
    _told("the same, absolute", "1G", _bandwidth(_RADAM), _GB),
    _told("the limit's", "1G", _bandwidth("limit on torch tensors"), _GB),
    Goal("fp32, 1 G: over torch RAdam foreach", "1G", "at most 0.25", _radam_over(_FOREACH, "device"), _at_most(0.25)),
    Goal("fp32, 1 G: over torch fused AdamW", "1G", "at most 1.0", _radam_over(_ADAMW, "device"), _at_most(1.0)),
    *(
        Goal(
            f"ResNet-50, a step of 161 tensors, {clock} time: over torch RAdam foreach",
            "resnet50",
            "at most 0.1",
            _radam_over(_FOREACH, clock),
            _at_most(0.1),
        )
        for clock in ("whole", "host", "device")
    ),
    Goal(
        "1000 tensors of 4096: kernel launches of a step",
        "1000x4096",
        "1",
        _count(_RADAM, "kernels"),
        lambda x: x == 1,
        "{:.0f}".format,
    ),
    *(
        Goal(
            f"{case} in a CUDA graph: host time of a replay",
            case,
            "under 15 µs",
            _micros(_GRAPH, "host"),
            lambda x: x < 15,
            _US,
        )
        for case in ("resnet50", "1000x4096")
    ),
    _told("bf16 with fp32 moments, 1 G: share of the limit's bandwidth", "1G-bf16", _share(_RADAM), "{:.3f}".format),
    _told("the same, absolute", "1G-bf16", _bandwidth(_RADAM), _GB),
    _told("1000 tensors of 4096: host time of a tensor", "1000x4096", _micros(_RADAM, "host", "us_per_tensor"), _US),
    *(
        _told(f"{way.removeprefix('radam.torch, ')}, 1 G: {figure}", case, value, "{:.3f}".format)
        for way, case in ((_EIGHT_BIT, "1G-low"), (_SPLIT, "1G-bf16-low"), (_STOCHASTIC, "1G-bf16-low"))
        for figure, value in (
            ("share of its own limit's bandwidth", _share(way)),
            ("over radam.torch with float32 moments", _over(way, _RADAM)),
        )
    ),
    _told("max_grad_norm, fp32, 1 G: over the step alone", "1G-low", _over(_CLIPPED, _RADAM), "{:.3f}".format),
)


def goals_table(found: Found) -> list[str]:
    """Return the goals with what was found. A quick run says nothing of them."""
    lines = [row(["figure", "goal", "measured", ""]), row(["---", "--:", "--:", "---"])]
    cases = {case["name"]: case for case in found["cases"]}
    for goal in GOALS:
        try:
            value = goal.value(cases[goal.case])
        except KeyError:
            lines.append(row([goal.what, goal.goal, "not measured", ""]))
            continue
        judged = "" if not goal.goal or found["quick"] else "met" if goal.is_met(value) else "**missed**"
        lines.append(row([goal.what, goal.goal, goal.shown(value), judged]))
    return lines


def markdown(found: Found) -> str:
    """Return the goals and the tables of a run."""
    lines = [line for note in found["notes"] for line in (note, "")]
    for case in found["cases"]:
        for name, why in case["left_out"].items():
            lines += [f"{case['name']}: without {name}, {why}", ""]
    lines += [
        *goals_table(found),
        "",
        "Milliseconds a step, and in brackets how many times the limit on the same kind of arrays that is: the same",
        "memory read and written, nothing computed. Medians of one interleaved run. Device time: what the device takes",
        "when all is queued; host time: until the step returns; whole time: until the device is done.",
    ]
    for front_end in found["front_ends"]:
        lines += ["", f"**{front_end['name']}**", "", *tables.main_table(found, front_end)]
        for note in tables.narrow_notes(found, front_end):
            lines += ["", note]
    lines += [
        "",
        "What a step launches, as PyTorch's profiler sees it, and takes from PyTorch's CUDA allocator at its peak:",
    ]
    lines += ["", *_launches_table(found), "", "Microseconds of host time for a step of one parameter:", ""]
    lines += [*_empty_table(found), "", f"`{found['command']}`: {tables.machine_line(found['machine'])}"]
    lines += ["", *(f"- {when} the run: {found['machine']['gpu'][when]}" for when in ("before", "after"))]
    lines += ["", "With the spread (quartiles); each contestant beside the limit and radam on its kind of arrays:", ""]
    return "\n".join([*lines, *tables.spread_table(found), ""])


def _launches_table(found: Found) -> list[str]:
    head = ["case", "", "kernels", "copies", "fills", "waits", "MiB"]
    lines = [row(head), row(["---", "---", *["--:"] * 5])]
    for case in found["cases"]:
        for name, peak in case["peak_extra_bytes"].items():
            counted = case.get("launches", {}).get(name, {})
            counts = [str(counted.get(what, "")) for what in ("kernels", "copies", "fills", "waits")]
            lines.append(row([case["name"], name, *counts, f"{peak / 2**20:.1f}"]))
    return lines


def _empty_table(found: Found) -> list[str]:
    lines = [row(["optimizer", "its parameter", "µs a step"]), row(["---", "---", "--:"])]
    for it in found["empty_step"]:
        low, middle, high = (1e6 * s for s in (it["quartiles_s"][0], it["median_s"], it["quartiles_s"][1]))
        lines.append(row([it["optimizer"], it["param"], f"{middle:.2f} [{low:.2f}, {high:.2f}]"]))
    return lines


def page(found: Found) -> str:
    """Return what docs/cuda.md is to show of a run."""
    return "\n".join([*goals_table(found), "", tables.machine_line(found["machine"]), ""])
