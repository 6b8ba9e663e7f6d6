"""radam.torch.RAdam beside torch.optim.RAdam: the same arguments, errors, warnings, parameters and states."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from torch.optim import Optimizer
from torch.testing._internal import common_optimizers

from radam.torch import RAdam

settings.load_profile("radam")  # torch's test inputs have just loaded a profile of torch's own, for every test

STEPS = 40
PROMISED = {torch.float64: 1e-10, torch.float32: 2e-6}  # of max(1, |p|)
SHAPES = ((), (1,), (7,), (5, 3), (2, 3, 4), (0, 3), (129,))
ENTRY = next(entry for entry in common_optimizers.optim_db if entry.optim_cls is torch.optim.RAdam)

Make = Callable[[Callable[..., Any]], Any]
Draw = Callable[[Tensor, torch.Generator, int], Tensor | None]

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
foreachs = pytest.mark.parametrize("foreach", [None, True, False], ids=["default", "foreach", "loop"])
both_loops = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
never_rectified = pytest.mark.filterwarnings("ignore:.*rho never exceeds:UserWarning")


# ---- two optimizers side by side


def start(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()


def starts(dtype: torch.dtype) -> list[Tensor]:
    return [start(shape, dtype, seed) for seed, shape in enumerate(SHAPES)]


def normal(param: Tensor, generator: torch.Generator, t: int) -> Tensor | None:
    return torch.randn(param.shape, dtype=param.dtype, generator=generator)


def params_of(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def set_gradients(optimizer: Optimizer, t: int, draw: Draw = normal) -> None:
    for index, param in enumerate(params_of(optimizer)):
        param.grad = draw(param, torch.Generator().manual_seed(1000 * t + index), t)


def pair(make: Make, foreach: bool | None = None) -> tuple[Any, Any]:
    """What make builds with our class and with torch's, the latter second."""
    return make(functools.partial(RAdam, foreach=foreach)), make(functools.partial(torch.optim.RAdam, foreach=foreach))


def follow(
    make: Make,
    *,
    foreach: bool | None = None,
    draw: Draw = normal,
    before: Callable[[Any, int], object] = lambda optimizer, t: None,
    steps: int = STEPS,
) -> tuple[Any, Any]:
    """Step both through the same gradients and compare all that they hold after every step."""
    ours, theirs = pair(make, foreach)
    for t in range(1, steps + 1):
        for optimizer in (ours, theirs):
            before(optimizer, t)
            set_gradients(optimizer, t, draw)
            assert optimizer.step() is None
        assert_alike(ours, theirs, f"step {t}")
    return ours, theirs


def assert_alike(ours: Optimizer, theirs: Optimizer, when: str) -> None:
    """The same groups, parameters and states, in the same dtypes and strides."""
    assert [settings_of(group) for group in ours.param_groups] == [settings_of(group) for group in theirs.param_groups]
    assert len(ours.state) == len(theirs.state)
    for i, (param, expected) in enumerate(zip(params_of(ours), params_of(theirs), strict=True)):
        assert_close(param, expected, f"parameter {i} at {when}")
        assert (param in ours.state) == (expected in theirs.state), f"state of parameter {i} at {when}"
        if param not in ours.state:
            continue
        assert_same_state(ours.state[param], theirs.state[expected], f"of parameter {i} at {when}")


