"""The programs of examples/cpp build as their README says, without a warning, and do what they promise."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import radam
from building import ROOT, cache, configure, output, run, tool
from pages import check_links, text_of

README = "examples/cpp/README.md"
SOURCE = ROOT / "examples" / "cpp"
STRICT = "-Wall -Wextra -Wpedantic -Wconversion -Werror"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(SOURCE, tmp_path_factory.mktemp("examples") / "cpp"))


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """What the commands of the README print, one after the other."""
    pytest.importorskip("sklearn")
    (commands,) = re.findall(r"^```sh\n(.*?)^```", text_of(README), re.M | re.S)
    assert len(commands.splitlines()) == 3
    environment = {"CMAKE_GENERATOR": "Ninja", "CXXFLAGS": STRICT, "PYTHONWARNINGS": "error"}
    return output(["sh", "-e", "-c", commands], environment, cwd=folder)


def test_a_network_learns_digits_and_a_resumed_run_has_the_same_bits(printed: str) -> None:
    assert "build/digits.bin: 1797 digits of 64 pixels" in printed
    right = re.search(r"([\d.]+) % of unseen digits read right", printed)
    assert right, printed
    assert float(right[1]) >= 95
    assert "the resumed run has the same bits: yes" in printed


def test_a_step_has_the_same_bits_on_the_threads_of_the_program(printed: str) -> None:
    assert "crew, std::async and OpenMP give the bits of one thread: yes" in printed


def test_the_programs_leave_nothing_behind(printed: str, folder: Path) -> None:
    assert printed
    assert {path.name for path in folder.iterdir()} == {"build", *(path.name for path in SOURCE.iterdir())}


def test_a_file_that_is_not_there_is_named_with_the_remedy(printed: str, folder: Path) -> None:
    assert printed
    ended = run([folder / "build" / "mlp_digits", "absent.bin"], cwd=folder)
    assert ended.returncode == 1
    assert ended.stdout == "mlp_digits: cannot read absent.bin: python export_digits.py makes it\n"


def test_libtorch_learns_digits(printed: str, folder: Path, tmp_path: Path) -> None:
    assert printed
    torch = pytest.importorskip("torch")
    places = f"-Dradam_DIR={radam.get_cmake_dir()}", f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    configure(folder, tmp_path, *places, "-DCMAKE_BUILD_TYPE=Debug")
    assert cache(tmp_path)["Torch_DIR"]
    output([tool("cmake"), "--build", tmp_path, "--target", "libtorch_digits"])
    output([tmp_path / "libtorch_digits", folder / "build" / "digits.bin"], cwd=tmp_path)


def test_every_file_that_the_readme_links_to_exists() -> None:
    check_links(README)
