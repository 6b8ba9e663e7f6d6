"""C++ and Python read each other's saved states, and a run that changes between them keeps its bits."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import make_frozen_states as frozen
import radam
from building import ROOT, output, run, tool
from precisions import DTYPES, WAYS
from radam.conventions import CONVENTIONS

Array = np.ndarray[Any, Any]
HERE = Path(__file__).resolve().parent / "saved_states"
SHAPES = [(300,), (17, 23), (2, 3, 5, 7), (0, 3), (128,), (1, 129), (1,)]
GROUPS = [slice(0, 4), slice(4, 7)]
NAMES = ["a", "b", "Straße", "\N{GRINNING FACE}", "d\n\"'", "e\\", "f"]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that takes steps in C++."""
    path = tmp_path_factory.mktemp("program") / "steps"
    compiler = tool("c++", "g++", "clang++")
    output([compiler, "-std=c++17", "-O1", f"-I{ROOT / 'cpp' / 'include'}", HERE / "main.cpp", "-o", path])
    return path


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer as both languages can make it."""

    dtype: str = "float32"
    precision: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    convention: str = "torch"
    named: bool = True

    def groups(self) -> list[dict[str, Any]]:
        """Return the options of each group."""
        decay = 0.0 if self.convention == "optax" else 0.01
        usual = {"lr": 0.01, "betas": (0.9, 0.999), "weight_decay": decay, "decoupled_weight_decay": None}
        usual = {**usual, "maximize": False, "amsgrad": False, **self.options}
        return [usual, {**usual, "lr": 0.03, "betas": (0.8, 0.99)}]

    def optimizer(self, params: list[Array]) -> radam.RAdam | radam.Adam:
        """Return Python's."""
        groups = []
        for part, options in zip(GROUPS, self.groups()):
            names = zip(NAMES[part], params[part])
            groups.append({"params": dict(names) if self.named else params[part], **options})
        if self.convention == "adam":
            return radam.Adam(groups, **self.precision)
        return radam.RAdam(groups, convention=self.convention, **self.precision)


CASES = {
    **{
        f"{way}{', amsgrad' if amsgrad else ''}": Case(dtype, precision, {"amsgrad": amsgrad})
        for way, (dtype, precision) in WAYS.items()
        for amsgrad in (False, True)
    },
    **{name: Case(convention=name) for name in CONVENTIONS},
    "Adam": Case(convention="adam", options={"decoupled_weight_decay": False}),
    "AdamW": Case(convention="adam", options={"decoupled_weight_decay": True}),
    "decoupled, maximize": Case(options={"decoupled_weight_decay": True, "maximize": True}),
    "without names": Case(named=False),
}


def words(array: Array) -> Array:
    """Return bfloat16 numbers as their bits, which a file takes."""
    return array.view(np.uint16) if array.dtype == DTYPES["bfloat16"] else array


def numbers(seed: int, dtype: str, scale: float = 1.0) -> list[Array]:
    """Return an array of each shape."""
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(shape)).astype(DTYPES[dtype]) for shape in SHAPES]


def grads(case: Case, t: int) -> list[Array | None]:
    """Return the gradients of a step: the third parameter's from the fourth step on, the fifth one's never."""
    found: list[Array | None] = list(numbers(100 + t, case.dtype, 0.1))
    return [None if i == 4 or (i == 2 and t < 4) else grad for i, grad in enumerate(found)]


Steps = Callable[..., list[Array]]


def in_python(case: Case, params: list[Array], steps: range, load: str = "", save: str = "") -> list[Array]:
    """Load a state, if there is one, take the steps, save if it is to be; return the parameters."""
    params = [param.copy() for param in params]
    optimizer = case.optimizer(params)
    if load:
        optimizer.load(load)
    for t in steps:
        optimizer.step(grads=grads(case, t))
    if save:
        optimizer.save(save)
    return params


class InCpp:
    """The same in C++."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder = program, folder
        self.environment: dict[str, str] = {}
        self.shaped = True

    def __call__(self, case: Case, params: list[Array], steps: range, load: str = "", save: str = "") -> list[Array]:
        taken = {
            f"grad.{k}.{i}": words(grad)
            for k, t in enumerate(steps)
            for i, grad in enumerate(grads(case, t))
            if grad is not None
        }
        return self.steps(case, params, taken, load, save)

    def steps(self, case: Case, params: list[Array], taken: dict[str, Array], load: str, save: str) -> list[Array]:
        groups = []
        names = NAMES if case.named else [""] * len(NAMES)
        for part, options in zip(GROUPS, case.groups()):
            group: dict[str, Any] = {**options, "names": names[part]}
            group["beta1"], group["beta2"] = group.pop("betas")
            decoupled = group.pop("decoupled_weight_decay")
            groups.append(group if decoupled is None else {**group, "decoupled": decoupled})
        return self.follow(case, groups, params, taken, load, save)

    def follow(
        self,
        case: Case,
        groups: list[dict[str, Any]],
        params: list[Array],
        taken: dict[str, Array],
        load: str,
        save: str,
    ) -> list[Array]:
        plan = {
            "dtype": case.dtype,
            "convention": case.convention,
            "precision": dataclasses.asdict(radam.precision.Precision(**case.precision)),
            "groups": groups,
            "shaped": self.shaped,
            "steps": len({key.split(".")[1] for key in taken}),
            "load": load,
            "save": save,
            "out": str(self.folder / "out"),
        }
        tensors = {**{f"param.{i}": words(param) for i, param in enumerate(params)}, **taken}
        save_file(tensors, self.folder / "plan", metadata={"plan": json.dumps(plan)})
        done = run([self.program, self.folder / "plan"], environment=self.environment)
        if done.returncode:
            raise ValueError(done.stdout)
        out = load_file(self.folder / "out")
        return [out[f"param.{i}"].view(param.dtype).reshape(param.shape) for i, param in enumerate(params)]


@pytest.fixture
def in_cpp(program: Path, tmp_path: Path) -> InCpp:
    return InCpp(program, tmp_path)


def content(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return what a saved file says of the optimizer and of its tensors, and the bytes of these."""
    whole = Path(path).read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    tensors = json.loads(whole[8:end])
    return json.loads(tensors.pop("__metadata__")["radam"]), tensors, whole[end:]


