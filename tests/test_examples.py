"""What the README, the pages and the examples show runs as it stands, and says what is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import radam

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
SHORTER = {"tiny_gpt.py": ("--steps", "20", "--no-plot")}  # the others take some seconds as they are
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/low_precision.md")}
BLOCKS = [
    (page, text.count("\n", 0, found.start(1)), found[1])
    for page, text in PAGES.items()
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
]


def test_there_are_examples_to_run() -> None:
    assert len(SCRIPTS) >= 4
    for page, text in PAGES.items():
        blocks = [code for name, _, code in BLOCKS if name == page]
        assert len(blocks) >= 4
        assert len(blocks) == text.count("```python"), "a block is not closed, or indented"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.name))
def test_every_example_runs_without_a_warning_and_leaves_no_file(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(script), *SHORTER.get(script.name, ())]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
    assert ended.stderr == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("page", "line", "code"), BLOCKS, ids=[f"{page}:{line}" for page, line, _ in BLOCKS])
def test_every_block_of_a_page_runs(
    page: str, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile("\n" * line + code, str(ROOT / page), "exec"), {"__name__": "__main__"})


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
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if "://" not in target]
    assert targets
    for target in targets:
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if heading:
            text = path.read_text(encoding="utf-8")
            titles = [re.sub(r"[^\w -]", "", title.lower()) for title in re.findall(r"^#+ (.*)$", text, re.M)]
            assert heading in [title.replace(" ", "-") for title in titles], target


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
