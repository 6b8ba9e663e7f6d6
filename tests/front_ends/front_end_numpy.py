"""The array-level optimizer over NumPy arrays, in the shared table: what the others' bits are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import radam
from front_end import Array, FrontEnd, Refusal, Settings, Whose


class ArrayTrainer:
    def __init__(self, params: Sequence[Array], groups: Sequence[tuple[Sequence[int], Settings]], convention: str):
        self._params = [np.array(param) for param in params]
        self.optimizer = radam.RAdam(
            [
                {
                    "params": [self._params[i] for i in indices],
                    "lr": s.lr,
                    "betas": s.betas,
                    "eps": s.eps,
                    "weight_decay": s.weight_decay,
                    "decoupled_weight_decay": s.decoupled if s.weight_decay else None,
                }
                for indices, s in groups
            ],
            convention=convention,
        )

    def step(self, grads: Sequence[Array | None]) -> None:
        self.optimizer.step(grads=grads)

    def params(self) -> list[Array]:
        return [param.copy() for param in self._params]

    def save(self) -> Any:
        return self.optimizer.state_dict()

    def load(self, saved: Any) -> None:
        self.optimizer.load_state_dict(saved)


def make_as(convention: str) -> Callable[..., ArrayTrainer]:
    return lambda whose, params, groups: ArrayTrainer(params, groups, convention)


def refused(**keywords: Any) -> Callable[[Whose], Any]:
    return lambda whose: radam.RAdam([np.zeros(2, np.float32)], **keywords)


FRONT_END = FrontEnd(
    "numpy",
    "torch",
    make_as("torch"),
    has_theirs=False,
    group_settings=frozenset({"lr", "beta1", "beta2", "eps", "weight_decay", "decoupled"}),
    decays=frozenset({"coupled", "decoupled"}),
    refusals=[
        Refusal("a negative lr", refused(lr=-1.0), ValueError, "lr", theirs=False),
        Refusal("a beta of 1", refused(betas=(0.9, 1.0)), ValueError, r"betas\[1\]", theirs=False),
        Refusal("a list of no parameters", lambda whose: radam.RAdam([]), ValueError, "params", theirs=False),
    ],
)
