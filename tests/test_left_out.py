"""Where PyTorch has no wheel, what does not need it is tested all the same, and the rest is left out aloud."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from left_out import left_out

TESTS = Path(__file__).parent


def test_a_file_is_left_out_for_what_it_imports_itself_or_through_others(tmp_path: Path) -> None:
    files = {
        "test_of_arrays": "import numpy\n",
        "test_itself": "import numpy\nfrom torch.nn import Linear\n",
        "test_front_end": "import radam\nfrom radam.torch import RAdam\n",
        "test_front_end_as_a_name": "from radam import torch\n",
        "helper": "import torch.nn\n",
        "second_helper": "import helper\n",
        "test_through_others": "from second_helper import anything\n",
        "test_in_a_function": "def test_it():\n    import torch\n",
    }
    for stem, text in files.items():
        (tmp_path / f"{stem}.py").write_text(text, encoding="utf-8")
    torch = {"torch"}
    assert left_out(tmp_path, torch) == {
        "test_front_end.py": torch,
        "test_front_end_as_a_name.py": torch,
        "test_itself.py": torch,
        "test_through_others.py": torch,
    }
    assert left_out(tmp_path, ()) == {}


def test_without_torch_and_the_demo_the_core_is_still_tested() -> None:
    lacking = left_out(TESTS, {"matplotlib", "sklearn", "torch"})
    core = ("conventions", "dtypes", "eight_bit", "environment", "frozen_states", "law", "same_bits", "schedule")
    for name in core:
        assert f"test_{name}.py" not in lacking
        assert (TESTS / f"test_{name}.py").is_file()


def test_a_run_says_which_files_it_leaves_out_and_why() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import left_out; missing = left_out.not_installed() | {'torch'}; left_out.not_installed = lambda: missing\n"
        "import pytest; sys.exit(pytest.main([*sys.argv[2:], sys.argv[1]]))"
    )
    options = ("-q", "--collect-only", "-p", "no:cacheprovider", f"--ignore-glob={TESTS / 'test_[a-ru-z]*'}")
    command = [sys.executable, "-c", code, str(TESTS), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    collected, _, said = done.stdout.partition("LEFT OUT: ")
    assert "test_threads_and_forks.py: torch\n" in said
    assert "test_torch_state.py: torch\n" in said
    assert "test_schedule.py::" in collected
    assert "test_torch_state.py" not in collected
