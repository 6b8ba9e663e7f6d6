"""A step of radam.torch.RAdam never tears, crashes, leaks or touches what it should not, whatever it is handed."""

from __future__ import annotations

import _thread
import contextlib
import copy
import gc
import math
import os
import random as chance
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.func import functionalize, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.flop_counter import FlopCounterMode

import radam
from radam.torch import RAdam
from test_threads_and_forks import forks, in_child, in_threads
from test_torch_state import assert_close, assert_near, bits_of, everything, params_of, random, tensor_bits

CLASSES = {"radam": RAdam, "torch": torch.optim.RAdam}
both = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
MOMENTS = ("exp_avg", "exp_avg_sq")
TURN = "a step of this optimizer is under way"


class Wrapped(Tensor):
    """A tensor in a tensor, which no kernel can reach: the step goes through PyTorch's operations."""

    inner: Tensor
    watcher: Callable[[], object] | None = None
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        layout = {"strides": inner.stride(), "dtype": inner.dtype, "requires_grad": inner.requires_grad}
        return Tensor._make_wrapper_subclass(cls, inner.shape, **layout)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if cls.watcher is not None:
            cls.watcher()
        out = func(*bare(args), **bare(kwargs or {}))
        return return_and_correct_aliasing(func, args, kwargs or {}, Wrapped(out) if isinstance(out, Tensor) else out)


def bare(value: Any) -> Any:
    """Return what operations take, with the wrappers taken off."""
    if isinstance(value, (list, tuple)):
        return type(value)([bare(entry) for entry in value])
    if isinstance(value, dict):
        return {key: bare(entry) for key, entry in value.items()}
    return value.inner if isinstance(value, Wrapped) else value


# ---- optimizers over parameters of every kind

SPECIAL: dict[str, Callable[[], list[nn.Parameter]]] = {
    "plain": list,
    "complex": lambda: [nn.Parameter(random(8, (3, 2), torch.complex64))],
    "wrapped": lambda: [nn.Parameter(Wrapped(random(9, (4,), torch.float32)))],
}
SPECIAL["mixed"] = lambda: [*SPECIAL["complex"](), *SPECIAL["wrapped"]()]
kinds = pytest.mark.parametrize("kind", ["plain", "complex", "wrapped"])
plain_and_mixed = pytest.mark.parametrize("kind", ["plain", "mixed"])


def make(kind: str = "plain", cls: Any = RAdam, **keywords: Any) -> Any:
    """Return an optimizer over two groups; the last parameter of the second is the one that tests spoil."""
    laid_out = random(1, (4, 3), torch.float32).t(), random(2, (10,), torch.float32)[::2]
    first = [*SPECIAL[kind](), nn.Parameter(laid_out[0]), nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.ones(0))]
    second = [nn.Parameter(laid_out[1])]
    if cls is RAdam:
        second.append(nn.Parameter(random(3, (8,), torch.bfloat16)))
    second += [nn.Parameter(random(4, (3,), torch.float64)), nn.Parameter(random(5, (6,), torch.float32))]
    groups = [{"params": first}, {"params": second, "lr": 0.03, "weight_decay": 0.1}]
    return cls(groups, **{"lr": 0.01, **keywords})


def gradient(param: Tensor, seed: int) -> Tensor:
    drawn = random(seed, param.shape, param.dtype)
    return Wrapped(drawn) if isinstance(param, Wrapped) else drawn.to(param.device)


def set_gradients(optimizer: Any, seed: int) -> None:
    for i, param in enumerate(params_of(optimizer)):
        param.grad = gradient(param, 1000 * seed + i)


def step(optimizer: Any, *seeds: int) -> None:
    """Take a step along random gradients for each seed."""
    for seed in seeds:
        set_gradients(optimizer, seed)
        optimizer.step()


def one(value: float = 1.0, size: int = 3, **keywords: Any) -> tuple[nn.Parameter, RAdam]:
    """Return a parameter with a gradient, and an optimizer of it."""
    param = nn.Parameter(torch.full((size,), value))
    param.grad = torch.ones(size)
    return param, RAdam([param], **{"lr": 0.1, **keywords})


def unskipped(snapshot: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in snapshot.items() if key != "skipped_steps"}


# ---- after an error nothing has changed

Spoiler = Callable[[Any], AbstractContextManager[object]]


def last(optimizer: Any) -> nn.Parameter:
    return optimizer.param_groups[-1]["params"][-1]


def with_gradient(spoil: Callable[[nn.Parameter], Tensor]) -> Spoiler:
    """Give the last parameter another gradient, also one that PyTorch would not let in."""

    @contextmanager
    def spoiled(optimizer: Any) -> Iterator[None]:
        param = last(optimizer)
        kept, bad = param.grad, spoil(param)
        if bad.shape == param.shape and bad.dtype == param.dtype:
            param.grad = bad
        else:
            param.grad = torch.zeros_like(param)
            param.grad.data = bad
        yield
        param.grad = kept

    return spoiled


def with_data(data: Callable[[Any], Tensor]) -> Spoiler:
    @contextmanager
    def spoiled(optimizer: Any) -> Iterator[None]:
        param = last(optimizer)
        kept = param.data
        param.data = data(optimizer)
        yield
        param.data = kept

    return spoiled


def with_setting(key: str, value: Any) -> Spoiler:
    @contextmanager
    def spoiled(optimizer: Any) -> Iterator[None]:
        group = optimizer.param_groups[-1]
        kept = group[key]
        group[key] = value
        yield
        group[key] = kept

    return spoiled


def with_state(**entries: Any) -> Spoiler:
    """Change the last parameter's state; a function gets the state, and None takes the entry away."""

    @contextmanager
    def spoiled(optimizer: Any) -> Iterator[None]:
        param = last(optimizer)
        was_there, kept = param in optimizer.state, dict(optimizer.state.get(param, {}))
        whole = {"step": torch.tensor(0.0), **{key: torch.zeros_like(param) for key in MOMENTS}, **kept}
        changed = {key: value(whole, param) if callable(value) else value for key, value in entries.items()}
        whole.update(changed)
        optimizer.state[param] = {key: value for key, value in whole.items() if value is not None}
        yield
        if was_there:
            optimizer.state[param] = kept
        else:
            del optimizer.state[param]

    return spoiled


def with_hook(error: type[BaseException]) -> Spoiler:
    def refuse(*args: Any) -> None:
        raise error

    return lambda optimizer: optimizer.register_step_pre_hook(refuse)


