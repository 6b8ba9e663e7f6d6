"""python -m radam, as it runs from the installed package in an empty folder."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import radam
from radam import __main__, _bench, _demo

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process, and no SIGPIPE")


def run(*arguments: str, cwd: Path, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run python -m radam, with some packages made impossible to import."""
    start = f"import sys, runpy; sys.modules.update(dict.fromkeys({without!r})); sys.argv[0] = 'radam'; "
    start += "runpy.run_module('radam', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", start] if without else [sys.executable, "-m", "radam"]
    return subprocess.run([*command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def whole_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run the demo of the README once, as it is."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run("demo", cwd=folder)


# ---- arguments


@pytest.mark.parametrize("arguments", [(), ("--help",)], ids=["nothing", "--help"])
def test_help_names_all_commands(arguments: tuple[str, ...], tmp_path: Path) -> None:
    ended = run(*arguments, cwd=tmp_path)
    assert ended.returncode == 0
    assert all(re.search(rf"^ +{command} ", ended.stdout, re.M) for command in ("info", "demo", "bench"))
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["info", "more"], "unrecognized arguments: more"),
        (["demo", "--seeds", "0"], "--seeds: must be a whole number, at least 1, got '0'"),
        (["demo", "--epochs", "-3"], "--epochs: must be a whole number, at least 1, got '-3'"),
        (["demo", "--epochs", "many"], "--epochs: must be a whole number, at least 1, got 'many'"),
        (["bench", "--json"], "--json: expected one argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_exit_2_and_say_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        __main__.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_info_prints_what_show_config_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    radam.show_config()
    ended = run("info", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, capsys.readouterr().out)


def test_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout == f"radam {radam.__version__}\n"


# ---- the demo


def test_the_demo_reads_96_percent_of_unseen_digits_with_radam(
    whole_demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    ended = whole_demo[1]
    assert ended.returncode == 0, ended.stderr
    rows = re.findall(r"^[|│] (\w+)[^|│]*[|│] *([\d.]+) %", ended.stdout, re.M)
    means = {name: float(mean) for name, mean in rows}
    assert list(means) == ["RAdam", "Adam", "SGD"]
    assert means["RAdam"] >= 96
    assert min(means.values()) >= 96, "a tuned Adam and SGD reach it too; one that does not is a straw man"


def test_the_demo_saves_its_picture_in_the_current_folder_and_says_where(
    whole_demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, ended = whole_demo
    picture = folder.resolve() / "radam-demo.png"
    assert f"The picture is in {picture}\n" in ended.stdout
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert list(folder.iterdir()) == [folder / "radam-demo.png"]


@pytest.mark.parametrize(
    ("output", "written", "start"),
    [("a.svg", "a.svg", b"<?xml"), ("a.PDF", "a.PDF", b"%PDF"), ("[red]a", "[red]a.png", b"\x89PNG")],
    ids=["svg", "PDF", "no suffix"],
)
def test_output_decides_where_and_what(
    output: str, written: str, start: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["demo", "--seeds", "1", "--epochs", "1", "--output", str(tmp_path / output)]) == 0
    assert f"The picture is in {tmp_path / written}\n" in capsys.readouterr().out
    assert (tmp_path / written).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere/a.png", "there is no folder "),
        (".", "is a folder, not a file"),
        ("a.jpg", "--output must end in .png, "),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(
    output: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_demo, "run", lambda *arguments: pytest.fail("the training began"))
    assert __main__.main(["demo", "--output", output]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [["demo"], ["bench", "--json", "a.json"]], ids=["demo", "bench"])
def test_a_folder_without_write_permission_is_refused_before_the_work(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**where: Any) -> None:  # in place of chmod, which does not hold back root
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    for module in (_demo, _bench):
        monkeypatch.setattr(module, "run", lambda *arguments: pytest.fail("the work began"))
    assert __main__.main(command) == 1
    assert "(Permission denied); name another place\n" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["sklearn", "matplotlib", "rich"])
def test_the_demo_says_in_one_line_how_to_get_what_it_lacks(package: str, tmp_path: Path) -> None:
    ended = run("demo", cwd=tmp_path, without=(package,))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f'radam demo: {package} cannot be imported; get all that the demo needs: pip install "radam[demo]"\n'
    )


@pytest.mark.parametrize(("command", "module"), [("demo", _demo), ("bench", _bench)], ids=["demo", "bench"])
def test_ctrl_c_ends_a_command_with_one_line_and_130(
    command: str, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "run", interrupt)
    assert __main__.main([command]) == 130
    assert capsys.readouterr().err == f"radam {command}: stopped by Ctrl-C, nothing was saved\n"


@posix_only
def test_ctrl_c_in_the_middle_of_the_training_leaves_no_traceback_and_no_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "radam", "demo", "--epochs", "100000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("A network with ")
        process.send_signal(signal.SIGINT)
        try:
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()  # or else this would wait for ever
    assert (process.returncode, error) == (130, "radam demo: stopped by Ctrl-C, nothing was saved\n")
    assert not list(tmp_path.iterdir())


@posix_only
def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "radam", "info"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_the_gradients_of_the_demos_network_are_those_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    params: Any = {name: p.astype(np.float64) for name, p in _demo.new_params(rng).items()}
    x, labels = rng.random((7, 64)), rng.integers(0, 10, 7)
    _, grads = _demo.loss_and_grads(params, x, labels)
    h = 1e-6
    for name, p in params.items():
        for at in {tuple(rng.integers(0, p.shape)) for _ in range(5)}:
            old = p[at]
            p[at] = old + h
            above, _ = _demo.loss_and_grads(params, x, labels)
            p[at] = old - h
            below, _ = _demo.loss_and_grads(params, x, labels)
            p[at] = old
            assert grads[name][at] == pytest.approx((above - below) / (2 * h), rel=1e-4, abs=1e-8), (name, at)


def test_the_contestants_of_a_seed_have_the_same_start_and_the_same_batches() -> None:
    class Still:
        """Writes down what it meets, and moves nothing."""

        def __init__(self, params: Any, lr: Any) -> None:
            self.met = [p.tobytes() for p in params.values()]

        def step(self, *, grads: Any) -> None:
            self.met.append(b"".join(g.tobytes() for g in grads.values()))

    def met_in(seed: int) -> list[bytes]:
        made: list[Still] = []

        def make(params: Any, lr: Any) -> Still:
            made.append(Still(params, lr))
            return made[-1]

        _demo.train(_demo.Contestant("still", make, 0.1, "k", "-"), seed, 2, lambda: None)
        return made[0].met

    first = met_in(0)
    assert len(first) == 6 + 2 * 22
    assert met_in(0) == first
    assert met_in(1) != first


# ---- the bench


def test_the_bench_needs_numpy_alone_and_writes_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    ended = run(
        "bench", "--quick", "--json", str(path), cwd=tmp_path, without=("torch", "sklearn", "matplotlib", "rich")
    )
    assert ended.returncode == 0, ended.stderr
    assert f"The figures are in {path}\n" in ended.stdout
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["config"]["radam"] == radam.__version__
    used = sorted({1, found["config"]["threads"]})
    cases = [(name, threads) for name, *_ in _bench.cases(quick=True) for threads in used]
    assert [(row["case"], row["threads"]) for row in found["cases"]] == cases
    for row in found["cases"]:
        step, limit = row["step_ms_quartiles"], row["limit_ms_quartiles"]
        assert sorted(step) == step
        assert sorted(limit) == limit
        assert row["ratio"] == pytest.approx(step[1] / limit[1], abs=1e-4)
        assert f"{row['ratio']:.2f}" in ended.stdout


def test_the_bench_gives_the_step_and_the_limit_arrays_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def addresses(call: Any) -> list[int]:
        return [array.ctypes.data for arrays in call.args[0][0][2:6] for array in arrays]

    def look(step: Any, limit: Any, rounds: int) -> tuple[list[float], list[float]]:
        found.extend([addresses(step), addresses(limit)])
        return [1.0], [1.0]

    found: list[list[int]] = []
    monkeypatch.setattr(_bench, "cases", lambda quick: [("tiny", 3, 1000, 1)])
    monkeypatch.setattr(_bench, "measure", look)
    _bench.run(True, None)
    step, limit = found[:2]
    assert len(step) == len(limit) == 12
    assert len({*step, *limit}) == 24


def test_the_bench_measures_rectified_steps() -> None:
    hyperparameters, steps = _bench.new_groups(1, 1)[0][0], _bench.new_groups(1, 1)[0][7]
    assert radam._step.rectification_of(hyperparameters, int(steps[0]) + 1) is not None


def test_the_bench_puts_the_number_of_threads_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_bench, "cases", lambda quick: [("tiny", 1, 10, 3)])
    radam.set_num_threads(3)
    _bench.run(True, None)
    assert radam.get_num_threads() == 3
    assert re.findall(r"^tiny +(\d) ", capsys.readouterr().out, re.M) == ["1", "3"]

    def interrupt(*arguments: object) -> None:
        assert radam.get_num_threads() == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(_bench, "measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _bench.run(True, None)
    assert radam.get_num_threads() == 3


def test_too_little_memory_for_the_bench_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(_bench, "run", fail)
    assert __main__.main(["bench"]) == 1
    assert capsys.readouterr().err == "radam bench: not enough memory; try --quick\n"
