"""The best loss of every variant at every budget, with what is known of its error.

    ok      vertex of a parabola of log loss over log N, of at most WINDOW sizes around the lowest, inside them
    edge    the lowest cell: it is the smallest or largest size tried, so the optimum may lie lower
    single  one size a budget (a question about batches, say): that cell

The variants of a budget share the curvature of their parabolas unless an F test tells the curvatures apart: at three
to five sizes the curvature is most of what noise does to a vertex. A vertex is linear in the losses to first order,
which gives the covariance of all best losses.

Noise of one run: pooled over residuals of the parabolas and seeds; a budget of a variant has its own as far as it can
tell (PRIOR_DOF). Where cells miss their parabolas by more than seeds say, they share an error that seeds do not
average away. Runs of different variants with equal budget, rank of size and seed may share a part of their noise (data
order): it is estimated, and used only where a test finds it, since it narrows differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxscale.compare.cells import VariantCells
from jaxscale.fit.resample import PRIOR_DOF, f_tail

__all__ = ["Points", "find_points"]

WINDOW = 5
SIGNIFICANCE = 0.05
PAIRED = 1.645
"""Deviations of Fisher's z by which a common part of the noise must show."""
SMALLEST_VARIANCE = 1e-14
"""Of a log loss: below it is rounding."""

Key = tuple[int, int]


@dataclass(frozen=True)
class Points:
    """Best losses (n,) ordered by variant and x: log x, log loss, variant and budget (from 0).

    `cov` (n, n) is their covariance and `dof` what is behind its scale; with dof 0 nothing repeats, cov holds only the
    relative size, and the scale is for the law to tell. `std`: noise of one run in log loss. `curvature`: shared, own,
    or none where no parabola was drawn; `pairing` the correlation of paired runs.
    """

    names: tuple[str, ...]
    log_x: np.ndarray
    y: np.ndarray
    member: np.ndarray
    budget: np.ndarray
    cov: np.ndarray
    dof: float
    std: float | None
    rows: tuple[dict[str, Any], ...]
    curvature: str = "none"
    curvature_p: float | None = None
    pairing: float = 0.0

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: np.ndarray) -> Points:
        """Some of the points; variants keep their numbers."""
        index = np.flatnonzero(chosen)
        return Points(
            self.names, self.log_x[index], self.y[index], self.member[index], self.budget[index],
            self.cov[np.ix_(index, index)], self.dof, self.std, tuple(self.rows[i] for i in index), self.curvature,
            self.curvature_p, self.pairing,
        )  # fmt: skip


class _Read(NamedTuple):
    """Vertex (log N, log loss) of one curve and its gradient on the cells of the fit."""

    log_N: float
    low: float
    gradient: np.ndarray
    inside: bool


class _Fit(NamedTuple):
    """Parabolas of one budget: its cells, their residuals and leverages, its dof, the curves."""

    cells: np.ndarray
    residual: np.ndarray
    leverage: np.ndarray
    dof: float
    reads: dict[Key, _Read]


def find_points(cells: VariantCells, names: tuple[str, ...]) -> Points:
    """Best losses of all variants and budgets."""
    keys = sorted(set(zip(cells.member.tolist(), cells.budget.tolist(), strict=True)))
    groups = {key: _judge(cells, cells.group(*key)) for key in keys}
    fits, curvature, p = _read_curves(cells, groups)
    for fit in fits:
        for key, read in fit.reads.items():
            if not read.inside:
                groups[key] = (groups[key][0], "edge")
    fits, curvature, p = _read_curves(cells, groups)  # without those whose vertex left the sizes tried
    reads = {key: (fit, read) for fit in fits for key, read in fit.reads.items()}
    G, y, log_x, rows = np.zeros((len(keys), len(cells))), np.empty(len(keys)), np.empty(len(keys)), []
    for i, key in enumerate(keys):
        chosen, status = groups[key]
        log_x[i] = np.average(cells.log_x[chosen], weights=cells.runs[chosen])
        if key in reads and reads[key][1].inside:
            fit, read = reads[key]
            y[i], log_N, G[i, fit.cells] = read.low, read.log_N, read.gradient
        else:
            lowest = chosen[np.argmin(cells.y[chosen])]
            status = "edge" if status == "ok" else status
            y[i], log_N, G[i, lowest], log_x[i] = cells.y[lowest], cells.log_N[lowest], 1.0, cells.log_x[lowest]
        D = float(np.exp(np.interp(log_N, cells.log_N[chosen], cells.log_D[chosen])))
        rows.append({"variant": names[key[0]], "x": float(np.exp(log_x[i])), "loss": float(np.exp(y[i])),
                     "N": float(np.exp(log_N)), "D": D, "status": status, "sizes": len(chosen),
                     "runs": round(cells.repeats[chosen].sum() + len(chosen))})  # fmt: skip
    variance, dof, std, scaled = _find_noise(cells, fits)
    pairing, common = _find_pairing(cells, fits, np.sqrt(variance))
    cov = G @ (np.diag(variance) + pairing * common) @ G.T
    cov += SMALLEST_VARIANCE * np.eye(len(keys)) if scaled else 0.0
    for row, value in zip(rows, np.diag(cov), strict=True):
        row["std_error"] = float(np.sqrt(value)) if scaled else None
    member, budget = (np.array(part) for part in zip(*keys, strict=True))
    return Points(names, log_x, y, member, budget, cov, dof, std, tuple(rows), curvature, p, pairing)


