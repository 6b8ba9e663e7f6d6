"""What radam.paddle refuses, by name, and that nothing has changed then."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Paddle has to say when it is imported is not ours
    paddle: Any = pytest.importorskip("paddle")

import radam.paddle
from radam import _step
from test_paddle import moved, param, with_grad


@pytest.fixture
def static_mode() -> Iterator[None]:
    paddle.enable_static()
    yield
    paddle.disable_static()


ACTS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: o.step(),
    "minimize": lambda o: o.minimize(None),
    "apply_gradients": lambda o: o.apply_gradients([]),
    "state_dict": lambda o: o.state_dict(),
    "set_state_dict": lambda o: o.set_state_dict({}),
}


@pytest.mark.parametrize("act", ACTS)
def test_static_mode_is_refused(act: str) -> None:
    optimizer = radam.paddle.RAdam(0.1, parameters=[param()])
    paddle.enable_static()
    try:
        with pytest.raises(RuntimeError, match=r"paddle\.disable_static\(\)"):
            ACTS[act](optimizer)
    finally:
        paddle.disable_static()


def test_an_optimizer_is_not_made_in_static_mode(static_mode: None) -> None:
    with pytest.raises(RuntimeError, match=r"paddle\.disable_static\(\)"):
        radam.paddle.RAdam(0.1)


def sparse_embedding() -> Any:
    layer = paddle.nn.Embedding(5, 3, sparse=True)
    layer(paddle.to_tensor([1, 2])).sum().backward()
    return layer.weight


def sparse_coo() -> Any:
    return with_grad(param(np.ones((3, 3))), paddle.sparse.sparse_coo_tensor([[0, 1], [1, 2]], [1.0, 2.0], [3, 3]))


def distributed() -> Any:
    mesh = paddle.distributed.ProcessMesh([0], dim_names=["x"])
    made = paddle.distributed.shard_tensor(param(), mesh, [paddle.distributed.Replicate()])
    made.grad = paddle.distributed.shard_tensor(paddle.ones([3]), mesh, [paddle.distributed.Replicate()])
    return made


def eight_bits() -> Any:
    made = paddle.ones([3]).astype("float8_e4m3fn")
    made.stop_gradient = False
    return made


CANNOT_BE_STEPPED: dict[str, tuple[Callable[[], Any], Any, type[Exception], str]] = {
    "rows": (sparse_embedding, None, RuntimeError, "sparse"),
    "coordinates": (sparse_coo, None, RuntimeError, "sparse"),
    "distributed": (distributed, None, RuntimeError, "distributed Tensor.*paddle.optimizer.RAdam does"),
    "8 bits": (eight_bits, paddle.ones([3]), TypeError, "dtype"),
    "complex": (lambda: paddle.ones([3], "complex64"), paddle.ones([3], "complex64"), TypeError, "complex64"),
    "another shape": (param, paddle.ones([4]), ValueError, r"has shape \(4,\), the parameter \(3,\)"),
    "another dtype": (param, paddle.ones([3], "float64"), ValueError, "float64"),
    "integers": (param, paddle.ones([3], "int64"), ValueError, "int64"),
}


@pytest.mark.parametrize("case", CANNOT_BE_STEPPED)
def test_what_cannot_be_stepped_is_refused_by_name_and_nothing_changes(case: str) -> None:
    make, grad, error, text = CANNOT_BE_STEPPED[case]
    good, bad = with_grad(param()), make()
    optimizer = radam.paddle.RAdam(0.1, parameters=[good])
    optimizer.step()
    before, state = good.numpy().copy(), {k: v.numpy().copy() for k, v in optimizer.state_dict().items()}
    bad.stop_gradient = False
    pair = (bad, bad.grad if grad is None else grad)
    assert pair[1] is not None
    for _ in range(2):
        with pytest.raises(error, match=text) as raised:
            optimizer.apply_gradients([(good, good.grad), pair])
        assert bad.name in str(raised.value)
    assert np.array_equal(good.numpy(), before)
    found = optimizer.state_dict()
    assert set(found) == set(state)
    assert all(np.array_equal(found[key].numpy(), value) for key, value in state.items())
    assert np.all(moved(good, optimizer) < 0)


def test_a_second_step_at_the_same_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_grad(param())
    optimizer = radam.paddle.RAdam(0.1, parameters=[made])
    found: list[Exception] = []
    native = _step.step

    def step_in_a_step(*args: Any, **keywords: Any) -> bool:
        def again() -> None:
            try:
                optimizer.step()
            except RuntimeError as error:
                found.append(error)

        thread = threading.Thread(target=again)
        thread.start()
        thread.join()
        return native(*args, **keywords)

    monkeypatch.setattr(_step, "step", step_in_a_step)
    optimizer.step()
    assert "under way" in str(found[0])
    assert np.allclose(made.numpy(), [0.9, -2.1, 2.9])


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_finds_a_whole_step_or_none(after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_grad(param())
    optimizer = radam.paddle.RAdam(0.1, parameters=[made])
    native = _step.step

    def interrupted(*args: Any, **keywords: Any) -> bool:
        if after:
            native(*args, **keywords)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_step, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    assert bool(optimizer.state_dict()) is after
    assert np.allclose(made.numpy(), [0.9, -2.1, 2.9] if after else [1, -2, 3])
    optimizer.step()
    assert optimizer.state_dict()[f"{made.name}_radam_count_0"].numpy()[0] == 1 + after


def scaled(factor: Any) -> Callable[[Any], Any]:
    return lambda one: one.optimize_attr.update(learning_rate=factor)


AT_THE_STEP: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a negative scale": (scaled(-1.0), "lr must be a finite number"),
    "a scale that is text": (scaled("fast"), "could not convert"),
    "a decay of NaN": (lambda p: setattr(p, "regularizer", paddle.to_tensor(np.nan)), "weight_decay must be a finite"),
    "an L1Decay of inf": (lambda p: setattr(p, "regularizer", paddle.regularizer.L1Decay(np.inf)), "weight_decay must"),
    "two decays": (lambda p: setattr(p, "regularizer", paddle.to_tensor([0.1, 0.2])), "weight_decay must be one"),
}


@pytest.mark.parametrize("case", AT_THE_STEP)
def test_a_bad_setting_is_refused_by_group_and_parameter(case: str) -> None:
    act, text = AT_THE_STEP[case]
    good, bad = with_grad(param()), with_grad(param())
    optimizer = radam.paddle.RAdam(0.1, parameters=[{"params": [good]}, {"params": [bad]}])
    act(bad)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"group 1, parameter {bad.name}: {text}"):
            optimizer.step()
    assert optimizer.state_dict() == {}
    assert np.array_equal(good.numpy(), [1, -2, 3])


def test_a_bad_number_of_a_group_is_refused_by_the_group_at_the_step() -> None:
    optimizer = radam.paddle.RAdam(0.1, parameters=[{"params": [with_grad(param())]}])
    optimizer._param_groups[0]["epsilon"] = "tiny"
    with pytest.raises(ValueError, match="group 0: could not convert"):
        optimizer.step()


BAD_DECAYS: dict[str, Callable[[], Any]] = {
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "a Tensor of NaN": lambda: paddle.to_tensor(float("nan")),
    "a Tensor of two": lambda: paddle.to_tensor([0.1, 0.2]),
    "L2Decay of NaN": lambda: paddle.regularizer.L2Decay(float("nan")),
}


@pytest.mark.parametrize("case", BAD_DECAYS)
@pytest.mark.parametrize("grouped", [False, True])
def test_a_decay_that_is_no_number_is_refused_when_the_optimizer_is_made(case: str, grouped: bool) -> None:
    made, decay = param(), BAD_DECAYS[case]()
    params: Any = [made]
    if grouped:
        params, decay = iter([{"params": [param()]}, {"params": [made], "weight_decay": decay}]), None
    with pytest.raises(ValueError, match="group 1: weight_decay must" if grouped else "^weight_decay must"):
        radam.paddle.RAdam(0.1, parameters=params, weight_decay=decay)
    assert made.regularizer is None


def test_a_decay_that_stops_being_a_number_is_refused_at_the_step() -> None:
    made, decay = with_grad(param()), paddle.to_tensor(0.1)
    optimizer = radam.paddle.RAdam(0.1, parameters=[made], weight_decay=decay)
    optimizer.step()
    before = made.numpy().copy()
    decay.set_value(paddle.to_tensor(float("nan")))
    with pytest.raises(ValueError, match=f"{made.name}: weight_decay must be a finite number"):
        optimizer.step()
    assert np.array_equal(made.numpy(), before)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_beta2_with_which_no_step_is_rectified_is_warned_of_once_at_the_user_s_line(grouped: bool) -> None:
    params: Any = [{"params": [param()]} for _ in range(3)] if grouped else [param()]
    with pytest.warns(UserWarning, match=r"group 0: with beta2=0.5 .* no step is ever rectified") as caught:
        radam.paddle.RAdam(0.1, beta2=0.5, parameters=params)
    assert [one.filename for one in caught] == [__file__]


def test_a_resized_parameter_is_told_of_in_paddle_s_words_and_may_begin_anew() -> None:
    made = with_grad(param())
    optimizer = radam.paddle.RAdam(0.1, parameters=[made])
    optimizer.step()
    larger = param(np.ones(5))
    made.get_tensor()._share_data_with(larger.get_tensor())
    made.clear_gradient(False)
    made.grad = paddle.ones([5])
    with pytest.raises(ValueError, match=rf"moment1 of {made.name} has shape \(3,\), the parameter \(5,\): .* new opt"):
        optimizer.step()
    assert np.allclose(moved(made, radam.paddle.RAdam(0.1, parameters=[made])), -0.1)


def test_a_step_alone_is_refused_under_to_static_of_the_full_graph() -> None:
    made = with_grad(param())
    optimizer = radam.paddle.RAdam(0.1, parameters=[made])

    @paddle.jit.to_static(full_graph=True)  # type: ignore[misc]
    def train(inputs: Any) -> Any:
        optimizer.step()
        return inputs

    with pytest.raises(RuntimeError, match="steps in dynamic mode only"):
        train(paddle.ones([3]))
    assert np.array_equal(made.numpy(), [1, -2, 3])


@pytest.mark.parametrize(("missing", "text"), [("paddle", "pip install paddlepaddle"), ("google", "^google is not")])
def test_only_a_missing_paddle_is_called_so(missing: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            if name == "paddle":
                raise ModuleNotFoundError(f"{missing} is not here", name=missing)

    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name == "paddle" or name.startswith("radam.paddle")]:
            patch.delitem(sys.modules, name)
        patch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
        with pytest.raises(ModuleNotFoundError, match=text) as raised:
            importlib.import_module("radam.paddle")
    assert raised.value.name == missing


# ---- dicts that are no state of these parameters


def trained(linear: Any) -> Any:
    optimizer = radam.paddle.RAdam(parameters=linear.parameters())
    for parameter in linear.parameters():
        parameter.grad = paddle.ones_like(parameter)
    for _ in range(3):
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("wrong", ["the model's", "one within another", "something else"])
def test_a_dict_that_is_no_optimizers_is_refused(wrong: str, fresh: bool) -> None:
    linear = paddle.nn.Linear(2, 2)
    optimizer = trained(linear)
    found = {
        "the model's": linear.state_dict(),
        "one within another": {"opt": optimizer.state_dict(), "epoch": 3},
        "something else": {"x": 1},
    }[wrong]
    if fresh:
        optimizer = radam.paddle.RAdam(parameters=linear.parameters())
    with pytest.raises(AssertionError, match="not found"):
        optimizer.set_state_dict(found)
    with pytest.raises(AttributeError, match="must be a dict"):
        optimizer.set_state_dict(None)


def test_a_state_of_which_half_belongs_to_others_is_refused() -> None:
    first, second, third = (paddle.nn.Linear(2, 2) for _ in range(3))
    both = trained(paddle.nn.LayerList([first, second])).state_dict()
    shifted = radam.paddle.RAdam(parameters=[*second.parameters(), *third.parameters()])
    with pytest.raises(AssertionError, match=r"not found, but others.*Nothing was loaded"):
        shifted.set_state_dict(both)
    wider = radam.paddle.RAdam(parameters=[*first.parameters(), *second.parameters(), *third.parameters()])
    wider.set_state_dict(both)  # it only lacks some, which begin anew
    assert len(wider.state_dict()) == len(both)


def test_a_loss_that_is_no_tensor_is_refused_also_without_assertions() -> None:
    code = (
        "import paddle, radam.paddle\n"
        "linear = paddle.nn.Linear(2, 2)\n"
        "optimizer = radam.paddle.RAdam(parameters=linear.parameters())\n"
        "try:\n    optimizer.minimize(3.0)\n"
        "except AssertionError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "loss must be a Tensor, got float"


def test_multi_precision_and_dtypes_are_named_where_they_are_wrong() -> None:
    with pytest.raises(TypeError, match="multi_precision must be True or False, got 'no'"):
        radam.paddle.RAdam(parameters=[paddle.zeros([2])], multi_precision="no")
    whole = paddle.zeros([2], "int32")
    whole.stop_gradient = False
    optimizer = radam.paddle.RAdam(parameters=[whole])
    with pytest.raises(TypeError, match=r"the parameter .* has dtype paddle.int32; RAdam steps float64"):
        optimizer.apply_gradients([(whole, paddle.ones([2], "int32"))])
