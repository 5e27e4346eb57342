"""The envelope of a family of curves is a stair in N: where it climbs, and power laws through the climbs.

At each C the envelope takes the size whose curve is lowest, under the condition that the size never falls as C
grows (Hoffmann et al. 2022, sec. 3.1, take the lowest run without the condition): of all rising paths through
the sizes, the one with the least mean loss over log C. The condition keeps noise from making two sizes win
in turns.

The steps are no noise: along a step N_opt stands still because nothing lies between two sizes. Least squares
through S whole steps of equal width gives the slope 1 - 1/S^2 of the truth, and N far beyond the data too low.
What the data say is where one size overtakes the next: there both lose equally, so the optimum lies between
them, at their geometric mean up to (alpha - beta) ln(ratio)^2 / 24 in log N for Chinchilla's law. The sizes were
chosen and the compute of the climb was measured, so the laws are lines against log N, read backwards:

    log C = c + s log N    ->  a = 1/s, G = exp(-c/s)        N_opt = G C^a
    log D = d + t log N    ->  b = t/s, H = exp(d - t c/s)   D_opt = H C^b
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "MIN_SIZES",
    "Climbs",
    "Grid",
    "Lines",
    "climb_stairs",
    "find_climbs",
    "find_edges",
    "fit_climbs",
    "fit_steps",
]

MIN_SIZES = 3
ABSENT = 1e4
"""Stands for the loss of a size that has no curve at a C: a path avoids it where any other can be had."""


class Grid(NamedTuple):
    """log C (K,), N and log(C / D) of the sizes (S,), and where each size has a curve (S, K)."""

    log_C: np.ndarray
    N: np.ndarray
    log_rate: np.ndarray
    there: np.ndarray

    @property
    def log_N(self) -> np.ndarray:
        """Logs of the sizes."""
        return np.log(self.N)


class Climbs(NamedTuple):
    """(rounds, K - 1): whether the path climbs after grid point i, and whether that tells of an optimum."""

    any: np.ndarray
    told: np.ndarray


class Lines(NamedTuple):
    """a, log G, b, log H (rounds,), NaN with fewer than two climbs, and the number of climbs (rounds,)."""

    a: np.ndarray
    log_G: np.ndarray
    b: np.ndarray
    log_H: np.ndarray
    climbs: np.ndarray


def climb_stairs(losses: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Index of the size (rounds, K) along the rising path of least total loss; losses (rounds, S, K).

    >>> losses = np.array([[[1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 1.0, 2.0]]])
    >>> climb_stairs(losses, np.ones((2, 4), bool)).tolist()
    [[0, 0, 1, 1]]
    """
    cost = np.where(there, losses, ABSENT)
    rounds, sizes, points = cost.shape
    number = np.arange(sizes)
    total, origin = cost[:, :, 0], np.empty((points, rounds, sizes), np.int16)
    for i in range(1, points):
        lowest = np.minimum.accumulate(total, 1)
        origin[i] = np.maximum.accumulate(np.where(total <= lowest, number, 0), 1)
        total = lowest + cost[:, :, i]
    path, row = np.empty((rounds, points), int), np.arange(rounds)
    path[:, -1] = np.argmin(total, 1)
    for i in range(points - 1, 0, -1):
        path[:, i - 1] = origin[i][row, path[:, i]]
    return path


def find_climbs(path: np.ndarray, there: np.ndarray) -> Climbs:
    """Climbs of paths (rounds, K).

    One tells of an optimum where both sizes have curves on both sides of it, and a third size has one too: of two
    sizes either is the smallest or the largest.
    """
    low, high, i = path[:, :-1], path[:, 1:], np.arange(path.shape[1] - 1)
    climbs = low != high
    both = there[low, i] & there[high, i] & there[low, i + 1] & there[high, i + 1]
    return Climbs(climbs, climbs & both & (there.sum(0)[1:] >= MIN_SIZES))


def find_edges(path: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Where (rounds, K) the path stands on the smallest or the largest size that has a curve."""
    sizes = len(there)
    smallest, largest = np.argmax(there, 0), sizes - 1 - np.argmax(there[::-1], 0)
    return (path <= smallest) | (path >= largest)


def fit_climbs(path: np.ndarray, grid: Grid) -> Lines:
    """Power laws through the climbs that tell of an optimum."""
    told = find_climbs(path, grid.there).told
    low, high = path[:, :-1], path[:, 1:]
    log_C = np.broadcast_to((grid.log_C[1:] + grid.log_C[:-1]) / 2, told.shape)
    log_N, log_rate = ((values[low] + values[high]) / 2 for values in (grid.log_N, grid.log_rate))
    return _fit_backwards(told, log_C, log_N, log_C - log_rate)


def fit_steps(path: np.ndarray, grid: Grid) -> Lines:
    """Least squares of log N and log D on log C over all points off the edge: the paper's own reading."""
    used = ~find_edges(path, grid.there)
    log_C = np.broadcast_to(grid.log_C, used.shape)
    log_N, log_rate = grid.log_N[path], grid.log_rate[path]
    (a, log_G), (b, log_H) = (_masked_line(used, log_C, y) for y in (log_N, log_C - log_rate))
    return Lines(a, log_G, b, log_H, used.sum(1))


def _fit_backwards(used: np.ndarray, log_C: np.ndarray, log_N: np.ndarray, log_D: np.ndarray) -> Lines:
    (s, c), (t, d) = (_masked_line(used, log_N, y) for y in (log_C, log_D))
    s = np.where(s > 0, s, np.nan)
    return Lines(1 / s, -c / s, t / s, d - t * c / s, used.sum(1))


def _masked_line(used: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept (rounds,) over the used points, NaN where they do not fix a line."""
    count = np.maximum(used.sum(1), 1)
    mean_x, mean_y = ((v * used).sum(1) / count for v in (x, y))
    dx, dy = (x - mean_x[:, None]) * used, y - mean_y[:, None]
    spread = (dx * dx).sum(1)
    slope = np.where(spread > 1e-12, (dx * dy).sum(1) / np.where(spread > 1e-12, spread, 1.0), np.nan)
    return slope, mean_y - slope * mean_x
