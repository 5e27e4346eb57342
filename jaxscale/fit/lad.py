"""Least absolute deviations exactly: the vertex that continuation points at, and the proof that it is one.

An optimum of sum w |r| passes through as many cells as there are free parameters, and there numbers
|s_i| <= w_i exist with  sum_others w_i sign(r_i) J_i + sum_through s_i J_i = 0.  The residual of that
equation is the subgradient residual: 0 proves a local optimum. Where some |s_k| > w_k, leaving cell k lowers the
sum: the walk goes along that edge to the next vertex, as the simplex of Barrodale and Roberts (1973) does on a line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxscale.fit.design import Design

if TYPE_CHECKING:
    from jaxscale.fit.general import GeneralDesign

__all__ = ["finish_lad"]

MOST_STEPS = 100
"""From vertex to vertex; a handful is usual."""


def finish_lad(
    design: Design | GeneralDesign, theta: np.ndarray, y: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """theta (P,) moved onto its vertex, the sum of w |r|, and the subgradient residual (uncentred)."""
    through = np.argsort(np.abs(design.residuals(theta, y)))[: len(design.free)]
    vertex, cells = _walk(design, _solve_vertex(design, theta, y, through), y, w, through)
    if _deviation(design, vertex, y, w) <= _deviation(design, theta, y, w) * (1 + 1e-12):
        theta, through = vertex, cells
    return theta, _deviation(design, theta, y, w), _subgradient(design, theta, y, w, through)


def _walk(
    design: Design | GeneralDesign, theta: np.ndarray, y: np.ndarray, w: np.ndarray, through: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """theta (P,) and its cells after steps from vertex to vertex, until none is lower."""
    for _ in range(MOST_STEPS):
        lower = _step(design, theta, y, w, through)
        if lower is None:
            break
        theta, through = lower
    return theta, through


def _step(
    design: Design | GeneralDesign, theta: np.ndarray, y: np.ndarray, w: np.ndarray, through: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The first lower vertex along the edges that lead down, the steepest first; None where there is none."""
    r, J = design.residuals(theta, y), design.jacobian(theta)
    s, here = _multipliers(r, J, w, through), _deviation(design, theta, y, w)
    excess = np.abs(s) - w[through]
    for out in np.argsort(-excess)[: int((excess > 0).sum())]:
        edge = np.linalg.lstsq(J[through], -np.sign(s[out]) * np.eye(len(through))[out], rcond=None)[0]
        slope = J @ edge
        ahead = np.flatnonzero((r * slope > 0) & ~np.isin(np.arange(len(r)), through))
        ahead = ahead[np.argsort(r[ahead] / slope[ahead])]
        turn = int(np.searchsorted(2 * np.cumsum(w[ahead] * np.abs(slope[ahead])), excess[out]))
        for entering in ahead[: turn + 1][::-1]:
            cells = np.append(np.delete(through, out), entering)
            there = _solve_vertex(design, design.move(theta, edge * r[entering] / slope[entering]), y, cells)
            if _deviation(design, there, y, w) < here:
                return there, cells
    return None


def _multipliers(r: np.ndarray, J: np.ndarray, w: np.ndarray, through: np.ndarray) -> np.ndarray:
    """s of the header for the cells `through`."""
    pull = w * np.sign(r)
    pull[through] = 0.0
    return np.asarray(np.linalg.lstsq(J[through].T, -(pull @ J), rcond=None)[0])


def _deviation(design: Design | GeneralDesign, theta: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    return float((w * np.abs(design.residuals(theta, y))).sum())


def _solve_vertex(design: Design | GeneralDesign, theta: np.ndarray, y: np.ndarray, through: np.ndarray) -> np.ndarray:
    """Newton steps until the residuals of the cells `through` vanish."""
    for _ in range(20):
        gap, J = design.residuals(theta, y)[through], design.jacobian(theta)[through]
        if not (np.isfinite(gap).all() and np.isfinite(J).all()):
            break  # left the law's domain: its deviation is no number, and no step goes there
        theta = design.move(theta, np.linalg.lstsq(J, gap, rcond=None)[0])
    return theta


def _subgradient(
    design: Design | GeneralDesign, theta: np.ndarray, y: np.ndarray, w: np.ndarray, through: np.ndarray
) -> float:
    r, J = design.residuals(theta, y), design.uncentre(design.jacobian(theta))
    s = _multipliers(r, J, w, through)
    pull = w * np.sign(r)
    pull[through] = 0.0
    return float(np.linalg.norm(pull @ J + np.clip(s, -w[through], w[through]) @ J[through]))
