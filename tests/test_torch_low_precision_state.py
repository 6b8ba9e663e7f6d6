"""State dicts of radam.torch with fewer bits: saved exactly, loaded whatever way they were stored, or refused whole."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from low_precision_ways import WAYS, bits, everything, params, take_steps, ways
from radam.torch import RAdam

KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "8bit": {"state_dtype": "8bit", "min_8bit_size": 1},
}
kinds = pytest.mark.parametrize("kind", KINDS)
MOMENTS = ("exp_avg", "exp_avg_sq")


def reloaded(saved: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


@ways
def test_a_run_resumes_from_its_state_dict_with_the_same_bits(way: dict[str, Any]) -> None:
    optimizer = RAdam(params(torch.bfloat16), lr=0.01, **way)
    take_steps(optimizer, range(4))
    weights = [param.detach().clone() for param in optimizer.param_groups[0]["params"]]
    saved = reloaded(optimizer.state_dict())
    resumed = RAdam(params(torch.bfloat16, 9), lr=1.0, **{**way, "seed": 77})
    with torch.no_grad():
        for param, weight in zip(resumed.param_groups[0]["params"], weights):
            param.copy_(weight)
    resumed.load_state_dict(saved)
    assert everything(resumed) == everything(optimizer)
    assert resumed.precision.seed == optimizer.precision.seed
    for other in (optimizer, resumed):
        take_steps(other, range(4, 8))
    assert everything(resumed) == everything(optimizer)


def test_a_plain_state_dict_is_torchs_own_and_any_other_says_its_version_and_seed() -> None:
    plain, coded = (RAdam(params(torch.bfloat16), **KINDS[kind], seed=3) for kind in ("float32", "8bit"))
    assert plain.state_dict().keys() == {"state", "param_groups"}
    saved = coded.state_dict()
    assert {key: saved[key] for key in ("version", "seed")} == {"version": 2, "seed": 3}


def numbers(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the moments as an optimizer that keeps them in float32 has them."""
    full = RAdam(copy.deepcopy(optimizer.param_groups[0]["params"]))
    full.load_state_dict(optimizer.state_dict())
    return [entry[key] for entry in full.state.values() for key in MOMENTS]


@kinds
@pytest.mark.parametrize("other", KINDS)
def test_moments_load_from_any_kind_into_any(kind: str, other: str) -> None:
    source = RAdam(params(torch.float32), lr=0.01, **KINDS[kind])
    take_steps(source, range(5))
    target = RAdam(params(torch.float32), lr=0.01, **KINDS[other])
    target.load_state_dict(source.state_dict())
    for param, entry in target.state.items():
        wanted = target.precision.entries("float32", param.numel())
        assert {key: x.dtype for key, x in entry.items() if key != "step"} == {
            key: getattr(torch, dtype) for key, dtype in wanted.items()
        }
        assert all(x.stride() == param.stride() for key, x in entry.items() if key != "step" and "scale" not in key)
    # bfloat16 keeps 8 bits of a number, a code 3 behind the leading one, of what is not far below its block's largest.
    rounding = {"float32": 0.0, "bfloat16": 2**-8, "8bit": 2**-4}[other] if other != kind else 0.0
    for got, expected in zip(numbers(target), numbers(source)):
        floor = float(expected.abs().max()) * 2**-14 if other == "8bit" and expected.numel() else 0.0
        assert bool(((got - expected).abs() <= rounding * expected.abs() + floor * (other != kind)).all())
    take_steps(target, range(5, 7))
    again = RAdam(params(torch.float32), lr=0.01, **KINDS[other])
    again.load_state_dict(target.state_dict())
    assert [state for _, state in everything(again)] == [state for _, state in everything(target)]


