"""From the gradients of groups to one call of the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import paddle
from paddle import Tensor

from .. import _step
from . import checks, gradients, state
from .plan import Part, Plan, Settings, number
from .ready import Ready
from .state import Betas, State

Grads = list[Tensor | None]
Pairs = list[tuple[Tensor, Tensor]]
Given = Sequence[tuple[Mapping[str, Any], Sequence[Tensor]]]


class Steps(paddle.optimizer.Optimizer):  # type: ignore[misc]
    """What steps parameters: their groups, their states, and what a step is made of."""

    _beta1: Any
    _beta2: Any
    _epsilon: float
    _multi_precision: bool
    _states: dict[int, State]
    """By the identity of the parameter."""
    _given: dict[str, dict[str, str]]
    """Names that go to the next state of a parameter, by its name."""
    _keeps_masters: bool
    """Whether the states are those of multi_precision."""
    _awaits: bool
    """Whether a loaded weight waits for its parameter's next step."""

    def _set_up(self) -> None:
        self._turn = _step.Turn()
        self._parts: list[Part] = []
        self._generation = 0  # of the states: another one whenever a part must look again

    def _saved(self, param: Tensor, betas: Betas) -> State | None:
        """Return what a checkpoint brought for a parameter that had no state when it was loaded."""
        raise NotImplementedError

    def _forget_saved(self, held: State) -> None:
        """Let go of what a checkpoint brought for a parameter that has a state now."""
        raise NotImplementedError

    def _groups(self) -> list[Mapping[str, Any]]:
        """Return the groups as dicts; one without entries where the parameters are a plain list."""
        groups = self._param_groups
        return groups if groups and isinstance(groups[0], dict) else [{}]

    def _groups_and_params(self) -> list[tuple[Mapping[str, Any], Sequence[Tensor]]]:
        groups = self._groups()
        return [(group, group["params"] if group else self._param_groups) for group in groups]

    def _betas(self, group: Mapping[str, Any]) -> Betas:
        usual = self._default_dict if group else {"beta1": self._beta1, "beta2": self._beta2}
        return number(group.get("beta1", usual["beta1"])), number(group.get("beta2", usual["beta2"]))

    def _settings(self, group: Mapping[str, Any], g: int) -> Settings:
        eps = group.get("epsilon", self._default_dict["epsilon"]) if group else self._epsilon
        clip = group.get("grad_clip") if group else self._grad_clip
        try:
            return Settings(number(self.get_lr()), *self._betas(group), number(eps), clip)
        except (TypeError, ValueError) as error:
            raise type(error)(f"group {g}: {error}") from error

    def _take(self, given: Given, grads: list[Grads]) -> None:
        if self._is_left_out():
            return
        for (_, params), own in zip(given, grads):
            checks.refuse_kinds(params, own, "gradient of")
        try:
            self._try(given, grads)
        except (TypeError, ValueError, RuntimeError) as error:
            again = [checks.explained(params, own, self._states, error) for (_, params), own in zip(given, grads)]
            if not any(map(any, again)):
                raise
            for own, empty in zip(grads, again):
                own[:] = [None if is_empty else grad for grad, is_empty in zip(own, empty)]
            self._try(given, grads)

    def _is_left_out(self) -> bool:
        """Whether GradScaler found an inf or a NaN; it is told what became of it."""
        found = self._get_auxiliary_var("found_inf")
        if not isinstance(found, Tensor):
            return False
        verdict = bool(found)
        self._set_auxiliary_var("found_inf", verdict)
        return verdict

    def _try(self, given: Given, grads: list[Grads]) -> None:
        parts = self._parts_of([params for _, params in given])
        settings = [self._settings(group, g) for g, (group, _) in enumerate(given)]
        try:
            with Ready(self._states, self._name, self._multi_precision, self._given, self._saved) as ready:
                self._refresh(parts, settings, grads, ready)
                plans, clip = self._plans(parts, settings, grads)
                if plans:
                    _step.step(plans, "propagate", clip=clip)
        except BaseException:
            self._generation += 1  # states may have been taken back
            raise
        self._generation += ready.took_back
        for held in ready.new:
            self._forget_saved(held)
        if self._awaits:
            self._awaits = any(held.awaited is not None for held in self._states.values())

    def _plans(
        self, parts: list[Part], settings: list[Settings], grads: list[Grads]
    ) -> tuple[tuple[Plan, ...], _step.Clip | None]:
        """Return what the core takes: groups, and how it clips, where Paddle's objects have not changed gradients."""
        present = [i for i, own in enumerate(grads) if any(grad is not None for grad in own)]
        clip = None
        plans: list[Plan] = []
        for i in present:
            part, own = parts[i], grads[i]
            if settings[i].clip is not None:
                if len(present) == 1 and not part.by_paddle:
                    here = [param for param, grad in zip(part.params, own) if grad is not None]
                    clip = gradients.native_clip(settings[i].clip, here)
                if clip is None:
                    own = gradients.clipped(settings[i].clip, part.params, own)
            if part.by_paddle:
                own = list(own)
                for place in part.by_paddle:
                    own[place] = self._decayed(part.params[place], own[place])
            plans += part.plans(settings[i], own)
        return tuple(plans), clip

    def _refresh(self, parts: list[Part], settings: list[Settings], grads: list[Grads], ready: Ready) -> None:
        """Bring the parts up to date, with states for all that have a gradient."""
        if self._multi_precision != self._keeps_masters:
            state.keep_masters(self._states.values(), self._multi_precision, self._name)
            self._keeps_masters = self._multi_precision
            self._generation += 1
        for part, common, own in zip(parts, settings, grads):
            part.refresh(self._states, self._generation, self.regularization)
            lacking, cast = part.lacking(own), part.cast(own, self._states, self._generation)
            if lacking or cast:
                checks.refuse_kinds(lacking, lacking, "parameter")
                ready.make(lacking, (common.beta1, common.beta2))
                ready.recast(cast)
                self._awaits = self._awaits or any(self._states[id(param)].awaited is not None for param in lacking)
                self._generation += 1
                part.refresh(self._states, self._generation, self.regularization)
            if self._awaits:
                ready.settle([param for param, grad in zip(part.params, own) if grad is not None])

    def _decayed(self, param: Tensor, grad: Tensor | None) -> Tensor | None:
        """Return a gradient with what a regularizer adds to it that the core does not know."""
        if grad is None:
            return None
        own = getattr(param, "regularizer", None)
        chosen = gradients.decaying(self.regularization if own is None else own)
        with paddle.no_grad():
            wide = gradients.to_be_changed(grad, in_place=False)
            # Of a parameter Paddle takes the regularizer that is on it, which may be a number; detached, it has none.
            given = param if chosen is own else param.detach()
            return gradients.reshaped(self._create_regularization_of_grad(given, wide, chosen), grad)

    def _parts_of(self, lists: Sequence[Sequence[Tensor]]) -> list[Part]:
        """Return the parts for lists of parameters, those of the last step where they are the same."""
        if len(self._parts) != len(lists):
            self._parts = [Part(params, g) for g, params in enumerate(lists)]
        for i, params in enumerate(lists):
            if not self._parts[i].holds(params):
                self._parts[i] = Part(params, i)
        return self._parts
