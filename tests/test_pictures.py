"""The pictures of docs/method.md can be drawn anew, and what the page says of them is what they are drawn from."""

from __future__ import annotations

import csv
import importlib
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import radam
from pages import ROOT, text_of

PAGE = text_of("docs/method.md")
PROSE = " ".join(re.sub(r"^```.*?^```$", "", PAGE, flags=re.M | re.S).split())
SHOWN = re.findall(r"\]\(pictures/([\w.]+)\)", PAGE)
MOST = 100_000  # bytes


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("make_pictures")


def size_of(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:], "big")


def test_the_script_draws_every_picture_that_the_page_shows(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "docs/make_pictures.py"), "--draws", "50"]
    ended = subprocess.run(
        [*command, "--folder", str(tmp_path / "new")], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    drawn = {path.name: path for path in (tmp_path / "new").iterdir()}
    assert len(drawn) == len(SHOWN) >= 7
    assert set(drawn) == set(SHOWN) == {path.name for path in (ROOT / "docs/pictures").iterdir()}
    for name, path in drawn.items():
        kept = ROOT / "docs/pictures" / name
        assert size_of(path) == size_of(kept) == (1480, 780)
        assert 5000 < kept.stat().st_size < MOST
        assert 5000 < path.stat().st_size < MOST


def test_errors_are_measured_from_what_is_right_to_25_digits(drawing: ModuleType) -> None:
    rows = list(csv.DictReader((ROOT / "tests/rectification.csv").read_text().splitlines()))
    compared = [row for row in rows if row["r_t"]]
    assert len(compared) >= 500
    for row in compared:
        r, known = drawing.exact(int(row["t"]), float(row["beta2"])), Decimal(row["r_t"])
        assert abs(r - known) <= Decimal("1e-23") * known, row


def table(name: str) -> list[list[str]]:
    """The cells of a table that stands between markers, without its first two lines."""
    text, end, _ = PAGE.partition(f"<!-- {name} table -->")[2].partition(f"<!-- end of {name} table -->")
    assert end, "the markers are gone"
    return [line.strip("| ").split(" | ") for line in text.strip().splitlines()[2:]]


def test_the_table_of_the_rectification_is_that_of_the_code() -> None:
    rows = table("rectification")
    assert [row[0] for row in rows] == ["0.9", "0.99", "0.999", "0.9999", "0.99999"]
    for beta2, rho_inf, first, r, *reached in rows:
        at, b = int(first), float(beta2)
        assert round(2 / (1 - b) - 1) == int(rho_inf)
        assert radam.rectification(at - 1, b) is None
        assert f"{radam.rectification(at, b):.4f}" == r
        for t, level in zip(map(int, reached), (0.5, 0.9), strict=True):
            before, after = (radam.rectification(step, b) for step in (t - 1, t))
            assert before is not None
            assert after is not None
            assert before < level <= after


def test_the_table_of_conventions_is_that_of_the_code() -> None:
    eps_on = {"sqrt_v": "sqrt(v)", "sqrt_v_hat": "sqrt(v / bc2)"}
    warmups = {"momentum": "momentum", "moments_only": "no update"}
    shown = {name: rest for names, *rest in table("convention") for name in re.findall(r"`(\w+)`", names)}
    assert shown == {
        name: [
            f"rho {'>=' if c.rectify_at_threshold else '>'} {c.threshold:g}",
            warmups[c.warmup],
            eps_on[c.eps_on],
            " or ".join(c.decay) or "none",
        ]
        for name, c in radam.CONVENTIONS.items()
    }


def test_what_the_page_says_of_the_textbook_formula_is_what_is_drawn(drawing: ModuleType) -> None:
    betas = (0.999, 0.9999, 0.99999)
    rho, _ = drawing.textbook(6, 0.9999, np.float32)
    errors = [drawing.relative_error(drawing.textbook(6, b, np.float32)[1], 6, b) for b in betas]
    percent = {
        b: [round(100 * drawing.size_by_the_textbook(t, b) / drawing.size(t, b)) for t in range(1, 7)] for b in betas
    }
    assert f"in float32 rho_6 comes out as {rho:.2f}." in PROSE
    assert f"by {100 * errors[0]:.1f} %, {100 * errors[1]:.0f} % and {errors[2]:.0f}-fold" in PROSE
    assert f"step 6 has {percent[0.9999][5]} % or {percent[0.99999][5]} %, some before it 1 to 4 %" in PROSE
    assert set(percent[0.9999][:5]) == {1, 100}
    assert set(percent[0.99999][:5]) == {4}
    assert f"With 0.9999 step 6 has {percent[0.9999][5]} % of its length" in PROSE
    assert f"with 0.99999 it is {percent[0.99999][5] / 100:.0f} times as long" in PROSE

    def worst(x: float) -> float:
        steps = range(6, 56)
        return max(drawing.relative_error(drawing.textbook(t, 1 - x, np.float64)[1], t, 1 - x) for t in steps)

    assert "from 1 - beta2 = 1e-7 on, where r is off by 0.03 %" in PROSE
    assert 2e-4 < worst(1e-7) < 5e-4
    assert worst(1e-9) > 0.5


def test_what_the_page_says_of_the_noise_is_what_is_drawn(drawing: ModuleType) -> None:
    factor = drawing.simulated(np.array([1, 6, 3000, 6000]), 4000)
    low, high = np.percentile(factor[0], (0.5, 99.5))
    assert "The factor spreads from 0.4 to above 100 at step 1" in PROSE
    assert f"{low:.1f}" == "0.4"
    assert high > 100
    deviations = factor[1:].std(axis=1)
    assert "Without r the deviation falls from 0.4 to 0.016; with r it is level from the start" in PROSE
    assert (f"{deviations[0]:.1f}", f"{deviations[-1]:.3f}") == ("0.4", "0.016")
    level = deviations * [radam.rectification(t, 0.999) for t in (6, 3000, 6000)]
    assert level.max() < 1.6 * level.min()


def test_what_the_page_says_of_the_conventions_is_what_is_drawn(drawing: ModuleType) -> None:
    torch, lucid_docs, author = (drawing.path_down(name) for name in ("torch", "lucid_docs", "author"))
    assert f"torch goes from 1 to {torch[5]:.2f} in five steps and then slowly" in PROSE
    assert f"lucid_docs to {lucid_docs[4]:.2f}, author stays" in PROSE
    assert torch[5] - torch[30] < 0.03
    assert author[5] == 1
    assert 0.95 < author[30] < 1
    others = set(radam.CONVENTIONS) - {"torch", "lucid_docs", "author"}
    assert len(others) == 5
    for name in others:
        assert np.allclose(drawing.path_down(name), torch, rtol=1e-6)
