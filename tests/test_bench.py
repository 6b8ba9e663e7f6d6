"""The benchmark runs from one command and says all that it promises. Never a word about how long anything took."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"

FIGURES = {
    "repeats",
    "median_s",
    "quartiles_s",
    "over_limit",
    "over_limit_quartiles",
    "over_limit_of_medians",
    "radam_over_it",
    "radam_over_it_quartiles",
    "us_per_tensor",
    "times_s",
}
ALONE = {"limit", "radam"}
WITH_PEERS = {*ALONE, "torch fused AdamW", "torch RAdam foreach", "torch RAdam default"}

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH / "run.py"), *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("contestants", "expected", "threads"),
    [("radam", ALONE, [1, 2]), pytest.param(",".join(sorted(WITH_PEERS)), WITH_PEERS, [1], marks=needs_torch)],
    ids=["alone", "with peers"],
)
def test_one_command_measures_every_contestant_and_reports_every_figure(
    tmp_path: Path, contestants: str, expected: set[str], threads: list[int]
) -> None:
    name = tmp_path / "new folder" / "v0.1"
    cases = ["resnet50", "1000x64"]
    sizes = ["--quick", "--cases", ",".join(cases), "--threads", ",".join(map(str, threads)), "--rounds", "3"]
    done = run_bench(*sizes, "--contestants", contestants, "--output", str(name))
    assert done.returncode == 0, done.stderr

    found = json.loads((tmp_path / "new folder" / "v0.1.json").read_text(encoding="utf-8"))
    assert found["quick"] is True
    assert found["command"].startswith("python bench/run.py --quick --cases resnet50,1000x64")
    assert {"cpu", "cores", "memory_gib", "isa", "system", "versions", "date"} <= set(found["machine"])
    assert [case["name"] for case in found["cases"]] == cases
    for case in found["cases"]:
        assert case["left_out"] == {}
        assert 0 <= case["radam_peak_extra_bytes"] <= 64 * 1024
        assert [run["threads"] for run in case["runs"]] == threads
        for run in case["runs"]:
            assert set(run["contestants"]) == expected
            for it in run["contestants"].values():
                assert set(it) == FIGURES
                assert it["repeats"] == len(it["times_s"]) == 3
                assert it["quartiles_s"][0] <= it["median_s"] <= it["quartiles_s"][1]
            assert run["contestants"]["limit"]["over_limit"] == 1
            assert run["contestants"]["radam"]["radam_over_it"] == 1

    table = (tmp_path / "new folder" / "v0.1.md").read_text(encoding="utf-8")
    assert table in done.stdout
    for word in (*expected, *cases, found["command"], "the times mean nothing"):
        assert word in table
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "new folder" / "v0.1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cases", "33.5M,nothing"],
        ["--contestants", "nobody"],
        ["--threads", "0"],
        ["--threads", "many"],
        ["--rounds", "-1"],
    ],
    ids=" ".join,
)
def test_a_wrong_argument_is_named_before_anything_is_measured(arguments: list[str], tmp_path: Path) -> None:
    done = run_bench("--quick", "--output", str(tmp_path / "x"), *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("case", "tensors", "parameters"),
    [
        ("33.5M", 4, 33_500_000),
        ("134M", 4, 134_000_000),
        ("resnet50", 161, 25_557_032),
        ("1000x4096", 1000, 4_096_000),
        ("1000x64", 1000, 64_000),
    ],
)
def test_the_cases_have_the_sizes_that_they_are_named_after(
    case: str, tensors: int, parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    cases = importlib.import_module("cases")
    shapes = cases.CASES[case].shapes(quick=False)
    assert (len(shapes), cases.element_count(shapes)) == (tensors, parameters)
    assert len(cases.CASES[case].shapes(quick=True)) in (tensors, 50)


def test_a_ratio_pairs_the_steps_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    report = importlib.import_module("report")
    # A machine that becomes ten times slower on the way, and a contestant that sits the second round out.
    times = {"limit": {0: 1.0, 1: 1.0, 2: 10.0}, "radam": {0: 2.0, 1: 3.0, 2: 20.0}, "peer": {0: 4.0, 2: 40.0}}
    found = report.summaries(times, tensors=2)
    assert (found["radam"]["over_limit"], found["radam"]["over_limit_quartiles"]) == (2.0, [2.0, 2.5])
    assert (found["peer"]["over_limit"], found["peer"]["radam_over_it"], found["peer"]["repeats"]) == (4.0, 0.5, 2)
    assert found["peer"]["over_limit_of_medians"] == 22.0
    assert found["limit"]["us_per_tensor"] == 0.5e6
