"""The step as an operator of PyTorch, for torch.compile and whatever else watches operations go by."""

from __future__ import annotations

import dataclasses
import itertools
import json
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..conventions import Convention
from . import run
from .settings import LATER, REQUIRED, Settings

Lists = Sequence[list[Tensor]]


class Steppable(Protocol):
    """What the operator asks of an optimizer."""

    def step_tensors(self, places: Iterable[tuple[int, int]], lists: Lists) -> None:
        """Step tensors that stand for those of these parameters, (group, place in it), with the settings of now."""


_optimizers: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_handles = itertools.count(1)


def register(optimizer: Steppable) -> int:
    """Return the number by which the operator finds an optimizer as long as it lives."""
    handle = next(_handles)
    _optimizers[handle] = optimizer
    return handle


# What it reads from Python, settings and GradScaler's numbers, a graph of launches would not read again.
_TAGS = [tag for tag in [getattr(torch.Tag, "cudagraph_unsafe", None)] if tag is not None]


@torch.library.custom_op("radam::step_", mutates_args=("params", "exp_avgs", "exp_avg_sqs", "steps"), tags=_TAGS)
def step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    places: list[int],
    optimizer: int,
    settings: str = "",
) -> None:
    """Take one step in place.

    Args:
        params, grads, exp_avgs, exp_avg_sqs, steps: the tensors, in parallel lists.
        places: group and place in the group of each parameter, one after the other.
        optimizer: what register gave. Its settings are read when the operator runs, so that a compiled step follows a
            learning-rate schedule without being compiled again.
        settings: what recorded gave, or empty: the settings of a step that was recorded to run again without its
            optimizer.
    """
    lists = (params, grads, exp_avgs, exp_avg_sqs, steps)
    pairs = zip(places[::2], places[1::2])
    if settings:
        _replay(json.loads(settings), pairs, lists)
        return
    found: Steppable | None = _optimizers.get(optimizer)
    if found is None:
        raise RuntimeError("the optimizer of this step is gone; keep it alive as long as what was compiled with it")
    found.step_tensors(pairs, lists)


@step_.register_fake
def _(*args: Any) -> None:
    """Tensors without values: there is nothing to step."""


def recorded(groups: Sequence[Mapping[str, Any]], convention: Convention, nonfinite: str, grad_scale: float) -> str:
    """Return the settings of now as a string, which an operator can take."""
    entries = []
    for group in groups:
        entry = {key: bool(group[key]) for key in LATER} | {key: group[key] for key in REQUIRED}
        for key in ("lr", "eps", "weight_decay"):
            entry[key] = float(group[key])
        entries.append({**entry, "betas": [float(beta) for beta in group["betas"]]})
    fields = dataclasses.asdict(convention)
    return json.dumps([entries, fields, nonfinite, grad_scale])


def _replay(settings: Any, places: Iterable[tuple[int, int]], lists: Lists) -> None:
    groups, fields, nonfinite, grad_scale = settings
    batches = run.batches_of(groups, places, lists, grad_scale)
    run.taken_apart(batches, Settings(Convention(**{**fields, "decay": tuple(fields["decay"])})), nonfinite)
