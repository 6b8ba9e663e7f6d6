"""radam::torch::RAdam, built against the LibTorch in the installed torch: the bits of radam.torch.RAdam, and more."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from building import ROOT, configure, output, run, tool

torch = pytest.importorskip("torch")
import radam  # noqa: E402
import radam.torch  # noqa: E402

Tensor = Any
LIBTORCH = Path(__file__).resolve().parent / "libtorch"
PROMISES = re.findall(r"PROMISE\((\w+)\),", (LIBTORCH / "dispatched.cpp").read_text(encoding="utf-8"))
TORCH_CMAKE = Path(torch.utils.cmake_prefix_path) / "Torch"

STEPS = 60
SHAPES: list[tuple[int, ...]] = [(40, 5), (), (0, 3), (7,), (3, 130)]

# What a case says beside its tensors. "like" is who it is compared with: the front end for PyTorch, or radam.RAdam,
# which alone has amsgrad, and gradients of another dtype.
CASES: dict[str, dict[str, Any]] = {
    **{dtype: {"dtype": dtype} for dtype in ("float64", "float32", "bfloat16", "float16")},
    **{dtype: {"dtype": dtype} for dtype in ("complex128", "complex64", "complex32")},
    "coupled_decay": {"groups": [{"weight_decay": 0.1}]},
    "decoupled_decay": {"groups": [{"weight_decay": 0.1, "decoupled": 1}]},
    "maximize": {"groups": [{"maximize": 1, "weight_decay": 0.1}]},
    "hyperparameters": {"groups": [{"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-5}]},
    "amsgrad": {"groups": [{"amsgrad": 1, "beta2": 0.8, "beta1": 0.9}], "like": "arrays"},
    "many_groups": {"groups": [{"lr": 0.1}, {"lr": 0.001, "weight_decay": 0.1, "decoupled": 1}, {"maximize": 1}]},
    "never_rectified_at_first": {"convention": "author", "groups": [{"lr": 0.01}]},
    "optax": {"convention": "optax"},
    "missing_gradients": {"gaps": True},
    "transposed": {"layout": "transposed"},
    "transposed_gradients": {"grad_layout": "transposed"},
    "strided": {"layout": "strided", "grad_layout": "strided", "shapes": [(40, 5), (7,)]},
    "strided_complex": {"layout": "strided", "dtype": "complex64", "shapes": [(40, 5), (7,)]},
    "transposed_complex": {"layout": "transposed", "dtype": "complex64"},
    "expanded_gradients": {"grad_layout": "expanded", "shapes": [(40, 5), (3, 4)]},
    "bfloat16_gradients": {"grad_dtype": "bfloat16", "like": "arrays"},
    "float32_gradients": {"dtype": "bfloat16", "grad_dtype": "float32", "like": "arrays"},
    "split": {"dtype": "bfloat16", "precision": {"master_weights": True}},
    "master": {"dtype": "float16", "precision": {"master_weights": True}},
    "complex_master": {"dtype": "complex32", "precision": {"master_weights": True}},
    "stochastic": {"dtype": "bfloat16", "precision": {"stochastic_rounding": True, "seed": 2**64 - 1}},
    "stochastic_transposed": {
        "dtype": "float16",
        "layout": "transposed",
        "precision": {"stochastic_rounding": True, "state_dtype": "bfloat16", "seed": 5},
    },
    "stochastic_strided": {
        "dtype": "bfloat16",
        "layout": "strided",
        "shapes": [(40, 5), (7,)],
        "precision": {"stochastic_rounding": True, "seed": 5},
    },
    "bfloat16_moments": {"precision": {"state_dtype": "bfloat16"}},
    "8bit": {"precision": {"state_dtype": "8bit", "min_8bit_size": 1}},
    "8bit_large_ones": {"precision": {"state_dtype": "8bit", "min_8bit_size": 100}},
    "8bit_transposed_split": {
        "dtype": "bfloat16",
        "layout": "transposed",
        "precision": {"state_dtype": "8bit", "min_8bit_size": 1, "master_weights": True},
    },
    "8bit_amsgrad": {
        "groups": [{"amsgrad": 1}],
        "precision": {"state_dtype": "8bit", "min_8bit_size": 1},
        "like": "arrays",
    },
    "max_grad_norm": {"clip": {"max_grad_norm": 0.5}},
    "max_tensor_grad_norm": {"clip": {"max_tensor_grad_norm": 0.25}, "dtype": "bfloat16"},
    "max_grad_value": {"clip": {"max_grad_value": 0.125}},
}
# Which of them the program runs too whose loops are compiled in its own file.
HEADER_ONLY = ("float32", "bfloat16", "complex64", "missing_gradients", "8bit", "split", "max_grad_norm")


def value(count: int, stream: int) -> Tensor:
    """Return the first numbers of a stream, as cases.hpp has them."""
    low = 0xFFFFFFFF
    x = (torch.arange(count, dtype=torch.int64) * 2654435761 + stream * 2246822519 + 12345) & low
    x ^= x >> 15
    x = (x * 2654435761) & low
    return (x >> 8).to(torch.float32) * 2.0**-24 - 0.5


def numbers(shape: tuple[int, ...], dtype: str, layout: str, stream: int) -> Tensor:
    real = (*shape, 2) if dtype.startswith("complex") else shape
    made = value(torch.Size(real).numel(), stream).reshape(real)
    if dtype.startswith("complex"):
        made = torch.complex(made[..., 0], made[..., 1])
    made = made.to(getattr(torch, dtype))
    if layout == "transposed":
        order = tuple(reversed(range(len(shape))))
        return made.permute(order).contiguous().permute(order)
    if layout == "strided":
        return torch.zeros((*shape[:-1], 2 * shape[-1]), dtype=made.dtype)[..., ::2].copy_(made)
    return made[0].expand(shape) if layout == "expanded" else made


def full(case: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        **{"dtype": "float32", "layout": "plain", "grad_layout": "plain", "shapes": SHAPES, "groups": [{"lr": 0.01}]},
        **{"precision": {}, "clip": {}, "convention": "torch", "gaps": False, "like": "torch"},
        **case,
    }
    made.setdefault("grad_dtype", made["dtype"])
    return made


def group_of(case: Mapping[str, Any], index: int) -> int:
    return index * len(case["groups"]) // len(case["shapes"])


def described(name: str, case: Mapping[str, Any]) -> list[str]:
    """Return the lines that tell cases.hpp of a case."""
    lines = [f"case {name}", f"convention {case['convention']}"]
    if case["precision"]:
        p = radam.precision.Precision(**case["precision"])
        flags = f"{p.master_weights:d} {p.stochastic_rounding:d}"
        lines.append(f"precision {flags} {p.state_dtype} {p.min_8bit_size} {p.seed}")
    lines += [f"{key} {most}" for key, most in case["clip"].items()]
    for number, group in enumerate(case["groups"]):
        lines.append(" ".join(["group", *(f"{key} {said!r}" for key, said in group.items())]))
        for index, shape in enumerate(case["shapes"]):
            if group_of(case, index) == number:
                words = (case["dtype"], case["grad_dtype"], case["layout"], case["grad_layout"], *shape)
                lines.append("param " + " ".join(map(str, words)))
    return [*lines, f"run {STEPS} {'gaps' if case['gaps'] else 'all'}"]


def stepped(name: str, case: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what the Python optimizer makes of a case, under the keys of cases.hpp."""
    params = [numbers(shape, case["dtype"], case["layout"], i) for i, shape in enumerate(case["shapes"])]
    groups: list[dict[str, Any]] = []
    for number, said in enumerate(case["groups"]):
        group: dict[str, Any] = {"params": [p for i, p in enumerate(params) if group_of(case, i) == number]}
        group.update({key: said[key] for key in ("lr", "eps", "weight_decay") if key in said})
        group.update({key: bool(said[key]) for key in ("maximize", "amsgrad") if key in said})
        if "beta1" in said or "beta2" in said:
            group["betas"] = (said.get("beta1", 0.9), said.get("beta2", 0.999))
        if "decoupled" in said:
            group["decoupled_weight_decay"] = bool(said["decoupled"])
        groups.append(group)
    kind = radam.torch.RAdam if case["like"] == "torch" else radam.RAdam
    optimizer: Any = kind(groups, convention=case["convention"], **case["precision"], **case["clip"])
    for t in range(STEPS):
        grads = [
            None
            if case["gaps"] and (t + i) % 5 == 4
            else numbers(shape, case["grad_dtype"], case["grad_layout"], 1000 + 100 * t + i)
            for i, shape in enumerate(case["shapes"])
        ]
        if case["like"] == "torch":
            for param, grad in zip(params, grads):
                param.grad = grad
            optimizer.step()
        else:
            optimizer.step(grads=grads)
    out = {}
    for i, param in enumerate(params):
        entry = optimizer.state[param if case["like"] == "torch" else i]
        found = {"param": param, **{key: torch.as_tensor(x) for key, x in entry.items() if key != "block_order"}}
        out.update({f"{name}/{i}/{_key(key)}": _as_written(x) for key, x in found.items()})
    if case["clip"] and "max_grad_value" not in case["clip"]:
        out[f"{name}/norm"] = torch.tensor(optimizer.grad_norm, dtype=torch.float64)
    return out


