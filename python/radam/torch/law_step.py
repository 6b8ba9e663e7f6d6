"""A step in PyTorch's operations: where it is differentiated, and on devices without a kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _law, _step
from .settings import Settings
from .state import moment_dtype
from .unwrap import Memory


class LawStep:
    """The step of one parameter: checked when it is made, then computed, then written."""

    def __init__(
        self,
        memory: Memory,
        group: Mapping[str, Any],
        name: str,
        settings: Settings,
        grad_scale: float,
        differentiable: bool,
    ) -> None:
        self._memory, self._watched = memory, differentiable
        param, lr = memory.param, group["lr"]
        if not param.is_floating_point():
            raise TypeError(f"{name} has dtype {param.dtype}; accepted are floating-point and complex ones")
        moments = moment_dtype(param.dtype)
        for role, tensor in zip(("the gradient", "exp_avg", "exp_avg_sq"), memory[1:4]):
            wanted_dtype = moments if role != "the gradient" else tensor.dtype
            for what, found, wanted in (
                ("has shape", tuple(tensor.shape), tuple(param.shape)),
                ("is on", tensor.device, param.device),
                ("has dtype", tensor.dtype, wanted_dtype),
            ):
                if found != wanted:
                    raise ValueError(f"{role} of {name} {what} {found}; for the parameter it must be {wanted}")
        for role, tensor in (("the parameter", param), ("exp_avg", memory.exp_avg), ("exp_avg_sq", memory.exp_avg_sq)):
            if tensor.layout is torch.strided and any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride())):
                raise ValueError(f"{role} of {name} has elements that share memory; hand in a copy of it")
        if differentiable:
            base = param._base if param._is_view() else param
            if base is not None and base.is_leaf and base.requires_grad:
                raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
            for key in ("betas", "eps", "weight_decay"):
                values = group[key] if key == "betas" else (group[key],)
                if any(isinstance(value, Tensor) and value.requires_grad for value in values):
                    raise ValueError(f"{key}, for {name}, requires grad; only lr can be differentiated")
        taken = float(memory.step)
        if not (math.isfinite(taken) and taken >= 0 and taken == int(taken)):
            raise ValueError(f"the step count of {name} is {taken}, no whole number of steps")
        self._t = int(taken) + 1

        self._dtype = torch.float64 if param.dtype is torch.float64 else torch.float32
        is_traced = differentiable and isinstance(lr, Tensor)
        hyperparameters = settings.of(group, grad_scale)
        if is_traced:
            hyperparameters = settings.of(group, grad_scale, lr=1.0)
        c: Mapping[str, Any] = _step.coefficients(hyperparameters, self._t, str(self._dtype).removeprefix("torch."))
        self._c = _law.at_learning_rate(c, lr.reshape(()), float(group["weight_decay"])) if is_traced else c
        self._new: tuple[Tensor, ...] = ()

    def compute(self) -> None:
        """Compute what the parameter and its moments become; autograd watches a differentiable group."""
        param, *others = self._memory[:4]
        with torch.set_grad_enabled(self._watched):
            # A clone, for autograd may keep p for its product with a traced lr, and p changes in place later.
            old = (x.to(self._dtype) for x in (param.clone() if self._watched else param, *others))
            self._new = _law.update(torch, self._c, *old)[:3]

    def write(self) -> None:
        """Write it in place, and the step count."""
        memory = self._memory
        with torch.set_grad_enabled(self._watched):
            for tensor, value in zip((memory.param, memory.exp_avg, memory.exp_avg_sq), self._new):
                tensor.copy_(value)
        with torch.no_grad():
            memory.step.fill_(self._t)
