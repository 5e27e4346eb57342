"""Laws of the loss over parameters N and tokens D.

    chinchilla            L = E + A / N^alpha + B / D^beta                     Hoffmann et al. 2022, eq. 2
    chinchilla-tied       L = E + A / N^gamma + B / D^gamma                    one exponent for both
    kaplan                L = [(Nc / N)^(alphaN / alphaD) + Dc / D]^alphaD     Kaplan et al. 2020, eq. 1.5
    rosenfeld             L = E + N^-alpha + D^-beta                           the bare sum, in units of N and D
    rosenfeld-transition  L = L0 t / sqrt(t^2 + eta^2), t = Chinchilla's sum   Rosenfeld et al. 2020, eq. 5
    kaplan-bare           L = [N^-alpha + 1 / D]^beta                          Kaplan's form without scales

Every one is a rising function of a Chinchilla sum t(N, D), so its optimum at a compute is that sum's: a
and b follow from it, and only the loss along the optimum differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxscale.laws.base import SIX_ND, FlopRule, Law, Optimum, guess_shares
from jaxscale.laws.compute import LossLaw

__all__ = ["KAPLAN_2020", "Chinchilla", "ChinchillaTied", "Kaplan", "KaplanBare", "Rosenfeld", "RosenfeldTransition"]

EXPONENTS = (0.05, 1.2)
"""Where starts of alpha and beta lie."""


@dataclass(frozen=True)
class Chinchilla(Law):
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
    name = "chinchilla"
    equation = "L = E + A / N^alpha + B / D^beta"
    source = "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2"
    positive = ("E", "A", "B")
    units: ClassVar[Mapping[str, str]] = {"E": "nats", "A": "nats params^alpha", "B": "nats tokens^beta"}
    power_optimum = True

    def loss(self, N: Any, D: Any) -> Any:
        """Loss at N parameters and D tokens."""
        return self.E + self.A * N**-self.alpha + self.B * D**-self.beta

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

    @classmethod
    def guess(cls, inputs: Mapping[str, np.ndarray], loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: shares of the loss and exponents."""
        A, alpha = guess_shares(inputs["N"], loss, u[:, 1], u[:, 3], EXPONENTS)
        B, beta = guess_shares(inputs["D"], loss, u[:, 2], u[:, 4], EXPONENTS)
        return {"E": loss.min() * (0.02 + 0.96 * u[:, 0]), "A": A, "B": B, "alpha": alpha, "beta": beta}


class _OfSum(Law):
    """A rising function of a Chinchilla sum, `self.sum`."""

    power_optimum = True

    @property
    def sum(self) -> Chinchilla:
        """The sum whose optimum is this law's."""
        raise NotImplementedError

    def exponents(self, rule: FlopRule = SIX_ND) -> tuple[Any, Any]:
        """a, b of N_opt ~ C^a, D_opt ~ C^b: those of the sum."""
        return self.sum.exponents(rule)

    def log_coefficients(self, rule: FlopRule = SIX_ND) -> tuple[Any, Any]:
        """Logs of the factors in N_opt = G C^a and D_opt = H C^b."""
        return self.sum.log_coefficients(rule)

    def optimum(self, C: Any, rule: FlopRule = SIX_ND) -> Optimum:
        """The N and D that minimise the loss at C FLOPs, and that loss."""
        N, D, _ = self.sum.optimum(C, rule)
        return Optimum(N, D, self.loss(N, D))


