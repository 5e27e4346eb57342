"""A law as log-sum-exp of terms linear in theta: which parameters are free, and how logs are centred.

    log L = LSE(log A - alpha log N,  log B - beta log D,  log E)       Hoffmann et al. 2022, approach 3

theta holds the free ones of (log A, log B, log E, alpha, beta). Where a coefficient is free its log N or
log D is centred on the data, which makes theta nearly orthogonal; `gradient_norm` is taken back to the
uncentred parameters, so that it means the same for every data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.fit.starts import project_starts
from jaxscale.laws import Chinchilla

if TYPE_CHECKING:
    from jaxscale.fit.cells import Cells
    from jaxscale.fit.solver import Lanes, Solution

__all__ = ["PARAMS", "Design", "Problem", "build_design", "residuals"]

PARAMS = ("A", "B", "E", "alpha", "beta")
LOGGED = ("A", "B", "E")
SLOPES = {"alpha": ("A", 0), "beta": ("B", 1)}
"""A slope's coefficient and its row of the covariates (log N, log D), which is also its term."""


class Problem(NamedTuple):
    """Z (K, n, P) and offset (K, n): the law's logs are offset + Z theta. P parameters, n cells."""

    Z: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class Design:
    """`free` names of theta, `fixed` values, `centers` of log N and log D as used, and the problem."""

    free: tuple[str, ...]
    fixed: dict[str, float]
    centers: dict[str, float]
    problem: Problem
    sizes: tuple[np.ndarray, np.ndarray]

    law = Chinchilla

    def fix(self, values: Mapping[str, float]) -> Design:
        """The same with more parameters held still."""
        return build_design(*self.sizes, {**self.fixed, **values})

    def starts(self, cells: Cells) -> np.ndarray:
        """theta (16, P) by variable projection."""
        return self.theta_of(project_starts(cells.N, cells.D, cells.loss, cells.weight))

    def search(self, lanes: Lanes, delta: float) -> np.ndarray:
        """theta (R, P) near an optimum, by optax.lbfgs."""
        from jaxscale.fit.solver import search

        return search(self.problem, lanes, delta)

    def polish(
        self, lanes: Lanes, delta: float, *, start_delta: float | None = None, tolerance: float = 1e-9
    ) -> Solution:
        """Newton steps until the norm of the gradient is below `tolerance`."""
        from jaxscale.fit.solver import polish

        return polish(self.problem, lanes, delta, start_delta=start_delta, tolerance=tolerance)

    def move(self, theta: np.ndarray, step: np.ndarray) -> np.ndarray:
        """theta (P,) after a step (P,) of the free parameters."""
        return theta + step

    def residuals(self, theta: np.ndarray, y: np.ndarray) -> np.ndarray:
        """y - log L (n,) for one theta (P,)."""
        return residuals(self.problem, theta, y)

    def params_of(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """E, A, B, alpha, beta, each (R,), from theta (R, P)."""
        value = {name: theta[:, i] for i, name in enumerate(self.free)}
        params = {}
        for slope, (coefficient, _) in SLOPES.items():
            params[slope] = value.get(slope, np.full(len(theta), self.fixed.get(slope, np.nan)))
            if coefficient in value:
                params[coefficient] = np.exp(value[coefficient] + params[slope] * self.centers[slope])
        if "E" in value:
            params["E"] = np.exp(value["E"])
        for name in LOGGED:
            params.setdefault(name, np.full(len(theta), self.fixed.get(name, np.nan)))
        return {name: params[name] for name in ("E", "A", "B", "alpha", "beta")}

    def theta_of(self, params: Mapping[str, np.ndarray]) -> np.ndarray:
        """theta (R, P) from parameters (R,)."""
        columns = []
        for name in self.free:
            column = np.asarray(params[name], float)
            if name in LOGGED:
                column = np.log(column)
            for slope, (coefficient, _) in SLOPES.items():
                if name == coefficient:
                    column = column - np.asarray(params[slope]) * self.centers[slope]
            columns.append(column)
        return np.stack(columns, -1)

    def uncentre(self, gradient: np.ndarray) -> np.ndarray:
        """Gradient (R, P) with respect to the uncentred parameters: d/d alpha - mean(log N) d/d log A."""
        raw = gradient.copy()
        for slope, (coefficient, _) in SLOPES.items():
            if slope in self.free and coefficient in self.free:
                i, j = self.free.index(slope), self.free.index(coefficient)
                raw[:, i] -= self.centers[slope] * gradient[:, j]
        return raw

    def gradient_norm(self, gradient: np.ndarray) -> np.ndarray:
        """Norm (R,) with respect to the free ones of (log A, log B, log E, alpha, beta)."""
        return np.linalg.norm(self.uncentre(gradient), axis=1)

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """d log L / d theta (n, P) for one theta (P,)."""
        z = self.problem.offset + self.problem.Z @ theta
        s = np.exp(z - z.max(0))
        return np.einsum("kn,knp->np", s / s.sum(0), self.problem.Z)


def residuals(problem: Problem, theta: np.ndarray, y: np.ndarray) -> np.ndarray:
    """y - LSE(z) (n,) for one theta (P,), by numpy."""
    z = problem.offset + problem.Z @ theta
    top = z.max(0)
    return y - top - np.log(np.exp(z - top).sum(0))


def build_design(N: np.ndarray, D: np.ndarray, fix: Mapping[str, float]) -> Design:
    """Design for cells (n,); `fix` holds some of E, A, B, alpha, beta still (E may be 0)."""
    for name, value in fix.items():
        if name not in PARAMS:
            raise MisuseError(f"fix: {name!r} is no parameter; they are E, A, B, alpha, beta")
        if not (np.isfinite(value) and (value > 0 or (name == "E" and value == 0))):
            raise MisuseError(f"fix: {name} = {value:g} must be finite and above 0 (E may be 0)")
    free = tuple(name for name in PARAMS if name not in fix)
    if not free:
        raise MisuseError("fix: all five parameters are fixed, nothing is left to fit; free one")
    covariates = np.log([N, D])
    Z, offset = np.zeros((3, len(N), len(free))), np.zeros((3, len(N)))
    centers = {}
    for term, name in enumerate(LOGGED):
        if name in free:
            Z[term, :, free.index(name)] = 1.0
        else:
            offset[term] = np.log(fix[name]) if fix[name] > 0 else -np.inf
    for slope, (coefficient, term) in SLOPES.items():
        centers[slope] = float(covariates[term].mean()) if coefficient in free else 0.0
        column = -(covariates[term] - centers[slope])
        if slope in free:
            Z[term, :, free.index(slope)] = column
        else:
            offset[term] += fix[slope] * column
    return Design(free, dict(fix), centers, Problem(Z, offset), (np.asarray(N), np.asarray(D)))
