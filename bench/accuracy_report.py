"""What the runs of accuracy.py found, as tables and, with Matplotlib, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BASE, NUDGED = "float32", "float32, nudged"
MINUS = "\N{MINUS SIGN}"
# How far a way may be from float32: percent of the GPT's losses, points of the accuracy on digits.
GPT_GOALS = {
    "float32, 8-bit moments": 0.5,
    "bf16, master weights": 0.5,
    "bf16, stochastic rounding": 1.5,
}
DIGITS_GOAL = 0.3
DIGITS_WITH_GOAL = (
    *("float32, 8-bit moments", "bf16, master weights", "bf16, master weights, 8-bit moments"),
    *("bf16, stochastic rounding", "bf16, stochastic rounding, 8-bit moments"),
)
# Okabe and Ito's colours, which colour-blind people tell apart; a dashed line has 8-bit moments.
LOOKS = {
    "float32": ("#000000", "-"),
    "float32, 8-bit moments": ("#000000", "--"),
    "bf16, master weights": ("#0072B2", "-"),
    "bf16, master weights, 8-bit moments": ("#0072B2", "--"),
    "bf16, stochastic rounding": ("#009E73", "-"),
    "bf16, stochastic rounding, 8-bit moments": ("#009E73", "--"),
    "float32, bf16 moments": ("#CC79A7", "-"),
    "bf16": ("#E69F00", "-"),
    "bf16, torch.optim.RAdam": ("#D55E00", "-"),
    "float32, nudged": ("#999999", ":"),
}
SMOOTHED = 5  # so many means of the training loss make a point of the picture's right half
KINDS = {
    "parameter": "#0072B2",
    "rest of the weight": "#56B4E9",
    "gradient": "#999999",
    "m": "#E69F00",
    "v": "#F0E442",
    "scales": "#D55E00",
}

Found = Mapping[str, Any]


# ---- figures


def ratios(found: Found, way: str, what: str) -> list[float]:
    """Return by how many percent a loss of each seed is above float32's: the last of "training", or "held_out"."""
    runs = found["runs"]["gpt"]
    return [100 * (_last(runs[way][seed][what]) / _last(runs[BASE][seed][what]) - 1) for seed in _seeds(runs, way)]


