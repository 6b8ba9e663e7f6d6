"""What PyTorch forbids, and who looks on: graph capture, inference tensors, modes and transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import _get_capturable_supported_devices

from .run import Batch

# The second is its name in older versions.
check_capture: Any = getattr(
    Optimizer, "_accelerator_graph_capture_health_check", getattr(Optimizer, "_cuda_graph_capture_health_check", None)
)


def is_watched() -> bool:
    """Whether a mode of PyTorch's (a fake one, a tracer, a counter) sees every operation."""
    return torch._C._len_torch_dispatch_stack() > 0


def is_transformed() -> bool:
    """Whether this runs inside torch.func.grad, vmap and the like."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def check_capturable(batch: Batch) -> None:
    """Hold a capturable group to torch's rule."""
    if not batch.group["capturable"]:
        return
    supported = _get_capturable_supported_devices(supports_xla=not batch.group["foreach"])
    for param, step in zip(batch.params, batch.steps):
        if step is not None and not (param.device.type == step.device.type and param.device.type in supported):
            raise AssertionError(
                f"If capturable=True, params and state_steps must be on supported devices: {supported}."
            )


def refuse_inference(batches: list[Batch]) -> None:
    """Raise torch's error for an inference tensor outside of inference mode."""
    if torch.is_inference_mode_enabled():
        return
    for tensor in (tensor for batch in batches for tensor in batch.changed()):
        if tensor.is_inference():
            with torch.no_grad():
                tensor.add_(0)
