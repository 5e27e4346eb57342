"""The lines that figures draw, computed from a Fit alone: valleys, power laws, bands, residuals, iso-loss.

    valley    L(N) at one budget: the curve the IsoFLOP fit read its minimum from (readings.draw_curve), as it is
    surface   L(N, D) of the parametric law, whichever it is (laws/)

Optima are the fit's own (Fit.predict_optimum). Bands are percentiles over its bootstrap draws at each C, at
its own confidence.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jaxscale.fit.result import Budget, Fit
from jaxscale.fit.summary import percentile_ends
from jaxscale.laws import find_law
from jaxscale.report.evidence import Evidence

__all__ = [
    "Band",
    "band_at",
    "draw_valley",
    "fit_residuals",
    "optimum_at",
]

Array = NDArray[np.float64]
Band = tuple[Array, Array]
Quantity = Literal["N", "D", "loss"]


def optimum_at(fit: Fit, quantity: Quantity, C: Array) -> Array | None:
    """N_opt, D_opt or the loss at the optimum over training FLOPs C; None where the fit has none."""
    if not fit.has_optimum:
        return None
    found: Array = getattr(fit.predict_optimum(C), quantity)
    return found


def band_at(fit: Fit, quantity: Quantity, C: Array) -> Band | None:
    """The fit's interval around `optimum_at`, point by point; None where it was not bootstrapped."""
    if not fit.draws or not all(fit.draws.values()) or not fit.has_optimum:
        return None
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # rounds that ran away leave the interval
        low, high = percentile_ends(getattr(fit.sample_optimum(C), quantity), fit.confidence)
    return low, high


def draw_valley(evidence: Evidence, fit: Fit, budget: Budget, samples: int = 40) -> pd.DataFrame | None:
    """A budget's curve over the sizes it was fitted on: columns N, loss; None if it has too few points.

    The curve that the fit itself reports (diagnostics["curves"]), else a parabola through the points; an
    "ok" minimum is kept as its vertex, so that it passes through the number the fit reports.
    """
    for curve in fit.diagnostics.get("curves") or ():
        if np.isclose(curve["C"], budget.C, rtol=0.01):
            return pd.DataFrame(curve["line"])
    points = evidence.points_of(budget.C)
    if points["N"].nunique() < 3:
        return None
    x = np.log(np.geomspace(points["N"].min(), points["N"].max(), samples))
    polynomial = _valley_polynomial(budget, np.log(points["N"].to_numpy()), points["loss"].to_numpy())
    return pd.DataFrame({"N": np.exp(x), "loss": np.polyval(polynomial, x)})


def fit_residuals(evidence: Evidence, fit: Fit) -> pd.DataFrame:
    """Measured over predicted loss, minus one, at every point the fit can predict: N, budget, residual."""
    points = evidence.fitted
    if fit.method == "parametric":
        inputs = find_law(fit.law).inputs
        if fit.verdict or not set(inputs) <= set(points.columns):
            return points.head(0).assign(residual=0.0)
        predicted = fit.predict_loss(*(points[name].to_numpy(float) for name in inputs))
        return points.assign(residual=points["loss"] / predicted - 1)
    if fit.method == "envelope" or fit.diagnostics.get("interpolant") == "akima":  # no curve that could miss a point
        return points.head(0).assign(residual=0.0)
    kept = [_valley_residuals(evidence, fit, budget) for budget in fit.budgets or ()]
    return pd.concat(kept) if kept else points.head(0).assign(residual=0.0)


def _valley_polynomial(budget: Budget, x: Array, loss: Array) -> Array:
    if budget.status != "ok" or budget.N_opt is None or budget.loss_opt is None:
        return np.polyfit(x, loss, 2)
    vertex = np.log(budget.N_opt)
    offset = x - vertex
    curvature = np.sum(offset**2 * (loss - budget.loss_opt)) / np.sum(offset**4)
    return np.array([curvature, -2 * curvature * vertex, curvature * vertex**2 + budget.loss_opt])


def _valley_residuals(evidence: Evidence, fit: Fit, budget: Budget) -> pd.DataFrame:
    points = evidence.points_of(budget.C)
    valley = draw_valley(evidence, fit, budget)
    if valley is None:
        return points.head(0).assign(residual=0.0)
    inside = points[points["N"].between(valley["N"].min() * 0.999, valley["N"].max() * 1.001)]
    predicted = np.interp(np.log(inside["N"]), np.log(valley["N"]), valley["loss"])
    return inside.assign(residual=inside["loss"] / predicted - 1)
