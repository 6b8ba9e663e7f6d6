"""Mixed precision: GradScaler takes RAdam as it takes torch's, and with fused_amp the step unscales and skips."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from radam.torch import RAdam
from test_torch_safety import Watch, Wrapped
from test_torch_state import assert_close, assert_near, bits_of, everything, params_of, random, tensor_bits

CLASSES = {"radam": RAdam, "torch": torch.optim.RAdam}
SCALE = 1024.0


def unskipped(snapshot: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in snapshot.items() if key != "skipped_steps"}


# ---- GradScaler as it is


def model() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    with torch.no_grad():
        for i, param in enumerate(module.parameters()):
            param.copy_(0.5 * random(i, param.shape, torch.float32))
    return module


def loss_of(module: nn.Module, seed: int) -> Tensor:
    inputs = random(seed, (16, 4), torch.float32)
    return (module(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()


def train(cls: Any, spoiled: tuple[int, ...] = (), clip: bool = False, **keywords: Any) -> dict[str, Any]:
    """Train a model with a scaler that meets an inf at some steps; return what there is after each step."""
    module = model()
    optimizer = cls(module.parameters(), lr=0.01, **keywords)
    scaler = GradScaler("cpu", init_scale=SCALE, growth_interval=3)
    scales, steps, norms = [], [], []
    for seed in range(12):
        optimizer.zero_grad()
        scaler.scale(loss_of(module, seed)).backward()
        if seed in spoiled:
            params_of(optimizer)[-1].grad.fill_(math.inf)
        before = everything(optimizer)
        if clip:
            scaler.unscale_(optimizer)
            norms.append(nn.utils.clip_grad_norm_(module.parameters(), 0.1).item())
            before = everything(optimizer)
        scaler.step(optimizer)
        if seed in spoiled:
            after = unskipped(everything(optimizer))
            assert {**after, "grads": None} == {**unskipped(before), "grads": None}
        scaler.update()
        scales.append(scaler.get_scale())
        steps.append({float(entry["step"]) for entry in optimizer.state.values()})
    return {"optimizer": optimizer, "scales": scales, "steps": steps, "norms": norms}


@pytest.mark.parametrize("fused_amp", [False, True])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spoiled", [(), (0, 1, 7)], ids=["finite", "with infs"])
def test_a_scaler_grows_skips_and_clips_as_with_torch_s_radam(
    spoiled: tuple[int, ...], clip: bool, fused_amp: bool
) -> None:
    ours, theirs = train(RAdam, spoiled, clip, fused_amp=fused_amp), train(torch.optim.RAdam, spoiled, clip)
    assert ours["scales"] == theirs["scales"]
    assert ours["steps"] == theirs["steps"]
    assert ours["norms"] == pytest.approx(theirs["norms"], rel=1e-5, nan_ok=True)
    assert_close(ours["optimizer"], theirs["optimizer"])
    assert ours["optimizer"].skipped_steps == (len(spoiled) if fused_amp else 0)


def test_a_scaler_that_is_switched_off_changes_no_bit() -> None:
    scaled, plain = model(), model()
    scaler = GradScaler("cpu", enabled=False)
    for fused_amp in (False, True):
        first, second = RAdam(scaled.parameters(), fused_amp=fused_amp), RAdam(plain.parameters())
        for seed in range(3):
            for module, optimizer in ((scaled, first), (plain, second)):
                optimizer.zero_grad()
                scaler.scale(loss_of(module, seed)).backward()
            scaler.step(first)
            scaler.update()
            second.step()
        assert bits_of(first) == bits_of(second)


# ---- the step unscales

KINDS: dict[str, Callable[[], Tensor]] = {
    "float32": lambda: random(1, (37,), torch.float32),
    "float64": lambda: random(1, (37,), torch.float64),
    "bfloat16": lambda: random(1, (37,), torch.bfloat16),
    "float16": lambda: random(1, (37,), torch.float16),
    "with gaps": lambda: random(1, (37, 2), torch.float32)[:, 1],
    "no dimension": lambda: random(1, (), torch.float32),
    "empty": lambda: random(1, (0,), torch.float32),
    "complex": lambda: random(1, (37,), torch.complex64),
    "wrapped": lambda: Wrapped(random(1, (37,), torch.float32)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "coupled": {"weight_decay": 0.1, "maximize": True},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
}


def drawn(param: Tensor, seed: int) -> Tensor:
    grad = random(seed, param.shape, param.dtype)
    return Wrapped(grad) if isinstance(param, Wrapped) else grad


def fused_step(optimizer: Any, scale: float, found_inf: float = 0.0) -> None:
    """Step as a scaler makes a fused optimizer step."""
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(found_inf)
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


@pytest.mark.parametrize("scale", [1.0, 2.0**-3, 2.0**9, 2.0**16])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_step_has_the_bits_of_unscaling_by_hand_and_leaves_the_gradients(
    kind: str, settings: dict[str, Any], scale: float
) -> None:
    fused, plain = (
        RAdam([nn.Parameter(KINDS[kind]()), nn.Parameter(torch.ones(3))], lr=0.01, fused_amp=amp, **settings)
        for amp in (True, False)
    )
    for seed in range(7):
        for i, (ours, theirs) in enumerate(zip(params_of(fused), params_of(plain), strict=True)):
            # Small enough that its multiple is finite in float16, large enough that none is subnormal there.
            grad = drawn(ours, 10 * seed + i).clamp(0.25, 0.5) if not ours.is_complex() else drawn(ours, 10 * seed + i)
            theirs.grad = grad
            ours.grad = grad * scale
        kept = [(p.grad, p.grad._version, tensor_bits(p.grad)) for p in params_of(fused)]
        fused_step(fused, scale)
        plain.step()
        now = [(p.grad, p.grad._version, tensor_bits(p.grad)) for p in params_of(fused)]
        assert all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(now, kept, strict=True))
    assert bits_of(fused) == bits_of(plain)


@pytest.mark.parametrize("scale", [3.0, 1e4, 0.7])
def test_a_fused_step_at_any_scale_has_the_bits_of_the_scaler_s_own_unscaling(scale: float) -> None:
    params = [nn.Parameter(random(1, (37,), torch.float32)) for _ in range(2)]
    fused, plain = RAdam(params[:1], lr=0.01, fused_amp=True), RAdam(params[1:], lr=0.01)
    scaler = GradScaler("cpu", init_scale=scale, growth_interval=2)
    for seed in range(7):
        for param in params:
            scaler.scale((param * random(seed, (37,), torch.float32)).square().sum()).backward()
        scaler.step(fused)
        scaler.step(plain)
        scaler.update()
        fused.zero_grad()
        plain.zero_grad()
    assert bits_of(fused) == bits_of(plain)


def test_float16_parameters_train_where_the_scaler_cannot_unscale_them() -> None:
    ours, theirs = nn.Parameter(torch.ones(3).half()), nn.Parameter(torch.ones(3).half())
    fused, plain = RAdam([ours], lr=0.1, fused_amp=True), RAdam([theirs], lr=0.1)
    scaler = GradScaler("cpu", init_scale=SCALE)
    scaler.scale((theirs * 2.0**-3).sum()).backward()
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.step(plain)
    scaler = GradScaler("cpu", init_scale=SCALE)
    for _ in range(7):
        fused.zero_grad()
        # Without the scale it would be 2^-26 and round to zero.
        scaler.scale((ours * 2.0**-13 * 2.0**-13).sum()).backward()
        scaler.step(fused)
        scaler.update()
    assert fused.state[ours]["step"].item() == 7
    assert bool((fused.state[ours]["exp_avg"] > 0).all())


# ---- the step skips


@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_step_that_meets_an_inf_changes_nothing(kind: str, steps: int) -> None:
    optimizer = RAdam([nn.Parameter(KINDS[kind]()), nn.Parameter(torch.ones(3))], lr=0.01, fused_amp=True)
    for seed in range(steps + 1):
        for i, param in enumerate(params_of(optimizer)):
            param.grad = drawn(param, 10 * seed + i)
        if seed < steps:
            fused_step(optimizer, SCALE)
    weight = torch.ones((), requires_grad=True)
    loss = sum((weight * param.detach()).abs().sum().double() for param in params_of(optimizer))
    before = everything(optimizer)
    assert optimizer.skipped_steps == 0
    for found_inf in (1.0, 2.0):
        fused_step(optimizer, SCALE, found_inf)
    assert optimizer.skipped_steps == 2
    assert unskipped(everything(optimizer)) == unskipped(before)
    loss.backward()  # the version counters have not moved
    fused_step(optimizer, SCALE)
    assert {entry["step"].item() for entry in optimizer.state.values()} == {steps + 1}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("at", [0, 1])
def test_the_scaler_finds_what_is_not_finite_in_any_gradient_of_a_fused_optimizer(at: int, value: float) -> None:
    params = [nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))]
    optimizer = RAdam([{"params": params[:1]}, {"params": params[1:], "lr": 0.1}], fused_amp=True)
    scaler = GradScaler("cpu", init_scale=SCALE)
    scaler.scale(sum(param.sum() for param in params)).backward()
    scaler.step(optimizer)
    scaler.update()
    params[at].grad[3] = value
    before = everything(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert unskipped(everything(optimizer)) == unskipped(before)
    assert optimizer.skipped_steps == 1
    assert scaler.get_scale() == SCALE / 2


def test_a_step_without_a_scaler_is_a_plain_one() -> None:
    fused, plain = (RAdam([nn.Parameter(random(1, (5,), torch.float32))], fused_amp=amp) for amp in (True, False))
    for seed in range(7):
        for optimizer in (fused, plain):
            params_of(optimizer)[0].grad = random(seed, (5,), torch.float32)
            optimizer.step()
    assert bits_of(fused) == bits_of(plain)


def test_gradients_that_were_unscaled_are_not_unscaled_again() -> None:
    fused, plain = (RAdam(model().parameters(), lr=0.01, fused_amp=amp) for amp in (True, False))
    scaler = GradScaler("cpu", init_scale=SCALE)
    for seed in range(7):
        for optimizer in (fused, plain):
            for i, param in enumerate(params_of(optimizer)):
                param.grad = random(10 * seed + i, param.shape, torch.float32)
        scaler.scale(torch.ones(1))  # makes the scale
        for param in params_of(fused):
            param.grad *= SCALE
        scaler.unscale_(fused)
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(params_of(fused), params_of(plain), strict=True))
        scaler.step(fused)
        scaler.update()
        plain.step()
    assert bits_of(fused) == bits_of(plain)


def test_a_scale_of_the_user_s_own_multiplies_the_scaler_s() -> None:
    fused, plain = (RAdam([nn.Parameter(random(1, (5,), torch.float32))], fused_amp=amp) for amp in (True, False))
    scaler = GradScaler("cpu", init_scale=SCALE)
    for seed in range(7):
        scaler.scale(torch.ones(1))
        fused.grad_scale = torch.tensor(4.0)
        params_of(plain)[0].grad = random(seed, (5,), torch.float32)
        params_of(fused)[0].grad = params_of(plain)[0].grad * SCALE * 4
        scaler.step(fused)
        scaler.update()
        plain.step()
    assert bits_of(fused) == bits_of(plain)


@pytest.mark.parametrize("fused", [(True, True), (True, False), (False, False)], ids=str)
def test_optimizers_that_share_a_scaler_skip_each_for_itself(fused: tuple[bool, bool]) -> None:
    def trained(*makes: Callable[[Any], Any]) -> tuple[list[Any], float]:
        optimizers = [make([nn.Parameter(random(i, (5,), torch.float32))]) for i, make in enumerate(makes)]
        scaler = GradScaler("cpu", init_scale=SCALE)
        for seed in range(7):
            for i, optimizer in enumerate(optimizers):
                optimizer.zero_grad()
                (param,) = params_of(optimizer)
                scaler.scale((param * random(seed, (5,), torch.float32)).square().sum()).backward()
                if seed == 3 and i == 1:
                    param.grad[0] = math.nan
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
        return optimizers, scaler.get_scale()

    ours, scale = trained(*(lambda params, amp=amp: RAdam(params, lr=0.01, fused_amp=amp) for amp in fused))
    theirs, expected = trained(*[lambda params: torch.optim.RAdam(params, lr=0.01)] * 2)
    assert scale == expected == SCALE / 2
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)
    assert [float(entry["step"]) for optimizer in ours for entry in optimizer.state.values()] == [7, 6]
    assert [optimizer.skipped_steps for optimizer in ours] == [0, int(fused[1])]


def test_a_scaler_refuses_a_second_step_before_its_update() -> None:
    for fused_amp in (False, True):
        param = nn.Parameter(torch.ones(3))
        optimizer, scaler = RAdam([param], fused_amp=fused_amp), GradScaler("cpu", init_scale=SCALE)
        scaler.scale(param.sum()).backward()
        scaler.step(optimizer)
        before = everything(optimizer)
        with pytest.raises(RuntimeError, match="has already been called since the last update"):
            scaler.step(optimizer)
        assert everything(optimizer) == before


@pytest.mark.parametrize("scale", [0.0, math.nan])
def test_a_scale_that_cannot_be_undone_is_an_error_that_changes_nothing(scale: float) -> None:
    optimizer = RAdam([nn.Parameter(torch.ones(3))], fused_amp=True)
    params_of(optimizer)[0].grad = torch.ones(3)
    fused_step(optimizer, 1.0)
    optimizer.grad_scale = torch.tensor(scale)
    before = everything(optimizer)
    with pytest.raises((ValueError, ZeroDivisionError)):
        optimizer.step()
    assert everything(optimizer) == before


def test_a_failed_fused_step_changes_nothing() -> None:
    optimizer = RAdam(model().parameters(), fused_amp=True)
    for param in params_of(optimizer):
        param.grad = torch.ones_like(param)
    fused_step(optimizer, SCALE)
    optimizer.param_groups[0]["lr"] = -1.0
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(SCALE), torch.tensor(0.0)
    before = everything(optimizer)
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    assert everything(optimizer) == before


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_nonfinite_and_fused_amp_go_together(nonfinite: Any) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = RAdam([param], nonfinite=nonfinite, fused_amp=True)
    param.grad = torch.full((3,), math.nan)
    fused_step(optimizer, SCALE, found_inf=1.0)  # the scaler has seen it: no error
    assert (optimizer.skipped_steps, len(optimizer.state)) == (1, 0)
    optimizer.found_inf = torch.tensor(0.0)
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError):
            optimizer.step()
    else:
        optimizer.step()
    assert len(optimizer.state) == 0


# ---- fused_amp where the step goes another way


@pytest.mark.parametrize("kind", ["float32", "complex", "bfloat16"])
def test_a_fused_step_under_a_dispatch_mode_unscales_and_skips_too(kind: str) -> None:
    watched, plain = (RAdam([nn.Parameter(KINDS[kind]())], lr=0.01, fused_amp=True) for _ in range(2))
    for seed in range(9):
        found_inf = float(seed in (0, 5))
        for optimizer in (watched, plain):
            (param,) = params_of(optimizer)
            param.grad = drawn(param, seed) * SCALE
        with Watch():
            fused_step(watched, SCALE, found_inf)
        fused_step(plain, SCALE, found_inf)
    assert bits_of(watched) == bits_of(plain)
    assert watched.skipped_steps == plain.skipped_steps == 2


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda optimizer: optimizer], ids=["copied", "itself"])
def test_a_scaler_asks_the_optimizer_whether_it_unscales(carry: Callable[[Any], Any]) -> None:
    for fused_amp in (False, True):
        optimizer = carry(RAdam([nn.Parameter(torch.ones(3))], fused_amp=fused_amp))
        (param,) = params_of(optimizer)
        param.grad = torch.full((3,), SCALE)
        scaler = GradScaler("cpu", init_scale=SCALE)
        scaler.scale(torch.ones(1))
        scaler.step(optimizer)
        assert param.grad.tolist() == [SCALE if fused_amp else 1.0] * 3
        assert optimizer.state[param]["exp_avg"].tolist() == pytest.approx([0.1] * 3)


# ---- autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fused_amp", [False, True])
def test_a_run_under_autocast_trains_as_with_torch_s_radam(fused_amp: bool, dtype: torch.dtype) -> None:
    def trained(cls: Any, **keywords: Any) -> tuple[list[float], Any]:
        module = model()
        optimizer = cls(module.parameters(), lr=0.02, **keywords)
        scaler = GradScaler("cpu", init_scale=SCALE, enabled=dtype is torch.float16)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = loss_of(module, 0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        return losses, optimizer

    ours, optimizer = trained(RAdam, fused_amp=fused_amp)
    theirs, _ = trained(torch.optim.RAdam)
    assert ours[-1] < ours[0] / 3
    assert ours == pytest.approx(theirs, rel=0.05)
    assert {param.dtype for param in params_of(optimizer)} == {torch.float32}


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "complex", "wrapped"])
def test_a_step_inside_autocast_has_the_bits_of_one_outside(kind: str) -> None:
    inside, outside = (RAdam([nn.Parameter(KINDS[kind]())], lr=0.01, weight_decay=0.1) for _ in range(2))
    for seed in range(9):
        for optimizer in (inside, outside):
            (param,) = params_of(optimizer)
            param.grad = drawn(param, seed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside.step()
        outside.step()
    assert bits_of(inside) == bits_of(outside)


def test_moments_of_bfloat16_parameters_are_exact_under_autocast() -> None:
    param = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer = RAdam([param], lr=0.004)
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (param * torch.full((64,), 2.0**-8)).sum()
        loss.backward()
        optimizer.step()
    assert param.grad.dtype is torch.bfloat16
    expected = torch.full((64,), 2.0**-8 * (1 - 0.9**60))
    assert_near(optimizer.state[param]["exp_avg"] * 256, expected * 256, "exp_avg")
