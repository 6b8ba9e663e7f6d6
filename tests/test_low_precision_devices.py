"""Low precision and clipping on CUDA devices, by their stand-ins: the bits of the CPU, states beside the parameters."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import radam
import stand_in_device
from precisions import DTYPES, WAYS, same_nan
from stand_in_device import DeviceArray, StandardArray, claiming, cupy_imported
from stand_in_library import StandIn


@pytest.fixture(autouse=True)
def _a_machine_with_two_devices_and_cupy(stand_in: StandIn) -> Iterator[None]:
    with cupy_imported():
        yield


SHAPES = [(300,), (17, 23), (), (0,), (4099,), (2, 3, 5)]


def numbers(seed: int, dtype: str, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape) * scale).astype(DTYPES[dtype]) for shape in SHAPES]


def there(array: np.ndarray, device: int | None) -> Any:
    """A copy of an array on a device, at an address as devices give them; None is the CPU."""
    if device is None:
        return array.copy("K")
    made = stand_in_device.aligned(array.T.shape, array.dtype).T
    made[...] = array
    return claiming(made, device)


def host(array: Any) -> np.ndarray:
    return array._view if isinstance(array, DeviceArray) else np.asarray(array)


def bits(optimizer: radam.RAdam) -> list[Any]:
    params = [same_nan(host(param)) for group in optimizer.param_groups for param in group["params"]]
    return [
        *params,
        *(
            {key: value if key == "step" else same_nan(host(value)) for key, value in entry.items()}
            for entry in optimizer.state
        ),
    ]


def trained(way: str, places: list[int | None], steps: int = 7, **keywords: Any) -> radam.RAdam:
    dtype, options = WAYS[way]
    params = [there(np.array(p, order="F"), place) for p, place in zip(numbers(1, dtype), places)]
    optimizer = radam.RAdam(params, lr=0.01, amsgrad=True, **options, **keywords)
    for seed in range(steps):
        grads = [there(g, place) for g, place in zip(numbers(10 + seed, dtype), places)]
        optimizer.step(grads=grads)
    return optimizer


CPU: list[int | None] = [None] * len(SHAPES)
PLACES: dict[str, list[int | None]] = {
    "one device": [0] * len(SHAPES),
    "two devices": [0, 1] * (len(SHAPES) // 2),
    "a device and the CPU": [None, 0] * (len(SHAPES) // 2),
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_steps_on_a_device_with_the_bits_of_the_cpu(way: str, places: list[int | None]) -> None:
    optimizer = trained(way, places)
    assert bits(optimizer) == bits(trained(way, CPU))
    for place, entry in zip(places, optimizer.state):
        for key, value in entry.items():
            if key != "step":
                assert getattr(value, "_number", None) == place, key


@pytest.mark.parametrize("way", WAYS)
def test_a_state_goes_from_a_device_to_the_cpu_and_back_with_the_same_bits(way: str, tmp_path: Path) -> None:
    on_device = trained(way, PLACES["two devices"])
    on_device.save(tmp_path / "s")
    saved = on_device.state_dict()
    for places in (CPU, PLACES["one device"]):
        for load in (lambda o: o.load(tmp_path / "s"), lambda o: o.load_state_dict(saved)):
            other = trained(way, places, steps=0)
            for ours, theirs in zip(other.param_groups[0]["params"], on_device.param_groups[0]["params"]):
                host(ours)[...] = host(theirs)
            load(other)
            assert bits(other) == bits(on_device)
    twin = pickle.loads(pickle.dumps(on_device))  # whose arrays are in C order: blocks of others are cut anew
    same = 2 * [len(shape) < 2 or "8-bit" not in way for shape in SHAPES]
    assert list(itertools.compress(bits(twin), same)) == list(itertools.compress(bits(on_device), same))


CLIPS = ["max_grad_norm", "max_tensor_grad_norm", "max_grad_value"]


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("way", ["float32", "split, 8-bit"])
def test_clipping_on_a_device_has_the_bits_of_the_cpu(
    way: str, clip: str, places: list[int | None], nonfinite: Any
) -> None:
    keywords: dict[str, Any] = {clip: 0.5, "nonfinite": nonfinite}
    optimizer, expected = trained(way, places, **keywords), trained(way, CPU, **keywords)
    assert bits(optimizer) == bits(expected)
    assert optimizer.grad_norm == expected.grad_norm
    assert isinstance(optimizer.grad_norm, float) == (clip != "max_grad_value")
    if places is PLACES["one device"] and clip == "max_grad_norm" and nonfinite == "propagate":
        assert isinstance(optimizer._grad_norm, DeviceArray)  # nobody has waited for it
    twin = pickle.loads(pickle.dumps(optimizer))
    assert twin.grad_norm == expected.grad_norm


def test_a_norm_that_is_not_finite_is_known_from_a_device_too() -> None:
    for places in PLACES.values():
        optimizer = trained("float32", places, nonfinite="skip", max_grad_norm=1.0)
        before = bits(optimizer)
        grads = [there(g, place) for g, place in zip(numbers(50, "float32"), places)]
        host(grads[4])[7] = np.inf
        optimizer.step(grads=grads)
        assert optimizer.grad_norm == np.inf
        assert optimizer.skipped_steps == 1
        assert bits(optimizer) == before


@pytest.mark.parametrize(
    ("dtype", "options", "words"),
    [
        ("float32", {"state_dtype": "8bit", "min_8bit_size": 0}, "has no int8, which state_dtype='8bit' needs"),
        ("float32", {"state_dtype": "bfloat16"}, "has no bfloat16, which state_dtype='bfloat16' needs"),
        ("bfloat16", {"master_weights": True}, "has no int16, which master_weights=True needs"),
    ],
)
def test_a_library_without_the_dtype_is_refused_at_construction(
    dtype: str, options: dict[str, Any], words: str
) -> None:
    array = StandardArray(stand_in_device.aligned((300,), DTYPES[dtype]), 0)
    with pytest.raises(TypeError, match=rf"parameter 0 \('w'\) of group 0: .*{words}"):
        radam.RAdam({"w": array}, **options)


def test_a_library_of_the_standard_alone_keeps_a_master() -> None:
    array = StandardArray(stand_in_device.aligned((300,), np.float16), 0)
    grad = StandardArray(stand_in_device.aligned((300,), np.float16), 0)
    host(grad)[...] = 1
    optimizer = radam.RAdam([array], lr=1e-3, master_weights=True, max_grad_norm=1.0)
    optimizer.step(grads=[grad])
    assert type(optimizer.state[0]["master"]) is StandardArray
    assert optimizer.grad_norm == pytest.approx(np.sqrt(300))
