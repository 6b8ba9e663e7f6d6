"""The golden hashes of docs/same_bits.md are those of the same training in C++, on this processor and on ARM."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

from building import ROOT, output, tool
from pages import text_of

SOURCE = Path(__file__).with_name("golden_hash.cpp")
HASHES = re.findall(r'": "([0-9a-f]{64})"', text_of("docs/same_bits.md"))
ARM = ["aarch64-linux-gnu-g++", "qemu-aarch64"]


def hashes_by(compiler: str, flags: list[str], before: list[str], folder: Path) -> list[str]:
    program = folder / "golden_hash"
    include = ROOT / "cpp" / "include"
    output(
        [compiler, "-std=c++17", "-O2", *flags, "-Wall", "-Wextra", "-Werror", f"-I{include}", SOURCE, "-o", program]
    )
    found = []
    for options in ([], ["8bit"]):
        ended = subprocess.run([*before, str(program), *options], capture_output=True, timeout=300, check=True)
        found.append(hashlib.sha256(ended.stdout).hexdigest())
    return found


def test_the_headers_give_the_golden_hashes(tmp_path: Path) -> None:
    assert len(HASHES) == 2
    assert hashes_by(tool("c++", "g++", "clang++"), ["-march=native"], [], tmp_path) == HASHES


def test_an_emulated_arm_gives_the_golden_hashes(tmp_path: Path) -> None:
    compiler, emulator = map(tool, ARM)
    assert hashes_by(compiler, ["-static"], [emulator], tmp_path) == HASHES
