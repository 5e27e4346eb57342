"""Laws of compute through the minima of the budgets, for many bootstrap rounds at once.

    log N_opt = log A + a log C     ordinary least squares, unweighted as in Hoffmann et al. and Llama 3, and
                                    beside it weighted by 1 / (noise of a minimum + scatter between budgets)
    L_opt     = E + A / C^alpha     least relative squares, E >= 0, by variable projection: a grid of alpha
                                    refined by zooming, E and A by linear least squares at each

The loss law is fitted around a reference compute, L = E + A' (C / C_ref)^-alpha, so that A' has the size of
a loss. With few budgets E is hardly seen, and E = 0 extrapolates low (by 1 to 2% at three times the largest
budget on the public sets). `average_loss_laws` therefore weighs every E by the likelihood of the minima under
an assumption made before them: even odds for E = 0, and for an E anywhere between 0 and the lowest loss.

No such law holds over all budgets, and what is extrapolated is its upper end. So a budget may miss the law by more than
its noise: all alike by a scatter, and the more, the farther they lie below the largest, by drift times log(C_max / C).
Each pair of SCATTERS and DRIFTS is as likely as the others before the losses are seen. Minima that a law meets keep
their weight, minima that bend count for less far down. docs/backtests.md has what it gains. The point is the law at
the mean E, the rounds are draws, so that the interval knows what E and the misfit may be.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["LossLaws", "average_loss_laws", "extra_scatter", "fit_lines", "fit_loss_laws",
           "spread_forecast"]  # fmt: skip

ALPHAS = (1e-3, 2.0)
"""Exponents searched; loss exponents of compute in the literature lie between .03 and .3."""
NO_FLOOR = 0.5
"""Assumption: the odds, before the losses are seen, that they fall as a plain power of C (E = 0)."""
SHARES = np.concatenate([[0.0], (np.arange(60) + 0.5) / 60 * 0.98])
"""E as a share of the lowest loss."""
DRIFTS = np.array([0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016])
"""Deviation of log loss about the law for every factor e below the largest budget."""
SCATTERS = np.array([0.0, 0.001, 0.002, 0.004])
"""Deviation of log loss about the law at every budget alike, the largest one too."""


class LossLaws(NamedTuple):
    """E, A, alpha (rounds,) of L = E + A / C^alpha, and the sum of squared relative errors (rounds,)."""

    E: np.ndarray
    A: np.ndarray
    alpha: np.ndarray
    ss: np.ndarray


def fit_lines(log_C: np.ndarray, log_y: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept (rounds,) of log_y (rounds, budgets) on log_C (budgets,); weights (budgets,), else equal."""
    w = np.ones(len(log_C)) if weight is None else weight
    share = w / w.sum()
    t = log_C - share @ log_C
    slope = log_y @ (share * t) / (share @ t**2)
    return slope, log_y @ share - slope * (share @ log_C)


def extra_scatter(log_C: np.ndarray, log_y: np.ndarray, variance: np.ndarray) -> float:
    """Variance between budgets beyond `variance` (budgets,) about their line (Paule and Mandel 1982); 0 without.

    Found where the weighted squares of log_y (budgets,) about the line equal their degrees of freedom.
    """

    def excess(extra: float) -> float:
        weight = 1 / (variance + extra)
        slope, intercept = fit_lines(log_C, log_y[None], weight)
        return float(weight @ (log_y - intercept - slope * log_C) ** 2) - (len(log_C) - 2)

    if len(log_C) < 3 or excess(0.0) <= 0:
        return 0.0
    low, high = -40.0, float(np.log(np.var(log_y) + variance.max()))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(float(np.exp(middle))) > 0 else (low, middle)
    return float(np.exp(high))


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


