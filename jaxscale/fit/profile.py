"""Profile likelihood: how far a parameter can go when all others make room, and whether anything stops it.

    deviance(p) = 2 lambda (min over the others of V(theta | p) - V_min),   lambda = (n-q) E[psi'] / (n E[psi^2])

V is the summed robust loss, psi its derivative, q the free parameters. lambda makes the deviance of an
M-estimator chi^2 with one degree of freedom (Ronchetti 1982; for squares it is 1/s^2), and the limit is F's with
(1, n - q). A parameter whose deviance stays below the limit however large it gets is bounded from below only:
no standard error says that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.fit.cells import Cells
from jaxscale.fit.optimize import Optimum
from jaxscale.fit.resample import NoiseModel

if TYPE_CHECKING:
    from jaxscale.fit.general import GeneralDesign
    from jaxscale.fit.solver import Solution

__all__ = ["judge_profiles", "profile_parameters"]

STEPS = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 9.0, 14.0, 20.0, 30.0, 50.0)
"""Distances from the optimum in curvature deviations; far ones show whether a flat profile ever rises."""
FURTHEST = np.log(1e4)
"""Positive parameters are followed to 10^4 times either way, others to this distance."""
TOLERANCE = 1e-9


def profile_parameters(cells: Cells, best: Optimum, model: NoiseModel, confidence: float) -> dict[str, Any]:
    """Per free parameter: `values`, `deviance`, `interval` (None at an open end) and `bounded` in words."""
    from jaxscale.fit.general import build_general

    design = build_general(best.design.law, cells, best.design.fixed)
    walk = _Walk(design, cells, best.delta if np.isfinite(best.delta) else 1e3)
    center = design.theta_of({name: np.array([value]) for name, value in best.params.items()})[0]
    theta, value, hessian = walk.settle(center)
    scale = 2 * _lambda(model, walk.delta, best.scale, len(design.free))
    places, moves = _distances(design.mask, hessian * scale / 2)
    thetas, values = walk.outward(theta, places, moves)
    limit = _limit(len(cells) - len(design.free), confidence)
    profiles = {}
    for lane, place in enumerate(places[::2]):
        low, high = 2 * lane, 2 * lane + 1
        points = np.concatenate([thetas[::-1, low, place], [theta[place]], thetas[:, high, place]])
        heights = scale * (np.concatenate([values[::-1, low], [value], values[:, high]]) - value)
        name = design.names[place]
        profiles[name] = _describe(points, heights, limit, name in design.law.positive)
    return profiles


class _Walk:
    """Fits of the other parameters while one is held, each started from its neighbour."""

    def __init__(self, design: GeneralDesign, cells: Cells, delta: float) -> None:
        self.design, self.delta = design, delta
        self.y, self.w = np.log(cells.loss), cells.weight

    def _polish(self, theta: np.ndarray, mask: np.ndarray | None = None) -> Solution:
        from jaxscale.fit.solver import Lanes

        lanes = Lanes(theta, np.tile(self.y, (len(theta), 1)), np.tile(self.w, (len(theta), 1)))
        return self.design.polish(lanes, self.delta, tolerance=TOLERANCE, mask=mask)

    def settle(self, center: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        """theta (P,), value and Hessian (P, P) of the optimum near center."""
        found = self._polish(center[None])
        return found.theta[0], float(found.value[0]), found.hessian[0]

    def outward(self, theta: np.ndarray, places: np.ndarray, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """theta (steps, lanes, P) and values (steps, lanes) with parameter places[lane] at moves (steps, lanes)."""
        rows = np.arange(len(places))
        masks = np.tile(self.design.mask, (len(places), 1))
        masks[rows, places] = 0.0
        here, thetas, values = np.tile(theta, (len(places), 1)), [], []
        for step in moves:
            here = here.copy()
            here[rows, places] = theta[places] + step
            found = self._polish(here, masks)
            here = np.where(np.isfinite(found.theta), found.theta, here)
            thetas.append(here)
            values.append(found.value)
        return np.array(thetas), np.array(values)


def _distances(mask: np.ndarray, hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A lane down and a lane up for each free parameter (lanes,), and its moves (steps, lanes).

    `hessian` is that of half the deviance, so that its inverse is the covariance.
    """
    free = np.flatnonzero(mask)
    variance = np.diag(np.linalg.pinv(hessian[np.ix_(free, free)], hermitian=True))
    spread = np.sqrt(np.clip(variance, 1e-12, None))
    spread = np.where(variance > 0, np.minimum(spread, FURTHEST / 4), FURTHEST / 4)
    moves = np.minimum(np.outer(STEPS, np.repeat(spread, 2)), FURTHEST) * np.tile([-1.0, 1.0], len(free))
    return np.repeat(free, 2), moves


