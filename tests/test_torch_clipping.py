"""Clipping in the step of radam.torch: torch's own clipping and then a step, on one process and over many."""

from __future__ import annotations

import contextlib
import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from gloo_processes import AVAILABLE, in_processes
from radam.torch import RAdam
from radam.torch.clip import Clip

distributed = pytest.mark.skipif(not AVAILABLE, reason="needs gloo and a fork server")

SHAPES = [(64, 33), (7,), (), (0, 3), (2, 3, 4, 5)]
OPTIONS = ("max_grad_norm", "max_tensor_grad_norm", "max_grad_value")
Clipper = Callable[[list[Any], float], Any]


def draw(seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(shape, generator=generator)).to(dtype) for shape in SHAPES]


def fresh(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(tensor) for tensor in draw(1, dtype)]


def by_tensor(params: list[Any], most: float) -> None:
    for param in params:
        nn.utils.clip_grad_norm_([param], most)


TORCHS: dict[str, Clipper] = dict(
    zip(OPTIONS, (nn.utils.clip_grad_norm_, by_tensor, nn.utils.clip_grad_value_), strict=True)
)


def close(got: Any, expected: Any, rounding: float = 2e-6) -> bool:
    return bool(((got - expected).abs() <= rounding * expected.abs().clamp(min=1)).all())


@pytest.mark.parametrize("most", [0.0, 0.5, 3.0, 1e6, math.inf])
@pytest.mark.parametrize("option", OPTIONS)
def test_it_is_torchs_own_clipping_and_then_a_step(option: str, most: float) -> None:
    ours, theirs = fresh(), fresh()
    optimizer = RAdam([{"params": ours[:2]}, {"params": ours[2:], "lr": 0.05}], lr=0.02, **{option: most})
    reference = RAdam([{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.05}], lr=0.02)
    for t in range(8):
        grads = draw(10 + t, scale=10.0 ** (t % 3 - 1))
        for a, b, grad in zip(ours, theirs, grads):
            a.grad, b.grad = grad.clone(), grad.clone()
        norm = nn.utils.get_total_norm(grads)
        TORCHS[option](theirs, most)
        optimizer.step()
        reference.step()
        assert all(torch.equal(param.grad, grad) for param, grad in zip(ours, grads))  # type: ignore[arg-type]
        if option == "max_grad_value":
            assert optimizer.grad_norm is None
        else:
            assert optimizer.grad_norm == pytest.approx(float(norm), rel=1e-6)
    for a, b in zip(ours, theirs):
        assert close(a.detach(), b.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_norm_of_any_dtype_is_exact_to_double_precision(dtype: torch.dtype) -> None:
    params = fresh(dtype)
    optimizer = RAdam(params, max_grad_norm=1.0)
    for param, grad in zip(params, draw(3, dtype)):
        param.grad = grad
    optimizer.step()
    squares = math.fsum(float(x) ** 2 for param in params for x in param.grad.double().flatten())  # type: ignore[union-attr]
    assert optimizer.grad_norm == pytest.approx(math.sqrt(squares), rel=1e-14)


def test_inf_only_measures() -> None:
    ours, theirs = fresh(), fresh()
    measured, plain = RAdam(ours, lr=0.02, max_grad_norm=math.inf), RAdam(theirs, lr=0.02)
    for a, b, grad in zip(ours, theirs, draw(2, scale=100.0)):
        a.grad, b.grad = grad, grad.clone()
    measured.step()
    plain.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert measured.grad_norm is not None
    assert plain.grad_norm is None


def test_grad_norm_is_none_before_the_first_step_and_an_edit_counts_from_the_next_on() -> None:
    params = fresh()
    optimizer = RAdam(params, lr=0.02)
    assert optimizer.grad_norm is None
    for param, grad in zip(params, draw(2)):
        param.grad = grad
    optimizer.step()
    assert optimizer.grad_norm is None
    optimizer.max_grad_norm = 1.0
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx(float(nn.utils.get_total_norm(draw(2))), rel=1e-6)
    optimizer.max_grad_norm = -1.0
    before = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match="max_grad_norm"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before))


