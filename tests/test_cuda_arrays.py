"""radam.RAdam over arrays on CUDA devices, by stand-ins for devices and CuPy: the CPU's bits, one launch a device, no
step done in part."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import radam
import reference as ref
from radam import _core, _step, arrays
from radam.groups import array_of
from snapshots import arrays as random_arrays
from stand_in_device import CUPY as cp
from stand_in_device import (
    DeviceArray,
    StandardArray,
    UnknownArray,
    aligned,
    claiming,
    created,
    cupy_imported,
    exported,
)
from stand_in_library import StandIn


@pytest.fixture(autouse=True)
def _a_machine_with_two_devices_and_cupy(stand_in: StandIn) -> Iterator[None]:
    with cupy_imported():
        yield


class Call(NamedTuple):
    """What the library was asked for. size: parameters of a step, bytes of an allocation."""

    what: str
    device: int
    stream: int
    size: int


def calls(stand_in: StandIn, *kinds: str) -> list[Call]:
    """The calls since the log was forgotten, of these kinds."""
    out = []
    for line in stand_in.log():
        what, *fields = line.split()
        out.append(Call(what, *(int(field.partition("=")[2]) for field in fields)))
    return [call for call in out if call.what in kinds]


CPU = None
Place = int | None  # the CPU, or the number of a device

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": lambda x: x,
    "F": lambda x: copied(x.T).T,
    "another order": lambda x: np.moveaxis(copied(np.moveaxis(x, -1, 0)), 0, -1),
    "gaps": lambda x: inside(x, 2),
    "reversed": lambda x: copied(x[(slice(None, None, -1),) * x.ndim])[(slice(None, None, -1),) * x.ndim],
    "one element on": lambda x: copied(x, x.itemsize),
    "three elements on": lambda x: copied(x, 3 * x.itemsize),
}


def copied(x: np.ndarray, offset: int = 0) -> np.ndarray:
    made = aligned(x.shape, x.dtype, offset)
    made[...] = x
    return made


def inside(x: np.ndarray, every: int) -> np.ndarray:
    """A copy of x as every so-many-th element of each dimension of a larger array."""
    view = aligned(tuple(every * n for n in x.shape), x.dtype)[(slice(None, None, every),) * x.ndim]
    view[...] = x
    return view


def put(x: np.ndarray, place: Place, layout: str = "C") -> Any:
    """A copy of x, laid out like that, on the CPU or on a device."""
    laid_out = LAYOUTS[layout](copied(x))
    return laid_out if place is CPU else claiming(laid_out, place)


def host(array: Any) -> np.ndarray:
    """The elements, wherever they are."""
    if isinstance(array, DeviceArray):
        return array._view
    return array.detach().numpy() if hasattr(array, "detach") else np.asarray(array)


def everything(optimizer: Any) -> dict[str, Any]:
    """All bits of parameters, moments and counts, and the groups, but for where the arrays lie. No trace is left out:
    moments that were made for a step that did not happen are seen too."""
    groups = optimizer.param_groups
    return {
        "params": [ref.bits(host(array_of(p))).tobytes() for group in groups for p in group["params"]],
        "state": [
            {
                key: value if key == "step" else (host(value).dtype.name, value.shape, ref.bits(host(value)).tobytes())
                for key, value in entry.items()
            }
            for entry in optimizer.state
        ],
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in groups],
        "made": [[m is not None for m in ms] for held in optimizer._states for ms in held.moments.values()],
        "skipped": optimizer.skipped_steps,
    }


# ---- the same bits


SHAPES = [(), (0,), (1,), (3, 0, 2), (67,), (9, 11), (4099,)]
pairs = pytest.mark.parametrize(("param", "grad"), ref.PAIRS)


def some(seed: int, dtype: str, shapes: list[tuple[int, ...]] = SHAPES) -> list[np.ndarray]:
    return random_arrays(seed, *shapes, dtype=ref.DTYPES[dtype])


@pytest.mark.parametrize("amsgrad", [False, True])
@pairs
def test_steps_on_a_device_have_the_bits_of_the_cpu(param: str, grad: str, amsgrad: bool) -> None:
    optimizers = [
        radam.RAdam([put(x, place) for x in some(1, param)], lr=0.1, weight_decay=0.1, amsgrad=amsgrad)
        for place in (CPU, 0)
    ]
    before = everything(optimizers[0])
    for seed in range(2, 14):
        for optimizer, place in zip(optimizers, (CPU, 0)):
            optimizer.step(grads=[put(g, place) for g in some(seed, grad)])
    here, there = map(everything, optimizers)
    assert there == here
    assert here != before


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("name", [*radam.CONVENTIONS, "adam"])
def test_every_convention_and_decay_has_the_bits_of_the_cpu(name: str, maximize: bool) -> None:
    kinds: list[dict[str, Any]] = [{}]
    decays = ("coupled", "decoupled") if name == "adam" else radam.CONVENTIONS[name].decay
    kinds += [{"weight_decay": 0.1, "decoupled_weight_decay": decay == "decoupled"} for decay in decays]
    for kind in kinds:
        results = []
        for place in (CPU, 1):
            params = [put(x, place) for x in some(1, "float32")]
            optimizer: Any = (
                radam.Adam(params, lr=0.1, maximize=maximize, **kind)
                if name == "adam"
                else radam.RAdam(params, lr=0.1, maximize=maximize, convention=name, **kind)
            )
            for seed in range(2, 12):
                optimizer.step(grads=[put(g, place) for g in some(seed, "float32")])
            results.append(everything(optimizer))
        assert results[0] == results[1]


@pytest.mark.parametrize("grad", LAYOUTS)
@pytest.mark.parametrize("param", LAYOUTS)
def test_every_layout_has_the_bits_of_the_cpu_and_leaves_the_gaps(param: str, grad: str) -> None:
    results = []
    for place, dtype in itertools.product((CPU, 0), ("float32", "bfloat16", "float64")):
        (x,) = some(1, dtype, [(5, 3, 7)])
        array = put(x, place, param)
        optimizer = radam.RAdam([array], lr=0.1, amsgrad=True)
        for seed in range(2, 10):
            optimizer.step(grads=[put(g, place, grad) for g in some(seed, dtype, [(5, 3, 7)])])
        results.append(everything(optimizer))
        if param == "gaps":
            whole = host(array)
            while isinstance(whole.base, np.ndarray) and whole.base.dtype == whole.dtype:
                whole = whole.base
            assert np.count_nonzero(whole) == np.count_nonzero(host(array))
    assert results[:3] == results[3:]


def scripted(place: Callable[[], Place], **keywords: Any) -> dict[str, Any]:
    """A training with all that an optimizer can do, its parameters where place says, one after the other."""

    def laid(xs: list[np.ndarray], places: list[Place]) -> list[Any]:
        return [put(x, p) for x, p in zip(xs, places, strict=True)]

    shapes = [(7,), (3, 5), (), (130,)]
    places: list[Place] = [place() for _ in shapes]
    first, second, third, fourth = laid(some(1, "float32", shapes), places)
    optimizer = radam.RAdam(
        [
            {"params": {"a": first, "b": second}, "lr": lambda t: 0.1 / t, "weight_decay": 0.1},
            {"params": {"c": third}, "betas": (0.8, 0.99), "amsgrad": True},
        ],
        lr=0.05,
        **keywords,
    )
    seen: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(len(seen)))
    for seed in range(2, 6):
        grads = laid(some(seed, "float32", shapes[:3]), places[:3])
        assert optimizer.step(lambda grads=grads: grads[0].shape, grads=grads) == (7,)
    optimizer.add_param_group({"params": {"d": fourth}, "maximize": True})
    for seed in range(6, 16):
        grads = dict(zip("abcd", laid(some(seed, "float32", shapes), places)))
        if seed % 3 == 0:
            grads["b"] = None
        if seed == 9:
            optimizer.param_groups[0]["amsgrad"] = True
        if seed in (10, 12):
            host(grads["d"])[77] = np.inf if seed == 10 else np.nan
        optimizer.step(grads={name: grads[name] for name in reversed(grads)})
    assert len(seen) == 14
    return everything(optimizer)


def places(*order: Place) -> Callable[[], Place]:
    return itertools.cycle(order).__next__


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
@pytest.mark.parametrize("order", [(0,), (1,), (0, 1), (CPU, 0), (1, CPU, 0)], ids=str)
def test_groups_rates_hooks_names_and_skips_do_on_devices_what_they_do_on_the_cpu(
    order: tuple[Place, ...], nonfinite: Any
) -> None:
    expected = scripted(places(CPU), nonfinite=nonfinite)
    found = scripted(places(*order), nonfinite=nonfinite)
    rate = expected["groups"][0].pop("lr"), found["groups"][0].pop("lr")
    assert all(map(callable, rate))
    assert found == expected
    assert expected["skipped"] == (2 if nonfinite == "skip" else 0)


class Drawn(NamedTuple):
    """One parameter of a drawn optimizer."""

    dtypes: tuple[str, str]
    size: int
    offsets: tuple[int, int]  # elements that parameter and gradient stand behind an aligned address
    place: Place


drawn = st.builds(
    Drawn,
    dtypes=st.sampled_from(ref.PAIRS),
    size=st.one_of(st.integers(0, 70), st.integers(4000, 9000)),
    offsets=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    place=st.sampled_from([CPU, 0, 1]),
)


@pytest.mark.filterwarnings("ignore:group .* no step is ever rectified")  # with the last betas
@settings(max_examples=80)
@given(
    groups=st.lists(st.lists(drawn, min_size=1, max_size=4), min_size=1, max_size=3),
    flags=st.fixed_dictionaries(
        {
            "amsgrad": st.booleans(),
            "maximize": st.booleans(),
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "decoupled_weight_decay": st.booleans(),
            "betas": st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.5, 0.5)]),
        }
    ),
    steps=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_any_parameters_anywhere_have_the_bits_of_the_cpu(
    groups: list[list[Drawn]], flags: dict[str, Any], steps: int, seed: int
) -> None:
    def laid(group: list[Drawn], role: int, seed: int, on_cpu: bool) -> list[Any]:
        out = []
        for i, one in enumerate(group):
            (x,) = some(seed + 7 * i, one.dtypes[role], [(one.size,)])
            x = copied(x, one.offsets[role] * x.itemsize)
            out.append(x if on_cpu or one.place is CPU else claiming(x, one.place))
        return out

    results = []
    for on_cpu in (True, False):
        optimizer = radam.RAdam(
            [{"params": laid(group, 0, seed, on_cpu), "lr": 0.1 / (g + 1)} for g, group in enumerate(groups)], **flags
        )
        for t in range(1, steps + 1):
            optimizer.step(grads=[g for group in groups for g in laid(group, 1, seed + 100 * t, on_cpu)])
        results.append(everything(optimizer))
    assert results[0] == results[1]


# ---- what is asked of the devices


def over(*places: Place, layout: str = "C", shape: tuple[int, ...] = (33, 4), **keywords: Any) -> radam.RAdam:
    """An optimizer over a parameter in each of these places."""
    xs = random_arrays(1, *[shape] * len(places))
    return radam.RAdam([put(x, place, layout) for x, place in zip(xs, places)], **{"lr": 0.1, **keywords})


def step(optimizer: radam.RAdam, seed: int, layout: str = "C") -> None:
    """Step with gradients that lie where the parameters do."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = random_arrays(seed, *[p.shape for p in params])
    places = [arrays.cuda_device(p) for p in params]
    optimizer.step(grads=[put(g, place, layout) for g, place in zip(grads, places)])


