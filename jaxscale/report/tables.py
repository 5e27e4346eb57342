"""The report's tables as headings and written cells; what is refused stands above what is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jaxscale.fit.result import Estimate, Fit
from jaxscale.fit.summary import percentile_interval
from jaxscale.format import (
    UNKNOWN,
    format_count,
    format_flops,
    format_interval,
    format_loss,
    format_seconds,
)
from jaxscale.report.evidence import Evidence, records
from jaxscale.runs import Cell, Plan, RunResult

__all__ = [
    "Table",
    "list_dropped",
    "list_plan",
    "list_provenance",
    "list_refused",
    "list_runs",
    "summarize_fits",
]

MAX_ROWS = 400
"""A longer table of runs is cut, and says so: the rest is in the source."""


@dataclass(frozen=True)
class Table:
    """Headings, rows of text, and a note below."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    words: int = 1
    """How many columns on the left hold words; the rest hold numbers."""


def summarize_fits(evidence: Evidence) -> Table:
    """One row a fit: its law, exponents, irreducible loss, noise and how it was resampled."""
    headings = ("fit", "law", "N_opt exponent a", "D_opt exponent b", "E", "points", "resampling")
    rows = [
        (
            name,
            fit.law,
            _estimate(fit, "N"),
            _estimate(fit, "D"),
            _irreducible(fit),
            _points_used(fit),
            _rounds(fit),
        )
        for name, fit in evidence.fits.items()
    ]
    note = "N_opt = G C^a and D_opt = H C^b; under C = 6ND the exponents sum to 1. E: irreducible loss."
    return Table(headings, rows, note, 2)


def list_runs(evidence: Evidence) -> Table:
    """Every measured run, by compute and then size."""
    headings = ("run", "role", "budget C", "N", "D", "D/N", "loss", "std error", "seed", "time", "tokens/s")
    varied = ("variant",) if "variant" in evidence.points else ()
    results = {result.run_id: result for result in evidence.results}
    ordered = records(_sort_runs(evidence.points))
    rows = [
        (*(str(row[name]) for name in varied), *_run_row(row, results.get(row["run_id"]))) for row in ordered[:MAX_ROWS]
    ]
    left = len(ordered) - len(rows)
    note = f"{left} more runs are in the source, and in every fit that uses them." if left else ""
    return Table((*varied, *headings), rows, note, 2 + len(varied))


def _sort_runs(points: pd.DataFrame) -> pd.DataFrame:
    """By budget, then size: exact counts differ within a budget, and would scatter its sizes."""
    compute = points["budget_C"].fillna(points["C"])
    return points.assign(_compute=compute).sort_values(["_compute", "N"], kind="stable").drop(columns="_compute")


def list_refused(evidence: Evidence) -> Table:
    """What was measured or planned and is no evidence, with the reason: runs, rows and unfinished cells."""
    reasons = {_name_refusal(row): ("refused", str(row.get("reason", ""))) for row in evidence.refused}
    for result in evidence.results:
        if result.state != "done":
            reasons[result.run_id] = (result.state, result.reason or reasons.get(result.run_id, ("", ""))[1])
    cells = {cell.run_id: cell for cell in evidence.plan.cells} if evidence.plan else {}
    seen = {*reasons, *(result.run_id for result in evidence.results), *evidence.points["run_id"]}
    reasons |= {run_id: ("planned", "not run yet") for run_id in cells if run_id not in seen}
    rows = [(name, *_cell_words(cells.get(name)), state, reason) for name, (state, reason) in reasons.items()]
    return Table(("run", "budget C", "N", "state", "reason"), rows, words=5)


