"""A step happens wholly or not at all: what fails leaves every bit as it was, and no trace in what follows."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import radam
from snapshots import arrays, bits, frozen

SHAPES = [(5,), (3, 4), (), (0,), (67,)]


class Exporting:
    """A gradient whose export raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __dlpack__(self, **keywords: Any) -> Any:
        raise self.error


def make(**keywords: Any) -> radam.RAdam:
    """Two groups over every kind of parameter, the second in Fortran order and with a gap."""
    first = arrays(1, *SHAPES)
    second = [np.asfortranarray(arrays(2, (4, 6))[0]), arrays(3, (40,))[0][::2]]
    return radam.RAdam([{"params": first}, {"params": second, "lr": 0.3, "amsgrad": True}], lr=0.1, **keywords)


def grads(seed: int) -> list[Any]:
    return arrays(seed, *SHAPES, (4, 6), (20,))


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*args: Any, **keywords: Any) -> Any:
        raise error

    return function


def bad_last(gradient: Any) -> Callable[[Any], None]:
    return lambda optimizer: optimizer.step(grads=[*grads(50)[:-1], gradient])


def edited(**entries: Any) -> Callable[[Any], None]:
    def attempt(optimizer: Any) -> None:
        kept = dict(optimizer.param_groups[-1])
        optimizer.param_groups[-1].update(entries)
        try:
            optimizer.step(grads=grads(50))
        finally:
            optimizer.param_groups[-1].update(kept)

    return attempt


def hooked(error: BaseException) -> Callable[[Any], None]:
    def attempt(optimizer: Any) -> None:
        with optimizer.register_step_pre_hook(raising(error)):
            optimizer.step(grads=grads(50))

    return attempt


def misnumbered(optimizer: Any) -> None:
    held = optimizer._states[1].steps
    kept = held[1]
    held[1] = 2**62
    try:
        optimizer.step(grads=grads(50))
    finally:
        held[1] = kept


FAILURES: dict[str, tuple[Callable[[Any], None], type[BaseException]]] = {
    "a gradient of another shape": (bad_last(np.ones(21, np.float32)), ValueError),
    "a gradient of another dtype": (bad_last(np.ones(20)), ValueError),
    "a gradient of integers": (bad_last(np.ones(20, int)), TypeError),
    "a gradient that is no array": (bad_last("x"), TypeError),
    "a gradient too few": (lambda o: o.step(grads=grads(50)[:-1]), ValueError),
    "a Ctrl-C in an export": (bad_last(Exporting(KeyboardInterrupt())), KeyboardInterrupt),
    "an exit in an export": (bad_last(Exporting(SystemExit(3))), SystemExit),
    "no memory in an export": (bad_last(Exporting(MemoryError())), MemoryError),
    "an error in an export": (bad_last(Exporting(RuntimeError("?"))), TypeError),
    "a bad lr in the last group": (edited(lr=-1.0), ValueError),
    "a bad beta in the last group": (edited(betas=(0.9, 1.0)), ValueError),
    "a bad eps in the last group": (edited(eps=float("nan")), ValueError),
    "a bad weight decay in the last group": (edited(weight_decay=float("inf")), ValueError),
    "an lr that is no number": (edited(lr="fast"), TypeError),
    "an lr function that raises": (edited(lr=raising(ZeroDivisionError())), ZeroDivisionError),
    "an lr function that gives NaN": (edited(lr=lambda t: float("nan")), ValueError),
    "an lr function that gives text": (edited(lr=lambda t: "fast"), TypeError),
    "a parameter swapped for one of another shape": (
        lambda o: edited(params=[o.param_groups[-1]["params"][0], np.ones(3, np.float32)])(o),
        ValueError,
    ),
    "a parameter lost": (lambda o: edited(params=o.param_groups[-1]["params"][:1])(o), ValueError),
    "a parameter taken from the other group": (
        lambda o: edited(params=[o.param_groups[-1]["params"][0], o.param_groups[0]["params"][4][:20]])(o),
        ValueError,
    ),
    "a step count at its end": (misnumbered, ValueError),
    "a pre-hook that raises": (hooked(LookupError()), LookupError),
    "a Ctrl-C in a pre-hook": (hooked(KeyboardInterrupt()), KeyboardInterrupt),
    "a closure that raises": (lambda o: o.step(raising(LookupError()), grads=grads(50)), LookupError),
}


@pytest.mark.parametrize("steps", [0, 8])
@pytest.mark.parametrize(("attempt", "error"), FAILURES.values(), ids=FAILURES)
def test_a_failed_step_leaves_every_bit_as_it_was(attempt: Any, error: type[BaseException], steps: int) -> None:
    optimizer, undisturbed = make(), make()
    for seed in range(steps):
        optimizer.step(grads=grads(seed))
        undisturbed.step(grads=grads(seed))
    before = frozen(optimizer)
    with pytest.raises(error):
        attempt(optimizer)
    assert frozen(optimizer) == before
    for seed in range(60, 63):
        optimizer.step(grads=grads(seed))
        undisturbed.step(grads=grads(seed))
    assert frozen(optimizer) == frozen(undisturbed)


