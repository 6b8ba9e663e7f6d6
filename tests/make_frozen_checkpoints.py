"""Write the checkpoints of radam.torch that every later radam must load: python tests/make_frozen_checkpoints.py

tests/data/torch_NAME.pt, written by torch.save, holds a state dict, the parameters with it, the gradients of the next
step, and the parameters after it. What is there is kept: remove a file by hand to have it made anew, and only as long
as no release has it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from low_precision_ways import WAYS, bits, draw
from radam.torch import RAdam

DATA = Path(__file__).parent / "data"
SHAPES: list[tuple[int, ...]] = [(150,), (13, 11), (2, 3, 4, 5)]
CHECKPOINTS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "plain": (torch.float32, {}),
    "float16_master": (torch.float16, {"master_weights": True}),
    **{name.replace(" ", "_").replace("-", "_"): (torch.bfloat16, way) for name, way in WAYS.items()},
}


def path_of(name: str) -> Path:
    """Return where a checkpoint lies."""
    return DATA / f"torch_{name}.pt"


def optimizer_of(name: str, tensors: list[torch.Tensor]) -> tuple[RAdam, list[nn.Parameter]]:
    """Return the optimizer that made a checkpoint, or is to load it, and its parameters; the last one channels last."""
    params = [nn.Parameter(tensor.clone()) for tensor in tensors]
    params[-1] = nn.Parameter(params[-1].detach().contiguous(memory_format=torch.channels_last))
    return RAdam(params, lr=0.01, weight_decay=0.01, **CHECKPOINTS[name][1]), params


def step(optimizer: RAdam, params: list[nn.Parameter], grads: list[torch.Tensor]) -> list[bytes]:
    """Take a step and return the bits of the parameters after it."""
    for param, grad in zip(params, grads):
        param.grad = grad
    optimizer.step()
    return [bits(param) for param in params]


def make(name: str) -> None:
    """Write one of them."""
    dtype = CHECKPOINTS[name][0]
    optimizer, params = optimizer_of(name, draw(SHAPES, 1, dtype))
    for seed in range(10, 18):
        step(optimizer, params, draw(SHAPES, seed, dtype))
    saved: dict[str, Any] = {"state": copy.deepcopy(optimizer.state_dict())}  # which has the live tensors
    saved["params"] = [param.detach().clone() for param in params]
    saved["grads"] = draw(SHAPES, 99, dtype)
    step(optimizer, params, saved["grads"])
    torch.save({**saved, "after": [param.detach() for param in params]}, path_of(name))


if __name__ == "__main__":
    for each in CHECKPOINTS:
        if not path_of(each).exists():
            make(each)
            print(f"made {each}")