@pytest.mark.parametrize("bad", [-1.0, math.nan], ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_no_limit_is_refused(option: str, bad: float) -> None:
    with pytest.raises(ValueError, match=option):
        RAdam(fresh(), **{option: bad})
    with pytest.raises(ValueError, match="choose one"):
        RAdam(fresh(), max_grad_norm=1.0, **{option: 1.0} if option != "max_grad_norm" else {"max_grad_value": 1.0})


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("what", [math.inf, math.nan], ids=str)
def test_a_gradient_that_is_not_finite_skips_or_raises_and_the_norm_says_so(option: str, what: float) -> None:
    params = fresh()
    skips = RAdam(params, lr=0.02, nonfinite="skip", **{option: 1.0})
    raises = RAdam(params, lr=0.02, nonfinite="raise", **{option: 1.0})
    for param, grad in zip(params, draw(2)):
        param.grad = grad
    params[0].grad[3, 3] = what  # type: ignore[index]
    before = [param.detach().clone() for param in params]
    skips.step()
    with pytest.raises(FloatingPointError, match="parameter 0 of group 0"):
        raises.step()
    assert skips.skipped_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(params, before))
    assert not skips.state
    for optimizer in (skips, raises):
        if option == "max_grad_value":
            assert optimizer.grad_norm is None
        else:
            assert optimizer.grad_norm is not None
            assert not math.isfinite(optimizer.grad_norm)


def test_the_same_parameter_twice_is_clipped_twice_by_one_norm() -> None:
    (once,) = fresh()[:1]
    grad = draw(2)[0]
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = RAdam([once, once], lr=0.02, max_grad_norm=0.5)
    once.grad = grad.clone()
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx(float(grad.norm()), rel=1e-6)
    other = fresh()[0]
    reference = RAdam([other], lr=0.02)
    other.grad = grad * (0.5 / (grad.norm() + 1e-6))
    reference.step()
    reference.step()
    assert close(once.detach(), other.detach())


@pytest.mark.parametrize("found_inf", [False, True])
def test_with_gradscaler_the_norm_is_that_of_unscaled_gradients(found_inf: bool) -> None:
    ours, theirs = fresh(), fresh()
    fused, reference = RAdam(ours, lr=0.02, max_grad_norm=0.5, fused_amp=True), RAdam(theirs, lr=0.02)
    before = [param.detach().clone() for param in ours]
    grads = draw(2)
    for a, b, grad in zip(ours, theirs, grads):
        a.grad, b.grad = grad * 1024, grad.clone()
    scaler: Any = fused
    scaler.grad_scale, scaler.found_inf = torch.tensor(1024.0), torch.tensor(float(found_inf))
    nn.utils.clip_grad_norm_(theirs, 0.5)
    fused.step()
    reference.step()
    if found_inf:
        assert all(torch.equal(a, b) for a, b in zip(ours, before))
        assert fused.grad_norm is not None
        assert not math.isfinite(fused.grad_norm)
    else:
        assert all(close(a.detach(), b.detach()) for a, b in zip(ours, theirs))
        assert fused.grad_norm == pytest.approx(float(nn.utils.get_total_norm(grads)), rel=1e-6)


def test_complex_gradients_count_as_torch_counts_them() -> None:
    grad = torch.complex(*(draw(seed)[0] for seed in (2, 3)))
    mine, other = (nn.Parameter(torch.ones_like(grad)) for _ in range(2))
    optimizer, reference = RAdam([mine], lr=0.02, max_grad_norm=0.5), RAdam([other], lr=0.02)
    mine.grad, other.grad = grad.clone(), grad.clone()
    norm = nn.utils.clip_grad_norm_([other], 0.5)
    optimizer.step()
    reference.step()
    assert optimizer.grad_norm == pytest.approx(float(norm), rel=1e-6)
    assert close(torch.view_as_real(mine.detach()), torch.view_as_real(other.detach()))


