"""Sixteen-bit parameters train as float32 ones do: whole weights behind them, or rounding that is right on average."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import radam
from precisions import BFLOAT16, DTYPES, WAYS, grads_of, joined, optimizer_of, state_bits, upper_half
from radam import _core

MOVING = {
    "master weights": {"master_weights": True},
    "stochastic rounding": {"stochastic_rounding": True},
    "master weights and 8-bit moments": {"master_weights": True, "state_dtype": "8bit", "min_8bit_size": 0},
    "stochastic rounding and bfloat16 moments": {"stochastic_rounding": True, "state_dtype": "bfloat16"},
}


def after_300_steps(dtype: Any, **options: Any) -> np.ndarray:
    weights = np.ones(4096, dtype)
    optimizer = radam.RAdam([weights], lr=1e-3, **options)
    for _ in range(300):
        optimizer.step(grads=[np.ones(4096, dtype)])
    return weights.astype(np.float64)


@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}, {"state_dtype": "8bit"}], ids=str)
def test_a_bfloat16_weight_of_one_stays_where_it_is_without_help(options: dict[str, Any]) -> None:
    assert (after_300_steps(BFLOAT16, **options) == 1).all()


@pytest.mark.parametrize("options", MOVING.values(), ids=MOVING)
def test_a_bfloat16_weight_of_one_moves_as_far_as_a_float32_one_with_help(options: dict[str, Any]) -> None:
    whole = after_300_steps(np.float32)
    moved = 1 - whole[0]
    assert moved > 0.05
    # Of the mean over 4096 weights, rounding at random leaves a part in a hundred.
    assert abs(after_300_steps(BFLOAT16, **options).mean() - whole[0]) < 0.02 * moved


# ---- master weights


SPECIAL = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-40, -1e-45, 0.0, -0.0], np.float32)
DECAYS = {
    "no decay": {},
    "coupled decay": {"weight_decay": 0.1},
    "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "amsgrad": {"amsgrad": True},
}


def weights_of_any_kind(rng: np.random.Generator, n: int) -> np.ndarray:
    """Bfloat16 numbers with every kind among them."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = rng.standard_normal(n).astype(BFLOAT16)
        x[: n // 2] = rng.integers(0, 2**16, n // 2).astype(np.uint16).view(BFLOAT16)
        x[-len(SPECIAL) :] = SPECIAL.astype(BFLOAT16)
    return x


def gradients_of_any_kind(rng: np.random.Generator, n: int, dtype: str) -> np.ndarray:
    """Gradients of all magnitudes; a special one here and there, so that others live on."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        exponents = rng.uniform(-42, 4 if dtype == "float16" else 20, n) * rng.integers(0, 2, n)
        g = (rng.standard_normal(n) * 10.0**exponents).astype(np.float32)
        g[rng.integers(0, n, n // 100)] = rng.choice(SPECIAL, n // 100)
        return g.astype(DTYPES[dtype])


@pytest.mark.parametrize("grad", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("options", DECAYS.values(), ids=DECAYS)
def test_a_split_weight_follows_the_float32_trajectory_bit_for_bit(
    grad: str, options: dict[str, Any], every_isa: str
) -> None:
    rng = np.random.default_rng(3)
    n = 3001
    split = weights_of_any_kind(rng, n)
    whole = split.astype(np.float32)
    ours, theirs = (
        radam.RAdam([p], lr=0.01, **options, **more) for p, more in ((split, {"master_weights": True}), (whole, {}))
    )
    for t in range(1, 12):  # from the 6th on rectified
        g = gradients_of_any_kind(rng, n, grad)
        ours.step(grads=[g])
        theirs.step(grads=[g])
        entry, expected = ours.state[0], theirs.state[0]
        weights = joined(split, entry["remainder"])
        number = ~np.isnan(whole)
        assert np.array_equal(weights.view(np.uint32)[number], whole.view(np.uint32)[number]), t
        assert np.array_equal(split.view(np.uint16), upper_half(whole)), t
        assert not entry["remainder"][~number].any()
        for key in ("exp_avg", "exp_avg_sq"):
            assert np.array_equal(entry[key], expected[key], equal_nan=True)
    assert number.sum() > n // 8  # the rest has met a NaN
    assert np.count_nonzero(entry["remainder"]) > n // 4


@pytest.mark.parametrize("start", [1.0, 1.0078125, -1.0, -1.0078125])
def test_a_weight_halfway_between_two_parameters_goes_away_from_zero(start: float) -> None:
    p = np.full(3, start, BFLOAT16)
    optimizer = radam.RAdam([p], lr=2.0**-8, betas=(0.0, 0.999), master_weights=True)
    optimizer.step(grads=[np.full(3, -np.sign(start), np.float32)])
    assert (p.astype(np.float64) == start + np.sign(start) * 2.0**-7).all()
    assert (optimizer.state[0]["remainder"] == -(2**15)).all()


def test_a_remainder_is_two_bytes_and_a_master_four() -> None:
    for dtype, key, size in ((BFLOAT16, "remainder", 2), (np.float16, "master", 4)):
        optimizer = radam.RAdam([np.ones((3, 4), dtype).T], master_weights=True)
        optimizer.step(grads=[np.ones((4, 3), dtype)])
        kept = optimizer.state[0][key]
        assert (kept.itemsize, kept.shape, kept.strides) == (size, (4, 3), (size, 4 * size))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_wide_parameter_needs_no_master_and_steps_as_ever(dtype: str) -> None:
    plain, asked = (np.linspace(-1, 1, 50).astype(dtype) for _ in range(2))
    optimizers = [radam.RAdam([plain]), radam.RAdam([asked], master_weights=True)]
    for optimizer in optimizers:
        optimizer.step(grads=[np.ones(50, dtype)])
    assert plain.tobytes() == asked.tobytes()
    assert sorted(optimizers[1].state[0]) == ["exp_avg", "exp_avg_sq", "step"]


@pytest.mark.parametrize("grad", ["float32", "float16"])
@pytest.mark.parametrize("options", DECAYS.values(), ids=DECAYS)
def test_a_float16_master_follows_the_float32_trajectory_bit_for_bit(
    grad: str, options: dict[str, Any], every_isa: str
) -> None:
    rng = np.random.default_rng(4)
    half = rng.standard_normal(1001).astype(np.float16)
    whole = half.astype(np.float32)
    ours, theirs = (
        radam.RAdam([p], lr=1e-4, **options, **more) for p, more in ((half, {"master_weights": True}), (whole, {}))
    )
    for t in range(1, 12):
        g = rng.standard_normal(1001).astype(DTYPES[grad])
        ours.step(grads=[g])
        theirs.step(grads=[g])
        assert ours.state[0]["master"].tobytes() == whole.tobytes(), t
        assert half.tobytes() == whole.astype(np.float16).tobytes()


def test_a_float16_master_is_taken_anew_from_the_weights_that_somebody_loaded() -> None:
    rng = np.random.default_rng(5)
    half = rng.standard_normal(1000).astype(np.float16)
    whole = half.astype(np.float32)
    optimizers = [radam.RAdam([half], lr=1e-4, master_weights=True), radam.RAdam([whole], lr=1e-4)]
    for t in range(8):
        if t == 4:
            loaded = rng.standard_normal(500).astype(np.float16)
            half[::2], whole[::2] = loaded, loaded  # the other half goes on from its masters
        g = rng.standard_normal(1000).astype(np.float32)
        for optimizer in optimizers:
            optimizer.step(grads=[g])
    assert optimizers[0].state[0]["master"].tobytes() == whole.tobytes()


# ---- rounding at random


def rounded_once(x: np.ndarray, dtype: Any, **options: Any) -> np.ndarray:
    """Return float32 numbers as one step rounds them: a parameter of zeros moves to each of them exactly."""
    p = np.zeros(x.shape, dtype)
    optimizer = radam.RAdam([p], lr=1.0, betas=(0.0, 0.999), stochastic_rounding=True, **options)
    optimizer.step(grads=[-x])
    return p


FRACTIONS = [0.5, 0.25, 0.9, 1 / 3, 2.0**-7]
LOWER = {
    "bfloat16": [1.0, -1.0, 3e38, 1e-30, 2.0**-126],
    "float16": [1.0, -1.0, 60000.0, 2.0**-14, 2.0**-15, 3 * 2.0**-24],
}


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize(("dtype", "lower"), [(dtype, x) for dtype, xs in LOWER.items() for x in xs])
def test_rounding_at_random_has_no_bias(dtype: str, lower: float, fraction: float, every_isa: str) -> None:
    kind = DTYPES[dtype]
    low = np.array([lower]).astype(kind)
    high = (low.view(np.uint16) + np.uint16(1)).view(kind)  # the next one away from zero
    a, b = float(low[0]), float(high[0])
    n = 40_000
    x = np.full(n, a + fraction * (b - a)).astype(np.float32)
    exact = (float(x[0]) - a) / (b - a)
    p = rounded_once(x, kind).astype(np.float64)
    assert set(p) <= {a, b}
    # Five standard deviations of the share of n that goes up.
    assert abs((p == b).mean() - exact) < 5 * np.sqrt(exact * (1 - exact) / n)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_at_random_keeps_what_needs_no_rounding(dtype: str, every_isa: str) -> None:
    numbers = np.arange(2**16).astype(np.uint16).view(DTYPES[dtype])
    with np.errstate(invalid="ignore"):
        wide = numbers.astype(np.float32)
    result = rounded_once(wide, DTYPES[dtype]).astype(np.float32)
    wide[abs(wide) < 2.0**-126] = 0  # as the moment of a gradient that small is
    assert np.array_equal(result, wide, equal_nan=True)


def test_a_number_between_the_last_float16_and_infinity_goes_to_either() -> None:
    p = rounded_once(np.full(10_000, 65520.0, np.float32), np.float16)
    assert set(p.astype(np.float64)) == {65504.0, np.inf}
    assert np.isinf(rounded_once(np.full(100, 65536.0, np.float32), np.float16)).all()


def test_neighbours_are_rounded_independently_of_each_other() -> None:
    n = 40_000
    up = rounded_once(np.full(n, 1.00390625, np.float32), BFLOAT16).astype(np.float64) > 1
    for distance in (1, 2, 3, 4, 7, 8, 16, 64, 128):
        both = (up[distance:] == up[:-distance]).mean()
        assert abs(both - 0.5) < 5 * 0.5 / np.sqrt(n - distance), distance


def test_random_bits_differ_in_every_tensor_step_and_seed() -> None:
    params = [np.ones(1000, BFLOAT16) for _ in range(3)]
    optimizer = radam.RAdam([{"params": params[:2]}, {"params": params[2:]}], lr=1e-3, stochastic_rounding=True)
    seen: list[bytes] = []
    for _ in range(2):
        for p in params:
            p[...] = 1
        optimizer.step(grads=[np.ones(1000, np.float32)] * 3)
        seen += [p.tobytes() for p in params]
    for seed in (0, 1, 2**32, 2**64 - 1):
        p = np.ones(1000, BFLOAT16)
        radam.RAdam([p], lr=1e-3, stochastic_rounding=True, seed=seed).step(grads=[np.ones(1000, np.float32)])
        seen.append(p.tobytes())
    assert seen[0] == seen[6]  # the same seed, tensor and step
    assert len(set(seen)) == len(seen) - 1


def test_what_comes_before_a_parameter_decides_its_bits_and_not_how_much() -> None:
    def second(size_of_first: int) -> bytes:
        params = [np.ones(size_of_first, BFLOAT16), np.ones(1000, BFLOAT16)]
        optimizer = radam.RAdam(params, lr=1e-3, stochastic_rounding=True)
        optimizer.step(
            grads=[None if size_of_first == 3 else np.ones(size_of_first, np.float32), np.ones(1000, BFLOAT16)]
        )
        return params[1].tobytes()

    assert second(1) == second(777) == second(3)


# ---- the same bits


def run(way: str, layout: Any = None) -> list[Any]:
    dtype, options = WAYS[way]
    rng = np.random.default_rng(8)
    shapes = [(70_001,), (13, 11, 7), (3, 45), (33_000,)]
    params = [rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes]
    params = params if layout is None else [layout(p) for p in params]
    optimizer = radam.RAdam(params, lr=0.01, amsgrad=True, weight_decay=0.01, **options)
    for _ in range(8):
        optimizer.step(grads=[rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes])
    return state_bits(optimizer)


@pytest.mark.parametrize("way", WAYS)
def test_instruction_sets_and_thread_counts_agree_on_every_way(way: str) -> None:
    _core.set_isa("portable")
    radam.set_num_threads(1)
    expected = run(way)
    for isa, threads in itertools.product(radam.isas(), (1, 2, 5)):
        _core.set_isa(isa)
        radam.set_num_threads(threads)
        assert run(way) == expected, (isa, threads)


LAYOUTS = {
    "fortran": lambda x: np.array(x, order="F"),
    "channels last": lambda x: np.ascontiguousarray(np.moveaxis(x, 0, -1)).transpose(x.ndim - 1, *range(x.ndim - 1)),
    "gaps": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "reversed": lambda x: np.array(x[..., ::-1])[..., ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("way", [way for way, (_, options) in WAYS.items() if options.get("state_dtype") != "8bit"])
def test_memory_layouts_agree_where_moments_are_not_coded(way: str, layout: Any, every_isa: str) -> None:
    assert run(way, layout) == run(way)


@pytest.mark.parametrize("way", WAYS)
def test_a_parameter_steps_the_same_alone_and_in_company(way: str) -> None:
    optimizer = optimizer_of(way)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    alone = np.array(params[0])
    single = radam.RAdam([alone], lr=0.01, **WAYS[way][1])
    for seed in range(7):
        grads = grads_of(optimizer, seed)
        optimizer.step(grads=grads)
        single.step(grads=grads[:1])
    assert state_bits(single) == [state_bits(optimizer)[0], state_bits(optimizer)[len(params)]]


@pytest.mark.parametrize("way", WAYS)
def test_an_lr_that_is_a_function_is_read_on_every_way(way: str) -> None:
    constant, function = optimizer_of(way), optimizer_of(way, lr=lambda t: 0.01)
    for seed in range(3):
        for optimizer in (constant, function):
            optimizer.step(grads=grads_of(optimizer, seed))
    assert state_bits(function) == state_bits(constant)


# ---- what may not be said


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "both ways at once": ({"master_weights": True, "stochastic_rounding": True}, ValueError, "choose one"),
    "another dtype": ({"state_dtype": "float16"}, ValueError, "state_dtype must be 'float32', 'bfloat16' or '8bit'"),
    "a dtype object": ({"state_dtype": np.float32}, ValueError, "state_dtype must be"),
    "a seed below zero": ({"seed": -1}, ValueError, "seed must be at least 0"),
    "a seed too large": ({"seed": 2**64}, ValueError, r"below 2\^64"),
    "a seed of a float": ({"seed": 1.0}, TypeError, "seed must be a whole number"),
    "a seed of a bool": ({"seed": True}, TypeError, "seed must be a whole number"),
    "a size below zero": ({"min_8bit_size": -1}, ValueError, "min_8bit_size"),
    "a size of None": ({"min_8bit_size": None}, TypeError, "min_8bit_size"),
    "a flag of text": ({"master_weights": "no"}, TypeError, "master_weights must be True or False"),
    "a flag of None": ({"stochastic_rounding": None}, TypeError, "stochastic_rounding must be"),
}


@pytest.mark.parametrize("kind", [radam.RAdam, radam.Adam])
@pytest.mark.parametrize(("options", "error", "words"), BAD.values(), ids=BAD)
def test_an_option_that_makes_no_sense_is_refused_at_construction(
    options: dict[str, Any], error: type[Exception], words: str, kind: Any
) -> None:
    with pytest.raises(error, match=words):
        kind([np.ones(3, np.float32)], **options)


def test_numpy_s_own_numbers_are_taken_for_options() -> None:
    optimizer = radam.RAdam(
        [np.ones(3, np.float32)], master_weights=np.True_, seed=np.uint64(2**64 - 1), min_8bit_size=np.int32(5)
    )
    assert (optimizer.precision.master_weights, optimizer.precision.seed) == (True, 2**64 - 1)


def test_bfloat16_moments_without_ml_dtypes_say_what_is_missing(monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        radam.RAdam([np.ones(3, np.float32)], state_dtype="bfloat16")
    radam.RAdam([np.ones(3, np.float64)], state_dtype="bfloat16")  # whose moments are float64 anyway


def test_the_repr_shows_the_options_that_are_not_the_default() -> None:
    plain = repr(radam.RAdam([np.ones(3, np.float32)]))
    assert "seed" not in plain
    assert "state_dtype" not in plain
    text = repr(radam.RAdam([np.ones(3, np.float32)], state_dtype="8bit", seed=5, max_grad_norm=1.5))
    assert [line for line in text.splitlines() if line in ("state_dtype: 8bit", "seed: 5", "max_grad_norm: 1.5")] == [
        "state_dtype: 8bit",
        "seed: 5",
        "max_grad_norm: 1.5",
    ]
