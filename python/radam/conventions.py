"""The conventions in the wild: how each framework's RAdam differs, as numbers that the one law takes."""

from __future__ import annotations

import dataclasses
import numbers
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from ._step import Hyperparameters, conventions, rectification_of, rho_infinity

Decay = Literal["coupled", "decoupled"]


@dataclasses.dataclass(frozen=True)
class Convention:
    """One framework's reading of RAdam. Take one of ``CONVENTIONS`` and ``dataclasses.replace`` what you want else.

    Args:
        name: how messages call it.
        threshold: a step is rectified where rho, the length of the approximated moving average, is above this. Below 4
            the variance has no closed form, and r is 0 there.
        rectify_at_threshold: rectify also where rho equals the threshold.
        warmup: what a step does while it is not rectified: ``"momentum"`` (an update by m alone) or
            ``"moments_only"`` (the parameter stays, only m and v move).
        eps_on: ``"sqrt_v"`` adds eps to sqrt(v), ``"sqrt_v_hat"`` to sqrt(v / (1 - beta2^t)).
        decay: the kinds of weight decay it knows, its own first; empty if it has none.
        eps: the default eps.
        eps_root: added to v / (1 - beta2^t) inside the root (with ``eps_on="sqrt_v"``: to v).
        nesterov: Nesterov momentum, as Optax has it.

    Raises:
        ValueError: if one of them is out of range.

    >>> import dataclasses, radam
    >>> paper = dataclasses.replace(radam.CONVENTIONS["torch"], name="paper", threshold=4.0)
    >>> radam.rectification(5, 0.999, paper) is None, radam.rectification(5, 0.999) is None
    (False, True)
    """

    name: str
    threshold: float = 5.0
    rectify_at_threshold: bool = False
    warmup: Literal["momentum", "moments_only"] = "momentum"
    eps_on: Literal["sqrt_v", "sqrt_v_hat"] = "sqrt_v"
    decay: tuple[Decay, ...] = ("coupled", "decoupled")
    eps: float = 1e-8
    eps_root: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        for field in ("threshold", "eps", "eps_root"):
            if isinstance(getattr(self, field), (str, bytes)) or not isinstance(getattr(self, field), numbers.Real):
                raise TypeError(f"{field} must be a number, got {getattr(self, field)!r}")
        object.__setattr__(self, "decay", tuple(self.decay))  # a list would never equal one
        for kind in self.decay:
            if kind not in ("coupled", "decoupled"):
                raise ValueError(f"decay must be a tuple of 'coupled' and 'decoupled', got {self.decay!r}")
        self.hyperparameters()  # checks the rest

    def hyperparameters(
        self,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        amsgrad: bool = False,
        rectify: bool = True,
        grad_scale: float = 1.0,
    ) -> Hyperparameters:
        """Return what the core takes for one group of parameters; every gradient is multiplied by grad_scale."""
        return Hyperparameters(
            lr=lr,
            beta1=betas[0],
            beta2=betas[1],
            eps=self.eps if eps is None else eps,
            eps_root=self.eps_root,
            weight_decay=weight_decay,
            grad_scale=grad_scale,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            amsgrad=amsgrad,
            nesterov=self.nesterov,
            rectify=rectify,
            threshold=self.threshold,
            rectify_at_threshold=self.rectify_at_threshold,
            warmup=self.warmup,
            eps_on=self.eps_on,
        )

    def is_decoupled(self, decoupled_weight_decay: bool | None, weight_decay: float) -> bool:
        """Resolve None to the convention's own decay; ValueError for a decay that it has not."""
        if decoupled_weight_decay is None:
            if weight_decay != 0.0 and not self.decay:
                raise ValueError(
                    f"convention {self.name!r} has no weight decay; set weight_decay=0, or give it one with "
                    "dataclasses.replace(convention, decay=('decoupled',))"
                )
            return self.decay[:1] == ("decoupled",)
        wanted: Decay = "decoupled" if decoupled_weight_decay else "coupled"
        if wanted not in self.decay:
            raise ValueError(
                f"convention {self.name!r} has no {wanted} weight decay (it has: {', '.join(self.decay) or 'none'}); "
                "leave decoupled_weight_decay=None for its own, or use dataclasses.replace(convention, decay=...)"
            )
        return decoupled_weight_decay

    def why_never_rectified(self, beta2: float, name: str = "betas[1]") -> str:
        """Return what to warn of where beta2, called name, is too small for any step to be rectified; else nothing."""
        limit = rho_infinity(beta2)
        if limit > self.threshold or (limit == self.threshold and self.rectify_at_threshold):
            return ""
        what = "only momentum" if self.warmup == "momentum" else "no update at all"
        where = f"from {self.threshold:g} on" if self.rectify_at_threshold else f"above {self.threshold:g}"
        return (
            f"with {name}={beta2} rho never exceeds {limit:.3g}, so that no step is ever rectified and there is {what} "
            f"(convention {self.name!r} rectifies {where})"
        )


CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {entry["name"]: Convention(**entry) for entry in conventions()}
)
"""The conventions by name: torch, paddle, mindspore, lucid, lucid_docs, author, optax, tfa."""


def find_convention(convention: str | Convention) -> Convention:
    """Return a convention from its name, or itself."""
    if isinstance(convention, Convention):
        return convention
    if not isinstance(convention, str):
        raise TypeError(f"convention must be a name or a radam.Convention, got {type(convention).__name__}")
    try:
        return CONVENTIONS[convention]
    except KeyError:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}") from None


def rectification(t: int, beta2: float, convention: str | Convention = "torch") -> float | None:
    """Return the rectification r of step t, or None while the step is not rectified.

    r = sqrt((rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho)), computed without cancellation: exact to
    1e-13 for every beta2 and t, where the textbook formula fails from beta2 = 0.9999 (float32) or 1 - 1e-7 (float64)
    on. The source is section 3 of Liu et al. 2020, https://arxiv.org/abs/1908.03265.

    Args:
        t: the step number, 1 for the first.
        beta2: the decay rate of the second moment, at least 0 and below 1.
        convention: whose threshold decides when a step is rectified.

    Raises:
        TypeError: if t is no whole number.
        ValueError: if t, beta2 or the convention is out of range.

    >>> import radam
    >>> radam.rectification(1, 0.999) is None
    True
    >>> round(radam.rectification(100, 0.999), 6)
    0.215335
    """
    try:
        number = operator.index(t)
    except TypeError:
        raise TypeError(f"t must be a whole number, got {t!r}") from None
    if not 1 <= number < 2**63:
        raise ValueError(f"t must be at least 1 and below 2^63, got {t}")
    given: object = beta2
    if not isinstance(given, numbers.Real):
        raise TypeError(f"beta2 must be a number, got {beta2!r}")
    return rectification_of(find_convention(convention).hyperparameters(betas=(0.0, float(beta2))), number)
