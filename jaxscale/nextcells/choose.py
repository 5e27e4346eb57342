"""Greedy choice with whole rows: which runs lower the expected width of the forecast most per FLOP.

    score = mean over beliefs of 1/2 log Var(f),    gain of a move = drop of the score / its FLOPs

A law believed exactly would have runs at two extreme cells only. Against that: the score is the mean over the declared
law and a second approach; a budget without MIN_SIZES sizes, MIN_ARM on each side of the fitted optimum, can only
be entered by a whole row that makes it one (what `plan_isoflop` demands), its sizes and seeds coming singly afterwards;
no cell has more than a stated number of runs; and with `lead` a row above the measured range comes first, since
nothing inside the range shows that the law holds beyond it.

Rows make the problem lumpy, and a greedy choice never pays for one beside cheap repeats: so the greedy choice is made
from nothing, and once from each row first, and the set with the best score per FLOP is kept (the best score of all
where a sum of FLOPs is given to spend: partial enumeration, Sviridenko 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np

from jaxscale.nextcells.belief import Belief, Places

__all__ = ["MIN_ARM", "MIN_SIZES", "Chosen", "choose_cells", "is_above", "is_row", "row_move"]

MIN_SIZES, MIN_ARM = 5, 2
"""Sizes that a budget needs in all, and on each side of the fitted optimum."""

Move = tuple[int, ...]


@dataclass(frozen=True)
class Chosen:
    """A move, its FLOPs, and the variance of the target under each belief after it."""

    places: Move
    cost: float
    variances: tuple[float, ...]


@dataclass(frozen=True)
class _Design:
    """Runs at each place, what each belief says of them, and the moves that led here."""

    counts: np.ndarray
    states: tuple[Any, ...]
    variances: tuple[float, ...]
    moves: tuple[Chosen, ...] = ()
    cost: float = 0.0
    cells: int = 0

    @property
    def score(self) -> float:
        return sum(map(log, self.variances)) / len(self.variances) / 2


def choose_cells(
    beliefs: Sequence[Belief], places: Places, counts: np.ndarray, cells: int, *,
    spend_flops: float | None = None, most_runs: float = np.inf, lead: bool = False,
) -> tuple[Chosen, ...]:  # fmt: skip
    """Up to `cells` runs in the order of choice, within `spend_flops` where given; `counts` (n,) runs made before.

    No cell gets more than `most_runs` runs, those made before included. `lead`: a row of a budget above all measured
    ones comes first, where one can be had.
    """
    counts = counts.astype(float)
    states = tuple(belief.start(counts) for belief in beliefs)
    start = _Design(counts, states, tuple(b.variance(state) for b, state in zip(beliefs, states, strict=True)))
    limits = _Limits(cells, np.inf if spend_flops is None else spend_flops * (1 + 1e-9), most_runs)
    rows = [move for move in _rows(places, counts) if limits.allow(places, start, move)]
    above = [move for move in rows if lead and is_above(places, counts, move)]
    starts = [_take(beliefs, places, start, move) for move in above or rows]
    found = [_greedy(beliefs, places, design, limits) for design in (starts if above else [start, *starts])]
    found = [design for design in found if design.moves]
    if not found:
        return ()
    worth = [start.score - design.score for design in found]
    if spend_flops is None:
        worth = [gain / design.cost for gain, design in zip(worth, found, strict=True)]
    return found[int(np.argmax(worth))].moves


@dataclass(frozen=True)
class _Limits:
    """Runs in all, FLOPs in all, runs of one cell."""

    cells: int
    flops: float
    most_runs: float

    def allow(self, places: Places, design: _Design, move: Move) -> bool:
        return bool(
            len(move) + design.cells <= self.cells
            and _cost(places, move) + design.cost <= self.flops
            and all(design.counts[i] < self.most_runs for i in move)
        )


def _greedy(beliefs: Sequence[Belief], places: Places, design: _Design, limits: _Limits) -> _Design:
    """The best move again and again. Between two rows gains only fall, nearly, so that a move's last gain is its bound
    and few moves are weighed anew at each step (Minoux 1978); a row renews them all."""
    bounds: dict[Move, float] = {}
    while True:
        if not design.moves or len(design.moves[-1].places) > 1 or not bounds:
            bounds = dict.fromkeys(_moves(places, design.counts), np.inf)
        offers = {move: bound for move, bound in bounds.items() if limits.allow(places, design, move)}
        best = _best_move(beliefs, places, design, offers)
        if best is None:
            return design
        bounds |= offers
        design = best


def _best_move(beliefs: Sequence[Belief], places: Places, design: _Design, bounds: dict[Move, float]) -> _Design | None:
    """The design after the move of largest gain per FLOP, None where none gains; `bounds` is brought up to date."""
    best, most = None, 0.0
    for move in sorted(bounds, key=lambda move: -bounds[move]):
        if bounds[move] <= most:
            break
        taken = _take(beliefs, places, design, move)
        bounds[move] = (design.score - taken.score) / taken.moves[-1].cost
        if bounds[move] > most:
            best, most = taken, bounds[move]
    return best


def _take(beliefs: Sequence[Belief], places: Places, design: _Design, move: Move) -> _Design:
    states = tuple(b.after(state, move) for b, state in zip(beliefs, design.states, strict=True))
    variances = tuple(b.variance(state) for b, state in zip(beliefs, states, strict=True))
    counts, cost = design.counts.copy(), _cost(places, move)
    np.add.at(counts, list(move), 1.0)
    moves = (*design.moves, Chosen(move, cost, variances))
    return _Design(counts, states, variances, moves, design.cost + cost, design.cells + len(move))


def _cost(places: Places, move: Move) -> float:
    return float(sum(places.cost[i] for i in move))


def _moves(places: Places, counts: np.ndarray) -> list[Move]:
    """Single runs in budgets that are a row, and whole rows elsewhere."""
    singles: list[Move] = [
        (int(i),) for i in np.flatnonzero(places.offered) if is_row(places, counts, int(places.budget[i]))
    ]
    return singles + _rows(places, counts)


def _rows(places: Places, counts: np.ndarray) -> list[Move]:
    closed = [b for b in range(len(places.budget_C)) if not is_row(places, counts, b)]
    return [move for b in closed if (move := row_move(places, counts, b))]


def is_above(places: Places, counts: np.ndarray, move: Move) -> bool:
    """Whether a move's budget is above all that have runs."""
    return bool(places.budget[move[0]] > places.budget[counts > 0].max())


