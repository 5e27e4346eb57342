"""When nothing can be forecast, and why: a sentence for a task instead of a number.

    too few runs; NLL that does not fall with compute; accuracy at chance throughout, or flat; accuracy that does not
    rise as the NLL falls

An accuracy is told from chance by two binomial deviations of its questions, or by a slope against log C of four of its
own deviations (runs answer the same questions, so that they differ by less than the questions alone allow); a slope
that is to move at all needs two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxscale.downstream.points import Pairs, Run
from jaxscale.downstream.recipe import Recipe

__all__ = ["find_verdict"]

DEVIATIONS = 2.0
CLEAR, MOVING = 4.0, 2.0
"""Deviations of the slope of accuracy: beyond doubt, and at all."""


def find_verdict(runs: Sequence[Run], pairs: Pairs, recipe: Recipe, chance: float, items: float) -> str | None:
    """Why this task cannot be forecast, or None."""
    if len(runs) < recipe.fewest:
        return (f"{len(runs)} runs are fewer than the {recipe.fewest} that recipe {recipe.name} needs; train more "
                f"sizes, or token counts")  # fmt: skip
    if len({run.C for run in runs}) < 3:
        return "the runs spent fewer than three different computes; train runs over a decade of compute or more"
    return _at_chance(runs, chance, items) or _nll_level(runs) or _unrelated(pairs)


def _at_chance(runs: Sequence[Run], chance: float, items: float) -> str | None:
    accuracy = np.array([run.accuracy for run in runs])
    slope, error = _slope(np.log([run.C for run in runs]), accuracy)
    third = max(1, len(runs) // 3)
    largest, smallest = accuracy[-third:].mean(), accuracy[:third].mean()
    noise = DEVIATIONS * np.sqrt(max(largest * (1 - largest), 1e-6) / items)
    if largest - chance < noise and slope < CLEAR * error:
        return (f"at chance throughout: accuracy of the largest runs is {largest:.3f}, chance is {chance:.3f}, and "
                f"{items:g} questions tell no less than {noise:.3f}; nothing can be forecast until runs leave "
                f"chance")  # fmt: skip
    if slope < MOVING * error:
        return (f"accuracy does not move with compute: {smallest:.3f} for the smallest runs, {largest:.3f} for the "
                f"largest (slope {slope:+.2g} +- {error:.2g} a factor e); nothing can be forecast from it")  # fmt: skip
    return None


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of y on x by least squares, and its deviation."""
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    left = y - y.mean() - slope * x
    return slope, float(np.sqrt(left @ left / max(len(x) - 2, 1) / (x @ x)))


def _nll_level(runs: Sequence[Run]) -> str | None:
    slope, error = _slope(np.log([run.C for run in runs]), np.log([run.nll for run in runs]))
    if slope < 0 and -slope >= DEVIATIONS * error:
        return None
    word = "rises" if slope > 0 else "does not fall"
    return (f"stage 1 is not monotone: NLL {word} with compute (slope {slope:+.2g} +- {error:.2g} in logs); check "
            f"the runs, the unit and the order of checkpoints")  # fmt: skip


def _unrelated(pairs: Pairs) -> str | None:
    if np.ptp(pairs.x) == 0 or np.corrcoef(pairs.x, pairs.y)[0, 1] >= 0:
        return "accuracy does not rise as the NLL falls; stage 2 has no curve to fit, check both columns"
    return None
