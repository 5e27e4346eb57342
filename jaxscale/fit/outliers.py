"""How much the answer hangs on its worst points: the fit with and without them.

An outlier is a cell whose residual sqrt(w) |r| lies beyond CUT robust deviations (a normal error does so
once in 2,000) about a robust fit, since squares bend towards their outliers. The k worst are taken out and
the law is fitted again; every parameter's shift is given in units of its own standard error, so that "five
points move B sixfold" is a number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxscale.fit.cells import Cells
from jaxscale.fit.identify import find_obstacle
from jaxscale.fit.optimize import SMALLEST_DELTA, Objective, Optimum, design_for, find_optimum

__all__ = ["find_outliers"]

CUT = 3.5
MOST = 0.2
"""Share of the cells that may be called outliers; more is a wrong law, not bad points."""
TELLING = 1.0
"""Shift in log parameters' standard errors that a reader is told of."""


def find_outliers(cells: Cells, best: Optimum, goal: Objective) -> dict[str, Any]:
    """`worst` cells (N, D, residual, deviations), `params` without them, `shift` in standard errors, `notes`."""
    robust = best if goal.name != "squares" else find_optimum(cells, best.design, Objective("huber", "auto"))
    residual = robust.design.residuals(robust.theta, np.log(cells.loss))
    size = np.sqrt(cells.weight) * np.abs(residual) / robust.scale
    order = np.argsort(-size)
    count = int((size > CUT).sum()) if best.scale > 2 * SMALLEST_DELTA else 0
    found: dict[str, Any] = {"cut": CUT, "count": count, "worst": [], "params": None, "shift": {}, "notes": []}
    if not count:
        return found
    found["worst"] = [
        {"N": float(cells.N[i]), "D": float(cells.D[i]), "loss": float(cells.loss[i]),
         "residual": float(residual[i]), "deviations": float(size[i])} for i in order[:count][:20]
    ]  # fmt: skip
    if count > MOST * len(cells):
        found["notes"].append(f"{count} of {len(cells)} cells lie beyond {CUT:g} robust deviations: the law misses "
                              f"the data, no few points do")  # fmt: skip
        return found
    kept = np.sort(order[count:])
    part = cells.take(kept)
    obstacle = find_obstacle(part, design_for(best.design.law, part, best.design.fixed))
    if obstacle:
        found["notes"].append(f"without the {count} worst cells no fit is possible: {obstacle}")
        return found
    return found | _refit(cells, best, goal, kept)


def _refit(cells: Cells, best: Optimum, goal: Objective, kept: np.ndarray) -> dict[str, Any]:
    part = cells.take(kept)
    near = {name: best.params[name] for name in best.design.free}
    without = find_optimum(part, design_for(best.design.law, part, best.design.fixed), goal, near)
    errors = _standard_errors(cells, best)
    shift = {}
    for name, error in errors.items():
        logs = name in best.design.law.positive
        change = np.log(without.params[name] / best.params[name]) if logs else without.params[name] - best.params[name]
        shift[name] = float(change / error)
    count, (name, most) = len(cells) - len(kept), max(shift.items(), key=lambda item: abs(item[1]))
    words = f"without the {count} worst cells (beyond {CUT:g} robust deviations) "
    if abs(most) > TELLING:
        words += f"{name} is {without.params[name]:.4g} instead of {best.params[name]:.4g}, {abs(most):.2g} std errors"
    else:
        words += "no parameter moves by a standard error"
    return {"params": without.params, "shift": shift, "notes": [words]}


def _standard_errors(cells: Cells, best: Optimum) -> dict[str, float]:
    """Deviation of each free parameter (of its log where positive) by the Jacobian and the robust scale."""
    J = np.sqrt(cells.weight)[:, None] * best.design.jacobian(best.theta)
    covariance = np.linalg.pinv(J.T @ J) * best.scale**2
    back = np.linalg.inv(best.design.uncentre(np.eye(len(best.design.free))))
    spread = np.sqrt(np.diag(back @ covariance @ back.T))
    return dict(zip(best.design.free, (float(value) for value in spread), strict=True))
