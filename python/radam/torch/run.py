"""From parameters and their states to the core: as they are, or taken apart where they are no plain tensors."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import _step
from ..precision import Precision
from .amp import Numbers
from .clip import Clip
from .law_step import LawStep
from .settings import Settings, name_of, on_devices
from .state import Keys
from .unwrap import Memory, agreed, is_native, memory_of, meshes_of, shard_of

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
    stored: Lists = ()
    """Masters and the scales of both moments, or nothing where all is stored as it is computed."""
    grad_scale: float = 1.0
    first: int = 0
    """The number of the group's first parameter among all of the optimizer."""
    owners: Sequence[Tensor] = ()
    """The optimizer's own parameters, where params are what they hold."""

    def lists(self) -> Lists:
        """Return what differs from parameter to parameter."""
        nothing = (None,) * len(self.params)
        stored = self.stored or (nothing,) * 3
        return self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, self.steps, *stored

    def owner(self, place: int) -> Tensor:
        """Return the optimizer's own parameter at a place."""
        return self.owners[place] if self.owners else self.params[place]

    def plan(self, settings: Settings, lists: Lists, precision: Precision) -> tuple[Any, ...]:
        """Return what the core takes for the group, with these lists."""
        *plain, masters, scales, square_scales = map(tuple, lists)
        plan = _plan(settings, self.grad_scale, self.group, *plain)
        if precision.is_plain:
            return plan
        shards = tuple(None if x is None else shard_of(self.owner(place)) for place, x in enumerate(plain[0]))
        return (*plan, _stored((masters, scales, square_scales), precision, self.first, shards))

    def changed(self) -> list[Tensor]:
        """Return the parameters and what is stored of them, which a step writes."""
        written = (self.params, self.exp_avgs, self.exp_avg_sqs, *self.stored)
        return [
            tensor
            for tensors in written
            for tensor, grad in zip(tensors, self.grads)
            if grad is not None and tensor is not None
        ]


@dataclasses.dataclass(eq=False)
class Item:
    """One parameter with a gradient: its place, and the memory that a step reads and writes."""

    batch: Batch
    place: int
    memory: Memory
    differentiable: bool = False
    by_kernel: bool = False

    @property
    def name(self) -> str:
        """Return how messages call it."""
        return name_of(self.batch.group, self.batch.number, self.place)


def _plan(
    settings: Settings,
    grad_scale: float,
    group: Mapping[str, Any],
    params: tuple[Any, ...],
    grads: tuple[Any, ...],
    exp_avgs: tuple[Any, ...],
    exp_avg_sqs: tuple[Any, ...],
    steps: tuple[Any, ...],
) -> tuple[Any, ...]:
    names = group.get("param_names")
    names = None if names is None else tuple(names)
    group, there = on_devices(group, params)
    hyperparameters = settings.of(group, grad_scale)
    return (hyperparameters, None, params, grads, exp_avgs, exp_avg_sqs, None, steps, names, there)


def _stored(lists: Lists, precision: Precision, first: int, shards: Any = None) -> tuple[Any, ...]:
    """Return what the core takes beside the plain tensors: what else is stored, and what random bits depend on."""
    ordinals = _ordinals(first, len(lists[0]))
    return (*lists, None, precision.seed, ordinals, shards, precision.stochastic_rounding)


@functools.lru_cache(maxsize=64)
def _ordinals(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))


