"""A training loop under Hugging Face accelerate runs, saves and resumes with RAdam as with torch.optim's."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState

from radam.torch import RAdam

BATCHES = 16  # in an epoch, of 16 samples
KEYWORDS = {"lr": 1e-2, "betas": (0.9, 0.98)}

NewModel = Callable[[], torch.nn.Module]
OptimizerClass = type[torch.optim.Optimizer]

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "decoupled-decay": {"keywords": {"weight_decay": 0.1, "decoupled_weight_decay": True}},
    "maximize": {"sign": -1.0, "keywords": {"maximize": True}},
    "clipped": {"clip": 0.5},
    "accumulated": {"gradient_accumulation_steps": 2},
    "accumulated-and-clipped": {"gradient_accumulation_steps": 2, "clip": 0.5},
    "bf16": {"mixed_precision": "bf16"},
    "bf16-accumulated-and-clipped": {"mixed_precision": "bf16", "gradient_accumulation_steps": 2, "clip": 0.5},
}


@pytest.fixture(autouse=True)
def _accelerate_forgets() -> Iterator[None]:
    """Let each test make its own Accelerator: the library keeps the settings of the first one for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@dataclass
class Run:
    """One training under accelerate."""

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: AcceleratedOptimizer
    scheduler: Any
    loader: Any
    clip: float | None = None
    sign: float = 1.0
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def epoch(self) -> None:
        for inputs, targets in self.loader:
            with self.accelerator.accumulate(self.model):
                loss = torch.nn.functional.cross_entropy(self.model(inputs), targets)
                self.accelerator.backward(self.sign * loss)
                if self.clip is not None and self.accelerator.sync_gradients:
                    self.norms.append(float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)))
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            self.losses.append(loss.item())
            if self.accelerator.sync_gradients:
                self.rates.append(self.scheduler.get_last_lr()[0])

    def states(self) -> list[dict[str, torch.Tensor]]:
        return list(self.optimizer.state_dict()["state"].values())


def new_run(
    optimizer_class: OptimizerClass,
    model: torch.nn.Module,
    data: torch.utils.data.Dataset[Any],
    *,
    keywords: dict[str, Any] | None = None,
    clip: float | None = None,
    sign: float = 1.0,
    **settings: Any,
) -> Run:
    accelerator = Accelerator(cpu=True, **settings)
    optimizer = optimizer_class(model.parameters(), **(KEYWORDS | (keywords or {})))
    # It moves betas too. Of the three epochs that it is made for, a test trains two.
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-2, total_steps=3 * BATCHES)
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    return Run(accelerator, *accelerator.prepare(model, optimizer, scheduler, loader), clip=clip, sign=sign)


@pytest.mark.parametrize("case", CASES)
def test_a_prepared_loop_trains_as_with_torch(
    case: str, new_model: NewModel, characters: Any, assert_agree: Any
) -> None:
    ours = new_run(RAdam, new_model(), characters, **CASES[case])
    ours.epoch()
    ours.epoch()
    theirs = new_run(torch.optim.RAdam, new_model(), characters, **CASES[case])
    theirs.epoch()
    theirs.epoch()
    steps = 2 * BATCHES // CASES[case].get("gradient_accumulation_steps", 1)
    assert type(ours.optimizer.optimizer) is RAdam
    assert ours.accelerator.mixed_precision == CASES[case].get("mixed_precision", "no")
    assert {int(state["step"]) for state in ours.states()} == {steps}
    assert ours.rates == theirs.rates
    assert len(set(ours.rates)) == steps
    assert ours.optimizer.param_groups[0]["betas"] == theirs.optimizer.param_groups[0]["betas"] != KEYWORDS["betas"]
    if "clip" in CASES[case]:
        assert max(ours.norms) > CASES[case]["clip"]
    assert sum(ours.losses[BATCHES:]) < 0.99 * sum(ours.losses[:BATCHES])
    computed_in = torch.bfloat16 if "mixed_precision" in CASES[case] else torch.float32
    assert_agree(ours.model, theirs.model, new_model(), steps, computed_in)


