"""Parameter groups: every form of params, defaults and their edits, learning rates, conventions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import radam
from snapshots import arrays, bits, frozen


def ones(n: int = 2) -> np.ndarray:
    return np.ones(n, np.float32)


class Weight:
    def __init__(self, n: int) -> None:
        self.data, self.grad = ones(n), ones(n)


FORMS: dict[str, tuple[Callable[[], Any], list[int], Any]] = {
    "a list": (lambda: [ones(1), ones(2)], [2], None),
    "a tuple": (lambda: (ones(1), ones(2)), [2], None),
    "a generator": (lambda: (ones(n) for n in (1, 2)), [2], None),
    "pairs": (lambda: [("a", ones(1)), ("b", ones(2))], [2], [["a", "b"]]),
    "a generator of pairs": (lambda: ((name, ones(n)) for name, n in (("a", 1), ("b", 2))), [2], [["a", "b"]]),
    "a dict": (lambda: {"a": ones(1), "b": ones(2)}, [2], [["a", "b"]]),
    "an ordered dict": (lambda: OrderedDict(b=ones(2), a=ones(1)), [2], [["b", "a"]]),
    "objects with data": (lambda: [Weight(1), Weight(2)], [2], None),
    "tensors": (lambda: torch.nn.Linear(2, 1).parameters(), [2], None),
    "named tensors": (lambda: torch.nn.Linear(2, 1).named_parameters(), [2], [["weight", "bias"]]),
    "groups": (lambda: [{"params": [ones(1)]}, {"params": [ones(2), ones(3)]}], [1, 2], None),
    "groups of a dict": (lambda: [{"params": {"a": ones(1)}}, {"params": [("b", ones(2))]}], [1, 1], [["a"], ["b"]]),
    "groups of one array": (lambda: [{"params": ones(1)}, {"params": torch.ones(2)}], [1, 1], None),
    "groups of a generator": (lambda: iter([{"params": (ones(n) for n in (1, 2))}]), [2], None),
    "groups with names": (lambda: [{"params": [ones(1)], "param_names": ["a"]}], [1], [["a"]]),
    "an empty group among others": (lambda: [{"params": []}, {"params": [ones(1)]}], [0, 1], None),
}


@pytest.mark.parametrize(("make", "counts", "names"), FORMS.values(), ids=FORMS)
def test_params_may_be_given_in_many_forms(make: Any, counts: list[int], names: Any) -> None:
    optimizer = radam.RAdam(make(), lr=0.5)
    assert [len(group["params"]) for group in optimizer.param_groups] == counts
    assert all(isinstance(group["params"], list) for group in optimizer.param_groups)
    assert names is None or [group["param_names"] for group in optimizer.param_groups] == names
    params = [p if hasattr(p, "shape") else p.data for group in optimizer.param_groups for p in group["params"]]
    before = [np.array(p.tolist(), np.float32) for p in params]
    optimizer.step(grads=[np.ones(tuple(p.shape), np.float32) for p in params])
    for p, old in zip(params, before):
        np.testing.assert_allclose(np.array(p.tolist(), np.float32), old - 0.5, rtol=1e-6, atol=1e-7)


REFUSED = {
    "an empty list": (lambda: [], ValueError, "params is empty"),
    "a used generator": (lambda: iter(()), ValueError, "params is empty"),
    "an empty dict": (lambda: {}, ValueError, "params is empty"),
    "an array": (lambda: ones(), TypeError, "not one array.*put it in a list"),
    "a tensor": (lambda: torch.ones(2), TypeError, "not one array.*put it in a list"),
    "a set": (lambda: {torch.ones(1), torch.ones(2)}, TypeError, "a set is not"),
    "a set in a group": (lambda: [{"params": {torch.ones(1)}}], TypeError, "a set is not"),
    "a number": (lambda: 3, TypeError, "params must be an iterable.*got int"),
    "None": (lambda: None, TypeError, "params must be an iterable.*got NoneType"),
    "groups and arrays": (lambda: [{"params": [ones()]}, ones()], TypeError, "not both"),
    "a group without params": (lambda: [{"lr": 0.1}], ValueError, "needs a 'params' entry; this one has 'lr'"),
    "some with names": (lambda: [("a", ones()), ones()], ValueError, "all parameters of a group have names or none"),
    "too few names": (
        lambda: [{"params": [ones(), ones()], "param_names": ["a"]}],
        ValueError,
        "1 names for 2 parameters",
    ),
    "a name twice": (lambda: [("a", ones()), ("a", ones())], ValueError, "parameter 1 of group 0 has the name 'a'"),
    "a name in two groups": (
        lambda: [{"params": {"a": ones()}}, {"params": {"a": ones()}}],
        ValueError,
        "parameter 0 of group 1 has the name 'a'",
    ),
}


@pytest.mark.parametrize(("make", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_params_that_make_no_groups_are_refused(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        radam.RAdam(make())


DEFAULTS = {
    "lr": 0.2,
    "betas": (0.8, 0.99),
    "eps": 1e-6,
    "weight_decay": 0.1,
    "decoupled_weight_decay": True,
    "maximize": True,
    "amsgrad": True,
}


@pytest.mark.parametrize("kind", [radam.RAdam, radam.Adam])
def test_a_group_takes_what_it_does_not_say_from_the_defaults(kind: Any) -> None:
    optimizer = kind([{"params": [ones()], "lr": 0.7, "note": "x"}, {"params": [ones()]}], **DEFAULTS)
    assert optimizer.defaults == DEFAULTS
    first, second = ({k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups)
    assert first == {**DEFAULTS, "lr": 0.7, "note": "x"}
    assert second == DEFAULTS


def test_each_group_is_stepped_with_its_own_hyperparameters() -> None:
    starts, grads = arrays(1, (9,), (9,), (9,)), [arrays(k, (9,), (9,), (9,)) for k in range(2, 12)]
    own: list[dict[str, Any]] = [
        {"lr": 0.3},
        {"betas": (0.5, 0.9), "weight_decay": 0.1},
        {"amsgrad": True, "maximize": True},
    ]
    together, alone = [s.copy() for s in starts], [s.copy() for s in starts]
    optimizer = radam.RAdam([{"params": [p], **h} for p, h in zip(together, own)])
    singles = [radam.RAdam([p], **h) for p, h in zip(alone, own)]
    for step in grads:
        optimizer.step(grads=step)
        for single, grad in zip(singles, step):
            single.step(grads=[grad])
    assert [bits(p) for p in together] == [bits(p) for p in alone]


BAD_GROUPS = {
    "no dict": ([ones()], TypeError, "must be a dict"),
    "no params": ({"lr": 0.1}, ValueError, "'params'"),
    "no array": ({"params": [ones(), "x"]}, TypeError, "parameter 1 of group 1"),
    "integers": ({"params": [np.ones(2, int)]}, TypeError, "parameter 0 of group 1"),
    "read-only": ({"params": [np.frombuffer(bytes(8), np.float32)]}, ValueError, "read-only"),
    "bad lr": ({"params": [ones()], "lr": -1}, ValueError, "lr"),
    "a decay it has not": (
        {"params": [ones()], "decoupled_weight_decay": True},
        ValueError,
        "no decoupled weight decay",
    ),
}


@pytest.mark.parametrize(("group", "error", "words"), BAD_GROUPS.values(), ids=BAD_GROUPS)
def test_a_group_that_cannot_be_added_leaves_the_optimizer_and_itself_as_they_were(
    group: Any, error: Any, words: str
) -> None:
    optimizer = radam.RAdam([ones()], convention="paddle")
    optimizer.step(grads=[ones()])
    before, given = frozen(optimizer), dict(group) if isinstance(group, dict) else group
    with pytest.raises(error, match=words):
        optimizer.add_param_group(group)
    assert frozen(optimizer) == before
    assert group == given or not isinstance(group, dict)
    optimizer.step(grads=[ones()])


def test_an_added_group_starts_at_its_own_first_step() -> None:
    a, b, alone = ones(), ones(), ones()
    optimizer, fresh = radam.RAdam([a], lr=0.1), radam.RAdam([alone], lr=0.1)
    for _ in range(7):
        optimizer.step(grads=[ones()])
    optimizer.add_param_group({"params": [b]})
    for _ in range(3):
        optimizer.step(grads=[ones(), ones()])
        fresh.step(grads=[ones()])
    assert [entry["step"] for entry in optimizer.state] == [10, 3]
    assert bits(b) == bits(alone)


def test_calling_the_optimizer_steps_it() -> None:
    a, b = ones(), ones()
    assert radam.RAdam([a], lr=0.5)([ones()]) is None
    radam.RAdam({"b": b}, lr=0.5)({"b": ones()})
    assert a.tolist() == b.tolist() == [0.5, 0.5]


def test_zero_grad_forgets_or_clears_the_gradients() -> None:
    weight, tensor, plain = Weight(2), torch.nn.Parameter(torch.ones(2)), ones()
    tensor.grad = torch.ones(2)
    own, theirs = weight.grad, tensor.grad
    optimizer = radam.RAdam([weight, tensor, plain])
    optimizer.zero_grad(set_to_none=False)
    assert weight.grad is own
    assert tensor.grad is theirs
    assert own.tolist() == theirs.tolist() == [0.0, 0.0]
    optimizer.zero_grad()
    assert weight.grad is None
    assert tensor.grad is None
    optimizer.zero_grad(set_to_none=False)


def test_repr_shows_the_groups_and_no_arrays() -> None:
    text = repr(radam.RAdam([{"params": {"w": ones()}, "lr": 0.25}, {"params": [ones(), ones()]}]))
    assert text.startswith("RAdam (\nParameter Group 0: 1 parameters\n    amsgrad: False\n    betas: (0.9, 0.999)\n")
    assert "    lr: 0.25\n" in text
    assert "Parameter Group 1: 2 parameters\n" in text
    assert "array" not in text
    assert repr(radam.Adam([ones()])).startswith("Adam (")
