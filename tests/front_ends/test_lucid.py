"""What the shared table does not ask of Lucid's front end: its betas, its parameters, and what cannot be updated."""

from __future__ import annotations

import gc
import inspect
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import radam
import radam.lucid
import reference as ref
from front_end import Array
from lucid_parameter import METAL, OldParameter, Parameter, Scheduler, Tensor
from lucid_runs import BETAS, KINDS, give, gradients, start, train, values

CLASSES = {"RAdam": (radam.lucid.RAdam, radam.RAdam), "Adam": (radam.lucid.Adam, radam.Adam)}


# ---- the documented signature, groups and defaults


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (
            radam.lucid.RAdam,
            "params lr=0.001 betas=(0.9, 0.999) eps=1e-08 weight_decay=0 decoupled_weight_decay=False "
            "* foreach=None maximize=False capturable=False differentiable=False convention=lucid",
        ),
        (
            radam.lucid.Adam,
            "params lr=0.001 betas=(0.9, 0.999) eps=1e-08 weight_decay=0 amsgrad=False "
            "* foreach=None maximize=False capturable=False differentiable=False fused=None "
            "decoupled_weight_decay=False",
        ),
    ],
)
def test_the_arguments_begin_as_lucid_s_do(cls: Any, expected: str) -> None:
    shown: list[str] = []
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        default = "" if parameter.default is parameter.empty else f"={parameter.default}"
        shown.append(parameter.name + default)
    assert " ".join(shown).startswith(expected)


def test_groups_and_defaults_have_lucid_s_keys() -> None:
    a, b, c = (Parameter(np.zeros(2, np.float32)) for _ in range(3))
    optimizer = radam.lucid.RAdam(
        [{"params": [a], "beta1": 0.5}, {"params": iter([b]), "betas": [0.8, 0.9], "beta2": 0.75, "lr": 0.1}],
        weight_decay=0.25,
    )
    optimizer.add_param_group({"params": c, "beta2": 0.99})
    of_lucid = {"lr", "betas", "beta1", "beta2", "eps", "weight_decay", "decoupled_weight_decay"}
    of_lucid |= {"foreach", "maximize", "capturable", "differentiable"}
    assert set(optimizer.defaults) == of_lucid | {"amsgrad"}
    assert [set(group) for group in optimizer.param_groups] == [of_lucid | {"amsgrad", "params"}] * 3
    assert [group["betas"] for group in optimizer.param_groups] == [(0.5, 0.999), (0.8, 0.75), (0.9, 0.99)]
    assert [(group["beta1"], group["beta2"]) for group in optimizer.param_groups] == [
        group["betas"] for group in optimizer.param_groups
    ]
    assert [group["lr"] for group in optimizer.param_groups] == [0.001, 0.1, 0.001]
    assert set(radam.lucid.Adam([Parameter(np.zeros(2))]).defaults) == of_lucid | {"amsgrad", "fused"}


# ---- betas beside beta1 and beta2


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"beta1": 0.5}, (0.5, BETAS[1])),
        ({"beta2": 0.875}, (BETAS[0], 0.875)),
        ({"beta1": 0.5, "beta2": 0.875}, (0.5, 0.875)),
        ({"betas": (0.5, 0.875)}, (0.5, 0.875)),
        ({"betas": [0.5, 0.875]}, (0.5, 0.875)),
        ({"betas": (0.5, 0.875), "beta1": 0.5, "beta2": 0.875}, (0.5, 0.875)),
        ({"betas": (0.5, 0.875), "beta1": 0.25}, (0.5, 0.875)),  # both were edited: betas counts
    ],
)
@pytest.mark.parametrize("stepped", [0, 3])
def test_the_next_step_takes_the_betas_that_were_edited(edits: Any, expected: Any, stepped: int) -> None:
    grads = gradients(8)
    (edited, p), (other, q) = start(), start()
    train(edited, p, grads[:stepped])
    train(other, q, grads[:stepped])
    edited.param_groups[0].update(edits)
    other.param_groups[0].update(betas=expected, beta1=expected[0], beta2=expected[1])
    assert np.array_equal(train(edited, p, grads[stepped:]), train(other, q, grads[stepped:]))
    constant = start()
    assert not np.array_equal(values(p), train(*constant, grads)), "the edit changed nothing"
    group = edited.param_groups[0]
    assert (group["betas"], group["beta1"], group["beta2"]) == (expected, *expected)
    assert isinstance(group["betas"], tuple)


@pytest.mark.parametrize("repair", [{"betas": BETAS}, {"beta1": BETAS[0]}])
def test_a_refused_edit_can_be_taken_back_either_way(repair: dict[str, Any]) -> None:
    optimizer, param = start()
    grads = gradients(4)
    train(optimizer, param, grads[:2])
    before = values(param)
    optimizer.param_groups[0]["beta1"] = 1.5
    for _ in range(2):
        with pytest.raises(ValueError, match=r"group 0: betas\[0\]"):
            train(optimizer, param, grads[2:3])
    assert np.array_equal(values(param), before)
    optimizer.param_groups[0].update(repair)
    assert np.array_equal(train(optimizer, param, grads[2:]), train(*start(), grads))
    assert optimizer.param_groups[0]["betas"] == BETAS


