"""RAdam for Paddle: paddle.optimizer.RAdam's arguments, errors and checkpoints over radam's step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from paddle import Tensor
from paddle.optimizer.lr import LambdaDecay, LRScheduler

from . import checks, gradients, saved, state
from .state import Betas, State
from .steps import Pairs, Steps

checks.stay_as_written()


class RAdam(Steps):
    """Rectified Adam in place of paddle.optimizer.RAdam: the same arguments, errors and checkpoints, and faster.

    With m and v the moving averages of the gradient and its square, a step is p -= lr * r * sqrt(1 - beta2^t) /
    (1 - beta1^t) * m / (sqrt(v) + epsilon) once it is rectified, and p -= lr * m / (1 - beta1^t) before;
    docs/design.md has the whole law, docs/paddle.md all about Paddle.

    Args:
        learning_rate (float | LRScheduler): the step size, at least 0.
        beta1 (float | Tensor): the decay rate of m, at least 0 and below 1.
        beta2 (float | Tensor): the decay rate of v, at least 0 and below 1.
        epsilon (float): added to the denominator, at least 0.
        parameters (list | tuple): what is stepped: float64, float32, bfloat16 or float16 Tensors, or group dicts with
            "params" and any of "learning_rate" (which multiplies the optimizer's), "weight_decay", "grad_clip",
            "beta1", "beta2" and "epsilon".
        weight_decay (float | int | Tensor | L1Decay | L2Decay | None): a number is L2 decay: that much of the parameter
            is added to its gradient, after clipping. A regularizer of the parameter's own wins.
        grad_clip (ClipGradByGlobalNorm | ClipGradByNorm | ClipGradByValue | None): how gradients are clipped; they are
            not written.
        name (str | None): stands in the names of the accumulators.
        multi_precision (bool): keep what rounding loses of bfloat16 and float16 parameters, so that they move as
            float32 ones would. paddle.amp.decorate sets it too. Moments are float32 either way.

    Raises:
        ValueError: if a number is out of range, weight_decay is no finite number, or a parameter comes twice.
        TypeError: if an argument is of another type.
        AttributeError: without parameters.
        RuntimeError: in static mode.

    Warns (UserWarning) where beta2 is so small that no step is ever rectified.

    A step happens wholly or not at all: after an error nothing has changed.

    >>> import paddle
    >>> from radam.paddle import RAdam
    >>> w = paddle.create_parameter([3], "float32", default_initializer=paddle.nn.initializer.Constant(1.0))
    >>> optimizer = RAdam(0.1, parameters=[w])
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> [round(x, 4) for x in w.tolist()]
    [0.8, 0.8, 0.8]

    Source: Liu et al. 2020, https://arxiv.org/abs/1908.03265; the interface is paddle.optimizer.RAdam's in Paddle 3.3.
    """

    def __init__(
        self,
        learning_rate: float | LRScheduler = 0.001,
        beta1: float | Tensor = 0.9,
        beta2: float | Tensor = 0.999,
        epsilon: float = 1e-8,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        *,
        multi_precision: bool = False,
    ) -> None:
        checks.refuse_static()
        if not isinstance(multi_precision, bool):
            raise TypeError(f"multi_precision must be True or False, got {multi_precision!r}")
        if isinstance(learning_rate, (float, int)) and not learning_rate >= 0.0:
            raise ValueError(f"Invalid learning rate: {learning_rate}, it must be at least 0")
        checks.check_numbers({"beta1": beta1, "beta2": beta2, "epsilon": epsilon})
        gradients.coefficient(weight_decay)
        if isinstance(parameters, Iterable) and not isinstance(parameters, (Tensor, Mapping)):
            parameters = list(parameters)
            for g, group in enumerate(parameters):  # before Paddle puts on the parameters what groups say
                if isinstance(group, Mapping):
                    _check_group(group, g)
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon
        super().__init__(learning_rate, parameters, weight_decay, grad_clip, name)
        self.type = "radam"
        self._multi_precision = multi_precision
        self._default_dict |= {"beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        self._states, self._given = {}, {}
        self._later: saved.Reader | None = None  # what a state dict has of parameters that may come yet
        self._keeps_masters, self._awaits = multi_precision, False
        self._set_up()
        checks.refuse_repeated([param for _, params in self._groups_and_params() for param in params])
        checks.warn_if_never_rectified([self._betas(group)[1] for group in self._groups()], stacklevel=2)

    # ---- steps

    def step(self) -> None:
        """Take one step with the parameters' gradients, wholly or not at all.

        Parameters without a gradient, or with stop_gradient, are left out; their step counts stay.

        Raises:
            ValueError, TypeError: if a parameter, a gradient or a setting is not what a step can take.
            RuntimeError: in static mode; if a gradient is sparse or distributed; if a step is under way.
        """
        checks.refuse_static()
        with self._turn:
            given = self._groups_and_params()
            grads = [gradients.of(params, with_main=not group) for group, params in given]
            self._take(given, grads)

    def minimize(
        self, loss: Tensor, startup_program: Any = None, parameters: Any = None, no_grad_set: Any = None
    ) -> tuple[list[Any], Pairs]:
        """Take one step with the gradients that loss.backward() left.

        Args:
            loss (Tensor): what they are of; only its type is looked at.
            startup_program: not used outside of static mode.
            parameters (list): those to step; default: all.
            no_grad_set: not used outside of static mode.

        Returns:
            An empty list, of operators, and the (parameter, gradient) pairs.

        Raises:
            AssertionError: if loss is no Tensor; and what step raises.
        """
        checks.refuse_static()
        if not isinstance(loss, Tensor):  # Paddle's type, also where Python leaves assertions out
            raise AssertionError(f"loss must be a Tensor, got {type(loss).__name__}")
        if parameters:
            pairs: Pairs = self.backward(loss, startup_program, parameters, no_grad_set)
            return self.apply_gradients(pairs), pairs
        with self._turn:
            given = self._groups_and_params()
            grads = [gradients.of(params, with_main=False) for _, params in given]
            self._take(given, grads)
        return [], [
            (param, grad)
            for (_, params), own in zip(given, grads)
            for param, grad in zip(params, own)
            if grad is not None
        ]

    def apply_gradients(self, params_grads: Pairs) -> list[Any]:
        """Take one step of these parameters with these gradients. Raises what step raises.

        Args:
            params_grads (list): (parameter, gradient) pairs.

        Returns:
            An empty list, of operators.
        """
        return self._apply_optimize(None, None, params_grads)

    def _apply_optimize(
        self, loss: Any, startup_program: Any, params_grads: Any, param_group_idx: int = 0
    ) -> list[Any]:
        """Step pairs, or a group whose "params" are pairs: where all of Paddle's own ways to a step meet."""
        checks.refuse_static()
        group: Mapping[str, Any] = {}
        pairs = params_grads
        if isinstance(params_grads, Mapping):
            group, pairs = {**params_grads}, params_grads["params"]
        pairs = [(param, grad) for param, grad in pairs if grad is not None and not param.stop_gradient]
        checks.refuse_repeated([param for param, _ in pairs])
        with self._turn:
            self._take([(group, [param for param, _ in pairs])], [[grad for _, grad in pairs]])
        return []

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state in the form of paddle.optimizer.RAdam, which loads it.

        Beside Paddle's accumulators there is an entry for each parameter with its exact step count.

        Raises:
            RuntimeError: in static mode; if a step is under way.
        """
        checks.refuse_static()
        with self._turn:
            for held in self._states.values():
                if held.is_of_another_dtype:
                    with contextlib.suppress(ValueError):  # then it is saved as it is
                        state.recast(held, self._multi_precision, self._name)
                    self._generation += 1
            states = [(self._states.get(id(param)), betas) for param, betas in self._all()]
            found = saved.write([(kept, betas) for kept, betas in states if kept is not None])
            if isinstance(self._learning_rate, LRScheduler):
                found[saved.SCHEDULER] = self._learning_rate.state_dict()
        return found

    def _all(self) -> list[tuple[Tensor, Betas]]:
        """Return the parameters of all groups, and others that have a state, with their betas."""
        found = [(param, self._betas(group)) for group, params in self._groups_and_params() for param in params]
        known = {id(param) for param, _ in found}
        others = [held.param for key, held in self._states.items() if key not in known]
        return found + [(param, self._betas({})) for param in others]

    def _memory_entries(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Give each parameter with what is kept of it, under the names of radam's own states, for radam.memory."""
        for param, _ in self._all():
            held = self._states.get(id(param))
            entry: dict[str, Any] = {}
            if held is not None:
                entry = {"exp_avg": held.moment1, "exp_avg_sq": held.moment2, "step": held.count}
                if held.master is not None:
                    entry["remainder" if held.dtype == "bfloat16" else "master"] = held.master
            yield param, entry

    def set_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what state_dict of this class or of paddle.optimizer.RAdam gave. The tensors are copied.

        Parameters that it has nothing of begin anew, unless they have a state now. Where it has something of all of
        them, what it has of others is kept for their first step, should they be handed in later.

        Warns (UserWarning) where the powers that Paddle saves for a step count are not those of these betas.

        Raises:
            AssertionError: as Paddle: if something is missing, of another shape or dtype, or of other parameters.
            ValueError: if a power of a beta is none.
            RuntimeError: in static mode; if the scheduler refuses its part.

        After any of them nothing has changed.
        """
        checks.refuse_static()
        if not isinstance(state_dict, Mapping):
            raise AttributeError(f"a state dict must be a dict, got {type(state_dict).__name__}; nothing was loaded")
        scheduler = self._learning_rate if isinstance(self._learning_rate, LRScheduler) else None
        schedule = state_dict.get(saved.SCHEDULER)
        if scheduler is not None and not isinstance(scheduler, LambdaDecay) and schedule is None:
            raise AssertionError(f"the state dict has no {saved.SCHEDULER!r}, which the optimizer's scheduler needs")
        with self._turn:
            reader = saved.Reader(state_dict, self._name, self._multi_precision)
            states: dict[int, State] = {}
            params = self._all()
            for param, betas in params:
                read = reader.read(param, self._states.get(id(param)), betas)
                if read is not None:
                    states[id(param)] = read
            later = reader.rest(param.name for param, _ in params)
            missing = [param.name for param, _ in params if id(param) not in states]
            if missing and (later is not None or not (states or reader.is_empty)):
                raise AssertionError(
                    f"optimizer Tensors of {missing[0]} not found, but others that belong to no parameter here: is it "
                    "the state of another optimizer, of a model, or of layers that got other names? Nothing was loaded"
                )
            reader.warn(stacklevel=2)
            if scheduler is not None and schedule:
                _load_scheduler(scheduler, schedule)
            self._later = later
            self._states, self._generation = states, self._generation + 1
            self._awaits = any(held.awaited is not None for held in states.values())
            self._keeps_masters = self._multi_precision

    load_state_dict = set_state_dict
    set_dict = set_state_dict

    def _saved(self, param: Tensor, betas: Betas) -> State | None:
        if self._later is None:
            return None
        read = self._later.read(param, None, betas)
        self._later.warn(stacklevel=7)  # from the caller of step
        return read

    def _forget_saved(self, held: State) -> None:
        if self._later is not None:
            self._later.forget(held.param.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> RAdam:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        with self._turn:
            made.__setstate__(copy.deepcopy(self._content(), memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        with self._turn:
            return self._content()

    def _content(self) -> dict[str, Any]:
        left_out = ("_turn", "_parts", "_generation", "_states")
        return {**{k: v for k, v in self.__dict__.items() if k not in left_out}, "states": list(self._states.values())}

    def __setstate__(self, content: dict[str, Any]) -> None:
        states: list[State] = content.pop("states")
        self.__dict__.update(content)
        for held in states:
            first = held.names.get("master", held.names["moment1"])
            if not first.startswith(f"{held.param.name}_"):  # a copy of a parameter has another name
                held.names = state.new_names(held.param, self._name, held.master is not None)
        self._states = {id(held.param): held for held in states}
        self._set_up()


def _check_group(group: Mapping[str, Any], g: int) -> None:
    try:
        checks.check_numbers(group)
        gradients.coefficient(group.get("weight_decay"))
    except (TypeError, ValueError) as error:
        raise type(error)(f"group {g}: {error}") from error


def _load_scheduler(scheduler: LRScheduler, schedule: Any) -> None:
    before = [(one, dict(one.__dict__)) for one in _schedulers(scheduler, [])]
    try:
        scheduler.set_state_dict(schedule)
    except BaseException:
        for one, content in before:
            one.__dict__.clear()
            one.__dict__.update(content)
        raise


def _schedulers(found: Any, known: list[LRScheduler]) -> list[LRScheduler]:
    """Return a scheduler and all that it is made of, which it hands its state on to."""
    if isinstance(found, LRScheduler):
        if not any(one is found for one in known):
            known.append(found)
            for value in found.__dict__.values():
                _schedulers(value, known)
    elif isinstance(found, (list, tuple)):
        for value in found:
            _schedulers(value, known)
    return known
