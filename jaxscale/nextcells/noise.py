"""What repeats can and cannot show: the noise of a run by compute, and the error that the runs of a cell share.

    Var(mean of n runs of a cell) = sigma^2(C) (share + (1 - share) / n),    log sigma = log sigma_0 + k log(C / C_0)

Two sums of squares speak for a budget (a one-way layout with random cells, Searle, Casella and McCulloch 1992, ch. 3):
between the runs of a cell, with expectation s^2 a degree of freedom, and of the cells about their curve, with
s^2 (1 + n kappa), share = kappa / (1 + kappa). Without repeats kappa is not seen at all, and that it is 0 would be the
boldest guess: share has a prior, Beta(1, 4), mean 1/5, and its posterior mean is used. The same prior stands for the
law through the minima: what their noise could have hidden is not taken for absent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from jaxscale.errors import VerdictError
from jaxscale.fit.cells import Cells
from jaxscale.fit.curves import choose_reading, model_noise, split_curves, weigh_curves
from jaxscale.format import format_flops

__all__ = ["RunNoise", "estimate_noise", "information", "law_misfit"]

PRIOR_POWER = 3.0
"""Assumption: the share of error that repeats do not average away has the density 4 (1 - share)^3 beforehand."""
SLOPE_STD = 0.3
"""Assumption: k is 0 +- .3 beforehand; on text small models show -.3 (1% between seeds at 3e10 FLOPs, .3% at 1e12)."""
ENOUGH_DOF, ENOUGH_BUDGETS = 12.0, 3
"""Degrees of freedom, and budgets that have any, from which on a slope is estimated; else noise is taken equal."""
SHARES = (np.arange(60) + 0.5) / 60 * 0.98
SLOPES = np.linspace(-1.0, 1.0, 81)


@dataclass(frozen=True)
class RunNoise:
    """`sigma` (budgets,) deviation of a run's log loss about its curve at `budget_C`, flat beyond; `share` of it that
    a cell's runs have in common; `slope` d log sigma / d log C, None where not estimated; the two degrees of freedom.
    """

    budget_C: np.ndarray
    sigma: np.ndarray
    share: float
    slope: float | None
    seed_dof: float
    curve_dof: float

    def variance(self, C: np.ndarray) -> np.ndarray:
        """Of the log loss of a first run at C FLOPs, held at the ends of what was measured."""
        return np.asarray(np.exp(2 * np.interp(np.log(C), np.log(self.budget_C), np.log(self.sigma))))

    @property
    def words(self) -> tuple[str, ...]:
        """Which noise was used, and what of it repeats cannot average away."""
        dof = f"{self.seed_dof:.0f} degrees of freedom between seeds and {self.curve_dof:.0f} about the curves"
        low, high = (format_flops(C) for C in (self.budget_C[0], self.budget_C[-1]))
        level = (
            f"noise of a run {self.sigma[0]:.2g} of the loss, taken equal at every budget: {dof} are too few to "
            f"see it change with compute"
            if self.slope is None
            else f"noise of a run {self.sigma[0]:.2g} of the loss at {low} FLOPs, {self.sigma[-1]:.2g} at {high} and "
            f"beyond (C^{self.slope:.2f}, from {dof})"
        )
        source = "no repeats, so an assumption" if self.seed_dof < 1 else "estimated, from an assumed 20%"
        return level, f"{self.share:.0%} of its variance is taken as shared by all runs of a cell ({source})"


def information(variance: np.ndarray, share: float, runs: np.ndarray) -> np.ndarray:
    """Inverse variance of the mean of `runs` (n,) at each cell; 0 without runs.

    >>> information(np.array([1.0, 1.0]), 0.2, np.array([1.0, 1e9])).round(3).tolist()
    [1.0, 5.0]
    """
    return np.asarray(runs / (variance * (share * runs + 1 - share)))


def estimate_noise(cells: Cells) -> RunNoise:
    """Noise and share from the spread of seeds and of the cells about their curves; VerdictError without either."""
    between, about, seed_dof, curve_dof = _sum_squares(cells)
    dof, x = seed_dof + curve_dof, np.log(cells.budget_C) - np.log(cells.budget_C).mean()
    if dof.sum() < 1 or not (between + about).sum() > 0:
        raise VerdictError("no noise estimate, so that no run has a known gain; train a second seed of some cells "
                           "(grid.seeds), or more sizes than a curve has coefficients")  # fmt: skip
    runs = np.array([(cells.seed_dof[cells.budget == b] + 1).mean() for b in range(len(x))])
    enough = dof.sum() >= ENOUGH_DOF and (dof > 0).sum() >= ENOUGH_BUDGETS
    k = SLOPES[:, None, None] if enough else np.zeros((1, 1, 1))
    swell = 1 + runs * (SHARES / (1 - SHARES))[:, None]
    left = ((between + about / swell) * np.exp(-2 * k * x)).sum(-1)
    height = dof.sum() * np.log(left) + (2 * k * x * dof + curve_dof * np.log(swell)).sum(-1)
    height = height + (k[..., 0] / SLOPE_STD) ** 2 - 2 * PRIOR_POWER * np.log(1 - SHARES)
    weight = np.exp((height.min() - height) / 2)
    weight /= weight.sum()
    slope, share = float((weight.sum(1) * k[:, 0, 0]).sum()), float(weight.sum(0) @ SHARES)
    about = about / (1 + runs * share / (1 - share))
    level = ((between + about) * np.exp(-2 * slope * x)).sum() / dof.sum() / (1 - share)
    return RunNoise(cells.budget_C, np.sqrt(level) * np.exp(slope * x), share, slope if enough else None,
                    float(seed_dof.sum()), float(curve_dof.sum()))  # fmt: skip


def _sum_squares(cells: Cells) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Squares between seeds and about the curves, a budget, and the degrees of freedom of both (budgets,).

    Where seeds repeat, every miss of a curve counts in full: misfit that a fit sets aside is shared by a cell's runs.
    """
    curves = split_curves(cells)
    reading = choose_reading(curves, cells, "auto", "auto")
    if reading.shape is not None and cells.seed_dof.any():
        reading = replace(reading, shape=replace(reading.shape, rho=0.0, kappa=0.0))
    model, _ = model_noise(weigh_curves(curves, reading), cells, reading)
    about = np.bincount(model.stratum, model.weight * model.residual**2, len(model.dof))
    return model.seed_ss, np.where(model.dof > 0, about, 0.0), model.seed_dof, model.dof


def law_misfit(chi2: float, dof: int) -> float:
    """Variance of the law's own error over that of a minimum, from their chi^2 about it; the prior's where dof is 0.

    >>> round(law_misfit(0.0, 0), 2), round(law_misfit(20.0, 20), 2), round(law_misfit(80.0, 20), 2)
    (0.25, 0.16, 1.86)
    """
    swell = 1 / (1 - SHARES)
    height = dof * np.log(swell) + chi2 / swell - 2 * PRIOR_POWER * np.log(1 - SHARES)
    weight = np.exp((height.min() - height) / 2)
    share = float(weight @ SHARES / weight.sum())
    return share / (1 - share)
