"""What comes up while a step of MindSpore's front end is under way: other threads, and Ctrl-C."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from radam import _step

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what MindSpore has to say when it is imported is not ours
    mindspore: Any = pytest.importorskip("mindspore")
    from mindspore import Parameter, Tensor

from radam.mindspore import RAdam
from test_mindspore import numbers, on_numpy, parameter, raw


def during(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object], after: Callable[[], object]) -> None:
    """Do something just before the core has the arrays, and just after it is done."""
    native = _step.step

    def step(*args: Any, **keywords: Any) -> bool:
        before()
        done = native(*args, **keywords)
        after()
        return done

    monkeypatch.setattr(_step, "step", step)


SIZE = 1 << 20  # where MindSpore takes freed memory again at once


@pytest.mark.parametrize("what", ["parameters", "gradients", "exp_avg", "exp_avg_sq", "step_t"])
def test_memory_that_is_given_up_during_a_step_is_nobody_else_s_before_its_end(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another thread could, by set_data or by dropping the gradients, while the core works."""

    def product(value: float, like: Any) -> Tensor:  # in memory of MindSpore's own pool
        return Tensor(np.full(like.shape, value), like.dtype) * 1

    optimizer = RAdam([parameter(np.ones(SIZE, np.float32))], lr=0.5)
    owned = [optimizer.parameters[0], optimizer.exp_avg[0], optimizer.exp_avg_sq[0], optimizer.step_t]
    for tensor in owned:
        tensor.set_data(product(tensor.asnumpy().flat[0], tensor))
    gradients = [product(1, owned[0])]
    last = product(1, owned[0])  # MindSpore may hold on to what it made last
    given = {"gradients": gradients[0], **dict(zip(["parameters", "exp_avg", "exp_avg_sq", "step_t"], owned))}[what]
    address, size, taken = given.data_ptr(), given.nbytes, list[Tensor]()
    like = Parameter(Tensor(np.zeros(given.shape), given.dtype), name="like")

    def give_up() -> None:
        nonlocal given
        if what == "gradients":
            gradients.clear()
        else:
            given.set_data(product(0, like))
        given = None
        gc.collect()
        taken.extend(product(7, like) for _ in range(24))
        assert all(abs(tensor.data_ptr() - address) >= size for tensor in taken)

    during(monkeypatch, give_up, lambda: None)
    assert optimizer(gradients)
    assert last is not None
    assert all((tensor.asnumpy() == 7).all() for tensor in taken)


def test_no_gradient_is_kept_between_steps() -> None:
    optimizer, ones = RAdam([parameter(np.zeros(SIZE, np.float32))]), Tensor(np.ones(SIZE, np.float32))
    grad, last = ones * 1, ones * 1  # MindSpore may hold on to what it made last
    optimizer((grad,))
    place = grad.data_ptr()
    del grad
    gc.collect()
    taken = [ones * 1 for _ in range(24)]
    assert last is not None
    assert any(abs(tensor.data_ptr() - place) < 4 * SIZE for tensor in taken)


@pytest.mark.parametrize("after", [False, True], ids=["before the core", "after the core"])
def test_an_interrupt_finds_a_whole_step_or_none(after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first parameters have no elements, which count all the same."""
    optimizer = RAdam([{"params": [parameter(numbers(0), "a")]}, {"params": [parameter(numbers(4), "b")]}], lr=0.5)
    grads = (Tensor(numbers(0)), Tensor(numbers(4, seed=6)))
    optimizer(grads)
    start = raw(optimizer)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        during(patch, *((lambda: None, interrupt) if after else (interrupt, lambda: None)))
        with pytest.raises(KeyboardInterrupt):
            optimizer(grads)
    assert optimizer.step_t.item() == 1 + after
    assert (raw(optimizer) == start) is not after
    optimizer(grads)
    (expected,) = on_numpy([numbers(4)], [numbers(4, seed=6)], 2 + after, lr=0.5)
    assert np.allclose(optimizer.parameters[1].asnumpy(), expected)


@pytest.mark.parametrize("in_a_thread", [False, True], ids=["within", "in another thread"])
def test_one_step_at_a_time(in_a_thread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, grads, seen = RAdam([parameter(numbers(4))]), (Tensor(numbers(4)),), []

    def meddle() -> None:
        for act in (lambda: optimizer(grads), lambda: optimizer.add_param_group({"params": [parameter(1.0, "b")]})):
            try:
                act()
            except RuntimeError as error:
                seen.append(str(error))

    def elsewhere() -> None:
        thread = threading.Thread(target=meddle)
        thread.start()
        thread.join()

    start = repr(optimizer)
    with monkeypatch.context() as patch:
        during(patch, elsewhere if in_a_thread else meddle, lambda: None)
        optimizer(grads)
    assert len(seen) == 2
    assert all("under way" in text for text in seen), seen
    assert optimizer.step_t.item() == 1
    assert repr(optimizer) == start
    assert len(optimizer.exp_avg) == len(optimizer.parameters) == 1
    optimizer(grads)
    assert optimizer.step_t.item() == 2
