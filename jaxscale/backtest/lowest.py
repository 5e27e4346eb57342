"""What one would do without a fitted law: extend the envelope of the runs at hand.

    log L = log A - alpha log C,   log N = log G + a log C        least squares through the lowest runs

The lowest run of every training budget; without budgets every run. In both cases only those that none of less
or equal compute beats: what a person would call the envelope. No irreducible loss, no interpolated minimum.
Skill is measured against it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxscale.backtest.splits import Split, frontier_of
from jaxscale.fit.cells import Cells
from jaxscale.fit.frontier import fit_lines
from jaxscale.laws import PowerLaw

__all__ = ["LowestRuns", "extend_cells", "extend_lowest"]


@dataclass(frozen=True)
class LowestRuns:
    """Loss and N as pure power laws of C."""

    loss: PowerLaw
    N: PowerLaw

    def predict(self, quantity: str, C: float) -> float | None:
        """loss or N_opt at C FLOPs; None for what it does not know, the loss off the optimum."""
        law = {"loss": self.loss, "N_opt": self.N}.get(quantity)
        return None if law is None else float(law.at(C))


def extend_lowest(split: Split) -> LowestRuns | None:
    """The baseline of a split; None with fewer than two lowest runs, and for a corner, which has no envelope."""
    return None if split.corner else extend_cells(split.trained)


def extend_cells(cells: Cells) -> LowestRuns | None:
    """The power laws through the lowest runs of these cells; None with fewer than two of them."""
    lowest = np.arange(len(cells))
    if len(cells.budget_C):
        inside = [np.flatnonzero(cells.budget == b) for b in range(len(cells.budget_C))]
        lowest = np.array([rows[np.argmin(cells.loss[rows])] for rows in inside])
    lowest = lowest[frontier_of(cells.take(lowest))]
    if len(lowest) < 2:
        return None
    log_C = np.log(cells.C[lowest])
    laws = []
    for values in (cells.loss, cells.N):
        slope, intercept = fit_lines(log_C, np.log(values[lowest])[None])
        laws.append(PowerLaw(A=np.exp(intercept[0]), a=slope[0]))
    return LowestRuns(*laws)
