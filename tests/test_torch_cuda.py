"""radam.torch.RAdam on CUDA tensors, on doubles of them: the same bits as on the CPU, one launch a step, no waiting."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from radam import _step
from radam.torch import RAdam, run
from stand_in_library import StandIn
from test_torch_state import random, tensor_bits
from torch_cuda_double import STREAMS, CudaDouble, no_waiting, on_cuda, on_host, taken_for_plain

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "a slice": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "odd offset": lambda x: torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape),
}
Params = list[Any]


@pytest.fixture(autouse=True)
def _doubles(stand_in: StandIn) -> Iterator[None]:
    with taken_for_plain():
        yield


def make(shapes: Any, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> tuple[Params, Params]:
    """Return parameters on the CPU and the same ones on device 0."""
    here, there = [], []
    for i, shape in enumerate(shapes):
        values = LAYOUTS[layout](random(i, shape, dtype))
        here.append(values.clone(memory_format=torch.preserve_format).requires_grad_())
        laid_out = LAYOUTS[layout](random(i, shape, dtype))
        there.append(on_cuda(laid_out, 0, requires_grad=True))
    return here, there


def set_gradients(params: Params, seed: int, scale: float = 1.0) -> None:
    for i, param in enumerate(params):
        grad = scale * random(100 * seed + i, tuple(param.shape), param.dtype)
        param.grad = on_cuda(grad, param.device.index) if param.is_cuda else grad


def bits(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return the bits of parameters, moments and counts, wherever they lie."""
    out = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            entry = optimizer.state.get(param, {})
            out.append([tensor_bits(on_host(x)) for x in (param, *(entry[k] for k in sorted(entry) if k != "step"))])
            out.append(float(entry["step"]) if entry else None)
    return out


def between(param: Tensor) -> bytes | None:
    """Return the bits of a parameter's memory that are none of its elements."""
    view = on_host(param)
    whole = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
    is_element = torch.zeros(len(whole), dtype=torch.bool)
    is_element.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
    return tensor_bits(whole[~is_element])


SHAPES = [(3, 5), (1, 1), (64, 65), (0, 4)]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "coupled decay": {"weight_decay": 0.1},
    "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True, "eps": 1e-3},
    "author": {"convention": "author"},
    "optax": {"convention": "optax"},
}


