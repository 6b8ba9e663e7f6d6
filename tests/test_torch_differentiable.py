"""Gradients flow through a step: exact, finite where torch's are not, and the same law as the kernel's."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam.torch import RAdam

# torch's forward-mode differentiation compiles its decompositions.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

Outputs = tuple[Tensor, Tensor, Tensor]
Make = Callable[..., torch.optim.Optimizer]
MOMENTUM, FIRST_RECTIFIED, RECTIFIED = 1, 6, 7  # steps from zero on; with beta2 = 0.999 the sixth is rectified
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "coupled": {"weight_decay": 0.3},
    "decoupled": {"weight_decay": 0.3, "decoupled_weight_decay": True},
    "maximize": {"maximize": True, "weight_decay": 0.3},
    "other betas": {"betas": (0.7, 0.95), "eps": 1e-2},
}
OURS: dict[str, dict[str, Any]] = SETTINGS | {
    "foreach": {"foreach": True, "weight_decay": 0.3},
    "tensor betas": {"betas": (torch.tensor(0.7), 0.95)},
    "author": {"convention": "author", "weight_decay": 0.3, "decoupled_weight_decay": True},
    "optax": {"convention": "optax"},
    "tfa": {"convention": "tfa", "weight_decay": 0.3, "decoupled_weight_decay": True},
}


def steps(count: int, make: Make = RAdam, taken: int = 0, **settings: Any) -> Callable[..., Outputs]:
    """Return a function of p, g, m, v and perhaps lr: count steps, all with the gradient g, after some others."""

    def run(p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: Tensor | float = 0.01) -> Outputs:
        param = p.clone()
        param.grad = g
        optimizer = make([param], lr=lr, differentiable=True, **settings)
        state = {"step": torch.tensor(float(taken)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
        optimizer.state[param].update(state)
        for _ in range(count):
            optimizer.step()
        assert state["step"].item() == taken + count
        return param, state["exp_avg"], state["exp_avg_sq"]

    return run


def inputs(dtype: torch.dtype = torch.float64, *, lr: bool = False, seed: int = 0) -> list[Tensor]:
    """Return p, g, m, v and perhaps lr, all away from zero."""
    generator = torch.Generator().manual_seed(seed)
    p, g, m, v = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(4))
    made = [p, g + g.sign(), m, v.abs() + 0.1]
    made = [tensor.to(dtype) for tensor in made] + [torch.tensor(0.01, dtype=torch.float64)] * lr
    return [tensor.requires_grad_() for tensor in made]


def gradients(outputs: Sequence[Tensor], of: Sequence[Tensor]) -> list[Tensor]:
    """Return the derivatives of a sum of the outputs in which each weighs otherwise."""
    weighed = sum((output * torch.linspace(1, 2, output.numel())).sum() for output in outputs)
    return list(torch.autograd.grad(weighed, of))


# ---- exact


@pytest.mark.parametrize("lr", [False, True], ids=["number", "traced_lr"])
@pytest.mark.parametrize("count", [MOMENTUM, FIRST_RECTIFIED, RECTIFIED])
@pytest.mark.parametrize("case", OURS)
def test_derivatives_by_param_gradient_moments_and_lr_are_exact(case: str, count: int, lr: bool) -> None:
    assert torch.autograd.gradcheck(steps(count, **OURS[case]), inputs(lr=lr))


@pytest.mark.parametrize("taken", [0, 5, 1000])
def test_derivatives_of_a_later_step_are_exact(taken: int) -> None:
    assert torch.autograd.gradcheck(steps(1, taken=taken, weight_decay=0.3), inputs(lr=True))


@pytest.mark.parametrize("case", SETTINGS)
def test_derivatives_are_those_of_torchs_radam(case: str) -> None:
    for count in (MOMENTUM, FIRST_RECTIFIED, RECTIFIED):
        given = inputs(lr=True)
        ours, theirs = (
            gradients(steps(count, make, **SETTINGS[case])(*given), given) for make in (RAdam, torch.optim.RAdam)
        )
        for name, got, want in zip(("p", "g", "m", "v", "lr"), ours, theirs):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12, msg=f"d/d{name} after {count} steps")


@pytest.mark.parametrize("count", [MOMENTUM, RECTIFIED])
def test_second_derivatives_are_exact(count: int) -> None:
    p, g, m, v = inputs()
    run = steps(count, weight_decay=0.3)
    assert torch.autograd.gradgradcheck(lambda p, g: run(p, g, m.detach(), v.detach())[0], (p, g))


@pytest.mark.parametrize("lr", [False, True], ids=["number", "traced_lr"])
def test_forward_mode_derivatives_are_exact(lr: bool) -> None:
    assert torch.autograd.gradcheck(
        steps(RECTIFIED, weight_decay=0.3), inputs(lr=lr), check_forward_ad=True, check_backward_ad=False
    )


def test_function_transforms_see_the_same_derivatives() -> None:
    given = inputs(lr=True)
    want = torch.autograd.grad(steps(RECTIFIED)(*given)[0].sum(), given)
    given = [tensor.detach() for tensor in given]
    got = torch.func.grad(lambda *given: steps(RECTIFIED)(*given)[0].sum(), argnums=tuple(range(5)))(*given)
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_traced_lr_of_one_element_may_have_any_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    p, g, m, v, lr = inputs(lr=True)
    traced = lr.detach().to(dtype).reshape(shape).requires_grad_()
    run = steps(RECTIFIED, weight_decay=0.3, decoupled_weight_decay=True)
    (got,) = gradients(run(p, g, m, v, traced), [traced])
    (want,) = gradients(run(p, g, m, v, lr), [lr])
    assert (got.shape, got.dtype) == (shape, dtype)
    torch.testing.assert_close(got.reshape(()).double(), want, rtol=1e-12 if dtype is torch.float64 else 1e-6, atol=0)


@pytest.mark.parametrize("count", [MOMENTUM, FIRST_RECTIFIED, RECTIFIED])
def test_complex_derivatives_are_exact(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    p, g, m = (torch.randn(3, generator=generator, dtype=torch.complex128) for _ in range(3))
    v = torch.view_as_complex(torch.rand((3, 2), generator=generator, dtype=torch.float64) + 0.1)
    lr = torch.tensor(0.01, dtype=torch.float64)
    given = [tensor.requires_grad_() for tensor in (p, g, m, v, lr)]
    assert torch.autograd.gradcheck(steps(count, weight_decay=0.3), given)


# ---- where a gradient is zero


def with_a_zero() -> list[Tensor]:
    """Return p, g, m, v where the first parameter has never had a gradient, nor has it one now."""
    zero = torch.zeros(2, dtype=torch.float64)
    p, g = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([0.0, 0.5], dtype=torch.float64)
    return [tensor.requires_grad_() for tensor in (p, g, zero, zero.clone())]


@pytest.mark.parametrize(("taken", "count"), [(0, 6), (0, 7), (5, 1), (100, 2)])
def test_a_zero_gradient_has_finite_derivatives_where_torchs_are_nan(taken: int, count: int) -> None:
    found = {}
    for make in (RAdam, torch.optim.RAdam):
        given = with_a_zero()
        param, _, _ = steps(count, make, taken)(*given)
        found[make] = torch.autograd.grad(param.sum(), given)
    for ours, theirs in zip(found[RAdam], found[torch.optim.RAdam]):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours[1], theirs[1])
    assert found[torch.optim.RAdam][1][0].isnan()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_zero_gradient_has_the_derivatives_of_the_momentum_that_it_is(count: int) -> None:
    """Moments of zero must not hide what they would be for another gradient."""
    found = {}
    for make in (RAdam, torch.optim.RAdam):
        given = with_a_zero()
        found[make] = gradients(steps(count, make)(*given), given)
    for name, ours, theirs in zip(("p", "g", "m", "v"), found[RAdam], found[torch.optim.RAdam]):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0, msg=f"d/d{name}: {ours} is not {theirs}")


@pytest.mark.parametrize("taken", [5, 6, 1000])
def test_a_zero_gradient_has_the_derivative_of_the_rectified_step_at_zero(taken: int) -> None:
    """m / (sqrt(v) + eps) is (1 - beta1) g / (sqrt(1 - beta2) |g| + eps), which is smooth at zero."""
    zero = torch.zeros(3, dtype=torch.float64)
    run = steps(1, taken=taken, eps=0.1)
    p, g = torch.ones(3, dtype=torch.float64), torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64)
    given = (p.requires_grad_(), g.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, g: run(p, g, zero, zero)[0], given)


# ---- the same values


def after_ten(params: Sequence[Tensor], **settings: Any) -> list[Tensor]:
    """Take ten steps and return the parameters and their states."""
    generator = torch.Generator().manual_seed(5)
    optimizer = RAdam(params, **settings)
    for _ in range(10):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        optimizer.step()
    return [*params, *itertools.chain(*(optimizer.state[param].values() for param in params))]


ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
ROUNDING |= {torch.complex128: 1e-14, torch.complex64: 1e-6}


@pytest.mark.parametrize("case", OURS)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_differentiable_step_is_the_step_within_rounding(case: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    starts = [torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 3), (), (0,), (4,))]
    plain = after_ten(copy.deepcopy(starts), lr=0.05, **OURS[case])
    for lr in (0.05, torch.tensor(0.05, dtype=torch.float64, requires_grad=True)):
        copies = [start.clone().requires_grad_().clone() for start in starts]
        traced = after_ten(copies, lr=lr, differentiable=True, **OURS[case])
        for got, want in zip(traced, plain, strict=True):
            assert (got.dtype, got.shape, got.device) == (want.dtype, want.shape, want.device)
            torch.testing.assert_close(got.detach(), want, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_parameters_have_derivatives_of_their_own_dtype(dtype: torch.dtype) -> None:
    p, g, *_ = (tensor.detach().to(dtype).requires_grad_() for tensor in inputs())

    def derivatives(p: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        param = p.clone()
        param.grad = g
        optimizer = RAdam([param], lr=0.01, weight_decay=0.3, differentiable=True)
        for _ in range(RECTIFIED):
            optimizer.step()
        moments = [optimizer.state[param][key] for key in ("exp_avg", "exp_avg_sq")]
        assert all(moment.requires_grad for moment in moments)
        assert {moment.dtype for moment in moments} == {torch.float64 if p.dtype is torch.float64 else torch.float32}
        return torch.autograd.grad(param.double().sum(), (p, g))

    exact = derivatives(*(tensor.detach().double().requires_grad_() for tensor in (p, g)))
    for got, want in zip(derivatives(p, g), exact):
        assert got.dtype is dtype
        torch.testing.assert_close(got.double(), want, rtol=2 * ROUNDING[dtype], atol=1e-5)


def test_the_gradient_is_not_written_and_the_step_count_has_no_history() -> None:
    p, g, *_ = inputs()
    param = p.clone()
    param.grad = g
    optimizer = RAdam([param], differentiable=True, weight_decay=0.3, maximize=True)
    before = g.detach().clone()
    for _ in range(RECTIFIED):
        optimizer.step()
    assert param.grad is g
    assert torch.equal(g, before)
    assert not optimizer.state[param]["step"].requires_grad


# ---- used for what it is for


def unrolled(make: Make, log_lr: Tensor, target: Tensor) -> Tensor:
    """Return the loss after ten steps of training with a learning rate."""
    weights = torch.zeros(3).requires_grad_().clone()
    optimizer = make([weights], lr=log_lr.exp(), differentiable=True)
    for _ in range(10):
        loss = ((weights - target) ** 2).sum()
        (weights.grad,) = torch.autograd.grad(loss, weights, create_graph=True)
        optimizer.step()
    return ((weights - target) ** 2).sum()


def test_a_learning_rate_can_be_learned() -> None:
    target = torch.tensor([1.5, -0.3, -2.0])
    losses = {}
    for make in (RAdam, torch.optim.RAdam):
        log_lr = torch.tensor(-4.0, requires_grad=True)
        outer = torch.optim.SGD([log_lr], lr=0.1)
        found = []
        for _ in range(8):
            outer.zero_grad()
            loss = unrolled(make, log_lr, target)
            loss.backward()
            outer.step()
            found.append(loss.item())
        losses[make] = found
    ours = losses[RAdam]
    assert all(later < sooner for sooner, later in itertools.pairwise(ours)), ours
    assert ours[-1] < ours[0] / 2
    assert ours == pytest.approx(losses[torch.optim.RAdam], rel=1e-3)


def leaf_and_copy() -> tuple[Tensor, Tensor]:
    start = torch.ones(2, requires_grad=True)
    return start, start.clone()


def test_differentiable_and_other_groups_live_in_one_optimizer() -> None:
    """torch.optim.RAdam refuses the ordinary parameter."""

    def mixed(make: Make) -> tuple[Tensor, Tensor, nn.Parameter]:
        start, traced = leaf_and_copy()
        plain = nn.Parameter(torch.tensor([1.0, -3.0, 0.3]))
        groups = [{"params": [traced]}, {"params": [plain], "differentiable": False, "lr": 0.3}]
        optimizer = make(groups, lr=0.1, weight_decay=0.1, differentiable=True)
        for t in range(RECTIFIED):
            traced.grad, plain.grad = start * 2, torch.full((3,), 0.1 * t - 0.2)
            optimizer.step()
        return start, traced, plain

    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        mixed(torch.optim.RAdam)

    start, traced, plain = mixed(RAdam)
    assert traced.grad_fn is not None
    assert torch.autograd.grad(traced.sum(), start)[0].isfinite().all()
    twin = nn.Parameter(torch.tensor([1.0, -3.0, 0.3]))
    alone = RAdam([twin], lr=0.3, weight_decay=0.1)
    for t in range(RECTIFIED):
        twin.grad = torch.full((3,), 0.1 * t - 0.2)
        alone.step()
    assert plain.grad_fn is None
    assert torch.equal(plain, twin), "the ordinary group has the kernel's bits"


def test_foreach_is_no_obstacle_where_torch_refuses_it() -> None:
    _, param = leaf_and_copy()
    param.grad = torch.ones(2)
    with pytest.raises(AssertionError):
        torch.optim.RAdam([param], differentiable=True, foreach=True).step()
    RAdam([param], differentiable=True, foreach=True).step()
    assert param.grad_fn is not None


def test_no_grad_around_a_differentiable_step_changes_nothing() -> None:
    start, param = leaf_and_copy()
    param.grad = torch.ones(2)
    with torch.no_grad():
        RAdam([param], differentiable=True, weight_decay=0.5, lr=0.1).step()
    assert not torch.equal(torch.autograd.grad(param.sum(), start)[0], torch.ones(2))


# ---- what cannot be differentiated is not pretended


@pytest.fixture
def _every_warning() -> Iterator[None]:
    """Let torch repeat the warnings that it gives once a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.usefixtures("_every_warning")
