"""Steps captured into CUDA graphs: replays have the CPU's bits, and a state goes between radam, PyTorch and devices."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import radam
from radam.torch import RAdam
from test_gpu import DEVICE, DTYPES, back, leaves, same, same_optimizers, set_gradients
from test_gpu_streams import FEW, MANY

pytestmark = pytest.mark.gpu

REPLAYS = 20
WARM_UP = 3  # steps before the capture; the first rectified one comes after it


def capture(step: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """Return a graph of one step."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def warm_up(optimizer: Any) -> None:
    """Take the first steps, on a side stream where it is a device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for t in range(WARM_UP):
            set_gradients(optimizer, t)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)


def made(shapes: Any, device: str, dtype: torch.dtype = torch.float32, seed: int = 0, **settings: Any) -> Any:
    """Return an optimizer past its first steps, whose learning rate and beta2 are tensors on its device."""
    lr, beta1, beta2 = (torch.tensor(x, device=device) for x in (0.01, 0.9, 0.999))
    params = leaves(shapes, dtype, device, seed)
    optimizer = RAdam(params, lr=lr, betas=(beta1, beta2), capturable=device == DEVICE, **settings)
    warm_up(optimizer)
    return optimizer


def prepare(optimizer: Any, t: int) -> None:
    """Change in place what a step reads: gradients, learning rate, beta2."""
    set_gradients(optimizer, WARM_UP + t)
    group = optimizer.param_groups[0]
    group["lr"].fill_(0.01 / (t + 1))
    group["betas"][1].fill_(0.999 if t % 7 else 0.99)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "coupled": {"weight_decay": 0.1, "maximize": True},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "as author": {"convention": "author"},
    "as optax": {"convention": "optax"},
}


@pytest.mark.parametrize(
    ("shapes", "dtype", "settings"),
    [
        *(
            pytest.param(FEW, dtype, settings, id=f"few {dtype} {name}")
            for dtype in DTYPES
            for name, settings in SETTINGS.items()
        ),
        *(pytest.param(MANY, dtype, SETTINGS["coupled"], id=f"many {dtype}") for dtype in DTYPES),
    ],
)
def test_replays_step_as_the_cpu_does_with_what_was_changed_in_between(
    shapes: Any, dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    here, there = (made(shapes, device, dtype, **settings) for device in ("cpu", DEVICE))
    graph = capture(there.step)
    same_optimizers(there, here, "after the capture, which steps nothing")
    for t in range(REPLAYS):
        for optimizer in (here, there):
            prepare(optimizer, t)
        here.step()
        graph.replay()
        if t in (0, REPLAYS - 1):
            same_optimizers(there, here, f"replay {t}")
    assert {float(entry["step"]) for entry in there.state.values()} == {WARM_UP + REPLAYS}


def test_graphs_and_steps_without_one_mix() -> None:
    here, there, others = (
        made(MANY, "cpu"),
        made(MANY, DEVICE),
        [made(MANY, device, seed=1) for device in ("cpu", DEVICE)],
    )
    graphs = [capture(there.step), capture(there.step), capture(others[1].step)]
    for t in range(REPLAYS):
        for optimizer in (here, there, *others):
            prepare(optimizer, t)
        here.step()
        others[0].step()
        graphs[2].replay()
        if t % 3 == 2:
            there.step()
        else:
            graphs[t % 3].replay()
    same_optimizers(there, here, "two graphs and steps without")
    same_optimizers(others[1], others[0], "the other optimizer")


def test_what_a_graph_had_is_used_again_when_it_is_gone() -> None:
    lasting, expected = made(MANY, DEVICE), made(MANY, "cpu")
    kept = capture(lasting.step)
    for round_ in range(6):
        here, there = (made(MANY[round_:], device, seed=round_) for device in ("cpu", DEVICE))
        graph = capture(there.step)
        for t in range(3):
            for optimizer in (here, there, lasting, expected):
                prepare(optimizer, t)
            here.step()
            graph.replay()
            expected.step()
            kept.replay()
        same_optimizers(there, here, f"graph {round_}")
        del graph
        gc.collect()
        torch.cuda.synchronize()
    same_optimizers(lasting, expected, "the graph that stayed")


def test_a_capture_without_capturable_is_torch_s_error() -> None:
    messages, marker = [], torch.zeros((), device=DEVICE)
    for cls in (RAdam, torch.optim.RAdam):
        optimizer: Any = cls(leaves(FEW, torch.float32, DEVICE))
        warm_up(optimizer)

        def attempt(optimizer: Any = optimizer) -> None:
            marker.add_(1)  # PyTorch warns of a graph that holds nothing
            with pytest.raises(RuntimeError) as raised:
                optimizer.step()
            messages.append(str(raised.value))

        capture(attempt)
        assert {float(entry["step"]) for entry in optimizer.state.values()} == {WARM_UP}
    assert "param_groups' capturable is False" in messages[0]
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda param: radam.RAdam([param], lr=0.1), "would not step what is on the CPU, parameters or step counts"),
        (lambda param: RAdam([param], lr=0.1, capturable=True), "would be made inside a CUDA graph, and anew at every"),
    ],
    ids=["counts on the CPU", "a first step"],
)
def test_captures_that_replays_would_get_wrong_are_refused_and_change_nothing(
    make: Callable[[Tensor], Any], words: str
) -> None:
    (param,) = leaves([(9,)], torch.float32, DEVICE)
    param.grad = torch.ones_like(param)
    optimizer, before = make(param), param.detach().clone()
    marker = torch.zeros((), device=DEVICE)

    def attempt() -> None:
        marker.add_(1)
        with pytest.raises(RuntimeError, match=words):
            optimizer.step()

    graph = capture(attempt)
    graph.replay()
    same(param, before, "the parameter")
    optimizer.step()  # as its first one
    assert [float(entry["step"]) for entry in states_of(optimizer)] == [1]


def states_of(optimizer: Any) -> list[Any]:
    return list(optimizer.state.values() if isinstance(optimizer.state, dict) else optimizer.state)


# ---- steps that are skipped on the device


@pytest.mark.parametrize("shapes", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("bad", [math.inf, math.nan], ids=str)
def test_replays_skip_nonfinite_gradients_and_count_them(shapes: Any, bad: float) -> None:
    here, there = (made(shapes, device, nonfinite="skip") for device in ("cpu", DEVICE))
    graph, spoiled = capture(there.step), {0, 5, 6}
    for t in range(REPLAYS):
        for optimizer in (here, there):
            prepare(optimizer, t)
            if t in spoiled:
                optimizer.param_groups[0]["params"][1].grad.fill_(bad)
        here.step()
        graph.replay()
    same_optimizers(there, here, "the end")
    assert there.skipped_steps == here.skipped_steps == len(spoiled)


def test_nonfinite_raise_cannot_be_captured_and_changes_nothing() -> None:
    here, there = made(FEW, "cpu"), made(FEW, DEVICE, nonfinite="raise")
    marker = torch.zeros((), device=DEVICE)

    def attempt() -> None:
        marker.add_(1)
        with pytest.raises(RuntimeError, match="nonfinite='raise' cannot raise from a CUDA graph"):
            there.step()

    capture(attempt)
    same_optimizers(there, here, "after the attempt")


def test_replays_unscale_and_skip_as_the_device_says() -> None:
    def with_numbers(device: str) -> Any:
        optimizer = made(FEW, device, fused_amp=True)
        optimizer.grad_scale, optimizer.found_inf = torch.ones((), device=device), torch.zeros((), device=device)
        return optimizer

    here, there = with_numbers("cpu"), with_numbers(DEVICE)
    graph, spoiled = capture(there.step), {1, 2, 9}
    for t in range(REPLAYS):
        for optimizer in (here, there):
            prepare(optimizer, t)
            optimizer.grad_scale.fill_(2.0 ** (t % 5) * 1.5)
            optimizer.found_inf.fill_(t in spoiled)
        here.step()
        graph.replay()
    same_optimizers(there, here, "the end")
    assert there.skipped_steps == here.skipped_steps == len(spoiled)


# ---- states


def changed(thing: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a state dict with other tensors."""
    if isinstance(thing, Tensor):
        return change(thing)
    if isinstance(thing, dict):
        return {key: changed(value, change) for key, value in thing.items()}
    return [changed(value, change) for value in thing] if isinstance(thing, list) else thing