@pytest.mark.parametrize("case", ["plain", "bf16-accumulated-and-clipped"])
def test_a_loaded_state_goes_on_with_the_same_bits(
    case: str, new_model: NewModel, characters: Any, tmp_path: Path, assert_same_bits: Any
) -> None:
    whole = new_run(RAdam, new_model(), characters, **CASES[case])
    whole.epoch()
    whole.accelerator.save_state(str(tmp_path))
    whole.epoch()
    resumed = new_run(RAdam, new_model(), characters, **CASES[case])
    resumed.accelerator.load_state(str(tmp_path))
    resumed.epoch()
    assert resumed.losses == whole.losses[BATCHES:]
    assert_same_bits(resumed.model, whole.model, resumed.optimizer, whole.optimizer)


@pytest.mark.parametrize(("first", "second"), [(torch.optim.RAdam, RAdam), (RAdam, torch.optim.RAdam)])
def test_a_state_of_one_class_goes_on_with_the_other(
    first: OptimizerClass,
    second: OptimizerClass,
    new_model: NewModel,
    characters: Any,
    tmp_path: Path,
    assert_agree: Any,
) -> None:
    whole = new_run(first, new_model(), characters)
    whole.epoch()
    whole.accelerator.save_state(str(tmp_path))
    whole.epoch()
    resumed = new_run(second, new_model(), characters)
    resumed.accelerator.load_state(str(tmp_path))
    resumed.epoch()
    assert type(resumed.optimizer.optimizer) is second
    assert {int(state["step"]) for state in resumed.states()} == {2 * BATCHES}
    assert_agree(resumed.model, whole.model, new_model(), 2 * BATCHES)


def scaled_run(
    optimizer_class: OptimizerClass, model: torch.nn.Module, data: Any, overflow_at: int, **keywords: Any
) -> tuple[AcceleratedOptimizer, list[bool]]:
    """Train with accelerate's optimizer over a GradScaler, which accelerate itself makes on a GPU only."""
    assert Accelerator(cpu=True, mixed_precision="fp16").scaler is None  # otherwise the test should use it
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = AcceleratedOptimizer(optimizer_class(model.parameters(), **KEYWORDS, **keywords), scaler=scaler)
    changed = []
    for batch, (inputs, targets) in enumerate(torch.utils.data.DataLoader(data, batch_size=16)):
        before = [param.detach().clone() for param in model.parameters()]
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        scaler.scale(loss * (1e38 if batch == overflow_at else 1.0)).backward()
        optimizer.step()
        optimizer.zero_grad()
        changed.append(any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)))
    assert scaler.get_scale() == 2.0**9
    return optimizer, changed


@pytest.mark.parametrize("keywords", [{}, {"fused_amp": True}], ids=["plain", "fused"])
def test_a_scaled_step_that_overflows_is_left_out(
    keywords: dict[str, Any], new_model: NewModel, characters: Any, assert_agree: Any
) -> None:
    ours_model, theirs_model = new_model(), new_model()
    ours, ours_changed = scaled_run(RAdam, ours_model, characters, overflow_at=9, **keywords)
    theirs, theirs_changed = scaled_run(torch.optim.RAdam, theirs_model, characters, overflow_at=9)
    assert ours_changed == theirs_changed == [batch != 9 for batch in range(BATCHES)]
    for optimizer in (ours, theirs):
        assert {int(state["step"]) for state in optimizer.state_dict()["state"].values()} == {BATCHES - 1}
    assert_agree(ours_model, theirs_model, new_model(), BATCHES - 1)


def test_the_wrapped_optimizer_pickles(new_model: NewModel, characters: Any, assert_same_bits: Any) -> None:
    run = new_run(RAdam, new_model(), characters)
    run.epoch()
    copied = pickle.loads(pickle.dumps(run.optimizer))
    assert type(copied.optimizer) is RAdam
    assert_same_bits(run.model, run.model, copied, run.optimizer)
