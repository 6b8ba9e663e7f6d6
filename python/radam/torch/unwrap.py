"""Which tensors a kernel can reach, and the memory behind those that wrap others."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(tensor: Any) -> bool:
    """Whether it is memory and nothing else: not a subclass that means more, nor a stand-in while torch transforms."""
    return type(tensor) in PLAIN and not (
        torch._is_functional_tensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def is_native(tensor: Tensor) -> bool:
    """Whether the core has a kernel for it, as far as its kind and device go; the core looks at the rest."""
    return is_plain(tensor) and tensor.device.type == "cpu" and tensor.layout is torch.strided


def memory_of(index: int, group: int, param: Tensor, grad: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """Return what a step reads and writes in this process: local shards, bare tensors, complex numbers as pairs."""
    tensors = (param, grad, *state)
    if all(map(is_plain, tensors)) and not param.is_complex():
        return tensors
    with torch.no_grad() if not torch.is_grad_enabled() else torch.enable_grad():
        *tensors, step = (_bare(tensor) for tensor in _local(index, group, *tensors))
        if param.is_complex():
            tensors = [torch.view_as_real(tensor.resolve_conj()) for tensor in tensors]
    return (*tensors, step)


def _local(index: int, group: int, param: Tensor, grad: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """Return the local shards of DTensors, the gradient's placed as the parameter's."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None or not isinstance(param, distributed.DTensor):
        return (param, grad, *state)
    *moments, step = state
    for name, tensor in zip(("gradient", "exp_avg", "exp_avg_sq"), (grad, *moments)):
        if not isinstance(tensor, distributed.DTensor):
            raise ValueError(
                f"the {name} of parameter {index} of group {group} is a {type(tensor).__name__}, the parameter a "
                "DTensor"
            )
    if (grad.device_mesh, grad.placements) != (param.device_mesh, param.placements):
        grad = grad.redistribute(param.device_mesh, param.placements)
    for name, moment in zip(("exp_avg", "exp_avg_sq"), moments):
        if (moment.device_mesh, moment.placements) != (param.device_mesh, param.placements):
            raise ValueError(
                f"{name} of parameter {index} of group {group} is placed {moment.placements}, the parameter "
                f"{param.placements}"
            )
    return (*(tensor.to_local() for tensor in (param, grad, *moments)), step)


def _bare(tensor: Tensor) -> Tensor:
    """Return a tensor whose subclass only adds attributes and functions as what it is otherwise."""
    if type(tensor) in PLAIN or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)
