"""What happens to gradients before a step: clipping and decay, within the core where it does the same as Paddle."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor

from .. import _step

_LARGE = 2.0**60  # a limit beside which the 1e-6 that the core adds to a norm is nothing


def of(params: Sequence[Tensor], with_main: bool) -> list[Tensor | None]:
    """Return the gradients that a step takes; with_main prefers those that mixed precision training keeps beside."""
    grads = [None if param.stop_gradient else param.grad for param in params]
    if with_main and any([hasattr(param, "main_grad") for param in params]):  # noqa: C419 - a list is faster
        for i, param in enumerate(params):
            if getattr(param, "main_grad", None) is not None and not param.stop_gradient:
                grads[i] = param.main_grad
    return grads


def coefficient(regularizer: Any) -> float | None:
    """Return the coefficient of L2 decay where the core can take it, 0 for none; None where Paddle's objects decay.

    Raises:
        ValueError: if it is a Tensor of several elements, or no finite number.
    """
    if regularizer is None:
        return 0.0
    value: Any = regularizer
    if isinstance(regularizer, Tensor):
        if regularizer.size != 1:
            raise ValueError(f"weight_decay must be one number, got a Tensor of shape {tuple(regularizer.shape)}")
        value = regularizer.item()
    elif type(regularizer) in (paddle.regularizer.L1Decay, paddle.regularizer.L2Decay):
        value = regularizer._coeff
    if not isinstance(value, (int, float)):
        return None
    if not math.isfinite(value):
        raise ValueError(f"weight_decay must be a finite number, got {value}")
    return float(value) if value >= 0.0 and type(regularizer) is not paddle.regularizer.L1Decay else None


def decaying(regularizer: Any) -> Any:
    """Return what Paddle calls for a regularizer: L2Decay in place of a number."""
    if isinstance(regularizer, Tensor):
        regularizer = regularizer.item()
    return paddle.regularizer.L2Decay(float(regularizer)) if isinstance(regularizer, (int, float)) else regularizer


def native_clip(clip: Any, params: Sequence[Tensor]) -> _step.Clip | None:
    """Return how the core clips the gradients of these parameters as Paddle's object would; None where it cannot.

    The core takes a norm in double, and writes no gradient.
    """
    if not all(getattr(param, "need_clip", True) is not False for param in params):
        return None
    if type(clip) is paddle.nn.ClipGradByGlobalNorm and not clip.should_comm_on_shard_dim:
        most = clip.clip_norm
        if not 0.0 < most < math.inf:
            return None
        ratio = _LARGE / most  # Paddle scales by most / max(norm, most)
        return _step.Clip("norm", _LARGE, lambda sums: functools.reduce(operator.add, sums) * ratio * ratio)
    if type(clip) is paddle.nn.ClipGradByValue and 0.0 <= clip.max < math.inf and clip.min == -clip.max:
        return _step.Clip("value", clip.max)
    return None


def clipped(clip: Any, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the gradients as Paddle's own object clips them. Those handed in are not written."""
    is_inplace = isinstance(clip, paddle.nn.ClipGradByGlobalNorm) or not type(clip).__module__.startswith("paddle.nn")
    places = [i for i, grad in enumerate(grads) if grad is not None]
    given = [(params[i], to_be_changed(grad, is_inplace)) for i, grad in enumerate(grads) if grad is not None]
    out: list[Tensor | None] = [None] * len(grads)
    with paddle.no_grad():  # a class of the user's own may compute with parameters
        by_param = {id(param): grad for param, grad in clip(given)}
    for i in places:
        out[i] = reshaped(by_param.get(id(params[i])), grads[i])
    return out


def to_be_changed(grad: Tensor, in_place: bool) -> Tensor:
    """Return a gradient as Paddle's objects may have it: 16 bits as float32, which they know on every device."""
    if grad.dtype == paddle.bfloat16 or grad.dtype == paddle.float16:
        return grad.astype("float32")
    return grad.clone() if in_place else grad


def reshaped(grad: Tensor | None, before: Tensor | None) -> Tensor | None:
    """Return a changed gradient in the shape that it had; Paddle gives one of no dimension another one."""
    if grad is None or before is None or grad.ndim == before.ndim:
        return grad
    return grad.reshape(before.shape)
