"""Two powers: the reading of an IsoFLOP curve that Chinchilla's law itself has at a fixed C.

    L(N) = l + P / N^alpha + Q N^beta,   alpha + beta = 0.7,   delta = beta - alpha        at D = C / 6 N

l, P and Q are free in every budget (linear least squares), delta, the skew, is shared by all of them. A
parabola is its limit for small exponents, and is off by about (beta - alpha) t^2 / 6 in log N at sizes
within t of the optimum: with alpha = .25 and beta = .5 eight percent in N_opt at sizes within a factor of six.
No law holds over every size, so a cell is trusted less the higher it lies above the lowest of its budget:

    Var log loss = sigma^2 (1 / seeds + (rho rise)^2),   rise = log(loss / lowest loss of the budget)

rho is found by restricted maximum likelihood over all budgets: 0 where noise is all there is (every size
counts), and large on dense, quiet grids, where the reading becomes a local one. No window is cut. Where seeds
repeat and the cells scatter about their curves by more than seeds do, at every height alike, it is
sigma^2 (1 / seeds + kappa) instead: an error that all seeds of a cell share, and no repeat averages away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxscale.fit.minima import Curve

__all__ = [
    "Shape",
    "fit_shape",
    "has_minimum",
    "minimum_powers",
    "powers_hat",
    "redraw_shapes",
    "soften",
    "value_powers",
]

EXPONENT_SUM = 0.7
"""Assumption: alpha + beta, .62 to .75 in Hoffmann et al. and its refits; it hardly moves a minimum."""
SKEW_STD = 0.25
"""Assumption: delta is 0 +- .25 before the data speak (Hoffmann -.06, Besiroglu +.02); the rounds carry it."""
SKEWS = np.linspace(-1.0, 1.0, 33)
MISFIT_EVIDENCE = 6.63
"""A misfit enters where it gains this much in -2 log likelihood (1% point of chi^2 with one degree of freedom)."""
RHOS = np.array([0.0, *np.geomspace(5.0, 5000.0, 13)])
KAPPAS = np.geomspace(0.125, 128.0, 11)


@dataclass(frozen=True)
class Shape:
    """Skew delta, rho of the misfit, and sigma, the deviation of one run's log loss at the minimum; kappa sigma^2 is
    the variance of what the seeds of a cell share."""

    delta: float
    rho: float
    sigma: float
    kappa: float = 0.0


def soften(curve: Curve, rho: float, kappa: float = 0.0) -> Curve:
    """The curve with each cell's weight lowered by the misfit expected at its height, and by what its seeds share."""
    rise = np.log(curve.loss / curve.loss.min())
    weight = 1 / (1 / curve.weight + kappa + (rho * rise) ** 2)
    return Curve(curve.C, curve.x, curve.log_D, curve.loss, weight, curve.cells)


def fit_shape(curves: Sequence[Curve], seed_ss: float = 0.0, seed_dof: float = 0.0) -> Shape:
    """Shape shared by the curves; the spread between seeds is part of the likelihood."""
    dof = seed_dof + sum(len(curve.x) - 3 for curve in curves)
    if dof < 2:
        return Shape(0.0, 0.0, 0.0)
    misfits = [(rho, 0.0) for rho in RHOS] + [(0.0, kappa) for kappa in KAPPAS if seed_dof > 0]
    ss, log_det = (sum(parts) for parts in zip(*(_project(curve, misfits) for curve in curves), strict=True))
    ss = np.maximum(ss + seed_ss, 1e-18 * dof)
    height = dof * np.log(ss / dof) + log_det + (SKEWS / SKEW_STD) ** 2
    height[1:] += MISFIT_EVIDENCE
    delta, lowest = _refine(height)
    lowest[0] -= 1e-9
    best = int(np.argmin(lowest))
    spent = dof - 1 - (best > 0)
    sigma = np.sqrt(np.interp(delta[best], SKEWS, ss[best]) / spent)
    return Shape(float(delta[best]), float(misfits[best][0]), float(sigma), float(misfits[best][1]))


