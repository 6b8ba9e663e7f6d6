"""MindSpore's front end in the shared table."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, Tensor
from mindspore.experimental import optim
from mindspore.experimental.optim import lr_scheduler

import radam.mindspore
from front_end import Array, FrontEnd, Refusal, Settings, Whose

CLASSES = {"ours": radam.mindspore.RAdam, "theirs": optim.RAdam}


class MindSporeTrainer:
    def __init__(
        self,
        whose: Whose,
        params: Sequence[Array],
        groups: Sequence[tuple[Sequence[int], Settings]],
        scheduler: Callable[[Any], Any] | None = None,
    ) -> None:
        self._params = [Parameter(Tensor(param), name=f"p{i}") for i, param in enumerate(params)]
        self.optimizer = CLASSES[whose](
            [
                {
                    "params": [self._params[i] for i in indices],
                    "lr": s.lr,
                    "betas": s.betas,
                    "eps": s.eps,
                    "weight_decay": s.weight_decay,
                }
                for indices, s in groups
            ]
        )
        self._scheduler = scheduler(self.optimizer) if scheduler is not None else None

    def step(self, grads: Sequence[Array | None]) -> None:
        self.optimizer(tuple(Tensor(grad) for grad in grads))
        if isinstance(self._scheduler, lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step(1.0)
        elif self._scheduler is not None:
            self._scheduler.step()

    def params(self) -> list[Array]:
        return [param.asnumpy().copy() for param in self._params]

    def save(self) -> Any:
        """Go through a file, as MindSpore's users do."""
        with TemporaryDirectory() as folder:
            path = str(Path(folder) / "optimizer.ckpt")
            mindspore.save_checkpoint(self.optimizer, path)
            return mindspore.load_checkpoint(path)

    def load(self, saved: Any) -> None:
        missing, unknown = mindspore.load_param_into_net(self.optimizer, saved)
        assert not missing
        assert not unknown


def scheduled(scheduler: Callable[[Any], Any]) -> Callable[..., MindSporeTrainer]:
    return lambda whose, params, s: MindSporeTrainer(whose, params, [(range(len(params)), s)], scheduler)


def one(name: str = "w", dtype: Any = mindspore.float32) -> Parameter:
    return Parameter(Tensor(np.ones(3), dtype), name=name)


def ones(shape: tuple[int, ...] = (3,), dtype: Any = mindspore.float32) -> Tensor:
    return Tensor(np.ones(shape), dtype)


def refused(params: Any = None, **keywords: Any) -> Callable[[Whose], Any]:
    return lambda whose: CLASSES[whose]([one()] if params is None else params(), **keywords)


def refused_step(*gradients: Any) -> Callable[[Whose], Any]:
    """Gradients come as functions that make them."""
    return lambda whose: CLASSES[whose]([one()])(tuple(make() for make in gradients))


def beside(act: Callable[[Whose], Any]) -> Callable[[Whose], Any]:
    """Do it in another folder: what MindSpore cannot compile it describes in files of the present one."""

    def moved(whose: Whose) -> Any:
        before = Path.cwd()
        with TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                return act(whose)
            finally:
                os.chdir(before)

    return moved


def twice_in_a_group() -> list[Any]:
    return [one()] * 2


def twice() -> list[Any]:
    param = one()
    return [{"params": [param]}, {"params": [param]}]


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 7, 0.5),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, 30),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.95),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 40, 2.0),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.97**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.98),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [10, 30], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.25, 20),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 10), lr_scheduler.ExponentialLR(o, 0.95)], [10]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.002, 0.03, 8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 12, 2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 25, 0.001),
}

