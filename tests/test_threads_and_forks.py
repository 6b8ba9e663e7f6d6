"""Threads and forks change no bit: any thread count, many optimizers at once, a child after the pool was started."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import radam
from snapshots import arrays, bits, frozen

SHAPES = [(100_003,), (300, 301), (7,), (0,), (64 * 1024,)]  # more than one thread takes, and more than it leaves alone
LIMIT_S = 60


def run(seed: int = 0, steps: int = 7, shapes: list[Any] = SHAPES) -> str:
    """Return a hash of the parameters and moments after some steps."""
    params = arrays(seed, *shapes)
    optimizer = radam.RAdam(params, lr=0.1, amsgrad=True)
    for k in range(steps):
        optimizer.step(grads=arrays(seed + 100 + k, *shapes))
    return hashlib.sha256(repr(frozen(optimizer)).encode()).hexdigest()


@pytest.mark.parametrize("count", [2, 3, 5, 16, 64])
def test_the_number_of_threads_changes_no_bit(count: int) -> None:
    radam.set_num_threads(1)
    alone = run()
    radam.set_num_threads(count)
    assert radam.get_num_threads() == count
    assert run() == alone


def test_threads_may_come_and_go_between_the_steps() -> None:
    params, twins = arrays(0, *SHAPES), arrays(0, *SHAPES)
    changing, steady = radam.RAdam(params), radam.RAdam(twins)
    for k, count in enumerate((1, 8, 2, 5, 1, 3)):
        grads = arrays(k + 1, *SHAPES)
        radam.set_num_threads(count)
        changing.step(grads=grads)
        radam.set_num_threads(1)
        steady.step(grads=grads)
    assert frozen(changing) == frozen(steady)


@pytest.mark.parametrize("count", [0, -1, 1025, 2**31 - 1])
def test_a_number_of_threads_out_of_range_is_a_value_error(count: int) -> None:
    before = radam.get_num_threads()
    with pytest.raises(ValueError, match="from 1 to 1024"):
        radam.set_num_threads(count)
    assert radam.get_num_threads() == before


@pytest.mark.parametrize("count", ["2", 2.5, None], ids=repr)
def test_a_number_of_threads_that_is_no_number_is_a_type_error(count: Any) -> None:
    with pytest.raises(TypeError):
        radam.set_num_threads(count)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Return what work(index) gives in each of many threads that start together."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def body(index: int) -> None:
        barrier.wait(LIMIT_S)
        try:
            results[index] = work(index)
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=body, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()
    return results


def test_many_optimizers_run_in_parallel_threads_with_the_right_bits() -> None:
    expected = [run(seed, 4) for seed in range(6)]
    radam.set_num_threads(4)
    assert in_threads(6, lambda seed: run(seed, 4)) == expected


def test_one_optimizer_in_two_threads_is_an_error_or_serial_and_never_torn() -> None:
    radam.set_num_threads(3)
    shapes = [(200_000,), (9,)]
    params, twins = arrays(0, *shapes), arrays(0, *shapes)
    optimizer, serial = radam.RAdam(params, lr=0.1), radam.RAdam(twins, lr=0.1)
    grads = arrays(1, *shapes)  # the same one in all steps, so that their order does not matter

    def work(index: int) -> tuple[int, set[str]]:
        done, errors = 0, set()
        for _ in range(12):
            try:
                optimizer.step(grads=grads)
                done += 1
            except RuntimeError as error:
                errors.add(str(error).split(";")[0])
        return done, errors

    results = in_threads(4, work)
    assert set().union(*(errors for _, errors in results)) <= {
        "a step of this optimizer is under way (in another thread, in a hook or a closure, or in the process that this "
        "one was forked from)"
    }
    done = sum(count for count, _ in results)
    assert done > 0
    for _ in range(done):
        serial.step(grads=grads)
    assert frozen(optimizer) == frozen(serial)


def test_a_state_dict_taken_in_another_thread_is_never_torn() -> None:
    param = np.zeros(300_000)
    optimizer = radam.RAdam([param], lr=0.1)
    stop, grad = threading.Event(), np.ones(300_000)

    def work(index: int) -> int:
        if index == 0:
            try:
                for _ in range(30):
                    try:
                        optimizer.step(grads=[grad])
                    except RuntimeError:
                        time.sleep(0.001)
            finally:
                stop.set()
            return 0
        torn = 0
        while not stop.is_set():
            try:
                entry = optimizer.state_dict()["state"].get(0)
            except RuntimeError:
                continue
            torn += entry is not None and np.unique(entry["exp_avg"]).size != 1
        return torn

    assert in_threads(2, work) == [0, 0]


def test_a_step_runs_in_the_default_floating_point_mode_and_puts_back_the_caller_s() -> None:
    # Parameters and their changes are subnormal: in a mode that flushes them they would be zeros.
    shapes = [(100_003,), (5,)]
    grads = [arrays(k + 1, *shapes) for k in range(8)]
    starts = [np.float32(1e-39) * a for a in arrays(0, *shapes)]
    normal, flushed = [s.copy() for s in starts], [s.copy() for s in starts]
    one, other = radam.RAdam(normal, lr=1e-40), radam.RAdam(flushed, lr=1e-40)
    radam.set_num_threads(3)
    for k in range(8):
        one.step(grads=grads[k])
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        for k in range(8):
            other.step(grads=grads[k])
        still_flushing = bool(np.float32(2e-38) * np.float32(0.5) == 0)
    finally:
        torch.set_flush_denormal(False)
    assert np.count_nonzero(normal[0]) > 90_000
    assert [bits(p) for p in flushed] == [bits(p) for p in normal]
    assert still_flushing


# ---- forks

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_child(work: Callable[[], str]) -> str:
    """Return what work gives in a forked child; fail where it hangs or dies."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Python 3.12+: other threads are there, and that is the test
        child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            try:
                answer = work()
            except BaseException:
                answer = traceback.format_exc()
            os.write(writing, answer.encode()[:4000])
        finally:
            os._exit(0)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], LIMIT_S)
        if not ready:
            os.kill(child, signal.SIGKILL)
        answer = os.read(reading, 4000).decode() if ready else "the child hangs"
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    return answer


