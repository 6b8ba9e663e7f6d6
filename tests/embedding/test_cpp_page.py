"""What the pages show of C++, C and CMake compiles without a warning, runs, and says what is true.

A block of C++ without main is the body of one. Its includes stand above it, after <cassert>, <vector> and
<radam/radam.hpp>; its line "// compile with: FLAGS" is obeyed. A block of CMake is a project's own part, and its
trainer.cpp or trainer.c is the first program in that language of its page, or of docs/cpp.md; that of LibTorch has all
blocks of LibTorch.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import radam
from building import ROOT, configure, output, tool
from pages import Block, blocks_in, blocks_of, cases

PAGE = "docs/cpp.md"


def is_libtorch(block: Block) -> bool:
    here = block.page == PAGE and block.section == "LibTorch"
    return here or "<radam/torch.hpp>" in block.code or "find_package(Torch" in block.code


def target_of(block: Block) -> str:
    return re.sub(r"\W", "_", block.name)


def of_page(blocks: list[Block]) -> list[Block]:
    return [block for block in blocks if block.page == PAGE]


CPP, C = blocks_in("cpp"), blocks_in("c")
TORCH = [block for block in CPP if is_libtorch(block)]
PLAIN = [block for block in CPP if not is_libtorch(block)]
CMAKE = [block for block in blocks_in("cmake") if not is_libtorch(block)]
(PROJECT,) = (block for block in of_page(blocks_in("cmake")) if is_libtorch(block))
SHELL = of_page(blocks_in("sh"))  # tests/test_every_block.py has those of the other pages
RUN = [*PLAIN, *TORCH, *C, *CMAKE, PROJECT, *SHELL]
INCLUDE = re.compile(r"^#include .*$", re.M)


def as_program(block: Block, *, then: str = "") -> str:
    place = f'#line {block.line} "{block.page}"\n'
    if "int main" in block.code:
        return place + block.code
    above = ["#include <cassert>", "#include <vector>", "#include <radam/radam.hpp>", *INCLUDE.findall(block.code)]
    return "\n".join([*above, "int main() {", f"{place}{INCLUDE.sub('', block.code)}{then}}}", ""])


def as_libtorch_program() -> str:
    """All blocks as one program, since its headers take long: after the page's first each has its own optimizer."""
    first, *rest = of_page(TORCH)
    rest += [block for block in TORCH if block.page != PAGE]
    assert not any("int main" in block.code for block in TORCH), "give the bodies of main only"
    own = "radam::torch::RAdam optimizer(model->parameters(), radam::torch::RAdamOptions(1e-2));"
    then, above = "", ""
    for block in rest:
        stands_alone = "<radam/torch.hpp>" in block.code
        above += "".join(f"{line}\n" for line in INCLUDE.findall(block.code))
        code = INCLUDE.sub("", block.code)
        then += f'{{\n{"" if stands_alone else own}\n#line {block.line} "{block.page}"\n{code}}}\n'
    return above + as_program(first, then=then)


def in_project(block: Block) -> str:
    """What a block's program takes in CMakeLists.txt."""
    flags = " ".join(re.findall(r"// compile with: (.*)", block.code))
    libraries = ["radam::radam", "Threads::Threads"]
    if "radam/dispatch.hpp" in block.code:
        libraries.append("radam::dispatch")
    if "#pragma omp" in block.code:
        libraries.append("$<TARGET_NAME_IF_EXISTS:OpenMP::OpenMP_CXX>")
    name = target_of(block)
    return f"""
add_executable({name} {name}.cpp)
target_compile_options({name} PRIVATE {flags} -Wall -Wextra -Wpedantic -Wconversion -Wno-unknown-pragmas -Werror)
target_link_libraries({name} PRIVATE {" ".join(libraries)})
"""