NAMED = "of parameter 3 of group 1"
SPOILERS: dict[str, tuple[Spoiler, Any, str | None]] = {
    "gradient of another shape": (with_gradient(lambda p: torch.ones(7)), ValueError, rf"gradient {NAMED}"),
    "gradient of wide numbers": (with_gradient(lambda p: torch.ones(6).double()), ValueError, rf"gradient {NAMED}"),
    "gradient of whole numbers": (with_gradient(lambda p: torch.ones(6).long()), TypeError, rf"gradient {NAMED}"),
    "gradient of complex numbers": (with_gradient(lambda p: torch.ones(6) * 1j), TypeError, rf"gradient {NAMED}"),
    "sparse gradient": (
        with_gradient(lambda p: torch.ones(6).to_sparse()),
        RuntimeError,
        "^RAdam does not support sparse gradients$",
    ),
    "gradient in the parameter's memory": (with_gradient(lambda p: p.detach()), ValueError, "share memory"),
    "gradient in another parameter's memory": (
        with_gradient(lambda p: torch.zeros(6)),  # replaced below by a view of a parameter
        ValueError,
        "share memory",
    ),
    "parameter in another's memory": (
        with_data(lambda o: o.param_groups[0]["params"][-3].data.t().reshape(-1)[1:7]),
        ValueError,
        "share memory",
    ),
    "expanded parameter": (with_data(lambda o: torch.ones(1).expand(6)), ValueError, "share memory"),
    "parameter of another shape": (with_data(lambda o: torch.ones(5)), ValueError, NAMED),
    "parameter of another dtype": (with_data(lambda o: torch.ones(6).double()), ValueError, NAMED),
    **{f"no {key}": (with_state(**{key: None}), ValueError, f"no '{key}'") for key in ("step", *MOMENTS)},
    **{
        f"{key} {what}": (with_state(**{key: value}), (TypeError, ValueError), rf"{key} {NAMED}")
        for key in MOMENTS
        for what, value in {
            "of another shape": torch.ones(7),
            "of wide numbers": torch.ones(6).double(),
            "of 16 bits": torch.ones(6).bfloat16(),
            "of whole numbers": torch.ones(6).long(),
            "expanded": torch.ones(1).expand(6),
            "a number": 1.0,
            "text": "x",
        }.items()
    },
    "exp_avg in the parameter's memory": (with_state(exp_avg=lambda state, p: p.detach()), ValueError, "share memory"),
    "one tensor for both moments": (
        with_state(exp_avg=lambda state, p: state["exp_avg_sq"]),
        ValueError,
        "share memory",
    ),
    **{
        f"step {value!r}": (with_state(step=value), (TypeError, ValueError), rf"step count {NAMED}")
        for value in (
            *(torch.tensor(x) for x in (-1.0, 1.5, math.nan, math.inf, [1.0, 2.0], 1j, -1)),
            *(torch.tensor(2.0**53, dtype=torch.float64), "x", [], -1, math.nan),
        )
    },
    **{
        f"{key} {value!r}": (with_setting(key, value), (TypeError, ValueError), words)
        for key, words, values in (
            ("lr", "lr|learning rate", (-1.0, math.nan, math.inf, "fast", None, torch.ones(2), torch.tensor(-1.0))),
            ("betas", "beta", ((0.9, 1.0), (1.0, 0.9), (math.nan, 0.9), (-0.1, 0.9), (0.9,), None)),
            ("eps", "eps", (-1.0, math.nan, "x", None)),
            ("weight_decay", "weight_decay", (-1.0, math.nan, math.inf, "x", None)),
        )
        for value in values
    },
    "an lr too large for float32": (with_setting("lr", 1e300), ValueError, "lower lr"),
    "capturable on the CPU": (with_setting("capturable", True), AssertionError, "^If capturable=True, params and"),
    "hook": (with_hook(LookupError), LookupError, None),
    "Ctrl-C in a hook": (with_hook(KeyboardInterrupt), KeyboardInterrupt, None),
}


def in_another_s_memory(optimizer: Any) -> AbstractContextManager[object]:
    other = optimizer.param_groups[0]["params"][-3]
    return with_gradient(lambda param: other.data.t().reshape(-1)[:6])(optimizer)


SPOILERS["gradient in another parameter's memory"] = (in_another_s_memory, ValueError, "share memory")


@plain_and_mixed
@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.parametrize(("spoiler", "error", "words"), SPOILERS.values(), ids=SPOILERS)
def test_a_failed_step_leaves_every_bit_and_every_version_as_it_was(
    spoiler: Spoiler, error: Any, words: str | None, steps: int, kind: str
) -> None:
    optimizer, undisturbed = make(kind), make(kind)
    for each in (optimizer, undisturbed):
        step(each, *range(steps))
        set_gradients(each, 50)
    with spoiler(optimizer):
        before = everything(optimizer)
        with pytest.raises(error, match=words):
            optimizer.step()
        assert everything(optimizer) == before
    for each in (optimizer, undisturbed):
        each.step()
        step(each, 51, 52)
    assert bits_of(optimizer) == bits_of(undisturbed)


@kinds
@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, GeneratorExit])
def test_a_closure_that_raises_takes_no_step(error: type[BaseException], kind: str) -> None:
    def closure() -> None:
        raise error

    optimizer = make(kind)
    step(optimizer, *range(7))
    before = everything(optimizer)
    with pytest.raises(error):
        optimizer.step(closure)
    assert everything(optimizer) == before


def test_a_hook_that_raises_after_the_step_leaves_a_whole_one() -> None:
    optimizer, undisturbed = make(), make()
    handle = optimizer.register_step_post_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(optimizer, 0)
    handle.remove()
    step(undisturbed, 0)
    for each in (optimizer, undisturbed):
        step(each, 1)
    assert bits_of(optimizer) == bits_of(undisturbed)


class Odd(nn.Parameter):
    """A parameter that says something else about its gradient than PyTorch would let it."""

    answer: Any = None
    grad = property(lambda self: self.answer)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (torch.ones(3, device="meta"), (ValueError, RuntimeError)),
        (torch.ones(4), ValueError),
        (torch.ones(3, dtype=torch.complex64), (TypeError, ValueError)),
    ],
    ids=repr,
)
def test_what_is_no_gradient_of_the_parameter_is_an_error_whoever_hands_it_in(answer: Any, error: Any) -> None:
    plain, odd = nn.Parameter(torch.ones(3)), Odd(torch.ones(3))
    optimizer = RAdam([{"params": [plain]}, {"params": [odd]}])
    plain.grad, odd.answer = torch.ones(3), torch.ones(3)
    optimizer.step()
    odd.answer = answer
    kept = [tensor_bits(x) for x in (plain, odd, *optimizer.state[plain].values(), *optimizer.state[odd].values())]
    with pytest.raises(error, match="gradient of parameter 0 of group 1"):
        optimizer.step()
    now = [tensor_bits(x) for x in (plain, odd, *optimizer.state[plain].values(), *optimizer.state[odd].values())]
    assert now == kept


@pytest.mark.parametrize("differentiable", [False, True])
def test_an_error_among_tensors_without_a_kernel_leaves_the_others_alone(differentiable: bool) -> None:
    """The kernel's part and the first ones of the rest must not be stepped before the last one is known to work."""
    plain, wrapped, bad = nn.Parameter(torch.ones(3)), nn.Parameter(Wrapped(torch.ones(3))), nn.Parameter(torch.ones(3))
    optimizer = RAdam([{"params": [plain]}, {"params": [wrapped]}, {"params": [bad]}])
    step(optimizer, 0)
    if differentiable:  # PyTorch refuses to change a leaf while it watches
        optimizer.defaults["differentiable"] = optimizer.param_groups[2]["differentiable"] = True
    else:  # a moment on another device
        optimizer.state[bad]["exp_avg"] = torch.ones(3, device="meta")
    set_gradients(optimizer, 1)
    before = everything(optimizer)
    with pytest.raises((RuntimeError, ValueError)):
        optimizer.step()
    assert everything(optimizer) == before


