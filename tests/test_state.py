"""What an optimizer remembers can be saved, copied and loaded: the same bits go on, or nothing changes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import radam
from snapshots import arrays, as_numpy, frozen

MAKERS = {
    "float64": lambda a: a.astype(np.float64),
    "float32": lambda a: a.astype(np.float32),
    "bfloat16": lambda a: a.astype(ml_dtypes.bfloat16),
    "float16": lambda a: a.astype(np.float16),
    "torch bfloat16": lambda a: torch.from_numpy(a.astype(np.float32)).bfloat16(),
    "torch parameter": lambda a: torch.nn.Parameter(torch.from_numpy(a.copy())),
    "F order": lambda a: np.asfortranarray(a),
    "gaps": lambda a: np.repeat(a, 2, axis=0)[::2],
}
SHAPES = [(6, 5), (3, 1), (1, 4)]


def make(maker: Any, seed: int = 1, **keywords: Any) -> radam.RAdam:
    first, second, third = (maker(a) for a in arrays(seed, *SHAPES, dtype=np.float64))
    return radam.RAdam([{"params": [first, second]}, {"params": [("w", third)], "lr": 0.3}], **{"lr": 0.1, **keywords})


def step(optimizer: radam.RAdam, maker: Any, seed: int, *skipped: int) -> None:
    grads = [maker(a) for a in arrays(seed, *SHAPES, dtype=np.float64)]
    grads = [g.detach() if isinstance(g, torch.Tensor) else g for g in grads]
    optimizer.step(grads=[None if i in skipped else g for i, g in enumerate(grads)])


def put(optimizer: radam.RAdam, source: radam.RAdam) -> None:
    """Give an optimizer's parameters the values of another's."""
    for ours, theirs in zip(optimizer.param_groups, source.param_groups):
        for a, b in zip(ours["params"], theirs["params"]):
            as_numpy(a)[...] = as_numpy(b)


def through_dict(source: radam.RAdam, target: radam.RAdam, folder: Path) -> None:
    target.load_state_dict(source.state_dict())


def through_file(source: radam.RAdam, target: radam.RAdam, folder: Path) -> None:
    source.save(folder / "state.safetensors")
    target.load(str(folder / "state.safetensors"))


@pytest.mark.parametrize("carry", [through_dict, through_file])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_a_restored_optimizer_goes_on_with_the_same_bits(maker: Any, amsgrad: bool, carry: Any, tmp_path: Path) -> None:
    uninterrupted = make(maker, amsgrad=amsgrad)
    for seed in range(10, 18):
        step(uninterrupted, maker, seed, *((2,) if seed < 13 else ()))
    restored = make(maker, seed=2, lr=9.0, betas=(0.5, 0.8), weight_decay=3.0)
    put(restored, uninterrupted)
    carry(uninterrupted, restored, tmp_path)
    assert frozen(restored) == frozen(uninterrupted)
    for seed in range(20, 24):
        for optimizer in (uninterrupted, restored):
            step(optimizer, maker, seed)
    assert frozen(restored) == frozen(uninterrupted)
    assert [entry["step"] for entry in restored.state] == [12, 12, 9]


@pytest.mark.parametrize("carry", [through_dict, through_file])
def test_what_has_not_stepped_yet_stays_without_state(carry: Any, tmp_path: Path) -> None:
    source, target = make(MAKERS["float32"]), make(MAKERS["float32"])
    carry(source, target, tmp_path)
    assert target.state == [{}, {}, {}]
    step(source, MAKERS["float32"], 5, 0, 2)
    step(target, MAKERS["float32"], 5)
    carry(source, target, tmp_path)
    assert [sorted(entry) for entry in target.state] == [[], ["exp_avg", "exp_avg_sq", "step"], []]


@pytest.mark.parametrize("carry", [through_dict, through_file])
def test_amsgrad_may_come_and_go_between_the_steps(carry: Any, tmp_path: Path) -> None:
    maker = MAKERS["float32"]
    source, target = make(maker), make(maker)
    for amsgrad, skipped in ((False, ()), (True, (1,)), (False, ()), (True, (0, 2))):
        for optimizer in (source, target):
            for group in optimizer.param_groups:
                group["amsgrad"] = amsgrad
            step(optimizer, maker, 5, *skipped)
        carry(source, target, tmp_path)
        assert frozen(target) == frozen(source)


def test_a_state_dict_is_a_copy_both_ways() -> None:
    optimizer = make(MAKERS["float32"])
    step(optimizer, MAKERS["float32"], 5)
    saved = optimizer.state_dict()
    before = frozen(optimizer)
    for entry in saved["state"].values():
        entry["exp_avg"][...] = 7
    saved["param_groups"][0]["lr"] = 7.0
    assert frozen(optimizer) == before
    optimizer.load_state_dict(saved)
    loaded = frozen(optimizer)
    saved["state"][0]["exp_avg"][...] = 8
    assert frozen(optimizer) == loaded


def test_loading_keeps_an_lr_function_and_saving_leaves_it_out(tmp_path: Path) -> None:
    def rate(t: int) -> float:
        return 0.1 / t

    source, target = make(MAKERS["float32"], lr=rate), make(MAKERS["float32"], lr=rate)
    for seed in range(6):
        step(source, MAKERS["float32"], seed)
    assert source.state_dict()["param_groups"][0]["lr"] is None
    for carry in (through_dict, through_file):
        carry(source, target, tmp_path)
        assert [group["lr"] for group in target.param_groups] == [rate, 0.3]
    number = make(MAKERS["float32"])
    number.load_state_dict(source.state_dict())
    assert number.param_groups[0]["lr"] == 0.1


def test_a_state_of_the_same_parameters_in_another_order_is_a_value_error() -> None:
    one, two = np.ones(4), np.ones(4)
    source, target = radam.RAdam({"a": one, "b": two}), radam.RAdam({"b": two, "a": one})
    source.step(grads=[np.ones(4), np.ones(4)])
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['param_names'\] is \('a', 'b'\), but .* \('b', 'a'\)"):
        target.load_state_dict(source.state_dict())
    assert target.state == [{}, {}]


def other_convention() -> radam.RAdam:
    return radam.RAdam([np.ones(4)], convention="author")


@pytest.mark.parametrize(
    ("make_other", "key"), [(lambda: radam.Adam([np.ones(4)]), "optimizer"), (other_convention, "convention")]
)
def test_a_state_of_an_optimizer_that_steps_otherwise_is_a_value_error(
    make_other: Any, key: str, tmp_path: Path
) -> None:
    source, target = make_other(), radam.RAdam([np.ones(4)])
    source.step(grads=[np.ones(4)])
    source.save(tmp_path / "state")
    for load in (lambda: target.load_state_dict(source.state_dict()), lambda: target.load(tmp_path / "state")):
        with pytest.raises(ValueError, match=f"^{key}: the state dict is of"):
            load()
    assert target.state == [{}]
    make_other().load(tmp_path / "state")


def test_conventions_that_differ_in_name_alone_share_their_states() -> None:
    source, target = radam.RAdam([np.ones(4)], convention="torch"), radam.RAdam([np.ones(4)], convention="lucid")
    source.step(grads=[np.ones(4)])
    target.load_state_dict(source.state_dict())
    assert target.state[0]["step"] == 1


def test_a_state_from_before_an_entry_of_the_user_s_own_loads() -> None:
    source, target = radam.RAdam([np.ones(4)]), radam.RAdam([np.ones(4)])
    target.param_groups[0]["initial_lr"] = 0.5
    target.load_state_dict(source.state_dict())
    assert target.param_groups[0]["initial_lr"] == 0.5


def test_loading_keeps_the_parameters_and_their_names() -> None:
    source, target = make(MAKERS["float32"]), make(MAKERS["float32"], seed=2)
    params, values = [p for g in target.param_groups for p in g["params"]], frozen(target)["params"]
    target.load_state_dict(source.state_dict())
    assert all(a is b for a, b in zip(params, [p for g in target.param_groups for p in g["params"]]))
    assert frozen(target)["params"] == values
    assert target.param_groups[1]["param_names"] == ["w"]


def test_entries_that_a_user_put_into_a_group_are_saved_too(tmp_path: Path) -> None:
    source, target = make(MAKERS["float32"]), make(MAKERS["float32"])
    source.param_groups[0].update(initial_lr=np.float32(0.5), label="body", bounds=[1, (2, 3)], flag=True, nothing=None)
    through_file(source, target, tmp_path)
    found = target.param_groups[0]
    assert (found["initial_lr"], found["label"], found["flag"], found["nothing"]) == (0.5, "body", True, None)
    source.param_groups[0]["label"] = object()
    with pytest.raises(TypeError, match="'label' is a object"):
        source.state_dict()


# ---- states that do not fit


def stepped(seed: int = 1) -> radam.RAdam:
    optimizer = make(MAKERS["float32"], seed=seed, amsgrad=True)
    step(optimizer, MAKERS["float32"], 5)
    step(optimizer, MAKERS["float32"], 6, 1)
    return optimizer


def without(*path: Any) -> Any:
    def change(saved: Any) -> None:
        for key in path[:-1]:
            saved = saved[key]
        del saved[path[-1]]

    return change


def having(value: Any, *path: Any) -> Any:
    def change(saved: Any) -> None:
        for key in path[:-1]:
            saved = saved[key]
        saved[path[-1]] = value(saved.get(path[-1])) if callable(value) else value

    return change


GROUP_KEYS = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "maximize", "amsgrad", "params")
STATE_KEYS = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
MALFORMED: dict[str, tuple[Any, str]] = {
    **{f"no {key}": (without(key), f"no '{key}'") for key in ("version", "state", "param_groups")},
    **{
        f"no {key} in a group": (without("param_groups", 1, key), rf"param_groups\[1\] has no '{key}'")
        for key in GROUP_KEYS
    },
    **{f"no {key} in a state": (without("state", 1, key), rf"state\[1\] has no '{key}'") for key in STATE_KEYS},
    **{
        f"step {s!r}": (having(s, "state", 1, "step"), r"state\[1\]\['step'\]")
        for s in (-1, 0, 2**62 + 1, 2**70, 1.0, "1", None, True, float("nan"), [1])
    },
    **{f"version {v!r}": (having(v, "version"), "version") for v in (0, 3, "1", None, True)},
    **{
        f"shape of {key}": (having(lambda a: a[:-1], "state", 0, key), rf"state\[0\]\['{key}'\] has shape")
        for key in STATE_KEYS[1:]
    },
    **{
        f"transposed {key}": (having(lambda a: a.T, "state", 0, key), rf"state\[0\]\['{key}'\] has shape")
        for key in STATE_KEYS[1:]
    },
    **{
        f"dtype of {key}": (
            having(lambda a: a.astype(np.float64), "state", 0, key),
            rf"state\[0\]\['{key}'\] has dtype float64",
        )
        for key in STATE_KEYS[1:]
    },
    "a moment of None": (having(None, "state", 0, "exp_avg"), r"state\[0\]\['exp_avg'\]"),
    "a moment of text": (having("x", "state", 0, "exp_avg"), r"state\[0\]\['exp_avg'\]"),
    "a ragged moment": (having([[1.0], [1.0, 2.0]], "state", 0, "exp_avg"), r"state\[0\]\['exp_avg'\]"),
    "a list for a state": (having([1], "state", 0), r"state\[0\] must be a dict"),
    "names of a number": (having(5, "param_groups", 1, "param_names"), r"param_groups\[1\]\['param_names'\] is 5"),
    "a huge lr": (having(10**400, "param_groups", 0, "lr"), r"param_groups\[0\]: lr must be a finite number"),
    "a flag of text": (having("false", "param_groups", 0, "maximize"), "maximize must be True or False, got 'false'"),
    "a dict in a group": (
        having({}, "param_groups", 0, "note"),
        r"param_groups\[0\]: the group entry 'note' is a dict",
    ),
    "an average below zero": (
        having(lambda a: -a - 1, "state", 0, "exp_avg_sq"),
        r"state\[0\]\['exp_avg_sq'\] holds a neg",
    ),
    "no optimizer": (without("optimizer"), "no 'optimizer'"),
    "no convention": (without("convention"), "no 'convention'"),
    "an unknown moment": (having(1, "state", 0, "exp_inf"), r"state\[0\] has 'exp_inf'"),
    "a state of no parameter": (having({}, "state", 3), r"state\[3\]"),
    "a state of a text": (having({}, "state", "0"), r"state\['0'\]"),
    "a group too few": (having(lambda g: g[:1], "param_groups"), "param_groups: .* 2 groups"),
    "a group too many": (having(lambda g: [*g, g[0]], "param_groups"), "param_groups: .* 2 groups"),
    "groups of a number": (having(3, "param_groups"), "param_groups"),
    "a state of a list": (having([], "state"), "state: must be a dict"),
    "a list for a group": (lambda s: s["param_groups"].__setitem__(0, [1]), r"param_groups\[0\] must be a dict"),
    "a parameter too few": (
        lambda s: s["param_groups"][0].update(params=[0]),
        r"param_groups\[0\]\['params'\] must list 2",
    ),
    "a parameter too many": (
        lambda s: s["param_groups"][0].update(params=[0, 1, 2]),
        r"param_groups\[0\]\['params'\] must list 2",
    ),
    "a parameter twice": (
        lambda s: s["param_groups"][0].update(params=[0, 0]),
        r"param_groups\[0\]\['params'\] holds 0",
    ),
    "a parameter of text": (
        lambda s: s["param_groups"][0].update(params=["a", "b"]),
        r"param_groups\[0\]\['params'\] holds 'a'",
    ),
    "a parameter of a list": (
        lambda s: s["param_groups"][0].update(params=[[0], [1]]),
        r"param_groups\[0\]\['params'\] holds \[0\]",
    ),
    **{
        f"{key} of {value!r}": (
            lambda s, key=key, value=value: s["param_groups"][1].update({key: value}),
            rf"param_groups\[1\].*{key}",
        )
        for key, value in (
            ("lr", -1.0),
            ("lr", float("nan")),
            ("lr", "fast"),
            ("betas", (0.9, 1.0)),
            ("betas", 0.9),
            ("eps", -1.0),
            ("eps", None),
            ("weight_decay", -1.0),
            ("weight_decay", "x"),
        )
    },
}


@pytest.mark.parametrize(("change", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_state_that_does_not_fit_is_a_value_error_that_names_the_key(change: Any, words: str) -> None:
    saved, optimizer = stepped(seed=2).state_dict(), stepped()
    change(saved)
    before, groups = frozen(optimizer), [dict(group) for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(saved)
    assert frozen(optimizer) == before
    assert [{k: v for k, v in g.items() if k != "params"} for g in groups] == [
        {k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups
    ]
    step(optimizer, MAKERS["float32"], 7)


@pytest.mark.parametrize("saved", [None, [], 3, "state"], ids=repr)
def test_what_is_no_dict_is_no_state(saved: Any) -> None:
    with pytest.raises(ValueError, match="a state dict must be a dict"):
        stepped().load_state_dict(saved)


def test_a_decay_that_the_convention_has_not_does_not_come_in_by_a_state() -> None:
    source = make(MAKERS["float32"], weight_decay=0.1, decoupled_weight_decay=True)
    target = make(MAKERS["float32"], convention="paddle")
    with pytest.raises(ValueError, match=r"param_groups\[0\].*no decoupled weight decay"):
        target.load_state_dict(source.state_dict())


def test_step_counts_as_numpy_integers_are_taken() -> None:
    saved, optimizer = stepped().state_dict(), stepped()
    saved["state"][0]["step"] = np.int64(41)
    optimizer.load_state_dict(saved)
    assert optimizer.state[0]["step"] == 41
    assert type(optimizer.state_dict()["state"][0]["step"]) is int


# ---- copies


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kind", [radam.RAdam, radam.Adam])
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, *(lambda o, p=p: pickle.loads(pickle.dumps(o, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1))],
    ids=["deepcopy", *(f"pickle {p}" for p in range(2, pickle.HIGHEST_PROTOCOL + 1))],
)
def test_a_copy_goes_on_with_the_same_bits_on_its_own_arrays(duplicate: Any, kind: Any, amsgrad: bool) -> None:
    shapes = [(6, 5), (7,), (4, 3)]
    first, second, third = arrays(1, *shapes)
    optimizer = kind(
        [{"params": {"a": first, "b": second}}, {"params": [("c", np.asfortranarray(third))], "lr": 0.3}],
        lr=0.1,
        amsgrad=amsgrad,
    )
    handle = optimizer.register_step_pre_hook(lambda *_: None)
    for seed in range(8):
        optimizer.step(grads=arrays(seed, *shapes))
    twin = duplicate(optimizer)
    handle.remove()
    assert type(twin) is kind
    assert repr(twin) == repr(optimizer)
    assert twin.defaults == optimizer.defaults
    assert frozen(twin) == frozen(optimizer)
    before = frozen(optimizer)
    twin.step(grads=arrays(30, *shapes))
    assert frozen(optimizer) == before
    optimizer.step(grads=arrays(30, *shapes))
    assert frozen(twin) == frozen(optimizer)
    with twin.register_step_post_hook(lambda *_: None):
        twin.add_param_group({"params": [np.ones(2, np.float32)]})
