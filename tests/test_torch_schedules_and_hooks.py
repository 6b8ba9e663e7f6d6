"""What torch builds around an optimizer works around ours: schedules, averages, hooks, closures, the profiler."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from radam.torch import RAdam
from test_torch_like_torch import assert_alike, assert_close, outcome, pair, params_of

STEPS = 12


def model() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()


def images(t: int) -> Tensor:
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(t))


def backward(net: torch.nn.Module, optimizer: Any, t: int) -> Tensor:
    optimizer.zero_grad()
    loss: Tensor = (net(images(t)) ** 2).mean() + sum(p.sum() for p in net.parameters())
    loss.backward()
    return loss


# ---- learning-rate schedules


class Halving(lr_scheduler.LRScheduler):
    """A schedule that somebody wrote on torch's base class."""

    def get_lr(self) -> list[Any]:
        return [base * 0.5**self.last_epoch for base in self.base_lrs]


def sequence(optimizer: Any) -> lr_scheduler.SequentialLR:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.1, 3), lr_scheduler.ExponentialLR(optimizer, 0.8)]
    return lr_scheduler.SequentialLR(optimizer, parts, [5])


def chain(optimizer: Any) -> lr_scheduler.ChainedScheduler:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.1, 3), lr_scheduler.ExponentialLR(optimizer, 0.8)]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.8),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 7], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.1, 4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=8),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": sequence,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10, 0.001),
    "ChainedScheduler": chain,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, STEPS + 1),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10, 2.0),
    "LRScheduler": Halving,
}
"""Every name that torch.optim.lr_scheduler exports."""

MORE = {
    "CyclicLR exp_range": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, 2, mode="exp_range", gamma=0.9),
    "OneCycleLR three phases": lambda o: lr_scheduler.OneCycleLR(
        o, [0.1, 0.2], STEPS + 1, three_phase=True, anneal_strategy="linear"
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.005, anneal_epochs=4),
}
EDITS_BETAS = ("CyclicLR", "OneCycleLR", "CyclicLR exp_range", "OneCycleLR three phases")


def test_no_schedule_of_torch_is_left_out() -> None:
    assert set(SCHEDULES) == set(lr_scheduler.__all__)


@pytest.mark.parametrize("tensor", [False, True], ids=["float-lr", "Tensor-lr"])
@pytest.mark.parametrize("name", [*SCHEDULES, *MORE])
def test_a_schedule_moves_it_as_it_moves_torchs(name: str, tensor: bool) -> None:
    # A call in the wrong order, or a warning of any other kind, would be an error here.
    def train(cls: Any) -> tuple[Any, Any, list[Any], list[Any]]:
        net = model()
        first, second = list(net[0].parameters()), list(net[2].parameters())
        rates = [torch.tensor(rate, dtype=torch.float64) if tensor else rate for rate in (0.05, 0.1)]
        optimizer = cls([{"params": first, "lr": rates[0]}, {"params": second, "lr": rates[1]}])
        schedule = (SCHEDULES | MORE)[name](optimizer)
        seen, paths = [], []
        for t in range(STEPS):
            backward(net, optimizer, t)
            optimizer.step()
            schedule.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            seen.append([(float(group["lr"]), group["betas"]) for group in optimizer.param_groups])
            paths.append([param.detach().clone() for param in params_of(optimizer)])
        return optimizer, schedule, seen, paths

    ours, schedule, seen, paths = train(RAdam)
    theirs, other, expected, others = train(torch.optim.RAdam)
    assert seen == expected
    assert seen[0] != seen[-1]
    assert ([betas for _, betas in seen[0]] != [betas for _, betas in seen[5]]) is (name in EDITS_BETAS)
    for t, (path, their_path) in enumerate(zip(paths, others, strict=True)):
        for param, their_param in zip(path, their_path, strict=True):
            assert_close(param, their_param, f"after step {t + 1}")
    assert_alike(ours, theirs, "the end")
    assert schedule.get_last_lr() == other.get_last_lr()
    assert isinstance(ours.param_groups[0]["lr"], Tensor) is tensor


def test_a_schedule_stepped_too_early_warns_as_with_torch() -> None:
    def early(cls: Any) -> None:
        optimizer = cls(model().parameters())
        lr_scheduler.StepLR(optimizer, 3).step()

    expected = outcome(lambda: early(torch.optim.RAdam))
    assert "before `optimizer.step()`" in expected[1][0][1]
    assert outcome(lambda: early(RAdam)) == expected