def trained(cls: Any, steps: int, **settings: Any) -> Any:
    """Return an optimizer on the device. With this beta2, PyTorch's float32 rectification is good enough to compare."""
    params = leaves(FEW, torch.float32, DEVICE)
    optimizer = cls(params, **{"lr": 0.01, "betas": (0.9, 0.99), "capturable": True, **settings})
    for t in range(steps):
        set_gradients(optimizer, t)
        optimizer.step()
    return optimizer


def train_on(*optimizers: Any) -> None:
    for t in range(10, 14):
        for optimizer in optimizers:
            set_gradients(optimizer, t)
            optimizer.step()


@pytest.mark.parametrize("steps", [2, 9])
def test_a_state_of_torch_s_on_the_device_goes_on_as_on_the_cpu(steps: int) -> None:
    theirs = trained(torch.optim.RAdam, steps, weight_decay=0.1)
    there, here = trained(RAdam, 0), RAdam(leaves(FEW, torch.float32, "cpu"))
    there.load_state_dict(theirs.state_dict())
    here.load_state_dict(changed(theirs.state_dict(), lambda tensor: tensor.to("cpu")))
    here.param_groups[0]["capturable"] = False
    for state in (there.state.values(), theirs.state.values()):
        assert {(entry["step"].device.type, float(entry["step"])) for entry in state} == {(DEVICE, float(steps))}
    train_on(here, there)
    same_optimizers(there, here, "after the load")


@pytest.mark.parametrize("steps", [2, 9])
def test_torch_goes_on_from_a_state_of_radam_s_on_the_device(steps: int) -> None:
    ours = trained(RAdam, steps, weight_decay=0.1)
    theirs = trained(torch.optim.RAdam, 0)
    theirs.load_state_dict(changed(ours.state_dict(), Tensor.clone))  # PyTorch's would share the tensors
    for entry in theirs.state.values():
        assert (entry["step"].device.type, entry["step"].dtype) == (DEVICE, torch.float32)
    with torch.no_grad():
        for param, source in zip(theirs.param_groups[0]["params"], ours.param_groups[0]["params"]):
            param.copy_(source)
    train_on(ours, theirs)
    for param, expected in zip(theirs.param_groups[0]["params"], ours.param_groups[0]["params"]):
        torch.testing.assert_close(param, expected, rtol=1e-4, atol=1e-5)  # theirs is reckoned in float32
    for entry in theirs.state.values():
        assert back(entry["step"]) == steps + 4
