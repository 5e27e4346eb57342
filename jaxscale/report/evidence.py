"""What the report is drawn from: measured points with their budget named, the fits, and what ended badly.

Figures, tables and words all read this one value, so that they cannot disagree about which points belong
to which budget or what a fit is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from jaxscale.fit.result import Fit, Fits
from jaxscale.fit.suspect import find_suspicions
from jaxscale.format import format_flops
from jaxscale.runs import Observations, Plan, RunResult
from jaxscale.tuning import say_tuning

__all__ = ["METHOD_NAMES", "Evidence", "HasRows", "collect_evidence", "records"]

MAX_BUDGETS = 12
"""More distinct budgets than this are no IsoFLOP design, unless a fit read minima off them; they are grouped by
decades of compute."""
CLUSTER_SPREAD = 1.05
"""Runs whose FLOPs differ by less than 5% share a budget (ARCHITECTURE.md, Observations)."""
NOMINAL = 0.1
"""A number in the column `budget` within this share of its runs' FLOPs is what they were meant to spend."""
METHOD_NAMES = {"isoflop": "IsoFLOP minima", "parametric": "parametric law", "envelope": "envelope",
                "average": "average of the approaches"}  # fmt: skip


class HasRows(Protocol):
    """A forecast or a backtest: a list of flat records."""

    @property
    def rows(self) -> Sequence[dict[str, Any]]: ...


@dataclass(frozen=True)
class Evidence:
    """One study as the report sees it.

    `points`: N, D, C, loss, run_id, seed, role ("grid" or "holdout"), budget_C (FLOPs, NaN outside an
    IsoFLOP design), budget (its label). `fits` are keyed by the name a reader sees; `declared` is the name of the
    one that stands for the answer, `beforehand` whether someone said so before. Rows of forecast and backtest: the
    one that leads, the average, the others.
    """

    points: pd.DataFrame
    fits: dict[str, Fit]
    forecast: tuple[dict[str, Any], ...]
    backtest: tuple[dict[str, Any], ...]
    refused: tuple[dict[str, Any], ...]
    results: tuple[RunResult, ...]
    plan: Plan | None
    curves: pd.DataFrame | None
    rule: str
    declared: str | None = None
    beforehand: bool = False
    agreement: dict[str, Any] | None = None
    suspicions: tuple[str, ...] = ()
    tuning: dict[str, Any] | None = None
    """What a tuning audit of the study found (jaxscale.tuning), where there is one."""

    @property
    def tuning_words(self) -> list[str]:
        """What the audit flags, a sentence; empty where it flags nothing or there is none."""
        return say_tuning(self.tuning) if self.tuning else []

    @property
    def leader(self) -> str | None:
        """The name whose forecast leads: the declared fit's, or the first that has one."""
        return self.name_row(self.forecast[0]) if self.forecast else None

    def name_row(self, row: dict[str, Any]) -> str:
        """What a reader calls the fit behind a row of a forecast or a backtest."""
        same = [name for name, fit in self.fits.items() if fit.method == row["method"]]
        exact = [name for name in same if self.fits[name].law == row.get("law")]
        return (exact or same or [METHOD_NAMES.get(row["method"], row["method"] or "fit")])[0]

    @property
    def budget_labels(self) -> list[str]:
        """Labels of all budgets, smallest first: the domain of the colour scale in every figure."""
        ordered = self.points.sort_values("C")["budget"]
        return list(dict.fromkeys(ordered))

    @property
    def fitted(self) -> pd.DataFrame:
        """The points that fits may use: all but the held-out ones."""
        return self.points[self.points["role"] != "holdout"]

    @property
    def holdout(self) -> pd.DataFrame:
        """The points kept from the fits."""
        return self.points[self.points["role"] == "holdout"]

    @property
    def largest_fitted_C(self) -> float | None:
        """FLOPs of the largest budget that was fitted; extrapolation starts there."""
        return float(self.fitted["C"].max()) if len(self.fitted) else None

    def points_of(self, C: float) -> pd.DataFrame:
        """Fitted points of the budget nearest to C FLOPs, within 10%."""
        near = np.abs(np.log(self.fitted["budget_C"] / C)) < 0.1
        return self.fitted[near]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a frame as plain dicts."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def collect_evidence(
    observations: Observations,
    fits: Fits | Sequence[Fit],
    forecast: HasRows | Sequence[HasRows] | None,
    backtest: HasRows | None,
    results: Sequence[RunResult],
    plan: Plan | None,
    curves: pd.DataFrame | None,
    declared: str | None = None,
) -> Evidence:
    """Name the budgets and the fits; the declared one leads, whatever the backtest says."""
    named = _name_fits(fits.fits if isinstance(fits, Fits) else fits)
    first = next((fit for fit in named.values() if declared in (fit.method, fit.law)), None)
    first = first or next(iter(named.values()), None)
    leader = next((fit for fit in (first, *named.values()) if fit is not None and fit.has_optimum), first)
    order = _Order(leader, tuple(named.values()))
    return Evidence(
        points=_name_points(observations.frame, planned=any(_has_minima(fit) for fit in named.values())),
        fits=named,
        forecast=tuple(sorted(_forecast_rows(forecast), key=order.place)),
        backtest=tuple(sorted(backtest.rows if backtest is not None else (), key=order.place)),
        refused=observations.refused,
        results=tuple(results),
        plan=plan,
        curves=curves if curves is not None and len(curves) else None,
        rule=observations.rule,
        declared=next((name for name, fit in named.items() if fit is first), None),
        beforehand=declared is not None,
        agreement=fits.agreement if isinstance(fits, Fits) else None,
        suspicions=tuple(find_suspicions(observations)) if len(observations) else (),
        tuning=observations.source.get("tuning"),
    )


