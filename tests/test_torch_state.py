"""The state of radam.torch.RAdam is torch.optim.RAdam's: either class goes on from what the other has saved."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import radam
from radam.torch import RAdam
from reference import Trajectory, torch_radam

Make = Callable[..., torch.optim.Optimizer]
CLASSES: dict[str, Make] = {"radam": RAdam, "torch": torch.optim.RAdam}
ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-6, torch.bfloat16: 2**-7}  # of max(1, |p|)
ROUNDING |= {torch.complex128: ROUNDING[torch.float64], torch.complex64: ROUNDING[torch.float32]}
MOST_FLOAT32 = 2**24
MOMENTS = ("exp_avg", "exp_avg_sq")


# ---- every bit of an optimizer


def tensor_bits(tensor: Tensor) -> bytes | None:
    """Return the bits of a tensor in C order, None where it has no memory of its own."""
    if hasattr(tensor, "__tensor_flatten__"):
        return b"".join(tensor_bits(getattr(tensor, name)) or b"" for name in tensor.__tensor_flatten__()[0])
    if not has_memory(tensor):
        return None
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def has_memory(tensor: Tensor) -> bool:
    on_cpu = tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor._is_zerotensor()
    return on_cpu and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def exactly(value: Any) -> Any:
    """Return what tells a value from any other: of a tensor its identity, place and version counter too."""
    if isinstance(value, Tensor):
        version = None if value.is_inference() else value._version
        place = value.data_ptr() if has_memory(value) else None
        return id(value), place, version, str(value.dtype), tuple(value.shape), value.device, tensor_bits(value)
    if isinstance(value, dict):
        return [(exactly(key), exactly(entry)) for key, entry in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [exactly(entry) for entry in value]
    return repr(value)


def everything(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a snapshot of an optimizer with its parameters and gradients, comparable with ==."""
    params = params_of(optimizer)
    return {
        "params": [exactly(param) for param in params],
        "strides": [param.stride() for param in params if param.layout is torch.strided],
        "grads": [exactly(param.grad) for param in params],
        "state": exactly(optimizer.state),
        "containers": [id(x) for x in (optimizer.state, optimizer.param_groups, *optimizer.param_groups)],
        "entries": [id(entry) for entry in optimizer.state.values()],
        "param_groups": exactly(optimizer.param_groups),
        "defaults": exactly(optimizer.defaults),
        "attributes": sorted(name for name in optimizer.__dict__ if not name.startswith("_")),
        "skipped_steps": getattr(optimizer, "skipped_steps", None),
    }


def bits_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the bits of the parameters and of the state dict: equal for optimizers that go on alike."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return str(value.dtype), tuple(value.shape), value.stride(), tensor_bits(value)
        return {key: plain(entry) for key, entry in value.items()} if isinstance(value, dict) else value

    saved = optimizer.state_dict()
    return {
        "params": [tensor_bits(param) for param in params_of(optimizer)],
        "state": {key: plain(entry) for key, entry in saved["state"].items()},
        "param_groups": [plain(group) for group in saved["param_groups"]],
    }


# ---- making and stepping


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def random(seed: int, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = dtype if dtype.is_complex else torch.float64
    return torch.randn(tuple(shape), generator=generator, dtype=drawn).to(dtype)


SHAPES = [(3, 4), (), (5,), (0, 2)]


def make(
    cls: Make = RAdam, dtype: torch.dtype = torch.float32, seed: int = 1, **keywords: Any
) -> torch.optim.Optimizer:
    """Return an optimizer over two groups."""
    params = [nn.Parameter(random(100 * seed + i, shape, dtype)) for i, shape in enumerate(SHAPES)]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.03, "betas": (0.8, 0.99)}]
    return cls(groups, **{"lr": 0.01, **keywords})


def step(optimizer: torch.optim.Optimizer, seed: int, without: int | None = None) -> None:
    """Take a step along random gradients, the same ones for the same seed."""
    for i, param in enumerate(params_of(optimizer)):
        param.grad = None if i == without else random(1000 * seed + i, param.shape, param.dtype).to(param.dtype)
    optimizer.step()


def put(target: torch.optim.Optimizer, source: torch.optim.Optimizer) -> None:
    """Give the parameters of an optimizer the values of another's."""
    with torch.no_grad():
        for ours, theirs in zip(params_of(target), params_of(source), strict=True):
            ours.copy_(theirs)


