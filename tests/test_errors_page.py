"""The messages that docs/errors.md shows are those that are raised."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import radam
from errors_page import Trigger, check_section, is_shown_as, said_by, shown
from pages import ROOT
from radam import _step
from stand_in_device import UnknownArray, aligned, claiming, cupy_imported, exported
from stand_in_library import StandIn


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape or (3, 2), dtype)


def radam_of(*params: Any, **settings: Any) -> radam.RAdam:
    return radam.RAdam(list(params) or [floats()], **settings)


def read_only() -> np.ndarray:
    array = floats()
    array.flags.writeable = False
    return array


class OnMetal:
    """An array that says it lies on a device of DLPack's type 8."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (8, 0)

    def __dlpack__(self, **_: Any) -> Any:
        return exported(floats(), 8, 0, versioned=False)


def sparse() -> Any:
    torch = pytest.importorskip("torch")
    return torch.ones(3).to_sparse()


# ---- without a framework


def of_arrays() -> list[Trigger]:
    memory, same = floats(10), floats()
    overlapping = np.lib.stride_tricks.as_strided(memory, (3, 3), (4, 4))
    optimizers = [radam_of() for _ in range(2)]
    optimizers[0].param_groups[0]["params"] = []
    del optimizers[1].param_groups[0]["lr"]
    return [
        lambda: radam.RAdam([[1.0, 2.0]]),
        lambda: radam_of(floats(dtype=np.int64)),
        lambda: radam_of(floats(dtype=">f4")),
        lambda: radam_of(floats(dtype=np.complex64)),
        lambda: radam_of(read_only()),
        lambda: radam_of(np.ma.masked_array(floats())),
        lambda: radam_of(sparse()),
        lambda: radam_of(OnMetal()),
        lambda: radam_of(same, same),
        lambda: radam_of(memory[:6], memory[4:]),
        lambda: radam_of(overlapping),
        lambda: radam.RAdam(floats()),
        lambda: radam.RAdam({1, 2}),
        lambda: radam.RAdam([]),
        lambda: radam.RAdam([{"params": [floats()]}, floats()]),
        lambda: radam.RAdam([{"lr": 1.0}]),
        lambda: radam.RAdam([("weight", floats()), floats()]),
        lambda: radam.RAdam([("bias", floats()), ("bias", floats())]),
        *(lambda optimizer=optimizer: optimizer.step(grads=[floats()]) for optimizer in optimizers),
    ]


def of_gradients() -> list[Trigger]:
    return [
        lambda: radam_of().step(),
        lambda: radam_of().step([floats()]),
        lambda: radam_of().step(grads=floats()),
        lambda: radam_of().step(grads=[floats(), floats()]),
        lambda: radam_of().step(grads={"w": floats()}),
        lambda: radam.RAdam({"a": floats()}).step(grads={"b": floats()}),
        lambda: radam.RAdam({"a": floats(), "b": floats()}).step(grads={"a": floats()}),
        lambda: radam_of().step(grads=[floats(2)]),
        lambda: radam_of().step(grads=[floats(dtype=np.float64)]),
        lambda: radam_of(nonfinite="raise").step(grads=[floats() * np.inf]),
    ]


def of_hyperparameters() -> list[Trigger]:
    return [
        lambda: radam_of(convention="pytorch"),
        lambda: radam_of(convention="optax", weight_decay=0.1),
        lambda: radam_of(convention="author", decoupled_weight_decay=False),
        lambda: radam_of(lr=1e39).step(grads=[floats()]),
        lambda: radam_of(max_grad_norm=1.0, max_grad_value=1.0),
        lambda: radam.RAdam([{"params": [floats()], "max_grad_norm": 1.0}]),
        lambda: radam_of(master_weights=True, stochastic_rounding=True),
    ]


def of_two_steps() -> list[Trigger]:
    optimizer = radam_of()
    optimizer.register_step_pre_hook(lambda *_: optimizer.step(grads=[floats()]))  # type: ignore[arg-type]
    return [lambda: optimizer.step(grads=[floats()])]


