"""Lucid's front end in the shared table, over Lucid's own parameters where it runs, and over stand-ins elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import radam.lucid
from front_end import Array, FrontEnd, Refusal, Settings, Whose
from lucid_parameter import Parameter, Scheduler, Tensor
from lucid_runs import is_version_3, lucid_itself

lucid = lucid_itself()
THEIRS = is_version_3(lucid)
"""Whether it is Lucid 3, whose engine the front end follows; that of version 2 rectifies otherwise."""


def parameter(array: Array) -> Any:
    return lucid.nn.Parameter(lucid.tensor(array, device="cpu")) if THEIRS else Parameter(array)


def tensor(array: Array) -> Any:
    return lucid.tensor(array, device="cpu") if THEIRS else Tensor(array)


def optimizer_class(whose: Whose, name: str = "RAdam") -> Any:
    return getattr(lucid.optim if whose == "theirs" else radam.lucid, name)


class LucidTrainer:
    def __init__(
        self,
        whose: Whose,
        params: Sequence[Array],
        groups: Sequence[tuple[Sequence[int], Settings]],
        scheduler: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        self.parameters = [parameter(param.copy()) for param in params]
        self.optimizer = optimizer_class(whose)(
            [
                {
                    "params": [self.parameters[i] for i in indices],
                    "lr": s.lr,
                    "betas": s.betas,
                    "eps": s.eps,
                    "weight_decay": s.weight_decay,
                    "decoupled_weight_decay": s.decoupled,
                }
                for indices, s in groups
            ],
            **options,
        )
        self._scheduler = scheduler(self.optimizer) if scheduler is not None else None

    def step(self, grads: Sequence[Array | None]) -> None:
        for param, grad in zip(self.parameters, grads, strict=True):
            param.grad = None if grad is None else tensor(grad.copy())
        self.optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()

    def params(self) -> list[Array]:
        return [param.numpy().copy() for param in self.parameters]

    def save(self) -> Any:
        return self.optimizer.state_dict()

    def load(self, saved: Any) -> None:
        self.optimizer.load_state_dict(saved)


def wave(epoch: int) -> float:
    return 0.875 + 0.0625 * math.cos(epoch / 3)


def schedulers() -> Mapping[str, Callable[[Any], Any]]:
    """Lucid's own, or the ways in which they write to the groups."""
    if not THEIRS:
        return {
            "of the first rate": lambda o: Scheduler(o, lambda first, now, t: first * (1 + math.cos(t / 20)) / 2),
            "of the last rate": lambda o: Scheduler(o, lambda first, now, t: now * 0.9 if t % 7 == 0 else now),
            "with momentum": lambda o: Scheduler(o, lambda first, now, t: first * (1 + t % 5), wave),
        }
    of = lucid.optim
    return {
        "StepLR": lambda o: of.StepLR(o, 7, 0.5),
        "ExponentialLR": lambda o: of.ExponentialLR(o, 0.95),
        "MultiStepLR": lambda o: of.MultiStepLR(o, [10, 30], 0.5),
        "CosineAnnealingLR": lambda o: of.CosineAnnealingLR(o, 20),
        "LambdaLR": lambda o: of.LambdaLR(o, lambda t: 1 / (1 + t)),
        "CyclicLR": lambda o: of.CyclicLR(o, 0.001, 0.03, 5),
        "NoamScheduler": lambda o: of.NoamScheduler(o, 64, 10),
        "MultiplicativeLR": lambda o: of.MultiplicativeLR(o, lambda t: 0.95),
        "LinearLR": lambda o: of.LinearLR(o, 0.1, 1.0, 20),
        "ConstantLR": lambda o: of.ConstantLR(o, 0.5, 10),
        "PolynomialLR": lambda o: of.PolynomialLR(o, 50),
        "CosineAnnealingWarmRestarts": lambda o: of.CosineAnnealingWarmRestarts(o, 10),
        "OneCycleLR": lambda o: of.OneCycleLR(o, 0.05, 100),
    }


def scheduled(scheduler: Callable[[Any], Any]) -> Callable[..., LucidTrainer]:
    return lambda whose, params, s: LucidTrainer(whose, params, [(range(len(params)), s)], scheduler)


def refused(params: Any = None, **keywords: Any) -> Callable[[Whose], Any]:
    return lambda whose: optimizer_class(whose)(
        [parameter(np.zeros(2, np.float32))] if params is None else params, **keywords
    )


def edited(**entries: Any) -> Callable[[Whose], None]:
    def act(whose: Whose) -> None:
        trainer = LucidTrainer(whose, [np.zeros(2, np.float32)], [([0], Settings())])
        trainer.optimizer.param_groups[0].update(entries)
        trainer.step([np.ones(2, np.float32)])

    return act