@pytest.mark.parametrize("make", [RAdam, torch.optim.RAdam])
def test_an_lr_that_requires_grad_is_but_a_number_to_an_ordinary_step(make: Make) -> None:
    param = nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = make([param], lr=torch.tensor(0.1, requires_grad=True))
    optimizer.step()
    assert param.grad_fn is None
    torch.testing.assert_close(param.detach(), torch.full((2,), 0.9))


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")
@pytest.mark.parametrize("case", ["beta1", "beta2", "coupled", "decoupled"])
def test_other_hyperparameters_are_differentiated_or_refused_but_not_ignored(case: str) -> None:
    value = torch.tensor(0.9, requires_grad=True)
    settings: dict[str, dict[str, Any]] = {
        "beta1": {"betas": (value, 0.999)},
        "beta2": {"betas": (0.9, value)},
        "coupled": {"weight_decay": value},
        "decoupled": {"weight_decay": value, "decoupled_weight_decay": True},
    }
    _, param = leaf_and_copy()
    try:
        optimizer = RAdam([param], lr=0.1, differentiable=True, **settings[case])
        for t in range(RECTIFIED):
            param.grad = torch.full((2,), 1.0 + t)
            optimizer.step()
    except (ValueError, TypeError, RuntimeError):
        return
    assert torch.autograd.grad(param.sum(), value, allow_unused=True)[0] is not None, "its gradient was dropped"


