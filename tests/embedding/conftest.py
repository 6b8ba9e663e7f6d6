"""What the tests share: radam installed as libraries are, its source as it is downloaded, and the bits to reach."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import radam
from building import ROOT, configure, output, tool

INSTALLED = ("-DRADAM_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0")


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Radam with its compiled library, in a folder with the name that it was configured for."""
    folder = tmp_path_factory.mktemp("prefix")
    build, prefix = folder / "build", folder / "prefix"
    configure(ROOT, build, f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DRADAM_XSIMD=OFF", "-DRADAM_C=OFF", *INSTALLED)
    output([tool("cmake"), "--build", build])
    output([tool("cmake"), "--install", build])
    return prefix


@pytest.fixture(scope="session")
def moved(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, elsewhere: a folder whose name has a space in it."""
    return Path(shutil.copytree(prefix, tmp_path_factory.mktemp("moved") / "another prefix"))


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The headers alone, installed without compiling anything."""
    folder = tmp_path_factory.mktemp("headers")
    configure(ROOT, folder / "build", f"-DCMAKE_INSTALL_PREFIX={folder / 'prefix'}", "-DRADAM_DISPATCH=OFF", *INSTALLED)
    output([tool("cmake"), "--install", folder / "build"])
    return folder / "prefix"


@pytest.fixture(scope="session")
def source_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source as a tag's archive has it, without what FetchContent does not need."""
    path = tmp_path_factory.mktemp("source") / "radam.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("CMakeLists.txt", "cmake", "cpp"):
            archive.add(ROOT / name, f"radam/{name}")
    return path


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python without packages, so without xsimd's headers."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())


@pytest.fixture(scope="session")
def bits() -> list[str]:
    """What the consumer must print of its array: what the Python package makes of the same one."""
    w = np.array([1.0, -2.0, 0.5, 3.0, -0.25, 8.0, -1.5, 0.125, 5.0], np.float32)
    optimizer = radam.RAdam([w], lr=0.1)
    for _ in range(20):
        optimizer.step(grads=[2 * w])
    return [f"{x:08x}" for x in w.view(np.uint32)]
