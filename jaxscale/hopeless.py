"""When a run of a learning-rate sweep cannot come near its optimum any more, and may be stopped.

Runs that differ in their rate alone, the seed among what is equal, read the same text in the same order: a contest. At
each rung, a share s of the steps, a run c is compared with the runs r of its contest that were handed out before it:

    gap(s) = log mean L_c - log mean L_r          training loss over the last SMOOTH of the steps up to s
    stop c if gap(s) > (log(1 + NEAR) + CERTAIN sqrt(2) noise(s)) / kept(s)        against the best r at s

NEAR is how far above the lowest mean `jaxscale.mup.rates` still reads a rate. noise(s) is the deviation of what a run
still gains from s to its end beyond what its rate and seed explain; kept(s) is the share of a gap that is left at the
end, at least. A rate above that of the best is never stopped: it looks bad early and catches up when the schedule
decays, by as much as its whole gap. Both were measured under the cosine schedule (docs/tuning.md has the replay).

A rival must have reached s and not have ended otherwise than done or censored, and the NARROWEST rates next to the best
one are not stopped: the analysis wants that many whatever their losses. Nothing here looks at a clock: a run's rivals
are those before it in an order that is written down once, so a resumed sweep stops the same runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxscale.errors import MisuseError
from jaxscale.plain import read_json, write_json
from jaxscale.runs import Cell, RunResult, RunSpec

__all__ = [
    "NARROWEST",
    "NEAR",
    "RUNGS",
    "Contest",
    "Rung",
    "Stop",
    "Trace",
    "check_stoppable",
    "is_beside",
    "judge_run",
    "keep_order",
    "list_contests",
    "list_unfounded",
    "mean_loss",
    "stop_margin",
]

NEAR = 0.06
"""Share of the loss above the lowest mean that is still near the minimum: no formula holds up to divergence."""
NARROWEST = 5
"""Rates around the lowest mean that are read however high they are."""
SMOOTH = 1 / 16
"""Share of the steps whose losses are averaged."""
CERTAIN = 3.0
"""Deviations of the noise that a gap must be beyond."""


@dataclass(frozen=True)
class Rung:
    """A share of the steps, the noise of what a run still gains (in log loss), and the share of a gap that is kept."""

    share: float
    noise: float
    kept: float


RUNGS = (
    Rung(0.25, 0.0055, 0.40),
    Rung(0.375, 0.0040, 0.55),
    Rung(0.5, 0.0033, 0.75),
    Rung(0.625, 0.0026, 0.85),
    Rung(0.75, 0.0020, 0.85),
)
"""tests/bench/hopeless.py measures them: noise is the largest of long sweeps, kept below the least of all."""


@dataclass(frozen=True)
class Trace:
    """A run as far as it has come: `lines` of its metrics.jsonl by rising step."""

    run_id: str
    lr: float
    lines: Sequence[Mapping[str, Any]]
    stops: bool = True
    """Of a rival: whether it may stop the run; one beside it may not."""


@dataclass(frozen=True)
class Stop:
    """Why a run was stopped. Losses are means over steps `since` to `until`, nats a token; gap and margin in logs."""

    step: int
    steps: int
    since: int
    until: int
    loss: float
    rival: str
    rival_lr: float
    rival_loss: float
    gap: float
    margin: float

    def __str__(self) -> str:
        return (f"stopped at step {self.step} of {self.steps}: training loss {self.loss:.4f} over steps {self.since} "
                f"to {self.until} is {math.expm1(self.gap):.1%} above {self.rival_loss:.4f} of run {self.rival} (lr "
                f"{self.rival_lr:.4g}), the margin there is {math.expm1(self.margin):.1%}")  # fmt: skip


def stop_margin(rung: Rung) -> float:
    """The gap in log loss beyond which a rate below its rival's is stopped.

    >>> [round(stop_margin(rung), 3) for rung in RUNGS]
    [0.204, 0.137, 0.096, 0.082, 0.079]
    """
    return (math.log1p(NEAR) + CERTAIN * math.sqrt(2) * rung.noise) / rung.kept


def mean_loss(lines: Sequence[Mapping[str, Any]], since: float, until: float) -> float | None:
    """Mean loss over the steps in (since, until] of lines that each hold the mean since the line before.

    None where the lines end before `until`.

    >>> mean_loss([{"step": 10, "loss": 4.0}, {"step": 20, "loss": 2.0}], 5, 20)
    2.6666666666666665
    """
    total, begin = 0.0, 0.0
    for line in lines:
        total += float(line["loss"]) * max(0.0, min(line["step"], until) - max(begin, since))
        begin = line["step"]
    return total / (until - since) if begin >= until else None


def judge_run(steps: int, run: Trace, rivals: Sequence[Trace], rung: Rung) -> Stop | None:
    """Whether `run`, of `steps` steps in all, is to be stopped at this rung; None where the best rival says no."""
    until = rung.share * steps
    since = until - SMOOTH * steps
    loss = mean_loss(run.lines, since, until)
    known = [(mean, rival) for rival in rivals if (mean := mean_loss(rival.lines, since, until)) is not None]
    if loss is None or not known:
        return None
    best, rival = min(known, key=lambda pair: pair[0])
    if not rival.stops or run.lr > rival.lr:
        return None
    gap, margin = math.log(loss / best), stop_margin(rung)
    if gap <= margin:
        return None
    return Stop(int(run.lines[-1]["step"]), steps, math.floor(since) + 1, math.floor(until), loss, rival.run_id,
                rival.lr, best, gap, margin)  # fmt: skip


@dataclass(frozen=True)
class Contest:
    """Runs that differ in their rate alone, in the order in which they are handed out."""

    cells: tuple[Cell, ...]

    @cached_property
    def rivals(self) -> dict[str, dict[str, bool]]:
        """Of each run id the runs before it, and whether they may stop it."""
        rates = sorted(cell.spec.lr for cell in self.cells)
        place = {cell.run_id: rates.index(cell.spec.lr) for cell in self.cells}
        ids = [cell.run_id for cell in self.cells]
        return {run: {rival: not is_beside(place[run], place[rival], len(ids)) for rival in ids[:i]}
                for i, run in enumerate(ids)}  # fmt: skip


def is_beside(place: int, rival: int, rates: int) -> bool:
    """Whether a rate, by its place among them all, is one of the NARROWEST next to the rival's.

    >>> [place for place in range(9) if is_beside(place, rival=1, rates=9)]
    [0, 1, 2, 3, 4]
    """
    first = min(max(rival - NARROWEST // 2, 0), max(rates - NARROWEST, 0))
    return first <= place < first + NARROWEST


def list_contests(cells: Sequence[Cell], decay_rule: str, order: Sequence[str]) -> tuple[Contest, ...]:
    """The contests of a sweep's cells, each in the order of `order` (run ids); the units of decay are the recipe's.

    MisuseError for runs that are never stopped.
    """
    check_stoppable(cells)
    place = {run_id: i for i, run_id in enumerate(order)}
    groups: dict[RunSpec, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_without_rate(cell.spec, decay_rule), []).append(cell)
    return tuple(Contest(tuple(sorted(group, key=lambda cell: place[cell.run_id]))) for group in groups.values())


def check_stoppable(cells: Sequence[Cell]) -> None:
    """MisuseError for the first run that is never stopped early: one that is not a sweep's, or of another schedule."""
    for cell in cells:
        if cell.role != "sweep":
            raise MisuseError(f"run {cell.run_id} has the role {cell.role}: only the runs of a sweep may be stopped "
                              f"early; train it without --stop-hopeless")  # fmt: skip
        if cell.spec.schedule != "cosine":
            raise MisuseError(f"recipe.schedule: the margins of --stop-hopeless were measured under cosine and run "
                              f"{cell.run_id} has {cell.spec.schedule}; leave the option out")  # fmt: skip
        if cell.spec.average_steps:
            raise MisuseError("recipe.average_fraction: the margins of --stop-hopeless were measured without "
                              "averaging; leave one of the two out")  # fmt: skip


