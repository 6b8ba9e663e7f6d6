"""Lightning's Trainer and Fabric train, save and resume with RAdam as with torch.optim's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision

from radam.torch import RAdam

pytestmark = [
    # Lightning 2.6 still asks torch for a class that torch 2.13 is about to drop.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    # Its advice, on machines with many cores, is for larger data.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    # A resumed run keeps its checkpoints in a folder of its own, so that it cannot read its own.
    pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning"),
]

BATCHES = 16  # in an epoch, of 16 samples
KEYWORDS = {"lr": 1e-2, "betas": (0.9, 0.98)}

OptimizerClass = type[torch.optim.Optimizer]
NewModel = Callable[[], torch.nn.Module]
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "one-cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=2e-2, total_steps=3 * BATCHES),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=2 * BATCHES),
    "constant": lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
}


class Automatic(lightning.LightningModule):
    """The small network as Lightning wants it; Lightning steps."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer_class: OptimizerClass,
        scheduler: str = "one-cycle",
        **keywords: Any,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer_class, self.scheduler, self.keywords = optimizer_class, scheduler, KEYWORDS | keywords
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.norms: list[float] = []

    def configure_optimizers(self) -> Any:
        weights = [param for param in self.model.parameters() if param.ndim > 1]
        rest = [param for param in self.model.parameters() if param.ndim <= 1]
        optimizer = self.optimizer_class([{"params": weights}, {"params": rest, "weight_decay": 0.0}], **self.keywords)
        interval = "epoch" if self.scheduler in ("plateau", "constant") else "step"
        plan = {"scheduler": SCHEDULERS[self.scheduler](optimizer), "interval": interval, "monitor": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": plan}

    def loss_of(self, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        loss = torch.nn.functional.cross_entropy(self.model(inputs), targets)
        self.losses.append(loss.item())
        return loss

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.log("epoch", float(self.current_epoch))  # it never falls, so that "plateau" lowers the rate
        return self.loss_of(batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()])))


