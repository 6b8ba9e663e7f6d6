"""What radam.paddle promises beyond the shared table: Paddle's ways to a step, and its parameters."""

from __future__ import annotations

import inspect
import threading
import warnings
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Paddle has to say when it is imported is not ours
    paddle: Any = pytest.importorskip("paddle")
    from paddle.optimizer import lr

import radam.paddle

CLASSES = {"ours": radam.paddle.RAdam, "theirs": paddle.optimizer.RAdam}
Array = np.ndarray[Any, Any]


@pytest.fixture(params=CLASSES)
def kind(request: pytest.FixtureRequest) -> Any:
    """Both classes: what holds for ours holds for Paddle's own."""
    return CLASSES[request.param]


def param(values: Any = (1.0, -2.0, 3.0), dtype: str = "float32") -> Any:
    array = np.asarray(values, np.float64 if dtype == "float64" else np.float32)
    return paddle.base.framework.EagerParamBase.from_tensor(paddle.to_tensor(array).astype(dtype))


def with_grad(made: Any, grad: Any = None) -> Any:
    made.grad = paddle.ones_like(made) if grad is None else grad
    return made


def moved(made: Any, optimizer: Any, steps: int = 1) -> Array:
    before = made.numpy().copy()
    for _ in range(steps):
        optimizer.step()
    return made.numpy() - before  # type: ignore[no-any-return]


def test_the_arguments_are_those_of_paddle_s_own_and_one_more() -> None:
    ours, theirs = (inspect.signature(one).parameters for one in CLASSES.values())
    assert [(p.name, p.default) for p in ours.values() if p.kind is not p.KEYWORD_ONLY] == [
        (p.name, p.default) for p in theirs.values()
    ]
    assert [p.name for p in ours.values() if p.kind is p.KEYWORD_ONLY] == ["multi_precision"]


def test_no_kernel_of_paddle_s_takes_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_grad(param())
    optimizer = radam.paddle.RAdam(0.1, parameters=[made])
    monkeypatch.setattr(paddle._C_ops, "radam_", None)
    monkeypatch.setattr(paddle.optimizer.RAdam, "_append_optimize_op", None)
    assert np.allclose(moved(made, optimizer), -0.1)


def test_a_parameter_is_stepped_where_it_lies() -> None:
    made = with_grad(param())
    optimizer = radam.paddle.RAdam(0.1, parameters=[made])
    place = made.data_ptr()
    assert np.allclose(moved(made, optimizer, 2), -0.2)
    assert made.data_ptr() == place


def test_a_state_dict_is_a_copy() -> None:
    made = with_grad(param())
    optimizer = radam.paddle.RAdam(0.1, parameters=[made])
    optimizer.step()
    kept = optimizer.state_dict()
    before = {key: value.numpy().copy() for key, value in kept.items()}
    optimizer.step()
    assert all(np.array_equal(kept[key].numpy(), value) for key, value in before.items())
    optimizer.set_state_dict(kept)
    optimizer.step()
    assert all(np.array_equal(kept[key].numpy(), value) for key, value in before.items())


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_moments_are_never_of_16_bits(dtype: str) -> None:
    made = with_grad(param(dtype=dtype))
    optimizer = radam.paddle.RAdam(0.1, parameters=[made])
    optimizer.step()
    wide = "float64" if dtype == "float64" else "float32"
    found = optimizer.state_dict()
    assert {found[f"{made.name}_{kind}_0"].dtype for kind in ("moment1", "moment2")} == {getattr(paddle, wide)}
    assert np.allclose(made.astype("float32").numpy(), [0.9, -2.1, 2.9], atol=0.02)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 0, 3)])
def test_tensors_of_no_dimension_and_of_no_element_are_stepped(shape: tuple[int, ...]) -> None:
    made = with_grad(param(np.ones(shape)))
    assert np.allclose(moved(made, radam.paddle.RAdam(0.1, parameters=[made]), 3), -0.3, atol=1e-6)


def test_a_tensor_with_strides_is_updated_in_place() -> None:
    whole = paddle.ones([4, 3])
    turned = whole.T
    turned.stop_gradient = False
    turned.grad = paddle.to_tensor(np.arange(12, dtype=np.float32).reshape(3, 4))
    optimizer = radam.paddle.RAdam(0.1, parameters=[turned])
    optimizer.step()
    assert not turned.is_contiguous()
    assert np.allclose(turned.numpy(), 1 - 0.1 * np.arange(12).reshape(3, 4), atol=1e-6)
    assert np.array_equal(whole.numpy().T, turned.numpy())


