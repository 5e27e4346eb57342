"""Constrained plans of a fit that knows the optimum of each C and the curvature about it, as isoflop's.

Along the line of constant C a cap on parameters or tokens moves the size to the cap; the loss there is the
parabola's (flatness.py). Whatever leaves FLOPs unspent, or trades them for serving, needs a surface.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxscale.allocate import Limits
from jaxscale.constrain.cases import binding_caps, list_cases, make_row
from jaxscale.errors import VerdictError
from jaxscale.fit.result import Fit
from jaxscale.flatness import Valley, measured_valley, say_beyond
from jaxscale.laws import FlopRule, Optimum

__all__ = ["plan_line", "refuse_line"]

BEYOND = ("loss", "unique_tokens", "served_tokens")


def refuse_line(fit: Fit, asked: Mapping[str, float]) -> str:
    """Why the fit cannot answer; empty where it can."""
    beyond = [name for name in BEYOND if name in asked]
    if not beyond:
        return ""
    verb = "need" if len(beyond) > 1 else "needs"
    return (f"{fit.method} fit: {', '.join(beyond)} {verb} the loss at any N and D, which it does not have; "
            "fit with --method parametric")  # fmt: skip


def plan_line(fit: Fit, asked: Mapping[str, float]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of every case, and what to know of them."""
    valley, notes = measured_valley(fit)
    flops = asked["flops"]
    free = valley.best(flops)
    rounds = max((len(values) for values in fit.draws.values()), default=0)
    rows = []
    for case in list_cases(asked):
        C = min(flops, case.limits.max_train_flops)
        low, high = _bounds(case.limits, C, fit.rule)
        if low > high:
            raise VerdictError(f"{fit.method} fit: {case.name} leaves FLOPs unspent at {C:.3g}, where only a surface "
                               "knows the loss; fit with --method parametric")  # fmt: skip
        numbers = _numbers(valley, free, np.clip(valley.best(C).N, low, high), C, flops)
        samples = {"N": np.clip(fit.sample_optimum(C).N, low, high)} if rounds > 1 else {}
        binds = binding_caps(case, float(numbers["N"]), float(numbers["D"]), C)
        rows.append(make_row(fit, case, numbers, samples, binds, asked))
        notes += say_beyond(fit, case.name, [float(numbers["N"] / valley.best(C).N)])
    return rows, notes


def _bounds(limits: Limits, C: float, rule: FlopRule) -> tuple[float, float]:
    """Smallest and largest size on the line of C."""
    low = float(rule.params(C, limits.max_tokens)) if np.isfinite(limits.max_tokens) else 0.0
    return low, limits.max_params


def _numbers(valley: Valley, free: Optimum, N: Any, C: float, flops: float) -> dict[str, Any]:
    loss = valley.across(C, np.log(N / valley.best(C).N))
    return {"N": N, "D": valley.rule.tokens(C, N), "loss": loss, "C_train": C, "C_lifetime": C,
            "loss_cost": loss - free.loss, "compute_factor": flops / valley.compute(loss),
            "lifetime_factor": C / flops}  # fmt: skip
