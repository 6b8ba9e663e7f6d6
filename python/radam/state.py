"""What an optimizer remembers of each parameter: made, saved as dicts of arrays, and read back whatever its kind."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import (
    assign,
    copied,
    dtype_name,
    has_negative,
    kind_of,
    readable,
    to_numpy,
    zeros_beside,
    zeros_like,
)
from .groups import Array, Group, array_of
from .precision import (
    KEYS,
    MASTERS,
    MOMENTS,
    Precision,
    as_float32,
    blocks_of,
    code_key,
    decoded,
    encoded,
    is_code,
    is_scale,
    same_order,
    scale_key,
)

VERSION = 2
READS = (1, 2)  # version 1 knew no precision


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


def plain(key: str, value: Any) -> Any:
    """Return a group's entry as a plain scalar, string or tuple; a function (lr) is not state and becomes None."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(plain(key, v) for v in value)
    if callable(value) and not hasattr(value, "item"):
        return None
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, numbers.Number) and hasattr(value, "__float__"):  # a Decimal or a Fraction
        return float(value)
    raise TypeError(f"the group entry {key!r} is a {type(value).__name__}; saved are numbers, strings and tuples")


def to_dict(
    kind: Mapping[str, Any], groups: Sequence[Group], states: Sequence[GroupState], precision: Precision
) -> dict[str, Any]:
    """Return everything there is to save, the arrays not copied. kind says which optimizer it is."""
    kept = dataclasses.asdict(precision)
    out: dict[str, Any] = {"version": VERSION, **kind, "precision": kept, "state": {}, "param_groups": []}
    index = 0
    for g, (group, state) in enumerate(zip(groups, states)):
        entry = {key: plain(key, value) for key, value in group.items() if key != "params"}
        entry["params"] = list(range(index, index + len(group["params"])))
        out["param_groups"].append(entry)
        for i in range(len(group["params"])):
            found = state.of(i)
            if found:
                param = array_of(group["params"][i])
                for name in moments_of(group):
                    if name not in found and code_key(name) not in found:
                        found.update(state.fresh(name, param, i, g))  # amsgrad came after this parameter's last step
                if codes := [value for key, value in found.items() if is_code(key)]:
                    _, shape, order = kind_of(codes[0], i, g)
                    if not same_order(shape, order, range(len(shape))):
                        found["block_order"] = order
                out["state"][index + i] = found
        index += len(group["params"])
    return out


