"""The family of curves an envelope is taken of: one a size on a grid of C, and how it would have come out again.

Own horizons: power curves (or chords) through the ends of each size's runs; the ends' errors are redrawn and the
curves refitted. Shared horizons: the lower convex hull, in log C and log L, of all smoothed training curves of a size.
Before its schedule ends a run bulges above what a run of that length would reach, and the hull cuts the bulges
off; E + B / C^beta is convex there. A round redraws scatter and the luck of each run.

The grid has K = 1500 log-spaced C, as Hoffmann et al. 2022 take, from the lowest to the highest C at which three
sizes have a curve: with two, the lower is always an edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from jaxscale.errors import VerdictError
from jaxscale.fit.cells import Cells
from jaxscale.fit.resample import NoiseModel, choose_resample, draw_errors
from jaxscale.fit.runcurves import AUTO_POINTS, AUTO_WIDTH, RunCurve, smooth_run
from jaxscale.fit.sizecurves import (
    MIN_DOF,
    MISFIT,
    Chords,
    fit_power_curves,
    misfit_p,
    model_ends,
    model_roughness,
    spare_ends,
)
from jaxscale.fit.stairs import MIN_SIZES, Grid
from jaxscale.fit.trajectories import Runs

__all__ = ["GRID", "Family", "OwnFamily", "SharedFamily", "build_family"]

GRID = 1500
THIN = 4
SLOPES = (*-np.geomspace(0.6, 0.004, 240), 0.0)
"""Slopes of the hull's lines, d log L / d log C: those of training curves lie between -.5 and -.01. Between
neighbours of ratio 1.021 the hull is too low by at most .021 x slope x edge / 4: 4e-4 at .06 over a factor 4 in C."""
CHUNK = 100
"""Rounds at once: bounds the memory of a bootstrap."""


@dataclass(frozen=True)
class Family:
    """Losses (S, K) of each size on the grid, nats; meaningless where `grid.there` is false.

    `run_dof`: degrees of freedom of the noise between runs, 0 where it is unknown.
    """

    grid: Grid
    losses: np.ndarray
    words: str
    resample: str
    noise: dict[str, float | None]
    run_dof: float

    @property
    def noisy(self) -> bool:
        """Whether there is a noise to redraw."""
        return self.run_dof >= 1 or self.noise["residual_std"] is not None

    def draw(self, rounds: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Losses (some rounds, S, K) with redrawn errors, `rounds` in all."""
        for start in range(0, rounds, CHUNK):
            yield self._redraw(min(CHUNK, rounds - start), rng)

    def smoother(self) -> Family:
        """A family without what noise is left in the curves, about which the bias of the lowest is measured."""
        return self

    def _redraw(self, rounds: int, rng: np.random.Generator) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True)
class OwnFamily(Family):
    """A curve a size through the ends of its runs: log C and size (n,) of the ends, their fitted losses."""

    log_C: np.ndarray
    size: np.ndarray
    fitted: np.ndarray
    model: NoiseModel
    chords: Chords | None

    def _redraw(self, rounds: int, rng: np.random.Generator) -> np.ndarray:
        losses = self.fitted * np.exp(draw_errors(self.model, self.resample, rounds, rng))
        if self.chords is not None:
            return self.chords.loss(losses)
        return fit_power_curves(self.log_C, losses, self.size, self.model.weight).loss(self.grid.log_C)


@dataclass(frozen=True)
class SharedFamily(Family):
    """Every point of a size's training curves: `curves`, each one's luck in log loss, and its deviation."""

    curves: tuple[RunCurve, ...]
    run_std: float
    luck: np.ndarray
    hull: bool

    def smoother(self) -> Family:
        """The same about curves smoothed more and relieved of their luck."""
        pairs = zip(self.curves, self.luck, strict=True)
        curves = tuple(curve._replace(log_loss=curve.pilot - luck) for curve, luck in pairs)
        knots = sum(len(curve.log_C) for curve in curves)
        return replace(self, curves=curves, losses=_join(curves, self.grid, np.zeros((1, knots)), hull=self.hull)[0])

    def _redraw(self, rounds: int, rng: np.random.Generator) -> np.ndarray:
        widen = np.sqrt(self.run_dof / rng.chisquare(self.run_dof, rounds)) if self.run_dof else np.ones(rounds)
        clusters = max(curve.cluster for curve in self.curves) + 1
        luck = self.run_std * widen[:, None] * rng.standard_normal((rounds, clusters))
        errors = [curve.draw(rounds, rng) + luck[:, [curve.cluster]] for curve in self.curves]
        return _join(self.curves, self.grid, np.concatenate(errors, 1), hull=self.hull)


def _join(curves: tuple[RunCurve, ...], grid: Grid, errors: np.ndarray, *, hull: bool) -> np.ndarray:
    """Losses (rounds, S, K) of the sizes from their curves with errors (rounds, knots) of log loss added."""
    log_C, log_loss = (np.concatenate([getattr(c, name) for c in curves]) for name in ("log_C", "log_loss"))
    run = np.repeat(np.arange(len(curves)), [len(c.log_C) for c in curves])
    size = np.array([c.size for c in curves])[run]
    if hull:
        return find_hulls(log_C, log_loss + errors, size, grid)
    return find_lowest(log_C, log_loss + errors, run, size, grid)


