"""Clipping: what the core is told at a step, one norm over all processes, and the norm afterwards."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .. import _step
from .unwrap import has_kernel, is_sharded

Pieces = tuple[Any, tuple[int, ...]]
"""A mesh, and the dimensions of it over which a parameter is in pieces; over the others every process has the same."""


class Ranks:
    """Adds up sums of squares over the processes that share an optimizer's DTensors.

    Which sums go around depends on all parameters, not on those that have a gradient, so that every process takes part
    with the same ones.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._by_mesh: dict[Any, list[Pieces]] = {}
        found = [_pieces(param) for param in params if is_sharded(param)]
        self._first = found[0][0] if found else None
        if any(not is_sharded(param) for param in params) and found:
            found.append((self._first, ()))
        for pieces in dict.fromkeys(found):
            self._by_mesh.setdefault(pieces[0], []).append(pieces)
        self.in_pieces = any(over for _, over in found)

    def __bool__(self) -> bool:
        return bool(self._by_mesh)

    @property
    def meshes(self) -> list[Any]:
        """The meshes that they are on."""
        return list(self._by_mesh)

    def total(self, params: Sequence[Tensor], sums: Sequence[float]) -> float:
        """Return the sum over all processes, with the same bits in each; params are those that sums are of."""
        total = 0.0
        for mesh, kinds in self._by_mesh.items():
            if mesh.get_coordinate() is None:
                continue
            own = dict.fromkeys(kinds, 0.0)
            for param, square in zip(params, sums):
                kind = _pieces(param) if is_sharded(param) else (self._first, ())
                if kind in own:
                    own[kind] += square
            values = list(own.values())
            for dim in range(mesh.ndim):
                if mesh.size(dim) > 1:
                    with _disable_current_modes():
                        rows = _gathered(values, mesh, dim)
                    values = [
                        sum(column) if dim in over else _largest(column) for column, (_, over) in zip(zip(*rows), kinds)
                    ]
            total += sum(values)
        return total


def _pieces(param: Any) -> Pieces:
    return param.device_mesh, tuple(dim for dim, placing in enumerate(param.placements) if not placing.is_replicate())


def _gathered(values: Sequence[float], mesh: Any, dim: int) -> list[list[float]]:
    """Return the values of every process along a dimension of a mesh, in its order."""
    group = mesh.get_group(dim)
    own = torch.tensor(values, dtype=torch.float64, device=mesh.device_type)
    rows = [torch.empty_like(own) for _ in range(group.size())]
    torch.distributed.all_gather(rows, own, group=group)
    return [row.tolist() for row in rows]


def _largest(values: Sequence[float]) -> float:
    """Return what all have, but for those without a gradient, which have zero."""
    return math.nan if any(map(math.isnan, values)) else max(values)


class Norms:
    """The norm of the last step: a number, or on a device, which writes it without anybody waiting."""

    def __init__(self) -> None:
        self.last: float | Tensor | None = None
        self._there: dict[torch.device, Tensor] = {}

    def read(self) -> float | None:
        """Return it; waits for the device that has it."""
        return float(self.last) if self.last is not None else None

    def on(self, device: torch.device) -> Tensor:
        """Return the number that a device writes."""
        if device not in self._there:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "the norm of the gradients would be made inside a CUDA graph, and anew at every replay; take one "
                    "step with clipping before"
                )
            self._there[device] = torch.zeros((), dtype=torch.float64, device=device)
        return self._there[device]


class Clip:
    """How the gradients of one step are clipped: what the core takes for each of its calls."""

    def __init__(self, kind: str, most: float, ranks: Ranks | None, norms: Norms, devices: set[torch.device]) -> None:
        if kind == "tensor" and ranks is not None and ranks.in_pieces:
            raise ValueError(
                "max_tensor_grad_norm cannot clip DTensors, of which this process has a piece; use max_grad_norm"
            )
        self.kind, self.most = kind, most
        self._ranks = ranks if kind == "norm" and ranks else None
        self._norms = norms
        self._device = next(iter(devices)) if len(devices) == 1 and self._ranks is None else None
        self._total: float | None = None
        self._calls: list[Any] = []

    @property
    def is_over_ranks(self) -> bool:
        """Whether other processes wait for this one's sums."""
        return self._ranks is not None

    @property
    def meshes(self) -> list[Any]:
        """The meshes of those processes."""
        return [] if self._ranks is None else self._ranks.meshes

    def call(self, params: Sequence[Tensor] = (), only: bool = True) -> Any:
        """Return what the core takes for a call with these parameters; all that have a gradient come in the first.

        Args:
            params: in the order in which the core gets them; needed over ranks.
            only: whether no other call follows. Later ones clip as the first.
        """
        if not self._calls:
            reduce = None if self._ranks is None else functools.partial(self._add, list(params))
            made = _step.Clip(self.kind, self.most, reduce)
            if only and self._device is not None and self.kind != "value":
                made.norms = {self._device.index: self._norms.on(self._device)}
        else:
            self.note()
            total = self._total if self._total is not None else float(self._norms.last or 0.0) ** 2
            made = _step.Clip(self.kind, self.most, (lambda sums: total) if self.kind == "norm" else None)
        self._calls.append(made)
        return made

    def start_again(self) -> None:
        """Forget a call that did not happen: the next one is the first."""
        self._calls, self._total = [], None

    def is_finite_elsewhere(self) -> bool:
        """Take part in the sums of other processes without a gradient here; return whether all of theirs are finite."""
        total = self._add([], [])
        self._norms.last = math.sqrt(total)
        return math.isfinite(total)

    def _add(self, params: Sequence[Tensor], sums: Sequence[float]) -> float:
        assert self._ranks is not None
        self._total = self._ranks.total(params, sums)
        return self._total

    def note(self) -> None:
        """Keep the norm that the first call found."""
        if self._calls and self.kind != "value":
            first = self._calls[0]
            norm = first.norm
            if norm is not None:
                self._norms.last = norm
            elif self._device is not None and first.norms:
                self._norms.last = self._norms.on(self._device)

    def end(self) -> None:
        """Keep the norm, and let go of the parameters: the core's objects hold them where no collector looks."""
        self.note()
        for made in self._calls:
            made.reduce = None
        self._calls = []

    def note_unknown(self) -> None:
        """Keep that the norm is not finite, of a step that somebody else found to be so."""
        if self.kind != "value":
            self._norms.last = math.nan


def devices_of(params: Sequence[Tensor]) -> set[torch.device]:
    """Return the CUDA devices where a norm can stay; none if there is anything else."""
    if not params or not params[0].is_cuda:
        return set()
    devices = {param.device for param in params}
    return devices if all(device.type == "cuda" and has_kernel(device) for device in devices) else set()
