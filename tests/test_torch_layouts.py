"""Tensors of every layout, dtype and class that torch.optim.RAdam takes, and what neither takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from radam.torch import RAdam
from test_torch_like_torch import assert_alike, assert_close, assert_same_state, follow, outcome, pair, params_of

STEPS = 12  # both sides of the first rectified step
SHAPE = (2, 3, 4, 5)
FULL = {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


# ---- memory layouts

# Each makes a buffer, and a view of SHAPE into a buffer of that kind.
Layout = tuple[tuple[int, ...], Callable[[Tensor], Tensor]]
LAYOUTS: dict[str, Layout] = {
    "contiguous": (SHAPE, lambda b: b),
    "channels_last": ((2, 4, 5, 3), lambda b: b.permute(0, 3, 1, 2)),
    "transposed": ((5, 4, 3, 2), lambda b: b.permute(3, 2, 1, 0)),
    "columns": ((2, 3, 4, 9), lambda b: b[..., 2:7]),
    "every other row": ((4, 3, 4, 5), lambda b: b[::2]),
    "steps in every dimension": ((4, 9, 8, 15), lambda b: b[1::2, 1::3, ::2, 2::3]),
    "transposed slice": ((6, 4, 3, 2), lambda b: b[1:].permute(3, 2, 1, 0)),
    "channels_last slice": ((2, 4, 5, 7), lambda b: b[..., 1:6:2].permute(0, 3, 1, 2)),
    "off by one element": ((121,), lambda b: b[1:].view(SHAPE)),
}
GRADIENT_LAYOUTS: dict[str, Layout] = {
    **LAYOUTS,
    "expanded": ((2, 1, 4, 1), lambda b: b.expand(SHAPE)),
    "one number": ((), lambda b: b.expand(SHAPE)),
    "overlapping windows": ((2, 3, 20), lambda b: b.unfold(2, 5, 5).contiguous().as_strided(SHAPE, (30, 10, 2, 1))),
    "lazily negated": (SHAPE, lambda b: torch.complex(torch.zeros_like(b), b).conj().imag),
}


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gradient", GRADIENT_LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_parameter_and_gradient_steps_as_in_torch(layout: str, gradient: str) -> None:
    size, view = LAYOUTS[layout]
    wide, narrow = drawn(size, torch.float64, 5), drawn(size, torch.float32, 6)
    buffers: list[Tensor] = []

    def make(cls: Any) -> Any:
        made = [wide.clone(), narrow.clone()]
        buffers.extend(made)
        return cls([view(buffer).requires_grad_() for buffer in made], **FULL)

    def draw(param: Tensor, generator: torch.Generator, t: int) -> Tensor:
        grad_size, grad_view = GRADIENT_LAYOUTS[gradient]
        grad = grad_view(torch.randn(grad_size, dtype=param.dtype, generator=generator))
        assert grad.shape == param.shape
        return grad

    ours, _ = follow(make, draw=draw, steps=STEPS)
    inside = torch.zeros(size, dtype=torch.bool)
    view(inside).fill_(True)
    for param, buffer, start in zip(params_of(ours), buffers, (wide, narrow)):
        assert param.data_ptr() == view(buffer).data_ptr()
        assert torch.equal(buffer[~inside], start[~inside])
        assert not torch.equal(buffer[inside], start[inside])


def test_a_channels_last_model_trains_as_in_torch() -> None:
    def train(cls: Any) -> Any:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3)).double()
        model = model.to(memory_format=torch.channels_last)
        optimizer = cls(model.parameters(), **FULL)
        images = drawn((2, 3, 8, 8), torch.float64, 1).contiguous(memory_format=torch.channels_last)
        for _ in range(STEPS):
            optimizer.zero_grad()
            (model(images) ** 2).mean().backward()
            optimizer.step()
        return optimizer

    assert_alike(train(RAdam), train(torch.optim.RAdam), "the end")


@dtypes
def test_parameters_that_are_pieces_of_one_buffer_step_as_in_torch(dtype: torch.dtype) -> None:
    buffers: list[Tensor] = []

    def make(cls: Any) -> Any:
        flat = drawn((100,), dtype, 2)
        buffers.append(flat)
        pieces = [flat[:20].view(4, 5), flat[20:21].view(()), flat[21:21], flat[30:60:2], flat[31:60:2], flat[60:98]]
        return cls([piece.requires_grad_() for piece in pieces], **FULL)

    follow(make, steps=STEPS)
    flat, start = buffers[0], drawn((100,), dtype, 2)
    assert_close(flat, buffers[1], "buffer")
    assert torch.equal(flat[21:30], start[21:30])
    assert torch.equal(flat[98:], start[98:])


# ---- complex numbers

COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}
SETTINGS = pytest.mark.parametrize(
    "kwargs",
    [{}, {"weight_decay": 0.1}, FULL, {"maximize": True, "weight_decay": 0.1}],
    ids=["plain", "coupled", "decoupled", "maximize"],
)


@dtypes
@SETTINGS
@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "with-real"])
def test_complex_parameters_step_as_in_torch(
    mixed: bool, foreach: bool, kwargs: dict[str, Any], dtype: torch.dtype
) -> None:
    def make(cls: Any) -> Any:
        params = [drawn(shape, COMPLEX[dtype], i) for i, shape in enumerate([(), (3,), (0,), (4, 5), (2, 3, 4, 5)])]
        params[3] = params[3].T
        if mixed:
            params[1:1] = [drawn((7,), dtype, 10), drawn((2, 2), dtype, 11)]
        return cls([param.requires_grad_() for param in params], **{"lr": 0.02, **kwargs})

    follow(make, foreach=foreach)


def test_lazily_conjugated_gradients_count_as_what_they_stand_for() -> None:
    # Torch's own RAdam refuses them, so it gets them resolved.
    ours, theirs = pair(lambda cls: cls([drawn((3, 4), torch.complex128, 1).requires_grad_()], **FULL))
    for t in range(1, STEPS + 1):
        grad = drawn((4, 3), torch.complex128, 100 + t).conj().T
        assert grad.is_conj()
        params_of(ours)[0].grad = grad
        params_of(theirs)[0].grad = grad.resolve_conj()
        ours.step()
        theirs.step()
        assert_alike(ours, theirs, f"step {t}")


# ---- 16 bits


def rank(x: Tensor) -> Tensor:
    """The number of each 16-bit float in their order."""
    words = (torch.view_as_real(x) if x.is_complex() else x).view(torch.int16).int()
    return torch.where(words < 0, -(words & 0x7FFF), words)


HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "complex32": torch.complex32}


@SETTINGS
@pytest.mark.parametrize("wide_grad", [False, True], ids=["16-bit-grad", "wide-grad"])
@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_a_16_bit_parameter_steps_as_a_float32_one_rounded_once_a_step(
    dtype: torch.dtype, wide_grad: bool, kwargs: dict[str, Any]
) -> None:
    wide = torch.complex64 if dtype.is_complex else torch.float32
    param = drawn((7, 37), wide, 4).to(dtype).requires_grad_()
    master = param.detach().to(wide).requires_grad_()
    ours, theirs = RAdam([param], **{"lr": 0.02, **kwargs}), torch.optim.RAdam([master], **{"lr": 0.02, **kwargs})
    start = rank(param.detach())
    if wide_grad:
        param.grad_dtype = wide
    for t in range(1, 41):
        grad = drawn((7, 37), wide, 100 + t).to(dtype)
        param.grad, master.grad = grad.to(wide) if wide_grad else grad, grad.to(wide)
        ours.step()
        theirs.step()
        assert int((rank(param.detach()) - rank(master.detach().to(dtype))).abs().max()) <= 1, f"step {t}"
        assert_same_state(ours.state[param], theirs.state[master], f"at step {t}")
        with torch.no_grad():
            master.copy_(param)
    assert not torch.equal(rank(param.detach()), start)


# ---- subclasses


class Labelled(torch.nn.Parameter):
    """A parameter with an attribute."""

    label = "weight"


class Marked(Tensor):
    """A tensor with attributes of its own."""

    label = "weight"


class Watched(Tensor):
    """A tensor that sees the functions that are called on it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapped(Tensor):
    """A tensor that holds another one and has no memory itself."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made: Wrapped = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )
        made.inner = inner
        return made

    def __repr__(self, **keywords: Any) -> str:
        return f"Wrapped({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outs: dict[int, Tensor] = {}

        def unwrapped(x: Any) -> Any:
            if isinstance(x, Wrapped):
                outs[id(x.inner)] = x
                return x.inner
            return x

        args, kwargs = torch.utils._pytree.tree_map(unwrapped, (args, kwargs or {}))
        result = func(*args, **kwargs)
        # What was changed in place comes back as itself.
        return torch.utils._pytree.tree_map(
            lambda x: (outs[id(x)] if id(x) in outs else Wrapped(x)) if isinstance(x, Tensor) else x, result
        )


def subclassed(kind: type[Tensor], seed: int, shape: tuple[int, ...] = (4, 5)) -> Tensor:
    plain = drawn(shape, torch.float64, seed)
    if kind is Wrapped:
        return Wrapped(plain).requires_grad_()
    return Labelled(plain) if kind is Labelled else plain.as_subclass(kind).requires_grad_()


def bare(tensor: Tensor) -> Tensor:
    if isinstance(tensor, Wrapped):
        return tensor.inner
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().as_subclass(Tensor)


@SETTINGS
@pytest.mark.parametrize("other", [torch.float64, torch.complex128], ids=["with-real", "with-complex"])
@pytest.mark.parametrize("kind", [Labelled, Marked, Watched, Wrapped])
def test_tensor_subclasses_step_as_in_torch(kind: type[Tensor], other: torch.dtype, kwargs: dict[str, Any]) -> None:
    def make(cls: Any) -> Any:
        params = [subclassed(kind, 1), drawn((3,), other, 2).requires_grad_(), subclassed(kind, 3, ())]
        return cls(params, **{"lr": 0.02, **kwargs})

    ours, theirs = pair(make)
    for t in range(1, STEPS + 1):
        for optimizer in (ours, theirs):
            for index, param in enumerate(params_of(optimizer)):
                grad = drawn(tuple(param.shape), param.dtype, 10 * t + index)
                param.grad = Wrapped(grad) if isinstance(param, Wrapped) else grad
            optimizer.step()
        for i, (param, expected) in enumerate(zip(params_of(ours), params_of(theirs), strict=True)):
            assert type(param) is type(expected)
            assert_close(bare(param), bare(expected), f"parameter {i} at step {t}")
            states = ({key: bare(x) for key, x in o.state[p].items()} for o, p in ((ours, param), (theirs, expected)))
            assert_same_state(*states, f"of parameter {i} at step {t}")


def test_a_lazy_parameter_may_be_given_before_it_has_its_shape() -> None:
    def make(cls: Any) -> Any:
        model = torch.nn.LazyLinear(3)
        optimizer = cls(model.parameters(), lr=0.02)
        model(drawn((2, 4), torch.float32, 1))
        with torch.no_grad():
            for i, param in enumerate(model.parameters()):
                param.copy_(drawn(tuple(param.shape), torch.float32, i))
        return optimizer

    follow(make, steps=STEPS)


# ---- what is refused


def second(change: Callable[[Tensor], object]) -> Callable[[], list[Tensor]]:
    """Parameters with gradients, of which the second is changed into something that no step can take."""

    def build() -> list[Tensor]:
        params = [drawn((2, 3), torch.float32, seed).requires_grad_() for seed in range(3)]
        for param in params:
            param.grad = torch.ones(2, 3)
        change(params[1])
        return params

    return build


def exchanged(view: Callable[[], Tensor], grad: Tensor | None = None) -> Callable[[], list[Tensor]]:
    """The same with another second parameter."""

    def build() -> list[Tensor]:
        params = second(lambda param: None)()
        params[1] = view().requires_grad_()
        params[1].grad_dtype = None  # any
        params[1].grad = torch.ones_like(params[1]) if grad is None else grad.clone()
        return params

    return build


def with_grad(grad: Tensor) -> Callable[[], list[Tensor]]:
    def change(param: Tensor) -> None:
        param.grad_dtype = None  # any
        param.grad = grad.clone()

    return second(change)


def overlapping() -> list[Tensor]:
    flat = torch.ones(9)
    params = [flat[:6].requires_grad_(), flat[5:8].requires_grad_()]
    for param in params:
        param.grad = torch.ones(param.shape)
    return params


def other_shape(param: Tensor) -> None:
    param.data = torch.ones(6)


REFUSED: dict[str, tuple[Callable[[], list[Tensor]], type[Exception], str]] = {
    "a gradient of another shape": (
        second(other_shape),
        ValueError,
        r"the gradient of parameter 1 \('p1'\) of group 0 has shape \(2, 3\), the parameter \(6,\)",
    ),
    "a gradient of float64": (
        with_grad(torch.ones(2, 3, dtype=torch.float64)),
        ValueError,
        r"the gradient of parameter 1 \('p1'\) of group 0 has dtype float64, the parameter float32",
    ),
    **{
        f"a gradient of {name}": (
            with_grad(torch.ones(2, 3, dtype=getattr(torch, name))),
            TypeError,
            rf"the gradient of parameter 1 \('p1'\) of group 0 has dtype {name}",
        )
        for name in ("int32", "bool", "complex64")
    },
    "a complex parameter with a real gradient": (
        exchanged(lambda: torch.ones(2, 3, dtype=torch.complex64), torch.ones(2, 3)),
        RuntimeError,
        "view_as_real is only supported for complex tensors",  # torch's own words
    ),
    "a parameter of float8": (
        exchanged(lambda: torch.ones(2, 3).to(torch.float8_e4m3fn)),
        TypeError,
        r"parameter 1 \('p1'\) of group 0 has dtype",
    ),
    "an expanded parameter": (
        exchanged(lambda: torch.ones(2, 1).expand(2, 3)),
        ValueError,
        r"parameter 1 \('p1'\) of group 0 has elements that share memory",
    ),
    "parameters that overlap": (overlapping, ValueError, r"parameter 1 \('p1'\).*parameter 0 \('p0'\).*share memory"),
    "a lazily negated parameter": (
        exchanged(lambda: torch.ones(2, 3, dtype=torch.complex64).conj().imag),
        ValueError,
        r"parameter 1 \('p1'\) of group 0 is a lazily negated view",
    ),
    "a lazily conjugated parameter": (
        exchanged(lambda: torch.ones(2, 3, dtype=torch.complex64).conj()),
        (RuntimeError, ValueError),
        "conjugated",
    ),
}


@pytest.mark.parametrize(("build", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_step_can_take_is_refused_by_name_and_changes_nothing(
    build: Callable[[], list[Tensor]], error: type[Exception], message: str
) -> None:
    params = build()
    before = [param.detach().clone() for param in params]
    optimizer = RAdam([(f"p{i}", param) for i, param in enumerate(params)], lr=0.1)
    with pytest.raises(error, match=message):
        optimizer.step()
    for param, copy in zip(params, before, strict=True):
        assert torch.equal(param, copy)
    assert not optimizer.state


SPARSE: dict[str, Callable[[], Tensor]] = {
    "dense": lambda: torch.ones(4, 3).requires_grad_(),
    "sparse": lambda: torch.eye(4, 3).to_sparse().requires_grad_(),
}


@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.parametrize("sparse", SPARSE.values(), ids=SPARSE)
def test_a_sparse_gradient_is_refused_in_torchs_words_and_changes_nothing(
    sparse: Callable[[], Tensor], steps: int
) -> None:
    ours, theirs = pair(lambda cls: cls([drawn((5,), torch.float32, 1).requires_grad_(), sparse()], lr=0.1))
    for optimizer in (ours, theirs):
        for t in range(steps):
            params_of(optimizer)[0].grad = drawn((5,), torch.float32, 10 + t)
            optimizer.step()
        params_of(optimizer)[0].grad = torch.ones(5)
        params_of(optimizer)[1].grad = torch.eye(4, 3).to_sparse()
    dense = params_of(ours)[0]
    before, state = dense.detach().clone(), {key: value.clone() for key, value in ours.state.get(dense, {}).items()}
    expected = outcome(theirs.step)
    assert expected[0][0] is RuntimeError
    assert outcome(ours.step) == expected
    assert torch.equal(dense, before)
    assert len(ours.state) == (1 if steps else 0)
    assert all(torch.equal(ours.state[dense][key], value) for key, value in state.items())
