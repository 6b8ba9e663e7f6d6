"""A run on many processes is the run on one: DTensors, FSDP2, DDP, ZeroRedundancyOptimizer and sharded checkpoints.

The processes are real and talk through gloo; a function without `test_` in front runs in each of them. Gradients are
equal by construction: drawn whole and then placed, or sums of small whole numbers, exact in any order.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from gloo_processes import AVAILABLE, in_processes
from radam.torch import RAdam

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs gloo and a fork server")

Make = Callable[..., torch.optim.Optimizer]
Compare = Callable[[torch.Tensor, torch.Tensor, str], None]
CLASSES = {"radam": RAdam, "torch": torch.optim.RAdam}
both = pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES.keys())

STEPS = 40
ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-6, torch.complex64: 2e-6}  # of max(1, |p|)


# ---- what is the same


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, gathered from all ranks where it is a DTensor."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().contiguous()


def exact(got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    got, expected = whole(got), whole(expected)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), f"{what}: {got.dtype} {tuple(got.shape)}"
    if not torch.equal(got.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8)):
        raise AssertionError(f"{what}: other bits, off by {(got - expected).abs().max().item()}")


def close(got: torch.Tensor, expected: torch.Tensor, what: str, rounding: float | None = None) -> None:
    got, expected = whole(got), whole(expected)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), f"{what}: {got.dtype} {tuple(got.shape)}"
    error = (got - expected).abs() / expected.abs().clamp(min=1)
    assert bool((error <= (rounding or ROUNDING[got.dtype])).all()), f"{what}: off by {error.max().item()}"


def promised(*makes: Make) -> Compare:
    """Return how to compare: our class promises the same bits, torch's the same within rounding."""
    return exact if all(make is RAdam for make in makes) else close


def params_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def assert_same_params(
    got: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], compare: Compare, case: str
) -> None:
    for index, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        compare(ours, theirs, f"{case}: param {index}")


def assert_same_run(got: torch.optim.Optimizer, expected: torch.optim.Optimizer, compare: Compare, case: str) -> None:
    """Compare the parameters and the states of two optimizers, either of which may be sharded."""
    assert_same_params(params_of(got), params_of(expected), compare, case)
    for index, (ours, theirs) in enumerate(zip(params_of(got), params_of(expected), strict=True)):
        state, other = got.state[ours], expected.state[theirs]
        assert state.keys() == other.keys(), f"{case}: state of param {index}: {list(state)}"
        for name in state.keys() - {"step"}:
            compare(state[name], other[name], f"{case}: {name} of param {index}")
        if state:
            assert state["step"].item() == other["step"].item(), f"{case}: step of param {index}: {state['step']}"


def assert_state_is_placed_as_the_params(optimizer: torch.optim.Optimizer) -> None:
    for index, param in enumerate(params_of(optimizer)):
        state = optimizer.state[param]
        assert isinstance(param, DTensor), f"param {index}"
        for name in ("exp_avg", "exp_avg_sq"):
            moment = state[name]
            assert isinstance(moment, DTensor), f"{name} of param {index} is a {type(moment)}"
            assert moment.device_mesh == param.device_mesh, f"{name} of param {index}"
            assert moment.placements == param.placements, f"{name} of param {index}: {moment.placements}"
            assert moment.to_local().shape == param.to_local().shape, f"{name} of param {index}"
        step = state["step"]
        assert type(step) is torch.Tensor, f"step of param {index} is a {type(step)}"
        assert (step.ndim, step.dtype, step.device.type) == (0, torch.float32, "cpu"), f"step of param {index}: {step}"


def fail_on_the_last_rank(how: str) -> int:
    rank = dist.get_rank()
    if rank == dist.get_world_size() - 1:
        if how == "raise":
            raise KeyError("lost")
        os._exit(3)
    dist.barrier()
    return rank


@pytest.mark.parametrize(
    ("how", "told"),
    [("raise", "on rank 1 of 2:(.|\n)*KeyError: 'lost'"), ("exit", "rank 1 ended without an answer")],
    ids=["raise", "exit"],
)
def test_what_fails_on_one_rank_fails_here(how: str, told: str) -> None:
    """Otherwise no test below could fail."""
    with pytest.raises(AssertionError, match=told):
        in_processes(2, fail_on_the_last_rank, how)
    assert in_processes(2, dist.get_rank) == [0, 1]