def _without_rate(spec: RunSpec, decay_rule: str) -> RunSpec:
    decay = spec.weight_decay * spec.lr * spec.steps if decay_rule == "horizon" else spec.weight_decay
    return replace(spec, lr=0.0, weight_decay=float(f"{decay:.12g}"), budget_flops=0.0)


def keep_order(file: Path, cells: Sequence[Cell], ended: Collection[str]) -> tuple[str, ...]:
    """The order of a folder's runs, written to `file` and only ever appended to.

    New runs follow those that have a place: first what has ended before, then by distance from the middle of the
    sweep's rates, for there the rivals are best.
    """
    known = tuple(read_json(file)["order"]) if file.exists() else ()
    rates = sorted({cell.spec.lr for cell in cells})
    middle = (len(rates) - 1) / 2

    def early(cell: Cell) -> tuple[bool, float, float]:
        return cell.run_id not in ended, abs(rates.index(cell.spec.lr) - middle), cell.spec.lr

    new = sorted((cell for cell in cells if cell.run_id not in set(known)), key=early)
    order = (*known, *(cell.run_id for cell in new))
    if new:
        write_json(file, json.dumps({"schema": "jaxscale.hopeless/1", "order": order}, indent=1))
    return order


def list_unfounded(results: Mapping[str, RunResult]) -> dict[str, str]:
    """Censored runs whose rival came to no loss after all, with what became of it: nothing is known of their ends.

    A rival that was censored itself passes the question on to its own.
    """
    found = {}
    for run_id, result in results.items():
        if result.state == "censored":
            name, rival = _last_rival(result, results)
            if rival is None or rival.state != "done":
                found[run_id] = f"its rival {name} {rival.state if rival else 'has no result'}"
    return found


def _last_rival(result: RunResult, results: Mapping[str, RunResult]) -> tuple[str, RunResult | None]:
    """The first run on the way from rival to rival that was not censored, as far as it has a result."""
    name, rival = result.run_id, result
    while rival.state == "censored":
        name = str(rival.provenance.get("stop", {}).get("rival"))
        if name not in results:
            return name, None
        rival = results[name]
    return name, rival
