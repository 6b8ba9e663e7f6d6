"""What an optimizer remembers of each parameter, and how it is made."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import (
    assign,
    dtype_name,
    kind_of,
    to_numpy,
    zeros_beside,
    zeros_like,
)
from .groups import Array
from .precision import (
    MASTERS,
    MOMENTS,
    Precision,
    blocks_of,
    code_key,
    decoded,
    encoded,
    is_scale,
    same_order,
    scale_key,
)


def moments_of(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the moments that a group keeps."""
    return MOMENTS if group["amsgrad"] else MOMENTS[:2]


class GroupState:
    """The step counts and moments of one group, in lists parallel to its params. No state: None, and 0 steps."""

    def __init__(self, params: Sequence[Any], precision: Precision, first: int) -> None:
        """Begin without states; first is the number of the group's first parameter in the optimizer."""
        count = len(params)
        self._params = list(params)
        self._ordinals = tuple(range(first, first + count))
        self.precision = precision
        self.steps = np.zeros(count, np.int64)
        self.moments: dict[str, list[Any]] = {name: [None] * count for name in MOMENTS}  # of coded ones the codes
        self.scales: dict[str, list[Any]] = {name: [None] * count for name in MOMENTS}
        self.masters: list[Any] = [None] * count
        self._whole: set[str] = set()  # the moments that no parameter lacks

    def belongs_to(self, params: Sequence[Any]) -> bool:
        """Whether these are the parameters that it was made for, in the same order."""
        return len(params) == len(self._params) and not any(map(operator.is_not, params, self._params))

    def create(
        self, group: int, names: Sequence[str], params: Sequence[Array], grads: Sequence[Array]
    ) -> list[tuple[str, int, int]]:
        """Make the moments that are missing where there is a gradient. Returns what was made, for undo."""
        made: list[tuple[str, int, int]] = []
        try:
            for name in names:
                if name in self._whole:
                    continue
                moments = self.moments[name]
                for i, moment in enumerate(moments):
                    if moment is None and grads[i] is not None:
                        self.put(i, self.fresh(name, params[i], i, group))
                        made.append((name, i, int(self.steps[i])))
                if not any(moment is None for moment in moments):
                    self._whole.add(name)
        except BaseException:
            self.undo(made)
            raise
        return made

    def fresh(self, name: str, param: Array, i: int, group: int) -> dict[str, Array]:
        """Return zeros for a moment of a parameter, by key. Beside the first moment: for the bits of its weights too.

        A master of zeros is taken from the parameter in the first step; a remainder of zeros adds nothing.
        """
        dtype, shape, _ = kind_of(param, i, group)
        size = math.prod(shape)
        entries = self.precision.moment(name, dtype, size)
        if name == MOMENTS[0]:
            entries.update(self.precision.master(dtype))
        return {
            key: zeros_beside(param, blocks_of(size), kept) if is_scale(key) else zeros_like(param, kept, i, group)
            for key, kept in entries.items()
        }

    def put(self, i: int, entries: Mapping[str, Array]) -> None:
        """Give a parameter the state entries of these keys."""
        for name in MOMENTS:
            found = entries.get(name)
            found = entries.get(code_key(name)) if found is None else found
            if found is not None:
                self.moments[name][i], self.scales[name][i] = found, entries.get(scale_key(name))
        for key in MASTERS:
            if key in entries:
                self.masters[i] = entries[key]

    def undo(self, made: Sequence[tuple[str, int, int]]) -> None:
        """Forget moments that create made for a step that did not happen."""
        for name, i, taken in made:
            if self.steps[i] == taken:  # else it did happen, and a Ctrl-C came right after it
                self._whole.discard(name)
                self.moments[name][i] = self.scales[name][i] = None
                if name == MOMENTS[0]:
                    self.masters[i] = None

    def stored(self, amsgrad: bool) -> tuple[Any, ...] | None:
        """Return what the core takes beside the moments where something is kept or rounded otherwise."""
        if self.precision.is_plain:
            return None
        coded = self.precision.state_dtype == "8bit"
        scales = [tuple(self.scales[name]) if coded else None for name in MOMENTS]
        masters = tuple(self.masters) if self.precision.master_weights else None
        return (
            *(masters, scales[0], scales[1], scales[2] if amsgrad else None),
            *(self.precision.seed, self._ordinals, None, self.precision.stochastic_rounding),
        )

    def block_orders(self, group: int) -> dict[int, tuple[int, ...]]:
        """Return the memory order that each coded parameter's blocks are cut in, by index."""
        coded = [i for i, scale in enumerate(self.scales[MOMENTS[0]]) if scale is not None]
        return {i: kind_of(self.moments[MOMENTS[0]][i], i, group)[2] for i in coded}

    def cut_again(self, group: int, saved: Mapping[int, tuple[int, ...]]) -> None:
        """Code moments anew whose blocks were cut in another order than the parameter's: pickles may lose that."""
        for i, before in saved.items():
            _, shape, order = kind_of(self._params[i], i, group)
            if same_order(shape, order, before):
                continue
            for name in MOMENTS:
                codes, scales = self.moments[name][i], self.scales[name][i]
                if scales is None:
                    continue
                values = decoded(to_numpy(codes), to_numpy(scales), before)
                made, made_scales = encoded(values, order, name == MOMENTS[0])
                self.moments[name][i] = zeros_like(self._params[i], dtype_name(codes), i, group)
                assign(self.moments[name][i], made)
                assign(scales, made_scales)

    def of(self, index: int) -> dict[str, Any]:
        """Return the state of one parameter: its step count and its arrays, live. Empty before its first step."""
        if self.steps[index] == 0:
            return {}
        found: dict[str, Any] = {"step": int(self.steps[index])}
        for name in MOMENTS:
            moment, scale = self.moments[name][index], self.scales[name][index]
            if scale is not None:
                found[code_key(name)], found[scale_key(name)] = moment, scale
            elif moment is not None:
                found[name] = moment
        if (master := self.masters[index]) is not None:
            found[next(key for key, dtype in MASTERS.items() if dtype == dtype_name(master))] = master
        return found
