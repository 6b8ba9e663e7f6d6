"""RAdam and Adam as Lucid has them: its arguments, its groups and its state dicts, over the array-level optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import base
from ..conventions import Convention, find_convention
from ..groups import Group
from ..precision import Precision, StateDtype
from ..saved import VERSION
from .groups import Betas, begin_betas, check_memory, check_params, pair
from .saved import entry_of, filled

OWN = ("version", "optimizer", "convention", "precision")  # what a state dict of ours says besides what Lucid's says


class _Optimizer(base.Optimizer):
    """The array-level optimizer with Lucid's groups, state dicts, and the call that Lucid's schedulers make."""

    def _set_up(self) -> None:
        super()._set_up()
        if not hasattr(self, "_seen"):
            self._seen: list[Betas] = []  # the betas of each group as they were last followed
        step: Any = vars(self).get("step")
        if hasattr(step, "on"):  # a scheduler's counter of steps, which a copy must have of its own
            vars(self)["step"] = step.on(self)

    # ---- groups

    def _adopt(self, present: list[Group], new: list[Group], stacklevel: int) -> None:
        if not present and not any(group["params"] for group in new):
            raise ValueError("the groups hold no parameters: an optimizer needs at least one")
        for g, group in enumerate(new, start=len(present)):
            check_params(group["params"], g)
            begin_betas(group, self.defaults, f"group {g}")
        super()._adopt(present, new, stacklevel + 1)
        self._seen = [*self._seen[: len(present)], *(group["betas"] for group in new)]

    def _hyperparameters(self, group: Group, what: str) -> Any:
        if group.get("differentiable"):
            raise NotImplementedError(f"{what}: differentiable=True is not supported, as in Lucid")
        return super()._hyperparameters(group, what)

    def _follow(self, g: int, group: Group) -> None:
        """Bring betas, beta1 and beta2 of a group in step with the one that was edited; betas, if both were."""
        try:
            alone = (group["beta1"], group["beta2"])
        except KeyError as error:
            raise ValueError(f"group {g}: the entry {error} is missing") from None
        both = pair(group.get("betas", alone), f"group {g}")
        if both == self._seen[g]:
            both = alone
        group["betas"] = self._seen[g] = both
        group["beta1"], group["beta2"] = both

    def _sync_hyperparams(self) -> None:
        """Check edited hyperparameters now. Lucid's schedulers call it after they wrote a rate."""
        self._check_params()
        for g, group in enumerate(self.param_groups):
            self._follow(g, group)
            self._hyperparameters(group, f"group {g}")

    # ---- steps

    def _plan(self, g: int, group: Group, held: Any, grads: Any, made: Any) -> tuple[Any, ...]:
        self._follow(g, group)
        check_memory(group["params"], g)  # again: parameters get other arrays, and go to other devices
        return super()._plan(g, group, held, grads, made)

    # ---- state

    def _to_dict(self) -> dict[str, Any]:
        for g, group in enumerate(self.param_groups):
            self._follow(g, group)
        return super()._to_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on with the same bits, in the form of Lucid's optimizers.

        "state" has, by the parameter's number over all groups, NumPy arrays: "exp_avg", "exp_avg_sq", with amsgrad
        "max_exp_avg_sq", and "step", of no axes and int64; nothing for a parameter that never had a gradient.
        "param_groups" has the groups with those numbers for params. Lucid's load_state_dict takes it. A third entry,
        "radam", says how it was made, and is none of Lucid's.
        """
        found = super().state_dict()
        entries = {
            index: {**entry, "step": np.asarray(entry["step"], np.int64)} for index, entry in found["state"].items()
        }
        own = {key: found[key] for key in OWN}
        return {"state": entries, "param_groups": found["param_groups"], "radam": own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what state_dict gave, here or in Lucid's own optimizer of this name.

        Entries of groups that the state has not stay as they are.

        Raises:
            TypeError: if "param_groups" is no list or "state" no dict.
            ValueError: naming the key that is missing, of the wrong shape, dtype or value.

        After either the optimizer is unchanged.
        """
        super().load_state_dict(self._in_own_form(state_dict))
        self._seen = [group["betas"] for group in self.param_groups]

    def _in_own_form(self, saved: Any) -> Any:
        if not isinstance(saved, Mapping):
            return saved  # which the base refuses
        if "param_groups" not in saved:
            raise ValueError("the state dict has no 'param_groups'")
        if not isinstance(saved["param_groups"], (list, tuple)):
            raise TypeError(f"param_groups: must be a list, got {type(saved['param_groups']).__name__}")
        if not isinstance(saved.get("state", {}), Mapping):
            raise TypeError(f"state: must be a dict, got {type(saved['state']).__name__}")
        found = {"version": VERSION, **self._kind(), "precision": dataclasses.asdict(self.precision)}
        found.update(saved["radam"] if isinstance(saved.get("radam"), Mapping) else {})
        found.update({key: saved[key] for key in OWN if key in saved})  # as save writes it, and radam.RAdam
        found["state"] = {index: entry_of(entry) for index, entry in saved.get("state", {}).items()}
        found["state"] = {index: entry for index, entry in found["state"].items() if entry is not None}
        found["param_groups"] = [
            filled(group, self.param_groups[g], self._seen[g], g) if g < len(self.param_groups) else group
            for g, group in enumerate(saved["param_groups"])
        ]
        return found


