"""How many sizes around the lowest a parabola may see (interpolant parabola, window auto).

A window that is too narrow wastes evidence; one that is too wide lets the curve's asymmetry move the
minimum (on Porian et al.'s data a full-range parabola biases the exponent by up to .4). The rule:

    Of the windows all sizes, ..., 9, 7, 5: the widest one on which cubic and quartic terms, pooled over the
    budgets, are not detectable (F test at 5% against what they leave and the noise between seeds).
    If even five sizes reject the parabola, five: the noise is then below the parabola's bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxscale.fit.minima import Curve, parabola_hat
from jaxscale.fit.resample import f_tail

__all__ = ["candidate_windows", "choose_window"]

SIGNIFICANCE = 0.05
NARROWEST = 5


def candidate_windows(curves: Sequence[Curve]) -> list[int]:
    """All sizes, then odd counts down to 5.

    >>> class Seven: x = range(8)
    >>> candidate_windows([Seven()])
    [8, 7, 5]
    """
    most = max(len(curve.x) for curve in curves)
    return sorted({max(most, NARROWEST), *range(NARROWEST, most, 2)}, reverse=True)


def choose_window(
    curves: Sequence[Curve], seed_ss: float, seed_dof: float, mean_loss: float
) -> tuple[int | None, list[dict[str, float]]]:
    """The window's size, None where every one is rejected, and the p value of each window tried.

    `seed_ss` is the sum of squares of log loss between seeds, brought to nats by `mean_loss`.
    """
    tried = []
    for size in candidate_windows(curves):
        p = _misfit_p([(curve, curve.window(size)) for curve in curves], seed_ss * mean_loss**2, seed_dof)
        tried.append({"window": size, "p_value": p})
        if p >= SIGNIFICANCE:
            return size, tried
    return None, tried


def _misfit_p(windows: list[tuple[Curve, slice]], seed_ss: float, seed_dof: float) -> float:
    """P value of cubic and (where a degree of freedom is left) quartic terms over all budgets."""
    gained, left, terms, dof = 0.0, seed_ss, 0, seed_dof
    for curve, window in windows:
        x, y, w = curve.x[window], curve.loss[window], curve.weight[window]
        degree = min(4, len(x) - 2)
        if degree < 3:
            continue
        parabola, richer = (_weighted_ss(x, y, w, d) for d in (2, degree))
        gained, left = gained + parabola - richer, left + richer
        terms, dof = terms + degree - 2, dof + len(x) - degree - 1
    if not terms:
        return 1.0
    tiny = 1e-20 * float(sum((curve.loss**2).sum() for curve, _ in windows))
    return f_tail(max(gained - tiny, 0.0) / terms / (max(left, tiny) / dof), terms, dof)


def _weighted_ss(x: np.ndarray, y: np.ndarray, w: np.ndarray, degree: int) -> float:
    residual = y - parabola_hat(x, w, degree) @ y
    return float((w * residual**2).sum())
