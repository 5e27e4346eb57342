"""What losses are drawn from: the law itself, or a stated form that no fit here can represent.

    broken-N, broken-D  the exponent of that term falls to 70% beyond the optimum of the largest budget, smoothly
                        (Caballero et al. 2022, arXiv 2210.14891, eq. 1, one break):
                        A N^-alpha (1 + (N/N_b)^(1/f))^(.3 alpha f), f = .5
    kaplan              [(Nc/N)^(aN/aD) + Dc/D]^aD with aN = .076, aD = .103 (Kaplan et al. 2020, eq. 1.5), Nc and
                        Dc such that loss and optimum at the largest budget are those of the law
    interaction         E + A/N^alpha + B/D^beta + .5 sqrt(A/N^alpha B/D^beta): the terms are not additive
    mistuned            the law, but the learning rate was tuned for the middle size only: measured losses are too
                        high by 1% at both ends of the sizes, falling with the square of the distance in log N;
                        the truth is the tuned run

The truth at a compute C is found by minimising along C = k N^p D numerically, so it holds where no power law
does; the exponent `a` is then the local slope d log N_opt / d log C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.laws import SIX_ND, Chinchilla, FlopRule, Kaplan, Optimum

__all__ = ["WRONG_FORMS", "Form", "build_form", "minimise_along"]

Loss = Callable[[Any, Any], Any]

FLATTER = 0.7
SMOOTH = 0.5
KAPLAN = (0.076, 0.103)
INTERACTION = 0.5
MISTUNED = 0.01
"""Strengths of the wrong forms: assumptions, sized so that a grid of 35 runs hardly shows them."""


@dataclass(frozen=True)
class Form:
    """`true`: expected loss of a well-trained run at (N, D); `measured`: that of the grid's runs.

    `law` is the Chinchilla law that the truth is, None where it is no such law; `constants` for the record.
    """

    true: Loss
    measured: Loss
    law: Chinchilla | None = None
    constants: dict[str, float] = field(default_factory=dict)

    def optimum(self, C: float, rule: FlopRule = SIX_ND) -> Optimum:
        """N, D and loss that are optimal at C FLOPs."""
        return self.law.optimum(C, rule) if self.law else minimise_along(self.true, C, rule)

    def exponents(self, C: float, rule: FlopRule = SIX_ND) -> tuple[float, float]:
        """d log N_opt / d log C and d log D_opt / d log C at C."""
        if self.law:
            a, b = self.law.exponents(rule)
            return float(a), float(b)
        low, high = (minimise_along(self.true, C * np.exp(step), rule) for step in (-0.25, 0.25))
        return float(np.log(high.N / low.N) / 0.5), float(np.log(high.D / low.D) / 0.5)


def build_form(name: str, law: Chinchilla, sizes: np.ndarray, largest: float, rule: FlopRule) -> Form:
    """The form of that name ("" is the law) around a law, the sizes of a grid and its largest budget (FLOPs)."""
    if not name:
        return Form(law.loss, law.loss, law)
    if name not in WRONG_FORMS:
        raise MisuseError(f"wrong form {name!r} is unknown; use one of {', '.join(WRONG_FORMS)}")
    return WRONG_FORMS[name](law, sizes, largest, rule)


def minimise_along(loss: Loss, C: float, rule: FlopRule) -> Optimum:
    """N, D and loss where loss(N, C / (k N^p)) is lowest: a grid of 60 e-folds in N, zoomed.

    >>> law = Chinchilla(E=1.8, A=480.0, B=2085.0, alpha=0.34, beta=0.37)
    >>> found = minimise_along(law.loss, 1e21, SIX_ND)
    >>> bool(abs(found.N / law.optimum(1e21).N - 1) < 1e-6)
    True
    """
    center = (np.log(C) - np.log(rule.k)) / (1 + rule.p)  # N = D
    low, high = center - 30.0, center + 30.0
    while high - low > 1e-3:
        x = np.linspace(low, high, 241)
        with np.errstate(over="ignore"):
            best = int(np.argmin(_along(loss, C, rule, x)))
        low, high = x[max(best - 1, 0)], x[min(best + 1, 240)]
    x = np.linspace(low, high, 9)
    c2, c1, _ = np.polyfit(x - x.mean(), _along(loss, C, rule, x), 2)  # below rounding of the values themselves
    at = np.exp(x.mean() - c1 / (2 * c2)) if c2 > 0 else np.exp(x[4])
    N = float(at) if np.exp(low) < at < np.exp(high) else float(np.exp(x[4]))
    D = float(rule.tokens(C, N))
    return Optimum(N, D, float(loss(N, D)))


def _along(loss: Loss, C: float, rule: FlopRule, x: np.ndarray) -> np.ndarray:
    return np.asarray(loss(np.exp(x), rule.tokens(C, np.exp(x))))


def _bend(x: Any, at: float, exponent: float) -> Any:
    """Factor that lowers a term's exponent to FLATTER of itself beyond `at`."""
    return (1 + (np.asarray(x) / at) ** (1 / SMOOTH)) ** ((1 - FLATTER) * exponent * SMOOTH)


