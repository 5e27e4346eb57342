"""Laws of compute through the minima of the budgets, for many bootstrap rounds at once.

    log N_opt = log A + a log C     ordinary least squares, unweighted as in Hoffmann et al. and Llama 3
    L_opt     = E + A / C^alpha     least relative squares, E >= 0, by variable projection: a grid of alpha
                                    refined by zooming, E and A by linear least squares at each

The loss law is fitted around a reference compute, L = E + A' (C / C_ref)^-alpha, so that A' has the size of
a loss. With few budgets E is hardly seen: it enters the point estimate only where it improves the fit
beyond the noise of the minima; the rounds always carry it, so that the interval knows of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["LossLaws", "fit_lines", "fit_loss_laws"]

ALPHAS = (1e-3, 2.0)
"""Exponents searched; loss exponents of compute in the literature lie between .03 and .3."""
CHI2_1 = 3.84
"""95% point of chi^2 with one degree of freedom."""


class LossLaws(NamedTuple):
    """E, A, alpha (rounds,) of L = E + A / C^alpha, and the sum of squared relative errors (rounds,)."""

    E: np.ndarray
    A: np.ndarray
    alpha: np.ndarray
    ss: np.ndarray


def fit_lines(log_C: np.ndarray, log_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept (rounds,) of log_y (rounds, budgets) on log_C (budgets,)."""
    t = log_C - log_C.mean()
    slope = log_y @ t / (t @ t)
    return slope, log_y.mean(-1) - slope * log_C.mean()


def fit_loss_laws(C: np.ndarray, losses: np.ndarray, *, free_E: bool) -> LossLaws:
    """L = E + A / C^alpha through losses (rounds, budgets) at C (budgets,); E = 0 unless `free_E`."""
    log_c = np.log(C) - np.log(C).mean()
    low = np.full(len(losses), np.log(ALPHAS[0]))
    high = np.full(len(losses), np.log(ALPHAS[1]))
    for points in (96, 12, 12, 12, 12, 12, 12):
        grid = low[:, None] + np.linspace(0, 1, points) * (high - low)[:, None]
        _, _, ss = _project(grid, log_c, losses, free_E)
        best = np.argmin(ss, 1)
        row, step = np.arange(len(losses)), (high - low) / (points - 1)
        center = grid[row, best]
        low, high = center - step, center + step
    E, A, ss = (part[:, 0] for part in _project(center[:, None], log_c, losses, free_E))
    alpha = np.exp(center)
    return LossLaws(E, A * np.exp(alpha * np.log(C).mean()), alpha, ss)


def _project(
    log_alpha: np.ndarray, log_c: np.ndarray, losses: np.ndarray, free_E: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E, A and the relative sum of squares (rounds, grid) that are best at each alpha, E >= 0."""
    power = np.exp(-np.exp(log_alpha)[..., None] * log_c)  # (rounds, grid, budgets)
    u, v = 1 / losses[:, None, :], power / losses[:, None, :]
    uu, uv, vv, u1, v1 = (np.broadcast_to(s.sum(-1), log_alpha.shape) for s in (u * u, u * v, v * v, u, v))
    A, E = v1 / vv, np.zeros(log_alpha.shape)
    if free_E:
        determinant = uu * vv - uv**2
        free = determinant > 1e-12 * uu * vv
        safe = np.where(free, determinant, 1.0)
        E_free, A_free = (u1 * vv - v1 * uv) / safe, (v1 * uu - u1 * uv) / safe
        inside = free & (E_free > 0) & (A_free > 0)
        E, A = np.where(inside, E_free, E), np.where(inside, A_free, A)
    ss = ((E[..., None] * u + A[..., None] * v - 1) ** 2).sum(-1)
    return E, A, ss