def from_dict(
    saved: Any, kind: Mapping[str, Any], groups: Sequence[Group], required: Container[str], precision: Precision
) -> tuple[list[dict[str, Any]], list[GroupState], Precision]:
    """Return new group entries and states from what to_dict gave; ValueError naming the key that does not fit.

    The states are kept as precision says, whatever they were; its seed becomes the saved one.
    """
    if not isinstance(saved, Mapping):
        raise ValueError(f"a state dict must be a dict, got {type(saved).__name__}")
    version = _entry(saved, "version", "the state dict")
    if isinstance(version, bool) or version not in READS:
        raise ValueError(f"the state dict has version {version!r}; this radam reads versions 1 to {VERSION}")
    if version != 1:
        precision = dataclasses.replace(precision, seed=_saved_precision(saved).seed)
    for key, mine in kind.items():
        if tuples(_entry(saved, key, "the state dict")) != mine:
            raise ValueError(
                f"{key}: the state dict is of {saved[key]!r}, this optimizer of {mine!r}; they step otherwise"
            )
    saved_groups = _entry(saved, "param_groups", "the state dict")
    saved_state = _entry(saved, "state", "the state dict")
    if not isinstance(saved_groups, Sequence) or len(saved_groups) != len(groups):
        raise ValueError(f"param_groups: the state dict must hold {len(groups)} groups, as the optimizer does")
    if not isinstance(saved_state, Mapping):
        raise ValueError(f"state: must be a dict, got {type(saved_state).__name__}")

    entries: list[dict[str, Any]] = []
    states: list[GroupState] = []
    used: set[Any] = set()
    first = 0
    for g, (group, saved_group) in enumerate(zip(groups, saved_groups)):
        what = f"param_groups[{g}]"
        if not isinstance(saved_group, Mapping):
            raise ValueError(f"{what} must be a dict, got {type(saved_group).__name__}")
        indices = _entry(saved_group, "params", what)
        if not isinstance(indices, Sequence) or len(indices) != len(group["params"]):
            raise ValueError(f"{what}['params'] must list {len(group['params'])} parameters, as the optimizer does")
        if "param_names" in group and "param_names" in saved_group:
            names, saved_names = plain("param_names", group["param_names"]), tuples(saved_group["param_names"])
            if names != saved_names:
                raise ValueError(
                    f"{what}['param_names'] is {saved_names!r}, but the optimizer has {names!r}, in this order"
                )
        entry = {}
        for key in group:
            if key in ("params", "param_names"):
                continue
            if key in saved_group or key in required:
                value = _entry(saved_group, key, what)
                entry[key] = group[key] if key == "lr" and value is None else value
            else:
                entry[key] = group[key]  # what a user put there since
        for key, value in saved_group.items():
            if key not in entry and key not in ("params", "param_names"):
                try:
                    entry[key] = plain(key, value)  # what a user put there
                except TypeError as error:
                    raise ValueError(f"{what}: {error}") from None
        entries.append(entry)
        state = GroupState(group["params"], precision, first)
        first += len(group["params"])
        for i, index in enumerate(indices):
            if not isinstance(index, int) or index in used:
                raise ValueError(f"{what}['params'] holds {index!r}, which is no index, or one used before")
            used.add(index)
            if index in saved_state:
                _read(saved_state[index], f"state[{index}]", entry, state, g, i, array_of(group["params"][i]))
        states.append(state)
    for index in saved_state:
        if index not in used:
            raise ValueError(f"state[{index!r}] belongs to no parameter of param_groups")
    return entries, states, precision


def _saved_precision(saved: Mapping[str, Any]) -> Precision:
    found = _entry(saved, "precision", "the state dict")
    if not isinstance(found, Mapping):
        raise ValueError(f"precision: must be a dict, got {type(found).__name__}")
    try:
        return Precision(**{key: _entry(found, key, "precision") for key in dataclasses.asdict(Precision())})
    except TypeError as error:
        raise ValueError(f"precision: {error}") from None


