"""Fits and candidates -> NextCells: the next runs with what each costs and the interval expected after it.

The expected interval keeps the shape of the fit's own: each end is drawn to the forecast by sqrt(V' / V), in log loss.
It is an expectation over what the runs may show; a surprise widens it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.cells import Cells
from jaxscale.fit.result import Fit, without_nan
from jaxscale.fit.summary import percentile_interval
from jaxscale.format import format_count, format_flops, format_interval, format_loss
from jaxscale.nextcells.belief import Places, form_belief
from jaxscale.nextcells.choose import MIN_ARM, MIN_SIZES, Chosen, choose_cells, is_above, is_row, row_move
from jaxscale.nextcells.noise import estimate_noise
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MOST_RUNS", "Candidate", "NextCells", "check_request", "next_budgets", "propose_cells"]

FEWEST_BUDGETS = 3
"""Budgets from which on a loss law and its doubt are measured at all."""
MOST_RUNS = 4
"""Default of the most runs of one cell: a guard against an error that its runs share and the estimate misses."""
SAME_BUDGET = 0.05
"""Relative distance in C within which a candidate belongs to a measured budget."""
RULE = (
    f"a budget is entered by a row of {MIN_SIZES} sizes, {MIN_ARM} on each side of the fitted optimum; its sizes and "
    f"seeds come singly after that"
)


@dataclass(frozen=True)
class Candidate:
    """A run that could be made: N parameters, D tokens, C its exact training FLOPs, budget its nominal ones.

    `seed`: the first that no run of it has yet; chosen again it counts up.
    """

    budget: float
    N: float
    D: float
    C: float
    seed: int = 0


@dataclass(frozen=True)
class NextCells:
    """Rows in the order of choice: step, candidate (its number), budget, N, D, C, seed, interval and width expected
    after it, gain_per_flop. `before`: the forecast as it is. Widths are of log loss, the declared law's. `noise` of a
    run's log loss at the largest budget, `noise_slope` its power of C (None: taken equal), `shared_share` the part of
    its variance that the runs of a cell have in common."""

    target_C: float
    declared: str
    weighed: tuple[str, ...]
    confidence: float
    noise: float
    noise_slope: float | None
    shared_share: float
    before: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    schema: str = "jaxscale.next/1"

    @property
    def cost(self) -> float:
        """FLOPs of all rows."""
        return float(sum(row["C"] for row in self.rows))

    def to_json(self) -> str:
        """Schema jaxscale.next/1."""
        plain = {"schema": self.schema, "target_C": self.target_C, "declared": self.declared,
                 "weighed": list(self.weighed), "confidence": self.confidence, "noise": self.noise,
                 "noise_slope": self.noise_slope, "shared_share": self.shared_share, "rule": RULE,
                 "before": self.before, "total_flops": self.cost, "rows": list(self.rows),
                 "notes": list(self.notes)}  # fmt: skip
        return json.dumps(without_nan(plain), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a cell."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def __str__(self) -> str:
        before = (self.before["low"], self.before["high"])
        lines = [f"loss at {format_flops(self.target_C)} FLOPs by the {self.declared} fit: "
                 f"{format_loss(self.before['loss'])} {format_interval(before)} at {self.confidence:.0%}, "
                 f"{self.before['width']:.2%} wide"]  # fmt: skip
        header = ("", "budget C", "N", "tokens D", "seed", "FLOPs", "interval after it", "wide", "gain per FLOP")
        rows = [(row["step"], format_flops(row["budget"]), format_count(row["N"]), format_count(row["D"]), row["seed"],
                 format_flops(row["C"]), format_interval((row["low"], row["high"])), f"{row['width']:.2%}",
                 format_flops(row["gain_per_flop"], 2)) for row in self.rows]  # fmt: skip
        title = f"next cells, {format_flops(self.cost)} FLOPs in all; a row's cells share a step, and its gain"
        lines.append(render_table(title, header, rows) if rows else "no cell is worth its FLOPs")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def next_budgets(measured: Sequence[float], limit: float) -> tuple[float, ...]:
    """The measured budgets and those above up to `limit`, by the study's own mean step and half steps of it.

    >>> [float(f"{C:.2g}") for C in next_budgets([1e10, 1e11, 1e12], 1.1e13)]
    [10000000000.0, 100000000000.0, 1000000000000.0, 3200000000000.0, 10000000000000.0]
    """
    known = sorted(measured)
    step = np.sqrt((known[-1] / known[0]) ** (1 / max(len(known) - 1, 1)))
    above, C = [], known[-1] * step
    while step > 1 and limit * (1 + 1e-9) >= C:
        above.append(float(f"{C:.3g}"))
        C *= step
    return (*known, *above)


def propose_cells(
    cells: Cells,
    fits: Sequence[Fit],
    candidates: Sequence[Candidate],
    *,
    target_C: float,
    count: int,
    spend_flops: float | None = None,
    most_runs: float = MOST_RUNS,
    lead: bool = True,
) -> NextCells:
    """Up to `count` of the candidates (further seeds up to `most_runs` of a cell), the first fit the declared one.

    `cells` are those that the fits saw. MisuseError for a request out of range, VerdictError where the data cannot
    say: fewer than three budgets, no noise estimate, a declared fit without an answer. `lead`: a row above the
    measured range is part of the choice, where one can be had.
    """
    check_request(cells, target_C, count, spend_flops, most_runs)
    places, counts, offer = lay_places(cells, candidates, fits[0])
    noise = estimate_noise(cells)
    beliefs, notes = [form_belief(fits[0], places, counts, noise, target_C)], [RULE]
    for other in fits[1:]:
        try:
            beliefs.append(form_belief(other, places, counts, noise, target_C))
        except (MisuseError, VerdictError) as error:
            notes.append(f"not weighed: {error}")
    chosen = choose_cells(beliefs, places, counts, count, spend_flops=spend_flops, most_runs=most_runs, lead=lead)
    notes += [
        f"{format_flops(C)} FLOPs: the sizes offered make no row, which takes {MIN_SIZES}, {MIN_ARM} on each side of "
        f"the fitted optimum; add grid.widths"
        for b, C in enumerate(places.budget_C)
        if not is_row(places, counts, b) and not row_move(places, counts, b)
    ]
    if count < MIN_SIZES:
        notes.append(f"{count} cells make no row: new budgets begin at --next {MIN_SIZES}")
    notes += _say_lead(chosen, places, counts) if lead else []
    notes += noise.words
    notes += _say_limit(chosen, counts, most_runs)
    best, ends = _forecast(fits[0], target_C)
    before = {"loss": best, "low": ends[0], "high": ends[1], "width": float(np.log(ends[1] / ends[0]))}
    rows = _describe(places, chosen, beliefs[0].variance(beliefs[0].start(counts)), counts, offer, candidates, before)
    return NextCells(float(target_C), fits[0].method, tuple(b.method for b in beliefs), fits[0].confidence,
                     float(noise.sigma[-1]), noise.slope, noise.share, before, rows, tuple(notes))  # fmt: skip


def check_request(
    cells: Cells, target_C: float, count: int, spend_flops: float | None = None, most_runs: float = MOST_RUNS
) -> None:
    """MisuseError for a request out of range, VerdictError where fewer than three budgets are measured."""
    if count < 1:
        raise MisuseError(f"next: {count} cells; ask for 1 or more")
    if spend_flops is not None and not (np.isfinite(spend_flops) and spend_flops > 0):
        raise MisuseError(f"next-flops: {spend_flops:g} must be finite and above 0, as in 1e12")
    if most_runs < 1:
        raise MisuseError(f"next-repeats: {most_runs:g} runs of a cell; ask for 1 or more")
    if len(cells.budget_C) < FEWEST_BUDGETS:
        raise VerdictError(f"next: {len(cells.budget_C)} budgets are measured, {FEWEST_BUDGETS} are needed before a "
                           f"forecast's doubt can be weighed; train them first")  # fmt: skip
    largest = float(cells.budget_C.max())
    if not (np.isfinite(target_C) and target_C > largest * (1 + SAME_BUDGET)):
        raise MisuseError(f"next-target: {format_flops(target_C)} FLOPs is not beyond the largest budget measured, "
                          f"{format_flops(largest)}; ask for a larger one")  # fmt: skip


def _say_lead(chosen: Sequence[Chosen], places: Places, counts: np.ndarray) -> list[str]:
    """The new largest budget that the choice begins with, or that there is none."""
    if any(is_above(places, counts, move.places) for move in chosen):
        return ["the target is beyond the range, so that a row above it comes first: nothing inside shows how far the "
                "law holds"]  # fmt: skip
    return ["no row above the measured range can be had within the runs, FLOPs and budgets asked for: the law beyond "
            "it stays untested; raise --next, --next-flops or --next-max-flops"]  # fmt: skip


def _say_limit(chosen: Sequence[Chosen], counts: np.ndarray, most_runs: float) -> list[str]:
    """That further seeds were held back: cells chosen up to the limit."""
    made = np.bincount([place for move in chosen for place in move.places], minlength=len(counts))
    full = int(((made > 0) & (counts + made >= most_runs)).sum())
    return [f"the limit of {most_runs:g} runs a cell binds at {full} cells (--next-repeats)"] if full else []


def lay_places(cells: Cells, candidates: Sequence[Candidate], fit: Fit) -> tuple[Places, np.ndarray, np.ndarray]:
    """Measured cells and candidates as places, the runs at each, and the candidate's number (-1: not offered)."""
    budgets = [float(C) for C in cells.budget_C]
    for C in sorted({c.budget for c in candidates}):
        if all(abs(C / known - 1) > SAME_BUDGET for known in budgets):
            budgets.append(C)
    budget_C = np.array(sorted(budgets))

    def number(C: float) -> int:
        return int(np.argmin(np.abs(np.log(budget_C / C))))

    rows: dict[tuple[int, float], list[Any]] = {}
    for b, N, D, C, dof in zip(cells.budget, cells.N, cells.D, cells.C, cells.seed_dof, strict=True):
        row = rows.setdefault((number(cells.budget_C[b]), float(N)), [float(D), float(C), 0.0, -1])
        row[2] += dof + 1
    for i, one in enumerate(candidates):
        row = rows.setdefault((number(one.budget), float(one.N)), [one.D, one.C, 0.0, -1])
        row[:2], row[3] = [one.D, one.C], i
    budget, N = (np.array(part) for part in zip(*rows, strict=True))
    D, cost, runs, offer = (np.array(part) for part in zip(*rows.values(), strict=True))
    t = np.log(N) - np.log(fit.predict_optimum(budget_C).N)[budget]
    return Places(budget, N, D, cost, offer >= 0, budget_C, t), runs, offer


