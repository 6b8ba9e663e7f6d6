#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox"]
# ///
"""Everything that must pass before a change lands: `python -m nox` runs all of it, on the built wheel."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "virtualenv"  # with pip in it, which some sessions call
nox.options.stop_on_first_error = False

DIST = Path("build/dist")
# Bytes.
LARGEST_WHEEL = {"with CUDA": 6_000_000, "without CUDA": 2_000_000}
LARGEST_CUDA_LIBRARY = 6_000_000
# What tests/test_cuda_build.py takes besides nvcc: the build's tools, and those that take a CUDA library apart.
CUDA_BUILD = [
    f"{requirement}; sys_platform == 'linux' and platform_machine == 'x86_64'"
    for requirement in ("cmake>=3.26", "ninja", "nvidia-cuda-cuobjdump==13.5.*", "nvidia-cuda-nvdisasm==13.5.*")
]

FRAMEWORKS = ["paddlepaddle==3.3.1", "jax==0.10.*", "optax==0.2.8", "scikit-learn>=1.3"]
MINDSPORE = ["mindspore==2.10.0", "numpy<2", "scikit-learn>=1.3"]
MINDSPORE += ["pytest>=8", "hypothesis>=6.100", "mpmath>=1.3", "ml_dtypes>=0.4"]


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel that the other sessions install, and one without CUDA where that one has it."""
    session.install("pip>=25")
    shutil.rmtree(DIST, ignore_errors=True)
    if not build_wheel(session, DIST):
        why = "no nvcc was found" if shutil.which("nvcc") is None else "nvcc could not build it; pip wheel -v says why"
        session.warn(f"The wheel is without CUDA, and the build of CUDA is not tested: {why}.")
    elif build_wheel(session, DIST / "without-cuda", "-C", "cmake.define.RADAM_CUDA=OFF"):
        session.error("RADAM_CUDA=OFF has built CUDA")


def build_wheel(session: nox.Session, folder: Path, *settings: str) -> bool:
    """Build a wheel that is not too large; return whether CUDA is in it."""
    session.run("python", "-m", "pip", "wheel", ".", "--no-deps", "--wheel-dir", str(folder), *settings)
    (path,) = folder.glob("radam-*.whl")
    with zipfile.ZipFile(path) as archive:
        libraries = [entry for entry in archive.infolist() if "radam_cuda." in entry.filename]
    kind = "with CUDA" if libraries else "without CUDA"
    sizes = [(f"the wheel {kind}", path.stat().st_size, LARGEST_WHEEL[kind])]
    sizes += [("the CUDA library", entry.file_size, LARGEST_CUDA_LIBRARY) for entry in libraries]
    for what, size, largest in sizes:
        session.log(f"{what} has {size} bytes of at most {largest}")
        if size > largest:
            session.error(f"{what} is too large")
    return bool(libraries)


