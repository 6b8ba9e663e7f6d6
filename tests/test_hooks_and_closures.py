"""Hooks run around a step, in order; closures compute the gradients; nobody steps in the middle of a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import radam
from snapshots import bits, frozen


def ones() -> np.ndarray:
    return np.ones(4, np.float32)


def test_hooks_run_before_and_after_the_step_in_the_order_of_their_registration() -> None:
    param, seen = ones(), []
    optimizer = radam.RAdam([param], lr=0.5)

    def note(name: str) -> Callable[..., None]:
        return lambda which, args, kwargs: seen.append((name, which is optimizer, float(param[0]), args, list(kwargs)))

    optimizer.register_step_post_hook(note("post 1"))
    optimizer.register_step_pre_hook(note("pre 1"))
    optimizer.register_step_pre_hook(note("pre 2"))
    optimizer.register_step_post_hook(note("post 2"))
    optimizer.step(grads=[ones()])
    rest = ((None,), ["grads"])
    assert seen == [
        ("pre 1", True, 1.0, *rest),
        ("pre 2", True, 1.0, *rest),
        ("post 1", True, 0.5, *rest),
        ("post 2", True, 0.5, *rest),
    ]


@pytest.mark.parametrize("kind", ["register_step_pre_hook", "register_step_post_hook"])
def test_a_removed_hook_runs_no_more_and_the_others_do(kind: str) -> None:
    optimizer, seen = radam.RAdam([ones()]), []
    first, second, third = (getattr(optimizer, kind)(lambda *_, k=k: seen.append(k)) for k in range(3))
    second.remove()
    second.remove()
    optimizer.step(grads=[ones()])
    assert seen == [0, 2]
    third.remove()
    with getattr(optimizer, kind)(lambda *_: seen.append(9)):
        optimizer.step(grads=[ones()])
    optimizer.step(grads=[ones()])
    assert seen == [0, 2, 0, 9, 0]
    first.remove()
    optimizer.step(grads=[ones()])
    assert seen == [0, 2, 0, 9, 0]


def test_a_hook_may_remove_itself_while_it_runs() -> None:
    optimizer, seen = radam.RAdam([ones()]), []

    def once(*_: Any) -> None:
        seen.append(1)
        handle.remove()

    handle = optimizer.register_step_pre_hook(once)
    optimizer.register_step_pre_hook(lambda *_: seen.append(2))
    optimizer.step(grads=[ones()])
    optimizer.step(grads=[ones()])
    assert seen == [1, 2, 2]


def test_a_pre_hook_may_replace_the_arguments_for_those_after_it() -> None:
    param, seen = ones(), []
    optimizer = radam.RAdam([param], lr=0.5)
    optimizer.register_step_pre_hook(lambda _, args, kwargs: (args, {"grads": [-kwargs["grads"][0]]}))
    optimizer.register_step_pre_hook(lambda _, args, kwargs: seen.append(kwargs["grads"][0].tolist()))
    optimizer.step(grads=[ones()])
    assert seen == [[-1.0] * 4]
    assert param.tolist() == [1.5] * 4


@pytest.mark.parametrize("answer", [1, (), ((),), ((), {}, 0), [(), {}]], ids=repr)
def test_a_pre_hook_that_returns_something_else_is_refused(answer: Any) -> None:
    optimizer = radam.RAdam([ones()])
    before = frozen(optimizer)
    with (
        optimizer.register_step_pre_hook(lambda *_: answer),
        pytest.raises(RuntimeError, match="pre-hook must return None or"),
    ):
        optimizer.step(grads=[ones()])
    assert frozen(optimizer) == before


def test_an_error_in_a_post_hook_comes_after_a_whole_step() -> None:
    optimizer, undisturbed = (radam.RAdam([ones()], lr=0.5) for _ in range(2))

    def fail(*_: Any) -> None:
        raise LookupError

    with optimizer.register_step_post_hook(fail), pytest.raises(LookupError):
        optimizer.step(grads=[ones()])
    undisturbed.step(grads=[ones()])
    assert frozen(optimizer) == frozen(undisturbed)


class Weight:
    def __init__(self) -> None:
        self.data, self.grad = ones(), None


def test_a_closure_computes_the_gradients_and_its_loss_is_returned() -> None:
    weight = Weight()
    optimizer = radam.RAdam([weight], lr=0.1)

    def closure() -> float:
        weight.grad = 2 * weight.data
        return float((weight.data**2).sum())

    losses = [optimizer.step(closure) for _ in range(3)]
    assert losses[0] == 4.0
    assert losses[0] > losses[1] > losses[2]
    assert optimizer.step() is None


NESTED = {
    "step": lambda o: o.step(grads=[ones()]),
    "call": lambda o: o([ones()]),
    "add_param_group": lambda o: o.add_param_group({"params": [ones()]}),
    "load_state_dict": lambda o: o.load_state_dict({}),
}


@pytest.mark.parametrize("inside", ["pre-hook", "closure", "lr"])
@pytest.mark.parametrize("call", NESTED.values(), ids=NESTED)
def test_a_step_cannot_be_entered_again_from_inside(call: Callable[[Any], Any], inside: str) -> None:
    optimizer, undisturbed = (radam.RAdam([ones()], lr=0.5) for _ in range(2))
    closure, errors = None, []

    def again(*_: Any) -> Any:
        with pytest.raises(RuntimeError, match="a step of this optimizer is under way") as caught:
            call(optimizer)
        errors.append(caught)
        return 0.5 if inside == "lr" else None

    if inside == "pre-hook":
        optimizer.register_step_pre_hook(again)
    elif inside == "lr":
        optimizer.param_groups[0]["lr"] = again
    else:
        closure = again
    optimizer.step(closure, grads=[ones()])
    undisturbed.step(grads=[ones()])
    assert len(errors) == 1
    optimizer.param_groups[0]["lr"] = 0.5
    assert frozen(optimizer) == frozen(undisturbed)


def test_a_post_hook_may_save_the_step_that_just_happened(tmp_path: Path) -> None:
    optimizer, restored = (radam.RAdam([ones()], lr=0.5) for _ in range(2))
    optimizer.register_step_post_hook(lambda o, *_: o.save(tmp_path / "state.safetensors"))
    optimizer.step(grads=[ones()])
    restored.load(tmp_path / "state.safetensors")
    assert restored.state[0]["step"] == 1
    assert bits(restored.state[0]["exp_avg"]) == bits(optimizer.state[0]["exp_avg"])


def test_a_closure_that_is_no_function_is_a_type_error_that_names_the_remedy() -> None:
    optimizer = radam.RAdam([ones()])
    with pytest.raises(TypeError, match=r"closure must be a function, got list; hand in gradients as step\(grads="):
        optimizer.step([ones()])
    assert optimizer.state == [{}]


def test_a_hook_may_step_another_optimizer() -> None:
    other, param = radam.RAdam([inner := ones()], lr=0.5), ones()
    optimizer = radam.RAdam([param], lr=0.5)
    optimizer.register_step_pre_hook(lambda *_: other.step(grads=[ones()]))
    optimizer.step(grads=[ones()])
    assert inner.tolist() == param.tolist() == [0.5] * 4


def test_an_export_may_step_another_optimizer() -> None:
    other = radam.RAdam([inner := ones()], lr=0.5)

    class Stepping:
        def __dlpack__(self, **keywords: Any) -> Any:
            other.step(grads=[ones()])
            return ones().__dlpack__(**keywords)

    params = [ones(), ones(), ones()]
    radam.RAdam(params, lr=0.5).step(grads=[ones(), Stepping(), ones()])
    assert [p.tolist() for p in (*params, inner)] == [[0.5] * 4] * 4
