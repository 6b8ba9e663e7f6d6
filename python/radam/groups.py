"""Parameter groups: what may be handed in as params and grads, and what it becomes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import clear

Array = Any  # a NumPy array, a tensor with __dlpack__, or an object with the buffer protocol
Group = dict[str, Any]


def is_array(thing: object) -> bool:
    """Whether the core can read it by itself, rather than through .data."""
    if isinstance(thing, np.ndarray) or hasattr(type(thing), "__dlpack__"):
        return True
    try:
        memoryview(thing).release()  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):  # the latter two: a released view, an exporter that refuses
        return False
    return True


def array_of(param: Any) -> Array:
    """Return the array to update: the parameter itself, or its .data (a Parameter class that wraps an array)."""
    if is_array(param):
        return param
    return getattr(param, "data", param)


def arrays_of(params: Iterable[Any]) -> tuple[Array, ...]:
    """Return the array of each parameter; NumPy's own, the usual ones, without a call for each."""
    return tuple([param if type(param) is np.ndarray else array_of(param) for param in params])


def as_groups(params: Any) -> list[Group]:
    """Return parameter groups from whatever params may be, as dicts with "params" and maybe "param_names"."""
    if is_array(params):
        raise TypeError(
            "params must be an iterable of arrays, of (name, array) pairs or of group dicts, or a dict of named "
            f"arrays, not one array ({type(params).__name__}); put it in a list"
        )
    if isinstance(params, (set, frozenset)):
        raise TypeError("params must be ordered, but a set is not: use a list")
    try:
        things = list(params)
    except TypeError:
        raise TypeError(
            "params must be an iterable of arrays, pairs or group dicts, or a dict of named arrays, got "
            f"{type(params).__name__}"
        ) from None
    if not things:
        raise ValueError("params is empty: an optimizer needs at least one parameter (was an iterator used up before?)")
    if isinstance(params, Mapping):
        return [as_group({"params": params})]
    if any(isinstance(thing, Mapping) for thing in things):
        if not all(isinstance(thing, Mapping) for thing in things):
            raise TypeError("params must hold either group dicts or parameters, not both")
        return [as_group(thing) for thing in things]
    return [as_group({"params": things})]


def as_group(group: Mapping[str, Any]) -> Group:
    """Return a copy of a group dict whose "params" is a list, and "param_names" a list where there are names."""
    if not isinstance(group, Mapping):
        raise TypeError(f"a parameter group must be a dict with 'params', got {type(group).__name__}")
    out = dict(group)
    if "params" not in out:
        raise ValueError(f"a parameter group needs a 'params' entry; this one has {_some(list(out)) or 'nothing'}")
    params = out["params"]
    names = out.pop("param_names", None)
    if isinstance(params, Mapping):
        names, params = list(params.keys()), list(params.values())
    elif is_array(params) or not isinstance(params, Iterable):
        params = [params]  # one parameter, as in torch
    elif isinstance(params, (set, frozenset)):
        raise TypeError("params must be ordered, but a set is not: use a list")
    else:
        params = list(params)
    named = [isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in params]
    if any(named):
        if not all(named):
            raise ValueError("either all parameters of a group have names or none has")
        names, params = [name for name, _ in params], [param for _, param in params]
    out["params"] = params
    if names is not None:
        names = list(names)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"a parameter's name must be a string, got {name!r}")
        if len(names) != len(params):
            raise ValueError(f"param_names holds {len(names)} names for {len(params)} parameters")
        out["param_names"] = names
    return out


def check_distinct(groups: Sequence[Group]) -> None:
    """Refuse the same parameter twice and the same name twice, over all groups."""
    seen: dict[int, str] = {}
    names: dict[str, str] = {}
    for g, group in enumerate(groups):
        for i, param in enumerate(group["params"]):
            here = f"parameter {i} of group {g}"
            if id(param) in seen:
                raise ValueError(f"{here} is the same as {seen[id(param)]}; hand in each parameter once")
            seen[id(param)] = here
        for i, name in enumerate(group.get("param_names", ())):
            here = f"parameter {i} of group {g}"
            if name in names:
                raise ValueError(f"{here} has the name {name!r}, which {names[name]} has too")
            names[name] = here