@pytest.mark.parametrize("count", [1, 2, 300])
def test_a_step_is_one_launch_for_each_device_however_many_arrays_and_groups(count: int, stand_in: StandIn) -> None:
    xs = random_arrays(1, *[(5,)] * (3 * count))
    groups = [{"params": [put(x, place) for x, place in zip(xs[g::3], [g % 2] * count)]} for g in range(3)]
    optimizer = radam.RAdam([*groups, {"params": [np.ones(3, np.float32)]}])
    for seed in (2, 3):
        stand_in.forget()
        step(optimizer, seed)
        assert calls(stand_in, "step") == [Call("step", 0, 0, 2 * count), Call("step", 1, 0, count)]
        assert len(stand_in.log()) == 2  # and nothing else was asked of the library


def test_parameters_without_a_gradient_are_not_launched(stand_in: StandIn) -> None:
    optimizer = over(0, 1, 1)
    grads = [put(g, 1) for g in random_arrays(2, (33, 4), (33, 4))]
    optimizer.step(grads=[None, grads[0], None])
    assert calls(stand_in, "step") == [Call("step", 1, 0, 1)]
    assert [entry.get("step", 0) for entry in optimizer.state] == [0, 1, 0]
    optimizer.step(grads=[None, None, None])
    assert len(calls(stand_in, "step")) == 1


def test_all_work_goes_onto_the_current_stream_of_its_device(stand_in: StandIn) -> None:
    optimizer = over(0, 1, layout="gaps", nonfinite="skip")
    with ExitStack() as streams:
        for device, stream in ((0, 0x10), (1, 0x21)):
            with cp.cuda.Device(device):
                streams.enter_context(cp.cuda.ExternalStream(stream))
        cp.ndarray.asked.clear()
        step(optimizer, 2, "gaps")
    assert {(call.device, call.stream) for call in calls(stand_in, "step")} == {(0, 0x10), (1, 0x21)}
    kinds = {"allocate", "gather", "first_nonfinite", "step", "scatter", "release"}
    assert {call.what for call in calls(stand_in, *kinds)} == kinds
    assert {(call.device, call.stream) for call in calls(stand_in, *kinds)} == {(0, 0x10), (1, 0x21)}
    assert set(created) == {(0, 0x10), (1, 0x21)}  # the moments too
    assert set(cp.ndarray.asked) == {(0, 0x10), (1, 0x21)}
    assert cp.cuda.Device().id == 0
    stand_in.forget()
    cp.ndarray.asked.clear()
    step(optimizer, 3, "gaps")
    assert {call.stream for call in calls(stand_in, *kinds)} == {0}
    assert set(cp.ndarray.asked) == {(0, 1), (1, 1)}  # DLPack's number for the default stream


def test_a_stream_that_changes_between_steps_is_followed(stand_in: StandIn) -> None:
    optimizer = over(0)
    for stream in (0x10, 0x20):
        with cp.cuda.ExternalStream(stream):
            step(optimizer, 2)
    step(optimizer, 3)
    assert [call.stream for call in calls(stand_in, "step")] == [0x10, 0x20, 0]


