"""States as dicts of arrays: written, and read back whatever their kind."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import assign, copied, dtype_name, has_negative, kind_of, readable, to_numpy
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
    same_order,
    scale_key,
)
from .state import GroupState, moments_of

VERSION = 2
READS = (1, 2)  # version 1 knew no precision


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