def grads_by_group(groups: Sequence[Group], grads: Any) -> list[list[Array]]:
    """Return the gradients of each group: from the argument of step, or from each parameter's .grad."""
    if grads is None:
        return [_own_grads(g, group) for g, group in enumerate(groups)]
    total = sum(len(group["params"]) for group in groups)
    if isinstance(grads, Mapping):
        return _named_grads(groups, grads)
    if is_array(grads):
        raise TypeError(
            f"grads must be a sequence with one gradient (or None) for each of the {total} parameters, or a dict by "
            f"name, not one array ({type(grads).__name__}); put it in a list"
        )
    try:
        flat = list(grads)
    except TypeError:
        raise TypeError(f"grads must be a sequence of arrays or a dict by name, got {type(grads).__name__}") from None
    if len(flat) != total:
        raise ValueError(f"grads holds {len(flat)} gradients for {total} parameters; give None for one to skip")
    out, at = [], 0
    for group in groups:
        count = len(group["params"])
        out.append(flat[at : at + count])
        at += count
    return out


def _own_grads(g: int, group: Group) -> list[Array]:
    try:
        return [param.grad for param in group["params"]]
    except AttributeError:
        for i, param in enumerate(group["params"]):
            if not hasattr(param, "grad"):
                raise ValueError(
                    f"parameter {i} of group {g} ({type(param).__name__}) has no .grad: hand in the gradients, "
                    "step(grads=[...])"
                ) from None
        raise


def _named_grads(groups: Sequence[Group], grads: Mapping[str, Array]) -> list[list[Array]]:
    if any("param_names" not in group for group in groups):
        raise ValueError(
            "grads is a dict, but the parameters have no names: give params as a dict or as (name, array) pairs"
        )
    names = [name for group in groups for name in group["param_names"]]
    unknown = [name for name in grads if name not in set(names)]
    if unknown:
        raise ValueError(f"grads has {_some(unknown)}, of no parameter; the names are {_some(names)}")
    missing = [name for name in names if name not in grads]
    if missing:
        raise ValueError(f"grads lacks {_some(missing)}; give None for a parameter to skip")
    return [[grads[name] for name in group["param_names"]] for group in groups]


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def clear_grads(groups: Sequence[Group], set_to_none: bool) -> None:
    """Set every .grad to None, or to zeros in place. Plain arrays, which have none, are passed over."""
    for group in groups:
        for param in group["params"]:
            grad = getattr(param, "grad", None)
            if grad is None:
                continue
            if set_to_none:
                param.grad = None
            else:
                clear(grad)


def note_changes_to_torch(params: Iterable[Any]) -> None:
    """Tell autograd of the tensors that changed, so that a backward pass through an old value fails as it must."""
    torch = sys.modules.get("torch")
    if torch is not None:
        tensors = [p for p in params if isinstance(p, torch.Tensor) and not p.is_inference()]
        if tensors:
            torch.autograd.graph.increment_version(tensors)


def number(name: str, value: Any) -> float:
    """Return a hyperparameter as a float: a number or a 0-d array; TypeError for anything else."""
    try:
        if not isinstance(value, (str, bytes, bytearray)):
            return float(value)
    except (TypeError, ValueError):
        pass
    except OverflowError:
        raise ValueError(f"{name} must be a finite number, but it is too large for one") from None
    raise TypeError(f"{name} must be a number or a 0-d array, got {value!r}")


def flag(name: str, value: Any) -> bool:
    """Return a switch as a bool: True, False, or NumPy's; TypeError for anything else ("false" would be true)."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r}")


def pair(name: str, value: Any) -> tuple[float, float]:
    """Return two numbers as floats."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be two numbers, got {value!r}") from None
    return number(f"{name}[0]", first), number(f"{name}[1]", second)


def learning_rates(lr: Callable[[int], Any], steps: Iterable[int], grads: Iterable[Array]) -> dict[int, float]:
    """Return what an lr that is a function of the step gives at the next step of every parameter with a gradient."""
    numbers = {int(taken) + 1 for taken, grad in zip(steps, grads) if grad is not None}
    return {t: number(f"lr({t})", lr(t)) for t in sorted(numbers)}
