"""The accuracy runs: each way is what its name says, runs are kept, and what is published is what was found."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
PUBLISHED = BENCH / "results" / "accuracy"

for package in ("rich", "sklearn", "threadpoolctl", "matplotlib"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def accuracy() -> Iterator[Any]:
    """The script as a module, on one thread as it runs."""
    before, threads = list(sys.path), torch.get_num_threads()
    sys.path.insert(0, str(BENCH))
    torch.set_num_threads(1)
    yield importlib.import_module("accuracy")
    sys.path[:] = before
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PUBLISHED.with_suffix(".json").read_text(encoding="utf-8"))
    return found


def tiny(accuracy: Any, way: str, steps: int = 3) -> Any:
    return accuracy.Training(accuracy.WAYS[way], 0, steps, width=16, layers=1)


def test_a_training_in_float32_is_that_of_the_example(accuracy: Any) -> None:
    gpt = accuracy.tiny_gpt
    settings = {"seed": 0, "width": 16, "layers": 1, "lr": accuracy.LR, "steps": 3}
    theirs, ours = gpt.Run("radam.torch.RAdam", settings), tiny(accuracy, "float32")
    for batch in accuracy.Text().batches(0, 3):
        ours.step(batch)
        theirs.step(batch)
    for mine, their in zip(ours.params, theirs.model.parameters()):
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-6)  # the norm to clip by is added up otherwise


def test_each_way_trains_what_its_name_says(accuracy: Any) -> None:
    (batch,) = accuracy.Text().batches(0, 1)
    for name, way in accuracy.WAYS.items():
        training = tiny(accuracy, name)
        training.step(batch)
        assert {param.dtype for param in training.params} == {
            torch.bfloat16 if name.startswith("bf16") else torch.float32
        }
        keys = {key for entry in training.optimizer.state.values() for key in entry}
        assert ("remainder" in keys) == ("master weights" in name)
        assert ("exp_avg_code" in keys) == ("8-bit" in name), "the embedding has 4096 elements"
        assert isinstance(training.optimizer, torch.optim.RAdam) == ("torch.optim" in name) == way.theirs
        options = getattr(training.optimizer, "precision", None)
        assert (options is not None and options.stochastic_rounding) == ("stochastic" in name)
        for wide, param in zip(training.model.parameters(), training.params):
            assert torch.equal(wide.detach(), param.detach().float())  # it computes with what is kept


def test_all_ways_of_a_seed_have_the_same_batches_and_seeds_have_their_own(accuracy: Any) -> None:
    text = accuracy.Text()
    first, again, other = (list(text.batches(seed, 2)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other))
    assert not torch.equal(first[0], first[1])


def test_a_run_can_be_repeated_to_the_bit(accuracy: Any) -> None:
    text = accuracy.Text()
    way = accuracy.WAYS["bf16, stochastic rounding, 8-bit moments"]
    assert accuracy.train_gpt(way, 0, 3, text, 16, 1) == accuracy.train_gpt(way, 0, 3, text, 16, 1)
    assert accuracy.train_digits(way, 0, 1) == accuracy.train_digits(way, 0, 1)


def test_the_training_loss_is_the_mean_of_the_last_steps(accuracy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "MEAN_OF", 2)
    losses = iter((9.0, 4.0, 2.0, 1.0, 2.0))
    monkeypatch.setattr(accuracy.Training, "step", lambda self, batch: next(losses))
    found = accuracy.train_gpt(accuracy.WAYS["float32"], 0, 5, accuracy.Text(), 16, 1)
    assert found["training"] == [3.0, 1.5]


def test_what_is_finished_is_kept_and_not_run_again(
    accuracy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[tuple[str, int]] = []

    def train(way: Any, seed: int, epochs: int) -> dict[str, Any]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((next(name for name, known in accuracy.WAYS.items() if known is way), seed))
        return {"accuracy": 90.0 + len(done)}

    monkeypatch.setattr(accuracy, "train_digits", train)
    command = ["--quick", "--only", "digits", "--output", str(tmp_path / "new folder" / "found")]
    with pytest.raises(KeyboardInterrupt):
        accuracy.main(command)
    kept = json.loads((tmp_path / "new folder" / "found.json").read_text(encoding="utf-8"))
    assert list(kept["runs"]["digits"]) == list(accuracy.WAYS)[:3]

    monkeypatch.setattr(accuracy, "train_digits", lambda way, seed, epochs: {"accuracy": 95.0})
    assert accuracy.main(command) == 0
    kept = json.loads((tmp_path / "new folder" / "found.json").read_text(encoding="utf-8"))
    each = [runs["0"]["accuracy"] for runs in kept["runs"]["digits"].values()]
    assert each == [91.0, 92.0, 93.0, *[95.0] * (len(accuracy.WAYS) - 3)]
    assert {path.name for path in (tmp_path / "new folder").iterdir()} == {
        *("found.json", "found.md", "found-bytes.png"),
    }
    assert "+4.00" in capsys.readouterr().out  # points over float32

    with pytest.raises(SystemExit, match="other settings"):
        accuracy.main([*command, "--epochs", "2"][1:])


def test_figures_are_ratios_and_differences_to_float32_of_the_same_seed(accuracy: Any) -> None:
    report = accuracy.accuracy_report
    gpt = {
        "float32": {"0": {"training": [9, 2.0], "held_out": 4.0}, "1": {"training": [9, 4.0], "held_out": 4.0}},
        "bf16": {"0": {"training": [9, 2.2], "held_out": 3.0}, "1": {"training": [9, 4.0], "held_out": 5.0}},
    }
    digits = {"float32": {"0": {"accuracy": 98.0}}, "bf16": {"0": {"accuracy": 97.5}, "1": {"accuracy": 10.0}}}
    kinds = {name: accuracy.bytes_by_kind(accuracy.WAYS[name], 4096) for name in gpt}
    found = {"bytes": kinds, "runs": {"gpt": gpt, "digits": digits}}
    assert report.ratios(found, "bf16", "training") == pytest.approx([10.0, 0.0])
    assert report.ratios(found, "bf16", "held_out") == pytest.approx([-25.0, 25.0])
    assert report.points(found, "bf16") == pytest.approx([-0.5])  # float32 has no second seed
    assert "| bf16 | +5.00 % | +10.00, 0.00 | 0.00 % | \N{MINUS SIGN}25.00, +25.00 |" in report.gpt_table(found)


def test_bytes_are_those_of_the_tensors(accuracy: Any) -> None:
    found = accuracy.bytes_by_kind(accuracy.WAYS["bf16, master weights, 8-bit moments"])
    assert found == {
        **{"parameter": 2.0, "rest of the weight": 2.0, "gradient": 2.0, "m": 1.0, "v": 1.0},
        "scales": 2 * 4 / 128,
    }
    assert sum(accuracy.bytes_by_kind(accuracy.WAYS["float32"]).values()) == 16.0


def test_every_way_has_its_own_look_and_a_picture_of_all_can_be_drawn(accuracy: Any, tmp_path: Path) -> None:
    report = accuracy.accuracy_report
    assert set(report.LOOKS) == set(accuracy.WAYS)
    assert len(set(report.LOOKS.values())) == len(report.LOOKS)
    assert accuracy.main(["--quick", "--output", str(tmp_path / "all")]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}
    assert len(list(tmp_path.glob("all-*.png"))) == 2


# ---- what is published


def test_the_published_report_and_page_hold_the_tables_of_the_published_runs(
    accuracy: Any, published: dict[str, Any]
) -> None:
    report = accuracy.accuracy_report
    pictures = sorted(path.name for path in PUBLISHED.parent.glob("accuracy-*.png"))
    assert pictures == ["accuracy-bytes.png", "accuracy-losses.png"]
    text = PUBLISHED.with_suffix(".md").read_text(encoding="utf-8")
    assert text == report.page(published, pictures[::-1])
    page = (ROOT / "docs" / "low_precision.md").read_text(encoding="utf-8")
    assert page == report.filled(page, published)
    with pytest.raises(ValueError, match="no markers"):
        report.filled(page.replace("<!-- end of gpt table -->", ""), published)


def test_the_published_runs_are_complete_and_their_bytes_are_today_s(accuracy: Any, published: dict[str, Any]) -> None:
    settings = published["settings"]
    assert settings["steps"] >= 2500
    for task in ("gpt", "digits"):
        seeds = [str(seed) for seed in range(settings[f"{task}_seeds"])]
        assert {way: sorted(runs) for way, runs in published["runs"][task].items()} == dict.fromkeys(
            accuracy.WAYS, seeds
        )
    assert published["bytes"] == {name: accuracy.bytes_by_kind(way) for name, way in accuracy.WAYS.items()}


def test_every_goal_is_met_by_the_published_runs(accuracy: Any, published: dict[str, Any]) -> None:
    report = accuracy.accuracy_report
    for way, goal in report.GPT_GOALS.items():
        for what in ("training", "held_out"):
            assert report.mean(report.ratios(published, way, what)) <= goal, f"{way}, {what}"
    for way in report.DIGITS_WITH_GOAL:
        assert report.mean(report.points(published, way)) >= -report.DIGITS_GOAL, way