def same(found: list[Array], expected: list[Array]) -> None:
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.tobytes() == b.tobytes(), i


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_changes_the_language_keeps_its_bits(name: str, in_cpp: InCpp, tmp_path: Path) -> None:
    case, start = CASES[name], numbers(1, CASES[name].dtype)
    files = [str(tmp_path / f"state.{k}") for k in range(3)]
    expected = [in_python(case, start, range(end), save=file) for end, file in zip((3, 7, 9), files)]
    stays = [content(file) for file in files]
    both: list[tuple[Steps, Steps]] = [(in_python, in_cpp), (in_cpp, in_python)]
    for first, second in both:
        params = first(case, start, range(3), save=files[0])
        same(params, expected[0])
        params = second(case, params, range(3, 7), load=files[0], save=files[1])
        same(params, expected[1])
        params = first(case, params, range(7, 9), load=files[1], save=files[2])
        same(params, expected[2])
        assert [content(file) for file in files] == stays


def test_both_write_the_same_file(in_cpp: InCpp, tmp_path: Path) -> None:
    files = [tmp_path / "python", tmp_path / "cpp"]
    for case in (CASES["8-bit, amsgrad"], CASES["split, 8-bit"], CASES["float64, 8-bit asked for"]):
        start = numbers(1, case.dtype)
        in_python(case, start, range(3), save=str(files[0]))
        in_cpp(case, start, range(3), save=str(files[1]))
        # But for the order in which Python has the entries of a group.
        sizes = [len(file.read_bytes()) for file in files]
        assert sizes[0] == sizes[1]
        assert content(files[0]) == content(files[1])
        assert list(content(files[0])[1].items()) == list(content(files[1])[1].items())
        assert list(content(files[0])[0]) == list(content(files[1])[0])


@pytest.mark.parametrize("name", frozen.STATES)
def test_what_was_saved_once_loads_in_cpp_for_ever(name: str, in_cpp: InCpp, tmp_path: Path) -> None:
    dtype, options = frozen.STATES[name]
    arrays = load_file(frozen.DATA / f"{name}.step.safetensors")
    params = [arrays[f"param.{i}"].view(dtype).reshape(shape) for i, shape in enumerate(frozen.SHAPES)]
    taken = {f"grad.0.{i}": arrays[f"grad.{i}"] for i in range(len(params))}
    saved = str(frozen.DATA / f"{name}.state.safetensors")
    # In C order, as C++ has its parameters; 8-bit moments of the transposed one then have blocks of their own.
    here = [param.copy() for param in params]
    optimizer = frozen.optimizer_of(here, options)
    optimizer.load(saved)
    optimizer.step(grads=[taken[f"grad.0.{i}"].view(dtype).reshape(p.shape) for i, p in enumerate(params)])
    optimizer.save(tmp_path / "python")

    precision = {key: value for key, value in options.items() if key != "amsgrad"}
    case = Case(np.dtype(dtype).name, precision)
    group = {"beta1": 0.5, "beta2": 0.5, "lr": 1.0, "weight_decay": 0.5, "maximize": True}  # which the file's replace
    group["amsgrad"] = not options.get("amsgrad", False)
    groups = [{**group, "names": ["first", "second"]}, {**group, "names": ["third"]}]
    found = in_cpp.follow(case, groups, params, taken, saved, str(tmp_path / "cpp"))
    same(found, here)
    (header, *tensors), (expected, *expected_tensors) = content(tmp_path / "cpp"), content(tmp_path / "python")
    assert header == expected
    if group["amsgrad"]:  # there is room for a maximum then, which this state has none of
        assert header["param_groups"][0]["amsgrad"] is False
    else:
        assert tensors == expected_tensors
    if "eight_bit" not in name:
        same(found, [arrays[f"after.param.{i}"] for i in range(len(params))])


