"""Do the approaches agree? Their answers side by side, each difference with its interval, reasons, and their notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.fit.agreement import BEYOND
from jaxscale.fit.average import bears_average
from jaxscale.fit.result import Fit
from jaxscale.format import (
    UNKNOWN,
    format_count,
    format_factor,
    format_flops,
    format_interval,
    format_loss,
    format_number,
    format_percent,
)
from jaxscale.report.evidence import METHOD_NAMES, Evidence
from jaxscale.report.tables import Table

__all__ = ["Agreement", "Notes", "judge_approaches", "list_notes", "list_parameters"]

NAMES = {"a": "exponent a", "b": "exponent b", "log N_opt": f"N_opt at {BEYOND:g}x, ratio",
         "log loss": f"loss at {BEYOND:g}x, difference"}  # fmt: skip
SPOKEN = {"a": "a", "b": "b", "log N_opt": "the best size", "log loss": "the loss"}


@dataclass(frozen=True)
class Agreement:
    """The judgement in a sentence (`word` first), every difference, and why the approaches may differ."""

    word: str
    sentence: str
    table: Table
    reasons: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Notes:
    """What one fit says of itself."""

    name: str
    words: tuple[str, ...]


def judge_approaches(evidence: Evidence) -> Agreement | None:
    """None with fewer than two answers."""
    record = evidence.agreement
    if record is None:
        return None
    pairs = record["pairs"]
    rows = [line for pair in pairs for line in _pair_lines(pair)]
    headings = ("approaches", "quantity", "first", "second", "difference", f"{record['confidence']:.0%} interval", "")
    return Agreement(
        word={"agree": "agree", "disagree": "disagree"}.get(record["verdict"], "were not compared"),
        sentence=_sentence(record, _averaged(evidence)),
        table=Table(headings, rows, words=2),
        reasons=tuple(dict.fromkeys(reason for pair in pairs for reason in pair["reasons"])),
        note=f"Approaches are {record['assumption']}.",
    )


def _averaged(evidence: Evidence) -> set[str]:
    """Methods whose average stands beside the forecast; none where no average does."""
    if not any(row["method"] == "average" for row in evidence.forecast):
        return set()
    return {fit.method for fit in evidence.fits.values() if bears_average(fit)}


def _sentence(record: dict[str, Any], averaged: set[str]) -> str:
    """What follows "The approaches agree", "... disagree" or "... were not compared"."""
    where = f"{format_flops(record['C'])} FLOPs"
    if record["verdict"] == "agree":
        return (
            f"at {record['confidence']:.0%} on the exponents, and on the size and the loss at {where}: no difference "
            f"goes beyond their intervals."
        )
    if record["verdict"] != "disagree":
        return "since a fit has no intervals."
    pairs = [pair for pair in record["pairs"] if pair["verdict"] == "disagree"]
    apart = [
        f"{_names(pair)} on {' and '.join(SPOKEN[q['quantity']] for q in pair['quantities'] if q['agree'] is False)}"
        for pair in pairs
    ]
    left_out = [
        method for method in dict.fromkeys(m for pair in pairs for m in pair["methods"]) if method not in averaged
    ]
    return (
        f"beyond their {record['confidence']:.0%} intervals at {where}: {'; '.join(apart)}. "
        f"{_advise(left_out, averaged)}"
    )


def _advise(left_out: list[str], averaged: set[str]) -> str:
    """What to make of a disagreement: the average's interval holds it only where it counts both."""
    if not averaged:
        return "No two of them bear an average: the spread between them is part of the doubt."
    if left_out:
        names = " and ".join(METHOD_NAMES[method] for method in left_out)
        return f"The average leaves out the {names}, so no interval here holds that difference: it is further doubt."
    return "Believe no interval narrower than the average's, which their disagreement widens."


def _names(pair: dict[str, Any]) -> str:
    return " and ".join(METHOD_NAMES[name] for name in pair["methods"])


def _pair_lines(pair: dict[str, Any]) -> list[tuple[str, ...]]:
    lines = []
    for row in pair["quantities"]:
        style = {"log N_opt": _ratio, "log loss": _share}.get(row["quantity"], _signed)
        value = {"log N_opt": _exp_count, "log loss": _exp_loss}.get(row["quantity"], _plain)
        word = {True: "agree", False: "differ"}.get(row["agree"], "not compared")
        lines.append((
            _names(pair), NAMES[row["quantity"]], *(value(one) for one in row["values"]), style(row["difference"]),
            format_interval(row["interval"], style), word,
        ))  # fmt: skip
    return lines


def list_parameters(evidence: Evidence) -> list[tuple[str, Table]]:
    """A table for every parametric fit: value, bootstrap and profile interval, and without its outliers."""
    fits = [(name, fit) for name, fit in evidence.fits.items() if fit.method == "parametric" and fit.verdict is None]
    return [(f"{name}: {fit.law}", _parameter_table(fit)) for name, fit in fits if fit.params]


def _parameter_table(fit: Fit) -> Table:
    profile = (fit.diagnostics.get("identifiability") or {}).get("profile") or {}
    outliers = fit.diagnostics.get("outliers") or {}
    without = outliers.get("params")
    headings = ["parameter", "value", f"{fit.confidence:.0%} bootstrap interval", "std error"]
    headings += ["profile interval", "by its profile"] if profile else []
    headings += [f"without the {outliers['count']} worst cells"] if without else []
    rows = []
    for name, value in fit.params.items():
        found = profile.get(name, {})
        line = [name, format_number(value), format_interval(fit.intervals.get(name), format_number),
                format_number(fit.std_errors.get(name))]  # fmt: skip
        if profile:
            line += [format_interval(found.get("interval"), format_number), found.get("bounded", "held still")]
        rows.append((*line, *([format_number(without.get(name))] if without else [])))
    return Table(tuple(headings), rows, words=1)


def list_notes(evidence: Evidence) -> list[Notes]:
    """The notes of every fit but the leader, whose notes stand above; suspicions of the table are said once."""
    said = {*evidence.suspicions, *evidence.tuning_words}
    leading = evidence.leader or evidence.declared
    notes = [
        Notes(name, tuple(note for note in fit.notes if note not in said))
        for name, fit in evidence.fits.items()
        if name != leading
    ]
    return [one for one in notes if one.words]


def _plain(value: float | None) -> str:
    return format_number(value, 3)


def _signed(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:+.3g}"


def _ratio(log: float | None) -> str:
    return format_factor(None if log is None else float(np.exp(log)))


def _share(log: float | None) -> str:
    return format_percent(None if log is None else float(np.expm1(log)))


def _exp_count(log: float | None) -> str:
    return format_count(None if log is None else float(np.exp(log)))


def _exp_loss(log: float | None) -> str:
    return format_loss(None if log is None else float(np.exp(log)))