def _break_N(law: Chinchilla, sizes: np.ndarray, largest: float, rule: FlopRule) -> Form:
    at = float(law.optimum(largest, rule).N)

    def loss(N: Any, D: Any) -> Any:
        return law.loss(N, D) + law.A * np.power(N, -law.alpha) * (_bend(N, at, law.alpha) - 1)

    return Form(loss, loss, constants={"break_N": at, "exponent_beyond": FLATTER * law.alpha})


def _break_D(law: Chinchilla, sizes: np.ndarray, largest: float, rule: FlopRule) -> Form:
    at = float(law.optimum(largest, rule).D)

    def loss(N: Any, D: Any) -> Any:
        return law.loss(N, D) + law.B * np.power(D, -law.beta) * (_bend(D, at, law.beta) - 1)

    return Form(loss, loss, constants={"break_D": at, "exponent_beyond": FLATTER * law.beta})


def _kaplan(law: Chinchilla, sizes: np.ndarray, largest: float, rule: FlopRule) -> Form:
    """At the optimum r u1 = p u2 for u1 = (Nc/N)^r, u2 = Dc/D, r = aN/aD; u1 + u2 = L^(1/aD)."""
    aN, aD = KAPLAN
    N, D, level = law.optimum(largest, rule)
    r, total = aN / aD, level ** (1 / aD)
    Nc = float(N * (total * rule.p / (r + rule.p)) ** (1 / r))
    Dc = float(D * total * r / (r + rule.p))

    loss = Kaplan(Nc, Dc, aN, aD).loss
    return Form(loss, loss, constants={"aN": aN, "aD": aD, "Nc": Nc, "Dc": Dc})


def _interact(law: Chinchilla, sizes: np.ndarray, largest: float, rule: FlopRule) -> Form:
    def loss(N: Any, D: Any) -> Any:
        product = law.A * law.B * np.power(N, -law.alpha) * np.power(D, -law.beta)
        return law.loss(N, D) + INTERACTION * np.sqrt(product)

    return Form(loss, loss, constants={"interaction": INTERACTION})


def _mistune(law: Chinchilla, sizes: np.ndarray, largest: float, rule: FlopRule) -> Form:
    low, high = float(np.log(sizes.min())), float(np.log(sizes.max()))
    middle, half = (low + high) / 2, max((high - low) / 2, 1e-9)

    def measured(N: Any, D: Any) -> Any:
        return law.loss(N, D) * (1 + MISTUNED * ((np.log(N) - middle) / half) ** 2)

    return Form(law.loss, measured, law, {"excess_at_ends": MISTUNED, "tuned_at_N": float(np.exp(middle))})


WRONG_FORMS: dict[str, Callable[[Chinchilla, np.ndarray, float, FlopRule], Form]] = {
    "broken-N": _break_N,
    "broken-D": _break_D,
    "kaplan": _kaplan,
    "interaction": _interact,
    "mistuned": _mistune,
}
"""Ways in which the truth departs from the law that is fitted."""