@pytest.mark.parametrize("to", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("kept", ["float32", "bfloat16", "8bit"])
def test_moments_are_converted_as_python_converts_them(kept: str, to: str, in_cpp: InCpp, tmp_path: Path) -> None:
    here = Case("bfloat16", {"state_dtype": kept, "min_8bit_size": 100, "master_weights": True, "seed": 5})
    there = Case("bfloat16", {"state_dtype": to, "min_8bit_size": 0})
    files = [str(tmp_path / f"state.{k}") for k in range(3)]
    params = in_python(here, numbers(1, "bfloat16"), range(4), save=files[0])
    same(
        in_cpp(there, params, range(4, 7), load=files[0], save=files[1]),
        in_python(there, params, range(4, 7), load=files[0], save=files[2]),
    )
    assert content(files[1]) == content(files[2])


def test_a_parameter_without_dimensions_keeps_none(in_cpp: InCpp, tmp_path: Path) -> None:
    files = [str(tmp_path / f"state.{k}") for k in range(2)]
    params = [np.array(1.5, np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)]
    python = radam.RAdam([param.copy() for param in params], lr=0.01)
    python.step(grads=params)
    python.save(files[0])
    group = {"lr": 0.5, "beta1": 0.0, "beta2": 0.0, "weight_decay": 0.0, "maximize": False, "amsgrad": False}
    in_cpp.shaped = False
    taken = {f"grad.0.{i}": param for i, param in enumerate(params)}
    start = [array.copy() for array in python.param_groups[0]["params"]]
    found = in_cpp.follow(Case(), [{**group, "names": ["", ""]}], start, taken, files[0], files[1])
    python.step(grads=params)
    same(found, python.param_groups[0]["params"])
    after = python.state
    python.load(files[1])
    for a, b in zip(after, python.state):
        assert {key: np.asarray(value).tobytes() for key, value in a.items()} == {
            key: np.asarray(value).tobytes() for key, value in b.items()
        }


EDITS: dict[str, Callable[[dict[str, Any], dict[str, Array]], object]] = {
    "version": lambda header, tensors: header.update(version=3),
    "optimizer": lambda header, tensors: header.update(optimizer="Adam"),
    "convention": lambda header, tensors: header["convention"].update(eps_on="sqrt_v_hat"),
    "a group more": lambda header, tensors: header["param_groups"].append(dict(header["param_groups"][0], params=[])),
    "names": lambda header, tensors: header["param_groups"][0]["param_names"].reverse(),
    "no lr": lambda header, tensors: header["param_groups"][1].pop("lr"),
    "lr": lambda header, tensors: header["param_groups"][1].update(lr=-1.0),
    "step": lambda header, tensors: header["steps"].update({"0": 2**62 + 1}),
    "a step too few": lambda header, tensors: header["steps"].pop("1"),
    "a tensor too few": lambda header, tensors: tensors.pop("1.exp_avg_sq"),
    "a negative square": lambda header, tensors: np.negative(tensors["1.exp_avg_sq"], out=tensors["1.exp_avg_sq"]),
    "shape": lambda header, tensors: tensors.update({"1.exp_avg": tensors["1.exp_avg"].T.copy()}),
    "dtype": lambda header, tensors: tensors.update({"1.exp_avg": tensors["1.exp_avg"].astype(np.float64)}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_cpp_refuses_what_python_refuses(edit: str, in_cpp: InCpp, tmp_path: Path) -> None:
    case, path = Case(), str(tmp_path / "state")
    params = in_python(case, numbers(1, "float32"), range(2), save=path)
    header, tensors = content(path)[0], load_file(path)
    for take in (in_python, in_cpp):
        take(case, params, range(2, 3), load=path)
    EDITS[edit](header, tensors)
    save_file(tensors, path, metadata={"radam": json.dumps(header)})
    for take in (in_python, in_cpp):
        with pytest.raises(ValueError) as error:
            take(case, params, range(2, 3), load=path)
    assert path in str(error.value)


def test_a_file_is_the_same_in_a_locale_that_writes_0_comma_1(
    in_cpp: InCpp, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if os.name != "posix" or shutil.which("localedef") is None:
        pytest.skip("needs localedef, which makes a locale")
    locale = tmp_path / "de_DE.UTF-8"
    done = run([tool("localedef"), "-i", "de_DE", "-f", "UTF-8", locale])
    if not locale.is_dir():
        pytest.skip(f"localedef makes no locale here: {done.stdout}")
    german = {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8"}
    # And where the standard library cannot write doubles by itself.
    command = [tool("c++", "g++", "clang++"), "-std=c++17", "-DRADAM_JSON_CHARCONV=0", f"-I{ROOT / 'cpp' / 'include'}"]
    output([*command, ROOT / "cpp" / "tests" / "json.cpp", "-o", tmp_path / "json"])
    output([tmp_path / "json"], environment=german)
    files = [str(tmp_path / f"state.{k}") for k in range(2)]
    in_cpp(Case(), numbers(1, "float32"), range(2), save=files[0])
    in_cpp.environment = german
    in_cpp(Case(), numbers(1, "float32"), range(2), load=files[0], save=files[1])
    assert content(files[0])[0]["param_groups"] == content(files[1])[0]["param_groups"]
