"""On a GPU a step has the bits of the CPU: every dtype pair, form, size, place in memory and layout, by every door."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

import radam
import reference as ref
from radam import _core
from radam.torch import RAdam
from test_same_bits import anything, buffers
from test_torch_layouts import GRADIENT_LAYOUTS, LAYOUTS

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
STEPS = 12  # both sides of the first rectified step
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
libraries = pytest.mark.parametrize("library", ["torch", pytest.param("cupy", marks=pytest.mark.gpu("cupy"))])
pairs = pytest.mark.parametrize(("param", "grad"), ref.PAIRS)


# ---- to the device and back


def on_host(x: np.ndarray[Any, Any]) -> Tensor:
    """Return a NumPy array as a tensor over its memory."""
    is_bfloat16 = x.dtype == ml_dtypes.bfloat16
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if is_bfloat16 else torch.from_numpy(x)


def on_device(x: np.ndarray[Any, Any], library: str = "torch") -> Any:
    """Return a copy on the device, an array of a library."""
    return on_host(x).to(DEVICE) if library == "torch" else __import__(library).asarray(x)


def back(x: Any) -> np.ndarray[Any, Any]:
    """Return an array of any library as NumPy's."""
    if not isinstance(x, Tensor):
        return np.asarray(x.get() if hasattr(x, "get") else x)
    x = x.detach().cpu()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype is torch.bfloat16 else x.numpy()


def same(got: Any, expected: Any, what: str) -> None:
    """Assert that two arrays hold the same bits."""
    a, b = ref.bits(back(got)).ravel(), ref.bits(back(expected)).ravel()
    assert a.shape == b.shape, what
    different = np.flatnonzero(a != b)
    assert different.size == 0, f"{what}: {different.size} differ, first [{different[0]}]"


def drawn(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return random numbers on the CPU, the same ones for the same seed."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# ---- the core: a step from any numbers

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "amsgrad": {"amsgrad": True},
    "Adam": {"amsgrad": True, "rectify": False, "eps_on": "sqrt_v_hat"},
    "nesterov": {"nesterov": True, "eps_root": 1e-6},
    "moments only": {"warmup": "moments_only", "weight_decay": 0.1, "decoupled_weight_decay": True},
    "eps on v hat": {"eps_on": "sqrt_v_hat", "beta2": 0.99999},
    "scaled": {"grad_scale": 2.0**-16},
    "no eps": {"eps": 0.0, "grad_scale": 0.3},
    "tiny": {"lr": 2.0**-140, "eps": 1e-30},
}
SMALL = (0, 1, 3, 4099, 0, 17)


