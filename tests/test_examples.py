"""What the README, the pages and the examples show runs as it stands, and says what is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import radam
from pages import FRAMEWORK_OF, ROOT, blocks_of, check_links, run_block, run_script, text_of

README = text_of("README.md")
PAGES = ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")) if p.stem != "design")]
SCRIPTS = [f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.py"))]
SHORTER = {"examples/tiny_gpt.py": ("--steps", "20", "--no-plot")}  # the others take some seconds as they are
BLOCKS = [block for page in PAGES if page not in FRAMEWORK_OF for block in blocks_of(page)]


def test_there_are_examples_to_run() -> None:
    assert len(SCRIPTS) >= 4
    for page in ("README.md", "docs/low_precision.md"):
        assert len(blocks_of(page)) >= 4


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in FRAMEWORK_OF])
def test_every_example_runs_without_a_warning_and_leaves_no_file(script: str, tmp_path: Path) -> None:
    assert run_script(script, tmp_path, *SHORTER.get(script, ())).stderr == ""


@pytest.mark.parametrize(("page", "line", "code"), BLOCKS, ids=[f"{page}:{line}" for page, line, _ in BLOCKS])
def test_every_block_of_a_page_runs(
    page: str, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_block(page, line, code)


def test_the_convention_table_of_the_readme_is_that_of_the_code() -> None:
    eps_on = {"sqrt(v)": "sqrt_v", "sqrt(v / bc2)": "sqrt_v_hat"}
    warmups = {"momentum": "momentum", "no update": "moments_only"}
    shown = {}
    for row in re.findall(r"^\| (`.*) \|$", README.partition("| convention |")[2].partition("\n\n")[0], re.M):
        names, when, before, eps, decay = row.split(" | ")
        relation, threshold = re.fullmatch(r"rho (>=?) (\d)", when).groups()  # type: ignore[union-attr]
        for name in re.findall(r"`(\w+)`", names):
            kinds = () if decay == "none" else tuple(decay.split(" or "))
            shown[name] = (float(threshold), relation == ">=", warmups[before], eps_on[eps], kinds)
    assert shown == {
        name: (c.threshold, c.rectify_at_threshold, c.warmup, c.eps_on, c.decay)
        for name, c in radam.CONVENTIONS.items()
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_heading_that_a_page_links_to_exists(page: str) -> None:
    check_links(page)


def test_the_bench_table_is_that_of_the_run_that_is_linked_below_it() -> None:
    table, end, below = README.partition("<!-- bench table -->")[2].partition("<!-- end of bench table -->")
    assert end, "the markers that the table stands between are gone"
    linked = re.search(r"\]\((bench/results/[^)]+)\.md\)", below)
    assert linked, "no link to a run below the table"
    command = [sys.executable, str(ROOT / "bench/report.py"), str(ROOT / f"{linked[1]}.json")]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert printed.returncode == 0, printed.stderr
    assert table.strip("\n") == printed.stdout.strip("\n")
    assert table.count("radam.torch") >= 1
    assert table.count(", 1 thread |") >= 5


def test_the_figures_of_the_page_on_cpp_are_those_of_the_runs_that_they_name() -> None:
    found = re.findall(r"<!-- figures of ([\w-]+) -->(.*?)<!-- end of figures -->", text_of("docs/cpp.md"), re.S)
    assert [name.partition("-")[0] for name, _ in found] == ["embedding", "libtorch"]
    for name, text in found:
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) >= 6
        assert set(rows) <= set(text_of(f"bench/results/{name}.md").splitlines())
