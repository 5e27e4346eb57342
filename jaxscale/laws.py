"""The scaling laws as values: what they predict, and what they say is optimal. No fitter, no I/O.

    Chinchilla   L(N, D) = E + A / N^alpha + B / D^beta          Hoffmann et al. 2022, eq. 2
    PowerLaw     N_opt(C) = A C^a, D_opt(C) = A C^b              Hoffmann et al. 2022, approach 1 and 2
    LossLaw      L_opt(C) = E + A / C^alpha                      the loss along the optimum

N parameters, D training tokens, C training FLOPs, L loss in nats per token. The optimum is taken under a
`FlopRule` C = k N^p D; Kaplan's 6ND is k = 6, p = 1, and a study whose exact count differs (attention,
embedding not multiplied) has its own k and p. Methods take scalars or arrays, and so may the fields: a
bootstrap is one law whose fields are arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["SIX_ND", "Chinchilla", "FlopRule", "LossLaw", "Optimum", "PowerLaw"]


class Optimum(NamedTuple):
    """Compute-optimal N (parameters), D (tokens) and loss (nats per token)."""

    N: Any
    D: Any
    loss: Any


@dataclass(frozen=True)
class FlopRule:
    """C = k N^p D: training FLOPs of N parameters on D tokens.

    >>> float(SIX_ND.flops(7e9, 1e12))
    4.2e+22
    """

    k: float = 6.0
    p: float = 1.0

    def flops(self, N: Any, D: Any) -> Any:
        """Training FLOPs."""
        return self.k * np.power(N, self.p) * np.asarray(D)

    def tokens(self, C: Any, N: Any) -> Any:
        """Tokens that C FLOPs pay for at N parameters."""
        return np.asarray(C) / (self.k * np.power(N, self.p))


SIX_ND = FlopRule()
"""Kaplan et al. 2020: C = 6 N D."""


@dataclass(frozen=True)
class PowerLaw:
    """y = A x^a.

    >>> round(float(PowerLaw(A=2.0, a=0.5).at(16.0)), 9)
    8.0
    """

    A: Any
    a: Any
    equation = "y = A x^a"

    def at(self, x: Any) -> Any:
        """Value at x, through logs so that A near 1e-20 and x near 1e25 stay exact."""
        return np.exp(np.log(self.A) + self.a * np.log(x))


@dataclass(frozen=True)
class LossLaw:
    """L_opt(C) = E + A / C^alpha, nats per token; E = 0 is the pure power law.

    >>> law = LossLaw(E=1.0, A=4.0, alpha=0.5)
    >>> round(float(law.loss(16.0)), 9), round(float(law.compute(2.0)), 9)
    (2.0, 16.0)
    """

    E: Any
    A: Any
    alpha: Any
    equation = "L_opt = E + A / C^alpha"

    def loss(self, C: Any) -> Any:
        """Loss at C FLOPs."""
        return self.E + np.exp(np.log(self.A) - self.alpha * np.log(C))

    def compute(self, loss: Any) -> Any:
        """FLOPs at which the law reaches a loss; infinite at or below E."""
        gap = np.asarray(loss, float) - self.E
        reach = np.where(gap > 0, gap, 1.0)
        with np.errstate(over="ignore"):
            needed = np.exp((np.log(self.A) - np.log(reach)) / self.alpha)
        return np.where(gap > 0, needed, np.inf)


@dataclass(frozen=True)
class Chinchilla:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3), nats per token.

    >>> law = Chinchilla(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
    >>> [round(float(value), 4) for value in law.exponents()]
    [0.5126, 0.4874]
    >>> N, D, _ = law.optimum(5.76e23)
    >>> round(float(D / N), 1)
    18.4
    """

    E: Any
    A: Any
    B: Any
    alpha: Any
    beta: Any
    equation = "L = E + A / N^alpha + B / D^beta"
    source = "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2"
    names = ("E", "A", "B", "alpha", "beta")

    def loss(self, N: Any, D: Any) -> Any:
        """Loss at N parameters and D tokens."""
        return self.E + self.A * np.power(N, -self.alpha) + self.B * np.power(D, -self.beta)

    def tokens(self, loss: Any, N: Any) -> Any:
        """Tokens that bring N parameters to a loss: the contour of equal loss; NaN where no D does."""
        gap = np.asarray(loss - self.E - self.A * np.power(N, -self.alpha))
        return np.power(self.B / np.where(gap > 0, gap, np.nan), 1 / self.beta)

    def gradient(self, N: Any, D: Any) -> tuple[Any, Any]:
        """dL/dN and dL/dD."""
        dN = -self.alpha * self.A * np.power(N, -self.alpha - 1)
        dD = -self.beta * self.B * np.power(D, -self.beta - 1)
        return dN, dD

    def exponents(self, rule: FlopRule = SIX_ND) -> tuple[Any, Any]:
        """a, b of N_opt ~ C^a, D_opt ~ C^b: beta/(alpha + p beta), alpha/(alpha + p beta).

        Setting dL/dlogN = 0 along C = k N^p D gives alpha A / N^alpha = p beta B / D^beta; p = 1 is eq. 4
        of Hoffmann et al.
        """
        total = self.alpha + rule.p * self.beta
        return self.beta / total, self.alpha / total

    def log_coefficients(self, rule: FlopRule = SIX_ND) -> tuple[Any, Any]:
        """Logs of the factors in N_opt = G C^a and D_opt = H C^b."""
        a, _ = self.exponents(rule)
        ratio = np.log(self.alpha * self.A) - np.log(rule.p * self.beta * self.B)
        log_G = ratio / (self.alpha + rule.p * self.beta) - a * np.log(rule.k)
        return log_G, -np.log(rule.k) - rule.p * log_G

    def optimum(self, C: Any, rule: FlopRule = SIX_ND) -> Optimum:
        """The N and D that minimise the loss at C FLOPs, and that loss."""
        a, b = self.exponents(rule)
        log_G, log_H = self.log_coefficients(rule)
        N, D = np.exp(log_G + a * np.log(C)), np.exp(log_H + b * np.log(C))
        return Optimum(N, D, self.loss(N, D))

    def frontier(self, rule: FlopRule = SIX_ND) -> LossLaw:
        """The loss along the optimum: exactly E + A'/C^gamma with gamma = alpha beta / (alpha + p beta)."""
        a, _ = self.exponents(rule)
        log_G, log_H = self.log_coefficients(rule)
        factor = self.A * np.exp(-self.alpha * log_G) + self.B * np.exp(-self.beta * log_H)
        return LossLaw(E=self.E, A=factor, alpha=self.alpha * a)
