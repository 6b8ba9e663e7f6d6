"""What every test shares: hypothesis without chance or clock, and the machine's settings put back after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import radam
from radam import _core
from stand_in_library import compiled_stand_in, stand_in  # noqa: F401

settings.register_profile(
    "radam", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("radam")


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
