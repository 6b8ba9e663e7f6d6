"""Everything that must pass before a change lands: `python -m nox` runs all of it, on the built wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["wheel", "lint", "cpp", "tests", "mutants"]
nox.options.stop_on_first_error = False

DIST = Path("build/dist")
LARGEST_WHEEL = 2_000_000  # bytes


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel that the other sessions install."""
    session.install("pip>=25")
    shutil.rmtree(DIST, ignore_errors=True)
    session.run("python", "-m", "pip", "wheel", ".", "--no-deps", "--wheel-dir", str(DIST))
    size = Path(built_wheel(session)).stat().st_size
    if size > LARGEST_WHEEL:
        session.error(f"the wheel has {size} bytes, more than {LARGEST_WHEEL}")


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
        "ruff==0.17.*", "mypy==2.*", "clang-format==23.*", "codespell==2.4.*", "torch==2.13.0", built_wheel(session)
    )
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = [str(path) for folder in ("cpp", "python") for path in Path(folder).rglob("*.[hc]pp")]
    session.run("clang-format", "--dry-run", "--Werror", *sources)
    session.run("codespell", ".")
    with session.chdir("tests"):  # away from the tree, so that mypy reads the installed package
        session.run("mypy", "--config-file", "../pyproject.toml", "-p", "radam")


@nox.session
def cpp(session: nox.Session) -> None:
    """Build the core without Python and run its tests."""
    session.install("cmake>=3.26", "ninja", "pythran==0.19.*")
    build = session.create_tmp()
    session.run("cmake", "-S", ".", "-B", build, "-G", "Ninja", "-DRADAM_TESTS=ON", "-DCMAKE_BUILD_TYPE=Release")
    session.run("cmake", "--build", build)
    session.run("ctest", "--test-dir", build, "--output-on-failure")


@nox.session
def tests(session: nox.Session) -> None:
    """Test the installed wheel."""
    session.install(f"{built_wheel(session)}[test,demo]")
    session.run("pytest", *session.posargs)


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
