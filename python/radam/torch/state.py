"""What the optimizer remembers of each parameter: made, kept exact, and read back from what torch or radam saved."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, MutableMapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ..conventions import Convention
from . import settings
from .unwrap import has_kernel

KEYS = ("exp_avg", "exp_avg_sq", "step")
MOMENTS = KEYS[:2]
MOST_FLOAT32 = 2**24  # from here on a float32 cannot count


def moment_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the moments: the parameter's, but float32 for a 16-bit one."""
    if dtype in (torch.bfloat16, torch.float16):
        return torch.float32
    return torch.complex64 if dtype is torch.complex32 else dtype


def count_tensor(count: float, param: Tensor, on_device: bool) -> Tensor:
    """Return a step count as torch keeps it: one float, on the CPU or the parameter's device; exact beyond 2^24."""
    wide = torch.get_default_dtype() is torch.float64 or count >= MOST_FLOAT32
    dtype = torch.float64 if wide else torch.float32
    if on_device:  # filled there: a copy from the host would wait
        return torch.full((), float(count), dtype=dtype, device=param.device)
    return torch.tensor(float(count), dtype=dtype, device="cpu")


def new_moment(param: Tensor) -> Tensor:
    """Return zeros in the parameter's own memory order (a DTensor for a DTensor)."""
    return torch.zeros_like(param, dtype=moment_dtype(param.dtype), memory_format=torch.preserve_format)


def counts_on_device(param: Tensor, group: Mapping[str, Any], fused_amp: bool) -> bool:
    """Whether a step count lives where the parameter does: where a graph advances it, or GradScaler may skip steps."""
    return bool(group["capturable"]) or (fused_amp and param.device.type == "cuda" and has_kernel(param.device))


def refuse_in_capture(param: Tensor, what: str) -> None:
    """Refuse to make what replays of a CUDA graph would make anew, as zeros, every time."""
    if param.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"{what} would be made inside a CUDA graph, and anew at every replay; take one step before")


def create(param: Tensor, on_device: bool) -> dict[str, Any]:
    """Return the state of a parameter before its first step, with the step count on its device or on the CPU."""
    return {
        "step": count_tensor(0, param, on_device),
        "exp_avg": new_moment(param),
        "exp_avg_sq": new_moment(param),
    }


class Fresh:
    """States that were made for a step, to be taken back if it does not happen."""

    def __init__(self, state: MutableMapping[Any, Any], fused_amp: bool = False) -> None:
        self._state = state
        self._fused_amp = fused_amp
        self._made: list[tuple[Tensor, list[str]]] = []

    def add(self, group: Mapping[str, Any], number: int, indices: Iterable[int]) -> None:
        """Make the states that parameters of a group lack."""
        for i in indices:
            param = group["params"][i]
            if param.grad.is_sparse:
                raise RuntimeError("RAdam does not support sparse gradients")
            entry = self._state.get(param)
            present = [key for key in KEYS if key in (entry or ())]
            if len(present) == len(KEYS):
                continue  # the same parameter again
            if present:
                missing = next(key for key in KEYS if key not in present)
                name = settings.name_of(group, number, i)
                raise ValueError(f"the state of {name} has {present[0]!r} but no {missing!r}")
            refuse_in_capture(param, f"the state of {settings.name_of(group, number, i)}")
            made = create(param, counts_on_device(param, group, self._fused_amp))
            if entry is None:
                entry = self._state[param] = {}
            self._made.append((param, list(made)))
            entry.update(made)

    def take_back(self) -> None:
        """Forget what was made."""
        for param, keys in reversed(self._made):
            entry = self._state.get(param, {})
            if type(entry.get("step")) is Tensor and not _is_zero(entry["step"]):
                continue  # it did happen, and a Ctrl-C came right after it
            for key in keys:
                entry.pop(key, None)
            if not entry:
                self._state.pop(param, None)


def _is_zero(count: Tensor) -> bool:
    if count.is_cuda and torch.cuda.is_current_stream_capturing():
        return True  # nothing that is captured has happened yet
    return bool(count.item() == 0)


