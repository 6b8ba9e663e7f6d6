"""Short runs of Lucid's front end over one parameter, of both kinds that Lucid has had."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

import radam.lucid
from front_end import Array
from lucid_parameter import OldParameter, Parameter, Tensor

KINDS = {"Lucid 3": Parameter, "Lucid 2": OldParameter}
BETAS = (0.75, 0.9375)


def lucid_itself() -> Any:
    """Return Lucid, or None where it is not installed or does not run."""
    try:
        importlib.import_module("lucid.optim.lr_scheduler")
        importlib.import_module("lucid.nn")
    except ImportError:
        return None
    return importlib.import_module("lucid")


def is_version_3(lucid: Any) -> bool:
    return lucid is not None and hasattr(lucid.Tensor, "__dlpack__")


def give(param: Any, grad: Array | None) -> None:
    param.grad = Tensor(grad) if isinstance(param, Parameter) and grad is not None else grad


def values(param: Any) -> Array:
    return np.array(param.memory if isinstance(param, Parameter) else param.data)


def gradients(count: int, shape: tuple[int, ...] = (7,), seed: int = 5) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), np.float32) for _ in range(count)]


def train(optimizer: Any, param: Any, grads: list[Array]) -> Array:
    for grad in grads:
        give(param, grad)
        optimizer.step()
    return values(param)


def start(kind: str = "Lucid 3", cls: Any = radam.lucid.RAdam, **options: Any) -> tuple[Any, Any]:
    param = KINDS[kind](np.linspace(-1, 1, 7, dtype=np.float32))
    return cls([param], **{"lr": 0.01, "betas": BETAS, **options}), param
