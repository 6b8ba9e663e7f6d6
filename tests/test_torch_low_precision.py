"""radam.torch with weights and moments in fewer bits: what the states are, that it trains, and that it is one law."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import radam
from low_precision_ways import SHAPES, WAYS, bits, draw, everything, params, take_steps, ways
from radam import _step
from radam.torch import RAdam

LOW = [torch.bfloat16, torch.float16]


def test_a_bf16_weight_of_one_moves_in_each_of_these_ways_and_not_without() -> None:
    def moved(**options: Any) -> float:
        weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = RAdam([weight], lr=1e-3, **options)
        for _ in range(300):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return 1.0 - float(weight.detach().float().mean())

    exact = nn.Parameter(torch.ones(4096))
    optimizer = RAdam([exact], lr=1e-3)
    for _ in range(300):
        exact.grad = torch.ones_like(exact)
        optimizer.step()
    wanted = 1.0 - float(exact.detach().mean())
    assert moved() == 0.0
    assert moved(master_weights=True) == pytest.approx(wanted, abs=2**-8)
    assert moved(stochastic_rounding=True) == pytest.approx(wanted, rel=0.02)
    assert moved(master_weights=True, state_dtype="8bit") == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("decoupled", [False, True])
def test_master_weights_follow_the_fp32_trajectory_bit_for_bit(dtype: torch.dtype, decoupled: bool) -> None:
    low = params(dtype)
    full = [nn.Parameter(param.detach().float()) for param in low]
    settings = {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    ours, reference = RAdam(low, master_weights=True, **settings), RAdam(full, **settings)
    for t in range(12):
        take_steps(ours, range(t, t + 1), dtype)
        take_steps(reference, range(t, t + 1))
        for param, weight in zip(low, full):
            entry = ours.state[param]
            if dtype is torch.bfloat16:
                joined = (param.detach().view(torch.int16).int() << 16) + entry["remainder"].int()
                assert bits(joined.view(torch.float32)) == bits(weight)
            else:
                assert bits(entry["master"]) == bits(weight)
                assert bits(param) == bits(weight.detach().to(dtype))
            for key in ("exp_avg", "exp_avg_sq"):
                assert bits(entry[key]) == bits(reference.state[weight][key])


@pytest.mark.parametrize("dtype", [*LOW, torch.float32], ids=str)
@ways
def test_radam_torch_and_radam_have_the_same_bits(way: dict[str, Any], dtype: torch.dtype) -> None:
    ours = params(dtype)
    theirs = [param.detach().clone(memory_format=torch.preserve_format) for param in ours]
    optimizer, reference = (
        make([{"params": params[:1]}, {"params": params[1:], "lr": 0.05}], lr=0.01, **way)
        for make, params in ((RAdam, ours), (radam.RAdam, theirs))
    )
    for t in range(9):
        grads: list[Any] = draw(SHAPES, 100 + t, dtype)
        grads[0] = None if t % 4 == 2 else grads[0]  # a group without gradients counts nevertheless
        for param, grad in zip(ours, grads):
            param.grad = grad
        optimizer.step()
        reference.step(grads=grads)
    assert [bits(param) for param in ours] == [bits(param) for param in theirs]


CASES: dict[str, tuple[torch.dtype, dict[str, Any], dict[str, tuple[torch.dtype, Any]]]] = {
    "split": (torch.bfloat16, WAYS["master"], {"remainder": (torch.int16, None)}),
    "master": (torch.float16, WAYS["master"], {"master": (torch.float32, None)}),
    "nothing to split": (torch.float32, WAYS["master"], {}),
    "stochastic": (torch.bfloat16, WAYS["stochastic"], {}),
    "bf16": (
        torch.float32,
        WAYS["bf16 moments"],
        {"exp_avg": (torch.bfloat16, None), "exp_avg_sq": (torch.bfloat16, None)},
    ),
    "8 bits": (
        torch.bfloat16,
        WAYS["8-bit moments"],
        {
            **{"exp_avg_code": (torch.int8, None), "exp_avg_sq_code": (torch.uint8, None)},
            **{"exp_avg_scale": (torch.float32, 1), "exp_avg_sq_scale": (torch.float32, 1)},
        },
    ),
    "8 bits of float64": (torch.float64, WAYS["8-bit moments"], {}),
    "8 bits of complex64": (torch.complex64, WAYS["8-bit moments"], {}),
}


@pytest.mark.parametrize(("dtype", "way", "wanted"), CASES.values(), ids=CASES.keys())
def test_a_state_holds_what_the_options_say_in_the_memory_order_of_the_parameter(
    dtype: torch.dtype, way: dict[str, Any], wanted: dict[str, tuple[torch.dtype, Any]]
) -> None:
    param = nn.Parameter(torch.ones(3, 50, 4, 2, dtype=dtype).contiguous(memory_format=torch.channels_last))
    optimizer = RAdam([param], **way)
    param.grad = torch.ones_like(param)
    optimizer.step()
    entry = optimizer.state[param]
    moments = {} if "exp_avg_code" in wanted else dict.fromkeys(("exp_avg", "exp_avg_sq"))
    assert entry.keys() == {"step", *moments, *wanted}
    for key, (kept, size) in wanted.items():
        assert entry[key].dtype is kept
        assert (entry[key].shape, entry[key].stride()) == (
            (param.shape, param.stride()) if size is None else ((math.ceil(1200 / 128),), (1,))
        )


def test_small_tensors_keep_float32_moments_unless_asked() -> None:
    small, large = (nn.Parameter(torch.ones(size)) for size in (4095, 4096))
    optimizer = RAdam([small, large], state_dtype="8bit")
    take_steps(optimizer, range(2))
    assert "exp_avg" in optimizer.state[small]
    assert "exp_avg_code" not in optimizer.state[small]
    assert "exp_avg" not in optimizer.state[large]
    assert "exp_avg_code" in optimizer.state[large]
    kept = sum(x.numel() * x.element_size() for key, x in optimizer.state[large].items() if key != "step")
    assert kept <= 2.1 * 4096


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The native calls of a step."""
    made: list[Any] = []
    step = _step.step

    def counted(*args: Any) -> bool:
        made.append(args)
        return step(*args)

    monkeypatch.setattr(_step, "step", counted)
    return made