@pytest.mark.parametrize("make", [RAdam, torch.optim.RAdam])
def test_a_leaf_that_requires_grad_cannot_be_stepped_differentiably(make: Make) -> None:
    param = nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"):
        make([param], differentiable=True).step()


def spoil_by_a_leaf(optimizer: RAdam, params: list[Tensor]) -> None:
    params[1].detach_().requires_grad_()


def spoil_the_moment(optimizer: RAdam, params: list[Tensor]) -> None:
    optimizer.state[params[1]]["exp_avg"] = torch.zeros(5)


def spoil_the_count(optimizer: RAdam, params: list[Tensor]) -> None:
    optimizer.state[params[1]]["step"] = torch.tensor(-1.0)


def spoil_the_rate(optimizer: RAdam, params: list[Tensor]) -> None:
    optimizer.param_groups[1]["lr"] = torch.tensor(-1.0, requires_grad=True)


def spoil_the_gradient(optimizer: RAdam, params: list[Tensor]) -> None:
    optimizer.nonfinite = "raise"
    params[1].grad = torch.tensor([1.0, float("nan")])


SPOILED = [spoil_by_a_leaf, spoil_the_moment, spoil_the_count, spoil_the_rate, spoil_the_gradient]


@pytest.mark.parametrize("spoil", SPOILED)
def test_an_error_leaves_every_parameter_as_it_was(spoil: Callable[[RAdam, list[Tensor]], None]) -> None:
    params = [leaf_and_copy()[1] for _ in range(3)]
    optimizer = RAdam([{"params": [param]} for param in params], lr=0.1, differentiable=True)
    for param in params:
        param.grad = torch.ones(2)
    optimizer.step()
    spoil(optimizer, params)
    tensors = [*params, *itertools.chain(*(optimizer.state[param].values() for param in params))]
    before = [tensor.detach().clone() for tensor in tensors]
    with pytest.raises((RuntimeError, ValueError, FloatingPointError)):
        optimizer.step()
    after = [*params, *itertools.chain(*(optimizer.state[param].values() for param in params))]
    assert all(new is old for new, old in zip(after, tensors, strict=True))
    assert all(map(torch.equal, after, before))


