"""The hyperparameters of a group: torch's checks in torch's words, and what the core makes of them."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._step import Hyperparameters
from ..conventions import Convention

REQUIRED = ("lr", "betas", "eps", "weight_decay")
LATER = {
    "foreach": None,
    "maximize": False,
    "capturable": False,
    "decoupled_weight_decay": False,
    "differentiable": False,
}
"""What groups of older checkpoints lack, and what it was then."""


def name_of(group: Mapping[str, Any], number: int, place: int) -> str:
    """Return how messages call a parameter: by its place, and by its name where it has one."""
    names = group.get("param_names") or ()
    name = f" ({names[place]!r})" if place < len(names) else ""
    return f"parameter {place}{name} of group {number}"


def check(group: Mapping[str, Any]) -> None:
    """Refuse what torch.optim.RAdam refuses, with its errors."""
    lr, betas, eps, weight_decay = (group[key] for key in REQUIRED)
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not 0.0 <= lr:  # noqa: SIM300  (torch's words for what is no number, and NaN too)
        raise ValueError(f"Invalid learning rate: {lr}")
    if not 0.0 <= eps:  # noqa: SIM300
        raise ValueError(f"Invalid epsilon value: {eps}")
    for index in (0, 1):
        if isinstance(betas[index], Tensor) and betas[index].numel() != 1:
            raise ValueError(f"Tensor betas[{index}] must be 1-element")
        if not 0.0 <= betas[index] < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {betas[index]}")
    if not 0.0 <= weight_decay:  # noqa: SIM300
        raise ValueError(f"Invalid weight_decay value: {weight_decay}")


def check_numbers(group: Mapping[str, Any], what: str) -> None:
    """Refuse what is not even a number, naming it; torch's checks would trip over it."""
    pairs = [(key, group[key]) for key in REQUIRED if key != "betas"]
    betas = group["betas"]
    if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
        raise TypeError(f"{what}: betas must be two numbers, got {betas!r}")
    for name, value in (*pairs, ("betas[0]", betas[0]), ("betas[1]", betas[1])):
        is_one = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, numbers.Real)
        if not is_one or (isinstance(value, Tensor) and value.is_complex()):
            raise TypeError(f"{what}: {name} must be a number or a Tensor of one element, got {value!r}")


def on_devices(
    group: Mapping[str, Any], params: Iterable[Any]
) -> tuple[Mapping[str, Any], dict[int, tuple[Any, ...]] | None]:
    """Return the group as the host reads it, and by CUDA device the lr and betas that the device reads, if any.

    Where all parameters are on such devices, nobody waits for numbers that are there too.
    """
    lr, (beta1, beta2) = group["lr"], group["betas"]
    there = [isinstance(value, Tensor) and value.is_cuda for value in (lr, beta1, beta2)]
    if not any(there):
        return group, None
    devices = {param.device for param in params if param is not None}
    if any(device.type != "cuda" for device in devices):
        return group, None
    values = [value if is_there else None for value, is_there in zip((lr, beta1, beta2), there)]
    lr, beta1, beta2 = (0.0 if is_there else value for value, is_there in zip((lr, beta1, beta2), there))
    numbers = {device.index: tuple(_on(value, device) for value in values) for device in devices}
    return {**group, "lr": lr, "betas": (beta1, beta2)}, numbers


def _on(value: Tensor | None, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    return value.detach().to(device, value.dtype if value.dtype is torch.float32 else torch.float64)


def is_decoupled(group: Mapping[str, Any], convention: Convention) -> bool:
    """Resolve the decay; a weight_decay of 0 leaves the choice to the convention."""
    return _is_decoupled(convention, group["decoupled_weight_decay"], float(group["weight_decay"]))


def _is_decoupled(convention: Convention, wanted: Any, weight_decay: float) -> bool:
    return convention.is_decoupled(bool(wanted) if wanted or weight_decay else None, weight_decay)


def _number(value: Any) -> float:
    if type(value) is float:
        return value
    if isinstance(value, (str, bytes)):
        raise TypeError(f"a hyperparameter must be a number, got {value!r}")
    return float(value.item() if isinstance(value, Tensor) else value)


class Settings:
    """Makes what the core takes of a group, and remembers what it made last."""

    def __init__(self, convention: Convention) -> None:
        def make(
            lr: float, betas: tuple[float, float], eps: float, decay: float, decoupled: Any, maximize: Any, scale: float
        ) -> Hyperparameters:
            return convention.hyperparameters(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=decay,
                decoupled_weight_decay=_is_decoupled(convention, decoupled, decay),
                maximize=bool(maximize),
                grad_scale=scale,
            )

        self._make = functools.lru_cache(maxsize=64)(make)

    def of(self, group: Mapping[str, Any], grad_scale: float = 1.0, lr: float | None = None) -> Hyperparameters:
        """Return the hyperparameters with Tensors read as they are now; ValueError where a number is out of range."""
        beta1, beta2 = group["betas"]
        return self._make(
            _number(group["lr"]) if lr is None else lr,
            (_number(beta1), _number(beta2)),
            _number(group["eps"]),
            _number(group["weight_decay"]),
            bool(group["decoupled_weight_decay"]),
            bool(group["maximize"]),
            grad_scale,
        )
