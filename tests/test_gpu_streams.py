"""On a GPU a step takes its turn on the current stream, in one launch, waits for nobody, and happens wholly or not."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.amp import GradScaler

import radam
from radam.torch import RAdam
from test_gpu import DEVICE, back, drawn, leaves, on_device, same, same_optimizers, set_gradients

pytestmark = pytest.mark.gpu

LONG = 2_000_000_000  # cycles: a second or so
FEW = [(4099,), (33, 65), (0,), ()]
MANY = [(i % 70,) for i in range(700)]  # more than a kernel takes as parameters


def stepped(shapes: Any, device: str, **settings: Any) -> Any:
    """Return an optimizer past its first step."""
    optimizer = RAdam(leaves(shapes, torch.float32, device), lr=0.01, **settings)
    set_gradients(optimizer, 0)
    optimizer.step()
    torch.cuda.synchronize()
    return optimizer


# ---- streams


def pieces(flat: torch.Tensor, shapes: Any) -> list[torch.Tensor]:
    """Return tensors of these shapes that lie one behind the other in a flat one."""
    counts = [math.prod(shape) for shape in shapes]
    return [piece.view(shape) for piece, shape in zip(flat.detach().split(counts), shapes)]


@pytest.mark.parametrize("shapes", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("capturable", [False, True], ids=["counted here", "counted there"])
def test_a_step_takes_its_turn_on_the_current_stream_and_does_not_wait(shapes: Any, capturable: bool) -> None:
    size, steps = sum(math.prod(shape) for shape in shapes), 3
    start, *grads = (drawn(i, (size,), torch.float32) for i in range(steps + 2))

    def made(device: str, **settings: Any) -> tuple[Any, Any, Any]:
        params, grad = start.clone().to(device), grads[0].clone().to(device)
        optimizer = RAdam([piece.requires_grad_() for piece in pieces(params, shapes)], lr=0.01, **settings)
        for param, piece in zip(optimizer.param_groups[0]["params"], pieces(grad, shapes)):
            param.grad = piece
        optimizer.step()  # makes the states, and loads the kernel
        return params, grad, optimizer

    params, grad, there = made(DEVICE, capturable=capturable)
    queued, seen = [some.to(DEVICE) for some in grads[1:]], [torch.empty_like(params) for _ in range(steps)]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        for some, after in zip(queued, seen):
            grad.copy_(some)  # which a step on another stream would not find
            there.step()
            after.copy_(params)
        assert not side.query()  # it sleeps still: nobody has waited
    side.synchronize()
    expected, grad, here = made("cpu")
    for t, some in enumerate(grads[1:]):
        grad.copy_(some)
        here.step()
        same(seen[t], expected, f"after step {t}")
    same_optimizers(there, here, "the end")


def test_more_steps_than_there_are_tables_have_the_right_ones_each() -> None:
    here, there = stepped(MANY, "cpu"), stepped(MANY, DEVICE)
    torch.cuda._sleep(LONG // 10)
    for t in range(30):
        for optimizer in (here, there):
            optimizer.param_groups[0]["lr"] = 0.01 / (t + 1)
            optimizer.step()
    same_optimizers(there, here, "the end")


@pytest.mark.parametrize("library", ["torch", pytest.param("cupy", marks=pytest.mark.gpu("cupy"))])
def test_radam_steps_on_the_stream_of_the_arrays_library(library: str) -> None:
    rng = np.random.default_rng(2)
    start, grads = rng.standard_normal((2, 4099), np.float32), rng.standard_normal((3, 4099), np.float32)
    here = radam.RAdam([start[0].copy()], lr=0.01)
    there = radam.RAdam([on_device(start[0].copy(), library)], lr=0.01)
    grad = on_device(start[1], library)
    there.step(grads=[grad])
    here.step(grads=[start[1]])
    queued = [on_device(some, library) for some in grads]
    torch.cuda.synchronize()
    with on_side_stream(library) as side:
        torch.cuda._sleep(LONG)
        for some in queued:
            grad[...] = some
            there.step(grads=[grad])
        assert not side.query()
    side.synchronize()
    for some in grads:
        here.step(grads=[some])
    same(there.param_groups[0]["params"][0], here.param_groups[0]["params"][0], "the parameter")


@contextmanager
def on_side_stream(library: str) -> Iterator[torch.cuda.Stream]:
    """Make a stream current in PyTorch, or in both."""
    if library == "torch":
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            yield side
        return
    import cupy

    with cupy.cuda.Stream(non_blocking=True) as stream:
        side = torch.cuda.ExternalStream(stream.ptr)
        with torch.cuda.stream(side):
            yield side


def two_devices() -> list[str]:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device, and this needs two")
    return ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("capturable", [False, True], ids=["counted here", "counted there"])
def test_several_devices_step_in_one_optimizer_each_on_its_stream(capturable: bool) -> None:
    devices = two_devices()

    def trained(places: list[str], capturable: bool) -> Any:
        params = [leaves([shape], torch.float32, places[i % 2], seed=i)[0] for i, shape in enumerate(FEW)]
        optimizer = RAdam(params, lr=0.01, capturable=capturable)
        for t in range(12):
            set_gradients(optimizer, t)
            optimizer.step()
        return optimizer

    for current in (0, 1):
        with torch.cuda.device(current):
            same_optimizers(trained(devices, capturable), trained(["cpu", "cpu"], False), f"current device {current}")
            assert torch.cuda.current_device() == current


def test_the_current_device_is_the_same_after_a_step_on_another_one() -> None:
    two_devices()
    with torch.cuda.device(0):
        there = stepped(FEW, "cuda:1")
        assert torch.cuda.current_device() == 0
    same_optimizers(there, stepped(FEW, "cpu"), "one step")


# ---- launches and waiting


@pytest.fixture
def launches(bench: Callable[[str], ModuleType]) -> Callable[[Callable[[], Any]], dict[str, int]]:
    """Return what counts the launches of a step."""
    count: Callable[[Callable[[], Any]], dict[str, int]] = bench("gpu_device").launches
    ones = torch.ones(4, device=DEVICE)
    if count(lambda: ones.add_(1))["kernels"] != 1:
        pytest.skip("PyTorch's profiler does not see the kernels here")
    return count


@pytest.mark.parametrize("capturable", [False, True], ids=["counted here", "counted there"])
@pytest.mark.parametrize(
    ("shapes", "copies"), [(FEW, 0), (MANY, 1), ([(4096,)] * 1000, 1)], ids=["few", "many", "1000x4096"]
)
def test_a_step_is_one_launch(
    shapes: Any, copies: int, capturable: bool, launches: Callable[[Callable[[], Any]], dict[str, int]]
) -> None:
    there = stepped(shapes, DEVICE, capturable=capturable)
    assert launches(there.step) == {"kernels": 1, "copies": copies, "fills": 0, "waits": 0}


def test_two_groups_of_several_dtypes_are_one_launch(
    launches: Callable[[Callable[[], Any]], dict[str, int]],
) -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    params = [leaves([(50,)], dtype, DEVICE)[0] for dtype in dtypes]
    optimizer = RAdam([{"params": params[:2]}, {"params": params[2:], "lr": 0.1, "maximize": True}], lr=0.01)
    set_gradients(optimizer, 0)
    optimizer.step()
    assert launches(optimizer.step)["kernels"] == 1


@contextmanager
def no_waiting_of_torch() -> Iterator[None]:
    """Let PyTorch raise where it would wait for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


