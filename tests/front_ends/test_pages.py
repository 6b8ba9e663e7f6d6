"""The pages and examples of each framework run as they stand, and say what is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from pages import (
    FRAMEWORK_OF,
    PYTHON,
    SCRIPTS,
    Block,
    cases,
    check_change,
    diffs,
    frameworks_of,
    modules_of,
    run_block,
    run_script,
    skip_without,
    text_of,
)

BLOCKS = [block for block, frameworks in PYTHON if frameworks]
EXAMPLES = {script: found[0] for script in SCRIPTS if (found := frameworks_of(text_of(script)))}
WARNINGS = {"jax": "error"}  # the others warn of themselves when they are imported


@cases(BLOCKS)
def test_every_block_of_a_page_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without(modules_of(block.code))
    monkeypatch.chdir(tmp_path)
    run_block(block)


@pytest.mark.parametrize("script", EXAMPLES)
def test_every_example_runs_and_leaves_no_file(script: str, tmp_path: Path) -> None:
    skip_without(modules_of(text_of(script)))
    run_script(script, tmp_path, warnings=WARNINGS.get(EXAMPLES[script], "default"))


@diffs(frameworks=True)
def test_every_name_in_a_change_that_a_page_shows_exists(block: Block) -> None:
    check_change(block)


@pytest.mark.parametrize("framework", sorted(set(FRAMEWORK_OF.values())))
def test_each_framework_has_a_page_with_blocks_and_an_example(framework: str) -> None:
    assert any(block.page == f"docs/{framework}.md" and framework in found for block, found in PYTHON)
    assert framework in EXAMPLES.values()
