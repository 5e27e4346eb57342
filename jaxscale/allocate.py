"""Where FLOPs go under limits: the lowest loss that a budget buys, and the cheapest way to a loss.

    spend(N, D) = k N^p D + r 2 N T    training, and T tokens served at 2 N FLOPs each, r the price of a
                                       served FLOP in training FLOPs (Sardana et al. 2024, eq. 2 and 3)
    lowest_loss   min L(N, D)     with spend(N, D) <= C
    lowest_spend  min spend(N, D) with L(N, D) <= L*
    both with N <= max_params, D <= max_tokens, k N^p D <= max_train_flops

In x = log N both are convex where L is a sum of powers (the most tokens affordable are log-concave in x), so
that golden section finds the minimum; of another law one minimum is assumed. Everything takes a law whose
fields are arrays: a bootstrap is one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.laws import SIX_ND, Chinchilla, ChinchillaTied, FlopRule, Law, Optimum, Repetition, effective, minimise

__all__ = ["Limits", "Repeated", "lowest_loss", "lowest_spend", "repeat_data"]

LOWEST_N, HIGHEST_N, HIGHEST_D = 1.0, 1e18, 1e30
"""Parameters and tokens between which a plan is looked for."""
HALVINGS = 80
"""Enough to narrow any range of logs here below rounding."""
SERVED_FLOPS = 2.0
"""Forward FLOPs a parameter and token (Kaplan et al. 2020, section 2.1)."""


@dataclass(frozen=True)
class Limits:
    """What a plan may use; the defaults limit nothing.

    `served_tokens` T are served at 2 N FLOPs each, at `serving_ratio` r training FLOPs a served FLOP.
    """

    max_params: float = np.inf
    max_tokens: float = np.inf
    max_train_flops: float = np.inf
    served_tokens: float = 0.0
    serving_ratio: float = 1.0

    def serving_flops(self, N: Any) -> Any:
        """What the served tokens cost, in training FLOPs."""
        return self.serving_ratio * SERVED_FLOPS * N * self.served_tokens

    def lifetime_flops(self, N: Any, D: Any, rule: FlopRule = SIX_ND) -> Any:
        """Training and serving together, in training FLOPs."""
        return rule.flops(N, D) + self.serving_flops(N)


NONE = Limits()


@dataclass(frozen=True)
class Repeated(Law):
    """A law of (N, D) when only U tokens are unique: L(N', D') with the effective counts of Muennighoff et al. 2023.

    `size` is the size U_N beyond which parameters decay; R_D and R_N as in laws/repetition.py.
    """

    law: Any
    U: Any
    size: Any
    R_D: Any
    R_N: Any
    name = "repeated"
    equation = "L(N', D') of U unique tokens"

    def loss(self, N: Any, D: Any) -> Any:
        """Loss at N parameters after D tokens."""
        return self.law.loss(effective(N, self.size, self.R_N), effective(D, self.U, self.R_D))


def repeat_data(law: Law, U: float, R_D: Any, R_N: Any) -> Repeated:
    """A law of fresh data with U unique tokens; MisuseError for a law that is no function of a Chinchilla sum."""
    total = law if isinstance(law, Chinchilla) else getattr(law, "sum", None)
    if not isinstance(total, Chinchilla):
        raise MisuseError(f"unique_tokens: law {law.name!r} has no rule for repeated data; use max_tokens instead")
    size = Repetition(total.E, total.A, total.B, total.alpha, total.beta, R_D, R_N).size_for(U)
    return Repeated(law, U, size, R_D, R_N)


def lowest_loss(law: Law, C: Any, limits: Limits = NONE, rule: FlopRule = SIX_ND) -> Optimum:
    """N, D and loss of the best plan that C FLOPs pay for, serving included; NaN where they pay for none.

    >>> law = Chinchilla(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
    >>> N, D, _ = lowest_loss(law, 5.76e23, Limits(max_params=7e9))
    >>> f"{N:.3g} {D:.4g}"
    '7e+09 1.371e+13'
    """
    if limits == NONE and not isinstance(law, Repeated):
        return law.optimum(C, rule)

    def tokens(N: Any) -> Any:
        train = np.minimum(C - limits.serving_flops(N), limits.max_train_flops)
        return np.minimum(rule.tokens(train, N), limits.max_tokens)

    low, high = np.log(LOWEST_N), np.log(_largest_size(C, limits, rule))
    if not high > low:
        return Optimum(np.nan, np.nan, np.nan)
    N = np.exp(minimise(lambda x: law.loss(np.exp(x), tokens(np.exp(x))), low, high, _shape(law)))
    return Optimum(N, tokens(N), law.loss(N, tokens(N)))


def lowest_spend(law: Law, loss: float, limits: Limits = NONE, rule: FlopRule = SIX_ND) -> Optimum:
    """N, D and loss of the plan that reaches a loss at the lowest lifetime FLOPs; NaN where none does."""
    high = min(limits.max_params, HIGHEST_N)

    def tokens(x: Any) -> Any:
        D = _tokens_to_reach(law, loss, np.exp(x))
        return np.where(limits.max_tokens < D, np.inf, D)

    def train(x: Any) -> Any:
        return rule.flops(np.exp(x), tokens(x))

    ends = np.log(LOWEST_N), np.log(high), _shape(law)
    quickest = minimise(train, *ends)
    x = quickest
    if limits.served_tokens:
        x = minimise(lambda x: train(x) + limits.serving_flops(np.exp(x)), *ends)
        x = _within_deadline(train, x, quickest, limits.max_train_flops)
    reached = np.isfinite(train(x)) & (train(quickest) <= limits.max_train_flops)
    N, D = (np.where(reached, value, np.nan) for value in (np.exp(x), tokens(x)))
    return Optimum(N, D, law.loss(N, D))


def _largest_size(C: Any, limits: Limits, rule: FlopRule) -> float:
    """The largest N worth a look: one token trained, or serving alone spends everything."""
    largest = min(limits.max_params, HIGHEST_N, float((C / rule.k) ** (1 / rule.p)))
    if limits.served_tokens:
        largest = min(largest, float(C / limits.serving_flops(1.0)))
    return largest


def _tokens_to_reach(law: Law, loss: float, N: Any) -> Any:
    """Tokens at which N parameters reach the loss, infinite where they never do."""
    if isinstance(law, Repeated):
        fresh = _tokens_to_reach(law.law, loss, effective(N, law.size, law.R_N))
        return _tokens_worth(fresh, law.U, law.R_D)
    if isinstance(law, Chinchilla | ChinchillaTied):
        total = law if isinstance(law, Chinchilla) else law.sum
        D = total.tokens(loss, N)
        return np.where(np.isnan(D), np.inf, D)
    low, high = np.zeros(np.shape(N)), np.full(np.shape(N), np.log(HIGHEST_D))
    reached = law.loss(N, np.exp(high)) <= loss
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = law.loss(N, np.exp(middle)) > loss
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(reached, np.exp(high), np.inf)


def _tokens_worth(fresh: Any, U: Any, R_D: Any) -> Any:
    """Tokens of U unique ones that are worth so many fresh ones: the inverse of `effective`; infinite beyond."""
    used_up = np.maximum(fresh / U - 1, 0) / R_D
    within = used_up < 1
    repeated = U * (1 - R_D * np.log1p(-np.where(within, used_up, 0.0)))
    return np.where(fresh <= U, fresh, np.where(within, repeated, np.inf))


def _within_deadline(train: Callable[[Any], Any], x: Any, quickest: Any, most: float) -> Any:
    """x, or the size nearest to it on the way to the quickest whose training fits in `most` FLOPs."""
    over, under = x, quickest
    late = train(x) > most
    for _ in range(HALVINGS if np.any(late) else 0):
        middle = (over + under) / 2
        too_much = train(middle) > most
        over, under = np.where(too_much, middle, over), np.where(too_much, under, middle)
    return np.where(late, under, x)


def _shape(law: Law) -> tuple[int, ...]:
    """Rounds of a law whose fields are arrays; a law within a law counts by its own fields."""
    inner = _shape(law.law) if isinstance(law, Repeated) else ()
    own = [np.shape(value) for value in law.params.values() if not isinstance(value, Law)]
    return np.broadcast_shapes(inner, *own)