@pytest.mark.parametrize("capturable", [False, True], ids=["counted here", "counted there"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_have_the_bits_of_the_cpu(dtype: torch.dtype, settings: dict[str, Any], capturable: bool) -> None:
    here, there = make(SHAPES, dtype)
    ours, theirs = RAdam(here, lr=0.01, **settings), RAdam(there, lr=0.01, capturable=capturable, **settings)
    for seed in range(9):
        for params in (here, there):
            set_gradients(params, seed)
            params[1].grad = None if seed == 4 else params[1].grad
        ours.step()
        theirs.step()
        assert bits(theirs) == bits(ours)
    assert theirs.state[there[0]]["step"].is_cuda == capturable


@pytest.mark.parametrize("capturable", [False, True], ids=["counted here", "counted there"])
def test_a_block_that_meets_parameters_at_different_steps_takes_each_at_its_own(capturable: bool) -> None:
    here, there = make([(3,)] * 23)  # more than the stand-in has blocks
    ours, theirs = RAdam(here, lr=0.01), RAdam(there, lr=0.01, capturable=capturable)
    for seed in range(12):
        for params in (here, there):
            set_gradients(params, seed)
            for i, param in enumerate(params):
                param.grad = None if seed < i % 4 or (seed + i) % 7 == 0 else param.grad
        ours.step()
        theirs.step()
        assert bits(theirs) == bits(ours)
    assert len({float(entry["step"]) for entry in theirs.state.values()}) > 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_layout_has_the_bits_of_the_cpu_and_what_lies_between_stays(dtype: torch.dtype, layout: str) -> None:
    here, there = make([(4, 6), (33, 130)], dtype, layout)
    gaps = [between(param) for param in there]
    ours, theirs = RAdam(here, lr=0.01), RAdam(there, lr=0.01)
    for seed in range(4):
        for params in (here, there):
            set_gradients(params, seed)
        ours.step()
        theirs.step()
    assert bits(theirs) == bits(ours)
    assert [between(param) for param in there] == gaps
    assert any(gaps) == (layout in ("a slice", "odd offset"))


def test_a_step_is_one_launch_on_the_current_stream_of_each_device(stand_in: StandIn) -> None:
    groups = [
        {"params": [on_cuda(random(g, (7,), dtype), index, requires_grad=True) for dtype in DTYPES for index in (0, 1)]}
        for g in range(3)
    ]
    optimizer = RAdam(groups, lr=0.01)
    params = [param for group in groups for param in group["params"]]
    for seed in range(3):
        set_gradients(params, seed)
        stand_in.forget()
        optimizer.step()
        launches = [line for line in stand_in.log() if line.startswith("step")]
        assert launches == [f"step device={i} stream={STREAMS[i]} slots=15" for i in (0, 1)]
    assert set(CudaDouble.exported_for) == set(STREAMS.values())


def test_cpu_and_cuda_parameters_step_together() -> None:
    here, there = make([(5,), (300,)])
    both = RAdam([{"params": [here[0], there[1]]}, {"params": [there[0], here[1]], "lr": 0.1}], lr=0.01)
    alone = make([(5,), (300,)])[0]
    expected = RAdam([{"params": alone}], lr=0.01), RAdam(copy.deepcopy(alone), lr=0.1)
    for seed in range(7):
        for params in (here, there, alone, expected[1].param_groups[0]["params"]):
            set_gradients(params, seed)
        both.step()
        for optimizer in expected:
            optimizer.step()
    slow, fast = (bits(optimizer) for optimizer in expected)
    assert bits(both) == [*slow, *fast]


@pytest.mark.parametrize("capturable", [False, True])
def test_an_ordinary_step_waits_for_nothing(capturable: bool) -> None:
    _, there = make(SHAPES)
    lr = on_cuda(torch.tensor(0.01)) if capturable else 0.01
    optimizer = RAdam(there, lr=lr, capturable=capturable)
    for seed in range(3):
        set_gradients(there, seed)
        with no_waiting():
            optimizer.step()
    with pytest.raises(AssertionError, match="would wait"), no_waiting():
        float(there[0][0, 0])  # so that the test can fail


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_rate_on_the_device_is_read_there(dtype: torch.dtype) -> None:
    here, there = make(SHAPES)
    lr, beta2 = on_cuda(torch.tensor(0.0, dtype=dtype)), on_cuda(torch.tensor(0.99, dtype=torch.float64))
    ours, theirs = RAdam(here, betas=(0.9, 0.99)), RAdam(there, lr=lr, betas=(0.9, beta2), capturable=True)
    for seed in range(9):
        rate = torch.tensor(0.1 / (1 + seed), dtype=dtype)
        on_host(lr).copy_(rate)
        ours.param_groups[0]["lr"] = float(rate)
        for params in (here, there):
            set_gradients(params, seed)
        ours.step()
        with no_waiting():
            theirs.step()
    assert bits(theirs) == bits(ours)


def test_a_replayed_graph_takes_true_steps_with_the_rates_of_now(stand_in: StandIn) -> None:
    here, there = make(SHAPES)
    lr = on_cuda(torch.tensor(0.01))
    ours, theirs = RAdam(here, lr=0.01), RAdam(there, lr=lr, capturable=True)

    def both(step: Callable[[], Any], seed: int) -> None:
        for params in (here, there):
            for i, param in enumerate(params):
                grad = random(100 * seed + i, tuple(param.shape), param.dtype)
                if param.grad is None:
                    param.grad = on_cuda(grad, 0) if param.is_cuda else grad
                else:
                    on_host(param.grad).copy_(grad)  # a graph keeps its addresses
        ours.step()
        step()
        assert bits(theirs) == bits(ours)

    for seed in range(3):
        both(theirs.step, seed)
    stand_in.capture(True)
    before = bits(theirs)
    theirs.step()
    stand_in.capture(False)
    assert bits(theirs) == before
    for seed in range(3, 20):
        rate = torch.tensor(0.02 / seed)
        on_host(lr).copy_(rate)
        ours.param_groups[0]["lr"] = float(rate)
        both(stand_in.replay, seed)
    both(theirs.step, 20)


def test_a_state_is_not_made_inside_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    _, there = make(SHAPES)
    optimizer = RAdam(there, lr=0.01, capturable=True, nonfinite="skip")
    set_gradients(there, 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for what in ("the count of skipped steps", "the state of parameter 0 of group 0"):
        with pytest.raises(RuntimeError, match=f"{what} would be made inside a CUDA graph.*take one step before"):
            optimizer.step()
        assert not optimizer.state
        optimizer.nonfinite = "propagate"
    monkeypatch.undo()


def test_states_on_the_device_and_torch_s_are_interchangeable() -> None:
    here, there = make(SHAPES)
    ours = RAdam(there, lr=0.01, capturable=True)
    for seed in range(7):
        set_gradients(there, seed)
        ours.step()
    saved = ours.state_dict()
    assert all(entry["step"].is_cuda for entry in saved["state"].values())
    plain = {
        "param_groups": [{**group, "capturable": False} for group in saved["param_groups"]],
        "state": {i: {k: on_host(v).clone() for k, v in entry.items()} for i, entry in saved["state"].items()},
    }
    torchs = torch.optim.RAdam(here)
    torchs.load_state_dict(copy.deepcopy(plain))  # it would advance the very counts it is given
    set_gradients(here, 7)
    torchs.step()

    for capturable in (True, False):
        groups = [{**group, "capturable": capturable} for group in plain["param_groups"]]
        _, other = make(SHAPES)
        with torch.no_grad():
            for param, value in zip(other, there):
                on_host(param).copy_(on_host(value))
        back = RAdam(other, lr=0.5)
        back.load_state_dict({**plain, "param_groups": groups})
        assert {entry["step"].is_cuda for entry in back.state.values()} == {capturable}
        assert all(entry["exp_avg"].is_cuda for entry in back.state.values())
        set_gradients(other, 7)
        back.step()
        for param, expected in zip(other, here):
            assert float(back.state[param]["step"]) == float(torchs.state[expected]["step"]) == 8
            torch.testing.assert_close(
                on_host(back.state[param]["exp_avg"]), torchs.state[expected]["exp_avg"], rtol=2e-6, atol=2e-6
            )


class Scaler:
    """What torch.amp.GradScaler sets on an optimizer that unscales by itself."""

    def __init__(self, optimizer: RAdam, scale: float) -> None:
        self.found_inf = on_cuda(torch.zeros(()))
        optimizer.grad_scale = on_cuda(torch.tensor(scale))  # type: ignore[attr-defined]
        optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]


@pytest.mark.parametrize("capturable", [False, True])
def test_a_scaler_s_numbers_are_read_there_and_a_skip_advances_nothing(capturable: bool) -> None:
    here, there = make(SHAPES)
    ours, theirs = RAdam(here, lr=0.01), RAdam(there, lr=0.01, fused_amp=True, capturable=capturable)
    scaler = Scaler(theirs, 1024.0)
    skipped = 0
    for seed in range(9):
        set_gradients(here, seed)
        set_gradients(there, seed, 1024.0)
        is_spoiled = seed in (0, 4, 5)
        on_host(scaler.found_inf).fill_(float(is_spoiled))
        if not is_spoiled:
            ours.step()
        before = bits(theirs)
        with no_waiting():
            theirs.step()
        skipped += is_spoiled
        assert theirs.skipped_steps == skipped
        if seed not in (0,):
            assert bits(theirs) == (before if is_spoiled else bits(ours))
    assert bits(theirs) == bits(ours)
    assert all(entry["step"].is_cuda for entry in theirs.state.values())
    assert theirs.__getstate__()["skipped_steps"] == skipped


@pytest.mark.parametrize("idle", [0, 1])
def test_a_skip_counts_once_whichever_device_has_nothing_to_do(idle: int) -> None:
    params = [on_cuda(random(i, (5,), torch.float32), i, requires_grad=True) for i in (0, 1)]
    optimizer = RAdam(params, lr=0.01, fused_amp=True)
    scaler = Scaler(optimizer, 4.0)
    for without in (None, idle, None):
        set_gradients(params, 1)
        if without is not None:
            params[without].grad = None
        # The real .to() copies to the other device.
        optimizer.found_inf = on_cuda(torch.ones((), dtype=torch.float16))  # type: ignore[attr-defined]
        optimizer.grad_scale = on_cuda(torch.tensor(4.0, dtype=torch.float16))  # type: ignore[attr-defined]
        optimizer.step()
    assert optimizer.skipped_steps == 3
    optimizer.found_inf = scaler.found_inf.half()  # type: ignore[attr-defined]
    optimizer.step()
    assert optimizer.skipped_steps == 3
    optimizer.grad_scale = 0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="grad_scale must be above 0"):
        optimizer.step()


def test_counts_of_before_the_scaler_move_to_the_device() -> None:
    here, there = make(SHAPES)
    ours, theirs = RAdam(here, lr=0.01), RAdam(there, lr=0.01)
    for seed in range(4):
        for params in (here, there):
            set_gradients(params, seed)
        if seed == 2:
            theirs.fused_amp = True
            Scaler(theirs, 1.0)
        ours.step()
        theirs.step()
        assert bits(theirs) == bits(ours)
    assert all(entry["step"].is_cuda for entry in theirs.state.values())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kind", ["first step", "later step"])
def test_a_broken_gradient_is_skipped_or_raised_and_changes_nothing(value: float, kind: str) -> None:
    for nonfinite in ("skip", "raise"):
        _, there = make(SHAPES)
        optimizer = RAdam(there, lr=0.01, nonfinite=nonfinite)  # type: ignore[arg-type]
        if kind == "later step":
            set_gradients(there, 0)
            optimizer.step()
        before = bits(optimizer)
        set_gradients(there, 1)
        on_host(there[2].grad)[63, 64] = value
        if nonfinite == "raise":
            with pytest.raises(FloatingPointError, match="parameter 2 of group 0 holds an inf or a NaN"):
                optimizer.step()
        else:
            optimizer.step()
        assert optimizer.skipped_steps == (nonfinite == "skip")
        assert bits(optimizer) == before


def test_a_captured_step_skips_by_itself_and_cannot_raise(stand_in: StandIn) -> None:
    here, there = make(SHAPES)
    optimizers = [RAdam(p, lr=0.01, capturable=p is there, nonfinite="skip") for p in (here, there)]
    for params, optimizer in zip((here, there), optimizers):
        set_gradients(params, 0)
        optimizer.step()
    stand_in.capture(True)
    optimizers[1].step()
    optimizers[1].nonfinite = "raise"
    with pytest.raises(RuntimeError, match="cannot raise from a CUDA graph"):
        optimizers[1].step()
    stand_in.capture(False)
    for seed in range(1, 6):
        for params in (here, there):
            for i, param in enumerate(params):
                on_host(param.grad).copy_(random(100 * seed + i, tuple(param.shape), param.dtype))
                if seed == 3 and i == 0:
                    on_host(param.grad)[0, 0] = math.nan
        optimizers[0].step()
        stand_in.replay()
        assert bits(optimizers[1]) == bits(optimizers[0])
    assert [optimizer.skipped_steps for optimizer in optimizers] == [1, 1]


def test_capturable_with_a_count_on_the_cpu_is_torch_s_error() -> None:
    _, there = make(SHAPES)
    optimizer = RAdam(there, lr=0.01)
    set_gradients(there, 0)
    optimizer.step()
    optimizer.param_groups[0]["capturable"] = True
    before = bits(optimizer)
    with pytest.raises(AssertionError, match="If capturable=True, params and state_steps must be on supported devices"):
        optimizer.step()
    assert bits(optimizer) == before


MISTAKES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a gradient on the CPU": (lambda p: on_host(p.grad), "is on the CPU, the parameter on CUDA device 0"),
    "a gradient on another device": (lambda p: on_cuda(p.grad, 1), "is on CUDA device 1, the parameter on CUDA device"),
}


