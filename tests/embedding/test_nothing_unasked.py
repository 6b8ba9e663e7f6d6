"""What a project does not ask radam for is not done to it, and what cannot be had is refused with the way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from building import (
    CONSUMER,
    ROOT,
    build_consumer,
    cache,
    compile_commands,
    configure,
    output,
    tool,
    try_to_configure,
)

WARNINGS = "-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"
EMBEDS = ("-DRADAM_BY=add_subdirectory", f"-DRADAM_SOURCE={ROOT}")


# ---- a project that takes the source in


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configure a project with settings of its own, where there is an nvcc that tells when it is run."""
    folder = tmp_path_factory.mktemp("embedded")
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho $* >> '{folder}/ran'\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    path = os.pathsep.join([str(nvcc.parent), os.environ["PATH"]])
    own = ("-DCMAKE_CXX_STANDARD=20", "-DCMAKE_BUILD_TYPE=", f"-DCMAKE_INSTALL_PREFIX={folder / 'prefix'}")
    own += ("-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DCMAKE_CXX_FLAGS={WARNINGS}")
    configure(CONSUMER, folder / "build", *EMBEDS, *own, environment={"PATH": path})
    return folder


def test_an_embedding_project_keeps_its_settings(embedded: Path) -> None:
    assert cache(embedded / "build")["CMAKE_BUILD_TYPE"] == ""
    (command,) = compile_commands(embedded / "build").values()  # radam::radam compiles nothing
    assert [flag for flag in command if flag.startswith("-std=")] == ["-std=gnu++20"]
    mine = {*WARNINGS.split(), "-DCONSUMER_OF_radam"}
    assert not {flag for flag in command if flag.startswith(("-O", "-m", "-D", "-W"))} - mine


def test_an_embedding_project_is_searched_and_downloaded_nothing(embedded: Path) -> None:
    assert not (embedded / "ran").exists()
    words = ("xsimd", "cuda", "thread", "python", "fetchcontent_base")
    mine = {name for name in cache(embedded / "build") if name.lower().startswith("radam")}
    assert not [name for name in cache(embedded / "build").keys() - mine if any(word in name.lower() for word in words)]
    assert not (embedded / "build" / "_deps").exists()


def test_an_embedding_project_gets_no_tests_and_no_install_rules(embedded: Path) -> None:
    assert "Total Tests: 0" in output([tool("ctest"), "-N", "--test-dir", embedded / "build"])
    output([tool("cmake"), "--build", embedded / "build"])
    output([tool("cmake"), "--install", embedded / "build"])
    assert [path.stem for path in (embedded / "prefix").rglob("*") if path.is_file()] == ["consumer"]


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_the_headers_pass_a_project_s_own_warnings(compiler: str, level: str, tmp_path: Path, bits: list[str]) -> None:
    settings = (f"-DCMAKE_CXX_COMPILER={tool(compiler)}", f"-DCMAKE_CXX_FLAGS={WARNINGS} {level}")
    assert build_consumer(tmp_path, *EMBEDS, *settings) == ["portable", *bits]
    includes = [flag for flag in compile_commands(tmp_path)["main.cpp"] if "cpp/include" in flag]
    assert includes == [f"-I{ROOT.as_posix()}/cpp/include"]  # not as a system's, whose warnings are not shown


# ---- a site without xsimd


@pytest.fixture
def without_xsimd(bare_python: Path) -> tuple[str, str]:
    return f"-DPython_EXECUTABLE={bare_python}", "-DCMAKE_DISABLE_FIND_PACKAGE_xsimd=ON"


def test_the_headers_are_found_on_a_site_without_xsimd(
    headers: Path, without_xsimd: tuple[str, str], tmp_path: Path, bits: list[str]
) -> None:
    assert build_consumer(tmp_path, f"-DCMAKE_PREFIX_PATH={headers}", *without_xsimd) == ["portable", *bits]


