"""Tokens that a batch takes to a loss, from the losses of runs of that batch.

Losses are made to fall with D (pool adjacent violators), then log loss over log D is a monotone cubic through them
(Fritsch and Carlson 1980): nothing is assumed of the curve but that it falls, and nothing is extrapolated. Between
neighbours a factor 2 apart a power law with a floor is met to .1% in D, a factor 4 to 1% (tests/test_batch.py).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

__all__ = ["choose_losses", "tokens_to_loss"]

SAMPLES = 64
"""Points of a curve between two neighbours."""


def tokens_to_loss(D: np.ndarray, loss: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Tokens (t,) at which the curve through losses (n,) at rising tokens (n,) first comes down to each target (t,).

    NaN for a target above the first loss; infinite for one below the last: what lies outside is not known.

    >>> tokens_to_loss(np.array([1e6, 4e6]), np.array([4.0, 2.0]), np.array([5.0, 2.8284271247461903, 1.0]))
    array([     nan, 2000000.,      inf])
    """
    x, y = np.log(D), _pool(np.log(loss))
    fine = np.unique(np.concatenate([np.linspace(*ends, SAMPLES) for ends in pairwise(x)] or [x]))
    curve = _interpolate(x, y, fine) if len(x) > 1 else y
    first = np.searchsorted(-curve, -np.log(targets))  # the first point at or below the target
    found = np.full(len(targets), np.inf)
    for i, (k, target) in enumerate(zip(first, np.log(targets), strict=True)):
        if k == 0:
            found[i] = D[0] if np.isclose(curve[0], target, atol=1e-12) else np.nan
        elif k < len(fine):
            share = (curve[k - 1] - target) / (curve[k - 1] - curve[k])
            found[i] = np.exp(fine[k - 1] + share * (fine[k] - fine[k - 1]))
    return found


def choose_losses(curves: list[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """`count` losses, falling, that as many batches as possible come down to: each curve is (D, loss), D rising.

    Empty where no three curves share a loss. The batches that come lowest are kept first.
    """
    lows = np.array([np.exp(_pool(np.log(loss))[-1]) for _, loss in curves])
    highs = np.array([np.exp(_pool(np.log(loss))[0]) for _, loss in curves])
    order = np.argsort(lows)
    for kept in range(len(curves), 2, -1):
        low, high = lows[order[:kept]].max(), highs[order[:kept]].min()
        if low * 1.005 < high:
            shares = (np.arange(count) + 0.5) / count
            return np.exp(np.log(high) + shares * (np.log(low) - np.log(high)))
    return np.empty(0)


def _pool(y: np.ndarray) -> np.ndarray:
    """The falling sequence nearest to y in least squares."""
    blocks: list[list[float]] = []
    for value in y:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-1][0] > blocks[-2][0]:
            mean, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    return np.concatenate([np.full(int(size), mean) for mean, size in blocks])


def _interpolate(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The monotone cubic through (x, y) at points within them."""
    h, slope = np.diff(x), np.diff(y) / np.diff(x)
    m = np.concatenate([slope[:1], _harmonic(h, slope), slope[-1:]])
    if len(x) > 2:
        m[0], m[-1] = _end_slope(h[0], h[1], slope[0], slope[1]), _end_slope(h[-1], h[-2], slope[-1], slope[-2])
    k = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(h) - 1)
    t = (at - x[k]) / h[k]
    return (y[k] * (1 + 2 * t) * (1 - t) ** 2 + h[k] * m[k] * t * (1 - t) ** 2
            + y[k + 1] * t**2 * (3 - 2 * t) + h[k] * m[k + 1] * t**2 * (t - 1))  # fmt: skip


def _harmonic(h: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Slopes at the inner points: a weighted harmonic mean, 0 beside a flat part."""
    left, right, w, v = slope[:-1], slope[1:], 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (w + v) / (w / left + v / right)
    return np.where(left * right > 0, mean, 0.0)


def _end_slope(h: float, beyond: float, slope: float, after: float) -> float:
    """The slope at an end by its three nearest points, kept within what is monotone."""
    m = ((2 * h + beyond) * slope - h * after) / (h + beyond)
    if m * slope <= 0:
        return 0.0
    return 3 * slope if slope * after <= 0 and abs(m) > 3 * abs(slope) else m
