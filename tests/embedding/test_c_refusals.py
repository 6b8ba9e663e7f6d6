"""Whatever is wrong in a call of the C interface has a status and a text, and changes nothing."""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import c_library as c
from building import output
from c_runs import grads_of, groups_of, params_of


class World:
    """An optimizer that has taken steps, the arguments to get wrong with it, and all that a failure must not change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.groups = groups_of("float32")
        self.optimizer = c.Optimizer(self.groups)
        self.grads = grads_of(1, "float32")
        self.optimizer.step(self.grads)
        self.handle = self.optimizer.handle
        self.free = np.ones(300, np.float32)  # memory that nobody has yet
        self.index = c_size_t(77)

    def snapshot(self) -> Any:
        self.optimizer.save(self.folder / "snapshot")
        counts = c_size_t(), c_size_t()
        c.call("count", self.handle, byref(counts[0]), byref(counts[1]))
        self.optimizer.state_bytes()
        return (
            (self.folder / "snapshot").read_bytes(),
            params_of(self.groups),
            [bytes(self.optimizer.options(group)) for group in range(2)],
            [count.value for count in counts],
            self.index.value,
            self.free.tobytes(),
        )

    def add(self, param: Any = ..., dtype: int = 1, grad: Any = None, grad_dtype: int = 1, size: int = 300,
            **options: Any) -> int:  # fmt: skip
        described = c.ParamOptions()
        c.call("param_options_init", byref(described), ctypes.sizeof(described))
        for name, value in options.items():
            setattr(described, name, value)
        where = self.free.ctypes.data if param is ... else param
        return c.status_of("add_param", self.handle, where, dtype, grad, grad_dtype, size, described, byref(self.index))

    def set_options(self, group: int = 0, **changed: Any) -> int:
        wanted = self.optimizer.options(group)
        for name, value in changed.items():
            setattr(wanted, name, value)
        return c.status_of("set_options", self.handle, group, wanted)

    def load(self, content: bytes) -> int:
        (self.folder / "bad").write_bytes(content)
        return c.status_of("load", self.handle, str(self.folder / "bad").encode())

    def state_without_a_moment(self) -> Any:
        state = c.State()
        c.call("state_init", byref(state), ctypes.sizeof(state))
        state.exp_avg = np.zeros(300, np.float32).ctypes.data
        return ctypes.pointer(state)


def create(convention: bytes | None = None, precision: dict[str, Any] | None = None, **given: Any) -> int:
    handle = c_void_p()
    status = c.status_of(
        "create", byref(handle), c.options_of(given), convention, c.precision_of(precision) if precision else None
    )
    assert handle.value is None, "a failed create wrote a handle"
    return status


def first_param(world: World) -> int:
    return int(world.groups[0]["params"][0].ctypes.data)


BAD: dict[str, tuple[Callable[[World], int], int, str]] = {
    "no optimizer": (lambda w: c.status_of("step", None, None), c.INVALID_ARGUMENT, "optimizer must not be null"),
    "no place for one": (
        lambda w: c.status_of("create", None, None, None, None), c.INVALID_ARGUMENT, "optimizer must not be null"),
    "no such convention": (
        lambda w: create(b"keras"), c.INVALID_ARGUMENT, 'convention must be one of torch, .*, adam, got "keras"'),
    "create, lr": (lambda w: create(lr=-1.0), c.INVALID_ARGUMENT, "lr must be a finite number, at least 0, got -1"),
    "create, decay": (
        lambda w: create(b"optax", weight_decay=0.1), c.INVALID_ARGUMENT, "weight_decay must be 0 in a convention"),
    "create, precision": (
        lambda w: create(precision={"master_weights": 1, "stochastic_rounding": 1}), c.INVALID_ARGUMENT,
        "stochastic_rounding must be false where master_weights is true"),
    "create, flag": (
        lambda w: create(precision={"master_weights": 2}), c.INVALID_ARGUMENT, "master_weights must be 0 or 1, got 2"),
    "create, 8-bit size": (
        lambda w: create(precision={"min_8bit_size": -1}), c.INVALID_ARGUMENT, "min_8bit_size must be at least 0"),
    "add_group, options": (
        lambda w: c.status_of("add_group", w.handle, c.options_of({"betas": (1.0, 0.9)}), byref(w.index)),
        c.INVALID_ARGUMENT, "group 2: beta1 must be at least 0 and below 1, got 1"),
    "no group": (lambda w: c.status_of("set_group_lr", w.handle, 2, 0.1), c.INVALID_ARGUMENT, "there is no group 2"),
    "no group to read": (
        lambda w: c.status_of("get_options", w.handle, 9, c.options_of({})), c.INVALID_ARGUMENT, "there is no group 9"),
    "lr of all": (lambda w: c.status_of("set_lr", w.handle, np.nan), c.INVALID_ARGUMENT, "lr must be .* got nan"),
    "eps": (lambda w: w.set_options(eps=-2.0), c.INVALID_ARGUMENT, "group 0: eps must be a finite number"),
    "maximize": (lambda w: w.set_options(1, maximize=9), c.INVALID_ARGUMENT, "maximize must be 0 or 1, got 9"),
    "decay": (
        lambda w: w.set_options(decoupled_weight_decay=-2), c.INVALID_ARGUMENT,
        "decoupled_weight_decay must be 0 or 1, got -2"),
    "struct_size": (lambda w: w.set_options(struct_size=8), c.INVALID_ARGUMENT, "radam_options: struct_size is 8"),
    "coefficients": (lambda w: w.set_options(lr=1e300), c.INVALID_ARGUMENT, "too large for float32"),
    "null parameter": (lambda w: w.add(None), c.INVALID_ARGUMENT, "parameter 7: its pointer is null"),
    "named": (lambda w: w.add(None, name=b"bias"), c.INVALID_ARGUMENT, r'parameter 7 \("bias"\): its pointer is null'),
    "dtype": (lambda w: w.add(dtype=9), c.INVALID_ARGUMENT, "param_dtype must be RADAM_FLOAT64, .* got 9"),
    "grad dtype": (lambda w: w.add(grad_dtype=-1), c.INVALID_ARGUMENT, "grad_dtype must be RADAM_FLOAT64, .* got -1"),
    "pair": (lambda w: w.add(grad_dtype=0), c.INVALID_ARGUMENT, "float32 parameter cannot have a float64 gradient"),
    "size": (lambda w: w.add(size=-1), c.INVALID_ARGUMENT, "its size must be at least 0, got -1"),
    "twice": (
        lambda w: w.add(first_param(w) + 4, size=2), c.INVALID_ARGUMENT, "it shares memory with parameter 0"),
    "grad in param": (
        lambda w: w.add(grad=w.free.ctypes.data), c.INVALID_ARGUMENT, "shares memory with the parameter itself"),
    "shape": (
        lambda w: w.add(ndim=2, shape=(c_int64 * 2)(3, 99)), c.INVALID_ARGUMENT, "does not have its 300 elements"),
    "no shape": (lambda w: w.add(ndim=1), c.INVALID_ARGUMENT, "shape must not be null"),
    "ndim": (lambda w: w.add(ndim=65), c.INVALID_ARGUMENT, "ndim must be from 0 to 64, got 65"),
    "state": (
        lambda w: w.add(state=w.state_without_a_moment()), c.INVALID_ARGUMENT, "its state lacks exp_avg_sq"),
    "state of another library": (
        lambda w: w.add(state=ctypes.pointer(c.State())), c.INVALID_ARGUMENT, "radam_state: struct_size is 0"),
    "memory": (lambda w: w.add(size=2**60 - 1, param=2**62), c.OUT_OF_MEMORY, "out of memory"),
    "no parameter": (lambda w: c.status_of("set_grad", w.handle, 7, None), c.INVALID_ARGUMENT, "no parameter 7"),
    "no steps": (
        lambda w: c.status_of("get_steps", w.handle, 7, c_int64()), c.INVALID_ARGUMENT, "there is no parameter 7"),
    "grad in a param": (
        lambda w: c.status_of("set_grad", w.handle, 1, first_param(w)), c.INVALID_ARGUMENT, "gradient shares memory"),
    "param to null": (lambda w: c.status_of("set_param", w.handle, 0, None), c.INVALID_ARGUMENT, "pointer is null"),
    "norm": (
        lambda w: c.status_of("set_max_grad_norm", w.handle, -1.0), c.INVALID_ARGUMENT, "max_grad_norm must be"),
    "grad scale": (
        lambda w: c.status_of("set_grad_scale", w.handle, np.inf), c.INVALID_ARGUMENT, "grad_scale must be a finite"),
    "skip": (lambda w: c.status_of("set_skip_nonfinite", w.handle, 7), c.INVALID_ARGUMENT, "skip must be 0 or 1"),
    "threads": (lambda w: c.status_of("set_num_threads", 1025), c.INVALID_ARGUMENT, "from 1 to 1024, got 1025"),
    "isa": (lambda w: c.status_of("set_isa", b"mmx"), c.INVALID_ARGUMENT, "isa=mmx: no such instruction set"),
    "no file": (
        lambda w: c.status_of("load", w.handle, str(w.folder / "none").encode()), c.IO_ERROR, "no such file: .*none"),
    "no folder": (
        lambda w: c.status_of("save", w.handle, str(w.folder / "none" / "x").encode()), c.IO_ERROR, "folder: .*none"),
    "no safetensors": (lambda w: w.load(b"hello, world, hello"), c.IO_ERROR, "bad"),
    "another's state": (lambda w: w.load(other_state(w.folder)), c.IO_ERROR, "bad.*groups"),
}  # fmt: skip


def other_state(folder: Path) -> bytes:
    other = c.Optimizer([{"params": [np.ones(3, np.float32)]}])
    other.step([np.ones(3, np.float32)])
    other.save(folder / "other")
    return (folder / "other").read_bytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_has_a_status_and_a_text_and_changes_nothing(name: str, world: World) -> None:
    wrong, status, text = BAD[name]
    before = world.snapshot()
    settings = c.asked("get_isa", c_char_p), c.asked("get_num_threads", c_int)
    assert wrong(world) == status
    assert re.search(text, c.last_error())
    assert world.snapshot() == before
    assert (c.asked("get_isa", c_char_p), c.asked("get_num_threads", c_int)) == settings
    assert world.optimizer.step(world.grads)  # it is not busy, and goes on


def test_each_thread_has_its_own_last_error() -> None:
    assert c.status_of("set_num_threads", 0) == c.INVALID_ARGUMENT
    mine, seen = c.last_error(), []

    def elsewhere() -> None:
        seen.append(c.last_error())
        assert c.status_of("set_isa", b"mmx") == c.INVALID_ARGUMENT
        seen.append(c.last_error())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen[0] == ""
    assert "mmx" in seen[1]
    assert c.last_error() == mine
    assert "from 1 to 1024, got 0" in mine


def test_an_optimizer_in_use_is_busy_for_everybody_else() -> None:
    param = np.ones(70_000, np.float32)
    optimizer = c.Optimizer([{"params": [param]}])
    found: list[int] = []

    @c.RUN
    def run(_self: int, count: int, part: Callable[[int, int], None], context: int) -> None:
        found.append(c.status_of("set_lr", optimizer.handle, 5.0))
        thread = threading.Thread(target=lambda: found.append(c.status_of("destroy", optimizer.handle)))
        thread.start()
        thread.join()
        for index in range(count):
            part(context, index)

    c.call("set_executor", optimizer.handle, 2, run, None)
    assert optimizer.step([np.ones(70_000, np.float32)])
    assert found == [c.BUSY, c.BUSY]
    assert param[0] != 1.0
    assert optimizer.options(0).lr == 1e-3
    optimizer.destroy()


def test_nothing_to_destroy_is_fine() -> None:
    assert c.status_of("destroy", None) == c.OK


IN_AN_ENVIRONMENT = """
import ctypes, sys
library, handle, buffer = ctypes.CDLL(sys.argv[1]), ctypes.c_void_p(), (ctypes.c_float * 3)()
library.radam_last_error.restype = ctypes.c_char_p
status = library.radam_create(ctypes.byref(handle), None, None, None)
if status == 0:
    status = library.radam_add_param(handle, buffer, 1, None, 1, ctypes.c_int64(3), None, None)
print(status, library.radam_last_error().decode())
"""


@pytest.mark.parametrize("name", ["RADAM_NUM_THREADS", "RADAM_ISA"])
def test_a_wrong_environment_is_refused_when_an_optimizer_needs_it(name: str) -> None:
    said = output([sys.executable, "-c", IN_AN_ENVIRONMENT, c.path()], {name: "many"})
    assert said.startswith(f"{c.INVALID_ARGUMENT} {name}")
    assert "many" in said
    assert output([sys.executable, "-c", IN_AN_ENVIRONMENT, c.path()]) == f"{c.OK} \n"
