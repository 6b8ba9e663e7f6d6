"""Draw the pictures of method.md: python docs/make_pictures.py [--folder FOLDER] [--draws N]. Needs Matplotlib."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

import radam

Floats = np.ndarray[Any, np.dtype[Any]]

# Okabe and Ito's colours, which colour-blind people tell apart; every line has dashes of its own besides.
BLACK, BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
DASHED, DOTTED, LONG, MIXED = (0, (4, 2)), (0, (1.5, 1.5)), (0, (8, 3)), (0, (7, 2, 1.5, 2))
Style = tuple[str, Any]
STYLES: dict[float, Style] = {
    0.9: (PURPLE, DOTTED),
    0.99: (GREEN, MIXED),
    0.999: (BLUE, "-"),
    0.9999: (VERMILION, DASHED),
    0.99999: (ORANGE, LONG),
}
FIRST = 6  # the first step that is rectified, for every beta2 of these pictures


# ---- the schedule, three ways


def textbook(t: int, beta2: float, dtype: type[Any]) -> tuple[float, float]:
    """Return rho and r by the textbook formula, with numbers of one dtype; r is NaN where rho is not above 5.

    The power is rounded once, so that every library does worse or as well. rho_inf is a Python float, as in the
    frameworks.
    """
    rho_inf, steps = dtype(2 / (1 - beta2) - 1), dtype(t)
    power = dtype(np.float64(dtype(beta2)) ** t)
    rho = rho_inf - 2 * steps * power / (1 - power)
    if not rho > 5:
        return float(rho), float("nan")
    return float(rho), float(np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)))


def exact(t: int, beta2: float) -> Decimal:
    """Return r by its definition, in 70 digits, of a step that is rectified."""
    with localcontext() as context:
        context.prec = 70
        base = Decimal(beta2)  # all digits of the float64
        power = base**t
        rho_inf = 2 / (1 - base) - 1
        rho = rho_inf - 2 * t * power / (1 - power)
        return ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)).sqrt()


def rectified(t: int, beta2: float) -> float:
    """Return radam's r, of a step that is rectified."""
    r = radam.rectification(t, beta2)
    assert r is not None, f"step {t} with beta2 = {beta2} is not rectified"
    return r


def relative_error(r: float, t: int, beta2: float) -> float:
    """Return how far r is off; infinite where the formula does not rectify a step that is to be rectified."""
    if np.isnan(r):
        return float("inf")
    true = exact(t, beta2)
    return float(abs(Decimal(r) - true) / true)


# ---- the pictures


def spread_of_the_rate(axes: Any, draws: int) -> None:
    """Where Adam's factor 1 / sqrt(v_hat) lies if gradients are noise of size 1."""
    t = np.arange(1, 101)
    factors = simulated(t, draws)
    for low, high, shade in ((0.5, 99.5, 0.2), (5, 95, 0.35)):
        band = np.percentile(factors, (low, high), axis=1)
        label = f"{high - low:g} of 100 runs"
        axes.fill_between(t, *band, color=BLUE, alpha=shade, linewidth=0, label=label)
    axes.plot(t, np.median(factors, axis=1), color=BLACK, label="median")
    axes.axhline(1, color=VERMILION, linestyle=DASHED, label="1 / the gradients' true size")
    axes.set(xscale="log", yscale="log", xlim=(1, 100))
    axes.set(xlabel="step t, log scale", ylabel="1 / sqrt(v̂), log scale")
    axes.set_title("By what Adam multiplies its steps where gradients are noise of size 1 (beta2 = 0.999)")
    plain_numbers(axes, "x", "y")
    axes.legend(frameon=False)


def spread_rectified(axes: Any, draws: int) -> None:
    """The standard deviation of the factor, and what the rectification leaves of it."""
    t = np.unique(np.geomspace(FIRST, 6000, 60).astype(int))
    deviations = simulated(t, draws).std(axis=1)
    r = np.array([rectified(int(x), 0.999) for x in t])
    axes.plot(t, deviations, color=VERMILION, linestyle=DASHED, label="1 / sqrt(v̂), as Adam takes it")
    axes.plot(t, r * deviations, color=BLUE, label="r / sqrt(v̂), as RAdam takes it")
    axes.set(xscale="log", yscale="log", xlim=(FIRST, 6000), ylim=(0.003, 1))
    axes.set(xlabel="step t, log scale", ylabel="standard deviation, log scale")
    axes.set_title("r makes the early steps as steady as the late ones (beta2 = 0.999)")
    plain_numbers(axes, "x", "y")
    axes.legend(frameon=False)


