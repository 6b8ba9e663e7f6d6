"""The GPU benchmark, run whole without one: CUDA's part is played by the CPU here, and all its numbers are made up."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from test_bench import FIGURES, run_script

torch = pytest.importorskip("torch")

MADE_UP = "a made-up GPU"
KINDS = {
    "PyTorch tensors": ("limit on torch tensors", "radam.torch"),
    "PyTorch tensors, in a CUDA graph": ("limit in a graph", "radam.torch in a graph"),
    "CuPy arrays": ("limit on CuPy arrays", "radam on CuPy arrays"),
}
LOW_PRECISION = {
    f"PyTorch tensors, {way}": (f"limit of {way}", f"radam.torch, {way}")
    for way in ("8-bit moments", "split master, 8-bit moments", "stochastic, 8-bit moments")
}
CASES = ["1G", "1G-bf16", "resnet50", "1000x4096", "1G-low", "1G-bf16-low"]


# ---- without a device


@pytest.mark.parametrize("arguments", [["--check"], ["--quick"]], ids=" ".join)
def test_without_a_device_it_says_so_and_writes_nothing(arguments: list[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    done = run_script("gpu.py", *arguments, "--output", str(tmp_path / "new folder" / "gpu"))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"no CUDA device: torch {torch.__version__} finds none\n"
    assert list(tmp_path.iterdir()) == []


def test_the_reason_names_the_library_the_driver_or_radam(
    bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = bench("machine")
    library = SimpleNamespace(__version__="1.0", cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "a_library", library)
    monkeypatch.setattr(machine, "_step", SimpleNamespace(why_cuda_is_off=lambda: "radam's reason"))
    assert machine.why_no_cuda("no_library").startswith("no_library cannot be imported (")
    assert machine.why_no_cuda("a_library") == "a_library 1.0 finds none"
    library.cuda.is_available = lambda: True
    assert machine.why_no_cuda("a_library") == "radam's reason"


# ---- with the CPU in its place


class MadeUpEvent:
    """Stands for an event of a device that is done at once, but for the first time that it is asked."""

    asked = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        MadeUpEvent.asked += 1
        return MadeUpEvent.asked % 2 == 1

    def elapsed_time(self, end: MadeUpEvent) -> float:
        return 1e3 * (end.at - self.at)


class MadeUpGraph:
    """Stands for a graph: its replay is the step itself."""

    step: Callable[[], Any]

    def replay(self) -> None:
        self.step()


class MadeUpProfile:
    """Stands for what the profiler sees: in every step a kernel, a copy, and someone who waits."""

    def __init__(self, activities: Any) -> None:
        assert len(activities) == 2

    def __enter__(self) -> MadeUpProfile:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def export_chrome_trace(self, path: str) -> None:
        seen = [
            ("kernel", "step_kernel"),
            ("gpu_memcpy", "Memcpy HtoD"),
            ("cuda_runtime", "cudaStreamSynchronize"),
            ("cuda_runtime", "cudaDeviceSynchronize"),
            ("gpu_user_annotation", "Optimizer.step#RAdam.step"),
        ]
        events = [{"ph": "X", "cat": cat, "name": name} for cat, name in seen]
        Path(path).write_text(json.dumps({"traceEvents": [{"ph": "M", "name": "process_name"}, *events]}))


@pytest.fixture
def gpu(bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return the benchmark with the CPU in the place of a device, and NumPy's arrays in that of CuPy's."""
    properties = SimpleNamespace(
        name=MADE_UP, total_memory=2**40, major=0, minor=1, multi_processor_count=1, L2_cache_size=2**10
    )
    for name, stand_in in {
        "get_device_properties": lambda _: properties,
        "mem_get_info": lambda: (2**36, 2**40),
        "Event": MadeUpEvent,
        "_sleep": lambda cycles: time.sleep(1e-6),
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 2**20,
        "max_memory_allocated": lambda: 2**21,
        "Stream": MagicMock(),
        "current_stream": MagicMock(),
        "stream": MagicMock(),
        "graph": MagicMock(),
        "CUDAGraph": MadeUpGraph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.profiler, "profile", MadeUpProfile)
    cupy = {"asarray": np.asarray, "empty": np.empty, "get_default_memory_pool": MagicMock(), "__version__": MADE_UP}
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(**cupy))

    importlib.import_module("radam.torch")
    for module in ("torch.optim.radam", "torch.optim.adam", "radam.torch.rules"):
        monkeypatch.setattr(sys.modules[module], "_get_capturable_supported_devices", lambda supports_xla=True: ["cpu"])

    bench("empty_step")  # imports its own modules by their names, like all of them
    gpu, measure, device = bench("gpu"), bench("gpu_measure"), bench("gpu_device")
    for module in (gpu, measure):
        monkeypatch.setattr(module, "why_no_cuda", lambda library="torch": "")
    for module in (measure, device):
        monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(device, "LEAST_FLUSH", 1)
    monkeypatch.setattr(device, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(measure, "EMPTY_STEP_SAMPLE", 1e-5)

    if os.name != "posix":
        pytest.skip("what stands in for nvidia-smi is a shell script")
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho made up\n")
    nvidia_smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return gpu


def test_one_command_measures_everyone_by_every_clock_and_reports_it(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--check"]) == 0
    assert capsys.readouterr().out == f"{MADE_UP}, driver made up\n"
    name = tmp_path / "new folder" / "gpu"
    assert gpu.main(["--quick", "--rounds", "3", "--seconds", "0.1", "--output", str(name)]) == 0

    found = json.loads(name.with_suffix(".json").read_text(encoding="utf-8"))
    assert found["radam_bench"] == 2
    assert found["command"].startswith("python bench/gpu.py --quick --rounds 3")
    assert (found["machine"]["gpu"]["name"], found["machine"]["gpu"]["driver"]) == (MADE_UP, "made up")
    assert {kind["name"]: (kind["limit"], kind["radam"]) for kind in found["front_ends"]} == {
        **KINDS,
        **LOW_PRECISION,
    }
    by_kind = {kind["name"]: kind["contestants"] for kind in found["front_ends"]}
    everyone = {name for kind in KINDS for name in by_kind[kind]} - {"radam.torch, max_grad_norm"}
    assert [case["name"] for case in found["cases"]] == CASES
    for case in found["cases"]:
        is_large = case["name"].startswith("1G")
        assert case["left_out"] == {}
        assert [run["clock"] for run in case["runs"]] == ["device", "host", "whole"]
        for run in case["runs"]:
            assert set(run["contestants"]) == set(case["peak_extra_bytes"]) == set(case["least_moved_bytes"])
            assert is_large or set(run["contestants"]) == everyone
            for it in run["contestants"].values():
                assert set(it) == FIGURES
                assert it["repeats"] == 3
        assert is_large == ("launches" not in case)
        for counted in case.get("launches", {}).values():
            assert counted == {"kernels": 1, "copies": 1, "fills": 0, "waits": 1}
    assert {(it["optimizer"], it["param"]) for it in found["empty_step"]} >= {
        ("radam.torch.RAdam", "without a gradient"),
        ("torch.optim.RAdam", "of 64 elements"),
    }

    table = name.with_suffix(".md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    expected = (*everyone, *KINDS, *LOW_PRECISION, "radam.torch, max_grad_norm", MADE_UP, found["command"])
    for word in (*expected, "the times mean nothing", "made up"):
        assert word in table
    assert "met" not in {cell.strip() for cell in table.replace("|", "\n").splitlines()}  # a quick run judges nothing
    if "matplotlib" in sys.modules:
        assert name.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_case_about_size_is_halved_until_it_fits_and_says_so(
    gpu: ModuleType, bench: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = bench("gpu_measure")
    # Room for 4 contestants of 16 bytes a parameter and 2 temporaries of 4 at 2^18 elements, and for no more.
    monkeypatch.setattr(measure, "free_bytes", lambda: 72 * 2**18 / measure.MEMORY_SHARE)
    figures, failed = measure._figures, []

    def too_large_at_first(shapes: Any, *others: Any) -> Any:
        if sum(size for (size,) in shapes) == 2**18 and not failed:
            failed.append(shapes)
            raise torch.OutOfMemoryError("made up")
        return figures(shapes, *others)

    monkeypatch.setattr(measure, "_figures", too_large_at_first)
    monkeypatch.setattr(measure, "_can_be_halved", lambda shapes: shapes[0][0] > 2**10)
    case = bench("gpu_contestants").GPU_CASES["1G"]
    chosen = [bench("contestants").CONTESTANTS[name] for name in bench("gpu_contestants").LARGE]
    watch = bench("gpu_device").Stopwatch()
    found = measure._measure(case, case.shapes(quick=True), chosen, watch, 3, 0.0, bench("measure").random.Random(0))
    assert len(failed) == 1
    assert found["parameters"] == 2**17
    assert found["what"] == "1 G parameters in 4 arrays, cut to 131,072 for lack of memory"
    assert found["left_out"] == {}


def test_who_fails_is_named_and_the_others_are_measured(
    gpu: ModuleType,
    bench: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    everyone, changed = bench("gpu_contestants").GPU_CONTESTANTS, bench("gpu_contestants").EVERYONE

    def broken(*_: Any) -> Any:
        raise RuntimeError("a made-up error")

    for name in ("torch fused AdamW", "radam.torch in a graph"):
        monkeypatch.setitem(changed, name, dataclasses.replace(everyone[name], make=broken))
    monkeypatch.setattr(bench("gpu_measure"), "GPU_CASES", {"1000x4096": bench("cases").CASES["1000x4096"]})
    arguments = ["--quick", "--rounds", "3", "--seconds", "0.1", "--output", str(tmp_path / "gpu")]
    assert gpu.main(arguments) == 1
    (case,) = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["cases"]
    reason = "failed: RuntimeError: a made-up error"
    assert case["failed"] == {"torch fused AdamW": reason, "radam.torch in a graph": reason}
    assert set(case["left_out"]) == {"torch fused AdamW", *(name for name in everyone if "in a graph" in name)}
    assert set(case["runs"][0]["contestants"]) == set(case["launches"]) == set(everyone) - set(case["left_out"])
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert f"1000x4096: without torch fused AdamW, {reason}" in table
    assert "| 1000x4096 in a CUDA graph: host time of a replay | under 15 µs | not measured |  |" in table


def test_what_was_found_is_kept_when_a_run_is_cut_short(
    gpu: ModuleType, bench: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench("gpu_measure"), "GPU_CASES", {"1000x4096": bench("cases").CASES["1000x4096"]})
    monkeypatch.setattr(bench("gpu_measure"), "_empty_steps", stop)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--quick", "--rounds", "3", "--seconds", "0.1", "--output", str(tmp_path / "gpu")])
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [case["name"] for case in found["cases"]] == ["1000x4096"]


# ---- tables


def made_up_result() -> dict[str, Any]:
    """Return a result whose every number is made up, to be easy to reckon with."""

    def case(name: str, parameters: int, device: dict[str, tuple[float, float]], **more: Any) -> dict[str, Any]:
        def figures(seconds: float, over_it: float) -> dict[str, Any]:
            over = {"over_limit": 1.25, "radam_over_it": over_it}
            return {"median_s": seconds, "us_per_tensor": 1e6 * seconds / 1000, **over}

        contestants = {who: figures(*its) for who, its in device.items()}
        return {
            "name": name,
            "parameters": parameters,
            "least_moved_bytes": dict.fromkeys(device, 28),
            "runs": [{"clock": clock, "contestants": contestants} for clock in ("device", "host", "whole")],
            **more,
        }

    peers = {"torch fused AdamW": (1.0, 1.5), "torch RAdam foreach": (8.0, 0.125)}
    torch_tensors = {"limit on torch tensors": (0.8, 1.25), "radam.torch": (1.0, 1.0)}
    graph = {"radam.torch in a graph": (14e-6, 1.0)}
    low = {"radam.torch, 8-bit moments": (0.6, 1.0), "radam.torch, max_grad_norm": (1.125, 0.9)}
    return {
        "radam_bench": 2,
        "quick": False,
        "machine": {
            "gpu": {"name": MADE_UP, "memory_gib": 1.0, "driver": "0"},
            "cpu": "a made-up CPU",
            "cores": 1,
            "isa": "none",
            "memory_gib": None,
            "system": "none",
            "versions": {"radam": "0"},
            "date": "2000-01-01T00:00:00",
        },
        "cases": [
            case("1G", 10**9, {**torch_tensors, **peers}),
            case("resnet50", 10**6, {**torch_tensors, **peers}),
            case("1000x4096", 4096000, {**torch_tensors, **graph}, launches={"radam.torch": {"kernels": 1}}),
            case("1G-low", 10**9, {**torch_tensors, **low}),
        ],
    }


GOALS = f"""\
| figure | goal | measured |  |
| --- | --: | --: | --- |
| fp32, 1 G: share of the limit's bandwidth | at least 0.93 | 0.800 | **missed** |
| the same, absolute |  | 28 GB/s |  |
| the limit's |  | 35 GB/s |  |
| fp32, 1 G: over torch RAdam foreach | at most 0.25 | 0.125 | met |
| fp32, 1 G: over torch fused AdamW | at most 1.0 | 1.500 | **missed** |
| ResNet-50, a step of 161 tensors, whole time: over torch RAdam foreach | at most 0.1 | 0.125 | **missed** |
| ResNet-50, a step of 161 tensors, host time: over torch RAdam foreach | at most 0.1 | 0.125 | **missed** |
| ResNet-50, a step of 161 tensors, device time: over torch RAdam foreach | at most 0.1 | 0.125 | **missed** |
| 1000 tensors of 4096: kernel launches of a step | 1 | 1 | met |
| resnet50 in a CUDA graph: host time of a replay | under 15 µs | not measured |  |
| 1000x4096 in a CUDA graph: host time of a replay | under 15 µs | 14.00 µs | met |
| bf16 with fp32 moments, 1 G: share of the limit's bandwidth |  | not measured |  |
| the same, absolute |  | not measured |  |
| 1000 tensors of 4096: host time of a tensor |  | 1000.00 µs |  |
| 8-bit moments, 1 G: share of its own limit's bandwidth |  | 0.800 |  |
| 8-bit moments, 1 G: over radam.torch with float32 moments |  | 0.600 |  |
| split master, 8-bit moments, 1 G: share of its own limit's bandwidth |  | not measured |  |
| split master, 8-bit moments, 1 G: over radam.torch with float32 moments |  | not measured |  |
| stochastic, 8-bit moments, 1 G: share of its own limit's bandwidth |  | not measured |  |
| stochastic, 8-bit moments, 1 G: over radam.torch with float32 moments |  | not measured |  |
| max_grad_norm, fp32, 1 G: over the step alone |  | 1.125 |  |

{MADE_UP}, 1 GiB, driver 0; a made-up CPU, 1 cores, none, none; radam 0; 2000-01-01
"""


def test_the_goals_are_judged_by_a_result_file_and_nothing_is_said_of_what_was_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(made_up_result()), encoding="utf-8")
    done = run_script("report.py", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == GOALS


def test_a_quick_run_is_not_judged(bench: Callable[[str], ModuleType]) -> None:
    lines = bench("gpu_tables").goals_table({**made_up_result(), "quick": True})
    assert [line for line in lines if "met" in line or "missed" in line] == []
