"""The runs of a learning-rate sweep as curves: loss over log2 lr, one curve a model, ladders of curves.

    ladder   the curves of one setting (parameterization, tokens, batch, decay, init scale) over widths at one
             depth (against "width"), or over depths at one width (against "depth")
    stable   a rate at which every seed that was tried ended. One seed that diverged makes the rate unstable: the
             seeds that survived there were chosen by surviving, so their losses are shown and never fitted. One
             that was stopped as hopeless (jaxscale.hopeless) does the same, for the same reason
    window   k neighbouring stable rates: from the lowest mean loss on, always the lower of the two neighbours.
             A curve that climbs steeply to divergence on one side loses that side first; an unstable rate ends it,
             and so does a mean more than NEAR above the lowest once NARROWEST rates are in
    bound    a censored run has no loss; that it would have ended more than NEAR above its rival is used in words
             alone: beside it the optimum is bracketed, and what is missing are rates between

Statuses that the bare points give: too_few (under 4 stable rates: any three lie on a parabola), edge (the
lowest mean is at the first or last of them, where it may only be the end of a slope).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.hopeless import NARROWEST, NEAR

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MIN_RATES",
    "NARROWEST",
    "NEAR",
    "Against",
    "Curve",
    "Ladder",
    "Status",
    "edge_reason",
    "format_rate",
    "judge_points",
    "read_ladders",
]

MIN_RATES = 4
SETTINGS = ("parameterization", "tokens", "batch_tokens", "weight_decay", "init_scale")
"""What the members of a ladder share; a column that the rows lack is not compared."""
NEEDED = ("parameterization", "width", "depth", "lr", "seed", "state", "loss")
STATES = ("done", "diverged", "failed", "censored")
Against = Literal["width", "depth"]
Status = Literal["ok", "edge", "nonconvex", "too_few"]


@dataclass(frozen=True)
class Curve:
    """One model's runs: log2 lr `x` (k,) rising; `loss` (k, seeds) in nats, nan where a run has none;
    `diverged` (k, seeds); `failed` (k, seeds) ended for a reason that says nothing about the rate; `censored`
    (k, seeds) stopped as hopeless."""

    width: int
    depth: int
    seeds: tuple[int, ...]
    x: np.ndarray
    loss: np.ndarray
    diverged: np.ndarray
    failed: np.ndarray
    censored: np.ndarray

    @property
    def stable(self) -> np.ndarray:
        """Indices of the rates with a loss and without a diverged or censored run."""
        return np.flatnonzero(np.isfinite(self.loss).any(1) & ~self.diverged.any(1) & ~self.censored.any(1))

    def fate(self, i: int) -> str:
        """What became of a rate that is not stable."""
        if self.diverged[i].any():
            return "diverged"
        return "was stopped as hopeless" if self.censored[i].any() else "has no loss"

    @property
    def mean(self) -> np.ndarray:
        """Mean loss (k,) over the seeds, each seed's offset from the others at the stable rates removed first."""
        known = np.isfinite(self.loss)
        offset = _offsets(self.loss[self.stable]) if len(self.stable) else np.zeros(self.loss.shape[1])
        total = np.where(known, self.loss - offset, 0.0).sum(1)
        count = known.sum(1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def window(self, size: int) -> np.ndarray:
        """Indices of at most `size` neighbouring stable rates near the lowest mean."""
        return self._grow(size, 1 + NEAR)

    def block(self) -> np.ndarray:
        """Indices of all stable rates that neighbour the lowest mean."""
        return self._grow(len(self.x), np.inf)

    def _grow(self, size: int, most: float) -> np.ndarray:
        mean, stable = self.mean, set(self.stable.tolist())
        low = high = start = int(min(stable, key=lambda i: mean[i]))
        while high - low + 1 < size:
            sides = [i for i in (low - 1, high + 1) if i in stable]
            nearest = min(sides, key=lambda i: mean[i], default=None)
            if nearest is None or (high - low + 1 >= NARROWEST and mean[nearest] > most * mean[start]):
                break
            low, high = min(low, nearest), max(high, nearest)
        return np.arange(low, high + 1)


def _offsets(loss: np.ndarray) -> np.ndarray:
    """What each seed (seeds,) adds at every rate, so that a rate that lacks a run is not moved by which; sums to 0."""
    known = np.isfinite(loss)
    offset = np.zeros(loss.shape[1])
    for _ in range(20):  # alternating means; exact at once where no run is missing
        row = np.where(known, loss - offset, 0.0).sum(1) / known.sum(1)
        offset = np.where(known, loss - row[:, None], 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return offset - offset.mean()


@dataclass(frozen=True)
class Ladder:
    """Curves of one setting by rising rung. `fixed` is the depth of a ladder over widths, and vice versa."""

    against: Against
    fixed: int
    settings: dict[str, Any] = field(hash=False)
    curves: tuple[Curve, ...]

    @property
    def rungs(self) -> list[int]:
        """Widths (or depths)."""
        return [getattr(curve, self.against) for curve in self.curves]


def read_ladders(rows: pd.DataFrame) -> list[Ladder]:
    """The ladders of a sweep's rows; a model that shares its setting with no other is a ladder of one.

    Raises MisuseError for missing columns, unknown states, rates that are not positive, a done run without a
    finite loss, and two runs of one model, rate and seed.
    """
    _check_rows(rows)
    settings = [name for name in SETTINGS if name in rows]
    ladders = []
    for key, mine in rows.groupby(settings, sort=True, dropna=False):
        shared = dict(zip(settings, key, strict=True))
        models = mine[["width", "depth"]].drop_duplicates().to_numpy(int).tolist()
        cells = {(w, d): _read_curve(w, d, mine[(mine["width"] == w) & (mine["depth"] == d)]) for w, d in models}
        found = [_ladder("width", depth, shared, cells) for depth in sorted({d for _, d in cells})]
        found += [_ladder("depth", width, shared, cells) for width in sorted({w for w, _ in cells})]
        long = [ladder for ladder in found if len(ladder.curves) > 1]
        placed = {(curve.width, curve.depth) for ladder in long for curve in ladder.curves}
        alone = [one for one in found if one.against == "width" and len(one.curves) == 1
                 and (one.curves[0].width, one.fixed) not in placed]  # fmt: skip
        ladders += [*long, *alone]
    return ladders


def _ladder(against: Against, fixed: int, shared: dict[str, Any], cells: dict[tuple[int, int], Curve]) -> Ladder:
    other = 1 if against == "width" else 0
    chosen = tuple(curve for key, curve in sorted(cells.items()) if key[other] == fixed)
    return Ladder(against, fixed, {name: _plain(value) for name, value in shared.items()}, chosen)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _read_curve(width: int, depth: int, cell: pd.DataFrame) -> Curve:
    rates, rate = np.unique(cell["lr"].to_numpy(float), return_inverse=True)
    seeds, seed = np.unique(cell["seed"].to_numpy(), return_inverse=True)
    shape, state = (len(rates), len(seeds)), cell["state"].to_numpy()
    loss = np.full(shape, np.nan)
    diverged, failed, censored = (np.zeros(shape, bool) for _ in range(3))
    loss[rate, seed] = np.where(state == "done", cell["loss"].to_numpy(float), np.nan)
    diverged[rate, seed], failed[rate, seed] = state == "diverged", state == "failed"
    censored[rate, seed] = state == "censored"
    return Curve(width, depth, tuple(int(one) for one in seeds), np.log2(rates), loss, diverged, failed, censored)


def _check_rows(rows: pd.DataFrame) -> None:
    missing = [name for name in NEEDED if name not in rows]
    if missing:
        raise MisuseError(f"rows of the sweep lack {', '.join(missing)}; a sweep.json's rows have {', '.join(NEEDED)}")
    if rows.empty:
        raise MisuseError("the sweep has no rows, so there is no learning rate to choose")
    odd = sorted(set(rows["state"]) - set(STATES))
    if odd:
        raise MisuseError(
            f"state {odd[0]!r} is none of {', '.join(STATES)}; wait until every run of the sweep has ended"
        )
    rates, loss = rows["lr"].to_numpy(float), rows["loss"].to_numpy(float)
    if not (np.isfinite(rates) & (rates > 0)).all():
        raise MisuseError(f"lr {rates[~(np.isfinite(rates) & (rates > 0))][0]:g} has no logarithm; rates are above 0")
    bad = np.flatnonzero((rows["state"] == "done").to_numpy() & ~np.isfinite(loss))
    if len(bad):
        raise MisuseError(f"row {bad[0]} is done and has no finite loss; a run that lost it is diverged or failed")
    key = [name for name in (*SETTINGS, "width", "depth", "lr", "seed") if name in rows]
    twice = rows[rows.duplicated(key)]
    if len(twice):
        told = ", ".join(f"{name} {twice.iloc[0][name]}" for name in ("width", "depth", "lr", "seed"))
        raise MisuseError(f"two runs have {told}; give a repeat its own seed, or keep one of them")


def judge_points(curve: Curve) -> tuple[Status, str]:
    """Status as the points give it, and what to run next."""
    block = curve.block() if len(curve.stable) else curve.stable
    if len(block) < MIN_RATES:
        told = f"{len(block)} neighbouring stable rates of {len(curve.x)} tried, at least {MIN_RATES} are needed"
        told += "; add lower ones, where no run diverges" if curve.diverged.any() else ""
        return "too_few", told + (
            "; add rates next to the lowest, or reset the stopped" if curve.censored.any() else ""
        )
    lowest = int(block[np.argmin(curve.mean[block])])
    if lowest in (block[0], block[-1]):
        return "edge", edge_reason(curve, block, last=lowest == block[-1])
    return "ok", ""


def edge_reason(curve: Curve, block: np.ndarray, last: bool) -> str:
    """Which rates to add beyond the first or the last of a block of stable ones."""
    x, at = curve.x, int(block[-1] if last else block[0])
    step = float(np.median(np.diff(x)))
    beyond = at + 1 if last else at - 1
    which = "last" if last else "first"
    if 0 <= beyond < len(x):
        between = format_rate(2 ** float((x[at] + x[beyond]) / 2))
        return (f"lowest at the {which} stable rate {format_rate(2 ** x[at])} and {format_rate(2 ** x[beyond])} "
                f"{curve.fate(beyond)}; add rates between, such as {between}")  # fmt: skip
    sign = 1 if last else -1
    more = " and ".join(format_rate(2 ** (x[at] + sign * step * k)) for k in (1, 2))
    return f"lowest at the {which} rate {format_rate(2 ** x[at])}, add {more}"


def format_rate(rate: float | None) -> str:
    """A learning rate for people.

    >>> format_rate(0.0078125), format_rate(2.0), format_rate(None)
    ('0.00781', '2', '–')
    """
    return "–" if rate is None or not np.isfinite(rate) else f"{rate:.3g}"
