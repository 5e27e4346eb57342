"""Least absolute deviations exactly: the vertex that continuation points at, and the proof that it is one.

An optimum of sum w |r| passes through as many cells as there are free parameters, and there numbers
|s_i| <= w_i exist with  sum_others w_i sign(r_i) J_i + sum_through s_i J_i = 0.  The residual of that
equation is the subgradient residual: 0 proves a local optimum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxscale.fit.design import Design

if TYPE_CHECKING:
    from jaxscale.fit.general import GeneralDesign

__all__ = ["finish_lad"]


def finish_lad(
    design: Design | GeneralDesign, theta: np.ndarray, y: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """theta (P,) moved onto its vertex, the sum of w |r|, and the subgradient residual (uncentred)."""
    through = np.argsort(np.abs(design.residuals(theta, y)))[: len(design.free)]
    vertex = _solve_vertex(design, theta, y, through)
    before = _deviation(design, theta, y, w)
    if _deviation(design, vertex, y, w) <= before * (1 + 1e-12):
        theta = vertex
    return theta, _deviation(design, theta, y, w), _subgradient(design, theta, y, w, through)


def _deviation(design: Design | GeneralDesign, theta: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    return float((w * np.abs(design.residuals(theta, y))).sum())


def _solve_vertex(design: Design | GeneralDesign, theta: np.ndarray, y: np.ndarray, through: np.ndarray) -> np.ndarray:
    """Newton steps until the residuals of the cells `through` vanish."""
    for _ in range(20):
        gap = design.residuals(theta, y)[through]
        theta = design.move(theta, np.linalg.lstsq(design.jacobian(theta)[through], gap, rcond=None)[0])
    return theta


def _subgradient(
    design: Design | GeneralDesign, theta: np.ndarray, y: np.ndarray, w: np.ndarray, through: np.ndarray
) -> float:
    r, J = design.residuals(theta, y), design.uncentre(design.jacobian(theta))
    pull = w * np.sign(r)
    pull[through] = 0.0
    s = np.linalg.lstsq(J[through].T, -(pull @ J), rcond=None)[0]
    return float(np.linalg.norm(pull @ J + np.clip(s, -w[through], w[through]) @ J[through]))
