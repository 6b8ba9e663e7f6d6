"""What is special to MindSpore: its memory, its queue, its compilers, its checkpoints."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import radam
from front_end import Array
from radam import _step

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what MindSpore has to say when it is imported is not ours
    mindspore: Any = pytest.importorskip("mindspore")
    from mindspore import Parameter, Tensor, mint, ops
    from mindspore.nn.utils import no_init_parameters

from radam.mindspore import RAdam

MANY = 12  # steps, of which some are rectified with BETAS
BETAS = (0.875, 0.984375)


def numbers(*shape: int, seed: int = 5) -> Array:
    return np.asarray(np.random.default_rng(seed).normal(size=shape), np.float32)


def parameter(value: Any, name: str = "w", dtype: Any = None) -> Parameter:
    return Parameter(Tensor(value, dtype), name=name)


def bits(tensor: Tensor) -> Array:
    array = tensor.asnumpy()
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


def on_numpy(params: Sequence[Array], grads: Sequence[Array], steps: int = 1, **settings: Any) -> list[Array]:
    """What the array-level optimizer makes of copies."""
    copies = [np.array(param) for param in params]
    optimizer = radam.RAdam(copies, betas=BETAS, **settings)
    for _ in range(steps):
        optimizer.step(grads=[np.array(grad) for grad in grads])
    return copies


def raw(optimizer: Any) -> list[bytes]:
    """Everything that a step may write."""
    states = [optimizer.step_t, *optimizer.parameters, *optimizer.exp_avg, *optimizer.exp_avg_sq]
    return [state.asnumpy().tobytes() for state in states]


# ---- memory


def test_the_parameters_own_memory_is_updated() -> None:
    w = parameter(numbers(5, 7))
    view, address, before = w.asnumpy(), w.data_ptr(), w.asnumpy().copy()
    optimizer = RAdam([w], lr=0.5)
    moments = [m.asnumpy() for m in (*optimizer.exp_avg, *optimizer.exp_avg_sq)]
    optimizer((Tensor(numbers(5, 7, seed=6)),))
    assert w.data_ptr() == address == view.ctypes.data
    assert not np.array_equal(view, before)
    assert all(m.any() for m in moments)


def transposed(value: Array) -> Parameter:
    """A parameter whose memory is that of another tensor, in another order."""
    w = parameter(np.zeros_like(value))
    w.set_data(mint.transpose(Tensor(np.ascontiguousarray(value.T)), 0, 1))
    assert not w.is_contiguous()
    return w


def every_other_row(value: Array) -> Parameter:
    wide = np.zeros((2 * len(value), *value.shape[1:]), value.dtype)
    wide[::2] = value
    w = parameter(np.zeros_like(value))
    w.set_data(Tensor(wide)[::2])
    return w


def from_the_middle(value: Array) -> Parameter:
    w = parameter(np.zeros_like(value))
    w.set_data(mint.narrow(Tensor(np.concatenate([value, value, value])), 0, len(value), len(value)))
    return w


def from_the_middle_of_a_product(value: Array) -> Parameter:
    w = parameter(np.zeros_like(value))
    w.set_data((Tensor(np.concatenate([value, value])) * 1)[len(value) :])
    return w


LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[Array], Parameter]]] = {
    "0-d": ((), parameter),
    "empty": ((0, 3), parameter),
    "one element": ((1,), parameter),
    "5-d": ((2, 3, 1, 4, 2), parameter),
    "transposed": ((5, 7), transposed),
    "every other row": ((6, 3), every_other_row),
    "from the middle of another": ((4, 3), from_the_middle),
    "from the middle of a product": ((4, 3), from_the_middle_of_a_product),
}


@pytest.mark.parametrize("grad_is_transposed", [False, True], ids=["plain gradient", "transposed gradient"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_updated_where_it_is(layout: str, grad_is_transposed: bool) -> None:
    shape, make = LAYOUTS[layout]
    value, grad = numbers(*shape), numbers(*shape, seed=6)
    w, place = make(value), None
    given = Tensor(grad)
    if grad_is_transposed and len(shape) == 2 and shape[0]:
        given = mint.transpose(Tensor(np.ascontiguousarray(grad.T)), 0, 1)
        assert not given.is_contiguous()
    optimizer, place = RAdam([w], lr=0.25, betas=BETAS), w.data_ptr()
    for _ in range(MANY):
        optimizer((given,))
    (expected,) = on_numpy([value], [grad], MANY, lr=0.25)
    assert w.data_ptr() == place
    assert np.array_equal(w.asnumpy(), expected)
    assert np.array_equal((w * 1).asnumpy(), expected), "MindSpore's own operations see it"


PRECISIONS = [
    ("float64", "float64"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
    ("float16", "float16"),
    ("float16", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
]


@pytest.mark.parametrize(("param", "grad"), PRECISIONS)
def test_every_pair_of_dtypes_gives_the_bits_of_numpy(param: str, grad: str) -> None:
    dtypes = [ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name) for name in (param, grad)]
    value, slope = numbers(33).astype(dtypes[0]), numbers(33, seed=6).astype(dtypes[1])
    w = parameter(value.astype(np.float64), dtype=getattr(mindspore, param))
    given = Tensor(slope.astype(np.float64), getattr(mindspore, grad))
    optimizer = RAdam([w], lr=0.25, betas=BETAS)
    for _ in range(MANY):
        optimizer((given,))
    (expected,) = on_numpy([value], [slope], MANY, lr=0.25)
    assert np.array_equal(bits(w), expected.view(f"u{expected.itemsize}"))
    moment = mindspore.float64 if param == "float64" else mindspore.float32
    assert {m.dtype for m in (*optimizer.exp_avg, *optimizer.exp_avg_sq)} == {moment}


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 3)], ids=str)
def test_a_parameter_within_another_tensor_is_updated_in_every_precision(shape: tuple[int, ...], dtype: str) -> None:
    kind = getattr(mindspore, dtype)
    whole = Tensor(np.zeros((3, *shape)), kind) * 1
    w = Parameter(Tensor(np.zeros(shape), kind), name="w")
    w.set_data(whole[1])
    place, before = w.data_ptr(), bits(w).copy()
    optimizer = RAdam([w], lr=0.5)
    optimizer((Tensor(np.ones(shape), mindspore.float64 if dtype == "float64" else mindspore.float32),))
    assert w.data_ptr() == place
    assert (w * 1).astype(mindspore.float32).asnumpy().tolist() == np.full(shape, -0.5).tolist()
    assert bits(w).shape == before.shape


@pytest.mark.parametrize("what", ["exp_avg", "exp_avg_sq", "step_t"])
def test_a_state_within_another_tensor_is_updated(what: str) -> None:
    """Such as one that was loaded by rows of a larger tensor."""
    optimizers = [RAdam([parameter(numbers(4))], lr=0.25, betas=BETAS) for _ in range(2)]
    for optimizer in optimizers:
        optimizer((Tensor(numbers(4, seed=6)),))
    held = getattr(optimizers[0], what)
    held = held if what == "step_t" else held[0]
    held.set_data((Tensor(np.stack([held.asnumpy()] * 3)) * 1)[1])
    for optimizer in optimizers:
        for _ in range(MANY):
            optimizer((Tensor(numbers(4, seed=7)),))
    assert raw(optimizers[0]) == raw(optimizers[1])


def test_a_step_count_of_another_dtype_is_refused() -> None:
    optimizer = RAdam([parameter(numbers(4))])
    optimizer.step_t.set_dtype(mindspore.float32)
    before = raw(optimizer)
    with pytest.raises(TypeError, match=r"step_t has dtype Float32; it must be int32"):
        optimizer((Tensor(numbers(4)),))
    assert raw(optimizer) == before


def moved(tensor: Parameter) -> None:
    tensor.move_to("CPU")


def assigned(tensor: Parameter) -> None:
    ops.assign(tensor, tensor * 2)


def set_anew(tensor: Parameter) -> None:
    tensor.set_data(Tensor(tensor.asnumpy() * 2))


def set_to_its_transpose(tensor: Parameter) -> None:
    """The same address, but its elements in another order."""
    tensor.set_data(mint.transpose(tensor, 0, 1))


def narrowed_and_widened(tensor: Parameter) -> None:
    tensor.set_dtype(mindspore.float16)
    tensor.set_dtype(mindspore.float32)


@pytest.mark.parametrize("change", [moved, assigned, set_anew, set_to_its_transpose, narrowed_and_widened])
@pytest.mark.parametrize("what", ["parameters", "exp_avg", "exp_avg_sq"])
def test_a_step_takes_the_memory_that_a_tensor_has_by_then(change: Callable[[Parameter], None], what: str) -> None:
    w, grad = parameter(numbers(8, 8)), numbers(8, 8, seed=6)
    optimizer = RAdam([w], lr=0.25, betas=BETAS)
    for _ in range(MANY):
        optimizer((Tensor(grad),))
    (tensor,) = getattr(optimizer, what)
    change(tensor)
    p, m, v = (state.asnumpy().copy() for state in (w, optimizer.exp_avg[0], optimizer.exp_avg_sq[0]))
    optimizer((Tensor(grad),))
    settings = radam.CONVENTIONS["mindspore"].hyperparameters(lr=0.25, betas=BETAS)
    plan = (settings, None, (p,), (grad,), (m,), (v,), None, np.array([MANY]), None)
    _step.step((plan,), "propagate")
    for state, expected in ((w, p), (optimizer.exp_avg[0], m), (optimizer.exp_avg_sq[0], v)):
        assert np.array_equal(state.asnumpy(), expected)


def test_a_net_whose_parameters_are_not_there_yet_trains() -> None:
    with no_init_parameters():
        net = mindspore.nn.Dense(3, 2)
    assert net.weight.has_init
    optimizer = RAdam(net.trainable_params(), lr=0.5)
    grads = tuple(Tensor(np.ones(p.shape, np.float32)) for p in optimizer.parameters)
    optimizer(grads)
    before = net.weight.asnumpy().copy()
    optimizer(grads)
    assert np.allclose(net.weight.asnumpy(), before - 0.5)


def test_a_gradient_that_is_the_parameter_is_refused() -> None:
    w = parameter(numbers(4))
    optimizer = RAdam([w])
    before = raw(optimizer)
    with pytest.raises(ValueError, match=r"'w'.*memory"):
        optimizer((w,))
    assert raw(optimizer) == before


# ---- MindSpore's queue


def slowly(tensor: Tensor, factor: Tensor) -> Tensor:
    """Queue an operation behind a few products: the tensor itself comes of it, but for rounding."""
    product = factor
    for _ in range(6):
        product = ops.matmul(product, factor)
    return tensor * product.sum() * (1 / len(factor))


def test_a_step_waits_for_what_it_reads_and_for_who_reads_what_it_writes() -> None:
    ones, was_queued = Tensor(np.ones(900, np.float32)), False
    factor = Tensor(np.full((900, 900), 1 / 900, np.float32))
    for _ in range(5):  # a busy machine may give MindSpore's threads the time to be done before the step begins
        w = parameter(numbers(900))
        view, start = w.asnumpy(), w.asnumpy().copy()
        optimizer = RAdam([w], lr=0.5)
        ops.assign(w, slowly(w, factor) + 1)
        reader = slowly(ones, factor) * w
        grad = slowly(ones, factor) * 3
        was_queued = was_queued or np.array_equal(view, start)
        optimizer((grad,))
        assert np.allclose(reader.asnumpy(), start + 1, atol=1e-3), "read before the step wrote"
        assert np.allclose(w.asnumpy(), start + 1 - 0.5 * 3, atol=1e-3), "stepped from the value that was on its way"
        if was_queued:
            break
    assert was_queued


# ---- MindSpore's compilers


def test_the_graph_compiler_s_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where MindSpore describes what it could not compile
    optimizer = RAdam([parameter(numbers(3))])
    before = raw(optimizer)

    @mindspore.jit
    def step(grad):  # type: ignore[no-untyped-def]
        if grad.sum() > 0:
            optimizer((grad,))
        return grad

    for compiled in (step, mindspore.jit(optimizer)):
        with pytest.raises(RuntimeError, match=r"gradients in the compiled function.*call the optimizer outside"):
            compiled(Tensor(np.ones(3, np.float32)))
    assert raw(optimizer) == before


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="MindSpore captures bytecode up to Python 3.11")
def test_bytecode_capture_is_refused_every_time() -> None:
    optimizer = RAdam([parameter(numbers(3))])
    before = raw(optimizer)

    @mindspore.jit(capture_mode="bytecode")
    def step(grad):  # type: ignore[no-untyped-def]
        double = grad * 2
        optimizer((double,))
        return double

    for _ in range(3):
        with pytest.raises(RuntimeError, match="call the optimizer outside"):
            step(Tensor(np.ones(3, np.float32)))
    assert raw(optimizer) == before
    assert optimizer((Tensor(np.ones(3, np.float32)),))


TRACED = """
import mindspore, numpy as np
from mindspore.nn.utils import no_init_parameters

