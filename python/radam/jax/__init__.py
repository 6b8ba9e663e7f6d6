"""RAdam for JAX: Optax's gradient transformation with an exact schedule, and a step that is one native call.

``radam(learning_rate, ...)`` stands in for ``optax.radam``; ``fused_step(params, grads, state, ...)`` steps parameters
in place. docs/jax.md compares them.
"""

from __future__ import annotations

from .fused import fused_step
from .transform import radam, scale_by_radam

__all__ = ["fused_step", "radam", "scale_by_radam"]
