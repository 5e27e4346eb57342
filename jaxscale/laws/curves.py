"""Learning curves: the loss of one model size over data D, families that the literature has used.

    hestness    L = A / D^alpha                        Hestness et al. 2017, the power-law region, no floor
    log-linear  L = a - b log D                        Banko and Brill 2001
    ilog2       L = E + a / log D                      Kolachina et al. 2012, ILog2
    pow3        L = E + A / D^alpha                    Kolachina et al. 2012, Pow3; Hestness's with its gamma = E
    pow4        L = E + (a D + b)^-alpha               Kolachina et al. 2012, Pow4
    exp3        L = E + exp(-a D + b)                  Kolachina et al. 2012, Exp3
    exp4        L = E + exp(-a D^alpha + b)            Kolachina et al. 2012, Exp4
    expp3       L = E + exp((D - b)^-alpha)            Kolachina et al. 2012, ExpP3
    cortes      test E + A / D^alpha, training E - B / D^beta     Cortes et al. 1993, a shared asymptote E

Kolachina et al. (table 1) write the rise of BLEU to a ceiling, y = c - f(x). A loss falls to a floor, so here
L = E + f(D): the sign of f turns, c becomes E, and their Pow4's (-a x + b) has a below 0, here a above 0.
ExpP3's f tends to 1, not 0, so that family's floor is E + 1. D may be tokens, words or examples.

An error that falls as n^(-1/d) (nearest neighbours, kernel regression) implies data of d dimensions:
`intrinsic_dimension`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxscale.laws.base import Law, guess_shares, namespace

__all__ = [
    "CONTAINS",
    "CURVES",
    "Cortes",
    "Exp3",
    "Exp4",
    "ExpP3",
    "Hestness",
    "ILog2",
    "LogLinear",
    "Pow3",
    "Pow4",
    "intrinsic_dimension",
]  # fmt: skip

Inputs = Mapping[str, np.ndarray]
EXPONENTS = (0.03, 1.5)
KOLACHINA = "Kolachina et al. 2012, Prediction of Learning Curves in Machine Translation, table 1"


class Curve(Law):
    """A law of D alone; the loss at no data and the floor are limits of the family, not of every task."""

    inputs = ("D",)
    units: ClassVar[Mapping[str, str]] = {"E": "nats"}

    @property
    def floor(self) -> Any:
        """The loss that endless data tend to; minus infinity for a law without a limit."""
        return self.E  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Hestness(Curve):
    """L = A / D^alpha: a straight line in logs; exponents of .07 to .35 in the paper.

    >>> round(float(Hestness(A=8.0, alpha=0.5).loss(16.0)), 9)
    2.0
    """

    A: Any
    alpha: Any
    name = "hestness"
    equation = "L = A / D^alpha"
    source = "Hestness et al. 2017, arXiv 1712.00409, power-law region (gamma = 0)"
    positive = ("A", "alpha")

    @property
    def floor(self) -> Any:
        """Zero: the power-law region only."""
        return 0.0 * self.A

    def loss(self, D: Any) -> Any:
        """Loss at D."""
        xp = namespace(D, self.A, self.alpha)
        return xp.exp(xp.log(self.A) - self.alpha * xp.log(D))

    @classmethod
    def guess(cls, inputs: Inputs, loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts through the middle of the data."""
        A, alpha = guess_shares(inputs["D"], loss, 0.2 * u[:, 0], u[:, 1], EXPONENTS)
        return {"A": A, "alpha": alpha}


