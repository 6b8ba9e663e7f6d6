"""Which tensors a kernel can reach, and the memory behind those that wrap others."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _step

PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(tensor: Any) -> bool:
    """Whether it is memory and nothing else: not a subclass that means more, nor a stand-in while torch transforms."""
    return type(tensor) in PLAIN and not (
        torch._is_functional_tensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def is_native(tensor: Tensor) -> bool:
    """Whether the core has a kernel for it, as far as its kind and device go; the core looks at the rest."""
    return is_plain(tensor) and has_kernel(tensor.device) and tensor.layout is torch.strided


def has_kernel(device: torch.device) -> bool:
    """Whether the core reaches a device."""
    return device.type == "cpu" or (device.type == "cuda" and not _step.why_cuda_is_off())


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
    sharded = [distributed is not None and isinstance(tensor, distributed.DTensor) for tensor in tensors[:-1]]
    if distributed is None or not any(sharded):
        return tensors
    if not all(sharded):
        kinds = ", ".join(f"{role} is a {type(x).__name__}" for role, x in zip(Memory._fields[:-1], tensors))
        raise RuntimeError(f"{name}: got mixed torch.Tensor and DTensor ({kinds}); all of them must be of one kind")

    def placing(tensor: Any) -> Any:
        return tensor.device_mesh, tensor.placements

    pieces: Any = tensors[:-1]
    wanted = placing(tensors.param)
    shards: dict[str, Tensor] = {}
    with torch.no_grad():
        for role, tensor in zip(Memory._fields, pieces):
            if placing(tensor) != wanted:
                if role != "grad":
                    raise ValueError(f"{role} of {name} is placed {tensor.placements}, the parameter {wanted[1]}")
                tensor = tensor.redistribute(*wanted)
            shard = tensor.to_local()
            shards[role] = shard.wait() if type(shard).__name__ == "AsyncCollectiveTensor" else shard
    return tensors._replace(**shards)


def local_in_graph(param: Tensor, grad: Any, *state: Tensor) -> tuple[Tensor, ...]:
    """Return the local shards of DTensors while torch.compile traces, which has its own way with all else."""
    tensors = (param, grad, *state)
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None or not isinstance(param, distributed.DTensor):
        return tensors
    with torch.no_grad():
        placed = grad.redistribute(param.device_mesh, param.placements)
        return tuple(x.to_local() if isinstance(x, distributed.DTensor) else x for x in (param, placed, *state))


def meshes_of(tensors: Iterable[Tensor]) -> list[Any]:
    """Return the meshes of those that are DTensors, in the order in which they come."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None:
        return []
    return list(dict.fromkeys(x.device_mesh for x in tensors if isinstance(x, distributed.DTensor)))


def agreed(answer: bool, meshes: Iterable[Any]) -> bool:
    """Return whether the answer is yes in every process of the meshes, all of which must ask."""
    for mesh in meshes:
        everywhere = torch.tensor([int(answer)], device=mesh.device_type)
        for group in mesh.get_all_groups():
            torch.distributed.all_reduce(everywhere, torch.distributed.ReduceOp.MIN, group=group)
        answer = bool(everywhere.item())
    return answer


def _bare(tensor: Tensor) -> Tensor:
    """Return a tensor whose subclass only adds attributes and functions as what it is otherwise."""
    if type(tensor) in PLAIN or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)
