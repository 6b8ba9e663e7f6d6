"""The benchmark of low precision measures what it says it does. Never a word about how long anything took."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from test_bench import needs_torch, run_script

needs_ml_dtypes = pytest.mark.skipif(importlib.util.find_spec("ml_dtypes") is None, reason="ml_dtypes is not installed")

FIGURES = {"repeats", "median_s", "quartiles_s", "over", "us_per_tensor", "gb_per_s", "times_s"}
SHAPES = [(128, 40), (8192,)]
ELEMENTS = 13312
FP32, EIGHT_BIT, SPLIT_8_BIT = "fp32", "fp32 with 8-bit moments", "bf16, split master, 8-bit moments"

# Bytes moved for a parameter: p, g and moments in, p and moments out, with their masters and scales.
SCALES = 4 * 4 / 128
MOVED = {
    FP32: {FP32: 28, "fp32, max_grad_norm": 32, 'fp32, nonfinite="raise"': 32},
    "torch fused AdamW": {"torch fused AdamW": 28, "torch fused AdamW after clip_grad_norm_": 40},
    EIGHT_BIT: {EIGHT_BIT: 12 + 4 + SCALES},
    SPLIT_8_BIT: {SPLIT_8_BIT: 6 + 4 + 4 + SCALES},
    "bf16, stochastic, 8-bit moments": {"bf16, stochastic, 8-bit moments": 6 + 4 + SCALES},
    "bf16, split master": {"bf16, split master": 6 + 4 + 16},
    "bf16": {"bf16": 6 + 16},
    "bf16, bf16 moments": {"bf16, bf16 moments": 6 + 8},
}
STATES = {
    FP32: {"exp_avg", "exp_avg_sq"},
    EIGHT_BIT: {"exp_avg_code", "exp_avg_scale", "exp_avg_sq_code", "exp_avg_sq_scale"},
    SPLIT_8_BIT: {"exp_avg_code", "exp_avg_scale", "exp_avg_sq_code", "exp_avg_sq_scale", "remainder"},
    "bf16, stochastic, 8-bit moments": {"exp_avg_code", "exp_avg_scale", "exp_avg_sq_code", "exp_avg_sq_scale"},
    "bf16, split master": {"exp_avg", "exp_avg_sq", "remainder"},
    "bf16": {"exp_avg", "exp_avg_sq"},
    "bf16, bf16 moments": {"exp_avg", "exp_avg_sq"},
}


@needs_torch
@needs_ml_dtypes
def test_one_command_measures_every_way_and_reports_every_figure(tmp_path: Path) -> None:
    name = tmp_path / "new folder" / "v0.1"
    sizes = ["--quick", "--cases", "33.5M,1000x4096", "--threads", "1", "--rounds", "3", "--seconds", "1"]
    done = run_script("low_precision.py", *sizes, "--output", str(name))
    assert done.returncode == 0, done.stderr

    found = json.loads((tmp_path / "new folder" / "v0.1.json").read_text(encoding="utf-8"))
    assert (found["radam_low_precision_bench"], found["quick"]) == (1, True)
    assert found["command"].startswith("python bench/low_precision.py --quick --cases 33.5M,1000x4096")
    assert {"cpu", "cores", "memory_gib", "isa", "system", "versions", "date"} <= set(found["machine"])
    assert [case["name"] for case in found["cases"]] == ["33.5M", "1000x4096"]
    for case, families in zip(found["cases"], (list(MOVED), list(MOVED)[:4])):
        names = {n for family in families for n in MOVED[family]}
        names |= {f"limit of {family}" for family in families if family in STATES}
        assert case["left_out"] == {}
        assert set(case["moved_bytes"]) == names
        assert [run["threads"] for run in case["runs"]] == [1]
        for run in case["runs"]:
            assert set(run["contestants"]) == names
            for who, it in run["contestants"].items():
                assert set(it) == FIGURES
                assert it["repeats"] == len(it["times_s"]) == 3
                assert it["quartiles_s"][0] <= it["median_s"] <= it["quartiles_s"][1]
                assert (f"limit of {who}" in it["over"]) == (who in STATES)
                assert (FP32 in it["over"]) == (who.startswith(("fp32", "bf16")) and who != FP32)

    table = (tmp_path / "new folder" / "v0.1.md").read_text(encoding="utf-8")
    assert table in done.stdout
    for word in (*STATES, "goal: at most", "33.5M, 1 thread", found["command"], "the times mean nothing"):
        assert word in table
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "new folder" / "v0.1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "family",
    [
        FP32,
        EIGHT_BIT,
        *(pytest.param(name, marks=needs_ml_dtypes) for name in STATES if name.startswith("bf16")),
        pytest.param("torch fused AdamW", marks=needs_torch),
    ],
)
def test_a_step_moves_the_bytes_that_its_arrays_have(family: str, bench: Callable[[str], ModuleType]) -> None:
    made = {c.name: c for c in family_of(bench, family).make(SHAPES)}
    limit = {f"limit of {family}": MOVED[family][family]} if family in STATES else {}
    assert {name: c.moved_bytes / ELEMENTS for name, c in made.items()} == {**MOVED[family], **limit}


@pytest.mark.parametrize(
    "family",
    [FP32, EIGHT_BIT, *(pytest.param(name, marks=needs_ml_dtypes) for name in STATES if name.startswith("bf16"))],
)
def test_a_way_keeps_what_it_is_named_after_and_its_limit_the_same_in_memory_of_its_own(
    family: str, bench: Callable[[str], ModuleType]
) -> None:
    found = family_of(bench, family)
    made = {c.name: c for c in found.make(SHAPES)}
    (plan,) = made[f"limit of {family}"].step.args[0]
    stored = [arrays for arrays in plan[10][:3] if arrays is not None] if len(plan) > 10 else []
    of_limit = [array for arrays in (*plan[2:6], *stored) for array in arrays]

    step = made[family].step
    params = step.optimizer.param_groups[0]["params"]
    states = [{key: array for key, array in state.items() if key != "step"} for state in step.optimizer.state]
    assert [set(state) for state in states] == [STATES[family]] * 2
    of_step = [*params, *step.grads, *(array for state in states for array in state.values())]

    kinds = [sorted((str(a.dtype), a.shape) for a in arrays) for arrays in (of_limit, of_step)]
    assert kinds[0] == kinds[1]
    assert sum(array.nbytes for array in (*of_limit, *of_step)) == found.item_bytes * ELEMENTS
    before = [array.tobytes() for array in of_step]
    made[f"limit of {family}"].step()
    assert [array.tobytes() for array in of_step] == before
    for contestant in made.values():
        contestant.step()
    assert [array.tobytes() for array in of_step] != before


def test_the_clipped_step_clips_and_the_looking_one_looks_and_the_plain_one_does_neither(
    bench: Callable[[str], ModuleType],
) -> None:
    made = {c.name: c for c in family_of(bench, FP32).make(SHAPES)}
    plain, clipped, looking = (made[name].step for name in MOVED[FP32])
    optimizer, grads = plain.optimizer, plain.grads
    assert clipped.optimizer is looking.optimizer is optimizer
    plain()
    assert optimizer.grad_norm is None
    clipped()
    norm = np.sqrt(sum(np.sum(np.square(grad, dtype=np.float64)) for grad in grads))
    assert optimizer.grad_norm == pytest.approx(norm)
    assert norm > clipped.max_grad_norm
    grads[1][5] = np.nan
    with pytest.raises(FloatingPointError):
        looking()
    plain()
    assert np.isnan(optimizer.param_groups[0]["params"][1][5])


def test_ratios_pair_the_steps_of_one_round(bench: Callable[[str], ModuleType]) -> None:
    low_precision, contestants = bench("low_precision"), bench("low_precision_contestants")
    # A machine that becomes ten times slower on the way.
    times = {"limit": {0: 1.0, 1: 1.0, 2: 10.0}, "it": {0: 2.0, 1: 3.0, 2: 20.0}}
    who = {name: contestants.Contestant(name, lambda: None, 6_000_000_000, ("limit", "nobody")) for name in times}
    found = low_precision._summaries(times, who, tensors=2)["it"]
    assert found["over"] == {"limit": {"ratio": 2.0, "quartiles": [2.0, 2.5]}}
    assert (found["median_s"], found["us_per_tensor"], found["gb_per_s"]) == (3.0, 1.5e6, 2.0)


def test_a_goal_that_is_missed_is_marked_and_one_that_is_reached_is_not(bench: Callable[[str], ModuleType]) -> None:
    tables = bench("low_precision_tables")

    def case(name: str, **ratios: float) -> dict[str, Any]:
        over = {rival: {"ratio": ratio} for rival, ratio in zip((f"limit of {EIGHT_BIT}", FP32), ratios.values())}
        run = {"threads": 2, "contestants": {EIGHT_BIT: {"over": over}}}
        return {"name": name, "moved_bytes": {SPLIT_8_BIT: 14.125}, "runs": [run]}

    cases = [case("33.5M", limit=1.154, fp32=0.686), case("134M", limit=1.2), case("1000x4096", limit=9.0)]
    shown = tables.goals_table({"cases": cases})
    assert shown[0] == "|  | goal: at most | 33.5M, 2 threads | 134M, 2 threads |"
    assert "| 8-bit moments: over its limit | 1.15 | 1.15 | 1.20† |" in shown
    assert "| 8-bit moments: over the fp32 step | 0.68 | 0.69† |  |" in shown
    assert "| bf16, split master, 8-bit moments: bytes a parameter | 14.2 | 14.1 | 14.1 |" in shown
    assert shown[-1] == "† Above the goal."
    assert not re.search("†", "\n".join(tables.goals_table({"cases": [case("134M", limit=1.15)]})))


def test_what_is_not_installed_or_does_not_fit_is_left_out_with_its_reason(
    bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    contestants = bench("low_precision_contestants")
    monkeypatch.setattr(contestants, "has_torch", lambda: False)
    case = contestants.LOW_PRECISION_CASES["33.5M"]
    room = (32 + 20.125) * ELEMENTS
    families, left_out = contestants.those_that_fit(case, SHAPES, room)
    assert [family.name for family in families] == [FP32, EIGHT_BIT]
    assert left_out.pop("torch fused AdamW") == "torch is not installed"
    assert set(left_out) == {name for name in STATES if name.startswith("bf16")}
    assert all("GB would be needed" in why or "is not installed" in why for why in left_out.values())


@pytest.mark.parametrize("arguments", [["--cases", "nothing"], ["--threads", "0"], ["--seconds", "-1"]], ids=" ".join)
def test_a_wrong_argument_is_named_before_anything_is_measured(arguments: list[str], tmp_path: Path) -> None:
    done = run_script("low_precision.py", "--quick", "--output", str(tmp_path / "x"), *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr
    assert list(tmp_path.iterdir()) == []


def family_of(bench: Callable[[str], ModuleType], name: str) -> Any:
    return next(family for family in bench("low_precision_contestants").FAMILIES if family.name == name)