def added(**entries: Any) -> Callable[[Whose], None]:
    def act(whose: Whose) -> None:
        trainer = LucidTrainer(whose, [np.zeros(2, np.float32)], [([0], Settings())])
        trainer.optimizer.add_param_group({"params": [parameter(np.zeros(2, np.float32))], **entries})

    return act


def loaded(change: Callable[[dict[str, Any]], Any]) -> Callable[[Whose], None]:
    def act(whose: Whose) -> None:
        trainer = LucidTrainer(whose, [np.zeros(2, np.float32)], [([0], Settings())])
        trainer.step([np.ones(2, np.float32)])
        trainer.load(change(trainer.save()))

    return act


def plainly(act: Callable[[Whose], Any]) -> Callable[[Whose], Any]:
    """Let Lucid's own errors be those of Python that they are kinds of: so ours are, and so programs catch both."""

    def plain(whose: Whose) -> None:
        try:
            act(whose)
        except (ValueError, TypeError, NotImplementedError) as error:
            kinds = (ValueError, TypeError, NotImplementedError)
            raise next(kind for kind in kinds if isinstance(error, kind))(str(error)) from error

    return plain


def refusals() -> list[Refusal]:
    bad = [
        Refusal("a negative lr", refused(lr=-1.0), ValueError, "lr"),
        Refusal("a beta of 1", refused(betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
        Refusal("a negative beta", refused(betas=(-0.1, 0.9)), ValueError, r"betas\[0\]"),
        Refusal("three betas", refused(betas=(0.9, 0.99, 0.999)), ValueError, "betas must be a tuple of two"),
        Refusal("one beta", refused(betas=0.9), ValueError, "betas must be a tuple of two"),
        Refusal("a negative eps", refused(eps=-1e-8), ValueError, "eps"),
        Refusal("a negative weight_decay", refused(weight_decay=-0.1), ValueError, "weight_decay"),
        Refusal("an lr of words", refused(lr="fast"), TypeError, "lr must be a number"),
        Refusal("a decay switch of words", refused(decoupled_weight_decay="yes"), TypeError, "decoupled_weight_decay"),
        Refusal("a direction of words", refused(maximize="up"), TypeError, "maximize"),
        Refusal("differentiable", refused(differentiable=True), NotImplementedError, "differentiable"),
        Refusal("no parameters", refused(params=[]), ValueError, "empty"),
        Refusal("groups of no parameters", refused(params=[{"params": []}]), ValueError, "no parameters"),
        Refusal("params that are no list", refused(params=3), TypeError, "params"),
        Refusal("an edited lr below 0", edited(lr=-1.0), ValueError, "group 0.*lr"),
        Refusal("an edited beta2 of 1", edited(beta2=1.0), ValueError, r"group 0.*betas\[1\]"),
        Refusal("edited betas of one", edited(betas=(0.9,)), ValueError, "group 0: betas must be a tuple of two"),
        Refusal("an added group with a bad eps", added(eps=-1.0), ValueError, "group 1.*eps"),
        Refusal("an added group with bad betas", added(betas=0.5), ValueError, "group 1: betas"),
        Refusal("a state of more groups", loaded(lambda s: {**s, "param_groups": []}), ValueError, "groups"),
        Refusal("a state of no groups", loaded(lambda s: {**s, "param_groups": None}), TypeError, "param_groups"),
        Refusal("a state that is a list", loaded(lambda s: {**s, "state": []}), TypeError, "state"),
    ]
    missing = [
        Refusal("an array", refused(params=[np.zeros(2, np.float32)]), TypeError, "no .data and .grad", theirs=False),
        Refusal(
            "an lr that is no number", refused(lr=float("nan")), ValueError, "lr must be a finite number", theirs=False
        ),
        Refusal(
            "a state without groups",
            loaded(lambda s: {"state": s["state"]}),
            ValueError,
            "param_groups",
            theirs=False,
        ),
    ]
    return missing + [Refusal(one.what, plainly(one.act), one.error, one.text, theirs=THEIRS) for one in bad]


FRONT_END = FrontEnd(
    "lucid",
    "lucid",
    LucidTrainer,
    has_theirs=THEIRS,
    group_settings=frozenset({"lr", "beta1", "beta2", "eps", "weight_decay", "decoupled"}),
    decays=frozenset({"coupled", "decoupled"}),
    schedulers={name: scheduled(scheduler) for name, scheduler in schedulers().items()},
    scheduled={
        "of the first rate": lambda s, t: s.but(lr=s.lr * (1 + math.cos(t / 20)) / 2),
        "of the last rate": lambda s, t: s.but(lr=s.lr * 0.9 ** (t // 7 + 1)),
        "with momentum": lambda s, t: s.but(lr=s.lr * (1 + t % 5), beta1=wave(t)),
    },
    refusals=refusals(),
)
