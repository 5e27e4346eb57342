"""Shared horizons: every point of every training curve, smoothed run by run, and the noise about the curves.

Smoothing: a line of log L over log D at each point, by weighted least squares with tricube weights (Cleveland
1979) over the points within `width` in log D on both sides, at least the five nearest. Points of a run nearer than
a tenth of the width are averaged first, so that a window never holds more than some twenty.

Two errors are redrawn. Checkpoints scatter about their curve: residuals / sqrt(1 - h), each with a random sign (one
sign for a whole window would cancel: residuals average out there). And a whole run is lucky or not: a shift of its
log loss, which its own curve cannot show; its size comes from the ends of the runs about power curves of their
size (sizecurves.py), where there are ends to spare.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxscale.fit.trajectories import Run

__all__ = ["AUTO_POINTS", "AUTO_WIDTH", "RunCurve", "smooth_run"]

AUTO_WIDTH = 0.1
"""Half width of the window in log D: D within 10%."""
AUTO_POINTS = 8
"""Curves with fewer points are not smoothed by default."""
NEAREST = 5
PILOT = 3.0
"""How much wider the window of `pilot` is."""
BINS_PER_WIDTH = 10


class RunCurve(NamedTuple):
    """A smoothed curve: log C and log loss (n,) at its knots, smoother rows (n, m), residuals about it.

    `pilot` (n,) is log loss smoothed more, for noise to be redrawn about (Haerdle and Marron 1991): about a curve
    that still holds noise, the lowest of new noise is not low enough.
    `scatter` (n,) is the residual over sqrt(1 - leverage), zero where the curve was not smoothed.
    """

    size: int
    cluster: int
    log_C: np.ndarray
    log_loss: np.ndarray
    rows: np.ndarray
    weight: np.ndarray
    pilot: np.ndarray
    scatter: np.ndarray
    dof: float

    @property
    def end_variance(self) -> float:
        """Variance that scatter leaves in the smoothed log loss at the end."""
        return float((self.weight[-1] ** 2 * self.scatter[self.rows[-1]] ** 2).sum())

    def draw(self, rounds: int, rng: np.random.Generator) -> np.ndarray:
        """Errors (rounds, n) of the smoothed log loss, from redrawn scatter."""
        errors = rng.choice([-1.0, 1.0], (rounds, len(self.scatter))) * self.scatter
        return np.asarray((errors[:, self.rows] * self.weight).sum(-1))


def smooth_run(run: Run, size: int, width: float) -> RunCurve:
    """The curve of one run; width 0 leaves it as it is."""
    if width <= 0:
        n = len(run.log_C)
        zero, own = np.zeros(n), np.arange(n)[:, None]
        alone = (own, np.ones((n, 1)), run.log_loss, zero, 0.0)
        return RunCurve(size, run.cluster, run.log_C, run.log_loss, *alone)
    x, log_C, y = _bin(run, width / BINS_PER_WIDTH)
    index, weight = _local_lines(x, width)
    smooth, pilot = _apply(y, index, weight), _apply(y, *_local_lines(x, PILOT * width))
    leverage = (weight * (index == np.arange(len(x))[:, None])).sum(1)
    residual = y - smooth
    scatter = residual / np.sqrt(np.maximum(1 - leverage, 0.1))
    dof = float(len(x) - 2 * leverage.sum() + (weight**2).sum())
    return RunCurve(size, run.cluster, log_C, smooth, index, weight, pilot, scatter, max(dof, 0.0))


def _bin(run: Run, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of log D, log C and log loss over bins of log D."""
    number = np.unique(np.floor((run.log_D - run.log_D[0]) / step), return_inverse=True)[1]
    count = np.bincount(number)
    log_D, log_C, log_loss = (np.bincount(number, v) / count for v in (run.log_D, run.log_C, run.log_loss))
    # the ends stay where they are: a curve neither shrinks nor grows by being smoothed
    log_D[[0, -1]], log_C[[0, -1]] = run.log_D[[0, -1]], run.log_C[[0, -1]]
    return log_D, log_C, log_loss


def _apply(y: np.ndarray, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.asarray((y[index] * weight).sum(1))


def _local_lines(x: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, m) of the smoother: which points, with which weight; padded with weight 0."""
    n = len(x)
    reach = np.maximum(width, 1.2 * _nearest_distance(x))
    first, last = np.searchsorted(x, x - reach), np.searchsorted(x, x + reach, "right")
    index = first[:, None] + np.arange(int((last - first).max()))
    inside, index = index < last[:, None], np.minimum(index, n - 1)
    t = (x[index] - x[:, None]) / reach[:, None]
    w = np.where(inside, np.maximum(1 - np.abs(t) ** 3, 0) ** 3, 0.0)
    s0, s1, s2 = (np.sum(w * t**p, 1, keepdims=True) for p in (0, 1, 2))
    determinant = s0 * s2 - s1**2
    line = determinant > 1e-12 * s0 * s2
    weight = np.where(line, w * (s2 - s1 * t) / np.where(line, determinant, 1.0), w / s0)
    return index, weight


def _nearest_distance(x: np.ndarray) -> np.ndarray:
    """Distance (n,) to the point that makes five with the point itself."""
    n, k = len(x), min(NEAREST - 1, len(x) - 1)
    if not k:
        return np.zeros(n)
    start = np.arange(n)[:, None] - k + np.arange(k + 1)[None, :]  # windows of k + 1 points that hold the point
    valid = (start >= 0) & (start + k < n)
    left, right = np.clip(start, 0, n - 1), np.clip(start + k, 0, n - 1)
    far = np.maximum(x[:, None] - x[left], x[right] - x[:, None])
    return np.where(valid, far, np.inf).min(1)
