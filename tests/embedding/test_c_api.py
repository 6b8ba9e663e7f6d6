"""The C interface gives other languages Python's bits and files."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from ctypes import c_char_p, c_int
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import c_library as c
import radam
from building import ROOT, configure, output, tool
from c_runs import grads_of, groups_of, params_of
from precisions import WAYS

HEADER = ROOT / "cpp" / "include" / "radam" / "radam.h"
EXAMPLE = ROOT / "examples" / "c"


@pytest.fixture(autouse=True)
def _library_settings_are_put_back() -> Iterator[None]:
    isa, threads = c.asked("get_isa", c_char_p), c.asked("get_num_threads", c_int)
    yield
    c.call("set_isa", isa)
    c.call("set_num_threads", threads)


def python_optimizer(groups: list[dict[str, Any]], convention: str = "torch", **keywords: Any) -> Any:
    if convention == "adam":
        return radam.Adam(groups, **keywords)
    return radam.RAdam(groups, convention=convention, **keywords)


def python_state_bytes(optimizer: Any) -> list[dict[str, bytes]]:
    """As c_library.Optimizer.state_bytes has them: nothing of parameters without elements."""
    states = [{key: np.asarray(value) for key, value in entry.items() if key != "step"} for entry in optimizer.state]
    return [{key: value.tobytes() for key, value in entry.items() if value.size > 0} for entry in states]


# ---- the same bits

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"{param} with {grad}": (param, grad, {})
       for param in ("float32", "bfloat16", "float16") for grad in ("float32", "bfloat16", "float16")},
    **{way: (dtype, dtype, options) for way, (dtype, options) in WAYS.items()},
    **{convention: ("float32", "float32", {"convention": convention}) for convention in (*radam.CONVENTIONS, "adam")},
    "float64": ("float64", "float64", {}),
    "coupled decay": ("float32", "float32", {"weight_decay": 0.1}),
    "decoupled decay": ("float32", "float32", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "maximize, eps": ("float32", "float32", {"maximize": True, "eps": 1e-3}),
    "amsgrad": ("float32", "float32", {"amsgrad": True}),
    "amsgrad, 8-bit": ("float32", "float32", {"amsgrad": True, "state_dtype": "8bit", "min_8bit_size": 0}),
    "max_grad_norm": ("float32", "float32", {"max_grad_norm": 1.5}),
    "max_tensor_grad_norm": ("bfloat16", "float16", {"max_tensor_grad_norm": 0.5}),
    "max_grad_value": ("float64", "float64", {"max_grad_value": 0.25}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_give_the_bits_of_python(case: str) -> None:
    dtype, grad_dtype, options = CASES[case]
    ours, theirs = groups_of(dtype), groups_of(dtype)
    through_c = c.Optimizer(ours, grad_dtype=grad_dtype, lr=0.01, **options)
    through_python = python_optimizer(theirs, lr=0.01, **options)
    for step in range(50):
        assert through_c.step(grads_of(step, grad_dtype))
        through_python.step(grads=grads_of(step, grad_dtype))
    assert params_of(ours) == params_of(theirs)
    assert through_c.state_bytes() == python_state_bytes(through_python)
    assert [through_c.steps(i) for i in range(3)] == [50, 33, 50]
    if "max_grad_norm" in options:
        assert c.asked("get_grad_norm", ctypes.c_double, through_c.handle) == through_python.grad_norm
    through_c.destroy()


def test_gradients_are_multiplied_by_their_scale() -> None:
    (ours, _), (theirs, _) = groups_of("float32"), groups_of("float32")
    scaled, plain = c.Optimizer([ours]), c.Optimizer([theirs])
    c.call("set_grad_scale", scaled.handle, 1 / 1024)
    for step in range(5):
        grads = grads_of(step, "float32")[:4]
        assert plain.step(grads)
        assert scaled.step([None if grad is None else grad * np.float32(1024) for grad in grads])
    assert params_of([ours]) == params_of([theirs])


@pytest.mark.parametrize("isa", radam.isas())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_instruction_sets_and_threads_do_not_show(isa: str, threads: int) -> None:
    ours = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)
    theirs, grad = ours.copy(), np.cos(ours)
    c.call("set_isa", isa.encode())
    c.call("set_num_threads", threads)
    assert c.asked("get_isa", c_char_p) == isa.encode()
    optimizer = c.Optimizer([{"params": [ours]}])
    reference = radam.RAdam([theirs])
    for _ in range(7):
        optimizer.step([grad])
        reference.step(grads=[grad])
    assert ours.tobytes() == theirs.tobytes()


def test_threads_of_python_s_run_the_parts_with_the_same_bits() -> None:
    ours = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)
    theirs, grad = ours.copy(), np.cos(ours)
    jobs: list[int] = []

    @c.RUN
    def run(_self: int, count: int, part: Callable[[int, int], None], context: int) -> None:
        jobs.append(count)
        workers = [threading.Thread(target=part, args=(context, index)) for index in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    optimizer, reference = c.Optimizer([{"params": [ours]}]), radam.RAdam([theirs])
    c.call("set_executor", optimizer.handle, 5, run, None)
    for _ in range(7):
        optimizer.step([grad])
        reference.step(grads=[grad])
    assert jobs == [5] * 7
    assert ours.tobytes() == theirs.tobytes()


# ---- files


@pytest.mark.parametrize("way", WAYS)
def test_python_goes_on_from_a_file_of_c_s_and_back(way: str, tmp_path: Path) -> None:
    dtype, options = WAYS[way]
    kept, moved = groups_of(dtype), groups_of(dtype)
    reference = python_optimizer(kept, lr=0.01, **options)
    here: Any = c.Optimizer(moved, lr=0.01, **options)
    for leg in range(4):  # C, Python, C, Python
        for step in range(10 * leg, 10 * leg + 10):
            reference.step(grads=grads_of(step, dtype))
            here.step(grads=grads_of(step, dtype))
        here.save(tmp_path / "state")
        other = python_optimizer if leg % 2 == 0 else c.Optimizer
        here = other(moved, lr=1.0, **{**options, "seed": 3})  # what the file says otherwise is taken from it
        here.load(tmp_path / "state")
    assert params_of(moved) == params_of(kept)
    assert here.state_bytes() == python_state_bytes(reference)
    c.call("set_lr", here.handle, 0.5)
    assert here.options(0).lr == here.options(1).lr == 0.5


# ---- the library


def test_the_library_has_python_s_version() -> None:
    assert c.LIBRARY.radam_version() == radam.__version__.encode()


@pytest.mark.skipif(os.name == "nt", reason="needs nm")
def test_the_library_shows_the_functions_of_the_header_and_nothing_else() -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    declared = set(re.findall(r"\b(radam_\w+)\(", text))
    assert declared == {f"radam_{name}" for name in (*c.FUNCTIONS, *c.TEXTS)}
    flags = ["-D", "--defined-only"] if c.path().suffix == ".so" else ["-gU"]
    shown = {line.split()[-1].removeprefix("_") for line in output([tool("nm"), *flags, c.path()]).splitlines()}
    assert shown == declared


def test_the_example_builds_with_a_c_compiler_and_resumes(tmp_path: Path) -> None:
    configure(EXAMPLE, tmp_path / "build", f"-Dradam_DIR={radam.get_cmake_dir()}", "-DCMAKE_C_FLAGS=-Werror")
    output([tool("cmake"), "--build", tmp_path / "build"])
    program = shutil.which("least_squares", path=str(tmp_path / "build"))
    assert program is not None
    first = output([program], cwd=tmp_path).splitlines()
    second = output([program], cwd=tmp_path).splitlines()
    assert first[0].startswith("step   1")
    assert second[0].startswith("step 201")
    assert float(second[-1].split()[-1]) < float(first[-1].split()[-1]) < float(first[0].split()[-1])
