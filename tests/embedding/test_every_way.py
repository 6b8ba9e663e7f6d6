"""A project finds, builds with and runs radam each way that a C++ project can come by it, with Python's bits."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

import radam
from building import (
    CONSUMER,
    ROOT,
    SIMD,
    SIMD_ISA,
    build_consumer,
    cache,
    compile_commands,
    is_under,
    output,
    run_consumer,
    tool,
)
from radam import __main__, _info

# With xsimd the consumer is compiled for this machine's vectors, so that it shows which loops it has.
FLAGS = {"radam": "", "dispatch": "", "xsimd": SIMD[SIMD_ISA]}
ISA = {"radam": "portable", "dispatch": "portable", "xsimd": SIMD_ISA}


def target(name: str) -> tuple[str, ...]:
    return f"-DRADAM_TARGET={name}", f"-DCMAKE_CXX_FLAGS={FLAGS[name]}"


# ---- find_package


@pytest.mark.parametrize("name", ["radam", "xsimd", "dispatch"])
def test_find_package_finds_an_installed_radam(name: str, prefix: Path, tmp_path: Path, bits: list[str]) -> None:
    assert build_consumer(tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}", *target(name)) == [ISA[name], *bits]
    assert is_under(cache(tmp_path)["radam_DIR"], prefix)


def test_without_components_find_package_brings_what_is_compiled(prefix: Path, tmp_path: Path, bits: list[str]) -> None:
    found = build_consumer(tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}", *target("dispatch"), "-DRADAM_COMPONENTS=")
    assert found == ["portable", *bits]


@pytest.mark.parametrize("name", ["radam", "dispatch"])
def test_an_installed_radam_may_be_moved(name: str, moved: Path, tmp_path: Path, bits: list[str]) -> None:
    assert build_consumer(tmp_path, f"-DCMAKE_PREFIX_PATH={moved}", *target(name)) == ["portable", *bits]
    assert is_under(cache(tmp_path)["radam_DIR"], moved)


def test_no_installed_file_knows_where_it_was_built_or_installed(prefix: Path) -> None:
    texts = [path for path in prefix.rglob("*") if path.suffix in {".cmake", ".pc", ".hpp", ".h"}]
    assert {path.suffix for path in texts} >= {".cmake", ".pc", ".hpp"}
    for path in texts:
        text = path.read_text(encoding="utf-8")
        assert not [place for place in (prefix.parent, ROOT) if place.as_posix() in text], path


# ---- the wheel


@pytest.mark.parametrize("name", ["radam", "xsimd"])
def test_find_package_finds_the_installed_wheel(name: str, tmp_path: Path, bits: list[str]) -> None:
    assert build_consumer(tmp_path, f"-Dradam_DIR={radam.get_cmake_dir()}", *target(name)) == [ISA[name], *bits]
    folders = {Path(part.removeprefix("-I")).resolve() for part in compile_commands(tmp_path)["main.cpp"]}
    assert Path(radam.get_include()).resolve() in folders


def test_a_build_by_scikit_build_core_finds_the_wheel_by_itself(tmp_path: Path, bits: list[str]) -> None:
    project = Path(shutil.copytree(CONSUMER, tmp_path / "project"))
    build = "import scikit_build_core.build as backend; backend.build_wheel('dist', {'build-dir': 'build'})"
    output([sys.executable, "-c", build], cwd=project)
    assert is_under(cache(project / "build")["radam_DIR"], Path(radam.__file__).parent)
    (wheel,) = project.glob("dist/*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    folder = tmp_path / "installed" / "consumer"
    for program in folder.iterdir():
        program.chmod(0o755)  # which zipfile forgets
    assert run_consumer(folder) == ["portable", *bits]


def test_the_wheel_holds_every_header_and_no_link() -> None:
    package = Path(radam.__file__).parent
    source, installed = ROOT / "cpp" / "include", Path(radam.get_include())
    headers = {path.relative_to(source) for path in source.rglob("*.h*")}
    assert Path("radam/radam.hpp") in headers
    assert {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()} == headers
    assert not [path for path in package.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize(
    ("option", "function"), [("--cmakedir", radam.get_cmake_dir), ("--includedir", radam.get_include)]
)
def test_the_command_line_says_where_the_wheel_keeps_it(option: str, function: object, tmp_path: Path) -> None:
    assert callable(function)
    assert output([sys.executable, "-m", "radam", option], cwd=tmp_path) == f"{function()}\n"


@pytest.mark.parametrize("option", ["--cmakedir", "--includedir"])
def test_a_radam_without_its_cpp_package_says_so(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_info, "__file__", str(tmp_path / "_info.py"))
    assert __main__.main([option]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"radam: this radam was installed without {tmp_path}{os.sep}")
    assert printed.err.count("\n") == 1


# ---- the source


@pytest.mark.parametrize("name", ["radam", "xsimd"])
def test_add_subdirectory_takes_the_source_in(name: str, tmp_path: Path, bits: list[str]) -> None:
    settings = (
        "-DRADAM_BY=add_subdirectory",
        f"-DRADAM_SOURCE={ROOT}",
        f"-DRADAM_XSIMD={'ON' if name == 'xsimd' else 'OFF'}",
    )
    assert build_consumer(tmp_path, *settings, *target(name)) == [ISA[name], *bits]


def test_add_subdirectory_builds_and_installs_what_it_is_asked_for(tmp_path: Path, bits: list[str]) -> None:
    asked = ("-DRADAM_DISPATCH=ON", "-DRADAM_XSIMD=OFF", "-DRADAM_INSTALL=ON")
    settings = (
        "-DRADAM_BY=add_subdirectory",
        f"-DRADAM_SOURCE={ROOT}",
        f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'prefix'}",
    )
    build = tmp_path / "build"
    assert build_consumer(build, *settings, *asked, *target("dispatch")) == ["portable", *bits]
    output([tool("cmake"), "--install", build])
    installed = {path.name for path in (tmp_path / "prefix").rglob("*") if path.is_file()}
    assert installed >= {"radam.hpp", "radamConfig.cmake", "radam-headers.cmake", "radam-dispatch.cmake", "radam.pc"}


def test_fetch_content_takes_an_archive_of_the_source(source_archive: Path, tmp_path: Path, bits: list[str]) -> None:
    settings = ("-DRADAM_BY=FetchContent", f"-DRADAM_SOURCE={source_archive}", "-DFETCHCONTENT_FULLY_DISCONNECTED=OFF")
    assert build_consumer(tmp_path, *settings, *target("radam")) == ["portable", *bits]


# ---- pkg-config


@pytest.mark.parametrize("where", ["prefix", "moved", "the wheel"])
def test_pkg_config_says_all_that_a_compiler_needs(
    where: str, request: pytest.FixtureRequest, tmp_path: Path, bits: list[str]
) -> None:
    folder = Path(radam.__file__).parent if where == "the wheel" else request.getfixturevalue(where)
    (described,) = folder.rglob("radam.pc")
    environment = {"PKG_CONFIG_LIBDIR": str(described.parent)}
    program = tool("pkg-config", "pkgconf")
    assert output([program, "--modversion", "radam"], environment).strip() == radam.__version__
    flags = shlex.split(output([program, "--cflags", "--libs", "radam"], environment))
    compiler = os.environ.get("CXX") or tool("c++", "g++", "clang++")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    output([compiler, "-std=c++17", *warnings, CONSUMER / "main.cpp", *flags, "-o", tmp_path / "consumer"])
    assert run_consumer(tmp_path) == ["portable", *bits]


def test_pkg_config_and_cmake_give_the_compiler_the_same_flags(prefix: Path, tmp_path: Path, bits: list[str]) -> None:
    assert build_consumer(tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}", *target("radam")) == ["portable", *bits]
    by_cmake = {flag for flag in compile_commands(tmp_path)["main.cpp"] if flag.startswith("-f")}
    (described,) = prefix.rglob("radam.pc")
    said = output([tool("pkg-config", "pkgconf"), "--cflags", "radam"], {"PKG_CONFIG_LIBDIR": str(described.parent)})
    assert by_cmake
    assert {flag for flag in said.split() if flag.startswith("-f")} == by_cmake
