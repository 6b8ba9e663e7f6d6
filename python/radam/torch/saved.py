"""State dicts of torch's or radam's RAdam: written, checked, and read whichever way their moments are stored."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ..conventions import CONVENTIONS, Convention
from ..precision import KEYS, Precision, blocks_of, code_key, scale_key
from . import codes, settings
from .state import MOMENTS, SCALES, count_tensor, kinds, local_of, new_tensor, placeholders
from .unwrap import is_sharded

VERSION = 2
"""Of the states that hold what torch's never do: codes, master weights, a seed. Version 1 is torch's own, unmarked."""


def marks(convention: Convention, precision: Precision) -> dict[str, Any]:
    """Return what a state dict holds beside what torch's has: nothing, where torch's says it all."""
    found: dict[str, Any] = {}
    if kind(convention) != kind(CONVENTIONS["torch"]):
        found["convention"] = kind(convention)
    if not precision.is_plain:
        found.update(version=VERSION, seed=precision.seed)
    return found


def read(
    saved: Any, groups: Sequence[Mapping[str, Any]], convention: Convention, precision: Precision
) -> tuple[defaultdict[Any, Any], list[dict[str, Any]], Precision]:
    """Return the state, the groups and the precision with the saved seed; ValueError naming what does not fit.

    The state is stored as precision says, however it was saved.
    """
    _check_convention(saved, convention)
    precision = _read_marks(saved, precision)
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
            with torch.inference_mode(False), torch.no_grad():  # it will be stepped outside of inference mode
                state[param] = _read_entry(entry, f"state[{key!r}]", param, group, precision)
        else:
            state[key] = deepcopy(entry)  # of no parameter: kept, as torch keeps it
    return state, read_groups, precision


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


def _read_marks(saved: Any, precision: Precision) -> Precision:
    if not isinstance(saved, Mapping):
        return precision
    version = saved.get("version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(f"version: this radam reads state dicts of version 1 to {VERSION}, got {version!r}")
    try:
        return dataclasses.replace(precision, seed=saved.get("seed", precision.seed))
    except (TypeError, ValueError) as error:
        raise ValueError(f"seed: {error}") from None


def _read_entry(saved: Any, what: str, param: Tensor, group: Mapping[str, Any], precision: Precision) -> dict[str, Any]:
    if not isinstance(saved, Mapping):
        raise ValueError(f"{what} must be a dict, got {type(saved).__name__}")
    if not saved:
        return {}
    # torch.distributed.checkpoint gives an empty dict for what the file does not have.
    saved = {key: x for key, x in saved.items() if not (key in KEYS and isinstance(x, Mapping) and not x)}
    wanted = kinds(param, precision)
    out: dict[str, Any] = {"step": None}
    _entry(saved, "step", what)
    for moment in MOMENTS:
        if code_key(moment) not in saved:
            _entry(saved, moment, what)
        elif saved.get(moment) is not None:
            raise ValueError(
                f"{what} has both {moment!r} and {code_key(moment)!r}; 8-bit states of sharded parameters load into "
                "others by way of an optimizer with state_dtype='float32'"
            )
    out["step"] = _read_step(saved["step"], f"{what}['step']", param, group["capturable"])
    for moment in MOMENTS:
        out.update(_read_moment(saved, moment, what, param, wanted))
    if is_sharded(param):
        out.update(placeholders(out))
    for key in ("remainder", "master"):
        if key in wanted:
            out[key] = _read_master(saved, key, what, param, wanted[key])
    for key, value in saved.items():
        if key in out or key in _STORED:
            continue
        out[key] = value.detach().clone().to(param.device) if isinstance(value, Tensor) else deepcopy(value)
    return out


_STORED = (*MOMENTS, *map(code_key, MOMENTS), *SCALES, "remainder", "master")
"""What has been read, in whatever way, or what an optimizer that is set otherwise has no use for."""


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


def _read_moment(
    saved: Mapping[str, Any], moment: str, what: str, param: Tensor, wanted: Mapping[str, torch.dtype]
) -> dict[str, Any]:
    """Return a moment as it is wanted, in codes or numbers, from what was saved, either of them."""
    code, scale = code_key(moment), scale_key(moment)
    if code in saved:
        found, scales = _read_codes(saved, moment, what, param, wanted.get(code, codes.DTYPES[moment]))
        if code in wanted and not is_sharded(param) and codes.in_same_order(found, param):
            kept = new_tensor(param, wanted[code])
            return {code: kept.copy_(found), scale: scales.to(param.device)}
        numbers = codes.decoded(found, scales)
    else:
        numbers = _read_numbers(saved[moment], f"{what}[{moment!r}]", param, moment == "exp_avg_sq", wanted.get(moment))
        if code not in wanted:
            return {moment: numbers}
    if code not in wanted:
        with torch.no_grad():
            return {moment: new_tensor(param, wanted[moment]).copy_(numbers)}
    made, scales = codes.encoded(local_of(param), local_of(numbers), wanted[code])
    return {code: codes.like_shard(param, made) if is_sharded(param) else made, scale: scales}


def _read_codes(
    saved: Mapping[str, Any], moment: str, what: str, param: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    code, scale = code_key(moment), scale_key(moment)
    found, scales = saved[code], _entry(saved, scale, what)
    for key, value, wanted in ((code, found, dtype), (scale, scales, torch.float32)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{what}[{key!r}] must be a tensor, got {type(value).__name__}")
        if value.dtype is not wanted or value.layout is not torch.strided or value.is_meta:
            raise ValueError(f"{what}[{key!r}] is {value.dtype} on {value.device}; it must be {wanted} with values")
        if is_sharded(value) or is_sharded(param):
            raise ValueError(f"{what}[{key!r}]: codes of DTensors are saved as numbers, under {moment!r}")
    if found.shape != param.shape or param.is_complex():
        raise ValueError(f"{what}[{code!r}] has shape {tuple(found.shape)}, the parameter {tuple(param.shape)}")
    if tuple(scales.shape) != (blocks_of(found.numel()),):
        raise ValueError(
            f"{what}[{scale!r}] has shape {tuple(scales.shape)}; for {found.numel()} elements it must be "
            f"({blocks_of(found.numel())},)"
        )
    scales = scales.detach().to("cpu", copy=True)
    if not bool((scales.isfinite() & (scales >= 0)).all()):
        raise ValueError(f"{what}[{scale!r}] holds a number that is negative or not finite")
    return found.detach(), scales


def _read_numbers(value: Any, what: str, param: Tensor, is_square: bool, dtype: torch.dtype | None) -> Tensor:
    _check_like(value, what, param)
    if not (value.is_complex() if param.is_complex() else value.is_floating_point()):
        raise ValueError(f"{what} has dtype {value.dtype}, the parameter {param.dtype}")
    made = _copied(value, param, dtype or torch.float32)
    on_cpu = type(made) is Tensor and made.device.type == "cpu"
    if is_square and on_cpu and bool((torch.view_as_real(made) if made.is_complex() else made).lt(0).any()):
        raise ValueError(f"{what} holds a negative number, but it is an average of squares")
    return made


def _read_master(saved: Mapping[str, Any], key: str, what: str, param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is behind a 16-bit weight; zeros, which mean that it is as the parameter says, if nobody saved it."""
    value = saved.get(key)
    if value is None:
        return new_tensor(param, dtype)
    what = f"{what}[{key!r}]"
    _check_like(value, what, param)
    if value.dtype is param.dtype:
        return new_tensor(param, dtype)  # it went through torch.optim.RAdam, which makes all state of this dtype
    if value.dtype is not dtype and not (key == "remainder" and value.dtype is codes.SENT):
        raise ValueError(f"{what} has dtype {value.dtype}; for a parameter of {param.dtype} it must be {dtype}")
    made = _copied(value, param, dtype)
    if value.dtype is codes.SENT and bool((local_of(made) != local_of(_copied(value, param, codes.SENT))).any()):
        raise ValueError(f"{what} holds a number that is no int16")
    return made


def _check_like(value: Any, what: str, param: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} must be a tensor, got {type(value).__name__}")
    if value.shape != param.shape:
        raise ValueError(f"{what} has shape {tuple(value.shape)}, the parameter {tuple(param.shape)}")
    if value.layout is not param.layout or (value.is_meta and not param.is_meta):
        raise ValueError(f"{what} is {value.layout} on {value.device}, the parameter {param.layout} on {param.device}")
    if type(value) is not type(param) and "DTensor" in (type(value).__name__, type(param).__name__):
        raise ValueError(
            f"{what} is a {type(value).__name__}, the parameter a {type(param).__name__}; load sharded states with "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
        )


def _copied(value: Tensor, param: Tensor, dtype: torch.dtype) -> Tensor:
    # Normal tensors also where this runs in inference mode: they will be stepped outside of it.
    with torch.inference_mode(False), torch.no_grad():
        if hasattr(param, "placements"):  # copy_ refuses some changes of them
            value = value.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
        return new_tensor(param, dtype).copy_(value)


def _entry(mapping: Any, key: str, what: str) -> Any:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{what} must be a dict, got {type(mapping).__name__}")
    if key not in mapping:
        raise ValueError(f"{what} has no {key!r}")
    return mapping[key]