def built_wheel(session: nox.Session) -> str:
    """Return the path of the wheel."""
    wheels = sorted(DIST.glob("radam-*.whl"))
    if not wheels:
        session.error("there is no wheel: run the session 'wheel' first")
    return str(wheels[-1].resolve())


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and spelling."""
    session.install(
        "ruff==0.17.*",
        "mypy==2.*",
        "clang-format==23.*",
        "codespell==2.4.*",
        "torch==2.13.0",
        built_wheel(session),
        *FRAMEWORKS,
    )
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    folders = [Path(folder) for folder in ("bench", "cpp", "examples", "python", "tests")]
    kinds = ("[hc]", "[hc]pp", "cu", "cuh")
    sources = [str(path) for folder in folders for kind in kinds for path in folder.rglob(f"*.{kind}")]
    session.run("clang-format", "--dry-run", "--Werror", *sources)
    session.run("codespell", ".")
    with session.chdir("tests"):  # away from the tree, so that mypy reads the installed package
        session.run("mypy", "--config-file", "../pyproject.toml", "-p", "radam")


@nox.session
def cpp(session: nox.Session) -> None:
    """Build the core without Python and run its tests."""
    session.install("cmake>=3.26", "ninja", "pythran==0.19.*")
    build = session.create_tmp()
    settings = ("-DRADAM_TESTS=ON", "-DRADAM_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Release")
    session.run("cmake", "-S", ".", "-B", build, "-G", "Ninja", *settings)
    session.run("cmake", "--build", build)
    session.run("ctest", "--test-dir", build, "--output-on-failure")


@nox.session
def aarch64(session: nox.Session) -> None:
    """Compile the core and its tests for 64-bit ARM, and run them in an emulator: the same bits."""
    tools = ("aarch64-linux-gnu-g++", "qemu-aarch64")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        why = f"NOT TESTED ON ARM: no {' and no '.join(missing)} (Debian: g++-aarch64-linux-gnu, qemu-user)"
        session.warn(why)
        session.skip(why)
    session.install("cmake>=3.26", "ninja", "pythran==0.19.*")
    build = session.create_tmp()
    toolchain = Path("cmake/aarch64-linux-gnu.cmake").resolve()
    settings = (f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DRADAM_TESTS=ON", "-DRADAM_CUDA=OFF")
    session.run("cmake", "-S", ".", "-B", build, "-G", "Ninja", *settings, "-DCMAKE_CXX_FLAGS_RELEASE=-O2")
    session.run("cmake", "--build", build)
    # What is left out says nothing of a processor: the kernels' bodies, and whether each header stands alone.
    session.run("ctest", "--test-dir", build, "--parallel", "2", "--output-on-failure", "-E", "cuda_|headers_alone")


@nox.session
def embedding(session: nox.Session) -> None:
    """Build what uses radam from C++, C and LibTorch, each way that it can come by it, beside the installed wheel."""
    if sys.platform == "win32":
        why = "NOT TESTED ON WINDOWS: the programs of tests/embedding are built with the options of GCC and Clang"
        session.warn(why)
        session.skip(why)
    session.install(f"{built_wheel(session)}[test,demo]", "cmake>=3.26", "ninja", "scikit-build-core>=1.0")
    session.install("--no-deps", "pythran==0.19.*")  # for its xsimd headers alone
    session.run("pytest", "tests/embedding", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Test the installed wheel."""
    session.install(f"{built_wheel(session)}[test,demo]", *CUDA_BUILD)
    session.run("pytest", *session.posargs)


@nox.session
def frameworks(session: nox.Session) -> None:
    """Test the front ends of Paddle, JAX, Lucid and PyTorch beside the frameworks' own optimizers."""
    session.install(f"{built_wheel(session)}[test]", *FRAMEWORKS)
    session.run("pytest", "tests/front_ends", *session.posargs)


def downloaded(session: nox.Session, requirement: str, folder: str) -> bool:
    """Fetch one large wheel, and again where the connection breaks; return whether it is in the folder."""
    command = ("python", "-m", "pip", "download", "--no-deps", "--dest", folder, requirement)
    codes = range(128)  # all that an exit may say
    for _ in range(3):
        session.run(*command, success_codes=codes)
        if list(Path(folder).glob(requirement.partition("==")[0] + "-*.whl")):
            return True
    return False


@nox.session
def mindspore(session: nox.Session) -> None:
    """Test the front end of MindSpore, whose wheel needs an older NumPy."""
    folder = session.create_tmp()
    if not downloaded(session, "mindspore==2.10.0", folder):
        why = "NOT TESTED WITH MINDSPORE: its wheel of 0.8 GB could not be downloaded, in three tries"
        session.warn(why)
        session.skip(why)
    session.install("--find-links", folder, built_wheel(session), *MINDSPORE)
    session.run("pytest", "tests/front_ends", "-k", "mindspore or numpy", *session.posargs)


@nox.session(default=False)
def ecosystem(session: nox.Session) -> None:
    """Test the installed wheel inside the libraries that people train with; some GB to install."""
    session.install(f"{built_wheel(session)}[test]", "setuptools", "wheel", "ninja", "py-cpuinfo")
    # DeepSpeed is a source archive that imports torch while it is built.
    session.install("--no-build-isolation", "-r", "tests/ecosystem/requirements.txt")
    session.run("pytest", "tests/ecosystem", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Show that the tests fail on wrong optimizers; some minutes."""
    session.install(
        "scikit-build-core>=1.0", "nanobind>=3.0.1,<4", "cmake>=3.26", "ninja", f"{built_wheel(session)}[test]"
    )
    session.install("--no-deps", "pythran==0.19.*")  # for its xsimd headers alone
    session.run("pip", "uninstall", "--yes", "radam")
    session.run("python", "tests/mutants.py", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure against the limit and the peers; not a test."""
    session.install(f"{built_wheel(session)}[bench]")
    session.run("python", "bench/run.py", *session.posargs)


if __name__ == "__main__":
    nox.main()
