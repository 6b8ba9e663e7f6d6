"""Optax's RAdam, a gradient transformation, in the shared table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import radam.jax
import reference as ref
from front_end import Array, FrontEnd, Refusal, Settings, Whose

LEAVES = "abcdefgh"
NAMES: dict[Whose, Any] = {"ours": radam.jax, "theirs": optax}
Lr = Any  # a number, or a schedule


def ours(lr: Lr, s: Settings) -> optax.GradientTransformation:
    return radam.jax.radam(lr, s.beta1, s.beta2, s.eps, weight_decay=s.weight_decay)


def theirs(lr: Lr, s: Settings) -> optax.GradientTransformation:
    """optax.radam; with decay put together as optax.adamw is."""
    if not s.weight_decay:
        return optax.radam(lr, s.beta1, s.beta2, s.eps)
    scale = optax.scale_by_radam(s.beta1, s.beta2, s.eps)
    return optax.chain(scale, optax.add_decayed_weights(s.weight_decay), optax.scale_by_learning_rate(lr))


MAKERS: dict[Whose, Callable[[Lr, Settings], optax.GradientTransformation]] = {"ours": ours, "theirs": theirs}


class OptaxTrainer:
    """Parameters in a dict, and a jitted step; several groups by multi_transform."""

    def __init__(
        self,
        whose: Whose,
        params: Sequence[Array],
        groups: Sequence[tuple[Sequence[int], Settings]],
        make: Callable[[Settings], optax.GradientTransformation] | None = None,
    ) -> None:
        make = make or (lambda s: MAKERS[whose](s.lr, s))
        parts = {str(k): make(s) for k, (_, s) in enumerate(groups)}
        labels = {LEAVES[i]: str(k) for k, (indices, _) in enumerate(groups) for i in indices}
        optimizer = parts["0"] if len(parts) == 1 else optax.multi_transform(parts, labels)
        self._params = {LEAVES[i]: jnp.array(param) for i, param in enumerate(params)}
        self._state = optimizer.init(self._params)

        @jax.jit
        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._step = step

    def step(self, grads: Sequence[Array | None]) -> None:
        tree = {LEAVES[i]: jnp.array(grad) for i, grad in enumerate(grads)}
        self._params, self._state = self._step(self._params, self._state, tree)

    def params(self) -> list[Array]:
        return [np.array(param) for param in self._params.values()]

    def save(self) -> Any:
        return jax.tree.map(np.array, self._state)

    def load(self, saved: Any) -> None:
        assert jax.tree.structure(saved) == jax.tree.structure(self._state)
        self._state = jax.tree.map(jnp.array, saved)


def formula(s: ref.Trajectory, g: Array, t: int, *, lr: float, weight_decay: float = 0.0, **rest: Any) -> None:
    decay = lr * weight_decay * s.p
    ref.optax_radam(s, g, t, lr=lr, **rest)
    s.p = s.p - decay


# Every schedule of optax.schedules, as a user would shape it for 60 steps.
SCHEDULES: dict[str, Callable[[], Any]] = {
    "constant_schedule": lambda: optax.constant_schedule(0.05),
    "cosine_decay_schedule": lambda: optax.cosine_decay_schedule(0.02, 40, alpha=0.1),
    "cosine_onecycle_schedule": lambda: optax.cosine_onecycle_schedule(60, 0.03),
    "exponential_decay": lambda: optax.exponential_decay(0.02, 10, 0.7),
    "join_schedules": lambda: optax.join_schedules(
        [optax.linear_schedule(0.0, 0.03, 20), optax.constant_schedule(0.01)], [20]
    ),
    "linear_onecycle_schedule": lambda: optax.linear_onecycle_schedule(60, 0.03),
    "linear_schedule": lambda: optax.linear_schedule(0.04, 0.001, 50),
    "piecewise_constant_schedule": lambda: optax.piecewise_constant_schedule(0.02, {15: 0.5, 30: 0.1}),
    "piecewise_interpolate_schedule": lambda: optax.piecewise_interpolate_schedule("cosine", 0.02, {15: 0.5, 30: 0.1}),
    "polynomial_schedule": lambda: optax.polynomial_schedule(0.03, 0.001, 2.0, 40),
    "sgdr_schedule": lambda: optax.sgdr_schedule(
        [{"init_value": 0.0, "peak_value": 0.03, "warmup_steps": 5, "decay_steps": n} for n in (20, 40)]
    ),
    "warmup_constant_schedule": lambda: optax.warmup_constant_schedule(0.0, 0.03, 20),
    "warmup_cosine_decay_schedule": lambda: optax.warmup_cosine_decay_schedule(0.0, 0.03, 10, 50),
    "warmup_exponential_decay_schedule": lambda: optax.warmup_exponential_decay_schedule(0.0, 0.03, 10, 10, 0.5),
}


def scheduled(schedule: Callable[[], Any]) -> Callable[[Whose, Sequence[Array], Settings], OptaxTrainer]:
    return lambda whose, params, s: OptaxTrainer(
        whose, params, [(range(len(params)), s)], lambda s: MAKERS[whose](schedule(), s)
    )


def injected(whose: Whose, params: Sequence[Array], s: Settings) -> OptaxTrainer:
    """A schedule for a decay rate as well: every hyperparameter is an array of the state."""
    factory = optax.inject_hyperparams(NAMES[whose].radam)
    b1 = optax.linear_schedule(0.5, 0.95, 50)
    return OptaxTrainer(whose, params, [(range(len(params)), s)], lambda s: factory(s.lr, b1=b1, b2=s.beta2, eps=s.eps))


def refused(**keywords: Any) -> Callable[[Whose], Any]:
    def act(whose: Whose) -> None:
        optimizer = NAMES[whose].radam(**{"learning_rate": 0.1, **keywords})
        params = jnp.ones(3)
        optimizer.update(params, optimizer.init(params), params)

    return act


def updated(grads: Any, state_of: Callable[[Any], Any] = lambda state: state) -> Callable[[Whose], Any]:
    def act(whose: Whose) -> None:
        optimizer = NAMES[whose].radam(0.1)
        optimizer.update(grads, state_of(optimizer.init({"w": jnp.ones(4)})))

    return act


def no_gradient_of_whole_numbers(whose: Whose) -> None:
    """What jax.grad with allow_int gives for an int32: an array of float0."""
    optimizer, count = NAMES[whose].radam(0.1), jnp.int32(3)
    grads = jax.grad(lambda n: 2.0 * n, allow_int=True)(count)
    optimizer.update(grads, optimizer.init(count))


def without_params(whose: Whose) -> None:
    optimizer = MAKERS[whose](0.1, Settings(weight_decay=0.1))
    optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)))


FRONT_END = FrontEnd(
    "optax",
    "optax",
    OptaxTrainer,
    formula=formula,
    most_beta2=0.99,
    group_settings=frozenset({"lr", "beta1", "beta2", "eps", "weight_decay", "decoupled"}),
    decays=frozenset({"decoupled"}),
    skips=False,
    schedulers={**{name: scheduled(schedule) for name, schedule in SCHEDULES.items()}, "inject_hyperparams": injected},
    refusals=[
        Refusal("a b1 of 1", refused(b1=1.0), ValueError, r"b1 .*1", theirs=False),
        Refusal("a b2 of 1", refused(b2=1.0), ValueError, r"b2 .*1", theirs=False),
        Refusal("a negative b2", refused(b2=-0.5), ValueError, "b2", theirs=False),
        Refusal("a b2 that is not a number", refused(b2=float("nan")), ValueError, "b2", theirs=False),
        Refusal("a negative eps", refused(eps=-1e-8), ValueError, "eps", theirs=False),
        Refusal("a negative eps_root", refused(eps_root=-1.0), ValueError, "eps_root", theirs=False),
        Refusal("an infinite threshold", refused(threshold=float("inf")), ValueError, "threshold", theirs=False),
        Refusal("a text as b1", refused(b1="0.9"), TypeError, "b1 must be a number"),
        Refusal("no b2", refused(b2=None), TypeError, "b2 must be a number"),
        Refusal("three b1s", refused(b1=jnp.full(3, 0.9)), TypeError, "b1 must be one real number", theirs=False),
        Refusal("a complex b1", refused(b1=0.9j), TypeError, "b1 must be a number", theirs=False),
        Refusal("a schedule as b2", refused(b2=optax.constant_schedule(0.9)), TypeError, "b2.*inject_hyperparams"),
        Refusal("a text as the learning rate", refused(learning_rate="0.1"), TypeError, "learning_rate must be"),
        Refusal("no learning rate at all", lambda whose: NAMES[whose].radam(), TypeError, "learning_rate"),
        Refusal("an unknown argument", refused(beta1=0.9), TypeError, "beta1"),
        Refusal(
            "nesterov by position",
            lambda whose: NAMES[whose].radam(0.1, 0.9, 0.99, 0, 0, 5, True),
            TypeError,
            "positional",
        ),
        Refusal(
            "a negative weight decay",
            lambda whose: radam.jax.radam(0.1, weight_decay=-0.1),
            ValueError,
            "weight_decay",
            theirs=False,
        ),
        *(
            Refusal(f"a weight decay of {x!r}", refused(weight_decay=x), error, "weight_decay must be", theirs=False)
            for x, error in (
                (np.float32(-1), ValueError),
                (np.float32("nan"), ValueError),
                (jnp.float32(-1), ValueError),
                (float("inf"), ValueError),
                (True, TypeError),
                ("0.1", TypeError),
                ([0.1], TypeError),
                (jnp.full(3, 0.1), TypeError),
            )
        ),
        *(
            Refusal(
                f"a learning rate of {x!r}", refused(learning_rate=x), TypeError, "learning_rate must be", theirs=False
            )
            for x in (True, 1j, [0.1], jnp.full(2, 0.1))
        ),
        Refusal("weight decay without params", without_params, ValueError, "not passing `params`"),
        Refusal("a gradient of another shape", updated({"w": jnp.ones(3)}), TypeError, r"\['w'\].*\(3,\)"),
        Refusal("a gradient that would be broadcast", updated({"w": jnp.ones(1)}), TypeError, r"\['w'\]", theirs=False),
        Refusal("gradients of another structure", updated({"v": jnp.ones(4)}), ValueError, "structure of the state"),
        Refusal("whole numbers", updated({"w": jnp.ones(4, jnp.int32)}), TypeError, r"\['w'\].*floating", theirs=False),
        Refusal("float0", no_gradient_of_whole_numbers, TypeError, "floating.*float0"),
        Refusal("a text as a gradient", updated({"w": "grad"}), TypeError, r"\['w'\].*no array"),
        Refusal(
            "complex gradients of a real parameter",
            updated({"w": jnp.ones(4, jnp.complex64)}),
            TypeError,
            "not complex",
            theirs=False,
        ),
        Refusal("no state", updated({"w": jnp.ones(4)}, lambda state: None), TypeError, "NoneType"),
        Refusal("a part of the state", updated({"w": jnp.ones(4)}, lambda state: state[0]), ValueError, "init"),
    ],
)
