"""Every example in a docstring of radam runs as it stands, and every public name has one."""

from __future__ import annotations

import doctest

import pytest

import docstrings

EXAMPLES = [example for module in docstrings.modules() for example in docstrings.examples(module)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_runs_as_it_stands(example: doctest.DocTest) -> None:
    docstrings.run(example)


@pytest.mark.parametrize("package", ["radam", "radam.torch", "radam.lucid"])
def test_every_public_name_has_an_example(package: str) -> None:
    assert docstrings.without_an_example(package) == []


def test_a_wrong_example_fails() -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    with pytest.raises(AssertionError, match="Expected"):
        docstrings.run(wrong)