def _forecast(fit: Fit, target_C: float) -> tuple[float, tuple[float, float]]:
    low, high = percentile_interval(np.asarray(fit.sample_optimum(target_C).loss), fit.confidence)
    if low is None or high is None:
        raise VerdictError(f"{fit.method} fit: its forecast has no interval; use --bootstrap 1000")
    return float(fit.predict_optimum(target_C).loss), (low, high)


def _describe(
    places: Places, chosen: Sequence[Chosen], first: float, counts: np.ndarray, offer: np.ndarray,
    candidates: Sequence[Candidate], before: dict[str, Any],
) -> tuple[dict[str, Any], ...]:  # fmt: skip
    rows: list[dict[str, Any]] = []
    made, width = np.zeros_like(counts), before["width"]
    for step, move in enumerate(chosen, 1):
        ratio = float(np.sqrt(move.variances[0] / first))
        low, high = (before["loss"] * (before[end] / before["loss"]) ** ratio for end in ("low", "high"))
        after = {"low": low, "high": high, "width": before["width"] * ratio,
                 "gain_per_flop": (width - before["width"] * ratio) / move.cost}  # fmt: skip
        width = after["width"]
        for place in sorted(move.places, key=lambda i: places.N[i]):
            one = candidates[int(offer[place])]
            row = {
                "step": step,
                "candidate": int(offer[place]),
                "budget": one.budget,
                "N": one.N,
                "D": one.D,
                "C": one.C,
            }
            repeat = bool(counts[place] + made[place])
            rows.append({**row, "seed": one.seed + int(made[place]), "repeat": repeat, **after})
            made[place] += 1
    return tuple(rows)