class RAdam(_Optimizer):
    """Lucid's RAdam over Lucid's parameters on the CPU, updated in place.

    ``from radam.lucid import RAdam`` takes the place of ``from lucid.optim import RAdam``. Its groups, defaults and
    state dicts are Lucid's, and Lucid's schedulers drive it. Where a group has "betas" and "beta1" or "beta2" edited,
    the next step takes the one that changed, and the others follow; where both changed, "betas" counts.

    Args:
        params: Lucid's parameters, or any objects with .data and .grad, or a list of dicts with "params" and
            hyperparameters of their own. What is updated is .data: a NumPy array, or one with DLPack or the buffer
            protocol, on the CPU, of dtype float64, float32, bfloat16 or float16. It is looked up anew in every step, so
            that it may be replaced by another one of the same shape and dtype. .grad is an array of that shape, or
            None, which skips the parameter.
        lr: the learning rate.
        betas: the decay rates of m and v, at least 0 and below 1.
        eps: added to the denominator.
        weight_decay: the strength of the decay.
        decoupled_weight_decay: True shrinks the parameter by lr * weight_decay, False adds weight_decay * p to the
            gradient, None is the convention's own.
        foreach, capturable: taken and kept, as in Lucid; there is nothing that they could change.
        maximize: go up the gradient instead of down.
        differentiable: must be False, as in Lucid.
        convention: "lucid" is what Lucid's engine computes: rectified where rho > 5, eps added to sqrt(v).
            "lucid_docs" is the formula on Lucid's page: rectified where rho > 4, eps added to sqrt(v / (1 - beta2^t)).
            Any other name in radam.CONVENTIONS or radam.Convention goes as well.
        amsgrad: divide by the largest v so far. This and the rest are radam's own: see radam.RAdam.
        nonfinite: see radam.RAdam.
        master_weights: see radam.RAdam.
        stochastic_rounding: see radam.RAdam.
        seed: see radam.RAdam.
        state_dtype: see radam.RAdam.
        min_8bit_size: see radam.RAdam.
        max_grad_norm: see radam.RAdam.
        max_tensor_grad_norm: see radam.RAdam.
        max_grad_value: see radam.RAdam.

    Raises:
        TypeError: if a parameter has no .data or no .grad, its .data is no array or has another dtype, or a
            hyperparameter is no number.
        ValueError: if there are no parameters, one comes twice or overlaps another, one cannot be written in place
            (read-only, on Metal, an MLX array, or an object that hands out copies), a hyperparameter is out of range,
            or betas is no pair.
        NotImplementedError: if differentiable is True.

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from radam.lucid import RAdam
    >>> p = SimpleNamespace(data=np.ones(2, np.float32), grad=None)
    >>> opt = RAdam([p], lr=0.1)
    >>> for _ in range(100):
    ...     p.grad = 2 * p.data  # the gradient of sum(p ** 2)
    ...     opt.step()
    >>> bool(abs(p.data).max() < 0.1)
    True

    Sources: Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond", https://arxiv.org/abs/1908.03265;
    Lucid's page, https://chanlumerico.github.io/lucid/api/lucid.optim/RAdam.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool | None = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        convention: str | Convention = "lucid",
        amsgrad: bool = False,
        nonfinite: base.NonFinite = "propagate",
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: StateDtype = "float32",
        min_8bit_size: int = 4096,
        max_grad_norm: float | None = None,
        max_tensor_grad_norm: float | None = None,
        max_grad_value: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "decoupled_weight_decay": decoupled_weight_decay,
            "amsgrad": amsgrad,
        }
        begin_betas(defaults, {}, "the defaults")
        precision = Precision(master_weights, stochastic_rounding, state_dtype, min_8bit_size, seed)
        clip = (max_grad_norm, max_tensor_grad_norm, max_grad_value)
        super().__init__(params, defaults, find_convention(convention), nonfinite, precision, clip)


class Adam(_Optimizer):
    """Lucid's Adam over Lucid's parameters on the CPU, updated in place; AdamW with decoupled_weight_decay=True.

    A step is p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps). ``from radam.lucid import Adam`` takes the
    place of ``from lucid.optim import Adam``; ``amsgrad`` takes the maximum of the uncorrected v. The other arguments,
    the groups and the errors are those of radam.lucid.RAdam; ``fused`` is taken and kept as foreach is.

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from radam.lucid import Adam
    >>> p = SimpleNamespace(data=np.ones(3, np.float32), grad=np.full(3, 5, np.float32))
    >>> opt = Adam([p], lr=0.1)
    >>> opt.step()
    >>> bool(np.allclose(p.data, 0.9))
    True

    Sources: Kingma and Ba 2015, https://arxiv.org/abs/1412.6980; amsgrad: Reddi et al. 2018; decoupled decay:
    Loshchilov and Hutter 2019; Lucid's page, https://chanlumerico.github.io/lucid/api/lucid.optim/Adam.
    """

    _rectify = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        nonfinite: base.NonFinite = "propagate",
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: StateDtype = "float32",
        min_8bit_size: int = 4096,
        max_grad_norm: float | None = None,
        max_tensor_grad_norm: float | None = None,
        max_grad_value: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "amsgrad": amsgrad,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        begin_betas(defaults, {}, "the defaults")
        precision = Precision(master_weights, stochastic_rounding, state_dtype, min_8bit_size, seed)
        clip = (max_grad_norm, max_tensor_grad_norm, max_grad_value)
        super().__init__(params, defaults, Convention("adam", eps_on="sqrt_v_hat"), nonfinite, precision, clip)
