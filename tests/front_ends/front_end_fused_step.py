"""radam.jax.fused_step, beside Optax's RAdam, in the shared table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import radam.jax
from front_end import Array, FrontEnd, Refusal, Settings, Trainer, Whose
from front_end_optax import LEAVES, SCHEDULES, OptaxTrainer, formula, ours, theirs

Groups = Sequence[tuple[Sequence[int], Settings]]


class FusedTrainer:
    """A jitted step that donates parameters and state; one call for each group."""

    def __init__(self, params: Sequence[Array], groups: Groups, *, lr: Any = None, convention: str = "optax") -> None:
        self._params = {LEAVES[i]: jnp.array(param) for i, param in enumerate(params)}
        parts = [({LEAVES[i] for i in indices}, s, s.lr if lr is None else lr) for indices, s in groups]
        self._states = [ours(rate, s).init(self._of(names)) for names, s, rate in parts]

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, states: Any, grads: Any) -> Any:
            after = []
            for (names, s, rate), state in zip(parts, states):
                own = {name: params[name] for name in names}
                grads_of = {name: grads[name] for name in names}
                numbers = (rate, s.beta1, s.beta2, s.eps)
                keywords = {"weight_decay": s.weight_decay, "convention": convention}
                own, state = radam.jax.fused_step(own, grads_of, state, *numbers, **keywords)
                params = {**params, **own}
                after.append(state)
            return params, after

        self._step = step

    def _of(self, names: set[str]) -> dict[str, jax.Array]:
        return {name: param for name, param in self._params.items() if name in names}

    def step(self, grads: Sequence[Array | None]) -> None:
        tree = {LEAVES[i]: jnp.array(grad) for i, grad in enumerate(grads)}
        self._params, self._states = self._step(self._params, self._states, tree)

    def params(self) -> list[Array]:
        return [np.array(param) for param in self._params.values()]

    def save(self) -> Any:
        (state,) = self._states
        return jax.tree.map(np.array, state)

    def load(self, saved: Any) -> None:
        assert jax.tree.structure(saved) == jax.tree.structure(self._states[0])
        self._states = [jax.tree.map(jnp.array, saved)]


def make(whose: Whose, params: Sequence[Array], groups: Groups) -> Trainer:
    return FusedTrainer(params, groups) if whose == "ours" else OptaxTrainer("theirs", params, groups)


def make_like_torch(params: Sequence[Array], settings: Settings) -> Trainer:
    return FusedTrainer(params, [(range(len(params)), settings)], convention="torch")


def scheduled(schedule: Callable[[], Any]) -> Callable[[Whose, Sequence[Array], Settings], Trainer]:
    def make_scheduled(whose: Whose, params: Sequence[Array], settings: Settings) -> Trainer:
        groups = [(range(len(params)), settings)]
        if whose == "ours":
            return FusedTrainer(params, groups, lr=schedule())
        return OptaxTrainer("theirs", params, groups, lambda s: theirs(schedule(), s))

    return make_scheduled


def refused(**given: Any) -> Callable[[Whose], Any]:
    """A step of one leaf, but for what is given: arguments, or functions that change a valid one."""

    def act(whose: Whose) -> None:
        params = {"w": jnp.ones(4)}
        valid = {"params": params, "grads": params, "state": radam.jax.radam(0.1).init(params), "learning_rate": 0.1}
        for name, x in given.items():
            valid[name] = x(valid[name]) if callable(x) and name in ("params", "grads", "state") else x
        jax.block_until_ready(radam.jax.fused_step(**valid))

    return act


def moments_of(dtype: Any) -> Callable[[Any], Any]:
    return lambda state: jax.tree.map(lambda x: x.astype(dtype) if x.ndim else x, state)


def without_theirs(what: str, act: Callable[[Whose], Any], error: type[Exception], text: str) -> Refusal:
    return Refusal(what, act, error, text, theirs=False)


FRONT_END = FrontEnd(
    "fused_step",
    "optax",
    make,
    formula=formula,
    most_beta2=0.99,
    group_settings=frozenset({"lr", "beta1", "beta2", "eps", "weight_decay", "decoupled"}),
    decays=frozenset({"decoupled"}),
    skips=False,
    schedulers={name: scheduled(schedule) for name, schedule in SCHEDULES.items()},
    refusals=[
        without_theirs("a b1 of 1", refused(b1=1.0), ValueError, r"b1 .*1"),
        without_theirs("a b2 that is not a number", refused(b2=float("nan")), ValueError, "b2 .*nan"),
        without_theirs("a b2 of 1, in an array", refused(b2=jnp.ones(())), Exception, "b2 must be .* below 1, got 1"),
        without_theirs("a negative eps", refused(eps=-1e-8), ValueError, "eps"),
        without_theirs("a negative eps_root", refused(eps_root=-1.0), ValueError, "eps_root"),
        without_theirs("an infinite threshold", refused(threshold=float("inf")), ValueError, "threshold"),
        without_theirs("a negative weight decay", refused(weight_decay=-1.0), ValueError, "weight_decay"),
        without_theirs("a text as b1", refused(b1="0.9"), TypeError, "b1 must be a number"),
        without_theirs("three b1s", refused(b1=jnp.full(3, 0.9)), TypeError, "b1 must be one real number"),
        without_theirs("a text as the learning rate", refused(learning_rate="0.1"), TypeError, "learning_rate must be"),
        without_theirs("no such convention", refused(convention="jax"), ValueError, "convention must be one of"),
        without_theirs("a weight decay of NumPy below 0", refused(weight_decay=np.float32(-1)), ValueError, "weight_"),
        without_theirs("True as the weight decay", refused(weight_decay=True), TypeError, "weight_decay must be"),
        without_theirs(
            "a ragged gradient", refused(grads={"w": [[1.0], [1.0, 2.0]]}), TypeError, r"gradient of params\['w'\]"
        ),
        without_theirs(
            "a state of a clip as well",
            refused(state=lambda s: (optax.clip_by_global_norm(1.0).init({}), *s)),
            TypeError,
            "something before it.*the gradients first",
        ),
        without_theirs(
            "a state of another optimizer",
            refused(state=lambda s: optax.sgd(0.1, 0.9).init(s[0].mu)),
            TypeError,
            "Trace",
        ),
        without_theirs("no state", refused(state=lambda s: None), TypeError, "holds NoneType"),
        without_theirs("a part of the state", refused(state=lambda s: s[1]), TypeError, "ScaleByAdamState"),
        without_theirs("two states", refused(state=lambda s: (*s, *s)), TypeError, "holds 2"),
        without_theirs("a count of floats", refused(state=lambda s: (s[0]._replace(count=1.0),)), TypeError, "count"),
        without_theirs(
            "a count below zero", refused(state=lambda s: (s[0]._replace(count=-1),)), Exception, "not be negative"
        ),
        without_theirs("moments of 16 bits", refused(state=moments_of(jnp.bfloat16)), ValueError, r"mu of params\['w"),
        without_theirs("whole moments", refused(state=moments_of(jnp.int32)), TypeError, r"mu of params\['w'\].*int32"),
        without_theirs("other moments", refused(state=lambda s: (s[0]._replace(mu={}),)), ValueError, "mu has not"),
        without_theirs("a gradient of another shape", refused(grads={"w": jnp.ones(3)}), TypeError, r"\['w'\].*\(3,\)"),
        without_theirs("a gradient too many", refused(grads={"w": 1.0, "v": 1.0}), ValueError, "grads has not"),
        without_theirs("a whole gradient", refused(grads={"w": jnp.ones(4, int)}), TypeError, r"\['w'\].*int32"),
        without_theirs("a text as a gradient", refused(grads={"w": "grad"}), TypeError, r"\['w'\] is no array"),
        without_theirs(
            "complex parameters", refused(params={"w": jnp.ones(4, complex)}), TypeError, r"\['w'\].*complex"
        ),
    ],
    make_like_torch=make_like_torch,
)
