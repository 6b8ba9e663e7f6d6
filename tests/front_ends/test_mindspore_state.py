"""What MindSpore's users find on the optimizer, add to it, save and load."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what MindSpore has to say when it is imported is not ours
    mindspore: Any = pytest.importorskip("mindspore")
    from mindspore import Parameter, ParameterTuple, Tensor
    from mindspore.experimental import optim

import radam
from radam.mindspore import RAdam

CLASSES = {"ours": RAdam, "theirs": optim.RAdam}


def parameter(name: str = "w", count: int = 3, dtype: Any = mindspore.float32) -> Parameter:
    return Parameter(Tensor(np.linspace(-1, 1, count), dtype), name=name)


def ones(count: int = 3, dtype: Any = mindspore.float32) -> Tensor:
    return Tensor(np.ones(count), dtype)


def raw(optimizer: Any) -> list[bytes]:
    """Everything that a step may write."""
    states = [optimizer.step_t, *optimizer.parameters, *optimizer.exp_avg, *optimizer.exp_avg_sq]
    return [state.asnumpy().tobytes() for state in states]


def test_it_has_the_attributes_of_mindspore_s_own() -> None:
    seen = []
    for make in CLASSES.values():
        a, b = parameter("a"), parameter("b", 2)
        b.requires_grad = False
        optimizer = make([{"params": [a], "lr": 0.5}, {"params": [b], "eps": 1e-4}])
        assert isinstance(optimizer, optim.Optimizer)
        assert isinstance(optimizer.parameters, ParameterTuple)
        named = {name: (p.name, p.dtype, p.shape, p.requires_grad) for name, p in optimizer.parameters_and_names()}
        groups = [sorted(group) for group in optimizer.param_groups]
        moments = [[p.name for p in getattr(optimizer, name)] for name in ("parameters", "exp_avg", "exp_avg_sq")]
        lrs = [(lr.name, lr.dtype, lr.item()) for lr in optimizer.lrs]
        defaults = dict(optimizer.defaults)
        seen.append((named, groups, moments, lrs, defaults, optimizer.step_t.dtype, repr(optimizer)))
    assert seen[0] == seen[1]


def test_a_step_returns_what_mindspore_s_own_does() -> None:
    assert RAdam([parameter()])((ones(),)) is optim.RAdam([parameter()])((ones(),)) is True


@pytest.mark.parametrize("lr", [0.1, Tensor(0.1, mindspore.float32), Tensor(0.1, mindspore.float64)], ids=str)
def test_every_kind_of_lr_counts_as_its_float32(lr: Any) -> None:
    """The first step without momentum is lr times the gradient, exactly."""
    w = Parameter(Tensor(np.zeros(3, np.float64)), name="w")
    optimizer = RAdam([w], lr=lr, betas=(0.0, 0.75))
    optimizer((ones(dtype=mindspore.float64),))
    assert w.asnumpy().tolist() == [-float(np.float32(0.1))] * 3


def test_an_lr_written_into_a_group_counts_from_the_next_step_on() -> None:
    for written in (0.5, Tensor(0.25), 2, 0.1):
        w = Parameter(Tensor(np.zeros(3, np.float64)), name="w")
        optimizer = RAdam([w], lr=1.0, betas=(0.0, 0.75))
        optimizer.param_groups[0]["lr"] = written
        optimizer((ones(dtype=mindspore.float64),))
        assert w.asnumpy().tolist() == [-float(np.float32(float(written)))] * 3


@pytest.mark.parametrize(
    ("key", "value", "error", "text"),
    [
        ("lr", -1.0, ValueError, "group 1: .*lr"),
        ("lr", "fast", ValueError, "group 1: "),
        ("betas", (0.9, 1.5), ValueError, r"group 1: betas\[1\]"),
        ("betas", (0.9,), ValueError, "group 1: "),
        ("eps", float("nan"), ValueError, "group 1: .*eps"),
        ("weight_decay", None, TypeError, "group 1: "),
    ],
)
def test_a_bad_number_written_into_a_group_changes_nothing(
    key: str, value: Any, error: type[Exception], text: str
) -> None:
    optimizer = RAdam([{"params": [parameter("a")]}, {"params": [parameter("b")]}])
    optimizer((ones(), ones()))
    before = raw(optimizer)
    optimizer.param_groups[1][key] = value
    with pytest.raises(error, match=text):
        optimizer((ones(), ones()))
    assert raw(optimizer) == before


BAD_GRADIENTS = {
    "of another shape": lambda: ones(4),
    "of integers": lambda: ones(dtype=mindspore.int32),
    "of float64": lambda: ones(dtype=mindspore.float64),
    "missing": lambda: None,
    "sparse, by coordinates": lambda: mindspore.COOTensor(Tensor([[0, 0]], mindspore.int32), ones(1), (1, 3)),
    "sparse, by rows": lambda: mindspore.CSRTensor(
        Tensor([0, 1], mindspore.int32), Tensor([0], mindspore.int32), ones(1), (1, 3)
    ),
}


@pytest.mark.parametrize("what", BAD_GRADIENTS)
def test_a_bad_gradient_among_good_ones_changes_nothing(what: str) -> None:
    optimizer = RAdam([{"params": [parameter("a")]}, {"params": [parameter("b")]}])
    optimizer((ones(), ones()))
    before = raw(optimizer)
    with pytest.raises((TypeError, ValueError), match="'b'"):
        optimizer((ones(), BAD_GRADIENTS[what]()))
    assert raw(optimizer) == before


# ---- groups that come later


def test_a_group_can_be_added_before_the_first_step() -> None:
    """Where MindSpore's own fails in the step after it."""
    a, b = parameter("a"), parameter("b", 2)
    later, at_once = RAdam([a], lr=0.5), RAdam([{"params": [parameter("a")]}, {"params": [parameter("b", 2)]}], lr=0.5)
    later.add_param_group({"params": b})
    assert repr(later) == repr(at_once)
    for optimizer in (later, at_once):
        for _ in range(3):
            optimizer((ones(), ones(2)))
    assert raw(later) == raw(at_once)
    assert [m.name for m in later.exp_avg] == ["exp_avg.a", "exp_avg.b"]


