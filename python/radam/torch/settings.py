"""The hyperparameters of a group: torch's checks in torch's words, and what the core makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .._step import Hyperparameters
from ..conventions import Convention

REQUIRED = ("lr", "betas", "eps", "weight_decay")
LATER = {"foreach": None, "maximize": False, "capturable": False, "decoupled_weight_decay": False} | {
    "differentiable": False
}
"""What groups of older checkpoints lack, and what it was then."""


def check(group: Mapping[str, Any]) -> None:
    """Refuse what torch.optim.RAdam refuses, with its errors."""
    lr, betas, eps, weight_decay = (group[key] for key in REQUIRED)
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:  # NaN too
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    for index in (0, 1):
        if isinstance(betas[index], Tensor) and betas[index].numel() != 1:
            raise ValueError(f"Tensor betas[{index}] must be 1-element")
        if not 0.0 <= betas[index] < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {betas[index]}")
    if not weight_decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {weight_decay}")


def is_decoupled(group: Mapping[str, Any], convention: Convention) -> bool:
    """Resolve the decay; a weight_decay of 0 leaves the choice to the convention."""
    weight_decay = float(group["weight_decay"])
    wanted = group["decoupled_weight_decay"]
    return convention.is_decoupled(bool(wanted) if wanted or weight_decay else None, weight_decay)


def hyperparameters(
    group: Mapping[str, Any], convention: Convention, grad_scale: float = 1.0, lr: float | None = None
) -> Hyperparameters:
    """Return what the core takes, with Tensors read as they are now; ValueError where a number is out of range."""
    beta1, beta2 = group["betas"]
    return convention.hyperparameters(
        lr=float(group["lr"]) if lr is None else lr,
        betas=(float(beta1), float(beta2)),
        eps=float(group["eps"]),
        weight_decay=float(group["weight_decay"]),
        decoupled_weight_decay=is_decoupled(group, convention),
        maximize=bool(group["maximize"]),
        grad_scale=grad_scale,
    )