def assert_same_state(state: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    assert state.keys() == expected.keys()
    step, count = state["step"], expected["step"]
    assert (step.dtype, step.shape, step.device) == (count.dtype, count.shape, count.device), f"step {where}"
    assert step == count, f"step {where}"
    assert_close(state["exp_avg"], expected["exp_avg"], f"exp_avg {where}")
    # A sum of squares has no cancellation: it is held to its own size.
    assert_close(state["exp_avg_sq"], expected["exp_avg_sq"], f"exp_avg_sq {where}", least=1e-2)


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def assert_close(got: Tensor, expected: Tensor, what: str, least: float = 1.0) -> None:
    assert (got.dtype, got.shape, got.stride()) == (expected.dtype, expected.shape, expected.stride()), what
    a, b = got.detach(), expected.detach()
    if b.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    off = ((a - b).abs() / (PROMISED[b.dtype] * b.abs().clamp(min=least))).flatten().tolist()
    assert all(x <= 1 for x in off), f"{what} is off by {max(off)} of what is allowed"  # NaN is not <= 1


# ---- construction


def outcome(act: Callable[[], object]) -> tuple[Any, list[tuple[type[Warning], str]]]:
    """The error, or None, and the warnings."""
    raised = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            act()
        except Exception as error:
            raised = type(error), str(error)
    return raised, [(one.category, str(one.message)) for one in caught]


def named(*names: str) -> list[tuple[str, Tensor]]:
    return [(name, start((2,), torch.float32, seed)) for seed, name in enumerate(names)]


def leaf() -> Tensor:
    return start((2, 3), torch.float32, 3)


REFUSED: dict[str, Callable[[Any], object]] = {
    "negative lr": lambda cls: cls([leaf()], -0.1),
    "NaN lr": lambda cls: cls([leaf()], float("nan")),
    "negative Tensor lr": lambda cls: cls([leaf()], torch.tensor(-0.5)),
    "lr of two elements": lambda cls: cls([leaf()], torch.ones(2)),
    "lr of no element": lambda cls: cls([leaf()], torch.ones(0)),
    "textual lr": lambda cls: cls([leaf()], "fast"),
    "no lr": lambda cls: cls([leaf()], None),
    "negative eps": lambda cls: cls([leaf()], eps=-1e-8),
    "NaN eps": lambda cls: cls([leaf()], eps=float("nan")),
    "textual eps": lambda cls: cls([leaf()], eps="1e-8"),
    "negative beta1": lambda cls: cls([leaf()], betas=(-0.1, 0.999)),
    "NaN beta1": lambda cls: cls([leaf()], betas=(float("nan"), 0.999)),
    "beta2 of 1": lambda cls: cls([leaf()], betas=(0.9, 1.0)),
    "Tensor beta2 of 1": lambda cls: cls([leaf()], betas=(0.9, torch.tensor(1.0))),
    "one beta": lambda cls: cls([leaf()], betas=(0.9,)),
    "betas as a number": lambda cls: cls([leaf()], betas=0.9),
    "negative weight decay": lambda cls: cls([leaf()], weight_decay=-1e-3),
    "NaN weight decay": lambda cls: cls([leaf()], weight_decay=float("nan")),
    "no weight decay": lambda cls: cls([leaf()], weight_decay=None),
    "all wrong": lambda cls: cls([leaf()], lr=-1, betas=(2, 2), eps=-1, weight_decay=-1),
    "all wrong but lr": lambda cls: cls([leaf()], betas=(2, 2), eps=-1, weight_decay=-1),
    "all wrong but lr and eps": lambda cls: cls([leaf()], betas=(2, 2), weight_decay=-1),
    "beta2 and weight decay wrong": lambda cls: cls([leaf()], betas=(0.9, 2), weight_decay=-1),
    "unknown keyword": lambda cls: cls([leaf()], fused=True),
    "too many positions": lambda cls: cls([leaf()], 0.1, (0.9, 0.999), 1e-8, 0, False, True),
    "nothing": lambda cls: cls(),
    "a tensor": lambda cls: cls(leaf()),
    "no parameters": lambda cls: cls([]),
    "a spent generator": lambda cls: cls(p for p in ()),
    "a number": lambda cls: cls(3),
    "numbers": lambda cls: cls([1.0, 2.0]),
    "a dict": lambda cls: cls({"params": [leaf()]}),
    "a set in a group": lambda cls: cls([{"params": {leaf()}}]),
    "a group without params": lambda cls: cls([{"lr": 0.1}]),
    "a tensor and a group": lambda cls: cls([leaf(), {"params": [leaf()]}]),
    "a group and a tensor": lambda cls: cls([{"params": [leaf()]}, leaf()]),
    "no leaf": lambda cls: cls([leaf() * 2]),
    "a name and no name": lambda cls: cls([*named("weight"), leaf()]),
    "groups with and without names": lambda cls: cls([{"params": named("weight")}, {"params": [leaf()]}]),
}

WARNED: dict[str, Callable[[Any], object]] = {
    "twice in a group": lambda cls: cls([leaf()] * 2),
    "twice in a named group": lambda cls: cls([("a", shared := leaf()), ("b", shared)]),
    "twice, and a wrong lr": lambda cls: cls([{"params": [leaf()] * 2}, {"params": leaf()}]),
}


def construct(case: Any) -> Callable[[Any], object]:
    given = case.optimizer_error_input
    return lambda cls: cls([leaf()] if given.params is None else given.params, **given.kwargs)


ENTRY_ERRORS = {
    case.optimizer_error_input.desc: construct(case) for case in ENTRY.optim_error_inputs_func("cpu", torch.float32)
}


@pytest.mark.parametrize("attempt", ENTRY_ERRORS.values(), ids=ENTRY_ERRORS)
def test_the_errors_of_torchs_own_test_inputs_are_torchs(attempt: Callable[[Any], object]) -> None:
    expected = outcome(lambda: attempt(torch.optim.RAdam))
    assert expected != (None, [])
    assert outcome(lambda: attempt(RAdam)) == expected


@pytest.mark.parametrize("attempt", (REFUSED | WARNED).values(), ids=REFUSED | WARNED)
def test_construction_errors_and_warnings_are_torchs(attempt: Callable[[Any], object]) -> None:
    expected = outcome(lambda: attempt(torch.optim.RAdam))
    assert expected != (None, [])
    assert outcome(lambda: attempt(RAdam)) == expected


ADDED: dict[str, Callable[[Any], object]] = {
    "no dict": lambda optimizer: [leaf()],
    "no params": lambda optimizer: {},
    "a set": lambda optimizer: {"params": {leaf()}},
    "a number": lambda optimizer: {"params": [1]},
    "no leaf": lambda optimizer: {"params": leaf() * 2},
    "a parameter it has": lambda optimizer: {"params": [leaf(), *params_of(optimizer)]},
    "names where others have none": lambda optimizer: {"params": named("weight")},
    "a name and no name": lambda optimizer: {"params": [*named("weight"), leaf()]},
}


@pytest.mark.parametrize("group", ADDED.values(), ids=ADDED)
def test_a_refused_group_is_refused_in_torchs_words_and_changes_nothing(group: Callable[[Any], Any]) -> None:
    ours, theirs = pair(lambda cls: cls([leaf()]))
    expected = outcome(lambda: theirs.add_param_group(group(theirs)))
    assert expected[0] is not None
    assert outcome(lambda: ours.add_param_group(group(ours))) == expected
    assert len(ours.param_groups) == len(params_of(ours)) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"lr": -1}, "Invalid learning rate: -1"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, 1.5)}, "Invalid beta parameter at index 1: 1.5"),
        ({"betas": (torch.ones(2), 0.9)}, r"Tensor betas\[0\] must be 1-element"),
        ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
    ],
)
def test_a_groups_own_settings_are_checked_like_the_defaults(override: dict[str, Any], message: str) -> None:
    # Torch lets these pass and steps with them.
    optimizer = RAdam([leaf()])
    for attempt in (
        lambda: RAdam([{"params": [leaf()], **override}]),
        lambda: RAdam([leaf()], **override),
        lambda: optimizer.add_param_group({"params": [leaf()], **override}),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            attempt()
    assert len(optimizer.param_groups) == 1


def test_the_arguments_are_torchs_and_then_our_own() -> None:
    ours = list(inspect.signature(RAdam).parameters.values())
    theirs = list(inspect.signature(torch.optim.RAdam).parameters.values())
    shared = [(p.name, p.kind, p.default) for p in ours[: len(theirs)]]
    assert shared == [(p.name, p.kind, p.default) for p in theirs]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in ours[len(theirs) :])


