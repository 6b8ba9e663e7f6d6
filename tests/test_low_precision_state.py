"""States of few bits are saved exactly, go on with the same bits, and load into optimizers that keep other ones."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import radam
from precisions import BFLOAT16, SHAPES, WAYS, grads_of, optimizer_of, same_nan, state_bits
from radam.precision import decoded, encoded


def params_of(optimizer: radam.RAdam) -> list[np.ndarray]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def stepped(way: str, steps: int = 7, **keywords: Any) -> radam.RAdam:
    optimizer = optimizer_of(way, **keywords)
    for seed in range(steps):
        optimizer.step(grads=grads_of(optimizer, seed))
    return optimizer


def put(target: radam.RAdam, source: radam.RAdam) -> None:
    for ours, theirs in zip(params_of(target), params_of(source)):
        ours[...] = theirs


def through_dict(source: radam.RAdam, target: radam.RAdam, folder: Path) -> None:
    target.load_state_dict(source.state_dict())


def through_file(source: radam.RAdam, target: radam.RAdam, folder: Path) -> None:
    source.save(folder / "state.safetensors")
    target.load(folder / "state.safetensors")


def through_pickled_dict(source: radam.RAdam, target: radam.RAdam, folder: Path) -> None:
    target.load_state_dict(pickle.loads(pickle.dumps(source.state_dict())))


carries = pytest.mark.parametrize("carry", [through_dict, through_file, through_pickled_dict])


@carries
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_restored_optimizer_goes_on_with_the_same_bits(way: str, amsgrad: bool, carry: Any, tmp_path: Path) -> None:
    uninterrupted = stepped(way, amsgrad=amsgrad)
    restored = optimizer_of(way, seed=2)
    put(restored, uninterrupted)
    carry(uninterrupted, restored, tmp_path)
    assert state_bits(restored) == state_bits(uninterrupted)
    for seed in range(20, 24):
        for optimizer in (uninterrupted, restored):
            optimizer.step(grads=grads_of(optimizer, seed))
    assert state_bits(restored) == state_bits(uninterrupted)
    assert [[a.strides for a in e.values() if hasattr(a, "strides")] for e in restored.state] == [
        [a.strides for a in e.values() if hasattr(a, "strides")] for e in uninterrupted.state
    ]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
@pytest.mark.parametrize("way", WAYS)
def test_a_copied_optimizer_goes_on_by_itself_with_the_same_bits(way: str, duplicate: Any) -> None:
    optimizer = stepped(way)
    twin = duplicate(optimizer)
    assert twin.precision == optimizer.precision
    assert repr(twin) == repr(optimizer)
    before = state_bits(optimizer)
    twin.step(grads=grads_of(twin, 30))
    assert state_bits(optimizer) == before
    optimizer.step(grads=grads_of(optimizer, 30))
    assert state_bits(twin) == state_bits(optimizer)


def test_the_seed_comes_with_the_state_and_the_other_options_stay() -> None:
    source = stepped("stochastic")
    target = optimizer_of("stochastic", seed=1, **{"state_dtype": "bfloat16"})
    target = radam.RAdam(
        [{"params": group["params"]} for group in target.param_groups], state_dtype="bfloat16", min_8bit_size=5, seed=99
    )
    saved = source.state_dict()
    assert saved["precision"] == {
        "master_weights": False,
        "stochastic_rounding": True,
        "state_dtype": "float32",
        "min_8bit_size": 4096,
        "seed": 7,
    }
    saved["param_groups"][1].pop("param_names")
    target.load_state_dict(saved)
    kept = target.precision
    assert (kept.seed, kept.state_dtype, kept.min_8bit_size, kept.stochastic_rounding) == (7, "bfloat16", 5, False)


def test_a_group_that_comes_later_is_kept_as_the_others_with_numbers_of_its_own() -> None:
    p = [np.ones(1000, BFLOAT16) for _ in range(2)]
    one = radam.RAdam(p[:1], lr=1e-3, stochastic_rounding=True, state_dtype="8bit", min_8bit_size=0)
    one.add_param_group({"params": p[1:]})
    q = [np.ones(1000, BFLOAT16) for _ in range(2)]
    two = radam.RAdam(q, lr=1e-3, stochastic_rounding=True, state_dtype="8bit", min_8bit_size=0)
    for optimizer in (one, two):
        optimizer.step(grads=[np.ones(1000, np.float32)] * 2)
    assert state_bits(one) == state_bits(two)
    assert p[0].tobytes() != p[1].tobytes()


# ---- from any way to any other


def value_of(entry: dict[str, Any], name: str, order: Any) -> np.ndarray:
    if name in entry:
        return np.asarray(entry[name]).astype(np.float32)
    return decoded(entry[f"{name}_code"], entry[f"{name}_scale"], order)


LOW = [way for way, (dtype, _) in WAYS.items() if dtype != "float64"]


@carries
@pytest.mark.parametrize("target_way", LOW)
@pytest.mark.parametrize("source_way", LOW)
def test_a_state_of_any_way_loads_into_any_other(source_way: str, target_way: str, carry: Any, tmp_path: Path) -> None:
    source, target = stepped(source_way), optimizer_of(target_way, seed=2)
    shapes = [p.shape for p in params_of(target)]
    target.step(grads=grads_of(target, 3))
    kinds = [
        {key: (value.dtype, value.shape, value.strides) for key, value in entry.items() if key != "step"}
        for entry in target.state
    ]
    carry(source, target, tmp_path)
    for i, (ours, theirs) in enumerate(zip(target.state, source.state)):
        assert ours["step"] == theirs["step"] == 7
        assert {
            key: (value.dtype, value.shape, value.strides) for key, value in ours.items() if key != "step"
        } == kinds[i]
        order = (1, 0) if i == len(SHAPES) else tuple(range(len(shapes[i])))
        for name in ("exp_avg", "exp_avg_sq"):
            saved = value_of(theirs, name, order)
            if name in ours:
                expected = saved.astype(ours[name].dtype)
                assert same_nan(ours[name]) == same_nan(expected)
            elif f"{name}_code" in theirs:
                assert np.array_equal(ours[f"{name}_code"], theirs[f"{name}_code"])
                assert np.array_equal(ours[f"{name}_scale"], theirs[f"{name}_scale"])
            else:
                codes, scales = encoded(saved, order, signed=name == "exp_avg")
                assert np.array_equal(ours[f"{name}_code"], codes)
                assert np.array_equal(ours[f"{name}_scale"], scales)
        for key in ("remainder", "master"):
            if key in ours:
                assert ours[key].tobytes() == theirs.get(key, np.zeros_like(ours[key])).tobytes()
    target.step(grads=grads_of(target, 4))


def test_a_master_that_was_not_saved_begins_as_the_parameter() -> None:
    for dtype in (BFLOAT16, np.float16):
        start = np.linspace(-1, 1, 300).astype(dtype)
        plain = radam.RAdam([start.copy()], lr=1e-3)
        plain.step(grads=[np.ones(300, np.float32)])
        p = plain.param_groups[0]["params"][0].copy()
        kept = radam.RAdam([p], lr=1e-3, master_weights=True)
        kept.load_state_dict(plain.state_dict())
        whole = p.astype(np.float32)
        reference = radam.RAdam([whole], lr=1e-3)
        reference.load_state_dict(plain.state_dict())
        g = np.full(300, 0.3, np.float32)
        for optimizer in (kept, reference):
            optimizer.step(grads=[g])
        if dtype is BFLOAT16:
            upper = p.view(np.uint16).astype(np.int64) << 16
            weights = (upper + kept.state[0]["remainder"]).astype(np.uint32).view(np.float32)
        else:
            weights = kept.state[0]["master"]
        assert weights.tobytes() == whole.tobytes()


@carries
def test_blocks_are_cut_anew_where_memory_has_another_order(carry: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    start = rng.standard_normal((70, 30)).astype(np.float32)
    options: dict[str, Any] = {"lr": 0.01, "state_dtype": "8bit", "min_8bit_size": 0}
    layouts = {
        "c": (np.ascontiguousarray(start), (0, 1)),
        "fortran": (np.asfortranarray(start), (1, 0)),
    }
    for source_name, (p, order) in layouts.items():
        source = radam.RAdam([p.copy("K")], **options)
        for seed in range(3):
            source.step(grads=[np.random.default_rng(seed).standard_normal((70, 30)).astype(np.float32)])
        saved = source.state_dict()["state"][0]
        assert saved.get("block_order") == (None if source_name == "c" else (1, 0))
        values = {name: value_of(saved, name, order) for name in ("exp_avg", "exp_avg_sq")}
        for target_name, (q, target_order) in layouts.items():
            target = radam.RAdam([q.copy("K")], **options)
            carry(source, target, tmp_path)
            for name, value in values.items():
                ours = target.state[0]
                codes, scales = encoded(value, target_order, signed=name == "exp_avg")
                if source_name == target_name:
                    codes, scales = saved[f"{name}_code"], saved[f"{name}_scale"]
                assert np.array_equal(ours[f"{name}_code"], codes)
                assert np.array_equal(ours[f"{name}_scale"], scales)
                assert ours[f"{name}_code"].strides == tuple(s // 4 for s in q.strides)
            whole = radam.RAdam([q.copy("K")], lr=0.01)
            carry(source, whole, tmp_path)
            for name, value in values.items():
                assert np.array_equal(whole.state[0][name], value)


def test_amsgrad_that_comes_later_is_saved_as_the_other_moments_are(tmp_path: Path) -> None:
    for way in WAYS:
        source, target = stepped(way), optimizer_of(way)
        for group in source.param_groups:
            group["amsgrad"] = True
        put(target, source)
        through_file(source, target, tmp_path)
        for optimizer in (source, target):
            optimizer.step(grads=grads_of(optimizer, 50))
        assert state_bits(source) == state_bits(target), way


# ---- files


def test_a_file_holds_the_arrays_as_they_are(tmp_path: Path) -> None:
    optimizer = stepped("split, 8-bit")
    optimizer.save(tmp_path / "s")
    tensors = load_file(tmp_path / "s")
    keys = ("exp_avg_code", "exp_avg_scale", "exp_avg_sq_code", "exp_avg_sq_scale", "remainder")
    assert sorted(tensors) == sorted(f"{i}.{key}" for i in range(len(SHAPES) + 1) for key in keys)
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        assert same_nan(tensor) == same_nan(optimizer.state[int(index)][key])
    stepped("bfloat16 throughout").save(tmp_path / "b")
    with safe_open(tmp_path / "b", framework="numpy") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118


WITHOUT_ML_DTYPES = """
import sys
sys.modules["ml_dtypes"] = None
import numpy, radam
optimizer = radam.RAdam([numpy.zeros(200, numpy.float32)])
optimizer.load(sys.argv[1])
sys.stdout.buffer.write(optimizer.state[0]["exp_avg"].tobytes())
"""


def test_a_file_with_bfloat16_moments_loads_where_numpy_has_no_bfloat16(tmp_path: Path) -> None:
    source = radam.RAdam([np.zeros(200, np.float32)], state_dtype="bfloat16")
    source.step(grads=[np.random.default_rng(1).standard_normal(200).astype(np.float32)])
    source.save(tmp_path / "s")
    command = [sys.executable, "-c", WITHOUT_ML_DTYPES, str(tmp_path / "s")]
    loaded = subprocess.run(command, check=True, capture_output=True).stdout
    assert loaded == source.state[0]["exp_avg"].astype(np.float32).tobytes()


@pytest.mark.parametrize("orders", [{"0": [0]}, {"99": [0]}, [1], {"1": [1, 1]}, {"1": "ab"}, {"1": None}, {"x": []}])
def test_a_file_with_broken_block_orders_is_a_value_error(orders: Any, tmp_path: Path) -> None:
    optimizer = stepped("8-bit")
    optimizer.save(tmp_path / "s")
    with safe_open(tmp_path / "s", framework="numpy") as file:
        header = json.loads(file.metadata()["radam"])
    assert header["block_orders"] == {str(len(SHAPES)): [1, 0]}
    if orders != {"0": [0]}:
        save_file(
            load_file(tmp_path / "s"),
            tmp_path / "s",
            metadata={"radam": json.dumps({**header, "block_orders": orders})},
        )
        before = state_bits(optimizer)
        with pytest.raises(ValueError):
            optimizer.load(tmp_path / "s")
        assert state_bits(optimizer) == before


# ---- states that do not fit


def having(value: Any, key: str) -> Any:
    def change(saved: Any) -> None:
        entry = saved["state"][1]
        entry[key] = value(entry.get(key)) if callable(value) else value

    return change


def without(key: str) -> Any:
    return lambda saved: saved["state"][1].pop(key)


def filled(value: float) -> Any:
    return lambda scales: np.where(np.arange(len(scales)) == 1, np.float32(value), scales)


CODES = ("exp_avg_code", "exp_avg_sq_code")
SCALES = ("exp_avg_scale", "exp_avg_sq_scale")
MALFORMED: dict[str, tuple[Any, str]] = {
    **{
        f"no {key}": (without(key), rf"state\[1\] has (no|'exp_avg\w*' but no) '{key[:7]}") for key in (*CODES, *SCALES)
    },
    **{
        f"shape of {key}": (having(lambda a: a[:-1], key), rf"state\[1\]\['{key}'\].* has shape")
        for key in (*CODES, *SCALES, "remainder")
    },
    **{
        f"dtype of {key}": (having(lambda a: a.astype(np.float64), key), rf"state\[1\]\['{key}'\].* float64")
        for key in (*CODES, *SCALES, "remainder")
    },
    **{
        f"{key} of {value!r}": (having(value, key), rf"state\[1\]\['{key}'\]")
        for key in (*CODES, *SCALES, "remainder")
        for value in (None, "x", 3)
    },
    "signs the other way round": (having(lambda a: a.astype(np.uint8), "exp_avg_code"), "has dtype uint8"),
    **{
        f"a scale of {value}": (having(filled(value), key), rf"state\[1\]\['{key}'\] holds .* no scale")
        for key in SCALES
        for value in (-1.0, float("nan"), float("inf"))
    },
    "scales without codes": (
        lambda saved: saved["state"][1].update(exp_avg=saved["state"][1].pop("exp_avg_code").astype(np.float32)),
        r"state\[1\] has 'exp_avg_scale' but no 'exp_avg_code'",
    ),
    "a moment twice": (having(np.zeros((17, 23), np.float32), "exp_avg"), "has both 'exp_avg' and 'exp_avg_code'"),
    **{
        f"blocks in the order {order!r}": (having(order, "block_order"), r"state\[1\]\['block_order'\] must list")
        for order in ((0,), (1, 1), "ab", 3, (0, 1.0), (0, True), None, (-1, 0))
    },
    "an unknown entry": (having(1, "exp_avg_codes"), r"state\[1\] has 'exp_avg_codes'"),
    "no precision": (lambda saved: saved.pop("precision"), "no 'precision'"),
    "a precision of a number": (lambda saved: saved.update(precision=3), "precision: must be a dict"),
    "a precision without a seed": (lambda saved: saved["precision"].pop("seed"), "precision has no 'seed'"),
    **{
        f"a seed of {seed!r}": (lambda saved, seed=seed: saved["precision"].update(seed=seed), "seed")
        for seed in (-1, 2**64, "1", None, 0.5)
    },
    "a state dtype of another": (lambda saved: saved["precision"].update(state_dtype="4bit"), "state_dtype"),
}


@pytest.mark.parametrize("target_way", ["split, 8-bit", "split"])
@pytest.mark.parametrize(("change", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_state_that_does_not_fit_is_refused_whole_by_its_key(change: Any, words: str, target_way: str) -> None:
    optimizer, saved = stepped(target_way), stepped("split, 8-bit", seed=2).state_dict()
    change(saved)
    before = state_bits(optimizer), optimizer.precision
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(saved)
    assert (state_bits(optimizer), optimizer.precision) == before


def test_codes_of_a_float64_parameter_are_refused() -> None:
    source = radam.RAdam([np.ones(200, np.float32)], state_dtype="8bit", min_8bit_size=0)
    source.step(grads=[np.ones(200, np.float32)])
    target = radam.RAdam([np.ones(200)])
    with pytest.raises(ValueError, match=r"state\[0\] has 'exp_avg_code'; the moments here are float64"):
        target.load_state_dict(source.state_dict())
    assert target.state == [{}]


def test_a_state_of_version_1_loads_for_ever(tmp_path: Path) -> None:
    source = stepped("float32")
    saved = source.state_dict()
    del saved["precision"]
    saved["version"] = 1
    for way in ("float32", "8-bit", "bfloat16 moments"):
        target = radam.RAdam(
            [{**group, "params": [p.copy("K") for p in group["params"]]} for group in source.param_groups],
            **{**WAYS[way][1], "seed": 5},
        )
        target.load_state_dict(saved)
        assert target.precision.seed == 5
        assert [entry["step"] for entry in target.state] == [7] * (len(SHAPES) + 1)
        if way == "float32":
            assert state_bits(target) == state_bits(source)


# ---- wholly or not at all


def broken(column: str, index: int, value: Any) -> Any:
    def attempt(optimizer: radam.RAdam) -> None:
        held = optimizer._states[0]
        name, _, key = column.partition(".")
        entries = getattr(held, name)[key] if key else getattr(held, name)
        kept = entries[index]
        entries[index] = value(kept)
        try:
            optimizer.step(grads=grads_of(optimizer, 50))
        finally:
            entries[index] = kept

    return attempt


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy("K")
    copy.flags.writeable = False
    return copy


WRONG: dict[str, Any] = {
    "of another shape": lambda a: np.zeros((*a.shape[:-1], a.shape[-1] + 1), a.dtype),
    "of another dtype": lambda a: a.astype(np.float64),
    "of integers": lambda a: a.astype(np.int64),
    "that is read-only": read_only,
    "that is missing": lambda a: None,
    "that is text": lambda a: "x",
}
BROKEN = {
    f"{what} {how}": broken(what, 1, wrong)
    for what in ("moments.exp_avg", "moments.exp_avg_sq", "scales.exp_avg", "scales.exp_avg_sq", "masters")
    for how, wrong in WRONG.items()
    if (what, how) != ("masters", "that is missing")  # which a parameter may have or not
}


@pytest.mark.parametrize("attempt", BROKEN.values(), ids=BROKEN)
def test_a_step_with_a_broken_state_leaves_every_bit_as_it_was(attempt: Any) -> None:
    optimizer = stepped("split, 8-bit")
    before = state_bits(optimizer)
    with pytest.raises((TypeError, ValueError), match="parameter 1"):
        attempt(optimizer)
    assert state_bits(optimizer) == before
    optimizer.step(grads=grads_of(optimizer, 51))


OVERLAPPING = {
    "the scales of both moments": lambda held: held.scales["exp_avg_sq"].__setitem__(0, held.scales["exp_avg"][0]),
    "the codes of two parameters": lambda held: held.moments["exp_avg"].__setitem__(
        5, held.moments["exp_avg"][0][:128]
    ),
    "a remainder and its parameter": lambda held: held.masters.__setitem__(0, held._params[0].view(np.int16)),
}


@pytest.mark.parametrize("share", OVERLAPPING.values(), ids=OVERLAPPING)
def test_states_that_share_memory_are_refused(share: Any) -> None:
    optimizer = stepped("split, 8-bit")
    share(optimizer._states[0])
    before = state_bits(optimizer)
    with pytest.raises(ValueError):
        optimizer.step(grads=grads_of(optimizer, 50))
    assert state_bits(optimizer) == before


@pytest.mark.parametrize("way", WAYS)
def test_a_first_step_that_fails_leaves_no_state_behind(way: str) -> None:
    optimizer, fresh = optimizer_of(way), optimizer_of(way)
    with pytest.raises(ValueError):
        optimizer.step(grads=[*grads_of(optimizer, 1)[:-1], np.ones(3, np.float32)])
    assert optimizer.state == [{}] * (len(SHAPES) + 1)
    held = optimizer._states[0]
    assert all(entry is None for entry in (*held.masters, *held.moments["exp_avg"], *held.scales["exp_avg"]))
    for each in (optimizer, fresh):
        each.step(grads=grads_of(each, 1))
    assert state_bits(optimizer) == state_bits(fresh)


@pytest.mark.parametrize("way", WAYS)
def test_a_skipped_step_changes_nothing_and_draws_the_same_bits_later(way: str) -> None:
    optimizer, other = (optimizer_of(way, nonfinite="skip") for _ in range(2))
    for seed in range(4):
        for each in (optimizer, other):
            each.step(grads=grads_of(each, seed))
        bad = grads_of(optimizer, 60)
        bad[0][7] = np.inf
        optimizer.step(grads=bad)
    assert optimizer.skipped_steps == 4
    assert state_bits(optimizer) == state_bits(other)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_keeps_8_bit_moments_of_a_parameter_in_an_order_of_its_own(protocol: int) -> None:
    def squares(optimizer: radam.RAdam) -> Any:
        plain = radam.RAdam([np.zeros(p.shape, np.float32)])
        plain.load_state_dict(optimizer.state_dict())
        return plain.state[0]["exp_avg_sq"]

    p = np.zeros((16, 64, 24), np.float32).transpose(2, 0, 1)  # neither C nor Fortran order
    sizes = (10.0 ** np.linspace(-4, 0, 16)).astype(np.float32).reshape(1, -1, 1)
    rng = np.random.default_rng(0)
    optimizer = radam.RAdam([p], lr=0.0, state_dtype="8bit")
    for _ in range(20):
        optimizer.step(grads=[(rng.standard_normal(p.shape) * sizes).astype(np.float32)])
    ratio = squares(pickle.loads(pickle.dumps(optimizer, protocol))) / squares(optimizer)
    assert ratio.min() > 0.8
    assert ratio.max() < 1.25
