"""RAdam for PyTorch: torch.optim.RAdam's arguments, errors and checkpoints over radam's step."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .. import _step
from ..conventions import CONVENTIONS, Convention, find_convention
from . import amp, op, rules, run, settings, state
from .unwrap import has_kernel, local_in_graph

F = TypeVar("F", bound=Callable[..., Any])
_untraced: Callable[[F], F] = torch._disable_dynamo  # type: ignore[attr-defined, assignment]
NonFinite = Literal["propagate", "skip", "raise"]


class RAdam(torch.optim.Optimizer):
    """Rectified Adam in place of torch.optim.RAdam: the same arguments, errors and checkpoints, and faster.

    With m and v the moving averages of the gradient and its square, a step is p -= lr * r * sqrt(1 - beta2^t) /
    (1 - beta1^t) * m / (sqrt(v) + eps) once it is rectified, and p -= lr * m / (1 - beta1^t) before; docs/design.md has
    the whole law.

    Args:
        params: parameters, (name, parameter) pairs or group dicts, as in torch: float64, float32, bfloat16, float16 or
            complex tensors or DTensors of any shape and strides, on any device. CPU and CUDA tensors go through radam's
            kernels, others through PyTorch's operations. The moments of 16-bit parameters are float32.
        lr: the learning rate, a number or a Tensor of one element, which is read at every step. What lies on a CUDA
            device, lr or betas, is read there, also by a replayed graph, and nobody checks it at a step.
        betas: the decay rates of m and v, at least 0 and below 1: numbers or Tensors of one element.
        eps: added to the denominator.
        weight_decay: the strength of the decay.
        decoupled_weight_decay: True shrinks the parameter by lr * weight_decay, False adds weight_decay * p to the
            gradient.
        foreach: accepted and ignored: one native call steps all parameters.
        maximize: go up the gradient instead of down.
        capturable: as in torch: only for parameters and step counts on devices that capture graphs.
        differentiable: let gradients flow through the step, to parameters, gradients, moments and a Tensor lr.
        convention: whose reading of RAdam: a name in radam.CONVENTIONS or a radam.Convention.
        nonfinite: what an inf or NaN in a gradient does: "propagate" (as in IEEE arithmetic), "skip" the whole step, or
            "raise" FloatingPointError. The latter two change nothing; ``skipped_steps`` counts.
        fused_amp: let torch.amp.GradScaler leave the unscaling to the step: gradients stay as they are, and a step that
            finds an inf changes nothing, the step counts included.

    Raises:
        ValueError: if a hyperparameter is out of range, as torch.optim.RAdam raises it.
        TypeError: if params are no tensors.

    A step on the CPU happens wholly or not at all: after an error nothing has changed.

    >>> import torch
    >>> from radam.torch import RAdam
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = RAdam([w], lr=0.1)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> w
    Parameter containing:
    tensor([0.8000, 0.8000, 0.8000], requires_grad=True)

    Source: Liu et al. 2020, https://arxiv.org/abs/1908.03265; the interface is torch.optim.RAdam's in PyTorch 2.13.
    """

    convention: Convention
    nonfinite: NonFinite

    @_untraced  # the operator could not see an optimizer that is made in its own graph
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        convention: str | Convention = "torch",
        nonfinite: NonFinite = "propagate",
        fused_amp: bool = False,
    ) -> None:
        if nonfinite not in ("propagate", "skip", "raise"):
            raise ValueError(f"nonfinite must be 'propagate', 'skip' or 'raise', got {nonfinite!r}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "decoupled_weight_decay": decoupled_weight_decay,
            "differentiable": differentiable,
        }
        settings.check(defaults)
        self.convention = find_convention(convention)
        self.nonfinite = nonfinite
        self.fused_amp = fused_amp
        self._skipped = amp.Skipped()
        self._set_up()
        self._is_made = False
        super().__init__(params, defaults)
        self._is_made = True
        self._note_params()
        for group in self.param_groups:
            self._warn_if_never_rectified(group)

    def _set_up(self) -> None:
        self._is_made = True
        self._turn = _step.Turn()
        self._settings = settings.Settings(self.convention)
        self._handle = op.register(self)
        self._opt_called = False
        self._all_plain = True  # as far as the last step knows; only speed hangs on it
        self._step_supports_amp_scaling = self.fused_amp  # GradScaler asks for it

    def _note_params(self) -> None:
        """Keep what a step needs to know of param_groups and state without looking at all of them."""
        self._noted = len(self.state)
        self._params = [group["params"] for group in self.param_groups]
        made: dict[int, dict[str, Any]] = {}
        self._entries = [
            [self.state[p] if p in self.state else made.setdefault(id(p), {}) for p in params]
            for params in self._params
        ]
        with torch._C.DisableTorchFunctionSubclass():  # a lazy parameter refuses every question
            self._any_inference = any(
                tensor.is_inference()
                for params, entries in zip(self._params, self._entries)
                for param, entry in zip(params, entries)
                for tensor in (param, *entry.values())
                if isinstance(tensor, Tensor)
            )

    @property
    def skipped_steps(self) -> int:
        """How many steps nonfinite="skip" or fused_amp=True has left out so far; waits for what devices count."""
        return self._skipped.total()

    @skipped_steps.setter
    def skipped_steps(self, count: int) -> None:
        self._skipped = amp.Skipped()
        self._skipped.here = count

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters: a dict with "params" and any hyperparameters of its own.

        Raises:
            TypeError, ValueError: as torch does, and if a hyperparameter is out of range; the optimizer is unchanged.
        """
        super().add_param_group(param_group)
        group = self.param_groups.pop()
        settings.check(group)
        settings.is_decoupled(group, self.convention)
        self.param_groups.append(group)
        if self._is_made:
            self._note_params()
            self._warn_if_never_rectified(group)

    def _warn_if_never_rectified(self, group: Mapping[str, Any]) -> None:
        beta2, threshold = float(group["betas"][1]), self.convention.threshold
        if not _step.rho_infinity(beta2) > threshold:
            warnings.warn(
                f"with betas[1]={beta2} rho never exceeds {threshold:g}, so that no step is ever rectified",
                UserWarning,
                stacklevel=_callers(),
            )

    # ---- steps

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, wholly or not at all.

        Args:
            closure: computes the gradients anew and returns the loss.

        Returns:
            What closure returned, or None.

        Raises:
            RuntimeError: where torch raises it: a sparse gradient, an inference tensor; if a step of this optimizer is
                under way.
            TypeError, ValueError: if a tensor or a hyperparameter is not what a step can take.
            FloatingPointError: with nonfinite="raise", if a gradient holds an inf or a NaN.
            After any of them every parameter, moment and step count is what it was.
        """
        rules.check_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not torch.compiler.is_compiling():
            self._untraced_step()
        elif self.defaults["differentiable"]:
            self._differentiable_step()
        else:
            self._traced_step()
        return loss

    def _untraced_step(self) -> None:
        with self._turn:
            self._take_step()
        self._opt_called = True

    @_untraced
    def _differentiable_step(self) -> None:
        """Step outside of the graph: an operator has no derivatives."""
        self._untraced_step()

    # A scheduler wraps step, to see that it was called, unless step says that it notes this by itself. The wrapper is
    # one that torch.compile refuses to trace.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    def _take_step(self) -> None:
        if len(self.state) != self._noted:
            self._note_params()  # somebody took parameters or states away, and may want their memory back
        there = self._for_devices(p for params in self._params for p in params if p.grad is not None)
        scale = amp.inverse_scale(self) if self.fused_amp and there is None else 1.0
        if scale is None:
            self._skipped.here += 1
            return
        happened: bool | None = None
        if self._all_plain and not self._any_inference and not rules.is_watched() and not rules.is_transformed():
            happened = run.as_they_are(self.param_groups, self.state, self._settings, self.nonfinite, scale, there)
        if happened is None:
            happened = self._take_careful_step(scale, there)
        self._skipped.here += not happened

    def _for_devices(self, params: Iterable[Tensor]) -> amp.Numbers | None:
        """Return what the devices of these read by themselves; None where there is nothing, or the host must know."""
        skips = self.nonfinite == "skip" and self.defaults["capturable"]
        if not (self.fused_amp or skips) or self.defaults["differentiable"] or rules.is_watched():
            return None
        devices = {param.device for param in params}
        if not devices or any(device.type != "cuda" or not has_kernel(device) for device in devices):
            return None
        return amp.for_devices(self if self.fused_amp else None, devices, self._skipped)

    def _take_careful_step(self, scale: float, there: amp.Numbers | None) -> bool:
        """Step what has no state yet, or is no plain tensor."""
        fresh = state.Fresh(self.state, self.fused_amp)
        happened = False
        try:
            batches = self._batches(fresh, scale)
            happened = self._run(batches, there)
        finally:
            if not happened:
                fresh.take_back()
                self._note_params()
        return happened

    def _batches(self, fresh: state.Fresh, scale: float) -> list[run.Batch]:
        """Return the parameters that have a gradient, with their states, which are made where they are missing."""
        batches = []
        for number, group in enumerate(self.param_groups):
            found = _step.collect(group["params"], self.state, state.KEYS)
            if not found[-1]:
                continue
            if found[-2]:
                fresh.add(group, number, found[-2])
                self._note_params()
                found = _step.collect(group["params"], self.state, state.KEYS)
            params, grads, exp_avgs, exp_avg_sqs, steps, _, _ = found
            batches.append(run.Batch(number, group, params, grads, exp_avgs, exp_avg_sqs, steps, scale))
        return batches

    def _run(self, batches: list[run.Batch], there: amp.Numbers | None) -> bool:
        if self._any_inference:
            rules.refuse_inference(batches)
        if batches and rules.is_transformed():
            with torch.no_grad():
                batches[0].changed()[0].mul_(1)  # torch.func.grad refuses to change what it has not seen made
        watched = rules.is_watched() and not any(batch.group["differentiable"] for batch in batches)
        if batches and (watched or all(run.stand_ins(batches))):
            return self._run_watched(batches)
        self._all_plain = run.all_plain(batches)
        return self._run_apart(batches, there)

    def _run_apart(self, batches: list[run.Batch], there: amp.Numbers | None) -> bool:
        counts = self._prepared(batches)
        step = partial(run.taken_apart, batches, self._settings, self.nonfinite, self.defaults["differentiable"])
        happened = step(amp=there, on_commit=counts.keep)
        if happened is not None:
            return happened
        scale = amp.inverse_scale(self)  # not all of them have a kernel that could read it
        for batch in batches:
            batch.grad_scale = scale or 0.0
        return scale is not None and bool(step(on_commit=counts.keep))

    def _prepared(self, batches: list[run.Batch]) -> state.MendedCounts:
        """Check what only Python can, and give the batches step counts that can be advanced."""
        counts = state.MendedCounts(self.state, self.fused_amp)
        for batch in batches:
            settings.check_numbers(batch.group, f"group {batch.number}")
            batch.steps = counts.of(batch.group, batch.number, batch.steps)
            rules.check_capturable(batch)
        return counts

    def _run_watched(self, batches: list[run.Batch]) -> bool:
        """Step while a mode of PyTorch's watches, or replaces, every operation; or tensors without values."""
        counts = None
        if not any(run.stand_ins(batches)):
            batches[0].changed()[0].detach()  # FakeTensorMode refuses a real tensor
            # PyTorch notes the change before the operator runs, so that all must be known to be well by then.
            with _disable_current_modes():
                counts = self._prepared(batches)
                if not run.is_possible(batches, self._settings, self.nonfinite):
                    return False
        items = [item for batch in batches for item in run.items_of(batch)]
        lists = [list(column) for column in zip(*(item.memory for item in items))]
        places = [number for item in items for number in (item.batch.number, item.place)]
        recorded = op.recorded(self.param_groups, self.convention, self.nonfinite, batches[0].grad_scale)
        with torch.no_grad():
            op.step_(*lists, places, self._handle, recorded)
        if counts is not None:
            counts.keep()
        # Of DTensors and the like the operator saw only what they hold.
        torch.autograd.graph.increment_version([tensor for batch in batches for tensor in batch.changed()])
        return True

    def _traced_step(self) -> None:
        """Step in a graph that torch.compile makes: the states that are missing, then one operator.

        It keeps away from param_groups, whose every value the compiler would take for constant, and from state, whose
        keys would tie the graph to the gradients of now.
        """
        lists: tuple[list[Tensor], ...] = ([], [], [], [], [])
        places: list[int] = []
        for number, (params, states) in enumerate(zip(self._params, self._entries)):
            for place, (param, entry) in enumerate(zip(params, states)):
                if param.grad is None:
                    continue
                if "step" not in entry:
                    on_device = state.counts_on_device(param, self.defaults, self.fused_amp)
                    entry.update(state.create(param, on_device))
                tensors = local_in_graph(param, param.grad, entry["exp_avg"], entry["exp_avg_sq"], entry["step"])
                for column, tensor in zip(lists, tensors):
                    column.append(tensor)
                places += (number, place)
        if places:
            op.step_(*lists, places, self._handle)

    def step_tensors(self, places: Iterable[tuple[int, int]], lists: op.Lists) -> None:
        """Step tensors that stand for those of these parameters; what the operator radam::step_ does."""
        places = list(places)
        fresh = self._check_traced(places)
        self._opt_called = True
        with self._turn:
            there = self._for_devices(lists[0])
            scale = amp.inverse_scale(self) if self.fused_amp and there is None else 1.0
            if scale is None:
                self._skipped.here += 1
                return
            batches = run.batches_of(self.param_groups, places, lists, scale)
            self._skipped.here += not self._run_apart(batches, there)
        self.state.update(fresh)
        self._noted = len(self.state)

    def _check_traced(self, places: Iterable[tuple[int, int]]) -> dict[Tensor, dict[str, Any]]:
        """Refuse a graph that was made for other parameters or states; return the states that it makes itself."""
        traced = [(id(params), len(states)) for params, states in zip(self._params, self._entries)]
        if traced != [(id(group["params"]), len(group["params"])) for group in self.param_groups]:
            self._note_params()
            raise RuntimeError(
                "param_groups was edited by hand since this step was compiled; nothing was changed, and the next step "
                "takes the new ones"
            )
        fresh = {}
        for number, place in places:
            param, entry = self._params[number][place], self._entries[number][place]
            if param not in self.state and not (entry and entry["step"].item()):  # it may be of a step left out
                fresh[param] = entry
            elif param not in self.state or self.state[param] is not entry:
                self._note_params()
                raise RuntimeError(
                    f"the state of parameter {place} of group {number} was replaced by hand since this step was "
                    "compiled; nothing was changed, and the next step takes the new one"
                )
        return fresh

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, to None or to zeros; torch's own, but for torch.compile, which it would stop."""
        if not torch.compiler.is_compiling():
            super().zero_grad(set_to_none)
            return
        for params in self._params:
            for param in params:
                if set_to_none or param.grad is None:
                    param.grad = None
                else:
                    param.grad.zero_()

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch.optim.RAdam does; either class loads it.

        Where the convention steps otherwise than torch's, an entry "convention" says how.
        """
        saved = super().state_dict()
        if state.kind(self.convention) != state.kind(CONVENTIONS["torch"]):
            saved["convention"] = state.kind(self.convention)
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what state_dict of this class or of torch.optim.RAdam gave. The tensors are copied.

        Raises:
            ValueError: naming what is missing, of the wrong shape, kind or value, or an entry "convention" that is not
                this optimizer's (a state without one, as torch's, loads under any); the optimizer is unchanged.
        """
        if isinstance(state_dict, Mapping):
            state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            if changed is not None:
                state_dict = changed
        with self._turn:
            loaded, groups = state.read(state_dict, self.param_groups, self.convention)
            self.__setstate__({"state": loaded, "param_groups": groups})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        own = ("convention", "nonfinite", "fused_amp", "skipped_steps")
        return {**super().__getstate__(), **{key: getattr(self, key) for key in own}}

    def __setstate__(self, content: dict[str, Any]) -> None:
        super().__setstate__(content)
        older = {"convention": CONVENTIONS["torch"], "nonfinite": "propagate", "fused_amp": False}
        self.__dict__.update({**older, **self.__dict__})
        if "_skipped" not in self.__dict__ or "skipped_steps" in self.__dict__:
            self.skipped_steps = self.__dict__.pop("skipped_steps", 0)
        for group in self.param_groups:
            for key, value in settings.LATER.items():
                group.setdefault(key, value)
        if "_turn" not in self.__dict__:
            self._set_up()
        self._note_params()


def _callers() -> int:
    """Return the stacklevel, for who calls this, of the first function that is neither radam's nor PyTorch's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("radam", "torch"):
        level, frame = level + 1, frame.f_back
    return level
