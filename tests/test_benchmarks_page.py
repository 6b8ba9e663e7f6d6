"""No figure of a measurement on docs/benchmarks.md and docs/same_bits.md is other than that of the run it names."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from pages import ROOT, text_of

PAGE = "docs/benchmarks.md"
FRAMEWORKS = ("paddle", "jax", "mindspore")
TITLE = re.compile(r"\*\*.+\*\*")
Tables = dict[tuple[str, str], list[str]]


def printed(script: str, *names: str) -> str:
    """What a script of the benchmark makes of results."""
    results = [str(ROOT / f"bench/results/{name}.json") for name in names]
    command = [sys.executable, str(ROOT / "bench" / script), *results]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip("\n")


def between(kind: str) -> str:
    table, end, _ = text_of(PAGE).partition(f"<!-- {kind} -->")[2].partition(f"<!-- end of {kind} -->")
    assert end, f"the markers of {kind} are gone"
    return table.strip("\n")


def test_the_bench_table_is_that_of_its_run() -> None:
    table = between("bench table")
    assert table == printed("report.py", "xeon-2-cores")
    assert table.count("radam.torch") >= 1
    assert table.count(", 1 thread |") >= 5


def test_the_table_of_frameworks_is_that_of_their_runs() -> None:
    table = between("frameworks table")
    assert table == printed("framework_tables.py", *(f"{name}-xeon-2-cores" for name in FRAMEWORKS))
    assert all(f"`radam.{name}." in table for name in FRAMEWORKS)


def tables_in(text: str) -> Tables:
    """The rows of each table, by the bold line above it, if there is one, and its own first line."""
    found: Tables = {}
    title, key = "", None
    for line in text.splitlines():
        if line.startswith("|"):
            key = key or (title, line)
            found.setdefault(key, []).append(line)
        else:
            key = None
            title = line if TITLE.fullmatch(line) else title
    return found


FIGURES = [
    pytest.param(name, text, id=f"{page}:{name}-{number}")
    for page in (PAGE, "docs/same_bits.md")
    for number, (name, text) in enumerate(
        re.findall(r"<!-- figures of ([\w-]+) -->(.*?)<!-- end of figures -->", text_of(page), re.S)
    )
]


@pytest.mark.parametrize(("name", "text"), FIGURES)
def test_every_table_has_rows_of_one_table_of_the_run_that_it_names(name: str, text: str) -> None:
    shown, measured = tables_in(text), tables_in(text_of(f"bench/results/{name}.md"))
    assert shown
    for key, rows in shown.items():
        assert key in measured
        assert len(rows) >= 4
        assert [row for row in measured[key] if row in rows] == rows


def test_every_result_on_speed_is_on_the_page_and_linked() -> None:
    page = text_of(PAGE)
    on_speed = [path for path in (ROOT / "bench/results").glob("*.md") if path.stem not in ("accuracy", "codes")]
    assert len(on_speed) >= 8
    assert [path.name for path in on_speed if f"](../bench/results/{path.name})" not in page] == []


def test_every_fraction_in_the_prose_stands_in_a_table_of_the_page() -> None:
    lines = text_of(PAGE).replace("PyTorch 2.13", "PyTorch").splitlines()
    prose = "\n".join(line for line in lines if not (line.startswith("|") or TITLE.fullmatch(line)))
    measured = {number for line in lines if line.startswith("|") for number in re.findall(r"\d+\.\d+", line)}
    claimed = set(re.findall(r"\d+\.\d+", prose))
    assert len(claimed) >= 5
    assert claimed <= measured


def test_what_the_page_says_of_missed_goals_is_so() -> None:
    (goals,) = (rows[2:] for (_, head), rows in tables_in(text_of(PAGE)).items() if "134M, 1 thread" in head)
    met = [row for row in goals if row.count("\N{DAGGER}") < 4]
    assert (len(goals), len(met)) == (7, 2)
    assert sorted(row.count("\N{DAGGER}") for row in met) == [0, 3]
    assert "of\nseven goals two were met at all" in text_of(PAGE)