@pytest.mark.parametrize("earlier", [0, 1])
def test_a_ctrl_c_while_the_native_step_runs_leaves_it_whole(earlier: int) -> None:
    size = 4_000_000
    (param, optimizer), (_, undisturbed) = one(0.0, size), one(0.0, size)
    for _ in range(earlier):
        optimizer.step()
        undisturbed.step()
    interval, version = sys.getswitchinterval(), param._version

    def interrupt() -> None:
        for _ in range(10_000):
            if param._version > version:  # it rises just before the native run, in which this thread gets the GIL
                break
            time.sleep(1e-4)
        _thread.interrupt_main()

    def step_and_wait() -> None:
        optimizer.step()
        thread.join()  # should the interrupt come too late for the step

    thread = threading.Thread(target=interrupt)
    thread.start()
    sys.setswitchinterval(10)
    try:
        with pytest.raises(KeyboardInterrupt):
            step_and_wait()
    finally:
        sys.setswitchinterval(interval)
        thread.join()
        was_enabled = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
    assert was_enabled, "the interrupt has left autograd switched off"
    taken = float(optimizer.state[param]["step"]) if param in optimizer.state else 0
    for _ in range(int(taken) - earlier):
        undisturbed.step()
    assert bits_of(optimizer) == bits_of(undisturbed)


@pytest.mark.parametrize("kind", ["plain", "complex"])
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the interrupts come from a POSIX timer")
def test_an_interrupt_finds_a_whole_step_or_none(kind: str) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    wait, counts = chance.Random(0), set()
    kept = signal.signal(signal.SIGALRM, interrupted)
    try:
        for _ in range(60):
            optimizer, twin = make(kind), make(kind)
            set_gradients(optimizer, 1)
            set_gradients(twin, 1)
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, wait.uniform(1e-5, 2e-3))
                while True:
                    optimizer.step()
            taken = {float(optimizer.state.get(param, {}).get("step", 0)) for param in params_of(optimizer)}
            assert len(taken) == 1, f"some parameters took another number of steps: {taken}"
            for _ in range(int(*taken)):
                twin.step()
            assert bits_of(optimizer)["params"] == bits_of(twin)["params"]
            assert torch.is_grad_enabled(), "the interrupt has left autograd switched off"
            counts |= taken
            optimizer.step()
            twin.step()
            assert bits_of(optimizer) == bits_of(twin)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
        torch.set_grad_enabled(True)
    assert len(counts) > 3


# ---- memory that is not what it seems


def test_an_array_that_numpy_will_not_write_is_written_as_torch_writes_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it has no read-only tensors
        arrays = [np.ones(3, np.float32) for _ in range(2)]
        for array in arrays:
            array.flags.writeable = False
        params = [nn.Parameter(torch.from_numpy(array)) for array in arrays]
    for cls, param in zip(CLASSES.values(), params, strict=True):
        optimizer = cls([param], lr=0.1)
        for _ in range(7):
            param.grad = torch.ones(3)
            optimizer.step()
    assert_near(*params, "the parameter")


def test_a_lazy_copy_of_a_tensor_does_not_see_the_step() -> None:
    original = torch.ones(3)
    param = nn.Parameter(original._lazy_clone())
    param.grad = torch.ones(3)
    optimizer = RAdam([param], lr=0.1)
    optimizer.step()
    held = optimizer.state[param]["exp_avg"]._lazy_clone()
    expected = held.clone()
    optimizer.step()
    assert torch.equal(original, torch.ones(3))
    assert torch.equal(held, expected)
    assert not torch.equal(param, original)


LAZY = {
    "conjugate": lambda: (torch.ones(3, dtype=torch.complex64) * (1 + 2j)).conj(),
    "negated": lambda: (torch.ones(3, dtype=torch.complex64) * (1 + 2j)).conj().imag,
    "negated, one element": lambda: (torch.ones(1, dtype=torch.complex64) * (1 + 2j)).conj().imag,
}


@pytest.mark.parametrize("where", ["param", "exp_avg", "grad"])
@pytest.mark.parametrize("lazy", LAZY.values(), ids=LAZY)
def test_a_lazily_changed_view_is_stepped_rightly_or_refused_and_never_lost(
    lazy: Callable[[], Tensor], where: str
) -> None:
    def prepared(view: Callable[[], Tensor]) -> tuple[Tensor, RAdam]:
        param = (view() if where == "param" else torch.zeros_like(lazy().clone())).requires_grad_()
        optimizer = RAdam([param], lr=0.1)
        param.grad = view() if where == "grad" else torch.ones_like(lazy().clone())
        if where == "exp_avg":
            moment = torch.ones_like(lazy().clone())
            optimizer.state[param] = {"step": torch.tensor(6.0), "exp_avg": view(), "exp_avg_sq": moment}
        return param, optimizer

    param, optimizer = prepared(lazy)
    expected, other = prepared(lambda: lazy().clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg())
    other.step()
    before = param.detach().clone()
    try:
        optimizer.step()
    except (RuntimeError, ValueError):
        expected = before
    assert torch.equal(param, expected)


def test_freed_memory_is_a_clear_error() -> None:
    param, optimizer = one()
    optimizer.step()
    freed = torch.ones(3)
    param.data = freed
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="parameter 0 of group 0 is exported without data"):
        optimizer.step()
    assert optimizer.state[param]["step"].item() == 1
    param.data = torch.ones(3)
    optimizer.step()
    assert optimizer.state[param]["step"].item() == 2


def test_a_gradient_of_zeros_without_memory_is_stepped_or_refused() -> None:
    param, optimizer = one()
    optimizer.step()
    before = everything(optimizer)["params"], everything(optimizer)["state"]
    param.grad = torch._efficientzerotensor((3,))
    try:
        optimizer.step()
    except (RuntimeError, ValueError):
        assert (everything(optimizer)["params"], everything(optimizer)["state"]) == before
    else:
        assert optimizer.state[param]["step"].item() == 2


# ---- the optimizer holds no pointer


def replace_all(optimizer: Any) -> None:
    for param in params_of(optimizer):
        param.data = param.data.clone(memory_format=torch.preserve_format)


def share_memory(optimizer: Any) -> None:
    for param in params_of(optimizer):
        param.data.share_memory_()


def take_other_storage(optimizer: Any) -> None:
    for param in params_of(optimizer):
        param.data = torch.cat([param.detach().reshape(-1), torch.zeros(1, dtype=param.dtype)])[:-1].view(param.shape)


@pytest.mark.parametrize("kind", ["plain", "complex"])
@pytest.mark.parametrize("move", [replace_all, share_memory, take_other_storage])
def test_parameters_may_move_in_memory_between_the_steps(move: Callable[[Any], None], kind: str) -> None:
    moving, staying = make(kind), make(kind)
    for seed in range(7):
        move(moving)
        step(moving, seed)
        step(staying, seed)
    assert bits_of(moving)["params"] == bits_of(staying)["params"]


