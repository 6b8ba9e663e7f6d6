"""The headers give other compilers nothing to warn of: each by itself, every template, and inside CUDA sources.

cpp/tests/compilers.cmake asks the compiler that CMake takes.
"""

from __future__ import annotations

import functools
import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "cpp" / "include"
EVERY_TEMPLATE = ROOT / "cpp" / "tests" / "every_template.cpp"
CUDA_PROGRAM = Path(__file__).with_name("steps_on_host.cu")
FOLDER = INCLUDE / "radam"
HEADERS = [p.relative_to(FOLDER).as_posix() for p in sorted(FOLDER.rglob("*.hpp"))]
HEADERS = [name for name in HEADERS if not name.startswith("torch")]  # these need LibTorch
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
RAW_BUFFERS = ("radam.hpp", "tiles.hpp", "executor.hpp", "sweep.hpp")

compilers = pytest.mark.parametrize("compiler", ["clang++"])


def program(name: str) -> str:
    path = shutil.which(name)
    return path if path is not None else pytest.skip(f"needs {name}")


def compile_with(compiler: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [program(compiler), "-I", str(INCLUDE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def is_silent(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@functools.cache
def xsimd() -> list[str]:
    """The flags that give a compiler xsimd's headers, from the package pythran."""
    found = importlib.util.find_spec("pythran")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the headers of xsimd, which the package pythran holds")
    return ["-DRADAM_WITH_XSIMD=1", "-isystem", found.submodule_search_locations[0]]


@compilers
@pytest.mark.parametrize("header", HEADERS)
def test_a_header_compiles_by_itself(compiler: str, header: str) -> None:
    is_silent(
        compile_with(
            compiler, "-std=c++17", *STRICT, "-fsyntax-only", "-include", f"radam/{header}", "-xc++", "/dev/null"
        )
    )


@compilers
@pytest.mark.parametrize(
    ("standard", "march"), [("c++17", ""), ("c++20", ""), ("c++17", "haswell"), ("c++20", "skylake-avx512")]
)
def test_every_template_compiles_without_a_warning(compiler: str, standard: str, march: str) -> None:
    flags = [*xsimd(), f"-march={march}"] if march else []
    if march and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"{march} is an x86 processor")
    is_silent(compile_with(compiler, f"-std={standard}", *STRICT, *flags, "-fsyntax-only", EVERY_TEMPLATE))


@compilers
@pytest.mark.parametrize("header", RAW_BUFFERS)
def test_the_raw_buffers_need_no_exceptions_and_no_rtti(compiler: str, header: str) -> None:
    flags = ["-std=c++17", *STRICT, "-fno-exceptions", "-fno-rtti", "-fsyntax-only"]
    is_silent(compile_with(compiler, *flags, "-include", f"radam/{header}", EVERY_TEMPLATE))


@compilers
def test_fast_math_is_refused(compiler: str) -> None:
    done = compile_with(compiler, "-std=c++17", "-ffast-math", "-fsyntax-only", EVERY_TEMPLATE)
    assert done.returncode != 0
    assert "-ffast-math would break" in done.stderr


@pytest.mark.parametrize("kind", ["optimizer", "raw buffers"])
def test_a_cuda_source_may_include_it(kind: str, tmp_path: Path) -> None:
    flags = ["-std=c++17", "-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra,-Wconversion,-Wshadow"]
    if kind == "raw buffers":
        flags += ["-DRAW_BUFFERS", "-Xcompiler=-fno-exceptions,-fno-rtti"]
    is_silent(compile_with("nvcc", *flags, "-O0", "-c", CUDA_PROGRAM, "-o", tmp_path / "steps_on_host.o"))
