"""RAdam and Adam over arrays of any framework, updated in place."""

from __future__ import annotations

from typing import Any

from .base import NonFinite, Optimizer
from .conventions import Convention, find_convention
from .precision import Precision, StateDtype


class RAdam(Optimizer):
    """Rectified Adam over arrays on the CPU and on CUDA devices, updated in place.

    With m and v the moving averages of the gradient and its square, a step is p -= lr * r * sqrt(1 - beta2^t) /
    (1 - beta1^t) * m / (sqrt(v) + eps) once it is rectified, and p -= lr * m / (1 - beta1^t) before. The rectification
    r is radam.rectification(t, beta2); docs/design.md has the whole law.

    Args:
        params: an iterable of arrays, of (name, array) pairs, of objects with .grad, or of group dicts; or a dict of
            named arrays. Arrays are NumPy's (also ml_dtypes bfloat16), PyTorch's, CuPy's, or anything with __dlpack__
            or the buffer protocol, of dtype float64, float32, bfloat16 or float16 and any shape, on the CPU and on CUDA
            devices in any mixture. Moments are float32 (float64 for float64) unless state_dtype says otherwise: NumPy's
            for a parameter on the CPU; on a CUDA device of the parameter's own library, which must be CuPy, PyTorch or
            one with __array_namespace__.
            Strided views work; memory that overlaps is refused.
        lr: the learning rate: a number, a 0-d array (read at every step, which waits for one on a device), or a
            function of the step number, which is 1 for the first step.
        betas: the decay rates of m and v, at least 0 and below 1.
        eps: added to the denominator; None for the convention's own (1e-8; tfa 1e-7).
        weight_decay: the strength of the decay.
        decoupled_weight_decay: True shrinks the parameter by lr * weight_decay, False adds weight_decay * p to the
            gradient, None is the convention's own.
        maximize: go up the gradient instead of down.
        amsgrad: divide by the largest v so far.
        convention: whose reading of RAdam: a name in radam.CONVENTIONS or a radam.Convention.
        nonfinite: what an inf or NaN in a gradient does: "propagate" (as in IEEE arithmetic), "skip" the whole step, or
            "raise" FloatingPointError. The latter two change nothing, and wait for devices to look; ``skipped_steps``
            counts.
        master_weights: keep what rounding a 16-bit parameter loses, so that it moves as a float32 one would: for
            bfloat16 the lower 16 bits, 2 bytes an element (the parameter is its weight rounded to nearest, ties away
            from zero); for float16 a float32 copy, 4 bytes, which is taken anew from a parameter that somebody wrote.
        stochastic_rounding: round 16-bit parameters up or down at random, so that small updates count on average. The
            bits depend on the seed, the parameter's place in the optimizer, its step count and the element's index.
        seed: of random roundings, those of 8-bit moments too; from 0 to 2^64 - 1. A loaded state brings its own.
        state_dtype: what the moments are kept in: "float32"; "bfloat16", half as large; "8bit", a quarter: codes with a
            float32 scale for each 128 elements. Float64 parameters keep float64 moments.
        min_8bit_size: parameters with fewer elements keep float32 moments.
        max_grad_norm: scale all gradients down to this norm over all of them together, as
            ``torch.nn.utils.clip_grad_norm_``; inf only measures. ``grad_norm`` has the norm. Gradients are not
            written.
        max_tensor_grad_norm: the same for each parameter by itself.
        max_grad_value: cut each element of the gradients to at most this, either way.

    Raises:
        TypeError: if a parameter is no array, of another dtype, or on a CUDA device and of a library that cannot be
            asked for moments.
        ImportError: if state_dtype="bfloat16" needs the package ml_dtypes.
        RuntimeError: if a parameter is on a device that cannot be reached; it says why, and what helps.
        ValueError: if a hyperparameter or an option is out of range, two options exclude each other, a parameter is
            read-only, comes twice or overlaps another, or the convention has no such decay.

    A UserWarning says so where beta2 is so small that no step is ever rectified.

    >>> import numpy as np, radam
    >>> w = np.array([1.0, -2.0])
    >>> opt = radam.RAdam({"w": w}, lr=0.1)
    >>> for _ in range(100):
    ...     opt.step(grads={"w": 2 * w})  # the gradient of sum(w**2)
    >>> bool(abs(w).max() < 0.1)
    True

    Source: Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond", https://arxiv.org/abs/1908.03265.
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool | None = None,
        maximize: bool = False,
        amsgrad: bool = False,
        convention: str | Convention = "torch",
        nonfinite: NonFinite = "propagate",
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: StateDtype = "float32",
        min_8bit_size: int = 4096,
        max_grad_norm: float | None = None,
        max_tensor_grad_norm: float | None = None,
        max_grad_value: float | None = None,
    ) -> None:
        found = find_convention(convention)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": found.eps if eps is None else eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "amsgrad": amsgrad,
        }
        precision = Precision(master_weights, stochastic_rounding, state_dtype, min_8bit_size, seed)
        clip = (max_grad_norm, max_tensor_grad_norm, max_grad_value)
        super().__init__(params, defaults, found, nonfinite, precision, clip)


class Adam(Optimizer):
    """Adam over arrays on the CPU and on CUDA devices, updated in place: the same law, with r = 1 from the first step.

    A step is p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps). Arguments and errors are those of
    radam.RAdam; ``amsgrad`` takes the maximum of the uncorrected v, as torch does, and ``decoupled_weight_decay=True``
    makes it AdamW.

    >>> import numpy as np, radam
    >>> w = np.ones(3, np.float32)
    >>> opt = radam.Adam([w], lr=0.1)
    >>> opt.step(grads=[np.full(3, 5, np.float32)])
    >>> bool(np.allclose(w, 0.9))
    True

    Source: Kingma and Ba 2015, https://arxiv.org/abs/1412.6980; amsgrad: Reddi et al. 2018; decoupled decay: Loshchilov
    and Hutter 2019.
    """

    _rectify = False

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        amsgrad: bool = False,
        nonfinite: NonFinite = "propagate",
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: StateDtype = "float32",
        min_8bit_size: int = 4096,
        max_grad_norm: float | None = None,
        max_tensor_grad_norm: float | None = None,
        max_grad_value: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "amsgrad": amsgrad,
        }
        precision = Precision(master_weights, stochastic_rounding, state_dtype, min_8bit_size, seed)
        clip = (max_grad_norm, max_tensor_grad_norm, max_grad_value)
        super().__init__(params, defaults, Convention("adam", eps_on="sqrt_v_hat"), nonfinite, precision, clip)