def test_a_resized_parameter_is_an_error_until_its_state_fits_again() -> None:
    param, optimizer = one(size=4)
    optimizer.step()
    for size in (2, 8, 0):
        param.data = torch.ones(size)
        param.grad = torch.ones(size)
        before = everything(optimizer)
        with pytest.raises(ValueError, match="parameter 0 of group 0 has shape"):
            optimizer.step()
        assert everything(optimizer) == before
    optimizer.state.clear()
    param.data, param.grad = torch.ones(8), torch.ones(8)
    optimizer.step()
    assert param.shape == optimizer.state[param]["exp_avg"].shape == (8,)


def trained_module(steps: int = 7) -> tuple[nn.Module, RAdam]:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        for i, param in enumerate(module.parameters()):
            param.copy_(random(i, param.shape, torch.float32))
    optimizer = RAdam(module.parameters(), lr=0.1)
    step(optimizer, *range(steps))
    return module, optimizer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_module_made_narrower_goes_on_with_its_moments(dtype: torch.dtype) -> None:
    module, optimizer = trained_module()
    reference = copy.deepcopy(optimizer)
    moments = [reference.state[param]["exp_avg"].clone() for param in params_of(reference)]
    module.to(dtype)
    narrow = RAdam([nn.Parameter(param.detach().clone()) for param in module.parameters()], lr=0.1)
    narrow.load_state_dict(reference.state_dict())
    assert all(torch.equal(narrow.state[p]["exp_avg"], m) for p, m in zip(params_of(narrow), moments, strict=True))
    for seed in (7, 8):
        step(optimizer, seed)
        step(narrow, seed)
    assert {param.dtype for param in module.parameters()} == {dtype}
    assert bits_of(optimizer) == bits_of(narrow)


def test_a_module_made_wider_is_a_clear_error_until_its_state_is_loaded_anew() -> None:
    module, optimizer = trained_module()
    module.double()
    before = everything(optimizer)
    with pytest.raises(ValueError, match="exp_avg of parameter 0 of group 0 has dtype float32"):
        optimizer.step()
    assert everything(optimizer) == before
    optimizer.load_state_dict(optimizer.state_dict())
    step(optimizer, 7)
    assert {entry["exp_avg"].dtype for entry in optimizer.state.values()} == {torch.float64}
    assert {entry["step"].item() for entry in optimizer.state.values()} == {8}


def test_a_module_sent_away_leaves_the_optimizer_with_the_old_parameters() -> None:
    module, optimizer = trained_module()
    old = list(module.parameters())
    module.to("meta")  # makes new parameters, as in torch
    optimizer.step()
    assert [param.device.type for param in (*old, *module.parameters())] == ["cpu"] * 2 + ["meta"] * 2
    assert {entry["step"].item() for entry in optimizer.state.values()} == {8}


def test_a_parameter_swapped_for_one_without_values_is_an_error_that_changes_nothing() -> None:
    module, optimizer = trained_module()
    new = nn.Parameter(torch.ones_like(module.weight, device="meta"))
    new.grad = torch.ones_like(new)
    torch.utils.swap_tensors(module.weight, new)
    before = everything(optimizer)
    with pytest.raises((RuntimeError, ValueError)):
        optimizer.step()
    assert everything(optimizer) == before


# ---- version counters


@both
@kinds
@pytest.mark.parametrize("held", ["param", "view", *MOMENTS])
def test_a_backward_through_what_a_step_has_changed_raises_as_with_torch(held: str, kind: str, cls: Any) -> None:
    optimizer = make(kind, cls)
    step(optimizer, 0)
    for param in params_of(optimizer):
        if param.numel() == 0:
            continue
        state = optimizer.state[param]
        saved = {"param": param, "view": param.detach().view(param.shape), **state}[held].detach()
        weight = torch.ones_like(saved).requires_grad_()
        loss = (weight * saved).abs().sum()
        version = saved._version
        step(optimizer, 1)
        assert saved._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@kinds
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_backward_after_a_step_that_did_not_happen_works(nonfinite: str, kind: str) -> None:
    optimizer = make(kind, nonfinite=nonfinite)
    step(optimizer, 0)
    weight, tensors = torch.ones((), requires_grad=True), []
    for param in params_of(optimizer):
        tensors += [param.detach(), *(optimizer.state[param][key] for key in MOMENTS)]
    loss = sum((weight * tensor).abs().sum().double() for tensor in tensors)
    with pytest.raises(FloatingPointError) if nonfinite == "raise" else contextlib.nullcontext():
        set_gradients(optimizer, 1)
        last(optimizer).grad.fill_(math.nan)
        optimizer.step()
    with pytest.raises(ValueError, match="lr"), with_setting("lr", -1.0)(optimizer):
        step(optimizer, 2)
    optimizer.param_groups[-1]["lr"] = 0.03
    loss.backward()
    assert weight.grad is not None


@kinds
def test_gradients_and_parameters_without_one_keep_bits_and_versions(kind: str) -> None:
    optimizer = make(kind, maximize=True, weight_decay=0.3)
    set_gradients(optimizer, 0)
    without = params_of(optimizer)[1]
    without.grad = None
    kept = [(p.grad, p.grad._version, tensor_bits(p.grad)) for p in params_of(optimizer) if p.grad is not None]
    before = tensor_bits(without), without._version
    optimizer.step()
    now = [(p.grad, p.grad._version, tensor_bits(p.grad)) for p in params_of(optimizer) if p.grad is not None]
    assert all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(now, kept, strict=True))
    assert (tensor_bits(without), without._version) == before
    assert without not in optimizer.state


# ---- inference tensors


def raised(work: Callable[[], object]) -> tuple[type[BaseException], str] | None:
    try:
        work()
    except Exception as error:
        return type(error), str(error)
    return None


def inference_params(cls: Any) -> Any:
    with torch.inference_mode():
        optimizer = cls([torch.ones(3), torch.ones(2)], lr=0.1)
        for param in params_of(optimizer):
            param.grad = torch.ones_like(param)
    return optimizer


def inference_moments(cls: Any) -> Any:
    optimizer = cls([nn.Parameter(torch.ones(3))], lr=0.1)
    with torch.inference_mode():
        step(optimizer, 0)  # makes the state
    return optimizer


def loaded_inference_params(cls: Any) -> Any:
    optimizer = inference_params(cls)
    with torch.inference_mode():
        optimizer.step()
        return copy.deepcopy(optimizer)


@pytest.mark.parametrize("made", [inference_params, inference_moments, loaded_inference_params])
def test_inference_tensors_are_stepped_in_inference_mode_alone_as_in_torch(made: Callable[[Any], Any]) -> None:
    ours, theirs = made(RAdam), made(torch.optim.RAdam)
    for optimizer in (ours, theirs):
        for param in params_of(optimizer):
            with torch.inference_mode(param.is_inference()):
                param.grad = torch.ones_like(param)
    before = everything(ours)
    expected = raised(theirs.step)
    assert expected is not None
    assert "Inplace update to inference tensor" in expected[1]
    assert raised(ours.step) == expected
    assert everything(ours) == before
    fresh = made(torch.optim.RAdam)  # torch's error came in the middle
    with torch.inference_mode():
        for optimizer in (ours, fresh):
            step(optimizer, 3)
    for param, other in zip(params_of(ours), params_of(fresh), strict=True):
        assert_near(param, other, "param")


