"""Hyperparameters: refused where they are wrong, read anew at each step; learning rates; conventions by name."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import radam
from snapshots import bits, frozen


def ones(n: int = 2) -> np.ndarray:
    return np.ones(n, np.float32)


EDITS = {
    "lr": 0.5,
    "betas": (0.8, 0.99),
    "eps": 0.5,
    "weight_decay": 0.9,
    "decoupled_weight_decay": True,
    "maximize": True,
    "amsgrad": True,
}
BAD = {
    "lr": [-1.0, float("nan"), float("inf"), -float("inf")],
    "betas": [(-0.1, 0.9), (1.0, 0.9), (0.9, -0.1), (0.9, 1.0), (float("nan"), 0.9), (0.9, float("nan")), (0.9, 2.0)],
    "eps": [-1e-8, float("nan"), float("inf")],
    "weight_decay": [-0.1, float("nan"), float("inf")],
}
BAD_TYPES = {
    "lr": ["0.1", None, [0.1], np.ones(2), 1j],
    "betas": [0.9, (0.9,), (0.9, 0.99, 0.999), ("a", 0.9), None],
    "eps": ["tiny", None],
    "weight_decay": ["some", None, [0.1]],
}
CASES = [(k, v, ValueError) for k, values in BAD.items() for v in values]
CASES += [(k, v, TypeError) for k, values in BAD_TYPES.items() for v in values if (k, v) != ("eps", None)]


@pytest.mark.parametrize("kind", [radam.RAdam, radam.Adam])
@pytest.mark.parametrize(("key", "value", "error"), CASES, ids=[f"{k}={v!r}" for k, v, _ in CASES])
def test_a_bad_hyperparameter_is_refused_wherever_it_comes_in(
    kind: Any, key: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=key):
        kind([ones()], **{key: value})
    with pytest.raises(error, match=f"group 1.*{key}"):
        kind([{"params": [ones()]}, {"params": [ones()], key: value}])
    optimizer = kind([ones()])
    optimizer.step(grads=[ones()])
    before, groups = frozen(optimizer), optimizer.param_groups
    with pytest.raises(error, match=f"group 1.*{key}"):
        optimizer.add_param_group({"params": [ones()], key: value})
    assert frozen(optimizer) == before
    kept = groups[0][key]
    groups[0][key] = value
    with pytest.raises(error, match=f"group 0.*{key}"):
        optimizer.step(grads=[ones()])
    groups[0][key] = kept
    assert frozen(optimizer) == before


@pytest.mark.parametrize("key", sorted(EDITS))
def test_a_hyperparameter_that_was_deleted_is_missed_by_name(key: str) -> None:
    optimizer = radam.RAdam([ones()])
    del optimizer.param_groups[0][key]
    with pytest.raises(ValueError, match=f"group 0.*'{key}'"):
        optimizer.step(grads=[ones()])


@pytest.mark.parametrize("key", EDITS)
def test_an_edited_hyperparameter_takes_effect_at_the_next_step(key: str) -> None:
    edited, hyperparameters = ones(), {"lr": 0.1, "weight_decay": 0.2}
    optimizer = radam.RAdam([edited], **hyperparameters)
    for _ in range(8):
        optimizer.step(grads=[ones()])
    unedited = copy.deepcopy(optimizer)
    optimizer.param_groups[0][key] = EDITS[key]
    born = radam.RAdam([edited.copy()], **{**hyperparameters, key: EDITS[key]})
    held, made = optimizer._states[0], born._states[0]  # moments do not remember hyperparameters
    made.steps, made.moments = held.steps.copy(), copy.deepcopy(held.moments)
    for each in (optimizer, unedited, born):
        for scale in (1.0, -0.1):  # a smaller v, so that amsgrad shows
            each.step(grads=[np.float32(scale) * ones()])
    assert frozen(optimizer) == frozen(born)
    assert frozen(optimizer)["params"] != frozen(unedited)["params"]


RATES: dict[str, Callable[[float], Any]] = {
    "float": float,
    "int 1": lambda x: 1,
    "numpy float64": np.float64,
    "numpy 0-d": lambda x: np.array(x),
    "torch 0-d": lambda x: torch.tensor(x, dtype=torch.float64),
    "a function": lambda x: lambda t: x,
    "a function of arrays": lambda x: lambda t: np.array(x),
}


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_lr_may_be_a_number_an_array_or_a_function(rate: Any) -> None:
    x = 1.0 if rate(0.3) == 1 and isinstance(rate(0.3), int) else 0.3
    a, b = ones(), ones()
    one, other = radam.RAdam([a], lr=rate(x)), radam.RAdam([b], lr=x)
    for _ in range(8):
        one.step(grads=[ones()])
        other.step(grads=[ones()])
    assert bits(a) == bits(b)


@pytest.mark.parametrize("rate", [np.array(0.5), torch.tensor(0.5)], ids=["numpy", "torch"])
def test_an_lr_array_is_read_at_each_step(rate: Any) -> None:
    param = np.zeros(2)
    optimizer = radam.RAdam([param], lr=rate, betas=(0.0, 0.999))
    optimizer.step(grads=[np.ones(2)])
    rate[...] = 0.25
    optimizer.step(grads=[np.ones(2)])
    assert param.tolist() == [-0.75] * 2


def test_an_lr_function_sees_each_parameter_s_own_step() -> None:
    asked: list[int] = []

    def rate(t: int) -> float:
        assert type(t) is int
        asked.append(t)
        return 1.0 / t

    a, b, c = np.zeros(2), np.zeros(2), np.zeros(2)
    optimizer = radam.RAdam([a, b, c], lr=rate, betas=(0.0, 0.999))
    for k in range(4):
        optimizer.step(grads=[np.ones(2), None, np.ones(2) if k == 3 else None])
    assert asked == [1, 2, 3, 1, 4]  # once for each step number that is taken
    assert a[0] == -(1 + 1 / 2 + 1 / 3 + 1 / 4)
    assert (b[0], c[0]) == (0.0, -1.0)
    optimizer.step(grads=[None, None, None])
    assert asked == [1, 2, 3, 1, 4]


@pytest.mark.parametrize(("beta2", "warns"), [(0.0, True), (0.5, True), (0.6, True), (0.7, False), (0.999, False)])
def test_a_group_that_is_never_rectified_is_warned_of_once(beta2: float, warns: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = radam.RAdam(
            [{"params": [ones()]}, {"params": [ones()], "betas": (0.9, 0.999)}, {"params": [ones()]}],
            betas=(0.9, beta2),
        )
        optimizer.add_param_group({"params": [ones()], "betas": (0.9, beta2)})
        optimizer.step(grads=[ones()] * 4)
    assert [str(w.message).split(":")[0] for w in caught] == (["group 0", "group 2", "group 3"] if warns else [])
    assert all(w.filename == __file__ and w.category is UserWarning for w in caught)


def test_a_warning_turned_into_an_error_leaves_the_optimizer() -> None:
    optimizer = radam.RAdam([ones()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="no step is ever rectified"):
            optimizer.add_param_group({"params": [ones()], "betas": (0.9, 0.5)})
    assert len(optimizer.param_groups) == 1
    optimizer.step(grads=[ones()])


def test_adam_is_not_warned_of() -> None:
    radam.Adam([ones()], betas=(0.9, 0.5))


@pytest.mark.parametrize("name", sorted(radam.CONVENTIONS))
@pytest.mark.parametrize("decoupled", [False, True])
def test_a_decay_that_a_convention_has_not_is_a_value_error(name: str, decoupled: bool) -> None:
    has = radam.CONVENTIONS[name].decay
    kind = "decoupled" if decoupled else "coupled"
    if kind in has:
        radam.RAdam([ones()], convention=name, weight_decay=0.1, decoupled_weight_decay=decoupled)
    else:
        with pytest.raises(ValueError, match=f"convention '{name}' has no {kind} weight decay"):
            radam.RAdam([ones()], convention=name, weight_decay=0.1, decoupled_weight_decay=decoupled)
    if has:
        radam.RAdam([ones()], convention=name, weight_decay=0.1)
    else:
        with pytest.raises(ValueError, match=f"convention '{name}' has no weight decay"):
            radam.RAdam([ones()], convention=name, weight_decay=0.1)
    radam.RAdam([ones()], convention=name)


def test_conventions_are_chosen_by_name_or_made_by_replace() -> None:
    with pytest.raises(ValueError, match=r"convention must be one of torch, .*, got 'keras'"):
        radam.RAdam([ones()], convention="keras")
    with pytest.raises(TypeError, match=r"convention must be a name or a radam\.Convention, got int"):
        radam.RAdam([ones()], convention=5)  # type: ignore[arg-type]
    optax = dataclasses.replace(radam.CONVENTIONS["optax"], decay=("decoupled",), nesterov=True, eps=1e-5)
    optimizer = radam.RAdam([ones()], convention=optax, weight_decay=0.1)
    assert optimizer.param_groups[0]["eps"] == 1e-5
    with pytest.raises(dataclasses.FrozenInstanceError):
        optax.eps = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        radam.CONVENTIONS["mine"] = optax  # type: ignore[index]
    assert radam.RAdam([ones()], convention="tfa").defaults["eps"] == 1e-7


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": -1.0},
        {"threshold": float("nan")},
        {"warmup": "none"},
        {"eps_on": "v"},
        {"eps": -1.0},
        {"eps_root": float("inf")},
        {"decay": ("both",)},
    ],
    ids=str,
)
def test_a_convention_out_of_range_is_a_value_error_that_names_the_entry(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(radam.CONVENTIONS["torch"], **change)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_coefficients_too_large_for_the_arithmetic_are_a_value_error(dtype: type) -> None:
    param = np.ones(4, dtype)
    optimizer = radam.RAdam([param], weight_decay=1.0, decoupled_weight_decay=True)
    optimizer.step(grads=[param.copy()])
    before = frozen(optimizer)
    optimizer.param_groups[0].update(lr=1e39 if dtype is np.float32 else 1e308, weight_decay=10.0)
    with pytest.raises(ValueError, match=f"parameter 0 of group 0 .*too large for {np.dtype(dtype)} arithmetic"):
        optimizer.step(grads=[param.copy()])
    optimizer.param_groups[0].update(lr=1e-3, weight_decay=1.0)
    assert frozen(optimizer) == before


def test_the_kinds_of_decay_may_come_in_a_list() -> None:
    as_list = dataclasses.replace(radam.CONVENTIONS["torch"], decay=["decoupled"])
    assert as_list == dataclasses.replace(radam.CONVENTIONS["torch"], decay=("decoupled",))


@pytest.mark.parametrize("field", ["threshold", "eps", "eps_root"])
def test_a_convention_of_text_is_a_type_error_that_names_the_field(field: str) -> None:
    with pytest.raises(TypeError, match=f"{field} must be a number, got '5'"):
        dataclasses.replace(radam.CONVENTIONS["torch"], **{field: "5"})


@pytest.mark.parametrize("key", ["maximize", "amsgrad", "decoupled_weight_decay"])
def test_a_switch_is_true_or_false(key: str) -> None:
    with pytest.raises(TypeError, match=f"{key} must be True or False, got 'false'"):
        radam.RAdam([ones()], **{key: "false"})
    radam.RAdam([ones()], **{key: np.True_})