def simulated(t: Floats, draws: int) -> Floats:
    """Return 1 / sqrt(v_hat) at the steps t, a row each, of so many runs; the gradients are normal, beta2 is 0.999."""
    rng = np.random.default_rng(2020)
    v = np.zeros(draws)
    rows = []
    for step in range(1, int(t[-1]) + 1):
        v = 0.999 * v + 0.001 * rng.standard_normal(draws) ** 2
        if step in t:
            rows.append(np.sqrt((1 - 0.999**step) / v))
    return np.array(rows)


def rectification_over_steps(axes: Any) -> None:
    """How r grows over the steps."""
    for beta2, (color, dashes) in STYLES.items():
        t = np.unique(np.geomspace(FIRST, 5_000_000, 300).astype(int))
        r = [rectified(int(x), beta2) for x in t]
        axes.plot(t, r, color=color, linestyle=dashes, label=f"beta2 = {beta2:g}")
        axes.plot(FIRST, r[0], "o", color=color, clip_on=False)
    axes.axvspan(1, FIRST, color="0.92", linewidth=0)
    axes.text(FIRST**0.5, 0.5, "momentum\nalone\nuntil\nstep 6", ha="center", va="center", fontsize="small")
    axes.set(xscale="log", xlim=(1, 5_000_000), ylim=(0, 1.03))
    axes.set(xlabel="step t, log scale", ylabel="r")
    axes.set_title("RAdam multiplies each step by r: the longer the memory, the longer the warm-up")
    plain_numbers(axes, "x")
    axes.legend(frameon=False, loc="lower right")


def error_over_steps(axes: Any) -> None:
    """How far the textbook's r is off over the steps, in float32, and radam's."""
    t = np.unique(np.geomspace(FIRST, 100_000, 150).astype(int))
    for beta2 in (0.99999, 0.9999, 0.999):
        color, dashes = STYLES[beta2]
        errors = [relative_error(textbook(int(x), beta2, np.float32)[1], int(x), beta2) for x in t]
        axes.plot(t, errors, color=color, linestyle=dashes, label=f"textbook, float32, beta2 = {beta2:g}")
    worst = [max(relative_error(rectified(int(x), b), int(x), b) for b in (0.99999, 0.9999, 0.999)) for x in t]
    axes.plot(t, worst, color=BLACK, linestyle=DOTTED, label="radam, the worst of the three")
    axes.axhline(1, color="0.5", linewidth=1)
    axes.set(xscale="log", yscale="log", xlim=(FIRST, 100_000), ylim=(1e-17, 1e3))
    axes.set(xlabel="step t, log scale", ylabel="relative error of r, log scale")
    axes.set_title("The textbook formula in float32: the error is largest where the warm-up is")
    plain_numbers(axes, "x")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.01, 0.11))


def error_over_beta2(axes: Any) -> None:
    """The worst error of r in the first 50 rectified steps, over 1 - beta2."""
    beta2s = [1 - x for x in np.geomspace(1e-1, 1e-15, 80)]
    steps = range(FIRST, FIRST + 50)

    def worst(r: Callable[[int, float], float], beta2: float) -> float:
        return max(relative_error(r(t, beta2), t, beta2) for t in steps)

    lines: tuple[tuple[str, Callable[[int, float], float], Style], ...] = (
        ("textbook, float32", lambda t, b: textbook(t, b, np.float32)[1], (VERMILION, DASHED)),
        ("textbook, float64", lambda t, b: textbook(t, b, np.float64)[1], (BLUE, "-")),
        ("radam", rectified, (BLACK, DOTTED)),
    )
    for label, r, (color, dashes) in lines:
        found = [(1 - b, worst(r, b)) for b in beta2s if np.float32(b) < 1 or "float32" not in label]
        axes.plot(*zip(*found, strict=True), color=color, linestyle=dashes, label=label)
    axes.axhline(1, color="0.5", linewidth=1)
    axes.text(1e-12, 5, "a gap: a step that should be rectified is not", fontsize="small", ha="center", va="bottom")
    axes.set(xscale="log", yscale="log", xlim=(1e-1, 1e-15), ylim=(1e-17, 1e4))
    axes.set(xlabel="1 - beta2, log scale", ylabel="worst relative error of r, log scale")
    axes.set_title("The closer beta2 is to 1, the more digits cancel")
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.5))


