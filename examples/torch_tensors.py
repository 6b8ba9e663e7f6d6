"""PyTorch: radam.torch.RAdam stands where torch.optim.RAdam stood, with its schedulers and checkpoints. Needs torch."""

import io

import torch

from radam.torch import RAdam

torch.manual_seed(0)
x = torch.linspace(-3, 3, 256).reshape(-1, 1)
y = torch.sin(x)
model = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = RAdam(model.parameters(), lr=0.02)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=600)

for step in range(1, 601):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 200 == 0:
        print(f"step {step}: the mean squared error to a sine is {loss.item():.6f}")

# A checkpoint of either class loads into the other.
checkpoint = io.BytesIO()
torch.save(optimizer.state_dict(), checkpoint)
checkpoint.seek(0)
theirs = torch.optim.RAdam(model.parameters())
theirs.load_state_dict(torch.load(checkpoint, weights_only=True))
print(f"torch.optim.RAdam goes on from step {int(theirs.state[model[0].weight]['step'])}")
