"""The step as an operator of PyTorch, for torch.compile and whatever else watches operations go by."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..conventions import Convention
from . import run


@torch.library.custom_op("radam::step_", mutates_args=("params", "exp_avgs", "exp_avg_sqs", "steps"), device_types=None)
def step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    lr: float,
    lr_tensor: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    maximize: bool,
    convention: str,
    nonfinite: str,
    grad_scale: float,
) -> None:
    """Take one step of one group in place: the core's, with its checks and errors. lr_tensor stands for lr if given."""
    group = {
        "lr": lr if lr_tensor is None else lr_tensor,
        "betas": (beta1, beta2),
        "eps": eps,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "maximize": maximize,
        "differentiable": False,
    }
    batch = run.Batch(0, group, params, grads, exp_avgs, exp_avg_sqs, steps, grad_scale)
    run.taken_apart([batch], _convention(convention), nonfinite)


@step_.register_fake
def _(params, grads, exp_avgs, exp_avg_sqs, steps, *rest) -> None:  # type: ignore[no-untyped-def]
    pass


def step_group(
    group: Mapping[str, Any], lists: Sequence[list[Tensor]], convention: str, nonfinite: str, grad_scale: float
) -> None:
    """Step the parameters of one group, with their lists, and an encoded convention, as the operator takes them."""
    lr = group["lr"]
    beta1, beta2 = group["betas"]
    step_(
        *lists,
        lr=0.0 if isinstance(lr, Tensor) else lr,
        lr_tensor=lr if isinstance(lr, Tensor) else None,
        beta1=float(beta1),
        beta2=float(beta2),
        eps=group["eps"],
        weight_decay=float(group["weight_decay"]),
        decoupled_weight_decay=group["decoupled_weight_decay"],
        maximize=group["maximize"],
        convention=convention,
        nonfinite=nonfinite,
        grad_scale=grad_scale,
    )


def encoded(convention: Convention) -> str:
    """Return a convention as a string, which an operator can take."""
    return json.dumps(dataclasses.asdict(convention))


@functools.cache
def _convention(text: str) -> Convention:
    fields = json.loads(text)
    return Convention(**{**fields, "decay": tuple(fields["decay"])})