def _lambda(model: NoiseModel, delta: float, scale: float, free: int) -> float:
    """lambda of the header; E[psi'] is a density at 0, read over no less than a kernel's width."""
    n, root = len(model.residual), np.sqrt(model.weight)
    width = max(delta, scale * n**-0.2)
    inside = np.mean(np.abs(root * model.residual) <= width) * min(delta / width, 1.0)
    psi = root * np.clip(model.residual, -delta, delta)
    return float((n - free) * inside / max(n * (psi**2).mean(), 1e-300))


def _limit(dof: int, confidence: float) -> float:
    """The F quantile with (1, dof), as the square of Student's t by Hill's (1970) expansion about the normal."""
    from statistics import NormalDist

    z, v = NormalDist().inv_cdf((1 + confidence) / 2), max(dof, 1)
    terms = (z**3 + z) / (4 * v), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t = z + sum(terms) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return float(t**2)


def _describe(points: np.ndarray, heights: np.ndarray, limit: float, logs: bool) -> dict[str, Any]:
    """One parameter's profile: its ends by linear interpolation of the signed root of the deviance."""
    center = int(np.argmin(np.where(np.isfinite(heights), heights, np.inf)))
    root = np.sqrt(np.maximum(heights, 0.0))
    low = _cross(points[center::-1], root[center::-1], np.sqrt(limit))
    high = _cross(points[center:], root[center:], np.sqrt(limit))
    ends = [None if end is None else float(np.exp(end) if logs else end) for end in (low, high)]
    return {
        "values": (np.exp(points) if logs else points).tolist(), "deviance": heights.tolist(), "limit": limit,
        "interval": ends, "bounded": _say_bounded(*ends), "lower_elsewhere": bool(heights.min() < -1e-3 * limit),
    }  # fmt: skip


def _cross(points: np.ndarray, root: np.ndarray, limit: float) -> float | None:
    """Where the root first reaches the limit, walking outward; None where it never does."""
    above = np.flatnonzero(~(root <= limit))
    if not len(above) or not np.isfinite(root[above[0]]):
        return None if not len(above) else float(points[above[0]])
    i = above[0]
    share = (limit - root[i - 1]) / (root[i] - root[i - 1])
    return float(points[i - 1] + share * (points[i] - points[i - 1]))


def _say_bounded(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "not bounded"
    if high is None:
        return "bounded from below only"
    return "bounded from above only" if low is None else "bounded"


def judge_profiles(profiles: dict[str, Any]) -> list[str]:
    """Sentences about parameters that the data leave open, and about better optima that a profile met."""
    words = []
    for name, found in profiles.items():
        low, high = found["interval"]
        if found["bounded"] == "bounded from below only":
            words.append(f"{name} is bounded from below only: the data say above {low:.3g}, no upper end within "
                         f"{found['values'][-1]:.3g}")  # fmt: skip
        elif found["bounded"] == "bounded from above only":
            words.append(f"{name} is bounded from above only: the data say below {high:.3g}")
        elif found["bounded"] == "not bounded":
            words.append(f"{name} is not bounded by the data: its profile stays flat over all values tried")
    if any(found["lower_elsewhere"] for found in profiles.values()):
        words.append("the profile met a better optimum than this one: the fit, or the start given by hand, ended in a "
                     "local optimum")  # fmt: skip
    return words
