"""What this radam is and what it runs on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from . import _step

__version__ = _step.__version__

FRAMEWORKS = ("numpy", "ml_dtypes", "torch", "cupy", "jax", "paddle", "mindspore", "lucid")
_DISTRIBUTIONS = {"paddle": "paddlepaddle", "lucid": "lucid-dl"}


def config() -> dict[str, Any]:
    """Return what show_config prints. Imports no framework."""
    return {
        "radam": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "isa": _step.isa(),
        "isas": _step.isas(),
        "threads": _step.get_num_threads(),
        "cuda": f"off: {why}" if (why := _step.why_cuda_is_off()) else "; ".join(_step.cuda_devices()),
        "frameworks": {name: version for name in FRAMEWORKS if (version := _version(name)) is not None},
    }


def _version(framework: str) -> str | None:
    import importlib.metadata  # here: it takes longer to import than the rest of radam
    import importlib.util

    if importlib.util.find_spec(framework) is None:
        return None
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(framework, framework))
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def get_include() -> str:
    """Return the folder that a C++ compiler finds radam/radam.hpp in.

    Raises FileNotFoundError where this radam was installed without its headers, as in editable mode.

    >>> import os, radam
    >>> os.path.isfile(os.path.join(radam.get_include(), "radam", "radam.hpp"))
    True
    """
    return _folder_of("radam/radam.hpp", "include")


def get_cmake_dir() -> str:
    """Return the folder that CMake finds radam in: cmake -Dradam_DIR=$(python -m radam --cmakedir).

    In a project that scikit-build-core builds, and that has radam in its build requirements, find_package(radam) finds
    it by itself. Raises FileNotFoundError where this radam was installed without it, as in editable mode.

    >>> import os, radam
    >>> os.path.isfile(os.path.join(radam.get_cmake_dir(), "radamConfig.cmake"))
    True
    """
    return _folder_of("radamConfig.cmake", "lib/cmake/radam")


def _folder_of(file: str, folder: str) -> str:
    found = Path(__file__).parent / folder
    if not (found / file).is_file():
        raise FileNotFoundError(
            f"this radam was installed without {found / file}; install it with pip, not as editable"
        )
    return str(found)


def show_config() -> None:
    """Print the version, the instruction set in use and those that could be, the threads, CUDA, the frameworks found.

    It asks the CUDA driver for devices; a process forked after that cannot use CUDA, as always with CUDA.

    >>> import radam
    >>> radam.show_config()  # doctest: +ELLIPSIS
    radam ...
    """
    found = config()
    print(f"radam {found['radam']} on Python {found['python']}, {found['machine']}")
    print(f"  instruction set  {found['isa']} (RADAM_ISA takes: {', '.join(found['isas'])})")
    print(f"  threads          {found['threads']} (RADAM_NUM_THREADS, radam.set_num_threads)")
    print(f"  CUDA             {found['cuda']}")
    print("  frameworks       " + ", ".join(f"{name} {version}" for name, version in found["frameworks"].items()))
