"""What an optimizer remembers of each parameter, as dicts of arrays and as safetensors files."""

from __future__ import annotations

import json
import numbers
import operator
import os
import secrets
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import assign, copied, dtype_name, has_negative, readable, to_numpy, zeros_like
from .groups import Array, Group, array_of

VERSION = 1
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def moments_of(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the moments that a group keeps."""
    return MOMENTS if group["amsgrad"] else MOMENTS[:2]


class GroupState:
    """The step counts and moments of one group, in lists parallel to its params. No state: None, and 0 steps."""

    def __init__(self, params: Sequence[Any]) -> None:
        count = len(params)
        self._params = list(params)
        self.steps = np.zeros(count, np.int64)
        self.moments: dict[str, list[Any]] = {name: [None] * count for name in MOMENTS}
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
                        moments[i] = zeros_like(params[i], i, group)
                        made.append((name, i, int(self.steps[i])))
                if not any(moment is None for moment in moments):
                    self._whole.add(name)
        except BaseException:
            self.undo(made)
            raise
        return made

    def undo(self, made: Sequence[tuple[str, int, int]]) -> None:
        """Forget moments that create made for a step that did not happen."""
        for name, i, taken in made:
            if self.steps[i] == taken:  # else it did happen, and a Ctrl-C came right after it
                self._whole.discard(name)
                self.moments[name][i] = None

    def of(self, index: int) -> dict[str, Any]:
        """Return the state of one parameter: its step count and its moments, live. Empty before its first step."""
        if self.steps[index] == 0:
            return {}
        found = {name: moments[index] for name, moments in self.moments.items() if moments[index] is not None}
        return {"step": int(self.steps[index]), **found}


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


def to_dict(kind: Mapping[str, Any], groups: Sequence[Group], states: Sequence[GroupState]) -> dict[str, Any]:
    """Return everything there is to save, the arrays not copied. kind says which optimizer it is."""
    out: dict[str, Any] = {"version": VERSION, **kind, "state": {}, "param_groups": []}
    index = 0
    for group, state in zip(groups, states):
        entry = {key: plain(key, value) for key, value in group.items() if key != "params"}
        entry["params"] = list(range(index, index + len(group["params"])))
        out["param_groups"].append(entry)
        for i in range(len(group["params"])):
            found = state.of(i)
            if found:
                for name in moments_of(group):
                    if name not in found:  # amsgrad came later than this parameter's last step
                        found[name] = zeros_like(array_of(group["params"][i]), i)
                out["state"][index + i] = found
        index += len(group["params"])
    return out


def from_dict(
    saved: Any, kind: Mapping[str, Any], groups: Sequence[Group], required: Container[str]
) -> tuple[list[dict[str, Any]], list[GroupState]]:
    """Return new group entries and states from what to_dict gave; ValueError naming the key that does not fit."""
    if not isinstance(saved, Mapping):
        raise ValueError(f"a state dict must be a dict, got {type(saved).__name__}")
    version = _entry(saved, "version", "the state dict")
    if isinstance(version, bool) or version != VERSION:
        raise ValueError(f"the state dict has version {version!r}; this radam reads version {VERSION}")
    for key, mine in kind.items():
        if _tuples(_entry(saved, key, "the state dict")) != mine:
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
    for g, (group, saved_group) in enumerate(zip(groups, saved_groups)):
        what = f"param_groups[{g}]"
        if not isinstance(saved_group, Mapping):
            raise ValueError(f"{what} must be a dict, got {type(saved_group).__name__}")
        indices = _entry(saved_group, "params", what)
        if not isinstance(indices, Sequence) or len(indices) != len(group["params"]):
            raise ValueError(f"{what}['params'] must list {len(group['params'])} parameters, as the optimizer does")
        if "param_names" in group and "param_names" in saved_group:
            names, saved_names = plain("param_names", group["param_names"]), _tuples(saved_group["param_names"])
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
        state = GroupState(group["params"])
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
    return entries, states


def _tuples(value: Any) -> Any:
    """Return JSON's lists as the tuples that plain makes."""
    if isinstance(value, Mapping):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


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
    # max_exp_avg_sq outlives an amsgrad that is off just now.
    for name in (name for name in MOMENTS if name in moments_of(group) or name in saved):
        moment = _entry(saved, name, what)
        fresh = zeros_like(param, i, g)
        try:
            array = readable(moment)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what}[{name!r}] cannot be read as an array: {error}") from None
        dtype, shape = dtype_name(array), tuple(array.shape)
        if dtype != dtype_name(fresh):
            raise ValueError(f"{what}[{name!r}] has dtype {dtype}; the moments here are {dtype_name(fresh)}")
        if shape != tuple(fresh.shape):
            raise ValueError(f"{what}[{name!r}] has shape {shape}, the parameter {tuple(fresh.shape)}")
        if name != "exp_avg" and has_negative(array):
            raise ValueError(f"{what}[{name!r}] holds a negative number, but it is an average of squares")
        assign(fresh, array)
        state.moments[name][i] = fresh
    for key in saved:
        if key not in ("step", *MOMENTS):
            raise ValueError(f"{what} has {key!r}, which this radam does not know")
    state.steps[i] = step


def copy_arrays(saved: dict[str, Any]) -> dict[str, Any]:
    """Give a state dict arrays of its own."""
    state = {
        index: {key: copied(value) if key in MOMENTS else value for key, value in entry.items()}
        for index, entry in saved["state"].items()
    }
    return {**saved, "state": state}


def write_file(path: str | os.PathLike[str], saved: Mapping[str, Any]) -> None:
    """Write a state dict as safetensors: to a temporary file beside it, synced, then renamed over the old one."""
    from safetensors.numpy import save_file

    steps, tensors = {}, {}
    for index, entry in saved["state"].items():
        steps[str(index)] = entry["step"]
        for name in MOMENTS:
            if name in entry:
                host = to_numpy(entry[name])
                tensors[f"{index}.{name}"] = np.ascontiguousarray(host).reshape(host.shape)
    header = {**{key: value for key, value in saved.items() if key != "state"}, "steps": steps}
    target = Path(path).resolve()  # through a link, to the file itself
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {target.parent}")
    if target.exists() and not target.is_file():
        raise ValueError(f"{target} is there and is no file")
    temporary = target.with_name(f".radam-{secrets.token_hex(8)}.tmp")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = (target if target.exists() else temporary).stat().st_mode & 0o777
        save_file(tensors, temporary, metadata={"radam": json.dumps(header)})
        _sync(temporary)
        os.chmod(temporary, mode)  # save_file makes a file that only its owner may read
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _sync(target.parent)  # the rename itself


def _sync(path: str | os.PathLike[str]) -> None:
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what write_file wrote, as a state dict; ValueError where it is something else, or broken."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if "radam" not in metadata:
                raise ValueError(f"{path} was not saved by radam: its metadata has no 'radam'")
            header = json.loads(metadata["radam"])
            steps = header["steps"]
            state: dict[int, dict[str, Any]] = {int(index): {"step": step} for index, step in steps.items()}
            for key in file.keys():  # noqa: SIM118  (not a dict)
                index, name = key.split(".", 1)
                if int(index) not in state:
                    raise ValueError(f"{path} holds {key!r} of a parameter without a step count")
                state[int(index)][name] = file.get_tensor(key)
            groups = [
                {key: v if key == "params" else _tuples(v) for key, v in group.items()}
                for group in header["param_groups"]
            ]
            kept = {key: value for key, value in header.items() if key != "steps"}
            return {**kept, "state": state, "param_groups": groups}
    except (SafetensorError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a saved radam state: {error}") from error
