"""What every front end is held to, and how the shared table (test_every_front_end.py) drives it.

A front end joins by a module here, front_end_<name>.py, whose FRONT_END is a FrontEnd. It may import its framework;
where that is not installed, the table says so and goes on without it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

import reference as ref

Array = np.ndarray[Any, Any]
Whose = Literal["ours", "theirs"]

FRAMEWORKS = {"optax": "jax", "fused_step": "jax", "lucid": "numpy", "lucid_docs": "numpy"}
"""What a front end needs where that is not the module of its name. Lucid's own package runs on Apple silicon only: its
parameters are stood in for."""
SESSIONS = {"mindspore": "mindspore"}
"""The nox session that has a framework, where that is not `frameworks`."""
NAMES = sorted(path.stem.removeprefix("front_end_") for path in Path(__file__).parent.glob("front_end_*.py"))


@dataclasses.dataclass(frozen=True)
class Settings:
    """The hyperparameters of a group. The defaults are exact in float32, but for eps."""

    lr: float = 2.0**-6
    beta1: float = 0.875
    beta2: float = 0.984375
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta1, self.beta2

    def but(self, **changes: Any) -> Settings:
        return dataclasses.replace(self, **changes)


class Trainer(Protocol):
    """An optimizer, ours or the framework's own, over parameters of the framework's own arrays."""

    def step(self, grads: Sequence[Array | None]) -> None:
        """Set the gradients (of the parameters' shapes and dtypes), step once, and then the scheduler if there is one.

        None stands for a parameter without a gradient.
        """

    def params(self) -> list[Array]:
        """Return copies of the parameters."""

    def save(self) -> Any:
        """Return the optimizer's state, in the form in which the framework's users save it."""

    def load(self, saved: Any) -> None:
        """Take over what save of either kind of trainer gave."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Something that both optimizers must refuse alike.

    Args:
        what: for the test's name.
        act: does it, with "ours" or "theirs".
        error: the type that both raise.
        text: what ours says, a regular expression.
        theirs: whether the framework's own refuses it too, and so must raise the same type.
    """

    what: str
    act: Callable[[Whose], Any]
    error: type[Exception]
    text: str
    theirs: bool = True


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """One front end.

    Args:
        name: as in NAMES.
        convention: whose reading of RAdam it follows.
        make: returns a trainer over copies of float32 arrays; groups lists (indices of parameters, settings), and
            covers each index once and in order.
        formula: the same in float64, of reference.py, with its arguments but for lr, betas and eps.
        has_theirs: whether the framework's own optimizer is there to be compared.
        most_beta2: up to where the framework's own schedule is sound in float32.
        group_settings: the fields of Settings that groups may have of their own.
        decays: the kinds of weight decay it knows.
        skips: whether a parameter may be without a gradient.
        schedulers: makes a trainer like make's, driven by a scheduler of the framework, by the scheduler's name.
        scheduled: where the framework's own optimizer is not there: what the scheduler of that name makes of the
            settings at a step, 0 for the first.
        refusals: bad input.
        make_like_torch: where the convention is not torch's, and it can follow torch's all the same: make that does.
    """

    name: str
    convention: str
    make: Callable[[Whose, Sequence[Array], Sequence[tuple[Sequence[int], Settings]]], Trainer]
    formula: Callable[..., None] = ref.torch_radam
    has_theirs: bool = True
    most_beta2: float = 0.999
    group_settings: frozenset[str] = frozenset({"lr", "weight_decay"})
    decays: frozenset[str] = frozenset({"coupled"})
    skips: bool = True
    schedulers: Mapping[str, Callable[[Whose, Sequence[Array], Settings], Trainer]] = dataclasses.field(
        default_factory=dict
    )
    scheduled: Mapping[str, Callable[[Settings, int], Settings]] = dataclasses.field(default_factory=dict)
    refusals: Sequence[Refusal] = ()
    make_like_torch: Callable[[Sequence[Array], Settings], Trainer] | None = None

    def one_group(self, whose: Whose, params: Sequence[Array], settings: Settings) -> Trainer:
        return self.make(whose, params, [(range(len(params)), settings)])


def missing(name: str) -> str:
    """Why a front end cannot be tested here; empty where it can."""
    framework = FRAMEWORKS.get(name, name)
    if importlib.util.find_spec(framework):
        return ""
    return f"{framework} is not installed; nox -s {SESSIONS.get(framework, 'frameworks')} tests it"


def find(name: str) -> FrontEnd:
    """Import a front end and its framework, some of which warn of things that are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"front_end_{name}").FRONT_END  # type: ignore[no-any-return]
