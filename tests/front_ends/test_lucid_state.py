"""States of Lucid's front end: in Lucid's form, of its several versions, in files, pickles and copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import radam
import radam.lucid
from front_end import Array
from lucid_parameter import Parameter, Scheduler
from lucid_runs import BETAS, give, gradients, is_version_3, lucid_itself, start, train, values

Saved = dict[str, Any]


def two_groups(cls: Any = radam.lucid.RAdam, **options: Any) -> tuple[Any, list[Any]]:
    params = [Parameter(np.full(3, i, np.float32)) for i in range(3)]
    groups = [{"params": params[:1], "lr": 0.01}, {"params": params[1:], "betas": BETAS}]
    return cls(groups, **options), params


# ---- Lucid's form


def test_a_state_dict_has_numpy_arrays_by_flat_index() -> None:
    optimizer, params = two_groups(radam.lucid.Adam, amsgrad=True)
    for _ in range(4):
        for param in (params[0], params[2]):
            give(param, np.ones(3, np.float32))
        optimizer.step()
    saved = optimizer.state_dict()
    assert list(saved) == ["state", "param_groups", "radam"]
    assert list(saved["state"]) == [0, 2], "1 never had a gradient"
    for entry in saved["state"].values():
        assert set(entry) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        assert all(type(array) is np.ndarray for array in entry.values())
        assert (entry["step"].dtype, entry["step"].shape, int(entry["step"])) == (np.int64, (), 4)
        assert (entry["exp_avg"].dtype, entry["exp_avg"].shape) == (np.float32, (3,))
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1, 2]]
    assert saved["param_groups"][1]["betas"] == BETAS
    assert {**saved["param_groups"][1], "params": None} == {**optimizer.param_groups[1], "params": None}
    before = saved["state"][0]["exp_avg"].copy()
    train(optimizer, params[0], gradients(1, (3,)))
    assert np.array_equal(saved["state"][0]["exp_avg"], before), "it is a copy"


def test_a_saved_edit_is_in_step() -> None:
    optimizer, _ = start()
    optimizer.param_groups[0]["beta1"] = 0.5
    assert optimizer.state_dict()["param_groups"][0]["betas"] == (0.5, BETAS[1])


def as_lucid_saves(saved: Saved) -> Saved:
    return {"state": saved["state"], "param_groups": saved["param_groups"]}


def of_one_count(saved: Saved) -> Saved:
    """As Lucid 3 before it had betas in the groups and a count for each parameter."""
    entries = {i: {**entry, "step": int(entry["step"])} for i, entry in saved["state"].items()}
    keys = ("params", "lr", "beta1", "beta2", "eps", "weight_decay")
    return {"state": entries, "param_groups": [{key: group[key] for key in keys} for group in saved["param_groups"]]}


def of_version_2(saved: Saved) -> Saved:
    entries = {i: {**entry, "step": int(entry["step"])} for i, entry in saved["state"].items()}
    keys = ("params", "lr", "betas", "eps", "weight_decay")
    return {"state": entries, "param_groups": [{key: group[key] for key in keys} for group in saved["param_groups"]]}


def with_floats(saved: Saved) -> Saved:
    entries = {i: {**entry, "step": np.float32(entry["step"])} for i, entry in saved["state"].items()}
    return {"state": entries, "param_groups": saved["param_groups"]}


FORMS: dict[str, Callable[[Saved], Saved]] = {
    "ours": lambda saved: saved,
    "Lucid 3": as_lucid_saves,
    "Lucid 3, older": of_one_count,
    "Lucid 2": of_version_2,
    "counts of floats": with_floats,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_state_of_any_form_goes_on_with_the_same_bits(form: str) -> None:
    grads = gradients(20)
    straight = train(*start(), grads)
    first, param = start()
    train(first, param, grads[:9])
    second = radam.lucid.RAdam([other := Parameter(values(param))], lr=0.5, betas=(0.1, 0.9), eps=0.1)
    second.load_state_dict(FORMS[form](first.state_dict()))
    assert np.array_equal(train(second, other, grads[9:]), straight)
    group = second.param_groups[0]
    assert (group["betas"], group["beta1"], group["beta2"]) == (BETAS, *BETAS)
    assert (group["lr"], group["eps"], group["maximize"]) == (0.01, 1e-8, False)


@pytest.mark.parametrize(
    ("edit", "expected"), [({"beta1": 0.5}, (0.5, BETAS[1])), ({"betas": (0.5, 0.875)}, (0.5, 0.875))]
)
def test_an_edit_that_lucid_saved_before_its_next_step_counts(edit: dict[str, Any], expected: Any) -> None:
    optimizer, _ = start()
    saved = as_lucid_saves(optimizer.state_dict())
    saved["param_groups"][0].update(edit)
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["beta1"], group["beta2"]) == (expected, *expected)


@pytest.mark.parametrize("form", [of_one_count, of_version_2])
@pytest.mark.parametrize("before", [BETAS, (0.5, 0.875)])
@pytest.mark.parametrize("edit", [{"betas": (0.25, 0.875)}, {"beta1": 0.25}])
def test_a_loaded_state_counts_more_than_an_edit_before_it_and_less_than_one_after_it(
    form: Any, before: Any, edit: dict[str, Any]
) -> None:
    source, _ = start()
    optimizer, param = start(betas=before)
    optimizer.param_groups[0].update(edit)
    optimizer.load_state_dict(form(source.state_dict()))
    assert optimizer.param_groups[0]["betas"] == BETAS
    optimizer.param_groups[0]["beta1"] = 0.625
    train(optimizer, param, gradients(1))
    assert optimizer.param_groups[0]["betas"] == (0.625, BETAS[1])


def test_moments_that_lucid_keeps_in_half_precision_become_wide() -> None:
    param = Parameter(np.ones(3, np.float16))
    optimizer = radam.lucid.RAdam([param])
    entry = {"step": np.int64(3), "exp_avg": np.full(3, 0.5, np.float16), "exp_avg_sq": np.full(3, 0.25, np.float16)}
    optimizer.load_state_dict({"state": {0: entry}, "param_groups": [{"params": [0]}]})
    loaded = optimizer.state_dict()["state"][0]
    assert loaded["exp_avg"].dtype == np.float32
    assert (loaded["exp_avg"] == 0.5).all()
    assert int(loaded["step"]) == 3


def test_an_entry_of_no_steps_is_no_state() -> None:
    optimizer, _ = start()
    zeros = np.zeros(7, np.float32)
    entry = {"step": np.int64(0), "exp_avg": zeros, "exp_avg_sq": zeros}
    optimizer.load_state_dict({"state": {0: entry}, "param_groups": [{"params": [0]}]})
    assert optimizer.state_dict()["state"] == {}


def test_the_state_of_the_array_level_optimizer_loads() -> None:
    grads = gradients(20)
    straight = train(*start(), grads)
    array = values(start()[1])
    plain = radam.RAdam([array], lr=0.01, betas=BETAS, convention="lucid")
    for grad in grads[:9]:
        plain.step(grads=[grad])
    second, other = start()
    other.memory[...] = array
    second.load_state_dict(plain.state_dict())
    assert np.array_equal(train(second, other, grads[9:]), straight)


def changed(index: int, **entries: Any) -> Callable[[Saved], Saved]:
    return lambda saved: {**saved, "state": {**saved["state"], index: {**saved["state"][index], **entries}}}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda saved: 3, ValueError, "must be a dict"),
        (lambda saved: {"state": {}}, ValueError, "no 'param_groups'"),
        (lambda saved: {**saved, "param_groups": 3}, TypeError, "param_groups: must be a list"),
        (lambda saved: {**saved, "param_groups": [3, 4]}, ValueError, r"param_groups\[0\] must be a dict"),
        (lambda saved: {**saved, "param_groups": saved["param_groups"][:1]}, ValueError, "must hold 2 groups"),
        (lambda saved: {**saved, "param_groups": saved["param_groups"] * 2}, ValueError, "must hold 2 groups"),
        (lambda saved: {**saved, "state": 3}, TypeError, "state: must be a dict"),
        (lambda saved: {**saved, "state": {0: 3}}, ValueError, r"state\[0\] must be a dict"),
        (lambda saved: {**saved, "state": {7: saved["state"][0]}}, ValueError, r"state\[7\]"),
        (changed(0, step=np.float64(1.5)), ValueError, r"state\[0\]\['step'\]"),
        (changed(0, step=-1), ValueError, r"state\[0\]\['step'\]"),
        (changed(0, step=float("nan")), ValueError, r"state\[0\]\['step'\]"),
        (changed(2, exp_avg=np.zeros(4, np.float32)), ValueError, r"state\[2\]\['exp_avg'\] has shape"),
        (changed(2, exp_avg=np.zeros(3, np.int32)), ValueError, r"state\[2\]\['exp_avg'\] has dtype"),
        (changed(2, exp_avg_sq=-np.ones(3, np.float32)), ValueError, r"state\[2\]\['exp_avg_sq'\] holds a negative"),
        (
            lambda saved: {**saved, "param_groups": [saved["param_groups"][0], {"params": [1, 2], "eps": -1.0}]},
            ValueError,
            r"param_groups\[1\]: eps",
        ),
        (
            lambda saved: {**saved, "param_groups": [saved["param_groups"][0], {"params": [1, 2], "betas": 0.5}]},
            ValueError,
            r"param_groups\[1\]: betas",
        ),
        (
            lambda saved: {**saved, "radam": {**saved["radam"], "optimizer": "Adam"}},
            ValueError,
            "they step otherwise",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    change: Callable[[Saved], Any], error: type[Exception], text: str
) -> None:
    optimizer, params = two_groups()
    for param in params:
        give(param, np.ones(3, np.float32))
    optimizer.step()
    before = optimizer.state_dict()
    with pytest.raises(error, match=text):
        optimizer.load_state_dict(change(optimizer.state_dict()))
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, entry in before["state"].items():
        assert all(np.array_equal(after["state"][index][key], entry[key]) for key in entry)


# ---- everything else that a run can go on from


def by_dict(optimizer: Any, param: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    other, copied = start(**options)
    copied.memory[...] = values(param)
    other.load_state_dict(optimizer.state_dict())
    return other, copied


def by_file(optimizer: Any, param: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    other, copied = start(**options)
    copied.memory[...] = values(param)
    optimizer.save(folder / "state.safetensors")
    other.load(folder / "state.safetensors")
    return other, copied


def by_pickle(optimizer: Any, param: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    return pickle.loads(pickle.dumps((optimizer, param)))  # type: ignore[no-any-return]


def by_copy(optimizer: Any, param: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    return copy.deepcopy((optimizer, param))


@pytest.mark.parametrize("way", [by_dict, by_file, by_pickle, by_copy])
@pytest.mark.parametrize(
    "options",
    [{}, {"convention": "lucid_docs"}, {"amsgrad": True}, {"state_dtype": "8bit", "min_8bit_size": 0, "seed": 3}],
    ids=str,
)
def test_a_run_goes_on_with_the_same_bits(way: Any, options: dict[str, Any], tmp_path: Path) -> None:
    grads = gradients(16)
    straight = train(*start(**options), grads)
    optimizer, param = start(**options)
    train(optimizer, param, grads[:8])
    assert np.array_equal(train(*way(optimizer, param, tmp_path, **options), grads[8:]), straight)


@pytest.mark.parametrize("way", [by_pickle, by_copy])
def test_a_copy_of_a_scheduled_optimizer_steps_its_own_parameters(way: Any, tmp_path: Path) -> None:
    optimizer, param = start()
    Scheduler(optimizer, lambda first, now, t: first)
    train(optimizer, param, gradients(2))
    other, copied = way(optimizer, param, tmp_path)
    before = values(param)
    assert not np.array_equal(train(other, copied, gradients(2)), before)
    assert np.array_equal(values(param), before)


# ---- Lucid itself, of version 2, where it is installed; of version 3 the shared table compares


def version_2() -> Any:
    lucid = lucid_itself()
    if lucid is None:
        pytest.skip("lucid is not installed: version 3 runs on Apple silicon, version 2.5 on Python 3.12 with mlx")
    if is_version_3(lucid):
        pytest.skip("this lucid is of version 3, which the shared table compares")
    return lucid


def lucid_s_own(name: str, grads: list[Array], **options: Any) -> Array:
    lucid = version_2()
    param = lucid.nn.Parameter(np.linspace(-1, 1, 7, dtype=np.float32))
    optimizer = getattr(lucid.optim, name)([param], **options)
    for grad in grads:
        param.grad = grad.copy()
        optimizer.step()
    return np.array(param.data)


def test_adam_of_lucid_2_is_the_same_for_an_eps_of_0() -> None:
    """Version 2 adds eps to sqrt(v), version 3 to the corrected root."""
    options = {"lr": 0.01, "betas": BETAS, "eps": 0.0, "weight_decay": 0.1}
    grads = gradients(40)
    theirs = lucid_s_own("Adam", grads, **options)
    np.testing.assert_allclose(train(*start(cls=radam.lucid.Adam, **options), grads), theirs, atol=3e-6)


def test_radam_of_lucid_2_is_the_page_s_until_it_rectifies() -> None:
    """Its r lacks the division by the root of rho, which the page has, so that it steps too far from there on."""
    options = {"lr": 0.01, "betas": (0.9, 0.999)}
    grads = gradients(5)
    theirs = lucid_s_own("RAdam", grads[:4], **options)
    ours, param = start(convention="lucid_docs", **options)
    np.testing.assert_allclose(train(ours, param, grads[:4]), theirs, atol=3e-6)
    ours_5, theirs_5 = train(ours, param, grads[4:]) - theirs, lucid_s_own("RAdam", grads, **options) - theirs
    power = 0.999**5
    rho = 2 / 0.001 - 1 - 2 * 5 * power / (1 - power)
    np.testing.assert_allclose(theirs_5, np.sqrt(rho) * ours_5, atol=3e-6)


@pytest.mark.parametrize("scheduler", ["StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingLR"])
def test_schedulers_of_lucid_2_drive_it(scheduler: str) -> None:
    lucid = version_2()
    arguments: dict[str, tuple[Any, ...]] = {
        "StepLR": (7, 0.5),
        "MultiStepLR": ([5, 12], 0.5),
        "ExponentialLR": (0.9,),
        "CosineAnnealingLR": (20,),
    }
    param = lucid.nn.Parameter(np.linspace(-1, 1, 7, dtype=np.float32))
    optimizer = radam.lucid.RAdam([param], lr=0.01, betas=BETAS)
    driver = getattr(lucid.optim.lr_scheduler, scheduler)(optimizer, *arguments[scheduler])
    other = start("Lucid 2")
    for grad in gradients(20):
        param.grad = grad
        optimizer.step()
        other[0].param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        train(*other, [grad])
        driver.step()
    assert optimizer.param_groups[0]["lr"] != 0.01
    assert np.array_equal(param.data, values(other[1]))


def test_lucid_2_trains_a_layer_with_it() -> None:
    lucid = version_2()
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    model = lucid.nn.Linear(3, 1)
    optimizer = radam.lucid.RAdam(model.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = lucid.nn.functional.mse_loss(model(lucid.Tensor(x)), lucid.Tensor(y))
        loss.backward()
        optimizer.step()
    assert float(loss.data) < 0.1
