"""Which tensors a kernel can reach, and the memory behind those that wrap others."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

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


class Memory(NamedTuple):
    """The tensors that a step of one parameter reads and writes."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor


def memory_of(tensors: Memory, name: str) -> Memory:
    """Return the memory that is to be stepped in this process: local shards, bare tensors, complex numbers as pairs."""
    if all(map(is_plain, tensors)) and not tensors.param.is_complex():
        return tensors
    tensors = Memory(*map(_bare, _local(tensors, name)))
    if not tensors.param.is_complex():
        return tensors
    param, grad, exp_avg, exp_avg_sq = map(
        torch.view_as_real, (tensors.param, tensors.grad.resolve_conj(), tensors.exp_avg, tensors.exp_avg_sq)
    )
    return Memory(param, grad, exp_avg, exp_avg_sq, tensors.step)


def _local(tensors: Memory, name: str) -> Memory:
    """Return the local shards of DTensors, the gradient's placed as the parameter's."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None or not isinstance(tensors.param, distributed.DTensor):
        return tensors

    def placing(tensor: Any) -> Any:
        return tensor.device_mesh, tensor.placements

    wanted: Any = placing(tensors.param)
    shards: dict[str, Tensor] = {}
    for role, tensor in zip(Memory._fields, tensors[:-1]):
        if not isinstance(tensor, distributed.DTensor):
            raise ValueError(f"{role} of {name} is a {type(tensor).__name__}, the parameter a DTensor")
        if placing(tensor) != wanted:
            if role != "grad":
                raise ValueError(f"{role} of {name} is placed {tensor.placements}, the parameter {wanted[1]}")
            tensor = tensor.redistribute(*wanted)
        shards[role] = tensor.to_local()
    return tensors._replace(**shards)


def _bare(tensor: Tensor) -> Tensor:
    """Return a tensor whose subclass only adds attributes and functions as what it is otherwise."""
    if type(tensor) in PLAIN or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)
