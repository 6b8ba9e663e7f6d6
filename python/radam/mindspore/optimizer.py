"""RAdam over MindSpore's parameters on the CPU, in the place of mindspore.experimental.optim.RAdam."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor
from mindspore import _checkparam as checks
from mindspore import dtype as dtypes
from mindspore.experimental.optim import Optimizer
from mindspore.experimental.optim.optimizer import check_not_less_than, check_not_less_than_without_equal

from .. import _step
from ..conventions import CONVENTIONS
from .compiled import is_captured
from .memory import DTYPES, KeptViews, NotOnCpu, count_of, memories_of

_CONVENTION = CONVENTIONS["mindspore"]
_MOST_STEPS = 2**31 - 1  # step_t is an int32


class RAdam(Optimizer):  # type: ignore[misc]
    """RAdam over MindSpore parameters on the CPU, called with the gradients: ``optimizer(grads)``.

    Takes the place of ``mindspore.experimental.optim.RAdam``: the same arguments, groups, errors, learning rate
    schedulers and checkpoints. A step is one native call that updates the parameters where they are.

    Args:
        params: Parameters of dtype float32, float64, float16 or bfloat16, with distinct names, or dicts with "params"
            and any of "lr", "betas", "eps" and "weight_decay". Parameters of 16 bits have float32 moments.
        lr: the learning rate, a number or a Tensor of shape (), above 0. It is kept as a float32 Parameter, one for
            each group, which the classes of ``mindspore.experimental.optim.lr_scheduler`` assign.
        betas: the decay rates of m and v, floats of at least 0 and below 1.
        eps: added to the root of v, above 0.
        weight_decay: the L2 penalty: weight_decay * p is added to the gradient.

    Attributes:
        parameters: all parameters, a ParameterTuple; hand it to ``mindspore.value_and_grad``.
        exp_avg, exp_avg_sq: the moments, ParameterTuples with names such as "exp_avg.weight".
        step_t: how many steps were taken, an int32 Parameter. Together they are what a checkpoint of the optimizer
            holds, and of MindSpore's own.

    Raises:
        TypeError: if params holds anything but Parameters or dicts, or an argument is of a type it cannot be.
        ValueError: if there are no parameters, one comes twice, two have the same name, or a number is out of range.
        RuntimeError: if MindSpore, or a parameter, is not on the CPU.

    >>> import mindspore, numpy as np
    >>> from radam.mindspore import RAdam
    >>> w = mindspore.Parameter(mindspore.Tensor(np.array([1.0, -2.0], np.float32)), name="w")
    >>> optimizer = RAdam([w], lr=0.1)
    >>> square = mindspore.value_and_grad(lambda: (w**2).sum(), None, optimizer.parameters)
    >>> for _ in range(100):
    ...     loss, grads = square()
    ...     done = optimizer(grads)
    >>> bool(abs(w.asnumpy()).max() < 0.1)
    True

    Source: Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond", https://arxiv.org/abs/1908.03265;
    the reading of it: mindspore.experimental.optim.RAdam of MindSpore 2.10.
    """

    parameters: Any
    param_groups: list[dict[str, Any]]
    lrs: list[Parameter]
    group_start_id: list[int]

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        target = mindspore.get_context("device_target")
        if target != "CPU":
            raise RuntimeError(
                f"radam.mindspore.RAdam steps on the CPU, but MindSpore's device target is {target}: "
                "call mindspore.set_device('CPU') first, or use mindspore.experimental.optim.RAdam"
            )
        _check_arguments(lr, betas, eps, weight_decay)
        check_not_less_than_without_equal(lr, "lr", self.cls_name)
        check_not_less_than(weight_decay, "weight_decay", self.cls_name)
        check_not_less_than_without_equal(eps, "eps", self.cls_name)
        checks.check_float_range(betas[0], 0.0, 1.0, checks.INC_LEFT, "betas[0]", self.cls_name)
        checks.check_float_range(betas[1], 0.0, 1.0, checks.INC_LEFT, "betas[1]", self.cls_name)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._turn = _step.Turn()
        self._kept = KeptViews(), KeptViews()
        self._names = [_names(group["params"]) for group in self.param_groups]
        self.step_t = Parameter(Tensor(0, dtypes.int32), "step_t")
        self.exp_avg = _moments("exp_avg", self.parameters)
        self.exp_avg_sq = _moments("exp_avg_sq", self.parameters)
        for number, group in enumerate(self.param_groups):
            _warn_if_never_rectified(number, group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters: a dict with "params" and any hyperparameters of its own.

        Raises:
            TypeError, ValueError: if something in it cannot be stepped; the optimizer is unchanged.
            RuntimeError: if a step is under way, or was taken. There is one step count for all parameters, as in
                MindSpore's own, so that new ones would be taken for as old as the rest: make another optimizer for
                them.
        """
        is_built = hasattr(self, "step_t")
        with self._turn if is_built else contextlib.nullcontext():
            if is_built and self.step_t.item():
                raise RuntimeError(
                    "a group can be added before the first step only: all parameters share one step count (step_t); "
                    "make another optimizer for the new ones"
                )
            group = _checked(param_group)
            before = self._lists()
            try:
                super().add_param_group(group)
                number = len(self.param_groups) - 1
                _hyperparameters(number, group)
                if is_built:
                    self.parameters = ParameterTuple(self.parameters)
                    self.exp_avg = ParameterTuple((*self.exp_avg, *_moments("exp_avg", group["params"])))
                    self.exp_avg_sq = ParameterTuple((*self.exp_avg_sq, *_moments("exp_avg_sq", group["params"])))
                    self._names.append(_names(group["params"]))
                    _warn_if_never_rectified(number, group)
            except BaseException:
                for name, value in before.items():
                    setattr(self, name, value)
                raise

    def _lists(self) -> dict[str, Any]:
        """Return copies of what a new group adds to."""
        names = ("parameters", "param_groups", "lrs", "group_start_id", "exp_avg", "exp_avg_sq", "_names")
        found = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return {name: list(value) if type(value) is list else value for name, value in found.items()}

    def __call__(self, gradients: Sequence[Tensor]) -> bool:
        """Take one step, wholly or not at all.

        Args:
            gradients: a tuple or list with one Tensor for each of ``parameters``, in their order: of the parameter's
                shape, and float64 for a float64 parameter, any of float32, float16 and bfloat16 for the others.

        Returns:
            True.

        Raises:
            TypeError: if a gradient is no dense Tensor on the CPU, or of another dtype.
            ValueError: if a gradient has another shape, or a hyperparameter is out of range.
            RuntimeError: if there are too many or too few gradients, a tensor is not on the CPU, a step is under way in
                another thread, or this is a function that MindSpore compiles.

        After any of them every parameter, moment and step count is what it was.
        """
        if is_captured():
            self.construct(gradients)
        with self._turn:
            self._take_step(gradients)
        return True

    def construct(self, gradients: Any) -> Any:
        """Refuse to be compiled: the graph compiler reads this method where Python calls the optimizer."""
        raise RuntimeError(
            "radam.mindspore.RAdam cannot be compiled by mindspore.jit: compute the gradients in the compiled function "
            "(mindspore.value_and_grad inside it), return them, and call the optimizer outside"
        )

    def _take_step(self, gradients: Sequence[Tensor]) -> None:
        gradients = self._checked_gradients(gradients)
        held: list[Any] = []  # what keeps the memory that the core works on, whatever other threads do
        count = count_of(self.step_t, held)
        taken = count.value
        if taken >= _MOST_STEPS:
            raise OverflowError(f"step_t, an int32 as in MindSpore's own RAdam, cannot count beyond {_MOST_STEPS}")
        try:
            arrays = [memories_of(tensors, held) for tensors in (self.parameters, gradients)]
        except NotOnCpu:
            for parameter, gradient in zip(self.parameters, gradients):
                _check_device(parameter, f"parameter '{parameter.name}'")
                _check_device(gradient, f"the gradient of parameter '{parameter.name}'")
            raise
        arrays += [kept.views_of(tensors) for kept, tensors in zip(self._kept, (self.exp_avg, self.exp_avg_sq))]
        plans, parameters = [], len(self.parameters)
        steps = np.full(parameters, taken, np.int64)
        for number, group in enumerate(self.param_groups):
            first, end = self.group_start_id[number : number + 2]
            params, grads, exp_avgs, exp_avg_sqs = (tuple(some[first:end]) for some in arrays)
            names = self._names[number]
            hyperparameters = _hyperparameters(number, group)
            plans.append((hyperparameters, None, params, grads, exp_avgs, exp_avg_sqs, None, steps[first:end], names))
        try:
            _step.step(tuple(plans), "propagate")
        except ValueError as error:
            pairs = zip(self.parameters, gradients)
            if any((p.dtype == dtypes.float64) != (g.dtype == dtypes.float64) for p, g in pairs):
                raise TypeError(str(error)) from None  # MindSpore's type for dtypes that do not go together
            raise
        finally:
            # Ctrl-C may come up as soon as the core is done. Nothing in here calls anything, where it could again.
            if not parameters or steps[0] > taken:
                count.value = taken + 1

    def _memory_entries(self) -> Iterator[tuple[Parameter, dict[str, Tensor]]]:
        """Give each parameter with its state, for radam.memory; the one step count with the first."""
        step: dict[str, Tensor] = {"step": self.step_t}
        for parameter, exp_avg, exp_avg_sq in zip(self.parameters, self.exp_avg, self.exp_avg_sq):
            yield parameter, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, **step}
            step = {}

    def _checked_gradients(self, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return them in a tuple of our own; refuse what are not dense tensors, one for each parameter."""
        if not isinstance(gradients, (tuple, list)):
            raise TypeError(f"gradients must be a tuple of Tensors, got {type(gradients).__name__}")
        gradients = tuple(gradients)
        if len(gradients) != len(self.parameters):
            raise RuntimeError(f"{len(gradients)} gradients were given for {len(self.parameters)} parameters")
        for i, gradient in enumerate(gradients):
            if not isinstance(gradient, Tensor):
                raise TypeError(
                    f"the gradient of parameter '{self.parameters[i].name}' is of type {type(gradient).__name__}; it "
                    "must be a Tensor: sparse ones are not supported, and none may be left out"
                )
        return gradients


def _moments(prefix: str, parameters: Sequence[Parameter]) -> ParameterTuple:
    moments = []
    for parameter in parameters:
        # Not by clone: it spoils a parameter that is not initialized yet, and knows no empty ones.
        zeros = np.zeros(parameter.shape, np.float64 if parameter.dtype == dtypes.float64 else np.float32)
        name = f"{prefix}.{parameter.name}"
        moments.append(Parameter(Tensor(zeros), name=name, requires_grad=parameter.requires_grad))
    return ParameterTuple(tuple(moments))


def _hyperparameters(number: int, group: dict[str, Any]) -> _step.Hyperparameters:
    lr = group["lr"]
    try:
        return _CONVENTION.hyperparameters(
            lr=float(np.float32(lr.item() if isinstance(lr, Tensor) else lr)),  # a plain number counts as float32 too
            betas=(float(group["betas"][0]), float(group["betas"][1])),
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
        )
    except (TypeError, ValueError, LookupError) as error:
        kind = ValueError if isinstance(error, LookupError) else type(error)
        raise kind(f"group {number}: {error}") from None


def _warn_if_never_rectified(number: int, group: dict[str, Any]) -> None:
    why = _CONVENTION.why_never_rectified(float(group["betas"][1]))
    if why:
        warnings.warn(f"group {number}: {why}", UserWarning, stacklevel=3)


def _names(parameters: Sequence[Parameter]) -> tuple[str, ...]:
    return tuple([parameter.name for parameter in parameters])


def _check_arguments(lr: Any, betas: Any, eps: Any, weight_decay: Any) -> None:
    """Refuse what MindSpore refuses, with its types, where it would not say what is wrong."""
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not isinstance(value, (int, float, Tensor)):
            raise TypeError(f"For 'RAdam', the argument '{name}' must be int, float or Tensor, but got {type(value)}.")
        if isinstance(value, Tensor) and value.shape != ():
            raise ValueError(f"For 'RAdam', '{name}' is a Tensor of shape {value.shape}; it must be a scalar Tensor.")
    if not isinstance(betas, (tuple, list)):
        raise TypeError(f"For 'RAdam', the argument 'betas' must be a tuple of two floats, but got {type(betas)}.")
    if len(betas) != 2:
        kind = IndexError if len(betas) < 2 else ValueError  # as MindSpore's own
        raise kind(f"For 'RAdam', the argument 'betas' must be a tuple of two floats, but got {betas}.")


def _checked(group: Any) -> Any:
    """Return a copy of a group; refuse what no step can update. Groups that are no groups are left to MindSpore."""
    if not isinstance(group, dict) or isinstance(group.get("params"), set):
        return group
    params = group["params"]
    group = {**group, "params": [params] if isinstance(params, Parameter) else list(params)}
    for parameter in group["params"]:
        if not isinstance(parameter, Parameter):
            raise TypeError(f"Optimizer can only optimize Parameters, but one of the params is a {type(parameter)}.")
        if parameter.dtype not in DTYPES:
            raise TypeError(
                f"parameter '{parameter.name}' has dtype {parameter.dtype}; "
                "accepted are float64, float32, bfloat16 and float16"
            )
        _check_device(parameter, f"parameter '{parameter.name}'")
    return group


def _check_device(tensor: Tensor, what: str) -> None:
    if tensor.device != "CPU":
        raise RuntimeError(f"{what} is on {tensor.device}; radam.mindspore.RAdam steps on the CPU")