def build_family(runs: Runs, *, shared: bool, smoothing: str | float, resample: str) -> Family:
    """Curves as asked. VerdictError where no C has three sizes with a curve, in words."""
    return _build_shared(runs, smoothing) if shared else _build_own(runs, smoothing, resample)


def _build_shared(runs: Runs, smoothing: str | float) -> Family:
    width = AUTO_WIDTH if smoothing == "auto" else float(smoothing)
    least, hull = AUTO_POINTS if smoothing == "auto" else 3, width > 0
    curves = tuple(
        smooth_run(run, int(np.searchsorted(runs.N, run.N)), width if len(run.log_C) >= least else 0.0)
        for run in runs.runs
    )
    spans = [(c.size, float(c.log_C[0]), float(c.log_C[-1])) for c in curves]
    if hull:  # the hull bridges what lies between two runs of a size
        sizes = [[span for span in spans if span[0] == k] for k in range(len(runs.N))]
        spans = [(k, min(low for _, low, _ in mine), max(high for *_, high in mine)) for k, mine in enumerate(sizes)]
    grid = _make_grid(runs.N, runs.log_rate, spans)
    losses = _join(curves, grid, np.zeros((1, sum(len(c.log_C) for c in curves))), hull=hull)[0]
    run_std, run_dof, luck = _measure_luck(runs, curves)
    dof, ss = sum(c.dof for c in curves), sum(float((c.scatter**2).sum()) for c in curves)
    smoothed = sum(c.dof > 0 for c in curves)
    words = (
        f"local lines over D within {width:.0%} (tricube) on {smoothed} of {len(curves)} curves, then the lower "
        f"convex hull of each size's curves in log C and log L"
    )
    noise = {"seed_std": run_std if run_dof else None, "residual_std": float(np.sqrt(ss / dof)) if dof >= 1 else None}
    return SharedFamily(
        grid=grid, losses=losses, words=words if hull else "none", resample="wild", noise=noise, run_dof=run_dof,
        curves=curves, run_std=run_std, luck=luck, hull=hull,
    )  # fmt: skip


