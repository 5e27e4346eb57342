"""How a fit would have come out again: errors drawn the way the design makes them.

A planned grid would be run at the same (N, D) again, so the errors are redrawn and the points stay:
    residual  errors drawn from the standardised residuals r sqrt(w) / (s sqrt(1 - h)), one pool, scaled
              back by the noise s of the cell's stratum (its budget); the share of the variance that cells
              of one run or trunk (cluster) have in common is one normal draw for all of them
    wild      each cell keeps its own residual / sqrt(1 - h) with a random sign; cells that share a run or
              a trunk (cluster) share the sign
    noise     normal errors of the deviation between seeds, or of the residuals where no seed repeats
    pairs     whole clusters drawn with replacement within a stratum: for data that were found, not planned
Few degrees of freedom: each round also draws its noise, s^2 nu / chi^2_nu, so that percentiles of the
rounds are t quantiles. h is leverage, w the weight (number of seeds), nu the degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

__all__ = ["RESAMPLERS", "NoiseModel", "Resample", "choose_resample", "draw_counts", "draw_errors",
           "estimate_intraclass", "f_tail", "t_quantile"]  # fmt: skip

Resample = Literal["auto", "residual", "wild", "pairs", "noise"]
RESAMPLERS: tuple[str, ...] = ("auto", "residual", "wild", "pairs", "noise")

LARGEST_HAT = 4000
"""Cells up to which the hat matrix is formed to see what the cells of a run or trunk have in common."""
PRIOR_DOF = 8.0
"""Assumption: a stratum's own noise is trusted against the pooled one as its dof against eight."""


@dataclass(frozen=True)
class NoiseModel:
    """Residuals of log loss (n,) with leverage, weight, stratum (from 0) and cluster; dof (strata,)."""

    residual: np.ndarray
    leverage: np.ndarray
    weight: np.ndarray
    stratum: np.ndarray
    cluster: np.ndarray
    dof: np.ndarray
    seed_ss: np.ndarray
    seed_dof: np.ndarray
    misfit: np.ndarray | None = field(default=None, kw_only=True)
    """Share (n,) of each cell's variance that is misfit of the curve, not noise: neighbours share its sign."""
    side: np.ndarray | None = field(default=None, kw_only=True)
    """Cells (n,) of one number share the draw of their misfit."""
    intraclass: float = field(default=0.0, kw_only=True)
    """Share of the noise variance that the cells of a cluster have in common (estimate_intraclass)."""
    prior_dof: float = field(default=PRIOR_DOF, kw_only=True)
    """Degrees of freedom by which a stratum's noise is drawn to the pooled one."""

    @property
    def effective_dof(self) -> float:
        """Degrees of freedom of the pooled variance where strata differ in noise (Satterthwaite 1946)."""
        dof, variance = self.dof + self.seed_dof, self.scales() ** 2
        spread = float((dof * variance**2).sum())
        return float((dof * variance).sum() ** 2 / spread) if spread > 0 else self.total_dof

    @property
    def total_dof(self) -> float:
        """Degrees of freedom of the pooled noise, seeds included."""
        return float(self.dof.sum() + self.seed_dof.sum())

    @property
    def residual_std(self) -> float | None:
        """Deviation of one run about the fit, in log loss; None without degrees of freedom."""
        if self.dof.sum() < 0.5:
            return None
        return float(np.sqrt((self.weight * self.residual**2).sum() / self.dof.sum()))

    @property
    def seed_std(self) -> float | None:
        """Pooled deviation of log loss between seeds; None without repeats."""
        dof = self.seed_dof.sum()
        return float(np.sqrt(self.seed_ss.sum() / dof)) if dof else None

    def describe(self) -> dict[str, float | None]:
        """`Fit.noise`: the deviation of one run between seeds and about the fit, and the dof of the one that counts."""
        dof = float(self.seed_dof.sum()) or float(self.dof.sum())
        return {"seed_std": self.seed_std, "residual_std": self.residual_std, "dof": dof or None}

    def scales(self) -> np.ndarray:
        """Noise deviation of each stratum (strata,): its own, shrunk to the pooled one by prior_dof."""
        ss = np.bincount(self.stratum, self.weight * self.residual**2, len(self.dof)) + self.seed_ss
        dof = self.dof + self.seed_dof
        pooled = ss.sum() / max(dof.sum(), 1e-300)
        return np.sqrt((ss + self.prior_dof * pooled) / (dof + self.prior_dof))


def choose_resample(asked: str, *, planned: bool, cluster: np.ndarray, intraclass: float | None = None) -> str:
    """auto: residual for a planned grid; wild where there are no budgets, or cells share a run and how much of
    their error is not known (`intraclass` None). Sign flips of a few trunks cover 86 to 90% at nominal 95."""
    if asked != "auto":
        return asked
    shared = len(np.unique(cluster)) < len(cluster) and intraclass is None
    return "residual" if planned and not shared else "wild"


