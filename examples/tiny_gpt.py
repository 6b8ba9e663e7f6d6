"""A small GPT learns to write Python from the source of the standard library, with radam and torch.optim side by side.

Both runs have the same start and the same batches, and take turns. The default run takes about two minutes on one core.
Ctrl-C ends it early and shows what it has. Needs torch and rich, and matplotlib for the picture.
"""

import argparse
import math
import signal
import sys
import sysconfig
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import radam
from radam.torch import RAdam  # the one import to change

OPTIMIZERS = {"radam.torch.RAdam": RAdam, "torch.optim.RAdam": torch.optim.RAdam}
CONTEXT = 64  # how many bytes the model looks back
HEAD = 16  # the width of one attention head


class Block(nn.Module):
    """Attention to the bytes before, then a small network for each byte; both add to what was there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        wide = 4 * width
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x: Tensor) -> Tensor:
        # From (batch, place, 3 * width) to three times (batch, heads, place, HEAD).
        query, key, value = self.query_key_value(self.norm(x)).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(2))
        return x + self.feed(x)


class GPT(nn.Module):
    """A decoder-only transformer over bytes. Its first layer, the embedding, is also its last."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.position = nn.Parameter(torch.empty(CONTEXT, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                # The blocks add 2 * layers terms to one sum, which is to start small.
                terms = 2 * layers if name.endswith(("attention_out.weight", "feed.3.weight")) else 1
                nn.init.normal_(parameter, std=(parameter.shape[1] * terms) ** -0.5)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text) + self.position[: text.shape[1]]
        return functional.linear(self.norm(self.blocks(x)), self.embedding.weight)

    def loss(self, windows: Tensor) -> Tensor:
        """Return the mean cross entropy of each byte given those before it, in bits."""
        return functional.cross_entropy(self(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()) / math.log(2)


class Run:
    """A model, its optimizer, and the record of what happened so far; losses in bits per byte."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        torch.manual_seed(settings["seed"])
        self.model = GPT(settings["width"], settings["layers"])
        matrices = {"params": [p for p in self.model.parameters() if p.dim() > 1], "weight_decay": 0.1}
        vectors = {"params": [p for p in self.model.parameters() if p.dim() == 1]}
        self.optimizer = OPTIMIZERS[name]([matrices, vectors], lr=settings["lr"], decoupled_weight_decay=True)
        # No warm-up before the cosine: RAdam warms itself up.
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, settings["steps"])
        self.parts = (self.model, self.optimizer, self.schedule)
        self.record: dict[str, Any] = {"losses": [], "held_out": {}, "seconds": 0.0, "in_optimizer": 0.0}

    def step(self, batch: Tensor) -> None:
        begin = perf_counter()
        loss = self.model.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        before = perf_counter()
        self.optimizer.step()
        self.record["in_optimizer"] += perf_counter() - before
        self.schedule.step()
        self.record["losses"].append(loss.item())
        self.record["seconds"] += perf_counter() - begin


def standard_library() -> tuple[Tensor, Tensor]:
    """Return the bytes to learn from, and those held out: every tenth public module."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
    if len(files) < 10:
        sys.exit("tiny_gpt: this Python comes without the source of its standard library")
    sources = [file.read_bytes().replace(b"\r\n", b"\n") for file in files]
    held_out = b"".join(sources[9::10])
    del sources[9::10]
    text = torch.frombuffer(bytearray(b"".join(sources) + held_out), dtype=torch.uint8).long()
    return text[: -len(held_out)], text[-len(held_out) :]


def train(runs: list[Run], settings: dict[str, Any], generator: torch.Generator) -> None:
    """Give the same batches to all runs, up to the last step or Ctrl-C."""
    text, held_out = standard_library()
    window = torch.arange(CONTEXT + 1)
    unseen = held_out[torch.linspace(0, len(held_out) - len(window), 256).long()[:, None] + window]
    weights = [parameter.numel() for parameter in runs[0].model.parameters()]
    print(f"{sum(weights):,} weights in {len(weights)} tensors learn from {len(text):,} bytes of Python.", flush=True)
    stop: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _: stop.append(number))  # end between two steps, not within one
    record, steps = runs[0].record, settings["steps"]
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("", total=steps)
        for done in range(len(record["losses"]), steps + 1):
            ends = done == steps or bool(stop)
            if ends or done % max(steps // 25, 1) == 0:
                for run in runs:
                    with torch.no_grad():
                        run.record["held_out"][done] = run.model.loss(unseen).item()
                progress.update(bar, description=f"held-out loss {record['held_out'][done]:.2f}")
            progress.update(bar, completed=done)
            if ends:
                break
            starts = torch.randint(len(text) - CONTEXT, (settings["batch"], 1), generator=generator)
            for run in runs[:: -1 if done % 2 else 1]:  # they take turns at going first
                run.step(text[starts + window])
    signal.signal(signal.SIGINT, usual)


@torch.no_grad()
def sample(model: GPT, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    printable = torch.tensor([ord("\n"), *range(ord(" "), ord("~") + 1)])
    text = torch.tensor(list(b"\n\nclass "))  # the model goes on from here
    for _ in range(400):
        scores = model(text[None, -CONTEXT:])[0, -1, printable] / 0.7
        text = torch.cat([text, printable[torch.multinomial(scores.softmax(0), 1, generator=generator)]])
    return bytes(text.tolist()).decode().strip()


def report(runs: list[Run], steps: int) -> None:
    records = [run.record for run in runs]
    losses = [record["losses"] for record in records]
    done, last = len(losses[0]), min(50, len(losses[0]))
    table = Table("", title=f"{done} of {steps} steps, from {losses[0][0]:.2f} bits per byte")
    for run in runs:
        table.add_column(run.name, justify="right")
    table.add_row(f"training loss, last {last} steps", *(f"{sum(each[-last:]) / last:.4f}" for each in losses))
    table.add_row("held-out loss", *(f"{record['held_out'][done]:.4f}" for record in records))
    table.add_row("seconds in all", *(f"{record['seconds']:.1f}" for record in records))
    table.add_row("seconds in the optimizer", *(f"{record['in_optimizer']:.2f}" for record in records))
    table.add_row("share of the optimizer", *(f"{r['in_optimizer'] / r['seconds']:.1%}" for r in records))
    Console().print(table)
    if len(runs) == 2:
        # Training lets rounding errors grow. With torch.optim, foreach=True and foreach=False part for the same reason.
        apart = [abs(a - b) for a, b in zip(*losses)]
        print(f"The losses part by at most {max(apart):.1g}; by {max(apart[:500]):.1g} up to step {min(done, 500)}.")


def draw(runs: list[Run], figure: Any) -> None:
    training, held_out, share = figure.subplots(1, 3, width_ratios=(9, 7, 4))
    held_out.sharey(training)
    mean = min(20, len(runs[0].record["losses"]))
    looks = (("#08306b", 1.2, 3), ("#fdae6b", 6, 9))  # radam thin and dark upon torch thick and light
    for place, (run, (color, width, dot)) in reversed(list(enumerate(zip(runs, looks)))):
        losses = torch.tensor(run.record["losses"]).unfold(0, mean, 1).mean(-1)
        training.plot(range(mean, mean + len(losses)), losses, color=color, linewidth=width, label=run.name)
        held_out.plot(*zip(*run.record["held_out"].items()), "o-", color=color, linewidth=width, markersize=dot)
        percent = 100 * run.record["in_optimizer"] / run.record["seconds"]
        share.bar_label(share.bar(place, percent, color=color, width=0.6), fmt="%.1f%%", padding=2)
    held_out.set(title="Loss on text held out", xlabel="step")
    training.set(title=f"Training loss, mean of {mean} steps", xlabel="step", ylabel="bits per byte")
    training.legend(frameon=False)
    share.set(title="Time in the optimizer", ylabel="% of the training time", ymargin=0.1)
    share.set_xticks(range(len(runs)), [run.name.removesuffix(".RAdam") for run in runs])
    for axes in (training, held_out, share):
        axes.spines[["top", "right"]].set_visible(False)


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default, what in (
        ("--steps", 2500, "how long to train"),
        ("--batch", 8, "pieces of text in a step"),
        ("--width", 64, f"of the model, a multiple of {HEAD}"),
        ("--layers", 6, "blocks of the model"),
        ("--lr", 8e-3, "learning rate at the start"),
        ("--seed", 0, "of the start, the batches and the sample"),
        ("--threads", 1, "of torch and of radam"),
    ):
        parser.add_argument(option, type=type(default), default=default, metavar="N", help=f"{what} ({default})")
    parser.add_argument("--compare", action=argparse.BooleanOptionalAction, default=True, help="train with both (yes)")
    parser.add_argument("--plot", type=Path, default="tiny_gpt.png", metavar="PATH", help="the picture (%(default)s)")
    parser.add_argument("--no-plot", dest="plot", action="store_const", const=None, help="no picture")
    parser.add_argument("--save", type=Path, metavar="PATH", help="write a checkpoint at the end, or after Ctrl-C")
    parser.add_argument("--resume", type=Path, metavar="PATH", help="go on from a checkpoint, with its settings")
    chosen = parser.parse_args()
    if min(chosen.steps, chosen.batch, chosen.width, chosen.layers, chosen.threads) < 1 or chosen.width % HEAD:
        parser.error(f"numbers must be positive, and --width a multiple of {HEAD}")
    if missing := [path.parent for path in (chosen.plot, chosen.save) if path and not path.parent.is_dir()]:
        parser.error(f"there is no folder {missing[0]}")
    return chosen


def main() -> None:
    chosen = command_line()
    if chosen.plot:
        from matplotlib.figure import Figure  # now, so that its lack shows before the training
    torch.set_num_threads(chosen.threads)
    radam.set_num_threads(chosen.threads)
    names = ("steps", "batch", "width", "layers", "lr", "seed", "compare")
    saved = torch.load(chosen.resume, weights_only=True) if chosen.resume else {}
    settings = saved.get("settings", {name: getattr(chosen, name) for name in names})
    runs = [Run(name, settings) for name in list(OPTIMIZERS)[: 2 if settings["compare"] else 1]]
    generator = torch.Generator().manual_seed(settings["seed"])
    if saved:
        generator.set_state(saved["generator"])
        for run, (record, *states) in zip(runs, saved["runs"]):
            run.record = record
            for part, state in zip(run.parts, states):
                part.load_state_dict(state)
    train(runs, settings, generator)
    if chosen.save:
        states = [[run.record, *(part.state_dict() for part in run.parts)] for run in runs]
        torch.save({"settings": settings, "generator": generator.get_state(), "runs": states}, chosen.save)
    report(runs, settings["steps"])
    print(f"\nThe model of {runs[0].name} writes:\n\n{sample(runs[0].model, settings['seed'])}\n")
    if chosen.plot:
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        draw(runs, figure)
        figure.savefig(chosen.plot, dpi=150)
        print(f"The picture is in {chosen.plot.absolute()}.")


if __name__ == "__main__":
    main()
