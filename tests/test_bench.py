"""The benchmark runs from one command and says all that it promises. Never a word about how long anything took."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

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
NUMPY = {"limit", "radam"}
TORCH = {"limit on torch tensors", "radam.torch", "torch fused AdamW", "torch RAdam foreach", "torch RAdam default"}
PAIRS = dict.fromkeys(NUMPY, ("limit", "radam")) | dict.fromkeys(TORCH, ("limit on torch tensors", "radam.torch"))

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python(str(BENCH / script), *arguments)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("contestants", "cases", "expected", "threads"),
    [
        ("radam", ["resnet50", "1000x64"], [NUMPY, NUMPY], [1, 2]),
        pytest.param("radam.torch", ["1000x64"], [set(PAIRS["radam.torch"])], [1], marks=needs_torch),
        pytest.param("all", ["1000x64", "33.5M-bf16"], [NUMPY | TORCH, TORCH], [1], marks=needs_torch),
    ],
    ids=["NumPy", "PyTorch", "with peers"],
)
def test_one_command_measures_every_contestant_and_reports_every_figure(
    tmp_path: Path, contestants: str, cases: list[str], expected: list[set[str]], threads: list[int]
) -> None:
    name = tmp_path / "new folder" / "v0.1"
    chosen = [] if contestants == "all" else ["--contestants", contestants]
    sizes = ["--quick", "--cases", ",".join(cases), "--threads", ",".join(map(str, threads)), "--rounds", "3"]
    done = run_script("run.py", *sizes, *chosen, "--output", str(name))
    assert done.returncode == 0, done.stderr

    found = json.loads((tmp_path / "new folder" / "v0.1.json").read_text(encoding="utf-8"))
    assert found["radam_bench"] == 2
    assert found["quick"] is True
    assert found["command"].startswith(f"python bench/run.py --quick --cases {','.join(cases)}")
    assert {"cpu", "cores", "memory_gib", "isa", "system", "versions", "date"} <= set(found["machine"])
    assert {
        name: (front_end["limit"], front_end["radam"])
        for front_end in found["front_ends"]
        for name in front_end["contestants"]
    } == {name: PAIRS[name] for name in set.union(*expected)}
    assert [case["name"] for case in found["cases"]] == cases
    for case, names in zip(found["cases"], expected):
        assert case["left_out"] == {}
        assert case["dtype"] == ("bfloat16" if "bf16" in case["name"] else "float32")
        assert set(case["least_moved_bytes"]) == names
        assert set(case["peak_extra_bytes"]) == names & {"radam", "radam.torch"}
        assert all(0 <= extra <= 64 * 1024 for extra in case["peak_extra_bytes"].values())
        assert [run["threads"] for run in case["runs"]] == threads
        for run in case["runs"]:
            assert set(run["contestants"]) == names
            for it in run["contestants"].values():
                assert set(it) == FIGURES
                assert it["repeats"] == len(it["times_s"]) == 3
                assert it["quartiles_s"][0] <= it["median_s"] <= it["quartiles_s"][1]
            for name in names:
                limit, radam = PAIRS[name]
                assert run["contestants"][limit]["over_limit"] == 1
                assert run["contestants"][radam]["radam_over_it"] == 1

    table = (tmp_path / "new folder" / "v0.1.md").read_text(encoding="utf-8")
    assert table in done.stdout
    for word in (*set.union(*expected), *cases, found["command"], "the times mean nothing"):
        assert word in table
    assert ("PyTorch's optimizers keep bfloat16 moments" in table) == ("33.5M-bf16" in cases)
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "new folder" / "v0.1.png").read_bytes().startswith(b"\x89PNG")


def test_without_pytorch_the_rest_is_measured_and_a_note_says_what_is_left_out(tmp_path: Path) -> None:
    script = f"import sys; sys.modules['torch'] = None; sys.path.insert(0, {str(BENCH)!r}); import run; run.main()"
    sizes = ["--quick", "--threads", "1", "--rounds", "3", "--output", str(tmp_path / "x")]
    done = run_python("-c", script, "--cases", "1000x64,33.5M-bf16", *sizes)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert [(case["name"], set(case["runs"][0]["contestants"])) for case in found["cases"]] == [("1000x64", NUMPY)]
    notes = "\n".join(found["notes"])
    assert "PyTorch is not installed" in notes
    assert "33.5M-bf16 is left out" in notes
    assert notes.splitlines()[0] in done.stdout

    refused = run_python("-c", script, "--cases", "33.5M-bf16", *sizes)
    assert refused.returncode != 0
    assert "nothing to measure" in refused.stderr


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
    done = run_script("run.py", "--quick", "--output", str(tmp_path / "x"), *arguments)
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
        ("33.5M-bf16", 4, 33_500_000),
    ],
)
def test_the_cases_have_the_sizes_that_they_are_named_after(
    case: str, tensors: int, parameters: int, bench: Callable[[str], ModuleType]
) -> None:
    cases = bench("cases")
    shapes = cases.CASES[case].shapes(quick=False)
    assert (len(shapes), cases.element_count(shapes)) == (tensors, parameters)
    assert len(cases.CASES[case].shapes(quick=True)) in (tensors, 50)


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(TORCH - {"limit on torch tensors"}))
def test_what_a_contestant_takes_and_moves_is_what_its_tensors_hold(
    name: str, dtype: str, bench: Callable[[str], ModuleType]
) -> None:
    contestant = bench("contestants").CONTESTANTS[name]
    shapes = [(30, 20), (400,)]
    step = contestant.make(shapes, dtype)
    step()
    optimizer = step.__self__
    params = optimizer.param_groups[0]["params"]
    moments = [optimizer.state[param][key] for param in params for key in ("exp_avg", "exp_avg_sq")]
    assert [tuple(param.shape) for param in params] == shapes
    assert {str(tensor.dtype) for param in params for tensor in (param, param.grad)} == {f"torch.{dtype}"}
    held = sum(tensor.nbytes for param in params for tensor in (param, param.grad))
    assert contestant.lasting_bytes(shapes, dtype) == held + sum(tensor.nbytes for tensor in moments)
    written = sum(tensor.nbytes for tensor in (*params, *moments))
    read = written + sum(param.grad.nbytes for param in params)
    assert contestant.least_moved_bytes(dtype) * 1000 == read + written


@needs_torch
@pytest.mark.parametrize(("dtype", "moved"), [("float32", 28), ("bfloat16", 22)])
def test_the_limit_on_torch_tensors_moves_what_radam_does(
    dtype: str, moved: int, bench: Callable[[str], ModuleType]
) -> None:
    contestants = bench("contestants").CONTESTANTS
    step = contestants["limit on torch tensors"].make([(1000,)], dtype)
    step()
    (((_, _, (param,), (grad,), (exp_avg,), (exp_avg_sq,), *_),),) = step.args
    written = param.nbytes + exp_avg.nbytes + exp_avg_sq.nbytes
    assert 2 * written + grad.nbytes == 1000 * moved
    assert {contestants[name].least_moved_bytes(dtype) for name in PAIRS["radam.torch"]} == {moved}


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (
            7.5,
            [*PAIRS["radam.torch"], *PAIRS["radam"], "torch fused AdamW", "torch RAdam foreach", "torch RAdam default"],
        ),
        (5.6, [*PAIRS["radam.torch"], *PAIRS["radam"], "torch fused AdamW"]),
        (3.6, [*PAIRS["radam.torch"]]),
        (1.6, []),
    ],
)
def test_where_memory_runs_out_the_last_stay_out_and_no_one_stays_without_its_limit_and_radam(
    room: float, expected: list[str], bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, everyone = bench("run"), list(bench("contestants").CONTESTANTS.values())
    case = bench("cases").CASES["1000x64"]
    one = 16 * 50 * 64
    monkeypatch.setattr(run, "available_memory", lambda: room * one / run.MEMORY_SHARE)
    if not expected:
        with pytest.raises(SystemExit, match="too little memory"):
            run._those_that_fit(case, case.shapes(quick=True), everyone)
        return
    taking_part, left_out = run._those_that_fit(case, case.shapes(quick=True), everyone)
    assert [c.name for c in taking_part] == expected
    assert set(left_out) == {c.name for c in everyone} - set(expected)


def test_a_ratio_pairs_the_steps_of_one_round_and_one_kind_of_arrays(bench: Callable[[str], ModuleType]) -> None:
    report, front_ends = bench("report"), bench("front_ends")
    # A machine that becomes ten times slower on the way, and a contestant that sits the second round out.
    times = {
        "limit": {0: 1.0, 1: 1.0, 2: 10.0},
        "radam": {0: 2.0, 1: 3.0, 2: 20.0},
        "limit on torch tensors": {0: 2.0, 1: 2.0, 2: 20.0},
        "radam.torch": {0: 3.0, 1: 3.0, 2: 30.0},
        "peer": {0: 4.0, 2: 40.0},
    }
    of = dict.fromkeys(("limit", "radam"), front_ends.NUMPY)
    found = report.summaries(times, dict.fromkeys(times, front_ends.TORCH) | of, tensors=2)
    assert (found["radam"]["over_limit"], found["radam"]["over_limit_quartiles"]) == (2.0, [2.0, 2.5])
    assert found["radam.torch"]["over_limit"] == 1.5
    assert (found["peer"]["over_limit"], found["peer"]["radam_over_it"], found["peer"]["repeats"]) == (2.0, 0.75, 2)
    assert found["peer"]["over_limit_of_medians"] == 11.0
    assert found["limit"]["us_per_tensor"] == 0.5e6


def found_by_hand() -> dict[str, Any]:
    """Return a result of two kinds of arrays: a case for both, and one in bfloat16."""
    figures = {
        "limit on torch tensors": 0.02,
        "radam.torch": 0.022,
        "torch fused AdamW": 0.03,
        "limit": 1.0,
        "radam": 1.1,
    }

    def case(what: str, names: list[str], moved: dict[str, int]) -> dict[str, Any]:
        its = {n: {"median_s": figures[n], "over_limit": figures[n] / figures[PAIRS[n][0]]} for n in names}
        runs = [{"threads": threads, "contestants": its} for threads in (1, 2)]
        dtype = "float32" if set(moved.values()) == {28} else "bfloat16"
        return {"what": what, "dtype": dtype, "least_moved_bytes": moved, "runs": runs}

    torch = ["limit on torch tensors", "radam.torch", "torch fused AdamW"]
    return {
        "radam_bench": 2,
        "front_ends": [
            {"name": "PyTorch tensors", "limit": torch[0], "radam": torch[1], "contestants": torch},
            {"name": "NumPy arrays", "limit": "limit", "radam": "radam", "contestants": ["limit", "radam"]},
        ],
        "cases": [
            case("4 arrays", list(figures), dict.fromkeys(figures, 28)),
            case("4 narrow arrays", torch, dict(zip(torch, (22, 22, 14)))),
        ],
    }


def test_the_table_for_the_page_is_made_of_a_result_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(found_by_hand()), encoding="utf-8")
    done = run_script("report.py", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == """\