def test_it_is_an_optimizer_of_torch_and_prints_like_it() -> None:
    def make(cls: Any) -> Any:
        return cls([{"params": named("a", "b"), "lr": 0.1}, {"params": named("c")}], weight_decay=0.1, maximize=True)

    ours, theirs = pair(make)
    assert isinstance(ours, Optimizer)
    assert repr(ours) == repr(theirs)
    assert ours.defaults == theirs.defaults
    assert [list(group) for group in ours.param_groups] == [list(group) for group in theirs.param_groups]


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.6, 2 / 3])
def test_a_beta2_that_never_rectifies_gives_one_warning_where_the_user_wrote_it(beta2: float) -> None:
    with pytest.warns(UserWarning, match=f"betas\\[1\\]={beta2} rho never exceeds") as caught:
        RAdam([leaf(), leaf()], betas=(0.9, beta2))
    assert [one.filename for one in caught] == [__file__]
    RAdam([leaf()], betas=(0.9, 0.67))  # no warning, which would be an error


def test_an_added_group_warns_of_its_beta2_where_the_user_wrote_it() -> None:
    optimizer = RAdam([leaf()])
    with pytest.warns(UserWarning, match="rho never exceeds") as caught:
        optimizer.add_param_group({"params": leaf(), "betas": (0.9, 0.5)})
    assert [one.filename for one in caught] == [__file__]