def of_states() -> list[Trigger]:
    def loading(change: Callable[[dict[str, Any]], object]) -> Trigger:
        optimizer = radam_of()
        optimizer.step(grads=[floats()])
        saved = optimizer.state_dict()
        change(saved)
        return lambda: radam_of().load_state_dict(saved)

    def with_moments(**changed: Any) -> Trigger:
        return loading(lambda saved: saved["state"][0].update(changed))

    def of_names() -> None:
        radam.RAdam({"v": floats()}).load_state_dict(radam.RAdam({"w": floats()}).state_dict())

    from safetensors.numpy import save_file

    Path("folder").mkdir()
    Path("words.txt").write_text("all of these words are no state", encoding="utf-8")
    save_file({"weight": floats()}, "model.safetensors")
    return [
        lambda: radam_of().load_state_dict({"state": {}, "param_groups": []}),
        loading(lambda saved: saved.update(version=99)),
        lambda: radam_of().load_state_dict(radam.Adam([floats()]).state_dict()),
        lambda: radam_of().load_state_dict(radam_of(convention="optax").state_dict()),
        loading(lambda saved: saved["param_groups"].append({})),
        loading(lambda saved: saved["param_groups"][0].update(params=[0, 1])),
        of_names,
        with_moments(exp_avg=floats(2)),
        with_moments(exp_avg=floats(dtype=np.float16)),
        with_moments(exp_avg_sq=-floats()),
        loading(lambda saved: saved["state"][0].pop("exp_avg")),
        with_moments(momentum=1),
        loading(lambda saved: saved["state"].update({7: saved["state"][0]})),
        lambda: radam_of().load("optimizer.safetensors"),
        lambda: radam_of().save("nowhere/optimizer.safetensors"),
        lambda: radam_of().save("folder"),
        lambda: radam_of().load("words.txt"),
        lambda: radam_of().load("model.safetensors"),
    ]


def of_warnings() -> list[Trigger]:
    return [lambda: radam_of(betas=(0.9, 0.5))]


# ---- PyTorch


def of_torch() -> list[Trigger]:
    torch = pytest.importorskip("torch")
    from radam.torch import RAdam

    def parameter(*shape: int, **settings: Any) -> Any:
        made = torch.nn.Parameter(torch.ones(*(shape or (3,)), **settings))
        made.grad = torch.ones_like(made)
        return made

    def optimizer_of(*params: Any, **settings: Any) -> Any:
        return RAdam(list(params) or [parameter()], **settings)

    def stepped(*params: Any, **settings: Any) -> tuple[Any, Any]:
        made = optimizer_of(*params, **settings)
        made.step()
        (param,) = made.param_groups[0]["params"]
        return made, param

    def changed(key: str, change: Callable[[Any], Any]) -> Trigger:
        made, param = stepped(parameter(dtype=torch.bfloat16))
        made.state[param][key] = change(made.state[param][key])
        return made.step

    def sparse_gradients() -> None:
        layer = torch.nn.Embedding(4, 2, sparse=True)
        layer(torch.tensor([1])).sum().backward()
        RAdam(layer.parameters()).step()

    def twice() -> None:
        param = parameter()
        optimizer_of(param, param)

    def without_a_moment() -> None:
        made, param = stepped()
        del made.state[param]["exp_avg"]
        made.step()

    def resized() -> None:
        made, param = stepped()
        param.data = torch.ones(4)
        param.grad = torch.ones(4)
        made.step()

    def edited() -> None:
        made = optimizer_of()
        step = torch.compile(made.step, backend="eager")
        step()
        step()
        made.param_groups[0]["params"] = [parameter()]
        step()

    def replaced() -> None:
        made, param = stepped()
        step = torch.compile(made.step, backend="eager")
        step()
        step()
        made.state[param] = dict(made.state[param])
        step()

    def gone() -> None:
        from radam.torch import op

        op._take([[]] * 5, [], -1, "")

    def of_another_kind() -> None:
        param = parameter()
        sgd = torch.optim.SGD([param], momentum=0.9)
        sgd.step()
        optimizer_of().load_state_dict(sgd.state_dict())

    def float8() -> None:
        param = torch.ones(3).to(torch.float8_e4m3fn).requires_grad_()
        param.grad = torch.ones(3).to(torch.float8_e4m3fn)
        RAdam([param]).step()

    return [
        lambda: RAdam([]),
        lambda: optimizer_of(lr=-1),
        lambda: optimizer_of(betas=(0.9, 1.0)),
        lambda: optimizer_of(eps=-1),
        lambda: optimizer_of(weight_decay=-1.0),
        lambda: RAdam([2 * parameter()]),
        sparse_gradients,
        twice,
        lambda: optimizer_of(capturable=True).step(),
        lambda: optimizer_of(differentiable=True).step(),
        edited,
        replaced,
        gone,
        without_a_moment,
        resized,
        changed("exp_avg", lambda moment: moment.half()),
        changed("step", lambda step: step + 0.5),
        lambda: optimizer_of().load_state_dict(optimizer_of(parameter(), parameter()).state_dict()),
        lambda: optimizer_of().load_state_dict(
            torch.optim.RAdam([{"params": [parameter()]}, {"params": [parameter()]}]).state_dict()
        ),
        of_another_kind,
        lambda: optimizer_of().load_state_dict({}),
        lambda: optimizer_of(differentiable=True, max_grad_norm=1.0),
        lambda: optimizer_of(parameter(device="meta"), max_grad_norm=1.0).step(),
        float8,
    ]


