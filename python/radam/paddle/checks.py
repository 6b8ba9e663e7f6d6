"""What is refused, as Paddle refuses it where it does."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import paddle
from paddle import Tensor

from ..conventions import CONVENTIONS


def stay_as_written() -> None:
    """Let a function under paddle.jit.to_static call a step as it is.

    Paddle rewrites the bytecode of all that such a function calls, but for files that it was told to leave alone, its
    own among them.
    """
    leave_alone = getattr(paddle.base.core, "eval_frame_skip_file_prefix", None)
    if leave_alone is not None:
        leave_alone((os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ""),))


def refuse_static() -> None:
    """Refuse to work where Paddle builds a program instead of computing."""
    if not paddle.in_dynamic_mode():
        raise RuntimeError(
            "radam.paddle.RAdam steps in dynamic mode only: call paddle.disable_static(), and take steps outside of "
            "functions under paddle.jit.to_static(full_graph=True)"
        )


def check_numbers(numbers: Mapping[str, Any]) -> None:
    """Refuse numbers out of range, of the optimizer or of a group, under the names that Paddle gives them."""
    for key in ("beta1", "beta2"):
        if key in numbers and not 0.0 <= numbers[key] < 1.0:
            raise ValueError(f"Invalid {key}: {numbers[key]}, it must be at least 0 and below 1")
    if "epsilon" in numbers and not numbers["epsilon"] >= 0.0:
        raise ValueError(f"Invalid epsilon: {numbers['epsilon']}, it must be at least 0")


def warn_if_never_rectified(betas2: Sequence[float], stacklevel: int) -> None:
    """Warn of the first group whose beta2 is too small for a step to be ever rectified."""
    for g, beta2 in enumerate(betas2):
        if why := CONVENTIONS["paddle"].why_never_rectified(beta2, "beta2"):
            warnings.warn(f"group {g}: {why}", UserWarning, stacklevel=stacklevel + 1)
            return


def refuse_repeated(params: Sequence[Tensor]) -> None:
    """Refuse a parameter that comes twice: one step cannot take its gradient two times."""
    if len(set(map(id, params))) < len(params):
        names = [getattr(param, "name", "?") for param in params]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the parameter {twice} comes twice; hand in each parameter once")


def refuse_kinds(params: Sequence[Tensor], grads: Sequence[Any], what: str) -> None:
    """Refuse Tensors that are not dense, before the core asks for their memory: Paddle gives out none of theirs."""
    for param, tensor in zip(params, grads):
        if not isinstance(tensor, Tensor) or (tensor.is_dense() and not tensor.is_selected_rows()):
            continue
        if tensor.is_selected_rows() or tensor.is_sparse():
            raise RuntimeError(
                f"RAdam does not support sparse gradients or parameters, and the {what} {param.name} is one; an "
                "Embedding takes sparse=False"
            )
        if tensor.is_dist():
            raise RuntimeError(
                f"the {what} {param.name} is a distributed Tensor, which radam.paddle.RAdam does not step; "
                "paddle.optimizer.RAdam does"
            )


def explained(
    params: Sequence[Tensor], grads: Sequence[Tensor | None], states: Mapping[int, Any], error: Exception
) -> list[bool]:
    """Raise what says better than the core what is wrong; else say which parameters Paddle steps over, for no memory.

    Only after the core refused a step, so that it costs nothing.
    """
    empty = []
    for param, grad in zip(params, grads):
        for what, tensor in (("parameter", param), ("gradient of", grad)):
            if tensor is None:
                continue
            if not isinstance(tensor, Tensor):
                raise TypeError(f"the {what} {param.name} is a {type(tensor).__name__}, not a Tensor") from error
            is_number = tensor.is_floating_point() or tensor.is_complex()
            if tensor is param and not is_number:
                raise TypeError(
                    f"the parameter {param.name} has dtype {param.dtype}; RAdam steps float64, float32, bfloat16 and "
                    "float16"
                ) from error
            if tensor is grad and tensor._is_initialized() and not is_number:
                raise ValueError(
                    f"the gradient of {param.name} is {tensor.dtype}, the parameter {param.dtype}"
                ) from error
        held, shape = states.get(id(param)), tuple(param.shape)
        if held is not None and grad is not None and param._is_initialized() and shape != tuple(held.moment1.shape):
            raise ValueError(
                f"moment1 of {param.name} has shape {tuple(held.moment1.shape)}, the parameter {shape}: it was resized "
                "after its first step; go on with a new optimizer, whose moments begin at 0"
            ) from error
        empty.append(grad is not None and not param._is_initialized())
    return empty
