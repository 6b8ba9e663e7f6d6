"""The steps that PyTorch watches or traces: through the operator radam::step_."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import _disable_current_modes

from ..conventions import Convention
from ..precision import Precision
from . import amp, clip, op, run, settings, state
from .unwrap import local_in_graph


class Traced(torch.optim.Optimizer):
    """An optimizer whose step can be part of a graph. What it asks of the one that it is a part of stands first."""

    convention: Convention
    nonfinite: Any
    fused_amp: bool

    precision: Precision
    """How weights and moments are kept and rounded. Fixed, but for its seed, which a loaded state brings along."""

    max_grad_norm: float | None
    """How gradients are clipped, as max_tensor_grad_norm and max_grad_value; at most one of the three.

    Edit them, they are checked at the next step.
    """

    _turn: Any
    _handle: int
    _settings: settings.Settings
    _skipped: amp.Skipped
    _ranks: clip.Ranks
    _norms: clip.Norms
    _noted: int
    _nothing: Tensor
    _params: list[list[Tensor]]
    _entries: list[list[dict[str, Any]]]
    _opt_called: bool

    @abstractmethod
    def _note_params(self) -> None: ...

    @abstractmethod
    def _for_devices(self, params: Iterable[Tensor]) -> amp.Numbers | None: ...

    @abstractmethod
    def _clip(self, present: list[Tensor]) -> clip.Clip | None: ...

    @abstractmethod
    def _scale(self, there: amp.Numbers | None, clipped: clip.Clip | None) -> float | None: ...

    @abstractmethod
    def _prepared(self, batches: list[run.Batch]) -> state.MendedCounts: ...

    @abstractmethod
    def _run_apart(self, batches: list[run.Batch], there: amp.Numbers | None, clipped: clip.Clip | None) -> bool: ...

    def _run_watched(self, batches: list[run.Batch], there: amp.Numbers | None, clipped: clip.Clip | None) -> bool:
        """Step while a mode of PyTorch's watches, or replaces, every operation; or tensors without values."""
        counts = None
        if not any(run.stand_ins(batches)):
            batches[0].changed()[0].detach()  # FakeTensorMode refuses a real tensor
            if clipped is not None and clipped.is_over_ranks:
                # Nobody knows by then: whether the step happens hangs on the other processes.
                if get_proxy_mode() is not None:
                    raise RuntimeError("a step that is clipped over processes cannot be recorded")
                with _disable_current_modes():
                    return self._run_apart(batches, there, clipped)
            # PyTorch notes the change before the operator runs, so that all must be known to be well by then.
            with _disable_current_modes():
                counts = self._prepared(batches)
                if not run.is_possible(batches, self._settings, self.nonfinite, self.precision, clipped):
                    if clipped is not None:
                        clipped.note()
                    return False
        items = [item for batch in batches for item in run.items_of(batch)]
        columns = [list(column) for column in zip(*(item.memory for item in items))]
        places = [number for item in items for number in (item.batch.number, item.place)]
        recorded = op.recorded(
            *(self.param_groups, self.convention, self.nonfinite, batches[0].grad_scale, self.precision),
            None if clipped is None else (clipped.kind, clipped.most),
            bool(self._ranks) and (clipped is not None or not self.precision.is_plain),
        )
        with torch.no_grad():
            op.call(columns, self.precision.is_plain, places, self._handle, recorded)
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
        lists: tuple[list[Any], ...] = ([], [], [], [], [], [], [], [])
        places: list[int] = []
        for number, (params, states) in enumerate(zip(self._params, self._entries)):
            for place, (param, entry) in enumerate(zip(params, states)):
                if param.grad is None:
                    continue
                if "step" not in entry:
                    on_device = state.counts_on_device(param, self.defaults, self.fused_amp)
                    entry.update(state.create(param, on_device, self.precision))
                else:
                    state.add_masters(entry, param, self.precision)
                tensors = local_in_graph(param, param.grad, *state.collected(entry))
                for column, tensor in zip(lists, tensors):
                    column.append(tensor)
                places += (number, place)
        if not places and self._ranks and self.max_grad_norm is not None:
            lists[4].append(self._nothing)  # other processes wait for this one, and the compiler drops an idle call
        if lists[4]:
            op.call(lists, self.precision.is_plain, places, self._handle)

    def step_tensors(self, places: Iterable[tuple[int, int]], lists: op.Lists) -> None:
        """Step tensors that stand for those of these parameters; what the operator radam::step_ does."""
        places = list(places)
        fresh = self._check_traced(places)
        self._opt_called = True
        with self._turn:
            there, clipped = self._for_devices(lists[0]), self._clip(list(lists[0]))
            scale = self._scale(there, clipped)
            if scale is None:
                self._skipped.here += 1
                return
            numbers = run.firsts(self.param_groups)
            batches = run.batches_of(self.param_groups, places, lists, scale, numbers)
            try:
                self._skipped.here += not self._run_apart(batches, there, clipped)
            finally:
                if clipped is not None:
                    clipped.end()
        self.state.update(fresh)
        self._noted = len(self.state)

    def own(self) -> tuple[list[Any], clip.Ranks, clip.Norms]:
        """Return what a recorded step cannot hold: the groups, other processes, and where the norm goes."""
        return self.param_groups, self._ranks, self._norms

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
