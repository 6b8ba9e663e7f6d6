"""The promises that every front end keeps, in one table; front_end.py says how one joins it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

import reference as ref
from front_end import NAMES, Array, FrontEnd, Settings, Trainer, Whose, find, missing
from front_end_numpy import make_as

pytestmark = pytest.mark.filterwarnings("ignore:.*no step is ever rectified:UserWarning")

STEPS = 60
TOLERANCE = 3e-6  # of max(1, |p|)
SHAPES = [(5, 7), (), (130,), (2, 3, 4)]

GRID = {
    "as it comes": Settings(lr=1e-3, beta1=0.9, beta2=0.999),
    "exact in float32": Settings(),
    "a large lr": Settings(lr=0.05, beta1=0.9, beta2=0.99),
    "no momentum": Settings(lr=0.01, beta1=0.0, beta2=0.99),
    "a large eps": Settings(lr=0.01, beta1=0.9, beta2=0.98, eps=0.1),
    "long momentum": Settings(lr=0.01, beta1=0.99, beta2=0.95),
    "never rectified": Settings(lr=0.01, beta1=0.9, beta2=0.5),
    "decayed": Settings(lr=0.01, beta1=0.9, beta2=0.99, weight_decay=0.125),
    "decay decoupled": Settings(lr=0.01, beta1=0.9, beta2=0.99, weight_decay=0.125, decoupled=True),
    "beta2 0.9999": Settings(lr=0.01, beta1=0.9, beta2=0.9999),
    "beta2 0.99999": Settings(lr=0.01, beta1=0.9, beta2=0.99999),
}


@pytest.fixture(params=NAMES)
def front_end(request: pytest.FixtureRequest) -> FrontEnd:
    if why := missing(request.param):
        pytest.skip(why)
    return find(request.param)


def problem(seed: int = 3) -> tuple[list[Array], list[list[Array]]]:
    """Parameters, and gradients for each step that shrink as training goes on."""
    rng = np.random.default_rng(seed)
    params = [np.asarray(rng.normal(size=shape), np.float32) for shape in SHAPES]
    shrink = np.linspace(2.0, 0.1, STEPS)
    return params, [[np.asarray(rng.normal(size=shape) * s, np.float32) for shape in SHAPES] for s in shrink]


def known(front_end: FrontEnd, settings: Settings) -> None:
    """Skip what a framework does not have."""
    kind = "decoupled" if settings.decoupled else "coupled"
    if settings.weight_decay and kind not in front_end.decays:
        pytest.skip(f"{front_end.name} has no {kind} decay")


def train(trainer: Trainer, grads: Sequence[Sequence[Array | None]]) -> list[Array]:
    for step in grads:
        trainer.step(step)
    return trainer.params()


def exact(front_end: FrontEnd, param: Array, grads: Sequence[Array], settings: Settings | Sequence[Settings]) -> Array:
    """The trajectory's end in float64, under the same settings throughout, or those of each step."""
    trajectory = ref.Trajectory.start(np.asarray(param, np.float64))
    each = [settings] * len(grads) if isinstance(settings, Settings) else settings
    for t, (grad, s) in enumerate(zip(grads, each, strict=True), start=1):
        decay = {"weight_decay": s.weight_decay} if s.weight_decay else {}
        if s.decoupled and front_end.formula is ref.torch_radam:
            decay["decoupled"] = True
        wide = np.asarray(grad, np.float64)
        front_end.formula(trajectory, wide, t, lr=s.lr, betas=s.betas, eps=s.eps, **decay)
    return trajectory.p


def assert_near(got: Sequence[Array], expected: Sequence[Array], tolerance: float = TOLERANCE) -> None:
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape
        off = np.abs(np.float64(a) - np.float64(b)) / np.maximum(1, np.abs(b))
        assert np.max(off) <= tolerance, f"parameter {i} is off by {np.max(off):.3g}"


def assert_same_bits(got: Sequence[Array], expected: Sequence[Array]) -> None:
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert np.array_equal(ref.bits(a), ref.bits(b)), f"parameter {i}"


def spans(settings: Settings) -> list[tuple[Sequence[int], Settings]]:
    return [(range(len(SHAPES)), settings)]


@pytest.mark.parametrize("case", GRID)
def test_60_steps_are_those_of_the_framework_s_own(front_end: FrontEnd, case: str) -> None:
    settings = GRID[case]
    known(front_end, settings)
    if not front_end.has_theirs:
        pytest.skip(f"{front_end.name} has no optimizer of its own here")
    if settings.beta2 > front_end.most_beta2:
        pytest.skip(f"{front_end.name}'s own schedule is not sound at beta2 = {settings.beta2}")
    params, grads = problem()
    ours, theirs = (train(front_end.one_group(whose, params, settings), grads) for whose in ("ours", "theirs"))
    assert_near(ours, theirs)


@pytest.mark.parametrize("case", GRID)
def test_60_steps_are_those_of_exact_arithmetic(front_end: FrontEnd, case: str) -> None:
    settings = GRID[case]
    known(front_end, settings)
    params, grads = problem()
    ours = train(front_end.one_group("ours", params, settings), grads)
    expected = [exact(front_end, p, [step[i] for step in grads], settings) for i, p in enumerate(params)]
    assert_near(ours, expected)


