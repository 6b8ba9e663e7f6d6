"""From parameters and their states to what the core takes: parameters that share hyperparameters in one group."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np
from paddle import Tensor

from .. import _step
from ..conventions import CONVENTIONS
from . import gradients
from .state import Kept, State

Plan = tuple[Any, ...]


def number(value: Any) -> float:
    """Return a number, or the one that a Tensor holds now."""
    found: Any = value.item() if isinstance(value, Tensor) else value
    return float(found)


@functools.lru_cache(maxsize=256)
def hyperparameters(lr: float, beta1: float, beta2: float, eps: float, decay: float) -> _step.Hyperparameters:
    """Return what the core takes for a group; ValueError where a number is out of range."""
    return CONVENTIONS["paddle"].hyperparameters(lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)


@dataclasses.dataclass
class Settings:
    """What holds for the parameters of one group of the optimizer at one step."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    clip: Any


@dataclasses.dataclass
class Bucket:
    """Parameters of a group that also share what Paddle keeps on each parameter."""

    places: list[int]
    scale: Any
    """What lr is multiplied by, or a Tensor that stands in for it."""
    regularizer: Any
    """Whose coefficient the core takes as weight decay."""
    params: tuple[Tensor, ...] = ()
    moments1: tuple[Kept | None, ...] = ()
    moments2: tuple[Kept | None, ...] = ()
    counts: Any = None
    names: tuple[str, ...] = ()
    masters: tuple[Kept | None, ...] | None = None


def _scales(params: Sequence[Tensor]) -> list[Any]:
    try:
        return [param.optimize_attr["learning_rate"] for param in params]
    except (AttributeError, KeyError, TypeError):  # a plain Tensor has none
        return [(getattr(param, "optimize_attr", None) or {}).get("learning_rate", 1.0) for param in params]


def _regularizers(params: Sequence[Tensor]) -> list[Any]:
    try:
        return [param.regularizer for param in params]
    except AttributeError:
        return [getattr(param, "regularizer", None) for param in params]


class Part:
    """The parameters of one group of the optimizer in buckets, which are made anew when something has changed."""

    def __init__(self, params: Sequence[Tensor], group: int) -> None:
        self.group = group
        self.params = list(params)
        self.buckets: list[Bucket] = []
        self.by_paddle: list[int] = []
        """The places of parameters whose regularizer is not the core's."""
        self._lacking: list[int] = []
        self._scales: list[Any] = []
        self._regularizers: list[Any] = []
        self._default: Any = self  # no regularizer
        self._by_coefficient: list[tuple[Any, float | None]] = []
        self._generation = -1
        self._dtypes: tuple[int, list[Any]] = (-1, [])  # of the parameters when their states were of them, and when

    def holds(self, params: Sequence[Tensor]) -> bool:
        """Whether these are its parameters."""
        return len(params) == len(self.params) and all(map(is_, params, self.params))

    def lacking(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the parameters that have a gradient but, when the buckets were made, had no state."""
        return [self.params[i] for i in self._lacking if grads[i] is not None]

    def cast(self, grads: Sequence[Tensor | None], states: Mapping[int, State], generation: int) -> list[Tensor]:
        """Return the parameters with a gradient that have been cast since their states were made."""
        now = (generation, [param.dtype for param in self.params])
        if now == self._dtypes:
            return []
        held = [states.get(id(param)) for param in self.params]
        places = [i for i, state in enumerate(held) if state is not None and state.is_of_another_dtype]
        if not places:
            self._dtypes = now
        return [self.params[i] for i in places if grads[i] is not None]

    def refresh(self, states: Mapping[int, State], generation: int, default: Any) -> None:
        """Make the buckets anew if need be.

        Args:
            states: by the identity of the parameter.
            generation: another number whenever a state has been made, taken away or replaced.
            default: the regularizer of parameters that have none of their own.
        """
        scales, regularizers = _scales(self.params), _regularizers(self.params)
        same = (
            generation == self._generation
            and default is self._default
            and all(map(is_, scales, self._scales))
            and all(map(is_, regularizers, self._regularizers))
            and self._decays_hold()
        )
        if same:
            return
        self._scales, self._regularizers = scales, regularizers
        self._default, self._generation = default, generation
        self._make(states)

    def _decays_hold(self) -> bool:
        try:
            return all(gradients.coefficient(one) == value for one, value in self._by_coefficient)
        except ValueError:  # said with the name of the parameter when the buckets are made
            return False

    def _named(self, error: Exception, name: str) -> Exception:
        return type(error)(f"group {self.group}, parameter {name}: {error}")

    def _make(self, states: Mapping[int, State]) -> None:
        found: dict[Any, Bucket] = {}
        known: dict[int, tuple[Any, float | None]] = {}
        self.by_paddle = []
        for i, (scale, own) in enumerate(zip(self._scales, self._regularizers)):
            regularizer = self._default if own is None else own
            try:
                if id(regularizer) not in known:
                    known[id(regularizer)] = (regularizer, gradients.coefficient(regularizer))
                factor: float = id(scale) if isinstance(scale, Tensor) else float(scale)
            except (TypeError, ValueError) as error:
                raise self._named(error, self.params[i].name) from error
            decay = known[id(regularizer)][1]
            if decay is None:
                self.by_paddle.append(i)
                regularizer, decay = None, 0.0
            key = (isinstance(scale, Tensor), factor, decay)
            found.setdefault(key, Bucket([], scale, regularizer)).places.append(i)
        self._by_coefficient = list(known.values())
        self.buckets = list(found.values())
        held = [states.get(id(param)) for param in self.params]
        self._lacking = [i for i, state in enumerate(held) if state is None]
        for bucket in self.buckets:
            self._fill(bucket, held)

    def _fill(self, bucket: Bucket, held: Sequence[State | None]) -> None:
        own = [held[i] for i in bucket.places]
        bucket.params = tuple(self.params[i] for i in bucket.places)
        bucket.names = tuple(param.name for param in bucket.params)
        bucket.moments1 = tuple(None if state is None else state.moment1 for state in own)
        bucket.moments2 = tuple(None if state is None else state.moment2 for state in own)
        bucket.counts = np.array([0 if state is None else state.count[0] for state in own], np.int64)
        for i, state in enumerate(own):
            if state is not None:
                state.count = bucket.counts[i : i + 1]
        masters = tuple(None if state is None else state.master for state in own)
        bucket.masters = None if all(master is None for master in masters) else masters

    def plans(self, settings: Settings, grads: Sequence[Tensor | None]) -> list[Plan]:
        """Return what the core takes for each bucket, with gradients in the order of the parameters."""
        plans = []
        for bucket in self.buckets:
            own = grads if len(self.buckets) == 1 else [grads[i] for i in bucket.places]
            scale = bucket.scale
            try:
                lr = number(scale) if isinstance(scale, Tensor) else settings.lr * scale
                decay = gradients.coefficient(bucket.regularizer)
                assert decay is not None
                numbers = hyperparameters(lr, settings.beta1, settings.beta2, settings.eps, decay)
            except (TypeError, ValueError) as error:
                raise self._named(error, bucket.names[0]) from error
            arrays = (bucket.params, tuple(own), bucket.moments1, bucket.moments2, None, bucket.counts, bucket.names)
            plan: Plan = (numbers, None, *arrays)
            if bucket.masters is not None:
                plan = (*plan, None, (bucket.masters, None, None, None, 0, None, None, False))
            plans.append(plan)
        return plans
