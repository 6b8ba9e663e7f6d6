"""The only importer of the native core."""

from __future__ import annotations

import atexit
import os
from pathlib import Path

from ._core import (
    Clip,
    CudaError,
    Hyperparameters,
    Turn,
    check_params,
    coefficients,
    collect,
    conventions,
    cuda_devices,
    decode_blocks,
    describe,
    encode_blocks,
    end_steps,
    forget_steps,
    isa,
    jax_coefficients,
    jax_step,
    jax_step_on_cuda,
    join_weights,
    limit,
    rho,
    rho_infinity,
    set_cuda_library,
    split_weights,
    step,
    why_cuda_is_off,
)
from ._core import isas as _isas
from ._core import num_threads as _num_threads
from ._core import rectification as rectification_of
from ._core import set_num_threads as _set_num_threads
from ._core import version as __version__

__all__ = [
    "Clip",
    "CudaError",
    "Hyperparameters",
    "Turn",
    "__version__",
    "check_params",
    "coefficients",
    "collect",
    "conventions",
    "cuda_devices",
    "decode_blocks",
    "describe",
    "encode_blocks",
    "get_num_threads",
    "isa",
    "isas",
    "jax_coefficients",
    "jax_step",
    "jax_step_on_cuda",
    "join_weights",
    "limit",
    "rectification_of",
    "rho",
    "rho_infinity",
    "set_num_threads",
    "split_weights",
    "step",
    "why_cuda_is_off",
]

# Refuse a bad RADAM_ISA or RADAM_NUM_THREADS now, not in the first step; inside the module it would be an ImportError.
isa()
_num_threads()

set_cuda_library(str(Path(__file__).with_name("radam_cuda.dll" if os.name == "nt" else "libradam_cuda.so")))

# A thread that is inside a step when the interpreter ends would end the process with an error.
atexit.register(end_steps)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_steps)


def isas() -> list[str]:
    """Return the instruction sets that this machine can run, best first.

    These are the names that the environment variable ``RADAM_ISA`` takes; the first one is used without it. All of
    them give the same bits.

    >>> import radam
    >>> radam.isas()[-1]
    'portable'
    """
    return _isas()


def get_num_threads() -> int:
    """Return how many threads a step may use, the calling one included.

    The default is ``RADAM_NUM_THREADS``, else the number of cores this process may run on. Steps of less than 65536
    elements in total run on the calling thread alone. The result of a step does not depend on it.

    >>> import radam
    >>> radam.get_num_threads() >= 1
    True
    """
    return _num_threads()


def set_num_threads(count: int) -> None:
    """Set how many threads a step may use, the calling one included.

    Args:
        count: from 1 to 1024.

    Raises:
        ValueError: if count is outside that range.

    >>> import radam
    >>> before = radam.get_num_threads()
    >>> radam.set_num_threads(2)
    >>> radam.get_num_threads()
    2
    >>> radam.set_num_threads(before)
    """
    _set_num_threads(count)
