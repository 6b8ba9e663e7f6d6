"""Gradients clipped within the step, and their norm to log. NumPy, and beside PyTorch's own clipping. Needs torch."""

import numpy as np
import torch

import radam
from radam.torch import RAdam

# A least-squares fit in which one batch is broken: a gradient a thousand times too large.
rng = np.random.default_rng(0)
x = rng.standard_normal((64, 8)).astype(np.float32)
truth = np.arange(8, dtype=np.float32)

for max_grad_norm in (np.inf, 40.0):  # inf only measures
    w = np.zeros(8, np.float32)
    optimizer = radam.RAdam([w], lr=0.1, max_grad_norm=max_grad_norm)
    for step in range(1, 201):
        grad = 2 * x.T @ (x @ w - x @ truth) / len(x)
        if step == 100:
            grad *= 1000
        optimizer.step(grads=[grad])  # the gradient itself is not written
        if step in (1, 99, 100, 200):
            error = np.abs(w - truth).max()
            print(
                f"at most {max_grad_norm:3g}, step {step:3}: norm {optimizer.grad_norm:9.4f}, largest error {error:.4f}"
            )

# The same numbers as PyTorch's two calls, in one.
torch.manual_seed(0)
start, grads = torch.randn(3, 100), torch.randn(3, 100)
ours, theirs = ([torch.nn.Parameter(row.clone()) for row in start] for _ in range(2))
for params in (ours, theirs):
    for parameter, grad in zip(params, grads):
        parameter.grad = grad.clone()
optimizer = RAdam(ours, lr=0.1, max_grad_norm=1.0)
optimizer.step()
norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
torch.optim.RAdam(theirs, lr=0.1).step()
apart = max((a - b).abs().max().item() for a, b in zip(ours, theirs))
print(f"\nnorm {optimizer.grad_norm:.5f} here, {norm:.5f} there; the parameters differ by at most {apart:.1g}")
