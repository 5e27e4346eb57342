"""Own horizons: a curve of loss against compute for each size, through the ends of its runs.

    power   L = E_k + B_k / C^beta   for size k, one beta for all sizes: least relative squares, B_k >= 0. At
            fixed N every law of the form L(N, D) = f(N) + g(N) / D^beta is of this kind, Chinchilla's too.
    chords  straight lines of log loss over log C between neighbouring ends: no smoothing; where power curves miss
            the ends beyond their noise (F test at 5% against third differences), and where ends are too few

beta is found by variable projection: a grid, zoomed; E_k and B_k are linear. A curve goes from the lowest to the
highest C at which its size has an end, never beyond.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxscale.fit.cells import Cells
from jaxscale.fit.resample import NoiseModel, f_tail

__all__ = [
    "MIN_DOF",
    "MISFIT",
    "Chords",
    "PowerCurves",
    "fit_power_curves",
    "misfit_p",
    "model_ends",
    "model_roughness",
    "spare_ends",
]

BETAS = (0.02, 2.0)
"""Exponents searched; published ones of D lie between .25 and .5."""
MIN_DOF = 2
"""Ends to spare below which power curves are not fitted."""
OVERLAP = 2.31
"""1 + 2 (.75^2 + .3^2 + .05^2): the autocorrelations of third differences of equally spaced white noise."""
MEDIAN = 0.37
"""Efficiency of the median absolute value as a scale of normal errors (Rousseeuw and Croux 1993)."""
CHI2_MEDIAN = 0.4549
"""Median of chi^2 with one degree of freedom."""
MISFIT = 0.05
"""Power curves are left for chords below this p value."""


class PowerCurves(NamedTuple):
    """E, B (rounds, sizes) and beta (rounds,) of L = E + B exp(-beta x), x = log C - center; ss (rounds,)."""

    E: np.ndarray
    B: np.ndarray
    beta: np.ndarray
    center: float
    ss: np.ndarray

    def loss(self, log_C: np.ndarray) -> np.ndarray:
        """Loss (rounds, sizes, K) at log C (K,)."""
        power = np.exp(-self.beta[:, None] * (log_C - self.center))
        return self.E[:, :, None] + self.B[:, :, None] * power[:, None, :]

    def at(self, log_C: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Loss (rounds, n) of the points' own sizes."""
        return self.E[:, size] + self.B[:, size] * np.exp(-self.beta[:, None] * (log_C - self.center))


class Chords(NamedTuple):
    """Indices (sizes, K) of the ends below and above each grid point, and the weight of the upper one."""

    below: np.ndarray
    above: np.ndarray
    share: np.ndarray

    @classmethod
    def between(cls, log_C: np.ndarray, size: np.ndarray, sizes: int, grid: np.ndarray) -> Chords:
        """Chords of every size over the grid; outside its ends a size's values mean nothing."""
        parts = [_bracket(log_C, np.flatnonzero(size == k), grid) for k in range(sizes)]
        return cls(*(np.stack(part) for part in zip(*parts, strict=True)))

    def loss(self, losses: np.ndarray) -> np.ndarray:
        """Loss (rounds, sizes, K) from the ends' losses (rounds, n)."""
        y = np.log(losses)
        return np.asarray(np.exp(y[:, self.below] * (1 - self.share) + y[:, self.above] * self.share))


def _bracket(log_C: np.ndarray, mine: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, ...]:
    order = mine[np.argsort(log_C[mine], kind="stable")]
    x = log_C[order]
    i = np.clip(np.searchsorted(x, grid, "right") - 1, 0, max(len(x) - 2, 0))
    j = np.minimum(i + 1, len(x) - 1)
    width = x[j] - x[i]
    share = np.where(width > 0, (grid - x[i]) / np.where(width > 0, width, 1.0), 0.0)
    return order[i], order[j], np.clip(share, 0.0, 1.0)


def spare_ends(cells: Cells) -> int:
    """Ends beyond what power curves need: two a size and one beta for all; sizes with one end have no curve."""
    distinct = [len(np.unique(cells.D[cells.N == N])) for N in np.unique(cells.N)]
    kept = [count for count in distinct if count > 1]
    return sum(kept) - 2 * len(kept) - 1