def list_plan(plan: Plan) -> Table:
    """The grid in one row a budget and role."""
    headings = (
        "budget C",
        "role",
        "runs",
        "sizes N",
        "tokens D",
        "D/N",
        "batch (sequences)",
        "steps",
        "planned time",
    )
    groups: dict[tuple[float, str], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault((cell.spec.budget_flops, cell.role), []).append(cell)
    rows = [_plan_row(C, role, cells) for (C, role), cells in sorted(groups.items())]
    note = (
        f"{len(plan.cells)} runs, {format_flops(plan.total_flops)} FLOPs and "
        f"{format_seconds(plan.total_seconds)} in all on {plan.hardware}."
    )
    return Table(headings, rows, note, 2)


def list_dropped(plan: Plan) -> Table:
    """What the plan left out, and why."""
    rows = [
        (format_flops(one.budget_flops), str(one.d_model), str(one.n_layers), format_count(one.n_params),
         format_count(one.tokens), one.reason)
        for one in plan.dropped
    ]  # fmt: skip
    return Table(("budget C", "d_model", "layers", "N", "tokens D", "reason"), rows, words=6)


def list_provenance(source: dict[str, Any], provenance: dict[str, Any]) -> Table:
    """Where every number came from, nested keys joined by dots."""
    source = {key: value for key, value in source.items() if key not in ("rows_refused", "tuning")}
    rows = [("source." + key, value) for key, value in _flatten(source)] + _flatten(provenance)
    return Table(("what", "value"), rows, words=2)


def _run_row(row: dict[str, Any], result: RunResult | None) -> tuple[str, ...]:
    seed, C = row.get("seed"), row["C"] if pd.isna(row["budget_C"]) else row["budget_C"]
    return (
        str(row["run_id"]), row["role"], format_flops(C), format_count(row["N"]), format_count(row["D"]),
        format_count(row["D"] / row["N"]), format_loss(row["loss"]),
        format_loss(result.loss_std_error if result else None), UNKNOWN if pd.isna(seed) else f"{seed:.0f}",
        format_seconds(result.seconds if result else None),
        format_count(result.tokens_per_s if result else None),
    )  # fmt: skip


def _plan_row(C: float, role: str, cells: list[Cell]) -> tuple[str, ...]:
    specs = [cell.spec for cell in cells]
    return (
        format_flops(C), role, str(len(cells)),
        _span([cell.n_params for cell in cells]), _span([spec.tokens for spec in specs]),
        _span([cell.spec.tokens / cell.n_params for cell in cells]),
        _span([spec.batch_seqs for spec in specs]), _span([spec.steps for spec in specs]),
        format_seconds(sum(cell.seconds for cell in cells)),
    )  # fmt: skip


def _span(values: list[Any]) -> str:
    low, high = format_count(min(values)), format_count(max(values))
    return low if low == high else f"{low} to {high}"


def _name_refusal(row: dict[str, Any]) -> str:
    return str(row["run_id"]) if "run_id" in row else f"row {row.get('row', '')}"


def _cell_words(cell: Cell | None) -> tuple[str, str]:
    return (format_flops(cell.spec.budget_flops), format_count(cell.n_params)) if cell else (UNKNOWN, UNKNOWN)


def _estimate(fit: Fit, key: str) -> str:
    estimate: Estimate | None = (fit.exponents or {}).get(key)
    if estimate is None:
        return UNKNOWN
    interval = format_interval(estimate.interval, lambda end: UNKNOWN if end is None else f"{end:.3f}")
    return f"{estimate.value:.3f} {interval}"


def _rounds(fit: Fit) -> str:
    if not fit.bootstrap or fit.exponents is None:
        return "none"
    return f"{fit.resample}, {fit.bootstrap} draws, {fit.confidence:.0%}"


def _irreducible(fit: Fit) -> str:
    E = (fit.loss_law or {}).get("E", fit.params.get("E"))
    if E == 0:
        return "0 (fixed)"
    known = fit.intervals.get("E")
    if known is None and len(fit.draws.get("E", ())) > 1:
        known = percentile_interval(np.asarray(fit.draws["E"]), fit.confidence)
    interval = format_interval(known)
    return f"{format_loss(E)} {interval}" if interval != UNKNOWN else format_loss(E)


def _points_used(fit: Fit) -> str:
    used = fit.source.get("rows_used")
    if fit.budgets is None:
        return UNKNOWN if used is None else str(used)
    if fit.method == "envelope":
        return f"{len(fit.diagnostics.get('climbs') or ())} changes of size"
    usable = sum(budget.status == "ok" for budget in fit.budgets)
    return f"{usable} of {len(fit.budgets)} minima"


def _flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, item in value.items():
        if isinstance(item, dict):
            rows += _flatten(item, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", item if isinstance(item, str) else json.dumps(item, default=str)))
    return rows
