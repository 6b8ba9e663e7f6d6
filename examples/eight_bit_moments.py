"""PyTorch: 8-bit moments take a quarter of the memory and learn as well. Checkpoints go both ways. Needs torch."""

from typing import Any

import torch
from torch.nn import functional

import radam
from radam.torch import RAdam

torch.manual_seed(0)
x = torch.randn(128, 16)
y = functional.normalize(x, dim=1) @ torch.randn(16, 4)


def train(**options: Any) -> tuple[torch.nn.Module, RAdam]:
    torch.manual_seed(1)
    layers = (torch.nn.Linear(16, 256), torch.nn.GELU(), torch.nn.Linear(256, 256), torch.nn.GELU())
    model = torch.nn.Sequential(*layers, torch.nn.Linear(256, 4))
    # By default parameters of fewer than 4096 elements keep float32 moments: here the biases and the last layer.
    optimizer = RAdam(model.parameters(), lr=1e-3, **options)
    go_on(model, optimizer, 200)
    return model, optimizer


def go_on(model: torch.nn.Module, optimizer: RAdam, steps: int) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


for state_dtype in ("float32", "bfloat16", "8bit"):
    model, optimizer = train(state_dtype=state_dtype)
    held = radam.memory(optimizer)
    loss = go_on(model, optimizer, 1)
    print(f"{state_dtype:8}  {held.moments + held.scales:7,} bytes of moments, loss {loss:.5f}")

print(f"\nAll that the 8-bit run takes: {radam.memory(optimizer)}")

# A float32 checkpoint goes on with 8-bit moments: the optimizer that loads it decides. The other way works too.
model, optimizer = train()
smaller = RAdam(model.parameters(), state_dtype="8bit")
smaller.load_state_dict(optimizer.state_dict())
print(f"\nthe float32 run goes on with 8 bits: loss {go_on(model, smaller, 100):.5f}")
print("the first layer's state:", ", ".join(smaller.state[model[0].weight]))