REFUSALS = [
    Refusal("no params", lambda whose: CLASSES[whose](None), ValueError, "can not be None"),
    Refusal("empty params", refused(list), ValueError, "must not be empty"),
    Refusal("params of no kind", refused(lambda: 3), TypeError, "must be Iterable"),
    Refusal("a Tensor among params", refused(lambda: [ones()]), TypeError, "one of the params is a .*Tensor"),
    Refusal("a set of params", refused(lambda: [{"params": {one()}}]), TypeError, "ordered collections"),
    Refusal("a param among groups", refused(lambda: [{"params": [one()]}, one("b")]), TypeError, "must be a dict"),
    Refusal("a group without params", refused(lambda: [{"lr": 1.0}]), KeyError, "params"),
    Refusal("a param in two groups", refused(twice), ValueError, "more than one parameter group"),
    Refusal("a param twice in a group", refused(twice_in_a_group), ValueError, "'exp_avg.w' already exists"),
    Refusal("a name twice", refused(lambda: [one(), one()]), ValueError, "'w' already exists"),
    Refusal("an lr of 0", refused(lr=0.0), ValueError, "lr must be greater than 0"),
    Refusal("a negative lr", refused(lr=-1.0), ValueError, "lr must be greater than 0"),
    Refusal("a negative lr in a Tensor", refused(lr=Tensor(-1.0)), ValueError, "lr must be greater than 0"),
    Refusal("an lr that is a NaN", refused(lr=float("nan")), ValueError, "learning rate"),
    Refusal("an infinite lr", refused(lr=float("inf")), ValueError, "learning rate"),
    Refusal("an lr of text", refused(lr="0.1"), TypeError, "'lr' must be int, float or Tensor"),
    Refusal("an lr of None", refused(lr=None), TypeError, "'lr' must be int, float or Tensor"),
    Refusal("an lr of a NumPy float32", refused(lr=np.float32(0.1)), TypeError, "'lr' must be int, float or Tensor"),
    Refusal("an lr of shape (1,)", refused(lr=Tensor([0.1])), ValueError, "scalar Tensor"),
    Refusal("an lr of two numbers", refused(lr=Tensor([0.1, 0.1])), ValueError, "scalar Tensor"),
    Refusal("a group's negative lr", refused(lambda: [{"params": [one()], "lr": -1.0}]), ValueError, "rate"),
    Refusal("a beta1 of 1", refused(betas=(1.0, 0.9)), ValueError, r"betas\[0\]"),
    Refusal("a beta2 of 1", refused(betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
    Refusal("a negative beta1", refused(betas=(-0.1, 0.9)), ValueError, r"betas\[0\]"),
    Refusal("a beta1 that is no float", refused(betas=(0, 0.9)), TypeError, r"betas\[0\]"),
    Refusal("one beta", refused(betas=(0.9,)), IndexError, "two floats"),
    Refusal("three betas", refused(betas=(0.9, 0.9, 0.9)), ValueError, "two floats", theirs=False),
    Refusal("a beta that is a NaN", refused(betas=(float("nan"), 0.9)), ValueError, r"betas\[0\]", theirs=False),
    Refusal(
        "a group's beta2 of 1",
        refused(lambda: [{"params": [one()], "betas": (0.9, 1.0)}]),
        ValueError,
        r"group 0: betas\[1\]",
        theirs=False,
    ),
    Refusal("an eps of 0", refused(eps=0.0), ValueError, "eps must be greater than 0"),
    Refusal("a negative eps", refused(eps=-1.0), ValueError, "eps must be greater than 0"),
    Refusal("an eps of None", refused(eps=None), TypeError, "'eps' must be"),
    Refusal("an eps that is a NaN", refused(eps=float("nan")), ValueError, "eps", theirs=False),
    Refusal("a negative weight decay", refused(weight_decay=-1.0), ValueError, "weight_decay must be"),
    Refusal("a weight decay that is a NaN", refused(weight_decay=float("nan")), ValueError, "weight_decay"),
    Refusal("a weight decay that is a Tensor", refused(weight_decay=Tensor(0.1)), TypeError, "(?i)weight_decay"),
    Refusal("no gradients", lambda whose: CLASSES[whose]([one()])(None), TypeError, "tuple of Tensors, got NoneType"),
    Refusal("too few gradients", refused_step(), RuntimeError, "0 gradients were given for 1"),
    Refusal("too many gradients", refused_step(ones, ones), RuntimeError, "2 gradients", theirs=False),
    Refusal("a gradient that is missing", refused_step(lambda: None), TypeError, "'w'.*NoneType", theirs=False),
    Refusal("a NumPy gradient", refused_step(lambda: np.ones(3)), TypeError, "'w'.*ndarray", theirs=False),
    Refusal(
        "a Tensor for gradients",
        lambda whose: CLASSES[whose]([one()])(ones()),
        TypeError,
        "tuple of Tensors",
        theirs=False,
    ),
    Refusal("a gradient of another shape", refused_step(lambda: ones((4,))), ValueError, "'w'.*shape"),
    Refusal("a gradient with another rank", refused_step(lambda: ones((1, 3))), ValueError, "'w'.*shape"),
    Refusal("a gradient to be broadcast", refused_step(lambda: ones((1,))), ValueError, "'w'.*shape", theirs=False),
    Refusal("a float64 gradient", refused_step(lambda: ones(dtype=mindspore.float64)), TypeError, "'w'.*float64"),
    Refusal("a complex gradient", refused_step(lambda: ones(dtype=mindspore.complex64)), TypeError, "'w'.*complex"),
    Refusal("an integer gradient", refused_step(lambda: ones(dtype=mindspore.int32)), TypeError, "int32", theirs=False),
    Refusal(
        "a parameter of integers",
        lambda whose: CLASSES[whose]([one(dtype=mindspore.int32)])((ones(),)),
        TypeError,
        "(?i)int32",
    ),
]

FRONT_END = FrontEnd(
    "mindspore",
    "mindspore",
    MindSporeTrainer,
    group_settings=frozenset({"lr", "beta1", "beta2", "eps", "weight_decay"}),
    skips=False,
    schedulers={name: scheduled(make) for name, make in SCHEDULERS.items()},
    refusals=[dataclasses.replace(refusal, act=beside(refusal.act)) for refusal in REFUSALS],
)
