"""One prediction against its measurement.

    loss      L_opt(C) against the measured minimum: the interpolated one where the budget's curve has a
              believable minimum, else the lowest of its cells (which lies above the true minimum)
    N_opt     against the interpolated minimum, where there is one
    loss_at   every held-out cell at its own (N, D), or what else the law takes: parametric only, the others know
              the optimum alone; a law of one variable has this row only, and no compute_error

error = predicted / measured - 1. compute_error is the factor f with L_opt(f C) - L_opt(C) = measured -
predicted: the compute that the error is worth on the fitted frontier; None below its E. Intervals of losses
are those of one future run, since that is what was measured; an interpolated minimum averages several and
varies less. The interval score (Gneiting and Raftery 2007, eq. 43) is taken in logs, so it is relative:

    S = (u - l) + 2/alpha (l - x) [x < l] + 2/alpha (x - u) [x > u],      1 - alpha the confidence
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxscale.backtest.lowest import LowestRuns, extend_lowest
from jaxscale.backtest.splits import Split
from jaxscale.fit.average import Average
from jaxscale.fit.cells import Cells
from jaxscale.fit.readings import read_minima
from jaxscale.fit.result import Budget
from jaxscale.fit.summary import percentile_interval
from jaxscale.forecast import Answer, add_run_noise

__all__ = ["compute_factor", "score_interval", "score_split"]


def score_split(answers: list[Answer], split: Split) -> list[dict[str, Any]]:
    """A row for every answer and target."""
    lowest = extend_lowest(split)
    measured = [(C, inside, _measured_minimum(split.held.take(inside))) for C, inside in split.optima]
    rows = []
    for answer in answers:
        for C, inside, minimum in measured if _knows_optimum(answer) else ():
            rows += _score_optimum(answer, split, C, split.held.take(inside), minimum, lowest)
        if answer.method == "parametric":
            rows += [_score_cell(answer, split, i) for i in range(len(split.held))]
    return rows


def _knows_optimum(answer: Answer) -> bool:
    return isinstance(answer, Average) or answer.has_optimum


def _measured_minimum(part: Cells) -> Budget | None:
    """The interpolated minimum of a budget that was measured; None where there is none to believe."""
    if not len(part.budget_C):
        return None
    minimum = read_minima(part)[0]
    return minimum if minimum.status == "ok" else None


def _score_optimum(
    answer: Answer, split: Split, C: float, part: Cells, minimum: Budget | None, lowest: LowestRuns | None
) -> list[dict[str, Any]]:
    """The frontier's loss, and N_opt where the held-out budget has a believable minimum."""
    predicted, drawn = answer.predict_optimum(C), answer.sample_optimum(C)
    loss = float(part.loss.min()) if minimum is None else minimum.loss_opt
    row = _row(answer, split, C, "loss", predicted.loss, add_run_noise(answer, drawn.loss), loss, lowest)
    row["measured_by"] = f"lowest of {len(part)} sizes" if minimum is None else "interpolated minimum"
    if len(part) == 1:
        row["measured_by"] = "one run"
    rows = [row]
    if minimum is not None:
        rows.append(_row(answer, split, C, "N_opt", predicted.N, drawn.N, minimum.N_opt, lowest))
    return rows


def _score_cell(answer: Answer, split: Split, i: int) -> dict[str, Any]:
    """The loss of one held-out cell at its own N and D."""
    assert not isinstance(answer, Average)
    N, D, held = float(split.held.N[i]), float(split.held.D[i]), split.held
    C = float(held.budget_C[held.budget[i]] if len(held.budget_C) else held.C[i])
    inputs = [float(held.input(name)[i]) for name in answer.law_value().inputs]
    drawn = add_run_noise(answer, answer.sample_loss(*inputs))
    row = _row(answer, split, C, "loss_at", answer.predict_loss(*inputs), drawn, float(held.loss[i]), None)
    return row | {"N": N, "D": D}


def _row(
    answer: Answer, split: Split, C: float, quantity: str, predicted: Any, drawn: np.ndarray, measured: Any,
    lowest: LowestRuns | None,
) -> dict[str, Any]:  # fmt: skip
    low, high = percentile_interval(drawn, answer.confidence)
    known = low is not None and high is not None
    baseline = lowest.predict(quantity, C) if lowest else None
    trained_N, trained_D = split.corner or (None, None)
    in_compute = quantity != "N_opt" and _knows_optimum(answer)
    return {
        "split": split.kind, "method": answer.method, "law": answer.law,
        "trained_to_C": split.trained_to_C, "trained_to_N": trained_N, "trained_to_D": trained_D,
        "target_C": C, "ratio": C / split.trained_to_C, "quantity": quantity, "predicted": float(predicted),
        "interval": [low, high], "measured": float(measured), "error": float(predicted / measured - 1),
        "compute_error": compute_factor(answer.frontier(), C, measured - predicted) if in_compute else None,
        "inside": bool(low <= measured <= high) if known else None,
        "interval_score": score_interval((low, high), measured, answer.confidence),
        "baseline": baseline, "baseline_error": None if baseline is None else float(baseline / measured - 1),
    }  # fmt: skip


def score_interval(interval: tuple[float | None, float | None], measured: float, confidence: float) -> float | None:
    """Interval score in logs: its width, and 2 / alpha times the distance by which the measurement is outside.

    >>> round(score_interval((1.0, np.e), 2.0, 0.95), 9), round(score_interval((1.0, np.e), np.e**1.5, 0.9), 9)
    (1.0, 11.0)
    """
    low, high = interval
    if low is None or high is None or low <= 0:
        return None
    lower, upper, x = np.log(low), np.log(high), np.log(measured)
    return float(upper - lower + 2 / (1 - confidence) * (max(lower - x, 0) + max(x - upper, 0)))


def compute_factor(frontier: Any, C: float, shift: float) -> float | None:
    """f with L_opt(f C) = L_opt(C) + shift on this frontier; None where it never gets that low.

    >>> from jaxscale.laws import LossLaw
    >>> round(compute_factor(LossLaw(E=1.0, A=4.0, alpha=0.5), 16.0, -0.5), 9)  # 1 + 4/16^.5 = 2, 1.5 at 64
    4.0
    """
    factor = float(frontier.compute(float(frontier.loss(C)) + shift)) / C
    return factor if np.isfinite(factor) else None