def test_a_group_without_one_of_them_says_so() -> None:
    optimizer, param = start()
    del optimizer.param_groups[0]["beta2"]
    with pytest.raises(ValueError, match="group 0: the entry 'beta2' is missing"):
        train(optimizer, param, gradients(1))


def test_a_scheduler_hears_at_once_of_what_it_wrote() -> None:
    optimizer, param = start()
    scheduler = Scheduler(optimizer, lambda first, now, t: first - 0.006 * t, lambda t: 0.5 + t / 8)
    train(optimizer, param, gradients(1))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.004)
    assert optimizer.param_groups[0]["beta1"] == 0.625
    with pytest.raises(ValueError, match="group 0: lr"):
        scheduler.step()


# ---- what it computes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"maximize": True},
        {"amsgrad": True},
        {"max_grad_norm": 0.5},
        {"state_dtype": "8bit", "min_8bit_size": 0, "seed": 7},
    ],
    ids=str,
)
def test_a_step_gives_the_bits_of_the_array_level_optimizer(kind: str, name: str, options: dict[str, Any]) -> None:
    ours, plain = CLASSES[name]
    optimizer, param = start(kind, ours, **options)
    array = values(param)
    other = plain([array], lr=0.01, betas=BETAS, **options)
    grads = gradients(20)
    for grad in grads:
        other.step(grads=[grad])
    assert np.array_equal(train(optimizer, param, grads), array)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"weight_decay": 0.1, "decoupled": True}], ids=str)
def test_adam_adds_eps_to_the_corrected_root(options: dict[str, Any]) -> None:
    given = {"decoupled_weight_decay" if key == "decoupled" else key: value for key, value in options.items()}
    optimizer, param = start(cls=radam.lucid.Adam, eps=0.01, **given)
    exact = ref.Trajectory.start(np.float64(values(param)))
    grads = gradients(60)
    for t, grad in enumerate(grads, start=1):
        ref.adam(exact, np.float64(grad), t, lr=0.01, betas=BETAS, eps=0.01, **options)
    np.testing.assert_allclose(train(optimizer, param, grads), exact.p, atol=1e-6)


@pytest.mark.parametrize(("convention", "first"), [("lucid", 6), ("lucid_docs", 5)])
def test_engine_and_page_rectify_from_their_own_step_on(convention: str, first: int) -> None:
    """A step that is not rectified goes along m, however small it is; a rectified one has a length near lr."""
    optimizer, param = start(betas=(0.9, 0.999), convention=convention)
    lengths = []
    for _ in range(8):
        before = values(param)
        lengths.append(np.abs(train(optimizer, param, [np.full(7, 1e3, np.float32)]) - before).max())
    assert [t for t, length in enumerate(lengths, start=1) if length < 1] == list(range(first, 9))


# ---- parameters


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_that_take_the_place_of_others_are_found(kind: str) -> None:
    grads = gradients(6)
    optimizer, param = start(kind)
    train(optimizer, param, grads[:3])
    old, new = values(param), values(param)
    first = weakref.ref(param.memory if kind == "Lucid 3" else param.data)
    kept = first()
    param.data = Tensor(new) if kind == "Lucid 3" else new
    after = train(optimizer, param, grads[3:])
    assert np.array_equal(after, train(*start(kind), grads))
    assert new is (param.memory if kind == "Lucid 3" else param.data)
    assert np.array_equal(kept, old), "the array that was replaced has been written"
    del kept
    gc.collect()
    assert first() is None, "the array that was replaced is still held"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_read_where_they_are_and_never_written(kind: str) -> None:
    optimizer, param = start(kind)
    (grad,) = gradients(1)
    before = grad.copy()
    train(optimizer, param, [grad])
    assert np.array_equal(grad, before)
    optimizer.zero_grad(set_to_none=False)
    assert not grad.any()
    optimizer.zero_grad()
    assert param.grad is None


def test_a_closure_makes_the_gradients_and_its_loss_is_returned() -> None:
    optimizer, param = start()
    (grad,) = gradients(1)

    def closure() -> str:
        give(param, grad)
        return "the loss"

    assert optimizer.step(closure) == "the loss"
    assert np.array_equal(values(param), train(*start(), [grad]))


def test_memory_counts_what_the_front_end_holds() -> None:
    optimizer, param = start("Lucid 2")
    train(optimizer, param, gradients(1))
    held = radam.memory(optimizer)
    assert (held.parameters, held.gradients, held.moments) == (28, 28, 56)


class MlxArray:
    """It has what an array has, and must not be written."""

    def __init__(self, memory: Array) -> None:
        self._memory = memory

    def __dlpack__(self, **options: Any) -> Any:
        return self._memory.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


MlxArray.__module__ = "mlx.core"


def read_only() -> Array:
    array = np.zeros(7, np.float32)
    array.flags.writeable = False
    return array