@ways
def test_a_step_is_one_native_call_on_the_fast_path(way: dict[str, Any], calls: list[Any]) -> None:
    optimizer = RAdam(params(torch.bfloat16), max_grad_norm=1.0, **way)
    take_steps(optimizer, range(1))
    calls.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "_take_careful_step", None)
        take_steps(optimizer, range(1, 3))
    assert len(calls) == 2


@ways
def test_the_version_of_every_tensor_that_a_step_writes_moves(way: dict[str, Any]) -> None:
    mine = params(torch.bfloat16)
    optimizer = RAdam(mine, **way)
    for t in range(2):  # the first looks at each tensor, the second does not
        written = [*mine, *(x for p in mine for key, x in optimizer.state.get(p, {}).items() if key != "step")]
        before = [tensor._version for tensor in written]
        take_steps(optimizer, range(t, t + 1))
        assert all(tensor._version > version for tensor, version in zip(written, before))


@ways
def test_copies_and_pickles_go_on_with_the_same_bits(way: dict[str, Any]) -> None:
    optimizer = RAdam(params(torch.bfloat16), **way)
    take_steps(optimizer, range(3))
    others = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    take_steps(optimizer, range(3, 6))
    for other in others:
        take_steps(other, range(3, 6))
        assert other.precision == optimizer.precision
        assert everything(other) == everything(optimizer)


@ways
def test_a_step_that_fails_leaves_no_states_and_changes_nothing(way: dict[str, Any]) -> None:
    mine = params(torch.bfloat16)
    shared = torch.zeros(4, dtype=torch.bfloat16)
    bad = nn.Parameter(shared.expand(3, 4))
    optimizer = RAdam([*mine, bad], max_grad_norm=1.0, **way)
    for param in (*mine, bad):
        param.grad = torch.ones(param.shape, dtype=param.dtype)
    before = everything(optimizer)
    with pytest.raises(ValueError, match=r"share|overlap"):
        optimizer.step()
    assert everything(optimizer) == before
    assert not optimizer.state
    bad.grad = None
    optimizer.step()
    assert all(optimizer.state[param]["step"].item() == 1 for param in mine)


@ways
def test_a_compiled_step_has_the_bits_of_an_eager_one(way: dict[str, Any]) -> None:
    torch._dynamo.reset()
    optimizers = [RAdam(params(torch.bfloat16), lr=0.01, max_grad_norm=2.0, **way) for _ in range(2)]
    compiled = torch.compile(optimizers[1].step, backend="aot_eager", fullgraph=True)
    mine = [[param for group in x.param_groups for param in group["params"]] for x in optimizers]
    for t in range(4):
        for both in zip(*mine, draw(SHAPES, 100 + t, torch.bfloat16)):
            both[0].grad, both[1].grad = both[2].clone(), both[2].clone()
        optimizers[0].step()
        compiled()
        assert everything(optimizers[1]) == everything(optimizers[0])
        assert optimizers[1].grad_norm == optimizers[0].grad_norm
    torch._dynamo.reset()


@ways
def test_a_step_that_a_mode_watches_has_the_same_bits(way: dict[str, Any]) -> None:
    optimizers = [RAdam(params(torch.bfloat16), lr=0.01, max_grad_norm=2.0, **way) for _ in range(2)]
    for t in range(3):
        take_steps(optimizers[0], range(t, t + 1))
        with FlopCounterMode(display=False):
            take_steps(optimizers[1], range(t, t + 1))
    assert everything(optimizers[1]) == everything(optimizers[0])
    assert optimizers[1].grad_norm == optimizers[0].grad_norm


@ways
def test_the_same_parameter_twice_takes_two_steps(way: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="duplicate"):
        twice = RAdam(3 * params(torch.bfloat16)[:1], **way)
    take_steps(twice, range(1))
    (entry,) = twice.state.values()
    assert entry["step"].item() == 3


