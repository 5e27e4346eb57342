"""The answer in words, and every reason to doubt it.

A caution is raised by a stated rule on the evidence, never by taste: the limits are the constants below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxscale.fit.average import FEWEST_CLIMBS, bears_average
from jaxscale.fit.result import Fit
from jaxscale.format import format_count, format_factor, format_flops, format_interval, format_loss
from jaxscale.report.evidence import Evidence

__all__ = ["Answer", "find_cautions", "list_answers", "say_leader"]

WIDE_N = 2.0
"""An interval for N_opt whose ends differ by more than this factor is called wide."""
WIDE_LOSS = 0.05
"""An interval for the loss wider than this share of it is called wide."""
DISAGREE_N = 1.5
"""Fits whose N_opt at one target differ by more than this factor disagree."""
DISAGREE_LOSS = 1.03
"""The same for the loss."""
FAR = 30.0
"""Forecasts further than this factor beyond the largest budget are called far."""
TOO_MANY = 2.0
"""Misses beyond this many times their expected share make intervals look too narrow."""
UNTESTABLE_BUDGETS = 3
"""A power law through this many minima or fewer leaves too little to test it with."""


@dataclass(frozen=True)
class Answer:
    """One row of the answer, written for people; the first of a page is its headline.

    `loss_interval` is that of the mean curve, `run_interval` that of a single future run.
    """

    method: str
    C_value: float
    C: str
    extrapolation: str
    N: str
    N_interval: str
    D: str
    D_interval: str
    ratio: str
    loss: str
    loss_interval: str
    run_interval: str


def list_answers(evidence: Evidence) -> list[Answer]:
    """Every forecast row as words, in the evidence's order: the first is the headline."""
    return [_answer(row, evidence) for row in evidence.forecast]


def say_leader(evidence: Evidence) -> str:
    """Who leads the page and why, in one sentence; empty without a forecast."""
    if evidence.leader is None:
        return ""
    chosen = "was declared beforehand" if evidence.beforehand else "is the first of the fits"
    if evidence.leader != evidence.declared:
        return f"By the {evidence.leader}: {evidence.declared} {chosen} and has no answer."
    if len(evidence.fits) == 1:
        return f"By the {evidence.leader}."
    if not evidence.beforehand:
        return f"By the {evidence.leader}, the first of the fits; --declared names the one you declared beforehand."
    return f"By the {evidence.leader}, the approach declared beforehand: no backtest chooses another."


def find_cautions(evidence: Evidence, lawful: bool = False) -> list[str]:
    """Why this answer may be wrong, gravest first; an empty list is a claim too.

    `lawful`: laws of another kind stand on the page, so that none of these is no lack.
    """
    rules = (_no_law, _silent_fits, _mistuned, _missed_backtest, _lost_budgets, _thin_budgets, _disagreements,
             _wide_intervals, _far, _own_words, _not_averaged, _lost_runs)  # fmt: skip
    return [caution for rule in rules if not (lawful and rule is _no_law) for caution in rule(evidence)]


def _answer(row: dict[str, Any], evidence: Evidence) -> Answer:
    intervals = row.get("intervals") or {}
    return Answer(
        method=evidence.name_row(row),
        C_value=row["C"],
        C=format_flops(row["C"]),
        extrapolation=format_factor(row.get("extrapolation")),
        N=format_count(row.get("N_opt")),
        N_interval=format_interval(intervals.get("N_opt"), format_count),
        D=format_count(row.get("D_opt")),
        D_interval=format_interval(intervals.get("D_opt"), format_count),
        ratio=format_count(row.get("tokens_per_param")),
        loss=format_loss(row.get("loss")),
        loss_interval=format_interval(intervals.get("loss"), format_loss),
        run_interval=format_interval(intervals.get("loss_future_run"), format_loss),
    )


def _no_law(evidence: Evidence) -> Iterator[str]:
    if not evidence.fits:
        yield "No law was fitted: what follows is only what was measured."
    elif not evidence.forecast:
        yield "No forecast was made from these fits."


def _silent_fits(evidence: Evidence) -> Iterator[str]:
    """Which approach has no answer, and why."""
    for name, fit in evidence.fits.items():
        verdict = fit.verdict
        for words in evidence.suspicions:  # said at the top of the page
            verdict = verdict.replace(f"; {words}", "") if verdict else None
        if verdict:
            yield f"{name}: no answer; {verdict}."


def _mistuned(evidence: Evidence) -> Iterator[str]:
    for words in evidence.tuning_words:
        yield f"{words[0].upper()}{words[1:]}."


def _not_averaged(evidence: Evidence) -> Iterator[str]:
    for name, fit in evidence.fits.items():
        if fit.verdict is None and not bears_average(fit):
            climbs = len(fit.diagnostics.get("climbs", ()))
            yield f"{name}: not in the average; {climbs} changes of size carry it, {FEWEST_CLIMBS} are needed."


def _own_words(evidence: Evidence) -> Iterator[str]:
    """What the leading fit says of itself; the others' notes stand with their numbers (approaches.py)."""
    leading = evidence.fits.get(evidence.leader or evidence.declared or "")
    for note in leading.notes if leading is not None else ():
        if note not in (*evidence.suspicions, *evidence.tuning_words):
            yield f"{evidence.leader or evidence.declared}: {note}."


