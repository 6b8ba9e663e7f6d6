"""PyTorch tensors: the gradients come from .grad, as in torch.optim. Needs torch."""

import torch

import radam

torch.manual_seed(0)
x = torch.linspace(-3, 3, 256).reshape(-1, 1)
y = torch.sin(x)
model = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = radam.RAdam(model.parameters(), lr=0.02)

for step in range(1, 601):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    if step % 200 == 0:
        print(f"step {step}: the mean squared error to a sine is {loss.item():.6f}")
