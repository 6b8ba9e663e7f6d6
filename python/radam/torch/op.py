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
from ..precision import Precision
from . import run
from .clip import Clip, Norms, Ranks
from .settings import LATER, REQUIRED, Settings

Lists = Sequence[Sequence[Any]]


class Steppable(Protocol):
    """What the operator asks of an optimizer."""

    def step_tensors(self, places: Iterable[tuple[int, int]], lists: Lists) -> None:
        """Step tensors that stand for those of these parameters, (group, place in it), with the settings of now."""

    def own(self) -> tuple[list[Any], Ranks, Norms]:
        """Return what a recorded step cannot hold: the groups, other processes, and where the norm goes."""


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
    _take((params, grads, exp_avgs, exp_avg_sqs, steps), places, optimizer, settings)


@torch.library.custom_op(
    "radam::step_stored_", mutates_args=("params", "exp_avgs", "exp_avg_sqs", "steps", "stored"), tags=_TAGS
)
def step_stored_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    stored: list[Tensor],
    has: list[int],
    places: list[int],
    optimizer: int,
    settings: str = "",
) -> None:
    """Take one step in place of parameters that are kept in fewer bits.

    Args:
        stored: what else is kept of the parameters that have it, one after the other: master, scales of both moments.
        has: of each parameter which of these it has, as the sum of 1, 2 and 4.
        params, grads, exp_avgs, exp_avg_sqs, steps, places, optimizer, settings: as of the other one.
    """
    lists: Lists = (params, grads, exp_avgs, exp_avg_sqs, steps, *_unpacked(stored, has))
    _take(lists, places, optimizer, settings)


def _take(lists: Lists, places: Sequence[int], optimizer: int, settings: str) -> None:
    pairs = zip(places[::2], places[1::2])
    found: Steppable | None = _optimizers.get(optimizer)
    if settings:
        _replay(json.loads(settings), pairs, lists, found)
        return
    if found is None:
        raise RuntimeError("the optimizer of this step is gone; keep it alive as long as what was compiled with it")
    found.step_tensors(pairs, lists)


def call(lists: Lists, is_plain: bool, places: list[int], optimizer: int, settings: str = "") -> None:
    """Call the operator that a step needs; lists as batches have them."""
    plain = [list(column) for column in lists[:5]]
    if is_plain:
        step_(*plain, places, optimizer, settings)
    else:
        step_stored_(*plain, *_packed(lists[5:]), places, optimizer, settings)


def _packed(lists: Sequence[Sequence[Tensor | None]]) -> tuple[list[Tensor], list[int]]:
    """Return masters and scales as the operator takes them, which has no lists with gaps."""
    rows = list(zip(*lists))
    has = [sum(1 << bit for bit, tensor in enumerate(row) if tensor is not None) for row in rows]
    return [tensor for row in rows for tensor in row if tensor is not None], has


def _unpacked(stored: Sequence[Tensor], has: Sequence[int]) -> list[list[Tensor | None]]:
    left = iter(stored)
    rows = [[next(left) if bits >> bit & 1 else None for bit in range(3)] for bits in has]
    return [list(column) for column in zip(*rows)] or [[], [], []]


@step_stored_.register_fake
@step_.register_fake
def _(*args: Any) -> None:
    """Tensors without values: there is nothing to step."""


def recorded(
    groups: Sequence[Mapping[str, Any]],
    convention: Convention,
    nonfinite: str,
    grad_scale: float,
    precision: Precision,
    clip: tuple[str, float] | None,
    needs_optimizer: bool,
) -> str:
    """Return the settings of now as a string, which an operator can take.

    needs_optimizer: whether the step hangs on other processes, or on a place in a whole, which no string has.
    """
    entries = []
    for group in groups:
        entry = {key: bool(group[key]) for key in LATER} | {key: group[key] for key in REQUIRED}
        for key in ("lr", "eps", "weight_decay"):
            entry[key] = float(group[key])
        entries.append({**entry, "betas": [float(beta) for beta in group["betas"]]})
    fields = dataclasses.asdict(convention)
    precise = dataclasses.asdict(precision)
    firsts = run.firsts(groups)
    return json.dumps([entries, firsts, fields, nonfinite, grad_scale, precise, clip, needs_optimizer])


def _replay(settings: Any, places: Iterable[tuple[int, int]], lists: Lists, optimizer: Steppable | None) -> None:
    groups, firsts, fields, nonfinite, grad_scale, precision, clip, needs_optimizer = settings
    owners: list[Any] = [{}] * len(groups)
    ranks, norms = None, Norms()
    if optimizer is not None:
        owners, ranks, norms = optimizer.own()
    elif needs_optimizer:
        raise RuntimeError("the optimizer of this step is gone; keep it alive as long as what was recorded with it")
    batches = run.batches_of(groups, places, lists, grad_scale, firsts)
    if needs_optimizer:
        for batch in batches:
            batch.owners = owners[batch.number]["params"]
    made = None
    if clip is not None:
        kind, most = clip
        made = Clip(kind, most, ranks if needs_optimizer else None, norms, set())
    read = Settings(Convention(**{**fields, "decay": tuple(fields["decay"])}))
    run.taken_apart(batches, read, nonfinite, Precision(**precision), clip=made)
    if made is not None:
        made.end()
