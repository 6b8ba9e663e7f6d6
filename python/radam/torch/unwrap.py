"""Which tensors a kernel can reach, and the memory behind those that wrap others."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

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
    """The tensors that a step of one parameter reads and writes; None for what this one is stored without."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    master: Tensor | None = None
    exp_avg_scale: Tensor | None = None
    exp_avg_sq_scale: Tensor | None = None

    def present(self) -> list[Tensor]:
        """Return those that are there."""
        return [tensor for tensor in self if tensor is not None]


LIKE_PARAM = ("param", "grad", "exp_avg", "exp_avg_sq", "master")
"""What has the parameter's shape, and is placed as it is."""


def memory_of(tensors: Memory, name: str) -> Memory:
    """Return the memory that is to be stepped in this process: local shards, bare tensors, complex numbers as pairs."""
    if all(map(is_plain, tensors.present())) and not tensors.param.is_complex():
        return tensors
    bare: list[Any] = [None if tensor is None else _bare(tensor) for tensor in _local(tensors, name)]
    tensors = Memory(*bare)
    if not tensors.param.is_complex():
        return tensors
    tensors = tensors._replace(grad=tensors.grad.resolve_conj())
    pairs = {role: torch.view_as_real(x) for role in LIKE_PARAM if (x := getattr(tensors, role)) is not None}
    return tensors._replace(**pairs)


def _local(tensors: Memory, name: str) -> Memory:
    """Return the local shards of DTensors, the gradient's placed as the parameter's."""
    distributed = sys.modules.get("torch.distributed.tensor")
    pieces: dict[str, Any] = {role: x for role in LIKE_PARAM if (x := getattr(tensors, role)) is not None}
    sharded = [distributed is not None and isinstance(tensor, distributed.DTensor) for tensor in pieces.values()]
    if distributed is None or not any(sharded):
        return tensors
    if not all(sharded):
        kinds = ", ".join(f"{role} is a {type(x).__name__}" for role, x in pieces.items())
        raise RuntimeError(f"{name}: got mixed torch.Tensor and DTensor ({kinds}); all of them must be of one kind")

    def placing(tensor: Any) -> Any:
        return tensor.device_mesh, tensor.placements

    wanted = placing(tensors.param)
    shards: dict[str, Tensor] = {}
    with torch.no_grad():
        for role, tensor in pieces.items():
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


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(tensor, distributed.DTensor)


Shard = tuple[tuple[int, ...], tuple[int, ...]]
"""The shape of a whole parameter, and where in it this process has its piece."""


def shard_of(param: Tensor) -> Shard | None:
    """Return where the memory of a DTensor stands in the whole; None for any other tensor.

    None also where the pieces are interleaved, so that no place says it.
    """
    if not is_sharded(param):
        return None
    found = _place(tuple(param.shape), param.device_mesh, param.placements)  # type: ignore[attr-defined]
    return found if found is None or not param.is_complex() else ((*found[0], 2), (*found[1], 0))


@functools.lru_cache(maxsize=4096)
def _place(shape: tuple[int, ...], mesh: Any, placements: Any) -> Shard | None:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    with _disable_current_modes():
        local, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    if len(offsets) != len(shape) or 0 in local:
        return None  # nothing of it is here
    if any(offset + here > whole for offset, here, whole in zip(offsets, local, shape)):
        return None
    return shape, tuple(int(offset) for offset in offsets)


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