@forks
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_child_forked_after_the_threads_started_steps_with_the_same_bits(count: int) -> None:
    radam.set_num_threads(count)
    expected = run()
    assert in_child(run) == expected
    assert in_child(lambda: in_child(run)) == expected
    assert run() == expected


@forks
def test_a_child_goes_on_with_an_optimizer_of_its_parent() -> None:
    radam.set_num_threads(2)
    params = arrays(0, *SHAPES)
    optimizer = radam.RAdam(params, lr=0.1)
    optimizer.step(grads=arrays(1, *SHAPES))

    def on() -> str:
        optimizer.step(grads=arrays(2, *SHAPES))
        return hashlib.sha256(repr(frozen(optimizer)).encode()).hexdigest()

    before = frozen(optimizer)
    answer = in_child(on)
    assert frozen(optimizer) == before
    assert on() == answer


@forks
def test_a_child_forked_while_another_thread_steps_is_not_held_up() -> None:
    radam.set_num_threads(2)
    expected, stop, errors = run(), threading.Event(), []

    def keep_stepping() -> None:
        optimizer, grad = radam.RAdam([np.zeros(1_000_000, np.float32)]), np.ones(1_000_000, np.float32)
        try:
            while not stop.is_set():
                optimizer.step(grads=[grad])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=keep_stepping, daemon=True)
    thread.start()
    try:
        answers = [in_child(run) for _ in range(8)]
    finally:
        stop.set()
        thread.join(LIMIT_S)
    assert answers == [expected] * 8
    assert not errors
    assert not thread.is_alive()


def test_threads_of_the_pool_leave_signals_to_python() -> None:
    radam.set_num_threads(4)
    run(steps=1)
    seen = []
    kept = signal.signal(signal.SIGINT, lambda *_: seen.append(threading.current_thread() is threading.main_thread()))
    try:
        os.kill(os.getpid(), signal.SIGINT) if os.name == "posix" else signal.raise_signal(signal.SIGINT)
        for _ in range(1000):
            if seen:
                break
            time.sleep(0.001)
    finally:
        signal.signal(signal.SIGINT, kept)
    assert seen == [True]


LEAVING = """
import threading, time
import numpy as np
import radam

def work():
    param = np.ones({size}, np.float32)
    optimizer = radam.RAdam([param])
    while True:
        optimizer.step(grads=[param.copy()])

for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
"""


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_the_interpreter_may_end_while_other_threads_step(size: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVING.format(size=size)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the interrupts come from a POSIX timer")
def test_an_interrupt_never_leaves_the_optimizer_locked() -> None:
    param, grad = np.ones(10, np.float32), np.ones(10, np.float32)
    optimizer = radam.RAdam([param], lr=0.5)
    held, wait = [], random.Random(0)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupted)
    gc.disable()  # others have hooks on it (hypothesis has), in which Python drops an interrupt
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, wait.uniform(1e-5, 2e-3))
                while True:
                    optimizer.step(grads=[grad])
            except KeyboardInterrupt as error:
                held.append(error)  # its traceback holds the frames of the step, as a notebook's last one does
            optimizer.step(grads=[grad])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert len(held) == 300


FORKING = """
import os, sys, threading, time
import numpy as np
import radam

def work():
    param = np.ones(3_000_000, np.float32)
    optimizer = radam.RAdam([param])
    while True:
        optimizer.step(grads=[param.copy()])

threading.Thread(target=work, daemon=True).start()
for _ in range(20):
    time.sleep(0.003)
    child = os.fork()
    if child == 0:
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_while_another_thread_steps_can_end() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