def hyperparameters(form: Mapping[str, Any]) -> _core.Hyperparameters:
    return _core.Hyperparameters(**{"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, **form})


def check_core(form: Mapping[str, Any], t: int, slots: Iterable[ref.Buffers], what: str) -> None:
    """Step the same numbers on the CPU and on the device; the device's copies may lie anywhere."""
    slots = list(slots)
    there = [ref.Buffers(*map(on_device, slot.arrays())) for slot in slots]
    check_placed(form, t, slots, there, what)


def check_placed(form: Mapping[str, Any], t: int, here: list[Any], there: list[Any], what: str) -> None:
    h = hyperparameters(form)
    ref.step(h, t, *here)
    ref.step(h, t, *there)
    for i, (expected, got) in enumerate(zip(here, there)):
        ref.same_bits(ref.Buffers(*map(back, got.arrays())), expected, f"{what}, slot {i}")


@pairs
def test_a_step_from_any_numbers(param: str, grad: str) -> None:
    for seed, ((name, form), t) in enumerate(itertools.product(FORMS.items(), (1, 3, 9, 1000))):
        slots = [buffers(100 * seed + i, size, param, grad) for i, size in enumerate(SMALL)]
        check_core(form, t, slots, f"{name}, step {t}")


@pairs
@pytest.mark.parametrize("sizes", [(1_000_003,), (70_000, 1, 0, 63, 300_007)], ids=["one", "some"])
def test_a_step_of_many_tiles(param: str, grad: str, sizes: tuple[int, ...]) -> None:
    for t, form in ((3, FORMS["coupled"]), (1000, FORMS["decoupled"]), (1000, FORMS["amsgrad"])):
        check_core(form, t, [buffers(t + i, size, param, grad) for i, size in enumerate(sizes)], f"step {t}")


def test_a_step_of_more_tensors_than_a_kernel_takes_as_parameters() -> None:
    dtypes = itertools.cycle(ref.PAIRS)
    slots = [buffers(i, i % 70, *next(dtypes)) for i in range(700)]
    check_core(FORMS["amsgrad"], 9, slots, "700 tensors of all dtypes")


# What compute-sanitizer sees: it is slow, above all with allocations.


@pytest.mark.sanitized
@pytest.mark.parametrize("form", ["coupled", "amsgrad", "moments only"])
def test_a_step_of_every_pair_of_dtypes_at_once(form: str) -> None:
    slots = [buffers(i, size, *pair) for i, (pair, size) in enumerate(itertools.product(ref.PAIRS, (1, 8, 4099)))]
    check_core(FORMS[form], 9, slots, form)


@pytest.mark.sanitized
def test_a_step_of_many_pieces_of_a_few_arrays() -> None:
    here = buffers(1, 20_000, "float32", "float32")
    there = ref.Buffers(*map(on_device, here.arrays()))
    cuts = [slice(37 * i, 37 * i + i % 38) for i in range(540)]
    check_placed(FORMS["coupled"], 9, [here.pick(cut) for cut in cuts], [there.pick(cut) for cut in cuts], "pieces")
    ref.same_bits(ref.Buffers(*map(back, there.arrays())), here, "all of it")


# How many elements each array stands behind a multiple of 256 bytes.
OFFSETS = [
    *((n,) * 5 for n in (0, 1, 3, 7)),  # all alike
    (8, 0, 4, 4, 4),
    (1, 0, 0, 0, 0),  # never together at a multiple of 16 bytes
    (0, 1, 2, 3, 5),
]


@pairs
@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
def test_a_step_of_arrays_that_stand_anywhere(param: str, grad: str, offsets: tuple[int, ...]) -> None:
    for seed, size in enumerate((1, 2, 5, 8, 9, 31, 4099, 8200)):
        here, memory, there = buffers(seed, size, param, grad), [], []
        for array, offset in zip(here.arrays(), offsets):
            around = on_device(anything(np.random.default_rng(seed), size + offset + 9, array.dtype.name))
            memory.append((around, around.clone(), offset))
            there.append(around[offset : offset + size].copy_(on_host(array)))
        check_placed(FORMS["amsgrad"], 9, [here], [ref.Buffers(*there)], f"{size} elements")
        for around, before, offset in memory:
            same(around[:offset], before[:offset], "the elements in front")
            same(around[offset + size :], before[offset + size :], "the elements behind")


HUGE = 2**31 + 77


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_more_than_2_to_the_31_elements(dtype: str) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < 13 * HUGE:
        pytest.skip(f"{13 * HUGE / 1e9:.0f} GB of the device's memory are needed, {free / 1e9:.0f} are free")
    torch.manual_seed(1)

    def numbers(draw: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        """Return some over and over, so that drawing them takes no time."""
        return draw(2**20, device=DEVICE).to(dtype).repeat(HUGE // 2**20 + 1)[:HUGE]

    there = [numbers(torch.randn, getattr(torch, dtype)) for _ in range(2)]
    there += [numbers(torch.rand, torch.float32) for _ in range(2)]
    nothing = there[-1][:0]
    cuts = [slice(0, 5000), slice(HUGE // 2 - 100, HUGE // 2 + 100), slice(HUGE - 5000, HUGE)]
    here = [ref.Buffers(*(back(x[cut].clone()) for x in (*there, nothing))) for cut in cuts]
    whole = ref.Buffers(*there, nothing)
    ref.step(hyperparameters(FORMS["coupled"]), 9, *here)
    ref.step(hyperparameters(FORMS["coupled"]), 9, whole)
    for cut, expected in zip(cuts, here):
        for name in ("param", "exp_avg", "exp_avg_sq"):
            same(getattr(whole, name)[cut], getattr(expected, name), f"{name}[{cut}]")


# ---- radam.torch

SHAPES = [(0,), (1,), (3,), (4099,), (), (33, 65)]
SETTINGS: dict[str, dict[str, Any]] = {
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True, "weight_decay": 0.1, "eps": 1e-3},
    "wide betas": {"betas": (0.5, 0.99999)},
    **{f"as {name}": {"convention": name} for name in radam.CONVENTIONS},
}


def leaves(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """Return the same parameters on any device."""
    return [drawn(1000 * seed + i, shape, dtype).to(device).requires_grad_() for i, shape in enumerate(shapes)]


def set_gradients(optimizer: Any, seed: int, times: float = 1.0) -> None:
    """Give all parameters the same gradients on any device, in the tensors that hold them already if there are any."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    ends = list(itertools.accumulate((param.numel() for param in params), initial=0))
    drawn_for: dict[Any, Tensor] = {}
    for param, begin, end in zip(params, ends, ends[1:]):
        kind = (param.dtype, param.device)
        if kind not in drawn_for:  # all at once: one by one would take most of the time of a test
            drawn_for[kind] = (times * drawn(seed + 1, (ends[-1],), param.dtype)).to(param.device)
        grad = drawn_for[kind][begin:end].view(param.shape)
        if param.grad is None:
            param.grad = grad.clone()
        else:
            param.grad.copy_(grad)


def same_optimizers(got: Any, expected: Any, what: str) -> None:
    """Assert that parameters, moments and step counts are the same, and where they belong."""
    for g, (ours, theirs) in enumerate(zip(got.param_groups, expected.param_groups)):
        for i, (a, b) in enumerate(zip(ours["params"], theirs["params"])):
            name = f"{what}, parameter {i} of group {g}"
            same(a, b, name)
            assert set(got.state[a]) == set(expected.state[b]), name
            for key, value in got.state[a].items():
                if key == "step":
                    assert float(value) == float(expected.state[b][key]), f"{name}: step"
                else:
                    assert value.device == a.device, f"{name}: {key}"
                    same(value, expected.state[b][key], f"{name}: {key}")


@pytest.mark.parametrize("capturable", [False, True], ids=["counted here", "counted there"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64], ids=str)
def test_radam_torch_trains_as_on_the_cpu(dtype: torch.dtype, settings: dict[str, Any], capturable: bool) -> None:
    here = RAdam(leaves(SHAPES, dtype, "cpu"), lr=0.01, **settings)
    there = RAdam(leaves(SHAPES, dtype, DEVICE), lr=0.01, capturable=capturable, **settings)
    for t in range(STEPS):
        for optimizer in (here, there):
            set_gradients(optimizer, t)
            optimizer.param_groups[0]["lr"] = 0.01 / (t + 1)
            optimizer.step()
    same_optimizers(there, here, "the end")
    for param in there.param_groups[0]["params"]:
        assert there.state[param]["step"].device.type == (DEVICE if capturable else "cpu")


@pytest.mark.sanitized
def test_learning_rate_and_betas_on_the_device_are_read_there() -> None:
    def trained(device: str, capturable: bool) -> Any:
        numbers = [torch.tensor(x, device=device) for x in (0.01, 0.9, 0.999)]
        params = leaves(SHAPES, torch.float32, device)
        optimizer = RAdam(params, numbers[0], (numbers[1], numbers[2]), capturable=capturable)
        for t in range(STEPS):
            set_gradients(optimizer, t)
            numbers[0].fill_(0.01 / (t + 1))
            numbers[2].fill_(0.999 if t < 8 else 0.99)
            optimizer.step()
        return optimizer

    here = trained("cpu", False)
    for capturable in (False, True):
        same_optimizers(trained(DEVICE, capturable), here, f"capturable={capturable}")


SANITIZED = {("columns", torch.float32): pytest.mark.sanitized}


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        pytest.param(layout, dtype, id=f"{layout} {dtype}", marks=SANITIZED.get((layout, dtype), ()))
        for layout, dtype in itertools.product(LAYOUTS, DTYPES)
    ],
)
def test_every_layout_of_parameter_and_gradient(layout: str, dtype: torch.dtype) -> None:
    size, view = LAYOUTS[layout]
    for seed, gradient in enumerate(GRADIENT_LAYOUTS):
        grad_size, grad_view = GRADIENT_LAYOUTS[gradient]
        if gradient == "lazily negated" and dtype not in (torch.float64, torch.float32):
            continue  # there are no good complex numbers of it
        results = []
        for device in ("cpu", DEVICE):
            buffer = drawn(seed, size, dtype).to(device)
            param = view(buffer).requires_grad_()
            optimizer = RAdam([param], lr=0.02, weight_decay=0.1)
            for t in range(8):
                param.grad = grad_view(drawn(100 + t, grad_size, dtype).to(device))
                optimizer.step()
            moments = [optimizer.state[param][key] for key in ("exp_avg", "exp_avg_sq")]
            results.append([buffer, *moments])
            assert moments[0].stride() == torch.zeros_like(param).stride()
        for expected, got in zip(*results):
            same(got, expected, gradient)


def test_parameters_of_the_cpu_and_of_the_device_step_together() -> None:
    def trained(places: tuple[str, ...]) -> Any:
        narrow, wide = (
            [leaves([shape], dtype, place, seed=i)[0] for i, place in enumerate(places)]
            for shape, dtype in (((33, 5), torch.float32), ((70_001,), torch.float64))
        )
        optimizer = RAdam([{"params": narrow}, {"params": wide, "lr": 0.1}], lr=0.01)
        for t in range(STEPS):
            set_gradients(optimizer, t)
            optimizer.step()
        return optimizer

    same_optimizers(trained(("cpu", DEVICE, "cpu")), trained(("cpu",) * 3), "mixed")


# ---- radam.RAdam and radam.Adam, on arrays of PyTorch and of CuPy

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{f"as {name}": (radam.RAdam, {"convention": name}) for name in radam.CONVENTIONS},
    "coupled": (radam.RAdam, {"weight_decay": 0.1, "maximize": True}),
    "decoupled": (radam.RAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "amsgrad": (radam.RAdam, {"convention": "tfa", "amsgrad": True}),
    "Adam with amsgrad": (radam.Adam, {"amsgrad": True}),
    "AdamW": (radam.Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "a schedule": (radam.RAdam, {"lr": lambda step: 0.1 / step}),
}


def trained(make: Callable[[np.ndarray[Any, Any]], Any], cls: Any, param: str, grad: str, **settings: Any) -> Any:
    rng = np.random.default_rng(5)
    params = [make(rng.standard_normal(shape).astype(ref.DTYPES[param])) for shape in SHAPES]
    optimizer = cls(params, **{"lr": 0.01, **settings})
    for _ in range(STEPS):
        optimizer.step(grads=[make(rng.standard_normal(shape).astype(ref.DTYPES[grad])) for shape in SHAPES])
    return optimizer


@libraries
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("param", "grad"), [("float64",) * 2, ("float32", "float16"), ("float16", "float32")])
def test_arrays_of_a_library_train_as_numpy_s(library: str, optimizer: str, param: str, grad: str) -> None:
    cls, settings = OPTIMIZERS[optimizer]
    here = trained(lambda x: x, cls, param, grad, **settings)
    there = trained(lambda x: on_device(x, library), cls, param, grad, **settings)
    for i, (expected, got) in enumerate(zip(here.param_groups[0]["params"], there.param_groups[0]["params"])):
        same(got, expected, f"parameter {i}")
        assert set(there.state[i]) == set(here.state[i])
        assert there.state[i]["step"] == here.state[i]["step"] == STEPS
        for key in set(here.state[i]) - {"step"}:
            assert type(there.state[i][key]) is type(got)
            same(there.state[i][key], here.state[i][key], f"{key} of parameter {i}")


@pytest.mark.gpu("cupy")
def test_views_of_cupy_arrays_step_in_place_as_numpy_s() -> None:
    import cupy

    views: list[Callable[[Any], Any]] = [
        lambda x: x.transpose(1, 0),
        lambda x: x[:, 1:4],
        lambda x: x[::-1, ::2],
        lambda x: x[3],
    ]
    results = []
    for xp in (np, cupy):
        rng = np.random.default_rng(3)
        wholes = [xp.asarray(rng.standard_normal((7, 6)).astype(np.float32)) for _ in views]
        optimizer = radam.RAdam([view(whole) for view, whole in zip(views, wholes)], lr=0.1)
        for _ in range(STEPS):
            grads = [xp.asarray(rng.standard_normal((7, 6)).astype(np.float32)) for _ in views]
            optimizer.step(grads=[view(grad) for view, grad in zip(views, grads)])
        results.append(wholes)
    for i, (expected, got) in enumerate(zip(*results)):
        same(got, expected, f"view {i}")
