"""Equal time and equal cost: how much each variant computes while another makes its target.

The rate of a variant is x per second (FLOP/s along C), read from the runs at its best sizes: a line in logs through
them by medians (Theil 1950, Sen 1968). Beyond the largest run the rate stays as it is there: small models speed up as
they grow, and no chip does so for ever. So the ratio of two variants at a target is the one measured at the top. Cost
is time by price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.compare.points import Points
from jaxscale.errors import MisuseError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Rate", "check_prices", "read_rates_of", "same_seconds"]

NEAR = 1.5
"""Runs within this factor of the best size tell the rate there."""


@dataclass(frozen=True)
class Rate:
    """x per second at x: a power law inside [low, high], level outside."""

    log_rate: float
    slope: float
    low: float
    high: float

    def seconds(self, log_x: float) -> float:
        """Seconds that x takes."""
        at = float(np.clip(log_x, self.low, self.high))
        return float(np.exp(log_x - self.log_rate - self.slope * (at - self.high)))

    def reach(self, seconds: float) -> float:
        """log x made in so many seconds."""
        low, high = -100.0, 400.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.seconds(middle) < seconds else (low, middle)
        return low


def read_rates_of(frame: pd.DataFrame, points: Points, axis: str) -> tuple[list[Rate] | None, str]:
    """Rates of all variants, or why there are none."""
    seconds = _seconds(frame)
    if seconds is None:
        return None, "no column seconds or flops_per_s: nothing can be said at equal time or cost"
    if "device_kind" in frame and frame["device_kind"].nunique(dropna=False) > 1:
        kinds = ", ".join(sorted(map(str, frame["device_kind"].unique())))
        return None, f"the runs were timed on several kinds of device ({kinds}): seconds do not compare"
    rates = []
    for v, name in enumerate(points.names):
        mine = (frame["variant"] == name).to_numpy() & np.isfinite(seconds) & (seconds > 0)
        rate = _fit_rate(frame[mine], seconds[mine], [row for row in points.rows if row["variant"] == name], axis)
        if rate is None:
            return None, f"variant {points.names[v]} has no run that was timed: nothing can be said at equal time"
        rates.append(rate)
    return rates, ""


def _seconds(frame: pd.DataFrame) -> np.ndarray | None:
    """Seconds of every run: its FLOPs over its speed where that is known, which leaves compiling out."""
    known = np.full(len(frame), np.nan)
    if "seconds" in frame:
        known = frame["seconds"].to_numpy(float)
    if "flops_per_s" in frame:
        by_speed = frame["C"].to_numpy(float) / frame["flops_per_s"].to_numpy(float)
        known = np.where(np.isfinite(by_speed), by_speed, known)
    return known if np.isfinite(known).any() else None


def _fit_rate(frame: pd.DataFrame, seconds: np.ndarray, rows: list[dict[str, Any]], axis: str) -> Rate | None:
    """The median rate of the runs near each best size, and the line through them."""
    x, N = np.log(frame[axis].to_numpy(float)), np.log(frame["N"].to_numpy(float))
    at, rate = [], []
    for row in rows:
        of_budget = np.abs(x - np.log(row["x"])) < np.log(1.1)
        if not of_budget.any():
            continue
        gap = np.abs(N - np.log(row["N"]))
        near = of_budget & (gap <= max(np.log(NEAR), float(gap[of_budget].min())))
        at.append(float(np.log(row["x"])))
        rate.append(float(np.median(x[near] - np.log(seconds[near]))))
    if not at:
        return None
    t, r = np.array(at), np.array(rate)
    i, j = np.triu_indices(len(t), 1)
    apart = np.abs(t[i] - t[j]) > 0.05
    slope = float(np.median((r[j] - r[i])[apart] / (t[j] - t[i])[apart])) if apart.any() else 0.0
    return Rate(float(np.median(r - slope * (t - t.max()))), slope, float(t.min()), float(t.max()))


def same_seconds(rates: Sequence[Rate], prices: Sequence[float], leader: int, log_x: float) -> tuple[np.ndarray, float]:
    """log x (V,) that each variant makes for what the leader spends on x, and the seconds of the leader."""
    seconds = rates[leader].seconds(log_x)
    spent = seconds * prices[leader]
    found = [log_x if v == leader else rate.reach(spent / prices[v]) for v, rate in enumerate(rates)]
    return np.array(found), seconds


def check_prices(prices: Mapping[str, float], names: tuple[str, ...]) -> list[float] | None:
    """Dollars per hour of each variant, None where none was given; MisuseError for an unknown name or half a list."""
    if not prices:
        return None
    for name, price in prices.items():
        if name not in names:
            raise MisuseError(f"price: no variant {name!r}; there are {', '.join(names)}")
        if not (np.isfinite(price) and price > 0):
            raise MisuseError(f"price: {name}={price:g} must be above 0, dollars per hour")
    if missing := [name for name in names if name not in prices]:
        raise MisuseError(f"price: {', '.join(missing)} has none; give NAME=DOLLARS_PER_HOUR for every variant")
    return [float(prices[name]) for name in names]
