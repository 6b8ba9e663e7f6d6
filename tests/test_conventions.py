"""Every convention against its own formula, written out as its framework writes it (reference.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import radam
import reference as ref
from radam import CONVENTIONS

pytestmark = pytest.mark.filterwarnings("ignore:.*no step is ever rectified:UserWarning")

STEPS = 60
BETAS = [(0.9, 0.999), (0.95, 0.99), (0.0, 0.9), (0.5, 0.75), (0.9, 0.9999), (0.99, 0.8)]

COUPLED = {"weight_decay": 0.13}
DECOUPLED = {"weight_decay": 0.13, "decoupled_weight_decay": True}
optax, tfa, author = CONVENTIONS["optax"], CONVENTIONS["tfa"], CONVENTIONS["author"]

# A convention, the arguments of radam.RAdam, its formula and the formula's arguments.
CASES: dict[str, tuple[Any, dict[str, Any], Callable[..., None], dict[str, Any]]] = {
    **{
        f"{name}{suffix}": (name, ours, ref.torch_radam, theirs)
        for name in ("torch", "paddle", "mindspore", "lucid")
        for suffix, ours, theirs in (("", {}, {}), ("-coupled", COUPLED, COUPLED))
    },
    "torch-decoupled": ("torch", DECOUPLED, ref.torch_radam, {**COUPLED, "decoupled": True}),
    "lucid-decoupled": ("lucid", DECOUPLED, ref.torch_radam, {**COUPLED, "decoupled": True}),
    "lucid_docs": ("lucid_docs", {}, ref.lucid_docs_radam, {}),
    "lucid_docs-coupled": ("lucid_docs", COUPLED, ref.lucid_docs_radam, COUPLED),
    "author": ("author", {}, ref.author_radam, {}),
    "author-decoupled": ("author", COUPLED, ref.author_radam, COUPLED),
    "author-momentum": (
        dataclasses.replace(author, warmup="momentum"),
        COUPLED,
        ref.author_radam,
        {**COUPLED, "degenerated_to_sgd": True},
    ),
    "optax": ("optax", {}, ref.optax_radam, {}),
    "optax-nesterov": (dataclasses.replace(optax, nesterov=True), {}, ref.optax_radam, {"nesterov": True}),
    "optax-eps_root": (dataclasses.replace(optax, eps_root=1e-3), {}, ref.optax_radam, {"eps_root": 1e-3}),
    "optax-threshold": (dataclasses.replace(optax, threshold=4.0), {}, ref.optax_radam, {"threshold": 4.0}),
    "optax-late": (dataclasses.replace(optax, threshold=30.5), {}, ref.optax_radam, {"threshold": 30.5}),
    "tfa": ("tfa", {}, ref.tfa_radam, {}),
    "tfa-decoupled": ("tfa", COUPLED, ref.tfa_radam, COUPLED),
    "tfa-amsgrad": ("tfa", {"amsgrad": True}, ref.tfa_radam, {"amsgrad": True}),
    "tfa-threshold": (dataclasses.replace(tfa, threshold=8.0), {}, ref.tfa_radam, {"sma_threshold": 8.0}),
}
ADAM_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adam": ({}, {}),
    "adam-amsgrad": ({"amsgrad": True}, {"amsgrad": True}),
    "adam-coupled": (COUPLED, COUPLED),
    "adam-coupled-amsgrad": ({**COUPLED, "amsgrad": True}, {**COUPLED, "amsgrad": True}),
    "adam-decoupled": (DECOUPLED, {**COUPLED, "decoupled": True}),
}


def problem() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A start and gradients that shrink, so that the largest v is an early one."""
    rng = np.random.default_rng(11)
    shrink = np.linspace(2.0, 0.1, STEPS)[:, None]
    return rng.normal(size=40), rng.normal(size=(STEPS, 40)) * shrink