def test_a_gradient_of_another_library_is_made_ready_for_the_parameter_s_stream(stand_in: StandIn) -> None:
    x, g = random_arrays(1, (9,), (9,))
    optimizer, expected = radam.RAdam([put(x, 0)]), radam.RAdam([x.copy()])
    with cp.cuda.ExternalStream(0x30):
        optimizer.step(grads=[StandardArray(copied(g), 0)])
    expected.step(grads=[g])
    assert everything(optimizer) == everything(expected)
    assert StandardArray.asked == [(0, 0x30)]
    # Nothing is known of that library's stream: the default one waits, before its memory may be used anew.
    assert calls(stand_in, "join", "waits") == [Call("join", 0, 0x30, 0), Call("waits", 0, 0, 0)]
    other = radam.RAdam([StandardArray(copied(x), 0)])
    cp.ndarray.asked.clear()
    stand_in.forget()
    with cp.cuda.ExternalStream(0x30):
        other.step(grads=[put(g, 0)])
    assert everything(other) == everything(expected)
    assert cp.ndarray.asked == [(0, 1)]  # of the parameter's library no stream is known
    assert calls(stand_in, "step") == [Call("step", 0, 0, 1)]
    assert calls(stand_in, "join", "waits") == [Call("join", 0, 0, 0), Call("waits", 0, 0x30, 0)]


def test_parameters_of_two_libraries_step_in_one_launch_that_both_streams_know_of(stand_in: StandIn) -> None:
    arrays = random_arrays(1, (9,), (9,), (7,), (7,))
    optimizer = radam.RAdam([StandardArray(copied(arrays[0]), 0), put(arrays[2], 0), put(arrays[3], 1)])
    expected = radam.RAdam([arrays[0].copy(), arrays[2].copy(), arrays[3].copy()])
    expected.step(grads=[arrays[1], arrays[3], arrays[2]])
    stand_in.forget()
    with cp.cuda.ExternalStream(0x30):
        optimizer.step(grads=[StandardArray(copied(arrays[1]), 0), put(arrays[3], 0), put(arrays[2], 1)])
    assert everything(optimizer) == everything(expected)
    assert calls(stand_in, "step") == [Call("step", 0, 0, 2), Call("step", 1, 0, 1)]
    assert calls(stand_in, "join", "waits") == [Call("join", 0, 0, 0), Call("waits", 0, 0x30, 0)]


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_lie_beside_their_parameter_in_its_memory_order(dtype: str, layout: str) -> None:
    (x,) = some(1, dtype, [(5, 3, 7)])
    optimizer = radam.RAdam([put(x, 1, layout), put(x, CPU, layout)], amsgrad=True)
    grads = some(2, dtype, [(5, 3, 7)])
    optimizer.step(grads=[put(grads[0], 1), put(grads[0], CPU)])
    there, here = optimizer.state
    assert there["step"] == here["step"] == 1
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert type(there[name]) is cp.ndarray
        assert type(here[name]) is np.ndarray
        assert there[name].device.id == 1
        assert there[name].dtype == here[name].dtype == (np.float64 if dtype == "float64" else np.float32)
        assert there[name].strides == here[name].strides
    assert {device for device, _ in created} == {1}


class Managed(cp.ndarray):  # type: ignore[misc]
    """In memory that the CPU and a device share."""

    KIND = 13


class Old(cp.ndarray):  # type: ignore[misc]
    """Of a CuPy from before DLPack 1.0."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return super().__dlpack__(stream=stream)


class Parameter:
    """An object that has its array and its gradient."""

    def __init__(self, data: Any) -> None:
        self.data, self.grad = data, None


@pytest.mark.parametrize("kind", [Managed, Old])
def test_other_arrays_of_cupy_are_stepped_as_well(kind: Any) -> None:
    x, g = random_arrays(1, (9,), (9,))
    optimizer, expected = radam.RAdam([kind(copied(x), 1)]), radam.RAdam([x.copy()])
    for _ in range(3):
        optimizer.step(grads=[kind(copied(g), 1)])
        expected.step(grads=[g])
    assert everything(optimizer) == everything(expected)


def test_objects_with_gradients_on_any_device_are_stepped_and_cleared() -> None:
    params = [Parameter(put(x, place)) for x, place in zip(random_arrays(1, (3,), (4,), (5,)), (0, 1, CPU))]
    optimizer = radam.RAdam(params)
    for param, grad, place in zip(params, random_arrays(2, (3,), (4,), (5,)), (0, 1, CPU)):
        param.grad = put(grad, place)
    optimizer.step()
    assert [entry["step"] for entry in optimizer.state] == [1, 1, 1]
    grads = [param.grad for param in params]
    optimizer.zero_grad(set_to_none=False)
    assert [host(grad).tolist() for grad in grads] == [[0.0] * 3, [0.0] * 4, [0.0] * 5]
    assert all(param.grad is grad for param, grad in zip(params, grads))
    optimizer.zero_grad()
    assert [param.grad for param in params] == [None, None, None]


def test_an_lr_on_a_device_is_read_at_every_step() -> None:
    optimizer, expected = over(0), over(CPU)
    rate = put(np.float32(0.5).reshape(()), 1)
    optimizer.param_groups[0]["lr"] = rate
    for seed, lr in ((2, 0.5), (3, 0.25)):
        host(rate)[...] = lr
        expected.param_groups[0]["lr"] = lr
        step(optimizer, seed)
        step(expected, seed)
    assert everything(optimizer)["params"] == everything(expected)["params"]
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.25
    assert repr(optimizer).startswith("RAdam (\nParameter Group 0: 1 parameters\n    amsgrad: False\n")


def test_a_step_holds_nothing_of_what_it_was_given() -> None:
    optimizer = over(0, layout="gaps")
    grad, memory = put(random_arrays(2, (33, 4))[0], 0, "gaps"), host(optimizer.param_groups[0]["params"][0])
    seen = weakref.ref(grad)
    before = sys.getrefcount(memory)
    optimizer.step(grads=[grad])
    after = sys.getrefcount(memory)
    del grad
    assert seen() is None
    assert after == before


def test_an_export_may_step_another_optimizer() -> None:
    other, expected = over(1, CPU), over(CPU, CPU)

    class Stepping(cp.ndarray):  # type: ignore[misc]
        def __dlpack__(self, **options: Any) -> Any:
            step(other, 5)
            return super().__dlpack__(**options)

    (g,) = random_arrays(2, (33, 4))
    outer, plain = over(0), over(CPU)
    outer.step(grads=[Stepping(copied(g), 0)])
    plain.step(grads=[g])
    step(expected, 5)
    assert everything(outer) == everything(plain)
    assert everything(other) == everything(expected)


# ---- libraries


def test_a_library_that_follows_the_array_api_standard_is_asked_for_its_moments(tmp_path: Path) -> None:
    x = np.asfortranarray(random_arrays(1, (4, 6))[0])
    optimizer, expected = (radam.RAdam([p], amsgrad=True) for p in (StandardArray(x.copy("K"), 1), x.copy("K")))
    for seed in range(2, 9):
        (g,) = random_arrays(seed, (4, 6))
        optimizer.step(grads=[StandardArray(copied(g), 1)])
        expected.step(grads=[g])
        assert everything(optimizer) == everything(expected)
        optimizer.load_state_dict(optimizer.state_dict() if seed % 2 else expected.state_dict())
        expected.load_state_dict(optimizer.state_dict())
        optimizer.save(tmp_path / "state")
        optimizer.load(tmp_path / "state")
    before = everything(optimizer)
    host(optimizer.state_dict()["state"][0]["exp_avg"])[...] = 7
    assert everything(optimizer) == before
    moment = optimizer.state[0]["exp_avg"]
    assert (type(moment), moment.__dlpack_device__(), moment.strides) == (StandardArray, (2, 1), x.strides)


def test_a_parameter_of_a_library_that_is_not_known_is_a_type_error_that_names_it_and_the_remedy() -> None:
    def make() -> UnknownArray:
        return UnknownArray(aligned((4,), np.float32), 1)

    words = r"is a stand_in_device.UnknownArray on CUDA device 1, of a library .* cupy.from_dlpack\(x\) or torch.from"
    with pytest.raises(TypeError, match=rf"^parameter 1 \('b'\) of group 0 {words}"):
        radam.RAdam({"a": np.ones(2), "b": make()})
    optimizer = over(0)
    with pytest.raises(TypeError, match=rf"^parameter 0 of group 1 {words}"):
        optimizer.add_param_group({"params": make()})
    assert len(optimizer.param_groups) == 1


def test_a_gradient_of_a_library_that_is_not_known_is_taken() -> None:
    x, g = random_arrays(1, (9,), (9,))
    optimizer, expected = radam.RAdam([put(x, 0)]), radam.RAdam([x])
    optimizer.step(grads=[UnknownArray(copied(g), 0)])
    expected.step(grads=[g])
    assert everything(optimizer) == everything(expected)


def test_torch_tensors_on_a_device_have_torch_s_moments_there(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch_cuda_double import CudaDouble, on_cuda, taken_for_plain

    def tensors(xs: list[np.ndarray], **keywords: Any) -> list[Any]:
        return [on_cuda(torch.from_numpy(x.copy("K")), place, **keywords) for x, place in zip(xs, (1, 0))]

    start = [np.asfortranarray(random_arrays(1, (4, 6))[0]), random_arrays(1, (5,))[0]]
    with taken_for_plain():
        params = tensors(start, requires_grad=True)
        optimizer, expected = (radam.RAdam(p, lr=0.1, amsgrad=True) for p in (params, [x.copy("K") for x in start]))
        for seed in range(2, 9):
            grads = random_arrays(seed, (4, 6), (5,))
            optimizer.step(grads=tensors(grads))
            expected.step(grads=grads)
            assert everything(optimizer) == everything(expected)
            for entry, param in zip(optimizer.state, params):
                moments = [entry[name] for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")]
                assert {(type(m), m.device, m.stride()) for m in moments} == {
                    (CudaDouble, param.device, param.stride())
                }
            saved = (expected if seed == 4 else optimizer).state_dict()
            for each in (optimizer, expected):
                each.load_state_dict(saved)
            optimizer.save(tmp_path / "state")
            optimizer.load(tmp_path / "state")
        before = everything(optimizer)
        host(optimizer.state_dict()["state"][0]["exp_avg"])[...] = 7
        assert everything(optimizer) == before
    assert all(param._version > 0 for param in params)  # so that autograd knows


# ---- wholly or not at all


def mixture(**keywords: Any) -> radam.RAdam:
    """Parameters on the CPU and on both devices, one of them with gaps."""
    xs = random_arrays(1, (5,), (6,), (4, 3), (9,), (7,))
    where: list[tuple[Place, str]] = [(CPU, "C"), (0, "C"), (0, "gaps"), (1, "C"), (CPU, "gaps")]
    params = [put(x, place, layout) for x, (place, layout) in zip(xs, where)]
    return radam.RAdam(
        [{"params": params[:3]}, {"params": params[3:], "lr": 0.3, "amsgrad": True}], **{"lr": 0.1, **keywords}
    )


def given_to(optimizer: radam.RAdam, seed: int, **replaced: Any) -> None:
    """Step with gradients that lie where the parameters do, but for those that are given, "g3" say."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = random_arrays(seed, *[p.shape for p in params])
    optimizer.step(
        grads=[replaced.get(f"g{i}", put(g, arrays.cuda_device(p))) for i, (p, g) in enumerate(zip(params, grads))]
    )