class MendedCounts:
    """Step counts that can be advanced, in place of those that cannot; they go into the state if the step happens."""

    def __init__(self, state: Mapping[Any, Any], fused_amp: bool = False) -> None:
        self._state = state
        self._fused_amp = fused_amp
        self._mended: list[tuple[Tensor, Tensor]] = []

    def of(self, group: Mapping[str, Any], number: int, steps: Iterable[Any]) -> tuple[Any, ...]:
        """Return the counts of a group as float tensors, wide enough for the next step. Their values stay."""
        params = group["params"]
        repeated = len(params) - len(set(map(id, params)))  # each takes another step
        known: dict[int, Tensor] = {}
        out = []
        for i, (param, step) in enumerate(zip(params, steps)):
            if step is not None:
                if id(param) not in known:
                    what = f"the step count of {settings.name_of(group, number, i)}"
                    known[id(param)] = _mended_count(step, what, repeated)
                    if self._fused_amp and counts_on_device(param, group, True):
                        known[id(param)] = known[id(param)].to(param.device)
                    if known[id(param)] is not step:
                        self._mended.append((param, known[id(param)]))
                step = known[id(param)]
            out.append(step)
        return tuple(out)

    def keep(self) -> None:
        """Put them into the state."""
        for param, count in self._mended:
            self._state[param]["step"] = count


def _mended_count(step: Any, what: str, more: int) -> Tensor:
    try:
        tensor = step if isinstance(step, Tensor) else torch.tensor(step, device="cpu")
        is_count = tensor.numel() == 1 and not tensor.is_complex()
    except (TypeError, ValueError, RuntimeError):
        is_count = False
    if not is_count:
        raise ValueError(f"{what} must be one number, got {step!r}")
    if tensor.dtype is torch.float64 or tensor.device.type in ("mps", "meta"):  # mps has no float64
        return tensor
    if tensor.is_cuda and tensor.dtype is torch.float32:  # nobody waits for its value; like torch's, it ends at 2^24
        return tensor
    if tensor.item() + more >= MOST_FLOAT32:
        return tensor.to(torch.float64)
    return tensor if tensor.dtype is torch.float32 else tensor.to(torch.float32)


# ---- state dicts


def read(
    saved: Any, groups: Sequence[Mapping[str, Any]], convention: Convention
) -> tuple[defaultdict[Any, Any], list[dict[str, Any]]]:
    """Return the state and groups of a state dict of torch's or radam's RAdam; ValueError naming what does not fit."""
    _check_convention(saved, convention)
    saved_groups, saved_state = (
        _entry(saved, "param_groups", "the state dict"),
        _entry(saved, "state", "the state dict"),
    )
    if not isinstance(saved_groups, Sequence) or not all(isinstance(group, Mapping) for group in saved_groups):
        raise ValueError("param_groups: must be a list of dicts")
    if not isinstance(saved_state, Mapping):
        raise ValueError(f"state: must be a dict, got {type(saved_state).__name__}")
    if len(groups) != len(saved_groups):
        raise ValueError("loaded state dict has a different number of parameter groups")
    read_groups = [_read_group(g, *pair, convention) for g, pair in enumerate(zip(groups, saved_groups))]

    owner_of: dict[Any, tuple[Tensor, dict[str, Any]]] = {}
    for g, (group, saved_group) in enumerate(zip(read_groups, saved_groups)):
        for param, key in zip(group["params"], saved_group["params"]):
            if not isinstance(key, Hashable) or owner_of.setdefault(key, (param, group))[0] is not param:
                raise ValueError(f"param_groups[{g}]['params'] holds {key!r}, which is no index, or one used before")
    state: defaultdict[Any, Any] = defaultdict(dict)
    for key, entry in saved_state.items():
        if key in owner_of:
            param, group = owner_of[key]
            state[param] = _read_entry(entry, f"state[{key!r}]", param, group)
        else:
            state[key] = deepcopy(entry)  # of no parameter: kept, as torch keeps it
    return state, read_groups


def kind(convention: Convention) -> dict[str, Any]:
    """Return what a state is only good for: it steps otherwise under another convention."""
    fields = dataclasses.asdict(convention)
    return {key: value for key, value in fields.items() if key not in ("name", "eps", "decay")}  # groups say these


