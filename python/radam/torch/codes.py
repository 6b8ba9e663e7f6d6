"""8-bit moments as tensors: made from numbers, and made numbers again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _step
from ..precision import MOMENTS, blocks_of, code_key, scale_key
from .unwrap import is_sharded

DTYPES = {"exp_avg": torch.int8, "exp_avg_sq": torch.uint8}
SENT = torch.int32
"""What the lower halves of weights are saved as where they are of DTensors."""


def encoded(like: Tensor, values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the codes, in the memory order of a plain tensor, and the scales of numbers, rounded to nearest.

    Args:
        like: whose memory order cuts the blocks, and whose device gets them.
        values: the numbers, in the same shape.
        dtype: int8 for averages of gradients, uint8 for those of squares.
    """
    with torch.inference_mode(False), torch.no_grad():
        numbers = _dense(like, torch.float32).copy_(values)
        codes = torch.zeros_like(numbers, dtype=dtype)
        scales = torch.zeros(blocks_of(codes.numel()))
        if codes.numel():
            _step.encode_blocks(_flat(numbers), _flat(codes), scales)
        return codes.to(like.device), scales.to(like.device)


def decoded(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the float32 numbers of plain codes, in their memory order and on their device."""
    with torch.inference_mode(False), torch.no_grad():
        here = _dense(codes, codes.dtype).copy_(codes)
        numbers = torch.zeros_like(here, dtype=torch.float32)
        if here.numel():
            _step.decode_blocks(_flat(here), scales.detach().to("cpu").clone(), _flat(numbers))
        return numbers.to(codes.device)


def in_same_order(a: Tensor, b: Tensor) -> bool:
    """Whether the elements of two tensors of one shape follow each other in the same order in memory."""
    if not a.numel():
        return True
    orders = (
        [stride for size, stride in zip(x.shape, x.stride()) if size > 1]
        for x in (_dense(a, torch.int8), _dense(b, torch.int8))
    )
    return next(orders) == next(orders)


def _dense(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return memory on the host for elements in a tensor's order, without gaps."""
    return torch.empty_like(like, dtype=dtype, device="cpu", memory_format=torch.preserve_format, requires_grad=False)


def _flat(dense: Tensor) -> Tensor:
    return dense.as_strided((dense.numel(),), (1,))


def as_sent(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a parameter with all that is of DTensors as other processes can have it.

    Blocks are cut in a process's own piece, so that codes mean nothing where the pieces are other ones: moments become
    float32, under their own names. Neither gloo nor NCCL sends int16: the lower halves of weights become int32.
    """
    coded = [moment for moment in MOMENTS if code_key(moment) in saved and is_sharded(saved[code_key(moment)])]
    is_split = "remainder" in saved and is_sharded(saved["remainder"])
    if not coded and not is_split:
        return saved
    left_out = {key(moment) for moment in coded for key in (code_key, scale_key)}
    out = {key: x for key, x in saved.items() if key not in left_out}
    for moment in coded:
        codes: Any = saved[code_key(moment)]
        out[moment] = like_shard(codes, decoded(codes.to_local(), saved[scale_key(moment)]))
    if is_split:
        out["remainder"] = saved["remainder"].to(SENT)
    return out


def like_shard(whole: Any, local: Tensor) -> Tensor:
    """Return this process's piece as a DTensor that is placed as another one."""
    distributed = torch.distributed.tensor
    made: Tensor = distributed.DTensor.from_local(
        local, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return made