CANNOT: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "read-only": (read_only, ValueError, "parameter 0 of group {} is read-only"),
    "on Metal": (
        lambda: Tensor(np.zeros(7, np.float32), device=METAL),
        ValueError,
        r"parameter 0 of group {} \(lucid_parameter.Tensor\) cannot be updated in place: it lies on the Metal device",
    ),
    "a copy each time": (
        lambda: Tensor(np.zeros(7, np.float32), copies=True),
        ValueError,
        "parameter 0 of group {} .*hands out copies",
    ),
    "MLX's": (
        lambda: MlxArray(np.zeros(7, np.float32)),
        ValueError,
        r"parameter 0 of group {} \(mlx.core.MlxArray\) cannot be updated in place: MLX's arrays cannot be written",
    ),
    "a list": (lambda: [0.0] * 7, TypeError, "parameter 0 of group {} is a builtins.list, not an array"),
    "of integers": (lambda: np.zeros(7, np.int32), TypeError, "parameter 0 of group {} has dtype int32"),
}


@pytest.mark.parametrize("what", CANNOT)
def test_what_cannot_be_updated_in_place_is_refused_before_anything_changes(what: str) -> None:
    make, error, text = CANNOT[what]
    bad = OldParameter(0.0)
    bad.data, bad.grad = make(), np.ones(7, np.float32)
    with pytest.raises(error, match=text.format(0)):
        radam.lucid.RAdam([bad])
    good = OldParameter(np.ones(7, np.float32))
    optimizer = radam.lucid.RAdam([good])
    with pytest.raises(error, match=text.format(1)):
        optimizer.add_param_group({"params": [bad]})
    assert len(optimizer.param_groups) == 1
    other = OldParameter(np.ones(7, np.float32))
    optimizer.add_param_group({"params": [other]})
    for param in (good, other):
        param.grad = np.ones(7, np.float32)
    other.data = make()  # since then: moved to the GPU, say
    with pytest.raises(error, match=text.format(1)):
        optimizer.step()
    assert (good.data == 1).all()
    assert optimizer.state_dict()["state"] == {}


def test_mlx_arrays_themselves_are_refused() -> None:
    mlx = pytest.importorskip("mlx.core", reason="mlx is not installed: an array like its stands in for it")
    param = OldParameter(0.0)
    param.data = mlx.zeros((7,))
    with pytest.raises(ValueError, match="MLX's arrays cannot be written"):
        radam.lucid.RAdam([param])


class DetachesCopies(Parameter):
    def detach(self) -> Tensor:
        return Tensor(self.memory.copy())


def test_a_parameter_that_cannot_be_updated_in_place_is_refused() -> None:
    with pytest.raises(ValueError, match="Metal device; keep the parameters of this optimizer on the CPU"):
        radam.lucid.RAdam([Parameter(np.zeros(7, np.float32), device=METAL)])
    with pytest.raises(ValueError, match="hands out copies"):
        radam.lucid.RAdam([Parameter(np.zeros(7, np.float32), copies=True)])
    with pytest.raises(ValueError, match="hands out copies"):
        radam.lucid.RAdam([DetachesCopies(np.zeros(7, np.float32))])


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_raises_has_changed_nothing(kind: str) -> None:
    params = [KINDS[kind](np.ones(3, np.float32)) for _ in range(2)]
    optimizer = radam.lucid.RAdam([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    for param in params:
        give(param, np.ones(3, np.float32))
    optimizer.step()
    before = [values(param) for param in params]
    saved = optimizer.state_dict()
    give(params[1], np.ones(4, np.float32))
    with pytest.raises(ValueError, match="group 1"):
        optimizer.step()
    give(params[1], np.ones(3, np.float32))
    optimizer.param_groups[1]["eps"] = -1.0
    with pytest.raises(ValueError, match="group 1: eps"):
        optimizer.step()
    optimizer.param_groups[1]["eps"] = 1e-8
    assert all(np.array_equal(values(param), old) for param, old in zip(params, before))
    for index, entry in optimizer.state_dict()["state"].items():
        assert all(np.array_equal(entry[key], saved["state"][index][key]) for key in entry)


def test_a_warning_points_at_the_program() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = radam.lucid.RAdam([Parameter(np.zeros(2))], betas=(0.9, 0.5))
        optimizer.add_param_group({"params": [Parameter(np.zeros(2))]})
        radam.lucid.Adam([Parameter(np.zeros(2))], betas=(0.9, 0.5))
    assert ["no step is ever rectified" in str(one.message) for one in caught] == [True, True]
    assert {one.filename for one in caught} == {__file__}


def test_data_that_is_a_copy_each_time_is_refused_and_a_view_of_what_is_kept_is_not() -> None:
    class Kept:
        grad = np.ones(3, np.float32)

        def __init__(self) -> None:
            self.kept = np.ones(3, np.float32)

    class Copies(Kept):
        data = property(lambda self: self.kept.copy())

    class Views(Kept):
        data = property(lambda self: self.kept[:])

    with pytest.raises(ValueError, match=r"parameter 0 of group 0 .*another array each time"):
        radam.lucid.RAdam([Copies()])
    param = Views()
    radam.lucid.RAdam([param], lr=0.5).step()
    assert param.kept.tolist() == [0.5, 0.5, 0.5]
