"""What the README, the pages and the examples show runs as it stands, and says what is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import radam
from pages import PYTHON, SCRIPTS, Block, cases, frameworks_of, run_block, run_script, text_of

README = text_of("README.md")
SHORTER = {"examples/tiny_gpt.py": ("--steps", "20", "--no-plot")}  # the others take some seconds as they are
BLOCKS = [block for block, frameworks in PYTHON if not frameworks]  # tests/front_ends has the others
EXAMPLES = [script for script in SCRIPTS if not frameworks_of(text_of(script))]


def test_there_are_examples_to_run() -> None:
    assert len(EXAMPLES) >= 4
    for page in ("README.md", "docs/low_precision.md", "docs/errors.md"):
        assert sum(block.page == page for block in BLOCKS) >= 2


@pytest.mark.parametrize("script", EXAMPLES)
def test_every_example_runs_without_a_warning_and_leaves_no_file(script: str, tmp_path: Path) -> None:
    assert run_script(script, tmp_path, *SHORTER.get(script, ())).stderr == ""


@cases(BLOCKS)
def test_every_block_of_a_page_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_block(block)


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


def test_the_figures_of_the_page_on_cpp_are_those_of_the_runs_that_they_name() -> None:
    found = re.findall(r"<!-- figures of ([\w-]+) -->(.*?)<!-- end of figures -->", text_of("docs/cpp.md"), re.S)
    assert [name.partition("-")[0] for name, _ in found] == ["embedding", "libtorch"]
    for name, text in found:
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) >= 6
        assert set(rows) <= set(text_of(f"bench/results/{name}.md").splitlines())
