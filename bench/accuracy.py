"""Train with weights and moments in fewer bits, and with float32: what does it cost in accuracy?

    python bench/accuracy.py                     all of it, some 40 minutes on one core
    python bench/accuracy.py --only digits       the small network alone, a minute
    python bench/accuracy.py --quick             to try it out; the figures mean little

The GPT of examples/tiny_gpt.py learns Python's standard library, the network of `python -m radam demo` handwritten
digits; each with several seeds. All ways of a seed have the same start, the same batches and the same settings.

The optimizer alone is compared: the forward and backward pass compute in float32, from the parameters widened, and the
gradients are rounded to the parameters' dtype. In bfloat16 throughout a pass takes twice as long on this CPU, and the
rounding of its logits would hide what the optimizer does.

Finished runs are kept in OUTPUT.json, so that the same command goes on after an interruption. At the end the report,
OUTPUT.md, and the pictures are made from it. Needs PyTorch and what the demo needs: `pip install ".[bench,demo]"`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import accuracy_report
import radam
from machine import describe_machine
from radam.torch import RAdam

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
import tiny_gpt  # noqa: E402

BATCH, WIDTH, LAYERS, LR, WEIGHT_DECAY, MAX_NORM = 8, 64, 6, 8e-3, 0.1, 1.0  # of examples/tiny_gpt.py
DIGITS_LR = 0.02  # of python -m radam demo
MEAN_OF = 50  # a training loss is the mean of so many steps
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Way:
    """What the parameters and their gradients are kept in, and with which optimizer they are stepped."""

    dtype: torch.dtype
    options: Mapping[str, Any]
    theirs: bool = False  # torch.optim.RAdam
    nudge: float = 0.0  # by how much the start is scaled

    def optimizer(self, groups: Any, lr: float, **others: Any) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer
        if self.theirs:
            made = torch.optim.RAdam(groups, lr=lr, **others)
        else:
            made = RAdam(groups, lr=lr, **others, **self.options)
        return made

    def kept(self, start: Tensor) -> nn.Parameter:
        return nn.Parameter((start.detach() * (1 + self.nudge)).to(self.dtype))

    def clip(self, params: Sequence[nn.Parameter]) -> None:
        if self.theirs:  # radam does it within the step
            nn.utils.clip_grad_norm_(params, MAX_NORM)


SPLIT, RANDOM, CODED = {"master_weights": True}, {"stochastic_rounding": True}, {"state_dtype": "8bit"}
WAYS = {
    "float32": Way(torch.float32, {}),
    "float32, 8-bit moments": Way(torch.float32, CODED),
    "bf16, master weights": Way(torch.bfloat16, SPLIT),
    "bf16, master weights, 8-bit moments": Way(torch.bfloat16, {**SPLIT, **CODED}),
    "bf16, stochastic rounding": Way(torch.bfloat16, RANDOM),
    "bf16, stochastic rounding, 8-bit moments": Way(torch.bfloat16, {**RANDOM, **CODED}),
    "float32, bf16 moments": Way(torch.float32, {"state_dtype": "bfloat16"}),
    "bf16": Way(torch.bfloat16, {}),
    "bf16, torch.optim.RAdam": Way(torch.bfloat16, {}, theirs=True),
    # Rounding errors grow in training. So much do two float32 runs part that differ in the last bits of their start.
    "float32, nudged": Way(torch.float32, {}, nudge=1e-6),
}


def bytes_by_kind(way: Way, size: int = 1 << 16) -> dict[str, float]:
    """Return the bytes an element of a large matrix takes, by kind, as they are after a step."""
    param = way.kept(torch.ones(size))
    optimizer = way.optimizer([param], 1e-3)
    param.grad = torch.ones_like(param)
    optimizer.step()
    entry = {key: value for key, value in optimizer.state[param].items() if key != "step"}

    def each(tensors: Sequence[Tensor]) -> float:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / size

    return {
        "parameter": each([param.detach()]),
        "gradient": each([param.grad]),
        "m": each([x for key, x in entry.items() if key in ("exp_avg", "exp_avg_code")]),
        "v": each([x for key, x in entry.items() if key in ("exp_avg_sq", "exp_avg_sq_code")]),
        "scales": each([x for key, x in entry.items() if key.endswith("_scale")]),
        "rest of the weight": each([x for key, x in entry.items() if key in ("remainder", "master")]),
    }


# ---- a small GPT


class Text:
    """Batches of Python's standard library, and windows of it that no batch has."""

    def __init__(self) -> None:
        self._text, held_out = tiny_gpt.standard_library()
        self._window = torch.arange(tiny_gpt.CONTEXT + 1)
        places = torch.linspace(0, len(held_out) - len(self._window), 256).long()
        self.unseen = held_out[places[:, None] + self._window]

    def batches(self, seed: int, steps: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            starts = torch.randint(len(self._text) - tiny_gpt.CONTEXT, (BATCH, 1), generator=generator)
            yield self._text[starts + self._window]


class Training:
    """A model that computes in float32, and its parameters as a way keeps them."""

    def __init__(self, way: Way, seed: int, steps: int, width: int = WIDTH, layers: int = LAYERS) -> None:
        torch.manual_seed(seed)
        self._way = way
        self.model = tiny_gpt.GPT(width, layers)
        self._wide = list(self.model.parameters())
        self.params = [way.kept(parameter) for parameter in self._wide]
        matrices = {"params": [p for p in self.params if p.dim() > 1], "weight_decay": WEIGHT_DECAY}
        vectors = {"params": [p for p in self.params if p.dim() == 1]}
        clip = {} if way.theirs else {"max_grad_norm": MAX_NORM}
        self.optimizer = way.optimizer([matrices, vectors], LR, decoupled_weight_decay=True, **clip)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self._widen()

    @torch.no_grad()
    def _widen(self) -> None:
        for wide, param in zip(self._wide, self.params):
            wide.copy_(param)

    def step(self, batch: Tensor) -> float:
        """Take a step, and return the loss before it, in bits per byte."""
        self.model.zero_grad()
        loss = self.model.loss(batch)
        loss.backward()
        for wide, param in zip(self._wide, self.params):
            assert wide.grad is not None
            param.grad = wide.grad.to(param.dtype)
        self._way.clip(self.params)
        self.optimizer.step()
        self._schedule.step()
        self._widen()
        return float(loss.item())

    @torch.no_grad()
    def loss(self, windows: Tensor) -> float:
        return float(self.model.loss(windows).item())


def train_gpt(way: Way, seed: int, steps: int, text: Text, width: int = WIDTH, layers: int = LAYERS) -> dict[str, Any]:
    """Return the training losses, each the mean of some steps, the last of the last ones, and the held-out loss."""
    training = Training(way, seed, steps, width, layers)
    losses = torch.tensor([training.step(batch) for batch in text.batches(seed, steps)], dtype=torch.float64)
    first = steps % min(MEAN_OF, steps)  # what does not fill a mean is left out at the start
    means = losses[first:].unflatten(0, (-1, min(MEAN_OF, steps))).mean(1)
    return {"training": [round(x, 5) for x in means.tolist()], "held_out": round(training.loss(text.unseen), 5)}


# ---- handwritten digits


def train_digits(way: Way, seed: int, epochs: int) -> dict[str, Any]:
    """Return the share of unseen digits read right, in percent, by the network of the demo."""
    import numpy as np

    from radam import _demo

    x, x_test, y, y_test = _demo.digits(seed)
    rng = np.random.default_rng(seed)
    params = {name: way.kept(torch.from_numpy(start)) for name, start in _demo.new_params(rng).items()}
    optimizer = way.optimizer(list(params.values()), DIGITS_LR)

    def widened() -> dict[str, Any]:
        return {name: param.detach().float().numpy() for name, param in params.items()}

    step, steps = 0, _demo.steps_per_epoch(x) * epochs
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), _demo.BATCH):
            batch = order[start : start + _demo.BATCH]
            _, grads = _demo.loss_and_grads(widened(), x[batch], y[batch])
            for name, param in params.items():
                param.grad = torch.from_numpy(grads[name]).to(param.dtype)
            optimizer.param_groups[0]["lr"] = DIGITS_LR * (1 - step / steps)
            optimizer.step()
            step += 1
    right = _demo.forward(widened(), x_test)[-1].argmax(axis=1) == y_test
    return {"accuracy": round(100 * float(right.mean()), 4)}


