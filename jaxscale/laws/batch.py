"""Batch size: how steps trade against examples, and what the critical batch size costs.

    (S / S_min - 1) (E / E_min - 1) = 1,   B_crit = E_min / S_min         McCandlish et al. 2018, eq. 2.11, 2.12
    with E = B S:  S = S_min (1 + B_crit / B),  E = E_min (1 + B / B_crit)
    S_min = S / (1 + B_crit / B),  C_min = C / (1 + B / B_crit)           Kaplan et al. 2020, eq. 5.4, 5.5
    B_crit(L) = B* / L^(1 / alpha_B)                                      Kaplan et al. 2020, eq. 1.4
    B_crit(D) = A D^a                                                     Zhang et al. 2024, arXiv 2410.21676
    B_noise = tr(Sigma) / |G|^2                                           McCandlish et al. 2018, eq. 2.9, app. A.1

S steps, E examples (here tokens) processed, B batch in the same unit as E / S. Training at B = B_crit costs twice
the fewest steps and twice the fewest examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxscale.laws.compute import PowerLaw

__all__ = ["KAPLAN_BATCH", "CriticalBatch", "NoiseScale", "Tradeoff", "batch_with_overhead", "estimate_noise_scale",
           "least_compute", "least_steps"]  # fmt: skip


def least_compute(C: Any, B: Any, B_crit: Any) -> Any:
    """C_min: FLOPs that would reach the same loss at a batch far below B_crit (Kaplan et al. eq. 5.5).

    >>> float(least_compute(3e20, 1e6, 2e6))
    2e+20
    """
    return np.asarray(C) / (1 + np.asarray(B) / B_crit)


def least_steps(S: Any, B: Any, B_crit: Any) -> Any:
    """S_min: steps that would reach the same loss at a batch far above B_crit (Kaplan et al. eq. 5.4).

    >>> float(least_steps(3e4, 1e6, 2e6))
    10000.0
    """
    return np.asarray(S) / (1 + B_crit / np.asarray(B))


@dataclass(frozen=True)
class Tradeoff:
    """Steps and tokens to one loss as a function of the batch.

    >>> law = Tradeoff(S_min=1e4, E_min=1e9)
    >>> float(law.B_crit), float(law.steps(1e5)), float(law.tokens(1e5))
    (100000.0, 20000.0, 2000000000.0)
    """

    S_min: Any
    E_min: Any
    equation = "(S/S_min - 1)(E/E_min - 1) = 1"
    source = "McCandlish et al. 2018, arXiv 1812.06162, eq. 2.11"

    @property
    def B_crit(self) -> Any:
        """E_min / S_min, tokens a batch."""
        return self.E_min / self.S_min

    def steps(self, B: Any) -> Any:
        """Steps to the loss at a batch of B tokens."""
        return self.S_min * (1 + self.B_crit / B)

    def tokens(self, B: Any) -> Any:
        """Tokens to the loss at a batch of B tokens; compute is proportional to them."""
        return self.E_min * (1 + B / self.B_crit)

    def batch_for(self, steps: Any) -> Any:
        """The batch at which the loss takes that many steps; infinite at or below S_min."""
        ratio = np.asarray(steps, float) / self.S_min - 1
        return np.where(ratio > 0, self.B_crit / np.where(ratio > 0, ratio, 1.0), np.inf)


def batch_with_overhead(B_crit: Any, overhead: float = 0.2) -> Any:
    """The batch that costs `overhead` more tokens than the fewest: B = overhead B_crit on the hyperbola.

    Zhang et al. 2024 call the batch of 20% overhead critical; their numbers are about a fifth of B_crit here.

    >>> batch_with_overhead(1e6)
    200000.0
    """
    return overhead * B_crit


@dataclass(frozen=True)
class CriticalBatch:
    """B_crit(L) = B* / L^(1 / alpha_B), tokens; L in nats per token.

    >>> f"{float(KAPLAN_BATCH.at(3.0)):.2e}"
    '1.07e+06'
    """

    B: Any
    alpha_B: Any
    equation = "B_crit = B* / L^(1/alpha_B)"
    source = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.4"

    def at(self, loss: Any) -> Any:
        """B_crit where the loss is L."""
        return self.B * np.power(loss, -1 / self.alpha_B)

    @property
    def power(self) -> PowerLaw:
        """The same as A x^a of the loss, a = -1 / alpha_B."""
        return PowerLaw(A=self.B, a=-1 / self.alpha_B)


KAPLAN_BATCH = CriticalBatch(B=2e8, alpha_B=0.21)
"""As published: independent of the size of the model, WebText2, the loss of its own tokenizer."""


class NoiseScale(NamedTuple):
    """|G|^2 and tr(Sigma), each without bias, and their ratio B_simple in the unit of the batches."""

    grad_squared: Any
    trace: Any
    B_simple: Any


def estimate_noise_scale(small: Any, large: Any, B_small: Any, B_large: Any) -> NoiseScale:
    """Noise scale from mean squared gradient norms at two batch sizes (McCandlish et al. 2018, app. A.1).

    E|G_B|^2 = |G|^2 + tr(Sigma) / B at both. The ratio of two estimates is biased: average |G|^2 and tr(Sigma)
    over many steps first, by giving means here or by averaging the first two results. NaN where |G|^2 is not above 0.

    >>> noise = estimate_noise_scale(small=2.0 + 60.0 / 10, large=2.0 + 60.0 / 100, B_small=10, B_large=100)
    >>> [round(float(value), 9) for value in noise]
    [2.0, 60.0, 30.0]
    """
    small, large, b, B = (np.asarray(value, float) for value in (small, large, B_small, B_large))
    grad_squared = (B * large - b * small) / (B - b)
    trace = (small - large) / (1 / b - 1 / B)
    return NoiseScale(grad_squared, trace, np.where(grad_squared > 0, trace, np.nan) / np.where(
        grad_squared > 0, grad_squared, 1.0))  # fmt: skip
