"""What was found, as Markdown: tables of a run, and those of docs/benchmarks.md. gpu_tables.py adds what GPUs need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]

NARROW = "*"  # marks a step that moves fewer bytes than radam's


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return the machine and the versions in one line."""
    versions = ", ".join(f"{what} {version}" for what, version in machine["versions"].items())
    memory = f", {machine['memory_gib']:g} GiB" if machine["memory_gib"] else ""
    computer = f"{machine['cpu']}, {machine['cores']} cores{memory}, {machine['isa']}, {machine['system']}"
    return f"{gpu_text(machine)}{computer}; {versions}; {machine['date'][:10]}"


def gpu_text(machine: Mapping[str, Any]) -> str:
    """Return the GPU of the machine, if it was measured, to stand before the rest."""
    gpu = machine.get("gpu")
    return f"{gpu['name']}, {gpu['memory_gib']:g} GiB, driver {gpu['driver']}; " if gpu else ""


def markdown(found: Found) -> str:
    """Return the tables of a run: for each kind of arrays one to show, then one with the spread."""
    lines = [line for note in found["notes"] for line in (note, "")]
    lines += [
        "Milliseconds a step, and in brackets how many times the limit on the same kind of arrays that is: the same",
        "memory read and written, nothing computed. Medians of one interleaved run.",
    ]
    for front_end in found["front_ends"]:
        lines += ["", f"**{front_end['name']}**", "", *main_table(found, front_end)]
        for note in narrow_notes(found, front_end):
            lines += ["", note]
    lines += ["", f"`{found['command']}`: {machine_line(found['machine'])}"]
    lines += ["", "With the spread (quartiles); each contestant beside the limit and radam on its kind of arrays:", ""]
    lines += [*spread_table(found), ""]
    for front_end in found["front_ends"]:
        name = front_end["radam"]
        peaks = ((case["name"], case["peak_extra_bytes"].get(name)) for case in found["cases"])
        extra = ", ".join(f"{case} {peak / 1024:.1f} KiB" for case, peak in peaks if peak is not None)
        lines.append(f"Memory that a step of {name} takes from Python's and NumPy's allocators at its peak: {extra}.\n")
    return "\n".join(lines)


def main_table(found: Found, front_end: Found) -> list[str]:
    """Return one kind of arrays: a row for each run, a column for each contestant."""
    names = front_end["contestants"]
    lines = [row(["parameters", run_kind(found), *names]), row(["---", "--:", *["--:"] * len(names)])]
    for case, run in runs_of(found, front_end):
        cells = []
        for name in names:
            it = run["contestants"].get(name)
            ratio = "" if it is None or name == front_end["limit"] else f" ({times(it['over_limit'])})"
            cells.append("" if it is None else f"{ms(it['median_s'])}{ratio}{mark(case, front_end, name)}")
        lines.append(row([case["what"], str(run[run_kind(found)]), *cells]))
    return lines


def spread_table(found: Found) -> list[str]:
    """Return every figure with its quartiles: a row for each contestant."""
    head = ["case", run_kind(found), "", "repeats", "ms a step", "over the limit", "radam over it", "µs a tensor"]
    lines = [row(head), row(["---", "--:", "---", "--:", "--:", "--:", "--:", "--:"])]
    for front_end in found["front_ends"]:
        own = (front_end["limit"], front_end["radam"])
        for case, run in runs_of(found, front_end):
            for name in front_end["contestants"]:
                it = run["contestants"].get(name)
                if it is None:
                    continue
                low, high = it["quartiles_s"]
                cells = [
                    f"{ms(it['median_s'])} [{ms(low)}, {ms(high)}]",
                    _ratio(it["over_limit"], it["over_limit_quartiles"]),
                    "" if name in own else _ratio(it["radam_over_it"], it["radam_over_it_quartiles"]),
                    f"{it['us_per_tensor']:.3g}" if case["tensors"] >= 50 else "",
                ]
                who = name + mark(case, front_end, name)
                lines.append(row([case["name"], str(run[run_kind(found)]), who, str(it["repeats"]), *cells]))
    return lines


def page(found: Found) -> str:
    """Return what stands in docs/benchmarks.md between its markers: a table for each kind of arrays."""
    lines: list[str] = []
    for front_end in found["front_ends"]:
        limit, radam = front_end["limit"], front_end["radam"]
        peers = [name for name in front_end["contestants"] if name not in (limit, radam)]
        head = ["case", "limit", radam, "ratio", *peers]
        lines += [f"**{front_end['name']}**", "", row(head), row(["---", *["--:"] * (len(head) - 1)])]
        for case, run in runs_of(found, front_end):
            its = run["contestants"]
            cells = [f"{case['what']}, {threads(run)}", ms(its[limit]["median_s"])]
            cells += [f"**{ms(its[radam]['median_s'])}**", times(its[radam]["over_limit"])]
            for name in peers:
                shown = f"{ms(its[name]['median_s'])}{mark(case, front_end, name)}" if name in its else ""
                cells.append(shown)
            lines.append(row(cells))
        for note in narrow_notes(found, front_end):
            lines += ["", note]
        lines.append("")
    return "\n".join(lines)


# ---- what tables and chart share


def run_kind(found: Found) -> str:
    """Return what the runs of a case differ in: the threads, or the clock."""
    return "clock" if "clock" in found["cases"][0]["runs"][0] else "threads"


def label(run: Found) -> str:
    """Return a run in words."""
    return f"{run['clock']} time" if "clock" in run else threads(run)


def runs_of(found: Found, front_end: Found) -> Iterator[tuple[Found, Found]]:
    """Yield (case, run) for each thread count of each case that arrays of this kind take part in."""
    for case in found["cases"]:
        for run in case["runs"]:
            if front_end["radam"] in run["contestants"]:
                yield case, run


def mark(case: Found, front_end: Found, name: str) -> str:
    """Return the mark of a contestant that moves fewer bytes than radam does."""
    moved = case["least_moved_bytes"]
    return NARROW if moved[name] < moved[front_end["radam"]] else ""


def narrow_notes(found: Found, front_end: Found) -> list[str]:
    """Return what the mark means, in a sentence or two for each case in which it stands."""
    notes = []
    for case in found["cases"]:
        moved, radam = case["least_moved_bytes"], front_end["radam"]
        fewer = {moved[name] for name in front_end["contestants"] if name in moved and mark(case, front_end, name)}
        if fewer:
            notes.append(
                f"\\{NARROW} With {case['dtype']} parameters {radam} keeps float32 moments: a step moves "
                f"{moved[radam]} bytes a parameter, as its limit does. PyTorch's optimizers keep {case['dtype']} "
                f"moments: {min(fewer)} bytes at least, and other results."
            )
    return notes


def row(cells: Sequence[str]) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cells) + " |"


def threads(run: Found) -> str:
    """Return the number of threads in words."""
    return f"{run['threads']} thread{'s' * (run['threads'] > 1)}"


def ms(seconds: float) -> str:
    """Return seconds as milliseconds."""
    amount = 1e3 * seconds
    return f"{amount:.0f}" if amount >= 100 else f"{amount:#.3g}"


def times(ratio: float) -> str:
    """Return a ratio with as many digits as make sense."""
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def _ratio(middle: float, quartiles: Sequence[float]) -> str:
    low, mid, high = (f"{ratio:.3f}" if ratio < 10 else times(ratio) for ratio in (quartiles[0], middle, quartiles[1]))
    return f"{mid} [{low}, {high}]"
