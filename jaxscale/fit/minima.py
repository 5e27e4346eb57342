"""One IsoFLOP curve: where its loss is lowest in log N, and whether that minimum can be believed.

    parabola   least squares of loss on (1, t, t^2), t = log N, over a window of K sizes around the lowest
    akima      Akima's (1970) piecewise cubic through all points, its lowest point

Statuses: too_few (under 4 sizes: any three lie on a parabola), edge (the lowest size is the smallest or
largest tried, or the parabola's vertex lies beyond them), nonconvex (the parabola opens downward), ok.
Losses come as rows (rounds, n), so that a bootstrap is one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["MIN_SIZES", "Curve", "Status", "interpolate_akima", "judge_points", "judge_vertex", "minimum_akima",
           "minimum_parabola", "parabola_hat", "parabola_of", "vertex_parabola"]  # fmt: skip

MIN_SIZES = 4
Status = Literal["ok", "edge", "nonconvex", "too_few"]


@dataclass(frozen=True)
class Curve:
    """The cells of one budget by rising N: x = log N, log D, loss (nats), weight, indices into the cells."""

    C: float
    x: np.ndarray
    log_D: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    cells: np.ndarray

    def window(self, size: int) -> slice:
        """`size` neighbouring sizes with the lowest as central as the ends allow."""
        size = min(size, len(self.x))
        start = int(np.argmin(self.loss)) - size // 2
        start = min(max(start, 0), len(self.x) - size)
        return slice(start, start + size)


def judge_points(curve: Curve) -> tuple[Status, str]:
    """Status as the bare points give it: enough sizes, and the lowest not at an end."""
    if len(np.unique(curve.x)) < MIN_SIZES:
        return "too_few", f"{len(np.unique(curve.x))} sizes, at least {MIN_SIZES} are needed"
    lowest = int(np.argmin(curve.loss))
    if np.ptp(curve.loss) <= 1e-12 * curve.loss[lowest]:
        return "nonconvex", f"every loss is {curve.loss[lowest]:g}, check the loss column"
    if lowest in (0, len(curve.x) - 1):
        side = "smallest" if lowest == 0 else "largest"
        return (
            "edge",
            f"the lowest loss is at the {side} size, add {'smaller' if lowest == 0 else 'larger'} ones",
        )
    return "ok", ""


def judge_vertex(curve: Curve, vertex: float | None, name: str) -> tuple[Status, str]:
    """Status of the curve's minimum and the reason in words; `vertex` (log N) is None where there is none."""
    status, why = judge_points(curve)
    if status != "ok":
        return status, why
    if vertex is None:
        return "nonconvex", f"its {name} opens downward"
    if not curve.x[0] < vertex < curve.x[-1]:
        return "edge", f"the minimum of its {name} lies beyond the sizes tried"
    return "ok", ""


def vertex_parabola(curve: Curve, window: slice) -> float | None:
    """log N at the vertex of the parabola over the window; None where it opens downward."""
    _, c1, c2 = parabola_of(curve, window)
    return float(curve.x[window].mean() - c1 / (2 * c2)) if c2 > 0 else None


