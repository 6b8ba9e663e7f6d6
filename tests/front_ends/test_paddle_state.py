"""Checkpoints of radam.paddle and paddle.optimizer.RAdam are each other's, to the step count and the last bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Paddle has to say when it is imported is not ours
    paddle: Any = pytest.importorskip("paddle")
    from paddle.base.unique_name import UniqueNameGenerator
    from paddle.optimizer import lr
    from paddle.utils import unique_name

import radam.paddle
from radam import _step
from radam.conventions import CONVENTIONS
from radam.paddle import counts

Array = np.ndarray[Any, Any]
CLASSES = {"ours": radam.paddle.RAdam, "theirs": paddle.optimizer.RAdam}
SHAPES = [(2, 3), (), (5,)]
KINDS = ("beta1_pow", "beta2_pow", "rho", "moment1", "moment2")


def make_params(dtype: str = "float32", seed: int = 3) -> list[Any]:
    """Make parameters with names of their own, in a program of their own."""
    rng = np.random.default_rng(seed)
    params = []
    with unique_name.guard(UniqueNameGenerator()):
        for shape in SHAPES:
            value = paddle.to_tensor(np.asarray(rng.normal(size=shape), np.float32)).astype(dtype)
            params.append(paddle.base.framework.EagerParamBase.from_tensor(value))
    return params


def train(optimizer: Any, params: list[Any], steps: int = 1, seed: int = 5) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for param in params:
            grad = paddle.to_tensor(np.asarray(rng.normal(size=param.shape), np.float32))
            param.grad = grad.astype(param.dtype)
        with unique_name.guard(UniqueNameGenerator()):
            optimizer.step()


def made(whose: str, dtype: str = "float32", **keywords: Any) -> tuple[Any, list[Any]]:
    params = make_params(dtype)
    return CLASSES[whose](**{"learning_rate": 0.05, "parameters": params, **keywords}), params


def bits(state: dict[str, Any]) -> dict[str, bytes]:
    found = {}
    for key, value in state.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for name, one in inner:
            found[key + name] = one.numpy().tobytes() if isinstance(one, paddle.Tensor) else repr(one).encode()
    return found


# ---- the form


@pytest.mark.parametrize("name", [None, "mine"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_state_dict_is_that_of_paddle_s_own_and_a_count_for_each_parameter(name: str | None, dtype: str) -> None:
    states = []
    for whose in CLASSES:
        optimizer, params = made(whose, dtype, name=name)
        train(optimizer, params, 7)
        states.append(optimizer.state_dict())
    ours, theirs = states
    more = set(ours) - set(theirs)
    assert set(theirs) < set(ours)
    assert {key.rsplit("_", 3)[1:] == ["radam", "count", "0"] for key in map(str, more)} == {True}
    assert len(more) == len(SHAPES)
    for key, value in theirs.items():
        assert (ours[key].shape, ours[key].dtype, ours[key].name) == (value.shape, value.dtype, value.name)
        exact = "pow" in key
        assert np.allclose(ours[key].numpy(), value.numpy(), rtol=0 if exact else 1e-4, atol=0 if exact else 1e-7), key


def test_before_the_first_step_there_is_no_state() -> None:
    optimizer, _ = made("ours")
    assert optimizer.state_dict() == {}
    schedule = lr.StepDecay(0.1, 3)
    scheduled, _ = made("ours", learning_rate=schedule)
    assert scheduled.state_dict() == {"LR_Scheduler": schedule.state_dict()}


@pytest.mark.parametrize("whose", CLASSES)
def test_a_file_of_either_goes_on_in_ours_with_the_same_bits(whose: str, tmp_path: Any) -> None:
    optimizer, params = made(whose)
    train(optimizer, params, 30)
    paddle.save(optimizer.state_dict(), str(tmp_path / "optimizer.pdopt"))
    for return_numpy in (False, True):
        found = paddle.load(str(tmp_path / "optimizer.pdopt"), return_numpy=return_numpy)
        resumed, its = made("ours")
        for one, other in zip(its, params):
            one.set_value(other.numpy())
        resumed.set_state_dict(found)
        assert {int(v.numpy()[0]) for k, v in resumed.state_dict().items() if "radam_count" in k} == {30}
        again = bits(resumed.state_dict())
        assert {key: again[key] for key in bits(optimizer.state_dict()) if "rho" not in key} == {
            key: value for key, value in bits(optimizer.state_dict()).items() if "rho" not in key
        }


def test_paddle_s_own_loads_ours_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    optimizer, params = made("ours")
    train(optimizer, params, 30)
    theirs, its = made("theirs")
    for one, other in zip(its, params):
        one.set_value(other.numpy())
    theirs.set_state_dict(optimizer.state_dict())
    train(theirs, its, 20, seed=9)
    train(optimizer, params, 20, seed=9)
    assert not recwarn.list
    for one, other in zip(its, params):
        assert np.allclose(one.numpy(), other.numpy(), atol=3e-6)
    assert not [key for key in theirs.state_dict() if "radam" in key]


def test_a_loaded_state_shares_no_memory() -> None:
    first, params = made("ours")
    train(first, params, 3)
    second, others = made("ours")
    second.set_state_dict(first.state_dict())
    before = bits(first.state_dict())
    train(second, others, 2)
    assert bits(first.state_dict()) == before


def test_a_second_optimizer_of_one_program_loads_the_first_one_s_state() -> None:
    params = make_params()
    first = radam.paddle.RAdam(0.05, parameters=params)
    for param in params:
        param.grad = paddle.ones_like(param)
    first.step()
    second = radam.paddle.RAdam(0.05, parameters=params)
    second.step()
    assert set(first.state_dict()).isdisjoint(second.state_dict())
    second.set_state_dict(first.state_dict())
    second.step()
    assert {int(v.numpy()[0]) for k, v in second.state_dict().items() if "radam_count" in k} == {2}


def test_a_parameter_that_the_state_lacks_begins_anew() -> None:
    optimizer, params = made("ours")
    params[1].stop_gradient = True
    train(optimizer, params, 5)
    resumed, its = made("ours")
    resumed.set_state_dict(optimizer.state_dict())
    train(resumed, its)
    found = resumed.state_dict()
    steps = [int(found[f"{param.name}_radam_count_0"].numpy()[0]) for param in its]
    assert steps == [6, 1, 6]


def test_parameters_outside_of_the_groups_keep_their_states_when_loaded() -> None:
    first, late = make_params()[:2]
    optimizer = radam.paddle.RAdam(0.1, parameters=[first])
    for _ in range(3):
        optimizer.apply_gradients([(one, paddle.ones_like(one)) for one in (first, late)])
    found = optimizer.state_dict()
    optimizer.set_state_dict(found)
    assert bits(optimizer.state_dict()) == bits(found)
    fewer = {key: value for key, value in found.items() if not key.startswith(f"{late.name}_")}
    with pytest.raises(AssertionError, match=rf"{late.name}_moment1_\d+ not found"):
        optimizer.set_state_dict(fewer)
    assert bits(optimizer.state_dict()) == bits(found)


@pytest.mark.parametrize("whose", CLASSES)
def test_a_parameter_that_joins_after_the_load_takes_what_was_saved_of_it(whose: str) -> None:
    optimizer, params = made(whose)
    train(optimizer, params, 2)
    found = dict(optimizer.state_dict())
    resumed = CLASSES[whose](0.05, parameters=params[:1])
    with unique_name.guard(UniqueNameGenerator()):
        resumed.set_state_dict(found)
        resumed._parameter_list.append(params[1])
        before = found[f"{params[1].name}_moment1_0"].numpy().copy()
        params[1].grad = paddle.zeros_like(params[1])
        for _ in range(2):
            resumed.step()
    moment = resumed.state_dict()[f"{params[1].name}_moment1_0"].numpy()
    assert np.allclose(moment, before * np.float32(0.81), rtol=1e-6, atol=0)


def test_what_waits_for_a_parameter_is_a_copy_and_outlives_a_step_that_fails() -> None:
    optimizer, params = made("ours")
    train(optimizer, params, 2)
    found = optimizer.state_dict()
    resumed = radam.paddle.RAdam(0.05, parameters=params[:1])
    resumed.set_state_dict(found)
    moment = found[f"{params[2].name}_moment1_0"]
    before = moment.numpy().copy()
    moment.fill_(100.0)
    bad = (params[1], paddle.ones([9]))
    with pytest.raises(ValueError, match="shape"):
        resumed.apply_gradients([(params[2], paddle.zeros([5])), bad])
    assert counts_of(resumed) == {2}
    resumed.apply_gradients([(params[2], paddle.zeros([5]))])
    later = resumed.state_dict()
    assert counts_of(resumed) == {2, 3}
    assert np.allclose(later[f"{params[2].name}_moment1_0"].numpy(), before * np.float32(0.9), rtol=1e-6, atol=0)


def test_a_parameter_with_the_name_of_a_master_weight_loads_its_own_state() -> None:
    both = [paddle.create_parameter([2], "float32", name=name) for name in ("w", "w_fp32_master_0")]
    for params in (both[1:], both):
        optimizer = radam.paddle.RAdam(0.1, parameters=params)
        for i, one in enumerate(params):
            one.grad = paddle.full([2], 1.0 + i)
        optimizer.step()
        found = optimizer.state_dict()
        resumed = radam.paddle.RAdam(0.1, parameters=params)
        resumed.set_state_dict(found)
        assert bits(resumed.state_dict()) == bits(found)


def test_the_schedule_is_saved_and_loaded() -> None:
    schedule = lr.StepDecay(0.1, 3)
    optimizer, params = made("ours", learning_rate=schedule)
    train(optimizer, params)
    for _ in range(7):
        schedule.step()
    other = lr.StepDecay(0.1, 3)
    resumed, _ = made("ours", learning_rate=other)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.get_lr() == optimizer.get_lr() == other()


# ---- the step count in the powers


def step_of(*args: Any) -> int:
    """Return the step that powers are of, which they must be."""
    found, is_theirs = counts.find(*args)
    assert is_theirs
    return found


def counts_of(optimizer: Any) -> set[int]:
    return {int(v.numpy()[0]) for k, v in optimizer.state_dict().items() if "radam_count" in k}


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.0, 0.99), (0.95, 0.9), (0.9, 0.9999), (0.99, 0.0)])
def test_powers_are_those_of_paddle_s_own_kernel_to_the_bit_and_name_the_step(beta1: float, beta2: float) -> None:
    for dtype in ("float32", "float64"):
        param = paddle.base.framework.EagerParamBase.from_tensor(paddle.ones([1], dtype))
        param.grad = paddle.ones([1], dtype)
        theirs = paddle.optimizer.RAdam(0.0, beta1=beta1, beta2=beta2, parameters=[param])
        for t in range(1, 151):
            theirs.step()
            held = [theirs._accumulators[kind][param.name].numpy()[0] for kind in KINDS[:3]]
            ours = counts.powers(t, beta1, beta2, dtype)
            assert held[:2] == list(ours[:2])
            assert np.isclose(held[2], ours.rho, rtol=1e-6 if dtype == "float32" else 1e-12, atol=1e-9)
            found = step_of(counts.Powers(*map(float, held)), None, beta1, beta2, dtype)
            assert found == t or (beta1 == 0.0 and beta2 == 0.0)


@pytest.mark.parametrize(("beta1", "beta2", "most"), [(0.9, 0.999, 87_000), (0.9, 0.9999, 870_000), (0.9, 0.99, 8_600)])
def test_the_step_is_found_as_long_as_it_makes_a_difference(beta1: float, beta2: float, most: int) -> None:
    for t in [*range(1, 40), 800, 829, 830, 831, 1000, 5000, 8000, *range(10_000, 90_000, 7_777), 400_000, most]:
        if t <= most:
            assert step_of(counts.powers(t, beta1, beta2, "float32"), None, beta1, beta2, "float32") == t


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.9, 0.99), (0.999, 0.9), (0.0, 0.0), (0.5, 0.0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_beyond_that_a_step_is_the_same_whatever_its_number(beta1: float, beta2: float, dtype: str) -> None:
    h = CONVENTIONS["paddle"].hyperparameters(lr=0.1, betas=(beta1, beta2))
    for t in (1_200_000, 5_000_000, 2**40):
        found = step_of(counts.powers(t, beta1, beta2, dtype), None, beta1, beta2, dtype)
        one, other = (_step.coefficients(h, count + 1, "float64") for count in (found, t))
        for key, value in one.items():
            assert other[key] == (value if isinstance(value, (str, bool)) else pytest.approx(value, rel=4e-15, abs=0))


@pytest.mark.parametrize("t", [0, 1, 5, 999, 123_456, 10_000_000])
def test_a_count_of_ours_is_exact_at_any_step(t: int) -> None:
    powers = counts.powers(t, 0.9, 0.999, "float32")
    assert step_of(powers, counts.Exact(t, 0.9, 0.999), 0.9, 0.999, "float32") == t
    assert step_of(powers, counts.Exact(t, 0.9, 0.999), 0.5, 0.5, "float32") == t  # other betas since


@pytest.mark.parametrize("exact", [counts.Exact(7, 0.9, 0.999), counts.Exact(-1, 0.9, 0.999), counts.Exact(12, 0.5, 2)])
def test_a_count_that_contradicts_the_powers_is_not_believed(exact: counts.Exact) -> None:
    powers = counts.powers(12, 0.9, 0.999, "float32")
    assert step_of(powers, exact, 0.9, 0.999, "float32") == 12


def test_a_count_that_is_no_number_is_not_believed() -> None:
    powers = counts.powers(12, 0.9, 0.999, "float32")
    for steps in (float("nan"), float("inf"), 12.5, 2.0**60):
        assert step_of(powers, counts.Exact(steps, 0.9, 0.999), 0.9, 0.999, "float32") == 12


@pytest.mark.parametrize("value", [lambda: "text", lambda: paddle.ones([2]), lambda: paddle.full([3], float("nan"))])
def test_an_entry_that_holds_no_count_is_passed_over(value: Callable[[], Any]) -> None:
    optimizer, params = made("ours")
    train(optimizer, params, 5)
    found = {key: value() if "radam_count" in key else kept for key, kept in optimizer.state_dict().items()}
    resumed, _ = made("ours")
    resumed.set_state_dict(found)
    assert {int(v.numpy()[0]) for k, v in resumed.state_dict().items() if "radam_count" in k} == {5}


def test_powers_that_are_no_power_of_the_betas_name_the_nearest_step() -> None:
    for t in (3, 40, 700, 3000, 60_000):
        powers = counts.Powers(*(np.float32(beta**t) for beta in (0.9, 0.999)), 0.0)
        found, is_theirs = counts.find(powers, None, 0.9, 0.999, "float32")
        assert abs(found - t) <= t // 10_000
        assert not is_theirs


def test_powers_of_other_betas_are_warned_of_by_the_parameter_s_name() -> None:
    optimizer, params = made("theirs")
    train(optimizer, params, 100)
    other, its = made("ours", beta1=0.8, beta2=0.99)
    with pytest.warns(UserWarning, match=rf"{its[0].name}.* beta1=0.8 and beta2=0.99.* for 2 more") as caught:
        other.set_state_dict(optimizer.state_dict())
    assert caught[0].filename == __file__
    for betas in ({"beta2": 0.99}, {"beta1": 0.8}):  # the other beta names the step
        resumed, _ = made("ours", **betas)
        resumed.set_state_dict(optimizer.state_dict())
        assert counts_of(resumed) == {100}


def test_a_run_that_changes_hands_counts_on() -> None:
    params, saved, total = make_params(), None, 0
    for whose, steps in [("theirs", 9), ("ours", 800), ("theirs", 300), ("ours", 1), ("theirs", 4), ("ours", 5)]:
        optimizer = CLASSES[whose](0.001, parameters=params)
        if saved is not None:
            optimizer.set_state_dict(saved)
        train(optimizer, params, steps)
        saved = {k: v.clone() for k, v in optimizer.state_dict().items() if "radam" not in k}
        total += steps
    found = optimizer.state_dict()
    assert {int(v.numpy()[0]) for k, v in found.items() if "radam_count" in k} == {total}


# ---- what does not fit


def change(kind: str, value: Callable[[Any], Any] | None) -> Callable[[dict[str, Any], str], None]:
    def act(found: dict[str, Any], name: str) -> None:
        key = f"{name}_{kind}_0"
        found[key] = value(found[key]) if value is not None else None
        if found[key] is None:
            del found[key]

    return act


def twice(found: dict[str, Any], name: str) -> None:
    found[f"{name}_moment1_1"] = found[f"{name}_moment1_0"].clone()
    found[f"{name}_moment1_2"] = found.pop(f"{name}_moment1_0")


BAD: dict[str, tuple[Callable[[dict[str, Any], str], None], type[Exception], str]] = {
    **{f"no {kind}": (change(kind, None), AssertionError, f"{kind}_0 not found") for kind in KINDS},
    "a moment of another shape": (change("moment1", lambda v: v.flatten()[:-1]), AssertionError, "shape"),
    "a moment of another dtype": (change("moment2", lambda v: v.astype("float64")), AssertionError, "dtype"),
    "a moment of objects": (change("moment2", lambda v: object()), AssertionError, "moment2"),
    "a power of NaN": (change("beta1_pow", lambda v: v * float("nan")), ValueError, "beta1_pow"),
    "a power above 1": (change("beta2_pow", lambda v: v + 1), ValueError, "beta2_pow"),
    "two moments": (twice, AssertionError, "more than one moment1"),
    "another model's": (
        lambda found, name: [found.update({"x" + key: found.pop(key)}) for key in list(found) if key != "LR_Scheduler"],
        AssertionError,
        "not found",
    ),
    "no schedule": (lambda found, name: found.pop("LR_Scheduler"), AssertionError, "LR_Scheduler"),
    "a schedule without its end": (
        lambda found, name: found.update(LR_Scheduler={"last_lr": 7.0}),
        RuntimeError,
        "last_epoch",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_state_that_does_not_fit_changes_nothing(case: str, fresh: bool) -> None:
    act, error, text = BAD[case]
    optimizer, params = made("ours", learning_rate=lr.StepDecay(0.1, 3))
    train(optimizer, params, 3)
    found = dict(optimizer.state_dict())
    act(found, params[2].name)
    if fresh:
        optimizer, params = made("ours", learning_rate=lr.StepDecay(0.1, 3))
    else:
        train(optimizer, params, 1)
    before, schedule = bits(optimizer.state_dict()), dict(optimizer._learning_rate.__dict__)
    with pytest.raises(error, match=text):
        optimizer.set_state_dict(found)
    assert bits(optimizer.state_dict()) == before
    assert optimizer._learning_rate.__dict__ == schedule


@pytest.mark.filterwarnings("ignore:There are some unused values")  # those of the inner one, Paddle says
def test_a_refused_load_leaves_a_scheduler_within_a_scheduler_alone() -> None:
    inner = lr.StepDecay(0.1, 3)
    optimizer, params = made("ours", learning_rate=lr.LinearWarmup(inner, 2, 0.0, 0.1))
    train(optimizer, params)
    found = dict(optimizer.state_dict())
    found["LR_Scheduler"] = {**found["LR_Scheduler"], "last_epoch": 9, "LinearWarmup_LR": {"last_epoch": 55}}
    before = dict(inner.__dict__), dict(optimizer._learning_rate.__dict__)
    with pytest.raises(RuntimeError, match="last_lr"):
        optimizer.set_state_dict(found)
    assert (inner.__dict__, optimizer._learning_rate.__dict__) == before
