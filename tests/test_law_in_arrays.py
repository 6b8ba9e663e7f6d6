"""The law in array operations against the core's: a few roundings apart, since arrays have no fma."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import radam
import reference as ref
from radam import _core, _law

N = 3000
UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Library:
    """A library of array operations: its module, and the ways in from NumPy and back."""

    xp: Any
    make: Callable[[Any], Any]
    numpy: Callable[[Any], Any]


LIBRARIES = {
    "numpy": Library(np, np.copy, np.asarray),
    "torch": Library(torch, torch.tensor, lambda x: x.numpy()),
}

libraries = pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
dtypes = pytest.mark.parametrize("dtype", UNIT)


# ---- the forms: every convention in all that it knows, before and after it rectifies

STEPS = {"early": 3, "late": 1000}
DECAYS: dict[str, dict[str, Any]] = {
    "coupled": {"weight_decay": 0.37},
    "decoupled": {"weight_decay": 0.37, "decoupled_weight_decay": True},
}


def forms() -> dict[str, tuple[_core.Hyperparameters, int]]:
    out = {}
    for convention, (when, t) in itertools.product(radam.CONVENTIONS.values(), STEPS.items()):
        for decay in (None, *convention.decay, "amsgrad"):
            amsgrad = decay == "amsgrad"
            given = {"lr": 0.0123, **DECAYS.get(decay or "", {}), "amsgrad": amsgrad, "maximize": amsgrad}
            out[" ".join(filter(None, (convention.name, when, decay)))] = convention.hyperparameters(**given), t
    optax = radam.CONVENTIONS["optax"]
    nesterov = dataclasses.replace(optax, nesterov=True, decay=("coupled", "decoupled"), eps_root=1e-3)
    for (when, t), decay, amsgrad in itertools.product(STEPS.items(), DECAYS, (False, True)):
        given = {"lr": 0.0123, **DECAYS[decay], "amsgrad": amsgrad}
        out[f"nesterov {when} {decay}{' amsgrad' * amsgrad}"] = nesterov.hyperparameters(**given), t
    torch_like = radam.CONVENTIONS["torch"].hyperparameters
    out["adam"] = torch_like(rectify=False, amsgrad=True), 2
    out["scaled gradients"] = torch_like(grad_scale=0.3, weight_decay=0.1), 50
    out["no eps"] = torch_like(eps=0.0), 50
    out["large eps"] = torch_like(eps=3.0), 50
    out["betas of 0"] = torch_like(betas=(0.0, 0.0)), 1
    out["high betas"] = torch_like(betas=(0.9999, 0.999999)), 100_000
    return out


FORMS = forms()
every_form = pytest.mark.parametrize("form", FORMS)


def inputs(dtype: str, seed: str, n: int = N) -> ref.Buffers:
    """Magnitudes far from overflow, underflow and the flush."""
    rng = np.random.default_rng([*seed.encode()])
    return ref.Buffers(
        ref.spread(rng, n, dtype, -13, 13),
        ref.spread(rng, n, dtype, -13, 13),
        ref.spread(rng, n, dtype, -30, 10),
        abs(ref.spread(rng, n, dtype, -40, 20)),
        abs(ref.spread(rng, n, dtype, -40, 20)),
    )


def in_core(form: str, dtype: str, before: ref.Buffers) -> ref.Buffers:
    hyperparameters, t = FORMS[form]
    after = before.copy()
    ref.step(hyperparameters, t, after)
    return after


def in_arrays(library: Library, c: dict[str, Any], before: ref.Buffers) -> ref.Buffers:
    """The result of the array law, which must keep dtypes and shapes and leave what it reads."""
    p, g, m, v, v_max = given = [library.make(array) for array in before.arrays()]
    with np.errstate(all="ignore"):
        out = _law.update(library.xp, c, p, g, m, v, *([v_max] if c["amsgrad"] else []))
    for array, copy in zip(given, before.arrays(), strict=True):
        assert np.array_equal(ref.bits(library.numpy(array)), ref.bits(copy))
    assert (out[3] is None) is not c["amsgrad"]
    results = [library.numpy(x) for x in out[: 3 + c["amsgrad"]]]
    for result in results:
        assert (result.dtype, result.shape) == (before.param.dtype, before.param.shape)
    new_p, new_m, new_v, *new_v_max = results
    return ref.Buffers(new_p, before.grad, new_m, new_v, new_v_max[0] if new_v_max else before.max_exp_avg_sq)


def bounds(c: dict[str, Any], b: ref.Buffers, u: float) -> dict[str, Any]:
    """How far the two laws may be apart, to first order: every rounding of either, carried through.

    The core is within 3 u S of m, 4 u v of v and 10 u A S / d of p (docs/design.md). Below, each sum or product of the
    array law adds a rounding of its own, and the core's are added on top.
    """
    p, g, m, v, v_max = (np.abs(array.astype(np.longdouble)) for array in b.arrays())
    scaled, decay = abs(c["grad_scale"]) * g, c["coupled_decay"] * p * c["coupled"]
    # Two roundings in arrays (the product and the sum) and one in the core; none where there is no sum.
    g_off = u * (3 * decay + 2 * scaled) * c["coupled"]
    g_size = scaled + decay

    m_size = abs(c["beta1"] + c["beta1_low"]) * m + c["one_minus_beta1"] * g_size
    m_off = (3 + 3) * u * m_size + c["one_minus_beta1"] * g_off

    # |g|^2 differs by 2 |g| g_off; v itself is a sum of positive terms, at most v_size and at least v_least.
    g_exact = np.abs(c["grad_scale"] * b.grad.astype(np.longdouble) + c["coupled"] * c["coupled_decay"] * b.param)
    v_size = (c["beta2"] + c["beta2_low"]) * v + c["one_minus_beta2"] * g_exact**2
    v_off = (4 + 4) * u * v_size + c["one_minus_beta2"] * (2 * g_exact + 2 * g_off) * g_off

    n_size, n_off = m_size, m_off
    if c["nesterov"]:
        n_size = c["nesterov_m"] * m_size + c["nesterov_g"] * g_size
        n_off = c["nesterov_m"] * m_off + c["nesterov_g"] * g_off + (3 + 2) * u * n_size
    moved, moved_off = c["step_size"] * n_size, c["step_size"] * n_off
    if c["mode"] == "rectified":
        under = np.maximum(v_size, v_max) if c["amsgrad"] else v_size
        root = np.sqrt(under + c["eps_root"])
        # The root halves what is below it; the sums, the root and the division round once each in both.
        d_off = v_off / (2 * root) + 2 * (0.5 + 1) * u * root + 2 * u * (root + c["eps"])
        d = root + c["eps"]
        moved_off = moved_off / d + moved / d * (d_off / d + 2 * u)
        moved = moved / d
    # The product by step_size is rounded in arrays only, the last sum in both.
    kept = c["param_decay"] * p
    p_off = moved_off + u * moved + 2 * u * (kept + moved)
    if c["mode"] == "moments_only":
        p_off = 0 * p_off
    v_max_off = v_off if c["amsgrad"] else 0 * v_off
    return {"exp_avg": m_off, "exp_avg_sq": v_off, "max_exp_avg_sq": v_max_off, "param": p_off}


@libraries
@dtypes
@every_form
def test_one_update_is_that_of_the_core_to_a_few_roundings(form: str, dtype: str, library: Library) -> None:
    c = _core.coefficients(*FORMS[form], dtype)
    before = inputs(dtype, form)
    core, arrays = in_core(form, dtype, before), in_arrays(library, c, before)
    for name, bound in bounds(c, before, UNIT[dtype]).items():
        got, expected = (getattr(x, name).astype(np.longdouble) for x in (arrays, core))
        off = np.abs(got - expected)
        assert np.all(off <= 1.001 * bound), f"{name}: {np.max(off / np.where(bound > 0, bound, 1))} of the bound"
    # The bounds must say something: in most places a unit in the last place or two.
    allowed = bounds(c, before, UNIT[dtype])["param"] / (UNIT[dtype] * np.abs(core.param))
    assert np.median(allowed) < 4
    if c["mode"] != "moments_only":
        assert not np.array_equal(core.param, before.param)


def test_the_forms_hold_every_mode_and_flag() -> None:
    seen = [_core.coefficients(*form, "float32") for form in FORMS.values()]
    for decided in itertools.product(("rectified", "momentum", "moments_only"), (True, False)):
        assert decided in {(c["mode"], c["amsgrad"]) for c in seen}
    for decided in itertools.product(("rectified", "momentum"), (True, False), (True, False)):
        assert decided in {(c["mode"], c["coupled"], c["nesterov"]) for c in seen}
    assert any(c["param_decay"] != 1 for c in seen)


@libraries
@pytest.mark.parametrize("beta", [0.9, 0.99, 0.999, 0.9999, 0.99999])
def test_float32_moments_decay_by_the_betas_as_given_on_average(beta: float, library: Library) -> None:
    # float32(beta) is off by 0.16 to 0.45 u here, in the same direction at every step; chance leaves up to 0.03 u.
    # What makes up for it is below a rounding, so it can count on average only, and only beside a new gradient.
    c = _core.coefficients(_core.Hyperparameters(lr=0.1, beta1=beta, beta2=beta, eps=1e-8), 1, "float32")
    x, g = np.random.default_rng(9).uniform(1.0, 2.0, (2, 100_000)).astype(np.float32)
    after = in_arrays(library, c, ref.Buffers(np.zeros_like(x), g, x, x, x))
    wide, new = x.astype(np.float64), g.astype(np.float64)
    for moment, power in ((after.exp_avg, 1), (after.exp_avg_sq, 2)):
        exact = beta * wide + c["one_minus_beta1"] * new**power
        assert abs(np.mean(moment / exact - 1)) < 0.05 * UNIT["float32"]


# ---- where numbers end


def edges(dtype: str) -> ref.Buffers:
    """Every combination of zeros, infinities, NaN, numbers near the flush and ordinary ones."""
    least = float(np.finfo(dtype).smallest_normal)
    signed = (0.0, -0.0, 1.5, -2.0, least, -least / 8, np.inf, -np.inf, np.nan)
    squares = (0.0, 2.5, least / 2, least * 4, np.inf, np.nan)
    p, g, m, v = (np.array(x, dtype) for x in zip(*itertools.product((0.0, 3.0, np.inf), signed, signed, squares)))
    return ref.Buffers(p, g, m, v, np.roll(v, 7))


@libraries
@dtypes
@every_form
def test_infinities_and_nans_are_in_the_same_places(form: str, dtype: str, library: Library) -> None:
    c = _core.coefficients(*FORMS[form], dtype)
    before = edges(dtype)
    core, arrays = in_core(form, dtype, before), in_arrays(library, c, before)
    for name in ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        got, expected = getattr(arrays, name), getattr(core, name)
        assert np.array_equal(np.isnan(got), np.isnan(expected)), name
        assert np.array_equal(np.where(np.isinf(got), got, 0), np.where(np.isinf(expected), expected, 0)), name
        assert np.array_equal(got == 0, expected == 0), name
    assert np.isnan(core.exp_avg).any()
    assert np.isinf(core.exp_avg_sq).any()


@libraries
@dtypes
def test_a_zero_denominator_divides_as_in_the_core(dtype: str, library: Library) -> None:
    # g = 0 and v = 0 with eps = 0: 0 / 0 is NaN, anything else an infinity.
    m = np.array([0.0, 1.0, -1.0, 1.0, 0.0], dtype)
    v = np.array([0.0, 0.0, 0.0, 4.0, 4.0], dtype)
    before = ref.Buffers(np.ones(5, dtype), np.zeros(5, dtype), m, v, v)
    core = in_core("no eps", dtype, before)
    arrays = in_arrays(library, _core.coefficients(*FORMS["no eps"], dtype), before)
    assert np.array_equal(np.isnan(core.param), [True, False, False, False, False])
    assert np.array_equal(np.isinf(core.param), [False, True, True, False, False])
    assert np.allclose(arrays.param, core.param, rtol=8 * UNIT[dtype], atol=0, equal_nan=True)


@dtypes
def test_a_derivative_at_zero_moments_is_finite(dtype: str) -> None:
    # The root has no derivative there; torch's own step makes a NaN of it.
    c = _core.coefficients(*FORMS["torch late"], dtype)
    p, g, m, v = (torch.zeros(3, dtype=getattr(torch, dtype)).requires_grad_() for _ in range(4))
    _law.update(torch, c, p, g, m, v)[0].sum().backward()
    for x in (p, g, m, v):
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
    assert p.grad is not None
    assert bool((p.grad == 1).all())


@libraries
@dtypes
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (3, 0, 2)], ids=str)
def test_every_shape_is_kept(shape: tuple[int, ...], dtype: str, library: Library) -> None:
    flat = inputs(dtype, "shapes", int(np.prod(shape)))
    before = ref.Buffers(*(array.reshape(shape) for array in flat.arrays()))
    after = in_arrays(library, _core.coefficients(*FORMS["tfa late amsgrad"], dtype), before)
    assert after.param.shape == shape
    if after.param.size:
        assert not np.array_equal(after.param, before.param)


@libraries
@dtypes
@pytest.mark.parametrize("t", [3, 1000])
@pytest.mark.parametrize("decay", [None, *DECAYS])
@pytest.mark.parametrize("maximize", [False, True])
def test_a_learning_rate_given_later_counts_as_one_given_at_once(
    decay: str | None, t: int, maximize: bool, dtype: str, library: Library
) -> None:
    given = {**DECAYS.get(decay or "", {}), "maximize": maximize}
    convention = radam.CONVENTIONS["torch"]
    at_one = _core.coefficients(convention.hyperparameters(lr=1.0, **given), t, dtype)
    at_once = _core.coefficients(convention.hyperparameters(lr=0.0123, **given), t, dtype)
    lr = library.make(np.asarray(0.0123, dtype))
    later = _law.at_learning_rate(at_one, lr, given.get("weight_decay", 0.0))
    assert at_one["step_size"] != at_once["step_size"]
    for name in ("step_size", "param_decay"):
        assert float(later[name]) == pytest.approx(at_once[name], rel=4 * UNIT[dtype])
    assert {key: value for key, value in later.items() if key not in ("step_size", "param_decay")} == {
        key: value for key, value in at_once.items() if key not in ("step_size", "param_decay")
    }
    before = inputs(dtype, "later")
    got, expected = in_arrays(library, later, before), in_arrays(library, at_once, before)
    moved = np.abs(expected.param.astype(np.longdouble) - at_once["param_decay"] * before.param)
    off = np.abs(got.param.astype(np.longdouble) - expected.param)
    assert np.all(off <= 8 * UNIT[dtype] * (moved + np.abs(before.param)))
