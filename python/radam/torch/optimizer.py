"""RAdam for PyTorch: torch.optim.RAdam's arguments, errors and checkpoints over radam's step."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from .. import _step, clipping
from ..conventions import CONVENTIONS, Convention, find_convention
from ..precision import OPTIONS, Precision, StateDtype
from . import amp, clip, codes, op, rules, run, saved, settings, state
from .traced import Traced
from .unwrap import agreed, has_kernel

F = TypeVar("F", bound=Callable[..., Any])
_untraced: Callable[[F], F] = torch._disable_dynamo  # type: ignore[attr-defined, assignment]
NonFinite = Literal["propagate", "skip", "raise"]


class RAdam(Traced):
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
        master_weights: keep what rounding a 16-bit parameter loses, so that it moves as a float32 one would: for
            bfloat16 the lower 16 bits, 2 bytes an element (the parameter is its weight rounded to nearest, ties away
            from zero); for float16 a float32 copy, 4 bytes, taken anew from a parameter that somebody wrote.
        stochastic_rounding: round 16-bit parameters up or down at random, so that small updates count on average. The
            bits depend on the seed, the parameter's place in the optimizer, its step count and the element's index in
            the whole parameter, so that a sharded one gets the same.
        seed: of random roundings, those of moments too; from 0 to 2^64 - 1. A loaded state dict brings its own; where
            torch.distributed.checkpoint drops it, give the same one again. Optimizers with one seed draw the same
            bits: give each its own.
        state_dtype: what the moments are kept in: "float32"; "bfloat16", half as large; "8bit", a quarter: codes with a
            float32 scale for each 128 elements. They are rounded at random. Blocks are cut in this process's memory,
            so that 8-bit moments of shards have other bits than those of the whole. Moments of float64 and complex
            parameters stay as they are.
        min_8bit_size: parameters with fewer elements keep float32 moments.
        max_grad_norm: scale all gradients down to this norm over all of them together, as
            ``torch.nn.utils.clip_grad_norm_``, also over the processes that share DTensors, which must all step; inf
            only measures. ``grad_norm`` has the norm. Gradients are not written.
        max_tensor_grad_norm: the same for each parameter by itself; not for DTensors in pieces.
        max_grad_value: cut each element of the gradients to at most this, either way.

    Raises:
        ValueError: if a hyperparameter is out of range, as torch.optim.RAdam raises it; if an option is, or two of them
            exclude each other.
        TypeError: if params are no tensors, or an option is of another type.
        RuntimeError: at the step, if a parameter that no kernel reaches is to be clipped or kept in fewer bits.

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

    nonfinite: NonFinite

    max_tensor_grad_norm: float | None
    max_grad_value: float | None

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
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: StateDtype = "float32",
        min_8bit_size: int = 4096,
        max_grad_norm: float | None = None,
        max_tensor_grad_norm: float | None = None,
        max_grad_value: float | None = None,
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
        self.precision = Precision(master_weights, stochastic_rounding, state_dtype, min_8bit_size, seed)
        clipping.check(max_grad_norm, max_tensor_grad_norm, max_grad_value)
        self.max_grad_norm, self.max_tensor_grad_norm = max_grad_norm, max_tensor_grad_norm
        self.max_grad_value = max_grad_value
        self._check_differentiable(defaults)
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
        self._norms = clip.Norms()
        self._nothing = torch.zeros((), device="cpu")
        self._step_supports_amp_scaling = self.fused_amp  # GradScaler asks for it

    def _note_params(self) -> None:
        """Keep what a step needs to know of param_groups and state without looking at all of them."""
        self._noted = len(self.state)
        self._params = [group["params"] for group in self.param_groups]
        self._keys = state.KEYS if self.precision.is_plain else state.STORED_KEYS
        self._ranks = clip.Ranks([param for params in self._params for param in params])
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

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, before clipping; inf or NaN where that step was left out for it.

        None before the first step with max_grad_norm or max_tensor_grad_norm, and without either. Waits for a device
        that has it.
        """
        return None if self.max_grad_norm is None and self.max_tensor_grad_norm is None else self._norms.read()

    def _check_differentiable(self, group: Mapping[str, Any]) -> None:
        is_clipped = any(getattr(self, name) is not None for name in clipping.OPTIONS)
        if group["differentiable"] and (is_clipped or not self.precision.is_plain):
            raise ValueError(
                "differentiable=True goes with neither clipping nor weights or moments in fewer bits: PyTorch's own "
                "operations take such a step"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters: a dict with "params" and any hyperparameters of its own.

        Raises:
            TypeError, ValueError: as torch does, and if a hyperparameter is out of range; the optimizer is unchanged.
        """
        if isinstance(param_group, Mapping):
            clipping.refuse_in_group(param_group, OPTIONS, "a group")
        super().add_param_group(param_group)
        group = self.param_groups.pop()
        settings.check(group)
        settings.is_decoupled(group, self.convention)
        self._check_differentiable(group)
        self.param_groups.append(group)
        if self._is_made:
            self._note_params()
            self._warn_if_never_rectified(group)

    def _warn_if_never_rectified(self, group: Mapping[str, Any]) -> None:
        if why := self.convention.why_never_rectified(float(group["betas"][1])):
            warnings.warn(why, UserWarning, stacklevel=_callers())

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
        there, clipped, scale = self._before() if self._is_unusual() else (None, None, 1.0)
        if scale is None:
            self._skipped.here += 1
            return
        happened: bool | None = None
        plain = self._all_plain and not self._any_inference and (clipped is None or not clipped.is_over_ranks)
        try:
            if plain and not rules.is_watched() and not rules.is_transformed():
                groups, precision = self.param_groups, self.precision
                happened = run.as_they_are(
                    groups, self.state, self._settings, self.nonfinite, scale, self._keys, precision, there, clipped
                )
            if happened is None:
                happened = self._take_careful_step(scale, there, clipped)
        finally:
            if clipped is not None:
                clipped.end()
        self._skipped.here += not happened

    def _is_unusual(self) -> bool:
        """Whether gradients are scaled, clipped or looked at."""
        is_clipped = self.max_grad_norm is not None or self.max_tensor_grad_norm is not None
        return self.fused_amp or self.nonfinite == "skip" or is_clipped or self.max_grad_value is not None

    def _before(self) -> tuple[amp.Numbers | None, clip.Clip | None, float | None]:
        """Return what devices read by themselves, how to clip, and what the host multiplies by or None for a skip."""
        present = [p for params in self._params for p in params if p.grad is not None]
        there, clipped = self._for_devices(present), self._clip(present)
        if not present and clipped is not None and clipped.kind != "value" and not clipped.is_over_ranks:
            self._norms.last = 0.0
        return there, clipped, self._scale(there, clipped)

    def _clip(self, present: list[Tensor]) -> clip.Clip | None:
        """Return how this step clips the gradients, of these parameters."""
        if self.max_grad_norm is None and self.max_tensor_grad_norm is None and self.max_grad_value is None:
            return None
        found = clipping.check(self.max_grad_norm, self.max_tensor_grad_norm, self.max_grad_value)
        assert found is not None
        return clip.Clip(*found, self._ranks, self._norms, clip.devices_of(present))

    def _scale(self, there: amp.Numbers | None, clipped: clip.Clip | None) -> float | None:
        """Return what the host multiplies gradients by, or None where GradScaler, of any process, found an inf."""
        if not self.fused_amp or there is not None:
            return 1.0
        scale = amp.inverse_scale(self)
        if clipped is not None and clipped.is_over_ranks and not agreed(scale is not None, clipped.meshes):
            scale = None  # no process may wait for the sums of one that has left
        if scale is None and clipped is not None:
            clipped.note_unknown()
        return scale

    def _for_devices(self, params: Iterable[Tensor]) -> amp.Numbers | None:
        """Return what the devices of these read by themselves; None where there is nothing, or the host must know."""
        skips = self.nonfinite == "skip" and self.defaults["capturable"]
        if not (self.fused_amp or skips) or self.defaults["differentiable"] or rules.is_watched():
            return None
        devices = {param.device for param in params}
        if not devices or any(device.type != "cuda" or not has_kernel(device) for device in devices):
            return None
        return amp.for_devices(self if self.fused_amp else None, devices, self._skipped)

    def _take_careful_step(self, scale: float, there: amp.Numbers | None, clipped: clip.Clip | None) -> bool:
        """Step what has no state yet, or is no plain tensor."""
        fresh = state.Fresh(self.state, self.precision, self.fused_amp)
        happened = False
        try:
            batches = self._batches(fresh, scale)
            happened = self._run(batches, there, clipped)
        finally:
            if not happened:
                fresh.take_back()
                self._note_params()
        return happened

    def _batches(self, fresh: state.Fresh, scale: float) -> list[run.Batch]:
        """Return the parameters that have a gradient, with their states, which are made where they are missing."""
        batches = []
        for number, (group, first) in enumerate(zip(self.param_groups, run.firsts(self.param_groups))):
            found = _step.collect(group["params"], self.state, self._keys)
            if not found[-1]:
                continue
            missing = list(found[-2])
            if self.precision.master_weights:
                missing += [i for i in run.lacking_masters(found[0], found[1], found[5]) if i not in missing]
            if missing:
                fresh.add(group, number, missing)
                self._note_params()
                found = _step.collect(group["params"], self.state, self._keys)
            params, grads, exp_avgs, exp_avg_sqs, steps, *stored, _, _ = found
            lists = (params, grads, exp_avgs, exp_avg_sqs, steps, stored)
            batches.append(run.Batch(number, group, *lists, scale, first))
        return batches

    def _run(self, batches: list[run.Batch], there: amp.Numbers | None, clipped: clip.Clip | None) -> bool:
        if self._any_inference:
            rules.refuse_inference(batches)
        if batches and rules.is_transformed():
            with torch.no_grad():
                batches[0].changed()[0].mul_(1)  # torch.func.grad refuses to change what it has not seen made
        watched = rules.is_watched() and not any(batch.group["differentiable"] for batch in batches)
        if batches and (watched or all(run.stand_ins(batches))):
            return self._run_watched(batches, there, clipped)
        self._all_plain = run.all_plain(batches)
        return self._run_apart(batches, there, clipped)

    def _run_apart(self, batches: list[run.Batch], there: amp.Numbers | None, clipped: clip.Clip | None) -> bool:
        counts = self._prepared(batches)
        differentiable = self.defaults["differentiable"]
        step = partial(run.taken_apart, batches, self._settings, self.nonfinite, self.precision, differentiable)
        step = partial(step, clip=clipped)
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
        """Return the state as torch.optim.RAdam does; either class loads it, unless something is in fewer bits.

        Where the convention steps otherwise than torch's, an entry "convention" says how. Where something is in fewer
        bits there are entries "version" and "seed", and in the state of a parameter "exp_avg_code", "exp_avg_scale"
        and so on instead of "exp_avg", or "remainder" or "master". Of DTensors 8-bit moments become float32 ones and
        remainders int32 ones, so that any number of processes that share them can load them.
        """
        found = super().state_dict()
        if not self.precision.is_plain:
            found["state"] = {key: codes.as_sent(entry) for key, entry in found["state"].items()}
        found.update(saved.marks(self.convention, self.precision))
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what state_dict of this class or of torch.optim.RAdam gave. The tensors are copied.

        The optimizer's own precision stays: moments of 32, 16 or 8 bits are converted from one to the other, and master
        weights that were not saved begin as the parameters are. The seed is the saved one, so that a run goes on with
        the same bits.

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
            loaded, groups, precision = saved.read(state_dict, self.param_groups, self.convention, self.precision)
            for group in groups:
                self._check_differentiable(group)
            self.__setstate__({"state": loaded, "param_groups": groups, "precision": precision})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        own = ("convention", "nonfinite", "fused_amp", "skipped_steps", "precision", *clipping.OPTIONS)
        return {**super().__getstate__(), **{key: getattr(self, key) for key in own}}

    def __setstate__(self, content: dict[str, Any]) -> None:
        super().__setstate__(content)
        older = {"convention": CONVENTIONS["torch"], "nonfinite": "propagate", "fused_amp": False}
        older |= {"precision": Precision(), **dict.fromkeys(clipping.OPTIONS)}
        self.__dict__.update({**older, **self.__dict__})
        if "_skipped" not in self.__dict__ or "skipped_steps" in self.__dict__:
            self.skipped_steps = self.__dict__.pop("skipped_steps", 0)
        for group in self.param_groups:
            for key, value in settings.LATER.items():
                group.setdefault(key, value)
        if "_turn" not in self.__dict__:
            self._set_up()
        self._note_params()

    def __repr__(self) -> str:
        options = {**dataclasses.asdict(self.precision), **{name: getattr(self, name) for name in clipping.OPTIONS}}
        usual = {**dataclasses.asdict(Precision()), **dict.fromkeys(clipping.OPTIONS)}
        lines = [f"{name}: {value}" for name, value in options.items() if value != usual[name]]
        first, *others = super().__repr__().split("\n")
        return "\n".join([first, *lines, *others])


def _callers() -> int:
    """Return the stacklevel, for who calls this, of the first function that is neither radam's nor PyTorch's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("radam", "torch"):
        level, frame = level + 1, frame.f_back
    return level
