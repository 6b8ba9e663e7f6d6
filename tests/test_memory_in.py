"""How parameters and gradients may lie in memory: overlaps, layouts, alignment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided

import radam
from snapshots import as_numpy, bits

BASE = 24


def base() -> np.ndarray:
    return np.arange(BASE, dtype=np.float32)


def twice(a: Any) -> list[Any]:
    return [a, a]


OVERLAPPING = {
    "the same object": lambda a: twice(a),
    "two views of all": lambda a: [a[:], a[:]],
    "a part": lambda a: [a, a[5:7]],
    "one shared element": lambda a: [a[:10], a[9:]],
    "strides that meet": lambda a: [a[::2], a[::3]],
    "a reversed view": lambda a: [a[:12], a[11:4:-1]],
    "rows and columns": lambda a: [a.reshape(4, 6)[1], a.reshape(4, 6)[:, 2]],
    "numpy and torch": lambda a: [a, torch.from_numpy(a)],
    "bytes that cross": lambda a: [a.view(np.uint8)[0:8].view(np.float32), a.view(np.uint8)[6:14].view(np.float32)],
    "two dtypes": lambda a: [a, a.view(np.float16)],
    "the outer of three": lambda a: [a[:12], a[2:4], a[11:]],
}

APART = {
    "interleaved": lambda a: [a[::2], a[1::2]],
    "neighbours": lambda a: [a[:10], a[10:]],
    "columns": lambda a: list(a.reshape(4, 6).T),
    "blocks": lambda a: [a.reshape(4, 6)[:2, :3], a.reshape(4, 6)[:2, 3:], a.reshape(4, 6)[2:]],
    "a hole and what fills it": lambda a: [a.reshape(4, 6)[::3], a.reshape(4, 6)[1:3]],
    "empty views": lambda a: [a, a[3:3], a[5:5]],
    "torch columns": lambda a: list(torch.from_numpy(a).view(4, 6).unbind(1)),
}


@pytest.mark.parametrize("make", OVERLAPPING.values(), ids=OVERLAPPING)
def test_parameters_that_share_memory_are_a_value_error(make: Any) -> None:
    first, *others = make(base())
    with pytest.raises(ValueError, match=r"share memory|is the same as"):
        radam.RAdam([first, *others])
    with pytest.raises(ValueError, match=r"share memory|is the same as"):
        radam.RAdam([{"params": [first]}, {"params": others}])
    whole = base()
    first, *others = make(whole)
    optimizer = radam.RAdam([first])
    with pytest.raises(ValueError, match=r"share memory|is the same as") as caught:
        optimizer.add_param_group({"params": others})
    assert "group 0" in str(caught.value)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("make", APART.values(), ids=APART)
def test_parameters_that_lie_between_each_other_are_stepped(make: Any) -> None:
    whole = base()
    params = make(whole)
    radam.RAdam(params, lr=0.5).step(grads=[np.ones(tuple(p.shape), np.float32) for p in params])
    expected = base()
    for view in make(expected):
        view -= 0.5
    assert bits(whole) == bits(expected)


SELF_OVERLAPPING = {
    "windows": lambda: as_strided(base(), (8, 4), (4, 4)),
    "one element many times": lambda: as_strided(base(), (8,), (0,)),
    "repeated rows": lambda: as_strided(base(), (3, 8), (0, 4)),
    "half an element apart": lambda: as_strided(base(), (8,), (2,)),
    "diagonals that meet": lambda: as_strided(base(), (3, 4), (12, 8)),
    "torch expand": lambda: torch.ones(1).expand(8),
    "torch unfold": lambda: torch.ones(8).unfold(0, 4, 1),
}


@pytest.mark.parametrize("make", SELF_OVERLAPPING.values(), ids=SELF_OVERLAPPING)
def test_a_parameter_that_shares_memory_with_itself_is_a_value_error(make: Any) -> None:
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 has elements that share memory"):
        radam.RAdam([make()])


@pytest.mark.parametrize("make", SELF_OVERLAPPING.values(), ids=SELF_OVERLAPPING)
def test_a_gradient_may_share_memory_with_itself(make: Any) -> None:
    grad = make()
    dense = as_numpy(grad).copy()
    a, b = np.zeros(dense.shape, np.float32), np.zeros(dense.shape, np.float32)
    radam.RAdam([a], lr=0.5).step(grads=[grad])
    radam.RAdam([b], lr=0.5).step(grads=[dense])
    assert bits(a) == bits(b)


def test_strides_that_interlock_without_meeting_are_stepped() -> None:
    # Offsets 0 2 4 and 3 5 7: neither dimension steps over the other, and no element is met twice.
    whole = base()
    param = as_strided(whole, (2, 3), (12, 8))
    radam.RAdam([param], lr=0.5).step(grads=[np.ones((2, 3), np.float32)])
    expected = base()
    expected[[0, 2, 4, 3, 5, 7]] -= 0.5
    assert bits(whole) == bits(expected)


@pytest.mark.parametrize("part", [slice(0, 12), slice(6, 18), slice(0, 24, 2)], ids=["all", "partly", "strided"])
def test_a_gradient_that_shares_memory_with_a_parameter_is_a_value_error(part: slice) -> None:
    whole = base()
    optimizer = radam.RAdam([np.zeros(12, np.float32), whole[:12]])
    with pytest.raises(ValueError, match=r"gradient of parameter 0 of group 0.*share memory|share memory.*gradient"):
        optimizer.step(grads=[whole[part], np.ones(12, np.float32)])
    assert bits(whole) == bits(base())


def test_gradients_may_be_shared_between_parameters() -> None:
    params = [np.zeros(12, np.float32) for _ in range(3)]
    grad = base()
    apart = [np.zeros(12, np.float32) for _ in range(3)]
    radam.RAdam(params).step(grads=[grad[:12], grad[:12], grad[6:18]])
    radam.RAdam(apart).step(grads=[grad[:12].copy(), grad[:12].copy(), grad[6:18].copy()])
    assert [bits(p) for p in params] == [bits(p) for p in apart]


def test_a_moment_put_over_a_parameter_is_refused() -> None:
    param = np.ones(4, np.float32)
    optimizer = radam.RAdam([param])
    optimizer.step(grads=[np.ones(4, np.float32)])
    optimizer._states[0].moments["exp_avg"][0] = param
    with pytest.raises(ValueError, match="share memory"):
        optimizer.step(grads=[np.ones(4, np.float32)])


def fortran(a: np.ndarray) -> np.ndarray:
    return np.asfortranarray(a)


def within(a: np.ndarray, step: int) -> np.ndarray:
    """Return a copy of a that is a view with gaps of a larger array full of 7."""
    frame = np.full([2 + step * n for n in a.shape], 7, a.dtype)
    view = frame[tuple(slice(1, 1 + step * n, step) for n in a.shape)]
    view[...] = a
    return view


def at_odd_address(a: np.ndarray) -> np.ndarray:
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def in_records(a: np.ndarray) -> np.ndarray:
    records = np.zeros(a.shape, [("tag", "u1"), ("x", a.dtype)])
    records["x"] = a
    return records["x"]


def channels_last(a: np.ndarray) -> np.ndarray:
    return torch.from_numpy(a.copy()).to(memory_format=torch.channels_last).numpy()


LAYOUTS = {
    "C": np.array,
    "F": fortran,
    "transposed": lambda a: np.array(a.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0),
    "channels_last": channels_last,
    "reversed": lambda a: np.array(a[::-1, :, ::-1])[::-1, :, ::-1],
    "gaps of one": lambda a: within(a, 2),
    "a block": lambda a: within(a, 1),
    "odd address": at_odd_address,
    "packed records": in_records,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("param_layout", LAYOUTS)
def test_the_layout_changes_no_bit(param_layout: str, grad_layout: str, dtype: Any) -> None:
    random = np.random.default_rng(5)
    start, grads = (random.standard_normal(s).astype(dtype) for s in ((4, 3, 5, 2), (7, 4, 3, 5, 2)))
    expected, param = start.copy(), LAYOUTS[param_layout](start)
    plain, other = radam.RAdam([expected], lr=0.1, amsgrad=True), radam.RAdam([param], lr=0.1, amsgrad=True)
    for grad in grads:
        plain.step(grads=[grad])
        handed = LAYOUTS[grad_layout](grad)
        kept = handed.copy()
        other.step(grads=[handed])
        assert bits(handed) == bits(kept)
    assert bits(param) == bits(expected)
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert bits(other.state[0][name]) == bits(plain.state[0][name])


@pytest.mark.parametrize("layout", ["F", "transposed", "channels_last"])
def test_moments_lie_as_their_dense_parameter_does(layout: str) -> None:
    param = LAYOUTS[layout](np.ones((4, 3, 5, 2), np.float32))
    optimizer = radam.RAdam([param])
    optimizer.step(grads=[np.ones_like(param)])
    assert optimizer.state[0]["exp_avg"].strides == param.strides


@pytest.mark.parametrize("step", [1, 2, 3])
def test_nothing_beside_a_view_is_written(step: int) -> None:
    param = within(np.ones((5, 6), np.float32), step)
    optimizer = radam.RAdam([param], lr=0.5)
    optimizer.step(grads=[np.ones((5, 6), np.float32)])
    frame = param.base
    assert (param == 0.5).all()
    assert np.count_nonzero(frame == 7) == frame.size - param.size


@pytest.mark.parametrize(("itemsize", "dtype"), [(2, np.float16), (4, np.float32), (8, np.float64)])
@pytest.mark.parametrize("size", [1, 15, 64, 1001])
def test_a_misaligned_pointer_is_stepped(size: int, itemsize: int, dtype: Any) -> None:
    random = np.random.default_rng(3)
    start, grad = (random.standard_normal(size).astype(dtype) for _ in range(2))
    expected = start.copy()
    radam.RAdam([expected], lr=0.5).step(grads=[grad])
    for offset in range(1, itemsize):
        raw = np.zeros(start.nbytes + itemsize, np.uint8)
        param = raw[offset : offset + start.nbytes].view(dtype)
        param[:] = start
        radam.RAdam([param], lr=0.5).step(grads=[at_odd_address(grad)])
        assert bits(param) == bits(expected)
        assert not raw[:offset].any()
        assert not raw[offset + start.nbytes :].any()


def test_a_torch_tensor_with_gaps_is_written_back() -> None:
    whole = torch.ones(6, 4)
    radam.RAdam([whole[:, 1]], lr=0.5).step(grads=[torch.ones(6)])
    assert whole.sum(0).tolist() == [6.0, 3.0, 6.0, 6.0]
