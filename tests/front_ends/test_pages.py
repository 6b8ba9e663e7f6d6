"""The pages and examples of each framework run as they stand, and say what is true."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path

import pytest

from pages import FRAMEWORK_OF, ROOT, blocks_of, run_block, run_script

PAGES = {page: framework for page, framework in FRAMEWORK_OF.items() if (ROOT / page).exists()}
BLOCKS = [block for page in PAGES if page.endswith(".md") for block in blocks_of(page)]
WARNINGS = {"jax": "error"}  # the others warn of themselves when they are imported


def needs(page: str) -> None:
    framework = PAGES[page]
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(framework)


@pytest.mark.parametrize(("page", "line", "code"), BLOCKS, ids=[f"{page}:{line}" for page, line, _ in BLOCKS])
def test_every_block_of_a_page_runs(
    page: str, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(page)
    monkeypatch.chdir(tmp_path)
    run_block(page, line, code)


@pytest.mark.parametrize("script", [page for page in PAGES if page.endswith(".py")])
def test_every_example_runs_and_leaves_no_file(script: str, tmp_path: Path) -> None:
    needs(script)
    run_script(script, tmp_path, warnings=WARNINGS.get(PAGES[script], "default"))


def test_each_framework_has_a_page_with_blocks_and_an_example() -> None:
    for page in FRAMEWORK_OF:
        assert (ROOT / page).exists(), page
        assert page.endswith(".py") or blocks_of(page), page
