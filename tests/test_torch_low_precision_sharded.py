"""Fewer bits in many processes: the same random bits as in one, and checkpoints that other numbers of them load.

The processes are real and talk through gloo; a function without `test_` in front runs in each of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from gloo_processes import AVAILABLE, in_processes
from low_precision_ways import WAYS, bits, draw
from radam.torch import RAdam

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs gloo and a fork server")

ROWS, COLUMNS, COPIES = Shard(0), Shard(1), Replicate()
LAYOUTS: dict[str, tuple[tuple[int, ...], list[tuple[tuple[int, ...], tuple[Placement, ...]]]]] = {
    "rows, uneven": ((3,), [((7, 30), (ROWS,)), ((1, 5), (ROWS,)), ((11,), (ROWS,)), ((), (COPIES,))]),
    "columns": ((2,), [((5, 7), (COLUMNS,)), ((3, 4, 5), (Shard(2),)), ((6, 1), (COLUMNS,))]),
    "two by two": ((2, 2), [((5, 9), (ROWS, COLUMNS)), ((7, 3), (ROWS, ROWS)), ((4, 5), (COPIES, COLUMNS))]),
}
# 8-bit moments are cut in blocks of each process's own piece: they are not those of one process.
SAME = ["master", "stochastic", "bf16 moments", "stochastic and bf16 moments"]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.detach().contiguous()
    sent = tensor.to(torch.int32) if tensor.dtype is torch.int16 else tensor  # gloo does not send int16
    return sent.full_tensor().detach().to(tensor.dtype).contiguous()


def steps_of_shards(layout: str, dtype: torch.dtype) -> None:
    sizes, kinds = LAYOUTS[layout]
    mesh = init_device_mesh("cpu", sizes)
    starts = draw([shape for shape, _ in kinds], 1, dtype)

    def placed(tensor: torch.Tensor, placements: Any) -> DTensor:
        return distribute_tensor(tensor.clone(), mesh, placements, src_data_rank=None)

    for name in SAME:
        pieces = [nn.Parameter(placed(start, where)) for start, (_, where) in zip(starts, kinds)]
        alone = [nn.Parameter(start.clone()) for start in starts]
        optimizers = [RAdam(x, lr=0.01, **WAYS[name]) for x in (pieces, alone)]
        for t in range(4):
            for piece, one, grad, (_shape, where) in zip(pieces, alone, draw([s for s, _ in kinds], 9 + t), kinds):
                piece.grad, one.grad = placed(grad.to(dtype), where), grad.to(dtype)
            for optimizer in optimizers:
                optimizer.step()
        for piece, one in zip(pieces, alone):
            assert bits(whole(piece)) == bits(one), f"{name}: param of {tuple(one.shape)}"
            states = [optimizer.state[param] for optimizer, param in zip(optimizers, (piece, one))]
            assert states[0].keys() == states[1].keys()
            for key in states[0].keys() - {"step"}:
                assert isinstance(states[0][key], DTensor)
                assert states[0][key].placements == piece.placements
                assert bits(whole(states[0][key])) == bits(states[1][key]), f"{name}: {key} of {tuple(one.shape)}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_have_the_bits_of_the_whole(layout: str, dtype: torch.dtype) -> None:
    in_processes(torch.Size(LAYOUTS[layout][0]).numel(), steps_of_shards, layout, dtype)


class Net(nn.Module):
    """Two layers, rows of which no number of processes divides."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([nn.Linear(40, 29), nn.Linear(40, 3, bias=False)])


def sharded(seed: int, way: dict[str, Any], **settings: Any) -> tuple[nn.Module, RAdam]:
    model = fully_shard(Net(seed).to(torch.bfloat16))
    return model, RAdam(model.parameters(), **{"lr": 0.01, **settings}, **way)


def step_with(optimizer: RAdam, params: list[Any], t: int) -> None:
    for param, grad in zip(params, draw([tuple(p.shape) for p in params], 30 + t, torch.bfloat16)):
        if isinstance(param, DTensor):
            grad = distribute_tensor(grad, param.device_mesh, param.placements, src_data_rank=None)
        param.grad = grad
    optimizer.step()


def params_bits(params: list[Any]) -> list[bytes]:
    return [bits(whole(param)) for param in params]


