"""Would the law have known? Fit on the smaller budgets, predict the larger, report the error.

What is held out: the rows of role "holdout" where there are any, else the largest budget. What is predicted:

    loss      L_opt(C) against the measured minimum of that budget: the interpolated one where its curve has
              a believable minimum, else the lowest of its cells (which lies above the true minimum)
    N_opt     against the interpolated minimum, where there is one
    loss_at   every held-out cell at its own (N, D), parametric only: the others know the optimum alone

error is predicted / measured - 1. compute_error is the factor f with L_opt(f C) - L_opt(C) = measured -
predicted: the compute that the loss error is worth on the fitted frontier; None below its E.
Intervals of losses are those of one future run, since that is what was measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import VerdictError
from jaxscale.fit.cells import Cells, assign_budgets, gather_cells, grid_rows
from jaxscale.fit.readings import read_minima
from jaxscale.fit.result import Budget, Fit, without_nan
from jaxscale.fit.summary import percentile_interval
from jaxscale.fit.together import fit_all
from jaxscale.forecast import add_run_noise
from jaxscale.format import format_factor, format_interval, format_number, format_percent
from jaxscale.runs import Observations
from jaxscale.source import as_observations
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Backtest", "backtest_fit"]

SHOWN = (
    "method",
    "target_C",
    "quantity",
    "predicted",
    "interval",
    "measured",
    "error",
    "compute_error",
    "inside",
)


@dataclass(frozen=True)
class Backtest:
    """Rows: method, law, trained_to_C, target_C, quantity, predicted, interval, measured, error,
    compute_error, inside, and for loss_at the cell's N and D; summary by method and quantity."""

    rows: tuple[dict[str, Any], ...]
    summary: tuple[dict[str, Any], ...]
    schema: str = "jaxscale.backtest/1"

    def to_json(self) -> str:
        """The backtest as JSON, schema jaxscale.backtest/1."""
        plain = {"schema": self.schema, "rows": list(self.rows), "summary": list(self.summary)}
        return json.dumps(without_nan(plain), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a prediction."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def __str__(self) -> str:
        rows = [[_show(name, row[name]) for name in SHOWN] for row in self.rows]
        to = f"{self.rows[0]['trained_to_C']:.3g}" if self.rows else "-"
        parts = [render_table(f"backtest, fitted up to {to} FLOPs", SHOWN, rows)]
        parts += [f"verdict: {row['method']}: {row['verdict']}" for row in self.summary if row.get("verdict")]
        return "\n".join(parts)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite is null
def backtest_fit(
    source: Observations | pd.DataFrame,
    *,
    methods: tuple[str, ...] = ("isoflop", "parametric"),
    **options: Any,
) -> Backtest:
    """Fit without what is held out and predict it; options as for `fit_all`.

    VerdictError where nothing can be held out: no budgets, or only one.
    """
    obs = as_observations(source)
    seen, held = _hold_out(obs)
    fits = fit_all(replace(obs, frame=seen), methods=methods, **options).fits
    cells = gather_cells(held, role="all")
    rows = tuple(row for fit in fits if fit.verdict is None for row in _score_fit(fit, cells))
    silent = [{"method": fit.method, "verdict": fit.verdict} for fit in fits if fit.verdict]
    return Backtest(rows, (*_summarize(rows), *silent))


def _hold_out(obs: Observations) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows to fit and rows to predict."""
    frame = obs.frame
    if "role" in frame and (frame["role"] == "holdout").any():
        return frame[grid_rows(frame)], frame[frame["role"] == "holdout"]
    cells = gather_cells(obs)
    if len(cells.budget_C) < 2:
        what = "one budget only" if len(cells.budget_C) else f"no budgets (C spreads over {cells.spread:.0%})"
        raise VerdictError(f"backtest: {what}, nothing can be held out; give rows of role holdout or 3 budgets")
    grid = frame[grid_rows(frame)]
    number, _ = assign_budgets(grid)
    return grid[number < number.max()], grid[number == number.max()]


def _score_fit(fit: Fit, cells: Cells) -> list[dict[str, Any]]:
    """Rows for every held-out budget (each C on its own where they form none)."""
    rows = []
    for C, inside in _targets(cells):
        part = cells.take(inside)
        rows += _score_optimum(fit, C, part)
        if fit.method == "parametric":
            rows += [_score_cell(fit, C, part, i) for i in range(len(part))]
    return rows


def _targets(cells: Cells) -> list[tuple[float, np.ndarray]]:
    if len(cells.budget_C):
        return [(float(C), np.flatnonzero(cells.budget == b)) for b, C in enumerate(cells.budget_C)]
    return [(float(C), np.array([i])) for i, C in enumerate(cells.C)]


def _score_optimum(fit: Fit, C: float, part: Cells) -> list[dict[str, Any]]:
    """The frontier's loss, and N_opt where the held-out budget has a believable minimum."""
    predicted, drawn = fit.predict_optimum(C), fit.sample_optimum(C)
    minimum = _measured_minimum(part)
    sure = minimum is not None and minimum.status == "ok"
    loss = minimum.loss_opt if minimum and sure else float(part.loss.min())
    rows = [_row(fit, C, "loss", predicted.loss, add_run_noise(fit, drawn.loss), loss)]
    rows[0]["measured_by"] = "interpolated minimum" if sure else f"lowest of {len(part)} sizes"
    if minimum and sure:
        rows.append(_row(fit, C, "N_opt", predicted.N, drawn.N, minimum.N_opt))
    return rows


def _measured_minimum(part: Cells) -> Budget | None:
    return read_minima(part)[0] if len(part.budget_C) else None


def _score_cell(fit: Fit, C: float, part: Cells, i: int) -> dict[str, Any]:
    """The loss of one held-out cell at its own N and D."""
    N, D = float(part.N[i]), float(part.D[i])
    drawn = add_run_noise(fit, fit.sample_loss(N, D))
    return _row(fit, C, "loss_at", fit.predict_loss(N, D), drawn, float(part.loss[i])) | {"N": N, "D": D}


def _row(fit: Fit, C: float, quantity: str, predicted: Any, drawn: np.ndarray, measured: Any) -> dict[str, Any]:
    low, high = percentile_interval(drawn, fit.confidence)
    inside = None if low is None or high is None else bool(low <= measured <= high)
    factor = None if quantity == "N_opt" else _compute_factor(fit, C, measured - predicted)
    return {
        "method": fit.method, "law": fit.law, "trained_to_C": fit.diagnostics["largest_C"], "target_C": C,
        "quantity": quantity, "predicted": float(predicted), "interval": [low, high],
        "measured": float(measured), "error": float(predicted / measured - 1), "compute_error": factor,
        "inside": inside,
    }  # fmt: skip


def _compute_factor(fit: Fit, C: float, shift: float) -> float | None:
    """f with L_opt(f C) = L_opt(C) + shift; None where the frontier never gets that low."""
    frontier = fit.frontier()
    factor = float(frontier.compute(frontier.loss(C) + shift)) / C
    return factor if np.isfinite(factor) else None


def _summarize(rows: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    summary = []
    for method, quantity in dict.fromkeys((row["method"], row["quantity"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["quantity"]) == (method, quantity)]
        errors = np.array([row["error"] for row in mine])
        hits = [row["inside"] for row in mine if row["inside"] is not None]
        summary.append({
            "method": method, "quantity": quantity, "count": len(mine), "bias": float(errors.mean()),
            "rms_error": float(np.sqrt((errors**2).mean())), "inside": sum(hits) if hits else None,
        })  # fmt: skip
    return summary


def _show(name: str, value: Any) -> Any:
    if name == "interval":
        return format_interval(value, format_number)
    if name in ("error", "compute_error"):
        return format_percent(value) if name == "error" else format_factor(value)
    return {True: "yes", False: "no"}.get(value, value) if name == "inside" else value
