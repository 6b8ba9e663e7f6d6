"""DeepSpeed's engine trains, saves and resumes with RAdam as its client optimizer as with torch.optim's."""

from __future__ import annotations

import copy
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.utils import ZeRORuntimeException
from deepspeed.utils import safe_get_full_fp32_param

from gloo_processes import in_processes
from radam.torch import RAdam

pytestmark = [
    # torch's own compiler, which ZeRO imports, still uses what torch deprecates.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    # DeepSpeed 0.19 calls these by the names that they had before torch 2.13.
    pytest.mark.filterwarnings("ignore:`torch.distributed.* is deprecated:FutureWarning"),
]

BATCHES = 16  # in an epoch, of 16 samples
KEYWORDS = {"lr": 1e-2, "betas": (0.9, 0.98)}
STAGES = [0, 1, 2, 3]
FLOAT16 = {"fp16": {"enabled": True, "initial_scale_power": 8, "hysteresis": 1}}

CLASSES = {"radam": RAdam, "torch": torch.optim.RAdam}

OptimizerClass = type[torch.optim.Optimizer]
NewModel = Callable[[], torch.nn.Module]
Engine = deepspeed.DeepSpeedEngine


@pytest.fixture(scope="module", autouse=True)
def _a_world_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Be alone in the process group, without the all-reduce in shared memory, which takes a minute to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", False)
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            patch.setenv(name, value)
        meeting = tmp_path_factory.mktemp("world") / "meeting"
        torch.distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _linear_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what ZeRO 3 does for good: it puts a function of its own in the place of torch's."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)


def groups_of(model: torch.nn.Module) -> list[dict[str, Any]]:
    weights = [param for param in model.parameters() if param.ndim > 1]
    rest = [param for param in model.parameters() if param.ndim <= 1]
    return [{"params": weights}, {"params": rest, "weight_decay": 0.0}]


def new_engine(
    optimizer_class: OptimizerClass,
    model: torch.nn.Module,
    stage: int,
    *,
    keywords: dict[str, Any] | None = None,
    client_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    offload: bool = False,
    **config: Any,
) -> Engine:
    optimizer = optimizer_class(groups_of(model), **(KEYWORDS | (keywords or {})))
    zero: dict[str, Any] = {"stage": stage, "stage3_param_persistence_threshold": 0}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=client_scheduler,
        config={
            "train_micro_batch_size_per_gpu": 16,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            **config,
        },
    )
    assert engine.basic_optimizer is optimizer
    return engine


def epoch(engine: Engine, data: Any, overflow_at: int | None = None) -> list[float]:
    losses = []
    for batch, (inputs, targets) in enumerate(torch.utils.data.DataLoader(data, batch_size=16)):
        loss = torch.nn.functional.cross_entropy(engine(inputs).float(), targets)
        engine.backward(loss * (1e38 if batch == overflow_at else 1.0))
        engine.step()
        losses.append(loss.item())
    return losses


def trained_model(engine: Engine, new_model: NewModel) -> torch.nn.Module:
    """Return a copy of the model with the parameters in float32, whole, wherever the engine keeps them."""
    model = new_model()
    if engine.zero_optimization():
        places = list(model.parameters())
        params = [safe_get_full_fp32_param(param) for param in engine.module.parameters()]
    else:
        places = [param for group in groups_of(model) for param in group["params"]]
        params = [param for group in engine.basic_optimizer.param_groups for param in group["params"]]
    for place, param in zip(places, params, strict=True):
        assert param.dtype == torch.float32
        place.data.copy_(param)
    return model


def steps_of(engine: Engine) -> set[int]:
    return {int(state["step"]) for state in engine.basic_optimizer.state.values()}


def steps_at_the_start(engine: Engine) -> int:
    """Return how many steps DeepSpeed takes with zero gradients before the first real one."""
    return 1 if type(engine.optimizer) is FP16_UnfusedOptimizer else 0


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "coupled-decay": {"keywords": {"weight_decay": 0.1}},
    "decoupled-decay": {"keywords": {"weight_decay": 0.1, "decoupled_weight_decay": True}},
    "clipped": {"gradient_clipping": 0.5},
    "accumulated-and-clipped": {"gradient_clipping": 0.5, "gradient_accumulation_steps": 2},
    "warmup-and-decay": {
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 5, "total_num_steps": 2 * BATCHES}}
    },
    "one-cycle": {
        "scheduler": {
            "type": "OneCycle",  # it moves betas too
            "params": {"cycle_min_lr": 1e-3, "cycle_max_lr": 2e-2, "cycle_first_step_size": BATCHES},
        }
    },
    "client-scheduler": {
        "client_scheduler": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * BATCHES)
    },
    "bf16": {"bf16": {"enabled": True}},
    "fp16": FLOAT16,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", STAGES)
def test_the_engine_trains_as_with_torch(
    stage: int, case: str, new_model: NewModel, characters: Any, assert_agree: Any
) -> None:
    ours = new_engine(RAdam, new_model(), stage, **CASES[case])
    theirs = new_engine(torch.optim.RAdam, new_model(), stage, **CASES[case])
    losses = epoch(ours, characters) + epoch(ours, characters)
    epoch(theirs, characters)
    epoch(theirs, characters)
    steps = 2 * BATCHES // CASES[case].get("gradient_accumulation_steps", 1)
    assert losses[-1] < 0.98 * losses[0]
    assert steps_of(ours) == {steps + steps_at_the_start(ours)}
    assert ours.get_lr() == theirs.get_lr()
    if "gradient_clipping" in CASES[case] and stage > 0:
        assert ours.get_global_grad_norm() > CASES[case]["gradient_clipping"]
    computed_in = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(case, torch.float32)
    assert_agree(trained_model(ours, new_model), trained_model(theirs, new_model), new_model(), steps, computed_in)


