"""No figure of a measurement on the pages that show tables of runs is other than that of the run it names."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from pages import ROOT, text_of

PAGE = "docs/benchmarks.md"
RUN = "bench/results/xeon-2-cores.md"
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
    for page in (PAGE, "docs/same_bits.md", "docs/torch.md")
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


def column(table: list[str], name: str, *first: str) -> list[float]:
    """The numbers of a column, without what stands in brackets, of the rows that begin with these cells."""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table if "---" not in row]
    at = cells[0].index(name)
    return [float(row[at].partition(" ")[0]) for row in cells[1:] if row[: len(first)] == [*first]]


def numbers(page: str, pattern: str) -> list[str]:
    found = re.search(pattern, text_of(page))
    assert found, f"{page} no longer says {pattern!r}"
    return list(found.groups())


def test_what_other_pages_say_of_speed_is_what_was_measured() -> None:
    run = {title: rows for (title, head), rows in tables_in(text_of(RUN)).items() if head.startswith("| parameters |")}
    tensors = [row for row in run["**PyTorch tensors**"] if "bfloat16" not in row]
    ours = column(tensors, "radam.torch")
    assert len(ours) == 10
    ratios = []
    for peer in ("torch RAdam default", "torch RAdam foreach"):
        times = sorted(their / our for their, our in zip(column(tensors, peer), ours))
        ratios += [f"{times[0]:.2g}", f"{times[-1]:.2g}"]
    assert ratios == numbers(
        "docs/torch.md", r"([\d.]+) to (\d+) times faster; with `foreach=True` ([\d.]+) to (\d+) \|"
    )

    (small,) = numbers("docs/arrays.md", r"1000 arrays of 64 elements a step takes ([\d.]+) microseconds an\s+array")
    assert [f"{ms:.2f}" for ms in column(run["**NumPy arrays**"], "radam", "1000 arrays of 64")] == [small, small]

    (empty,) = tables_in(text_of("bench/results/empty-step.md")).values()
    beyond = (
        column(empty, "beyond the wrapper", f"{name}.RAdam", "of 64 elements")
        for name in ("radam.torch", "torch.optim")
    )
    said = numbers(
        "docs/torch.md", r"takes (\d+) microseconds beyond PyTorch's own wrapper[^,]+,\s+PyTorch's RAdam (\d+)"
    )
    assert [f"{of_64:.0f}" for (of_64,) in beyond] == said


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
