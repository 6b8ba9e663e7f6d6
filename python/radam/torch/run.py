"""From parameters and their states to the core: as they are, or taken apart where they are no plain CPU tensors."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _law, _step
from ..conventions import Convention
from . import settings
from .unwrap import is_native, memory_of

Lists = Sequence[Sequence[Any]]


@dataclasses.dataclass
class Batch:
    """The parameters of one group, in tuples parallel to its params: None where there is no gradient."""

    number: int
    group: Mapping[str, Any]
    params: Sequence[Tensor]
    grads: Sequence[Any]
    exp_avgs: Sequence[Any]
    exp_avg_sqs: Sequence[Any]
    steps: Sequence[Any]
    grad_scale: float = 1.0

    def lists(self) -> Lists:
        """Return what differs from parameter to parameter."""
        return self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, self.steps

    def plan(self, convention: Convention, lists: Lists) -> tuple[Any, ...]:
        """Return what the core takes for the group, with these lists."""
        hyperparameters = settings.hyperparameters(self.group, convention, self.grad_scale)
        names = self.group.get("param_names")
        params, grads, exp_avgs, exp_avg_sqs, steps = (tuple(entries) for entries in lists)
        names = None if names is None else tuple(names)
        return (hyperparameters, None, params, grads, exp_avgs, exp_avg_sqs, None, steps, names)

    def changed(self) -> list[Tensor]:
        """Return the parameters and moments that a step writes."""
        written = (self.params, self.exp_avgs, self.exp_avg_sqs)
        if None not in self.grads:
            return [tensor for tensors in written for tensor in tensors]
        return [tensor for tensors in written for tensor, grad in zip(tensors, self.grads) if grad is not None]


class Item(NamedTuple):
    """One parameter with a gradient: its place, and the memory that a step reads and writes."""

    batch: Batch
    index: int
    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor


def as_they_are(batches: Sequence[Batch], convention: Convention, nonfinite: str) -> bool:
    """Step plain CPU tensors in one native call; an error that changes nothing where something else is among them."""
    plans = tuple(batch.plan(convention, batch.lists()) for batch in batches)
    return _step.step(plans, nonfinite, _version_bump(batches))


def taken_apart(batches: Sequence[Batch], convention: Convention, nonfinite: str) -> bool:
    """Step tensors of any kind: complex, distributed, subclasses, on other devices, the same one twice."""
    items = [item for batch in batches for item in items_of(batch)]
    kernel = [item for item in items if not item.batch.group["differentiable"] and all(map(is_native, item[2:]))]
    by_kernel = set(map(id, kernel))
    by_law = [item for item in items if id(item) not in by_kernel]
    if nonfinite != "propagate" and not all(_is_finite(item, nonfinite) for item in by_law):
        return False
    pending = [_LawStep(item, convention) for item in by_law]

    bump: Callable[[], None] | None = _version_bump(batches)
    for turn in _turns(kernel):
        plans = []
        for batch in batches:
            lists: list[list[Any]] = [[None] * len(batch.params) for _ in range(5)]
            for item in turn:
                if item.batch is batch:
                    for entries, value in zip(lists, item[2:]):
                        entries[item.index] = value
            plans.append(batch.plan(convention, lists))
        if not _step.step(tuple(plans), nonfinite, bump):
            return False
        bump = None
    for step in pending:
        step.take()
    return True


def all_plain(batches: Sequence[Batch]) -> bool:
    """Whether as_they_are is worth a try the next time."""
    return all(
        is_native(tensor) and not tensor.is_complex()
        for batch in batches
        for tensor in (*batch.changed(), *(grad for grad in batch.grads if grad is not None))
    )


def any_fake(batches: Sequence[Batch]) -> bool:
    """Whether there are tensors without values, which only an operator may see."""
    return any(type(tensor).__name__ == "FakeTensor" for batch in batches for tensor in batch.changed())


def present(batch: Batch) -> list[list[Tensor]]:
    """Return what the operator takes of a group: lists of those parameters that have a gradient."""
    items = list(items_of(batch))
    return [[item[column] for item in items] for column in range(2, 7)]


def items_of(batch: Batch) -> Iterator[Item]:
    """Yield the parameters with a gradient, each tensor as the memory that holds its elements here."""
    for index, (param, grad, *state) in enumerate(zip(*batch.lists())):
        if grad is not None:
            if grad.is_sparse:
                raise RuntimeError("RAdam does not support sparse gradients")
            yield Item(batch, index, *memory_of(index, batch.number, param, grad, *state))


def _turns(items: Sequence[Item]) -> list[list[Item]]:
    """Return the items in lists that hold a parameter once: the same one again takes another step, after the first."""
    seen: Counter[int] = Counter()
    turns: list[list[Item]] = []
    for item in items:
        param = id(item.batch.params[item.index])
        if seen[param] == len(turns):
            turns.append([])
        turns[seen[param]].append(item)
        seen[param] += 1
    return turns


def _version_bump(batches: Sequence[Batch]) -> Callable[[], None]:
    """Return what tells autograd of the change: a backward through an old value must fail. It runs just before it."""

    def bump() -> None:
        changed = [tensor for batch in batches for tensor in batch.changed()]
        torch.autograd.graph.increment_version(changed)

    return bump


def _is_finite(item: Item, nonfinite: str) -> bool:
    finite = bool(torch.isfinite(item.grad).all())
    if not finite and nonfinite == "raise":
        raise FloatingPointError(
            f"the gradient of parameter {item.index} of group {item.batch.number} holds an inf or a NaN; nothing was "
            "changed (nonfinite='raise')"
        )
    return finite


class _LawStep:
    """A step in tensor operations: where it is differentiated, and on devices without a kernel."""

    def __init__(self, item: Item, convention: Convention) -> None:
        """Check everything; take() only computes."""
        self._item = item
        group, param = item.batch.group, item.param
        what = f"of parameter {item.index} of group {item.batch.number}"
        for name, tensor in (("gradient", item.grad), ("exp_avg", item.exp_avg), ("exp_avg_sq", item.exp_avg_sq)):
            if tensor.shape != param.shape:
                raise ValueError(
                    f"the {name} {what} has shape {tuple(tensor.shape)}, the parameter {tuple(param.shape)}"
                )
        if not param.dtype.is_floating_point:
            raise TypeError(f"the dtype {what} is {param.dtype}; accepted are floating-point ones")
        taken = float(item.step)
        if not (taken >= 0 and taken == int(taken)):
            raise ValueError(f"the step count {what} is {taken}, no whole number of steps")
        self._t = int(taken) + 1
        self._dtype = torch.float64 if param.dtype is torch.float64 else torch.float32
        lr = 1.0 if settings.is_traced(group["lr"]) else None
        hyperparameters = settings.hyperparameters(group, convention, item.batch.grad_scale, lr)
        self._c: Mapping[str, Any] = _step.coefficients(
            hyperparameters, self._t, "float64" if self._dtype is torch.float64 else "float32"
        )
        if lr is not None:
            self._c = _law.at_learning_rate(self._c, group["lr"].reshape(()), float(group["weight_decay"]))

    def take(self) -> None:
        item = self._item
        with torch.set_grad_enabled(torch.is_grad_enabled() and item.batch.group["differentiable"]):
            # A clone, since autograd may keep p for its product with a traced lr, and p changes in place below.
            param = item.param.clone() if torch.is_grad_enabled() else item.param
            old = (x.to(self._dtype) for x in (param, item.grad, item.exp_avg, item.exp_avg_sq))
            param, exp_avg, exp_avg_sq, _ = _law.update(torch, self._c, *old)
            item.param.copy_(param)
            item.exp_avg.copy_(exp_avg)
            item.exp_avg_sq.copy_(exp_avg_sq)
        with torch.no_grad():
            item.step.fill_(self._t)
