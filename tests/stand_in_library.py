"""The stand-in for the CUDA library, compiled once: it runs the kernels' bodies on the host, over host memory."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from radam import _step

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "cpp" / "tests" / "cuda_stand_in.cpp"
REAL = Path(_step.__file__).with_name("radam_cuda.dll" if os.name == "nt" else "libradam_cuda.so")


class StandIn:
    """What tests ask of it besides stepping."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._library = ctypes.CDLL(str(path))
        self._library.stand_in_log.restype = ctypes.c_char_p

    def load(self) -> None:
        """Let radam take it for its CUDA library."""
        self.forget()
        _step.set_cuda_library(str(self._path))
        assert _step.why_cuda_is_off() == ""

    def unload(self) -> None:
        """Let radam find no CUDA library."""
        _step.set_cuda_library(str(self._path.with_name("missing.so")))

    def log(self) -> list[str]:
        """Return a line for each call so far: its name, device, stream and number of slots."""
        return str(self._library.stand_in_log().decode()).splitlines()

    def forget(self) -> None:
        """Empty the log, drop what was captured, stop capturing and failing."""
        self._library.stand_in_forget()

    def fail_after(self, calls: int) -> None:
        """Let the call after so many fail."""
        self._library.stand_in_fail_after(calls)

    def capture(self, on: bool) -> None:
        """Keep steps for a replay instead of taking them, or stop doing so."""
        self._library.stand_in_capture(int(on))

    def replay(self) -> None:
        """Take the captured steps."""
        self._library.stand_in_replay()


@pytest.fixture(scope="session")
def compiled_stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """Compile it."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or os.name == "nt" or not SOURCE.is_file():
        pytest.skip("the stand-in for the CUDA library needs the source tree and a C++ compiler")
    path = tmp_path_factory.mktemp("stand_in") / "libstand_in.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", f"-I{ROOT / 'cpp' / 'include'}"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(path)], check=True)
    return StandIn(path)


@pytest.fixture
def stand_in(compiled_stand_in: StandIn) -> Iterator[StandIn]:
    """Let radam step CUDA arrays through the stand-in."""
    compiled_stand_in.load()
    yield compiled_stand_in
    compiled_stand_in.forget()
    _step.set_cuda_library(str(REAL))
