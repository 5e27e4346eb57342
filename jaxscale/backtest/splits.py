"""What is fitted and what is predicted. Rows of role "holdout" are always predicted and never fitted.

    rolling   fit the k smallest budgets, predict every larger one, k = 2 ... all but one
              without budgets: fit the runs up to a quantile of C, .4 .5 .6 .7 .8, predict those above it
    corner    fit the cells with N <= N_q and D <= D_p, q and p in .5 .65 .8 of the sizes and token counts
              tried, predict all others: small models and little data foretell the rest (Rosenfeld et al. 2020)
    holdout   fit the whole grid, predict the held-out rows

An optimum can be checked where a budget was measured at four sizes or more, and at the runs that no run of
less or equal compute beats (the frontier of all runs, the only way where there are no budgets). A held-out row
is taken as somebody's optimum. A lowest run lies above the true minimum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.cells import Cells, assign_budgets, gather_cells, grid_rows
from jaxscale.fit.minima import MIN_SIZES
from jaxscale.format import format_factor
from jaxscale.runs import Observations

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SPLITS", "TOLERANCE", "Split", "frontier_of", "list_splits"]

SPLITS = ("auto", "rolling", "corner", "holdout", "all")
FEWEST_BUDGETS = 2
"""A line needs two points; every method starts there, so that all are asked the same."""
C_QUANTILES = (0.4, 0.5, 0.6, 0.7, 0.8)
CORNERS = (0.5, 0.65, 0.8)
TOLERANCE = 2.0
"""A target is at about R times the origin within this factor: neighbouring budgets rarely lie closer."""


@dataclass(frozen=True)
class Split:
    """Rows to fit, cells to predict, and which groups of these show an optimum.

    `optima`: (C, indices into `held`) of each; `corner`: the largest N and D fitted, of a corner only.
    """

    kind: str
    seen: pd.DataFrame
    trained: Cells
    held: Cells
    optima: tuple[tuple[float, np.ndarray], ...]
    corner: tuple[float, float] | None = None

    @property
    def trained_to_C(self) -> float:
        """FLOPs of the largest budget fitted, or of the largest run where there are no budgets."""
        C = self.trained.budget_C
        return float(C.max() if len(C) else self.trained.C.max())

    def near(self, ratio: float) -> Split:
        """Only the targets at about `ratio` times the origin."""

        def is_near(C: np.ndarray | float) -> np.ndarray:
            return np.abs(np.log(C / self.trained_to_C / ratio)) <= np.log(TOLERANCE) * (1 + 1e-9)

        groups = [(C, inside) for C, inside in self.optima if is_near(C)]
        mine = np.union1d(np.flatnonzero(is_near(self._target_C())), [i for _, inside in groups for i in inside])
        kept = mine.astype(int)
        optima = tuple((C, np.flatnonzero(np.isin(kept, inside))) for C, inside in groups)
        return replace(self, held=self.held.take(kept), optima=optima)

    def _target_C(self) -> np.ndarray:
        """C of the budget of each held cell, its own where there are none."""
        return self.held.budget_C[self.held.budget] if len(self.held.budget_C) else self.held.C


def list_splits(obs: Observations, asked: str, ratio: float | None = None) -> list[Split]:
    """The splits asked for; VerdictError where the data allow none.

    auto: rolling, and holdout where there are such rows. `ratio` keeps the targets near that many times the
    origin.
    """
    if asked not in SPLITS:
        raise MisuseError(f"split {asked!r} is unknown; use one of {', '.join(SPLITS)}")
    if ratio is not None and not (np.isfinite(ratio) and ratio > 0):
        raise MisuseError(f"ratio {ratio:g} must be finite and above 0: target C over the largest C fitted, as in 10")
    grid = obs.frame[grid_rows(obs.frame)]
    held = _held_out(obs.frame)
    if grid.empty:
        raise VerdictError("backtest: no row is left to fit: every one is held out (role) or has weight 0")
    kinds = {"auto": ("rolling", "holdout"), "all": ("rolling", "corner", "holdout")}.get(asked, (asked,))
    makers = {"rolling": _roll, "corner": _cut_corners, "holdout": _hold_out}
    splits = [split for kind in kinds for split in makers[kind](obs, grid, held)]
    if not splits:
        raise VerdictError(f"backtest: {_why_none(obs, asked)}")
    return splits if ratio is None else _keep_near(splits, ratio)


def _keep_near(splits: list[Split], ratio: float) -> list[Split]:
    near = [kept for split in splits if len((kept := split.near(ratio)).held)]
    if not near:
        ratios = np.concatenate([split._target_C() / split.trained_to_C for split in splits])
        span = " to ".join(format_factor(float(end)) for end in (ratios.min(), ratios.max()))
        raise VerdictError(f"backtest: no target lies at about {ratio:g} times an origin (within a factor "
                           f"{TOLERANCE:g}); these data reach {span}")  # fmt: skip
    return near


def _held_out(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of role holdout, but for those of weight 0."""
    if "role" not in frame:
        return frame[:0]
    held = frame["role"] == "holdout"
    return frame[held & (frame["weight"] > 0)] if "weight" in frame else frame[held]