def test_inference_gradients_step_normal_parameters() -> None:
    (param, ours), (other, theirs) = one(), one()
    with torch.inference_mode():
        param.grad = torch.ones(3)
    ours.step()
    theirs.step()
    assert torch.equal(param, other)


# ---- tensors without values


@both
@pytest.mark.parametrize("inside", [(True, True), (True, False), (False, False)], ids=str)
def test_fake_parameters_are_stepped_in_and_out_of_their_mode(inside: tuple[bool, ...], cls: Any) -> None:
    torch.set_warn_always(True)  # a look at the memory behind one is a warning, and here an error
    try:
        with FakeTensorMode() as mode:
            param = nn.Parameter(torch.ones(3))
            param.grad = torch.ones(3)
        optimizer = cls([param], lr=0.1)
        for is_inside in inside:
            with mode if is_inside else contextlib.nullcontext(), warnings.catch_warnings():
                warnings.simplefilter("error")
                version = param._version
                optimizer.step()
                assert param._version > version
        entry = optimizer.state[param]
        assert {key: type(entry[key]) for key in MOMENTS} == dict.fromkeys(MOMENTS, FakeTensor)
        assert [tuple(entry[key].shape) for key in ("step", *MOMENTS)] == [(), (3,), (3,)]
    finally:
        torch.set_warn_always(False)


@kinds
@pytest.mark.parametrize("steps", [0, 7])
def test_a_fake_step_of_real_parameters_is_refused_as_in_torch(steps: int, kind: str) -> None:
    optimizer = make(kind)
    step(optimizer, *range(steps))
    set_gradients(optimizer, 50)
    before = everything(optimizer)
    with FakeTensorMode(), pytest.raises(AssertionError, match="Please convert all Tensors to FakeTensors first"):
        optimizer.step()
    assert everything(optimizer) == before


@kinds
@pytest.mark.parametrize("steps", [0, 7])
def test_a_fake_step_that_takes_real_parameters_never_writes_them(steps: int, kind: str) -> None:
    optimizer = make(kind)
    step(optimizer, *range(steps))
    set_gradients(optimizer, 50)
    before = bits_of(optimizer)["params"]
    state = {id(p): [tensor_bits(x) for x in entry.values()] for p, entry in optimizer.state.items()}
    with contextlib.suppress(Exception), FakeTensorMode(allow_non_fake_inputs=True):
        optimizer.step()
    assert bits_of(optimizer)["params"] == before
    assert {
        id(p): [tensor_bits(x) for x in optimizer.state[p].values()] for p in optimizer.state if id(p) in state
    } == state
    optimizer.state.clear() if not steps else None
    step(optimizer, 51)


@both
@pytest.mark.parametrize("keywords", [{}, {"weight_decay": 0.1}, {"maximize": True, "foreach": True}], ids=str)
def test_parameters_on_meta_are_stepped_by_no_operation_as_in_torch(keywords: dict[str, Any], cls: Any) -> None:
    param, real = nn.Parameter(torch.ones(3, 2, device="meta")), nn.Parameter(torch.ones(3))
    optimizer = cls([param, real], lr=0.1, **keywords)
    for seed in range(7):
        step(optimizer, seed)
    entry = optimizer.state[param]
    described = {key: (x.dtype, tuple(x.shape), x.device.type) for key, x in entry.items()}
    moment = (torch.float32, (3, 2), "meta")
    assert described == {"step": (torch.float32, (), "cpu"), "exp_avg": moment, "exp_avg_sq": moment}
    assert entry["step"].item() == optimizer.state[real]["step"].item() == 7
    assert not torch.equal(real, torch.ones(3))


# ---- transforms


def functional_step(cls: Any, steps: int = 2) -> Callable[[Tensor, Tensor], Tensor]:
    kept = []  # a graph that was traced steps with the optimizer that it saw

    def work(param: Tensor, gradient: Tensor) -> Tensor:
        param = param.clone()
        param.grad = gradient
        optimizer = cls([param], lr=0.1)
        kept.append(optimizer)
        for _ in range(steps):
            optimizer.step()
        return param

    return work


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "none": lambda work: work,
    "functionalize": functionalize,
    "functionalize in Python": dispatch_functionalize,
    "vmap": vmap,
    "vmap of vmap": lambda work: vmap(vmap(work)),
    "jvp": lambda work: lambda *inputs: jvp(work, inputs, inputs),
    "vmap of functionalize": lambda work: vmap(functionalize(work)),
    **{
        f"make_fx {mode}": lambda work, mode=mode: lambda *inputs: make_fx(work, tracing_mode=mode)(*inputs)(*inputs)
        for mode in ("real", "fake", "symbolic")
    },
}


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's own operations under vmap
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own use of it, for jvp
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_step_under_a_transform_does_what_torch_s_does(transform: Callable[..., Any]) -> None:
    inputs = random(1, (2, 4, 3), torch.float32), random(2, (2, 4, 3), torch.float32)
    kept = [tensor_bits(x) for x in inputs]
    steps = [functional_step(cls) for cls in CLASSES.values()]
    got, expected = (transform(step)(*inputs) for step in steps)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, expected)), strict=True):
        assert_near(a, b, "the result")
    assert [tensor_bits(x) for x in inputs] == kept


def test_a_functionalized_step_can_be_traced() -> None:
    first, second = ([random(seed + i, (3,), torch.float32) for i in range(2)] for seed in (1, 3))
    steps = [functional_step(cls, 1) for cls in CLASSES.values()]
    got, expected = (make_fx(dispatch_functionalize(step))(*first)(*second) for step in steps)
    assert_near(got, expected, "the result")


@pytest.mark.parametrize("trace", [False, True])
def test_a_transform_that_cannot_take_the_step_says_so(trace: bool) -> None:
    """Where torch raises, so do we; functorch's own functionalize takes no operator that is not PyTorch's."""
    inputs = random(1, (3,), torch.float32), random(2, (3,), torch.float32)
    if trace:
        with pytest.raises(RuntimeError, match="radam::step_"):
            make_fx(functionalize(functional_step(RAdam)))(*inputs)
    else:
        for cls in CLASSES.values():
            with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
                grad(lambda p, g, cls=cls: functional_step(cls)(p, g).sum())(*inputs)


@kinds
def test_a_transform_around_a_step_of_outer_parameters_steps_once_or_not_at_all(kind: str) -> None:
    optimizer, undisturbed = make(kind), make(kind)
    for each in (optimizer, undisturbed):
        step(each, 0)
        set_gradients(each, 1)

    def work(x: Tensor) -> Tensor:
        optimizer.step()
        return x.sum()

    before = everything(optimizer)
    with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
        grad(work)(torch.ones(3))
    assert everything(optimizer) == before
    vmap(work)(torch.ones(2, 3))
    undisturbed.step()
    assert bits_of(optimizer) == bits_of(undisturbed)


