"""What the optimizer remembers of each parameter: made when it is missing, taken back, and kept exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from ..precision import Precision, blocks_of, code_key, is_scale, scale_key
from . import settings
from .unwrap import has_kernel, is_sharded

MOMENTS = ("exp_avg", "exp_avg_sq")
SCALES = tuple(map(scale_key, MOMENTS))
Keys = tuple[str | tuple[str | None, ...], ...]
KEYS: Keys = (*MOMENTS, "step")
"""What a step collects of each state."""
STORED_KEYS: Keys = (
    *((code_key(moment), moment) for moment in MOMENTS),
    "step",
    ("remainder", "master", None),
    *((scale, None) for scale in SCALES),
)
"""The same where states may hold codes or master weights: the first that is there, None for nothing."""
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


def new_tensor(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros in the parameter's own memory order (a DTensor for a DTensor)."""
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)


def kinds(param: Tensor, precision: Precision) -> dict[str, torch.dtype]:
    """Return the dtypes of all that the state of a parameter holds, by key, but for its step count.

    Of complex parameters only complex32 has anything in fewer bits: a master copy.
    """
    name = str(param.dtype).removeprefix("torch.")
    if name in ("bfloat16", "float16", "float32", "float64"):
        return {key: getattr(torch, dtype) for key, dtype in precision.entries(name, param.numel()).items()}
    found = dict.fromkeys(MOMENTS, moment_dtype(param.dtype))
    if precision.master_weights and param.dtype is torch.complex32:
        found["master"] = torch.complex64
    return found


def counts_on_device(param: Tensor, group: Mapping[str, Any], fused_amp: bool) -> bool:
    """Whether a step count lives where the parameter does: where a graph advances it, or GradScaler may skip steps."""
    return bool(group["capturable"]) or (fused_amp and param.device.type == "cuda" and has_kernel(param.device))


def refuse_in_capture(param: Tensor, what: str) -> None:
    """Refuse to make what replays of a CUDA graph would make anew, as zeros, every time."""
    if param.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"{what} would be made inside a CUDA graph, and anew at every replay; take one step before")


def create(param: Tensor, on_device: bool, precision: Precision) -> dict[str, Any]:
    """Return the state of a parameter before its first step, with the step count on its device or on the CPU."""
    made: dict[str, Any] = {"step": count_tensor(0, param, on_device)}
    for key, dtype in kinds(param, precision).items():
        if is_scale(key):
            made[key] = torch.zeros(blocks_of(local_of(param).numel()), dtype=dtype, device=param.device)
        else:
            made[key] = new_tensor(param, dtype)
    if is_sharded(param):
        made.update(placeholders(made))
    return made


def placeholders(entry: Mapping[str, Any]) -> dict[str, None]:
    """Return the moments that the state of a DTensor keeps in codes, each as None.

    State dicts have them under these names, and torch.distributed.checkpoint takes the names from the live state.
    """
    return {moment: None for moment in MOMENTS if code_key(moment) in entry}


def local_of(tensor: Tensor) -> Tensor:
    """Return the memory of a DTensor in this process; of others themselves."""
    detached: Any = tensor.detach()
    local: Tensor = detached.to_local() if is_sharded(tensor) else detached
    return local


def collected(entry: Mapping[str, Any]) -> list[Any]:
    """Return what a step collects of a state, in the order of STORED_KEYS; None for what it lacks."""
    moments = [entry[code_key(moment)] if code_key(moment) in entry else entry[moment] for moment in MOMENTS]
    master = entry.get("remainder", entry.get("master"))
    return [*moments, entry["step"], master, *(entry.get(scale) for scale in SCALES)]


def add_masters(entry: MutableMapping[str, Any], param: Tensor, precision: Precision) -> None:
    """Add what is kept of a 16-bit weight to a state that was made when the parameter was of another dtype.

    Zeros: they mean that the weight is what the parameter says.
    """
    if precision.master_weights:
        for key, dtype in kinds(param, precision).items():
            if key in ("remainder", "master") and key not in entry:
                entry[key] = new_tensor(param, dtype)


class Fresh:
    """States that were made for a step, to be taken back if it does not happen."""

    def __init__(self, state: MutableMapping[Any, Any], precision: Precision, fused_amp: bool = False) -> None:
        self._state = state
        self._precision = precision
        self._fused_amp = fused_amp
        self._made: list[tuple[Tensor, list[str]]] = []

    def add(self, group: Mapping[str, Any], number: int, indices: Iterable[int]) -> None:
        """Make the states that parameters of a group lack."""
        for i in indices:
            param = group["params"][i]
            if param.grad.is_sparse:
                raise RuntimeError("RAdam does not support sparse gradients")
            entry = self._state.get(param)
            wanted = (*kinds(param, self._precision), "step")
            present = [key for key in wanted if key in (entry or ())]
            if len(present) == len(wanted):
                continue  # the same parameter again
            if entry is not None and present and set(wanted) - set(present) <= {"remainder", "master"}:
                add_masters(entry, param, self._precision)
                continue
            if present:
                missing = next(key for key in wanted if key not in present)
                name = settings.name_of(group, number, i)
                raise ValueError(f"the state of {name} has {present[0]!r} but no {missing!r}")
            refuse_in_capture(param, f"the state of {settings.name_of(group, number, i)}")
            made = create(param, counts_on_device(param, group, self._fused_amp), self._precision)
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
