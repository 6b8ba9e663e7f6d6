"""Ways to keep weights and moments in fewer bits, and parameters to try them on, for the tests of radam.torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

WAYS: dict[str, dict[str, Any]] = {
    "master": {"master_weights": True},
    "stochastic": {"stochastic_rounding": True, "seed": 5},
    "bf16 moments": {"state_dtype": "bfloat16"},
    "8-bit moments": {"state_dtype": "8bit", "min_8bit_size": 1},
    "master and 8 bits": {"master_weights": True, "state_dtype": "8bit", "min_8bit_size": 1},
    "stochastic and 8 bits": {"stochastic_rounding": True, "state_dtype": "8bit", "min_8bit_size": 1},
    "stochastic and bf16 moments": {"stochastic_rounding": True, "state_dtype": "bfloat16"},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
SHAPES = [(300, 5), (), (7,), (0, 3), (2, 3, 4, 5)]


def draw(shapes: list[tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def params(dtype: torch.dtype, seed: int = 1) -> list[nn.Parameter]:
    made = [nn.Parameter(tensor) for tensor in draw(SHAPES, seed, dtype)]
    made[-1] = nn.Parameter(made[-1].detach().contiguous(memory_format=torch.channels_last))
    return made


def take_steps(optimizer: torch.optim.Optimizer, steps: Iterable[int], dtype: torch.dtype | None = None) -> None:
    mine = [param for group in optimizer.param_groups for param in group["params"]]
    for t in steps:
        for param, grad in zip(mine, draw([tuple(param.shape) for param in mine], 100 + t, torch.bfloat16)):
            param.grad = grad.to(dtype or param.dtype)
        optimizer.step()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def everything(optimizer: torch.optim.Optimizer) -> list[Any]:
    found: list[Any] = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            entry = optimizer.state.get(param, {})
            found.append((bits(param), {key: bits(entry[key]) for key in sorted(entry)}))
    return found
