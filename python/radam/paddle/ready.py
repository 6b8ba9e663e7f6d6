"""What a step must have made before it, taken back where the step does not happen."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from paddle import Tensor

from . import state
from .state import Array, State

States = dict[int, State]


class Ready:
    """A context manager in which the parameters of a step have their states, and the weights that were loaded."""

    def __init__(
        self, states: States, owner: str | None, multi_precision: bool, given: dict[str, dict[str, str]]
    ) -> None:
        self._states, self._owner, self._multi_precision = states, owner, multi_precision
        self._given = given  # names that states had which were taken back, by the parameter's
        self._made: list[State] = []
        self._settled: list[tuple[State, int, Tensor, Array | None]] = []

    def make(self, params: Sequence[Tensor]) -> bool:
        """Make the states that these lack; whether there was any."""
        for param in params:
            names = self._given.pop(param.name, None)
            self._made.append(state.create(param, self._owner, self._multi_precision, names))
            self._states[id(param)] = self._made[-1]
        return bool(params)

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
        if kind is None:
            return
        # An interrupt may come right after the step did happen.
        for held, count, before, awaited in self._settled:
            if held.count[0] == count:
                held.param.set_value(before)
                held.awaited = awaited
        for held in self._made:
            if held.count[0] == 0:
                self._states.pop(id(held.param), None)
                self._given[held.param.name] = held.names
