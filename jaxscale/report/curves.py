"""The lines that figures draw, computed from a Fit alone: valleys, power laws, bands, residuals, iso-loss.

    valley    L(N | C) = L_opt + c log(N / N_opt)^2        one IsoFLOP budget (Hoffmann et al., approach 2)
    surface   L(N, D)  = E + A / N^alpha + B / D^beta      the Chinchilla law (approach 3)
    optimum   N_opt(C) = [alpha A / (p beta B) (C/k)^beta]^(1/(alpha + p beta)),  D_opt = C / (k N_opt^p)

The optimum is the surface's closed form under C = k N^p D, where k = 6 and p = 1 unless the fit measured
them (diagnostics["flops"]). Bands are percentiles over the bootstrap draws at each C, at the fit's own
confidence.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jaxscale.fit.result import Budget, Fit
from jaxscale.report.evidence import Evidence

__all__ = [
    "Band",
    "band_at",
    "draw_valley",
    "fit_residuals",
    "has_surface",
    "iso_loss",
    "loss_at",
    "optimum_at",
]

Array = NDArray[np.float64]
Band = tuple[Array, Array]
Quantity = Literal["N", "D", "loss"]
SURFACE = ("E", "A", "B", "alpha", "beta")
LAW_DRAWS = {"N": ("G", "a"), "D": ("H", "b"), "loss": ("E", "A", "alpha")}
"""Names of the bootstrap draws behind N_opt = G C^a, D_opt = H C^b and L_opt = E + A / C^alpha."""


def has_surface(fit: Fit) -> bool:
    """Whether the fit is a Chinchilla law, whose loss is known at every (N, D)."""
    return set(fit.params) == set(SURFACE)


def loss_at(params: dict[str, Any], N: Any, D: Any) -> Any:
    """E + A / N^alpha + B / D^beta; parameters may be numbers or columns of draws."""
    return params["E"] + params["A"] / N ** params["alpha"] + params["B"] / D ** params["beta"]


def optimum_at(fit: Fit, quantity: Quantity, C: Array) -> Array | None:
    """N_opt, D_opt or the loss at the optimum over training FLOPs C; None where the fit has none."""
    if quantity == "loss":
        if fit.loss_law is not None:
            return _saturating(fit.loss_law, C)
    elif fit.coefficients is not None and fit.exponents is not None:
        return fit.coefficients[quantity].value * C ** fit.exponents[quantity].value
    return _surface_optimum(fit, fit.params, quantity, C) if has_surface(fit) else None


def band_at(fit: Fit, quantity: Quantity, C: Array) -> Band | None:
    """The fit's interval around `optimum_at`, point by point; None where it was not bootstrapped."""
    names = SURFACE if has_surface(fit) else LAW_DRAWS[quantity]
    draws = _draws(fit, names)
    if not draws:
        return None
    if has_surface(fit):
        values = _surface_optimum(fit, draws, quantity, C)
    elif quantity == "loss":
        values = _saturating(draws, C)
    else:
        values = draws[names[0]] * C ** draws[names[1]]
    tail = (1 - fit.confidence) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail], axis=0)
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
    if has_surface(fit):
        predicted = loss_at(fit.params, points["N"], points["D"])
        return points.assign(residual=points["loss"] / predicted - 1)
    if fit.diagnostics.get("interpolant") == "akima":  # passes through its points: residuals say nothing
        return points.head(0).assign(residual=0.0)
    kept = [_valley_residuals(evidence, fit, budget) for budget in fit.budgets or ()]
    return pd.concat(kept) if kept else points.head(0).assign(residual=0.0)


def iso_loss(params: dict[str, float], loss: float, N: Array) -> Array:
    """Tokens D that give `loss` at each N, NaN where no amount of data does: the contour, solved exactly."""
    left = loss - params["E"] - params["A"] / N ** params["alpha"]
    reachable = np.where(left > 0, left, np.nan)
    tokens: Array = (params["B"] / reachable) ** (1 / params["beta"])
    return tokens


def _surface_optimum(fit: Fit, params: dict[str, Any], quantity: Quantity, C: Array) -> Array:
    rule = fit.diagnostics.get("flops") or {"k": 6.0, "p": 1.0}
    k, p, alpha, beta = rule["k"], rule["p"], params["alpha"], params["beta"]
    G = (alpha * params["A"] / (p * beta * params["B"])) ** (1 / (alpha + p * beta))
    N = G * (C / k) ** (beta / (alpha + p * beta))
    D = C / (k * N**p)
    chosen: Array = {"N": N, "D": D}[quantity] if quantity != "loss" else loss_at(params, N, D)
    return chosen


def _saturating(law: dict[str, Any], C: Array) -> Array:
    value: Array = law["E"] + law["A"] / C ** law["alpha"]
    return value


def _draws(fit: Fit, names: tuple[str, ...]) -> dict[str, Array]:
    """Bootstrap draws as columns (draw, 1), or empty when a name is missing."""
    if not all(fit.draws.get(name) for name in names):
        return {}
    return {name: np.array(fit.draws[name], dtype=float)[:, None] for name in names}


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
