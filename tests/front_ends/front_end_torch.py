"""PyTorch's front end in the shared table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import radam.torch
from front_end import Array, FrontEnd, Refusal, Settings, Whose

CLASSES = {"ours": radam.torch.RAdam, "theirs": torch.optim.RAdam}


class TorchTrainer:
    def __init__(
        self,
        whose: Whose,
        params: Sequence[Array],
        groups: Sequence[tuple[Sequence[int], Settings]],
        scheduler: Callable[[Any], Any] | None = None,
    ) -> None:
        self._params = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
        self.optimizer = CLASSES[whose](
            [
                {
                    "params": [self._params[i] for i in indices],
                    "lr": s.lr,
                    "betas": s.betas,
                    "eps": s.eps,
                    "weight_decay": s.weight_decay,
                    "decoupled_weight_decay": s.decoupled,
                }
                for indices, s in groups
            ]
        )
        self._scheduler = scheduler(self.optimizer) if scheduler is not None else None

    def step(self, grads: Sequence[Array | None]) -> None:
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = None if grad is None else torch.from_numpy(grad.copy())
        self.optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()

    def params(self) -> list[Array]:
        return [param.detach().numpy().copy() for param in self._params]

    def save(self) -> Any:
        return self.optimizer.state_dict()

    def load(self, saved: Any) -> None:
        self.optimizer.load_state_dict(saved)


def scheduled(scheduler: Callable[[Any], Any]) -> Callable[..., TorchTrainer]:
    return lambda whose, params, s: TorchTrainer(whose, params, [(range(len(params)), s)], scheduler)


def refused(**keywords: Any) -> Callable[[Whose], Any]:
    return lambda whose: CLASSES[whose]([torch.nn.Parameter(torch.zeros(2))], **keywords)


FRONT_END = FrontEnd(
    "torch",
    "torch",
    TorchTrainer,
    group_settings=frozenset({"lr", "beta1", "beta2", "eps", "weight_decay", "decoupled"}),
    decays=frozenset({"coupled", "decoupled"}),
    schedulers={
        "StepLR": scheduled(lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.5)),
        "CosineAnnealingLR": scheduled(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20)),
    },
    refusals=[
        Refusal("a negative lr", refused(lr=-1.0), ValueError, "Invalid learning rate"),
        Refusal("a beta of 1", refused(betas=(0.9, 1.0)), ValueError, "Invalid beta parameter at index 1"),
        Refusal("no parameters", lambda whose: CLASSES[whose]([]), ValueError, "empty parameter list"),
    ],
)