@dataclass(frozen=True)
class LogLinear(Curve):
    """L = a - b log D: the same gain for every doubling, b log 2; it has no floor and crosses zero.

    >>> float(LogLinear(a=5.0, b=1.0).loss(1.0))
    5.0
    """

    a: Any
    b: Any
    name = "log-linear"
    equation = "L = a - b log D"
    source = "Banko and Brill 2001: accuracy rises with the log of the words, so error falls with it"
    positive = ("b",)

    @property
    def floor(self) -> Any:
        """None: minus infinity."""
        return self.b * -np.inf

    def loss(self, D: Any) -> Any:
        """Loss at D."""
        return self.a - self.b * namespace(D).log(D)

    @classmethod
    def guess(cls, inputs: Inputs, loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts about the line through the ends."""
        x = np.log(inputs["D"])
        b = max(-float(np.polyfit(x, loss, 1)[0]), 1e-6) * 4 ** (u[:, 1] - 0.5)
        return {"a": loss.mean() + b * x.mean() + 0 * u[:, 0], "b": b}


@dataclass(frozen=True)
class ILog2(Curve):
    """L = E + a / log D: falls very slowly; the unit of D matters, and D must be above 1.

    >>> float(ILog2(E=1.0, a=2.0).loss(np.e))
    3.0
    """

    E: Any
    a: Any
    name = "ilog2"
    equation = "L = E + a / log D"
    source = f"{KOLACHINA}: ILog2, y = c - a / log x"
    positive = ("a",)

    def loss(self, D: Any) -> Any:
        """Loss at D."""
        return self.E + self.a / namespace(D).log(D)

    @classmethod
    def guess(cls, inputs: Inputs, loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: shares of the loss."""
        a = loss.mean() * 0.05 ** u[:, 1] * np.log(inputs["D"]).mean()
        return {"E": loss.min() - a / np.log(inputs["D"]).max(), "a": a}


@dataclass(frozen=True)
class Pow3(Curve):
    """L = E + A / D^alpha: a power law to a floor.

    >>> round(float(Pow3(E=1.0, A=8.0, alpha=0.5).loss(16.0)), 9)
    3.0
    """

    E: Any
    A: Any
    alpha: Any
    name = "pow3"
    equation = "L = E + A / D^alpha"
    source = f"{KOLACHINA}: Pow3, y = c - a x^-alpha; Hestness et al. 2017 with gamma = E"
    positive = ("E", "A", "alpha")

    def loss(self, D: Any) -> Any:
        """Loss at D."""
        xp = namespace(D, self.A, self.alpha)
        return self.E + xp.exp(xp.log(self.A) - self.alpha * xp.log(D))

    @classmethod
    def guess(cls, inputs: Inputs, loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: shares of the loss and an exponent."""
        A, alpha = guess_shares(inputs["D"], loss, u[:, 1], u[:, 2], EXPONENTS)
        return {"E": loss.min() * (0.02 + 0.96 * u[:, 0]), "A": A, "alpha": alpha}


@dataclass(frozen=True)
class Pow4(Curve):
    """L = E + (a D + b)^-alpha: a power law that begins late; b = 0 is Pow3 with A = a^-alpha.

    >>> round(float(Pow4(E=1.0, a=3.0, b=4.0, alpha=0.5).loss(4.0)), 9)
    1.25
    """

    E: Any
    a: Any
    b: Any
    alpha: Any
    name = "pow4"
    equation = "L = E + (a D + b)^-alpha"
    source = f"{KOLACHINA}: Pow4, y = c - (-a x + b)^-alpha"
    positive = ("E", "a", "alpha")

    def loss(self, D: Any) -> Any:
        """Loss at D; NaN where a D + b is not above 0."""
        return self.E + (self.a * D + self.b) ** -self.alpha

    @classmethod
    def guess(cls, inputs: Inputs, loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: Pow3's, with a shift of up to twice the smallest D."""
        start = Pow3.guess(inputs, loss, u[:, [0, 1, 3]])
        a = np.exp(-np.log(start["A"]) / start["alpha"])
        return {"E": start["E"], "a": a, "b": a * inputs["D"].min() * (3 * u[:, 2] - 0.9), "alpha": start["alpha"]}


@dataclass(frozen=True)
class Exp3(Curve):
    """L = E + exp(-a D + b): each further D removes the same share of what can be removed.

    >>> float(Exp3(E=1.0, a=2.0, b=0.0).loss(0.0))
    2.0
    """

    E: Any
    a: Any
    b: Any
    name = "exp3"
    equation = "L = E + exp(-a D + b)"
    source = f"{KOLACHINA}: Exp3, y = c - exp(-a x + b)"
    positive = ("E", "a")

    def loss(self, D: Any) -> Any:
        """Loss at D."""
        return self.E + namespace(D, self.a, self.b).exp(self.b - self.a * D)

    @classmethod
    def guess(cls, inputs: Inputs, loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: a scale inside the range of D, an amplitude of the size of the fall."""
        low, high = inputs["D"].min(), inputs["D"].max()
        a = 1 / (low * (3 * high / low) ** u[:, 1])
        b = np.log(np.ptp(loss) + 1e-3 * loss.min()) + a * low + np.log(3) * (2 * u[:, 2] - 1)
        return {"E": loss.min() * (0.02 + 0.97 * u[:, 0]), "a": a, "b": b}


@dataclass(frozen=True)
class Exp4(Curve):
    """L = E + exp(-a D^alpha + b), a stretched exponential: alpha = 1 is Exp3, alpha to 0 tends to Pow3.

    >>> float(Exp4(E=1.0, a=2.0, b=4.0, alpha=0.5).loss(4.0))
    2.0
    """

    E: Any
    a: Any
    b: Any
    alpha: Any
    name = "exp4"
    equation = "L = E + exp(-a D^alpha + b)"
    source = f"{KOLACHINA}: Exp4, y = c - exp(-a x^alpha + b)"
    positive = ("E", "a", "alpha")

    def loss(self, D: Any) -> Any:
        """Loss at D."""
        xp = namespace(D, self.a, self.b, self.alpha)
        return self.E + xp.exp(self.b - self.a * xp.exp(self.alpha * xp.log(D)))

    @classmethod
    def guess(cls, inputs: Inputs, loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: Exp3's, with D stretched about its middle."""
        alpha = 0.05 * 24 ** u[:, 3]
        bent = inputs["D"][:, None] ** alpha
        low, high = bent.min(0), bent.max(0)
        a = (0.3 + 3 * u[:, 1]) / (high - low)
        b = np.log(np.ptp(loss) + 1e-3 * loss.min()) + a * low + np.log(3) * (2 * u[:, 2] - 1)
        return {"E": loss.min() * (0.02 + 0.97 * u[:, 0]), "a": a, "b": b, "alpha": alpha}


@dataclass(frozen=True)
class ExpP3(Curve):
    """L = E + exp((D - b)^-alpha): the floor is E + 1; E may be below 0, D must be above b.

    >>> round(float(ExpP3(E=0.0, b=0.0, alpha=1.0).loss(1.0)), 6)
    2.718282
    """

    E: Any
    b: Any
    alpha: Any
    name = "expp3"
    equation = "L = E + exp((D - b)^-alpha)"
    source = f"{KOLACHINA}: ExpP3, y = c - exp((x - b)^alpha), alpha below 0"
    positive = ("alpha",)

    @property
    def floor(self) -> Any:
        """E + 1."""
        return self.E + 1

    def loss(self, D: Any) -> Any:
        """Loss at D; NaN where D is not above b."""
        xp = namespace(D, self.b, self.alpha)
        return self.E + xp.exp((D - self.b) ** -self.alpha)

    @classmethod
    def guess(cls, inputs: Inputs, loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: an exponent at which the term has the size of the fall, a shift below the smallest D."""
        alpha = 10 ** (-2.5 * u[:, 2]) * 3 / np.log(inputs["D"]).mean()
        b = inputs["D"].min() * (2 * u[:, 1] - 1.05)
        top = np.exp((inputs["D"].min() - b) ** -alpha)
        return {"E": loss.max() - top, "b": b, "alpha": alpha}


@dataclass(frozen=True)
class Cortes(Curve):
    """Test error E + A / D^alpha and training error E - B / D^beta of the same models: one asymptote E.

    The two curves bracket E, so that it is known long before either has reached it; `loss` is the test error.

    >>> law = Cortes(E=2.0, A=8.0, alpha=0.5, B=4.0, beta=0.5)
    >>> round(float(law.loss(16.0)), 9), round(float(law.train(16.0)), 9)
    (4.0, 1.0)
    """

    E: Any
    A: Any
    alpha: Any
    B: Any
    beta: Any
    name = "cortes"
    equation = "test L = E + A / D^alpha, training L = E - B / D^beta"
    source = "Cortes et al. 1993, Learning Curves: Asymptotic Values and Rate of Convergence (a, b, c are E, A, B)"
    positive = ("E", "A", "alpha", "B", "beta")

    def loss(self, D: Any) -> Any:
        """Test error at D."""
        xp = namespace(D, self.A, self.alpha)
        return self.E + xp.exp(xp.log(self.A) - self.alpha * xp.log(D))

    def train(self, D: Any) -> Any:
        """Training error at D."""
        xp = namespace(D, self.B, self.beta)
        return self.E - xp.exp(xp.log(self.B) - self.beta * xp.log(D))

    @classmethod
    def guess(cls, inputs: Inputs, loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: Pow3's for the test error, and a training term of a tenth to all of it."""
        test = Pow3.guess(inputs, loss, u)
        beta = EXPONENTS[0] * (EXPONENTS[1] / EXPONENTS[0]) ** u[:, 4]
        middle = np.exp(np.log(inputs["D"]).mean())
        return {**test, "B": 0.1 ** u[:, 3] * test["A"] * middle ** (beta - test["alpha"]), "beta": beta}


CURVES: dict[str, type[Curve]] = {
    law.name: law for law in (Hestness, LogLinear, ILog2, Pow3, Pow4, Exp3, Exp4, ExpP3, Cortes)
}
"""The families by name; `cortes` needs training errors beside the test errors."""

CONTAINS: Mapping[str, tuple[str, ...]] = {
    "pow3": ("hestness",), "pow4": ("hestness", "pow3"), "exp4": ("exp3", "pow3", "hestness"),
    "cortes": ("pow3", "hestness"),
}  # fmt: skip
"""Families that a family can become, at a value or in a limit of its parameters."""


def intrinsic_dimension(alpha: Any, rule: str = "resolution") -> Any:
    """Dimension d of the data that an exponent of L - E in D implies.

    `resolution`: d = 1 / alpha, error as far as the nearest of n points, n^(-1/d). `smooth`: d = 4 / alpha, a
    cross-entropy quadratic in an error of a piecewise linear model (Sharma and Kaplan 2020, arXiv 2004.10802,
    alpha about 4/d in N; Bahri et al. 2021, arXiv 2102.06701, the same in D when resolution limits).

    >>> float(intrinsic_dimension(0.25)), float(intrinsic_dimension(0.25, "smooth"))
    (4.0, 16.0)
    """
    return {"resolution": 1.0, "smooth": 4.0}[rule] / np.asarray(alpha, float)
