"""A saved state is one plain file: written whole or not at all, and refused where it is broken."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import radam
from snapshots import arrays, bits, frozen

SHAPES = [(6, 5), (3, 1), (1, 4)]
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def stepped() -> radam.RAdam:
    optimizer = radam.RAdam(arrays(1, *SHAPES), lr=0.1, amsgrad=True)
    for seed in (5, 6):
        optimizer.step(grads=arrays(seed, *SHAPES))
    return optimizer


def test_a_file_is_plain_safetensors(tmp_path: Path) -> None:
    optimizer = stepped()
    optimizer.save(tmp_path / "s")
    tensors = load_file(tmp_path / "s")
    assert sorted(tensors) == sorted(f"{i}.{name}" for i in range(3) for name in MOMENTS)
    assert bits(tensors["0.exp_avg"]) == bits(optimizer.state[0]["exp_avg"])
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("call", ["os.replace", "os.fsync", "os.chmod", "safetensors.numpy.save_file"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"]
)
def test_a_save_that_fails_keeps_the_old_file_and_leaves_no_other(
    call: str, error: BaseException, tmp_path: Path, monkeypatch: Any
) -> None:
    path, optimizer = tmp_path / "state", stepped()
    optimizer.save(path)
    old = path.read_bytes()
    optimizer.step(grads=arrays(9, *SHAPES))

    def fail(*args: Any, **keywords: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises(type(error)):
            optimizer.save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["state"]
    optimizer.save(path)
    assert path.read_bytes() != old


def test_a_file_is_synced_before_it_takes_the_old_one_s_place(tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda handle: (calls.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr("os.replace", lambda *paths: (calls.append("replace"), replace(*paths))[1])
    stepped().save(tmp_path / "s")
    assert calls[:2] == ["fsync", "replace"]


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX systems alone")
def test_a_folder_that_cannot_be_synced_is_no_error_once_the_new_file_is_there(
    tmp_path: Path, monkeypatch: Any
) -> None:
    fsync = os.fsync

    def of_files(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr("os.fsync", of_files)
    stepped().save(tmp_path / "s")
    stepped().load(tmp_path / "s")


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
def test_a_file_has_the_permissions_of_any_new_file_and_keeps_those_it_had(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    stepped().save(tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "s").chmod(0o640)
    stepped().save(tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_what_is_there_and_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="is there and is no file"):
            stepped().save(path)
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        stepped().save(tmp_path / "nowhere" / "state")
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_link_is_saved_through(tmp_path: Path) -> None:
    try:
        (tmp_path / "link").symlink_to(tmp_path / "file")
    except OSError as error:  # Windows lets some users alone make them
        pytest.skip(f"no links can be made here: {error}")
    stepped().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    stepped().load(tmp_path / "file")


def refused(path: Path, error: type[Exception] = ValueError, words: str | None = None) -> None:
    optimizer = stepped()
    before = frozen(optimizer)
    with pytest.raises(error, match=words):
        optimizer.load(path)
    assert frozen(optimizer) == before


def test_a_file_cut_short_anywhere_is_a_value_error(tmp_path: Path) -> None:
    stepped().save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for length in {*range(0, 40), *range(40, len(content), 37), len(content) - 1}:
        (tmp_path / "cut").write_bytes(content[:length])
        refused(tmp_path / "cut", words="cut")
    (tmp_path / "cut").write_bytes(content)
    stepped().load(tmp_path / "cut")


def test_a_file_of_something_else_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "other"
    for content in (
        b"",
        b"hello",
        bytes(4096),
        np.random.default_rng(0).bytes(4096),
        b"\xff" * 64,
        pickle.dumps({"version": 1}),
    ):
        path.write_bytes(content)
        refused(path, words="other")
    save_file({"w": np.ones(2)}, path)
    refused(path, words="was not saved by radam")
    save_file({"w": np.ones(2)}, path, metadata={"other": "x"})
    refused(path, words="was not saved by radam")


HEADERS = [
    "",
    "x",
    "[]",
    "{}",
    "3",
    '{"steps": {}}',
    '{"version": 1, "steps": [], "param_groups": []}',
    '{"version": 1, "steps": {"a": 1}, "param_groups": []}',
    '{"version": 1, "steps": {}, "param_groups": 3}',
    '{"version": 1, "steps": {}, "param_groups": [3, 4]}',
    "[" * 100_000,
]


@pytest.mark.parametrize("header", HEADERS, ids=[h[:60] or "empty" for h in HEADERS])
def test_a_file_with_a_broken_header_is_a_value_error(header: str, tmp_path: Path) -> None:
    save_file({"0.exp_avg": np.ones(2)}, tmp_path / "s", metadata={"radam": header})
    refused(tmp_path / "s")


@pytest.mark.parametrize("key", ["w", "7.exp_avg", "x.exp_avg", "0.other", "0"])
def test_a_file_with_a_stray_tensor_is_a_value_error(key: str, tmp_path: Path) -> None:
    stepped().save(tmp_path / "s")
    from safetensors import safe_open

    with safe_open(tmp_path / "s", framework="numpy") as file:
        metadata = file.metadata()
    save_file({**load_file(tmp_path / "s"), key: np.ones(2)}, tmp_path / "t", metadata=metadata)
    refused(tmp_path / "t")
    header = json.loads(metadata["radam"])
    header["version"] = 3
    save_file(load_file(tmp_path / "s"), tmp_path / "u", metadata={"radam": json.dumps(header)})
    refused(tmp_path / "u", words="version 3")


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    refused(tmp_path / "none", FileNotFoundError, "none")
    refused(tmp_path, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        stepped().save(tmp_path / "no folder" / "s")
