"""The best mixture of every budget, by the law of each text and by a parabola, with what each says of left-out runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.fit.summary import check_options, percentile_interval
from jaxscale.mixing.curve import CurveFit, fit_curve, near_lowest
from jaxscale.mixing.laws import LawFit, fit_laws
from jaxscale.mixing.read import Mixtures, read_mixtures
from jaxscale.mixing.result import BudgetMixture, MixtureFit, Reading

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["find_mixture"]

CLOSE = 1.01
"""A method is chosen over the law where its error on left-out mixtures is smaller by more than this factor."""
NEAR_EDGE = 0.02
"""An optimum this close to the end of the shares trained, where that is not the end of all shares, is none."""

Fitted = LawFit | CurveFit
Fitter = Callable[[Mixtures, np.ndarray, int, int], Fitted]


def find_mixture(
    source: pd.DataFrame | str | Path,
    *,
    weights: Mapping[str, float] | None = None,
    where: str | None = None,
    bootstrap: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> MixtureFit:
    """The shares of the training tokens that minimise the loss on texts weighted by `weights`, for every budget.

    `source`: a study folder or table with columns share:NAME and loss:NAME (see mixing/read.py); weights: of the
    texts, default as the validation set has them. A budget needs k + 2 different mixtures of k sources.
    MisuseError: no such columns or text; VerdictError: no usable row.
    """
    check_options(bootstrap=bootstrap, resample="auto", confidence=confidence, seed=seed)
    budgets, chosen, record = read_mixtures(source, weights, where)
    parts = np.array(list(chosen.values()))
    found = tuple(_find_one(data, parts, bootstrap, confidence, seed) for data in budgets)
    return MixtureFit(budgets[0].sources, chosen, found, confidence, bootstrap, seed, record)


def _find_one(data: Mixtures, weights: np.ndarray, bootstrap: int, confidence: float, seed: int) -> BudgetMixture:
    needed = len(data.sources) + 2
    tried, lowest = _best_tried(data, weights)
    common: dict[str, Any] = {"C": data.C, "mixtures": data.count, "points": len(data.w), "tried": tried,
                              "tried_loss": lowest}  # fmt: skip
    if data.count < needed:
        reason = f"{data.count} different mixtures of {len(data.sources)} sources, {needed} are needed"
        return BudgetMixture(status="too_few", reason=reason, chosen="", readings={}, laws={}, **common)
    fitted = fit_laws(data, weights, bootstrap, seed)
    readings = {"law": _read(fitted, data, weights, fit_laws, confidence)}
    if len(data.sources) == 2:
        parabola = fit_curve(data, weights, bootstrap, seed)
        readings["curve"] = _read(parabola, data, weights, fit_curve, confidence)
    law, curve = readings["law"], readings.get("curve")
    better = curve is not None and (curve.held_out or np.inf) * CLOSE < (law.held_out or np.inf)
    chosen = "curve" if better else "law"
    status, reason = _judge(readings[chosen], data)
    return BudgetMixture(status=status, reason=reason, chosen=chosen, readings=readings, laws=fitted.laws(), **common)


def _read(fit: Fitted, data: Mixtures, weights: np.ndarray, fitter: Fitter, confidence: float) -> Reading:
    cells = np.eye(data.cells.shape[1])
    levels = fit.predict(np.tile(fit.best, (len(cells), 1)), cells)
    intervals = {name: percentile_interval(fit.draws[:, j], confidence) for j, name in enumerate(data.sources)}
    return Reading(
        best=dict(zip(data.sources, map(float, fit.best), strict=True)), intervals=intervals, loss=float(levels.min()),
        rms=fit.rms, held_out=_held_out(data, weights, fitter), form=getattr(fit, "form", "exponential"),
        flat=_flat_range(fit, data, float(levels.min()), cells[[int(levels.argmin())]]),
    )  # fmt: skip


def _held_out(data: Mixtures, weights: np.ndarray, fitter: Fitter) -> float | None:
    """Rms error in nats on the mixtures around the lowest, each left out of the fit that foretells it; not on those at
    the ends of the range."""
    low, high = data.range
    errors = []
    for number in np.unique(data.mixture[near_lowest(data, weights)]):
        out = data.mixture == number
        rest = data.take(~out)
        inside = ((data.w[out] > low) & (data.w[out] < high)).all()
        if not inside or rest.count < len(data.sources) + 1 or len(np.unique(rest.cell)) < data.cells.shape[1]:
            continue
        fit = fitter(rest, weights, 0, 0)
        errors.append(data.y[out] @ weights - fit.predict(data.w[out], data.cells[out]))
    return float(np.sqrt((np.concatenate(errors) ** 2).mean())) if errors else None


def _flat_range(fit: Fitted, data: Mixtures, lowest: float, cell: np.ndarray) -> tuple[float, float] | None:
    """Of two sources: the shares of the first, among those trained, that cost less than .1% more than the best."""
    if len(data.sources) != 2:
        return None
    low, high = float(data.w[:, 0].min()), float(data.w[:, 0].max())
    share = np.linspace(low, high, 501)
    if getattr(fit, "form", "") == "logit":
        share = share[(share > 0) & (share < 1)]
    loss = fit.predict(np.stack([share, 1 - share], -1), np.tile(cell, (len(share), 1)))
    good = share[loss <= lowest * 1.001]
    return (float(good.min()), float(good.max())) if len(good) else None


def _judge(reading: Reading, data: Mixtures) -> tuple[str, str]:
    """ok, or edge with the reason: the best lies at or beyond the mixtures trained."""
    low, high = data.range
    for j, name in enumerate(data.sources):
        best = reading.best[name]
        if low[j] > 0 and best < low[j] + NEAR_EDGE * (high[j] - low[j]):
            return "edge", f"the best share of {name} is not above the smallest trained, {low[j]:.3g}; train less of it"
        if high[j] < 1 and best > high[j] - NEAR_EDGE * (high[j] - low[j]):
            return "edge", f"the best share of {name} is not below the largest trained, {high[j]:.3g}; train more of it"
    return "ok", ""


def _best_tried(data: Mixtures, weights: np.ndarray) -> tuple[dict[str, float], float]:
    """The mixture with the lowest loss of all runs (mean over the runs of a cell), and that loss."""
    y = data.y @ weights
    runs = set(zip(data.mixture.tolist(), data.cell.tolist(), strict=True))
    means = {(m, c): y[(data.mixture == m) & (data.cell == c)].mean() for m, c in runs}
    mixture, _ = min(means, key=means.__getitem__)
    w = data.w[data.mixture == mixture][0]
    return dict(zip(data.sources, map(float, w), strict=True)), float(min(means.values()))
