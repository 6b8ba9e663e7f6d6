"""torch.optim.RAdam at the speed of memory: change one import.

>>> import torch
>>> from radam.torch import RAdam
>>> model = torch.nn.Linear(2, 1)
>>> optimizer = RAdam(model.parameters(), lr=1e-3)
>>> model(torch.ones(1, 2)).sum().backward()
>>> optimizer.step()
"""

from .optimizer import RAdam

__all__ = ["RAdam"]