def test_the_gradients_are_never_written() -> None:
    optimizer = make(weight_decay=0.1, maximize=True)
    for seed in range(8):
        handed, kept = grads(seed), grads(seed)
        optimizer.step(grads=handed)
        assert [bits(g) for g in handed] == [bits(g) for g in kept]


def test_a_ctrl_c_during_the_first_step_leaves_it_whole() -> None:
    # The interrupt comes while the native step runs: only then does the other thread get the GIL.
    size = 4_000_000
    optimizer, undisturbed = (radam.RAdam([np.zeros(size, np.float32)], lr=0.1) for _ in range(2))
    grad = np.ones(size, np.float32)
    go, interval = threading.Event(), sys.getswitchinterval()

    def interrupt() -> None:
        go.wait()
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    sys.setswitchinterval(10)
    try:
        go.set()
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(grads=[grad])
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    if optimizer.state_dict()["state"]:
        undisturbed.step(grads=[grad])
    assert frozen(optimizer) == frozen(undisturbed)
    for twin in (optimizer, undisturbed):
        twin.step(grads=[grad])
    assert frozen(optimizer) == frozen(undisturbed)


DTYPES = {
    "float64": lambda a: a.astype(np.float64),
    "float32": lambda a: a.astype(np.float32),
    "bfloat16": lambda a: a.astype(ml_dtypes.bfloat16),
    "float16": lambda a: a.astype(np.float16),
    "torch bfloat16": lambda a: torch.from_numpy(a).bfloat16(),
    "strided": lambda a: np.repeat(a.astype(np.float32), 3)[::3],
    "reversed": lambda a: a.astype(np.float32)[::-1].copy()[::-1],
}
SIZES = {"one": (1, 0), "first": (100, 0), "middle": (100, 50), "last of a vector": (64, 63), "tail": (67, 66)}


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(("size", "at"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_that_is_not_finite_skips_raises_or_propagates(
    dtype: str, size: int, at: int, value: float, every_isa: str
) -> None:
    good, bad = np.linspace(-1, 1, size), np.linspace(-1, 1, size)
    bad[at] = value

    def prepared(nonfinite: str) -> radam.RAdam:
        params = {"a": np.ones(8, np.float32), "b": DTYPES[dtype](np.ones(size))}
        optimizer = radam.RAdam(params, lr=0.1, nonfinite=nonfinite)
        optimizer.step(grads={"a": np.ones(8, np.float32), "b": DTYPES[dtype](good)})
        return optimizer

    handed = {"a": np.ones(8, np.float32), "b": DTYPES[dtype](bad)}
    skipping, raising_, propagating = (prepared(how) for how in ("skip", "raise", "propagate"))
    before = frozen(skipping)
    skipping.step(grads=handed)
    assert frozen(skipping) == before
    assert skipping.skipped_steps == 1
    with pytest.raises(FloatingPointError, match=r"gradient of parameter 1 \('b'\) of group 0 holds an inf or a NaN"):
        raising_.step(grads=handed)
    assert frozen(raising_) == before
    propagating.step(grads=handed)
    moved = propagating.state[1]["exp_avg"]
    assert np.flatnonzero(~np.isfinite(moved)).tolist() == [at]
    for optimizer in (skipping, raising_):
        optimizer.step(grads={"a": np.ones(8, np.float32), "b": DTYPES[dtype](good)})
        assert [entry["step"] for entry in optimizer.state] == [2, 2]


def test_large_finite_gradients_are_not_taken_for_infinite_ones() -> None:
    param = np.zeros(1000, np.float32)
    optimizer = radam.RAdam([param], nonfinite="raise")
    optimizer.step(grads=[np.full(1000, np.finfo(np.float32).max)])
    assert optimizer.state[0]["step"] == 1


def test_the_first_step_may_be_the_one_that_is_skipped() -> None:
    optimizer = radam.RAdam([np.ones(4, np.float32)], lr=0.5, nonfinite="skip")
    assert optimizer.step(lambda: 3.0, grads=[np.full(4, np.nan, np.float32)]) == 3.0
    assert optimizer.state == [{}]
    assert optimizer.state_dict()["state"] == {}


def test_nonfinite_is_one_of_three_words() -> None:
    with pytest.raises(ValueError, match="nonfinite must be 'propagate', 'skip' or 'raise', got 'ignore'"):
        radam.RAdam([np.ones(4)], nonfinite="ignore")  # type: ignore[arg-type]
    optimizer = radam.RAdam([np.ones(4)])
    optimizer.nonfinite = "ignore"  # type: ignore[assignment]
    before = frozen(optimizer)
    with pytest.raises(ValueError, match="nonfinite must be"):
        optimizer.step(grads=[np.ones(4)])
    assert frozen(optimizer) == before
