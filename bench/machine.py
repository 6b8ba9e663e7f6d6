"""What it is measured on, and how much memory there is."""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import radam
from radam import _step


def describe_machine(with_torch: bool, with_cupy: bool = False, others: Sequence[str] = ()) -> dict[str, Any]:
    """Return the processor, the memory, the system, the versions (of others too), what is set, and the date."""
    versions = {"python": platform.python_version(), "radam": radam.__version__, "numpy": np.__version__}
    for library, is_used in (("torch", with_torch), ("cupy", with_cupy), *((other, True) for other in others)):
        if is_used:
            versions[library] = importlib.import_module(library).__version__
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": radam.get_num_threads(),
        "isa": _step.isa(),
        "memory_gib": _total_memory_gib(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "huge_pages": _chosen(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "versions": versions,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def why_no_cuda(library: str = "torch") -> str:
    """Return why radam cannot step a library's CUDA arrays here, or nothing where it can."""
    try:
        module: Any = importlib.import_module(library)
    except ImportError as error:
        return f"{library} cannot be imported ({error})"
    if not module.cuda.is_available():
        return f"{library} {module.__version__} finds none"
    return _step.why_cuda_is_off()


def describe_gpu() -> dict[str, Any]:
    """Return the first GPU, as PyTorch and its driver tell of it."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": gpu_now("driver_version"),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": properties.L2_cache_size / 2**20,
        "cuda": torch.version.cuda,
    }


def gpu_now(what: str) -> str:
    """Return what nvidia-smi tells of the first GPU, such as clocks.sm; "unknown" where it does not."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--id=0", f"--query-gpu={what}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return asked.stdout.strip()


def available_memory() -> int | None:
    """Return how many bytes can be taken without swapping, or None where the system does not say."""
    free = []
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    most, used = _read(Path("/sys/fs/cgroup/memory.max")), _read(Path("/sys/fs/cgroup/memory.current"))
    if most.isdigit() and used.isdigit():
        free.append(int(most) - int(used))
    return min(free, default=None)


def warn_if_busy(notes: list[str]) -> None:
    """Add a note if other programs use the cores: the spread would be theirs."""
    if not hasattr(os, "getloadavg"):
        return
    load = os.getloadavg()[0]
    if load > 0.5:
        notes.append(f"The machine was busy before the run (load {load:.1f}): expect a wide spread.")


def _cpu() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    if platform.system() == "Darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            return asked.stdout.strip()
    return platform.processor() or platform.machine()


def _total_memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _chosen(path: Path) -> str | None:
    """Return the word in brackets of a kernel setting."""
    text = _read(path)
    return text.split("[")[1].split("]")[0] if "[" in text else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
