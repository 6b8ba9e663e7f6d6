"""State dicts in the form of paddle.optimizer.RAdam's: written, and read without changing anything."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from . import counts, state
from .state import COUNT, KINDS, Array, Betas, Kept, State

Names = dict[tuple[str, str], list[str]]

MASTERS = "master_weights"
SCHEDULER = "LR_Scheduler"
_MASTER = re.compile(r"_fp32_master_\d+$")
_KEY = re.compile(rf"(.+)_({'|'.join((*KINDS, COUNT))})_\d+")


def write(states: Sequence[tuple[State, Betas]]) -> dict[str, Any]:
    """Return copies of the accumulators and master weights, as Paddle's optimizers save them."""
    found: dict[str, Any] = {}
    for held, betas in states:
        count, dtype = int(held.count[0]), state.accumulator_dtype(held.dtype)
        for kind, power in counts.powers(count, *betas, dtype)._asdict().items():
            found[held.names[kind]] = _named(_full(held, power, dtype), held.names[kind])
        for kind, moment in (("moment1", held.moment1), ("moment2", held.moment2)):
            found[held.names[kind]] = _named(state.as_tensor(moment), held.names[kind])
        exact = paddle.to_tensor(np.array([count, *betas], np.float64), place="cpu")
        found[held.names[COUNT]] = _named(exact, held.names[COUNT])
    masters = {
        held.param.name: _named(paddle.to_tensor(state.weight(held)), held.names["master"])
        for held, _ in states
        if held.master is not None
    }
    return found | {MASTERS: masters} if masters else found


def _full(held: State, value: float, dtype: str) -> Tensor:
    return paddle.full_like(held.param.detach(), value, dtype=getattr(paddle, dtype))


def _named(tensor: Tensor, name: str) -> Tensor:
    tensor.name = name
    return tensor