**PyTorch tensors**

| case | limit | radam.torch | ratio | torch fused AdamW |
| --- | --: | --: | --: | --: |
| 4 arrays, 1 thread | 20.0 | **22.0** | 1.10 | 30.0 |
| 4 arrays, 2 threads | 20.0 | **22.0** | 1.10 | 30.0 |
| 4 narrow arrays, 1 thread | 20.0 | **22.0** | 1.10 | 30.0* |
| 4 narrow arrays, 2 threads | 20.0 | **22.0** | 1.10 | 30.0* |

\\* With bfloat16 parameters radam.torch keeps float32 moments: a step moves 22 bytes a parameter, as its limit does. \
PyTorch's optimizers keep bfloat16 moments: 14 bytes at least, and other results.

**NumPy arrays**

| case | limit | radam | ratio |
| --- | --: | --: | --: |
| 4 arrays, 1 thread | 1000 | **1100** | 1.10 |
| 4 arrays, 2 threads | 1000 | **1100** | 1.10 |
"""
    )


@pytest.mark.parametrize(
    "content", [None, {}, {"radam_bench": 1}], ids=["no file", "something else", "an older format"]
)
def test_what_is_no_result_file_is_refused(content: dict[str, int] | None, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_text(json.dumps(content), encoding="utf-8")
    done = run_script("report.py", str(path))
    assert done.returncode != 0
    assert "result.json" in done.stderr
    assert done.stdout == ""


@needs_torch
def test_the_empty_step_is_measured_beside_torchs_wrapper() -> None:
    done = run_script("empty_step.py", "--quick")
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if re.search(r"\d+\.\d\d \[", line)]
    assert [row[0] for row in rows] == [
        "| an empty step method",
        *["| radam.torch.RAdam"] * 3,
        *["| torch.optim.RAdam"] * 3,
        *["| torch.optim.AdamW, fused"] * 3,
    ]
    assert [row[1] for row in rows[1:]] == ["without a gradient", "of 0 elements", "of 64 elements"] * 3
    assert "the times mean nothing" in done.stdout


@needs_torch
def test_what_is_beyond_the_wrapper_is_the_median_of_the_differences_within_a_round(
    bench: Callable[[str], ModuleType],
) -> None:
    empty_step = bench("empty_step")
    # The third round ran on a machine ten times slower.
    taken = {empty_step.WRAPPER: [1e-6, 2e-6, 20e-6], ("it", "of 0 elements"): [4e-6, 4e-6, 40e-6]}
    shown = empty_step.markdown(taken, [])
    assert "| it | of 0 elements | 4.00 [4.00, 22.00] | 3.00 [2.50, 11.50] |" in shown
