"""Forty steps beside torch.optim in float64, where torch's own schedule is sound (beta2 <= 0.999)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import radam

STEPS = 40
PROMISED = 1e-10  # of max(1, |p|)
SHAPES = ((), (1,), (7,), (5, 3), (2, 3, 4), (0, 3), (129,))
BETAS = [(0.9, 0.999), (0.95, 0.99), (0.0, 0.9), (0.9, 0.6)]

DECAY = {"weight_decay": 0.07}
RADAM_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "coupled": DECAY,
    "decoupled": {**DECAY, "decoupled_weight_decay": True},
    "maximize": {"maximize": True},
    "maximize-coupled": {**DECAY, "maximize": True},
    "maximize-decoupled": {**DECAY, "maximize": True, "decoupled_weight_decay": True},
    "eps": {"eps": 0.05},
}
ADAM_CASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {}, {}),
    "adam-amsgrad": (torch.optim.Adam, {"amsgrad": True}, {"amsgrad": True}),
    "adam-coupled": (torch.optim.Adam, {**DECAY, "amsgrad": True}, {**DECAY, "amsgrad": True}),
    "adam-maximize": (torch.optim.Adam, {"maximize": True}, {"maximize": True}),
    "adamw": (torch.optim.AdamW, DECAY, {**DECAY, "decoupled_weight_decay": True}),
    "adamw-amsgrad": (
        torch.optim.AdamW,
        {**DECAY, "amsgrad": True},
        {**DECAY, "amsgrad": True, "decoupled_weight_decay": True},
    ),
}
betas_of = pytest.mark.parametrize("betas", BETAS, ids=str)
kinds = pytest.mark.parametrize("kind", ["numpy", "torch"])


def assert_close(got: Any, expected: Any, what: str) -> None:
    got, expected = np.asarray(got), expected.numpy(force=True)
    assert got.shape == expected.shape
    assert np.all(abs(got - expected) <= PROMISED * np.maximum(1.0, abs(expected))), what


def assert_same_path(
    theirs_class: Any, theirs_kwargs: dict[str, Any], ours_class: Any, ours_kwargs: dict[str, Any], kind: str
) -> None:
    rng = np.random.default_rng(13)
    starts = [rng.normal(size=shape) for shape in SHAPES]
    tensors = [torch.tensor(start).requires_grad_() for start in starts]
    theirs = theirs_class(tensors, **theirs_kwargs)
    params: list[Any] = [np.array(s) if kind == "numpy" else torch.tensor(s).requires_grad_() for s in starts]
    ours = ours_class(params, **ours_kwargs)
    for t in range(1, STEPS + 1):
        grads = [np.asarray(rng.normal(size=shape)) for shape in SHAPES]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.tensor(grad)
        theirs.step()
        if kind == "numpy":
            ours.step(grads=grads)
        else:
            for param, grad in zip(params, grads, strict=True):
                param.grad = torch.tensor(grad)
            ours.step()
        for i, (param, tensor) in enumerate(zip(params, tensors, strict=True)):
            assert_close(param.detach() if kind == "torch" else param, tensor, f"param {i} at step {t}")
            state, expected = ours.state[i], theirs.state[tensor]
            assert state["step"] == int(expected["step"]) == t
            for name in state.keys() - {"step"}:
                assert_close(
                    state[name], expected.get(f"{name}s", expected.get(name)), f"{name} of param {i} at step {t}"
                )
        ours.zero_grad()


@kinds
@betas_of
@pytest.mark.parametrize("case", RADAM_CASES)
@pytest.mark.filterwarnings("ignore:.*rho never exceeds:UserWarning")
def test_forty_steps_are_those_of_torch_radam(case: str, betas: tuple[float, float], kind: str) -> None:
    kwargs = {"lr": 0.02, "betas": betas, **RADAM_CASES[case]}
    assert_same_path(torch.optim.RAdam, {**kwargs, "foreach": False}, radam.RAdam, kwargs, kind)


@kinds
@betas_of
@pytest.mark.parametrize("case", ADAM_CASES)
def test_forty_steps_are_those_of_torch_adam(case: str, betas: tuple[float, float], kind: str) -> None:
    theirs_class, theirs, ours = ADAM_CASES[case]
    common = {"lr": 0.02, "betas": betas}
    assert_same_path(theirs_class, {**common, **theirs, "foreach": False}, radam.Adam, {**common, **ours}, kind)


def test_a_model_trained_through_grad_follows_torch() -> None:
    torch.manual_seed(0)
    ours_model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    theirs_model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    theirs_model.load_state_dict(ours_model.state_dict())
    x, y = torch.randn(32, 4, dtype=torch.float64), torch.randn(32, 1, dtype=torch.float64)
    ours = radam.RAdam(ours_model.parameters(), lr=0.01)
    theirs = torch.optim.RAdam(theirs_model.parameters(), lr=0.01)
    losses = []
    for _ in range(STEPS):
        for model, opt in ((ours_model, ours), (theirs_model, theirs)):
            opt.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            opt.step()
        losses.append(loss.item())
    for a, b in zip(ours_model.parameters(), theirs_model.parameters(), strict=True):
        assert_close(a.detach(), b, "parameter")
    assert losses[-1] < losses[0]
