"""Stage 2 as Bhagia et al. 2024 fitted it: least squares in a box, stopped where their optimizer stops.

Their step 2 is scipy's `curve_fit` with bounds: a trust region with Coleman and Li's (1996) scaling, begun at one
point and ended once a step lowers the sum of squares by less than 1e-8 of itself. That is short of the optimum, by
1.2e-6 of the accuracy for MMLU, so published digits come out to 1e-6 only by the same path. This is that algorithm
(Branch, Coleman and Li 1999), for few parameters, with an exact Jacobian:

    variables y = x / d,  d = sqrt(v),  v the distance to the bound that the gradient points to, 1 where there is none
    step: of the Gauss-Newton model with diag(g dv) added, inside a ball; back from a bound, or along the gradient

The start (-(1 - chance), .9, 3, 1) is in bits per byte: here, and only here, the unit of the NLL matters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["fit_as_published"]

Vector = np.ndarray
TOLERANCE = 1e-8
MOST = 500
INSIDE = 0.995
"""Least share of the way to a bound that a step may take."""
BOUNDS = np.array([[-1.0, 0.0, 0.0, 0.0], [0.0, np.inf, np.inf, 1.0]])


def fit_as_published(x: Vector, y: Vector, chance: float) -> Vector:
    """theta = a, x0, k, b of the sigmoid through pairs (n,) in bits per byte and the point (0, 1)."""
    x, y = np.append(x, 0.0), np.append(y, 1.0)

    def look(theta: Vector) -> tuple[Vector, Vector]:
        a, x0, k, b = theta
        s = 1 / (1 + np.exp(np.clip(-k * (x - x0), -500, 500)))
        bend = a * s * (1 - s)
        return b + a * s - y, np.stack([s, -k * bend, (x - x0) * bend, np.ones_like(x)], 1)

    return _minimize(look, _into(np.array([chance - 1, 0.9, 3.0, 1.0]), 1e-10), BOUNDS)


def _minimize(look: Callable[[Vector], tuple[Vector, Vector]], x: Vector, bounds: Vector) -> Vector:
    """Steps until the last lowered the cost by less than TOLERANCE of it, or moved x by less, or the slope is flat."""
    f, J = look(x)
    g, cost, alpha = J.T @ f, 0.5 * f @ f, 0.0
    radius = float(np.linalg.norm(x / np.sqrt(_scaling(x, g)[0]))) or 1.0
    for _ in range(MOST):
        v, dv = _scaling(x, g)
        slope = float(np.abs(g * v).max())
        if slope < TOLERANCE:
            break
        d, curve = np.sqrt(v), g * dv
        Jh = J * d
        U, s, Vt = np.linalg.svd(np.vstack([Jh, np.diag(np.sqrt(curve))]), full_matrices=False)
        uf = U.T @ np.append(f, np.zeros(len(x)))
        keep, gain, done = max(INSIDE, 1 - slope), -1.0, False
        while gain <= 0:
            ph, alpha = _in_ball(len(f), uf, s, Vt.T, radius, alpha)
            step, step_h, promised = _choose(x, Jh, curve, d * g, d * ph, ph, d, radius, keep)
            trial = _into(x + step, 0.0)
            f_new, J_new = look(trial)
            gain = cost - 0.5 * f_new @ f_new
            length = float(np.linalg.norm(step_h))
            before = radius
            radius, ratio = _resize(radius, gain, promised, length)
            small_gain = gain < TOLERANCE * cost and ratio > 0.25
            done = small_gain or np.linalg.norm(step) < TOLERANCE * (TOLERANCE + np.linalg.norm(x))
            if done:
                break
            alpha *= before / radius
        if gain > 0:
            x, f, J = trial, f_new, J_new
            cost, g = 0.5 * f @ f, J.T @ f
        if done:
            break
    return x


def _scaling(x: Vector, g: Vector) -> tuple[Vector, Vector]:
    """v and its derivative: the distance to the bound ahead of a step downhill."""
    v, dv = np.ones_like(x), np.zeros_like(x)
    up, down = (g < 0) & np.isfinite(BOUNDS[1]), (g > 0) & np.isfinite(BOUNDS[0])
    v[up], dv[up] = BOUNDS[1][up] - x[up], -1
    v[down], dv[down] = x[down] - BOUNDS[0][down], 1
    return v, dv


def _into(x: Vector, share: float) -> Vector:
    """x strictly between the bounds: by `share` of their size, or by the least step that floats have."""
    low, high = BOUNDS
    room = [share * np.where(np.isfinite(end), np.maximum(1, np.abs(end)), 1.0) for end in BOUNDS]
    inner = [low + room[0], high - room[1]] if share else [np.nextafter(low, high), np.nextafter(high, low)]
    at_low, at_high = x - low <= room[0], high - x <= room[1]
    return np.where(at_high, inner[1], np.where(at_low, inner[0], x))


def _in_ball(rows: int, uf: Vector, s: Vector, V: Vector, radius: float, alpha: float) -> tuple[Vector, float]:
    """The least-squares step in a ball: Gauss-Newton where it fits, else with a damping alpha that reaches the rim."""
    suf = s * uf
    full = bool(s[-1] > np.finfo(float).eps * rows * s[0])
    if full:
        p = -V @ (uf / s)
        if np.linalg.norm(p) <= radius:
            return p, 0.0

    def phi(alpha: float) -> tuple[float, float]:
        denominator = s**2 + alpha
        length = float(np.linalg.norm(suf / denominator))
        return length - radius, float(-np.sum(suf**2 / denominator**3) / length)

    upper = float(np.linalg.norm(suf)) / radius
    lower = 0.0
    if full:
        value, slope = phi(0.0)
        lower = -value / slope
    if alpha < lower or alpha > upper or (not full and alpha == 0):
        alpha = max(0.001 * upper, np.sqrt(lower * upper))
    for _ in range(10):
        if alpha < lower or alpha > upper:
            alpha = max(0.001 * upper, np.sqrt(lower * upper))
        value, slope = phi(alpha)
        upper = alpha if value < 0 else upper
        ratio = value / slope
        lower = max(lower, alpha - ratio)
        alpha -= (value + radius) * ratio / radius
        if abs(value) < 0.01 * radius:
            break
    p = -V @ (suf / (s**2 + alpha))
    return p * (radius / np.linalg.norm(p)), alpha


def _model(Jh: Vector, curve: Vector, gh: Vector, step: Vector) -> float:
    """What the quadratic model says of a step."""
    image = Jh @ step
    return float(0.5 * (image @ image + step @ (curve * step)) + gh @ step)


def _choose(
    x: Vector, Jh: Vector, curve: Vector, gh: Vector, p: Vector, ph: Vector, d: Vector, radius: float, keep: float
) -> tuple[Vector, Vector, float]:
    """The best of the trust-region step cut at the bounds, its reflection, and the scaled gradient."""
    low, high = BOUNDS
    if ((x + p >= low) & (x + p <= high)).all():
        return p, ph, -_model(Jh, curve, gh, ph)
    stride, hits = _to_bounds(x, p)
    reflected_h = np.where(hits, -ph, ph)
    reflected = d * reflected_h
    p, ph = p * stride, ph * stride
    on_bound = x + p
    to_rim, to_bound = _to_rim(ph, reflected_h, radius), _to_bounds(on_bound, reflected)[0]
    longest = min(to_bound, to_rim)
    reflected_value = np.inf
    if longest > 0:
        shortest = (1 - keep) * stride / longest
        longest = keep * to_bound if longest == to_bound else to_rim
        if shortest <= longest:
            t, reflected_value = _along(Jh, gh, reflected_h, curve, shortest, longest, ph)
            reflected_h = reflected_h * t + ph
            reflected = reflected_h * d
    p, ph = p * keep, ph * keep
    value = _model(Jh, curve, gh, ph)
    down_h, down = -gh, -gh * d
    rim, bound = radius / float(np.linalg.norm(down_h)), _to_bounds(x, down)[0]
    t, down_value = _along(Jh, gh, down_h, curve, 0.0, keep * bound if bound < rim else rim, None)
    if value < reflected_value and value < down_value:
        return p, ph, -value
    if reflected_value < value and reflected_value < down_value:
        return reflected, reflected_h, -reflected_value
    return down * t, down_h * t, -down_value


def _to_bounds(x: Vector, p: Vector) -> tuple[float, Vector]:
    """How many steps p lead to the first bound, and which variables meet it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        strides = np.where(p == 0, np.inf, np.maximum((BOUNDS[0] - x) / p, (BOUNDS[1] - x) / p))
    nearest = float(strides.min())
    return nearest, (strides == nearest) & (p != 0)


