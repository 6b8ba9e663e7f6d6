"""Paddle's front end in the shared table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import paddle
from paddle.base.unique_name import UniqueNameGenerator
from paddle.optimizer import lr
from paddle.utils import unique_name

import radam.paddle
from front_end import Array, FrontEnd, Refusal, Settings, Whose

CLASSES: dict[str, Any] = {"ours": radam.paddle.RAdam, "theirs": paddle.optimizer.RAdam}


class PaddleTrainer:
    """Parameters and accumulators have the names that a program of their own would give them."""

    def __init__(
        self,
        whose: Whose,
        params: Sequence[Array],
        groups: Sequence[tuple[Sequence[int], Settings]],
        scheduler: Callable[[float], Any] | None = None,
    ) -> None:
        self._names = UniqueNameGenerator()
        with unique_name.guard(self._names):
            self._params = [self._param(param) for param in params]
            first = groups[0][1]
            self._scheduler = None if scheduler is None else scheduler(first.lr)
            rate = first.lr if self._scheduler is None else self._scheduler
            kind, common = CLASSES[whose], {"beta1": first.beta1, "beta2": first.beta2, "epsilon": first.eps}
            if len(groups) == 1:
                decay = first.weight_decay or None
                self.optimizer = kind(rate, parameters=self._params, weight_decay=decay, **common)
            else:
                self.optimizer = kind(rate, parameters=[self._group(*g, first) for g in groups], **common)

    @staticmethod
    def _param(value: Array) -> Any:
        made = paddle.create_parameter(list(value.shape), "float32")
        made.set_value(value)
        return made

    def _group(self, indices: Sequence[int], s: Settings, first: Settings) -> dict[str, Any]:
        return {
            "params": [self._params[i] for i in indices],
            "learning_rate": s.lr / first.lr,
            "beta1": s.beta1,
            "beta2": s.beta2,
            "epsilon": s.eps,
            "weight_decay": s.weight_decay,
        }

    def step(self, grads: Sequence[Array | None]) -> None:
        for param, grad in zip(self._params, grads, strict=True):
            param.clear_gradient(False)
            if grad is not None:
                param.grad = paddle.to_tensor(grad)
        with unique_name.guard(self._names):
            self.optimizer.step()
        if self._scheduler is not None:
            if isinstance(self._scheduler, lr.ReduceOnPlateau):
                self._scheduler.step(1.0)
            else:
                self._scheduler.step()

    def params(self) -> list[Array]:
        return [param.numpy().copy() for param in self._params]

    def save(self) -> Any:
        return {
            key: {name: one.clone() for name, one in value.items()}
            if key == "master_weights"
            else value.clone()
            if isinstance(value, paddle.Tensor)
            else dict(value)
            for key, value in self.optimizer.state_dict().items()
        }

    def load(self, saved: Any) -> None:
        with unique_name.guard(self._names):
            self.optimizer.set_state_dict(saved)


def scheduled(scheduler: Callable[[float], Any]) -> Callable[..., PaddleTrainer]:
    return lambda whose, params, s: PaddleTrainer(whose, params, [(range(len(params)), s)], scheduler)


def refused(rate: Any = 0.1, **keywords: Any) -> Callable[[Whose], Any]:
    return lambda whose: CLASSES[whose](rate, **{"parameters": [paddle.create_parameter([2], "float32")], **keywords})


def stepped(grad: Callable[[], Any], **keywords: Any) -> Callable[[Whose], Any]:
    """Step with a gradient."""

    def act(whose: Whose) -> None:
        param = paddle.create_parameter([2], "float32")
        optimizer = CLASSES[whose](0.1, parameters=[param], **keywords)
        param.grad = grad()
        optimizer.step()

    return act


def loaded(change: Callable[[dict[str, Any], str], Any], rate: Callable[[], Any] = lambda: 0.1) -> Callable[..., Any]:
    """Load the optimizer's own state, changed."""

    def act(whose: Whose) -> None:
        param = paddle.create_parameter([2], "float32")
        optimizer = CLASSES[whose](rate(), parameters=[param])
        param.grad = paddle.ones([2])
        optimizer.step()
        found = dict(optimizer.state_dict())
        change(found, param.name)
        optimizer.set_state_dict(found)

    return act


