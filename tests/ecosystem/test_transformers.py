"""The Trainer of Hugging Face transformers trains, saves and resumes a small Llama with RAdam as with torch.optim's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from radam.torch import RAdam

STEPS = 12  # with this beta2 the rectified ones begin at the sixth
LENGTH = 32
KEYWORDS = {"lr": 1e-2, "betas": (0.9, 0.98)}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name: (of the optimizer, of the Trainer)
    "plain": ({}, {}),
    "accumulated": ({}, {"gradient_accumulation_steps": 2}),
    "clipped": ({}, {"max_grad_norm": 0.5}),
    "coupled-decay": ({}, {"weight_decay": 0.1}),
    "decoupled-decay": ({"decoupled_weight_decay": True}, {"weight_decay": 0.1}),
    "bf16-autocast": ({}, {"bf16": True}),
    "activation-checkpointing": ({}, {"activation_checkpointing": True}),
    "all-at-once": (
        {"decoupled_weight_decay": True},
        {
            "gradient_accumulation_steps": 2,
            "max_grad_norm": 0.5,
            "weight_decay": 0.1,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 3,
            "label_smoothing_factor": 0.1,
        },
    ),
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr": 1e-3},
    "warmup_stable_decay": {"num_decay_steps": 4},
}


def new_llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Return the model to be trained, with the same parameters each time."""
    torch.manual_seed(0)
    shape = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, max_position_embeddings=LENGTH)).to(dtype)


@pytest.fixture(scope="module")
def lines(text: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Return pieces of the text in the form that the Trainer wants."""
    pieces = text[: 64 * LENGTH].split(LENGTH)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def trainer_of(
    optimizer: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None,
    lines: list[dict[str, torch.Tensor]],
    folder: Path,
    model: LlamaForCausalLM | None = None,
    **arguments: Any,
) -> Trainer:
    settings: dict[str, Any] = {
        "use_cpu": True,
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,  # there is no GPU to pin for, and torch warns about that
    }
    return Trainer(
        model=model or new_llama(),
        args=TrainingArguments(output_dir=str(folder), **(settings | arguments)),
        train_dataset=lines,
        optimizer_cls_and_kwargs=optimizer,
    )


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def state_of(trainer: Trainer) -> list[dict[str, torch.Tensor]]:
    saved = trainer.optimizer.state_dict()["state"]
    return [saved[index] for index in sorted(saved)]


@pytest.mark.parametrize("case", CASES)
def test_the_trainer_trains_as_with_torch(
    case: str, lines: list[dict[str, torch.Tensor]], tmp_path: Path, assert_agree: Any
) -> None:
    keywords, arguments = CASES[case]
    ours = trainer_of((RAdam, KEYWORDS | keywords), lines, tmp_path / "ours", **arguments)
    theirs = trainer_of((torch.optim.RAdam, KEYWORDS | keywords), lines, tmp_path / "theirs", **arguments)
    ours.train()
    theirs.train()
    assert type(ours.optimizer.optimizer) is RAdam
    assert {int(state["step"]) for state in state_of(ours)} == {STEPS}
    assert [group["weight_decay"] for group in ours.optimizer.param_groups] == [arguments.get("weight_decay", 0.0), 0.0]
    if "max_grad_norm" in arguments:
        norms = [entry["grad_norm"] for entry in ours.state.log_history if "grad_norm" in entry]
        assert max(norms) > arguments["max_grad_norm"]
    assert losses(ours)[-1] < 0.98 * losses(ours)[0]
    computed_in = torch.bfloat16 if "bf16" in arguments else torch.float32
    assert_agree(ours.model, theirs.model, new_llama(), STEPS, computed_in)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_of_the_trainer_is_obeyed(
    scheduler: str, lines: list[dict[str, torch.Tensor]], tmp_path: Path, assert_agree: Any
) -> None:
    arguments = {"lr_scheduler_type": scheduler, "lr_scheduler_kwargs": SCHEDULERS[scheduler], "warmup_steps": 2}
    ours = trainer_of((RAdam, KEYWORDS), lines, tmp_path / "ours", **arguments)
    theirs = trainer_of((torch.optim.RAdam, KEYWORDS), lines, tmp_path / "theirs", **arguments)
    ours.train()
    theirs.train()
    rates = [[entry["learning_rate"] for entry in t.state.log_history if "loss" in entry] for t in (ours, theirs)]
    assert rates[0] == rates[1]
    assert (len(set(rates[0])) > 1) == (scheduler != "constant")
    assert_agree(ours.model, theirs.model, new_llama(), STEPS)


def test_an_optimizer_handed_over_ready_made_is_used(
    lines: list[dict[str, torch.Tensor]], tmp_path: Path, assert_agree: Any
) -> None:
    trained = []
    for optimizer_class in (RAdam, torch.optim.RAdam):
        model = new_llama()
        optimizer = optimizer_class(model.parameters(), **KEYWORDS)
        trainer = trainer_of(None, lines, tmp_path, model=model)
        trainer.optimizer = optimizer
        trainer.train()
        assert trainer.optimizer.optimizer is optimizer
        trained.append(trainer.model)
    assert_agree(*trained, new_llama(), STEPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(
    dtype: torch.dtype,
    lines: list[dict[str, torch.Tensor]],
    tmp_path: Path,
    assert_same_bits: Any,
) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "cosine", "warmup_steps": 3}
    whole = trainer_of((RAdam, KEYWORDS), lines, tmp_path / "whole", new_llama(dtype), **arguments)
    whole.train()
    resumed = trainer_of((RAdam, KEYWORDS), lines, tmp_path / "resumed", new_llama(dtype), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert_same_bits(resumed.model, whole.model, resumed.optimizer, whole.optimizer)
    assert losses(resumed)[5:] == losses(whole)[5:]
    # Moments of 16-bit parameters stay float32, also when they come from a file.
    assert {state["exp_avg_sq"].dtype for state in state_of(resumed)} == {torch.float32}


@pytest.mark.parametrize(("first", "second"), [(torch.optim.RAdam, RAdam), (RAdam, torch.optim.RAdam)])
def test_a_run_of_one_class_goes_on_with_the_other(
    first: type[torch.optim.Optimizer],
    second: type[torch.optim.Optimizer],
    lines: list[dict[str, torch.Tensor]],
    tmp_path: Path,
    assert_agree: Any,
) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "cosine", "warmup_steps": 3}
    whole = trainer_of((first, KEYWORDS), lines, tmp_path / "whole", **arguments)
    whole.train()
    resumed = trainer_of((second, KEYWORDS), lines, tmp_path / "resumed", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert type(resumed.optimizer.optimizer) is second
    assert {int(state["step"]) for state in state_of(resumed)} == {STEPS}
    assert_agree(resumed.model, whole.model, new_llama(), STEPS)