class Reader:
    """Reads what a state dict has of each parameter, under whatever numbers Paddle put behind the names."""

    def __init__(self, state_dict: Mapping[str, Any], owner: str | None, multi_precision: bool) -> None:
        self._dict = state_dict
        self._between = "" if owner is None else f"_{owner}"
        self._owner = owner
        self._multi_precision = multi_precision
        self._masters = state_dict.get(MASTERS) or {}
        self._names: Names = {}
        keys: Iterable[object] = state_dict  # whatever a user's dict has
        for key in keys:
            if isinstance(key, str) and (match := _KEY.fullmatch(key)):
                self._names.setdefault((match[1], match[2]), []).append(key)
        self._targets: dict[str, list[str]] = {}
        for target in dict.fromkeys(target for target, _ in self._names):
            if target.endswith(self._between) and _MASTER.search(own := target.removesuffix(self._between)):
                self._targets.setdefault(_MASTER.sub("", own), []).append(target)
        self._doubts: list[str] = []

    @property
    def is_empty(self) -> bool:
        """Whether it is the dict of an optimizer that never stepped: there is nothing of any parameter in it."""
        return not self._names and set(self._dict) <= {SCHEDULER, MASTERS}

    def read(self, param: Tensor, now: State | None, betas: Betas) -> State | None:
        """Return the state that it has of a parameter, or None where it has nothing.

        Args:
            param: the parameter.
            now: its present state.
            betas: those of its group.

        Raises:
            AssertionError: as Paddle raises it: if something of it is missing, or of another shape or dtype.
            ValueError: if the powers are none.
        """
        target = self._target(param.name)
        if target is None:
            if now is not None:
                raise AssertionError(f"optimizer Tensor {now.names['moment1']} not found; nothing was loaded")
            return None
        dtype = state.accumulator_dtype(state.dtype_name(param))
        names = {kind: self._key(target, kind, now) for kind in KINDS}
        powers = counts.Powers(*(self._number(names[kind]) for kind in ("beta1_pow", "beta2_pow", "rho")))
        exact = None
        if (target, COUNT) in self._names:
            names[COUNT] = self._key(target, COUNT, now)
            numbers = _numpy(self._dict[names[COUNT]])
            if numbers.size == 3 and numbers.dtype.kind in "fiu":
                exact = counts.Exact(*map(float, numbers.ravel()))
        count, is_theirs = counts.find(powers, exact, *betas, dtype)
        if not is_theirs:
            self._doubts.append(
                f"what was saved of {param.name} is of no step with beta1={betas[0]} and beta2={betas[1]}; the nearest "
                f"one, {count}, is taken for it. Load with the betas of the run that saved it"
            )
        moment1, moment2 = (self._moment(param, names[kind], dtype) for kind in ("moment1", "moment2"))
        master = state.new_master(param, self._multi_precision)
        has_master = target != param.name + self._between
        if now is not None and ("master" in now.names) == (master is not None):
            names = now.names
        elif has_master == (master is not None):
            names.setdefault(COUNT, f"{target}_{COUNT}_0")
            if has_master:
                names["master"] = target.removesuffix(self._between)
        else:
            names = state.new_names(param, self._owner, master is not None)
        steps = np.array([count], np.int64)
        read = State(param, moment1, moment2, steps, master, names, state.dtype_name(param))
        if master is not None and param.name in self._masters:
            read.awaited = self._master(param)
        return read

    def warn(self, stacklevel: int) -> None:
        """Warn once of what was read with doubts; stacklevel as of warnings.warn in the caller."""
        doubts, self._doubts = self._doubts, []
        if doubts:
            more = f" (and so for {len(doubts) - 1} more)" if len(doubts) > 1 else ""
            warnings.warn(doubts[0] + more, UserWarning, stacklevel=stacklevel + 1)

    def rest(self, read: Iterable[str]) -> Reader | None:
        """Return a reader of copies of what there is of other parameters than those of these names; None if nothing."""
        names = set(read)
        done = {target for name in names if (target := self._target(name)) is not None}
        keys = [key for (target, _), own in self._names.items() if target not in done for key in own]
        if not keys:
            return None
        kept: dict[str, Any] = {key: _copy(self._dict[key]) for key in keys}
        kept[MASTERS] = {name: _copy(value) for name, value in self._masters.items() if name not in names}
        return Reader(kept, self._owner, self._multi_precision)

    def forget(self, name: str) -> None:
        """Let go of what it has of a parameter."""
        target = self._target(name)
        for pair in [pair for pair in self._names if pair[0] == target]:
            self._dict = {key: value for key, value in self._dict.items() if key not in self._names[pair]}
            del self._names[pair]
        self._targets.pop(name, None)
        self._masters = {key: value for key, value in self._masters.items() if key != name}

    def _target(self, name: str) -> str | None:
        """Return what the names of a parameter's accumulators begin with: its own name, or its master weight's."""
        own = name + self._between
        is_there = any((own, kind) in self._names for kind in KINDS)
        found = [own] if is_there else []
        if not is_there or name in self._masters:
            found += self._targets.get(name, [])
        if len(found) > 1:
            raise AssertionError(f"there is more than one state of {name}: {', '.join(sorted(found))}")
        return found[0] if found else None

    def _key(self, target: str, kind: str, now: State | None) -> str:
        keys = self._names.get((target, kind), [])
        if now is not None and now.names[kind] in keys:
            return now.names[kind]
        if len(keys) == 1:
            return keys[0]
        if not keys:
            raise AssertionError(f"optimizer Tensor {target}_{kind}_0 not found; nothing was loaded")
        raise AssertionError(f"there is more than one {kind} of {target}: {', '.join(sorted(keys))}")

    def _number(self, key: str) -> float:
        values = _numpy(self._dict[key]).ravel()
        return float(values[0]) if values.size else 1.0  # of a parameter without elements

    def _moment(self, param: Tensor, key: str, dtype: str) -> Kept:
        array, wanted = _numpy(self._dict[key]), tuple(param.shape)
        if array.shape != wanted:
            raise AssertionError(f"optimizer Tensor {key} needs shape {wanted}, got {array.shape}; nothing was loaded")
        if array.dtype != dtype:
            raise AssertionError(f"optimizer Tensor {key} needs dtype {dtype}, got {array.dtype}; nothing was loaded")
        made = state.zeros_beside(param, dtype)
        state.put(made, array)
        return made

    def _master(self, param: Tensor) -> Array:
        array = _numpy(self._masters[param.name])
        if array.shape != tuple(param.shape) or array.dtype != np.float32:
            raise AssertionError(
                f"the master weight of {param.name} needs shape {tuple(param.shape)} and dtype float32, got "
                f"{array.shape} and {array.dtype}; nothing was loaded"
            )
        return np.array(array, order="C")  # of our own: the next step reads it


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _numpy(value: Any) -> Array:
    if isinstance(value, Tensor):
        array: Array = value.numpy()
        return array
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"a state must be of Tensors, got {type(value).__name__}; nothing was loaded") from error
