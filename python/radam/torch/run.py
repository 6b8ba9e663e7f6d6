"""From parameters and their states to the core: as they are, or taken apart where they are no plain CPU tensors."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _law, _step
from ..conventions import Convention
from . import settings
from .unwrap import Memory, is_native, memory_of

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
    whole: bool = True  # every parameter has a gradient

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
        if self.whole:
            return [*self.params, *self.exp_avgs, *self.exp_avg_sqs]
        return [tensor for tensors in written for tensor, grad in zip(tensors, self.grads) if grad is not None]


@dataclasses.dataclass(eq=False)
class Item:
    """One parameter with a gradient: its place, and the memory that a step reads and writes."""

    batch: Batch
    place: int
    memory: Memory

    @property
    def name(self) -> str:
        """Return how messages call it."""
        return f"parameter {self.place} of group {self.batch.number}"


def as_they_are(batches: Sequence[Batch], convention: Convention, nonfinite: str) -> bool:
    """Step plain CPU tensors in one native call; an error that changes nothing where something else is among them."""
    plans = tuple(batch.plan(convention, batch.lists()) for batch in batches)
    return _step.step(plans, nonfinite, _version_bump(batches))


def taken_apart(batches: Sequence[Batch], convention: Convention, nonfinite: str) -> bool:
    """Step tensors of any kind: complex, distributed, subclasses, on other devices, the same one twice."""
    items = [item for batch in batches for item in items_of(batch)]
    kernel = [item for item in items if not item.batch.group["differentiable"] and all(map(is_native, item.memory))]
    by_kernel = set(map(id, kernel))
    by_law = [item for item in items if id(item) not in by_kernel]
    if nonfinite != "propagate" and not all(_is_finite(item, nonfinite) for item in by_law):
        return False
    pending = [_LawStep(item, convention) for item in by_law]

    bump: Callable[[], None] | None = _version_bump(batches)
    for turn in _turns(kernel):
        lists: dict[int, Any] = {id(batch): [[None] * len(batch.params) for _ in Memory._fields] for batch in batches}
        for item in turn:
            for column, tensor in zip(lists[id(item.batch)], item.memory):
                column[item.place] = tensor
        plans = tuple(batch.plan(convention, lists[id(batch)]) for batch in batches)
        if not _step.step(plans, nonfinite, bump):
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


def items_of(batch: Batch) -> Iterator[Item]:
    """Yield the parameters with a gradient, each tensor as the memory that holds its elements here."""
    for place, tensors in enumerate(zip(*batch.lists())):
        found = Memory(*tensors)
        if found.grad is not None:
            if found.grad.is_sparse:
                raise RuntimeError("RAdam does not support sparse gradients")
            item = Item(batch, place, found)
            item.memory = memory_of(found, item.name)
            yield item


def _turns(items: Sequence[Item]) -> list[list[Item]]:
    """Return the items in lists that hold a parameter once: the same one again takes another step, after the first."""
    seen: Counter[int] = Counter()
    turns: list[list[Item]] = []
    for item in items:
        param = id(item.batch.params[item.place])
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
    finite = bool(torch.isfinite(item.memory.grad).all())
    if not finite and nonfinite == "raise":
        raise FloatingPointError(
            f"the gradient of {item.name} holds an inf or a NaN; nothing was changed (nonfinite='raise')"
        )
    return finite


class _LawStep:
    """A step in tensor operations: where it is differentiated, and on devices without a kernel."""

    def __init__(self, item: Item, convention: Convention) -> None:
        """Check everything; take() only computes."""
        self._memory, self._group = item.memory, item.batch.group
        param, lr = item.memory.param, self._group["lr"]
        for name in ("grad", "exp_avg", "exp_avg_sq"):
            shape = getattr(item.memory, name).shape
            if shape != param.shape:
                raise ValueError(f"{name} of {item.name} has shape {tuple(shape)}, the parameter {tuple(param.shape)}")
        if not param.is_floating_point():
            raise TypeError(f"{item.name} has dtype {param.dtype}; accepted are floating-point and complex ones")
        taken = float(item.memory.step)
        if not (taken >= 0 and taken == int(taken)):
            raise ValueError(f"the step count of {item.name} is {taken}, no whole number of steps")
        self._t = int(taken) + 1
        wide = param.dtype is torch.float64
        self._dtype = torch.float64 if wide else torch.float32
        is_traced = isinstance(lr, Tensor) and lr.requires_grad and torch.is_grad_enabled()
        hyperparameters = settings.hyperparameters(
            self._group, convention, item.batch.grad_scale, lr=1.0 if is_traced else None
        )
        c: Mapping[str, Any] = _step.coefficients(hyperparameters, self._t, "float64" if wide else "float32")
        self._c = _law.at_learning_rate(c, lr.reshape(()), float(self._group["weight_decay"])) if is_traced else c

    def take(self) -> None:
        """Compute and write; autograd watches a differentiable group."""
        param, grad, exp_avg, exp_avg_sq, step = self._memory
        watched = torch.is_grad_enabled() and self._group["differentiable"]
        with torch.set_grad_enabled(watched):
            # A clone, for autograd may keep p for its product with a traced lr, and p changes in place below.
            old = (x.to(self._dtype) for x in (param.clone() if watched else param, grad, exp_avg, exp_avg_sq))
            new = _law.update(torch, self._c, *old)
            for tensor, value in zip((param, exp_avg, exp_avg_sq), new):
                tensor.copy_(value)
        with torch.no_grad():
            step.fill_(self._t)