@pytest.mark.parametrize("case", ["plain", "client-scheduler", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_loaded_checkpoint_goes_on_with_the_same_bits(
    stage: int, case: str, new_model: NewModel, characters: Any, tmp_path: Path, assert_same_bits: Any
) -> None:
    whole = new_engine(RAdam, new_model(), stage, **CASES[case])
    epoch(whole, characters)
    whole.save_checkpoint(tmp_path)
    losses = epoch(whole, characters)
    resumed = new_engine(RAdam, new_model(), stage, **CASES[case])
    resumed.load_checkpoint(tmp_path)
    assert epoch(resumed, characters) == losses
    models = [trained_model(engine, new_model) for engine in (resumed, whole)]
    assert_same_bits(*models, resumed.basic_optimizer, whole.basic_optimizer)


@pytest.mark.parametrize(("first", "second"), [(torch.optim.RAdam, RAdam), (RAdam, torch.optim.RAdam)])
@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_one_class_goes_on_with_the_other(
    stage: int,
    first: OptimizerClass,
    second: OptimizerClass,
    new_model: NewModel,
    characters: Any,
    tmp_path: Path,
    assert_agree: Any,
) -> None:
    whole = new_engine(first, new_model(), stage)
    epoch(whole, characters)
    whole.save_checkpoint(tmp_path)
    epoch(whole, characters)
    resumed = new_engine(second, new_model(), stage)
    resumed.load_checkpoint(tmp_path)
    epoch(resumed, characters)
    assert steps_of(resumed) == {2 * BATCHES}
    assert_agree(trained_model(resumed, new_model), trained_model(whole, new_model), new_model(), 2 * BATCHES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_float16_step_that_overflows_is_left_out(
    stage: int, new_model: NewModel, characters: Any, assert_agree: Any
) -> None:
    ours = new_engine(RAdam, new_model(), stage, **FLOAT16)
    theirs = new_engine(torch.optim.RAdam, new_model(), stage, **FLOAT16)
    for engine in (ours, theirs):
        epoch(engine, characters, overflow_at=4)
        assert engine.skipped_steps == 1
        assert steps_of(engine) == {BATCHES - 1 + steps_at_the_start(engine)}
    assert_agree(
        trained_model(ours, new_model), trained_model(theirs, new_model), new_model(), BATCHES - 1, torch.float16
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_trains_as_one_that_is_not(
    stage: int, new_model: NewModel, characters: Any, assert_agree: Any, assert_same_bits: Any
) -> None:
    offloaded, here = (new_engine(RAdam, new_model(), stage, offload=offload) for offload in (True, False))
    for engine in (offloaded, here):
        epoch(engine, characters)
    models = [trained_model(engine, new_model) for engine in (offloaded, here)]
    assert_agree(*models, new_model(), BATCHES)
    if stage < 3:  # the gradients of an offloaded stage 3 differ in their last bits, whatever the optimizer
        assert_same_bits(*models, offloaded.basic_optimizer, here.basic_optimizer)


@pytest.mark.parametrize("optimizer_class", [RAdam, torch.optim.RAdam])
def test_zero_must_be_told_to_take_an_optimizer_that_is_not_its_own(
    optimizer_class: OptimizerClass, new_model: NewModel
) -> None:
    with pytest.raises(AssertionError, match='"zero_allow_untested_optimizer": true'):
        new_engine(optimizer_class, new_model(), 1, zero_allow_untested_optimizer=False)
    with pytest.raises(ZeRORuntimeException, match='"zero_force_ds_cpu_optimizer": false'):
        new_engine(optimizer_class, new_model(), 1, offload=True, zero_force_ds_cpu_optimizer=True)


# ---- two processes


def train_half(model: torch.nn.Module, data: Any) -> dict[tuple[int, str], tuple[list[torch.Tensor], int]]:
    """Be one of two processes, each with half of every batch.

    Return, for each stage and class, the parameters at the end and how many numbers this process stepped.
    """
    rank = torch.distributed.get_rank()
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.simplefilter("ignore")  # those that the marks above are about
    trained = {}
    for stage, (name, optimizer_class) in itertools.product([1, 2, 3], CLASSES.items()):
        engine = new_engine(optimizer_class, copy.deepcopy(model), stage, train_micro_batch_size_per_gpu=8)
        for inputs, targets in torch.utils.data.DataLoader(data, batch_size=16):
            half = slice(8 * rank, 8 * rank + 8)
            engine.backward(torch.nn.functional.cross_entropy(engine(inputs[half]), targets[half]))
            engine.step()
        params = [safe_get_full_fp32_param(param).clone() for param in engine.module.parameters()]
        stepped = sum(state["exp_avg"].numel() for state in engine.basic_optimizer.state.values())
        trained[stage, name] = (params, stepped)
    return trained


@pytest.fixture(scope="module")
def two_processes(new_model: NewModel, characters: Any) -> list[dict[tuple[int, str], tuple[list[torch.Tensor], int]]]:
    return in_processes(2, train_half, new_model(), characters)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_of_two_processes_steps_its_half_as_with_torch(
    stage: int, two_processes: Any, new_model: NewModel, assert_agree: Any
) -> None:
    size = sum(param.numel() for param in new_model().parameters())
    for trained in two_processes:
        models = {}
        for name in CLASSES:
            params, stepped = trained[stage, name]
            assert size / 2 <= stepped < 0.51 * size
            models[name] = new_model()
            for param, end in zip(models[name].parameters(), params, strict=True):
                param.data.copy_(end)
        assert_agree(models["radam"], models["torch"], new_model(), BATCHES)