def _thin_budgets(evidence: Evidence) -> Iterator[str]:
    for name, fit in evidence.fits.items():
        usable = _usable(fit)
        if _speaks(fit) or fit.budgets is None or usable > UNTESTABLE_BUDGETS:
            continue
        if usable < 2:
            yield f"{name}: {usable} of {len(fit.budgets)} budgets have a usable minimum; a law needs two."
        else:
            yield (
                f"{name}: the power laws stand on {usable} minima, which is too few to test whether a power "
                f"law holds at all. {'One more budget' if usable == 3 else 'More budgets'} would."
            )


def _lost_budgets(evidence: Evidence) -> Iterator[str]:
    words = {
        "edge": "the minimum lies at the edge of the sizes tried: add sizes on that side",
        "nonconvex": "the losses form no valley: noise is larger than the curvature, add seeds or spread",
        "too_few": "too few sizes were measured",
    }
    for name, fit in evidence.fits.items():
        for budget in () if _speaks(fit) else fit.budgets or ():
            if budget.status != "ok":
                yield f"{name}: budget {format_flops(budget.C)} is left out; {words[budget.status]}."


def _missed_backtest(evidence: Evidence) -> Iterator[str]:
    if evidence.fits and not evidence.backtest:
        yield "No backtest: nothing larger was held out, so the error of extrapolating is unknown."
    confidence = min((fit.confidence for fit in evidence.fits.values()), default=0.95)
    tests: dict[str, list[bool]] = {}
    for row in evidence.backtest:
        if row.get("inside") is not None:
            tests.setdefault(evidence.name_row(row), []).append(row["inside"])
    limit = TOO_MANY * (1 - confidence)
    missed = [f"{name} {hits.count(False)} of {len(hits)}" for name, hits in tests.items()
              if hits.count(False) > limit * len(hits)]  # fmt: skip
    if missed:
        yield (f"Backtest measurements outside the {confidence:.0%} interval: {', '.join(missed)}. Those intervals "
               f"look too narrow.")  # fmt: skip


def _disagreements(evidence: Evidence) -> Iterator[str]:
    """Far apart by a stated factor, where no test of the differences was made (approaches.py shows one)."""
    if evidence.agreement is not None:
        return
    for name, key, style, limit in (
        ("size", "N_opt", format_count, DISAGREE_N),
        ("loss", "loss", format_loss, DISAGREE_LOSS),
    ):
        for C in dict.fromkeys(row["C"] for row in evidence.forecast):
            rows = [row for row in evidence.forecast if row["C"] == C and row.get(key)]
            low, high = (end(rows, key=lambda row: row[key], default=None) for end in (min, max))
            if low and high and high[key] > limit * low[key]:
                yield (
                    f"At {format_flops(C)} FLOPs the methods disagree on the {name}: {style(low[key])} "
                    f"({evidence.name_row(low)}) against {style(high[key])} ({evidence.name_row(high)})."
                )
                break


def _wide_intervals(evidence: Evidence) -> Iterator[str]:
    """The first target of the leader and of the average whose interval is wide: later ones are wider."""
    told = set()
    rows = [row for row in evidence.forecast if row["method"] == "average" or evidence.name_row(row) == evidence.leader]
    for row in sorted(rows, key=lambda row: row["C"]):
        low_N, high_N = _ends(row, "N_opt")
        low, high = _ends(row, "loss")
        words = [f"the size spans {format_factor(high_N / low_N)}"] if high_N > WIDE_N * low_N else []
        if high - low > WIDE_LOSS * row["loss"]:
            words.append(f"the loss is {(high - low) / row['loss']:.0%} of the loss itself")
        if words and row["method"] not in told:
            told.add(row["method"])
            where = f"{evidence.name_row(row)} at {format_flops(row['C'])} FLOPs"
            yield f"{where}: the interval for {' and that for '.join(words)}."


def _far(evidence: Evidence) -> Iterator[str]:
    leading = [row for row in evidence.forecast if evidence.name_row(row) == evidence.leader]
    far = [row for row in leading if (row.get("extrapolation") or 0) > FAR]
    if far:
        row = min(far, key=lambda row: row["C"])
        beyond = format_factor(row["extrapolation"])
        yield (
            f"{format_flops(row['C'])} FLOPs is {beyond} the largest budget fitted: the intervals "
            f"assume that the same law holds that far."
        )


def _lost_runs(evidence: Evidence) -> Iterator[str]:
    if evidence.plan is None:
        return
    done = {result.run_id for result in evidence.results if result.state == "done"}
    done |= set(evidence.points["run_id"])
    missing = sum(cell.run_id not in done for cell in evidence.plan.cells)
    if missing:
        planned = len(evidence.plan.cells)
        yield f"Of {planned} planned runs {missing} gave no evidence; the table of runs says why."


def _speaks(fit: Fit) -> bool:
    """Whether the fit judges its own budgets, so that the report need not."""
    return fit.verdict is not None or "notes" in fit.diagnostics


def _usable(fit: Fit) -> int:
    return sum(budget.status == "ok" for budget in fit.budgets or ())


def _ends(row: dict[str, Any], quantity: str) -> tuple[float, float]:
    """An interval's ends; (0, 0), which no rule calls wide, where it is not known."""
    low, high = (row.get("intervals") or {}).get(quantity) or (None, None)
    return (0.0, 0.0) if low is None or high is None else (low, high)
