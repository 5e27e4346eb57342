"""How hard to filter: the share of the text to keep (data.quality_keep) for every budget, repetition counted in.

What is kept is better and less, so it is read more often; the loss says which counts more. Around the lowest share:

    L = a_N + b u + c u^2,    u = log(keep),    one a for each size N

as for mixtures (curve.py). Where the best share rises with the budget, text of a larger run is better kept than
repeated; where it falls or stays, filtering is worth its repetitions.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.fit.result import Interval, without_nan
from jaxscale.fit.squares import redraw
from jaxscale.fit.summary import check_options, percentile_interval
from jaxscale.format import format_flops, format_interval, format_loss, format_number
from jaxscale.mixing.curve import parabola, solve_parabola
from jaxscale.source import label_budgets, read_raw
from jaxscale.tables import render_table
from jaxscale.where import column_of, select_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BudgetFilter", "FilterFit", "find_filter"]

KEEP = "quality_keep"
FEWEST, NEIGHBOURS, GRID = 4, 2, 2001


@dataclass(frozen=True)
class BudgetFilter:
    """A budget: `status` ok, edge or too_few; the best share with its interval, nats there; the lowest share trained.

    `epochs`: how often that lowest run read its text, D / U.
    """

    C: float
    status: str
    reason: str
    keep: float | None
    interval: Interval
    loss: float | None
    tried: float
    tried_loss: float
    epochs: float


@dataclass(frozen=True)
class FilterFit:
    """The best share of the text for every budget, smallest first."""

    budgets: tuple[BudgetFilter, ...]
    confidence: float
    schema: str = "jaxscale.filter/1"

    def to_json(self) -> str:
        """As JSON, schema jaxscale.filter/1."""
        plain = asdict(self)
        return json.dumps({"schema": plain.pop("schema"), **without_nan(plain)}, indent=1)

    @property
    def trend(self) -> str:
        """Whether the best share moves from the smallest to the largest budget with an answer: rises, falls, same, or
        unknown where there are not two."""
        good = [one for one in self.budgets if one.status == "ok" and None not in one.interval]
        if len(good) < 2:
            return "unknown"
        (low0, high0), (low1, high1) = good[0].interval, good[-1].interval
        assert low0 is not None and high0 is not None and low1 is not None and high1 is not None
        return "rises" if low1 > high0 else "falls" if high1 < low0 else "same"

    def __str__(self) -> str:
        header = ("C", "best share", f"{self.confidence:.0%} interval", "loss", "lowest tried", "its epochs", "status")
        rows = [(format_flops(b.C), b.keep, format_interval(b.interval, format_number), format_loss(b.loss), b.tried,
                 b.epochs, b.status) for b in self.budgets]  # fmt: skip
        reasons = [f"{format_flops(b.C)}: {b.reason}" for b in self.budgets if b.reason]
        words = f"from the smallest to the largest budget the best share: {self.trend}"
        return "\n".join([render_table("share of the text to keep", header, rows), *reasons, words])


def find_filter(
    source: pd.DataFrame | str | Path, *, loss: str = "loss", where: str | None = None, bootstrap: int = 500,
    confidence: float = 0.95, seed: int = 0,
) -> FilterFit:  # fmt: skip
    """The best data.quality_keep for every budget of a table with columns quality_keep, budget or C, N, D, U, `loss`.

    MisuseError: a column is missing.
    """
    check_options(bootstrap=bootstrap, resample="auto", confidence=confidence, seed=seed)
    frame, _ = read_raw(source)
    frame = frame[select_rows(frame, where)] if where else frame
    for name in (KEEP, "C", "N", "D", "U", loss):
        column_of(frame, name, "find_filter")
    frame = frame[(frame[[KEEP, loss]] > 0).all(axis=1)]
    if "role" in frame:
        frame = frame[frame["role"] != "holdout"]
    if frame.empty:
        raise MisuseError(f"find_filter: no row has a {KEEP} and a {loss}; give runs of a study with data.quality_from")
    budget = frame["budget"].to_numpy() if "budget" in frame else label_budgets(frame["C"].to_numpy(float))
    found = [_find_one(frame[budget == one], loss, bootstrap, confidence, seed) for one in np.unique(budget)]
    return FilterFit(tuple(sorted(found, key=lambda one: one.C)), confidence)


def _find_one(frame: pd.DataFrame, loss: str, bootstrap: int, confidence: float, seed: int) -> BudgetFilter:
    lowest = frame.iloc[int(frame.groupby([KEEP, "N"])[loss].transform("mean").to_numpy().argmin())]
    common: dict[str, Any] = {
        "C": float(frame["C"].median()), "tried": float(lowest[KEEP]), "tried_loss": float(lowest[loss]),
        "epochs": float(lowest["D"] / lowest["U"]),
    }  # fmt: skip
    shares = np.unique(frame[KEEP])
    if len(shares) < FEWEST:
        reason = f"{len(shares)} different shares, {FEWEST} are needed"
        return BudgetFilter(status="too_few", reason=reason, keep=None, interval=(None, None), loss=None, **common)
    at = int(np.searchsorted(shares, common["tried"]))
    first = int(np.clip(at - NEIGHBOURS, 0, len(shares) - FEWEST))
    low, high = shares[first], shares[min(max(at + NEIGHBOURS, first + FEWEST - 1), len(shares) - 1)]
    near = frame[(frame[KEEP] >= low) & (frame[KEEP] <= high)]
    u, y, N = np.log(near[KEEP].to_numpy(float)), near[loss].to_numpy(float), near["N"].to_numpy(float)
    cells = (N[:, None] == np.unique(N)).astype(float)
    model = parabola(u, cells)
    theta, _ = solve_parabola(model, y)
    grid = np.linspace(np.log(low), np.log(high), GRID)
    best = float(np.exp(grid[_lowest(theta[None], grid)[0]]))
    drawn = np.exp(grid[_lowest(redraw(model, theta, y, bootstrap, seed), grid)])
    status, reason = _judge(best, float(shares.min()), float(shares.max()))
    value = float(theta[:-2].min() + theta[-2] * np.log(best) + theta[-1] * np.log(best) ** 2)
    return BudgetFilter(
        status=status, reason=reason, keep=best, interval=percentile_interval(drawn, confidence), loss=value, **common
    )


def _lowest(theta: np.ndarray, grid: np.ndarray) -> np.ndarray:
    return np.asarray((theta[:, -2:-1] * grid + theta[:, -1:] * grid**2).argmin(1))


def _judge(best: float, least: float, most: float) -> tuple[str, str]:
    """All of the text is an answer; the least share trained is none."""
    if best <= least * 1.02:
        return "edge", f"the best share is not above the smallest trained, {least:.3g}; filter harder"
    if best >= most / 1.02 and most < 1:
        return "edge", f"the best share is not below the largest trained, {most:.3g}; filter less"
    return "ok", ""
