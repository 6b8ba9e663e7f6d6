"""torch.optim.RAdam at the speed of memory: change one import.

>>> import torch
>>> from radam.torch import RAdam
>>> model = torch.nn.Linear(2, 1)
>>> optimizer = RAdam(model.parameters(), lr=1e-3)
>>> model(torch.ones(1, 2)).sum().backward()
>>> optimizer.step()
"""

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("radam.torch needs PyTorch: pip install torch", name="torch") from error

from .optimizer import RAdam

del torch

__all__ = ["RAdam"]