# ---- numbers

ENTRY_INPUTS = {case.desc: case.kwargs for case in ENTRY.optim_inputs_func("cpu")}
CAPTURABLE = {case.desc: case.kwargs for case in ENTRY.optim_inputs_func("cuda") if case.desc not in ENTRY_INPUTS}

DECAY = {"weight_decay": 0.07}
OWN: dict[str, dict[str, Any]] = {
    f"beta2 {beta2}": {"betas": (0.9, beta2)} for beta2 in (0.5, 0.66, 0.67, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
} | {
    "beta1 0": {"betas": (0.0, 0.99)},
    "beta1 0.99": {"betas": (0.99, 0.999)},
    "both betas 0": {"betas": (0.0, 0.0)},
    "eps 0": {"eps": 0.0},
    "eps 0.05": {"eps": 0.05},
    "eps 10": {"eps": 10.0},
    "lr 0": {"lr": 0.0, **DECAY},
    "lr 0, decoupled": {"lr": 0.0, **DECAY, "decoupled_weight_decay": True},
    "lr 1": {"lr": 1},
    "maximize": {"maximize": True},
    "maximize, coupled": {"maximize": True, **DECAY},
    "maximize, decoupled": {"maximize": True, **DECAY, "decoupled_weight_decay": True},
    "decoupled, no decay": {"decoupled_weight_decay": True},
    "strong decay": {"lr": 0.5, "weight_decay": 1.9, "decoupled_weight_decay": True},
}


@foreachs
@dtypes
@pytest.mark.parametrize("kwargs", ENTRY_INPUTS.values(), ids=ENTRY_INPUTS)
def test_torchs_own_test_inputs_step_as_in_torch(
    kwargs: dict[str, Any], dtype: torch.dtype, foreach: bool | None
) -> None:
    follow(lambda cls: cls(starts(dtype), **kwargs), foreach=foreach)


@foreachs
@pytest.mark.parametrize("kwargs", CAPTURABLE.values(), ids=CAPTURABLE)
def test_capturable_is_refused_on_the_cpu_in_torchs_words(kwargs: dict[str, Any], foreach: bool | None) -> None:
    ours, theirs = pair(lambda cls: cls([leaf()], **kwargs), foreach)
    before = params_of(ours)[0].detach().clone()
    for optimizer in (ours, theirs):
        set_gradients(optimizer, 1)
    expected = outcome(theirs.step)
    assert expected[0][0] is AssertionError
    assert outcome(ours.step) == expected
    assert torch.equal(params_of(ours)[0], before)
    assert not ours.state


@never_rectified
@both_loops
@dtypes
@pytest.mark.parametrize("kwargs", OWN.values(), ids=OWN)
def test_every_setting_steps_as_in_torch(kwargs: dict[str, Any], dtype: torch.dtype, foreach: bool) -> None:
    follow(lambda cls: cls(starts(dtype), **{"lr": 0.02, **kwargs}), foreach=foreach)


@never_rectified
@dtypes
def test_groups_have_settings_of_their_own(dtype: torch.dtype) -> None:
    overrides: list[dict[str, Any]] = [
        {},
        {"lr": 0.3},
        {"betas": (0.5, 0.8)},
        {"eps": 0.5},
        {"weight_decay": 0.2},
        {"weight_decay": 0.2, "decoupled_weight_decay": True},
        {"maximize": True, "betas": (0.9, 0.5)},
    ]

    def make(cls: Any) -> Any:
        groups = [{"params": [param], **own} for param, own in zip(starts(dtype), overrides, strict=True)]
        return cls(groups, lr=0.02, weight_decay=0.01)

    follow(make)


def test_edited_settings_count_from_the_next_step() -> None:
    edits: dict[int, dict[str, Any]] = {
        5: {"lr": 0.2},
        10: {"betas": (0.8, 0.9)},
        15: {"weight_decay": 0.3},
        20: {"decoupled_weight_decay": True},
        25: {"maximize": True},
        30: {"eps": 1.0},
    }
    follow(
        lambda cls: cls(starts(torch.float64), lr=0.02),
        before=lambda optimizer, t: optimizer.param_groups[0].update(edits.get(t, {})),
    )


LRS = {"0-dim": torch.tensor(0.02), "1-element": torch.tensor([0.02]), "float64": torch.tensor(0.02).double()}


@dtypes
@pytest.mark.parametrize("decoupled", [False, True], ids=["coupled", "decoupled"])
@pytest.mark.parametrize("lr", LRS.values(), ids=LRS)
def test_a_tensor_lr_is_read_at_every_step(lr: Tensor, decoupled: bool, dtype: torch.dtype) -> None:
    if dtype is torch.float64 and lr.dtype is torch.float32 and decoupled:
        lr = lr.clone().fill_(2**-6)  # torch forms 1 - lr * weight_decay in lr's dtype: let it be exact there

    def shrink(optimizer: Any, t: int) -> None:
        if t in (7, 23):
            optimizer.param_groups[0]["lr"].mul_(0.5)

    def make(cls: Any) -> Any:
        return cls(starts(dtype), lr.clone(), weight_decay=2**-4, decoupled_weight_decay=decoupled)

    ours, theirs = follow(make, foreach=False, before=shrink)
    rate = ours.param_groups[0]["lr"]
    assert (rate.dtype, rate.shape) == (lr.dtype, lr.shape)
    assert torch.equal(rate, theirs.param_groups[0]["lr"])


@dtypes
@pytest.mark.parametrize("of", [torch.float32, torch.float64], ids=["float32-betas", "float64-betas"])
def test_tensor_betas_are_read_at_every_step(of: torch.dtype, dtype: torch.dtype) -> None:
    betas = [torch.tensor(0.9, dtype=of), torch.tensor([0.99], dtype=of)]
    ours = RAdam(starts(dtype), 0.02, betas)
    theirs = torch.optim.RAdam(starts(dtype), 0.02)
    for t in range(1, STEPS + 1):
        if t == 20:
            betas[0].fill_(0.5)
            betas[1].fill_(0.95)
        theirs.param_groups[0]["betas"] = ours.param_groups[0]["betas"] = tuple(float(beta) for beta in betas)
        ours.param_groups[0]["betas"] = tuple(betas)
        for optimizer in (ours, theirs):
            set_gradients(optimizer, t)
            optimizer.step()
        for param, expected in zip(params_of(ours), params_of(theirs), strict=True):
            assert_close(param, expected, f"step {t}")


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    def sometimes(param: Tensor, generator: torch.Generator, t: int) -> Tensor | None:
        absent = param.shape == (7,) or (param.shape == (5, 3) and t % 3 == 0)
        return None if absent else normal(param, generator, t)

    ours, _ = follow(lambda cls: cls(starts(torch.float64), lr=0.02), draw=sometimes)
    never, seldom = params_of(ours)[2:4]
    assert never not in ours.state
    assert torch.equal(never, start((7,), torch.float64, 2))
    assert ours.state[seldom]["step"] == STEPS - STEPS // 3


def test_no_gradients_at_all_is_no_step() -> None:
    follow(lambda cls: cls(starts(torch.float64)), draw=lambda *_: None, steps=2)


def test_gradients_are_never_written() -> None:
    optimizer = RAdam(starts(torch.float32), lr=0.02, weight_decay=0.1, maximize=True)
    for t in range(1, 8):
        set_gradients(optimizer, t)
        held = [param.grad for param in params_of(optimizer)]
        copies = [grad.clone() for grad in held]
        optimizer.step()
        for param, grad, copy in zip(params_of(optimizer), held, copies, strict=True):
            assert param.grad is grad
            assert torch.equal(grad, copy)


@pytest.mark.parametrize("t", [1, 3, 8])
@pytest.mark.parametrize("bad", ["nan", "inf", "square overflows"])
@dtypes
def test_a_gradient_out_of_range_spoils_what_it_spoils_in_torch(bad: str, t: int, dtype: torch.dtype) -> None:
    # A finite gradient whose square is infinite freezes its element in torch: it gets no NaN.
    numbers = {"nan": float("nan"), "inf": float("inf"), "square overflows": 1e30 if dtype is torch.float32 else 1e200}

    def draw(param: Tensor, generator: torch.Generator, now: int) -> Tensor:
        grad = torch.randn(param.shape, dtype=dtype, generator=generator)
        if now == t:
            grad[1] = numbers[bad]
        return grad

    ours, theirs = pair(lambda cls: cls([start((4,), dtype, 1)], lr=0.02))
    for now in range(1, 13):
        for optimizer in (ours, theirs):
            set_gradients(optimizer, now, draw)
            optimizer.step()
        (param,), (expected,) = params_of(ours), params_of(theirs)
        finite = expected.isfinite()
        assert torch.equal(param.isfinite(), finite), f"at step {now}"
        assert_close(param[finite], expected[finite], f"step {now}")
    assert bool(finite.any())


@pytest.mark.parametrize("outer", [True, False], ids=["grad", "no_grad"])
def test_a_closure_computes_with_gradients_enabled_and_its_loss_comes_back(outer: bool) -> None:
    def train(cls: Any) -> tuple[list[Any], Tensor]:
        param = start((5,), torch.float64, 1)
        optimizer = cls([param], lr=0.1)
        seen: list[Any] = []

        def closure() -> Tensor:
            seen.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = (param**2).sum()
            loss.backward()
            return loss

        for _ in range(STEPS):
            with torch.set_grad_enabled(outer):
                seen.append(optimizer.step(closure).item())
                assert torch.is_grad_enabled() is outer
        return seen, param

    seen, param = train(RAdam)
    expected, other = train(torch.optim.RAdam)
    assert seen == pytest.approx(expected, rel=1e-12)
    assert seen[::2] == [True] * STEPS
    assert_close(param, other, "parameter")


@pytest.mark.parametrize("t", [1, 6])
def test_a_group_can_be_added_between_steps(t: int) -> None:
    def before(optimizer: Any, now: int) -> None:
        if now == t:
            optimizer.add_param_group({"params": start((9,), torch.float64, 50), "lr": 0.3})

    ours, _ = follow(lambda cls: cls(starts(torch.float64), lr=0.02), before=before)
    assert ours.state[params_of(ours)[-1]]["step"] == STEPS - t + 1


def test_named_parameters_keep_their_names() -> None:
    def make(cls: Any) -> Any:
        torch.manual_seed(2)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)).double()
        return cls(model.named_parameters(), lr=0.02)

    ours, theirs = follow(make)
    saved = ours.state_dict()["param_groups"]
    assert saved == theirs.state_dict()["param_groups"]
    assert saved[0]["param_names"] == ["0.weight", "0.bias", "1.weight", "1.bias"]


