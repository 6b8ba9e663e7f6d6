"""What may be handed in as a parameter or a gradient, and what is refused in which words."""

from __future__ import annotations

import array
import ctypes
import gc
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import radam
from snapshots import bits, frozen

ACCEPTED = "accepted are float64, float32, bfloat16 or float16"


class Producer:
    """The least that DLPack asks of an array, over someone else's."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.source.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class OldProducer(Producer):
    """Of before DLPack 1.0: knows no max_version."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.source.__dlpack__()


class Copying(Producer):
    """Exports a copy and says so."""

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.source.__dlpack__(copy=True, **keywords)


class Failing(Producer):
    def __dlpack__(self, **keywords: Any) -> Any:
        raise BufferError("no export today")


class NoCapsule(Producer):
    def __dlpack__(self, **keywords: Any) -> Any:
        return [1.0, 2.0]


class WrongCapsule(Producer):
    def __dlpack__(self, **keywords: Any) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(id(self), b"used_dltensor", None)


JaxArray = type("ArrayImpl", (Producer,), {"__module__": "jaxlib._jax"})


def read_only(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


def fp32(*shape: int) -> np.ndarray:
    return np.ones(shape or (4,), np.float32)


UNREADABLE = {
    "None": (lambda: None, "is a builtins.NoneType, not an array"),
    "number": (lambda: 1.0, "is a builtins.float, not an array"),
    "list": (lambda: [1.0, 2.0], "is a builtins.list, not an array"),
    "string": (lambda: "weights", "is a builtins.str, not an array"),
    "object": (object, "is a builtins.object, not an array"),
    "int64": (lambda: np.ones(4, np.int64), f"has dtype int64; {ACCEPTED}"),
    "bool": (lambda: np.ones(4, bool), f"has dtype bool; {ACCEPTED}"),
    "complex64": (lambda: np.ones(4, np.complex64), f"has dtype complex64; {ACCEPTED}.*view it as real"),
    "object array": (lambda: np.ones(4, object), f"has dtype object; {ACCEPTED}"),
    "text": (lambda: np.array(["a"]), f"has dtype <U1; {ACCEPTED}"),
    "record": (lambda: np.zeros(4, "f4,f4"), rf"has dtype \[.*\]; {ACCEPTED}"),
    "byte-swapped": (lambda: np.ones(4, np.dtype(np.float32).newbyteorder()), rf"f4 \(byte-swapped\); {ACCEPTED}"),
    "masked": (lambda: np.ma.masked_array(fp32(), mask=[1, 0, 0, 0]), r"is a masked array.*hand in its \.data"),
    "float8": (lambda: np.ones(4, ml_dtypes.float8_e4m3fn), f"has dtype float8_e4m3fn; {ACCEPTED}"),
    "bytearray": (lambda: bytearray(16), rf"has dtype 'B' \(a buffer format\); {ACCEPTED}"),
    "int buffer": (lambda: array.array("i", [1, 2]), rf"has dtype 'i' \(a buffer format\); {ACCEPTED}"),
    "swapped buffer": (
        lambda: (ctypes.c_float.__ctype_be__ if sys.byteorder == "little" else ctypes.c_float.__ctype_le__) * 4,
        "not an array|has dtype",
    ),
    "torch int": (lambda: torch.ones(4, dtype=torch.int32), f"has dtype int32; {ACCEPTED}"),
    "torch bool": (lambda: torch.ones(4, dtype=torch.bool), f"has dtype bool; {ACCEPTED}"),
    "torch complex": (
        lambda: torch.ones(4, dtype=torch.complex64),
        f"has dtype complex64; {ACCEPTED}.*view it as real",
    ),
    "torch float8": (lambda: torch.ones(4, dtype=torch.float8_e4m3fn), ACCEPTED),
    "torch sparse": (lambda: torch.eye(4).to_sparse(), "torch.Tensor.*cannot be read through DLPack"),
    "torch meta": (lambda: torch.ones(4, device="meta"), "torch.Tensor.*cannot be read through DLPack"),
    "failing": (lambda: Failing(fp32()), "Failing.*cannot be read through DLPack: no export today"),
    "no capsule": (lambda: NoCapsule(fp32()), "NoCapsule.*gave something else than a DLPack capsule"),
    "used capsule": (lambda: WrongCapsule(fp32()), "WrongCapsule.*gave something else than a DLPack capsule"),
}


@pytest.mark.parametrize(("make", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_array_of_floats_is_a_type_error_that_names_the_parameter(make: Any, words: str) -> None:
    with pytest.raises(TypeError, match=rf"(?s)parameter 1 \('b'\) of group 0 .*{words}"):
        radam.RAdam({"a": fp32(), "b": make()})
    with pytest.raises(TypeError, match=r"parameter 0 of group 1 "):
        radam.RAdam([fp32()]).add_param_group({"params": [make()]})


@pytest.mark.parametrize(
    ("make", "words"), [v for k, v in UNREADABLE.items() if k != "None"], ids=[k for k in UNREADABLE if k != "None"]
)
def test_a_gradient_that_is_no_array_of_floats_is_a_type_error_that_names_its_parameter(make: Any, words: str) -> None:
    optimizer = radam.RAdam({"a": fp32(), "b": fp32()})
    before = frozen(optimizer)
    with pytest.raises(TypeError, match=rf"(?s)gradient of parameter 1 \('b'\) of group 0 .*{words}"):
        optimizer.step(grads={"a": fp32(), "b": make()})
    assert frozen(optimizer) == before


def test_a_released_memoryview_is_a_type_error_that_names_the_parameter() -> None:
    view = memoryview(array.array("f", [1.0]))
    view.release()
    with pytest.raises(TypeError, match="parameter 0 of group 0"):
        radam.RAdam([view])


READ_ONLY = {
    "flag": lambda: read_only(fp32()),
    "bytes": lambda: np.frombuffer(bytes(16), np.float32),
    "view of a read-only array": lambda: read_only(fp32())[::2],
    "broadcast": lambda: np.broadcast_to(np.float32(1), (4,)),
    "scalar": lambda: np.float32(1),
    "memoryview": lambda: memoryview(bytes(16)).cast("f"),
    "DLPack flag": lambda: Producer(read_only(fp32())),
}


@pytest.mark.parametrize("make", READ_ONLY.values(), ids=READ_ONLY)
def test_a_read_only_parameter_is_a_value_error_and_a_read_only_gradient_is_fine(make: Any) -> None:
    if (
        not isinstance(make(), Producer) or np.lib.NumpyVersion(np.__version__) >= "2.1.0"
    ):  # before, NumPy had no such flag
        with pytest.raises(ValueError, match=r"parameter 0 of group 0 is read-only.*writable"):
            radam.RAdam([make()])
    grad = make()
    shape = np.shape(grad.source if isinstance(grad, Producer) else grad)
    param = np.ones(shape, np.float32)
    if not isinstance(grad, Producer):
        radam.RAdam([param]).step(grads=[grad])


def test_a_mindspore_tensor_is_refused_with_the_way_to_its_own_front_end() -> None:
    tensor = type("Tensor", (), {"__module__": "mindspore.common.tensor"})()
    with pytest.raises(TypeError, match=r"parameter 0 of group 0 is a mindspore.*radam\.mindspore"):
        radam.RAdam([tensor])


def test_a_jax_array_is_refused_as_a_parameter_and_taken_as_a_gradient() -> None:
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 is a JAX array.*radam\.jax.*NumPy arrays"):
        radam.RAdam([JaxArray(fp32())])
    param = fp32()
    radam.RAdam([param], lr=0.5).step(grads=[JaxArray(fp32())])
    assert param.tolist() == [0.5] * 4


def test_an_exported_copy_is_refused_as_a_parameter_and_taken_as_a_gradient() -> None:
    with pytest.raises(
        ValueError, match=r"parameter 0 of group 0 is exported as a copy, which the step would update in vain"
    ):
        radam.RAdam([Copying(fp32())])
    param = fp32()
    radam.RAdam([param], lr=0.5).step(grads=[Copying(fp32())])
    assert param.tolist() == [0.5] * 4


SAME_MEMORY = {
    "numpy": lambda a: a,
    "numpy subclass": lambda a: a.view(np.matrix) if a.ndim == 2 else a.view(np.memmap),
    "torch": torch.from_numpy,
    "torch parameter": lambda a: torch.nn.Parameter(torch.from_numpy(a)),
    "producer over numpy": Producer,
    "producer over torch": lambda a: Producer(torch.from_numpy(a)),
    "producer of before 1.0": lambda a: OldProducer(torch.from_numpy(a)),
    "memoryview": memoryview,
    "ctypes": lambda a: (ctypes.c_float * a.size).from_buffer(a),
}


@pytest.mark.parametrize("wrap", SAME_MEMORY.values(), ids=SAME_MEMORY)
def test_every_kind_of_array_is_updated_in_place_with_the_same_bits(wrap: Any) -> None:
    random = np.random.default_rng(1)
    start, grads = random.standard_normal(37).astype(np.float32), random.standard_normal((12, 37)).astype(np.float32)
    expected, param = start.copy(), start.copy()
    plain, wrapped = radam.RAdam([expected], lr=0.1), radam.RAdam([wrap(param)], lr=0.1)
    for grad in grads:
        plain.step(grads=[grad])
        wrapped.step(grads=[wrap(grad.copy())])
    assert bits(param) == bits(expected)
    assert bits(param) != bits(start)


def test_an_array_of_the_array_module_is_a_parameter() -> None:
    param = array.array("d", [1.0, 2.0])
    radam.RAdam([param], lr=0.5).step(grads=[array.array("d", [1.0, 1.0])])
    assert param.tolist() == [0.5, 1.5]


def test_bfloat16_of_ml_dtypes_and_of_torch_are_the_same_bits() -> None:
    start = np.linspace(-2, 2, 33, dtype=np.float32)
    ours, theirs = start.astype(ml_dtypes.bfloat16), torch.from_numpy(start.copy()).bfloat16()
    grad = np.cos(start)
    a, b = radam.RAdam([ours], lr=0.1), radam.RAdam([theirs], lr=0.1)
    for _ in range(8):
        a.step(grads=[grad.astype(ml_dtypes.bfloat16)])
        b.step(grads=[torch.from_numpy(grad).bfloat16()])
    assert bits(ours) == bits(theirs)


class Parameter:
    """A framework's parameter that wraps an array, as Lucid's does."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.grad: Any = None


def test_an_object_with_data_and_grad_is_stepped_by_its_own_gradient() -> None:
    param = Parameter(fp32())
    optimizer = radam.RAdam([param], lr=0.5)
    param.grad = fp32()
    optimizer.step()
    assert param.data.tolist() == [0.5] * 4
    with pytest.raises(TypeError, match="parameter 0 of group 0"):
        radam.RAdam([Parameter([1.0])])  # type: ignore[arg-type]


def test_a_torch_module_is_trained_through_its_parameters() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = radam.RAdam(model.parameters(), lr=0.1)
    x = torch.randn(32, 3)
    y = x @ torch.tensor([[1.0], [2.0], [3.0]])
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_torch_sees_that_a_tensor_it_saved_has_changed() -> None:
    weight, bias = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    loss = (weight * weight).sum()
    optimizer = radam.RAdam([weight, bias], lr=0.1)
    optimizer.step(grads=[None, torch.ones(3)])
    loss.backward(retain_graph=True)  # weight was skipped: nothing changed
    optimizer.step(grads=[torch.ones(3), None])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_failed_step_leaves_the_version_of_a_tensor() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = radam.RAdam([weight], lr=0.1)
    version = weight._version
    with pytest.raises(ValueError, match="shape"):
        optimizer.step(grads=[torch.ones(4)])
    assert weight._version == version


def test_the_negative_bit_of_torch_is_respected() -> None:
    # .conj().imag is a view whose sign torch flips only when it is read.
    grad = torch.full((4,), 1j).conj().imag
    assert grad.is_neg()
    param = fp32()
    radam.RAdam([param], lr=0.5).step(grads=[grad])
    assert param.tolist() == [1.5] * 4
    with pytest.raises(ValueError, match="parameter 0 of group 0"):
        radam.RAdam([torch.full((4,), 1j).conj().imag])


PAIRS = {"float64": np.float64, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@pytest.mark.parametrize("grad", PAIRS)
@pytest.mark.parametrize("param", PAIRS)
def test_a_dtype_pair_is_stepped_or_refused_with_both_named(param: str, grad: str) -> None:
    p = np.ones(4, PAIRS[param])
    optimizer = radam.RAdam([p], lr=0.5)
    if (param == "float64") == (grad == "float64"):
        optimizer.step(grads=[np.ones(4, PAIRS[grad])])
        assert p.astype(float).tolist() == [0.5] * 4
        assert optimizer.state[0]["exp_avg"].dtype == (np.float64 if param == "float64" else np.float32)
    else:
        with pytest.raises(
            ValueError, match=rf"gradient of parameter 0 of group 0 has dtype {grad}, the parameter {param}"
        ):
            optimizer.step(grads=[np.ones(4, PAIRS[grad])])
        assert p.astype(float).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("param", "grad"), [((4,), (5,)), ((4,), (4, 1)), ((2, 3), (3, 2)), ((), (1,)), ((0,), (0, 1)), ((4,), ())]
)
def test_a_gradient_of_another_shape_is_a_value_error_with_both(param: tuple[int, ...], grad: tuple[int, ...]) -> None:
    optimizer = radam.RAdam({"w": np.ones(param, np.float32)})
    with pytest.raises(ValueError) as caught:
        optimizer.step(grads={"w": np.ones(grad, np.float32)})
    assert str(caught.value) == f"the gradient of parameter 0 ('w') of group 0 has shape {grad}, the parameter {param}"
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_arrays_of_no_dimensions_and_of_no_elements_are_stepped(dtype: Any) -> None:
    scalar, empty, hollow, torch_empty = np.ones((), dtype), np.ones(0, dtype), np.ones((3, 0, 2), dtype), torch.ones(0)
    params = [scalar, empty, hollow, torch_empty]
    optimizer = radam.RAdam(params, lr=0.5)
    optimizer.step(grads=[np.ones((), dtype), np.ones(0, dtype), np.ones((3, 0, 2), dtype), torch.ones(0)])
    assert scalar == 0.5
    assert [entry["step"] for entry in optimizer.state] == [1, 1, 1, 1]


def test_a_parameter_without_a_gradient_is_skipped_and_its_step_count_stays() -> None:
    a, b = fp32(), fp32()
    optimizer = radam.RAdam([a, b], lr=0.5)
    optimizer.step(grads=[fp32(), None])
    assert (a.tolist(), b.tolist()) == ([0.5] * 4, [1.0] * 4)
    assert [entry.get("step", 0) for entry in optimizer.state] == [1, 0]
    assert optimizer.state[1] == {}
    optimizer.step(grads=[None, fp32()])
    assert (a.tolist(), b.tolist()) == ([0.5] * 4, [0.5] * 4)


GRADS = {
    "too few": ([fp32()], ValueError, "grads holds 1 gradients for 2 parameters"),
    "too many": ([fp32()] * 3, ValueError, "grads holds 3 gradients for 2 parameters"),
    "one array": (np.ones((2, 4), np.float32), TypeError, "not one array.*put it in a list"),
    "one tensor": (torch.ones(2, 4), TypeError, "not one array.*put it in a list"),
    "a number": (1.0, TypeError, "a sequence of arrays or a dict by name, got float"),
    "an unknown name": ({"a": fp32(), "b": fp32(), "c": fp32()}, ValueError, "grads has 'c'.*the names are 'a', 'b'"),
    "a missing name": ({"a": fp32()}, ValueError, "grads lacks 'b'; give None"),
}


@pytest.mark.parametrize(("grads", "error", "words"), GRADS.values(), ids=GRADS)
def test_gradients_that_do_not_fit_the_parameters_are_refused(grads: Any, error: type[Exception], words: str) -> None:
    optimizer = radam.RAdam({"a": fp32(), "b": fp32()})
    with pytest.raises(error, match=words):
        optimizer.step(grads=grads)
    assert optimizer.state_dict()["state"] == {}


def test_gradients_by_name_need_names_and_own_gradients_need_grad() -> None:
    optimizer = radam.RAdam([fp32()])
    with pytest.raises(ValueError, match="parameters have no names"):
        optimizer.step(grads={"a": fp32()})
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 \(ndarray\) has no .grad.*step\(grads="):
        optimizer.step()


def test_gradients_may_come_from_a_generator_and_by_name_in_any_order() -> None:
    a, b = fp32(1), fp32(2)
    optimizer = radam.RAdam({"a": a, "b": b}, lr=0.5)
    optimizer.step(grads=(np.ones(n, np.float32) for n in (1, 2)))
    optimizer.step(grads={"b": None, "a": fp32(1)})
    assert [entry["step"] for entry in optimizer.state] == [2, 1]


def test_a_type_that_died_leaves_no_trace_in_how_others_are_read() -> None:
    def address_of_a_dead_type() -> int:
        class Passing(np.ndarray):
            pass

        array = np.zeros(4, np.float32).view(Passing)
        radam.RAdam([array]).step(grads=[np.ones(4, np.float32)])
        return id(Passing)

    for _ in range(20):
        address = address_of_a_dead_type()
        gc.collect()
        others = [type("Other", (), {"__slots__": ()}) for _ in range(50)]
        for other in others:
            if id(other) == address:
                with pytest.raises(TypeError, match="not an array"):
                    radam.RAdam([other()])