# ---- parameters that were placed by hand

ROWS, COLUMNS, COPIES = Shard(0), Shard(1), Replicate()
Layout = tuple[tuple[int, ...], list[tuple[tuple[int, ...], tuple[Placement, ...]]]]
LAYOUTS: dict[str, Layout] = {  # the mesh, and each parameter's shape and placements
    "two": (
        (2,),
        [
            *(((8, 3), (ROWS,)), ((7, 3), (ROWS,)), ((1, 5), (ROWS,)), ((0, 4), (ROWS,)), ((1,), (ROWS,))),
            *(((3, 5), (COLUMNS,)), ((4, 1), (COLUMNS,)), ((2, 4, 3), (COLUMNS,)), ((2, 3, 5), (Shard(2),))),
            *(((5, 3), (COPIES,)), ((), (COPIES,))),
        ],
    ),
    "three": (
        (3,),
        [
            ((9, 2), (ROWS,)),
            ((7, 3), (ROWS,)),
            ((4,), (ROWS,)),
            ((1, 5), (ROWS,)),
            ((3, 4), (COLUMNS,)),
            ((), (COPIES,)),
        ],
    ),
    "two by two": (
        (2, 2),
        [
            *(((5, 3), (ROWS, COLUMNS)), ((4, 6), (COLUMNS, ROWS)), ((7, 3), (ROWS, ROWS)), ((3, 2), (ROWS, ROWS))),
            *(((5, 2), (COPIES, ROWS)), ((3, 5), (COLUMNS, COPIES)), ((), (COPIES, COPIES))),
        ],
    ),
}
SETTINGS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "plain": (torch.float32, {}),
    "coupled": (torch.float32, {"weight_decay": 0.07}),
    "decoupled": (torch.float32, {"weight_decay": 0.07, "decoupled_weight_decay": True, "maximize": True}),
    "foreach": (torch.float32, {"foreach": True}),
    "float64": (torch.float64, {"foreach": False, "lr": torch.tensor(0.02)}),
}


def draw(shapes: Iterable[Sequence[int]], dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), generator=generator, dtype=dtype) for shape in shapes]


