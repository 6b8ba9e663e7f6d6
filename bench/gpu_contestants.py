"""Who is measured on a GPU: the contestants of PyTorch tensors there, as graphs too, and radam on CuPy arrays."""

from __future__ import annotations

from cases import CASES, Case, in_four
from contestants import (
    CONTESTANTS,
    Contestant,
    limit_on,
    limit_torch,
    peer,
    radam_on,
    radam_torch,
    torch_optimizer,
)
from front_ends import CUPY, GRAPH
from gpu_device import captured
from gpu_low_precision import LOW_PRECISION, LOW_PRECISION_CASES, TAKE_PART

LARGE = ("limit on torch tensors", "radam.torch", "torch fused AdamW", "torch RAdam foreach")
FUSED_ADAMW = torch_optimizer("AdamW", fused=True, capturable=True)
FOREACH = torch_optimizer("RAdam", foreach=True, capturable=True)

GPU_CONTESTANTS = {
    c.name: c
    for c in (
        *(CONTESTANTS[name] for name in LARGE),
        peer("torch RAdam foreach capturable", FOREACH, copies=3),
        Contestant(GRAPH.limit, GRAPH, captured(limit_torch(capturable=True))),
        Contestant(GRAPH.radam, GRAPH, captured(radam_torch(capturable=True))),
        peer("torch fused AdamW in a graph", captured(FUSED_ADAMW), GRAPH),
        peer("torch RAdam foreach in a graph", captured(FOREACH), GRAPH, copies=3),
        Contestant(CUPY.limit, CUPY, limit_on("cupy")),
        Contestant(CUPY.radam, CUPY, radam_on("cupy")),
    )
}

SIZES = (lambda: in_four(1 << 30), lambda: in_four(1 << 20))
GPU_CASES = {
    case.name: case
    for case in (
        Case("1G", "1 G parameters in 4 arrays", *SIZES),
        Case("1G-bf16", "1 G bfloat16 parameters in 4 arrays", *SIZES, dtype="bfloat16"),
        CASES["resnet50"],
        CASES["1000x4096"],
        *LOW_PRECISION_CASES,
    )
}
EVERYONE = {**GPU_CONTESTANTS, **LOW_PRECISION}
# Who takes part where there is not room for all, or where not all are asked; elsewhere those of GPU_CONTESTANTS do.
ONLY = {"1G": LARGE, "1G-bf16": LARGE, **{case.name: TAKE_PART for case in LOW_PRECISION_CASES}}