@pytest.mark.parametrize("kind", ["8-bit moments", "stochastic and 8 bits"])
def test_the_seed_decides_the_bits_and_each_tensor_has_its_own(kind: str) -> None:
    def after(seed: int) -> list[bytes]:
        mine = [nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = RAdam(mine, lr=1e-3, **{**WAYS[kind], "seed": seed})
        for t in range(5):
            for param in mine:
                param.grad = draw([(4096,)], 50 + t, torch.bfloat16)[0]
            optimizer.step()
        return [bits(x) for param in mine for key, x in optimizer.state[param].items() if "code" in key]

    first, again, other = after(1), after(1), after(2)
    assert first == again
    assert all(a != b for a, b in zip(first, other))
    assert first[:2] != first[2:]


def test_complex_parameters_keep_their_moments_and_their_bits() -> None:
    def after(**options: Any) -> bytes:
        param = nn.Parameter(torch.complex(*draw([(64, 80)] * 2, 3)))
        optimizer = RAdam([param], lr=0.01, **options)
        for t in range(4):
            param.grad = torch.complex(*draw([(64, 80)] * 2, 10 + t))
            optimizer.step()
        return bits(torch.view_as_real(param.detach()))

    plain = after()
    assert [after(**way) == plain for way in WAYS.values()] == [True] * len(WAYS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"master_weights": True, "stochastic_rounding": True}, "choose one"),
        ({"state_dtype": "int4"}, "state_dtype must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**64}, "seed must be"),
        ({"min_8bit_size": -1}, "min_8bit_size must be"),
        ({"differentiable": True, "master_weights": True}, "differentiable"),
        ({"differentiable": True, "max_grad_value": 1.0}, "differentiable"),
    ],
    ids=str,
)
def test_options_that_contradict_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RAdam(params(torch.bfloat16), **options)


def test_a_differentiable_group_is_refused_later_too() -> None:
    optimizer = RAdam(params(torch.bfloat16), state_dtype="8bit")
    with pytest.raises(ValueError, match="differentiable"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "differentiable": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("options", [{"state_dtype": "bfloat16"}, {"max_grad_norm": 1.0}], ids=str)
def test_a_device_without_a_kernel_is_refused_and_nothing_changes(options: dict[str, Any]) -> None:
    there, here = nn.Parameter(torch.ones(3, device="meta")), nn.Parameter(torch.ones(3))
    optimizer = RAdam([here, there], **options)
    here.grad, there.grad = torch.ones(3), torch.ones(3, device="meta")
    with pytest.raises(RuntimeError, match=r"parameter 1 of group 0.*meta"):
        optimizer.step()
    assert not optimizer.state
    assert here.detach().tolist() == [1.0] * 3


def test_repr_shows_what_is_not_the_default() -> None:
    text = repr(RAdam(params(torch.bfloat16), state_dtype="8bit", max_grad_norm=1.5))
    assert text.startswith("RAdam (\nstate_dtype: 8bit\nmax_grad_norm: 1.5\nParameter Group 0")
    assert repr(RAdam(params(torch.bfloat16))).startswith("RAdam (\nParameter Group 0")


@ways
def test_a_bf16_network_learns(way: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1)).to(torch.bfloat16)
    optimizer = RAdam(model.parameters(), lr=0.01, max_grad_norm=5.0, **way)
    x = draw([(256, 8)], 2, torch.bfloat16)[0]
    y = x[:, :2].float().prod(dim=1, keepdim=True)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x).float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_a_saved_optimizer_of_an_older_version_has_no_options() -> None:
    optimizer = RAdam(params(torch.bfloat16))
    content = optimizer.__getstate__()
    for key in ("precision", "max_grad_norm", "max_tensor_grad_norm", "max_grad_value"):
        del content[key]
    older = RAdam.__new__(RAdam)
    older.__setstate__(pickle.load(io.BytesIO(pickle.dumps(content))))
    assert older.precision.is_plain
    take_steps(older, range(2))
    assert older.grad_norm is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit", "min_8bit_size": 0}], ids=["float32", "8bit"])
def test_a_model_that_becomes_16_bits_later_gets_its_master_weights(dtype: torch.dtype, options: Any) -> None:
    model = torch.nn.Linear(16, 16, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = RAdam(model.parameters(), lr=1e-4, master_weights=True, **options)
    for step in range(300):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        if step == 0:
            model.to(dtype)
    assert model.weight.dtype is dtype
    assert model.weight.float().max() < 0.995


def test_a_state_loaded_in_inference_mode_steps_outside_of_it() -> None:
    for source, target in itertools.product(("float32", "bfloat16", "8bit"), repeat=2):
        param = torch.nn.Parameter(torch.ones(300, dtype=torch.bfloat16))
        param.grad = torch.ones_like(param)
        optimizer = RAdam([param], state_dtype=source, min_8bit_size=0)
        optimizer.step()
        other = RAdam([param], state_dtype=target, min_8bit_size=0, master_weights=True)
        with torch.inference_mode():
            other.load_state_dict(optimizer.state_dict())
        other.step()
