"""What radam.paddle does to gradients before a step is what Paddle does: clipping first, then decay."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Paddle has to say when it is imported is not ours
    paddle: Any = pytest.importorskip("paddle")

import radam.paddle
from radam import _step

Array = np.ndarray[Any, Any]
CLASSES = {"ours": radam.paddle.RAdam, "theirs": paddle.optimizer.RAdam}
SHAPES = [(5, 3), (), (40,)]
STEPS = 12


class HalfOfIt(paddle.nn.clip.ClipGradBase):  # type: ignore[misc]
    """A clip of somebody's own, which writes the gradients."""

    def _dygraph_clip(self, params_grads: Any) -> Any:
        return [(param, grad.scale_(0.5)) for param, grad in params_grads]


class TowardsOne(paddle.regularizer.WeightDecayRegularizer):  # type: ignore[misc]
    """A regularizer of somebody's own."""

    def __call__(self, param: Any, grad: Any, block: Any) -> Any:
        return (param - 1.0) * 0.25


class MoreDecay(paddle.regularizer.L2Decay):  # type: ignore[misc]
    """One that only looks like L2 decay."""

    def __call__(self, param: Any, grad: Any, block: Any) -> Any:
        return param * 0.75


CLIPS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a global norm": lambda: paddle.nn.ClipGradByGlobalNorm(0.25),
    "a small global norm": lambda: paddle.nn.ClipGradByGlobalNorm(1e-6),
    "a global norm that is not reached": lambda: paddle.nn.ClipGradByGlobalNorm(1e6),
    "a global norm, skipped where it can be": lambda: paddle.nn.ClipGradByGlobalNorm(0.25, auto_skip_clip=True),
    "a global norm of 0": lambda: paddle.nn.ClipGradByGlobalNorm(0.0),
    "a norm": lambda: paddle.nn.ClipGradByNorm(0.25),
    "a value": lambda: paddle.nn.ClipGradByValue(0.25),
    "a value and another": lambda: paddle.nn.ClipGradByValue(0.25, -0.5),
    "a clip of one's own": HalfOfIt,
}
DECAYS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "a number": lambda: 0.125,
    "a whole number": lambda: 1,
    "L2Decay": lambda: paddle.regularizer.L2Decay(0.125),
    "negative L2Decay": lambda: paddle.regularizer.L2Decay(-0.125),
    "L1Decay": lambda: paddle.regularizer.L1Decay(0.125),
    "one's own": TowardsOne,
    "one's own L2Decay": MoreDecay,
}


def make_params(dtype: str = "float32") -> list[Any]:
    rng = np.random.default_rng(5)
    values = [np.asarray(rng.normal(size=shape), np.float32) for shape in SHAPES]
    return [paddle.base.framework.EagerParamBase.from_tensor(paddle.to_tensor(v).astype(dtype)) for v in values]


def train(optimizer: Any, params: list[Any], dtype: str = "float32") -> list[Array]:
    rng = np.random.default_rng(7)
    for _ in range(STEPS):
        for param in params:
            grad = np.asarray(rng.normal(size=param.shape) * 0.3, np.float32)
            param.grad = paddle.to_tensor(grad).astype(dtype)
        optimizer.step()
    return [param.astype("float32").numpy() for param in params]


def both(make: Callable[[Any, list[Any]], Any]) -> list[list[Array]]:
    """Train with both classes; make gets the class and the parameters."""
    ends = []
    for kind in CLASSES.values():
        params = make_params()
        ends.append(train(make(kind, params), params))
    return ends


def assert_alike(ends: list[list[Array]], tolerance: float = 2e-6) -> None:
    for ours, theirs in zip(*ends):
        assert np.max(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))) <= tolerance


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("decay", DECAYS)
def test_clip_and_decay_are_those_of_paddle_s_own(clip: str, decay: str) -> None:
    assert_alike(
        both(lambda kind, params: kind(0.05, parameters=params, weight_decay=DECAYS[decay](), grad_clip=CLIPS[clip]()))
    )


