"""bench/gpu.sh says what became of each part, and its exit status says whether all went well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BASH = shutil.which("bash")
SCRIPT = ROOT / "bench" / "gpu.sh"

pytestmark = pytest.mark.skipif(
    os.name != "posix" or BASH is None or shutil.which("timeout") is None or not SCRIPT.is_file(),
    reason="needs bash, coreutils and the source tree",
)

# Stands for Python: says what each part would, as the environment wants it.
PYTHON = """\
#!/bin/sh
case "$*" in
  *"-m pip"*) echo "radam: this cannot be built"; exit ${BUILD-0} ;;
  *--check*) echo "a made-up device"; exit ${DEVICE-0} ;;
  *bench/gpu.py*) echo "{}" >"$(echo "$*" | sed 's/.*--output //').json"; echo "$*"; exit ${MEASURED-0} ;;
  *sanitized*) echo "under a sanitizer" ;;
  *pytest*) echo "${TESTS-7 passed, 1 skipped in 0.1s}"; exit ${TESTED-0} ;;
esac
"""
# Stands for NVIDIA's: runs the tests, and writes its report where it is told to.
SANITIZER = """\
#!/bin/sh
while [ "$1" != --log-file ]; do [ "$1" != --tool ] || tool=$2; shift; done
log=$2
shift 2
"$@"
if [ "$tool" = "${BROKEN-}" ]; then
  echo "========= Invalid __global__ write of size 4 bytes" >$log
  echo "=========     at ${WHOSE}+0x10 in a_kernel" >>$log
fi
[ -z "${IMPOSSIBLE-}" ] || { echo "========= Error: Device not supported" >$log; exit 1; }
[ -z "${CRASHES-}" ] || { echo "========= COMPUTE-SANITIZER" >$log; exit 139; }
echo "========= ERROR SUMMARY: ${ERRORS-0} errors" >>$log
"""


def run(folder: Path, *arguments: str, path: str | None = None, **environment: Any) -> tuple[int, str]:
    """Return the exit status and the summary."""
    done = subprocess.run(
        [str(BASH), str(SCRIPT), *arguments, str(folder / "out")],
        env={**os.environ, "RADAM_WORK": str(folder / "work"), "PATH": path or os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    summary = (folder / "out" / "summary.txt").read_text(encoding="utf-8")
    assert done.stdout == summary, done.stderr
    return done.returncode, summary


def run_played(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Do so with Python and compute-sanitizer played by others."""
    tools = folder / "tools"
    tools.mkdir()
    for name, text in (("python", PYTHON), ("compute-sanitizer", SANITIZER)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    return run(folder, *arguments, path=path, PYTHON=str(tools / "python"), **environment)


@pytest.mark.parametrize(
    ("environment", "status", "said"),
    [
        ({}, 0, ["build", "well", "7 passed, 1 skipped", "memcheck", "well: ERROR SUMMARY: 0 errors", "bench"]),
        ({"BUILD": "1"}, 1, ["build", "FAILED with 1 (see build.log): radam: this cannot be built", "bench"]),
        ({"DEVICE": "3"}, 3, ["a made-up device", "so nothing is tested or measured"]),
        ({"DEVICE": "1"}, 1, ["so nothing is tested or measured"]),
        ({"TESTED": "1", "TESTS": "1 failed, 6 passed in 1s"}, 1, ["FAILED with 1", "1 failed, 6 passed", "bench"]),
        ({"TESTS": "9 skipped in 1s"}, 1, ["none has passed", "bench"]),
        (
            {"BROKEN": "racecheck", "WHOSE": "void radam::cuda::step_kernel"},
            1,
            ["racecheck", "it says something of radam"],
        ),
        ({"BROKEN": "initcheck", "WHOSE": "at::native::a_kernel", "ERRORS": "1"}, 0, ["well: ERROR SUMMARY: 1 errors"]),
        ({"IMPOSSIBLE": "1"}, 0, ["memcheck", "not possible here: ========= Error: Device not supported", "bench"]),
        ({"CRASHES": "1"}, 1, ["initcheck", "FAILED before its end", "bench"]),
        ({"MEASURED": "1"}, 1, ["bench", "FAILED with 1 (see bench.log)"]),
    ],
    ids=lambda x: " ".join(x) or "all well" if isinstance(x, dict) else "",
)
def test_each_part_is_judged_and_what_came_of_it_stays(
    environment: dict[str, str], status: int, said: list[str], tmp_path: Path
) -> None:
    got, summary = run_played(tmp_path, **environment)
    assert got == status, summary
    at = 0
    for words in said:
        at = summary.index(words, at)
    expected = {"summary.txt", "build.log"}
    if "DEVICE" not in environment:
        expected |= {"tests.log", "sanitizer.log", "bench.log", "gpu.json"}
        assert summary.rstrip().endswith(" s in all")
        assert ("something FAILED" in summary) == (status != 0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected


def test_a_part_that_takes_too_long_is_stopped_and_the_rest_goes_on(tmp_path: Path) -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    impatient = tmp_path / "bench" / "gpu.sh"
    impatient.parent.mkdir()
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    impatient.write_text(text.replace("part tests 130 ", "part tests 1 "), encoding="utf-8")
    assert impatient.read_text(encoding="utf-8") != text
    python = tmp_path / "python"
    python.write_text(PYTHON.replace('echo "${TESTS', 'sleep 30; echo "${TESTS'))
    python.chmod(0o755)
    done = subprocess.run(
        [str(BASH), str(impatient), str(tmp_path / "out")],
        env={**os.environ, "PYTHON": str(python), "RADAM_WORK": str(tmp_path / "work")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "STOPPED at its limit of time (see tests.log)" in done.stdout
    assert (tmp_path / "out" / "gpu.json").is_file()


def test_the_dry_run_tries_everything_and_says_why_it_cannot_be(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    status, summary = run(tmp_path, "--dry", PYTHON=sys.executable, RADAM_BUILT="1")
    reason = f"no CUDA device: torch {torch.__version__} finds none"
    assert status == 0, summary
    assert f"\n{reason}\n" in summary
    assert " skipped in " in summary
    assert f"bench             not run: {reason}" in summary
    logs = {"build.log", "tests.log", "bench.log"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"summary.txt", *logs}
    # Every GPU test is there, and is left out for that one reason.
    log = (tmp_path / "out" / "tests.log").read_text(encoding="utf-8")
    skips = [line for line in log.splitlines() if line.startswith("SKIPPED")]
    assert {line.split(": ", 1)[1] for line in skips} >= {reason}
    assert all("no CUDA device: " in line for line in skips)


@pytest.mark.parametrize("arguments", [[], ["--dry"], ["--help"], ["one", "two"]], ids=" ".join)
def test_a_wrong_call_is_told_what_a_right_one_is(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [str(BASH), str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "bench/gpu.sh OUTDIR" in done.stderr
    assert list(tmp_path.iterdir()) == []
