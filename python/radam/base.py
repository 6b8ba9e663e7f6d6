"""What RAdam and Adam over arrays share: groups, states, and a step that happens wholly or not at all."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

from . import _step, arrays, clipping, groups, saved, state, state_files
from .conventions import Convention
from .groups import Array, Group
from .hooks import Hook, RemovableHandle
from .precision import OPTIONS, Precision

NonFinite = Literal["propagate", "skip", "raise"]


class Optimizer:
    """An optimizer over arrays of any framework, updated in place: RAdam or Adam."""

    param_groups: list[Group]
    """One dict for each group, with "params", the hyperparameters (edit them, they are checked at the next step), and,
    where parameters have names, "param_names"."""

    defaults: dict[str, Any]
    """The hyperparameters of groups that do not say their own."""

    skipped_steps: int
    """How many steps nonfinite="skip" has left out so far."""

    precision: Precision
    """How weights and moments are kept and rounded. Fixed, but for its seed, which a loaded state brings along."""

    max_grad_norm: float | None
    """How gradients are clipped, as max_tensor_grad_norm and max_grad_value; at most one of the three.

    Edit them, they are checked at the next step."""

    max_tensor_grad_norm: float | None
    """See max_grad_norm."""

    max_grad_value: float | None
    """See max_grad_norm."""

    _rectify = True

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        convention: Convention,
        nonfinite: NonFinite,
        precision: Precision,
        clip: tuple[float | None, float | None, float | None],
    ) -> None:
        if nonfinite not in ("propagate", "skip", "raise"):
            raise ValueError(f"nonfinite must be 'propagate', 'skip' or 'raise', got {nonfinite!r}")
        self.convention = convention
        self.nonfinite = nonfinite
        clipping.check(*clip)
        self.max_grad_norm, self.max_tensor_grad_norm, self.max_grad_value = clip
        self.precision = precision
        self.skipped_steps = 0
        self._grad_norm: Any = None  # a float, or an array of one where a device left it
        self.defaults = defaults
        self._set_up()
        self._hyperparameters(defaults, "the defaults")
        self._adopt([], groups.as_groups(params), stacklevel=5)

    def _set_up(self) -> None:
        self._turn = _step.Turn()
        self._pre_hooks: dict[int, Hook] = {}
        self._post_hooks: dict[int, Hook] = {}
        if not hasattr(self, "param_groups"):
            self.param_groups = []
            self._states: list[state.GroupState] = []

    # ---- groups

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group of parameters: a dict with "params" and any hyperparameters of its own.

        Raises:
            TypeError, ValueError: if something in it cannot be stepped; the optimizer is unchanged.

        >>> import numpy as np, radam
        >>> opt = radam.RAdam([np.ones(3)], lr=0.1)
        >>> opt.add_param_group({"params": [np.ones(2)], "lr": 0.01})
        >>> [group["lr"] for group in opt.param_groups]
        [0.1, 0.01]
        """
        with self._turn:
            self._adopt(self.param_groups, [groups.as_group(param_group)], stacklevel=4)

    def _adopt(self, present: list[Group], new: list[Group], stacklevel: int) -> None:
        for g, group in enumerate(new, start=len(present)):
            clipping.refuse_in_group(group, OPTIONS, f"group {g}")
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            self._hyperparameters(group, f"group {g}")
        both = [*present, *new]
        groups.check_distinct(both)
        _step.check_params(tuple((groups.arrays_of(group["params"]), _names(group)) for group in both))
        for g, group in enumerate(new, start=len(present)):
            arrays.check_libraries(groups.arrays_of(group["params"]), g, _names(group), self.precision)
        states, first = list(self._states), sum(len(group["params"]) for group in present)
        for group in new:
            states.append(state.GroupState(group["params"], self.precision, first))
            first += len(group["params"])
        for g, group in enumerate(new, start=len(present)):
            self._warn_if_never_rectified(group, g, stacklevel)
        self.param_groups, self._states = both, states

    def _hyperparameters(self, group: Group, what: str) -> _step.Hyperparameters:
        try:
            decay = groups.number("weight_decay", group["weight_decay"])
            decoupled = group["decoupled_weight_decay"]
            if decoupled is not None:
                decoupled = groups.flag("decoupled_weight_decay", decoupled)
            return self.convention.hyperparameters(
                lr=0.0 if callable(group["lr"]) else groups.number("lr", group["lr"]),  # a function: see _plan
                betas=groups.pair("betas", group["betas"]),
                eps=groups.number("eps", group["eps"]),
                weight_decay=decay,
                decoupled_weight_decay=self.convention.is_decoupled(decoupled, decay),
                maximize=groups.flag("maximize", group["maximize"]),
                amsgrad=groups.flag("amsgrad", group["amsgrad"]),
                rectify=self._rectify,
            )
        except KeyError as error:
            raise ValueError(f"{what}: the entry {error} is missing") from None
        except (TypeError, ValueError) as error:
            raise type(error)(f"{what}: {error}") from None

    def _warn_if_never_rectified(self, group: Group, g: int, stacklevel: int) -> None:
        why = self.convention.why_never_rectified(groups.pair("betas", group["betas"])[1])
        if self._rectify and why:
            warnings.warn(f"group {g}: {why}", UserWarning, stacklevel=stacklevel)

    # ---- steps

    def step(self, closure: Callable[[], Any] | None = None, *, grads: Any = None) -> Any:
        """Take one step, wholly or not at all.

        Args:
            closure: computes the gradients anew and returns the loss.
            grads: the gradients, one for each parameter in the order of the groups, or a dict by parameter name; None
                for a parameter skips it, and its step count stays. Default: each parameter's .grad.

        Returns:
            What closure returned, or None.

        Raises:
            TypeError: if a gradient is no array, or of a dtype that is not float64, float32, bfloat16 or float16.
            ValueError: if shapes, dtypes or memory do not fit, or a hyperparameter is out of range.
            FloatingPointError: with nonfinite="raise", if a gradient holds an inf or a NaN.
            RuntimeError: if a step of this optimizer is under way, a device cannot be reached, or CUDA fails.

        After any of them every parameter, moment and step count is what it was. One case cannot be: where CUDA fails to
        write back an array with gaps, the step has happened, and that array missed it.

        On a CUDA device a step is one launch on the current stream, that of the library whose array comes first there.
        Nobody waits for it, unless nonfinite is "skip" or "raise", which must look first.

        >>> import numpy as np, radam
        >>> w, b = np.ones(3), np.ones(2)
        >>> opt = radam.RAdam({"w": w, "b": b}, lr=0.1)
        >>> opt.step(grads={"w": np.ones(3), "b": None})
        >>> w.tolist(), b.tolist()
        ([0.9, 0.9, 0.9], [1.0, 1.0])
        """
        with self._turn:
            args: tuple[Any, ...] = (closure,)
            kwargs: dict[str, Any] = {"grads": grads}
            for hook in list(self._pre_hooks.values()):
                changed = hook(self, args, kwargs)
                if changed is not None:
                    if not (isinstance(changed, tuple) and len(changed) == 2):
                        raise RuntimeError(f"a step pre-hook must return None or (args, kwargs), got {changed!r}")
                    args, kwargs = changed
            loss = self._take_step(*args, **kwargs)
        for hook in list(self._post_hooks.values()):
            hook(self, args, kwargs)
        return loss

    def __call__(self, grads: Any) -> None:
        """Step with these gradients, as in MindSpore: the same as step(grads=grads)."""
        self.step(grads=grads)

    def _take_step(self, closure: Callable[[], Any] | None = None, *, grads: Any = None) -> Any:
        if closure is not None and not callable(closure):
            raise TypeError(
                f"closure must be a function, got {type(closure).__name__}; hand in gradients as step(grads=[...])"
            )
        loss = closure() if closure is not None else None
        self._check_params()
        gradients = groups.grads_by_group(self.param_groups, grads)
        made: list[list[tuple[str, int, int]]] = []
        try:
            plans = tuple(
                self._plan(g, group, self._states[g], gradients[g], made) for g, group in enumerate(self.param_groups)
            )
            happened = self._run(plans, gradients)
        except BaseException:
            self._undo(made)
            raise
        if not happened:
            self._undo(made)
            self.skipped_steps += 1
        else:
            for plan in plans:
                groups.note_changes_to_torch(p for p, grad in zip(plan[2], plan[3]) if grad is not None)
        return loss

    def _plan(
        self, g: int, group: Group, held: state.GroupState, grads: list[Array], made: list[list[tuple[str, int, int]]]
    ) -> tuple[Any, ...]:
        """Everything the core needs for one group, in the order that it takes."""
        params = groups.arrays_of(group["params"])
        rates = groups.learning_rates(group["lr"], held.steps, grads) if callable(group.get("lr")) else None
        hyperparameters = self._hyperparameters(group, f"group {g}")
        names = state.moments_of(group)
        made.append([])
        made[g] = held.create(g, names, params, grads)
        moments = [tuple(held.moments[name]) for name in names]
        last = moments[2] if len(moments) == 3 else None
        plan = (hyperparameters, rates, params, tuple(grads), *moments[:2], last, held.steps, _names(group))
        stored = held.stored(last is not None)
        return plan if stored is None else (*plan, None, stored)

    def _run(self, plans: tuple[tuple[Any, ...], ...], gradients: list[list[Array]]) -> bool:
        """Take the native step, and keep the norm that it found, also where it left the step out."""
        clip = clipping.clip_of(self.max_grad_norm, self.max_tensor_grad_norm, self.max_grad_value)
        if clip is None:
            return _step.step(plans, self.nonfinite)
        clip.norms = there = self._place_for_norm(gradients) if self.max_grad_value is None else None
        try:
            happened = _step.step(plans, self.nonfinite, clip=clip)
            if clip.norm is None and there is not None:
                (self._grad_norm,) = there.values()
            return happened
        finally:
            if clip.norm is not None:
                self._grad_norm = clip.norm

    def _place_for_norm(self, gradients: list[list[Array]]) -> dict[int, Array] | None:
        """Return, by its device, where the device of the first parameter with a gradient may leave the norm."""
        for group, grads in zip(self.param_groups, gradients):
            for param, grad in zip(group["params"], grads):
                if grad is not None:
                    array = groups.array_of(param)
                    device = arrays.cuda_device(array)
                    return None if device is None else {device: arrays.zeros_beside(array, 1, "float64")}
        return None

    def _undo(self, made: list[list[tuple[str, int, int]]]) -> None:
        for held, parts in zip(self._states, made):
            held.undo(parts)

    def _check_params(self) -> None:
        """Refuse groups whose parameters were exchanged by hand: they would go on with the moments of others."""
        same = len(self.param_groups) == len(self._states) and all(
            held.belongs_to(group.get("params", ())) for group, held in zip(self.param_groups, self._states)
        )
        if not same:
            raise ValueError(
                "param_groups no longer holds the parameters it was given, in their order; add_param_group adds some, "
                "a new optimizer leaves some out"
            )

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, before clipping; inf or NaN where that step was left out for it.

        None before the first step with max_grad_norm or max_tensor_grad_norm, and without either. Reading it waits
        where a device has it.
        """
        if self.max_grad_norm is None and self.max_tensor_grad_norm is None:
            return None
        if self._grad_norm is not None and not isinstance(self._grad_norm, float):
            return float(arrays.to_numpy(self._grad_norm)[0])
        return self._grad_norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the .grad of every parameter to None, or to zeros in place. Plain arrays have none."""
        groups.clear_grads(self.param_groups, set_to_none)

    # ---- hooks

    def register_step_pre_hook(self, hook: Hook) -> RemovableHandle:
        """Call hook(optimizer, args, kwargs) before each step; it may return new (args, kwargs).

        An exception in it stops the step before anything changed. Returns a handle whose remove() takes it back.

        >>> import numpy as np, radam
        >>> opt = radam.RAdam([np.ones(3)], lr=0.1)
        >>> handle = opt.register_step_pre_hook(lambda optimizer, args, kwargs: print("a step comes"))
        >>> opt.step(grads=[np.ones(3)])
        a step comes
        >>> handle.remove()
        """
        return RemovableHandle(self._pre_hooks, hook)

    def register_step_post_hook(self, hook: Hook) -> RemovableHandle:
        """Call hook(optimizer, args, kwargs) after each step; it may save the optimizer, or step another one.

        Returns a handle whose remove() takes it back.
        """
        return RemovableHandle(self._post_hooks, hook)

    # ---- state

    @property
    def state(self) -> list[dict[str, Any]]:
        """What state_dict has of each parameter, in their order, live. Empty before its first step."""
        return [held.of(i) for held in self._states for i in range(len(held.steps))]

    def _kind(self) -> dict[str, Any]:
        """What a state is only good for: it steps otherwise in another one."""
        convention = dataclasses.asdict(self.convention)
        del convention["name"], convention["eps"]  # the groups say their eps
        convention["decay"] = self.convention.decay[:1]  # what None means in them
        return {"optimizer": "RAdam" if self._rectify else "Adam", "convention": convention}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a later run needs to go on with the same bits, as plain scalars and arrays.

        The arrays are copies, on the same device and of the same library. The keys are "version", "optimizer",
        "convention", "precision", "state" and "param_groups". In "state", by parameter index, are "step" and the
        moments: "exp_avg", "exp_avg_sq" and with amsgrad "max_exp_avg_sq", or "exp_avg_code", "exp_avg_scale" and so on
        where they have 8 bits, and then "block_order", the axes as memory has them, if that is not C order. Master
        weights are in "remainder" or "master". An lr that is a function of the step is saved as None and kept at load.
        Not in it: nonfinite, clipping, skipped_steps and hooks.

        >>> import numpy as np, radam
        >>> opt = radam.RAdam([np.ones(3)], lr=0.1)
        >>> opt.step(grads=[np.ones(3)])
        >>> saved = opt.state_dict()
        >>> saved["state"][0]["step"], sorted(saved["state"][0])
        (1, ['exp_avg', 'exp_avg_sq', 'step'])
        >>> resumed = radam.RAdam([np.ones(3)])
        >>> resumed.load_state_dict(saved)
        >>> resumed.param_groups[0]["lr"]
        0.1
        """
        with self._turn:
            self._check_params()
            return saved.copy_arrays(self._to_dict())

    def _to_dict(self) -> dict[str, Any]:
        return saved.to_dict(self._kind(), self.param_groups, self._states, self.precision)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what state_dict gave. The arrays, of any library and on any device, are copied to the parameters'.

        The optimizer's own precision stays: moments of 32, 16 or 8 bits are converted from one to the other, and master
        weights that were not saved begin as the parameters are. The seed is the saved one, so that a run goes on with
        the same bits.

        Raises:
            ValueError: naming the key that is missing, of the wrong shape, dtype or value; the optimizer is unchanged.
        """
        with self._turn:
            self._check_params()
            entries, states, precision = saved.from_dict(
                state_dict, self._kind(), self.param_groups, self.defaults, self.precision
            )
            loaded: list[Group] = []
            for g, (group, entry) in enumerate(zip(self.param_groups, entries)):
                try:
                    self._hyperparameters(entry, f"param_groups[{g}]")
                except TypeError as error:
                    raise ValueError(str(error)) from None
                kept: Group = {key: group[key] for key in ("params", "param_names") if key in group}
                loaded.append({**kept, **entry})
            self.param_groups, self._states, self.precision = loaded, states, precision

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file: complete, or not at all, also when the process is killed.

        Arrays on devices are written from copies on the host; the file loads onto any device.

        Raises:
            FileNotFoundError: if the folder is not there.
            ValueError: if the path is there and no file, or param_groups holds other parameters than it was given.
            TypeError: if a group holds an entry of its user's that is no number, string or tuple.

        >>> import os, tempfile, numpy as np, radam
        >>> opt = radam.RAdam([np.ones(3)])
        >>> opt.step(grads=[np.ones(3)])
        >>> resumed = radam.RAdam([np.ones(3)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     opt.save(os.path.join(folder, "optimizer.safetensors"))
        ...     resumed.load(os.path.join(folder, "optimizer.safetensors"))
        >>> resumed.state[0]["step"]
        1
        """
        with self._turn:
            self._check_params()
            state_files.write_file(path, self._to_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over a state that save wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is something else, broken, or of other parameters; the optimizer is unchanged.
        """
        self.load_state_dict(state_files.read_file(path))

    def __getstate__(self) -> dict[str, Any]:
        # Hooks stay behind, as in torch: they seldom pickle, and belong to the program rather than the training.
        with self._turn:
            kept = {k: v for k, v in self.__dict__.items() if k not in ("_turn", "_pre_hooks", "_post_hooks")}
            orders = [held.block_orders(g) for g, held in enumerate(self._states)]
            return {**kept, "_grad_norm": self.grad_norm, "_orders": orders}

    def __setstate__(self, content: dict[str, Any]) -> None:
        orders = content.pop("_orders", [])
        self.__dict__.update(content)
        self._set_up()
        for g, (held, order) in enumerate(zip(self._states, orders)):
            held.cut_again(g, order)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} (", *(f"{name}: {value}" for name, value in self._unusual().items())]
        for g, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {g}: {len(group['params'])} parameters")
            lines += [
                f"    {key}: {value}" for key, value in sorted(group.items()) if key not in ("params", "param_names")
            ]
        return "\n".join([*lines, ")"])

    def _unusual(self) -> dict[str, Any]:
        """Return the options of the whole optimizer that are not the default."""
        options = {**dataclasses.asdict(self.precision), **{name: getattr(self, name) for name in clipping.OPTIONS}}
        usual = {**dataclasses.asdict(Precision()), **dict.fromkeys(clipping.OPTIONS)}
        return {name: value for name, value in options.items() if value != usual[name]}


def _names(group: Group) -> tuple[str, ...] | None:
    names = group.get("param_names")
    return None if names is None else tuple(names)