@pytest.mark.parametrize("clip", CLIPS)
def test_a_parameter_that_needs_no_clip_gets_none(clip: str) -> None:
    def make(kind: Any, params: list[Any]) -> Any:
        params[1].need_clip = False
        return kind(0.05, parameters=params, grad_clip=CLIPS[clip]())

    assert_alike(both(make))


@pytest.mark.parametrize("clip", CLIPS)
def test_each_group_is_clipped_by_itself(clip: str) -> None:
    def make(kind: Any, params: list[Any]) -> Any:
        groups = [
            {"params": params[:2], "grad_clip": CLIPS[clip]()},
            {"params": params[2:], "weight_decay": paddle.regularizer.L1Decay(0.25)},
        ]
        return kind(0.05, parameters=groups, grad_clip=paddle.nn.ClipGradByGlobalNorm(0.5), weight_decay=0.125)

    assert_alike(both(make))


@pytest.mark.parametrize("own", DECAYS)
@pytest.mark.parametrize("common", ["none", "a number", "L1Decay"])
def test_a_regularizer_of_a_parameter_wins(own: str, common: str) -> None:
    def make(kind: Any, params: list[Any]) -> Any:
        if own not in ("a number", "a whole number"):
            params[0].regularizer = DECAYS[own]()
        return kind(0.05, parameters=params, weight_decay=DECAYS[common]())

    assert_alike(both(make))


def test_a_regularizer_that_changes_takes_effect() -> None:
    ends = []
    for kind in CLASSES.values():
        params, decay = make_params(), paddle.regularizer.L2Decay(0.0)
        optimizer = kind(0.05, parameters=params, weight_decay=decay)
        train(optimizer, params)
        decay._coeff = 0.5
        train(optimizer, params)
        params[0].regularizer = paddle.regularizer.L1Decay(0.5)
        ends.append(train(optimizer, params))
    assert_alike(ends, 4e-6)


def test_a_tensor_is_a_decay_that_may_change() -> None:
    """Paddle's own promises it, and calls the Tensor as a function."""
    decay, params = paddle.to_tensor(0.0), make_params()
    optimizer = radam.paddle.RAdam(0.05, parameters=params, weight_decay=decay)
    train(optimizer, params)
    decay.set_value(paddle.to_tensor(0.5))
    changed = train(optimizer, params)
    plain = make_params()
    optimizer = radam.paddle.RAdam(0.05, parameters=plain, weight_decay=0.0)
    train(optimizer, plain)
    optimizer.regularization = paddle.regularizer.L2Decay(0.5)
    for one, other in zip(changed, train(optimizer, plain)):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("grouped", [False, True])
def test_clipping_writes_no_gradient(clip: str, grouped: bool) -> None:
    params = make_params()
    for param in params:
        param.grad = paddle.ones_like(param)
    given: Any = [{"params": params[:1]}, {"params": params[1:]}] if grouped else params
    radam.paddle.RAdam(0.05, parameters=given, weight_decay=0.1, grad_clip=CLIPS[clip]()).step()
    for param in params:
        assert np.array_equal(param.grad.numpy(), np.ones(param.shape))


