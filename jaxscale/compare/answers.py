"""What draws of laws say at a target: losses, differences, multipliers, who is best, and where curves cross.

A number is the median of the draws, an interval their central percentiles, a probability their share. Infinite values
(a multiplier where the loser never gets there) count in both and are null where they come out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from jaxscale.compare.draws import Draws

__all__ = ["Answer", "answer_target", "find_crossings", "summarize"]

Span = list[float | None]
GRID = 240


@dataclass(frozen=True)
class Answer:
    """At one target under one notion: the variant that is most often the best, the share of draws in which it is,
    records of variants and of pairs; the rival that it beats least often, and how often."""

    leader: int
    probability: float
    rows: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    rival: int
    beats_rival: float


def answer_target(draws: Draws, names: tuple[str, ...], log_x: np.ndarray, confidence: float) -> Answer:
    """Every variant v at its own x_v (log_x (V,)): equal FLOPs have one x, equal time as much as each makes in it."""
    loss = draws.loss(log_x)
    share = np.bincount(loss.argmin(1), minlength=len(names)) / len(loss)
    value = np.median(loss, 0)
    leader = int(np.lexsort((value, -share))[0])
    rows = []
    for v, name in enumerate(names):
        row: dict[str, Any] = {"variant": name, "x": float(np.exp(log_x[v])), "leader": v == leader}
        row |= _named("loss", loss[:, v], confidence)
        row |= _named("difference", loss[:, v] - loss[:, leader], confidence)
        row |= _named("multiplier", _multiply(draws, loss, log_x, v, leader), confidence)
        rows.append(row | {"probability_best": float(share[v])})
    beaten = [float((loss[:, leader] < loss[:, v]).mean()) if v != leader else 2.0 for v in range(len(names))]
    rival = int(np.argmin(beaten))
    pairs = []
    for a, b in combinations(range(len(names)), 2):
        pair: dict[str, Any] = {"a": names[a], "b": names[b]}
        pair |= _named("difference", loss[:, b] - loss[:, a], confidence)
        pair |= _named("multiplier", _multiply(draws, loss, log_x, b, a), confidence)
        pairs.append(pair | {"probability_a": float((loss[:, a] < loss[:, b]).mean())})
    return Answer(leader, float(share[leader]), rows, pairs, rival, beaten[rival])


def _multiply(draws: Draws, loss: np.ndarray, log_x: np.ndarray, v: int, leader: int) -> np.ndarray:
    """How many times its x a variant needs for the leader's loss (draws,): L_v(m x_v) = L_leader(x_leader)."""
    if v == leader:
        return np.ones(len(loss))
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(draws.reach(loss[:, leader], v) - log_x[v]))


def _named(name: str, values: np.ndarray, confidence: float) -> dict[str, Any]:
    value, interval = summarize(values, confidence)
    return {name: value, f"{name}_interval": interval}


def summarize(values: np.ndarray, confidence: float) -> tuple[float | None, Span]:
    """Median and central interval of draws, some of which may be infinite: null where they come out infinite."""
    tail, ordered = (1 - confidence) / 2, np.sort(values)
    places = np.clip(np.array([tail, 0.5, 1 - tail]) * (len(values) + 1) - 1, 0, len(values) - 1)
    below, above = np.floor(places).astype(int), np.ceil(places).astype(int)
    with np.errstate(invalid="ignore"):
        low, middle, high = np.where(
            below == above, ordered[below], ordered[below] + (places - below) * (ordered[above] - ordered[below])
        )
    return _finite(middle), [_finite(low), _finite(high)]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def find_crossings(
    draws: Draws, names: tuple[str, ...], low: float, high: float, confidence: float
) -> list[dict[str, Any]]:
    """Of every pair the x between exp(low) and exp(high) at which its curves cross: the share of draws in which they
    do, and the median and interval of the (last) crossing of those; null where fewer than half cross."""
    grid = np.linspace(low, high, GRID)
    loss = np.stack([draws.loss(x) for x in grid], -1)
    rows = []
    for a, b in combinations(range(len(names)), 2):
        gap = loss[:, a] - loss[:, b]
        change = gap[:, :-1] * gap[:, 1:] < 0
        crossed = change.any(1)
        last = change.shape[1] - 1 - change[crossed, ::-1].argmax(1)
        x = _bisect(draws, np.flatnonzero(crossed), a, b, grid[last], grid[last + 1])
        row: dict[str, Any] = {
            "a": names[a],
            "b": names[b],
            "share": float(crossed.mean()),
            "x": None,
            "interval": None,
        }
        if len(x) >= 2 and row["share"] >= 0.5:
            value, interval = summarize(np.exp(x), confidence)
            better = int((gap[:, 0] < 0).mean() < 0.5)
            row |= {"x": value, "interval": interval, "better_below": names[(a, b)[better]]}
        rows.append(row)
    return rows


def _bisect(draws: Draws, index: np.ndarray, a: int, b: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """log x of the crossing between low and high of the draws index."""

    def gap(x: np.ndarray) -> np.ndarray:
        one, two = (
            draws.E[index, v] + np.exp(draws.height[index, v] - draws.alpha[index, v] * (x - draws.middle))
            for v in (a, b)
        )
        return np.asarray(one - two)

    sign = np.sign(gap(low))
    for _ in range(40):
        middle = (low + high) / 2
        before = np.sign(gap(middle)) == sign
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    return np.asarray((low + high) / 2)
