"""What it costs to train one model at another one's best rate.

    R = L_m(x*_j) - L_m(x*_m) = max over x of L_m(x*_j) - L_m(x)

R is never negative and curved in the estimates, so the fitted R is too high by about K var(x*_j - x*_m) / 2 and
a bootstrap about it is off at 0. Here instead: the estimate has that bias taken off, down to 0 at least; the
bounds are the largest and the smallest R over all (c, x*_j, L_m) that together cost at most T (jaxscale.mup.tilt;
t one-sided, so each bound holds with the stated confidence). Where the truth is 0 the upper bound always holds.

Outside member m's window the fitted curve is not trusted. Between stable rates its measured means are joined:
the bound by straight lines, which lie above a convex curve; the estimate by lines through the roots of R, straight
for a parabola. Beyond the last stable rate nothing bounds R from above; from below the loss at that rate does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxscale.fit.resample import t_quantile
from jaxscale.mup.rates import Curve, format_rate
from jaxscale.mup.tilt import Joint, Lanes, lean, undo

__all__ = ["Regret", "measure_regret"]

SHARES = np.sqrt(np.linspace(0.0, 1.0, 11))
"""Root of the share of the budget that x*_j takes."""
ANGLES = np.linspace(0, 2 * np.pi, 36, endpoint=False)
TILTS = 13


@dataclass(frozen=True)
class Regret:
    """Nats: estimate and bounds, one-sided each. Estimate and `high` are None beyond the stable rates: `reason`."""

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""


def measure_regret(joint: Joint, source: int, target: int, curve: Curve, confidence: float) -> Regret:
    """Regret of member `target` (its runs: `curve`) at the optimum of member `source`."""
    if source == target:
        return Regret(0.0, 0.0, 0.0)
    left = joint.budget(confidence, one_sided=True)
    allowed = np.flatnonzero(left >= 0)
    chosen = np.unique([joint.best, *allowed[np.linspace(0, len(allowed) - 1, TILTS).round().astype(int)]])
    x, lanes = float(joint.lanes[source].optimum()[joint.best]), joint.lanes[target]
    ends = [joint.lanes[source].fieller(np.maximum(left, 0.0))[side][allowed] for side in (0, 1)]
    reach = float(ends[0].min()), float(ends[1].max())
    step = float(np.median(np.diff(curve.x))) / 2
    window = lanes.window.ends[0] - step, lanes.window.ends[1] + step
    if not (window[0] <= reach[0] and reach[1] <= window[1]):
        return _measured(joint, lanes, curve, x, reach, confidence)
    tried = [_try_all(joint.lanes[source], lanes, int(i), float(left[i])) for i in chosen]
    gap, values = (np.concatenate(part) for part in zip(*tried, strict=True))
    low = 0.0 if gap.min() <= 0 <= gap.max() else float(values.min())
    weights = [float(k == source) - float(k == target) for k in range(len(joint.lanes))]
    return Regret(_estimate(joint, lanes, x, weights, confidence), low, float(values.max()))


def _try_all(source: Lanes, target: Lanes, lane: int, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """x*_j - x*_m and R (points,) over the surface of what the budget allows at one c, its center included."""
    c, origin = source.c[lane], target.window.origin
    root = np.linalg.cholesky(target.cov[lane])
    shares = np.append(SHARES, 0.0)
    low, high = _ends_at(source, lane, budget * shares**2)
    left = np.append(np.sqrt(np.maximum(budget * (1 - SHARES**2), 0.0)), 0.0)
    turn = root @ np.stack([np.cos(ANGLES), np.sin(ANGLES)])
    b, k = (target.coef[lane][i] + left[:, None] * turn[i] for i in (0, 1))
    gaps, values = [], []
    for x in (low, high):
        u = x[:, None] - origin
        best = _lowest(target, c, b, k)
        gaps.append((u - best).ravel())
        values.append((b * u + k * lean(c, u) - b * best - k * lean(c, best)).ravel())
    return np.concatenate(gaps), np.maximum(np.concatenate(values), 0.0)


def _ends_at(lanes: Lanes, lane: int, budgets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fieller's ends (budgets,) of x* at one c."""
    n = len(budgets)
    same = Lanes(lanes.window, np.repeat(lanes.c[lane], n), np.repeat(lanes.coef[lane][None], n, 0),
                 np.repeat(lanes.cov[lane][None], n, 0), np.zeros(n), np.zeros(n))  # fmt: skip
    return same.fieller(budgets)