def test_a_schedule_goes_on_from_a_checkpoint_as_with_torch() -> None:
    def train(cls: Any) -> Any:
        net = model()
        optimizer = cls(net.parameters(), lr=0.05)
        schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, 20)
        for t in range(STEPS):
            if t == 6:
                saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), schedule.state_dict()))
                net = model()
                optimizer = cls(net.parameters(), lr=1.0)
                schedule = lr_scheduler.OneCycleLR(optimizer, 0.3, 20)
                for part, state in zip((net, optimizer, schedule), saved, strict=True):
                    part.load_state_dict(state)
            backward(net, optimizer, t)
            optimizer.step()
            schedule.step()
        return optimizer

    assert_alike(train(RAdam), train(torch.optim.RAdam), "the end")


AVERAGES: dict[str, dict[str, Any]] = {
    "swa": {},
    "swa one by one": {"avg_fn": swa_utils.get_swa_avg_fn()},
    "ema": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
    "ema one by one": {"avg_fn": swa_utils.get_ema_avg_fn(0.9)},
}


@pytest.mark.parametrize("kwargs", AVERAGES.values(), ids=AVERAGES)
def test_averages_of_the_weights_are_those_of_torch(kwargs: dict[str, Any]) -> None:
    def train(cls: Any) -> list[Tensor]:
        net = model()
        optimizer = cls(net.parameters(), lr=0.05)
        average = swa_utils.AveragedModel(net, **kwargs)
        schedule = swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
        for t in range(STEPS):
            backward(net, optimizer, t)
            optimizer.step()
            if t >= 4:
                average.update_parameters(net)
                schedule.step()
        assert not torch.equal(next(average.parameters()), next(net.parameters()))
        return list(average.parameters())

    for got, expected in zip(train(RAdam), train(torch.optim.RAdam), strict=True):
        assert_close(got, expected, "average")


# ---- hooks


def test_step_hooks_run_in_torchs_order_and_see_what_torchs_see() -> None:
    def train(cls: Any) -> list[Any]:
        seen: list[Any] = []
        net = model()
        optimizer = cls(net.parameters(), lr=0.05)
        weight = params_of(optimizer)[0]

        def closure() -> Tensor:
            seen.append("closure")
            return backward(net, optimizer, 0)

        def note(name: str) -> Callable[..., None]:
            def hook(of: Any, args: Any, kwargs: Any) -> None:
                assert of is optimizer
                count = int(optimizer.state[weight]["step"]) if weight in optimizer.state else 0
                seen.append((name, count, [kind(x) for x in args], {key: kind(x) for key, x in kwargs.items()}))

            return hook

        def kind(x: Any) -> str:
            return {id(optimizer): "optimizer", id(closure): "closure"}.get(id(x), "?")

        handles = [
            optimizer.register_step_post_hook(note("post 1")),
            register_optimizer_step_post_hook(note("global post")),
            optimizer.register_step_pre_hook(note("pre 1")),
            register_optimizer_step_pre_hook(note("global pre")),
            optimizer.register_step_pre_hook(note("pre 2")),
            optimizer.register_step_post_hook(note("post 2")),
        ]
        try:
            optimizer.step(closure)
            optimizer.step(closure=closure)
            optimizer.step()
            handles[2].remove()
        finally:
            for handle in (handles[1], handles[3]):
                handle.remove()
        optimizer.step()
        return seen

    seen = train(RAdam)
    assert seen == train(torch.optim.RAdam)
    names = [entry[0] for entry in seen if entry != "closure"]
    assert names[:6] == ["global pre", "pre 1", "pre 2", "post 1", "post 2", "global post"]
    assert names[-3:] == ["pre 2", "post 1", "post 2"]


def test_a_pre_hook_may_change_the_arguments_of_the_step() -> None:
    def train(cls: Any) -> list[Any]:
        net = model()
        optimizer = cls(net.parameters(), lr=0.05)
        optimizer.register_step_pre_hook(lambda of, args, kwargs: ((of,), {"closure": lambda: backward(net, of, 1)}))
        losses = [optimizer.step(lambda: 1 / 0).item() for _ in range(3)]
        return [*losses, *net.parameters()]

    for got, expected in zip(train(RAdam), train(torch.optim.RAdam), strict=True):
        assert torch.allclose(torch.as_tensor(got), torch.as_tensor(expected), rtol=1e-10, atol=1e-10)


def test_a_pre_hook_that_returns_anything_else_is_an_error_before_the_step() -> None:
    ours, theirs = pair(lambda cls: cls(model().parameters()))
    for optimizer in (ours, theirs):
        for param in params_of(optimizer):
            param.grad = torch.ones_like(param)
        optimizer.register_step_pre_hook(lambda of, args, kwargs: "all is well")
        with pytest.raises(RuntimeError, match=r"must return None or a tuple of \(new_args, new_kwargs\)"):
            optimizer.step()
        assert not optimizer.state


