"""The messages that docs/errors.md shows for Paddle, JAX, MindSpore and Lucid are those that are raised."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import radam
from errors_page import Trigger, check_section, said_by, shown
from pages import skip_without


def of_paddle() -> list[Trigger]:
    import paddle

    from radam.paddle import RAdam

    def parameter() -> Any:
        return paddle.create_parameter([3], "float32")

    def static() -> None:
        paddle.enable_static()
        try:
            RAdam(0.1)
        finally:
            paddle.disable_static()

    def sparse() -> None:
        with paddle.utils.unique_name.guard():
            layer = paddle.nn.Embedding(4, 2, sparse=True)
        layer(paddle.to_tensor([1])).sum().backward()
        RAdam(0.1, parameters=layer.parameters()).step()

    def twice() -> None:
        p = parameter()
        RAdam(0.1, parameters=[p, p])

    def of_another() -> None:
        first = parameter()
        first.sum().backward()
        optimizer = RAdam(0.1, parameters=[first])
        optimizer.step()
        RAdam(0.1, parameters=[parameter()]).set_state_dict(optimizer.state_dict())

    return [static, sparse, twice, of_another, lambda: RAdam(0.1, parameters=[parameter()]).set_state_dict(3)]


def without_native_calls() -> str:
    code = "import jax.numpy as jnp, radam.jax as r; r.radam(0.1).update(jnp.ones(3), r.radam(0.1).init(jnp.ones(3)))"
    environment = {**os.environ, "RADAM_JAX_FFI": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stderr[done.stderr.index("RuntimeWarning") :]


def of_jax() -> list[Trigger]:
    import jax
    import jax.numpy as jnp
    import optax

    from radam.jax import fused_step as step
    from radam.jax import radam as radam_of

    params = {"w": jnp.ones(3)}
    state = radam_of(0.1).init(params)
    update = radam_of(0.1).update
    whole = {"w": jnp.ones(3, int)}
    short = {"w": jnp.ones(3, jnp.bfloat16)}
    return [
        lambda: step(params, params, optax.sgd(0.1).init(params), 0.1),
        lambda: step(params, {"v": params["w"]}, state, 0.1),
        lambda: step(params, {"w": jnp.ones(2)}, state, 0.1),
        lambda: step(whole, whole, state, 0.1),
        lambda: step(short, short, optax.radam(0.1).init(short), 0.1),
        lambda: update({"v": jnp.ones(2)}, state, params),
        lambda: update({"w": jnp.ones(2)}, state, params),
        lambda: radam_of(0.1, b1=lambda t: 0.9),
        lambda: jax.grad(lambda x: step({"w": x}, params, state, 0.1)[0]["w"].sum())(params["w"]),
        lambda: jax.grad(lambda b: radam_of(0.1, b1=b).update(params, state)[0]["w"].sum())(0.9),
    ]


def of_mindspore() -> list[Trigger]:
    import mindspore
    from mindspore import Parameter, Tensor

    from radam.mindspore import RAdam

    def optimizer(dtype: Any = np.float32) -> Any:
        return RAdam([Parameter(Tensor(np.ones(3, dtype)), name="w")])

    grad = Tensor(np.ones(3, np.float32))

    def later() -> None:
        stepped = optimizer()
        stepped((grad,))
        stepped.add_param_group({"params": [Parameter(Tensor(np.ones(3, np.float32)), name="v")]})

    def compiled() -> None:
        inside = optimizer()

        @mindspore.jit
        def step(gradient: Any) -> Any:
            return inside((gradient,))

        try:
            step(grad)
        except RuntimeError as error:  # MindSpore puts ours in quotes, and its own stacks below it
            raise RuntimeError(str(error).partition("\n")[0].strip("'")) from None

    def elsewhere() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mindspore, "get_context", {"device_target": "Ascend"}.get)
            optimizer()

    return [
        elsewhere,
        compiled,
        later,
        lambda: optimizer()(grad),
        lambda: optimizer()((grad, grad)),
        lambda: optimizer()((None,)),
        lambda: optimizer(np.int32),
    ]


def of_lucid() -> list[Trigger]:
    from radam.lucid import RAdam

    class Copies:
        grad = None

        @property
        def data(self) -> np.ndarray:
            return np.ones(3, np.float32)

    parameter = SimpleNamespace(data=np.ones(3, np.float32), grad=None)
    return [
        lambda: RAdam([parameter.data]),
        lambda: RAdam([Copies()]),
        lambda: RAdam([parameter], differentiable=True),
    ]


TRIGGERS: dict[str, tuple[str | None, Callable[[], list[Trigger]]]] = {
    "Paddle": ("paddle", of_paddle),
    "JAX": ("jax", of_jax),
    "MindSpore": ("mindspore", of_mindspore),
    "Lucid": (None, of_lucid),
}


@pytest.mark.parametrize("section", TRIGGERS, ids=str.lower)
def test_every_message_is_what_is_raised(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    framework, triggers = TRIGGERS[section]
    skip_without({framework} if framework else set())
    monkeypatch.chdir(tmp_path)  # MindSpore leaves files of what it could not compile
    said = [text for trigger in triggers() for text in said_by(trigger)]
    if section == "JAX":
        said.append(without_native_calls())
    check_section(section, said)


@pytest.mark.parametrize("framework", ["mindspore", "jax"])
def test_an_array_that_has_a_front_end_is_told_so(framework: str) -> None:
    skip_without({framework})
    array: Any
    if framework == "jax":
        import jax.numpy as jnp

        array = jnp.ones(3)
    else:
        import mindspore

        array = mindspore.Tensor(np.ones(3, np.float32))
    (said,) = said_by(lambda: radam.RAdam([array]))
    assert said in shown()["Arrays that are handed in"]
