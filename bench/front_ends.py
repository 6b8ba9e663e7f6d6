"""The kinds of arrays that are measured, each with a limit and a radam of its own."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """One kind of arrays: a contestant is compared with the limit and with radam on the same kind as its own.

    Args:
        name: how the report calls the arrays.
        limit: the contestant that is the limit.
        radam: the contestant that is radam.
        dtypes: of the cases that it takes.
    """

    name: str
    limit: str
    radam: str
    dtypes: tuple[str, ...]


TORCH = FrontEnd("PyTorch tensors", "limit on torch tensors", "radam.torch", ("float32", "bfloat16"))
NUMPY = FrontEnd("NumPy arrays", "limit", "radam", ("float32",))
GRAPH = FrontEnd("PyTorch tensors, in a CUDA graph", "limit in a graph", "radam.torch in a graph", ("float32",))
CUPY = FrontEnd("CuPy arrays", "limit on CuPy arrays", "radam on CuPy arrays", ("float32",))
FRONT_ENDS = (TORCH, NUMPY, GRAPH, CUPY)
