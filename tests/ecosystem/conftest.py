"""What the tests of every library share: no network, no GPU, a real text to learn, and what it means to agree."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

# Read when the libraries are imported: nothing is looked up on the network, and no GPU is looked for.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["DS_ACCELERATOR"] = "cpu"

# What one step may differ from torch's, of max(1, |p|), where the network computes in this dtype. In 16 bits, a
# parameter that differs in its last float32 bit may round to the next 16-bit number.
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-7, torch.bfloat16: 5e-5, torch.float16: 5e-5}


@pytest.fixture(autouse=True)
def _every_test_starts_alike() -> Iterator[None]:
    """Seed torch, and let it use one thread: on models this small a second one only gets in the way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def text() -> torch.Tensor:
    """Return the characters of a text that every machine has, a module of Python's standard library."""
    return torch.tensor(list(inspect.getsource(textwrap).encode("ascii")))


@pytest.fixture(scope="session")
def characters(text: torch.Tensor) -> torch.utils.data.TensorDataset:
    """Return 256 samples: eight characters of the text, and the one that follows."""
    windows = text[: 256 + 8].unfold(0, 9, 1)
    return torch.utils.data.TensorDataset(windows[:, :8].contiguous(), windows[:, 8].contiguous())


@pytest.fixture(scope="session")
def new_model() -> Callable[[], torch.nn.Sequential]:
    """Return what makes a network that guesses the next character, with the same parameters each time."""

    def make() -> torch.nn.Sequential:
        torch.manual_seed(0)
        layers = {
            "embedding": torch.nn.Embedding(128, 16),
            "flatten": torch.nn.Flatten(1),
            "hidden": torch.nn.Linear(8 * 16, 64),
            "tanh": torch.nn.Tanh(),
            "norm": torch.nn.LayerNorm(64),
            "head": torch.nn.Linear(64, 128),
        }
        return torch.nn.Sequential(OrderedDict(layers))

    return make


@pytest.fixture(scope="session")
def assert_agree() -> Callable[..., None]:
    """Return the check that two trainings from one start ended in one place, but for the rounding of their steps."""

    def check(
        ours: torch.nn.Module,
        theirs: torch.nn.Module,
        start: torch.nn.Module,
        steps: int,
        computed_in: torch.dtype = torch.float32,
    ) -> None:
        for (name, a), b, s in zip(ours.named_parameters(), theirs.parameters(), start.parameters(), strict=True):
            a, b, s = a.detach().double(), b.detach().double(), s.detach().double()
            allowed = steps * ROUNDING[computed_in] * b.abs().clamp(min=1)
            assert torch.all((a - b).abs() <= allowed), name
            # A tenth more or less of a step would show.
            assert torch.any((b - s).abs() > 10 * allowed), f"{name} hardly moved, so that agreeing means nothing"

    return check


@pytest.fixture(scope="session")
def assert_same_bits() -> Callable[..., None]:
    """Return the check that two models and their optimizers hold the same bits."""

    def check(
        one: torch.nn.Module,
        other: torch.nn.Module,
        one_optimizer: torch.optim.Optimizer,
        other_optimizer: torch.optim.Optimizer,
    ) -> None:
        pairs: list[tuple[str, Any, Any]] = [
            (name, a, b) for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True)
        ]
        for a, b in zip(one_optimizer.state.values(), other_optimizer.state.values(), strict=True):
            assert a.keys() == b.keys() >= {"step", "exp_avg", "exp_avg_sq"}
            pairs += [(key, a[key], b[key]) for key in a]
        for name, a, b in pairs:
            assert a.dtype == b.dtype, name
            assert torch.equal(a, b), name

    return check