def test_a_bad_gradient_skips_a_differentiable_step() -> None:
    start, param = leaf_and_copy()
    optimizer = RAdam([param], lr=0.1, weight_decay=0.5, differentiable=True, nonfinite="skip")
    param.grad = torch.tensor([1.0, float("inf")])
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert torch.equal(torch.autograd.grad(param.sum(), start, retain_graph=True)[0], torch.ones(2))
    param.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.state[param]["step"] == 1


# ---- devices without a kernel


@pytest.mark.parametrize(
    ("dtype", "nonfinite"),
    [*((dtype, "propagate") for dtype in ROUNDING), (torch.float32, "skip"), (torch.float32, "raise")],
)
def test_meta_parameters_are_stepped_without_values(dtype: torch.dtype, nonfinite: str) -> None:
    params = [nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape in ((3, 2), ())]
    optimizer = RAdam(params, lr=torch.tensor(0.1), weight_decay=0.1, nonfinite=nonfinite)
    for _ in range(RECTIFIED):
        for param in params:
            param.grad = torch.empty_like(param)
        optimizer.step()
    low = dtype in (torch.bfloat16, torch.float16)
    for param in params:
        state = optimizer.state[param]
        assert state["step"].device.type == "cpu"
        assert state["step"] == RECTIFIED
        for key in ("exp_avg", "exp_avg_sq"):
            assert (state[key].device.type, state[key].shape) == ("meta", param.shape)
            assert state[key].dtype is (torch.float32 if low else dtype)