def is_row(places: Places, counts: np.ndarray, budget: int) -> bool:
    """Whether a budget's runs are a row: sizes enough, on both sides."""
    t = places.t[(places.budget == budget) & (counts > 0)]
    return len(t) >= MIN_SIZES and min((t < 0).sum(), (t > 0).sum()) >= MIN_ARM


def row_move(places: Places, counts: np.ndarray, budget: int) -> Move:
    """The runs that make a budget a row of MIN_SIZES sizes, as even in log N as the offers allow; () where none do."""
    inside = places.budget == budget
    there = np.flatnonzero(inside & (counts > 0)).tolist()
    free = np.flatnonzero(inside & places.offered & (counts == 0)).tolist()
    taken: list[int] = []
    reach = float(np.min(np.abs(_ends(places.t[[*there, *free]])))) if there or free else 0.0
    for place in np.linspace(-reach, reach, MIN_SIZES):
        known = [i for i in there if abs(places.t[i] - place) < reach / MIN_SIZES]
        if known or not free:
            continue
        nearest = min(free, key=lambda i: abs(places.t[i] - place))
        free.remove(nearest)
        taken.append(nearest)
    while free and len(there) + len(taken) < MIN_SIZES:
        nearest = min(free, key=lambda i: abs(places.t[i]))
        free.remove(nearest)
        taken.append(nearest)
    grown = counts.copy()
    np.add.at(grown, taken, 1.0)
    return tuple(taken) if taken and is_row(places, grown, budget) else ()


def _ends(t: np.ndarray) -> np.ndarray:
    return np.array([t.min(), t.max()])
