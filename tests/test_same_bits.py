"""The same bits on every instruction set, thread count, chunking, alignment and memory layout."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import radam
import reference as ref
from radam import _core

pairs = pytest.mark.parametrize(("param", "grad"), ref.PAIRS)
THREADS = (1, 2, 3, 5, 8)
SPECIAL = (
    0.0,
    -0.0,
    np.inf,
    -np.inf,
    np.nan,
    1.0,
    -1.0,
    2.0**-126,
    -(2.0**-126),
    2.0**-149,
    -(2.0**-149),
    2.0**-140,
    65504.0,
    3e38,
)


def anything(rng: np.random.Generator, n: int, dtype: str) -> Any:
    """Numbers of every kind: random bits, specials, subnormals, and ordinary ones, in one mixture."""
    np_dtype = ref.DTYPES[dtype]
    x = rng.integers(0, 256, n * np_dtype.itemsize, dtype=np.uint8).view(np_dtype)
    with np.errstate(over="ignore", under="ignore"):
        ordinary = rng.normal(size=n).astype(np_dtype)
        tiny = (rng.normal(size=n) * 2.0 ** (ref.FORMATS[dtype][1] - 2)).astype(np_dtype)
        special = rng.choice(np.array(SPECIAL), n).astype(np_dtype)
    return np.choose(rng.choice(4, n, p=[0.4, 0.4, 0.1, 0.1]), np.array([x, ordinary, tiny, special])).astype(np_dtype)


def buffers(seed: int, n: int, param: str, grad: str) -> ref.Buffers:
    rng = np.random.default_rng(seed)
    moment = "float64" if param == "float64" else "float32"
    return ref.Buffers(*(anything(rng, n, dtype) for dtype in (param, grad, moment, moment, moment)))


hypers = st.builds(
    lambda **kwargs: _core.Hyperparameters(beta1=0.9, **kwargs),
    lr=st.sampled_from([0.0, 1e-3, 1.0, 1e-310, 2.0**-140]),
    beta2=st.sampled_from([0.9, 0.999, 0.99999]),
    eps=st.sampled_from([0.0, 1e-8, 1e-12, 1e-30]),
    eps_root=st.sampled_from([0.0, 1e-6]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decoupled_weight_decay=st.booleans(),
    grad_scale=st.sampled_from([1.0, 0.3, 2.0**-16]),
    maximize=st.booleans(),
    amsgrad=st.booleans(),
    nesterov=st.booleans(),
    rectify=st.booleans(),
    warmup=st.sampled_from(["momentum", "moments_only"]),
    eps_on=st.sampled_from(["sqrt_v", "sqrt_v_hat"]),
)
a_step = st.sampled_from([1, 3, 9, 1000])
seeds = st.integers(0, 2**32 - 1)


def plainly(h: Any, t: int, before: ref.Buffers) -> ref.Buffers:
    """The result to compare with: the portable instruction set, one thread, whole contiguous arrays."""
    _core.set_isa("portable")
    radam.set_num_threads(1)
    after = before.copy()
    ref.step(h, t, after)
    return after


@pairs
@settings(max_examples=60)
@given(h=hypers, t=a_step, seed=seeds, n=st.integers(0, 300))
def test_instruction_sets_agree(param: str, grad: str, h: Any, t: int, seed: int, n: int) -> None:
    before = buffers(seed, n, param, grad)
    expected = plainly(h, t, before)
    for isa in radam.isas():
        _core.set_isa(isa)
        after = before.copy()
        ref.step(h, t, after)
        ref.same_bits(after, expected, isa)


@pairs
def test_instruction_sets_agree_on_many_numbers(param: str, grad: str) -> None:
    for seed, form in enumerate(
        ({}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True, "amsgrad": True})
    ):
        h = _core.Hyperparameters(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, **form)
        before = buffers(seed, 60_001, param, grad)
        expected = plainly(h, 50, before)
        for isa in radam.isas():
            _core.set_isa(isa)
            after = before.copy()
            ref.step(h, 50, after)
            ref.same_bits(after, expected, isa)


@pairs
@pytest.mark.parametrize("sizes", [(150_001,), (70_000, 1, 0, 63, 70_001), (3,) * 22_000], ids=["one", "few", "many"])
def test_thread_counts_agree(param: str, grad: str, sizes: tuple[int, ...], every_isa: str) -> None:
    h = _core.Hyperparameters(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, amsgrad=True)
    whole = buffers(1, sum(sizes), param, grad)
    ends = np.cumsum((0, *sizes))
    results = []
    for threads in THREADS:
        radam.set_num_threads(threads)
        after = whole.copy()
        ref.step(h, 50, *(after.pick(slice(a, b)) for a, b in itertools.pairwise(ends)))
        results.append(after)
    for threads, after in zip(THREADS, results, strict=True):
        ref.same_bits(after, results[0], f"{threads} threads")


@pairs
@settings(max_examples=25)
@given(
    h=hypers,
    t=a_step,
    seed=seeds,
    scale=st.sampled_from([1, 100]),  # the longer ones are shared among the threads
    cuts=st.lists(st.integers(0, 700), max_size=12),
    threads=st.sampled_from(THREADS),
)
def test_one_array_and_its_pieces_agree(
    param: str, grad: str, h: Any, t: int, seed: int, scale: int, cuts: list[int], threads: int
) -> None:
    n = 700 * scale
    before = buffers(seed, n, param, grad)
    expected = plainly(h, t, before)
    radam.set_num_threads(threads)
    ends = [0, *sorted(min(n, cut * scale + cut % 7) for cut in cuts), n]
    for isa in radam.isas():
        _core.set_isa(isa)
        after = before.copy()
        ref.step(h, t, *(after.pick(slice(a, b)) for a, b in itertools.pairwise(ends)))
        ref.same_bits(after, expected, f"{isa} cut at {ends}")


def at_offset(x: Any, offset: int) -> Any:
    """A copy of an array that stands `offset` bytes behind a multiple of 64."""
    memory = bytearray(x.nbytes + 128)
    start = (-np.frombuffer(memory, np.uint8).ctypes.data) % 64 + offset
    out = np.frombuffer(memory, np.uint8)[start : start + x.nbytes].view(x.dtype)
    assert out.size == 0 or out.ctypes.data % 64 == offset
    out[:] = x
    return out


@pairs
def test_every_address_agrees(param: str, grad: str, every_isa: str) -> None:
    h = _core.Hyperparameters(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, amsgrad=True)
    before = buffers(2, 77, param, grad)
    expected = plainly(h, 50, before)
    _core.set_isa(every_isa)
    for offset in range(64):
        # Every array at the same offset, then each at one of its own.
        for stride in (0, 7, 13):
            places = [(offset + stride * i) % 64 for i in range(5)]
            after = ref.Buffers(*(at_offset(a, place) for a, place in zip(before.arrays(), places, strict=True)))
            ref.step(h, 50, after)
            ref.same_bits(after, expected, f"{every_isa} at {places}")


LAYOUTS = {
    "c": lambda x: np.array(x, order="C"),
    "fortran": lambda x: np.array(x, order="F"),
    "transposed": lambda x: np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0),
    "gaps": lambda x: _inside(x, np.s_[::2, ::3, ::2]),
    "inner_gaps": lambda x: _inside(x, np.s_[:, :, ::2]),
    "outer_gaps": lambda x: _inside(x, np.s_[::2, :, :]),
    "reversed": lambda x: np.array(x[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
    "partly_reversed": lambda x: np.array(x[:, ::-1, :], order="F")[:, ::-1, :],
    "channels_last": lambda x: np.ascontiguousarray(np.moveaxis(x, 0, -1)).transpose(2, 0, 1),
}


def _inside(x: Any, where: Any) -> Any:
    """A copy of x as a view with gaps, the gaps filled with ones."""
    shape = [n * (s.step or 1) for n, s in zip(x.shape, where, strict=True)]
    view = np.ones(shape, x.dtype)[where]
    view[...] = x
    return view


@pairs
@settings(max_examples=60)
@given(
    h=hypers,
    t=a_step,
    seed=seeds,
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 19)),
    layouts=st.tuples(*[st.sampled_from(sorted(LAYOUTS))] * 5),
    isa=st.sampled_from(radam.isas()),
)
def test_memory_layouts_agree(
    param: str, grad: str, h: Any, t: int, seed: int, shape: tuple[int, ...], layouts: tuple[str, ...], isa: str
) -> None:
    flat = buffers(seed, int(np.prod(shape)), param, grad)
    before = ref.Buffers(*(a.reshape(shape) for a in flat.arrays()))
    expected = plainly(h, t, before)
    _core.set_isa(isa)
    after = ref.Buffers(*(LAYOUTS[layout](a) for layout, a in zip(layouts, before.arrays(), strict=True)))
    ref.step(h, t, after)
    ref.same_bits(after, expected, f"{isa} {layouts}")
    for layout, now in zip(layouts, after.arrays(), strict=True):
        if "gaps" in layout:  # what stands between the elements is not ours
            now[...] = 1
            assert np.all(now.base == 1)


# ---- the floating-point mode


@contextmanager
def flushing_to_zero() -> Iterator[None]:
    torch = pytest.importorskip("torch", reason="torch sets the processor's flush-to-zero mode here")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no flush-to-zero mode that torch can set")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@pairs
def test_the_caller_s_floating_point_mode_neither_matters_nor_changes(param: str, grad: str, every_isa: str) -> None:
    subnormal = 1e-310 if param == "float64" else 2.0**-140
    h = _core.Hyperparameters(lr=subnormal, beta1=0.9, beta2=0.999, eps=1e-30, weight_decay=0.1)
    before = buffers(3, 70_000, param, grad)
    before.param[::2] = 0  # so that the subnormal step is all there is
    expected = plainly(h, 50, before)
    _core.set_isa(every_isa)
    radam.set_num_threads(THREADS[-1] + 1)  # one thread more than before: it is born while the mode is on
    after = before.copy()
    group = ref.group_of(h, 50, [after])
    tiny, one = np.full(4, 1e-310), np.ones(4)
    with flushing_to_zero():
        before_step = (tiny * one).tobytes()
        _core.step((group,), "propagate")
        after_step = (tiny * one).tobytes()
    assert before_step == after_step == bytes(32)
    assert (tiny * one).tobytes() == tiny.tobytes()
    ref.same_bits(after, expected, every_isa)


# ---- the flush of the moments


@pytest.mark.parametrize(("dtype", "smallest"), [("float32", 2.0**-126), ("float64", 2.0**-1022)])
def test_a_parameter_without_gradients_never_has_subnormal_moments(dtype: str, smallest: float, every_isa: str) -> None:
    rng = np.random.default_rng(5)
    exponent = np.log2(smallest)
    b = ref.Buffers(
        rng.normal(size=33).astype(dtype),
        np.zeros(33, dtype),
        ref.spread(rng, 33, dtype, exponent + 1, exponent + 40),
        abs(ref.spread(rng, 33, dtype, exponent + 1, exponent + 40)),
        np.zeros(33, dtype),
    )
    h = _core.Hyperparameters(lr=1e-3, beta1=0.8, beta2=0.9, eps=1e-8)
    for t in range(1, 400):
        ref.step(h, t, b)
        for moment in (b.exp_avg, b.exp_avg_sq):
            assert np.all((moment == 0) | (abs(moment) >= smallest))
    assert not b.exp_avg.any()
    assert not b.exp_avg_sq.any()


@pytest.mark.parametrize(
    ("dtype", "eps", "flushed"),
    [
        ("float32", 2.0**-39, True),
        ("float32", 2.0**-39 * (1 - 2.0**-20), False),
        ("float32", 0.0, False),
        ("float64", 2.0**-458, True),
        ("float64", 2.0**-458 * (1 - 2.0**-20), False),
        ("float64", 0.0, False),
    ],
)
def test_the_second_moment_is_flushed_only_where_eps_hides_it(
    dtype: str, eps: float, flushed: bool, every_isa: str
) -> None:
    smallest = float(np.finfo(dtype).smallest_normal)
    below, at = np.full(19, smallest * (1 - 2.0**-20), dtype), np.full(19, smallest, dtype)
    h = _core.Hyperparameters(lr=1e-3, beta1=0.9, beta2=0.0, eps=eps)
    root = float(np.sqrt(np.float64(smallest)))
    for exact, kept in ((below, not flushed), (at, True)):
        # beta2 = 0: v becomes g * g, which an exponent that is even makes exact.
        grad = np.full(19, root, dtype) if exact is at else np.full(19, root * (1 - 2.0**-10), dtype)
        b = ref.Buffers(np.zeros(19, dtype), grad, np.zeros(19, dtype), np.zeros(19, dtype), np.zeros(19, dtype))
        ref.step(h, 1, b)
        assert np.all((b.exp_avg_sq > 0) == kept)
        assert np.all(b.exp_avg_sq <= exact)


@pytest.mark.parametrize(
    ("dtype", "eps", "eps_root", "flushed"),
    [
        ("float32", 2.0**-39, 0.0, True),
        ("float32", 2.0**-39, 2.0**-126, False),  # the root of such a sum is larger than eps hides
        ("float32", 2.0**-39, 2.0**-103, False),
        ("float32", 0.0, 2.0**-102, True),
        ("float64", 2.0**-458, 0.0, True),
        ("float64", 2.0**-458, 2.0**-1022, False),
        ("float64", 2.0**-458, 2.0**-970, False),
        ("float64", 0.0, 2.0**-969, True),
    ],
)
def test_flushing_the_second_moment_does_not_change_the_step(
    dtype: str, eps: float, eps_root: float, flushed: bool, every_isa: str
) -> None:
    wide = np.dtype(dtype).type
    smallest = float(np.finfo(dtype).smallest_normal)
    rng = np.random.default_rng(6)
    v = (rng.uniform(0.5, 1, 5000) * smallest).astype(dtype)
    v[-1] = np.nextafter(wide(smallest), wide(0))
    m = rng.normal(size=5000).astype(dtype)
    b = ref.Buffers(np.zeros(5000, dtype), np.zeros(5000, dtype), m.copy(), v.copy(), np.zeros(5000, dtype))
    # beta2 = 1 - 2^-24 keeps v all but as it is.
    h = _core.Hyperparameters(lr=1.0, beta1=0.5, beta2=1 - 2.0**-24, eps=eps, eps_root=eps_root, rectify=False)
    ref.step(h, 1, b)
    assert b.exp_avg_sq.any() != flushed
    if not flushed:
        v = b.exp_avg_sq
    c = _core.coefficients(h, 1, dtype)
    unflushed = -wide(c["step_size"]) * (m * wide(0.5) / (np.sqrt(v + wide(c["eps_root"])) + wide(c["eps"])))
    assert np.array_equal(b.param, unflushed + wide(0))
