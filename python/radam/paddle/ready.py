"""What a step must have made before it, taken back where the step does not happen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import TracebackType

from paddle import Tensor

from . import state
from .state import Array, Betas, State

States = dict[int, State]


class Ready:
    """A context manager in which the parameters of a step have their states, and the weights that were loaded.

    When it ends, what was made for parameters that were not stepped is taken back.
    """

    def __init__(
        self,
        states: States,
        owner: str | None,
        multi_precision: bool,
        given: dict[str, dict[str, str]],
        saved: Callable[[Tensor, Betas], State | None],
    ) -> None:
        self._states, self._owner, self._multi_precision = states, owner, multi_precision
        self._given = given  # names that states had which were taken back, by the parameter's
        self._saved = saved  # gives what a checkpoint brought for parameters that had no state yet
        self._made: list[tuple[State, int]] = []
        self._settled: list[tuple[State, int, Tensor, Array | None]] = []
        self._recast: list[tuple[State, int, State]] = []
        self.new: list[State] = []
        """The states that were made and stay."""
        self.took_back = False
        """Whether anything was."""

    def make(self, params: Sequence[Tensor], betas: Betas) -> None:
        """Make the states that these lack; the betas are those of their group."""
        for param in params:
            held = self._saved(param, betas)
            if held is None:
                names = self._given.pop(param.name, None)
                held = state.create(param, self._owner, self._multi_precision, names)
            self._made.append((held, int(held.count[0])))
            self._states[id(param)] = held

    def recast(self, params: Sequence[Tensor]) -> None:
        """Fit the states of these to the dtypes that they were cast to."""
        for param in params:
            held = self._states[id(param)]
            self._recast.append((held, int(held.count[0]), dataclasses.replace(held)))
            state.recast(held, self._multi_precision, self._owner)

    def settle(self, params: Sequence[Tensor]) -> None:
        """Give these the weights that a checkpoint brought for them."""
        for param in params:
            held = self._states[id(param)]
            if held.awaited is not None:
                before = (held, int(held.count[0]), param.detach().clone(), held.awaited)
                self._settled.append(before)
                state.settle(held)

    def __enter__(self) -> Ready:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Counts tell: an interrupt may come right after the step did happen, and a clip may leave parameters out.
        for held, count, before, awaited in self._settled:
            if held.count[0] == count:
                held.param.set_value(before)
                held.awaited, self.took_back = awaited, True
        for held, count, former in self._recast:
            if held.count[0] == count:
                held.moment1, held.moment2, held.master = former.moment1, former.moment2, former.master
                held.names, held.dtype, held.awaited = former.names, former.dtype, former.awaited
                self.took_back = True
        for held, count in self._made:
            if held.count[0] == count:
                self._states.pop(id(held.param), None)
                self._given[held.param.name] = held.names
                self.took_back = True
            else:
                self.new.append(held)