def test_60_steps_give_the_bits_of_every_other_front_end(front_end: FrontEnd) -> None:
    """Each is compared with the array-level optimizer under torch's convention, and so with every other."""
    make, settings = front_end.make_like_torch, Settings(eps=2.0**-27)
    if make is None and front_end.convention not in ("torch", "paddle", "mindspore", "lucid"):
        pytest.skip(f"{front_end.name} computes within the framework's own operations")
    params, grads = problem()
    ours = front_end.one_group("ours", params, settings) if make is None else make(params, settings)
    assert_same_bits(train(ours, grads), train(make_as("torch")("ours", params, spans(settings)), grads))


def test_every_group_has_its_own_hyperparameters(front_end: FrontEnd) -> None:
    changes = {"lr": 0.03, "beta1": 0.5, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.25}
    first = Settings(lr=0.01, beta1=0.9, beta2=0.99)
    second = first.but(**{key: changes[key] for key in changes if key in front_end.group_settings})
    if "coupled" not in front_end.decays:
        second = second.but(weight_decay=0.0)
    params, grads = problem()
    groups = [([0, 1], first), ([2, 3], second)]
    ours = train(front_end.make("ours", params, groups), grads)
    for indices, settings in groups:
        for i in indices:
            assert_near([ours[i]], [exact(front_end, params[i], [step[i] for step in grads], settings)])
    if front_end.has_theirs:
        assert_near(ours, train(front_end.make("theirs", params, groups), grads))


def schedulers() -> Iterator[tuple[str, str]]:
    for name in NAMES:
        if missing(name):
            yield name, missing(name)
        else:
            yield from ((name, scheduler) for scheduler in find(name).schedulers)


@pytest.mark.parametrize(("name", "scheduler"), list(schedulers()))
def test_the_framework_s_schedulers_drive_it(name: str, scheduler: str) -> None:
    if "not installed" in scheduler:
        pytest.skip(scheduler)
    front_end = find(name)
    params, grads = problem()
    settings = Settings(lr=0.02, beta1=0.9, beta2=0.99)
    ours = train(front_end.schedulers[scheduler]("ours", params, settings), grads)
    if front_end.has_theirs:
        assert_near(ours, train(front_end.schedulers[scheduler]("theirs", params, settings), grads))
    else:
        each = [front_end.scheduled[scheduler](settings, t) for t in range(STEPS)]
        assert_near(ours, [exact(front_end, p, [step[i] for step in grads], each) for i, p in enumerate(params)])
    constant = train(front_end.one_group("ours", params, settings), grads)
    assert any(np.max(np.abs(a - b)) > 1e-4 for a, b in zip(ours, constant)), "the scheduler changed nothing"


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_training_goes_on_after_a_hand_over(front_end: FrontEnd, first: Whose) -> None:
    if not front_end.has_theirs:
        pytest.skip(f"{front_end.name} has no optimizer of its own here")
    settings = Settings(lr=0.02, beta1=0.9, beta2=0.99)
    params, grads = problem()
    second: Whose = "theirs" if first == "ours" else "ours"
    trainer = front_end.one_group(first, params, settings)
    for whose, part in ((first, grads[:20]), (second, grads[20:40]), (first, grads[40:])):
        if whose != first or part is not grads[:20]:
            saved, now = trainer.save(), trainer.params()
            trainer = front_end.one_group(whose, now, settings)
            trainer.load(saved)
        train(trainer, part)
    assert_near(trainer.params(), train(front_end.one_group("theirs", params, settings), grads))


def test_a_saved_run_goes_on_with_the_same_bits(front_end: FrontEnd) -> None:
    settings = Settings(lr=0.02, beta1=0.9, beta2=0.99)
    params, grads = problem()
    straight = train(front_end.one_group("ours", params, settings), grads)
    before = front_end.one_group("ours", params, settings)
    train(before, grads[:25])
    after = front_end.one_group("ours", before.params(), settings)
    after.load(before.save())
    assert_same_bits(train(after, grads[25:]), straight)


def test_betas_that_never_rectify_are_warned_of_once(front_end: FrontEnd) -> None:
    params, grads = problem()
    with pytest.warns(UserWarning, match="no step is ever rectified") as seen:
        train(front_end.one_group("ours", params, Settings(beta2=0.5)), grads[:3])
    assert len([one for one in seen if "no step is ever rectified" in str(one.message)]) == 1


def test_a_parameter_without_a_gradient_waits(front_end: FrontEnd) -> None:
    if not front_end.skips:
        pytest.skip(f"{front_end.name} takes a gradient for every parameter")
    settings = Settings(lr=0.02, beta1=0.9, beta2=0.99)
    params, grads = problem()
    holes = [[None if i == 1 and t % 3 else g for i, g in enumerate(step)] for t, step in enumerate(grads)]
    ours = train(front_end.one_group("ours", params, settings), holes)
    rare = [step[1] for step in holes if step[1] is not None]
    assert_near([ours[1]], [exact(front_end, params[1], rare, settings)])
    assert_near([ours[0]], [exact(front_end, params[0], [step[0] for step in grads], settings)])


def refusals() -> Iterator[tuple[str, str]]:
    for name in NAMES:
        if missing(name):
            yield name, missing(name)
        else:
            yield from ((name, refusal.what) for refusal in find(name).refusals)


@pytest.mark.parametrize(("name", "what"), list(refusals()))
def test_bad_input_gets_the_framework_s_own_error(name: str, what: str) -> None:
    if "not installed" in what:
        pytest.skip(what)
    (refusal,) = [one for one in find(name).refusals if one.what == what]
    with pytest.raises(refusal.error, match=refusal.text) as ours:
        refusal.act("ours")
    if refusal.theirs:
        with pytest.raises(Exception) as theirs:
            refusal.act("theirs")
        assert ours.type is theirs.type