def test_a_step_that_is_tried_twice_is_clipped_once() -> None:
    def clipped(size: int) -> tuple[list[nn.Parameter], RAdam]:
        params = [nn.Parameter(torch.ones(size, 2)), nn.Parameter(torch.ones(3, dtype=torch.complex64))]
        return params, RAdam(params, lr=0.02, max_grad_norm=0.5)

    def step(params: list[nn.Parameter], optimizer: RAdam) -> None:
        for param in params:
            param.grad = torch.full_like(param, 3.0)
        optimizer.step()

    params, optimizer = clipped(4)
    step(params, optimizer)
    step(params, optimizer)
    others, resumed = clipped(4)
    step(others, resumed)
    again = RAdam(others, lr=0.02, max_grad_norm=0.5)
    again.load_state_dict(resumed.state_dict())  # it takes all for plain tensors until it has looked
    step(others, again)
    assert again.grad_norm == pytest.approx(math.sqrt(11 * 9.0), rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(params, others))


# ---- over many processes

ROWS, COLUMNS, COPIES = Shard(0), Shard(1), Replicate()
LAYOUTS: dict[str, tuple[tuple[int, ...], list[tuple[Placement, ...] | None]]] = {  # of SHAPES; None for a plain tensor
    "rows": ((3,), [(ROWS,), (ROWS,), (COPIES,), (ROWS,), (ROWS,)]),
    "columns and copies": ((2,), [(COLUMNS,), (COPIES,), (COPIES,), (COLUMNS,), (Shard(3),)]),
    "beside plain tensors": ((2,), [(ROWS,), None, None, (ROWS,), (COLUMNS,)]),
    "two by two": (
        (2, 2),
        [(ROWS, COLUMNS), (COPIES, ROWS), (COPIES, COPIES), (ROWS, ROWS), (COLUMNS, COPIES)],
    ),
    "two by two, beside plain tensors": ((2, 2), [(ROWS, ROWS), None, (COPIES, COPIES), None, (COPIES, COLUMNS)]),
}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def placed(tensor: torch.Tensor, mesh: DeviceMesh, where: tuple[Placement, ...] | None) -> torch.Tensor:
    if where is None:
        return tensor.clone()
    return distribute_tensor(tensor.clone(), mesh, where, src_data_rank=None)