def minimum_parabola(curve: Curve, window: slice, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log N and loss (rounds,) at the vertex; losses (rounds, K) are those of the window.

    A round that opens downward or whose vertex leaves the sizes tried ends at the lower end of them: to
    drop it would narrow the interval.
    """
    x, ends = curve.x[window], np.array([curve.x[0], curve.x[-1]])
    c0, c1, c2 = _coefficients(x, curve.weight[window], losses).T
    convex = c2 > 0
    vertex = np.where(convex, -c1 / np.where(convex, 2 * c2, 1.0), 0.0) + x.mean()
    at_ends = np.stack([c0 + c1 * t + c2 * t**2 for t in ends - x.mean()], -1)
    vertex = np.where(convex, np.clip(vertex, *ends), ends[np.argmin(at_ends, -1)])
    t = vertex - x.mean()
    return vertex, c0 + c1 * t + c2 * t**2


def parabola_hat(x: np.ndarray, weight: np.ndarray, degree: int = 2) -> np.ndarray:
    """Hat matrix (K, K) of the weighted polynomial fit: fitted = hat @ loss."""
    basis = np.vander((x - x.mean()) / np.ptp(x), degree + 1)
    root = np.sqrt(weight)[:, None]
    return basis @ np.linalg.pinv(root * basis) * root.T


def _coefficients(x: np.ndarray, weight: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Coefficients (rounds, 3) of 1, t, t^2 with t = x - mean(x)."""
    basis = np.vander(x - x.mean(), 3, increasing=True)
    root = np.sqrt(weight)
    return losses * root @ np.linalg.pinv(root[:, None] * basis).T


def parabola_of(curve: Curve, window: slice) -> np.ndarray:
    """Coefficients (3,) of 1, t, t^2 with t = log N - its mean over the window; loss in nats."""
    return _coefficients(curve.x[window], curve.weight[window], curve.loss[None, window])[0]


def interpolate_akima(curve: Curve, x: np.ndarray) -> np.ndarray:
    """The Akima interpolant of a curve at log N = x."""
    i = np.clip(np.searchsorted(curve.x, x, "right") - 1, 0, len(curve.x) - 2)
    width, slope = np.diff(curve.x), np.diff(curve.loss) / np.diff(curve.x)
    d = akima_slopes(slope[None])[0]
    c2 = (3 * slope - 2 * d[:-1] - d[1:]) / width
    c3 = (d[:-1] + d[1:] - 2 * slope) / width**2
    t = x - curve.x[i]
    return curve.loss[i] + t * (d[i] + t * (c2[i] + t * c3[i]))


def minimum_akima(curve: Curve, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log N and loss (rounds,) where the Akima interpolant of losses (rounds, n) is lowest."""
    x, width = curve.x, np.diff(curve.x)
    slope = np.diff(losses) / width
    d = akima_slopes(slope)
    c2 = (3 * slope - 2 * d[:, :-1] - d[:, 1:]) / width
    c3 = (d[:, :-1] + d[:, 1:] - 2 * slope) / width**2
    inside = _stationary(d[:, :-1], c2, c3, width)
    value = losses[:, :-1] + inside * (d[:, :-1] + inside * (c2 + inside * c3))
    places = np.concatenate([np.broadcast_to(x, losses.shape), x[:-1] + inside], 1)
    heights = np.concatenate([losses, value], 1)
    row, best = np.arange(len(losses)), np.argmin(heights, 1)
    return places[row, best], heights[row, best]


def akima_slopes(slope: np.ndarray) -> np.ndarray:
    """Akima's slopes at the n points (rounds, n) from the n - 1 secants (rounds, n - 1)."""
    first, last = slope[:, :1], slope[:, -1:]
    left = 2 * first - slope[:, 1:2]
    right = 2 * last - slope[:, -2:-1]
    m = np.concatenate([2 * left - first, left, slope, right, 2 * right - last], 1)
    after, before = np.abs(m[:, 3:] - m[:, 2:-1]), np.abs(m[:, 1:-2] - m[:, :-3])
    total = after + before
    level = total < 1e-12 * (np.abs(slope).max(1, keepdims=True) + 1e-300)
    weighted = (after * m[:, 1:-2] + before * m[:, 2:-1]) / np.where(level, 1.0, total)
    return np.where(level, (m[:, 1:-2] + m[:, 2:-1]) / 2, weighted)


def _stationary(c1: np.ndarray, c2: np.ndarray, c3: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Offset of the cubic's local minimum in its interval, 0 where it has none (rounds, intervals)."""
    discriminant = c2**2 - 3 * c1 * c3
    root = -c2 - np.sqrt(np.maximum(discriminant, 0))
    root = np.where(c2 >= 0, root, -c2 + np.sqrt(np.maximum(discriminant, 0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.where(c2 >= 0, c1 / root, root / (3 * c3))
    good = (discriminant > 0) & np.isfinite(offset) & (offset > 0) & (offset < width)
    return np.where(good, offset, 0.0)