@dataclass(frozen=True)
class ChinchillaTied(_OfSum):
    """Chinchilla with one exponent gamma for N and D: a = b = 1/2 under C = 6 N D.

    >>> [float(value) for value in ChinchillaTied(E=1.7, A=400.0, B=1500.0, gamma=0.35).exponents()]
    [0.5, 0.5]
    """

    E: Any
    A: Any
    B: Any
    gamma: Any
    name = "chinchilla-tied"
    equation = "L = E + A / N^gamma + B / D^gamma"
    source = "Hoffmann et al. 2022 with alpha = beta, as Muennighoff et al. 2023, app. A"
    positive = ("E", "A", "B")
    units: ClassVar[Mapping[str, str]] = {"E": "nats", "A": "nats params^gamma", "B": "nats tokens^gamma"}

    @property
    def sum(self) -> Chinchilla:
        """The same law with alpha = beta = gamma."""
        return Chinchilla(self.E, self.A, self.B, self.gamma, self.gamma)

    def loss(self, N: Any, D: Any) -> Any:
        """Loss at N parameters and D tokens."""
        return self.E + self.A * N**-self.gamma + self.B * D**-self.gamma

    def frontier(self, rule: FlopRule = SIX_ND) -> LossLaw:
        """The loss along the optimum, a law of compute with the same E."""
        return self.sum.frontier(rule)

    @classmethod
    def guess(cls, inputs: Mapping[str, np.ndarray], loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: shares of the loss and an exponent."""
        A, gamma = guess_shares(inputs["N"], loss, u[:, 1], u[:, 3], EXPONENTS)
        B, _ = guess_shares(inputs["D"], loss, u[:, 2], u[:, 3], EXPONENTS)
        return {"E": loss.min() * (0.02 + 0.96 * u[:, 0]), "A": A, "B": B, "gamma": gamma}


@dataclass(frozen=True)
class Kaplan(_OfSum):
    """L(N, D) = [(Nc/N)^(alphaN/alphaD) + Dc/D]^alphaD: no irreducible loss; N without embeddings in the paper.

    >>> a, b = KAPLAN_2020.exponents()
    >>> round(float(a), 3), round(float(b), 3)  # under 6ND; the paper's a = .73 counts C at a small batch
    (0.575, 0.425)
    """

    Nc: Any
    Dc: Any
    alphaN: Any
    alphaD: Any
    name = "kaplan"
    equation = "L = [(Nc/N)^(alphaN/alphaD) + Dc/D]^alphaD"
    source = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5 and table 2"
    positive = ("Nc", "Dc", "alphaN", "alphaD")
    units: ClassVar[Mapping[str, str]] = {"Nc": "params", "Dc": "tokens"}

    @property
    def sum(self) -> Chinchilla:
        """What stands in the brackets."""
        p = self.alphaN / self.alphaD
        return Chinchilla(0.0, self.Nc**p, self.Dc, p, 1.0)

    def loss(self, N: Any, D: Any) -> Any:
        """Loss at N parameters and D tokens."""
        return ((self.Nc / N) ** (self.alphaN / self.alphaD) + self.Dc / D) ** self.alphaD

    def frontier(self, rule: FlopRule = SIX_ND) -> LossLaw:
        """The loss along the optimum, a pure power law of compute."""
        inner = self.sum.frontier(rule)
        return LossLaw(E=0.0 * self.alphaD, A=inner.A**self.alphaD, alpha=inner.alpha * self.alphaD)

    def tokens_without_overfitting(self, N: Any, excess: float = 0.02) -> Any:
        """Tokens below which the loss rises by more than `excess` over that of endless data (eq. 4.4).

        With the paper's constants about 5e3 N^0.74.
        """
        share = (1 + excess) ** (1 / self.alphaD) - 1
        return self.Dc * (N / self.Nc) ** (self.alphaN / self.alphaD) / share

    @classmethod
    def guess(cls, inputs: Mapping[str, np.ndarray], loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: L(N) and L(D) alone, each through the middle of the data."""
        alphaN, alphaD = (0.03 * 20 ** u[:, i] for i in (2, 3))
        scale = {}
        for name, x, alpha, column in (("Nc", inputs["N"], alphaN, u[:, 0]), ("Dc", inputs["D"], alphaD, u[:, 1])):
            share = float(np.mean(np.log(loss))) + np.log(0.3) * column
            scale[name] = np.exp(float(np.mean(np.log(x))) + share / alpha)
        return {**scale, "alphaN": alphaN, "alphaD": alphaD}


KAPLAN_2020 = Kaplan(Nc=6.4e13, Dc=1.8e13, alphaN=0.076, alphaD=0.103)
"""Kaplan et al. 2020, table 2: WebText2, N without embeddings, nats per token."""


@dataclass(frozen=True)
class Rosenfeld(_OfSum):
    """L = E + N^-alpha + D^-beta: the sum without factors, so that the units of N and D matter.

    The lecture form n^-alpha + m^-beta + C, with m = N parameters and n = D samples: its alpha is our beta.
    """

    E: Any
    alpha: Any
    beta: Any
    name = "rosenfeld"
    equation = "L = E + N^-alpha + D^-beta"
    source = "after Rosenfeld et al. 2020, arXiv 1909.12673, eq. 4 with unit factors"
    positive = ("E",)
    units: ClassVar[Mapping[str, str]] = {"E": "nats"}

    @property
    def sum(self) -> Chinchilla:
        """The law itself, with A = B = 1."""
        return Chinchilla(self.E, 1.0, 1.0, self.alpha, self.beta)

    def loss(self, N: Any, D: Any) -> Any:
        """Loss at N parameters and D tokens."""
        return self.E + N**-self.alpha + D**-self.beta

    def frontier(self, rule: FlopRule = SIX_ND) -> LossLaw:
        """The loss along the optimum, a law of compute with the same E."""
        return self.sum.frontier(rule)

    @classmethod
    def guess(cls, inputs: Mapping[str, np.ndarray], loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: exponents at which the bare terms have the size of a loss, and above."""
        alpha, beta = (u[:, i] / np.log(inputs[x]).mean() * 8 for i, x in ((1, "N"), (2, "D")))
        return {"E": loss.min() * (0.02 + 0.96 * u[:, 0]), "alpha": alpha, "beta": beta}


@dataclass(frozen=True)
class RosenfeldTransition(_OfSum):
    """L = L0 t / sqrt(t^2 + eta^2), t = E + A/N^alpha + B/D^beta: levels off at L0, the loss of guessing."""

    L0: Any
    eta: Any
    E: Any
    A: Any
    B: Any
    alpha: Any
    beta: Any
    name = "rosenfeld-transition"
    equation = "L = L0 t / sqrt(t^2 + eta^2), t = E + A/N^alpha + B/D^beta"
    source = "Rosenfeld et al. 2020, arXiv 1909.12673, eq. 5 (pole at i eta)"
    positive = ("L0", "eta", "E", "A", "B")

    @property
    def sum(self) -> Chinchilla:
        """The sum t."""
        return Chinchilla(self.E, self.A, self.B, self.alpha, self.beta)

    def loss(self, N: Any, D: Any) -> Any:
        """Loss at N parameters and D tokens."""
        t = self.E + self.A * N**-self.alpha + self.B * D**-self.beta
        return self.L0 * t * (t * t + self.eta * self.eta) ** -0.5

    @classmethod
    def guess(cls, inputs: Mapping[str, np.ndarray], loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: Chinchilla's, with the guessing loss above the largest measured."""
        inner = Chinchilla.guess(inputs, loss, u[:, 2:])
        L0 = loss.max() * (1.05 + 4 * u[:, 0])
        return {"L0": L0, "eta": L0 * (0.5 + u[:, 1]), **inner}


@dataclass(frozen=True)
class KaplanBare(_OfSum):
    """L = [N^-alpha + 1/D]^beta: Kaplan's form without scales, so that the units of N and D matter.

    The lecture form [m^-alpha + n^-1]^beta with m = N parameters and n = D samples.
    """

    alpha: Any
    beta: Any
    name = "kaplan-bare"
    equation = "L = [N^-alpha + 1/D]^beta"
    source = "after Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5 with unit scales"
    positive = ("alpha", "beta")

    @property
    def sum(self) -> Chinchilla:
        """What stands in the brackets."""
        return Chinchilla(0.0, 1.0, 1.0, self.alpha, 1.0)

    def loss(self, N: Any, D: Any) -> Any:
        """Loss at N parameters and D tokens; below one nat unless N or D is in large units."""
        return (N**-self.alpha + 1 / D) ** self.beta

    @classmethod
    def guess(cls, inputs: Mapping[str, np.ndarray], loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts between steep and flat."""
        return {"alpha": 10 ** (2 * u[:, 0] - 1.5), "beta": 10 ** (3 * u[:, 1] - 2.5)}