def test_minimize_returns_what_paddle_s_own_does(kind: Any) -> None:
    first, second, frozen = param(), param(), param()
    frozen.stop_gradient = True
    loss = (first * first).sum()
    loss.backward()
    operators, pairs = kind(0.1, parameters=[first, second, frozen]).minimize(loss)
    assert operators == []
    assert [one is first for one, _ in pairs] == [True]
    assert np.array_equal(pairs[0][1].numpy(), [2, -4, 6])
    assert np.allclose(first.numpy(), [0.8, -1.6, 2.4])
    assert np.array_equal(second.numpy(), [1, -2, 3])


def test_minimize_steps_the_parameters_that_it_is_given(kind: Any) -> None:
    first, second = param(), param()
    loss = (first * second).sum()
    loss.backward()
    kind(0.1, parameters=[first, second]).minimize(loss, parameters=[second])
    assert np.array_equal(first.numpy(), [1, -2, 3])
    assert not np.array_equal(second.numpy(), [1, -2, 3])


def test_minimize_steps_groups_too() -> None:
    first, second = param(), param()
    loss = (first * second).sum()
    loss.backward()
    groups = [{"params": [first]}, {"params": [second], "learning_rate": 0.5}]
    _, pairs = radam.paddle.RAdam(0.1, parameters=groups).minimize(loss)
    assert len(pairs) == 2
    assert np.allclose(first.numpy(), [0.9, -1.8, 2.7])
    assert np.allclose(second.numpy(), [0.95, -1.9, 2.85])


def test_apply_gradients_takes_pairs_from_anywhere(kind: Any) -> None:
    made = param()
    optimizer = kind(0.1, parameters=[made])
    optimizer.apply_gradients([(made, paddle.to_tensor([1.0, 2.0, 3.0]))])
    assert np.allclose(made.numpy(), [0.9, -2.2, 2.7])


@pytest.mark.parametrize("clear", ["clear_grad", "clear_gradients"])
def test_gradients_are_set_to_zero_or_taken_away(kind: Any, clear: str) -> None:
    made = with_grad(param())
    optimizer = kind(0.1, parameters=[made])
    getattr(optimizer, clear)()
    assert np.array_equal(made.grad.numpy(), np.zeros(3))
    getattr(optimizer, clear)(False)
    assert made.grad is None


def test_a_gradient_kept_beside_the_usual_one_wins(kind: Any) -> None:
    made = with_grad(param())
    made.main_grad = paddle.full([3], 5.0)
    assert np.allclose(moved(made, kind(0.1, parameters=[made])), -0.5)


def test_a_frozen_parameter_waits_and_goes_on(kind: Any) -> None:
    made, other = with_grad(param()), with_grad(param())
    optimizer = kind(0.1, parameters=[made, other])
    optimizer.step()
    made.stop_gradient = True
    assert np.array_equal(moved(made, optimizer, 3), np.zeros(3))
    moment = optimizer.state_dict()[f"{made.name}_moment1_0"].numpy()
    assert np.allclose(moment, 0.1)
    made.stop_gradient = False
    assert np.all(moved(made, optimizer) < 0)


@pytest.mark.parametrize("scale", [0.25, 0.0, 2])
def test_each_parameter_may_scale_the_learning_rate(kind: Any, scale: float) -> None:
    made, other = with_grad(param()), with_grad(param())
    optimizer = kind(0.1, parameters=[made, other])
    optimizer.step()
    made.optimize_attr["learning_rate"] = scale
    before = other.numpy().copy()
    assert np.allclose(moved(made, optimizer), -0.1 * scale, atol=1e-6)
    assert np.allclose(other.numpy() - before, -0.1, atol=1e-6)


def test_a_tensor_stands_in_for_the_learning_rate(kind: Any) -> None:
    made, scale = with_grad(param()), paddle.to_tensor(0.5)
    made.optimize_attr["learning_rate"] = scale
    optimizer = kind(0.1, parameters=[made])
    assert np.allclose(moved(made, optimizer), -0.5)
    scale.set_value(paddle.to_tensor(0.25))
    assert np.allclose(moved(made, optimizer), -0.25)