def fsdp_steps_like_one_process(name: str) -> None:
    model, optimizer = sharded(1, WAYS[name])
    alone = Net(1).to(torch.bfloat16)
    single = RAdam(alone.parameters(), lr=0.01, **WAYS[name])
    for t in range(4):
        step_with(optimizer, list(model.parameters()), t)
        step_with(single, list(alone.parameters()), t)
    assert params_bits(list(model.parameters())) == params_bits(list(alone.parameters()))


@pytest.mark.parametrize("name", SAME)
def test_fsdp_has_the_bits_of_one_process(name: str) -> None:
    in_processes(3, fsdp_steps_like_one_process, name)


FORMS: dict[str, dict[str, Any]] = {
    "nested": {},
    "flat": {"flatten_optimizer_state_dict": True},
    "whole": {"full_state_dict": True, "cpu_offload": True},
}


def moments_of(optimizer: RAdam) -> list[bytes]:
    """Return the moments, master weights and step counts as a state dict has them, of the whole parameters."""
    entries = optimizer.state_dict()["state"].values()
    return [bits(whole(entry[key])) for entry in entries for key in sorted(entry)]


def save(name: str, form: str, folder: Path) -> list[bytes]:
    model, optimizer = sharded(1, WAYS[name])
    for t in range(4):
        step_with(optimizer, list(model.parameters()), t)
    options = StateDictOptions(**FORMS[form])
    found = get_optimizer_state_dict(model, optimizer, options=options)
    if form != "whole":
        dcp.save({"optimizer": found}, checkpoint_id=folder)
    elif dist.get_rank() == 0:
        torch.save({"optimizer": found}, folder / "saved.pt")
    return moments_of(optimizer)


def load(name: str, form: str, folder: Path, expected: list[bytes] | None) -> None:
    model, optimizer = sharded(2, WAYS[name] if name else {}, lr=1.0)
    options = StateDictOptions(**FORMS[form])
    if form == "whole":
        options.broadcast_from_rank0, options.cpu_offload = True, False
        states: dict[str, Any] = {"optimizer": {}}
        if dist.get_rank() == 0:
            states = torch.load(folder / "saved.pt", weights_only=True)
    else:
        states = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
        dcp.load(states, checkpoint_id=folder)
    set_optimizer_state_dict(model, optimizer, states["optimizer"], options=options)
    assert optimizer.param_groups[0]["lr"] == 0.01
    found = moments_of(optimizer)
    assert expected is None or found == expected
    for param in model.parameters():
        entry = optimizer.state[param]
        assert entry["step"].item() == 4
        for moment in ("exp_avg", "exp_avg_sq"):
            assert ("exp_avg_code" in entry) == (entry[moment] is None) == (optimizer.precision.state_dtype == "8bit")
    step_with(optimizer, list(model.parameters()), 4)
    assert moments_of(optimizer) != found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["master and 8 bits", "master", "stochastic and bf16 moments"])
def test_a_checkpoint_of_two_ranks_goes_on_in_three(name: str, form: str, tmp_path: Path) -> None:
    saved = in_processes(2, save, name, form, tmp_path)[0]
    # Two ranks get back what they saved; codes of three ranks' blocks are other ones.
    in_processes(2, load, name, form, tmp_path, saved)
    in_processes(3, load, name, form, tmp_path, None if "8" in name else saved)


def test_8_bit_moments_of_a_checkpoint_are_float32_which_every_optimizer_loads(tmp_path: Path) -> None:
    saved = in_processes(2, save, "8-bit moments", "nested", tmp_path)[0]
    in_processes(3, load, "", "nested", tmp_path, saved)


def load_into_torchs_own(folder: Path) -> None:
    model, ours = sharded(1, WAYS["8-bit moments"])
    step_with(ours, list(model.parameters()), 0)
    theirs = torch.optim.RAdam(model.parameters(), lr=0.01, foreach=False)
    theirs.load_state_dict(ours.state_dict())
    step_with(theirs, list(model.parameters()), 1)  # type: ignore[arg-type]
    assert all(entry["step"].item() == 2 for entry in theirs.state.values())


def test_torchs_own_goes_on_from_8_bit_moments_of_shards(tmp_path: Path) -> None:
    in_processes(2, load_into_torchs_own, tmp_path)
