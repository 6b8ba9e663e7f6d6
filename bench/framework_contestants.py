"""Who is measured in each framework: its own RAdam and radam's, on the framework's own arrays, and radam on NumPy's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import radam
from cases import CASES, Case, Shapes
from contestants import LR, Step, filled, limit_on

LIMIT, ON_NUMPY = "limit (NumPy arrays)", "radam on NumPy arrays"
PADDLE, PADDLE_OWN = "radam.paddle.RAdam", "paddle.optimizer.RAdam"
MINDSPORE, MINDSPORE_OWN = "radam.mindspore.RAdam", "mindspore.experimental.optim.RAdam"
FUSED, TRANSFORMATION, OPTAX = "radam.jax.fused_step", "radam.jax.radam", "optax.radam"
IDENTITY = "a jitted identity"

FRAMEWORK_CASES = {
    **{name: CASES[name] for name in ("33.5M", "1000x4096")},
    "100x4096": Case("100x4096", "100 arrays of 4096", lambda: [(4096,)] * 100, lambda: [(4096,)] * 10),
}


@dataclasses.dataclass(frozen=True)
class Framework:
    """One framework.

    Args:
        make: returns the steps by name, over arrays of these shapes; each waits for its result.
        own: the framework's own optimizer, with which each is compared.
        goals: by (case, contestant), what its ratio to the framework's own is to be at most.
        libraries: whose versions a report names.
        cases: what is measured.
    """

    make: Callable[[Shapes], dict[str, Step]]
    own: str
    goals: dict[tuple[str, str], float]
    libraries: tuple[str, ...]
    cases: tuple[str, ...] = ("33.5M", "1000x4096")


def numpy_steps(shapes: Shapes) -> dict[str, Step]:
    """Return the step of the limit and of radam on NumPy arrays."""
    params, grads = (filled("numpy", shapes, np.float32, scale) for scale in (0.1, 0.01))
    optimizer = radam.RAdam(params, lr=LR)
    return {LIMIT: limit_on("numpy")(shapes, "float32"), ON_NUMPY: lambda: optimizer.step(grads=grads)}


def paddle_steps(shapes: Shapes) -> dict[str, Step]:
    """Return the steps over parameters of Paddle."""
    import paddle

    import radam.paddle

    def parameters() -> list[Any]:
        made = []
        for value, grad in zip(filled("numpy", shapes, np.float32, 0.1), filled("numpy", shapes, np.float32, 0.01)):
            param = paddle.create_parameter(list(value.shape), "float32")
            param.set_value(value)
            param.grad = paddle.to_tensor(grad)
            made.append(param)
        return made

    return {
        PADDLE: radam.paddle.RAdam(LR, parameters=parameters()).step,
        PADDLE_OWN: paddle.optimizer.RAdam(LR, parameters=parameters()).step,
    }


def mindspore_steps(shapes: Shapes) -> dict[str, Step]:
    """Return the steps over parameters of MindSpore, each with a wait for its result."""
    import mindspore

    import radam.mindspore

    def step_of(make: Callable[..., Any]) -> Step:
        params = [
            mindspore.Parameter(mindspore.Tensor(value), name=f"p{i}")
            for i, value in enumerate(filled("numpy", shapes, np.float32, 0.1))
        ]
        grads = tuple(mindspore.Tensor(grad) for grad in filled("numpy", shapes, np.float32, 0.01))
        optimizer = make(params, lr=LR)

        def step() -> None:
            optimizer(grads)
            params[-1].asnumpy()  # waits for all that is queued

        return step

    return {
        MINDSPORE: step_of(radam.mindspore.RAdam),
        MINDSPORE_OWN: step_of(mindspore.experimental.optim.RAdam),
    }


def jax_steps(shapes: Shapes) -> dict[str, Step]:
    """Return the jitted steps over arrays of JAX, parameters and state donated, each with a wait for its result."""
    import jax
    import optax

    import radam.jax

    def arrays(scale: float) -> list[Any]:
        return [jax.device_put(np.array(value)) for value in filled("numpy", shapes, np.float32, scale)]

    def step_of(function: Callable[..., Any], state: Callable[[Any], Any]) -> Step:
        jitted = jax.jit(function, donate_argnums=(0, 1))
        params = arrays(0.1)
        held = [params, state(params)]
        grads = arrays(0.01)

        def step() -> None:
            held[:] = jitted(*held, grads)
            jax.block_until_ready(held)

        return step

    def applied(transformation: Any, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    own, ours = optax.radam(LR), radam.jax.radam(LR)
    return {
        FUSED: step_of(lambda p, s, g: radam.jax.fused_step(p, g, s, learning_rate=LR), ours.init),
        TRANSFORMATION: step_of(functools.partial(applied, ours), ours.init),
        OPTAX: step_of(functools.partial(applied, own), own.init),
        IDENTITY: step_of(lambda p, s, g: (p, s), own.init),
    }


FRAMEWORKS = {
    "paddle": Framework(
        paddle_steps,
        PADDLE_OWN,
        {("33.5M", PADDLE): 0.17, ("1000x4096", PADDLE): 0.15},
        ("paddle",),
    ),
    "mindspore": Framework(
        mindspore_steps,
        MINDSPORE_OWN,
        {("33.5M", MINDSPORE): 0.08, ("100x4096", MINDSPORE): 0.05},
        ("mindspore",),
        ("33.5M", "100x4096"),
    ),
    "jax": Framework(
        jax_steps,
        OPTAX,
        {("33.5M", FUSED): 0.55, ("1000x4096", FUSED): 0.75},
        ("jax", "optax"),
    ),
}