def handed_over(source: torch.optim.Optimizer, target: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the target, with the parameters and the state dict of the source (copied: torch shares its counts)."""
    put(target, source)
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    return target


def assert_close(got: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    """Compare parameters and states within float rounding, counts exactly."""
    for i, (ours, theirs) in enumerate(zip(params_of(got), params_of(expected), strict=True)):
        assert_near(ours, theirs, f"param {i}")
        state, other = got.state.get(ours, {}), expected.state.get(theirs, {})
        assert state.keys() == other.keys(), f"state of param {i}: {list(state)}"
        for key in MOMENTS if state else ():
            assert_near(state[key], other[key], f"{key} of param {i}")
        if state:
            assert float(state["step"]) == float(other["step"]), f"step of param {i}"


def assert_near(got: Tensor, expected: Tensor, what: str) -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), what
    error = (got - expected).detach().abs() / expected.detach().abs().clamp(min=1)
    assert bool((error <= ROUNDING[expected.dtype]).all()), f"{what} is off by {error.max().item()}"


# ---- from one class to the other

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    "float64": {"dtype": torch.float64, "weight_decay": 0.1},
    "complex64": {"dtype": torch.complex64},
    "complex128": {"dtype": torch.complex128, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "foreach": {"foreach": True},
}


@pytest.mark.parametrize("steps", [0, 1, 5, 6, 40])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("before", "after"), [("radam", "torch"), ("torch", "radam"), ("radam", "radam")])
def test_a_checkpoint_of_either_class_goes_on_in_the_other(
    before: str, after: str, settings: dict[str, Any], steps: int
) -> None:
    source = make(CLASSES[before], **settings)
    for seed in range(steps):
        step(source, seed, without=2 if seed < 3 else None)
    other = {key: value for key, value in settings.items() if key == "dtype"} | {"lr": 9.0, "betas": (0.5, 0.9)}
    target = handed_over(source, make(CLASSES[after], seed=2, **other))
    assert bits_of(target) == bits_of(source)
    for seed in range(steps, steps + 12):
        for optimizer in (source, target):
            step(optimizer, seed)
    if before == after:
        assert bits_of(target) == bits_of(source)
    assert_close(target, source)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_training_may_change_its_class_again_and_again(settings: dict[str, Any]) -> None:
    uninterrupted = make(torch.optim.RAdam, **settings)
    changing = make(RAdam, **settings)
    for seed in range(40):
        for optimizer in (uninterrupted, changing):
            step(optimizer, seed)
        if seed in (0, 3, 4, 5, 6, 20, 21):
            other = torch.optim.RAdam if isinstance(changing, RAdam) else RAdam
            changing = handed_over(changing, make(other, seed=seed, **settings))
    assert_close(changing, uninterrupted)


def described(saved: Any) -> Any:
    """Return keys in their order, types, and of tensors what torch.save would keep but for the elements."""
    if isinstance(saved, Tensor):
        return type(saved), saved.dtype, tuple(saved.shape), saved.stride(), saved.device, saved.requires_grad
    if isinstance(saved, dict):
        return [(key, described(value)) for key, value in saved.items()]
    if isinstance(saved, (list, tuple)):
        return type(saved), [described(value) for value in saved]
    return type(saved), saved


def named(cls: Make) -> torch.optim.Optimizer:
    return cls([("a", nn.Parameter(torch.ones(2))), ("b", nn.Parameter(torch.ones(3, 1)))], lr=torch.tensor(0.1))


def in_other_orders(cls: Make) -> torch.optim.Optimizer:
    last = nn.Parameter(torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last))
    return cls([nn.Parameter(torch.ones(3, 4).t()), nn.Parameter(torch.ones(8)[::2]), last])


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize(
    "made", [make, lambda cls: make(cls, torch.float64), lambda cls: make(cls, torch.complex64), named, in_other_orders]
)
def test_a_state_dict_has_torch_s_keys_dtypes_and_shapes(made: Callable[[Make], Any], steps: int) -> None:
    ours, theirs = made(RAdam), made(torch.optim.RAdam)
    for seed in range(steps):
        step(ours, seed, without=1)
        step(theirs, seed, without=1)
    assert described(ours.state_dict()) == described(theirs.state_dict())


def test_step_counts_have_the_default_dtype_as_torch_s_have() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        ours, theirs = make(), make(torch.optim.RAdam)
        for optimizer in (ours, theirs):
            step(optimizer, 0)
        assert described(ours.state_dict()) == described(theirs.state_dict())
        assert ours.state[params_of(ours)[0]]["step"].dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


# ---- counts beyond what a float32 can count


def at_count(count: Any, cls: Make = RAdam, **keywords: Any) -> torch.optim.Optimizer:
    """Return an optimizer over one parameter, loaded with a step count and some moments."""
    param = nn.Parameter(random(3, (6,), torch.float64))
    optimizer = cls([param], **{"lr": 0.1, **keywords})
    saved = optimizer.state_dict()
    saved["state"][0] = {
        "step": count,
        "exp_avg": random(4, (6,), torch.float64),
        "exp_avg_sq": random(5, (6,), torch.float64).square(),
    }
    optimizer.load_state_dict(saved)
    return optimizer


# So slow a decay that the count still shows in the sixteen digits of a float64.
SLOW = {"betas": (0.9, 1 - 1e-8), "eps": 1e-8, "lr": 0.1}


def test_counting_goes_on_beyond_what_a_float32_can_count() -> None:
    start = MOST_FLOAT32 - 2
    optimizer = at_count(torch.tensor(float(start)), **SLOW)
    (param,) = params_of(optimizer)
    entry = optimizer.state[param]
    expected = Trajectory(*(x.detach().numpy().copy() for x in (param, *(entry[key] for key in MOMENTS), param)))
    stuck = Trajectory(*(x.copy() for x in dataclasses.astuple(expected)))
    dtypes = []
    for taken in range(5):
        step(optimizer, taken)
        grad = param.grad.numpy()
        torch_radam(expected, grad, start + taken + 1, **SLOW)
        torch_radam(stuck, grad, min(start + taken + 1, MOST_FLOAT32), **SLOW)
        assert entry["step"].item() == start + taken + 1
        dtypes.append(entry["step"].dtype)
    assert dtypes == [torch.float32] * 2 + [torch.float64] * 3
    assert np.abs(param.detach().numpy() - expected.p).max() <= 1e-12
    assert np.abs(stuck.p - expected.p).max() > 1e-10, "a count that sticks would not show"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_a_count_that_widens_changes_no_bit_of_the_parameters(dtype: torch.dtype) -> None:
    float32, float64 = make(dtype=dtype), make(dtype=dtype)
    for optimizer, kind in ((float32, torch.float32), (float64, torch.float64)):
        step(optimizer, 0)
        for entry in optimizer.state.values():
            entry["step"] = torch.tensor(float(MOST_FLOAT32 - 2), dtype=kind)
        for seed in range(5):
            step(optimizer, seed)
    assert [tensor_bits(p) for p in params_of(float32)] == [tensor_bits(p) for p in params_of(float64)]
    for optimizer in (float32, float64):
        assert {float(entry["step"]) for entry in optimizer.state.values()} == {MOST_FLOAT32 + 3}


FORMS: dict[str, Callable[[int], Any]] = {
    "float32": lambda count: torch.tensor(float(count)),
    "float64": lambda count: torch.tensor(float(count), dtype=torch.float64),
    "int64 tensor": lambda count: torch.tensor(count),
    "int32 tensor": lambda count: torch.tensor(count, dtype=torch.int32),
    "tensor of one element": lambda count: torch.tensor([float(count)]),
    "int": int,
    "float": float,
    "NumPy float32": np.float32,
    "NumPy int64": np.int64,
}


@pytest.mark.parametrize("count", [0, 7, MOST_FLOAT32 - 1, MOST_FLOAT32, 30_000_000])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_count_of_any_kind_of_number_loads_and_goes_on_exactly(form: Callable[[int], Any], count: int) -> None:
    optimizer, reference = at_count(form(count)), at_count(torch.tensor(float(count), dtype=torch.float64))
    (param,) = params_of(optimizer)
    loaded = optimizer.state[param]["step"]
    assert isinstance(loaded, Tensor)
    assert (loaded.shape, loaded.device.type, loaded.item()) == ((), "cpu", count)
    assert loaded.dtype is torch.float64 or count <= MOST_FLOAT32
    for taken in range(1, 4):
        step(optimizer, taken)
        step(reference, taken)
        assert optimizer.state[param]["step"].item() == count + taken
    assert tensor_bits(param) == tensor_bits(params_of(reference)[0])


def test_a_count_beyond_float32_passes_through_torch_and_back() -> None:
    optimizer = at_count(30_000_001)
    step(optimizer, 0)
    middle = handed_over(optimizer, at_count(0, torch.optim.RAdam))
    step(middle, 1)
    last = handed_over(middle, at_count(0))
    step(last, 2)
    assert last.state[params_of(last)[0]]["step"].item() == 30_000_004


# ---- the tensors in the state are the truth


def fill(value: float, key: str) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry[key].fill_(value)


def replace(key: str, changed: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry.__setitem__(key, changed(entry[key]))


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "step in place": fill(3.0, "step"),
    "step replaced": replace("step", lambda old: torch.tensor(200.0)),
    "step replaced by a wide one": replace("step", lambda old: torch.tensor(200.0, dtype=torch.float64)),
    "step replaced by whole numbers": replace("step", lambda old: torch.tensor(200)),
    "step through data": lambda entry: setattr(entry["step"], "data", torch.tensor(17.0)),
    "exp_avg in place": fill(0.5, "exp_avg"),
    "exp_avg replaced": replace("exp_avg", lambda old: old * 3 + 1),
    "exp_avg replaced by a view with gaps": replace("exp_avg", lambda old: torch.ones(*old.shape, 2)[..., 1]),
    "exp_avg through data": lambda entry: setattr(entry["exp_avg"], "data", entry["exp_avg"] * 3),
    "exp_avg_sq in place": fill(0.5, "exp_avg_sq"),
    "exp_avg_sq replaced": replace("exp_avg_sq", lambda old: old * 3 + 1),
    "all forgotten": lambda entry: entry.clear(),
}


@pytest.mark.parametrize("steps", [2, 9])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_is_edited_in_the_state_counts_from_the_next_step_on(
    edit: Callable[[dict[str, Any]], Any], steps: int
) -> None:
    ours, theirs, untouched = make(), make(torch.optim.RAdam), make()
    for seed in range(steps):
        for optimizer in (ours, theirs, untouched):
            step(optimizer, seed)
    for optimizer in (ours, theirs):
        edit(optimizer.state[params_of(optimizer)[0]])
    for seed in range(100, 105):
        for optimizer in (ours, theirs, untouched):
            step(optimizer, seed)
    assert_close(ours, theirs)
    first, *rest = zip(params_of(ours), params_of(untouched), strict=True)
    assert not torch.equal(*first)
    assert all(torch.equal(*pair) for pair in rest)


def test_the_tensors_of_the_state_stay_the_same_ones_while_they_change() -> None:
    optimizer = make()
    step(optimizer, 0)
    held = {param: dict(entry) for param, entry in optimizer.state.items()}
    before = copy.deepcopy(list(held.values()))
    step(optimizer, 1)
    for entry, values, old in zip(optimizer.state.values(), held.values(), before, strict=True):
        assert all(entry[key] is values[key] for key in entry)
        assert values["step"].item() == old["step"].item() + 1
        assert values["exp_avg"].numel() == 0 or not torch.equal(values["exp_avg"], old["exp_avg"])


# ---- older state dicts

LATER = ("foreach", "maximize", "differentiable", "decoupled_weight_decay", "capturable")


@pytest.mark.parametrize("number", [float, int, torch.tensor], ids=["float", "int", "tensor"])
@pytest.mark.parametrize("missing", [*((key,) for key in LATER), LATER], ids=str)
def test_an_older_state_dict_loads_as_in_torch(missing: tuple[str, ...], number: Callable[[float], Any]) -> None:
    source = make(torch.optim.RAdam)
    for seed in range(7):
        step(source, seed)
    saved = copy.deepcopy(source.state_dict())
    for group in saved["param_groups"]:
        for key in missing:
            del group[key]
    for entry in saved["state"].values():
        entry["step"] = number(entry["step"].item())
    ours, theirs = make(RAdam, lr=5.0, maximize=True), make(torch.optim.RAdam, lr=5.0, maximize=True)
    for target in (ours, theirs):
        put(target, source)
        target.load_state_dict(saved)
    same = [dict(sorted(group.items())) for group in ours.state_dict()["param_groups"]]
    assert same == [dict(sorted(group.items())) for group in theirs.state_dict()["param_groups"]]
    for seed in range(7, 12):
        step(ours, seed)
        step(theirs, seed)
    assert_close(ours, theirs)


# The state dict of version 0.1.0 after 7 steps of `make_pinned`, as JSON with the bits of the tensors, and the bits of
# the parameters then and 4 steps later: it must load for ever. Gradients are small fractions, exact on every machine.
PINNED = """
{
  "param_groups": [
    {
      "lr": 0.0625,
      "betas": [0.875, 0.96875],
      "eps": 1e-08,
      "weight_decay": 0,
      "maximize": false,
      "foreach": null,
      "capturable": false,
      "decoupled_weight_decay": false,
      "differentiable": false,
      "params": [0, 1]
    },
    {
      "lr": 0.25,
      "weight_decay": 0.125,
      "betas": [0.875, 0.96875],
      "eps": 1e-08,
      "maximize": false,
      "foreach": null,
      "capturable": false,
      "decoupled_weight_decay": false,
      "differentiable": false,
      "params": [2, 3]
    }
  ],
  "state": {
    "0": {
      "step": 7.0,
      "exp_avg": ["float32", [2, 3], "909f153e00c9963c0017bbbbb061c63d005121bed064cb3d"],
      "exp_avg_sq": ["float32", [2, 3], "325fd63dc7481a3ea253bd3d9df8173eee4bd73de8fa083e"]
    },
    "1": {
      "step": 7.0,
      "exp_avg": ["float32", [2], "d064cb3d20253dbd"],
      "exp_avg_sq": ["float32", [2], "e8fa083e13fdfa3d"]
    },
    "2": {
      "step": 7.0,
      "exp_avg": ["complex64", [2], "fb01c3bd5222bdbdc6e5bf3d38100b3c"],
      "exp_avg_sq": ["complex64", [2], "c814053eb97b2a3e8b22ca3d212fbf3d"]
    },
    "3": {
      "step": 7.0,
      "exp_avg": ["float64", [2], "6a85087765d4a5bfb9dff4a70f83c2bf"],
      "exp_avg_sq": ["float64", [2], "c88a01205111b83f3624bad97463c13f"]
    }
  },
  "params": [
    "f32ccf3ed97090bf9fa9fe3f342e25bf6ac6644062c785c0",
    "513ff3bf",
    "232d803f1f509cbfeb7748bfa4602f3e",
    "01bba37342b5f83f83212463ce8909c0"
  ],
  "params_later": [
    "cf8ece3ed6f890bfc3e0ff3f29d925bfd49a6440219e85c0",
    "533ff3bf",
    "af90793f4aa597bf39e841bff74b4e3e",
    "71f7e3fead90f73f276a940b4d7608c0"
  ]
}
"""


def make_pinned(cls: Make = RAdam) -> torch.optim.Optimizer:
    weights = nn.Parameter(torch.tensor([[0.5, -1.25, 2.0], [-0.75, 3.5, -4.0]]))
    half = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
    phases = nn.Parameter(torch.tensor([1.0 - 2.0j, -0.5 + 0.25j], dtype=torch.complex64))
    wide = nn.Parameter(torch.tensor([1.5, -3.0], dtype=torch.float64))
    groups = [{"params": [weights, half]}, {"params": [phases, wide], "lr": 0.25, "weight_decay": 0.125}]
    return cls(groups, lr=0.0625, betas=(0.875, 0.96875))


def pinned_step(optimizer: torch.optim.Optimizer, t: int) -> None:
    for i, param in enumerate(params_of(optimizer)):
        values = [(((7 * t + 3 * i + 5 * k) % 11) - 5) / 4 for k in range(2 * param.numel())]
        first, second = torch.tensor(values, dtype=torch.float64).reshape(2, *param.shape)
        param.grad = (torch.complex(first, second) if param.is_complex() else first).to(param.dtype)
    optimizer.step()


def pinned_tensor(dtype: str, shape: list[int], bits: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(bits), dtype=getattr(torch, dtype)).reshape(shape)


def unpinned() -> tuple[dict[str, Any], list[str], list[str]]:
    """Return the pinned state dict, and the bits of the parameters when it was saved and 4 steps later."""
    content = json.loads(PINNED)
    state = {
        int(index): {"step": torch.tensor(entry["step"]), **{key: pinned_tensor(*entry[key]) for key in MOMENTS}}
        for index, entry in content["state"].items()
    }
    groups = [{**group, "betas": tuple(group["betas"])} for group in content["param_groups"]]
    return {"state": state, "param_groups": groups}, content["params"], content["params_later"]


def pinned_params(optimizer: torch.optim.Optimizer, texts: list[str]) -> list[Tensor]:
    params = params_of(optimizer)
    return [pinned_tensor(str(p.dtype)[6:], [*p.shape], text) for p, text in zip(params, texts, strict=True)]


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_a_state_saved_by_the_first_version_goes_on(cls: Make) -> None:
    saved, params, later = unpinned()
    optimizer = make_pinned(cls)
    with torch.no_grad():
        for param, value in zip(params_of(optimizer), pinned_params(optimizer, params), strict=True):
            param.copy_(value)
    optimizer.load_state_dict(saved)
    for t in range(8, 12):
        pinned_step(optimizer, t)
    for i, (param, value) in enumerate(zip(params_of(optimizer), pinned_params(optimizer, later), strict=True)):
        assert_near(param, value, f"param {i}")


def test_what_is_saved_now_is_what_the_first_version_saved() -> None:
    saved, params, _ = unpinned()
    optimizer = make_pinned()
    for t in range(1, 8):
        pinned_step(optimizer, t)
    for i, (param, value) in enumerate(zip(params_of(optimizer), pinned_params(optimizer, params), strict=True)):
        assert_near(param, value, f"param {i}")
    now = optimizer.state_dict()
    assert described(now) == described(saved)
    for index, entry in now["state"].items():
        for key in MOMENTS:
            assert_near(entry[key], saved["state"][index][key], f"{key} of param {index}")


# ---- through files and copies


def through_save(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    twin = make(seed=9, dtype=params_of(optimizer)[0].dtype)
    put(twin, optimizer)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    return twin


def through_whole_save(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    buffer = io.BytesIO()
    torch.save(optimizer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # type: ignore[no-any-return]


CARRIERS: dict[str, Callable[[Any], Any]] = {
    "torch.save": through_save,
    "torch.save of the optimizer": through_whole_save,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "old pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer, protocol=2)),
    "deepcopy": copy.deepcopy,
    "state_dict": lambda optimizer: handed_over(optimizer, make(seed=9, dtype=params_of(optimizer)[0].dtype)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("carry", CARRIERS.values(), ids=CARRIERS)
def test_what_was_saved_or_copied_goes_on_with_the_same_bits(carry: Callable[[Any], Any], dtype: torch.dtype) -> None:
    optimizer = make(dtype=dtype, weight_decay=0.1)
    for seed in range(7):
        step(optimizer, seed, without=2)
    before = bits_of(optimizer)
    twin = carry(optimizer)
    assert bits_of(twin) == before
    for seed in range(7, 10):
        step(twin, seed)
    assert bits_of(optimizer) == before, "they share memory"
    for seed in range(7, 10):
        step(optimizer, seed)
    assert bits_of(twin) == bits_of(optimizer)


@pytest.mark.parametrize(
    "carry", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deepcopy", "pickle"]
)
def test_a_model_copied_together_with_its_optimizer_is_stepped_by_the_copy(carry: Callable[[Any], Any]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = RAdam(model.parameters(), lr=0.05)
    inputs = random(1, (8, 3), torch.float32)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(4):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

    train(model, optimizer)
    twin, twins_optimizer = carry((model, optimizer))
    assert all(a is b for a, b in zip(params_of(twins_optimizer), twin.parameters(), strict=True))
    train(twin, twins_optimizer)
    train(model, optimizer)
    assert bits_of(twins_optimizer) == bits_of(optimizer)
    assert torch.equal(twin(inputs), model(inputs))


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_keeps_radam_s_own_settings(carry: Callable[[Any], Any]) -> None:
    optimizer = make(convention="optax", nonfinite="skip", fused_amp=True)
    step(optimizer, 0)
    params_of(optimizer)[0].grad.fill_(math.inf)
    optimizer.step()
    twin = carry(optimizer)
    assert (twin.convention, twin.nonfinite, twin.fused_amp, twin.skipped_steps) == (
        radam.CONVENTIONS["optax"],
        "skip",
        True,
        1,
    )
    assert twin._step_supports_amp_scaling
    step(twin, 1)
    step(optimizer, 1)
    assert bits_of(twin) == bits_of(optimizer)


# ---- low precision, other dtypes, other orders


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_parameters_keep_float32_moments_through_every_load(dtype: torch.dtype) -> None:
    def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
        return [optimizer.state[param][key] for param in params_of(optimizer) for key in MOMENTS]

    source = make(dtype=dtype)
    for seed in range(7):
        step(source, seed)
    assert {moment.dtype for moment in moments(source)} == {torch.float32}
    assert any(not torch.equal(moment, moment.to(dtype).float()) for moment in moments(source)), "no bits to lose"

    again = handed_over(source, make(dtype=dtype, seed=2))
    assert bits_of(again) == bits_of(source)

    torchs = handed_over(source, make(torch.optim.RAdam, dtype, seed=2))
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(moments(torchs), moments(source), strict=True))
    step(torchs, 7)

    back = handed_over(torchs, make(dtype=dtype, seed=2))
    assert {moment.dtype for moment in moments(back)} == {torch.float32}
    assert all(torch.equal(a, b.float()) for a, b in zip(moments(back), moments(torchs), strict=True))
    step(back, 8)
    assert {entry["step"].item() for entry in back.state.values()} == {9}


@pytest.mark.parametrize("saved_as", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_moments_of_another_float_are_converted_as_torch_converts_them(
    dtype: torch.dtype, saved_as: torch.dtype
) -> None:
    source = make(torch.optim.RAdam, saved_as)
    for seed in range(7):
        step(source, seed)
    ours, theirs = (handed_over(source, make(cls, dtype)) for cls in CLASSES.values())
    assert bits_of(ours) == bits_of(theirs)


def test_loaded_moments_lie_in_the_parameter_s_memory_order() -> None:
    optimizer = in_other_orders(RAdam)
    saved = optimizer.state_dict()
    for i, param in enumerate(params_of(optimizer)):
        values = {key: random(i, param.shape, torch.float32).square().contiguous() for key in MOMENTS}
        saved["state"][i] = {"step": torch.tensor(7.0), **values}
    optimizer.load_state_dict(saved)
    transposed, gaps, last = params_of(optimizer)
    for i, param in enumerate((transposed, gaps, last)):
        for key in MOMENTS:
            assert torch.equal(optimizer.state[param][key], saved["state"][i][key])
    assert all(optimizer.state[transposed][key].stride() == (1, 4) for key in MOMENTS)
    assert all(optimizer.state[gaps][key].stride() == (1,) for key in MOMENTS)
    for key in MOMENTS:
        assert optimizer.state[last][key].is_contiguous(memory_format=torch.channels_last)


def test_loading_copies_and_leaves_the_source_as_it_is() -> None:
    source = make()
    for seed in range(7):
        step(source, seed)
    saved = source.state_dict()
    before, kept = exactly(saved), copy.deepcopy(saved)
    loaded = [make(), make()]
    for optimizer in loaded:
        optimizer.load_state_dict(saved)
    assert exactly(saved) == before
    tensors = [
        tensor
        for entries in (saved["state"], *(optimizer.state for optimizer in loaded))
        for entry in entries.values()
        for tensor in entry.values()
        if tensor.numel()
    ]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
    step(loaded[0], 7)
    loaded[0].param_groups[0]["lr"] = 7.0
    assert exactly(saved) == before
    twin = make()
    twin.load_state_dict(kept)
    put(twin, loaded[1])
    assert bits_of(loaded[1]) == bits_of(twin)


def test_a_learning_rate_tensor_is_copied_too() -> None:
    source = make(lr=torch.tensor(0.5))
    target = make(lr=torch.tensor(0.25))
    kept = target.param_groups[0]["lr"]
    target.load_state_dict(source.state_dict())
    source.param_groups[0]["lr"].fill_(7.0)
    assert target.param_groups[0]["lr"].item() == 0.5
    assert kept.item() == 0.25


# ---- what else there is in a state dict


def test_entries_of_one_s_own_are_kept_as_torch_keeps_them() -> None:
    source = make(torch.optim.RAdam)
    step(source, 0)
    saved = source.state_dict()
    saved["state"][0] |= {
        "ema": random(5, SHAPES[0], torch.float32),
        "count": 3,
        "nothing": None,
        "nested": {"deep": torch.tensor([1.0, 2.0]), "number": 2.5},
        "list": [1, torch.tensor([3.0])],
    }
    saved["state"]["of no parameter"] = {"tensor": torch.tensor([4.0]), "text": "kept"}
    saved["state"][77] = [1, 2]
    saved["param_groups"][1] |= {"initial_lr": 0.5, "label": "body", "milestones": [1, (2, 3)], "amsgrad": True}
    ours, theirs = make(RAdam), make(torch.optim.RAdam)
    for target in (ours, theirs):
        put(target, source)
        target.load_state_dict(saved)
        saved["state"][0]["ema"] += 1  # a loaded copy does not see it
        step(target, 1)
        saved["state"][0]["ema"] -= 1
    got, expected = ours.state_dict(), theirs.state_dict()
    assert described(got) == described(expected)
    for key in ("ema", "nested", "list"):
        assert repr(got["state"][0][key]) == repr(expected["state"][0][key])
    assert got["state"]["of no parameter"]["tensor"].item() == 4
    step(ours, 2)
    assert ours.state[params_of(ours)[0]]["count"] == 3


def test_parameters_without_a_state_get_one_at_their_first_gradient() -> None:
    source = make(torch.optim.RAdam)
    step(source, 0, without=0)
    saved = source.state_dict()
    saved["state"][1] = {}
    target = make()
    target.load_state_dict(saved)
    assert [sorted(target.state.get(param, {})) for param in params_of(target)[:3]] == [
        [],
        [],
        ["exp_avg", "exp_avg_sq", "step"],
    ]
    step(target, 1)
    assert [target.state[param]["step"].item() for param in params_of(target)] == [1, 1, 2, 2]


@pytest.mark.parametrize("named_source", [False, True])
@pytest.mark.parametrize("named_target", [False, True])
def test_names_are_kept_or_replaced_as_in_torch(named_source: bool, named_target: bool) -> None:
    def made(cls: Make, prefix: str | None) -> torch.optim.Optimizer:
        params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
        return cls(params if prefix is None else [(f"{prefix}{i}", p) for i, p in enumerate(params)])

    source = made(torch.optim.RAdam, "old" if named_source else None)
    ours, theirs = (made(cls, "new" if named_target else None) for cls in CLASSES.values())
    for target in (ours, theirs):
        target.load_state_dict(source.state_dict())
    assert [g.get("param_names") for g in ours.param_groups] == [g.get("param_names") for g in theirs.param_groups]


def test_a_moment_that_is_not_finite_loads_as_torch_loads_it() -> None:
    source = make(torch.optim.RAdam)
    step(source, 0)
    source.state[params_of(source)[0]]["exp_avg"].fill_(math.nan)
    source.state[params_of(source)[0]]["exp_avg_sq"].fill_(math.inf)
    target = handed_over(source, make())
    assert bits_of(target) == bits_of(source)


# ---- hooks


def test_hooks_around_saving_and_loading_run_as_in_torch() -> None:
    def observed(cls: Make) -> tuple[list[Any], Any]:
        seen: list[Any] = []
        source, target = make(cls), make(cls)
        step(source, 0)

        def edit(optimizer: Any, saved: dict[str, Any]) -> None:
            seen.append(("load pre", optimizer is target, len(optimizer.state)))
            saved["param_groups"] = [{**group, "lr": 0.5} for group in saved["param_groups"]]

        def replaced(optimizer: Any, saved: dict[str, Any]) -> dict[str, Any]:
            seen.append(("load pre, later", [group["lr"] for group in saved["param_groups"]]))
            return {**saved, "param_groups": [{**group, "eps": 0.25} for group in saved["param_groups"]]}

        source.register_state_dict_pre_hook(lambda optimizer: seen.append(("pre", optimizer is source)))
        source.register_state_dict_post_hook(lambda optimizer, saved: seen.append(("post", sorted(saved))))
        source.register_state_dict_post_hook(lambda optimizer, saved: {**saved, "mark": 1})
        target.register_load_state_dict_pre_hook(edit)
        target.register_load_state_dict_pre_hook(replaced)
        target.register_load_state_dict_post_hook(
            lambda optimizer: seen.append(("load post", optimizer is target, len(optimizer.state)))
        )
        target.register_load_state_dict_post_hook(lambda optimizer: seen.append("first"), prepend=True)
        saved = source.state_dict()
        kept = [group["lr"] for group in saved["param_groups"]]
        target.load_state_dict(saved)
        assert [group["lr"] for group in saved["param_groups"]] == kept, "the hook's edits got into the source"
        return seen, [(group["lr"], group["eps"]) for group in target.param_groups]

    assert observed(RAdam) == observed(torch.optim.RAdam)


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_a_hook_that_raises_before_loading_changes_nothing(error: type[BaseException]) -> None:
    def refuse(*args: Any) -> None:
        raise error

    source, target = make(), make()
    step(source, 0)
    target.register_load_state_dict_pre_hook(refuse)
    before = everything(target)
    with pytest.raises(error):
        target.load_state_dict(source.state_dict())
    assert everything(target) == before


# ---- state dicts that do not fit

Change = Callable[[dict[str, Any]], Any]


def without(*path: Any) -> Change:
    def change(saved: Any) -> None:
        for key in path[:-1]:
            saved = saved[key]
        del saved[path[-1]]

    return change


def having(value: Any, *path: Any) -> Change:
    def change(saved: Any) -> None:
        for key in path[:-1]:
            saved = saved[key]
        saved[path[-1]] = value(saved[path[-1]]) if callable(value) else value

    return change


def other_optimizer(cls: Make, **keywords: Any) -> Change:
    def change(saved: dict[str, Any]) -> None:
        other = make(cls, **keywords)
        step(other, 0)
        saved.update(other.state_dict())

    return change


GROUPS_DIFFER = "^loaded state dict has a different number of parameter groups$"
SIZES_DIFFER = "^loaded state dict contains a parameter group that doesn't match the size of optimizer's group$"
STEP = r"state\[0\]\['step'\]"
MALFORMED: dict[str, tuple[Change, str]] = {
    **{f"no {key}": (without(key), f"no '{key}'") for key in ("state", "param_groups")},
    **{
        f"no {key} in a group": (without("param_groups", 1, key), rf"param_groups\[1\] has no '{key}'")
        for key in ("params", "lr", "betas", "eps", "weight_decay")
    },
    **{
        f"no {key} in a state": (without("state", 1, key), rf"state\[1\] has no '{key}'")
        for key in ("step", "exp_avg", "exp_avg_sq")
    },
    "a state that is only a mark": (having({"mark": 1}, "state", 1), r"state\[1\] has no 'step'"),
    "a group too few": (having(lambda groups: groups[:1], "param_groups"), GROUPS_DIFFER),
    "a group too many": (having(lambda groups: [*groups, groups[0]], "param_groups"), GROUPS_DIFFER),
    "no groups": (having([], "param_groups"), GROUPS_DIFFER),
    "a parameter too few": (having([0], "param_groups", 0, "params"), SIZES_DIFFER),
    "a parameter too many": (having([0, 1, 4], "param_groups", 0, "params"), SIZES_DIFFER),
    "a parameter twice": (having([0, 0], "param_groups", 0, "params"), r"param_groups\[0\].*params"),
    "a parameter of another group": (having([0, 2], "param_groups", 0, "params"), r"param_groups\[.\].*params"),
    "parameters of lists": (having([[0], [1]], "param_groups", 0, "params"), r"param_groups\[0\].*params"),
    "parameters of a number": (having(2, "param_groups", 0, "params"), SIZES_DIFFER),
    **{
        f"param_groups {value!r}": (having(value, "param_groups"), "param_groups")
        for value in (None, 3, "ab", {0: {}, 1: {}}, [1, 2], [None, None])
    },
    **{f"state {value!r}": (having(value, "state"), "^state") for value in (None, [], 3, "ab")},
    **{
        f"entry {value!r}": (having(value, "state", 0), r"state\[0\]")
        for value in (None, 3, "ab", [1, 2, 3], torch.ones(3))
    },
    **{
        f"step {value!r}": (having(value, "state", 0, "step"), STEP)
        for value in (
            *(-1, -1.0, 1.5, math.nan, math.inf, -math.inf, 1e300, "x", None, [], [1, 2], {}, 2j),
            *(torch.tensor(x) for x in (-1.0, 0.5, math.nan, math.inf, 1j, [1.0, 2.0], [])),
            torch.tensor(7.0, device="meta"),
        )
    },
    "step 10**400": (having(10**400, "state", 0, "step"), STEP),
    **{
        f"{key} {value!r}": (having(value, "state", 0, key), rf"state\[0\]\['{key}'\]")
        for key in MOMENTS
        for value in (None, 1.0, "ab", [[0.0] * 4] * 3)
    },
    **{
        f"{key} {what}": (having(changed, "state", 0, key), rf"state\[0\]\['{key}'\]")
        for key in MOMENTS
        for what, changed in {
            "a NumPy array": lambda m: m.numpy(),
            "too short": lambda m: m[:-1],
            "flat": lambda m: m.reshape(-1),
            "transposed": lambda m: m.t(),
            "in more dimensions": lambda m: m[None],
            "whole numbers": lambda m: m.to(torch.int64),
            "truth values": lambda m: m > 0,
            "complex": lambda m: m.to(torch.complex64),
            "sparse": lambda m: m.to_sparse(),
            "without values": lambda m: m.to("meta"),
        }.items()
    },
    "exp_avg_sq below zero": (having(lambda v: -v - 1, "state", 0, "exp_avg_sq"), r"state\[0\]\['exp_avg_sq'\]"),
    **{
        f"{key} {value!r}": (having(value, "param_groups", 1, key), rf"^param_groups\[1\]: .*{words}")
        for key, words, values in (
            ("lr", "learning rate|lr", (-1.0, math.nan, "fast", None, torch.ones(2), torch.tensor(-1.0))),
            ("betas", "beta", ((0.9, 1.0), (1.0, 0.9), (-0.1, 0.9), (0.9, math.nan), (0.9,), 0.9, None, "ab", ())),
            ("eps", "eps", (-1.0, math.nan, "x", None)),
            ("weight_decay", "weight_decay", (-1.0, math.nan, "x", None)),
        )
        for value in values
    },
    "SGD's": (other_optimizer(torch.optim.SGD, momentum=0.9), "betas|eps"),
    "Adagrad's": (other_optimizer(torch.optim.Adagrad), "betas"),
    "RMSprop's": (other_optimizer(torch.optim.RMSprop), "betas"),
    **{
        f"convention {value!r}": (lambda saved, value=value: saved.update(convention=value), "^convention")
        for value in (3, "torch", [], {"name": "torch"}, dataclasses.asdict(radam.CONVENTIONS["optax"]))
    },
}


@pytest.fixture
def no_warnings() -> Any:
    # torch warns of sparse tensors and of complex numbers made real, before the error that we are after.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.parametrize(("change", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_state_dict_that_does_not_fit_is_a_value_error_and_changes_nothing(
    change: Change, words: str, steps: int
) -> None:
    source, target, undisturbed = make(torch.optim.RAdam, seed=3), make(), make()
    for seed in range(7):
        step(source, seed)
    for seed in range(steps):
        step(target, seed)
        step(undisturbed, seed)
    saved = copy.deepcopy(source.state_dict())
    change(saved)
    before = everything(target)
    with pytest.raises(ValueError, match=words):
        target.load_state_dict(saved)
    assert everything(target) == before
    step(target, 50)
    step(undisturbed, 50)
    assert bits_of(target) == bits_of(undisturbed)


@pytest.mark.parametrize("key", MOMENTS)
def test_real_moments_of_a_complex_parameter_are_a_value_error(key: str) -> None:
    source, target = make(dtype=torch.complex64), make(dtype=torch.complex64)
    step(source, 0)
    saved = copy.deepcopy(source.state_dict())
    saved["state"][0][key] = saved["state"][0][key].real.clone()
    before = everything(target)
    with pytest.raises(ValueError, match=rf"state\[0\]\['{key}'\]"):
        target.load_state_dict(saved)
    assert everything(target) == before


@pytest.mark.parametrize("saved", [None, [], 3, "state", torch.ones(2)], ids=repr)
@pytest.mark.parametrize("by_hook", [False, True], ids=["given", "from a hook"])
def test_what_is_no_dict_is_no_state(saved: Any, by_hook: bool) -> None:
    target = make()
    step(target, 0)
    before = everything(target)
    if by_hook and saved is not None:
        target.register_load_state_dict_pre_hook(lambda optimizer, given: saved)
        before, given = everything(target), target.state_dict()
    else:
        given = saved
    with pytest.raises(ValueError, match="must be a dict"):
        target.load_state_dict(given)
    assert everything(target) == before


@pytest.mark.parametrize("other", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
def test_the_state_of_an_optimizer_with_the_same_entries_loads_as_in_torch(other: Make) -> None:
    source = make(other)
    for seed in range(7):
        step(source, seed)
    ours, theirs = (handed_over(source, make(cls)) for cls in CLASSES.values())
    for seed in range(7, 10):
        step(ours, seed)
        step(theirs, seed)
    assert_close(ours, theirs)


# ---- conventions

LIKE_TORCH = ("paddle", "mindspore", "lucid")


@pytest.mark.parametrize("convention", [name for name in radam.CONVENTIONS if name != "torch"])
def test_another_convention_is_recorded_and_loads_where_it_is_the_same(convention: str) -> None:
    source, target = make(convention=convention), make(convention=convention, seed=2)
    for seed in range(7):
        step(source, seed)
    saved = source.state_dict()
    assert saved.keys() == {"state", "param_groups"} | (set() if convention in LIKE_TORCH else {"convention"})
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    put(target, source)
    target.load_state_dict(torch.load(buffer, weights_only=True))
    for seed in range(7, 9):
        step(source, seed)
        step(target, seed)
    assert bits_of(target) == bits_of(source)


@pytest.mark.parametrize(("before", "after"), [("optax", "torch"), ("author", "torch"), ("author", "tfa")])
def test_the_state_of_a_convention_that_steps_otherwise_is_a_value_error(before: str, after: str) -> None:
    source, target = make(convention=before), make(convention=after)
    step(source, 0)
    step(target, 0)
    snapshot = everything(target)
    with pytest.raises(ValueError, match=r"^convention"):
        target.load_state_dict(source.state_dict())
    assert everything(target) == snapshot
    make(torch.optim.RAdam).load_state_dict(source.state_dict())  # torch does not look


@pytest.mark.parametrize("after", ["author", "optax"])
def test_a_state_without_a_convention_loads_under_any(after: str) -> None:
    source = make(torch.optim.RAdam)
    for seed in range(7):
        step(source, seed)
    target = handed_over(source, make(convention=after, seed=2))
    assert bits_of(target)["state"] == bits_of(source)["state"]
    step(target, 7)


def test_conventions_that_differ_in_name_alone_share_their_states() -> None:
    source, target = make(convention="lucid"), make(convention="torch", seed=2)
    step(source, 0)
    put(target, source)
    target.load_state_dict(source.state_dict())
    step(source, 1)
    step(target, 1)
    assert bits_of(target) == bits_of(source)


def test_a_decay_that_the_convention_has_not_does_not_come_in_by_a_state() -> None:
    source = make(torch.optim.RAdam, weight_decay=0.1, decoupled_weight_decay=True)
    target = make(convention="paddle")
    before = everything(target)
    with pytest.raises(ValueError, match=r"param_groups\[0\].*decoupled"):
        target.load_state_dict(source.state_dict())
    assert everything(target) == before
