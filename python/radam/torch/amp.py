"""What torch.amp.GradScaler leaves for a step that unscales by itself: read here, or by the devices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Numbers = dict[int, tuple[Any, Any, Any]]
"""By CUDA device: grad_scale, found_inf and the count of skipped steps, tensors of one number there, or None."""


class Skipped:
    """How many steps were left out: those that the host knows of, and those that devices count."""

    def __init__(self) -> None:
        self.here = 0
        self._there: dict[torch.device, Tensor] = {}

    def total(self) -> int:
        """Return how many in all; waits for the devices."""
        return self.here + sum(int(count.item()) for count in self._there.values())

    def on(self, device: torch.device) -> Tensor:
        """Return the count that a device keeps."""
        if device not in self._there:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "the count of skipped steps would be made inside a CUDA graph, and anew at every replay; take one "
                    "step before"
                )
            self._there[device] = torch.zeros((), dtype=torch.float64, device=device)
        return self._there[device]


def inverse_scale(optimizer: Any) -> float | None:
    """Return what to multiply gradients by, or None where GradScaler found an inf; waits for a device's answer."""
    found_inf, grad_scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if found_inf is not None and float(found_inf) != 0:
        return None
    return 1.0 if grad_scale is None else 1.0 / _checked(grad_scale)


def _checked(grad_scale: Any) -> float:
    scale = float(grad_scale)
    if not scale > 0:
        raise ValueError(f"grad_scale must be above 0, got {scale}")
    return scale


def for_devices(optimizer: Any, devices: Iterable[torch.device], skipped: Skipped) -> Numbers:
    """Return what the devices read by themselves. All of them skip together, so that one counts.

    A scale on a device is not checked: that would wait.
    """
    if not isinstance(getattr(optimizer, "grad_scale", None), (Tensor, type(None))):
        _checked(optimizer.grad_scale)
    numbers: Numbers = {}
    for device in sorted(devices, key=lambda d: d.index):
        scale, found = (_on(getattr(optimizer, name, None), device) for name in ("grad_scale", "found_inf"))
        numbers[device.index] = (scale, found, None if numbers else skipped.on(device))
    return numbers


def _on(number: Any, device: torch.device) -> Tensor | None:
    if number is None:
        return None
    tensor: Tensor = number if isinstance(number, Tensor) else torch.full((), float(number), device=device)
    return tensor.detach().to(device, torch.float64 if tensor.dtype is torch.float64 else torch.float32)