def assert_follows(opt: Any, param: Any, grads: Any, formula: Callable[..., None], **kwargs: Any) -> None:
    expected = ref.Trajectory.start(param)
    for t, g in enumerate(grads, start=1):
        opt.step(grads=[g])
        formula(expected, g, t, **kwargs)
        # Where nothing cancels: relative to the parameter and to what moved it so far.
        np.testing.assert_allclose(param, expected.p, rtol=1e-12, atol=1e-13, err_msg=f"param at step {t}")
        state = opt.state[0]
        np.testing.assert_allclose(state["exp_avg"], expected.m, rtol=1e-12, atol=1e-13, err_msg=f"exp_avg at step {t}")
        np.testing.assert_allclose(state["exp_avg_sq"], expected.v, rtol=1e-12, err_msg=f"exp_avg_sq at step {t}")
        if "max_exp_avg_sq" in state:
            np.testing.assert_allclose(state["max_exp_avg_sq"], expected.v_max, rtol=1e-12)


@pytest.mark.parametrize("betas", BETAS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_convention_follows_its_own_formula(case: str, betas: tuple[float, float]) -> None:
    convention, ours, formula, theirs = CASES[case]
    param, grads = problem()
    eps = 1e-7 if case.startswith("tfa") else 1e-8  # the framework's own default, which ours must be too
    opt = radam.RAdam([param], lr=0.02, betas=betas, convention=convention, **ours)
    assert_follows(opt, param, grads, formula, lr=0.02, betas=betas, eps=eps, **theirs)


@pytest.mark.parametrize("case", ["torch", "lucid_docs-coupled", "author", "optax-nesterov", "tfa-amsgrad"])
def test_a_large_eps_stands_where_the_convention_puts_it(case: str) -> None:
    convention, ours, formula, theirs = CASES[case]
    param, grads = problem()
    opt = radam.RAdam([param], lr=0.02, betas=(0.9, 0.99), eps=0.3, convention=convention, **ours)
    assert_follows(opt, param, grads, formula, lr=0.02, betas=(0.9, 0.99), eps=0.3, **theirs)


@pytest.mark.parametrize("betas", BETAS, ids=str)
@pytest.mark.parametrize("case", ADAM_CASES)
def test_adam_follows_its_own_formula(case: str, betas: tuple[float, float]) -> None:
    ours, theirs = ADAM_CASES[case]
    param, grads = problem()
    opt = radam.Adam([param], lr=0.02, betas=betas, **ours)
    assert_follows(opt, param, grads, ref.adam, lr=0.02, betas=betas, eps=1e-8, **theirs)


def test_every_convention_has_a_case() -> None:
    assert {name if isinstance(name, str) else name.name for name, *_ in CASES.values()} == set(CONVENTIONS)
    assert {case.split("-")[0] for case in CASES} == set(CONVENTIONS)


@pytest.mark.parametrize(("name", "first"), [("torch", 6), ("lucid_docs", 5), ("author", 6), ("optax", 6), ("tfa", 6)])
def test_the_first_rectified_step_is_the_convention_s(name: str, first: int) -> None:
    rectified = [t for t in range(1, 50) if radam.rectification(t, 0.999, name) is not None]
    assert rectified[0] == first
    assert rectified == list(range(first, 50))


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_warning_that_nothing_is_rectified_names_the_threshold_and_whether_it_counts(name: str) -> None:
    convention = dataclasses.replace(CONVENTIONS[name], threshold=7.0)  # where rho ends with a beta2 of 0.75
    where = "from 7 on" if name in ("author", "optax", "tfa") else "above 7"
    assert convention.why_never_rectified(0.7).endswith(f"(convention {name!r} rectifies {where})")
    assert (convention.why_never_rectified(0.75) == "") == (where == "from 7 on")


def test_the_author_s_parameter_rests_until_it_is_rectified() -> None:
    param, grads = problem()
    before = param.copy()
    opt = radam.RAdam([param], lr=0.02, convention="author", weight_decay=0.1)
    for t, g in enumerate(grads[:6], start=1):
        opt.step(grads=[g])
        assert np.array_equal(param, before) == (t < 6)
        assert np.all(opt.state[0]["exp_avg"] != 0.0)
