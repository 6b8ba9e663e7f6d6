"""Every example in a docstring of these front ends runs as it stands, and every public name has one."""

from __future__ import annotations

import pytest

import docstrings


@pytest.mark.parametrize("front_end", docstrings.APART)
def test_every_example_runs_and_every_public_name_has_one(front_end: str) -> None:
    pytest.importorskip(front_end)
    examples = [example for module in docstrings.modules(front_end) for example in docstrings.examples(module)]
    assert examples
    for example in examples:
        docstrings.run(example)
    assert docstrings.without_an_example(f"radam.{front_end}") == []
