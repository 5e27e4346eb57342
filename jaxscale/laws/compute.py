"""Laws of one variable: the loss along compute, size or data alone, and the power laws of the optimum.

PowerLaw   N_opt = A C^a, D_opt = A C^b    Hoffmann et al. 2022; Llama 3's token law D_opt = A C^alpha
LossLaw    L_opt(C) = E + A / C^alpha      with E = 0 Kaplan et al.'s L(Cmin)
kaplan-n, kaplan-d, kaplan-c               L = (x_c / x)^alpha          Kaplan et al. 2020, eq. 1.1 to 1.3
broken     L(C) = E + A C^-alpha (1 + (C / Cb)^(1/f))^(-f dalpha)       Caballero et al. 2023, one break
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxscale.laws.base import Law, guess_shares, namespace

__all__ = ["BrokenPower", "KaplanCompute", "KaplanData", "KaplanSize", "LossLaw", "PowerLaw", "PurePower"]

EXPONENTS = (0.01, 1.0)


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

    def slope(self, x: Any) -> Any:
        """dy/dx."""
        return self.a * self.at(x) / x

    def inverse(self, y: Any) -> Any:
        """The x at which the law gives y."""
        return np.exp((np.log(y) - np.log(self.A)) / self.a)


@dataclass(frozen=True)
class LossLaw(Law):
    """L_opt(C) = E + A / C^alpha, nats per token; E = 0 is the pure power law.

    >>> law = LossLaw(E=1.0, A=4.0, alpha=0.5)
    >>> round(float(law.loss(16.0)), 9), round(float(law.compute(2.0)), 9)
    (2.0, 16.0)
    """

    E: Any
    A: Any
    alpha: Any
    name = "compute"
    inputs = ("C",)
    equation = "L_opt = E + A / C^alpha"
    source = "Hoffmann et al. 2022 along the optimum; Hestness et al. 2017 over data"
    positive = ("E", "A")
    units: ClassVar[Mapping[str, str]] = {"E": "nats", "A": "nats FLOPs^alpha"}

    def loss(self, C: Any) -> Any:
        """Loss at C FLOPs."""
        xp = namespace(C, self.A, self.alpha)
        return self.E + xp.exp(xp.log(self.A) - self.alpha * xp.log(C))

    def compute(self, loss: Any) -> Any:
        """FLOPs at which the law reaches a loss; infinite at or below E."""
        gap = np.asarray(loss, float) - self.E
        reach = np.where(gap > 0, gap, 1.0)
        with np.errstate(over="ignore"):
            needed = np.exp((np.log(self.A) - np.log(reach)) / self.alpha)
        return np.where(gap > 0, needed, np.inf)

    @classmethod
    def guess(cls, inputs: Mapping[str, np.ndarray], loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: shares of the loss and an exponent."""
        A, alpha = guess_shares(inputs["C"], loss, u[:, 1], u[:, 2], EXPONENTS)
        return {"E": loss.min() * (0.02 + 0.96 * u[:, 0]), "A": A, "alpha": alpha}


class PurePower(Law):
    """L = (scale / x)^alpha of one input x; the scale is the x at which the law gives one nat."""

    positive = ("scale", "alpha")
    scale: Any
    alpha: Any

    def loss(self, x: Any) -> Any:
        """Loss at x."""
        return (self.scale / x) ** self.alpha

    def inverse(self, loss: Any) -> Any:
        """The x that reaches a loss."""
        return self.scale * np.power(loss, -1 / self.alpha)

    @classmethod
    def guess(cls, inputs: Mapping[str, np.ndarray], loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts through the middle of the data."""
        alpha = 0.01 * 100 ** u[:, 1]
        middle = float(np.mean(np.log(inputs[cls.inputs[0]])))
        return {"scale": np.exp(middle + np.mean(np.log(loss)) / alpha * (0.8 + 0.4 * u[:, 0])), "alpha": alpha}


@dataclass(frozen=True)
class KaplanSize(PurePower):
    """L(N) = (Nc / N)^alphaN at convergence on endless data; published 8.8e13 and .076 (N without embeddings)."""

    scale: Any
    alpha: Any
    name = "kaplan-n"
    inputs = ("N",)
    equation = "L = (Nc / N)^alphaN, scale = Nc"
    source = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1"
    units: ClassVar[Mapping[str, str]] = {"scale": "params"}


@dataclass(frozen=True)
class KaplanData(PurePower):
    """L(D) = (Dc / D)^alphaD of a large model stopped early; published 5.4e13 and .095."""

    scale: Any
    alpha: Any
    name = "kaplan-d"
    inputs = ("D",)
    equation = "L = (Dc / D)^alphaD, scale = Dc"
    source = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.2"
    units: ClassVar[Mapping[str, str]] = {"scale": "tokens"}


@dataclass(frozen=True)
class KaplanCompute(PurePower):
    """L(Cmin) = (Cc / Cmin)^alphaC at the best size and a small batch; published 3.1e8 PF-days and .050.

    >>> round(float(KaplanCompute(scale=3.1e8 * 8.64e19, alpha=0.050).loss(8.64e19)), 2)  # one PF-day
    2.66
    """

    scale: Any
    alpha: Any
    name = "kaplan-c"
    inputs = ("C",)
    equation = "L = (Cc / C)^alphaC, scale = Cc"
    source = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.3"
    units: ClassVar[Mapping[str, str]] = {"scale": "FLOPs"}


@dataclass(frozen=True)
class BrokenPower(Law):
    """L(C) = E + A C^-alpha (1 + (C/Cb)^(1/f))^(-f dalpha): slope alpha below Cb, alpha + dalpha above.

    f is the sharpness of the break in log C (small is sharp). Equal to `compute` where dalpha = 0.
    """

    E: Any
    A: Any
    alpha: Any
    dalpha: Any
    Cb: Any
    f: Any
    name = "broken"
    inputs = ("C",)
    equation = "L = E + A C^-alpha (1 + (C/Cb)^(1/f))^(-f dalpha)"
    source = "Caballero et al. 2023, arXiv 2210.14891, eq. 1 with one break"
    positive = ("E", "A", "Cb", "f")
    units: ClassVar[Mapping[str, str]] = {"E": "nats", "A": "nats FLOPs^alpha", "Cb": "FLOPs"}

    def loss(self, C: Any) -> Any:
        """Loss at C FLOPs."""
        xp = namespace(C, self.A, self.alpha, self.Cb, self.f)
        log_C = xp.log(C)
        bend = _log1pexp(xp, (log_C - xp.log(self.Cb)) / self.f)
        return self.E + xp.exp(xp.log(self.A) - self.alpha * log_C - self.f * self.dalpha * bend)

    @classmethod
    def guess(cls, inputs: Mapping[str, np.ndarray], loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts: a power law with its break somewhere inside the data."""
        A, alpha = guess_shares(inputs["C"], loss, u[:, 1], u[:, 2], EXPONENTS)
        log_C = np.log(inputs["C"])
        Cb = np.exp(log_C.min() + np.ptp(log_C) * (0.1 + 0.8 * u[:, 4]))
        E = loss.min() * (0.02 + 0.96 * u[:, 0])
        return {"E": E, "A": A, "alpha": alpha, "dalpha": alpha * (2 * u[:, 3] - 1), "Cb": Cb, "f": 0.2 * 10 ** u[:, 5]}


def _log1pexp(xp: Any, x: Any) -> Any:
    """log(1 + e^x) without overflow."""
    top = xp.maximum(xp.real(x), 0.0)
    return top + xp.log(xp.exp(-top) + xp.exp(x - top))