def test_the_learning_rate_is_that_of_the_moment(kind: Any) -> None:
    made = with_grad(param())
    optimizer = kind(0.1, parameters=[made])
    assert np.allclose(moved(made, optimizer), -0.1)
    optimizer.set_lr(0.5)
    assert optimizer.get_lr() == 0.5
    assert np.allclose(moved(made, optimizer), -0.5)
    schedule = lr.StepDecay(0.25, 1, 0.5)
    optimizer.set_lr_scheduler(schedule)
    assert np.allclose(moved(made, optimizer), -0.25)
    schedule.step()
    assert optimizer.get_lr() == 0.125
    assert np.allclose(moved(made, optimizer), -0.125)


def test_betas_may_be_tensors(kind: Any) -> None:
    made = with_grad(param())
    betas = {"beta1": paddle.to_tensor(0.5), "beta2": paddle.to_tensor([0.875])}
    usual = with_grad(param())
    plain = moved(usual, kind(0.1, beta1=0.5, beta2=0.875, parameters=[usual]), 20)
    assert np.allclose(moved(made, radam.paddle.RAdam(0.1, parameters=[made], **betas), 20), plain, atol=1e-5)


def test_plain_tensors_are_stepped_too(kind: Any) -> None:
    made = paddle.ones([3])
    made.stop_gradient = False
    made.grad = paddle.ones([3])
    assert np.allclose(moved(made, kind(0.1, parameters=[made], weight_decay=0.5)), -0.15)


def test_parameters_that_join_later_are_stepped(kind: Any) -> None:
    made, late = with_grad(param()), with_grad(param())
    optimizer = kind(0.1, parameters=[made])
    optimizer.step()
    optimizer._parameter_list.append(late)
    assert np.allclose(moved(late, optimizer), -0.1)


def test_a_backward_pass_after_the_step_is_as_free_as_with_paddle_s_own(kind: Any) -> None:
    made = param()
    loss = (made * made).sum()
    loss.backward(retain_graph=True)
    version = made.inplace_version
    kind(0.1, parameters=[made]).step()
    assert made.inplace_version == version
    loss.backward()


def test_a_group_that_changes_takes_effect(kind: Any) -> None:
    made = with_grad(param())
    optimizer = kind(0.1, parameters=[{"params": [made], "beta1": 0.5}])
    optimizer.step()
    optimizer._param_groups[0]["beta1"] = 0.75
    before = made.numpy().copy()
    made.grad = paddle.full([3], -1.0)
    optimizer.step()
    moment = 0.75 * 0.5 - 0.25
    assert np.allclose(optimizer.state_dict()[f"{made.name}_moment1_0"].numpy(), moment)
    assert not np.array_equal(made.numpy(), before)


def test_parameters_of_layers_that_are_not_yet_made_are_stepped_over(kind: Any) -> None:
    with paddle.LazyGuard():
        lazy = paddle.nn.Linear(2, 3)
    good = with_grad(param())
    assert np.allclose(moved(good, kind(0.1, parameters=[*lazy.parameters(), good])), -0.1)


def test_a_parameter_without_memory_is_stepped_over() -> None:
    empty, good = with_grad(param()), with_grad(param())
    empty._clear_data()
    assert np.allclose(moved(good, optimizer := radam.paddle.RAdam(0.1, parameters=[empty, good])), -0.1)
    assert not any(key.startswith(f"{empty.name}_") for key in optimizer.state_dict())


def test_gradients_are_never_written() -> None:
    made = with_grad(param(), paddle.to_tensor([3.0, 4.0, 0.0]))
    clip = paddle.nn.ClipGradByGlobalNorm(1.0)
    other = with_grad(param())
    other.need_clip = False
    radam.paddle.RAdam(0.1, parameters=[made, other], grad_clip=clip, weight_decay=0.5).step()
    assert np.array_equal(made.grad.numpy(), [3, 4, 0])


def test_optimizers_in_two_threads_do_not_meet() -> None:
    params = [with_grad(param(np.linspace(-1, 1, 5000))) for _ in range(2)]
    optimizers = [radam.paddle.RAdam(0.01, parameters=[one], beta2=beta2) for one, beta2 in zip(params, (0.9, 0.99))]

    def train(optimizer: Any) -> None:
        for _ in range(50):
            optimizer.step()

    threads = [threading.Thread(target=train, args=(optimizer,)) for optimizer in optimizers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, beta2 in zip(params, (0.9, 0.99)):
        alone = with_grad(param(np.linspace(-1, 1, 5000)))
        moved(alone, radam.paddle.RAdam(0.01, parameters=[alone], beta2=beta2), 50)
        assert np.array_equal(one.numpy(), alone.numpy())