def fit_power_curves(log_C: np.ndarray, losses: np.ndarray, size: np.ndarray, weight: np.ndarray) -> PowerCurves:
    """Curves of all sizes through losses (rounds, n) at log C (n,); `size` (n,) counts from 0.

    >>> x = np.log([1e18, 1e19, 1e20, 1e18, 1e19, 1e20])
    >>> size = np.array([0, 0, 0, 1, 1, 1])
    >>> loss = np.array([2.0, 2.5])[size] + 1e6 * np.exp(-0.3 * x)
    >>> fit = fit_power_curves(x, loss[None], size, np.ones(6))
    >>> round(float(fit.beta[0]), 4), [round(float(E), 4) for E in fit.E[0]]
    (0.3, [2.0, 2.5])
    """
    center, member = log_C.mean(), np.eye(size.max() + 1)[size]
    w = weight / losses.mean(0) ** 2
    low, high = (np.full(len(losses), np.log(end)) for end in BETAS)
    row = np.arange(len(losses))
    for points in (25, 9, 9, 9, 9, 9, 9, 9):
        grid = low[:, None] + np.linspace(0, 1, points) * (high - low)[:, None]
        ss = np.stack([_project(np.exp(g), log_C - center, losses, member, w)[2] for g in grid.T], 1)
        best, step = grid[row, np.argmin(ss, 1)], (high - low) / (points - 1)
        low, high = best - step, best + step
    E, B, left = _project(np.exp(best), log_C - center, losses, member, w)
    return PowerCurves(E, B, np.exp(best), float(center), left)


def _project(
    beta: np.ndarray, x: np.ndarray, losses: np.ndarray, member: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best E, B (rounds, sizes) and the weighted relative sum of squares (rounds,) at beta (rounds,)."""
    u = np.exp(-beta[:, None] * x)
    s0, s1, s2 = w @ member, (w * u) @ member, (w * u * u) @ member
    y0, y1 = (w * losses) @ member, (w * u * losses) @ member
    determinant = s0 * s2 - s1**2
    fixed = determinant > 1e-13 * s0 * s2
    B = np.where(fixed, np.maximum(s0 * y1 - s1 * y0, 0) / np.where(fixed, determinant, 1.0), 0.0)
    E = (y0 - s1 * B) / s0
    fitted = E @ member.T + (B @ member.T) * u
    return E, B, (w * (losses - fitted) ** 2).sum(1)


def model_ends(cells: Cells, size: np.ndarray, curves: PowerCurves) -> NoiseModel:
    """Residuals of log loss about the power curves, one stratum; leverage from the curves' Jacobian."""
    log_C = np.log(cells.C)
    fitted = curves.at(log_C, size)[0]
    x = log_C - curves.center
    member, power = np.eye(size.max() + 1)[size], np.exp(-curves.beta[0] * x)
    slope = -x * curves.B[0, size] * power
    J = np.column_stack([member, member * power[:, None], slope]) / fitted[:, None]
    left = np.linalg.svd(np.sqrt(cells.weight)[:, None] * J, full_matrices=False)[0]
    dof = float(len(fitted) - J.shape[1])
    return _model(cells, np.log(cells.loss) - np.log(fitted), np.minimum((left**2).sum(1), 1.0), dof)


def model_roughness(cells: Cells, size: np.ndarray) -> NoiseModel:
    """Noise of log loss from third differences over four neighbouring ends of a size, which no parabola has.

    Knows no law, so that it can judge the power curves. Their median counts: where a large size has seen little text
    the loss falls steeply, and what is left of that in a third difference is no noise near the envelope. Degrees of
    freedom: of overlapping differences (OVERLAP) under a median (MEDIAN).
    """
    log_C, y, squares = np.log(cells.C), np.log(cells.loss), []
    for k in range(size.max() + 1):
        mine = np.flatnonzero(size == k)
        mine = mine[np.argsort(log_C[mine], kind="stable")]
        for four in (mine[i : i + 4] for i in range(len(mine) - 3)):
            gaps = log_C[four][:, None] - log_C[four]
            np.fill_diagonal(gaps, 1.0)
            if np.abs(gaps).min() > 1e-9:
                w = 1 / gaps.prod(1)
                squares.append((w @ y[four]) ** 2 / (w**2 / cells.weight[four]).sum())
    dof = len(squares) * MEDIAN / OVERLAP
    ss = cells.seed_ss.sum() + (dof * float(np.median(squares)) / CHI2_MEDIAN if squares else 0.0)
    zero, none = np.zeros(len(y)), np.zeros(1)
    whole = _model(cells, zero, zero, 0.0)
    return replace(whole, dof=none, seed_ss=np.array([ss]), seed_dof=np.array([cells.seed_dof.sum() + dof]))


def _model(cells: Cells, residual: np.ndarray, leverage: np.ndarray, dof: float) -> NoiseModel:
    cluster = np.unique(cells.cluster, return_inverse=True)[1]
    seeds = (np.array([part.sum()]) for part in (cells.seed_ss, cells.seed_dof))
    stratum = np.zeros(len(residual), int)
    return NoiseModel(residual, leverage, cells.weight, stratum, cluster, np.array([dof]), *seeds)


def misfit_p(power: NoiseModel, rough: NoiseModel) -> float:
    """P value of the power curves' residuals against the noise of third differences and seeds (F test)."""
    if rough.total_dof < 1 or power.dof.sum() < 1:
        return 1.0
    missed = float((power.weight * power.residual**2).sum() / power.dof.sum())
    noise = max(float(rough.seed_ss.sum()) / rough.total_dof, 1e-20)
    return f_tail(missed / noise, float(power.dof.sum()), rough.total_dof)