class Raising(cp.ndarray):  # type: ignore[misc]
    """Cannot be exported."""

    error: BaseException

    def __dlpack__(self, **options: Any) -> Any:
        raise self.error


def raising(error: BaseException) -> Any:
    array = Raising(aligned((9,), np.float32), 1)
    array.error = error
    return array


def ones(place: Place, *shape: int, dtype: Any = np.float32, offset: int = 0) -> Any:
    memory = aligned(shape, dtype, offset)
    memory[...] = 1
    return memory if place is CPU else claiming(memory, place)


NAMED = r"the gradient of parameter 0 of group 1"
FAILURES: dict[str, tuple[Callable[[radam.RAdam], Any], type[BaseException], str]] = {
    "another shape": (lambda o: ones(1, 8), ValueError, rf"{NAMED} has shape \(8,\), the parameter \(9,\)"),
    "another dtype": (lambda o: ones(1, 9, dtype=np.float64), ValueError, f"{NAMED} has dtype float64, the param"),
    "integers": (lambda o: ones(1, 9, dtype=np.int32), TypeError, f"{NAMED} has dtype int32; accepted are"),
    "on another device": (lambda o: ones(0, 9), ValueError, f"{NAMED} is on CUDA device 0, .* on CUDA device 1"),
    "on the CPU": (lambda o: ones(CPU, 9), ValueError, f"{NAMED} is on the CPU, the parameter on CUDA device 1"),
    "between elements": (lambda o: ones(1, 9, offset=2), ValueError, f"{NAMED} does not lie at a multiple"),
    "the parameter itself": (
        lambda o: o.param_groups[1]["params"][0],
        ValueError,
        "parameter 0 of group 1 and the gradient of parameter 0 of group 1 share memory",
    ),
    "a moment": (
        lambda o: o.state[3]["exp_avg"] if o.state[3] else o.param_groups[1]["params"][0],
        ValueError,
        "parameter 0 of group 1 and the gradient of parameter 0 of group 1 share memory",
    ),
    "Ctrl-C in an export": (lambda o: raising(KeyboardInterrupt()), KeyboardInterrupt, "^$"),
    "no memory in an export": (lambda o: raising(MemoryError()), MemoryError, "^$"),
    "an error in an export": (lambda o: raising(OSError("lost")), TypeError, f"{NAMED} .*through DLPack: lost"),
    "no array": (lambda o: "x", TypeError, f"{NAMED} is a builtins.str, not an array"),
}


@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.parametrize(("bad", "error", "words"), FAILURES.values(), ids=FAILURES)
def test_a_bad_gradient_leaves_every_bit_as_it_was(
    bad: Any, error: type[BaseException], words: str, steps: int, stand_in: StandIn
) -> None:
    optimizer, undisturbed = mixture(), mixture()
    for seed in range(2, 2 + steps):
        for each in (optimizer, undisturbed):
            given_to(each, seed)
    before = everything(optimizer)
    stand_in.forget()
    with pytest.raises(error, match=words):
        given_to(optimizer, 50, g3=bad(optimizer))
    assert everything(optimizer) == before
    assert stand_in.log() == []
    for each in (optimizer, undisturbed):
        given_to(each, 60)
    assert everything(optimizer) == everything(undisturbed)


def test_a_gradient_on_a_device_of_a_parameter_on_the_cpu_is_a_value_error() -> None:
    optimizer = mixture()
    before = everything(optimizer)
    with pytest.raises(
        ValueError, match=r"gradient of parameter 0 of group 0 is on CUDA device 1, .* on the CPU; move"
    ):
        given_to(optimizer, 2, g0=ones(1, 5))
    assert everything(optimizer) == before