def set_item(kind: str, value: Callable[[], Any]) -> Callable[[dict[str, Any], str], Any]:
    return lambda found, name: found.update({f"{name}_{kind}_0": value()})


def with_optimizer(act: Callable[[Any], Any], rate: Callable[[], Any] = lambda: 0.1) -> Callable[[Whose], Any]:
    return lambda whose: act(CLASSES[whose](rate(), parameters=[paddle.create_parameter([2], "float32")]))


def one_param() -> Any:
    return paddle.create_parameter([2], "float32")


def twice_in_groups(whose: Whose) -> Any:
    param = one_param()
    return CLASSES[whose](0.1, parameters=[{"params": [param]}, {"params": [param]}])


FRONT_END = FrontEnd(
    "paddle",
    "paddle",
    PaddleTrainer,
    most_beta2=0.99999,
    group_settings=frozenset({"lr", "beta1", "beta2", "eps", "weight_decay"}),
    schedulers={
        "CosineAnnealingDecay": scheduled(lambda r: lr.CosineAnnealingDecay(r, 20)),
        "CosineAnnealingWarmRestarts": scheduled(lambda r: lr.CosineAnnealingWarmRestarts(r, 7)),
        "CyclicLR": scheduled(lambda r: lr.CyclicLR(r / 4, r, 10)),
        "ExponentialDecay": scheduled(lambda r: lr.ExponentialDecay(r, 0.95)),
        "InverseTimeDecay": scheduled(lambda r: lr.InverseTimeDecay(r, 0.1)),
        "LambdaDecay": scheduled(lambda r: lr.LambdaDecay(r, lambda epoch: 0.97**epoch)),
        "LinearLR": scheduled(lambda r: lr.LinearLR(r, 40)),
        "LinearWarmup": scheduled(lambda r: lr.LinearWarmup(r, 30, 0.0, r)),
        "MultiStepDecay": scheduled(lambda r: lr.MultiStepDecay(r, [10, 30])),
        "MultiplicativeDecay": scheduled(lambda r: lr.MultiplicativeDecay(r, lambda epoch: 0.97)),
        "NaturalExpDecay": scheduled(lambda r: lr.NaturalExpDecay(r, 0.05)),
        "NoamDecay": scheduled(lambda r: lr.NoamDecay(64, 20, r * 5)),
        "OneCycleLR": scheduled(lambda r: lr.OneCycleLR(r, 60)),
        "PiecewiseDecay": scheduled(lambda r: lr.PiecewiseDecay([20, 40], [r, r / 2, r / 4])),
        "PolynomialDecay": scheduled(lambda r: lr.PolynomialDecay(r, 50)),
        "ReduceOnPlateau": scheduled(lambda r: lr.ReduceOnPlateau(r, patience=3)),
        "StepDecay": scheduled(lambda r: lr.StepDecay(r, 7, 0.5)),
    },
    refusals=[
        Refusal("a negative lr", refused(-1.0), ValueError, "learning rate"),
        Refusal("an lr that is NaN", refused(float("nan")), ValueError, "learning rate"),
        Refusal("an lr that is no float", refused(1), TypeError, "float or LRScheduler"),
        Refusal("an lr that is text", refused("fast"), TypeError, "float or LRScheduler"),
        Refusal("a beta1 of 1", refused(beta1=1.0), ValueError, "beta1"),
        Refusal("a negative beta2", refused(beta2=-0.1), ValueError, "beta2"),
        Refusal("a beta that is text", refused(beta1="0.9"), TypeError, "'str'"),
        Refusal("a negative epsilon", refused(epsilon=-1e-8), ValueError, "epsilon"),
        Refusal("no parameters", refused(parameters=None), AttributeError, "parameters"),
        Refusal("a bare parameter", lambda w: CLASSES[w](0.1, parameters=one_param()), TypeError, "iterable"),
        Refusal("a dict of parameters", refused(parameters={"params": []}), TypeError, "list of dict"),
        Refusal("parameters that are none", refused(parameters=[1, 2]), AttributeError, "dtype"),
        Refusal("a group without params", refused(parameters=[{"lr": 1.0}]), AssertionError, "params"),
        Refusal(
            "a group that is a set", lambda w: refused(parameters=[{"params": {one_param()}}])(w), TypeError, "set"
        ),
        Refusal("a parameter in two groups", twice_in_groups, ValueError, "more than one parameter group"),
        Refusal(
            "a parameter that comes twice",
            lambda w: CLASSES[w](0.1, parameters=[one_param()] * 2),
            ValueError,
            "twice",
            theirs=False,
        ),
        Refusal(
            "a beta of 1 in a group",
            lambda w: CLASSES[w](0.1, parameters=[{"params": [one_param()], "beta1": 1.0}]),
            ValueError,
            "beta1",
            theirs=False,
        ),
        Refusal("a clip that is a number", refused(grad_clip=1.0), TypeError, "GradientClipBase"),
        Refusal("a gradient of another dtype", stepped(lambda: paddle.ones([2], "float64")), ValueError, "float64"),
        Refusal("a gradient of integers", stepped(lambda: paddle.ones([2], "int32")), ValueError, "int32"),
        Refusal(
            "a gradient of another shape", stepped(lambda: paddle.ones([3])), ValueError, "has shape", theirs=False
        ),
        Refusal(
            "a decay that is text", stepped(lambda: paddle.ones([2]), weight_decay="much"), TypeError, "not callable"
        ),
        Refusal("a loss that is none", with_optimizer(lambda o: o.minimize(1.0)), AssertionError, "loss"),
        Refusal("an lr to set that is text", with_optimizer(lambda o: o.set_lr("slow")), TypeError, "set_lr"),
        Refusal(
            "an lr to set beside a scheduler",
            with_optimizer(lambda o: o.set_lr(0.2), lambda: lr.StepDecay(0.1, 2)),
            RuntimeError,
            "can't be LRScheduler",
        ),
        Refusal(
            "a scheduler that is none", with_optimizer(lambda o: o.set_lr_scheduler(0.1)), TypeError, "LRScheduler"
        ),
        Refusal("a state that is none", with_optimizer(lambda o: o.set_state_dict(None)), AttributeError, "dict"),
        Refusal(
            "a state without its scheduler",
            loaded(lambda found, name: found.pop("LR_Scheduler"), lambda: lr.StepDecay(0.1, 2)),
            AssertionError,
            "LR_Scheduler",
        ),
        Refusal(
            "a state of another scheduler",
            loaded(lambda found, name: found.update(LR_Scheduler={"epoch": 1}), lambda: lr.StepDecay(0.1, 2)),
            RuntimeError,
            "last_epoch",
        ),
        Refusal(
            "a state without a moment",
            loaded(lambda found, name: found.pop(f"{name}_moment1_0")),
            AssertionError,
            "moment1_0 not found",
        ),
        Refusal(
            "a state without a power",
            loaded(lambda found, name: found.pop(f"{name}_rho_0")),
            AssertionError,
            "rho_0 not found",
        ),
        Refusal("an empty state", loaded(lambda found, name: found.clear()), AssertionError, "not found"),
        Refusal(
            "a state of another shape",
            loaded(set_item("moment1", lambda: paddle.zeros([3]))),
            AssertionError,
            r"shape",
        ),
        Refusal(
            "a state of another dtype",
            loaded(set_item("moment2", lambda: paddle.zeros([2], "float64"))),
            AssertionError,
            "dtype",
        ),
        Refusal("a state of text", loaded(set_item("moment1", lambda: "x")), AssertionError, "moment1"),
        Refusal(
            "a power above 1",
            loaded(set_item("beta1_pow", lambda: paddle.full([2], 2.0))),
            ValueError,
            "beta1_pow",
            theirs=False,
        ),
    ],
)