def steps_by_the_textbook(axes: Any) -> None:
    """What the textbook formula in float32 makes of a step, in percent of the true one, if all gradients are 1."""
    t = range(1, 31)
    for beta2 in (0.99999, 0.9999, 0.999):
        color, dashes = STYLES[beta2]
        percent = [100 * size_by_the_textbook(x, beta2) / size(x, beta2) for x in t]
        axes.plot(t, percent, color=color, linestyle=dashes, marker=".", label=f"beta2 = {beta2:g}")
    axes.axhline(100, color="0.5", linewidth=1)
    axes.axvline(FIRST - 0.5, color="0.5", linewidth=1, linestyle=DOTTED)
    axes.text(FIRST - 0.3, 1.2, "rectified from here", fontsize="small", va="bottom")
    axes.set(yscale="log", xlim=(1, 30), ylim=(1, 3000))
    axes.set(xlabel="step t", ylabel="percent of the true step, log scale")
    axes.set_title("A step by the textbook formula in float32, all gradients 1")
    plain_numbers(axes, "y")
    axes.legend(frameon=False, loc="upper right")


def size(t: int, beta2: float) -> float:
    """Return how far a step with lr = 1 goes if all gradients are 1: m_hat and v_hat are 1, so it is r, or 1."""
    r = radam.rectification(t, beta2)
    return 1.0 if r is None else r


def size_by_the_textbook(t: int, beta2: float) -> float:
    """Return the same by the textbook formula in float32."""
    r = textbook(t, beta2, np.float32)[1]
    return 1.0 if np.isnan(r) else r


def first_steps_of_conventions(axes: Any) -> None:
    """The first steps down a parabola, by convention."""
    lines: tuple[tuple[str, str, Style], ...] = (
        ("torch", "torch, and with it all that are not named here", (BLUE, "-")),
        ("lucid_docs", "lucid_docs: rectified from step 5", (GREEN, MIXED)),
        ("author", "author: stands still until step 6", (VERMILION, DASHED)),
    )
    for convention, label, (color, dashes) in lines:
        axes.plot(range(31), path_down(convention), color=color, linestyle=dashes, marker=".", label=label)
    axes.axhline(0, color="0.5", linewidth=1)
    axes.axvspan(0, 5, color="0.92", linewidth=0)
    axes.set(xlim=(0, 30))
    axes.set(xlabel="steps taken", ylabel="w, from 1 to the minimum at 0")
    axes.set_title("Down 5 w² with lr = 0.02: what comes before the first rectified step")
    axes.legend(frameon=False)


def path_down(convention: str) -> list[float]:
    """Return where 30 steps lead from w = 1 on 5 w^2, the start included."""
    w = np.ones(1)
    optimizer = radam.RAdam([w], lr=0.02, convention=convention)
    path = [1.0]
    for _ in range(30):
        optimizer.step(grads=[10 * w])
        path.append(float(w[0]))
    return path


def plain_numbers(axes: Any, *which: str) -> None:
    """Write 1000 rather than 10^3."""
    for name in which:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}".replace(",", " ") if x >= 1 else f"{x:g}"))


# ---- the files


def draw(folder: Path, draws: int) -> list[Path]:
    """Draw all pictures into a folder that is there; return what was written."""
    pictures: dict[str, Callable[[Any], None]] = {
        "spread_of_the_rate": lambda axes: spread_of_the_rate(axes, draws),
        "spread_rectified": lambda axes: spread_rectified(axes, draws),
        "rectification": rectification_over_steps,
        "textbook_error": error_over_steps,
        "textbook_beta2": error_over_beta2,
        "textbook_steps": steps_by_the_textbook,
        "conventions": first_steps_of_conventions,
    }
    return [saved(draws_on, folder / f"{name}.png") for name, draws_on in pictures.items()]


def saved(draws_on: Callable[[Any], None], path: Path) -> Path:
    """Save one picture, of 740 x 390 points at twice the resolution, in few colours."""
    figure = Figure(figsize=(7.4, 3.9), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # no window, whatever the machine has
    axes = figure.subplots()
    draws_on(axes)
    axes.title.set_fontsize("medium")
    axes.grid(True, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    Image.open(whole).convert("RGB").quantize(64).save(path, optimize=True)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).with_name("pictures"), help="where they go")
    parser.add_argument("--draws", type=int, default=20_000, help="runs of each simulation")
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for path in draw(arguments.folder, arguments.draws):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
