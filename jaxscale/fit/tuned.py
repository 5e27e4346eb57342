"""What a tuning audit of the study adds to a fit: its record, a sentence where it flags, a state a budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jaxscale.fit.result import Budget, Fit
from jaxscale.runs import Observations
from jaxscale.tuning import say_tuning

__all__ = ["annotate_tuning"]

SAME_BUDGET = 0.05
"""A fit's budget is the audited one within this share of C."""


def annotate_tuning(fit: Fit, obs: Observations) -> Fit:
    """The fit with diagnostics["tuning"], the audit's words among its notes, and its budgets marked."""
    record = obs.source.get("tuning")
    if record is None or "tuning" in fit.diagnostics:
        return fit
    found = {**fit.diagnostics, "tuning": record}
    if not fit.verdict:
        found["notes"] = [*say_tuning(record), *fit.notes]
    states = record.get("budgets", ())
    budgets = None if fit.budgets is None else tuple(_mark(budget, states) for budget in fit.budgets)
    return replace(fit, diagnostics=found, budgets=budgets)


def _mark(budget: Budget, states: Any) -> Budget:
    near = [row["state"] for row in states if abs(row["budget"] / budget.C - 1) <= SAME_BUDGET]
    return replace(budget, tuning=near[0]) if near else budget
