"""How far the differences of the past were foretold: the largest budgets left out, and predicted from the rest.

The error is that of the difference in log loss between two variants; per decade of extrapolation it is what a target
far beyond the runs should be read with.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from jaxscale.compare.answers import summarize
from jaxscale.compare.draws import draw_laws
from jaxscale.compare.points import Points
from jaxscale.errors import VerdictError

__all__ = ["backtest_differences", "error_per_decade"]

FEWEST = 2
"""Budgets that a variant keeps."""
ROUNDS = 500
MOST = 3


def backtest_differences(points: Points, confidence: float, seed: int) -> list[dict[str, Any]]:
    """A row a pair, a number of budgets left out, and a budget predicted: predicted, interval, measured, error."""
    rows: list[dict[str, Any]] = []
    budgets = np.unique(points.budget)
    for out in range(1, min(MOST, len(budgets) - FEWEST) + 1):
        kept = np.isin(points.budget, budgets[:-out])
        if np.bincount(points.member[kept], minlength=len(points.names)).min() < FEWEST:
            break
        try:
            draws = draw_laws(points.take(kept), ROUNDS, seed)
        except VerdictError:
            break
        top = float(points.log_x[kept].max())
        for budget in budgets[-out:]:
            rows += _predict(points, draws, budget, top, confidence, out)
    return rows


def _predict(points: Points, draws: Any, budget: int, top: float, confidence: float, out: int) -> list[dict[str, Any]]:
    at = {int(points.member[i]): i for i in np.flatnonzero(points.budget == budget)}
    rows = []
    for a, b in combinations(sorted(at), 2):
        x = np.array([points.log_x[at[a]], points.log_x[at[b]]])
        one, two = (draws.loss(x[k])[:, v] for k, v in enumerate((a, b)))
        predicted, interval = summarize(np.log(two / one), confidence)
        measured = float(points.y[at[b]] - points.y[at[a]])
        assert predicted is not None and interval[0] is not None and interval[1] is not None
        known = points.dof >= 1
        C = points.cov
        noise = float(np.sqrt(C[at[a], at[a]] + C[at[b], at[b]] - 2 * C[at[a], at[b]])) if known else None
        rows.append({
            "a": points.names[a], "b": points.names[b], "left_out": out, "trained_to": float(np.exp(top)),
            "x": float(np.exp(x.mean())), "decades": float((x.mean() - top) / np.log(10)), "predicted": predicted,
            "interval": interval, "measured": measured, "error": predicted - measured, "noise": noise,
            "right": bool(np.sign(predicted) == np.sign(measured)),
        })  # fmt: skip
    return rows


def error_per_decade(rows: list[dict[str, Any]]) -> float | None:
    """Root mean square error of log-loss differences for every decade beyond the budgets fitted; None without rows."""
    if not rows:
        return None
    error, decades = np.array([[row["error"], row["decades"]] for row in rows]).T
    return float(np.sqrt((error**2).mean()) / decades.mean())
