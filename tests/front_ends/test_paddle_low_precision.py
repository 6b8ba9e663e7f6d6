"""bfloat16 and float16 parameters of Paddle: what is kept beside them, saved, loaded, and fitted to a cast."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Paddle has to say when it is imported is not ours
    paddle: Any = pytest.importorskip("paddle")

import radam.paddle
from test_paddle_state import CLASSES, bits, made, train

LOW = ["bfloat16", "float16"]


@pytest.mark.parametrize("dtype", LOW)
def test_with_multi_precision_a_weight_moves_as_a_float32_one(dtype: str) -> None:
    ends = {}
    for precision, multi in ((dtype, True), (dtype, False), ("float32", True)):
        params = [paddle.base.framework.EagerParamBase.from_tensor(paddle.ones([64]).astype(precision))]
        rate = 2.0**-10 if dtype == "bfloat16" else 2.0**-13  # less than half of what 16 bits can show below 1
        optimizer = radam.paddle.RAdam(rate, parameters=params, multi_precision=multi)
        for _ in range(40):
            params[0].grad = paddle.ones([64]).astype(precision)
            optimizer.step()
        ends[precision, multi] = params[0].astype("float32").numpy()
        if multi and precision != "float32":
            (weight,) = optimizer.state_dict()["master_weights"].values()
            assert np.array_equal(params[0].numpy(), weight.astype(precision).numpy())
            ends["weight"] = weight.numpy()
    assert np.array_equal(ends["weight"], ends["float32", True])
    assert np.all(ends[dtype, True] < 1)
    assert np.all(ends[dtype, False] == 1)


@pytest.mark.parametrize("dtype", LOW)
def test_master_weights_have_the_names_that_paddle_gives_them(dtype: str) -> None:
    states = []
    for whose in CLASSES:
        optimizer, params = made(whose, dtype, name="mine")
        optimizer._multi_precision = True  # as paddle.amp.decorate does
        with contextlib.suppress(RuntimeError):  # Paddle has no such kernel for the CPU, but made its state before
            train(optimizer, params)
        states.append(optimizer.state_dict())
    ours, theirs = states
    assert {key for key in ours if "radam_count" not in key} == set(theirs)
    assert {k: (v.name, v.dtype, v.shape) for k, v in ours["master_weights"].items()} == {
        k: (v.name, v.dtype, v.shape) for k, v in theirs["master_weights"].items()
    }


def with_ties(optimizer: Any, params: list[Any]) -> dict[str, Any]:
    """Return the state with weights half way between two of 16 bits, where Paddle rounds to the even one."""
    found = dict(optimizer.state_dict())
    masters = {}
    for param in params:
        weights = np.linspace(1, 2, param.size, dtype=np.float32).reshape(param.shape)
        weights = ((weights.view(np.uint32) & np.uint32(0xFFFF0000)) | np.uint32(0x8000)).view(np.float32)
        masters[param.name] = paddle.to_tensor(np.asarray(weights))
        masters[param.name].name = found["master_weights"][param.name].name
    return {**found, "master_weights": masters}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("optimizer_first", [False, True])
def test_master_weights_are_loaded_bit_for_bit_in_any_order(dtype: str, optimizer_first: bool) -> None:
    first, params = made("ours", dtype, multi_precision=True)
    train(first, params, 3)
    found = with_ties(first, params)
    masters = found["master_weights"]
    model = {param.name: masters[param.name].astype(dtype).numpy() for param in params}  # as Paddle rounds
    resumed, its = made("ours", dtype, multi_precision=True)
    if optimizer_first:
        resumed.set_state_dict(found)
    for param in its:
        param.set_value(model[param.name])
    if not optimizer_first:
        resumed.set_state_dict(found)
    assert bits(resumed.state_dict()["master_weights"]) == bits(masters)
    resumed.set_lr(0.0)
    train(resumed, its)
    assert bits(resumed.state_dict()["master_weights"]) == bits(masters)


@pytest.mark.parametrize("dtype", LOW)
def test_a_saved_run_of_low_precision_goes_on_with_the_same_bits(dtype: str, tmp_path: Any) -> None:
    optimizer, params = made("ours", dtype, multi_precision=True)
    train(optimizer, params, 10)
    paddle.save([optimizer.state_dict(), [p.detach() for p in params]], str(tmp_path / "both"))
    train(optimizer, params, 10, seed=8)
    state, values = paddle.load(str(tmp_path / "both"))
    resumed, its = made("ours", dtype, multi_precision=True)
    resumed.set_state_dict(state)
    for param, value in zip(its, values):
        param.set_value(value)
    train(resumed, its, 10, seed=8)
    assert bits(resumed.state_dict()) == bits(optimizer.state_dict())
    for one, other in zip(its, params):
        assert np.array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("dtype", LOW)
def test_a_step_that_fails_leaves_parameters_and_loaded_weights_alone(dtype: str) -> None:
    first, params = made("ours", dtype, multi_precision=True)
    train(first, params, 3)
    found = with_ties(first, params)
    resumed, its = made("ours", dtype, multi_precision=True)
    resumed.set_state_dict(found)
    before, state = [param.numpy().copy() for param in its], bits(resumed.state_dict())
    for param in its:
        param.grad = paddle.ones_like(param)
    its[2].clear_gradient(False)
    its[2].grad = paddle.ones([9]).astype(dtype)
    with pytest.raises(ValueError, match="shape"):
        resumed.step()
    assert all(np.array_equal(param.numpy(), value) for param, value in zip(its, before))
    assert bits(resumed.state_dict()) == state
    train(resumed, its)
    assert bits(resumed.state_dict()["master_weights"]) != bits(found["master_weights"])


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("multi", [False, True])
def test_a_state_with_master_weights_or_without_loads_into_either(dtype: str, multi: bool) -> None:
    optimizer, params = made("ours", dtype, multi_precision=multi)
    train(optimizer, params, 3)
    other, its = made("ours", dtype, multi_precision=not multi)
    other.set_state_dict(optimizer.state_dict())
    train(other, its)
    found = other.state_dict()
    assert ("master_weights" in found) is not multi
    assert {int(v.numpy()[0]) for k, v in found.items() if "radam_count" in k} == {4}
    assert any("_fp32_master_" in key for key in found) is not multi


@pytest.mark.parametrize("dtype", LOW)
def test_multi_precision_may_be_switched_while_training(dtype: str) -> None:
    optimizer, params = made("ours", dtype)
    train(optimizer, params, 2)
    for multi in (True, False, True):
        optimizer._multi_precision = multi
        train(optimizer, params, 2)
        assert ("master_weights" in optimizer.state_dict()) is multi
    assert {int(v.numpy()[0]) for k, v in optimizer.state_dict().items() if "radam_count" in k} == {8}


def test_a_master_weight_of_another_shape_is_refused() -> None:
    optimizer, params = made("ours", "bfloat16", multi_precision=True)
    train(optimizer, params, 2)
    found = dict(optimizer.state_dict())
    found["master_weights"] = {**found["master_weights"], params[0].name: paddle.zeros([7])}
    before = bits(optimizer.state_dict())
    with pytest.raises(AssertionError, match="master weight"):
        optimizer.set_state_dict(found)
    assert bits(optimizer.state_dict()) == before


@pytest.mark.parametrize("read_only", [False, True])
def test_loaded_master_weights_of_numpy_are_copied(read_only: bool) -> None:
    optimizer, params = made("ours", "bfloat16", multi_precision=True)
    train(optimizer, params, 2)
    found = dict(optimizer.state_dict())
    masters = {name: weight.numpy().copy() for name, weight in found["master_weights"].items()}
    for weight in masters.values():
        weight.flags.writeable = not read_only
    resumed, its = made("ours", "bfloat16", multi_precision=True)
    resumed.set_state_dict({**found, "master_weights": masters})
    for weight in masters.values():
        if not read_only:
            weight[...] = 100.0
    assert bits(resumed.state_dict()) == bits(found)
    train(resumed, its)
    assert all(np.max(np.abs(param.astype("float32").numpy())) < 10 for param in its)


VIEWS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "turned": lambda: (paddle.ones([3, 4]), lambda w: w.T),
    "gaps": lambda: (paddle.ones([4, 6]), lambda w: w[:, ::2]),
    "gaps in one dimension": lambda: (paddle.ones([8]), lambda w: w[::2]),
}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("case", VIEWS)
def test_a_view_is_saved_and_loaded_where_it_lies(dtype: str, case: str) -> None:
    whole, cut = VIEWS[case]()
    whole = whole.astype(dtype)
    view = cut(whole)
    assert not view.is_contiguous()
    view.stop_gradient = False
    grads = paddle.to_tensor(np.arange(view.size, dtype=np.float32).reshape(view.shape) + 1).astype(dtype)
    optimizer = radam.paddle.RAdam(2.0**-10, parameters=[view], multi_precision=True)
    for _ in range(3):
        optimizer.apply_gradients([(view, grads)])
    found = optimizer.state_dict()
    (weight,) = found["master_weights"].values()
    expected = weight.numpy() + np.arange(view.size, dtype=np.float32).reshape(view.shape)
    weight.set_value(expected)
    before = view.numpy().copy(), whole.numpy().copy()
    optimizer.set_state_dict(found)
    other = paddle.base.framework.EagerParamBase.from_tensor(paddle.ones([3]))
    with pytest.raises(ValueError, match="shape"):
        optimizer.apply_gradients([(view, grads), (other, paddle.ones([9]))])
    assert all(np.array_equal(now.numpy(), was) for now, was in zip((view, whole), before))
    optimizer.set_lr(0.0)
    optimizer.apply_gradients([(view, grads)])
    rounded = paddle.to_tensor(expected).astype(dtype).numpy()
    assert np.array_equal(view.numpy(), rounded)
    assert np.array_equal(cut(whole).numpy(), rounded)


def test_a_loaded_weight_of_minus_0_is_not_that_of_0() -> None:
    optimizer, params = made("ours", "float16", multi_precision=True)
    for param in params:
        param.grad = paddle.ones_like(param)
    optimizer.step()
    found = dict(optimizer.state_dict())
    found["master_weights"] = {k: paddle.full_like(v, -0.0) for k, v in found["master_weights"].items()}
    for param in params:
        param.set_value(paddle.zeros_like(param))
    optimizer.set_state_dict(found)
    optimizer.set_lr(0.0)
    optimizer.step()
    for param in params:
        assert np.all(np.signbit(param.numpy()))


# ---- a model that is cast after its first step


def cast_layer(first: str, then: str, multi: bool) -> tuple[Any, Any]:
    """Return a layer that was cast after three steps, and its optimizer."""
    layer = paddle.nn.Linear(3, 2)
    layer.to(dtype=first)
    optimizer = radam.paddle.RAdam(2.0**-10, parameters=layer.parameters(), multi_precision=multi)
    step_layer(layer, optimizer, 3)
    layer.to(dtype=then)
    assert str(layer.weight.dtype) == f"paddle.{then}"
    return layer, optimizer


def step_layer(layer: Any, optimizer: Any, steps: int) -> None:
    for param in layer.parameters():
        param.clear_gradient(False)
        param.grad = paddle.ones_like(param)
    for _ in range(steps):
        optimizer.step()


CASTS = [
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("bfloat16", "float32"),
    ("float16", "float32"),
    ("bfloat16", "float16"),
    ("float16", "bfloat16"),
    ("float32", "float64"),
    ("bfloat16", "float64"),
]


@pytest.mark.parametrize(("first", "then"), CASTS)
@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("saved_first", [False, True])
def test_a_model_that_is_cast_goes_on(first: str, then: str, multi: bool, saved_first: bool) -> None:
    layer, optimizer = cast_layer(first, then, multi)
    begin = layer.weight.astype("float64").numpy()
    alone = paddle.base.framework.EagerParamBase.from_tensor(paddle.zeros([1], "float64"))
    alone.grad = paddle.ones([1], "float64")
    usual = radam.paddle.RAdam(2.0**-10, parameters=[alone])
    for _ in range(3):
        usual.step()
    start = alone.item()
    for _ in range(20):
        usual.step()
    if saved_first:
        optimizer.state_dict()
    step_layer(layer, optimizer, 20)
    found = optimizer.state_dict()
    (names,) = {tuple(found.get("master_weights", {}))}
    assert bool(names) is (multi and then in LOW)
    weight = found["master_weights"][layer.weight.name] if names else layer.weight
    if names or then not in LOW:  # else it may stand still
        assert np.allclose(weight.astype("float64").numpy() - begin, alone.item() - start, atol=1e-6)
    assert np.array_equal(layer.weight.numpy(), weight.astype(then).numpy())
    kept = {str(value.dtype) for key, value in found.items() if "_moment" in key}
    assert kept == {"paddle.float64" if then == "float64" else "paddle.float32"}
    assert {int(value.numpy()[0]) for key, value in found.items() if "radam_count" in key} == {23}
    assert all(("_fp32_master_" in key) is bool(names) for key in found if key != "master_weights")
    optimizer.set_state_dict(found)
    assert bits(optimizer.state_dict()) == bits(found)


@pytest.mark.parametrize("then", ["float32", "bfloat16"])
def test_moments_are_not_rounded_and_what_the_message_says_helps(then: str) -> None:
    layer, optimizer = cast_layer("float64", then, multi=True)
    before = bits(optimizer.state_dict())
    with pytest.raises(ValueError, match=f"{layer.weight.name}.* cast the parameter back to float64"):
        step_layer(layer, optimizer, 1)
    assert bits(optimizer.state_dict()) == before
    step_layer(layer, radam.paddle.RAdam(2.0**-10, parameters=layer.parameters()), 1)
    layer.to(dtype="float64")
    step_layer(layer, optimizer, 1)


def test_a_step_that_fails_after_a_cast_has_changed_nothing() -> None:
    layer, optimizer = cast_layer("bfloat16", "float32", multi=True)
    held = optimizer._states[id(layer.weight)]
    kept = held.master
    step = [(layer.weight, paddle.ones([3, 2])), (layer.bias, paddle.ones([9]))]
    with pytest.raises(ValueError, match="shape"):
        optimizer.apply_gradients(step)
    assert held.master is kept
    layer.to(dtype="bfloat16")
    step_layer(layer, optimizer, 1)
    assert held.master is kept
