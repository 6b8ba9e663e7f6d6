"""Saved states as safetensors files: written whole or not at all, no pickle."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import to_numpy
from .precision import KEYS, as_float32
from .saved import tuples


def write_file(path: str | os.PathLike[str], saved: Mapping[str, Any]) -> None:
    """Write a state dict as safetensors: to a temporary file beside it, synced, then renamed over the old one."""
    from safetensors.numpy import save_file

    steps, orders, tensors = {}, {}, {}
    for index, entry in saved["state"].items():
        steps[str(index)] = entry["step"]
        if "block_order" in entry:
            orders[str(index)] = entry["block_order"]
        for name in KEYS:
            if name in entry:
                host = to_numpy(entry[name])
                tensors[f"{index}.{name}"] = np.ascontiguousarray(host).reshape(host.shape)
    header = {**{key: value for key, value in saved.items() if key != "state"}, "steps": steps, "block_orders": orders}
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
        with contextlib.suppress(OSError):  # not every folder can be synced, and the new file is in its place
            _sync(target.parent)


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
                stored = file.get_slice(key).get_dtype()
                state[int(index)][name] = _bfloat16(path, key) if stored == "BF16" else file.get_tensor(key)
            for index, order in header.get("block_orders", {}).items():
                state[int(index)]["block_order"] = order
            groups = [
                {key: v if key == "params" else tuples(v) for key, v in group.items()}
                for group in header["param_groups"]
            ]
            kept = {key: value for key, value in header.items() if key not in ("steps", "block_orders")}
            return {**kept, "state": state, "param_groups": groups}
    except (SafetensorError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a saved radam state: {error}") from error


def _bfloat16(path: str | os.PathLike[str], key: str) -> Any:
    """Return bfloat16 numbers of a safetensors file as float32, which needs no package for NumPy."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        about = json.loads(file.read(length))[key]
        begin, end = about["data_offsets"]
        file.seek(8 + length + begin)
        return as_float32(np.frombuffer(file.read(end - begin), "<u2").reshape(about["shape"]))