WATCHED: dict[str, dict[str, Any]] = {
    "plain": {},
    "capturable": {"capturable": True},
    "skip": {"capturable": True, "nonfinite": "skip"},
}


@pytest.mark.parametrize("settings", WATCHED.values(), ids=WATCHED)
def test_pytorch_waits_for_nothing_in_a_step(settings: dict[str, Any]) -> None:
    def trained(device: str, numbers_on: str, **settings: Any) -> Any:
        lr, *betas = (torch.tensor(x, device=numbers_on) for x in (0.01, 0.9, 0.999))
        optimizer = RAdam(leaves(FEW, torch.float32, device), lr=lr, betas=(betas[0], betas[1]), **settings)
        set_gradients(optimizer, 0)
        for _ in range(3):  # the first one makes the states
            with no_waiting_of_torch():
                optimizer.step()
        return optimizer

    there = trained(DEVICE, DEVICE if settings else "cpu", **settings)
    same_optimizers(there, trained("cpu", "cpu"), "3 steps")


# ---- infs, NaNs and mixed precision


@pytest.mark.parametrize(
    ("shapes", "broken"), [pytest.param(FEW, 1, marks=pytest.mark.sanitized), (MANY, 655)], ids=["few", "many"]
)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize("capturable", [False, True], ids=["counted here", "counted there"])
def test_nonfinite_gradients_skip_or_raise_and_change_nothing(
    shapes: Any, broken: int, bad: float, capturable: bool
) -> None:
    here, before = stepped(shapes, "cpu"), stepped(shapes, "cpu")
    skips, raises = (stepped(shapes, DEVICE, capturable=capturable, nonfinite=what) for what in ("skip", "raise"))
    for optimizer in (here, skips, raises):
        set_gradients(optimizer, 1)
    for spoiled in (skips, raises):
        grad = spoiled.param_groups[0]["params"][broken].grad
        kept = grad.clone()
        grad.view(-1)[-1] = bad
        if spoiled is skips:
            spoiled.step()
        else:
            words = f"gradient of parameter {broken} of group 0 holds an inf or a NaN"
            with pytest.raises(FloatingPointError, match=words):
                spoiled.step()
        same_optimizers(spoiled, before, "nothing changed")
        grad.copy_(kept)
        spoiled.step()
    here.step()
    same_optimizers(skips, here, "skips")
    same_optimizers(raises, here, "raises")
    assert (skips.skipped_steps, raises.skipped_steps) == (1, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_a_grad_scaler_on_the_device_unscales_and_skips_without_waiting(dtype: torch.dtype) -> None:
    spoiled, scale = {0, 3, 4}, 2.0**7

    def trained(device: str) -> tuple[Any, list[float]]:
        optimizer = RAdam(leaves(FEW, dtype, device), lr=0.01, weight_decay=0.1, fused_amp=True)
        scaler, scales = GradScaler(torch.device(device).type, init_scale=scale, growth_interval=4), []
        scaler.scale(torch.zeros((), device=device))  # makes its tensors
        for t in range(12):
            set_gradients(optimizer, t, times=scale)
            if t in spoiled:
                optimizer.param_groups[0]["params"][1].grad[0, 0] = math.inf
            with no_waiting_of_torch():
                scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return optimizer, scales

    # On the CPU a step waits for no device, so that the same check holds there.
    (here, expected), (there, scales) = trained("cpu"), trained(DEVICE)
    assert scales == expected
    same_optimizers(there, here, "12 steps")
    assert there.skipped_steps == here.skipped_steps == len(spoiled)
    for entry in there.state.values():
        assert entry["step"].device.type == DEVICE
        assert float(entry["step"]) == 12 - len(spoiled)


# ---- errors


def test_a_gradient_on_another_device_is_named_and_nothing_changes() -> None:
    param = np.ones(5, np.float32)
    optimizer = radam.RAdam([("w", on_device(param))])
    with pytest.raises(
        ValueError, match=r"gradient of parameter 0 \('w'\) of group 0 is on the CPU, the parameter on CUDA device 0"
    ):
        optimizer.step(grads=[param])
    same(optimizer.param_groups[0]["params"][0], param, "the parameter")
    assert optimizer.state == [{}]


def test_memory_that_runs_out_while_states_are_made_leaves_all_as_it_was() -> None:
    shape = (2**22,)
    here = RAdam(leaves([shape] * 2, torch.float32, "cpu"), lr=0.01)
    there = RAdam(leaves([shape] * 2, torch.float32, DEVICE), lr=0.01)
    for optimizer in (here, there):
        set_gradients(optimizer, 0)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    _, whole = torch.cuda.mem_get_info()
    # Room for three of the four moments.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3.5 * 4 * 2**22) / whole)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            there.step()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(there.state) == 0
    for param, expected in zip(there.param_groups[0]["params"], here.param_groups[0]["params"]):
        same(param, expected, "the parameter")
    for optimizer in (here, there):
        optimizer.step()
    same_optimizers(there, here, "with memory")


AFTER_A_BROKEN_KERNEL = """
import torch
import radam

param, grad = torch.ones(3, device="cuda"), torch.ones(3, device="cuda")
optimizer = radam.RAdam([param])
optimizer.step(grads=[grad])
torch.cuda.synchronize()
param[torch.tensor([7], device="cuda")]  # an index out of range: the device gives up for good
try:
    torch.cuda.synchronize()
except RuntimeError:
    pass
try:
    optimizer.step(grads=[grad])
except RuntimeError as error:
    print(error)
"""


def test_an_error_of_the_device_says_what_was_being_done() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AFTER_A_BROKEN_KERNEL], capture_output=True, text=True, timeout=120, check=False
    )
    assert re.match(r"CUDA failed: [A-Za-z' ]+: .+ \(cudaError\w+\)$", done.stdout), done.stderr
    assert back(torch.ones(1, device=DEVICE)) == 1  # this process is none the worse for it