@pytest.mark.parametrize(("spoil", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_lies_elsewhere_is_refused_and_nothing_changes(spoil: Callable[[Any], Any], message: str) -> None:
    here, there = make([(5,), (4,)])
    params = [here[0], there[1]]
    optimizer = RAdam(params, lr=0.01)
    for seed in range(2):
        set_gradients(params, seed)
        if seed == 0:
            optimizer.step()
    wrong = spoil(there[1])
    there[1].__dict__["grad"] = wrong  # PyTorch itself refuses such a gradient
    plans = [
        (optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"], optimizer.state[p]["step"]) for p in params
    ]
    before = bits(optimizer)
    group = optimizer.param_groups[0]
    hyperparameters = optimizer._settings.of(group)
    columns = [tuple(column) for column in zip(*plans)]
    with pytest.raises(ValueError, match=message):
        _step.step(
            (
                (
                    hyperparameters,
                    None,
                    tuple(params),
                    (here[0].grad, wrong),
                    columns[0],
                    columns[1],
                    None,
                    columns[2],
                    None,
                ),
            ),
            "propagate",
        )
    assert bits(optimizer) == before


@pytest.mark.parametrize("calls", [0, 1, 2])
@pytest.mark.parametrize("kind", ["first step", "later step"])
def test_a_device_that_cannot_start_raises_and_nothing_has_changed(stand_in: StandIn, calls: int, kind: str) -> None:
    here, _ = make([(5,)])
    params = [here[0], *(on_cuda(random(i, (4, 6), torch.float32)[:, ::2], i, requires_grad=True) for i in (0, 1))]
    optimizer = RAdam(params, lr=0.01)
    if kind == "later step":
        set_gradients(params, 0)
        optimizer.step()
    set_gradients(params, 1)
    before = bits(optimizer), len(optimizer.state)
    stand_in.fail_after(calls)
    with pytest.raises(RuntimeError, match=r"CUDA failed: .*told to fail"):
        optimizer.step()
    assert (bits(optimizer), len(optimizer.state)) == before
    optimizer.step()
    assert bits(optimizer) != before[0]


def test_without_the_library_a_step_goes_through_torch_s_operations(stand_in: StandIn) -> None:
    here, there = make(SHAPES[:3])
    ours, theirs = RAdam(here, lr=0.01), RAdam(there, lr=0.01)
    stand_in.unload()
    assert "built without CUDA" in _step.why_cuda_is_off()
    run._warn_of_no_kernel.cache_clear()
    for seed in range(9):
        for params in (here, there):
            set_gradients(params, seed)
        ours.step()
        if seed == 0:
            with pytest.warns(RuntimeWarning, match="stepped by PyTorch's own operations.*built without CUDA"):
                theirs.step()
        else:
            theirs.step()  # says so once
    for param, double in zip(here, there):
        torch.testing.assert_close(on_host(double), param.detach(), rtol=2e-6, atol=2e-6)
    assert not stand_in.log()