def estimate_intraclass(residual: np.ndarray, weight: np.ndarray, hat: np.ndarray, cluster: np.ndarray) -> float:
    """Share (0 to 1) of the noise variance that the cells of a cluster have in common, by moments.

    Residuals (n,) r = (1 - hat) e with e ~ s^2 ((1 - k) I + k Z Z') / weight, Z the clusters: r' r and the
    products within clusters have known expectations in s^2 (1 - k) and s^2 k. 0 without shared clusters.
    """
    together = (cluster[:, None] == cluster).astype(float)
    apart = together - np.eye(len(cluster))
    if not apart.any():
        return 0.0
    root = np.sqrt(weight)
    left = root[:, None] * (np.eye(len(cluster)) - hat) / root
    r = root * residual
    covariance = left @ left.T, left @ together @ left.T  # of the own part and of the shared part, per unit
    system = np.array([[np.trace(c) for c in covariance], [(apart * c).sum() for c in covariance]])
    if abs(np.linalg.det(system)) < 1e-12:
        return 0.0
    own, shared = np.linalg.solve(system, [r @ r, r @ apart @ r])
    return float(np.clip(shared / max(own + shared, 1e-300), 0.0, 1.0))


def draw_errors(model: NoiseModel, kind: str, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Errors of log loss (rounds, n) to add to the fitted values."""
    n, root = len(model.residual), np.sqrt(np.maximum(1 - model.leverage, 1e-6))
    clusters, k, dof = len(np.unique(model.cluster)), model.intraclass, model.effective_dof
    dof = (1 - k) * dof + k * min(dof, max(clusters - 1, 1))  # trunks are what repeats
    widen = np.sqrt(dof / rng.chisquare(dof, (rounds, 1)))
    if kind == "wild":
        signs = rng.choice([-1.0, 1.0], (rounds, model.cluster.max() + 1))[:, model.cluster]
        return widen * signs * model.residual / root
    scale = model.scales()[model.stratum] / np.sqrt(model.weight)
    if kind == "noise":
        if model.seed_std is not None:
            scale = model.seed_std / np.sqrt(model.weight)
        return widen * scale * _share_errors(model, rng.standard_normal((rounds, n)), rng)
    pool = model.residual / (root * scale)
    pool = pool - pool.mean()
    pool = pool / max(float(np.sqrt((pool**2).mean())), 1e-300) if pool.any() else pool
    return widen * scale * _share_errors(model, pool[rng.integers(0, n, (rounds, n))], rng)


def _share_errors(model: NoiseModel, errors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit errors (rounds, n): clusters share a part of the noise, the cells of a side their misfit."""
    if model.intraclass > 0:
        common = rng.standard_normal((len(errors), model.cluster.max() + 1))[:, model.cluster]
        errors = np.sqrt(1 - model.intraclass) * errors + np.sqrt(model.intraclass) * common
    if model.misfit is None or model.side is None:
        return errors
    shared = rng.standard_normal((len(errors), model.side.max() + 1))[:, model.side]
    return np.sqrt(1 - model.misfit) * errors + np.sqrt(model.misfit) * shared


def draw_counts(model: NoiseModel, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """How often each cell is drawn (rounds, n) when clusters are drawn with replacement in each stratum."""
    counts = np.zeros((rounds, len(model.residual)))
    for stratum in np.unique(model.stratum):
        inside = np.flatnonzero(model.stratum == stratum)
        clusters, member = np.unique(model.cluster[inside], return_inverse=True)
        share = np.full(len(clusters), 1 / len(clusters))
        counts[:, inside] = rng.multinomial(len(clusters), share, rounds)[:, member]
    return counts


def f_tail(ratio: float, above: float, below: float) -> float:
    """P(F > ratio) for F with (above, below) degrees of freedom, by Paulson's (1942) cube-root normal.

    >>> round(f_tail(4.10, 2, 10), 2)  # the 5% point of F(2, 10) is 4.10
    0.05
    """
    from math import erfc, sqrt

    root, u, v = max(ratio, 0.0) ** (1 / 3), 2 / (9 * above), 2 / (9 * below)
    return 0.5 * erfc(((1 - v) * root - (1 - u)) / sqrt(2 * (v * root**2 + u)))


def t_quantile(confidence: float, dof: float) -> float:
    """Two-sided Student t quantile: with t = sqrt(dof) tan(phi) the density is cos(phi)^(dof - 1).

    >>> round(t_quantile(0.95, 4), 3)
    2.776
    """
    phi = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(phi) ** (dof - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.sqrt(dof) * np.tan(np.interp(confidence, below / below[-1], phi)))