class Manual(Automatic):
    """The same with two optimizers, one for the embedding, that take turns; the module steps."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        embedding = list(self.model.embedding.parameters())
        rest = [param for name, param in self.model.named_parameters() if not name.startswith("embedding")]
        optimizers = [self.optimizer_class(params, **self.keywords) for params in (embedding, rest)]
        return optimizers, [SCHEDULERS[self.scheduler](optimizer) for optimizer in optimizers]

    def training_step(self, batch: Any, index: int) -> None:
        for optimizer, scheduler in zip(self.optimizers(), self.lr_schedulers(), strict=True):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.loss_of(batch))
            self.clip_gradients(optimizer, gradient_clip_val=0.5)
            optimizer.step()
            scheduler.step()
            self.untoggle_optimizer(optimizer)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def fit(
    module: lightning.LightningModule, data: Any, folder: Path, resume: Path | None = None, **arguments: Any
) -> lightning.Trainer:
    trainer = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"max_epochs": 2, "enable_checkpointing": False} | arguments),
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=16), ckpt_path=resume)
    return trainer


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name: (of the module, of the Trainer)
    "one-cycle": ({}, {}),
    "cosine": ({"scheduler": "cosine"}, {}),
    "plateau": ({"scheduler": "plateau"}, {"max_epochs": 3}),
    "coupled-decay": ({"weight_decay": 0.1}, {}),
    "decoupled-decay": ({"weight_decay": 0.1, "decoupled_weight_decay": True}, {}),
    "clipped-by-norm": ({}, {"gradient_clip_val": 0.5}),
    "clipped-by-value": ({}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "accumulated": ({}, {"accumulate_grad_batches": 2}),
    "accumulated-and-clipped": ({}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}),
    "bf16-mixed-and-clipped": ({}, {"precision": "bf16-mixed", "gradient_clip_val": 0.5}),
    "float64": ({}, {"precision": "64-true"}),
}


def steps_of(optimizer: torch.optim.Optimizer) -> set[int]:
    return {int(state["step"]) for state in optimizer.state_dict()["state"].values()}


@pytest.mark.parametrize("case", CASES)
def test_automatic_optimization_trains_as_with_torch(
    case: str, new_model: NewModel, characters: Any, tmp_path: Path, assert_agree: Any
) -> None:
    keywords, arguments = CASES[case]
    ours = Automatic(new_model(), RAdam, **keywords)
    theirs = Automatic(new_model(), torch.optim.RAdam, **keywords)
    trainer = fit(ours, characters, tmp_path, **arguments)
    fit(theirs, characters, tmp_path, **arguments)
    steps = arguments.get("max_epochs", 2) * BATCHES // arguments.get("accumulate_grad_batches", 1)
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is RAdam
    assert steps_of(optimizer) == {steps}
    assert len(ours.rates) == steps
    assert ours.rates == theirs.rates
    assert len(set(ours.rates)) > 1
    assert ours.losses[-1] < 0.9 * ours.losses[0]
    computed_in = {"bf16-mixed-and-clipped": torch.bfloat16, "float64": torch.float64}.get(case, torch.float32)
    start = new_model().double() if case == "float64" else new_model()
    assert_agree(ours.model, theirs.model, start, steps, computed_in)


def test_manual_optimization_trains_as_with_torch(
    new_model: NewModel, characters: Any, tmp_path: Path, assert_agree: Any
) -> None:
    ours, theirs = Manual(new_model(), RAdam), Manual(new_model(), torch.optim.RAdam)
    trainer = fit(ours, characters, tmp_path)
    fit(theirs, characters, tmp_path)
    assert [type(optimizer) for optimizer in trainer.optimizers] == [RAdam, RAdam]
    assert [steps_of(optimizer) for optimizer in trainer.optimizers] == [{2 * BATCHES}, {2 * BATCHES}]
    assert ours.rates == theirs.rates
    assert ours.losses[-1] < 0.9 * ours.losses[0]
    assert_agree(ours.model, theirs.model, new_model(), 2 * BATCHES)


def test_averaged_weights_are_those_of_torch(
    new_model: NewModel, characters: Any, tmp_path: Path, assert_agree: Any
) -> None:
    trained = []
    for optimizer_class in (RAdam, torch.optim.RAdam):
        module = Automatic(new_model(), optimizer_class, scheduler="constant")
        averaging = StochasticWeightAveraging(swa_lrs=5e-3, swa_epoch_start=1, annealing_epochs=1)
        fit(module, characters, tmp_path, max_epochs=3, callbacks=[averaging])
        assert 5e-3 in module.rates
        trained.append(module.model)
    assert_agree(*trained, new_model(), 3 * BATCHES)


def kept(folder: Path) -> dict[str, Any]:
    """Return what makes the Trainer keep a checkpoint of each epoch."""
    return {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)]}


@pytest.mark.parametrize(
    ("module_class", "precision"), [(Automatic, "32-true"), (Manual, "32-true"), (Automatic, "bf16-true")]
)
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(
    module_class: type[Automatic],
    precision: str,
    new_model: NewModel,
    characters: Any,
    tmp_path: Path,
    assert_same_bits: Any,
) -> None:
    whole = module_class(new_model(), RAdam)
    trainer = fit(whole, characters, tmp_path / "whole", precision=precision, **kept(tmp_path / "whole"))
    resumed = module_class(new_model(), RAdam)
    resumer = fit(
        resumed,
        characters,
        tmp_path,
        resume=tmp_path / "whole" / "epoch=0.ckpt",
        precision=precision,
        **kept(tmp_path / "resumed"),
    )
    assert resumed.losses == whole.losses[len(whole.losses) // 2 :]
    for one, other in zip(resumer.optimizers, trainer.optimizers, strict=True):
        assert_same_bits(resumed.model, whole.model, one, other)
        # Moments of 16-bit parameters stay float32, also when they come from a file.
        assert {state["exp_avg_sq"].dtype for state in one.state.values()} == {torch.float32}


@pytest.mark.parametrize(("first", "second"), [(torch.optim.RAdam, RAdam), (RAdam, torch.optim.RAdam)])
def test_a_checkpoint_of_one_class_goes_on_with_the_other(
    first: OptimizerClass,
    second: OptimizerClass,
    new_model: NewModel,
    characters: Any,
    tmp_path: Path,
    assert_agree: Any,
) -> None:
    whole, resumed = Automatic(new_model(), first), Automatic(new_model(), second)
    fit(whole, characters, tmp_path, **kept(tmp_path / "whole"))
    trainer = fit(resumed, characters, tmp_path, tmp_path / "whole" / "epoch=0.ckpt", **kept(tmp_path / "resumed"))
    assert type(trainer.optimizers[0]) is second
    assert steps_of(trainer.optimizers[0]) == {2 * BATCHES}
    assert_agree(resumed.model, whole.model, new_model(), 2 * BATCHES)


class Overflowing(Automatic):
    """Its loss overflows once, on the fifth batch."""

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.loss_of(batch)
        return loss * 1e38 if len(self.losses) == 5 else loss


def scaled_fit(module: Automatic, data: Any, folder: Path, **arguments: Any) -> lightning.Trainer:
    """Train in float16 with a GradScaler, which Lightning does on the CPU only if given its plugin ready-made."""
    with pytest.warns(UserWarning, match="fp16 is not supported on CPU"):  # otherwise the name should do
        lightning.Trainer(accelerator="cpu", precision="16-mixed", logger=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer = fit(module, data, folder, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], **arguments)
    assert scaler.get_scale() == 2.0**9
    return trainer


@pytest.mark.parametrize(
    ("keywords", "arguments"),
    [({}, {}), ({}, {"gradient_clip_val": 0.5}), ({"fused_amp": True}, {})],
    ids=["plain", "clipped", "fused"],
)
def test_float16_with_a_scaler_trains_as_with_torch_and_leaves_the_overflow_out(
    keywords: dict[str, Any],
    arguments: dict[str, Any],
    new_model: NewModel,
    characters: Any,
    tmp_path: Path,
    assert_agree: Any,
) -> None:
    ours = Overflowing(new_model(), RAdam, **keywords)
    theirs = Overflowing(new_model(), torch.optim.RAdam)
    trainer = scaled_fit(ours, characters, tmp_path, **arguments)
    scaled_fit(theirs, characters, tmp_path, **arguments)
    assert steps_of(trainer.optimizers[0]) == {2 * BATCHES - 1}
    assert ours.losses[-1] < 0.9 * ours.losses[0]
    assert_agree(ours.model, theirs.model, new_model(), 2 * BATCHES - 1, torch.float16)


def test_fabric_trains_as_with_torch_and_resumes_with_the_same_bits(
    new_model: NewModel, characters: Any, tmp_path: Path, assert_agree: Any, assert_same_bits: Any
) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    loader = fabric.setup_dataloaders(torch.utils.data.DataLoader(characters, batch_size=16))

    def prepared(optimizer_class: OptimizerClass) -> tuple[Any, Any]:
        model = new_model()
        return fabric.setup(model, optimizer_class(model.parameters(), **KEYWORDS))

    def epoch(model: Any, optimizer: Any) -> list[float]:
        losses = []
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=0.5)
            optimizer.step()
            losses.append(loss.item())
        return losses

    ours, optimizer = prepared(RAdam)
    epoch(ours, optimizer)
    fabric.save(tmp_path / "state", {"model": ours, "optimizer": optimizer})
    losses = epoch(ours, optimizer)

    theirs, torch_optimizer = prepared(torch.optim.RAdam)
    epoch(theirs, torch_optimizer)
    epoch(theirs, torch_optimizer)
    assert_agree(ours.module, theirs.module, new_model(), 2 * BATCHES)

    resumed, resumed_optimizer = prepared(RAdam)
    fabric.load(tmp_path / "state", {"model": resumed, "optimizer": resumed_optimizer})
    assert epoch(resumed, resumed_optimizer) == losses
    assert_same_bits(resumed.module, ours.module, resumed_optimizer.optimizer, optimizer.optimizer)
