"""What three losses of one cell, at half, equal and double the rate, say of how well it was tuned.

With x = log(lr / own lr) / log(factor) in (-1, 0, 1) and y = log loss, the parabola through the three points is

    y = y_0 + c_1 x + c_2 x^2,   c_1 = (y_+ - y_-)/2,   c_2 = (y_+ + y_- - 2 y_0)/2
    gain = c_1^2 / (4 c_2)  at  x = -c_1 / (2 c_2)

the share of the loss that a better rate would save. Loss against log rate is steeper above its minimum than below,
up to divergence: through a cliff on one side the parabola claims a gain where there is none. A second reading
takes only the better neighbour, u above the cell, and a curvature k that the audited cells share:

    gain = (k - u)^2 / (4 k)                                   for u < k, else 0
    k = the smaller of the median c_2 and the upper quartile of u: a tuned cell has u = c_2, a cliff only raises c_2

The gain is the smaller of the two readings, and never less than what a rerun measured. Where a neighbour diverged,
only the measured difference counts.

Noise. The deviation of one log loss is estimated from the scatter of c_2 over cells, by its median absolute deviation
(the variance of c_2 is 3/2 of the noise's, and real differences of curvature are in it), and from the study's own
runs: between seeds, and about a parabola in log N through each budget. Each is an upper limit, the latter two since
they lack what pairing by seed takes away; the one that finds more is used. A gain is believed (p < 5%, adjusted for
looking at all cells) when few of many audits simulated with that noise, of cells that are all tuned (curvature k less
its standard error), show one as large in any cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Judgement", "Noise", "judge_gains", "read_gains", "scatter_noise", "shared_curvature"]

ROUNDS = 2000
LEVEL = 0.05
"""Share of audits of a tuned study in which some cell is believed to be mistuned."""
FEWEST_SCATTER = 4
"""Cells with three losses below which their curvatures say nothing about noise."""
MEDIAN_ERROR = float(np.sqrt(1.5 * np.pi / 2))
"""Standard error of a median of n curvatures is this times the noise over the root of n."""
MAD_EFFICIENCY = 0.37
"""Of the median absolute deviation for normal noise (Rousseeuw and Croux 1993): its degrees of freedom."""


@dataclass(frozen=True)
class Noise:
    """Standard deviation of one log loss, the degrees of freedom behind it, and where it comes from."""

    std: float
    dof: float
    origin: str


@dataclass(frozen=True)
class Judgement:
    """Arrays (n,) over the audited cells. `x` in units of log factor; `threshold` is the gain that p = 5% needs."""

    gain: np.ndarray
    error: np.ndarray
    upper: np.ndarray
    x: np.ndarray
    p: np.ndarray
    curvature: float
    noise: Noise | None
    threshold: float
    draws: np.ndarray


def shared_curvature(y: np.ndarray) -> np.ndarray:
    """The curvature k (...) of cells y (..., n, 3); 0 where no cell has three losses or they show no valley.

    >>> float(shared_curvature(np.array([[0.02, 0.0, 0.02], [0.02, 0.0, 0.90], [0.02, 0.0, 0.03]])))
    0.02
    """
    whole = np.isfinite(y).all(-1).reshape(-1, y.shape[-2])[0]  # the same cells in every round
    if not whole.any():
        return np.zeros(y.shape[:-2])
    rises = y[..., whole, :][..., [0, 2]] - y[..., whole, 1:2]
    c2 = np.median(rises.mean(-1), axis=-1)
    return np.maximum(np.minimum(c2, np.quantile(rises.min(-1), 0.75, axis=-1)), 0.0)


def read_gains(y: np.ndarray, curvature: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Gain and place x (..., n) of the best rate; y (..., n, 3) log losses, NaN for a run without one.

    >>> gain, x = read_gains(np.array([[0.0, 0.01, 0.04]]), 0.01)  # vertex at half the rate
    >>> round(float(gain[0]), 9), float(x[0])
    (0.01, -1.0)
    """
    k = np.asarray(curvature)[..., None]
    low, high = (np.where(np.isfinite(y[..., i]), y[..., i] - y[..., 1], np.inf) for i in (0, 2))
    u, side = np.minimum(low, high), np.where(low < high, -1.0, 1.0)
    measured = np.maximum(-u, 0.0)
    both = np.isfinite(low) & np.isfinite(high)
    c1, c2 = (np.where(both, part, 0.0) for part in (_half(high, -low), _half(high, low)))
    inside = both & (c2 > 0) & (np.abs(c1) <= 2 * c2)
    safe = np.where(inside, c2, 1.0)
    parabola = np.where(inside, c1**2 / (4 * safe), measured)
    usable = both & (k > 0) & (np.abs(u) < k)
    steep = np.where(usable, k, 1.0)
    shared = np.where(usable, (steep - np.where(usable, u, 0.0)) ** 2 / (4 * steep), measured)
    gain = np.maximum(measured, np.minimum(parabola, shared))
    vertex = np.where(parabola <= shared, -c1 / (2 * safe), side * (steep - np.where(usable, u, 0.0)) / (2 * steep))
    x = np.where(gain > measured, vertex, side)
    return gain, np.where(gain > 0, x, 0.0)