def _key(key: str) -> str:
    return {"remainder": "master"}.get(key, key.removesuffix("_code"))


def _as_written(tensor: Tensor) -> Tensor:
    plain = tensor.detach().contiguous()
    return torch.view_as_real(plain) if plain.is_complex() else plain


def bits(tensor: Tensor) -> bytes:
    return bytes(torch.atleast_1d(tensor.detach().contiguous()).reshape(-1).view(torch.uint8).numpy().tobytes())


@pytest.fixture(scope="session")
def build(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the two programs."""
    folder = tmp_path_factory.mktemp("libtorch")
    configure(
        LIBTORCH,
        folder,
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1",
        f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DTorch_DIR={TORCH_CMAKE}",
    )
    output([tool("cmake"), "--build", folder])
    return folder


@pytest.fixture(scope="session")
def results(build: Path) -> dict[str, dict[str, Tensor]]:
    """What each program makes of its cases."""
    found = {}
    for program, names in (("dispatched", tuple(CASES)), ("header_only", HEADER_ONLY)):
        lines = [line for name in names for line in described(name, full(CASES[name]))]
        (build / f"{program}.txt").write_text("\n".join(lines), encoding="utf-8")
        output([build / program, build / f"{program}.txt", build / f"{program}.pt"])
        found[program] = dict(torch.load(build / f"{program}.pt", weights_only=False))  # our own program's
    return found


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize(
    ("program", "name"),
    [*(("dispatched", name) for name in CASES), *(("header_only", name) for name in HEADER_ONLY)],
)
def test_the_bits_are_those_of_python(results: dict[str, dict[str, Tensor]], program: str, name: str) -> None:
    expected = stepped(name, full(CASES[name]))
    found = {key: x for key, x in results[program].items() if key.startswith(f"{name}/")}
    moved = [key for key in expected if key.endswith("/param")]
    assert any(bits(expected[key]) != bits(numbers_at(name, key)) for key in moved)
    assert {key for key in found if not key.endswith("/norm")} == {key for key in expected if not key.endswith("/norm")}
    for key, wanted in expected.items():
        if key.endswith("/step"):
            assert int(found[key]) == int(wanted), key
        else:
            assert tuple(found[key].shape) == tuple(wanted.shape), key
            assert bits(found[key]) == bits(wanted), key


def numbers_at(name: str, key: str) -> Tensor:
    case, index = full(CASES[name]), int(key.split("/")[1])
    return numbers(case["shapes"][index], case["dtype"], "plain", index)


@pytest.mark.parametrize("promise", PROMISES)
def test_promise(build: Path, promise: str) -> None:
    if promise.endswith("_to_a_gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and LibTorch built for it")
    done: subprocess.CompletedProcess[str] = run([build / "dispatched", promise])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("standard", ["c++17", "c++20"])
def test_clang_compiles_the_header_without_a_warning(standard: str, tmp_path: Path) -> None:
    program = tmp_path / "header.cpp"
    program.write_text("#include <radam/torch.hpp>\ntemplate class radam::torch::BasicRAdam<radam::HeaderOnly<>>;\n")
    include = Path(torch.__file__).parent / "include"
    torchs = ("-isystem", include, "-isystem", include / "torch/csrc/api/include")
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    output(
        [tool("clang++"), f"-std={standard}", "-fsyntax-only", *warnings, *torchs, "-I", ROOT / "cpp/include", program]
    )