def _check_convention(saved: Any, convention: Convention) -> None:
    found = saved.get("convention") if isinstance(saved, Mapping) else None
    if found is not None and found != kind(convention):
        raise ValueError(
            f"convention: the state dict is of {found!r}, this optimizer of {kind(convention)!r}; they step otherwise"
        )


def _read_group(g: int, group: Mapping[str, Any], saved: Mapping[str, Any], convention: Convention) -> dict[str, Any]:
    what = f"param_groups[{g}]"
    params = _entry(saved, "params", what)
    if not isinstance(params, Sequence) or len(params) != len(group["params"]):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
        )
    for key in settings.REQUIRED:
        _entry(saved, key, what)
    out = {key: deepcopy(value) for key, value in saved.items() if key != "params"}
    for key, value in settings.LATER.items():
        out.setdefault(key, value)
    try:
        settings.check_numbers(out, what)
    except TypeError as error:
        raise ValueError(str(error)) from None
    try:
        settings.check(out)
        settings.is_decoupled(out, convention)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    if "param_names" in group:
        out.setdefault("param_names", group["param_names"])
    out["params"] = group["params"]
    return out


def _read_entry(saved: Any, what: str, param: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(saved, Mapping):
        raise ValueError(f"{what} must be a dict, got {type(saved).__name__}")
    if not saved:
        return {}
    out: dict[str, Any] = {}
    for key in ("step", *MOMENTS):
        _entry(saved, key, what)
    for key, value in saved.items():
        if key == "step":
            out[key] = _read_step(value, f"{what}['step']", param, group["capturable"])
        elif key in MOMENTS:
            out[key] = _read_moment(value, f"{what}[{key!r}]", param, key == "exp_avg_sq")
        elif isinstance(value, Tensor):
            out[key] = value.detach().clone().to(param.device)
        else:
            out[key] = deepcopy(value)
    return out


def _read_step(value: Any, what: str, param: Tensor, capturable: bool) -> Tensor:
    try:
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError
        count = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{what} must be one number, got {value!r}") from None
    if not (0 <= count < 2**53 and count == int(count)):
        raise ValueError(f"{what} must be a whole number of steps below 2^53, got {count!r}")
    with torch.inference_mode(False):
        made = count_tensor(count, param, capturable)
    return made.to(value.dtype) if isinstance(value, Tensor) and value.dtype is torch.float64 else made


def _read_moment(value: Any, what: str, param: Tensor, is_square: bool) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} must be a tensor, got {type(value).__name__}")
    if value.shape != param.shape:
        raise ValueError(f"{what} has shape {tuple(value.shape)}, the parameter {tuple(param.shape)}")
    if value.layout is not param.layout or (value.is_meta and not param.is_meta):
        raise ValueError(f"{what} is {value.layout} on {value.device}, the parameter {param.layout} on {param.device}")
    if not (value.is_complex() if param.is_complex() else value.is_floating_point()):
        raise ValueError(f"{what} has dtype {value.dtype}, the parameter {param.dtype}")
    if type(value) is not type(param) and "DTensor" in (type(value).__name__, type(param).__name__):
        raise ValueError(
            f"{what} is a {type(value).__name__}, the parameter a {type(param).__name__}; load sharded states with "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
        )
    # Normal tensors also where this runs in inference mode: they will be stepped outside of it.
    with torch.inference_mode(False), torch.no_grad():
        if hasattr(param, "placements"):  # copy_ refuses some changes of them
            value = value.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
        made = new_moment(param).copy_(value)
    on_cpu = type(made) is Tensor and made.device.type == "cpu"
    if is_square and on_cpu and bool((torch.view_as_real(made) if made.is_complex() else made).lt(0).any()):
        raise ValueError(f"{what} holds a negative number, but it is an average of squares")
    return made


def _entry(mapping: Any, key: str, what: str) -> Any:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{what} must be a dict, got {type(mapping).__name__}")
    if key not in mapping:
        raise ValueError(f"{what} has no {key!r}")
    return mapping[key]
