"""Several approaches as one answer: equal weights, and an interval that their disagreement widens.

    log N_opt = mean of log N_m,   D_opt from N_opt and C by the FLOP rule,   L_opt = mean of L_m
    draws     = x_mr + (sqrt(M / (M - 1)) - 1) (x_m - x)      for x = log N_opt and x = L_opt

x_m is the answer of approach m of M, x their mean, x_mr its bootstrap round r; every approach gives as many
rounds. The variance of the pooled draws is the mean of the approaches' own variances plus
sum (x_m - x)^2 / (M - 1), within and between as in multiple imputation (Rubin 1987) without its term B / M:
approaches that differ widen the interval, and one that is far off does not push the others out of it. Where
all are right the mean is more certain than this says: the interval is for an answer of unknown approach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.fit.result import Fit
from jaxscale.laws import FlopRule, Optimum

__all__ = ["Average", "MeanFrontier", "bears_average"]


FEWEST_CLIMBS = 4
"""Changes of size that an envelope needs to count in the average: through two or three any line passes."""


def bears_average(fit: Fit) -> bool:
    """Whether a fit counts in the average: it has an answer and an optimum, an envelope enough climbs behind it."""
    return fit.has_optimum and len(fit.diagnostics.get("climbs", range(FEWEST_CLIMBS))) >= FEWEST_CLIMBS


@dataclass(frozen=True)
class Average:
    """The equal-weight average of fits that have an answer, one a method; it predicts as a `Fit` does."""

    fits: tuple[Fit, ...]
    method = "average"
    law = "equal weights"

    @property
    def confidence(self) -> float:
        """Of its intervals: that of the first fit."""
        return self.fits[0].confidence

    @property
    def rule(self) -> FlopRule:
        """How C counts, as the first fit was told."""
        return self.fits[0].rule

    @property
    def largest_C(self) -> float:
        """The largest budget that any of them saw, FLOPs."""
        return max(fit.diagnostics["largest_C"] for fit in self.fits)

    @property
    def rounds(self) -> int:
        """Draws that each approach gives: as many as the one with the fewest."""
        return min(len(next(iter(fit.draws.values()), [])) for fit in self.fits)

    def predict_optimum(self, C: Any) -> Optimum:
        """N, D and loss at C FLOPs."""
        log_N, loss = (np.mean(part, 0) for part in self._answers(C))
        return Optimum(np.exp(log_N), self.rule.tokens(C, np.exp(log_N)), loss)

    def sample_optimum(self, C: Any) -> Optimum:
        """The pooled and widened draws (M rounds,), or (M rounds, n) for C (n,), approach after approach."""
        parts = [fit.sample_optimum(C) for fit in self.fits]
        drawn = (np.stack([np.log(part.N[: self.rounds]) for part in parts]),
                 np.stack([part.loss[: self.rounds] for part in parts]))  # fmt: skip
        spread = np.sqrt(len(self.fits) / (len(self.fits) - 1)) - 1
        log_N, loss = (
            (rounds + spread * (answers - answers.mean(0))[:, None]).reshape(-1, *np.shape(C))
            for rounds, answers in zip(drawn, self._answers(C), strict=True)
        )
        return Optimum(np.exp(log_N), self.rule.tokens(C, np.exp(log_N)), loss)

    def frontier(self) -> MeanFrontier:
        """L_opt(C) as a value that can be inverted."""
        return MeanFrontier(tuple(fit.frontier() for fit in self.fits))

    def _answers(self, C: Any) -> tuple[np.ndarray, np.ndarray]:
        """log N_opt and loss of every approach (M,) or (M, n)."""
        parts = [fit.predict_optimum(C) for fit in self.fits]
        return np.stack([np.log(part.N) for part in parts]), np.stack([np.asarray(part.loss) for part in parts])


@dataclass(frozen=True)
class MeanFrontier:
    """The mean of the approaches' frontiers; inverted by halving, since a mean of power laws is none."""

    parts: tuple[Any, ...]

    @property
    def E(self) -> float:
        """The mean irreducible loss."""
        return float(np.mean([part.E for part in self.parts]))

    def loss(self, C: Any) -> Any:
        """Loss at C FLOPs."""
        return np.mean([part.loss(C) for part in self.parts], 0)

    def compute(self, loss: float) -> float:
        """FLOPs at which the mean reaches a loss; infinite where 1e60 FLOPs do not."""
        low, high = 0.0, float(np.log(1e60))
        if self.loss(np.exp(high)) > loss:
            return float("inf")
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if self.loss(np.exp(middle)) > loss else (low, middle)
        return float(np.exp(high))