def test_a_moment_that_somebody_moved_is_a_value_error_and_loading_the_state_moves_all() -> None:
    holder = Parameter(ones(CPU, 4))
    optimizer, expected = radam.RAdam([holder]), radam.RAdam([ones(CPU, 4)])
    optimizer.step(grads=[ones(CPU, 4)])
    expected.step(grads=[ones(CPU, 4)])
    holder.data = cp.asarray(holder.data)
    before = everything(optimizer)
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0 of group 0 is on the CPU, the parameter on CUDA dev"):
        optimizer.step(grads=[ones(0, 4)])
    assert everything(optimizer) == before
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(grads=[ones(0, 4)])
    expected.step(grads=[ones(CPU, 4)])
    assert everything(optimizer) == everything(expected)


class ReadOnly(cp.ndarray):  # type: ignore[misc]
    """Says that it must not be written."""

    def __dlpack__(self, **options: Any) -> Any:
        frozen = self._view.view()
        frozen.flags.writeable = False
        return exported(frozen, 2, self._number, versioned=True)


BAD_PARAMS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "expanded": (
        lambda: claiming(np.lib.stride_tricks.as_strided(aligned((1,), np.float32), (4,), (0,))),
        ValueError,
        r"parameter 1 of group 0 has elements that share memory \(an expanded or overlapping view\)",
    ),
    "between elements": (lambda: ones(0, 4, offset=1), ValueError, "parameter 1 of group 0 does not lie at a multiple"),
    "integers": (lambda: ones(0, 4, dtype=np.int64), TypeError, "parameter 1 of group 0 has dtype int64"),
}