def firsts(groups: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the number that the first parameter of each group has among all."""
    return list(itertools.accumulate((len(group["params"]) for group in groups), initial=0))


def batches_of(
    groups: Sequence[Mapping[str, Any]],
    places: Iterable[tuple[int, int]],
    lists: Lists,
    grad_scale: float,
    numbers: Sequence[int],
) -> list[Batch]:
    """Return batches of tensors that stand at these places, (group, place in it); numbers are what firsts gave."""
    found: dict[int, dict[int, tuple[Tensor, ...]]] = {}
    for (number, place), tensors in zip(places, zip(*lists)):
        found.setdefault(number, {})[place] = tensors
    batches = []
    for number, by_place in found.items():
        rows = [by_place.get(place, (None,) * len(Memory._fields)) for place in range(max(by_place) + 1)]
        params, grads, exp_avgs, exp_avg_sqs, steps, *stored = zip(*rows)
        batch = Batch(number, groups[number], params, grads, exp_avgs, exp_avg_sqs, steps, stored)
        batch.grad_scale, batch.first, batch.owners = grad_scale, numbers[number], groups[number].get("params", ())
        batches.append(batch)
    return batches


SIXTEEN_BITS = (torch.bfloat16, torch.float16, torch.complex32)


def lacking_masters(params: Sequence[Any], grads: Sequence[Any], masters: Sequence[Any]) -> list[int]:
    """Return the places of 16-bit parameters without what is kept of their weights: they had another dtype before."""
    return [i for i, x in enumerate(masters) if x is None and grads[i] is not None and params[i].dtype in SIXTEEN_BITS]


def as_they_are(
    groups: Sequence[Mapping[str, Any]],
    state: Any,
    settings: Settings,
    nonfinite: str,
    grad_scale: float,
    keys: Keys,
    precision: Precision,
    amp: Numbers | None = None,
    clip: Clip | None = None,
) -> bool | None:
    """Step plain CPU and CUDA tensors in one native call; None, and nothing changed, where they are not all that.

    Every step begins here, so it is written for few tensors as well as for many: no objects, no second look.
    """
    plans: list[tuple[Any, ...]] = []
    changed: list[Tensor] = []
    ordinal = 0
    try:
        for group in groups:
            first, ordinal = ordinal, ordinal + len(group["params"])
            found = _step.collect(group["params"], state, keys)
            params, grads, exp_avgs, exp_avg_sqs, steps, *stored, fresh, count = found
            if fresh or (count and group["differentiable"]):
                return None
            if precision.master_weights and lacking_masters(params, grads, stored[0]):
                return None
            if count and group["capturable"] and not all(step is None or step.is_cuda for step in steps):
                return None
            if not count:
                plans.append(_NOTHING)  # keeps its place, by which messages call it
                continue
            plan = _plan(settings, grad_scale, group, params, grads, exp_avgs, exp_avg_sqs, steps)
            plans.append(plan if not stored else (*plan, _stored(stored, precision, first)))
            written = (params, exp_avgs, exp_avg_sqs)
            for tensors in stored:
                changed += [tensor for tensor in tensors if tensor is not None]
            if count == len(params):
                for tensors in written:
                    changed += tensors
            else:
                changed += [t for tensors in written for t, grad in zip(tensors, grads) if grad is not None]
        if not changed:
            return True
        native = None if clip is None else clip.call()
        return _step.step(tuple(plans), nonfinite, functools.partial(increment_version, changed), amp, native)
    except _step.CudaError:
        raise  # a second try could find that a device has begun
    except (TypeError, ValueError, RuntimeError):
        if clip is not None:
            clip.start_again()
        return None  # what is wrong, or only unusual, shows when each tensor is looked at


_NOTHING = (_step.Hyperparameters(lr=0.0, beta1=0.0, beta2=0.0, eps=0.0), None, (), (), (), (), None, (), None, None)


class _AllIsWell(Exception):
    """What a step that is only to be checked ends with."""


def is_possible(
    batches: Sequence[Batch], settings: Settings, nonfinite: str, precision: Precision, clip: Clip | None = None
) -> bool:
    """Check a step and do nothing; False where nonfinite would skip it."""
    try:
        return bool(taken_apart(batches, settings, nonfinite, precision, check_only=True, clip=clip))
    except _AllIsWell:
        return True


def taken_apart(
    batches: Sequence[Batch],
    settings: Settings,
    nonfinite: str,
    precision: Precision,
    differentiable: bool = False,
    check_only: bool = False,
    amp: Numbers | None = None,
    clip: Clip | None = None,
    on_commit: Callable[[], None] = lambda: None,
) -> bool | None:
    """Step tensors of any kind: complex, distributed, subclasses, on other devices, the same one twice.

    on_commit is called when all is known to be well and nothing has changed yet. None, and nothing changed, where amp
    is given and some tensor has no kernel that could read it.
    """
    items = [item for batch in batches for item in items_of(batch)]
    for item in items:
        item.differentiable = differentiable and item.batch.group["differentiable"]
        item.by_kernel = not item.differentiable and all(map(is_native, item.memory.present()))
    kernel = [item for item in items if item.by_kernel]
    by_law = [item for item in items if not item.by_kernel]
    if by_law and amp is not None:
        return None
    if by_law and not (precision.is_plain and clip is None):
        raise RuntimeError(
            f"{by_law[0].name} is a tensor ({by_law[0].memory.param.device}) that only PyTorch's operations can step; "
            "they know no clipping, and no weights or moments in fewer bits"
        )
    if any(item.memory.param.is_cuda and not item.differentiable for item in by_law):
        _warn_of_no_kernel()
    first, *later = _turns(by_law) or [[]]

    def law_step(item: Item) -> LawStep:
        return LawStep(item.memory, item.batch.group, item.name, settings, item.batch.grad_scale, item.differentiable)

    steps = [law_step(item) for item in first]
    is_over_ranks = clip is not None and clip.is_over_ranks  # then the norm decides, for all processes
    if is_over_ranks and not kernel:
        assert clip is not None
        if not clip.is_finite_elsewhere() and nonfinite != "propagate":
            return _left_out(nonfinite, None)
    if nonfinite != "propagate" and not is_over_ranks:
        meshes = meshes_of(tensor for batch in batches for tensor in batch.changed())
        if not _are_finite(items if meshes else by_law, meshes, nonfinite):
            return False
        if meshes:
            nonfinite = "propagate"  # decided, for all processes

    if not check_only:
        for step in steps:
            step.compute()

    def commit() -> None:
        if check_only:
            raise _AllIsWell
        on_commit()
        increment_version([tensor for batch in batches for tensor in batch.changed()])

    bump: Callable[[], None] | None = commit
    if not kernel:
        commit()
    turns = _turns(kernel)
    for turn in turns:
        lists: dict[int, Any] = {id(batch): [[None] * len(batch.params) for _ in Memory._fields] for batch in batches}
        for item in turn:
            for column, tensor in zip(lists[id(item.batch)], item.memory):
                column[item.place] = tensor
        plans = [_NOTHING] * (1 + max(batch.number for batch in batches))
        for batch in batches:
            plans[batch.number] = batch.plan(settings, lists[id(batch)], precision)
        native = None
        if clip is not None:
            inside = sorted(turn, key=lambda item: (item.batch.number, item.place))
            native = clip.call([item.batch.owner(item.place) for item in inside], only=len(turns) == 1)
        if not _step.step(tuple(plans), nonfinite, bump, amp, native):
            return False
        bump = None
    for step in steps:
        step.write()
    for turn in later:
        for step in map(law_step, turn):
            step.compute()
            step.write()
    return True


@functools.cache  # once
def _warn_of_no_kernel() -> None:
    why = _step.why_cuda_is_off() or "they are no plain, strided tensors"
    warnings.warn(
        f"CUDA tensors are stepped by PyTorch's own operations, one by one, which is slower: {why}",
        RuntimeWarning,
        stacklevel=2,
    )


def all_plain(batches: Sequence[Batch]) -> bool:
    """Whether as_they_are is worth a try the next time."""
    return all(
        is_native(tensor) and not tensor.is_complex()
        for batch in batches
        for tensor in (*batch.changed(), *(grad for grad in batch.grads if grad is not None))
    )


def stand_ins(batches: Sequence[Batch]) -> list[bool]:
    """Say of each tensor whether it stands for values that are not there, or that only a mode of PyTorch's reaches."""
    tensors = (tensor for batch in batches for column in batch.lists() for tensor in column)
    return [type(t).__name__ in ("FakeTensor", "FunctionalTensor") for t in tensors if isinstance(t, Tensor)]


def items_of(batch: Batch) -> Iterator[Item]:
    """Yield the parameters with a gradient, each tensor as the memory that holds its elements here."""
    for place, tensors in enumerate(zip(*batch.lists())):
        found = Memory(*tensors)
        if found.grad is not None:
            if found.grad.is_sparse:
                raise RuntimeError("RAdam does not support sparse gradients")
            item = Item(batch, place, found)
            for role, tensor in zip(Memory._fields, tensors):
                if not isinstance(tensor, Tensor) and (tensor is not None or role not in Memory._field_defaults):
                    raise TypeError(f"{role} of {item.name} is a {type(tensor).__name__}, not a tensor")
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


def _are_finite(items: Sequence[Item], meshes: Sequence[Any], nonfinite: str) -> bool:
    """Whether these gradients are, in all processes of the meshes; nonfinite="raise" raises if not."""
    bad = next((item for item in items if not (item.memory.grad.is_meta or item.memory.grad.isfinite().all())), None)
    return agreed(bad is None, meshes) or _left_out(nonfinite, bad)


def _left_out(nonfinite: str, bad: Item | None) -> bool:
    """Return False, for a step that is left out, or raise if that is asked for."""
    if nonfinite == "raise":
        whose = f"the gradient of {bad.name}" if bad else "a gradient in another process"
        raise FloatingPointError(f"{whose} holds an inf or a NaN; nothing was changed (nonfinite='raise')")
    return False
