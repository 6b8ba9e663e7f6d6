"""What users put around an optimizer works around radam.paddle: scalers, models, compiled functions, copies."""

from __future__ import annotations

import copy
import itertools
import threading
import warnings
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Paddle has to say when it is imported is not ours
    paddle: Any = pytest.importorskip("paddle")

import radam.paddle
from front_end_paddle import FRONT_END
from radam import _step
from test_paddle import CLASSES, moved, param, with_grad


@pytest.fixture
def scaler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make Paddle's GradScaler work on the CPU, where it would switch itself off."""
    from paddle.amp import grad_scaler

    with monkeypatch.context() as patch:
        patch.setattr(grad_scaler, "in_dynamic_mode", lambda: False)
        made = paddle.amp.GradScaler(init_loss_scaling=8.0, decr_every_n_nan_or_inf=2)
    assert made.is_enable()
    return made


@pytest.mark.parametrize(
    ("whose", "way", "grouped"),
    [  # Paddle's own minimize knows no groups
        *itertools.product(CLASSES, ["step", "minimize"], [False]),
        *[("ours", "step", True), ("ours", "minimize", True), ("theirs", "step", True)],
    ],
)
def test_grad_scaler_unscales_and_leaves_out_steps(scaler: Any, whose: str, way: str, grouped: bool) -> None:
    made = param()
    optimizer = CLASSES[whose](0.1, parameters=[{"params": [made]}] if grouped else [made])

    def train(factor: float) -> None:
        scaled = scaler._scale * (made * factor).sum()
        scaled.backward()
        if way == "step":
            scaler.step(optimizer)
            scaler.update()
        else:
            scaler.minimize(optimizer, scaled)
        optimizer.clear_grad(False)

    train(1.0)
    assert np.allclose(made.numpy(), [0.9, -2.1, 2.9])
    before = made.numpy().copy()
    train(np.inf)
    assert np.array_equal(made.numpy(), before)
    assert scaler._decr_count == 1
    train(1.0)
    assert np.allclose(made.numpy(), [0.8, -2.2, 2.8])


