"""Who is measured on a GPU with weights and moments in fewer bits, each way beside its own limit, and who clips."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from cases import ITEM_BYTES, Case, Shapes, element_count, in_four
from contestants import LR, Contestant, Make, Step, radam_torch, torch_params
from front_ends import TORCH, FrontEnd
from radam import _step

EIGHT_BIT = "radam.torch, 8-bit moments"
SPLIT = "radam.torch, split master, 8-bit moments"
STOCHASTIC = "radam.torch, stochastic, 8-bit moments"
CLIPPED = "radam.torch, max_grad_norm"

_CODES = 2 + 2 * 4 / 128  # two codes, and two scales for each block of 128


@dataclasses.dataclass(frozen=True)
class LowPrecision(Contestant):
    """A contestant whose state takes so many bytes a parameter."""

    state_bytes: float = 0.0

    def lasting_bytes(self, shapes: Shapes, dtype: str) -> int:
        """Return what param, grad and state take."""
        return round((2 * ITEM_BYTES[dtype] + self.state_bytes) * element_count(shapes))

    def least_moved_bytes(self, dtype: str) -> float:  # type: ignore[override]  # scales are shared by many
        """Return what a step must move for a parameter: param, grad and state in, param and state out."""
        return 3 * ITEM_BYTES[dtype] + 2 * self.state_bytes


def limit_of(**options: Any) -> Make:
    """Return what makes a step of the limit on the tensors that radam.torch.RAdam has with these options."""

    def make(shapes: Shapes, dtype: str, device: str = "cpu") -> Step:
        from radam.torch import RAdam

        params = torch_params(shapes, dtype, device)
        optimizer = RAdam(params, lr=LR, **options)
        optimizer.step()  # makes the state

        def of_state(*keys: str) -> tuple[Any, ...]:
            states = [optimizer.state[param] for param in params]
            return tuple(next((state[key] for key in keys if key in state), None) for state in states)

        exp_avgs, exp_avg_sqs = of_state("exp_avg_code", "exp_avg"), of_state("exp_avg_sq_code", "exp_avg_sq")
        masters, scales = of_state("remainder", "master"), (of_state("exp_avg_scale"), of_state("exp_avg_sq_scale"))
        stored = (masters, *scales, None, 0, tuple(range(len(params))), None, "stochastic_rounding" in options)
        grads = tuple(param.grad for param in params)
        hyperparameters = optimizer.convention.hyperparameters(lr=LR)
        plan = (hyperparameters, None, tuple(params), grads, exp_avgs, exp_avg_sqs, None, of_state("step"))
        return functools.partial(_step.limit, ((*plan, None, None, stored),))

    return make


def _way(name: str, dtype: str, state_bytes: float, **options: Any) -> tuple[LowPrecision, LowPrecision]:
    """Return a way's limit and its step."""
    limit = f"limit of {name.removeprefix('radam.torch, ')}"
    tensors = FrontEnd(f"PyTorch tensors, {name.removeprefix('radam.torch, ')}", limit, name, (dtype,))
    return (
        LowPrecision(limit, tensors, limit_of(**options), state_bytes=state_bytes),
        LowPrecision(name, tensors, radam_torch(**options), state_bytes=state_bytes),
    )


LOW_PRECISION = {
    c.name: c
    for c in (
        *_way(EIGHT_BIT, "float32", _CODES, state_dtype="8bit"),
        *_way(SPLIT, "bfloat16", 2 + _CODES, state_dtype="8bit", master_weights=True),
        *_way(STOCHASTIC, "bfloat16", _CODES, state_dtype="8bit", stochastic_rounding=True),
        Contestant(CLIPPED, TORCH, radam_torch(max_grad_norm=1.0)),
    )
}

_SIZES = (lambda: in_four(1 << 30), lambda: in_four(1 << 20))
_WORDS = "1 G {} parameters in 4 arrays, in fewer bits"
LOW_PRECISION_CASES = (
    Case("1G-low", _WORDS.format("float32"), *_SIZES),
    Case("1G-bf16-low", _WORDS.format("bfloat16"), *_SIZES, dtype="bfloat16"),
)
# Who takes part: beside them radam with all of its bits, which their times are compared with.
TAKE_PART = (TORCH.limit, TORCH.radam, *LOW_PRECISION)
