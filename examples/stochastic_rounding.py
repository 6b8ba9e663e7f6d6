"""PyTorch: rounding at random lets bfloat16 weights move by less than they can show, without memory. Needs torch."""

from typing import Any

import torch

from radam.torch import RAdam


def weights_after(optimizer_class: Any, **options: Any) -> torch.Tensor:
    """Go down 300 steps of lr 1e-3 from 1.0, where bfloat16 can show nothing between 0.996 and 1."""
    weights = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = optimizer_class([weights], lr=1e-3, **options)
    for _ in range(300):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    return weights.detach().float()


for name, weights in {
    "torch.optim.RAdam": weights_after(torch.optim.RAdam),
    "radam, nothing asked": weights_after(RAdam),
    "master_weights": weights_after(RAdam, master_weights=True),
    "stochastic_rounding": weights_after(RAdam, stochastic_rounding=True),
}.items():
    print(f"{name:21} mean {weights.mean():.4f}, from {weights.min():.4f} to {weights.max():.4f}")

# Which bits are drawn hangs on the seed, the parameter, its step and the element alone: runs can be repeated.
again = weights_after(RAdam, stochastic_rounding=True)
other = weights_after(RAdam, stochastic_rounding=True, seed=1)
print("\nthe same seed gives the same bits:", torch.equal(again, weights))
print(f"another seed gives others, with the same mean: {other.mean():.4f}")
assert torch.equal(again, weights)
assert not torch.equal(other, weights)