def test_a_step_without_the_scaler_is_taken_after_one_that_it_left_out(scaler: Any) -> None:
    made = param()
    optimizer = radam.paddle.RAdam(0.1, parameters=[made])
    (scaler._scale * (made * np.inf).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert np.allclose(moved(with_grad(made), optimizer), -0.1)


def test_a_model_of_paddle_s_high_level_interface_trains_saves_and_loads(tmp_path: Any) -> None:
    ends = []
    inputs = np.random.default_rng(0).random((32, 4), np.float32)
    labels = (inputs.sum(axis=1) * 0.7).astype(np.int64)[:, None]
    for name, one in CLASSES.items():
        paddle.seed(0)
        network = paddle.nn.Sequential(paddle.nn.Linear(4, 8), paddle.nn.ReLU(), paddle.nn.Linear(8, 3))
        model = paddle.Model(network)
        model.prepare(one(0.05, parameters=network.parameters()), paddle.nn.CrossEntropyLoss())
        for _ in range(10):
            model.train_batch([inputs], [labels])
        model.save(str(tmp_path / name))
        for _ in range(5):
            model.train_batch([inputs], [labels])
        ends.append([p.numpy().copy() for p in network.parameters()])
        model.load(str(tmp_path / name))
        for _ in range(5):
            model.train_batch([inputs], [labels])
        for before, after in zip(ends[-1], network.parameters()):
            assert np.array_equal(before, after.numpy())
    for ours, theirs in zip(*ends):
        assert np.allclose(ours, theirs, atol=3e-6)


def test_a_model_under_to_static_is_trained() -> None:
    layer = paddle.nn.Linear(3, 1)
    static = paddle.jit.to_static(layer)
    optimizer = radam.paddle.RAdam(0.05, parameters=layer.parameters())
    inputs = paddle.to_tensor(np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32))
    losses = []
    for _ in range(30):
        loss = (static(inputs) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_a_step_inside_of_a_function_under_to_static_is_taken(kind: Any) -> None:
    made = param()
    optimizer = kind(0.1, parameters=[made])

    @paddle.jit.to_static  # type: ignore[misc]
    def train(inputs: Any) -> Any:
        loss = (made * inputs).sum()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return loss

    losses = [float(train(paddle.ones([3]))) for _ in range(3)]
    assert np.allclose(losses, [2.0, 1.7, 1.4])
    assert np.allclose(made.numpy(), [0.7, -2.3, 2.7])


def test_a_deep_copy_steps_its_own_parameters() -> None:
    layer = paddle.nn.Linear(3, 2)
    optimizer = radam.paddle.RAdam(0.1, parameters=layer.parameters())
    for one in layer.parameters():
        with_grad(one)
    optimizer.step()
    before = layer.weight.numpy().copy()
    copied_layer, copied = copy.deepcopy((layer, optimizer))
    for one in copied_layer.parameters():
        with_grad(one)
    copied.step()
    assert np.array_equal(layer.weight.numpy(), before)
    found = copied.state_dict()
    assert set(found).isdisjoint(optimizer.state_dict())
    assert found[f"{copied_layer.weight.name}_radam_count_0"].numpy()[0] == 2
    optimizer.step()
    assert np.array_equal(layer.weight.numpy(), copied_layer.weight.numpy())


def test_what_sets_multi_precision_for_paddle_s_own_sets_it_for_ours() -> None:
    from paddle.amp.auto_cast import _set_multi_precision

    made = with_grad(param(dtype="bfloat16"))
    optimizer = radam.paddle.RAdam(0.1, parameters=[made])
    _, decorated = paddle.amp.decorate(models=paddle.nn.Linear(2, 2), optimizers=optimizer, level="O2")
    assert decorated is optimizer
    _set_multi_precision(optimizer, True)
    optimizer.step()
    assert list(optimizer.state_dict()["master_weights"]) == [made.name]


def test_memory_is_told_by_kind() -> None:
    made, waiting = with_grad(param(np.ones(100), "bfloat16")), param(np.ones(10))
    half, other = with_grad(param(np.ones(100), "float16")), with_grad(param(np.ones(7)))
    optimizer = radam.paddle.RAdam(0.1, parameters=[made, waiting, half], multi_precision=True)
    optimizer.step()
    optimizer.apply_gradients([(other, other.grad)])
    found = {id(one): entry for one, entry in optimizer._memory_entries()}
    assert [len(found[id(one)]) for one in (made, waiting, half, other)] == [4, 0, 4, 3]
    assert found[id(made)]["remainder"].dtype == np.int16
    assert found[id(half)]["master"].dtype == np.float32
    assert list(found) == [id(one) for one in (made, waiting, half, other)]
    totals: dict[str, int] = {}
    for entry in found.values():
        for key, array in entry.items():
            totals[key] = totals.get(key, 0) + array.nbytes
    assert totals == {"exp_avg": 828, "exp_avg_sq": 828, "step": 24, "remainder": 200, "master": 400}


def test_a_state_is_not_saved_or_copied_while_a_step_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = radam.paddle.RAdam(0.1, parameters=[with_grad(param())])
    refused: list[str] = []
    native = _step.step

    def save_in_a_step(*args: Any, **keywords: Any) -> bool:
        def save() -> None:
            for act in (optimizer.state_dict, optimizer.__getstate__, lambda: copy.deepcopy(optimizer)):
                with pytest.raises(RuntimeError, match="under way"):
                    act()
                refused.append(str(act))

        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
        return native(*args, **keywords)

    monkeypatch.setattr(_step, "step", save_in_a_step)
    optimizer.step()
    assert len(refused) == 3


def test_a_step_is_not_taken_while_a_copy_is_made() -> None:
    made = with_grad(param())
    optimizer = radam.paddle.RAdam(0.1, parameters=[made])
    optimizer.step()

    class Watch:
        def __deepcopy__(self, memo: Any) -> Any:
            with pytest.raises(RuntimeError, match="under way"):
                optimizer.step()
            return "copied"

    optimizer.watch = Watch()
    assert copy.deepcopy(optimizer).watch == "copied"
    assert np.allclose(made.numpy(), [0.9, -2.1, 2.9])


def test_every_scheduler_of_paddle_s_is_in_the_shared_table() -> None:
    assert set(FRONT_END.schedulers) == set(paddle.optimizer.lr.__all__) - {"LRScheduler"}  # which is abstract


# ---- the array-level optimizer over Paddle's tensors


def test_the_array_level_optimizer_refuses_sparse_tensors_and_steps_the_others() -> None:
    embedding = paddle.nn.Embedding(10, 4, sparse=True)
    embedding(paddle.to_tensor([1, 2])).sum().backward()
    optimizer = radam.RAdam([embedding.weight])
    before = embedding.weight.numpy()
    for _ in range(3):
        with pytest.raises(TypeError, match="not dense; an Embedding takes sparse=False"):
            optimizer.step()
    assert np.array_equal(embedding.weight.numpy(), before)
    with pytest.raises(TypeError, match="parameter 0 of group 0 is a Paddle tensor that is not dense"):
        radam.RAdam([paddle.sparse.sparse_coo_tensor([[0, 1], [1, 0]], [1.0, 2.0], [2, 2])])
    optimizer.step(grads=[paddle.ones([10, 4])])
    assert not np.array_equal(embedding.weight.numpy(), before)


def test_memory_counts_all_that_is_kept() -> None:
    half = paddle.nn.initializer.Constant(0.5)
    weight = paddle.create_parameter([100], "bfloat16", default_initializer=half)
    optimizer = radam.paddle.RAdam(parameters=[weight], multi_precision=True)
    weight.grad = paddle.ones([100], "bfloat16")
    optimizer.step()
    held = radam.memory(optimizer)
    assert (held.elements, held.parameters, held.gradients) == (100, 200, 200)
    assert (held.moments, held.master_weights, held.other) == (800, 200, 0)