@pytest.mark.parametrize(
    ("clip", "native"),
    [("a global norm", True), ("a small global norm", True), ("a value", True), ("a norm", False)],
)
def test_the_core_clips_what_it_clips_as_paddle_does(clip: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    core = _step.step

    def step(*args: Any, **keywords: Any) -> bool:
        seen.append(keywords["clip"])
        return core(*args, **keywords)

    monkeypatch.setattr(_step, "step", step)
    params = make_params()
    train(radam.paddle.RAdam(0.05, parameters=params, grad_clip=CLIPS[clip](), weight_decay=0.1), params)
    assert [one is not None for one in seen] == [native] * STEPS


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("clip", ["a global norm", "a value", "nothing"])
def test_what_is_no_number_goes_where_paddle_lets_it_go(clip: str, value: float) -> None:
    ends = []
    for kind in CLASSES.values():
        params = make_params()
        for param in params:
            param.grad = paddle.ones_like(param)
        params[0].grad[0, 0] = value
        kind(0.05, parameters=params, grad_clip=CLIPS[clip]()).step()
        ends.append([np.isfinite(param.numpy()) for param in params])
    for ours, theirs in zip(*ends):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("clip", ["nothing", "a global norm", "a norm", "a value"])
@pytest.mark.parametrize("decay", ["a number", "L1Decay"])
def test_16_bits_are_clipped_and_decayed_as_float32_would_be(dtype: str, clip: str, decay: str) -> None:
    ends = []
    for precision in (dtype, "float32"):
        params = make_params(precision)
        optimizer = radam.paddle.RAdam(
            0.05,
            parameters=params,
            grad_clip=CLIPS[clip](),
            weight_decay=DECAYS[decay](),
            multi_precision=True,
        )
        ends.append(train(optimizer, params, precision))
    for low, wide in zip(*ends):
        assert np.allclose(low, wide, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_global_norm_is_cut_to_what_was_asked_for(scale: float) -> None:
    param = paddle.base.framework.EagerParamBase.from_tensor(paddle.zeros([2]))
    param.grad = paddle.to_tensor([3.0 * scale, 4.0 * scale])
    clip = paddle.nn.ClipGradByGlobalNorm(4.0 * scale)
    optimizer = radam.paddle.RAdam(0.1, parameters=[param], grad_clip=clip)
    optimizer.step()
    moment = optimizer.state_dict()[f"{param.name}_moment1_0"].numpy()
    assert np.allclose(moment, [0.24 * scale, 0.32 * scale], rtol=2e-7, atol=0)


def test_regularizers_that_agree_at_first_may_part() -> None:
    ends = []
    for kind in CLASSES.values():
        params = make_params()
        decays = [paddle.regularizer.L2Decay(0.25) for _ in params]
        for param, decay in zip(params, decays):
            param.regularizer = decay
        optimizer = kind(0.05, parameters=params)
        train(optimizer, params)
        decays[1]._coeff, decays[2]._coeff = 0.75, -0.25
        ends.append(train(optimizer, params))
    assert_alike(ends, 4e-6)


class WithParams(paddle.nn.clip.ClipGradBase):  # type: ignore[misc]
    """One that computes with parameters, and writes one where it lies."""

    def _dygraph_clip(self, params_grads: Any) -> Any:
        out = []
        for param, grad in params_grads:
            out.append((param, grad * param.norm() / grad.norm()))
            param.add_(paddle.zeros_like(param))
        return out


def test_a_clip_computes_without_gradients() -> None:
    def make(kind: Any, params: list[Any]) -> Any:
        return kind(0.05, parameters=params, grad_clip=WithParams())

    assert_alike(both(make), 4e-6)


class OnlyTheFirst(paddle.nn.clip.ClipGradBase):  # type: ignore[misc]
    def _dygraph_clip(self, params_grads: Any) -> Any:
        return params_grads[:1]


def test_a_parameter_that_a_clip_leaves_out_has_no_state() -> None:
    params = make_params()
    optimizer = radam.paddle.RAdam(0.05, parameters=params, grad_clip=OnlyTheFirst())
    train(optimizer, params)
    assert {key.rsplit("_radam")[0] for key in optimizer.state_dict() if "radam" in key} == {params[0].name}
    optimizer._grad_clip = None
    train(optimizer, params)
    found = optimizer.state_dict()
    steps = [int(found[key].numpy()[0]) for key in sorted(found) if "radam" in key]
    assert sorted(steps) == [STEPS, STEPS, 2 * STEPS]


@pytest.mark.parametrize("value", [-0.125, 0.125, -1])
@pytest.mark.parametrize("way", ["a Tensor", "a number", "of a group", "a Tensor of a group", "of a parameter"])
def test_a_negative_decay_is_one_of_paddle_s_however_it_is_given(value: float, way: str) -> None:
    def make(kind: Any, params: list[Any]) -> Any:
        given: Any = paddle.to_tensor(float(value)) if "Tensor" in way else value
        if kind is CLASSES["theirs"]:
            given = paddle.regularizer.L2Decay(float(value))
        if "group" in way:
            return kind(0.05, parameters=[{"params": params, "weight_decay": given}])
        if "parameter" in way:
            params[0].regularizer = given
            return kind(0.05, parameters=params)
        return kind(0.05, parameters=params, weight_decay=given)

    assert_alike(both(make), 4e-6)