# ---- all runs, kept


def found_before(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an earlier command has kept, or the beginnings of it.

    Raises:
        SystemExit: if it was run with other settings.
    """
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (found.get("radam_accuracy"), found.get("settings")) != (FORMAT, dict(settings)):
            sys.exit(f"accuracy: {path} holds runs with other settings; choose another --output or take it away")
        return found
    kinds = {name: bytes_by_kind(way) for name, way in WAYS.items()}
    machine = describe_machine(with_torch=True)
    return {"radam_accuracy": FORMAT, "settings": dict(settings), "machine": machine, "bytes": kinds, "runs": {}}


def keep(found: Mapping[str, Any], path: Path) -> None:
    """Write the file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def run_all(found: dict[str, Any], path: Path, tasks: Sequence[str]) -> None:
    """Run what is missing, all ways of a seed after each other, and keep each run when it is done."""
    from rich.console import Console
    from rich.progress import track

    settings = found["settings"]
    text = Text() if "gpt" in tasks else None
    todo = [
        (task, seed, name)
        for task in tasks
        for seed in range(settings[f"{task}_seeds"])
        for name in WAYS
        if str(seed) not in found["runs"].get(task, {}).get(name, {})
    ]
    console = Console(stderr=True)
    for task, seed, name in track(todo, "training", console=console, disable=not sys.stderr.isatty()):
        if text is not None and task == "gpt":
            result = train_gpt(WAYS[name], seed, settings["steps"], text, settings["width"], settings["layers"])
        else:
            from threadpoolctl import threadpool_limits

            with threadpool_limits(1):
                result = train_digits(WAYS[name], seed, settings["epochs"])
        found["runs"].setdefault(task, {}).setdefault(name, {})[str(seed)] = result
        keep(found, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = {"type": int, "metavar": "N"}
    parser.add_argument("--steps", **number, default=2500, help="of the GPT (%(default)s)")
    parser.add_argument("--seeds", **number, default=3, help="of the GPT (%(default)s)")
    parser.add_argument("--epochs", **number, default=30, help="of the digits (%(default)s)")
    parser.add_argument("--digits-seeds", **number, default=5, help="(%(default)s)")
    parser.add_argument("--only", choices=("gpt", "digits"), help="one of both")
    parser.add_argument("--quick", action="store_true", help="a few steps of a smaller GPT, one epoch, one seed")
    default = Path(__file__).parent / "results" / "accuracy"
    parser.add_argument("--output", type=Path, default=default, metavar="PATH", help="without an ending (%(default)s)")
    parser.add_argument("--page", type=Path, metavar="PATH", help="put the tables between the markers of this page too")
    chosen = parser.parse_args(argv)
    if min(chosen.steps, chosen.seeds, chosen.epochs, chosen.digits_seeds) < 1:
        parser.error("numbers must be positive")
    torch.set_num_threads(1)
    radam.set_num_threads(1)
    settings = {
        **{"steps": chosen.steps, "gpt_seeds": chosen.seeds, "width": WIDTH, "layers": LAYERS},
        **{"epochs": chosen.epochs, "digits_seeds": chosen.digits_seeds},
    }
    if chosen.quick:
        settings = {"steps": 4, "gpt_seeds": 1, "width": 16, "layers": 1, "epochs": 1, "digits_seeds": 1}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    path = chosen.output.with_name(chosen.output.name + ".json")
    found = found_before(path, settings)
    run_all(found, path, (chosen.only,) if chosen.only else ("digits", "gpt"))
    print("\n\n".join(accuracy_report.tables(found).values()))
    for written in accuracy_report.write(found, chosen.output):
        print(f"wrote {written}", file=sys.stderr)
    if chosen.page:
        text = accuracy_report.filled(chosen.page.read_text(encoding="utf-8"), found)
        chosen.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