@both_loops
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters:UserWarning")
def test_a_parameter_given_twice_is_stepped_twice(foreach: bool) -> None:
    def make(cls: Any) -> Any:
        first, second = start((5,), torch.float64, 1), start((2, 3), torch.float64, 2)
        return cls([{"params": [first, second, first]}, {"params": [start((4,), torch.float64, 3)]}], lr=0.02)

    # Torch's own foreach mixes the two steps up, so its loop is what to follow.
    ours = make(functools.partial(RAdam, foreach=foreach))
    theirs = make(functools.partial(torch.optim.RAdam, foreach=False))
    for t in range(1, STEPS + 1):
        for optimizer in (ours, theirs):
            set_gradients(optimizer, t)
            optimizer.step()
        for param, expected in zip(params_of(ours), params_of(theirs), strict=True):
            assert_close(param, expected, f"step {t}")
            assert_same_state(ours.state[param], theirs.state[expected], f"at step {t}")
    counts = [int(ours.state[param]["step"]) for param in params_of(ours)]
    assert counts == [2 * STEPS, STEPS, 2 * STEPS, STEPS]


def test_under_a_default_dtype_of_float64_the_counts_are_float64() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        ours, _ = follow(lambda cls: cls(starts(torch.float32), lr=0.02), steps=8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {state["step"].dtype for state in ours.state.values()} == {torch.float64}