def test_meta_and_cpu_parameters_step_together() -> None:
    def one(device: str) -> nn.Parameter:
        return nn.Parameter(torch.arange(3.0, device=device))

    params, alone = [one("meta"), one("cpu")], one("cpu")
    both, single = RAdam(params, lr=0.1), RAdam([alone], lr=0.1)
    for _ in range(RECTIFIED):
        for param in (*params, alone):
            param.grad = torch.ones_like(param)
        both.step()
        single.step()
    assert torch.equal(params[1], alone)
    assert both.state[params[0]]["step"] == RECTIFIED


def test_an_ordinary_group_without_a_kernel_is_not_differentiated() -> None:
    _, traced = leaf_and_copy()
    plain = nn.Parameter(torch.ones(2, device="meta"))
    optimizer = RAdam([{"params": [traced]}, {"params": [plain], "differentiable": False}], differentiable=True)
    for _ in range(RECTIFIED):
        traced.grad, plain.grad = torch.ones(2), torch.ones(2, device="meta")
        optimizer.step()
    assert plain.is_leaf
    assert not optimizer.state[plain]["exp_avg"].requires_grad
    assert traced.grad_fn is not None


def test_derivatives_of_meta_parameters_have_shapes() -> None:
    start = torch.empty(3, device="meta", requires_grad=True)
    param = start.clone()
    param.grad = start * 2
    optimizer = RAdam([param], lr=0.1, differentiable=True)
    for _ in range(RECTIFIED):
        optimizer.step()
    (found,) = torch.autograd.grad(param.sum(), start)
    assert (found.shape, found.device.type) == ((3,), "meta")