def test_no_group_can_be_added_after_the_first_step() -> None:
    optimizer = RAdam([parameter("a")])
    optimizer((ones(),))
    with pytest.raises(RuntimeError, match=r"before the first step only.*another optimizer"):
        optimizer.add_param_group({"params": [parameter("b")]})
    assert optimizer((ones(),))


@pytest.mark.parametrize(
    "group",
    [
        {"params": [parameter("a")]},  # a name that is there
        {"params": [parameter("b")], "lr": -1.0},
        {"params": [parameter("b")], "betas": (0.9, 1.0)},
        {"params": [parameter("b"), ones()]},
        {"params": [parameter("b", dtype=mindspore.int32)]},
        {"params": parameter("b", dtype=mindspore.int32)},
        {"lr": 0.1},
        [parameter("b")],
    ],
)
def test_a_group_that_is_refused_leaves_no_trace(group: Any) -> None:
    optimizer, given = RAdam([parameter("a")]), dict(group) if isinstance(group, dict) else None
    before = repr(optimizer), [p.name for p in optimizer.get_parameters()], len(optimizer.lrs)
    with pytest.raises((TypeError, ValueError, KeyError)):
        optimizer.add_param_group(group)
    assert (repr(optimizer), [p.name for p in optimizer.get_parameters()], len(optimizer.lrs)) == before
    assert given is None or (group.keys() == given.keys() and all(group[key] is value for key, value in given.items()))
    assert optimizer((ones(),))


def test_a_group_stays_its_caller_s() -> None:
    shared = {"params": (parameter("b", 2),), "lr": 0.5}
    entries = list(shared.items())
    for optimizer in (RAdam([parameter("a")]), RAdam([parameter("a")])):
        optimizer.add_param_group(shared)
        assert optimizer((ones(), ones(2)))
        assert all(found is value for found, (_, value) in zip(shared.values(), entries))
    RAdam([shared])
    assert list(shared.items()) == entries


