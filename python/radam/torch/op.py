"""The step as an operator of PyTorch, for torch.compile and whatever else watches operations go by."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

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


@torch.library.custom_op("radam::step_", mutates_args=("params", "exp_avgs", "exp_avg_sqs", "steps"))
def step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    places: list[int],
    optimizer: int,
) -> None:
    """Take one step in place.

    The hyperparameters are not arguments: they are read from the optimizer when it runs, so that a compiled step
    follows a learning-rate schedule without being compiled again.

    Args:
        params, grads, exp_avgs, exp_avg_sqs, steps: the tensors, in parallel lists.
        places: group and place in the group of each parameter, one after the other.
        optimizer: what register gave.
    """
    found: Steppable | None = _optimizers.get(optimizer)
    if found is None:
        raise RuntimeError("the optimizer of this step is gone; keep it alive as long as what was compiled with it")
    found.step_tensors(zip(places[::2], places[1::2]), (params, grads, exp_avgs, exp_avg_sqs, steps))


@step_.register_fake
def _(*args: Any) -> None:
    """Tensors without values: there is nothing to step."""
