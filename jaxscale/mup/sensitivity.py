"""What mistuned arms do to the exponents: a closed form, and the study refitted at the best rates found.

Near its minimum a budget's log loss is r (t/T)^2 with t = log(N / N_opt), T the log of the grid's spread and r the
rise at the arms. Let one arm be mistuned by delta, growing linearly from 0 at the minimum to delta at the end. Least
squares over sizes symmetric about the minimum gives the parabola a slope of delta / (2 T) there, so to first order

    |shift of log N_opt| = delta T / (4 r)          away from the mistuned arm
    |shift of a|         = delta T / (4 r R)        where that is the smallest or the largest of two or three budgets
                                                    evenly spaced over R = log(C_max / C_min)

A tolerance of .3% with arms 5% above the minimum at a spread of 6 moves N_opt by 2.7%, and a by .012 over one decade
of compute, .006 over two: about .01 is what we are ready to lose to tuning, hence the default of .3%. A rate that is
wrong by the same share of the loss in all arms and budgets moves neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxscale.fit.isoflop import fit_isoflop
from jaxscale.fit.result import Fit
from jaxscale.runs import Observations

__all__ = ["Correction", "refit_at_best", "shift_exponent"]

BEYOND = 10.0
"""The forecast compared is at this many times the largest budget."""
REDRAWS = 40
"""Refits with gains redrawn under the noise: a standard error needs no more."""

Correction = tuple[float, Sequence[float], Sequence[float]]
"""A budget, the log N of its audited cells (rising), and their gains as shares of the loss."""


def shift_exponent(delta: float, rise: float, spread: float, range_C: float) -> float:
    """|Shift of a| for one arm of an outer budget mistuned by `delta` of the loss; see the module's equation.

    >>> round(shift_exponent(0.003, rise=0.05, spread=6.0, range_C=10.0), 4)
    0.0117
    """
    return delta * math.log(spread) / (4 * rise * math.log(range_C))


def refit_at_best(obs: Observations, corrections: Sequence[Correction], draws: Sequence[np.ndarray]) -> dict[str, Any]:
    """a, b and the forecast at 10x before and after every loss is lowered by the gain of its size.

    Gains are interpolated in log N between a budget's audited cells. `draws`: for each correction gains
    (rounds, cells) under the noise; the deviation of a's shift over them is `shift_std_error`.
    """
    before, after = fit_isoflop(obs, bootstrap=0), fit_isoflop(_lower(obs, corrections), bootstrap=0)
    record: dict[str, Any] = {}
    for name, fit in (("before", before), ("after", after)):
        record |= {f"{key}_{name}": value for key, value in _describe(fit).items()}
    if before.verdict or after.verdict:
        return record
    shifts = []
    for i in range(min([REDRAWS, *(len(one) for one in draws)])):
        drawn = [(C, x, draw[i].tolist()) for (C, x, _), draw in zip(corrections, draws, strict=True)]
        again = fit_isoflop(_lower(obs, drawn), bootstrap=0)
        if again.verdict is None:
            shifts.append(again.params["a"] - before.params["a"])
    record["shift_std_error"] = float(np.std(shifts)) if len(shifts) > 1 else None
    return record


def _describe(fit: Fit) -> dict[str, Any]:
    if fit.verdict:
        return {"verdict": fit.verdict, "a": None, "b": None}
    C = BEYOND * fit.diagnostics["largest_C"]
    best = fit.predict_optimum(C)
    values: Mapping[str, Any] = {"C": C, "N_opt": best.N, "D_opt": best.D, "loss": best.loss}
    return {"a": fit.params["a"], "b": fit.params["b"], **{name: float(value) for name, value in values.items()}}


def _lower(obs: Observations, corrections: Sequence[Correction]) -> Observations:
    frame = obs.frame.copy()
    for budget, x, gains in corrections:
        here = (frame["budget"].astype(float) / budget - 1).abs() < 1e-6
        gain = np.interp(np.log(frame.loc[here, "N"].to_numpy(float)), x, gains)
        frame.loc[here, "loss"] = frame.loc[here, "loss"] * np.exp(-gain)
    return replace(obs, frame=frame, source={k: v for k, v in obs.source.items() if k != "tuning"})
