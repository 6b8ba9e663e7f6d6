"""Gradients are clipped in the pass that reads them: as torch clips them before a step, and without writing them."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import radam
from precisions import DTYPES, state_bits
from radam import _core

SHAPES = [(300,), (17, 23), (), (0,), (4097,), (128, 3)]


def arrays(seed: int, dtype: str, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape) * scale).astype(DTYPES[dtype]) for shape in SHAPES]


def exact_norm(*grads: np.ndarray) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for g in grads for x in g.ravel()))


def by_norm(grads: list[torch.Tensor], most: float) -> None:
    torch.nn.utils.clip_grad_norm_([with_grad(g) for g in grads], most)


def by_each_norm(grads: list[torch.Tensor], most: float) -> None:
    for g in grads:
        torch.nn.utils.clip_grad_norm_([with_grad(g)], most)


def by_value(grads: list[torch.Tensor], most: float) -> None:
    torch.nn.utils.clip_grad_value_([with_grad(g) for g in grads], most)


def with_grad(grad: torch.Tensor) -> torch.Tensor:
    tensor = torch.zeros_like(grad)
    tensor.grad = grad
    return tensor


WAYS: dict[str, Callable[[list[torch.Tensor], float], None]] = {
    "max_grad_norm": by_norm,
    "max_tensor_grad_norm": by_each_norm,
    "max_grad_value": by_value,
}


@pytest.mark.parametrize("keywords", [{}, {"weight_decay": 0.1}, {"maximize": True}, {"amsgrad": True}], ids=str)
@pytest.mark.parametrize("most", [0.0, 0.3, 5.0, 1e9, math.inf])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("way", WAYS)
def test_a_clipped_step_is_torch_s_clipping_and_then_a_step(
    way: str, dtype: str, most: float, keywords: dict[str, Any]
) -> None:
    ours, theirs = arrays(1, dtype), arrays(1, dtype)
    clipping = radam.RAdam(ours, lr=0.1, **{way: most}, **keywords)
    plain = radam.RAdam(theirs, lr=0.1, **keywords)
    for t in range(8):
        grads = arrays(10 + t, dtype)
        kept = [g.copy() for g in grads]
        clipping.step(grads=grads)
        assert [g.tobytes() for g in grads] == [g.tobytes() for g in kept]
        tensors = [torch.from_numpy(g) for g in kept]
        WAYS[way](tensors, most)
        plain.step(grads=kept)
        tolerance = 1e-12 if dtype == "float64" else 1e-5
        for a, b in zip(ours, theirs):
            assert np.allclose(a, b, rtol=tolerance, atol=tolerance), t
        for a, b in zip(clipping.state, plain.state):
            for key in ("exp_avg", "exp_avg_sq"):
                largest = abs(b[key]).max(initial=0)  # what cancels keeps the error of its parts
                assert np.allclose(a[key], b[key], rtol=10 * tolerance, atol=10 * tolerance * largest)
    moved = any((a != b).any() for a, b in zip(ours, arrays(1, dtype)))
    assert moved == (most > 0 or "weight_decay" in keywords)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
def test_grad_norm_is_the_norm_of_all_gradients_before_clipping(dtype: str, scale: float, every_isa: str) -> None:
    optimizer = radam.RAdam(arrays(1, dtype), max_grad_norm=1.0)
    assert optimizer.grad_norm is None
    for seed in (2, 3):
        grads = arrays(seed, dtype, scale)
        optimizer.step(grads=grads)
        assert isinstance(optimizer.grad_norm, float)
        assert optimizer.grad_norm == pytest.approx(exact_norm(*grads), rel=1e-13)
    optimizer.step(grads=[None, *grads[1:]])
    assert optimizer.grad_norm == pytest.approx(exact_norm(*grads[1:]), rel=1e-13)
    optimizer.step(grads=[None] * len(grads))
    assert optimizer.grad_norm == 0.0


def test_every_option_says_of_the_norm_what_it_knows() -> None:
    grads = arrays(2, "float32")
    for options, known in (
        ({}, None),
        ({"max_grad_value": 0.1}, None),
        ({"max_tensor_grad_norm": 0.1}, exact_norm(*grads)),
        ({"max_grad_norm": math.inf}, exact_norm(*grads)),
    ):
        optimizer = radam.RAdam(arrays(1, "float32"), **options)
        optimizer.step(grads=grads)
        assert optimizer.grad_norm == (None if known is None else pytest.approx(known, rel=1e-13)), options


def test_measuring_alone_and_what_is_short_enough_change_no_bit() -> None:
    results = []
    for options in ({}, {"max_grad_norm": math.inf}, {"max_grad_norm": 1e9}, {"max_tensor_grad_norm": 1e9}):
        optimizer = radam.RAdam(arrays(1, "float32"), lr=0.1, **options)
        for seed in range(8):
            optimizer.step(grads=arrays(seed, "float32"))
        results.append(state_bits(optimizer))
    assert results == [results[0]] * len(results)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_thread_counts_instruction_sets_and_layouts_agree_on_the_norm(dtype: str, way: str) -> None:
    rng = np.random.default_rng(6)
    shapes = [(100_003,), (130, 70), (5,), (40_000,)]
    start = [rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes]
    grads = [(rng.standard_normal(shape) * 10.0 ** rng.uniform(-4, 4, shape)).astype(DTYPES[dtype]) for shape in shapes]
    results = []
    for isa, threads, order in itertools.product(radam.isas(), (1, 2, 3), ("C", "F")):
        _core.set_isa(isa)
        radam.set_num_threads(threads)
        optimizer = radam.RAdam([p.copy() for p in start], lr=0.1, **{way: 1e-3})
        optimizer.step(grads=[np.array(g, order=order) for g in grads])
        results.append((optimizer.grad_norm, state_bits(optimizer)))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("way", ["max_grad_norm", "max_tensor_grad_norm", "max_grad_value"])
def test_a_gradient_that_is_not_finite_skips_or_raises_as_without_clipping(way: str, bad: float) -> None:
    grads = arrays(5, "float32")
    grads[4][4000] = bad
    for nonfinite in ("skip", "raise"):
        optimizer = radam.RAdam(arrays(1, "float32"), nonfinite=nonfinite, **{way: 1.0})
        optimizer.step(grads=arrays(3, "float32"))
        before = state_bits(optimizer)
        if nonfinite == "skip":
            optimizer.step(grads=grads)
            assert optimizer.skipped_steps == 1
        else:
            with pytest.raises(FloatingPointError):
                optimizer.step(grads=grads)
        assert state_bits(optimizer) == before
        norm = optimizer.grad_norm
        if way == "max_grad_value":
            assert norm is None
        else:
            assert norm is not None
            assert math.isnan(norm) == math.isnan(bad)
            assert not math.isfinite(norm)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_whose_squares_are_too_large_for_their_dtype_are_not_taken_for_infinite(dtype: str) -> None:
    grads = [np.full(10, 1e30, DTYPES[dtype])]
    p = np.zeros(10, DTYPES[dtype])
    optimizer = radam.RAdam([p], lr=1.0, betas=(0.0, 0.999), max_grad_norm=1.0, nonfinite="raise")
    optimizer.step(grads=grads)
    assert optimizer.grad_norm == pytest.approx(exact_norm(*grads), rel=1e-13)
    assert np.allclose(p.astype(float), -1 / math.sqrt(10), rtol=2.0**-8)


def test_a_gradient_that_is_not_finite_goes_through_the_norm_as_in_torch() -> None:
    for way in ("max_grad_norm", "max_tensor_grad_norm", "max_grad_value"):
        for bad in (np.inf, np.nan):
            p, q = np.zeros(5, np.float32), np.zeros(5, np.float32)
            grad = np.array([1, 2, bad, -3, 4], np.float32)
            radam.RAdam([p], lr=1.0, betas=(0.0, 0.9), **{way: 1.0}).step(grads=[grad])
            tensors = [torch.from_numpy(grad.copy())]
            WAYS[way](tensors, 1.0)
            radam.RAdam([q], lr=1.0, betas=(0.0, 0.9)).step(grads=[tensors[0].numpy()])
            assert np.array_equal(p, q, equal_nan=True), (way, bad)


def test_clipping_may_be_edited_between_steps_and_is_checked_then() -> None:
    p = np.zeros(4, np.float32)
    optimizer = radam.RAdam([p], lr=1.0, betas=(0.0, 0.9), max_grad_norm=1.0)
    optimizer.max_grad_norm = 4.0
    optimizer.step(grads=[np.full(4, 100, np.float32)])
    assert np.allclose(p, -2)
    before = state_bits(optimizer)
    for value in (-1.0, math.nan):
        optimizer.max_grad_norm = value
        with pytest.raises(ValueError, match="max_grad_norm must be a number, at least 0"):
            optimizer.step(grads=[np.ones(4, np.float32)])
    optimizer.max_grad_norm, optimizer.max_grad_value = 1.0, 1.0
    with pytest.raises(ValueError, match="max_grad_norm and max_grad_value are ways to clip gradients, choose one"):
        optimizer.step(grads=[np.ones(4, np.float32)])
    assert state_bits(optimizer) == before


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "two": ({"max_grad_norm": 1.0, "max_tensor_grad_norm": 1.0}, ValueError, "choose one"),
    "three": (dict.fromkeys(WAYS, 1.0), ValueError, "choose one"),
    **{f"{way} below zero": ({way: -0.1}, ValueError, f"{way} must be a number, at least 0") for way in WAYS},
    **{f"{way} NaN": ({way: math.nan}, ValueError, f"{way} must be a number, at least 0") for way in WAYS},
    **{f"{way} of text": ({way: "1"}, TypeError, f"{way} must be a number or None, got '1'") for way in WAYS},
    "a bool": ({"max_grad_norm": True}, TypeError, "max_grad_norm must be a number"),
    "a list": ({"max_grad_norm": [1.0]}, TypeError, "max_grad_norm must be a number"),
}


@pytest.mark.parametrize("kind", [radam.RAdam, radam.Adam])
@pytest.mark.parametrize(("options", "error", "words"), BAD.values(), ids=BAD)
def test_a_bad_option_is_refused_at_construction(
    options: dict[str, Any], error: type[Exception], words: str, kind: Any
) -> None:
    with pytest.raises(error, match=words):
        kind([np.ones(3, np.float32)], **options)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_a_copy_clips_too_and_knows_the_norm(duplicate: Any) -> None:
    optimizer = radam.RAdam(arrays(1, "float32"), max_grad_norm=0.5)
    optimizer.step(grads=arrays(2, "float32"))
    twin = duplicate(optimizer)
    assert twin.grad_norm == optimizer.grad_norm
    for each in (optimizer, twin):
        each.step(grads=arrays(3, "float32"))
    assert state_bits(twin) == state_bits(optimizer)
    assert twin.grad_norm == optimizer.grad_norm == pytest.approx(exact_norm(*arrays(3, "float32")), rel=1e-13)


def test_a_step_that_fails_before_the_norm_keeps_the_last_one() -> None:
    optimizer = radam.RAdam(arrays(1, "float32"), max_grad_norm=0.5)
    optimizer.step(grads=arrays(2, "float32"))
    norm, before = optimizer.grad_norm, state_bits(optimizer)
    with pytest.raises(ValueError, match="parameter 5"):
        optimizer.step(grads=[*arrays(3, "float32")[:-1], np.ones(3, np.float32)])
    assert optimizer.grad_norm == norm
    assert state_bits(optimizer) == before


def test_adam_clips_as_well() -> None:
    p = np.zeros(4, np.float32)
    optimizer = radam.Adam([p], lr=0.1, max_grad_norm=1.0)
    optimizer.step(grads=[np.full(4, 3, np.float32)])
    assert optimizer.grad_norm == 6.0
    assert np.allclose(optimizer.state[0]["exp_avg"], 0.1 * 0.5)


@pytest.mark.parametrize("option", ["max_grad_norm", "max_tensor_grad_norm"])
def test_no_limit_changes_nothing_where_the_norm_is_too_large_for_a_number(option: str) -> None:
    steps = []
    for limit in (None, np.inf):
        p = np.ones(2)
        radam.RAdam([p], lr=0.1, nonfinite="raise", **{option: limit}).step(grads=[np.full(2, 1e200)])
        steps.append(p)
    assert steps[0].tobytes() == steps[1].tobytes()
    assert np.isfinite(steps[0]).all()


@pytest.mark.parametrize("option", ["max_grad_norm", "max_grad_value", "state_dtype", "master_weights", "seed"])
def test_an_option_of_the_whole_optimizer_is_refused_in_a_group(option: str) -> None:
    with pytest.raises(ValueError, match=f"'{option}', which holds for a whole optimizer"):
        radam.RAdam([{"params": [np.zeros(3)], option: 1}])