def _why_none(obs: Observations, asked: str) -> str:
    if asked == "holdout":
        return "no row has role holdout, nothing is held out; use --split rolling"
    if asked == "corner":
        return "no corner in (N, D) holds fewer cells than all and more than none; train more sizes and budgets"
    count = len(gather_cells(obs).budget_C)
    what = "one budget only" if count == 1 else f"{count} budgets"
    return f"{what}, nothing can be held out; give rows of role holdout or {FEWEST_BUDGETS + 1} budgets"


def _roll(obs: Observations, grid: pd.DataFrame, held: pd.DataFrame) -> Iterator[Split]:
    number, _ = assign_budgets(grid)
    if number.max() < 0:
        yield from _roll_compute(obs, grid, held)
        return
    front = _front_places(_gather(obs, grid, held)) | set(zip(held["N"], held["D"], strict=True))
    for k in range(FEWEST_BUDGETS, number.max() + 1):
        targets = _gather(obs, grid[number >= k], held)
        optima = tuple((C, inside) for C, inside in _group(targets) if _shows_optimum(targets.take(inside), front))
        yield Split("rolling", grid[number < k], _gather(obs, grid[number < k]), targets, optima)


def _shows_optimum(part: Cells, front: set[tuple[float, float]]) -> bool:
    """Whether enough sizes were measured, or the lowest run is one of `front`."""
    lowest = int(np.argmin(part.loss))
    return len(np.unique(part.N)) >= MIN_SIZES or (part.N[lowest], part.D[lowest]) in front


def _front_places(cells: Cells) -> set[tuple[float, float]]:
    """N and D of the runs that no run of less or equal C beats."""
    front = cells.take(frontier_of(cells))
    return set(zip(front.N, front.D, strict=True))


def _roll_compute(obs: Observations, grid: pd.DataFrame, held: pd.DataFrame) -> Iterator[Split]:
    """Origins at quantiles of C: the optima are the frontier of all runs above the origin."""
    on_front = _front_places(_gather(obs, grid, held))
    for origin in dict.fromkeys(np.quantile(grid["C"], C_QUANTILES, method="lower")):
        below = grid["C"] <= origin
        if below.all():
            continue
        cells = _gather(obs, grid[~below], held)
        optima = tuple((float(cells.C[i]), np.array([i])) for i, place in
                       enumerate(zip(cells.N, cells.D, strict=True)) if place in on_front)  # fmt: skip
        yield Split("rolling", grid[below], _gather(obs, grid[below]), cells, optima)


def frontier_of(cells: Cells) -> np.ndarray:
    """Indices of the cells that no cell of less or equal C beats."""
    order = np.lexsort((cells.loss, cells.C))
    lowest = np.minimum.accumulate(cells.loss[order])
    first = np.concatenate([[True], np.diff(lowest) < 0])
    return np.sort(order[first])


def _cut_corners(obs: Observations, grid: pd.DataFrame, held: pd.DataFrame) -> Iterator[Split]:
    """No optimum is checked: a corner is no budget, and its targets lie off the frontier as well."""
    seen_already = set()
    for q in CORNERS:
        for p in CORNERS:
            N, D = (float(np.quantile(grid[name].unique(), at, method="lower")) for name, at in (("N", q), ("D", p)))
            inside = (grid["N"] <= N) & (grid["D"] <= D)
            rows = tuple(np.flatnonzero(inside))
            if not 0 < len(rows) < len(grid) or rows in seen_already:
                continue
            seen_already.add(rows)
            targets = _gather(obs, grid[~inside], held)
            yield Split("corner", grid[inside], _gather(obs, grid[inside]), targets, (), (N, D))


def _hold_out(obs: Observations, grid: pd.DataFrame, held: pd.DataFrame) -> Iterator[Split]:
    if len(held):
        targets = _gather(obs, held)
        yield Split("holdout", grid, _gather(obs, grid), targets, _group(targets))


def _group(cells: Cells) -> tuple[tuple[float, np.ndarray], ...]:
    """Every budget of the cells, or each cell on its own where they form none."""
    if len(cells.budget_C):
        return tuple((float(C), np.flatnonzero(cells.budget == b)) for b, C in enumerate(cells.budget_C))
    return tuple((float(C), np.array([i])) for i, C in enumerate(cells.C))


def _gather(obs: Observations, *frames: pd.DataFrame) -> Cells:
    import pandas as pd

    parts = [frame for frame in frames if len(frame)]
    return gather_cells(replace(obs, frame=pd.concat(parts) if len(parts) > 1 else parts[0]), role="all")