@kinds
def test_a_checkpoint_of_torchs_own_loads_into_each_kind_and_back(kind: str) -> None:
    reference = torch.optim.RAdam(params(torch.float32), lr=0.01)
    take_steps(reference, range(5))
    ours = RAdam(params(torch.float32), lr=0.01, **KINDS[kind])
    ours.load_state_dict(reference.state_dict())
    take_steps(ours, range(5, 8))
    full = RAdam(params(torch.float32), lr=0.01)
    full.load_state_dict(ours.state_dict())
    back = torch.optim.RAdam(params(torch.float32), lr=0.01)
    back.load_state_dict(full.state_dict())
    for moments in zip(numbers(ours), (entry[key] for entry in back.state.values() for key in MOMENTS)):
        assert bits(moments[0]) == bits(moments[1])


def test_torchs_own_refuses_codes_rather_than_take_them_for_numbers() -> None:
    ours = RAdam(params(torch.float32), **KINDS["8bit"])
    take_steps(ours, range(1))
    theirs = torch.optim.RAdam(params(torch.float32))
    theirs.load_state_dict(ours.state_dict())
    with pytest.raises(KeyError, match="exp_avg"):
        take_steps(theirs, range(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_master_weights_that_nobody_saved_begin_as_the_parameters_are(dtype: torch.dtype) -> None:
    source = RAdam(params(dtype), lr=0.01)
    take_steps(source, range(3))
    mine = [nn.Parameter(param.detach().clone()) for param in source.param_groups[0]["params"]]
    full = [nn.Parameter(param.detach().float()) for param in mine]
    with_master, reference = RAdam(mine, lr=0.01, master_weights=True), RAdam(full, lr=0.01)
    for optimizer in (with_master, reference):
        optimizer.load_state_dict(source.state_dict())
    for t in range(3, 6):
        take_steps(with_master, range(t, t + 1), dtype)
        take_steps(reference, range(t, t + 1))
    assert [bits(param) for param in mine] != [bits(param) for param in source.param_groups[0]["params"]]
    for param, weight in zip(mine, full):
        entry = with_master.state[param]
        if dtype is torch.bfloat16:
            joined = (param.detach().view(torch.int16).int() << 16) + entry["remainder"].int()
            assert bits(joined.view(torch.float32)) == bits(weight)
        else:
            assert bits(entry["master"]) == bits(weight)
    # And an optimizer without them has no use for what was saved.
    source.load_state_dict(with_master.state_dict())
    assert all(entry.keys() == {"step", *MOMENTS} for entry in source.state.values())


def test_codes_go_over_into_another_memory_order_by_their_values() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    rows, columns = nn.Parameter(weight.clone()), nn.Parameter(weight.t().contiguous().t())
    source, target = (RAdam([param], **KINDS["8bit"]) for param in (rows, columns))
    take_steps(source, range(3))
    target.load_state_dict(source.state_dict())
    assert target.state[columns]["exp_avg_code"].stride() == columns.stride() == (1, 40)
    for got, expected in zip(numbers(target), numbers(source)):
        assert bool(((got - expected).abs() <= 2**-4 * expected.abs() + 2**-14 * expected.abs().max()).all())
    again = RAdam([nn.Parameter(weight.clone())], **KINDS["8bit"])
    again.load_state_dict(source.state_dict())
    assert [state for _, state in everything(again)] == [state for _, state in everything(source)]


def test_a_loaded_state_is_a_copy() -> None:
    source = RAdam(params(torch.bfloat16), **WAYS["master and 8 bits"])
    take_steps(source, range(2))
    saved = source.state_dict()
    target = RAdam(params(torch.bfloat16), **WAYS["master and 8 bits"])
    target.load_state_dict(saved)
    before = everything(source)
    take_steps(target, range(2, 4))
    assert everything(source) == before


Spoil = Callable[[dict[str, Any]], Any]


def replace(key: str, value: Callable[[torch.Tensor], Any]) -> Spoil:
    return lambda saved: saved["state"][0].update({key: value(saved["state"][0][key])})


BAD: dict[str, tuple[Spoil, str]] = {
    "codes of another dtype": (replace("exp_avg_code", lambda x: x.int()), "exp_avg_code'. is torch.int32"),
    "codes of the other moment": (replace("exp_avg_sq_code", lambda x: x.view(torch.int8)), "exp_avg_sq_code"),
    "codes of another shape": (replace("exp_avg_code", lambda x: x[:-1]), "exp_avg_code'. has shape"),
    "codes that are no tensor": (replace("exp_avg_code", lambda x: x.tolist()), "must be a tensor"),
    "no scales": (lambda saved: saved["state"][0].pop("exp_avg_scale"), "has no 'exp_avg_scale'"),
    "too few scales": (replace("exp_avg_scale", lambda x: x[:-1]), "exp_avg_scale'. has shape"),
    "scales of another dtype": (replace("exp_avg_sq_scale", lambda x: x.double()), "exp_avg_sq_scale"),
    "a negative scale": (replace("exp_avg_scale", lambda x: -x), "negative or not finite"),
    "a scale that is NaN": (replace("exp_avg_sq_scale", lambda x: x * torch.nan), "negative or not finite"),
    "an infinite scale": (replace("exp_avg_sq_scale", lambda x: x + torch.inf), "negative or not finite"),
    "codes and numbers": (lambda saved: saved["state"][0].update(exp_avg=torch.zeros(300, 5)), "has both"),
    "neither": (lambda saved: saved["state"][0].pop("exp_avg_code"), "has no 'exp_avg'"),
    "a remainder of another dtype": (replace("remainder", lambda x: x.float()), "remainder'. has dtype torch.float32"),
    "a remainder that is no int16": (replace("remainder", lambda x: x.int() + 2**17), "remainder'. holds a number"),
    "a remainder of another shape": (replace("remainder", lambda x: x[0]), "remainder'. has shape"),
    "a later version": (lambda saved: saved.update(version=3), "version 1 to 2"),
    "a version that is none": (lambda saved: saved.update(version="2"), "version"),
    "a seed that is none": (lambda saved: saved.update(seed="x"), "seed"),
    "a seed out of range": (lambda saved: saved.update(seed=2**64), "seed"),
    "bad in the last": (lambda saved: saved["state"][4].pop("exp_avg_scale"), r"state\[4\] has no"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_a_malformed_state_is_refused_whole(spoil: Spoil, message: str) -> None:
    way = WAYS["master and 8 bits"]
    source, target = (RAdam(params(torch.bfloat16), **way) for _ in range(2))
    take_steps(source, range(3))
    take_steps(target, range(2))
    saved = copy.deepcopy(source.state_dict())
    spoil(saved)
    before = everything(target), copy.deepcopy(target.param_groups[0]["lr"]), target.precision
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(saved)
    assert (everything(target), target.param_groups[0]["lr"], target.precision) == before


def test_a_state_that_lacks_a_part_is_refused_at_the_step() -> None:
    optimizer = RAdam(params(torch.float32), **KINDS["8bit"])
    take_steps(optimizer, range(1))
    first = optimizer.param_groups[0]["params"][0]
    del optimizer.state[first]["exp_avg_sq_code"]
    with pytest.raises(ValueError, match="parameter 0 of group 0 has 'exp_avg_code' but no 'exp_avg_sq_code'"):
        take_steps(optimizer, range(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_with_masters_survives_the_way_through_torch(dtype: torch.dtype) -> None:
    param = torch.nn.Parameter(torch.ones(300, dtype=dtype))
    param.grad = torch.ones_like(param)
    optimizer = RAdam([param], master_weights=True)
    optimizer.step()
    other = torch.optim.RAdam([param])
    other.load_state_dict(optimizer.state_dict())
    other.step()
    back = RAdam([param], master_weights=True)
    back.load_state_dict(other.state_dict())
    back.step()
    assert back.state[param]["step"] == 3


def test_codes_in_another_memory_order_than_the_parameter_are_refused_and_load_anew() -> None:
    param = torch.nn.Parameter(torch.zeros(128, 16, 8, 8))
    optimizer = RAdam([param], state_dtype="8bit")
    param.grad = torch.randn(param.shape)
    optimizer.step()
    param.data = param.data.to(memory_format=torch.channels_last)
    before = param.detach().clone()
    with pytest.raises(ValueError, match=r"another memory order .* load the state anew"):
        optimizer.step()
    assert torch.equal(param, before)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