def _basis(x: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """(..., n, 3): 1, (1 - N^-alpha) / alpha and (N^beta - 1) / beta about the mean of x = log N."""
    t = x - x.mean()
    alpha, beta = (np.asarray((EXPONENT_SUM + sign * delta) / 2)[..., None] for sign in (-1, 1))
    return np.stack([np.ones(np.broadcast_shapes(alpha.shape, t.shape)), _grow(-alpha, t), _grow(beta, t)], -1)


def _grow(rate: np.ndarray, t: np.ndarray) -> np.ndarray:
    """(exp(rate t) - 1) / rate, t where the rate is 0."""
    small = np.abs(rate) < 1e-6
    return np.where(small, t, np.expm1(rate * t) / np.where(small, 1.0, rate))


def _project(curve: Curve, misfits: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Weighted relative sum of squares about the reading, and the REML determinant, (misfits, skews)."""
    basis = _basis(curve.x, SKEWS) / curve.loss[:, None]
    weight = np.stack([soften(curve, rho, kappa).weight for rho, kappa in misfits])
    root = np.sqrt(weight)[:, None, :, None]
    q, r = np.linalg.qr(root * basis)
    plain = np.linalg.qr(basis, mode="r")
    y = root[..., 0]
    left = ((y - (q @ (y[..., None, :] @ q).swapaxes(-1, -2))[..., 0]) ** 2).sum(-1)
    log_det = [2 * np.log(np.abs(np.diagonal(m, axis1=-2, axis2=-1))).sum(-1) for m in (r, plain)]
    return left, log_det[0] - log_det[1] - np.log(weight).sum(-1)[:, None]


def _refine(height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest point (rounds,) of heights (rounds, skews), by the parabola through the lowest three."""
    row, i = np.arange(len(height)), np.clip(np.argmin(height, -1), 1, len(SKEWS) - 2)
    low, mid, high = (height[row, i + k] for k in (-1, 0, 1))
    bend = low - 2 * mid + high
    step = np.where(bend > 0, (low - high) / np.where(bend > 0, 2 * bend, 1.0), 0.0)
    step = np.clip(step, -1, 1)
    return SKEWS[i] + step * (SKEWS[1] - SKEWS[0]), mid + step * (high - low) / 2 + step**2 * bend / 2


def powers_hat(curve: Curve, delta: float) -> np.ndarray:
    """Hat matrix (n, n) of the weighted fit: fitted = hat @ loss."""
    root = (np.sqrt(curve.weight) / curve.loss)[:, None]
    basis = _basis(curve.x, np.asarray(delta))
    return basis @ np.linalg.pinv(root * basis) * root.T


def _coefficients(curve: Curve, losses: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """(rounds, 3) for losses (rounds, n) at skews (rounds,)."""
    basis = _basis(curve.x, delta)
    root = np.sqrt(curve.weight) / curve.loss
    q, r = np.linalg.qr(root[:, None] * basis)
    right = np.einsum("rnk,rn->rk", q, root * losses)
    return np.linalg.solve(r, right[..., None])[..., 0]


def minimum_powers(curve: Curve, losses: np.ndarray, delta: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """log N and loss (rounds,) at the minimum; rounds without one end at the lower end of the sizes."""
    delta = np.broadcast_to(np.asarray(delta, float), len(losses))
    c = _coefficients(curve, losses, delta)
    center, ends = curve.x.mean(), np.array([curve.x[0], curve.x[-1]])
    convex = (c[:, 1] < 0) & (c[:, 2] > 0)
    ratio = np.where(convex, -c[:, 1] / np.where(convex, c[:, 2], 1.0), 1.0)
    at_ends = np.stack([_value(curve, c, delta, np.full(len(c), end)) for end in ends], -1)
    vertex = np.clip(center + np.log(ratio) / EXPONENT_SUM, *ends)
    x = np.where(convex, vertex, ends[np.argmin(at_ends, -1)])
    return x, _value(curve, c, delta, x)


def has_minimum(curve: Curve, delta: float) -> bool:
    """Whether the reading of the measured losses opens upward."""
    c = _coefficients(curve, curve.loss[None], np.array([delta]))[0]
    return bool(c[1] < 0 < c[2])


def _value(curve: Curve, c: np.ndarray, delta: np.ndarray, x: np.ndarray) -> np.ndarray:
    t = x - curve.x.mean()
    alpha, beta = (EXPONENT_SUM - delta) / 2, (EXPONENT_SUM + delta) / 2
    return c[:, 0] + c[:, 1] * _grow(-alpha, t) + c[:, 2] * _grow(beta, t)


def value_powers(curve: Curve, delta: float, x: np.ndarray) -> np.ndarray:
    """The reading of the measured losses at log N = x."""
    c = _coefficients(curve, curve.loss[None], np.array([delta]))
    return _value(curve, np.repeat(c, len(x), 0), np.full(len(x), delta), x)


def redraw_shapes(curves: Sequence[Curve], losses: Sequence[np.ndarray], shape: Shape,
                  rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """Skews (rounds,) refitted to redrawn losses, each round under its own draw of the assumption about delta.

    Randomize, then optimize (Bardsley et al. 2014): for a nearly linear problem that samples the posterior.
    """
    prior = shape.delta + SKEW_STD * rng.standard_normal(len(losses[0]))
    height = ((SKEWS - prior[:, None]) / SKEW_STD) ** 2
    for curve, drawn in zip(curves, losses, strict=True):
        root = np.sqrt(curve.weight) / curve.loss
        q, _ = np.linalg.qr(root[:, None] * _basis(curve.x, SKEWS))  # (skews, n, 3)
        z = root * drawn
        left = z[:, None] - np.einsum("rgk,gnk->rgn", np.einsum("rn,gnk->rgk", z, q), q)
        height = height + (left**2).sum(-1) / max(shape.sigma, 1e-12) ** 2
    return _refine(height)[0]
