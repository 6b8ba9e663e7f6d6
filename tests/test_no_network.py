"""radam talks to nobody, starts no process and unpickles nothing: Python itself is asked what happened."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

# Told of all that Python's audit hooks are told; ends with what must not have happened.
WATCH = """
import sys

seen = []


def watch(event, arguments):
    if event in FORBIDDEN or event.startswith(("socket.", "os.exec", "os.spawn", "urllib.", "http.", "ftplib.")):
        seen.append(f"{event}{arguments}")


FORBIDDEN = {"subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.posix_spawn", "os.startfile"}
FORBIDDEN |= {"pickle.find_class", "pty.spawn", "webbrowser.open"}
"""
STEP = """
import numpy
IMPORT
sys.addaudithook(watch)
import radam

weights = numpy.linspace(-1, 1, 100_000, dtype=numpy.float32)  # enough for several threads
radam.set_num_threads(2)
optimizer = radam.RAdam([weights], lr=0.1, state_dtype="8bit", max_grad_norm=1.0)
optimizer.step(grads=[weights.copy()])
optimizer.save("optimizer.safetensors")
optimizer.load("optimizer.safetensors")
optimizer.step(grads=[weights.copy()])
assert optimizer.state[0]["step"] == 2
"""
TORCH = """
import radam.torch

layer = torch.nn.Linear(3, 1)
optimizer = radam.torch.RAdam(layer.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
"""
# The bench with fewer and smaller arrays than --quick has.
COMMAND = """
import runpy

sys.addaudithook(watch)
import radam._bench

radam._bench.cases = lambda quick: [("small", 3, 1000, 2)]
sys.argv = ["radam", *ARGUMENTS]
try:
    runpy.run_module("radam", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
"""
END = """
print(*seen, sep="\\n", file=sys.stderr)
sys.exit(1 if seen else 0)
"""


def ran(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", WATCH + code + END]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def check(code: str, folder: Path) -> None:
    done = ran(code, folder)
    assert done.returncode == 0, done.stderr


def test_importing_stepping_saving_and_loading_are_nobody_elses_business(tmp_path: Path) -> None:
    check(STEP.replace("IMPORT", ""), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["optimizer.safetensors"]


def test_nor_is_a_step_in_pytorch(tmp_path: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    check(STEP.replace("IMPORT", "import torch") + TORCH, tmp_path)


@pytest.mark.parametrize("arguments", [["info"], ["--version"], ["bench", "--quick"]], ids=" ".join)
def test_nor_are_the_commands(arguments: list[str], tmp_path: Path) -> None:
    check(COMMAND.replace("ARGUMENTS", repr(arguments)), tmp_path)


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ("socket.connect", "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"),
        ("socket.getaddrinfo", "import socket; socket.getaddrinfo('localhost', 80)"),
        ("subprocess.Popen", "import subprocess; subprocess.run([sys.executable, '-c', ''])"),
        ("pickle.find_class", "import pickle; pickle.loads(pickle.dumps(sys.addaudithook))"),
    ],
)
def test_what_must_not_happen_would_be_seen(event: str, code: str, tmp_path: Path) -> None:
    done = ran(f"\nsys.addaudithook(watch)\n{code}\n", tmp_path)
    assert done.returncode == 1
    assert event in done.stderr
