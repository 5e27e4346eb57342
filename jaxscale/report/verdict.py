"""The answer in words, and every reason to doubt it.

A caution is raised by a stated rule on the evidence, never by taste: the limits are the constants below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxscale.fit.result import Fit
from jaxscale.format import (
    format_count,
    format_factor,
    format_flops,
    format_interval,
    format_loss,
    format_percent,
)
from jaxscale.report.evidence import METHOD_NAMES, Evidence

__all__ = ["Answer", "Test", "find_cautions", "list_answers", "list_tests"]

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
UNTESTABLE_BUDGETS = 3
"""A power law through this many minima or fewer leaves too little to test it with."""


@dataclass(frozen=True)
class Answer:
    """One row of the answer, written for people; the first of a page is its headline."""

    method: str
    C: str
    extrapolation: str
    N: str
    N_interval: str
    D: str
    D_interval: str
    ratio: str
    loss: str
    loss_interval: str


@dataclass(frozen=True)
class Test:
    """One backtest: predicted without seeing it, then measured."""

    method: str
    trained_to: str
    target: str
    quantity: str
    predicted: str
    interval: str
    measured: str
    error: str
    compute: str
    inside: bool | None
    nearest: bool
    """From the largest origin of its method: the extrapolation most like the forecast's."""


def list_answers(evidence: Evidence) -> list[Answer]:
    """Every forecast row as words, in the evidence's order: the first is the headline."""
    return [_answer(row) for row in evidence.forecast]


def list_tests(evidence: Evidence) -> list[Test]:
    """Every backtest row as words; the error is predicted over measured, minus one."""
    largest: dict[str, float] = {}
    for row in evidence.backtest:
        if row.get("split") != "corner":
            largest[row["method"]] = max(row["trained_to_C"], largest.get(row["method"], 0.0))
    return [_test(row, row["trained_to_C"] == largest.get(row["method"])) for row in evidence.backtest]


def find_cautions(evidence: Evidence) -> list[str]:
    """Why this answer may be wrong, gravest first; an empty list is a claim too."""
    rules = (_no_law, _own_words, _thin_budgets, _lost_budgets, _missed_backtest, _disagreements,
             _wide_intervals, _far, _lost_runs)  # fmt: skip
    return [caution for rule in rules for caution in rule(evidence)]


def _answer(row: dict[str, Any]) -> Answer:
    intervals = row.get("intervals") or {}
    return Answer(
        method=_method(row),
        C=format_flops(row["C"]),
        extrapolation=format_factor(row.get("extrapolation")),
        N=format_count(row.get("N_opt")),
        N_interval=format_interval(intervals.get("N_opt"), format_count),
        D=format_count(row.get("D_opt")),
        D_interval=format_interval(intervals.get("D_opt"), format_count),
        ratio=format_count(row.get("tokens_per_param")),
        loss=format_loss(row.get("loss")),
        loss_interval=format_interval(intervals.get("loss_future_run") or intervals.get("loss"), format_loss),
    )


def _test(row: dict[str, Any], nearest: bool) -> Test:
    style = format_loss if row["quantity"].startswith("loss") else format_count
    predicted, measured = row["predicted"], row["measured"]
    known = predicted is not None and measured
    return Test(
        method=_method(row),
        trained_to=format_flops(row["trained_to_C"]),
        target=format_flops(row["target_C"]),
        quantity=row["quantity"],
        predicted=style(predicted),
        interval=format_interval(row.get("interval"), style),
        measured=style(measured),
        error=format_percent(predicted / measured - 1 if known else None),
        compute=format_factor(_at_least_one(row.get("compute_error"))),
        inside=row.get("inside"),
        nearest=nearest,
    )


def _no_law(evidence: Evidence) -> Iterator[str]:
    if not evidence.fits:
        yield "No law was fitted: what follows is only what was measured."
    elif not evidence.forecast:
        yield "No forecast was made from these fits."


def _own_words(evidence: Evidence) -> Iterator[str]:
    """What the fits say of themselves: why there is no answer, and what to know before trusting one."""
    for name, fit in evidence.fits.items():
        if fit.diagnostics.get("verdict"):
            yield f"{name}: no answer; {fit.diagnostics['verdict']}."
        for note in fit.diagnostics.get("notes") or ():
            yield f"{name}: {note}."


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
    for method in dict.fromkeys(row["method"] for row in evidence.backtest):
        tests = [row for row in evidence.backtest if row["method"] == method]
        missed = sum(row.get("inside") is False for row in tests)
        if missed:
            yield (
                f"{_method(tests[0])}: {missed} of {len(tests)} backtest measurements fell outside the "
                f"interval, so its intervals look too narrow."
            )


def _disagreements(evidence: Evidence) -> Iterator[str]:
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
                    f"({_method(low)}) against {style(high[key])} ({_method(high)})."
                )
                break


def _wide_intervals(evidence: Evidence) -> Iterator[str]:
    """The first target of each method whose interval is wide: later ones are wider."""
    told = set()
    for row in sorted(evidence.forecast, key=lambda row: row["C"]):
        low_N, high_N = _ends(row, "N_opt")
        low, high = _ends(row, "loss")
        words = [f"the size spans {format_factor(high_N / low_N)}"] if high_N > WIDE_N * low_N else []
        if high - low > WIDE_LOSS * row["loss"]:
            words.append(f"the loss is {(high - low) / row['loss']:.0%} of the loss itself")
        if words and row["method"] not in told:
            told.add(row["method"])
            where = f"{_method(row)} at {format_flops(row['C'])} FLOPs"
            yield f"{where}: the interval for {' and that for '.join(words)}."


def _far(evidence: Evidence) -> Iterator[str]:
    far = [row for row in evidence.forecast if (row.get("extrapolation") or 0) > FAR]
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
    return "notes" in fit.diagnostics or "verdict" in fit.diagnostics


def _usable(fit: Fit) -> int:
    return sum(budget.status == "ok" for budget in fit.budgets or ())


def _ends(row: dict[str, Any], quantity: str) -> tuple[float, float]:
    """An interval's ends; (0, 0), which no rule calls wide, where it is not known."""
    low, high = (row.get("intervals") or {}).get(quantity) or (None, None)
    return (0.0, 0.0) if low is None or high is None else (low, high)


def _at_least_one(factor: float | None) -> float | None:
    """A factor in compute without its direction, which the sign of the error already tells."""
    return max(factor, 1 / factor) if factor else None


def _method(row: dict[str, Any]) -> str:
    """The name of a row's method in the report's words."""
    return METHOD_NAMES.get(row["method"], row["method"] or "fit")
