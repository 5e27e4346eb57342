"""The loss near its optimum in log2 lr, for all members of a ladder together: a parabola that may lean.

    L(x) = L* + K phi_c(x - x*),    phi_c(u) = (exp(c u) - 1 - c u) / c^2  ->  u^2 / 2 as c -> 0

K > 0 is the curvature at the optimum x* (nats per doubling squared). Curves rise more steeply towards divergence
than towards slow learning: c > 0 says how much, and the members of a ladder share it. A bare parabola through five
rates a doubling apart puts x* off by .57 c doublings; this one follows, and a wider window can be used.

Given c the family is linear in 1, t, phi_c(t) about any origin, so only c is searched. A seed that saw other data
shifts its whole curve: every seed of a member has its own constant, which is the pairing over rates. What is left
are the residuals, with variance s^2 and nu degrees of freedom over the ladder.

Intervals invert tests on that sum of squares: a value is inside if forcing it costs at most T = s^2 t^2, with t
Student's quantile. Given c the test of L'(x) = 0 is a quadratic (Fieller 1954); the union over c, whose own cost
is taken from T, is the profile interval. Sums over members (the shift) combine the members' one-sided distances
in quadrature given c (Zou and Donner 2008), which is exact where they are symmetric.

Seeds may also lean: a seed for which higher rates are better at all rates moves the optimum, and shows as
residuals that agree along a curve. s^2 grows by the ratio of that between-seed slope's variance to s^2, drawn to
1 by PRIOR_DOF degrees of freedom, never below 1. Errors of a seed that members share cancel in shift and regret:
taking them as independent widens both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxscale.fit.resample import f_tail, t_quantile
from jaxscale.mup.rates import NARROWEST, Curve

__all__ = ["Joint", "Lanes", "Window", "choose_size", "count_dof", "fit_joint", "lean", "take_window", "undo"]

LEAN = 1.5
"""Largest |c| tried; an excess that grows as lr^2 has c = 2 ln 2 = 1.39."""
PRIOR_DOF = 2.0
SIGNIFICANCE = 0.05
Ends = tuple[float | None, float | None]


def lean(c: np.ndarray | float, u: np.ndarray | float) -> np.ndarray:
    """phi_c(u), by its series where c is near 0.

    >>> np.round(lean(np.array([0.0, 1.0]), np.array([2.0, 2.0])), 3)
    array([2.   , 4.389])
    """
    small = np.abs(c) < 1e-4
    safe = np.where(small, 1.0, c)
    return np.where(small, u**2 / 2 + c * u**3 / 6, (np.expm1(safe * u) - safe * u) / safe**2)


@dataclass(frozen=True)
class Window:
    """One member's runs inside its window: t = x - origin (n,), loss (n,), seed (n,) from 0, the seeds' numbers."""

    origin: float
    ends: tuple[float, float]
    t: np.ndarray
    loss: np.ndarray
    seed: np.ndarray
    numbers: tuple[int, ...]

    @property
    def seeds(self) -> int:
        return len(self.numbers)

    @property
    def rates(self) -> int:
        return len(np.unique(self.t))

    def center(self, values: np.ndarray) -> np.ndarray:
        """Values (..., n) less the mean of their seed."""
        belongs = (self.seed[:, None] == np.arange(self.seeds)).astype(float)
        return values - (values @ belongs / belongs.sum(0)) @ belongs.T


def take_window(curve: Curve, size: int) -> Window:
    """The runs of a curve's window of at most `size` rates."""
    inside = curve.window(size)
    rate, seed = np.nonzero(np.isfinite(curve.loss[inside]))
    x, (present, place) = curve.x[inside], np.unique(seed, return_inverse=True)
    return Window(float(x.mean()), (float(x[0]), float(x[-1])), (x - x.mean())[rate], curve.loss[inside][rate, seed],
                  place, tuple(curve.seeds[i] for i in present))  # fmt: skip