from radam import _step
from radam.mindspore import RAdam

w = mindspore.Parameter(mindspore.Tensor(np.ones(3, np.float32)), name="w")
optimizer = RAdam([w])

@mindspore.jit(capture_mode="trace")
def step(grad):
    double = grad * 2
    optimizer((double,))
    return double

try:
    step(mindspore.Tensor(np.ones(3, np.float32)))
except RuntimeError as error:
    print(error, w.asnumpy(), flush=True)
"""


def test_tracing_is_refused(tmp_path: Path) -> None:
    """In a process of its own: one that has seen any error while it traces, MindSpore cannot end in peace."""
    script = tmp_path / "traced.py"
    script.write_text(TRACED, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert "call the optimizer outside [1. 1. 1.]" in done.stdout, done.stderr


@pytest.fixture
def graph_mode() -> Iterator[None]:
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    yield
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)


def descend(loss: Callable[..., Any], w: Parameter, steps: int = 60) -> float:
    optimizer = RAdam([w], lr=0.1)
    loss_and_grads = mindspore.value_and_grad(loss, None, optimizer.parameters)
    for _ in range(steps):
        _, grads = loss_and_grads()
        optimizer(grads)
    return float(np.abs(w.asnumpy()).max())


def test_it_steps_with_the_gradients_of_compiled_functions() -> None:
    w = parameter(np.array([1.0, -2.0], np.float32))

    @mindspore.jit
    def loss():  # type: ignore[no-untyped-def]
        return (w * w).sum()

    assert descend(loss, w) < 0.5


@pytest.mark.usefixtures("graph_mode")
def test_it_steps_in_graph_mode_too() -> None:
    w = parameter(np.array([1.0, -2.0], np.float32))

    def loss():  # type: ignore[no-untyped-def]
        return (w * w).sum()

    assert descend(loss, w) < 0.5


# ---- devices


def test_a_tensor_that_is_not_on_the_cpu_is_refused() -> None:
    absent = mint.empty((3,), device="meta")
    with pytest.raises(RuntimeError, match="parameter 'w' is on meta"):
        RAdam([Parameter(absent, name="w")])
    optimizer = RAdam([parameter(numbers(3))])
    before = raw(optimizer)
    with pytest.raises(RuntimeError, match="gradient of parameter 'w' is on meta"):
        optimizer((absent,))
    assert raw(optimizer) == before


def test_another_device_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindspore, "get_context", {"device_target": "Ascend"}.get)
    with pytest.raises(RuntimeError, match=r"device target is Ascend.*set_device"):
        RAdam([parameter(numbers(3))])
