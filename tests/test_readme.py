"""What the README's first screen says is what was measured, and its lists leave nothing out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pages import ROOT, text_of

RUN = "bench/results/xeon-2-cores.json"


def test_the_first_picture_is_drawn_from_the_run_and_its_words_are_true(
    tmp_path: Path, bench: Callable[[str], ModuleType]
) -> None:
    pytest.importorskip("matplotlib")
    assert bench("headline").main([str(ROOT / RUN), str(tmp_path / "speed.png")]) == 0
    assert (tmp_path / "speed.png").stat().st_size > 10_000

    cases = {case["name"]: case for case in json.loads((ROOT / RUN).read_text(encoding="utf-8"))["cases"]}
    said = re.search(r"!\[[^]]*takes (\d+) and (\d+) times as long\]\(docs/speed.png\)", text_of("README.md"))
    assert said
    for name, times in zip(("33.5M", "1000x4096"), said.groups()):
        found = cases[name]["runs"][-1]["contestants"]
        assert round(found["torch RAdam default"]["median_s"] / found["radam.torch"]["median_s"]) == int(times)


def test_the_list_of_examples_names_every_one() -> None:
    listed = set(re.findall(r"^\| \[[^]]*\]\(([^)]+)\)", text_of("examples/README.md"), re.M))
    there = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert there <= listed
    assert listed - there == {"cpp/README.md", "c/least_squares.c"}