def _to_rim(x: Vector, p: Vector, radius: float) -> float:
    """How many steps p lead from x to the rim of the ball."""
    a, b, c = p @ p, x @ p, x @ x - radius**2
    q = -(b + np.copysign(np.sqrt(b * b - a * c), b))
    return float(max(q / a, c / q))


def _along(
    Jh: Vector, gh: Vector, s: Vector, curve: Vector, low: float, high: float, origin: Vector | None
) -> tuple[float, float]:
    """Where on the line origin + t s, low <= t <= high, the model is lowest, and its value there."""
    image = Jh @ s
    a, b, c = 0.5 * (image @ image + s @ (curve * s)), gh @ s, 0.0
    if origin is not None:
        u = Jh @ origin
        b += u @ image + origin @ (curve * s)
        c = 0.5 * (u @ u + origin @ (curve * origin)) + gh @ origin
    ends = [low, high]
    if a != 0 and low < -0.5 * b / a < high:
        ends.append(-0.5 * b / a)
    values = [t * (a * t + b) + c for t in ends]
    best = int(np.argmin(values))
    return float(ends[best]), float(values[best])


def _resize(radius: float, gain: float, promised: float, length: float) -> tuple[float, float]:
    """The ball after a step: a quarter of it after a poor one, twice after a good one that met the rim."""
    ratio = gain / promised if promised > 0 else (1.0 if promised == gain == 0 else 0.0)
    if ratio < 0.25:
        return 0.25 * length, ratio
    return (2 * radius if ratio > 0.75 and length > 0.95 * radius else radius), ratio