def placed(tensor: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    """Return the part of a tensor, which every rank has whole, as a DTensor. Nothing is sent."""
    return distribute_tensor(tensor.clone(), mesh, placements, src_data_rank=None)


def placed_as(param: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return placed(tensor, param.device_mesh, param.placements) if isinstance(param, DTensor) else tensor.clone()


def optimizer_over(params: Iterable[torch.Tensor], make: Make, **settings: Any) -> torch.optim.Optimizer:
    """Return an optimizer over two groups, each with half of the parameters."""
    params = [nn.Parameter(param) for param in params]
    middle = len(params) // 2
    return make([{"params": params[:middle], "lr": 0.05}, {"params": params[middle:]}], **{"lr": 0.02, **settings})


def take_steps(optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
    """Step with gradients that depend on the number of the step alone; now and then a parameter has none."""
    params = params_of(optimizer)
    for t in steps:
        for index, grad in enumerate(draw((param.shape for param in params), params[0].dtype, 100 + t)):
            params[index].grad = None if (index + t) % 5 == 4 else placed_as(params[index], grad)
        optimizer.step()


def in_layout(layout: Layout, make: Make, dtype: torch.dtype = torch.float32, **settings: Any) -> torch.optim.Optimizer:
    """Return an optimizer over the sharded parameters of a layout."""
    sizes, params = layout
    mesh = init_device_mesh("cpu", sizes)
    starts = draw((shape for shape, _ in params), dtype, 1)
    return optimizer_over(
        (placed(start, mesh, placements) for start, (_, placements) in zip(starts, params, strict=True)),
        make,
        **settings,
    )


def in_one_piece(
    layout: Layout, make: Make, dtype: torch.dtype = torch.float32, **settings: Any
) -> torch.optim.Optimizer:
    """Return an optimizer over the same parameters, not sharded."""
    return optimizer_over(draw((shape for shape, _ in layout[1]), dtype, 1), make, **settings)


def ranks_of(layout: str) -> int:
    return torch.Size(LAYOUTS[layout][0]).numel()


def forty_steps(layout: str, make: Make) -> None:
    for case in SETTINGS if make is RAdam else ("coupled", "foreach"):  # torch's DTensors take their time
        dtype, keywords = SETTINGS[case]
        sharded = in_layout(LAYOUTS[layout], make, dtype, **keywords)
        single = in_one_piece(LAYOUTS[layout], make, dtype, **keywords)
        for optimizer in (sharded, single):
            take_steps(optimizer, range(STEPS))
        assert_state_is_placed_as_the_params(sharded)
        assert_same_run(sharded, single, promised(make), case)
        if make is RAdam and dist.get_rank() == 0:
            peer = in_one_piece(LAYOUTS[layout], torch.optim.RAdam, dtype, **keywords)
            take_steps(peer, range(STEPS))
            assert_same_run(single, peer, close, f"{case}, beside torch")


@both
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forty_sharded_steps_are_those_of_one_process_and_state_is_placed_as_the_params(
    layout: str, make: Make
) -> None:
    in_processes(ranks_of(layout), forty_steps, layout, make)


def steps_of_one_rank_at_a_time(layout: str, make: Make, folder: Path) -> None:
    optimizer, single = in_layout(LAYOUTS[layout], make), in_one_piece(LAYOUTS[layout], make)
    rank = dist.get_rank()
    deadline = time.monotonic() + 30
    while rank > 0 and not (folder / f"{rank - 1}").exists():
        assert time.monotonic() < deadline, f"rank {rank - 1} cannot step alone"
        time.sleep(0.005)
    with CommDebugMode() as seen:
        take_steps(optimizer, range(4))
    take_steps(optimizer, range(4, 9))  # again without the mode, which looks at every operation
    (folder / f"{rank}").touch()
    assert seen.get_total_counts() == 0, seen.get_comm_counts()
    take_steps(single, range(9))
    assert_same_run(optimizer, single, promised(make), layout)


@both
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_waits_for_no_other_rank_and_sends_nothing(layout: str, make: Make, tmp_path: Path) -> None:
    in_processes(ranks_of(layout), steps_of_one_rank_at_a_time, layout, make, tmp_path)


# ---- gradients that are placed otherwise


def misplaced(grad: torch.Tensor, mesh: DeviceMesh, placement: Placement) -> DTensor:
    """Return a DTensor that stands for grad. Where it is partial, neither of the two ranks holds a sound part of it."""
    if not isinstance(placement, Partial):
        return placed(grad, mesh, [placement])
    noise = draw([grad.shape], grad.dtype, 3)[0].round()
    sign = 1 if dist.get_rank() == 0 else -1
    parts = {"sum": grad / 2 + sign * noise, "avg": grad + sign * noise, "max": grad - (sign * noise).clamp(min=0)}
    return DTensor.from_local(parts[placement.reduce_op], mesh, [placement], run_check=False)


def steps_with_grads_placed_otherwise(placement: Placement, make: Make) -> None:
    mesh = init_device_mesh("cpu", (2,))
    shapes = [(5, 3), (3, 2), *([(1, 4)] if make is RAdam else [])]  # torch cannot move the shards of a single row
    for grad_placement in (ROWS, COLUMNS, COPIES, Partial(), Partial("avg"), Partial("max")):
        for keywords in ({}, {"weight_decay": 0.5}):
            case = f"grad {grad_placement}, {keywords}"
            starts = draw(shapes, torch.float32, 1)
            sharded = optimizer_over((placed(start, mesh, [placement]) for start in starts), make, **keywords)
            single, peer = (
                optimizer_over((start.clone() for start in starts), cls, **keywords)
                for cls in (make, torch.optim.RAdam)
            )
            for t in range(8):
                for index, grad in enumerate(draw(shapes, torch.float32, 100 + t)):
                    grad = 8 * grad.round()
                    params_of(sharded)[index].grad = misplaced(grad, mesh, grad_placement)
                    params_of(single)[index].grad, params_of(peer)[index].grad = grad.clone(), grad.clone()
                with CommDebugMode() as seen:
                    sharded.step()
                needed = grad_placement not in (placement, COPIES)
                assert bool(seen.get_total_counts()) == needed, f"{case}: {seen.get_comm_counts()}"
                single.step()
                peer.step()
            assert_state_is_placed_as_the_params(sharded)
            assert_same_run(sharded, single, promised(make), case)
            assert_same_run(single, peer, close, f"{case}, beside torch")


@both
@pytest.mark.parametrize("placement", [ROWS, COLUMNS, COPIES], ids=str)
def test_a_grad_placed_otherwise_counts_as_what_it_stands_for(placement: Placement, make: Make) -> None:
    in_processes(2, steps_with_grads_placed_otherwise, placement, make)


def step_with_a_grad_still_on_its_way(make: Make) -> None:
    mesh = init_device_mesh("cpu", (2,))
    start, grad = draw([(300, 200)] * 2, torch.float32, 1)
    sharded, single = optimizer_over([placed(start, mesh, [ROWS])], make), optimizer_over([start.clone()], make)
    for _ in range(8):
        arriving = misplaced(8 * grad.round(), mesh, Partial()).redistribute(mesh, [ROWS], async_op=True)
        assert type(arriving._local_tensor) is AsyncCollectiveTensor, "there is nothing to wait for"
        params_of(sharded)[0].grad = arriving
        params_of(single)[0].grad = 8 * grad.round()
        sharded.step()
        single.step()
    assert_same_run(sharded, single, promised(make), "asynchronous")


@both
def test_a_step_waits_for_a_grad_that_is_still_on_its_way(make: Make) -> None:
    in_processes(2, step_with_a_grad_still_on_its_way, make)


def steps_that_mix_tensors_and_dtensors(make: Make) -> None:
    mesh = init_device_mesh("cpu", (2,))
    starts = draw([(5, 3), (4,), (2, 2)], torch.float32, 1)
    mixed = optimizer_over([placed(starts[0], mesh, [ROWS]), starts[1].clone(), starts[2].clone()], make)
    single = optimizer_over([start.clone() for start in starts], make)
    for optimizer in (mixed, single):
        take_steps(optimizer, range(9))
    assert_same_run(mixed, single, promised(make), "mixed")
    before = [param.detach().clone() for param in params_of(mixed)]
    for wrong in (0, 2):  # a plain grad of a DTensor; a DTensor as the grad of a plain tensor, the last one
        for index, param in enumerate(params_of(mixed)):
            param.grad = placed_as(param, starts[index])
        param = params_of(mixed)[wrong]
        param.grad = placed(starts[wrong], mesh, [ROWS]) if wrong else starts[wrong].clone()
        with pytest.raises((RuntimeError, ValueError), match="DTensor"):
            mixed.step()
    if make is RAdam:  # torch has counted the step by then, and stepped what stands in front
        assert_same_params(params_of(mixed), before, exact, "after an error")
        assert_same_run(mixed, single, exact, "after an error")


@both
def test_plain_params_and_dtensors_share_an_optimizer_but_a_param_and_its_grad_are_of_one_kind(make: Make) -> None:
    in_processes(2, steps_that_mix_tensors_and_dtensors, make)


# ---- the step and the local shard

SHARD = 4 << 20  # elements of each rank


def steps_in_place() -> None:
    import resource  # not on every system

    mesh = init_device_mesh("cpu", (2,))

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    param, grad = (
        DTensor.from_local(torch.full((SHARD,), value), mesh, [ROWS], run_check=False) for value in (1.0, 0.5)
    )
    param.requires_grad_()
    param.grad = grad
    local = param.to_local().detach()
    optimizer = RAdam([param], lr=0.5)
    start, size = peak(), local.nbytes
    optimizer.step()
    made = peak() - start
    moments = [optimizer.state[param][name].to_local() for name in ("exp_avg", "exp_avg_sq")]
    held = [tensor.data_ptr() for tensor in (local, *moments)]
    versions = [tensor._version for tensor in (param, optimizer.state[param]["exp_avg"])]
    start = peak()
    for _ in range(6):
        optimizer.step()
    grown = peak() - start
    copy_of_a_shard = local.clone()
    seen = peak() - start
    assert seen > 0.9 * size, f"the copy of a shard is not seen: {seen} of {copy_of_a_shard.nbytes} bytes"
    assert made < 2.5 * size, f"the first step took {made / size:.2f} shards, not the two moments alone"
    assert grown < 0.25 * size, f"the steps took {grown / size:.2f} shards"
    now = (param.to_local(), *(optimizer.state[param][name].to_local() for name in ("exp_avg", "exp_avg_sq")))
    assert [tensor.data_ptr() for tensor in now] == held
    assert (local < 1).all()
    assert (grad.to_local() == 0.5).all()
    assert all(a > b for a, b in zip((param._version, optimizer.state[param]["exp_avg"]._version), versions))


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell the largest memory in use")
def test_a_step_works_on_the_local_shard_itself_and_takes_no_memory() -> None:
    in_processes(2, steps_in_place)


def loss_through_a_tensor_saved_before_the_step(make: Make) -> None:
    mesh = init_device_mesh("cpu", (2,))
    param = nn.Parameter(placed(torch.ones(4, 3), mesh, [ROWS]))
    optimizer = make([param])
    param.grad = placed(torch.ones(4, 3), mesh, [ROWS])
    for watching in (contextlib.nullcontext(), CommDebugMode()):
        loss = (param * param).sum().full_tensor()
        with watching:
            optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@both
def test_a_backward_through_a_dtensor_saved_before_the_step_is_an_error(make: Make) -> None:
    in_processes(2, loss_through_a_tensor_saved_before_the_step, make)


def steps_on_shards_with_gaps(make: Make) -> None:
    """The local tensors lie in the columns of a larger matrix, or are transposed."""
    mesh = init_device_mesh("cpu", (2,))
    rank = dist.get_rank()
    starts = draw([(8, 3), (8, 3)], torch.float32, 1)
    home = torch.full((4, 6), 7.0)
    home[:, ::2] = starts[0].chunk(2)[rank]
    transposed = starts[1].chunk(2)[rank].t().contiguous().t()
    sharded = optimizer_over(
        [DTensor.from_local(local, mesh, [ROWS], run_check=False) for local in (home[:, ::2], transposed)], make
    )
    single = optimizer_over([start.clone() for start in starts], make)
    for optimizer in (sharded, single):
        take_steps(optimizer, range(9))
    assert_same_run(sharded, single, promised(make), "gaps")
    exact(home[:, ::2], params_of(sharded)[0].to_local(), "the larger matrix")
    exact(transposed, params_of(sharded)[1].to_local(), "the transposed shard")
    assert (home[:, 1::2] == 7).all()


@both
def test_a_local_shard_may_be_a_view_with_gaps(make: Make) -> None:
    in_processes(2, steps_on_shards_with_gaps, make)


def sixteen_bit_steps(dtype: torch.dtype) -> None:
    sharded, single = (start(LAYOUTS["two"], RAdam, dtype, weight_decay=0.07) for start in (in_layout, in_one_piece))
    for optimizer in (sharded, single):
        take_steps(optimizer, range(12))
    assert_state_is_placed_as_the_params(sharded)
    assert_same_run(sharded, single, exact, str(dtype))
    for param in params_of(sharded):
        assert sharded.state[param]["exp_avg"].dtype == sharded.state[param]["exp_avg_sq"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sharded_sixteen_bit_params_have_sharded_float32_moments(dtype: torch.dtype) -> None:
    in_processes(2, sixteen_bit_steps, dtype)


def complex_steps() -> None:
    sharded, single = (start(LAYOUTS["two"], RAdam, torch.complex64) for start in (in_layout, in_one_piece))
    peer = in_one_piece(LAYOUTS["two"], torch.optim.RAdam, torch.complex64)
    for optimizer in (sharded, single, peer):
        take_steps(optimizer, range(12))
    assert_state_is_placed_as_the_params(sharded)
    assert_same_run(sharded, single, exact, "complex")
    assert_same_run(single, peer, close, "complex, beside torch")


def test_sharded_complex_params_are_stepped_as_in_one_process() -> None:
    in_processes(2, complex_steps)


# ---- a step happens wholly or not at all, on all ranks


def steps_with_a_nan_in_one_shard(nonfinite: str) -> None:
    sharded, single = (start(LAYOUTS["two"], RAdam, nonfinite=nonfinite) for start in (in_layout, in_one_piece))
    for optimizer in (sharded, single):
        take_steps(optimizer, range(3))
        bad = torch.ones(8, 3)
        bad[0, 0] = torch.nan
        param = params_of(optimizer)[0]
        param.grad = placed_as(param, bad)
        if nonfinite == "skip":
            optimizer.step()
            assert optimizer.skipped_steps == 1
        else:
            with pytest.raises(FloatingPointError):
                optimizer.step()
        take_steps(optimizer, range(3, 9))
    assert_same_run(sharded, single, exact, nonfinite)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_nan_in_the_shard_of_one_rank_stops_the_step_on_all_ranks(nonfinite: str) -> None:
    in_processes(2, steps_with_a_nan_in_one_shard, nonfinite)


def scaled_steps(make: Make, settings: dict[str, Any]) -> None:
    mesh = init_device_mesh("cpu", (2,))
    start, *factors = draw([(4, 3)] * 9, torch.float32, 1)
    factors[3][0, 0] = torch.inf
    runs = []
    for param in (placed(start, mesh, [ROWS]), start.clone()):
        optimizer = optimizer_over([param], make, **settings)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for factor in factors:
            optimizer.zero_grad()
            param = params_of(optimizer)[0]
            scaler.scale((param * placed_as(param, factor)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0
        assert optimizer.state[params_of(optimizer)[0]]["step"] == 7
        runs.append(optimizer)
    assert_same_run(*runs, promised(make), "scaled")


@pytest.mark.parametrize(
    ("make", "settings"),
    [(RAdam, {}), (RAdam, {"fused_amp": True}), (torch.optim.RAdam, {})],
    ids=["radam", "radam unscaling", "torch"],
)
def test_an_inf_that_grad_scaler_finds_in_one_shard_skips_the_step_on_all_ranks(
    make: Make, settings: dict[str, Any]
) -> None:
    in_processes(2, scaled_steps, make, settings)


def reload_states() -> None:
    saver, single = (start(LAYOUTS["two"], RAdam) for start in (in_layout, in_one_piece))
    for optimizer in (saver, single):
        take_steps(optimizer, range(9))
    saved = copy.deepcopy(saver.state_dict())
    for case in ("as saved", "moments placed otherwise", "states of one process"):
        loader = optimizer_over([param.detach().clone() for param in params_of(saver)], RAdam)
        states = copy.deepcopy(saved)
        if case == "moments placed otherwise":
            for entry in states["state"].values():
                entry["exp_avg"] = entry["exp_avg"].redistribute(placements=[COPIES])
        elif case == "states of one process":
            states = single.state_dict()
            with pytest.raises(ValueError, match="DTensor"):
                loader.load_state_dict(states)
            assert not loader.state
            continue
        loader.load_state_dict(states)
        assert_state_is_placed_as_the_params(loader)
        twin = copy.deepcopy(single)
        for optimizer in (loader, twin):
            take_steps(optimizer, range(9, 15))
        assert_same_run(loader, twin, exact, case)


def test_a_sharded_state_dict_loads_as_it_is_or_is_refused_whole() -> None:
    in_processes(2, reload_states)


# ---- models in the hands of torch.distributed


class Branches(nn.Module):
    """Layers side by side: no gradient depends on a parameter, and with whole numbers in, none is ever rounded."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([nn.Linear(4, size, bias=size != 2) for size in (8, 7, 1, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters in two groups, the vectors without decay and faster."""
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.07},
        {"params": [p for p in model.parameters() if p.ndim == 1], "lr": 0.05},
    ]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int], rank: int = 0, ranks: int = 1
) -> None:
    """Train on this rank's rows of each batch, scaled so that the mean over the ranks is the gradient of all."""
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        x = torch.randint(-3, 4, (12, 4), generator=generator)[rank::ranks].float()
        weights = torch.randint(-3, 4, (12, 18), generator=generator)[rank::ranks].float()
        optimizer.zero_grad()
        (model(x) * weights).sum().mul(ranks).backward()
        optimizer.step()


def trained_alone(make: Make, steps: int) -> torch.optim.Optimizer:
    """Return the optimizer of a model that one process trained."""
    model = Branches(1)
    optimizer = make(groups_of(model), lr=0.02)
    train(model, optimizer, range(steps))
    return optimizer


def wrapped(model: nn.Module, how: str) -> tuple[nn.Module, int, int]:
    """Return a model in a wrapper of torch.distributed, and which share of the data this rank takes, of how many."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    match how:
        case "DDP":
            return DistributedDataParallel(model), rank, ranks
        case "DDP, grads in buckets":
            return DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True), rank, ranks
        case "FSDP2":
            return fully_shard(model), rank, ranks
        case "FSDP2 layer by layer":
            for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
                fully_shard(layer)
            return fully_shard(model), rank, ranks
        case "FSDP2 by columns":
            return fully_shard(model, shard_placement_fn=lambda p: COLUMNS if p.shape[-1] == 4 else None), rank, ranks
        case "FSDP2 computing in bfloat16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            return fully_shard(model, mp_policy=policy), rank, ranks
        case "FSDP2 in replicas":
            return (
                fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard"))),
                rank,
                ranks,
            )
        case "FSDP2 and tensor parallel":
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
            plan = {
                "layers.0": ColwiseParallel(output_layouts=COPIES),
                "layers.3": RowwiseParallel(input_layouts=COPIES),
            }
            parallelize_module(model, mesh["tensor"], plan)
            return fully_shard(model, mesh=mesh["data"]), mesh["data"].get_local_rank(), 2
    raise AssertionError(how)


WRAPPERS = {
    "DDP": 2,
    "DDP, grads in buckets": 2,
    "FSDP2 layer by layer": 3,
    "FSDP2 by columns": 2,
    "FSDP2 computing in bfloat16": 2,
    "FSDP2 in replicas": 4,
    "FSDP2 and tensor parallel": 4,
}


def train_wrapped(how: str, make: Make) -> None:
    model, rank, ranks = wrapped(Branches(1), how)
    optimizer = make(groups_of(model), lr=0.02)
    train(model, optimizer, range(14), rank, ranks)
    if how.startswith("FSDP2"):
        assert_state_is_placed_as_the_params(optimizer)
    single = trained_alone(make, 14)
    assert_same_run(optimizer, single, promised(make), how)
    assert_same_run(single, trained_alone(torch.optim.RAdam, 14), close, f"{how}, beside torch")


@both
@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrapped_model_is_trained_as_in_one_process(how: str, make: Make) -> None:
    in_processes(WRAPPERS[how], train_wrapped, how, make)


def train_end_to_end(how: str, make: Make) -> None:
    """A network whose gradients depend on its parameters, with clipping and a schedule: equal up to rounding."""

    def trained(wrap: Callable[[nn.Module], tuple[nn.Module, int, int]]) -> tuple[list[torch.Tensor], list[float]]:
        torch.manual_seed(1)
        model, rank, ranks = wrap(
            nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3), nn.Tanh(), nn.Linear(3, 1))
        )
        optimizer = make(model.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        x, _ = draw([(32, 4), ()], torch.float32, 2)
        y = x.prod(dim=-1, keepdim=True)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x[rank::ranks]), y[rank::ranks])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return list(model.parameters()), losses

    sharded, losses = trained(lambda model: wrapped(model, how))
    alone, _ = trained(lambda model: (model, 0, 1))
    assert_same_params(sharded, alone, functools.partial(close, rounding=1e-4), how)
    assert losses[-1] < 0.7 * losses[0], losses


@both
@pytest.mark.parametrize("how", ["DDP", "FSDP2"])
def test_a_network_learns_in_many_processes_what_it_learns_in_one(how: str, make: Make) -> None:
    in_processes(2, train_end_to_end, how, make)


# ---- ZeroRedundancyOptimizer


def zero_over(params: list[torch.Tensor], make: Make, in_buckets: bool, **settings: Any) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # it warns of torch.jit.script while it is imported

    return optimizer_over(
        params,
        lambda groups, **kwargs: ZeroRedundancyOptimizer(
            groups, optimizer_class=make, parameters_as_bucket_view=in_buckets, **kwargs
        ),
        **settings,
    )


ZERO_SHAPES = [(5, 3), (7,), (), (2, 2, 2), (1, 4)]
ZERO_SETTINGS = {"weight_decay": 0.07, "decoupled_weight_decay": True}


def zero_steps(make: Make, in_buckets: bool, few: bool, folder: Path) -> None:
    shapes = ZERO_SHAPES[:2] if few else ZERO_SHAPES
    starts = draw(shapes, torch.float32, 1)
    zero = zero_over([start.clone() for start in starts], make, in_buckets, **ZERO_SETTINGS)
    single = optimizer_over([start.clone() for start in starts], make, **ZERO_SETTINGS)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in (zero, single)]
    for t in range(9):
        for optimizer, schedule in zip((zero, single), schedules):
            take_steps(optimizer, [t])
            schedule.step()
    assert_same_params(params_of(zero), params_of(single), promised(make), "ZeRO")
    zero.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        torch.save({"optimizer": zero.state_dict(), "params": params_of(zero)}, folder / "saved.pt")
    dist.barrier()
    saved = torch.load(folder / "saved.pt", weights_only=True)
    params = [param.detach().clone() for param in saved["params"]]
    sharded = zero_over([param.clone() for param in params], make, not in_buckets, lr=1.0)
    alone = optimizer_over([param.clone() for param in params], make, lr=1.0)
    for resumed in (sharded, alone):
        resumed.load_state_dict(copy.deepcopy(saved["optimizer"]))
    for optimizer in (zero, single, sharded, alone):
        take_steps(optimizer, range(9, 18))
    for name, optimizer in (("uninterrupted", zero), ("resumed", sharded), ("resumed alone", alone)):
        assert_same_params(params_of(optimizer), params_of(single), promised(make), name)
    assert_same_run(alone, single, promised(make), "resumed alone")
    # A state that one process saved goes on in many.
    spread = zero_over([param.detach().clone() for param in params_of(alone)], make, in_buckets)
    spread.load_state_dict(copy.deepcopy(alone.state_dict()))
    for optimizer in (single, spread):
        take_steps(optimizer, range(18, 22))
    assert_same_params(params_of(spread), params_of(single), promised(make), "spread")


@both
@pytest.mark.parametrize("in_buckets", [False, True], ids=["apart", "buckets"])
@pytest.mark.parametrize("few", [False, True], ids=["", "ranks without a parameter"])
def test_zero_redundancy_optimizer_steps_saves_and_resumes_as_one_process(
    make: Make, in_buckets: bool, few: bool, tmp_path: Path
) -> None:
    in_processes(3 if few else 2, zero_steps, make, in_buckets, few, tmp_path)


# ---- checkpoints of torch.distributed.checkpoint

HALF = 8
OPTIONS: dict[str, dict[str, Any]] = {
    "nested": {},
    "flat": {"flatten_optimizer_state_dict": True},
    "whole": {"full_state_dict": True, "cpu_offload": True},
}


def save_checkpoints(folder: Path, form: str) -> None:
    for saver, make in CLASSES.items():
        model, rank, ranks = wrapped(Branches(1), "FSDP2")
        optimizer = make(groups_of(model), lr=0.02)
        train(model, optimizer, range(HALF), rank, ranks)
        options = StateDictOptions(**OPTIONS[form])
        states = {
            "model": get_model_state_dict(model, options=options),
            "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
        }
        if not options.full_state_dict:
            dcp.save(states, checkpoint_id=folder / saver)
        elif rank == 0:
            torch.save(states, folder / f"{saver}.pt")


def go_on_from_checkpoints(folder: Path, form: str, sharded: bool) -> None:
    uninterrupted = {name: trained_alone(make, 2 * HALF) for name, make in CLASSES.items()}
    for saver, name in itertools.product(CLASSES, CLASSES):
        make = CLASSES[name]
        model, rank, ranks = wrapped(Branches(2), "FSDP2") if sharded else (Branches(2), 0, 1)
        optimizer = make(groups_of(model), lr=1.0)
        options = StateDictOptions(**OPTIONS[form])
        if options.full_state_dict:
            options.broadcast_from_rank0, options.cpu_offload = True, False  # rank 0 reads for all
            states = {"model": {}, "optimizer": {}}
            if rank == 0:
                states = torch.load(folder / f"{saver}.pt", weights_only=True)
        else:
            states = {
                "model": get_model_state_dict(model, options=options),
                "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
            }
            dcp.load(states, checkpoint_id=folder / saver)
        set_model_state_dict(model, states["model"], options=options)
        set_optimizer_state_dict(model, optimizer, states["optimizer"], options=options)
        train(model, optimizer, range(HALF, 2 * HALF), rank, ranks)
        case = f"saved by {saver}, loaded by {name}"
        if sharded:
            assert_state_is_placed_as_the_params(optimizer)
        assert_same_run(optimizer, uninterrupted[name], promised(CLASSES[saver], make), case)


@pytest.mark.parametrize("form", OPTIONS)
def test_a_checkpoint_of_two_ranks_goes_on_in_one_and_in_three_with_either_class(form: str, tmp_path: Path) -> None:
    in_processes(2, save_checkpoints, tmp_path, form)
    in_processes(1, go_on_from_checkpoints, tmp_path, form, False)
    in_processes(1, go_on_from_checkpoints, tmp_path, form, True)
    in_processes(3, go_on_from_checkpoints, tmp_path, form, True)