def find_hulls(log_C: np.ndarray, log_loss: np.ndarray, size: np.ndarray, grid: Grid) -> np.ndarray:
    """Lower convex hull (rounds, S, K) in (log C, log L) of each size's knots; log_loss (rounds, knots).

    By Legendre's transform: the hull is the highest of the lines that stay below all knots, one a slope. No
    line rises, so that more compute never means a higher loss. The grid is thinned for it, the hull being smooth.

    >>> grid = Grid(np.linspace(0.0, 2.0, 5), np.ones(1), np.zeros(1), np.ones((1, 5), bool))
    >>> hull = find_hulls(np.array([0.0, 1.0, 2.0]), np.array([[-0.0, 0.5, -0.2]]), np.zeros(3, int), grid)
    >>> [round(abs(float(value)), 2) for value in np.log(hull[0, 0])]
    [0.0, 0.05, 0.1, 0.15, 0.2]
    """
    order = np.argsort(size, kind="stable")
    x, y = log_C[order] - grid.log_C[0], log_loss[:, order]
    first = np.searchsorted(size[order], np.arange(len(grid.N)))
    coarse = np.linspace(grid.log_C[0], grid.log_C[-1], max(len(grid.log_C) // THIN, 2))
    highest = np.full((len(y), len(grid.N), len(coarse)), -np.inf)
    for slope in SLOPES:
        below = np.minimum.reduceat(y - slope * x, first, axis=1)
        np.maximum(highest, below[:, :, None] + slope * (coarse - grid.log_C[0]), out=highest)
    i = np.clip(np.searchsorted(coarse, grid.log_C, "right") - 1, 0, len(coarse) - 2)
    share = (grid.log_C - coarse[i]) / (coarse[1] - coarse[0])
    return np.asarray(np.exp(highest[:, :, i] * (1 - share) + highest[:, :, i + 1] * share))


def find_lowest(log_C: np.ndarray, log_loss: np.ndarray, run: np.ndarray, size: np.ndarray, grid: Grid) -> np.ndarray:
    """Lowest loss (rounds, S, K) of each size's runs, chords between their knots; infinite where none runs."""
    losses = np.full((len(log_loss), *grid.there.shape), np.inf)
    for number in np.unique(run):
        mine = np.flatnonzero(run == number)
        x, y, k = log_C[mine], log_loss[:, mine], size[mine[0]]
        inside = np.flatnonzero((grid.log_C >= x[0]) & (grid.log_C <= x[-1]))
        if len(mine) > 1 and len(inside):
            i = np.clip(np.searchsorted(x, grid.log_C[inside], "right") - 1, 0, len(x) - 2)
            share = (grid.log_C[inside] - x[i]) / np.diff(x)[i]
            values = np.exp(y[:, i] * (1 - share) + y[:, i + 1] * share)
            losses[:, k, inside] = np.minimum(losses[:, k, inside], values)
    return losses


def _build_own(runs: Runs, smoothing: str | float, resample: str) -> Family:
    cells = _cells_of_curves(runs.ends)
    if not len(cells):
        sizes = len(runs.N)
        raise VerdictError(f"none of {sizes} sizes has runs of two different lengths, so no size has a curve")
    log_C = np.log(cells.C)
    kept, size = np.unique(np.searchsorted(runs.N, cells.N), return_inverse=True)
    spans = [(k, float(log_C[size == k].min()), float(log_C[size == k].max())) for k in range(len(kept))]
    grid = _make_grid(runs.N[kept], runs.log_rate[kept], spans)
    power = fit_power_curves(log_C, cells.loss[None], size, cells.weight)
    model, known = model_ends(cells, size, power), spare_ends(cells) >= MIN_DOF
    rough = model_roughness(cells, size)
    fits = known and misfit_p(model, rough) >= MISFIT
    smooth, seed_std = fits and smoothing != 0, model.seed_std
    model = model if fits else rough
    chords = None if smooth else Chords.between(log_C, size, len(kept), grid.log_C)
    losses = power.loss(grid.log_C) if chords is None else chords.loss(cells.loss[None])
    reason = "asked for" if smoothing == 0 else "power curves miss them" if known else "too few for power curves"
    words = f"none, chords between the ends of a size ({reason})"
    kind = choose_resample(resample, planned=True, cluster=model.cluster) if fits else "noise"
    noise = {"seed_std": seed_std, "residual_std": model.residual_std if fits else model.seed_std}
    return OwnFamily(
        grid=grid, losses=losses[0],
        words=f"power curves L = E + B/C^{power.beta[0]:.3g} for each size, one exponent for all" if smooth else words,
        resample=kind, noise=noise, run_dof=model.total_dof, log_C=log_C, size=size,
        fitted=power.at(log_C, size)[0] if smooth else cells.loss, model=model, chords=chords,
    )  # fmt: skip


def _cells_of_curves(ends: Cells) -> Cells:
    """The ends of sizes that end at two computes or more."""
    distinct = {N: len(np.unique(ends.D[ends.N == N])) for N in np.unique(ends.N)}
    return ends.take(np.flatnonzero([distinct[N] > 1 for N in ends.N]))


def _measure_luck(runs: Runs, curves: tuple[RunCurve, ...]) -> tuple[float, float, np.ndarray]:
    """Deviation of a run's log loss about power curves through the smoothed ends of its size, its dof, and the
    luck of each curve (curves,).

    The scatter left in a smoothed end is subtracted from the variance, and the same share of each residual is
    taken for scatter. Without ends to spare all are 0.
    """
    luck = np.zeros(len(curves))
    N = np.array([runs.N[curve.size] for curve in curves])
    C, loss = (np.exp([getattr(curve, name)[-1] for curve in curves]) for name in ("log_C", "log_loss"))
    none, zero = np.full(len(N), -1), np.zeros(len(N))
    ends = _cells_of_curves(
        Cells(N, C / N, C, loss, zero + 1, none, zero[:0], np.arange(len(N)), zero, zero, 0.0, C / N)
    )
    if not len(ends) or spare_ends(ends) < MIN_DOF:
        return 0.0, 0.0, luck
    size = np.unique(ends.N, return_inverse=True)[1]
    model = model_ends(ends, size, fit_power_curves(np.log(ends.C), ends.loss[None], size, ends.weight))
    left = float(np.mean([curve.end_variance for curve in curves]))
    variance = max(float((model.residual**2).sum()) / model.total_dof - left, 0.0)
    luck[ends.cluster] = model.residual * variance / max(variance + left, 1e-300)
    return float(np.sqrt(variance)), model.total_dof, luck


def _make_grid(N: np.ndarray, log_rate: np.ndarray, spans: list[tuple[int, float, float]]) -> Grid:
    """GRID points of log C over what three sizes have in common; spans are (size, lowest, highest log C)."""
    ends = np.unique([end for _, *span in spans for end in span])
    middle = (ends[1:] + ends[:-1]) / 2
    counted = _covered(len(N), spans, middle).sum(0)
    wide = np.flatnonzero(counted >= MIN_SIZES)
    if not len(wide):
        raise VerdictError(
            f"no FLOP count lies inside the curves of {MIN_SIZES} sizes (at most {counted.max(initial=0)} "
            f"at once, {len({size for size, *_ in spans})} sizes have a curve)"
        )
    log_C = np.linspace(ends[wide[0]], ends[wide[-1] + 1], GRID)
    return Grid(log_C, N, log_rate, _covered(len(N), spans, log_C))


def _covered(sizes: int, spans: list[tuple[int, float, float]], log_C: np.ndarray) -> np.ndarray:
    """Where (sizes, K) some curve of a size runs."""
    there = np.zeros((sizes, len(log_C)), bool)
    for size, low, high in spans:
        there[size] |= (log_C >= low) & (log_C <= high)
    return there
