"""The benchmark of the frameworks measures what it says it does. Never a word about how long anything took."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pages import ROOT, text_of
from test_bench import run_script

NAMES = ["jax", "mindspore", "paddle"]


@pytest.mark.parametrize("name", NAMES)
def test_one_command_measures_a_framework_and_reports_every_figure(
    name: str, tmp_path: Path, bench: Callable[[str], ModuleType]
) -> None:
    contestants = bench("framework_contestants")
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    framework, output = contestants.FRAMEWORKS[name], tmp_path / "new folder" / "v0.1"
    done = run_script("frameworks.py", name, "--quick", "--rounds", "4", "--seconds", "1", "--output", str(output))
    assert done.returncode == 0, done.stderr
    found = json.loads(output.with_name("v0.1.json").read_text(encoding="utf-8"))
    assert (found["radam_frameworks_bench"], found["framework"], found["quick"]) == (1, name, True)
    assert found["command"].startswith(f"python bench/frameworks.py {name} --quick")
    assert set(framework.libraries) <= set(found["machine"]["versions"])
    assert [case["name"] for case in found["cases"]] == list(framework.cases)
    for case in found["cases"]:
        assert {contestants.LIMIT, contestants.ON_NUMPY, framework.own, *case["goals"]} <= set(case["contestants"])
        for it in case["contestants"].values():
            assert set(it) == {"repeats", "median_s", "quartiles_s", "over", "times_s"}
            assert set(it["over"]) == {framework.own, contestants.ON_NUMPY, contestants.LIMIT}
            assert len(it["times_s"]) == it["repeats"] >= 3
    tables = output.with_name("v0.1.md").read_text(encoding="utf-8")
    for case in found["cases"]:
        assert case["what"] in tables
        for contestant in case["contestants"]:
            assert f"| {contestant} |" in tables
    assert done.stdout.strip() == tables.strip()


def test_every_goal_is_of_a_case_that_is_measured(bench: Callable[[str], ModuleType]) -> None:
    frameworks = bench("framework_contestants").FRAMEWORKS
    assert sorted(frameworks) == NAMES
    for framework in frameworks.values():
        assert {case for case, _ in framework.goals} == set(framework.cases)


def test_the_table_of_each_page_is_that_of_the_run_that_is_linked_there() -> None:
    for page in (f"docs/{name}.md" for name in NAMES):
        part = text_of(page).partition("<!-- figures -->")[2].partition("<!-- end of figures -->")[0]
        linked = [ROOT / "bench/results" / f"{name}.json" for name in re.findall(r"bench/results/([\w-]+)\.md\)", part)]
        assert linked, f"{page} links to no run beside its table"
        done = run_script("framework_tables.py", *map(str, linked))
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() in part, page