TRIGGERS: dict[str, Callable[[], list[Trigger]]] = {
    "Arrays that are handed in": of_arrays,
    "Gradients": of_gradients,
    "Hyperparameters": of_hyperparameters,
    "One optimizer, several threads": of_two_steps,
    "States and files": of_states,
    "PyTorch": of_torch,
    "Warnings": of_warnings,
}


@pytest.mark.parametrize("section", TRIGGERS)
def test_every_message_is_what_is_raised(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = [text for trigger in TRIGGERS[section]() for text in said_by(trigger)]
    # Two that other sessions prove, beside the frameworks (tests/front_ends/test_errors_of_front_ends.py).
    said += [text for text in shown()[section] if "is a JAX array" in text or "is a mindspore." in text]
    check_section(section, said)


# ---- installing and importing


WITHOUT = """
import sys
class Without:
    def __init__(self, module): self.module = module
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {self.module!r}", name=self.module)
"""


def last_line(code: str, **environment: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1]


def test_every_message_of_an_import_is_what_is_printed() -> None:
    def missing(module: str, then: str) -> str:
        return last_line(f"{WITHOUT}sys.meta_path.insert(0, Without({module!r}))\nimport numpy as np, radam; {then}")

    bfloat16 = "radam.RAdam([np.ones(9999, 'f')], state_dtype='bfloat16').step(grads=[np.ones(9999, 'f')])"
    editable = "import pathlib, radam._info as i; i.__file__ = str(pathlib.Path('elsewhere/x.py')); i.get_cmake_dir()"
    said = [
        last_line("import radam", RADAM_ISA="sse9"),
        last_line("import radam", RADAM_NUM_THREADS="many"),
        *(missing(module, f"import radam.{module}") for module in ("torch", "paddle", "mindspore")),
        missing("ml_dtypes", bfloat16),
        missing("safetensors", "radam.RAdam([np.ones(3)]).save('x')"),
        last_line(editable),
        missing("sklearn", "from radam.__main__ import main; main(['demo'])"),
    ]
    check_section("Install and import", said)


# ---- CUDA, by stand-ins

WITHOUT_DEVICES = """
#include <radam/cuda.hpp>
static int none(radam::cuda::Failure*) noexcept { return 0; }
static radam::cuda::Library library{radam::cuda::interface_version, none};
extern "C" const radam::cuda::Library* radam_cuda_library() { return &library; }
"""


def library_without_devices(folder: Path) -> Path:
    source, library = folder / "none.cpp", folder / "none.so"
    source.write_text(WITHOUT_DEVICES, encoding="utf-8")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++") or "c++"
    flags = ["-std=c++17", "-fPIC", "-shared", f"-I{ROOT / 'cpp' / 'include'}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    return library


def test_every_message_of_cuda_is_what_is_raised(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from radam.torch import RAdam, run
    from torch_cuda_double import on_cuda, taken_for_plain

    def array(kind: Any = None) -> Any:
        memory = aligned((4,), np.float32)
        return claiming(memory) if kind is None else kind(memory, 0)

    def torch_param() -> Any:
        param = on_cuda(torch.ones(3), 0, requires_grad=True)
        param.grad = on_cuda(torch.ones(3), 0)
        return param

    said: list[str] = []
    with cupy_imported(), taken_for_plain():
        said += said_by(lambda: radam_of(floats(4)).step(grads=[array()]))
        said += said_by(lambda: radam_of(array(UnknownArray)).step(grads=[array()]))
        optimizer = radam_of(array())
        optimizer.step(grads=[array()])
        stand_in.capture(True)
        said += said_by(lambda: optimizer.step(grads=[array()]))
        stand_in.capture(False)
        stand_in.fail_after(0)
        said += said_by(lambda: optimizer.step(grads=[array()]))
        stand_in.forget()

        of_torch = RAdam([torch_param()], capturable=True, nonfinite="raise")
        of_torch.step()
        stand_in.capture(True)
        said += said_by(of_torch.step)
        stand_in.capture(False)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            said += said_by(RAdam([torch_param()], capturable=True).step)

        (tmp_path / "broken.so").write_text("no library", encoding="utf-8")
        for library in (tmp_path / "missing.so", tmp_path / "broken.so", library_without_devices(tmp_path)):
            _step.set_cuda_library(str(library))
            said += said_by(lambda: radam_of(array()))
        run._warn_of_no_kernel.cache_clear()
        said += said_by(RAdam([torch_param()]).step)
    check_section("CUDA", said)


# ---- C, which says what C++ throws


def test_every_message_of_c_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "embedding"))
    c: Any = importlib.import_module("c_library")
    refusals: Any = importlib.import_module("test_c_refusals")
    world = refusals.World(tmp_path)
    said = []
    for wrong, status, _ in refusals.BAD.values():
        assert wrong(world) == status
        said.append(c.last_error())
    on_page = shown()["C++ and C"]
    assert not [message for message in on_page if not any(is_shown_as(message, text) for text in said)]