def average_loss_laws(
    C: np.ndarray, loss: np.ndarray, variance: np.ndarray, dof: float, rounds: int, rng: np.random.Generator
) -> tuple[LossLaws, LossLaws, float]:
    """The law at the mean E (1,), draws of it (rounds,), and the weight left on E = 0.

    `loss` (budgets,) with `variance` (budgets,) of its log, known to `dof` degrees of freedom.
    """
    line, odds = _lines_above(C, loss, variance)
    weight = _softmax(odds - line.ss / 2)
    shares = np.tile(SHARES, len(weight) // len(SHARES))
    misfit = weight.reshape(-1, len(SHARES)).sum(1) @ np.array(_list_misfits(C))
    wide = variance + misfit
    point = _law_of(_line_above(C, loss, wide, (weight @ shares)[None]), C, loss)
    scale = dof / rng.chisquare(dof, rounds) if dof >= 1 else np.ones(rounds)
    drawn = _softmax(odds - line.ss / 2 / scale[:, None])
    chosen = (rng.random((rounds, 1)) > np.cumsum(drawn, 1)[:, :-1]).sum(1)
    slope, height = (rng.standard_normal(rounds) * np.sqrt(scale) for _ in range(2))
    picked = _Line(*(part[chosen] for part in line))
    slope = picked.slope + slope / np.sqrt(picked.spread)
    height = picked.height + height / np.sqrt(picked.precision)
    return point, _law_of(picked._replace(slope=slope, height=height), C, loss), float(weight[shares == 0].sum())


def spread_forecast(C: np.ndarray, loss: np.ndarray, variance: np.ndarray, target: float) -> float:
    """Variance of log L_opt(target) over the draws of `average_loss_laws`, without drawing: within E and between.

    `loss` (budgets,) with known `variance` (budgets,) of its log, at C (budgets,); L = E + exp(line at the target).
    """
    line, odds = _lines_above(C, loss, variance)
    weight = _softmax(odds - line.ss / 2)
    offset = np.log(target) - line.middle
    above, floor = np.exp(line.height + line.slope * offset), line.share * loss.min()
    within = (above / (floor + above)) ** 2 * (1 / line.precision + offset**2 / line.spread)
    log_loss = np.log(floor + above)
    return float(weight @ (within + (log_loss - weight @ log_loss) ** 2))


def _list_misfits(C: np.ndarray) -> list[np.ndarray]:
    """Variance (budgets,) of log loss about the law, for every drift and scatter."""
    below = np.log(C.max() / C)
    return [(drift * below) ** 2 + scatter**2 for drift in DRIFTS for scatter in SCATTERS]


def _lines_above(C: np.ndarray, loss: np.ndarray, variance: np.ndarray) -> tuple[_Line, np.ndarray]:
    """The lines of every misfit and share, the shares of one misfit together, and their log odds before chi^2."""
    variances = [variance + misfit for misfit in _list_misfits(C)]
    lines = [_line_above(C, loss, wide, SHARES) for wide in variances]
    odds = [_odds(line, wide) for line, wide in zip(lines, variances, strict=True)]
    return _Line(*(np.concatenate(parts) for parts in zip(*lines, strict=True))), np.concatenate(odds)


def _odds(line: _Line, variance: np.ndarray) -> np.ndarray:
    """Log odds of each share of E before the fit's chi^2."""
    prior = np.log(np.concatenate([[NO_FLOOR], np.full(len(SHARES) - 1, (1 - NO_FLOOR) / (len(SHARES) - 1))]))
    odds = prior - 1e9 * (line.slope >= 0)
    if len(variance) > 2:  # integrated over height and slope; of two losses this would speak for some E
        odds = odds - np.log(line.precision * line.spread) / 2 - np.log(variance).sum() / 2
    return np.asarray(odds)


class _Line(NamedTuple):
    """log(L - E) = height + slope (log C - middle) for each share, with the inverse variances of both and chi^2."""

    share: np.ndarray
    height: np.ndarray
    slope: np.ndarray
    middle: np.ndarray
    precision: np.ndarray
    spread: np.ndarray
    ss: np.ndarray


def _line_above(C: np.ndarray, loss: np.ndarray, variance: np.ndarray, shares: np.ndarray) -> _Line:
    """Weighted lines through log(L - E) at E = share of the lowest loss; an error of L grows by L / (L - E)."""
    above = loss - shares[:, None] * loss.min()
    y, w, t = np.log(above), (above / loss) ** 2 / variance, np.log(C)
    total = w.sum(1)
    middle, height = w @ t / total, (w * y).sum(1) / total
    offset = t - middle[:, None]
    spread = (w * offset**2).sum(1)
    slope = (w * offset * y).sum(1) / spread
    residual = y - height[:, None] - slope[:, None] * offset
    return _Line(shares, height, slope, middle, total, spread, (w * residual**2).sum(1))


def _law_of(line: _Line, C: np.ndarray, loss: np.ndarray) -> LossLaws:
    alpha = np.clip(-line.slope, *ALPHAS)
    return LossLaws(line.share * loss.min(), np.exp(line.height + alpha * line.middle), alpha, line.ss)


def _softmax(log_weight: np.ndarray) -> np.ndarray:
    weight = np.exp(log_weight - log_weight.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)