def tuples(value: Any) -> Any:
    """Return JSON's lists as the tuples that plain makes."""
    if isinstance(value, Mapping):
        return {key: tuples(v) for key, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value


def _entry(mapping: Mapping[Any, Any], key: str, what: str) -> Any:
    if key not in mapping:
        raise ValueError(f"{what} has no {key!r}")
    return mapping[key]


def _read(saved: Any, what: str, group: Mapping[str, Any], state: GroupState, g: int, i: int, param: Array) -> None:
    if not isinstance(saved, Mapping):
        raise ValueError(f"{what} must be a dict, got {type(saved).__name__}")
    step = _entry(saved, "step", what)
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or not 1 <= step <= 2**62:
        raise ValueError(f"{what}['step'] must be a whole number from 1 to 2^62, got {step!r}")
    fresh: dict[str, Array] = {}
    # max_exp_avg_sq outlives an amsgrad that is off just now.
    for name in MOMENTS:
        if name in moments_of(group) or name in saved or code_key(name) in saved:
            zeros = state.fresh(name, param, i, g)
            _read_moment(saved, name, what, zeros, kind_of(param, i, g))
            fresh.update(zeros)
    shape = kind_of(param, i, g)[1]
    for key, dtype in MASTERS.items():  # where none is saved, zeros; where none is kept, it is let go
        if key in saved:
            array = _array(saved, key, what, (dtype,), shape)
            if key in fresh:
                assign(fresh[key], array)
    for key in saved:
        if key not in ("step", "block_order", *KEYS):
            raise ValueError(f"{what} has {key!r}, which this radam does not know")
    state.put(i, fresh)
    state.steps[i] = step


def _read_moment(
    saved: Mapping[str, Any],
    name: str,
    what: str,
    fresh: Mapping[str, Array],
    kind: tuple[str, tuple[int, ...], tuple[int, ...]],
) -> None:
    """Fill the zeros of a moment from a saved one, whatever the kind of either."""
    dtype, shape, order = kind
    code, scale = code_key(name), scale_key(name)
    here = "float64" if dtype == "float64" else "float32"
    if name in saved and code in saved:
        raise ValueError(f"{what} has both {name!r} and {code!r}")
    values: Array
    if code in saved:
        if here == "float64":
            raise ValueError(f"{what} has {code!r}; the moments here are float64")
        codes = _array(saved, code, what, ("int8" if name == "exp_avg" else "uint8",), shape)
        scales = _scales(saved, scale, what, math.prod(shape))
        saved_order = _block_order(saved, what, len(shape))
        if code in fresh and same_order(shape, order, saved_order):
            assign(fresh[code], codes)
            assign(fresh[scale], scales)
            return
        values = decoded(to_numpy(codes), to_numpy(scales), saved_order)
    else:
        if scale in saved:
            raise ValueError(f"{what} has {scale!r} but no {code!r}")
        values = _array(saved, name, what, (here,) if here == "float64" else (here, "bfloat16"), shape, "moments")
        if name != "exp_avg" and has_negative(values):
            raise ValueError(f"{what}[{name!r}] holds a negative number, but it is an average of squares")
    if name in fresh:
        assign(fresh[name], values)
    else:
        codes, scales = encoded(as_float32(to_numpy(values)), order, signed=name == "exp_avg")
        assign(fresh[code], codes)
        assign(fresh[scale], scales)


def _array(
    saved: Mapping[str, Any],
    key: str,
    what: str,
    dtypes: Sequence[str],
    shape: Sequence[int],
    whose: str = "",
) -> Array:
    """Return a saved array that has one of the dtypes and the parameter's shape."""
    thing = _entry(saved, key, what)
    try:
        array = readable(thing)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}[{key!r}] cannot be read as an array: {error}") from None
    if dtype_name(array) not in dtypes:
        expected = f"the {whose} here are {dtypes[0]}" if whose else f"it must be {dtypes[0]}"
        raise ValueError(f"{what}[{key!r}] has dtype {dtype_name(array)}; {expected}")
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"{what}[{key!r}] has shape {tuple(array.shape)}, the parameter {tuple(shape)}")
    return array


def _scales(saved: Mapping[str, Any], key: str, what: str, size: int) -> Array:
    """Return the saved scales of a moment of so many elements."""
    shape = (blocks_of(size),)
    try:
        scales = readable(_entry(saved, key, what))
    except (TypeError, ValueError) as error:
        if str(error).startswith(what):
            raise
        raise ValueError(f"{what}[{key!r}] cannot be read as an array: {error}") from None
    if dtype_name(scales) != "float32" or tuple(scales.shape) != shape:
        found = f"{dtype_name(scales)} and has shape {tuple(scales.shape)}"
        raise ValueError(f"{what}[{key!r}] is {found}, but {size} elements have float32 scales of shape {shape}")
    host = to_numpy(scales)
    if not (np.isfinite(host) & (host >= 0)).all():
        raise ValueError(f"{what}[{key!r}] holds a number that is not finite or below zero, so it is no scale")
    return scales


def _block_order(saved: Mapping[str, Any], what: str, ndim: int) -> tuple[int, ...]:
    """Return the axes of the memory order that a saved state's blocks were cut in."""
    order = saved.get("block_order", range(ndim))
    whole = isinstance(order, (list, tuple, range)) and all(type(axis) is int for axis in order)
    if not whole or sorted(order) != list(range(ndim)):
        raise ValueError(f"{what}['block_order'] must list the axes 0 to {ndim - 1}, got {order!r}")
    return tuple(order)


def copy_arrays(saved: dict[str, Any]) -> dict[str, Any]:
    """Give a state dict arrays of its own."""
    state = {
        index: {key: copied(value) if key in KEYS else value for key, value in entry.items()}
        for index, entry in saved["state"].items()
    }
    return {**saved, "state": state}