@dataclass(frozen=True)
class _Order:
    """The leader, the average beside it, then the other fits as they were given."""

    leader: Fit | None
    fits: tuple[Fit, ...]

    def place(self, row: dict[str, Any]) -> int:
        if row["method"] == "average":
            return 1
        places = [place for place, fit in enumerate(self.fits, start=2) if _is_of(row, fit)]
        is_first = self.leader is not None and _is_of(row, self.leader)
        return 0 if is_first else min(places, default=len(self.fits) + 2)


def _is_of(row: dict[str, Any], fit: Fit) -> bool:
    return bool(fit.method == row["method"] and row.get("law", fit.law) == fit.law)


def _has_minima(fit: Fit) -> bool:
    return fit.method == "isoflop" and any(budget.status == "ok" for budget in fit.budgets or ())


def _name_points(frame: pd.DataFrame, *, planned: bool) -> pd.DataFrame:
    points = frame.reset_index(drop=True).copy()
    if "role" not in points:
        points["role"] = "grid"
    if "run_id" not in points:
        points["run_id"] = [f"row {row}" for row in points.index]
    if "seed" not in points:
        points["seed"] = None
    points["budget_C"] = _find_budgets(points, planned)
    known = points["budget_C"].notna()
    decades = np.floor(np.log10(points["C"]))
    points["budget"] = [
        format_flops(budget) if is_known else f"≥1e{decade:.0f}"
        for budget, is_known, decade in zip(points["budget_C"], known, decades, strict=True)
    ]
    return points


def _find_budgets(points: pd.DataFrame, planned: bool) -> pd.Series:
    """The nominal FLOPs of each point: its `budget`, else the geometric mean of its cluster, else NaN.

    A budget that is a name, or a number far from the FLOPs of its runs, stands for their geometric mean.
    """
    if "budget" in points and points["budget"].notna().all():
        mean = np.exp(np.log(points["C"]).groupby(points["budget"].astype(str)).transform("mean"))
        given = pd.to_numeric(points["budget"], errors="coerce").astype(float)
        budgets = given.where(abs(given / mean - 1) < NOMINAL, mean)
    else:
        C = points["C"].sort_values()
        cluster = (CLUSTER_SPREAD * C.shift() < C).cumsum()
        budgets = np.exp(np.log(C).groupby(cluster).transform("mean")).reindex(points.index)
    too_many = budgets.nunique() > MAX_BUDGETS and not planned
    return budgets.where(~pd.Series(too_many, index=budgets.index))


def _name_fits(fits: Sequence[Fit]) -> dict[str, Fit]:
    names = [METHOD_NAMES[fit.method] for fit in fits]
    return {
        name if names.count(name) == 1 else f"{name}, {fit.law} ({number})": fit
        for number, (name, fit) in enumerate(zip(names, fits, strict=True), start=1)
    }


def _forecast_rows(forecast: HasRows | Sequence[HasRows] | None) -> list[dict[str, Any]]:
    if forecast is None:
        return []
    several = forecast if isinstance(forecast, Sequence) else [forecast]
    return [{"method": _method_of(one), **row} for one in several for row in one.rows]


def _method_of(forecast: HasRows) -> str | None:
    """The method of the fit behind a forecast, where it carries one (as a Fit or as plain data)."""
    fit = getattr(forecast, "fit", None)
    return fit.get("method") if isinstance(fit, dict) else getattr(fit, "method", None)