@dataclass(frozen=True)
class Lanes:
    """One member's least squares at every c (m,): slope b and curvature k at the origin (m, 2), their covariance
    over s^2 (m, 2, 2), the loss at the origin (m,), the sum of squares (m,)."""

    window: Window
    c: np.ndarray
    coef: np.ndarray
    cov: np.ndarray
    level: np.ndarray
    ss: np.ndarray

    def optimum(self) -> np.ndarray:
        """x* (m,); nan where the fitted curve has no minimum."""
        b, k = self.coef.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.window.origin + np.where(k > 0, undo(self.c, -b / k), np.nan)

    def fieller(self, budget: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ends (m,) of x* whose test costs at most `budget` (m,); -inf, inf where it has none."""
        (b, k), v = self.coef.T, self.cov
        a2, a1, a0 = k**2 - budget * v[:, 1, 1], b * k - budget * v[:, 0, 1], b**2 - budget * v[:, 0, 0]
        closed = (a2 > 0) & (k > 0)
        root = np.sqrt(np.maximum(a1**2 - a2 * a0, 0.0))
        safe = np.where(closed, a2, 1.0)
        low, high = (undo(self.c, (-a1 + sign * root) / safe) for sign in (-1, 1))
        low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
        low, high = np.where(closed, low, -np.inf), np.where(closed, high, np.inf)
        return self.window.origin + low, self.window.origin + high

    def slope_of(self, lane: int) -> np.ndarray:
        """How each loss (n,) moves the fitted L'(x*) at c of this lane."""
        c, w = self.c[lane], self.window
        z = np.expm1(c * (self.optimum()[lane] - w.origin)) / c if abs(c) > 1e-9 else self.optimum()[lane] - w.origin
        basis = w.center(np.stack([w.t, lean(c, w.t)]))
        return np.array([1.0, z]) @ self.cov[lane] @ basis


def undo(c: np.ndarray, z: np.ndarray) -> np.ndarray:
    """u with (exp(c u) - 1) / c = z; nan where there is none."""
    small = np.abs(c) < 1e-9
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(small, z, np.where(c * z > -1, np.log1p(c * z), np.nan) / np.where(small, 1.0, c))


def solve_lanes(window: Window, c: np.ndarray) -> Lanes:
    """Least squares at every c (m,), a constant a seed."""
    t, y = window.t, window.loss
    phi = lean(c[:, None], t[None])
    basis = np.stack([np.broadcast_to(window.center(t), phi.shape), window.center(phi)], 1)
    gram, y_centered = basis @ basis.swapaxes(1, 2), window.center(y)
    cov = np.linalg.inv(gram)
    coef = (cov @ (basis @ y_centered)[..., None])[..., 0]
    residual = y_centered - (coef[:, None] @ basis)[:, 0]
    share = 1 / window.seeds / np.bincount(window.seed)[window.seed]  # the mean over seeds of their means
    level = share @ y - coef[:, 0] * (share @ t) - coef[:, 1] * (phi @ share)
    return Lanes(window, c, coef, cov, level, (residual**2).sum(1))


@dataclass(frozen=True)
class Joint:
    """A ladder's fit: lanes a member over one grid of c, the cost (m,) of each c, its best lane, s^2 with what
    leaning seeds add (`inflation`), nu of s^2 alone and (Satterthwaite) with that."""

    lanes: tuple[Lanes, ...]
    c: np.ndarray
    cost: np.ndarray
    best: int
    variance: float
    inflation: float
    residual_dof: float
    dof: float

    def budget(self, confidence: float, one_sided: bool = False) -> np.ndarray:
        """What is left of T at each c (m,), below 0 where c itself costs more."""
        level = 2 * confidence - 1 if one_sided else confidence
        return self.variance * self.inflation * t_quantile(level, self.dof) ** 2 - self.cost

    def interval(self, member: int, confidence: float) -> Ends:
        """Profile interval of a member's x*."""
        left = self.budget(confidence)
        low, high = self.lanes[member].fieller(np.maximum(left, 0.0))
        return _closed(float(low[left >= 0].min()), float(high[left >= 0].max()))

    def sum_interval(self, weights: Sequence[float], confidence: float) -> tuple[float, Ends]:
        """Sum of weights times the members' x*, with its profile interval."""
        left = self.budget(confidence)
        center, below, above = np.zeros(len(self.c)), np.zeros(len(self.c)), np.zeros(len(self.c))
        with np.errstate(invalid="ignore"):
            for weight, lanes in zip(weights, self.lanes, strict=True):
                x, (low, high) = lanes.optimum(), lanes.fieller(np.maximum(left, 0.0))
                down, up = (x - low, high - x) if weight >= 0 else (high - x, x - low)
                center, below, above = center + weight * x, below + (weight * down) ** 2, above + (weight * up) ** 2
            low, high = center - np.sqrt(below), center + np.sqrt(above)
        inside = left >= 0
        ends = (low[inside].min(), high[inside].max()) if np.isfinite(center[inside]).all() else (-np.inf, np.inf)
        return float(center[self.best]), _closed(float(ends[0]), float(ends[1]))

    def lean_interval(self, confidence: float) -> tuple[float, float]:
        """Profile interval of c."""
        inside = self.c[self.budget(confidence) >= 0]
        return float(inside.min()), float(inside.max())


def _closed(low: float, high: float) -> Ends:
    return (low if np.isfinite(low) else None), (high if np.isfinite(high) else None)


def count_dof(windows: Sequence[Window]) -> int:
    """Degrees of freedom that the ladder's residuals have: a constant a seed, slope and curvature a member, one c."""
    return sum(len(w.t) - w.seeds - 2 for w in windows) - 1


def fit_joint(windows: Sequence[Window], confidence: float) -> Joint:
    """All members with one c: coarse grid, then fine ones where c is not too dear and about the best."""
    grid = np.linspace(-LEAN, LEAN, 61)
    step = grid[1] - grid[0]
    dof = float(count_dof(windows))
    total = _total(windows, grid)
    near = float(grid[np.argmin(total)])
    for _ in range(3):
        around = np.clip(np.linspace(near - step, near + step, 41), -LEAN, LEAN)
        near, step = float(around[np.argmin(_total(windows, around))]), step / 20
    least = float(_total(windows, np.array([near]))[0])
    scale = sum(float((w.loss**2).sum()) for w in windows)
    variance = max(least, 1e-20 * scale) / dof
    first = [solve_lanes(w, np.array([near])) for w in windows]
    inflation, seed_dof = _seed_lean(first, variance)
    residual_dof, dof = dof, inflation**2 / (1 / dof + (inflation - 1) ** 2 / max(seed_dof, 1))
    most = variance * inflation * t_quantile(confidence, dof) ** 2
    allowed = grid[total - least <= most]
    width = grid[1] - grid[0]
    ends = (min([near, *allowed]) - width, max([near, *allowed]) + width)
    ends = _shrink(windows, near, least, most, ends)
    fine = np.unique(np.clip([*np.linspace(ends[0], near, 31), *np.linspace(near, ends[1], 31)], -LEAN, LEAN))
    lanes = tuple(solve_lanes(w, fine) for w in windows)
    cost = np.maximum(sum(lane.ss for lane in lanes) - least, 0.0)
    best = int(np.argmin(np.abs(fine - near)))
    return Joint(lanes, fine, cost, best, variance, inflation, residual_dof, dof)


def _total(windows: Sequence[Window], c: np.ndarray) -> np.ndarray:
    total: np.ndarray = sum((solve_lanes(w, c).ss for w in windows), np.zeros(len(c)))
    return total


def _shrink(
    windows: Sequence[Window], near: float, least: float, most: float, ends: tuple[float, float]
) -> tuple[float, float]:
    """Both ends drawn to where c costs `most`, by bisection: the grid's ends are then the interval's."""
    found = []
    for end in ends:
        dear, cheap = float(np.clip(end, -LEAN, LEAN)), near
        if float(_total(windows, np.array([dear]))[0]) - least > most:
            for _ in range(12):
                middle = (dear + cheap) / 2
                over = float(_total(windows, np.array([middle]))[0]) - least > most
                dear, cheap = (middle, cheap) if over else (dear, middle)
            dear = cheap
        found.append(dear)
    return found[0], found[1]


def _seed_lean(lanes: Sequence[Lanes], variance: float) -> tuple[float, int]:
    """By how much seeds that lean raise the variance of a slope (at least 1, drawn to 1), and the dof of that."""
    ss, dof = 0.0, 0
    for lane in lanes:
        w = lane.window
        if w.seeds < 2 or not np.isfinite(lane.optimum()[0]):
            continue
        influence = lane.slope_of(0)
        b, k = lane.coef[0]
        fitted = w.center(b * w.t + k * lean(lane.c[:1], w.t))
        pull = np.bincount(w.seed, influence * (w.center(w.loss) - fitted))
        ss += float((pull**2).sum() * w.seeds / (influence**2).sum())
        dof += w.seeds - 1
    ratio = ss / max(dof, 1) / variance
    return max(1.0, (PRIOR_DOF + dof * ratio) / (PRIOR_DOF + dof)), dof


def choose_size(curves: Sequence[Curve], confidence: float) -> tuple[int, list[dict[str, float]]]:
    """The widest window (rates a member) whose joint fit is not rejected at 5%, and the p value of each size tried.

    Two tests, the smaller p doubled: polynomials of degree four, one a member, and one mean a rate, both against
    the scatter between seeds at one rate. With one seed the first alone, against what the polynomials leave.
    If five rates are rejected too, five: the narrowest.
    """
    most = max(len(curve.window(len(curve.x))) for curve in curves)
    tried: list[dict[str, float]] = []
    for size in range(most, min(NARROWEST, most) - 1, -1):
        p = _misfit_p([take_window(curve, size) for curve in curves], confidence)
        tried.append({"rates": size, "p_value": p})
        if p >= SIGNIFICANCE:
            break
    return int(tried[-1]["rates"]), tried


def _misfit_p(windows: Sequence[Window], confidence: float) -> float:
    joint = fit_joint(windows, confidence)
    smooth, means = (_left(windows, degree) for degree in (4, None))
    if means[1] < 1:
        return _f_test(joint, smooth, smooth)
    return min(1.0, 2 * min(_f_test(joint, smooth, means), _f_test(joint, means, means)))


def _left(windows: Sequence[Window], degree: int | None) -> tuple[float, int]:
    """Sum of squares and dof that a polynomial a member leaves; one mean a rate with degree None."""
    left, dof = 0.0, 0
    for w in windows:
        most = w.rates - 1
        power = most if degree is None else min(degree, most if len(w.t) > w.rates + w.seeds - 1 else most - 1)
        basis = w.center(np.vander(2 * w.t / max(np.ptp(w.t), 1e-300), power + 1)[:, :-1].T).T
        y = w.center(w.loss)
        left += float(((y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0]) ** 2).sum())
        dof += len(w.t) - w.seeds - power
    return left, dof


def _f_test(joint: Joint, richer: tuple[float, int], noise: tuple[float, int]) -> float:
    """P value of what the richer fit gains on the joint one, against the noise that is left by another."""
    gained, terms = joint.variance * joint.residual_dof - richer[0], joint.residual_dof - richer[1]
    tiny = 1e-18 * sum(float((lane.window.loss**2).sum()) for lane in joint.lanes)
    if terms < 1 or noise[1] < 1 or gained <= tiny:
        return 1.0
    return f_tail(gained / terms / (max(noise[0], tiny) / noise[1]), terms, noise[1])
