"""The demo: a network in plain NumPy learns handwritten digits, with RAdam beside Adam and SGD."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits  # type: ignore[import-not-found, import-untyped, unused-ignore]

from . import Adam, RAdam, rectification

Floats = np.ndarray[Any, np.dtype[np.float32]]
Params = dict[str, Floats]

FORMATS = (".png", ".pdf", ".svg")
SIZES = (64, 128, 64, 10)
BATCH = 64
DRAWN = ((0.99, "#cc79a7", (0, (2, 1))), (0.999, "#0072b2", "-"), (0.9999, "#e69f00", (0, (6, 2))))  # beta2, how


# ---- the network


def new_params(rng: np.random.Generator) -> Params:
    """Return the weights (He et al. 2015) and biases of an MLP."""
    params = {}
    for layer, (inputs, outputs) in enumerate(pairwise(SIZES)):
        scale = np.float32(np.sqrt(2 / inputs))
        params[f"w{layer}"] = rng.standard_normal((inputs, outputs), np.float32) * scale
        params[f"b{layer}"] = np.zeros(outputs, np.float32)
    return params


def forward(params: Params, x: Floats) -> list[Floats]:
    """Return the input of every layer, and the logits last."""
    layers = len(SIZES) - 1
    values = [x]
    for layer in range(layers):
        z = values[-1] @ params[f"w{layer}"] + params[f"b{layer}"]
        values.append(z if layer == layers - 1 else np.maximum(z, 0))
    return values


def loss_and_grads(params: Params, x: Floats, labels: np.ndarray[Any, Any]) -> tuple[float, Params]:
    """Return the cross entropy of a batch and its gradient in every parameter."""
    values = forward(params, x)
    rows = np.arange(len(x))
    z = values[-1] - values[-1].max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    loss = -float(log_p[rows, labels].mean())

    delta = np.exp(log_p)
    delta[rows, labels] -= 1
    delta /= len(x)
    grads = {}
    for layer in reversed(range(len(SIZES) - 1)):
        grads[f"w{layer}"] = values[layer].T @ delta
        grads[f"b{layer}"] = delta.sum(axis=0)
        if layer > 0:
            delta = (delta @ params[f"w{layer}"].T) * (values[layer] > 0)
    return loss, grads


# ---- the optimizers


class SGD:
    """Gradient descent with momentum, in place: u = momentum * u + g, p -= lr(t) * u."""

    def __init__(self, params: Params, lr: Callable[[int], float], momentum: float = 0.9) -> None:
        self.params, self.lr, self.momentum = params, lr, np.float32(momentum)
        self.moving = {name: np.zeros_like(p) for name, p in params.items()}
        self.t = 0

    def step(self, *, grads: Mapping[str, Floats]) -> None:
        """Take one step."""
        self.t += 1
        lr = np.float32(self.lr(self.t))
        for name, p in self.params.items():
            u = self.moving[name]
            u *= self.momentum
            u += grads[name]
            p -= lr * u


@dataclass
class Contestant:
    """One optimizer: how to make it, how to draw it, and what it has done so far."""

    name: str
    make: Callable[[Params, Callable[[int], float]], Any]
    lr: float
    color: str
    dashes: str | tuple[int, tuple[int, ...]]
    losses: list[list[float]] = field(default_factory=list)  # by seed, then by epoch
    accuracies: list[float] = field(default_factory=list)  # by seed
    seconds: list[float] = field(default_factory=list)  # by step


def contestants() -> list[Contestant]:
    """Return who takes part.

    Each has the learning rate that served it best out of 1, 2 and 5 times the powers of ten: the one with the lowest
    loss on a fifth of the training images, held back, over 16 other seeds. The colours are Okabe and Ito's, safe for
    colour-blind eyes.
    """
    return [
        Contestant("RAdam", RAdam, 0.02, "#0072b2", "-"),
        Contestant("Adam", Adam, 0.005, "#d55e00", (0, (6, 2))),
        Contestant("SGD, momentum 0.9", SGD, 0.1, "#009e73", (0, (2, 1))),
    ]


# ---- the runs


def digits(seed: int) -> tuple[Floats, Floats, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return images to train and to test with, in [0, 1], then their labels; 3 to 1, the same mix in both."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=seed)
    return x, x_test, y, y_test


def train(one: Contestant, seed: int, epochs: int, after_epoch: Callable[[], None]) -> None:
    """Train one network. All contestants of a seed have the same data, the same start and the same batches."""
    x, x_test, y, y_test = digits(seed)
    rng = np.random.default_rng(seed)
    params = new_params(rng)
    steps = steps_per_epoch(x) * epochs
    optimizer = one.make(params, lambda t: one.lr * (1 - (t - 1) / steps))  # lr may be a function of the step
    losses = []
    for _ in range(epochs):
        order = rng.permutation(len(x))
        total = 0.0
        for start in range(0, len(x), BATCH):
            batch = order[start : start + BATCH]
            loss, grads = loss_and_grads(params, x[batch], y[batch])
            begin = time.perf_counter()
            optimizer.step(grads=grads)
            one.seconds.append(time.perf_counter() - begin)
            total += loss * len(batch)
        losses.append(total / len(x))
        after_epoch()
    one.losses.append(losses)
    one.accuracies.append(float((forward(params, x_test)[-1].argmax(axis=1) == y_test).mean()))


def steps_per_epoch(x: Floats) -> int:
    """Return how many batches the training images make, the last one smaller."""
    return -(-len(x) // BATCH)


def run(seeds: int, epochs: int, path: Path) -> None:
    """Train everything, print a table, save the picture."""
    console = Console()
    x, x_test, _, _ = digits(0)
    steps = steps_per_epoch(x) * epochs
    weights = sum((inputs + 1) * outputs for inputs, outputs in pairwise(SIZES))
    print(f"A network with {weights} weights learns {len(x)} handwritten digits in {steps} steps,")
    print(f"then reads {len(x_test)} that it has never seen.", flush=True)
    all_of_them = contestants()
    counts = (MofNCompleteColumn(), TextColumn("epochs"), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description}"), BarColumn(), *counts, console=console)
    with threadpool_limits(1), bar as progress:  # matrices this small are slower on more threads
        task = progress.add_task("training", total=len(all_of_them) * seeds * epochs)
        for seed in range(seeds):
            for one in all_of_them:
                progress.update(task, description=f"seed {seed + 1} of {seeds}, {one.name:<17}")
                train(one, seed, epochs, lambda: progress.advance(task))
        progress.update(task, description="trained")

    console.print(results(all_of_them, seeds))
    picture(all_of_them, seeds, steps, path)
    print(f"The picture is in {path.absolute()}")


def results(all_of_them: list[Contestant], seeds: int) -> Table:
    """Return the table of accuracies and times."""
    title = f"Unseen handwritten digits read right, over {seeds} seed{'s' if seeds > 1 else ''}"
    table = Table(title=title, caption="time per step: the optimizer alone, median")
    table.add_column("optimizer")
    for heading in ("mean accuracy", "worst to best", "time per step"):
        table.add_column(heading, justify="right")
    for one in all_of_them:
        percent = 100 * np.array(one.accuracies)
        table.add_row(
            one.name,
            f"{percent.mean():.2f} %",
            f"{percent.min():.2f} to {percent.max():.2f} %",
            f"{1e6 * float(np.median(one.seconds)):.0f} microseconds",
        )
    return table


# ---- the picture


def picture(all_of_them: list[Contestant], seeds: int, steps: int, path: Path) -> None:
    """Save the loss curves and the rectification, side by side."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever the machine has
    left, right = figure.subplots(1, 2)
    draw_losses(left, all_of_them, seeds)
    draw_rectification(right, steps)
    for axes in (left, right):
        axes.grid(True, color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_losses(axes: Any, all_of_them: list[Contestant], seeds: int) -> None:
    """Draw the training loss over the epochs."""
    for one in all_of_them:
        losses = np.array(one.losses)
        epochs = np.arange(1, losses.shape[1] + 1)
        label = f"{one.name}: {100 * float(np.mean(one.accuracies)):.1f} % of unseen digits right"
        marker = "o" if len(epochs) == 1 else None  # a line of one point cannot be seen
        axes.plot(epochs, losses.mean(axis=0), color=one.color, linestyle=one.dashes, marker=marker, label=label)
    spread = f"mean of {seeds} seeds" if seeds > 1 else "1 seed"
    axes.set(title="Learning handwritten digits from the same start", yscale="log")
    axes.set(xlabel="epoch", ylabel=f"training loss, {spread}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(edgecolor="none", framealpha=0.9)


def draw_rectification(axes: Any, steps: int) -> None:
    """Draw r_t over the steps of the run, and where it starts."""
    t = range(1, max(steps, 10) + 1)
    for beta2, color, dashes in DRAWN:
        r = {step: r for step in t if (r := rectification(step, beta2)) is not None}
        start = min(r)
        used = ", used here" if beta2 == 0.999 else ""
        axes.plot(list(r), list(r.values()), color=color, linestyle=dashes, label=f"beta2 = {beta2}{used}")
        axes.plot(start, r[start], "o", color=color)
    axes.axvspan(1, start, color="0.93", linewidth=0)
    note = f"momentum\nalone, until\nr sets in\nat step {start}"
    axes.text(start**0.5, 0.5, note, ha="center", va="center", fontsize="small")
    axes.set(title="RAdam warms itself up: r scales every step", xlabel="step t, log scale", ylabel="rectification r")
    axes.set(xscale="log", xlim=(1, t[-1]), ylim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.3, 1.0))