@pytest.mark.parametrize("beta2", [0.5, 2 / 3, 0.67])
def test_it_warns_where_no_step_is_ever_rectified(beta2: float) -> None:
    said = []
    for act in (
        lambda: RAdam([parameter()], betas=(0.9, beta2)),
        lambda: RAdam([parameter("a")]).add_param_group({"params": [parameter("b")], "betas": (0.9, beta2)}),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            act()
        said.append([(str(one.message), one.filename) for one in caught if one.category is UserWarning])
    if beta2 > 2 / 3:
        assert said == [[], []]
        return
    for number, ((text, filename),) in enumerate(said):
        assert text.startswith(f"group {number}: with betas[1]={beta2} rho never exceeds ")
        assert "no step is ever rectified" in text
        assert filename == __file__


def test_a_group_whose_warning_is_an_error_leaves_no_trace() -> None:
    optimizer = RAdam([parameter("a")])
    before = repr(optimizer), raw(optimizer)
    with pytest.raises(UserWarning, match="no step is ever rectified"):
        optimizer.add_param_group({"params": [parameter("b")], "betas": (0.9, 0.5)})
    assert (repr(optimizer), raw(optimizer)) == before
    assert optimizer((ones(),))


# ---- what it takes


def test_memory_counts_all_that_it_holds() -> None:
    optimizer = RAdam([parameter("a", 5), parameter("b", 2, mindspore.float16)])
    found = radam.memory(optimizer)
    assert (found.elements, found.parameters, found.moments) == (7, 5 * 4 + 2 * 2, 2 * 7 * 4)
    assert (found.step_counts, found.state) == (4, 2 * 7 * 4 + 4)


# ---- checkpoints


def saved(optimizer: Any, folder: Path, suffix: str) -> Any:
    path = str(folder / f"state.{suffix}")
    mindspore.save_checkpoint(optimizer, path, format=suffix)
    return mindspore.load_checkpoint(path, format=suffix)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_checkpoint_has_the_entries_of_mindspore_s_own(suffix: str, tmp_path: Path) -> None:
    found = []
    for name, make in CLASSES.items():
        optimizer = make([parameter("a"), parameter("b", 2)])
        optimizer((ones(), ones(2)))
        (tmp_path / name).mkdir()
        entries = saved(optimizer, tmp_path / name, suffix)
        found.append({key: (p.dtype, p.shape) for key, p in entries.items()})
    assert found[0] == found[1]
    assert set(found[0]) == {"a", "b", "step_t", "exp_avg.a", "exp_avg.b", "exp_avg_sq.a", "exp_avg_sq.b"}


@pytest.mark.parametrize("first", CLASSES)
def test_16_bit_parameters_are_handed_over_either_way(first: str, tmp_path: Path) -> None:
    """MindSpore's own keeps float16 moments for them, ours float32 ones."""
    second = "theirs" if first == "ours" else "ours"
    before, after = (CLASSES[whose]([parameter(dtype=mindspore.float16)], lr=0.01) for whose in (first, second))
    for _ in range(8):
        before((ones(dtype=mindspore.float16),))
    assert mindspore.load_param_into_net(after, saved(before, tmp_path, "ckpt")) == ([], [])
    assert after.step_t.item() == 8
    assert np.allclose(after.exp_avg[0].asnumpy(), before.exp_avg[0].asnumpy(), rtol=1e-3)
    kind = {"ours": mindspore.float32, "theirs": mindspore.float16}[second]
    assert after.exp_avg[0].dtype == kind
    for optimizer in (before, after):
        optimizer((ones(dtype=mindspore.float16),))
    assert np.allclose(after.parameters[0].asnumpy(), before.parameters[0].asnumpy(), atol=2e-3)


def test_the_count_is_exact_where_float32_no_longer_is() -> None:
    optimizer = RAdam([parameter()])
    optimizer.step_t.set_data(Tensor(2**24, mindspore.int32))
    for t in (2**24 + 1, 2**24 + 2):
        optimizer((ones(),))
        assert optimizer.step_t.item() == t


def test_the_count_does_not_run_over() -> None:
    optimizer = RAdam([parameter()])
    optimizer.step_t.set_data(Tensor(2**31 - 1, mindspore.int32))
    before = raw(optimizer)
    with pytest.raises(OverflowError, match=r"step_t.*2147483647"):
        optimizer((ones(),))
    assert raw(optimizer) == before


def test_a_scheduler_refuses_what_is_no_optimizer_and_takes_this_one() -> None:
    optimizer = RAdam([parameter()], lr=0.5)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    scheduler.step()
    assert optimizer.lrs[0].item() == 0.25
    with pytest.raises(TypeError):
        optim.lr_scheduler.StepLR(object(), 1)


def test_every_scheduler_of_mindspore_is_in_the_shared_table() -> None:
    from front_end_mindspore import FRONT_END

    assert set(FRONT_END.schedulers) == set(optim.lr_scheduler.__all__) - {"LRScheduler"}  # the abstract one