@pytest.mark.parametrize("when", ["pre", "post"])
def test_a_hook_that_steps_the_same_optimizer_again_works_as_in_torch(when: str) -> None:
    def train(cls: Any) -> Any:
        net = model()
        optimizer = cls(net.parameters(), lr=0.05)
        nested: list[int] = []

        def again(of: Any, args: Any, kwargs: Any) -> None:
            if not nested:
                nested.append(1)
                of.step()

        getattr(optimizer, f"register_step_{when}_hook")(again)
        backward(net, optimizer, 0)
        optimizer.step()
        return optimizer

    ours, theirs = train(RAdam), train(torch.optim.RAdam)
    assert_alike(ours, theirs, "the end")
    assert ours.state[params_of(ours)[0]]["step"] == 2


def test_state_dict_hooks_run_in_torchs_order_and_may_replace_what_passes() -> None:
    def run(cls: Any) -> tuple[list[Any], dict[str, Any], Any]:
        seen: list[Any] = []
        net = model()
        optimizer = cls(net.parameters(), lr=0.05)
        backward(net, optimizer, 0)
        optimizer.step()

        def before(name: str) -> Callable[[Any], None]:
            return lambda of: seen.append((name, of is optimizer))

        def replaced(name: str, lr: float) -> Callable[[Any, Any], dict[str, Any]]:
            def hook(of: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
                seen.append((name, of is optimizer, sorted(state_dict), state_dict["param_groups"][0]["lr"]))
                group = {**state_dict["param_groups"][0], "lr": lr}
                return {**state_dict, "param_groups": [group], name: True}

            return hook

        def changed(name: str) -> Callable[[Any, Any], None]:
            def hook(of: Any, state_dict: dict[str, Any]) -> None:
                seen.append((name, sorted(state_dict)))
                state_dict[name] = True

            return hook

        optimizer.register_state_dict_pre_hook(before("save pre 1"))
        optimizer.register_state_dict_pre_hook(before("save pre 2"), prepend=True)
        optimizer.register_state_dict_post_hook(replaced("save post 1", 0.1))
        optimizer.register_state_dict_post_hook(changed("save post 2"))
        optimizer.register_state_dict_post_hook(changed("save post 3"), prepend=True)
        saved = optimizer.state_dict()
        optimizer.register_load_state_dict_pre_hook(changed("load pre 1"))
        optimizer.register_load_state_dict_pre_hook(replaced("load pre 2", 0.2))
        optimizer.register_load_state_dict_pre_hook(changed("load pre 3"), prepend=True)
        optimizer.register_load_state_dict_post_hook(before("load post 1"))
        optimizer.register_load_state_dict_post_hook(
            lambda of: seen.append(("load post 2", of.param_groups[0]["lr"])), prepend=True
        )
        passed_in = dict(saved)
        optimizer.load_state_dict(passed_in)
        assert passed_in.keys() == saved.keys(), "the hooks get a copy"
        return seen, saved, optimizer

    seen, saved, ours = run(RAdam)
    expected, their_saved, theirs = run(torch.optim.RAdam)
    assert seen == expected
    assert list(saved) == list(their_saved)
    assert ours.param_groups[0]["lr"] == 0.2
    assert_alike(ours, theirs, "the end")


def test_hooks_stay_with_the_optimizer_and_out_of_its_copies_as_in_torch() -> None:
    def kept(cls: Any) -> list[bool]:
        optimizer = cls(model().parameters())
        optimizer.register_step_pre_hook(lambda *_: None)
        optimizer.load_state_dict(optimizer.state_dict())
        copied = copy.deepcopy(optimizer)
        return [bool(one._optimizer_step_pre_hooks) for one in (optimizer, copied)]

    assert kept(RAdam) == kept(torch.optim.RAdam) == [True, False]


# ---- gradients, closures, the profiler


@pytest.mark.parametrize("foreach", [None, True, False])
def test_zero_grad_forgets_gradients_or_fills_them_with_zeros(foreach: bool | None) -> None:
    optimizer = pair(lambda cls: cls([torch.ones(3).requires_grad_(), torch.ones(2, 2).double()]), foreach)[0]
    for param in params_of(optimizer):
        param.grad = torch.ones_like(param)
    held = [param.grad for param in params_of(optimizer)]
    optimizer.zero_grad(set_to_none=False)
    for param, grad in zip(params_of(optimizer), held, strict=True):
        assert param.grad is grad
        assert not grad.any()
        assert not grad.requires_grad
    optimizer.zero_grad()
    assert [param.grad for param in params_of(optimizer)] == [None, None]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_zeroed_gradient_is_a_step_and_a_missing_one_is_none(set_to_none: bool) -> None:
    def train(cls: Any) -> Any:
        net = model()
        optimizer = cls(net.parameters(), lr=0.05)
        for t in range(STEPS):
            if t % 3 == 2:
                optimizer.zero_grad(set_to_none=set_to_none)
            else:
                backward(net, optimizer, t)
            optimizer.step()
        return optimizer

    ours = train(RAdam)
    assert_alike(ours, train(torch.optim.RAdam), "the end")
    assert ours.state[params_of(ours)[0]]["step"] == (STEPS * 2 // 3 if set_to_none else STEPS)


def test_the_profiler_sees_each_step_once_under_torchs_name() -> None:
    def profiled(cls: Any) -> dict[str, int]:
        net = model()
        optimizer = cls(net.parameters())
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for t in range(3):
                backward(net, optimizer, t)
                optimizer.step()
        return {event.key: event.count for event in profile.key_averages() if event.key.startswith("Optimizer.")}

    expected = {"Optimizer.step#RAdam.step": 3, "Optimizer.zero_grad#RAdam.zero_grad": 3}
    assert profiled(RAdam) == profiled(torch.optim.RAdam) == expected


@pytest.mark.parametrize("clip", ["norm", "norm with foreach", "value"])
def test_clipped_gradients_train_as_in_torch(clip: str) -> None:
    def train(cls: Any) -> tuple[list[float], Any]:
        net = model()
        optimizer = cls(net.parameters(), lr=0.05)
        norms = []
        for t in range(STEPS):
            backward(net, optimizer, t)
            if clip == "value":
                torch.nn.utils.clip_grad_value_(net.parameters(), 0.1)
            else:
                foreach = clip != "norm"
                norms.append(torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5, foreach=foreach).item())
            optimizer.step()
        return norms, optimizer

    (norms, ours), (expected, theirs) = train(RAdam), train(torch.optim.RAdam)
    assert norms == pytest.approx(expected, rel=1e-9)
    assert clip == "value" or max(norms) > 0.5
    assert_alike(ours, theirs, "the end")


def test_it_takes_turns_with_lbfgs_on_one_closure() -> None:
    def train(cls: Any) -> tuple[list[float], Any]:
        net = model()
        optimizer = cls(net.parameters(), lr=0.01)
        line_search = torch.optim.LBFGS(net.parameters(), lr=0.01, max_iter=4, line_search_fn="strong_wolfe")
        evaluated: list[float] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (net(images(0)) ** 2).mean()
            loss.backward()
            evaluated.append(loss.item())
            return loss

        for t in range(STEPS):
            (line_search if t % 3 == 0 else optimizer).step(closure)
        return evaluated, optimizer

    (losses, ours), (expected, theirs) = train(RAdam), train(torch.optim.RAdam)
    assert losses == pytest.approx(expected, rel=1e-8)
    assert losses[-1] < losses[0]
    for param, other in zip(params_of(ours), params_of(theirs), strict=True):
        assert torch.allclose(param, other, rtol=1e-8, atol=1e-8)
        assert ours.state[param]["step"] == theirs.state[other]["step"] == STEPS * 2 // 3


def test_a_closure_that_fails_leaves_everything_and_the_next_step_works() -> None:
    net = model()
    optimizer = RAdam(net.parameters(), lr=0.05)
    before = [param.detach().clone() for param in net.parameters()]
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert all(torch.equal(param, copy) for param, copy in zip(net.parameters(), before, strict=True))
    assert not optimizer.state
    assert optimizer.step(lambda: backward(net, optimizer, 0)) is not None
    assert not any(torch.equal(param, copy) for param, copy in zip(net.parameters(), before, strict=True))


def test_a_subclass_is_hooked_once_and_may_extend_the_step() -> None:
    def train(base: Any) -> tuple[list[str], str, Any]:
        seen: list[str] = []

        class Noted(base):
            def step(self, closure: Any = None) -> Any:
                seen.append("step")
                return super().step(closure)

        net = model()
        optimizer = Noted(net.parameters(), lr=0.05)
        optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
        schedule = lr_scheduler.StepLR(optimizer, 3)
        for t in range(STEPS):
            backward(net, optimizer, t)
            optimizer.step()
            schedule.step()
        return seen, repr(optimizer), optimizer

    (seen, text, ours), (expected, their_text, theirs) = train(RAdam), train(torch.optim.RAdam)
    assert seen == expected
    assert text == their_text
    assert_alike(ours, theirs, "the end")
