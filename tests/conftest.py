"""What every test shares: hypothesis without chance or clock, and the machine's settings put back after each test."""

from __future__ import annotations

import functools
import importlib
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

import radam
from left_out import left_out, not_installed
from radam import _core
from stand_in_library import compiled_stand_in, stand_in  # noqa: F401

settings.register_profile(
    "radam", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("radam")

# A shell without job control starts programs in the background deaf to Ctrl-C, and their children too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


TESTS = Path(__file__).parent
LEFT_OUT = left_out(TESTS, not_installed())
were_left_out: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--leave-nothing-out", action="store_true", help="fail where tests need what is not installed")


def pytest_configure(config: pytest.Config) -> None:
    if LEFT_OUT and config.getoption("--leave-nothing-out"):
        wanted = ", ".join(sorted(set().union(*LEFT_OUT.values())))
        raise pytest.UsageError(f"{len(LEFT_OUT)} files of tests need what is not installed: {wanted}")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the files of tests that need what is not installed."""
    if collection_path.parent != TESTS or collection_path.name not in LEFT_OUT:
        return None
    were_left_out.add(collection_path.name)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which files of tests were left out, and for want of what."""
    if were_left_out:
        wanted = " and ".join(sorted(set().union(*(LEFT_OUT[name] for name in were_left_out))))
        every = len(list(TESTS.glob("test_*.py")))
        terminalreporter.section(f"LEFT OUT: {len(were_left_out)} of {every} files, without {wanted}", yellow=True)
        for name in sorted(were_left_out):
            terminalreporter.write_line(f"{name}: {', '.join(sorted(LEFT_OUT[name]))}")


BENCH = TESTS.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return what imports a module of the benchmark."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@functools.cache
def why_no_gpu(library: str = "torch") -> str:
    """Return why tests marked gpu cannot run here, or nothing where they can."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.syspath_prepend(str(BENCH))
        warnings.simplefilter("ignore")  # what a library has to say when it is imported is not ours
        why: str = importlib.import_module("machine").why_no_cuda(library)
    return f"no CUDA device: {why}" if why else ""


@pytest.hookimpl(trylast=True)  # after those that are not to run are gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    for item in items:
        marker = item.get_closest_marker("gpu")
        if marker is not None and (reason := why_no_gpu(*marker.args)):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _settings_are_put_back() -> Iterator[None]:
    isa, threads = _core.isa(), radam.get_num_threads()
    yield
    _core.set_isa(isa)
    radam.set_num_threads(threads)


@pytest.fixture(params=radam.isas())
def every_isa(request: pytest.FixtureRequest) -> str:
    """Run the test once on each instruction set of this machine."""
    _core.set_isa(request.param)
    return str(request.param)
