"""The golden hashes of docs/same_bits.md hold on every instruction set of this machine, and can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import radam
from pages import blocks_of

(GOLDEN,) = (block.code for block in blocks_of("docs/same_bits.md") if "GOLDEN" in block.code)


def run(code: str, isa: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = folder / "golden.py"
    program.write_text(code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=folder,
        env={**os.environ, "RADAM_ISA": isa},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("isa", radam.isas())
def test_the_golden_hashes_hold_on_every_instruction_set(isa: str, tmp_path: Path) -> None:
    ended = run(f"{GOLDEN}\nradam.show_config()\n", isa, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"instruction set  {isa} " in ended.stdout


@pytest.mark.parametrize("change", [("lr=0.02", "lr=0.020001"), ("2003 - 1001", "2003 - 1002")])
def test_another_training_has_another_hash(change: tuple[str, str], tmp_path: Path) -> None:
    assert GOLDEN.count(change[0]) == 1
    ended = run(GOLDEN.replace(*change), radam.isas()[0], tmp_path)
    assert ended.returncode != 0
    assert "AssertionError" in ended.stderr
    assert 'GOLDEN["float32"]' in ended.stderr