def _judge(cells: VariantCells, group: np.ndarray) -> tuple[np.ndarray, str]:
    """The cells around the lowest, and what they can show."""
    size = min(WINDOW, len(group))
    lowest = int(np.argmin(cells.y[group]))
    start = min(max(lowest - size // 2, 0), len(group) - size)
    status = "single" if len(group) == 1 else "ok" if 0 < lowest < len(group) - 1 else "edge"
    return group[start : start + size], status


def _read_curves(
    cells: VariantCells, groups: Mapping[Key, tuple[np.ndarray, str]]
) -> tuple[list[_Fit], str, float | None]:
    """Parabolas of every budget with curvatures shared or own, which of the two, and p of the test between them."""
    curved = {key: chosen for key, (chosen, status) in groups.items() if status == "ok"}
    budgets = sorted({key[1] for key in curved})
    if not budgets:
        return [], "none", None
    shared, own = (
        [_fit_budget(cells, {key: at for key, at in curved.items() if key[1] == b}, one) for b in budgets]
        for one in (True, False)
    )
    (ss0, dof0), (ss1, dof1) = (_pool(cells, fits) for fits in (shared, own))
    if dof0 <= dof1 or dof1 < 1:
        return shared, "shared", None
    p = f_tail(max(ss0 - ss1, 0.0) / (dof0 - dof1) / max(ss1 / dof1, 1e-300), dof0 - dof1, dof1)
    return (own, "own", p) if p < SIGNIFICANCE else (shared, "shared", p)


def _pool(cells: VariantCells, fits: list[_Fit]) -> tuple[float, float]:
    """Sum of squares of residuals and seeds, and its degrees of freedom."""
    ss = sum(float((cells.runs[fit.cells] * fit.residual**2).sum()) for fit in fits)
    return ss + float(cells.spread.sum()), sum(fit.dof for fit in fits) + float(cells.repeats.sum())


def _fit_budget(cells: VariantCells, curves: Mapping[Key, np.ndarray], shared: bool) -> _Fit:
    """Weighted least squares of y = c0_v + c1_v t + k t^2 (k_v unless shared), t = log N - its mean over a curve."""
    index = np.concatenate(list(curves.values()))
    owner = np.repeat(np.arange(len(curves)), [len(chosen) for chosen in curves.values()])
    centre = np.array([cells.log_N[chosen].mean() for chosen in curves.values()])
    t = cells.log_N[index] - centre[owner]
    mine = (owner[:, None] == np.arange(len(curves))).astype(float)
    square = (t**2)[:, None] if shared else mine * t[:, None] ** 2
    X, root = np.concatenate([mine, mine * t[:, None], square], 1), np.sqrt(cells.runs[index])[:, None]
    inverse = np.linalg.pinv(root * X) * root.T  # coefficients of the losses
    c = inverse @ cells.y[index]
    reads = {}
    for i, (key, chosen) in enumerate(curves.items()):
        one, two, three = i, len(curves) + i, 2 * len(curves) + (0 if shared else i)
        ratio = c[two] / (2 * c[three]) if c[three] > 0 else np.inf
        vertex, ends = centre[i] - ratio, cells.log_N[chosen][[0, -1]]
        inside = bool(np.isfinite(ratio) and ends[0] < vertex < ends[1])
        gradient = inverse[one] - ratio * inverse[two] + ratio**2 * inverse[three] if inside else inverse[one]
        reads[key] = _Read(float(vertex), float(c[one] - ratio * c[two] / 2) if inside else np.inf, gradient, inside)
    hat = np.einsum("ij,ji->i", X, inverse)
    return _Fit(index, cells.y[index] - X @ c, hat, float(len(index) - np.linalg.matrix_rank(X)), reads)


def _find_noise(cells: VariantCells, fits: list[_Fit]) -> tuple[np.ndarray, float, float | None, bool]:
    """Variance of each cell's log loss (m,), its degrees of freedom, the noise of a run, and whether there is any."""
    residual, free = np.zeros(len(cells)), np.zeros(len(cells))
    for fit in fits:
        residual[fit.cells] = fit.residual
        free[fit.cells] = np.clip(1 - fit.leverage, 0, 1) if fit.dof >= 1 else 0.0
    ss_fit, dof_fit = float((cells.runs * residual**2).sum()), float(free.sum())
    ss_seed, dof_seed = float(cells.spread.sum()), float(cells.repeats.sum())
    if dof_fit + dof_seed < 1:
        return 1 / cells.runs, 0.0, None, False
    if dof_fit >= 1 and dof_seed >= 1 and ss_fit / dof_fit > ss_seed / dof_seed:
        ratio = (ss_fit / dof_fit) / max(ss_seed / dof_seed, 1e-300)
        if f_tail(ratio, dof_fit, dof_seed) < SIGNIFICANCE:
            own = ss_seed / dof_seed
            extra = (ss_fit / dof_fit - own) / np.average(cells.runs, weights=free + 1e-12)
            return own / cells.runs + extra, dof_fit, float(np.sqrt(own + extra)), True
    stratum = cells.member * (cells.budget.max() + 1) + cells.budget
    ss = np.bincount(stratum, cells.runs * residual**2 + cells.spread)
    dof = np.bincount(stratum, free + cells.repeats)
    pooled = ss.sum() / dof.sum()
    variance = (ss + PRIOR_DOF * pooled) / (dof + PRIOR_DOF)
    spread = float((dof * variance**2).sum())
    effective = float((dof * variance).sum() ** 2 / spread) if spread > 0 else float(dof.sum())
    return variance[stratum] / cells.runs, effective, float(np.sqrt(pooled)), True


def _find_pairing(cells: VariantCells, fits: list[_Fit], std: np.ndarray) -> tuple[float, np.ndarray]:
    """Correlation of the noise of paired cells, 0 unless a test finds it; covariances (m, m) that it multiplies."""
    pairs = _list_pairs(cells)
    share = np.zeros((len(cells), len(cells)))
    residual, free = np.zeros(len(cells)), np.zeros(len(cells))
    for fit in fits:
        residual[fit.cells], free[fit.cells] = fit.residual, np.clip(1 - fit.leverage, 0, 1)
    sums, dof = np.zeros(3), 0.0
    for i, j in pairs:
        both = cells.seeds[i].keys() & cells.seeds[j].keys()
        share[i, j] = share[j, i] = len(both) / np.sqrt(len(cells.seeds[i]) * len(cells.seeds[j]))
        a, b = residual[i] / std[i], residual[j] / std[j]
        u, v = (np.array([cells.seeds[k][s] for s in both]) / (std[k] * np.sqrt(cells.runs[k])) for k in (i, j))
        sums += [a * b + u @ v, a * a + u @ u, b * b + v @ v]
        dof += min(free[i], free[j]) + len(both) - 1
    dof /= max(len(np.unique(cells.member)) - 1, 1)
    rho = float(np.clip(sums[0] / np.sqrt(sums[1] * sums[2]), -1, 0.99)) if sums[1:].min() > 0 else 0.0
    found = dof > 2 and np.arctanh(rho) * np.sqrt(dof - 1) > PAIRED
    return (rho if found else 0.0), share * np.outer(std, std)


def _list_pairs(cells: VariantCells) -> list[tuple[int, int]]:
    """Cells of different variants with equal budget, equal rank of size, and a seed in common."""
    rank = np.zeros(len(cells), int)
    for key in set(zip(cells.member.tolist(), cells.budget.tolist(), strict=True)):
        group = cells.group(*key)
        rank[group] = np.arange(len(group))
    same = (cells.budget[:, None] == cells.budget) & (rank[:, None] == rank) & (cells.member[:, None] < cells.member)
    return [(int(i), int(j)) for i, j in np.argwhere(same) if cells.seeds[i].keys() & cells.seeds[j].keys()]