@pytest.mark.parametrize(("make", "error", "words"), BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_a_parameter_that_cannot_be_stepped_is_refused_at_construction(make: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        radam.RAdam([ones(0, 4), make()])


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="before, NumPy could not say so in DLPack")
def test_a_read_only_parameter_on_a_device_is_refused_and_a_read_only_gradient_taken() -> None:
    with pytest.raises(ValueError, match="parameter 0 of group 0 is read-only"):
        radam.RAdam([ReadOnly(aligned((4,), np.float32), 0)])
    optimizer = radam.RAdam([ones(0, 4)], lr=0.5)
    optimizer.step(grads=[ReadOnly(host(ones(CPU, 4)), 0)])
    assert host(optimizer.param_groups[0]["params"][0]).tolist() == [0.5] * 4


def test_parameters_on_a_device_may_interleave_and_not_overlap() -> None:
    memory = ones(0, 40)
    with pytest.raises(ValueError, match="parameter 1 of group 0 and parameter 0 of group 0 share memory"):
        radam.RAdam([memory[:21], memory[20:]])
    even, odd, whole = memory[::2], memory[1::2], ones(CPU, 40)
    optimizer, expected = radam.RAdam([even, odd], lr=0.1), radam.RAdam([whole], lr=0.1)
    for seed in range(2, 9):
        (g,) = random_arrays(seed, (40,))
        grad = put(g, 0)
        optimizer.step(grads=[grad[::2], grad[1::2]])
        expected.step(grads=[g])
    assert host(memory).tobytes() == whole.tobytes()


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
@pytest.mark.parametrize("steps", [0, 6])
def test_a_call_that_fails_before_the_launch_changes_nothing_and_one_after_it_only_its_own_array(
    steps: int, nonfinite: Any, stand_in: StandIn
) -> None:
    whole, undisturbed = mixture(nonfinite=nonfinite), mixture(nonfinite=nonfinite)
    for seed in range(2, 2 + steps):
        for each in (whole, undisturbed):
            given_to(each, seed)
    stand_in.forget()
    given_to(whole, 50)
    done = calls(stand_in, "allocate", "gather", "first_nonfinite", "step", "scatter")
    assert [call.what for call in done][:2] == ["allocate", "gather"]
    assert done[-1].what == "scatter"
    kinds = set()
    for position, call in enumerate(done):
        optimizer = mixture(nonfinite=nonfinite)
        for seed in range(2, 2 + steps):
            given_to(optimizer, seed)
        stand_in.forget()
        stand_in.fail_after(position)
        with pytest.raises(RuntimeError, match=rf"^CUDA failed: {call.what}: told to fail$"):
            given_to(optimizer, 50)
        kinds.add(call.what)
        assert len(calls(stand_in, "allocate")) == len(calls(stand_in, "release"))  # what was taken is given back
        found, before, after = everything(optimizer), everything(undisturbed), everything(whole)
        if call.what != "scatter":
            assert found == before
            given_to(optimizer, 50)
            assert everything(optimizer) == after
        else:
            assert found["state"] == after["state"]
            assert found["params"][2] == before["params"][2]
            found["params"][2] = after["params"][2]
            assert found == after
    assert kinds == {"allocate", "gather", "step", "scatter"} | ({"first_nonfinite"} if nonfinite == "skip" else set())


def test_no_memory_for_a_moment_takes_back_those_that_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, undisturbed = mixture(), mixture()
    before, made = everything(optimizer), cp.zeros

    def zeros(shape: Any, dtype: Any) -> Any:
        if len(created) == 3:
            raise MemoryError("out of memory on the device")
        return made(shape, dtype)

    created.clear()
    with monkeypatch.context() as patch:
        patch.setattr(cp, "zeros", zeros)
        with pytest.raises(MemoryError):
            given_to(optimizer, 2)
    assert everything(optimizer) == before
    for each in (optimizer, undisturbed):
        given_to(each, 2)
    assert everything(optimizer) == everything(undisturbed)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", [CPU, 0, 1])
@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_a_gradient_that_is_not_finite_skips_raises_or_propagates(dtype: str, place: Place, value: float) -> None:
    good = [put(g, p) for g, p in zip(some(2, "float32", [(8,)] * 3), (CPU, 0, 1))]
    (bad,) = some(3, dtype, [(4100,)])
    fine = bad.copy()
    bad[4097] = value

    def prepared(nonfinite: Any) -> radam.RAdam:
        params = [put(x, p) for x, p in zip(some(1, "float32", [(8,)] * 3), (CPU, 0, 1))]
        (last,) = some(4, dtype, [(4100,)])
        optimizer = radam.RAdam(dict(zip("abcd", [*params, put(last, place)])), lr=0.1, nonfinite=nonfinite)
        optimizer.step(grads=[*good, put(fine, place)])
        return optimizer

    skipping, raising_, propagating = map(prepared, ("skip", "raise", "propagate"))
    before = everything(skipping)
    skipping.step(grads=[*good, put(bad, place)])
    assert everything(skipping) == {**before, "skipped": 1}
    with pytest.raises(FloatingPointError, match=r"gradient of parameter 3 \('d'\) of group 0 holds an inf or a NaN"):
        raising_.step(grads=[*good, put(bad, place)])
    assert everything(raising_) == before
    propagating.step(grads=[*good, put(bad, place)])
    assert np.flatnonzero(~np.isfinite(host(propagating.state[3]["exp_avg"]))).tolist() == [4097]
    for optimizer in (skipping, raising_):
        optimizer.step(grads=[*good, put(fine, place)])
        assert [entry["step"] for entry in optimizer.state] == [2] * 4


@pytest.mark.parametrize("broken", ["g0", "g1", "g3"])
def test_a_first_step_that_is_skipped_leaves_no_trace(broken: str) -> None:
    optimizer = mixture(nonfinite="skip")
    before = everything(optimizer)
    grad = {"g0": ones(CPU, 5), "g1": ones(0, 6), "g3": ones(1, 9)}[broken]
    host(grad)[4] = np.inf
    given_to(optimizer, 2, **{broken: grad})
    assert everything(optimizer) == {**before, "skipped": 1}


def test_the_first_parameter_that_is_not_finite_is_named_wherever_it_lies() -> None:
    optimizer = mixture(nonfinite="raise")
    sizes: list[tuple[int, Place, int]] = [(0, CPU, 5), (1, 0, 6), (3, 1, 9), (4, CPU, 7)]
    broken = {f"g{i}": ones(place, size) for i, place, size in sizes}
    for grad in broken.values():
        host(grad)[-1] = np.nan
    for names, words in (
        (("g0", "g1", "g3", "g4"), "parameter 0 of group 0"),
        (("g1", "g3", "g4"), "parameter 1 of group 0"),
        (("g3", "g4"), "parameter 0 of group 1"),
        (("g4",), "parameter 1 of group 1"),
    ):
        with pytest.raises(FloatingPointError, match=f"the gradient of {words} holds an inf"):
            given_to(optimizer, 2, **{name: broken[name] for name in names})
    assert optimizer.state == [{}] * 5


# ---- what is remembered


def through_dict(source: radam.RAdam, target: radam.RAdam, folder: Path) -> None:
    target.load_state_dict(source.state_dict())


def through_file(source: radam.RAdam, target: radam.RAdam, folder: Path) -> None:
    source.save(folder / "state")
    target.load(folder / "state")


def through_pickled_dict(source: radam.RAdam, target: radam.RAdam, folder: Path) -> None:
    target.load_state_dict(pickle.loads(pickle.dumps(source.state_dict())))


@pytest.mark.parametrize("carry", [through_dict, through_file, through_pickled_dict])
@pytest.mark.parametrize(("source", "target"), [(CPU, 0), (0, CPU), (0, 1), (1, 1)])
@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_a_state_goes_on_anywhere_with_the_same_bits(
    dtype: str, source: Place, target: Place, carry: Any, tmp_path: Path
) -> None:
    shapes = [(4, 6), (), (0,), (5, 3, 7)]

    def made(place: Place, xs: list[np.ndarray]) -> radam.RAdam:
        layouts = ("F", "C", "C", "gaps")
        return radam.RAdam([put(x, place, layout) for x, layout in zip(xs, layouts)], lr=0.1, amsgrad=True)

    def go(optimizer: radam.RAdam, place: Place, seeds: range) -> None:
        for seed in seeds:
            grads = [put(g, place) for g in some(seed, dtype, shapes)]
            optimizer.step(grads=[None if seed == 3 and i == 1 else g for i, g in enumerate(grads)])

    uninterrupted = made(CPU, some(1, dtype, shapes))
    go(uninterrupted, CPU, range(2, 14))
    first = made(source, some(1, dtype, shapes))
    go(first, source, range(2, 8))
    (weights,) = [group["params"] for group in first.param_groups]
    second = made(target, [host(w).copy() for w in weights])
    carry(first, second, tmp_path)
    assert everything(second) == everything(first)
    kinds = {type(value) for entry in second.state for key, value in entry.items() if key != "step"}
    assert kinds == {np.ndarray if target is CPU else cp.ndarray}
    go(second, target, range(8, 14))
    assert everything(second) == everything(uninterrupted)
    go(first, source, range(8, 14))  # which shares nothing with the other
    assert everything(first) == everything(uninterrupted)


def test_a_state_dict_holds_copies_on_the_device_in_the_same_memory_order() -> None:
    optimizer = over(1, layout="F")
    step(optimizer, 2)
    before = everything(optimizer)
    moment, saved = optimizer.state[0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    assert type(saved) is cp.ndarray
    assert (saved.device.id, saved.strides) == (1, moment.strides)
    assert host(saved).tobytes() == host(moment).tobytes()
    host(saved)[...] = 7
    assert everything(optimizer) == before
    assert cp.cuda.Device().id == 0


def test_loading_takes_memory_on_the_parameter_s_device_alone() -> None:
    source, optimizer = over(CPU), over(1)
    step(source, 2)
    created.clear()
    optimizer.load_state_dict(source.state_dict())
    assert {device for device, _ in created} == {1}


MALFORMED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "shape": (lambda a: a[:-1], r"state\[0\]\['exp_avg_sq'\] has shape \(32, 4\), the parameter \(33, 4\)"),
    "dtype": (
        lambda a: cp.asarray(a.get().astype(np.float64)),
        r"state\[0\]\['exp_avg_sq'\] has dtype float64; the moments here are float32",
    ),
    "below zero": (
        lambda a: claiming(-host(a) - 1, 1),
        r"state\[0\]\['exp_avg_sq'\] holds a negative number",
    ),
    "unknown": (
        lambda a: UnknownArray(host(a), 1),
        r"state\[0\]\['exp_avg_sq'\] cannot be read as an array: .*UnknownArray",
    ),
}


@pytest.mark.parametrize("target", [CPU, 0, 1])
@pytest.mark.parametrize(("change", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_state_on_a_device_that_does_not_fit_is_a_value_error(change: Any, words: str, target: Place) -> None:
    source, optimizer = over(1), over(target)
    step(source, 2)
    step(optimizer, 3)
    before = everything(optimizer)
    saved = source.state_dict()
    saved["state"][0]["exp_avg_sq"] = change(saved["state"][0]["exp_avg_sq"])
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(saved)
    assert everything(optimizer) == before


DUPLICATES: dict[str, tuple[Callable[[Any], Any], int]] = {
    "a copy": (copy.deepcopy, 1),
    "a pickle": (lambda optimizer: pickle.loads(pickle.dumps(optimizer)), 0),  # CuPy reads onto the current device
}


@pytest.mark.parametrize(("duplicate", "device"), DUPLICATES.values(), ids=DUPLICATES)
def test_a_copied_optimizer_goes_on_by_itself_with_the_same_bits(duplicate: Any, device: int) -> None:
    optimizer, undisturbed = over(1, CPU, layout="F"), over(1, CPU)
    for seed in (2, 3):
        for each in (optimizer, undisturbed):
            step(each, seed)
    twin = duplicate(optimizer)
    assert everything(twin) == everything(undisturbed)
    assert [twin.state[0][name].device.id for name in ("exp_avg", "exp_avg_sq")] == [device] * 2
    step(optimizer, 9)
    for seed in (4, 5):
        step(twin, seed)
        step(undisturbed, seed)
    assert everything(twin) == everything(undisturbed)


def test_amsgrad_that_comes_later_is_saved_from_the_device() -> None:
    optimizer, expected = over(1), over(CPU)
    for each in (optimizer, expected):
        step(each, 2)
        each.param_groups[0]["amsgrad"] = True
    saved = optimizer.state_dict()["state"][0]["max_exp_avg_sq"]
    assert type(saved) is cp.ndarray
    assert not host(saved).any()
    for each in (optimizer, expected):
        step(each, 3)
    assert everything(optimizer) == everything(expected)


# ---- without CUDA


STUB = """
#include <radam/cuda.hpp>
#include <cstdio>
namespace {
int devices(radam::cuda::Failure* why) noexcept {
    std::snprintf(why->text, sizeof why->text, "no driver here");
    return 0;
}
}
extern "C" const radam::cuda::Library* radam_cuda_library() {
    static radam::cuda::Library library{};
    library.version = radam::cuda::interface_version + OFFSET;
    library.devices = devices;
    return &library;
}
"""


def missing(folder: Path) -> Path:
    return folder / "missing.so"


def text(folder: Path) -> Path:
    (folder / "text.so").write_text("no library")
    return folder / "text.so"


def stub(folder: Path, content: str) -> Path:
    (folder / "stub.cpp").write_text(content)
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert compiler is not None  # or else there were no stand-in
    include = Path(__file__).resolve().parent.parent / "cpp" / "include"
    options = ["-std=c++17", "-fPIC", "-shared", f"-I{include}", "-o", str(folder / "stub.so")]
    subprocess.run([compiler, *options, str(folder / "stub.cpp")], check=True)
    return folder / "stub.so"


REASONS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no library": (missing, r"this radam is built without CUDA \(.*\); install a radam with CUDA"),
    "no library but a file": (
        text,
        r"the CUDA part of this radam cannot be loaded \(.*text.so.*\); install radam anew",
    ),
    "another library": (
        lambda folder: stub(folder, "int nothing;"),
        r"the CUDA part of this radam cannot be loaded \(.*radam_cuda_library.*\); install radam anew",
    ),
    "another version": (
        lambda folder: stub(folder, STUB.replace("OFFSET", "1")),
        r"the CUDA part of this radam is of another version \(.*stub.so\); install radam anew",
    ),
    "no driver": (
        lambda folder: stub(folder, STUB.replace("OFFSET", "0")),
        r"no CUDA device can be used \(no driver here\); this radam needs an NVIDIA GPU and a driver",
    ),
}


@pytest.mark.parametrize(("make", "words"), REASONS.values(), ids=REASONS)
def test_without_cuda_a_parameter_on_a_device_is_a_runtime_error_that_says_why_and_what_helps(
    make: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizer = mixture()
    given_to(optimizer, 2)
    before, saved = everything(optimizer), optimizer.state_dict()
    _step.set_cuda_library(str(make(tmp_path)))
    refusal = rf"^parameter 1( \('w'\))? of group 0 is on a CUDA device, and {words}.*; or move it to the CPU$"
    with pytest.raises(RuntimeError, match=refusal):
        radam.RAdam({"v": ones(CPU, 3), "w": ones(0, 3)})
    with pytest.raises(RuntimeError, match=refusal):
        given_to(optimizer, 3)
    assert everything(optimizer) == before
    assert re.match(words, _step.why_cuda_is_off())
    assert _step.cuda_devices() == []
    radam.show_config()
    assert re.search(rf"^  CUDA             off: {words}", capsys.readouterr().out, re.MULTILINE)
    # All else works: steps on the CPU, and what was learned on a device goes on there.
    here = radam.RAdam([{"params": [host(p).copy() for p in group["params"]]} for group in optimizer.param_groups])
    here.load_state_dict(saved)
    assert everything(here)["state"] == before["state"]
    given_to(here, 3)


def test_show_config_lists_the_devices(capsys: pytest.CaptureFixture[str]) -> None:
    radam.show_config()
    shown = "stand-in 0 (compute capability 9.0); stand-in 1 (compute capability 9.0)"
    assert f"  CUDA             {shown}\n" in capsys.readouterr().out


# ---- counts, rates and scales in the memory of a device, and graphs


KINDS = [("float32", "float32"), ("bfloat16", "float16"), ("float64", "float64"), ("float16", "float32")]
SIZES = [5000, 77, 300, 0]


class OnDevice:
    """One group on device 0 whose numbers lie there, and a twin on the CPU that is stepped by numbers of the host."""

    def __init__(self, wide: bool = False, **flags: Any) -> None:
        self.flags = {"weight_decay": 0.1, "amsgrad": True, "eps": 1e-8, **flags}
        self.here = [self._buffers(seed, *kind, size) for seed, (kind, size) in enumerate(zip(KINDS, SIZES))]
        self.there = [ref.Buffers(*map(copied, buffers.arrays())) for buffers in self.here]
        dtype = np.float64 if wide else np.float32
        self.counts = [put(np.zeros((), dtype), 0) for _ in KINDS]
        self.lr, self.beta1, self.beta2, self.scale, self.found_inf, self.skipped = (
            put(np.array(value, dtype), 0) for value in (0.01, 0.9, 0.99, 1.0, 0.0, 0.0)
        )
        self.taken = 0

    @staticmethod
    def _buffers(seed: int, param: str, grad: str, size: int) -> ref.Buffers:
        moment = "float64" if param == "float64" else "float32"
        shape = [(size,)]
        (p,), (g,) = some(seed, param, shape), some(seed + 10, grad, shape)
        zeros = np.zeros(size, ref.DTYPES[moment])
        return ref.Buffers(p, g, zeros, zeros.copy(), zeros.copy())

    def number(self, array: Any) -> float:
        return float(host(array))

    def hyperparameters(self, **numbers: float) -> Any:
        return _core.Hyperparameters(**{"lr": 0.5, "beta1": 0.5, "beta2": 0.5, **self.flags, **numbers})

    def new_gradients(self, seed: int) -> None:
        """The same ones for both."""
        for i, (here, there) in enumerate(zip(self.here, self.there)):
            (g,) = some(1000 * seed + i, here.grad.dtype.name, [here.grad.shape])
            here.grad[...] = there.grad[...] = g

    def call(self, nonfinite: str = "propagate", counts: Any = None, numbers: Any = (), amp: Any = ()) -> bool:
        """What radam.torch asks of the core with capturable=True and a GradScaler."""
        arrays_of = zip(*(buffers.arrays() for buffers in self.there), strict=True)
        p, g, m, v, v_max = (tuple(claiming(array) for array in group) for group in arrays_of)
        there = {0: (self.lr, self.beta1, self.beta2)} if numbers == () else numbers
        counts = tuple(self.counts) if counts is None else counts
        group = (self.hyperparameters(), None, p, g, m, v, v_max, counts, None, there)
        return _core.step(
            (group,), nonfinite, None, {0: (self.scale, self.found_inf, self.skipped)} if amp == () else amp
        )

    def expect_a_step(self) -> None:
        """The same on the CPU, its numbers those of the host."""
        self.taken += 1
        numbers = {name: self.number(getattr(self, name)) for name in ("lr", "beta1", "beta2")}
        ref.step(self.hyperparameters(**numbers, grad_scale=1.0 / self.number(self.scale)), self.taken, *self.here)

    def check(self) -> None:
        for i, (here, there) in enumerate(zip(self.here, self.there)):
            ref.same_bits(there, here, f"parameter {i} after {self.taken} steps")
        assert [self.number(count) for count in self.counts] == [self.taken] * len(KINDS)


def changed_each_step(t: int) -> dict[str, float]:
    """The numbers of a step: a schedule, a momentum that cycles, a scale that is no power of two."""
    return {"lr": 0.1 / t, "beta1": 0.9 - 0.1 * (t % 3), "beta2": 0.99 if t < 9 else 0.999, "scale": 3.0 + t % 5}


@contextmanager
def capturing(stand_in: StandIn) -> Iterator[None]:
    stand_in.capture(True)
    try:
        yield
    finally:
        stand_in.capture(False)


def set_numbers(twins: OnDevice, numbers: dict[str, float]) -> None:
    for name, value in numbers.items():
        host(getattr(twins, name))[...] = value


@pytest.mark.parametrize("wide", [False, True])
def test_numbers_in_the_memory_of_a_device_step_with_the_bits_of_numbers_on_the_host(wide: bool) -> None:
    twins = OnDevice(wide)
    for t in range(1, 16):
        set_numbers(twins, changed_each_step(t))
        twins.new_gradients(t)
        assert twins.call()
        twins.expect_a_step()
        twins.check()


def test_counts_alone_may_lie_on_the_device_and_rates_alone_too() -> None:
    counted, rated = OnDevice(wide=True, lr=0.01, beta1=0.9, beta2=0.99), OnDevice()
    steps = np.zeros(len(KINDS), np.int64)
    for t in range(1, 9):
        for twins in (counted, rated):
            twins.new_gradients(t)
            twins.expect_a_step()
        assert counted.call(numbers=None, amp=None)
        counted.check()
        assert rated.call(counts=steps, amp=None)
        assert steps.tolist() == [t] * len(KINDS)
        for here, there in zip(rated.here, rated.there):
            ref.same_bits(there, here)


def test_a_step_in_which_the_scaler_found_an_inf_advances_nothing_but_the_count_of_such() -> None:
    twins = OnDevice()
    for t in range(1, 12):
        twins.new_gradients(t)
        skip = t % 4 == 1
        host(twins.found_inf)[...] = skip
        assert twins.call()  # the host cannot know
        if not skip:
            twins.expect_a_step()
        twins.check()
    assert twins.number(twins.skipped) == 3


def test_twenty_replays_of_a_captured_step_are_twenty_steps(stand_in: StandIn) -> None:
    twins = OnDevice()
    before = [copy.deepcopy(buffers) for buffers in twins.there]
    with capturing(stand_in):
        assert twins.call()
    twins.check()  # nothing has happened yet
    for buffers, old in zip(twins.there, before):
        ref.same_bits(buffers, old)
    for t in range(1, 21):
        set_numbers(twins, changed_each_step(t))
        twins.new_gradients(t)
        stand_in.replay()
        twins.expect_a_step()
        twins.check()
    assert twins.taken == 20
    assert [call.size for call in calls(stand_in, "step")] == [len(KINDS)]


def test_a_captured_step_looks_at_the_gradients_of_every_replay(stand_in: StandIn) -> None:
    twins = OnDevice()
    with capturing(stand_in):
        assert twins.call("skip")
    for t in range(1, 10):
        twins.new_gradients(t)
        broken = t % 3 == 0
        if broken:
            twins.there[t // 3 - 1].grad[-1] = twins.here[t // 3 - 1].grad[-1] = np.nan
        stand_in.replay()
        if not broken:
            twins.expect_a_step()
        twins.check()
    assert twins.number(twins.skipped) == 3
    assert calls(stand_in, "first_nonfinite") == []


def test_what_a_graph_cannot_do_is_refused_while_it_is_captured(stand_in: StandIn) -> None:
    twins = OnDevice()
    steps = np.zeros(len(KINDS), np.int64)
    with capturing(stand_in):
        with pytest.raises(RuntimeError, match="nonfinite='raise' cannot raise from a CUDA graph"):
            twins.call("raise")
        for nonfinite in ("propagate", "skip"):  # a replay would not know of counts, or parameters, on the CPU
            with pytest.raises(RuntimeError, match=r"would not step what is on the CPU.*capturable=True"):
                twins.call(nonfinite, counts=steps, amp=None)
        optimizer = over(0)
        with pytest.raises(RuntimeError, match="would not step what is on the CPU"):
            step(optimizer, 1)
        assert optimizer.state == [{}]
    stand_in.replay()
    assert not steps.any()
    twins.check()


def test_arrays_of_another_framework_are_refused_while_a_graph_is_captured(stand_in: StandIn) -> None:
    param, exp_avg, exp_avg_sq, count = (put(np.zeros(n, np.float32), 0) for n in (5, 5, 5, ()))
    grad = StandardArray(np.ones(5, np.float32), 0)
    hyperparameters = radam.CONVENTIONS["torch"].hyperparameters()
    group = (hyperparameters, None, (param,), (grad,), (exp_avg,), (exp_avg_sq,), None, (count,), None)
    with capturing(stand_in), cp.cuda.ExternalStream(0x30):
        with pytest.raises(RuntimeError, match="of another framework, which works on another stream"):
            _step.step((group,), "propagate")
        assert _step.step(((*group[:3], (put(np.ones(5, np.float32), 0),), *group[4:]),), "propagate")
    stand_in.replay()
    assert host(count) == 1


NONSENSE = {"text": "ab", "None": (None, None), "a float": (2.0, 0.0), "too large": (2, 2**40), "one number": (2,)}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_an_array_that_talks_nonsense_of_its_device_is_a_type_error_that_names_it(answer: Any) -> None:
    class Confused(cp.ndarray):  # type: ignore[misc]
        def __dlpack_device__(self) -> Any:
            return answer

    with pytest.raises(TypeError, match=r"the gradient of parameter 0 of group 0.*Confused"):
        over(0, shape=(3,)).step(grads=[Confused(np.ones(3, np.float32), 0)])


def test_a_device_with_a_negative_number_is_refused() -> None:
    wrong = cp.ndarray(np.ones(3, np.float32), -1)
    assert wrong.__dlpack_device__() == (2, -1)
    with pytest.raises(ValueError, match="exported from CUDA device -1, which is none"):
        radam.RAdam([wrong])


@pytest.mark.parametrize("size", [0, 1, 5, 8])
def test_a_group_that_is_too_short_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="a group must be a tuple"):
        _step.step(((None,) * size,), "propagate")
    with pytest.raises(ValueError, match="a group must be"):
        _step.check_params(((None,) * min(size, 1),))


BAD_NUMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "lr on another device": (
        {"lr": 1},
        "lr, for parameter 0 of group 0 is on CUDA device 1, the parameter on CUDA dev",
    ),
    "beta1 on the CPU": (
        {"beta1": CPU},
        r"betas\[0\], for parameter 0 of group 0 is on the CPU, the parameter on CUDA",
    ),
    "beta2 on another device": ({"beta2": 1}, r"betas\[1\], for parameter 0 of group 0 is on CUDA device 1"),
    "a scale on the CPU": ({"scale": CPU}, "grad_scale, for parameter 0 of group 0 is on the CPU"),
    "found_inf elsewhere": ({"found_inf": 1}, "found_inf, for parameter 0 of group 0 is on CUDA device 1"),
    "skipped elsewhere": ({"skipped": 1}, "the count of skipped steps, for parameter 0 of group 0 is on CUDA device 1"),
}


@pytest.mark.parametrize(("change", "words"), BAD_NUMBERS.values(), ids=BAD_NUMBERS)
def test_a_number_that_does_not_lie_beside_the_parameters_is_refused(change: dict[str, Place], words: str) -> None:
    twins = OnDevice()
    for name, place in change.items():
        setattr(twins, name, put(host(getattr(twins, name)), place))
    with pytest.raises(ValueError, match=words):
        twins.call()
    twins.check()


def test_numbers_that_are_none_are_refused() -> None:
    twins = OnDevice()
    for bad, words in (
        (ones(0, 2), "must hold one number"),
        (ones(0, 1, dtype=np.float16), "must be float32 or float"),
    ):
        twins.lr = bad
        with pytest.raises(ValueError, match=f"lr, for parameter 0 of group 0 {words}"):
            twins.call()
    twins.check()
    twins = OnDevice()
    twins.counts[2] = put(np.zeros((), np.float32), 1)
    with pytest.raises(
        ValueError, match="the step count of parameter 2 of group 0 is on CUDA device 1, the parameter on"
    ):
        twins.call()
    twins = OnDevice()
    with pytest.raises(ValueError, match="step count of parameter 0 of group 0 is on the CPU, where nobody knows"):
        twins.call(counts=np.zeros(len(KINDS), np.int64))
    twins.check()