def test_functional_tensors_never_show_the_kernel_their_memory() -> None:
    def result(cls: Any, enabled: bool) -> tuple[Tensor, Tensor]:
        base = random(1, (3,), torch.float32)
        param, gradient = (torch._to_functional_tensor(x) for x in (base, random(2, (3,), torch.float32)))
        torch._enable_functionalization(reapply_views=True) if enabled else None
        try:
            param.grad = gradient
            optimizer = cls([param], lr=0.1)
            optimizer.step()
            optimizer.step()
            torch._sync(param)
            return torch._from_functional_tensor(param), base
        finally:
            torch._disable_functionalization() if enabled else None

    for enabled in (False, True):
        (got, base), (expected, other) = (result(cls, enabled) for cls in CLASSES.values())
        assert_near(got, expected, "the result")
        assert tensor_bits(base) == tensor_bits(other) == tensor_bits(random(1, (3,), torch.float32))


# ---- modes


class Watch(TorchDispatchMode):
    """Writes down the operators that go by."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@kinds
def test_a_dispatch_mode_sees_the_step_and_changes_no_bit(kind: str) -> None:
    watched, unwatched = make(kind), make(kind)
    for seed in range(7):
        set_gradients(watched, seed)
        with Watch() as watch:
            watched.step()
        step(unwatched, seed)
        assert "radam.step_.default" in watch.seen
    if kind == "wrapped":  # the operator is handed what is inside, which the kernel reaches
        assert_close(watched, unwatched)
    else:
        assert bits_of(watched) == bits_of(unwatched)


@kinds
@pytest.mark.parametrize("steps", [0, 7])
def test_a_step_that_fails_under_a_dispatch_mode_changes_nothing(steps: int, kind: str) -> None:
    optimizer = make(kind)
    step(optimizer, *range(steps))
    set_gradients(optimizer, 50)
    with with_gradient(lambda p: torch.ones(7))(optimizer):
        before = everything(optimizer)
        with Watch(), pytest.raises((ValueError, RuntimeError)):
            optimizer.step()
        assert everything(optimizer) == before


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method:DeprecationWarning")  # the compiler's own use of it
def test_a_compiled_step_that_raises_leaves_autograd_on() -> None:
    param, optimizer = one(nonfinite="raise")
    compiled = torch.compile(optimizer.step, backend="eager", fullgraph=True)
    compiled()
    param.grad = torch.full((3,), math.nan)
    kept = [tensor_bits(x) for x in (param, *optimizer.state[param].values())]
    try:
        with pytest.raises(FloatingPointError):
            compiled()
        assert [tensor_bits(x) for x in (param, *optimizer.state[param].values())] == kept
        assert torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


def test_the_default_device_does_not_matter() -> None:
    inside, outside = make(), make()
    for seed in range(3):
        set_gradients(inside, seed)
        with torch.device("meta"):
            inside.step()
        step(outside, seed)
    with torch.device("meta"):
        inside.load_state_dict(inside.state_dict())
    assert bits_of(inside) == bits_of(outside)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@kinds
def test_the_gradient_mode_around_a_step_does_not_matter(mode: Callable[[], Any], kind: str) -> None:
    inside, outside = make(kind), make(kind)
    step(outside, 0)
    step(inside, 0)
    for seed in range(1, 7):
        set_gradients(inside, seed)
        with mode():
            inside.step()
        step(outside, seed)
    assert bits_of(inside) == bits_of(outside)
    assert not any(x.requires_grad for entry in inside.state.values() for x in entry.values())


# ---- gradients that are not finite


def spoil_gradient(optimizer: Any, index: int, value: float) -> None:
    gradient = params_of(optimizer)[index].grad
    gradient = gradient.inner if isinstance(gradient, Wrapped) else gradient
    (torch.view_as_real(gradient) if gradient.is_complex() else gradient).view(-1)[-1] = value


@kinds
@pytest.mark.parametrize("watched", [False, True], ids=["", "under a mode"])
@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.parametrize(("index", "value"), [(0, math.nan), (0, math.inf), (-1, math.nan), (-1, -math.inf)])
def test_a_gradient_that_is_not_finite_skips_or_raises_and_changes_nothing(
    value: float, index: int, steps: int, watched: bool, kind: str
) -> None:
    optimizer, undisturbed = make(kind, nonfinite="skip"), make(kind)
    for each in (optimizer, undisturbed):
        step(each, *range(steps))
    set_gradients(optimizer, 50)
    spoil_gradient(optimizer, index, value)
    before = everything(optimizer)
    with Watch() if watched else contextlib.nullcontext():
        optimizer.step()
    assert optimizer.skipped_steps == 1
    assert unskipped(everything(optimizer)) == unskipped(before)
    optimizer.nonfinite = "raise"
    before = everything(optimizer)
    with Watch() if watched else contextlib.nullcontext(), pytest.raises(FloatingPointError, match="gradient of param"):
        optimizer.step()
    assert everything(optimizer) == before
    for each in (optimizer, undisturbed):
        step(each, 51, 52)
    assert bits_of(optimizer) == bits_of(undisturbed)


def test_parameters_without_values_have_finite_gradients() -> None:
    param, real = nn.Parameter(torch.ones(3, device="meta")), nn.Parameter(torch.ones(3))
    optimizer = RAdam([param, real], nonfinite="skip")
    step(optimizer, 0)
    assert optimizer.skipped_steps == 0
    assert {entry["step"].item() for entry in optimizer.state.values()} == {1}
    set_gradients(optimizer, 1)
    spoil_gradient(optimizer, 1, math.nan)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert {entry["step"].item() for entry in optimizer.state.values()} == {1}


# ---- the same parameter twice


def twice(cls: Any, **keywords: Any) -> Any:
    param, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate parameters")
        return cls([param, other, param], lr=0.1, **keywords)


def test_a_parameter_that_is_twice_in_a_group_takes_two_steps_as_in_torch() -> None:
    ours, theirs = twice(RAdam), twice(torch.optim.RAdam)
    for seed in range(7):
        step(ours, seed)
        step(theirs, seed)
    assert [entry["step"].item() for entry in ours.state.values()] == [14, 7]
    for a, b in zip(params_of(ours), params_of(theirs), strict=True):
        assert_near(a, b, "param")
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert [entry["step"].item() for entry in ours.state.values()] == [14, 7]


def test_a_parameter_that_is_twice_in_a_group_counts_on_beyond_float32() -> None:
    optimizer = twice(RAdam)
    param = params_of(optimizer)[0]
    zeros = {key: torch.zeros(3) for key in MOMENTS}
    optimizer.state[param] = {"step": torch.tensor(2.0**24 - 1), **zeros}
    step(optimizer, 0)
    assert optimizer.state[param]["step"].item() == 2**24 + 1


def test_a_parameter_that_is_twice_in_a_group_is_skipped_twice_or_not_at_all() -> None:
    optimizer = twice(RAdam, nonfinite="skip")
    step(optimizer, 0)
    set_gradients(optimizer, 1)
    spoil_gradient(optimizer, 1, math.nan)
    before = everything(optimizer)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert unskipped(everything(optimizer)) == unskipped(before)


# ---- one step at a time


def test_one_optimizer_in_many_threads_is_an_error_or_serial_and_never_torn() -> None:
    radam.set_num_threads(2)
    optimizer, serial = (RAdam([nn.Parameter(torch.zeros(n)) for n in (200_000, 9)], lr=0.1) for _ in range(2))
    for each in (optimizer, serial):
        set_gradients(each, 1)  # the same ones in all steps, so that their order does not matter

    def work(index: int) -> tuple[int, set[str]]:
        done, errors = 0, set()
        for _ in range(12):
            try:
                optimizer.step()
                done += 1
            except RuntimeError as error:
                errors.add(str(error))
        return done, errors

    results = in_threads(4, work)
    assert all(message.startswith(TURN) for _, errors in results for message in errors)
    done = sum(count for count, _ in results)
    assert done > 0
    for _ in range(done):
        serial.step()
    assert bits_of(optimizer) == bits_of(serial)


def run(seed: int, steps: int = 4, kind: str = "plain") -> dict[str, Any]:
    optimizer = make(kind)
    large = nn.Parameter(random(seed, (70_001,), torch.float32))
    optimizer.add_param_group({"params": [large]})
    step(optimizer, *range(seed, seed + steps))
    return bits_of(optimizer)


@kinds
def test_different_optimizers_in_parallel_threads_have_the_bits_of_one_alone(kind: str) -> None:
    expected = [run(seed, kind=kind) for seed in range(5)]
    assert in_threads(5, lambda seed: run(seed, kind=kind)) == expected


@forks
@pytest.mark.parametrize("kind", ["plain", "complex"])
def test_a_child_forked_after_a_step_goes_on_with_the_same_bits(kind: str) -> None:
    radam.set_num_threads(2)
    optimizer = make(kind)
    optimizer.add_param_group({"params": [nn.Parameter(random(1, (70_001,), torch.float32))]})
    step(optimizer, 0, 1)
    set_gradients(optimizer, 2)
    before = bits_of(optimizer)

    def on() -> str:
        for _ in range(5):
            optimizer.step()
        return str(hash(repr(bits_of(optimizer))))

    answer = in_child(on)
    assert bits_of(optimizer) == before
    assert on() == answer


@forks
def test_a_child_forked_in_a_closure_can_step() -> None:
    param, optimizer = one()
    answers = []

    def closure() -> None:
        def on() -> str:
            optimizer.step()
            return str(optimizer.state[param]["step"].item())

        answers.append(in_child(on))

    optimizer.step(closure)
    assert answers == ["1.0"]
    assert optimizer.state[param]["step"].item() == 1


@both
def test_a_closure_and_hooks_may_step_save_and_load(cls: Any) -> None:
    optimizer, plain = make(cls=cls), make(cls=cls)
    for each in (optimizer, plain):
        set_gradients(each, 0)

    def closure() -> float:
        optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        return 3.0

    assert optimizer.step(closure) == 3.0
    plain.step()
    plain.step()
    assert bits_of(optimizer) == bits_of(plain)

    inner: list[Any] = []

    def hook(hooked: Any, args: Any, keywords: Any) -> None:
        if not inner:
            inner.append(hooked)
            hooked.step()

    for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
        inner.clear()
        with register(hook):
            optimizer.step()
        plain.step()
        plain.step()
    assert bits_of(optimizer) == bits_of(plain)


@pytest.mark.parametrize("steps", [0, 7])
def test_a_step_within_a_step_is_a_clear_error_and_the_outer_one_goes_on(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, plain = make("wrapped"), make("wrapped")
    for each in (optimizer, plain):
        step(each, *range(steps))
        set_gradients(each, 50)
    saved, said = optimizer.state_dict(), []

    def intrude() -> None:
        monkeypatch.setattr(Wrapped, "watcher", None)  # an inner step that does run must end
        for work in (optimizer.step, lambda: optimizer.load_state_dict(saved)):
            said.append(raised(work) or "it worked")
        monkeypatch.setattr(Wrapped, "watcher", staticmethod(intrude))

    monkeypatch.setattr(Wrapped, "watcher", staticmethod(intrude))
    optimizer.step()
    monkeypatch.undo()
    plain.step()
    assert said
    assert all(outcome[0] is RuntimeError and outcome[1].startswith(TURN) for outcome in said)
    assert bits_of(optimizer) == bits_of(plain)


def test_another_optimizer_may_step_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, plain, other = make("wrapped"), make("wrapped"), make()
    for each in (optimizer, plain, other):
        set_gradients(each, 0)
    taken: list[int] = []

    def intrude() -> None:
        other.step()
        taken.append(1)

    monkeypatch.setattr(Wrapped, "watcher", staticmethod(intrude))
    optimizer.step()
    monkeypatch.undo()
    plain.step()
    assert bits_of(optimizer) == bits_of(plain)
    assert {entry["step"].item() for entry in other.state.values()} == {len(taken)}


# ---- nothing is left behind


def failing(optimizer: Any) -> None:
    optimizer.param_groups[-1]["lr"] = -1.0
    with contextlib.suppress(ValueError):
        optimizer.step()
    optimizer.param_groups[-1]["lr"] = 0.1


def skipped(optimizer: Any) -> None:
    kept, params_of(optimizer)[-1].grad = params_of(optimizer)[-1].grad, torch.full((6,), math.nan)
    optimizer.nonfinite = "skip"
    optimizer.step()
    params_of(optimizer)[-1].grad, optimizer.nonfinite = kept, "propagate"


def loading(optimizer: Any) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


ROUNDS: dict[str, tuple[Callable[[Any], None], str, int]] = {
    "steps": (lambda optimizer: optimizer.step(), "plain", 1000),
    "steps of complex parameters": (lambda optimizer: optimizer.step(), "complex", 1000),
    "steps by operations": (lambda optimizer: optimizer.step(), "wrapped", 250),
    "failed steps": (failing, "plain", 300),
    "first steps that fail": (lambda optimizer: (optimizer.state.clear(), failing(optimizer)), "complex", 250),
    "skipped steps": (skipped, "complex", 300),
    "loads": (loading, "plain", 250),
}


@pytest.mark.parametrize(("work", "kind", "rounds"), ROUNDS.values(), ids=ROUNDS)
def test_memory_stays_flat(work: Callable[[Any], None], kind: str, rounds: int) -> None:
    optimizer = make(kind)
    step(optimizer, 0)

    def repeat(times: int) -> None:
        for _ in range(times):
            work(optimizer)

    held = (params_of(optimizer)[-1], params_of(optimizer)[-1].grad, optimizer.param_groups[0], optimizer)

    def counted() -> int:
        garbage.append(gc.collect())  # it also empties the interpreter's lists of free tuples, which else only fill up
        references.append([sys.getrefcount(x) for x in held])
        return sys.getallocatedblocks()

    garbage: list[int] = []
    references: list[list[int]] = []
    growths: list[int] = []
    repeat(20)
    gc.collect()
    gc.freeze()  # what was there before is not looked through again
    gc.disable()
    try:
        while not growths or (growths[-1] >= rounds // 2 and len(growths) < 4):  # a leak is there every time
            blocks = counted()
            repeat(rounds)
            growths.append(counted() - blocks)
    finally:
        gc.enable()
        gc.unfreeze()
    assert min(growths) < rounds // 2
    assert references == references[:1] * len(references)
    assert set(garbage[1:]) == {0}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs to know the memory in use now")
def test_native_memory_stays_flat() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    param = nn.Parameter(torch.ones(1000, 2000)[:, ::2])  # copied out and back, 4 MB a buffer
    phases = nn.Parameter(torch.ones(500_000, dtype=torch.complex64))
    optimizer = RAdam([param, phases])
    set_gradients(optimizer, 0)
    for _ in range(3):
        optimizer.step()
    before = resident()
    for _ in range(25):
        optimizer.step()
        failing(optimizer)
    assert resident() - before < 40e6


@kinds
def test_an_optimizer_dies_with_its_last_reference(kind: str) -> None:
    gc.disable()  # what only the collector would free is not freed in time
    try:
        optimizer = make(kind, nonfinite="skip")
        step(optimizer, 0, 1)
        failing(optimizer)
        step(optimizer, 2)
        optimizer.load_state_dict(optimizer.state_dict())
        step(optimizer, 3)
        watched = [weakref.ref(optimizer)]
        watched += [weakref.ref(x) for entry in optimizer.state.values() for x in entry.values()]
        watched += [weakref.ref(param) for param in params_of(optimizer)]
        del optimizer
        assert [ref() for ref in watched] == [None] * len(watched)
    finally:
        gc.enable()


def test_a_parameter_dies_with_its_optimizer_and_its_last_reference() -> None:
    param, optimizer = one()
    optimizer.step()
    watched = weakref.ref(param)
    optimizer.param_groups[0]["params"].clear()
    optimizer.state.clear()
    optimizer.step()
    del param
    assert watched() is None


# ---- what reviews found


def test_a_list_of_params_that_shrinks_while_it_is_read_does_no_harm() -> None:
    class Shrinking(nn.Parameter):
        @property
        def grad(self) -> Tensor:
            del group["params"][1:]
            return torch.ones(3)

    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = RAdam([first, second])
    group = optimizer.param_groups[0]
    group["params"][0] = Shrinking(torch.ones(3))
    with contextlib.suppress(Exception):
        optimizer.step()
    group["params"][:] = [first, second]
    for param in (first, second):
        param.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(first, second)


def test_counts_that_are_one_python_number_are_counts_of_their_own() -> None:
    optimizer = RAdam([nn.Parameter(torch.ones(3)) for _ in range(3)])
    step(optimizer, 0)
    for param in params_of(optimizer):
        optimizer.state[param]["step"] = 5
    for seed in (1, 2):
        step(optimizer, seed)
    assert [optimizer.state[param]["step"].item() for param in params_of(optimizer)] == [7.0] * 3


def test_a_wrapped_parameter_twice_in_a_group_is_stepped_twice() -> None:
    both = nn.Parameter(Wrapped(torch.ones(4))), nn.Parameter(torch.ones(4))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        wrapped, plain = (RAdam([param, param], lr=0.1) for param in both)
    for seed in range(5):
        for optimizer in (wrapped, plain):
            optimizer.param_groups[0]["params"][0].grad = None
        gradient = random(seed, (4,), torch.float32)
        plain.param_groups[0]["params"][0].grad = gradient
        wrapped.param_groups[0]["params"][0].grad = Wrapped(gradient)
        plain.step()
        wrapped.step()
    (ours,), (expected,) = ({id(p): p for p in params_of(o)}.values() for o in (wrapped, plain))
    assert wrapped.state[ours]["step"] == plain.state[expected]["step"] == 10
    assert_near(ours.elem if hasattr(ours, "elem") else ours, expected, "the parameter")


def test_what_an_operation_would_refuse_is_refused_before_anything_is_stepped() -> None:
    leaf = torch.ones(3, requires_grad=True)
    good = torch.ones(3, requires_grad=True).clone()
    optimizer = RAdam([good, leaf.view(3)], differentiable=True)
    for param in params_of(optimizer):
        param.retain_grad()
        param.grad = torch.ones(3)
    before = tensor_bits(good.detach())
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        optimizer.step()
    assert tensor_bits(good.detach()) == before


def test_counts_go_on_beyond_float32_while_a_mode_watches() -> None:
    optimizer = RAdam([nn.Parameter(torch.ones(3))])
    step(optimizer, 0)
    (param,) = params_of(optimizer)
    optimizer.state[param]["step"] = torch.tensor(2.0**24 - 1)
    with FlopCounterMode(display=False):
        for seed in (1, 2, 3):
            step(optimizer, seed)
    assert optimizer.state[param]["step"].item() == 2**24 + 2


def test_states_that_are_taken_away_are_freed_by_the_next_step() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(4)]
    optimizer = RAdam(params)
    step(optimizer, 0)
    kept = [weakref.ref(optimizer.state[param]["exp_avg"]) for param in params]
    for param in params[1:]:
        del optimizer.state[param]
    optimizer.param_groups[0]["params"] = params[:1]
    step(optimizer, 1)
    gc.collect()
    assert [ref() is not None for ref in kept] == [True, False, False, False]


@pytest.mark.parametrize("key", ["maximize", "decoupled_weight_decay"])
def test_a_tensor_flag_is_read_at_every_step(key: str) -> None:
    results = []
    for cls in (RAdam, torch.optim.RAdam):
        param, flag = nn.Parameter(torch.ones(3)), torch.tensor(True)
        optimizer = cls([param], lr=0.1, weight_decay=0.5)
        optimizer.param_groups[0][key] = flag
        for t in range(8):
            if t == 3:
                flag.fill_(False)
            param.grad = torch.ones(3)
            optimizer.step()
        results.append(param)
    assert_near(*results, "the parameter")


@pytest.mark.parametrize("container", [tuple, nn.ParameterList])
def test_params_may_be_held_in_any_sequence(container: Any) -> None:
    results = []
    for cls in (RAdam, torch.optim.RAdam):
        params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
        optimizer = cls(params, lr=0.1)
        optimizer.param_groups[0]["params"] = container(params)
        for seed in range(7):
            step(optimizer, seed)
        results.append(params)
    for ours, expected in zip(*results):
        assert_near(ours, expected, "the parameter")


def test_a_state_that_is_loaded_in_inference_mode_steps_outside_of_it() -> None:
    optimizer = RAdam([nn.Parameter(torch.ones(3))])
    step(optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    with torch.inference_mode():
        optimizer.load_state_dict(saved)
    step(optimizer, 1)
    assert optimizer.state[params_of(optimizer)[0]]["step"] == 2


@pytest.mark.parametrize("steps", [0, 3])
def test_a_text_is_no_learning_rate(steps: int) -> None:
    optimizer = RAdam([nn.Parameter(torch.ones(3))])
    for seed in range(steps):
        step(optimizer, seed)
    optimizer.param_groups[0]["lr"] = "0.01"
    with pytest.raises(TypeError, match="lr must be a number"):
        step(optimizer, 5)
