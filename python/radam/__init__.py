"""RAdam (Rectified Adam, Liu et al. 2020) with the same bits on every machine, at the speed of memory.

>>> import numpy as np, radam
>>> w = np.ones(3, np.float32)
>>> opt = radam.RAdam([w], lr=0.1)
>>> opt.step(grads=[np.ones(3, np.float32)])
>>> w
array([0.9, 0.9, 0.9], dtype=float32)
"""

from ._info import __version__, get_cmake_dir, get_include, show_config
from ._step import get_num_threads, isas, set_num_threads
from .conventions import CONVENTIONS, Convention, rectification
from .memory import Memory, memory
from .optimizer import Adam, RAdam

__all__ = [
    "CONVENTIONS",
    "Adam",
    "Convention",
    "Memory",
    "RAdam",
    "__version__",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "isas",
    "memory",
    "rectification",
    "set_num_threads",
    "show_config",
]