def _lowest(target: Lanes, c: np.ndarray, b: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Where b t + k phi_c(t) is lowest inside the window: its vertex, or the lower end."""
    ends = np.array(target.window.ends) - target.window.origin
    vertex = undo(np.full_like(b, c), -b / np.where(k > 0, k, np.nan))
    at_ends = np.stack([b * end + k * lean(c, end) for end in ends])
    return np.where(np.isfinite(vertex), np.clip(vertex, *ends), ends[np.argmin(at_ends, 0)])


def _estimate(joint: Joint, lanes: Lanes, x: float, weights: list[float], confidence: float) -> float:
    """The fitted R less its bias, at least 0; x is the source's optimum."""
    c, (b, k) = joint.c[joint.best], lanes.coef[joint.best]
    u = np.array([x, lanes.optimum()[joint.best]]) - lanes.window.origin
    naive = float(np.diff(-(b * u + k * lean(c, u)))[0])
    _, (low, high) = joint.sum_interval(weights, confidence)
    if low is None or high is None:
        return max(naive, 0.0)
    std = (high - low) / 2 / t_quantile(confidence, joint.dof)
    return max(naive - k * float(np.exp(c * u[1])) * std**2 / 2, 0.0)


def _measured(
    joint: Joint, lanes: Lanes, curve: Curve, x: float, reach: tuple[float, float], confidence: float
) -> Regret:
    """R from the means measured outside the window, where the source's interval still ends among stable rates."""
    stable, best = curve.block(), joint.best
    known, mean = curve.x[stable], curve.mean[stable]
    least = lanes.level[best] + _height(lanes, joint.c[best], best)
    runs = np.isfinite(curve.loss[stable]).sum(1).min()
    error = float(np.sqrt(joint.variance * joint.inflation * 2 / runs)) * t_quantile(2 * confidence - 1, joint.dof)
    inside = np.clip([*reach, x], known[0], known[-1])
    places = np.array([*inside, *known[(known > inside[0]) & (known < inside[1])]])
    heights = np.interp(places, known, mean) - least
    low, high = max(float(heights.min()) - error, 0.0), float(heights.max()) + error
    value = float(np.interp(x, known, np.sqrt(np.maximum(mean - least, 0.0)))) ** 2
    if not known[0] <= x <= known[-1]:
        return Regret(None, low, None, _beyond(curve, x))
    if reach[0] < known[0] or reach[1] > known[-1]:
        return Regret(value, low, None, _beyond(curve, reach[0] if reach[0] < known[0] else reach[1]))
    return Regret(value, low, high)


def _height(lanes: Lanes, c: np.ndarray, lane: int) -> float:
    """Loss at x* less that at the origin."""
    b, k = lanes.coef[lane]
    u = lanes.optimum()[lane] - lanes.window.origin
    return float(b * u + k * lean(c, u))


def _beyond(curve: Curve, x: float) -> str:
    """Why nothing is known at log2 lr x."""
    stable = curve.block()
    above = x > curve.x[stable[-1]]
    beside = stable[-1] + 1 if above else stable[0] - 1
    told = f"rate {format_rate(2**x if np.isfinite(x) else None)} lies {'above' if above else 'below'} its stable rates"
    if 0 <= beside < len(curve.x) and (curve.diverged | curve.censored)[beside].any():
        return f"{told}, and {format_rate(2 ** curve.x[beside])} {curve.fate(beside)}"
    return f"{told}, none was tried there"