def everywhere(value: Any) -> list[Any]:
    """Return what each rank has."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def clip_over_ranks(layout: str, option: str, most: float) -> None:
    sizes, kinds = LAYOUTS[layout]
    mesh = init_device_mesh("cpu", sizes)
    pieces = [nn.Parameter(placed(start, mesh, where)) for start, where in zip(draw(1), kinds)]
    alone = fresh()
    optimizer, reference = RAdam(pieces, lr=0.02, **{option: most}), RAdam(alone, lr=0.02)
    for t in range(5):
        grads = draw(10 + t, scale=10.0 ** (t % 3 - 1))
        for piece, one, grad, where in zip(pieces, alone, grads, kinds):
            piece.grad, one.grad = placed(grad, mesh, where), grad.clone()
        norm = float(nn.utils.get_total_norm(grads))
        TORCHS[option](alone, most)
        optimizer.step()
        reference.step()
        if option == "max_grad_norm":
            assert optimizer.grad_norm == pytest.approx(norm, rel=1e-6)
        assert len(set(everywhere(optimizer.grad_norm))) == 1
    for index, (piece, one) in enumerate(zip(pieces, alone)):
        assert close(whole(piece), one.detach()), index


@distributed
@pytest.mark.parametrize("option", ["max_grad_norm", "max_grad_value"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_norm_is_that_of_all_processes_and_the_same_bits_in_each(layout: str, option: str) -> None:
    in_processes(torch.Size(LAYOUTS[layout][0]).numel(), clip_over_ranks, layout, option, 0.5)


def clip_two_meshes() -> None:
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "piece"))
    kinds: list[tuple[DeviceMesh, tuple[Placement, ...]]] = [
        *((both, (COPIES, ROWS)), (both["piece"], (ROWS,)), (both["piece"], (COPIES,))),
        *((both, (ROWS, ROWS)), (both["copy"], (ROWS,))),
    ]
    pieces = [nn.Parameter(placed(start, mesh, where)) for start, (mesh, where) in zip(draw(1), kinds)]
    optimizer = RAdam(pieces, lr=0.02, max_grad_norm=0.5)
    for piece, grad, (mesh, where) in zip(pieces, draw(2), kinds):
        piece.grad = placed(grad, mesh, where)
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx(float(nn.utils.get_total_norm(draw(2))), rel=1e-6)
    assert len(set(everywhere(optimizer.grad_norm))) == 1


@distributed
def test_parameters_on_several_meshes_have_one_norm() -> None:
    in_processes(4, clip_two_meshes)


def clip_without_gradients(how: str) -> None:
    mesh = init_device_mesh("cpu", (2,))
    rank = dist.get_rank()
    pieces = [nn.Parameter(placed(start, mesh, (ROWS,))) for start in draw(1)[:2]]
    extra = nn.Parameter(torch.ones(3))
    optimizer = RAdam([*pieces, extra], lr=0.02, max_grad_norm=0.5, nonfinite="skip")
    step = torch.compile(optimizer.step, backend="aot_eager") if how == "compiled" else optimizer.step
    grads = draw(2)[:2]
    for t in range(5):
        has = {
            0: (True, True),
            1: (rank == 0, True),
            2: (rank == 1, False),
            3: (False, rank == 0),
            4: (rank == 1, rank == 1),
        }[t]
        for piece, grad, present in zip(pieces, grads, has):
            piece.grad = placed(grad, mesh, (ROWS,)) if present else None
        extra.grad = torch.ones(3) if t == 2 else None
        with CommDebugMode() if how == "watched" else contextlib.nullcontext():
            step()
        assert len(set(everywhere(optimizer.grad_norm))) == 1
        if t == 0:
            assert optimizer.grad_norm == pytest.approx(float(nn.utils.get_total_norm(grads)), rel=1e-6)
    assert optimizer.skipped_steps == 0


@distributed
@pytest.mark.parametrize("how", ["eager", "watched", "compiled"])
def test_a_process_without_a_gradient_takes_part_and_nobody_hangs(how: str) -> None:
    in_processes(2, clip_without_gradients, how)


def skip_together(nonfinite: str, without: bool) -> None:
    mesh = init_device_mesh("cpu", (3,))
    rank = dist.get_rank()
    pieces = [nn.Parameter(placed(start, mesh, (ROWS,))) for start in draw(1)[:2]]
    settings: Any = {"nonfinite": nonfinite, "lr": 0.02}
    optimizer = RAdam(pieces, max_grad_norm=0.5, **settings)
    before = [whole(piece).clone() for piece in pieces]
    grads = draw(2)[:2]
    grads[0][0, 0] = math.inf  # on rank 0 alone
    for piece, grad in zip(pieces, grads):
        piece.grad = None if without and rank == 2 else placed(grad, mesh, (ROWS,))
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match=r"parameter 0 of group 0|another process"):
            optimizer.step()
    else:
        optimizer.step()
        assert optimizer.skipped_steps == 1
    assert optimizer.grad_norm == math.inf
    assert not optimizer.state
    assert all(torch.equal(whole(piece), start) for piece, start in zip(pieces, before))


@distributed
@pytest.mark.parametrize("without", [False, True], ids=["", "one without gradients"])
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_step_is_left_out_on_all_processes_or_on_none(nonfinite: str, without: bool) -> None:
    in_processes(3, skip_together, nonfinite, without)


def scaler_found_an_inf_on_one_rank() -> None:
    mesh = init_device_mesh("cpu", (2,))
    piece = nn.Parameter(placed(draw(1)[0], mesh, (ROWS,)))
    optimizer = RAdam([piece], max_grad_norm=0.5, fused_amp=True)
    before = whole(piece).clone()
    piece.grad = placed(draw(2)[0], mesh, (ROWS,))
    scaler: Any = optimizer
    scaler.grad_scale, scaler.found_inf = torch.tensor(2.0), torch.tensor(float(dist.get_rank() == 1))
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert torch.equal(whole(piece), before)


@distributed
def test_an_inf_that_gradscaler_found_in_one_process_leaves_none_waiting() -> None:
    in_processes(2, scaler_found_an_inf_on_one_rank)


def refuse_pieces() -> None:
    mesh = init_device_mesh("cpu", (2,))
    piece, copy = (nn.Parameter(placed(draw(1)[0], mesh, where)) for where in ((ROWS,), (COPIES,)))
    for param in (piece, copy):
        param.grad = placed(draw(2)[0], mesh, param.placements)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="max_tensor_grad_norm cannot clip DTensors"):
        RAdam([piece, copy], max_tensor_grad_norm=1.0).step()
    alone, reference = RAdam([copy], lr=0.02, max_tensor_grad_norm=1.0), RAdam([other := fresh()[0]], lr=0.02)
    other.grad = draw(2)[0]
    nn.utils.clip_grad_norm_([other], 1.0)
    alone.step()
    reference.step()
    assert close(whole(copy), other.detach())


@distributed
def test_each_tensors_norm_is_refused_for_pieces_and_taken_of_copies() -> None:
    in_processes(2, refuse_pieces)


def train_with_fsdp() -> None:
    def trained(shard: bool) -> tuple[list[torch.Tensor], list[float]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3), nn.Tanh(), nn.Linear(3, 1))
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if shard else (0, 1)
        if shard:
            fully_shard(model)
        optimizer = RAdam(model.parameters(), lr=0.05, max_grad_norm=0.3)
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(2))
        norms = []
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[rank::ranks]), x[rank::ranks].prod(dim=-1, keepdim=True)).backward()
            optimizer.step()
            assert optimizer.grad_norm is not None
            norms.append(optimizer.grad_norm)
        return [whole(param) for param in model.parameters()], norms

    (sharded, norms), (alone, expected) = trained(True), trained(False)
    assert norms == pytest.approx(expected, rel=1e-4)
    assert all(close(a, b, 1e-4) for a, b in zip(sharded, alone))


@distributed
def test_fsdp_trains_as_one_process_does() -> None:
    in_processes(2, train_with_fsdp)


def test_the_norm_of_no_gradients_is_zero_and_of_no_clipping_none() -> None:
    param = torch.nn.Parameter(torch.ones(300))
    param.grad = torch.ones(300)
    optimizer = RAdam([param], max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx(300**0.5)
    param.grad = None
    optimizer.step()
    assert optimizer.grad_norm == 0.0
    optimizer.max_grad_norm = None
    assert optimizer.grad_norm is None


@pytest.mark.parametrize("option", ["max_grad_norm", "state_dtype", "min_8bit_size"])
def test_an_option_of_the_whole_optimizer_is_refused_in_a_group(option: str) -> None:
    with pytest.raises(ValueError, match=f"'{option}', which holds for a whole optimizer"):
        RAdam([{"params": [torch.nn.Parameter(torch.ones(3))], option: 1}])


def test_what_adds_up_over_processes_lets_go_of_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []

    class Ranks:
        in_pieces = False
        meshes: tuple[Any, ...] = ()

        def total(self, params: Any, sums: list[float]) -> float:
            return sum(sums)

    class Noted(Clip):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setattr("radam.torch.clip.Clip", Noted)
    param = torch.nn.Parameter(torch.ones(300))
    param.grad = torch.ones(300)
    optimizer = RAdam([param], max_grad_norm=1.0)
    optimizer._ranks = Ranks()
    for _ in range(3):
        optimizer.step()
    gc.collect()
    assert optimizer.grad_norm == pytest.approx(300**0.5)
    assert len(made) == 3
    assert [ref() for ref in made] == [None] * 3