def points(found: Found, way: str) -> list[float]:
    """Return by how many points the accuracy on unseen digits of each seed is above that of float32."""
    runs = found["runs"]["digits"]
    return [runs[way][seed]["accuracy"] - runs[BASE][seed]["accuracy"] for seed in _seeds(runs, way)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def state_bytes(kinds: Mapping[str, float]) -> float:
    """Return what the optimizer's state takes for each element of a large matrix."""
    return sum(kinds[kind] for kind in ("m", "v", "scales", "rest of the weight"))


def _last(value: Any) -> float:
    return float(value[-1] if isinstance(value, list) else value)


def _seeds(runs: Found, way: str) -> list[str]:
    return sorted(set(runs.get(way, ())) & set(runs.get(BASE, ())), key=int)


def _ways(found: Found, task: str) -> list[str]:
    """Return the ways that have a run of float32 beside one of theirs."""
    runs = found["runs"].get(task, {})
    return [way for way in found["bytes"] if _seeds(runs, way)]


# ---- tables


def tables(found: Found) -> dict[str, str]:
    """Return all tables in Markdown, by name, of what is there so far."""
    made = {"bytes": bytes_table(found), "gpt": gpt_table(found), "digits": digits_table(found)}
    return {name: table for name, table in made.items() if table}


def filled(text: str, found: Found) -> str:
    """Return a page with the tables put between its markers.

    Raises:
        ValueError: if a marker is missing.
    """
    for name, table in tables(found).items():
        head, begin, rest = text.partition(f"<!-- {name} table -->\n")
        _, end, tail = rest.partition(f"<!-- end of {name} table -->")
        if not (begin and end):
            raise ValueError(f"the page has no markers for the table {name!r}")
        text = f"{head}{begin}\n{table}\n\n{end}{tail}"
    return text


def bytes_table(found: Found) -> str:
    rows = []
    for way, kinds in found["bytes"].items():
        if way != NUDGED:
            both = f"{round(state_bytes(kinds), 2):g} | **{round(sum(kinds.values()), 2):g}**"
            rows.append(f"| {way} | {' | '.join(f'{kinds[kind]:.4g}' for kind in KINDS)} | {both} |")
    head = f"| way | {' | '.join(KINDS)} | the state, together | all |"
    return "\n".join([head, "| --- |" + " --: |" * (len(KINDS) + 2), *rows])


def gpt_table(found: Found) -> str:
    ways = _ways(found, "gpt")
    if not ways:
        return ""
    head = "| way | training loss over float32's | each seed | held-out loss over float32's | each seed | goal |"
    rows = []
    for way in ways:
        if way == BASE:
            runs = found["runs"]["gpt"][BASE].values()
            losses = [f"{mean([_last(run[what]) for run in runs]):.4f} bits" for what in ("training", "held_out")]
            rows.append(f"| {way} | {losses[0]} | | {losses[1]} | | |")
            continue
        cells = []
        for what in ("training", "held_out"):
            each = ratios(found, way, what)
            cells += [f"{_signed(mean(each), 2)} %", ", ".join(_signed(x, 2) for x in each)]
        goal = f"within {GPT_GOALS[way]:g} %" if way in GPT_GOALS else ""
        rows.append(f"| {way} | {' | '.join(cells)} | {goal} |")
    return "\n".join([head, "| --- | --: | --: | --: | --: | --: |", *rows])


def digits_table(found: Found) -> str:
    ways = _ways(found, "digits")
    if not ways:
        return ""
    head = "| way | unseen digits read right | points over float32 | each seed | goal |"
    rows = []
    for way in ways:
        right = mean([run["accuracy"] for run in found["runs"]["digits"][way].values()])
        if way == BASE:
            rows.append(f"| {way} | {right:.2f} % | | | |")
            continue
        each = points(found, way)
        goal = f"within {DIGITS_GOAL:g}" if way in DIGITS_WITH_GOAL else ""
        seeds = ", ".join(_signed(x, 2) for x in each)
        rows.append(f"| {way} | {right:.2f} % | {_signed(mean(each), 2)} | {seeds} | {goal} |")
    return "\n".join([head, "| --- | --: | --: | --: | --: |", *rows])


def _signed(x: float, digits: int) -> str:
    text = f"{abs(x):.{digits}f}"
    sign = "" if float(text) == 0 else "+" if x > 0 else MINUS
    return sign + text


HEAD = """# What fewer bits cost in accuracy

    python bench/accuracy.py

{machine}

- `bf16` is parameters and gradients in bfloat16. The forward and backward pass compute in float32 in all ways, from the
  parameters widened: the rows differ by the optimizer and by what it is fed, not by the rounding of activations.
- Parameters of fewer than 4096 elements keep float32 moments, which is the default.
- `float32, nudged` starts from float32's weights times 1 + 1e-6. What is closer to float32 than that cannot be told
  from it.

## Bytes

Of each element of a large matrix. The rest of the weight is what `master_weights=True` keeps.

{bytes}
"""
GPT = """
## tiny_gpt, {steps} steps

The GPT of examples/tiny_gpt.py learns Python's standard library, from the same start and with the same batches in all
ways. The training loss is the mean of the last 50 steps; the held-out loss that of 256 pieces of modules that no batch
has, with the parameters as they are kept; both in bits per byte. A figure is the mean over the seeds of the ratio to
float32 of the same seed.

{gpt}
"""
DIGITS = """
## Handwritten digits, {epochs} epochs

The network of `python -m radam demo` reads 450 digits that it has not seen: one of them is 0.22 points of a seed.

{digits}
"""


def page(found: Found, pictures: Sequence[str]) -> str:
    """Return the whole report."""
    it, made = found["machine"], tables(found)
    computer = f"{it['cpu']}, {it['cores']} cores, {it['isa']}, CPU, 1 thread"
    versions = ", ".join(f"{name} {it['versions'][name]}" for name in ("torch", "python", "radam"))
    text = HEAD.format(machine=f"{computer}; {versions}; begun {it['date'][:10]}.", **made)
    if "gpt" in made:
        text += GPT.format(**found["settings"], **made)
    if "digits" in made:
        text += DIGITS.format(**found["settings"], **made)
    return text + "".join(f"\n![{ALT[picture.rpartition('-')[2]]}]({picture})\n" for picture in pictures)


ALT = {
    "losses.png": "The training loss over the steps, and how far each way is from float32",
    "bytes.png": "Bytes a parameter takes in each way, by kind",
}


# ---- pictures


def write(found: Found, output: Path) -> list[Path]:
    """Write OUTPUT.md and, if Matplotlib is there, OUTPUT-losses.png and OUTPUT-bytes.png; return what was written."""
    pictures = []
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("No pictures: Matplotlib is not installed.")
    else:
        for name, draw, size in (("losses", draw_losses, (12, 5.2)), ("bytes", draw_bytes, (9.5, 4.4))):
            figure = Figure(figsize=size, dpi=150, layout="constrained")
            if draw(found, figure):
                path = output.with_name(f"{output.name}-{name}.png")
                figure.savefig(path)
                pictures.append(path)
    path = output.with_name(output.name + ".md")
    path.write_text(page(found, [picture.name for picture in pictures]), encoding="utf-8")
    return [path, *pictures]


def draw_losses(found: Found, figure: Any) -> bool:
    """Draw the training losses, mean of the seeds, and by how much they are above those of float32."""
    ways = _ways(found, "gpt")
    if not ways:
        return False
    runs = found["runs"]["gpt"]
    loss, over = figure.subplots(1, 2, width_ratios=(4, 5))
    every = found["settings"]["steps"] / len(next(iter(runs[BASE].values()))["training"])
    for way in ways:
        color, style = LOOKS[way]
        seeds = _seeds(runs, way)
        curves = [runs[way][seed]["training"] for seed in seeds]
        bases = [runs[BASE][seed]["training"] for seed in seeds]
        steps = [every * (i + 1) for i in range(len(curves[0]))]
        label = f"{way}: {_signed(mean(ratios(found, way, 'training')), 2)} %" if way != BASE else way
        loss.plot(steps, [mean(each) for each in zip(*curves)], color=color, linestyle=style, linewidth=1.2)
        above = [100 * mean([a / b - 1 for a, b in zip(*each)]) for each in zip(zip(*curves), zip(*bases))]
        wide = min(SMOOTHED, len(above))
        smooth = [mean(above[i : i + wide]) for i in range(len(above) - wide + 1)]
        over.plot(steps[wide - 1 :], smooth, color=color, linestyle=style, linewidth=1.5, label=label)
    count = len(next(iter(runs[BASE].values()))["training"])
    window = round(found["settings"]["steps"] / count)
    loss.set(title=f"Training loss of tiny_gpt, means of {window} steps", xlabel="step", ylabel="bits per byte")
    over.set(title=f"Above that of float32, means of {SMOOTHED * window} steps", xlabel="step", ylabel="%")
    handles, labels = over.get_legend_handles_labels()
    seeds = len(_seeds(runs, BASE))
    title = f"mean of {seeds} seeds" if seeds > 1 else "1 seed"
    title += f", last {window} steps over those of float32"
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5, title=title)
    for axes in (loss, over):
        axes.grid(True, color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return True


def draw_bytes(found: Found, figure: Any) -> bool:
    """Draw what a parameter takes in each way, one bar each, by kind."""
    ways = [way for way in found["bytes"] if way != NUDGED]
    axes = figure.subplots()
    lefts = [0.0] * len(ways)
    for kind, color in KINDS.items():
        widths = [found["bytes"][way][kind] for way in ways]
        bars = axes.barh(range(len(ways)), widths, 0.66, left=lefts, color=color, label=kind, edgecolor="white")
        text = {"label_type": "center", "fontsize": 8, "color": "white" if kind == "parameter" else "black"}
        axes.bar_label(bars, [f"{w:g}" if w >= 1 else "" for w in widths], **text)
        lefts = [left + width for left, width in zip(lefts, widths)]
    for y, total in enumerate(lefts):
        axes.annotate(
            f"{round(total, 2):g}", (total, y), (5, 0), textcoords="offset points", va="center", fontweight="bold"
        )
    axes.set_yticks(range(len(ways)), ways)
    axes.invert_yaxis()
    axes.set(xlabel="bytes", title="Bytes a parameter takes, of a large matrix", xlim=(0, 1.08 * max(lefts)))
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(KINDS), frameon=False, fontsize=9)
    return True