def _half(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # inf - inf where both neighbours are missing
        return (one + other) / 2


def scatter_noise(y: np.ndarray) -> Noise | None:
    """Noise from the scatter of curvature over cells, y (n, 3); None with fewer than four whole cells."""
    whole = y[np.isfinite(y).all(-1)]
    n = len(whole)
    if n < FEWEST_SCATTER:
        return None
    c2 = (whole[:, 2] + whole[:, 0]) / 2 - whole[:, 1]
    spread = 1.4826 * float(np.median(np.abs(c2 - np.median(c2)))) * n / (n - 0.8)  # small n: Croux, Rousseeuw 1992
    return Noise(spread / np.sqrt(1.5), MAD_EFFICIENCY * (n - 1), "scatter of curvature over the audited cells")


def judge_gains(y: np.ndarray, noises: list[Noise], seed: int = 0) -> Judgement:
    """Gains of the cells with their errors and adjusted p, under that noise of `noises` which finds more.

    Without any noise p is 0 and the errors are: gains are then taken as measured, and the caller must say so.
    """
    k = shared_curvature(y)
    gain, x = read_gains(y, k)
    if not noises:
        zero = np.zeros_like(gain)
        return Judgement(gain, zero, gain, x, zero, float(k), None, 0.0, gain[None])
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((ROUNDS, *y.shape))
    tried = [(_draw_tuned(y, float(k), noise, normal, rng), noise) for noise in noises]
    largest, noise = min(tried, key=lambda one: float(np.quantile(one[0], 1 - LEVEL)))
    threshold = float(np.quantile(largest, 1 - LEVEL))
    around = y + noise.std * normal
    draws = read_gains(around, shared_curvature(around))[0]
    p = (largest[:, None] >= gain).mean(0)
    return Judgement(gain, draws.std(0), np.quantile(draws, 0.95, 0), x, p, float(k), noise, threshold, draws)


def _draw_tuned(y: np.ndarray, k: float, noise: Noise, normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The largest gain (rounds,) of audits of tuned cells with curvature k, less its standard error, and this noise."""
    doubt = MEDIAN_ERROR * noise.std / np.sqrt(max(int(np.isfinite(y).all(-1).sum()), 1))
    rise = max(k - doubt, 0.0)
    tuned = np.where(np.isfinite(y), [rise, 0.0, rise], np.nan)
    scale = noise.std * np.sqrt(noise.dof / rng.chisquare(noise.dof, len(normal)))
    null = tuned + normal * scale[:, None, None]
    largest: np.ndarray = read_gains(null, shared_curvature(null))[0].max(-1)
    return largest
