"""Configures, builds and runs the consumer as a user would, away from what this machine has set."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import radam

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = Path(__file__).resolve().parent / "consumer"
OURS = ("RADAM_", "CMAKE_", "PKG_CONFIG_", "XSIMD_", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "SKBUILD_", "OMP_")
# What makes a compiler use the best loops of this machine that xsimd has and that need no newer machine than most.
SIMD = {"avx2": "-mavx2 -mfma -mf16c", "neon": "", "portable": ""}
SIMD_ISA = next(isa for isa in SIMD if isa in radam.isas())


def tool(*names: str) -> str:
    """The path of the first of some programs that there is, in this environment or on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = next((found for name in names if (found := shutil.which(name, path=path))), None)
    return found or pytest.skip(f"needs {' or '.join(names)}")


def run(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.upper().startswith(OURS)}
    clean["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [str(part) for part in command],
        env={**clean, **(environment or {})},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def output(command: Sequence[str | Path], environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a command prints; the test fails if the command does."""
    done = run(command, environment, cwd)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def try_to_configure(
    source: Path, build: Path, *settings: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Configure without a network, and return what CMake says, in one line: it breaks its messages anywhere."""
    command: list[str | Path] = [tool("cmake"), "-S", source, "-B", build, "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", "-DFETCHCONTENT_FULLY_DISCONNECTED=ON", *settings]
    done = run(command, environment)
    return subprocess.CompletedProcess(done.args, done.returncode, " ".join(done.stdout.split()))


def configure(source: Path, build: Path, *settings: str, environment: Mapping[str, str] | None = None) -> str:
    done = try_to_configure(source, build, *settings, environment=environment)
    assert done.returncode == 0, done.stdout
    return done.stdout


def build_consumer(build: Path, *settings: str) -> list[str]:
    """Configure, build and run the consumer; return what it prints."""
    configure(CONSUMER, build, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *settings)
    output([tool("cmake"), "--build", build])
    return run_consumer(build)


def run_consumer(folder: Path) -> list[str]:
    return output([folder / ("consumer.exe" if os.name == "nt" else "consumer")]).split()


def cache(build: Path) -> dict[str, str]:
    """What CMake remembers of a build: names, without their types, and values."""
    lines = (build / "CMakeCache.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith(("#", "//")))
    return {name.split(":")[0]: value for name, value in pairs}


def compile_commands(build: Path) -> dict[str, list[str]]:
    """The command of each compiled file, by its name."""
    entries = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    return {Path(entry["file"]).name: shlex.split(entry["command"]) for entry in entries}


def is_under(path: str | Path, folder: str | Path) -> bool:
    return Path(folder).resolve() in Path(path).resolve().parents
