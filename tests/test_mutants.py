"""The list of mutants stays in step with the source. Running them takes minutes: `nox -s mutants`."""

from __future__ import annotations

from pathlib import Path

import pytest

import mutants

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "cpp").is_dir(), reason="needs the source tree")


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_that_is_there_and_names_tests_that_are_there(mutant: mutants.Mutant) -> None:
    assert (ROOT / mutant.path).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert mutant.tests
    assert all((ROOT / test).is_file() for test in mutant.tests)


def test_the_mutants_that_were_promised_are_there() -> None:
    names = [mutant.name for mutant in mutants.MUTANTS]
    assert len(set(names)) == len(names)
    for promised in (
        *("threshold 4", "eps inside the root", "rectification x 0.9", "decay after the step", "maximize ignored"),
        *("version counter not bumped", "step advanced on a skip"),
    ):
        assert any(name.startswith(promised) for name in names)