@pytest.fixture(scope="module")
def programs(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs, each named for its block."""
    folder = tmp_path_factory.mktemp("page")
    for block in PLAIN:
        (folder / f"{target_of(block)}.cpp").write_text(as_program(block), encoding="utf-8")
    lists = [
        "cmake_minimum_required(VERSION 3.18...4.1)",
        "project(page LANGUAGES CXX)",
        "find_package(Threads REQUIRED)",
        "find_package(radam REQUIRED COMPONENTS dispatch)",
        "find_package(OpenMP QUIET)",
        *map(in_project, PLAIN),
    ]
    (folder / "CMakeLists.txt").write_text("\n".join(lists), encoding="utf-8")
    configure(folder, folder / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    output([tool("cmake"), "--build", folder / "build", "--", "-k", "0"])
    return folder / "build"


@pytest.fixture
def project(tmp_path: Path, source_archive: Path) -> Path:
    """A folder with what the page speaks of: radam's source in two places and as an archive, and a trainer."""
    folder = tmp_path / "project"
    (folder / "third_party").mkdir(parents=True)
    for link in ("radam", "third_party/radam"):
        (folder / link).symlink_to(ROOT)
    shutil.copy(source_archive, folder / "radam.tar.gz")
    write_trainers(folder, PAGE)
    write_project(folder, of_page(CMAKE)[0])
    return folder


def write_trainers(folder: Path, page: str) -> None:
    """The first program of a page in each language, or that of docs/cpp.md."""
    for suffix, blocks in (("cpp", PLAIN), ("c", C)):
        whole = [block for block in blocks if "int main" in block.code]
        first = next((block for block in whole if block.page == page), of_page(whole)[0])
        (folder / f"trainer.{suffix}").write_text(first.code, encoding="utf-8")


def write_project(folder: Path, block: Block) -> None:
    project = "" if "project(" in block.code else "project(trainer LANGUAGES CXX)"
    text = f"cmake_minimum_required(VERSION 3.18...4.1)\n{project}\n{block.code}"
    (folder / "CMakeLists.txt").write_text(text, encoding="utf-8")


def test_there_are_programs_to_build() -> None:
    assert {block.language for block in blocks_of(PAGE)} <= {"cpp", "cmake", "sh", "c", "python"}
    assert len(of_page(PLAIN)) >= 12
    assert len(of_page(CMAKE)) >= 5
    assert C


@cases([next(block for block in CPP if block.page == page) for page in (PAGE, "README.md")])
def test_the_shortest_program_takes_at_most_8_lines_from_the_include_to_the_step(block: Block) -> None:
    lines = [line for line in block.code.splitlines() if line.strip()]
    (begin,) = (i for i, line in enumerate(lines) if line.startswith("#include"))
    (end,) = (i for i, line in enumerate(lines) if ".step()" in line)
    assert end - begin + 1 <= 8


@cases(PLAIN)
def test_every_program_of_the_page_runs(block: Block, programs: Path, tmp_path: Path) -> None:
    output([programs / target_of(block)], cwd=tmp_path)


def test_python_goes_on_from_the_file_that_the_page_saves(programs: Path, tmp_path: Path) -> None:
    (block,) = (block for block in PLAIN if "radam::save(" in block.code)
    output([programs / target_of(block)], cwd=tmp_path)
    w = np.ones((3, 2), np.float32)
    optimizer = radam.RAdam({"weights": w}, lr=0.5)
    optimizer.load(tmp_path / "optimizer.safetensors")
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.state[0]["step"] == 1


def test_every_block_of_libtorch_runs(prefix: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    assert len(TORCH) >= 4
    write_project(tmp_path, PROJECT)
    (tmp_path / "trainer.cpp").write_text(as_libtorch_program(), encoding="utf-8")
    strict = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Wconversion -Werror"
    where = f"-DCMAKE_PREFIX_PATH={prefix};{torch.utils.cmake_prefix_path}"
    configure(tmp_path, tmp_path / "build", where, strict)
    output([tool("cmake"), "--build", tmp_path / "build"])
    output([tmp_path / "build" / "trainer"], cwd=tmp_path)


@cases(CMAKE)
def test_every_cmake_project_of_the_page_builds_its_trainer(block: Block, project: Path, prefix: Path) -> None:
    write_project(project, block)
    write_trainers(project, block.page)
    is_c = "radam::c)" in block.code  # which the wheel has, and the prefix of these tests has not
    where = f"-Dradam_DIR={radam.get_cmake_dir()}" if is_c else f"-DCMAKE_PREFIX_PATH={prefix}"
    strict = [f"-DCMAKE_{language}_FLAGS=-Wall -Wextra -Wpedantic -Werror" for language in ("C", "CXX")]
    configure(project, project / "build", where, "-DFETCHCONTENT_FULLY_DISCONNECTED=OFF", *strict)
    output([tool("cmake"), "--build", project / "build"])
    output([project / "build" / "trainer"])


@cases(C)
def test_every_program_in_c_runs(block: Block, tmp_path: Path) -> None:
    (project,) = (other for other in of_page(CMAKE) if "radam::c)" in other.code)
    write_project(tmp_path, project)
    (tmp_path / "trainer.c").write_text(block.code, encoding="utf-8")
    strict = "-DCMAKE_C_FLAGS=-Wall -Wextra -Wpedantic -Werror"
    configure(tmp_path, tmp_path / "build", f"-Dradam_DIR={radam.get_cmake_dir()}", strict)
    output([tool("cmake"), "--build", tmp_path / "build"])
    output([tmp_path / "build" / "trainer"], cwd=tmp_path)


def run_shell(block: Block, folder: Path, home: Path) -> None:
    pkg_config = os.pathsep.join(str(path.parent) for path in home.rglob("radam.pc"))
    environment = {"HOME": str(home), "PKG_CONFIG_LIBDIR": pkg_config, "CMAKE_GENERATOR": "Ninja"}
    output(["sh", "-e", "-c", block.code], environment, cwd=folder)


@cases(SHELL)
def test_every_command_of_the_page_works(block: Block, project: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    if "pkg-config" in block.code:
        tool("pkg-config")
        (install,) = (other for other in SHELL if "--install" in other.code)
        run_shell(install, project, home)
    run_shell(block, project, home)