def folder_with(version: str, folder: Path) -> Path:
    config = folder / "xsimd" / "config" / "xsimd_config.hpp"
    config.parent.mkdir(parents=True)
    names = ("MAJOR", "MINOR", "PATCH")
    lines = [f"#define XSIMD_VERSION_{name} {number}\n" for name, number in zip(names, version.split("."))]
    config.write_text("".join(lines), encoding="utf-8")
    return folder


def test_xsimd_where_there_is_none_is_refused_with_what_to_do(
    headers: Path, without_xsimd: tuple[str, str], tmp_path: Path
) -> None:
    asks = (f"-DCMAKE_PREFIX_PATH={headers}", *without_xsimd, "-DRADAM_TARGET=xsimd")
    refused = try_to_configure(CONSUMER, tmp_path / "none", *asks)
    assert refused.returncode != 0
    assert "no xsimd 14.1 or newer was found. Install one" in refused.stdout
    assert "-DRADAM_XSIMD_INCLUDE_DIR=FOLDER" in refused.stdout

    old = folder_with("8.1.0", tmp_path / "old")
    refused = try_to_configure(CONSUMER, tmp_path / "refused", *asks, f"-DRADAM_XSIMD_INCLUDE_DIR={old}")
    assert refused.returncode != 0
    assert f"which holds no xsimd 14.1 or newer (8.1.0 in {old.as_posix()} is too old)" in refused.stdout


def test_the_folder_of_xsimd_can_be_named(headers: Path, without_xsimd: tuple[str, str], tmp_path: Path) -> None:
    asks = (f"-DCMAKE_PREFIX_PATH={headers}", *without_xsimd, "-DRADAM_TARGET=xsimd")
    new = folder_with("14.1.0", tmp_path / "new")
    build = tmp_path / "build"
    configure(CONSUMER, build, *asks, f"-DRADAM_XSIMD_INCLUDE_DIR={new}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    command = compile_commands(build)["main.cpp"]
    assert command[command.index("-isystem") + 1 :].count(new.as_posix()) == 1
    assert "-DRADAM_WITH_XSIMD=1" in command


def test_the_build_of_radam_refuses_a_folder_without_xsimd(tmp_path: Path) -> None:
    settings = ("-DRADAM_CUDA=OFF", f"-DRADAM_XSIMD_INCLUDE_DIR={tmp_path}")
    refused = try_to_configure(ROOT, tmp_path / "build", *settings)
    assert refused.returncode != 0
    assert f"RADAM_XSIMD_INCLUDE_DIR is {tmp_path.as_posix()}, which holds no xsimd 14.1" in refused.stdout


# ---- components


@pytest.mark.parametrize(
    ("component", "says"),
    [
        ("dispatch", "has no 'dispatch': build and install one from the source with -DRADAM_DISPATCH=ON"),
        ("c", "has no 'c': build and install one from the source with -DRADAM_C=ON"),
        ("cuda", "has no 'cuda': build and install one from the source with -DRADAM_CUDA=ON"),
        ("torch", "radam has no component 'torch', only dispatch, xsimd, c and cuda"),
    ],
)
def test_a_component_that_is_not_there_is_refused_with_what_to_do(
    component: str, says: str, headers: Path, tmp_path: Path
) -> None:
    refused = try_to_configure(CONSUMER, tmp_path, f"-DCMAKE_PREFIX_PATH={headers}", f"-DRADAM_COMPONENTS={component}")
    assert refused.returncode != 0
    assert says in refused.stdout


def test_a_project_may_have_a_target_called_radam_and_take_radam_in_twice(tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text("#include <radam/radam.hpp>\nint main() {}\n", encoding="utf-8")
    (tmp_path / "CMakeLists.txt").write_text(
        f"""cmake_minimum_required(VERSION 3.18)
project(trainer LANGUAGES CXX)
add_executable(radam main.cpp)
add_subdirectory("{ROOT.as_posix()}" once)
add_subdirectory("{ROOT.as_posix()}" twice)
target_link_libraries(radam PRIVATE radam::radam)
""",
        encoding="utf-8",
    )
    configure(tmp_path, tmp_path / "build")
    output([tool("cmake"), "--build", tmp_path / "build"])
