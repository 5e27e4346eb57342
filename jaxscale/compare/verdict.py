"""Verdicts and the sentences around them.

    settled       at equal FLOPs (tokens, parameters) one variant is the best at every target with the confidence asked
    open          one leads, with less than that somewhere, or the targets have different winners
    untuned       not all were tuned alike: the numbers stand, no winner is named
    incomparable  they do not measure the same thing, or fewer than two have a law

What is best in equal time, or for equal money, is decided by the same rule in rows of its own and does not change the
verdict: it holds for the machine that the runs were timed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxscale.compare.answers import Answer
from jaxscale.compare.points import Points
from jaxscale.compare.result import AT, Verdict, say_probability
from jaxscale.format import format_factor, format_flops, format_interval

__all__ = ["conclude", "decide", "list_notes", "too_few"]

FAR = 1000.0
"""Times the largest run beyond which a target is warned of."""


def too_few(records: Sequence[Mapping[str, Any]]) -> str:
    """Why fewer than two variants have a law."""
    kept = [one["variant"] for one in records if one["status"] == "ok"]
    lost = "; ".join(f"{one['variant']}: {one['reason']}" for one in records if one["status"] != "ok")
    return f"{'only ' + kept[0] if kept else 'no variant'} has a law, two are needed ({lost})"


def decide(
    where: Mapping[str, Any], answer: Answer, names: tuple[str, ...], tuning: Mapping[str, Any], confidence: float,
    draws: int, more: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """The record of one notion and target; its words say who leads and what would settle it."""
    settled = answer.probability >= confidence
    verdict: Verdict = "untuned" if not tuning["equal"] else "settled" if settled else "open"
    leader = names[answer.leader]
    if where["notion"] in ("seconds", "dollars"):
        words = ""
    else:
        words = (f"at {format_flops(where['target'])} {AT[where['notion']]} {leader} is best with probability "
                 f"{say_probability(answer.probability, draws)}")  # fmt: skip
        words += f"; what would settle it: {more['words']}" if more and not settled else ""
    return {**where, "leader": leader, "rival": names[answer.rival], "probability": answer.probability,
            "sampling_floor": 1 / (draws + 1), "winner": leader if verdict == "settled" else None, "verdict": verdict,
            "settle": more, "words": words}  # fmt: skip


def conclude(
    decisions: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], tuning: Mapping[str, Any], notion: str,
    draws: int,
) -> tuple[Verdict, str | None, str, str]:  # fmt: skip
    """Verdict, winner, leader (at the first target) and the sentence of the whole."""
    main = [one for one in decisions if one["notion"] == notion]
    first, leader = main[0], main[0]["leader"]
    said = "; ".join(_say_target(one, rows, draws) for one in main)
    others = _say_others(decisions, main)
    if not tuning["equal"]:
        return "untuned", None, leader, (f"no winner is named: {tuning['words']}. The numbers as the runs are, which "
                                         f"tuning may change: {said}{others}")  # fmt: skip
    if all(one["verdict"] == "settled" and one["leader"] == leader for one in main):
        return "settled", leader, leader, f"{leader} wins: {said}{others}"
    if len({one["leader"] for one in main}) > 1:
        return "open", None, leader, f"the answer depends on the target: {said}{others}"
    unsure = next(one for one in main if one["verdict"] != "settled")
    wanted = "" if unsure is first else f", settled up to {format_flops(first['target'])}"
    return "open", None, leader, f"{leader} leads{wanted}: {said}{others}"


def _say_target(decision: dict[str, Any], rows: Sequence[dict[str, Any]], draws: int) -> str:
    row = next(row for row in rows if row["variant"] == decision["rival"] and row["notion"] == decision["notion"]
               and row["target"] == decision["target"])  # fmt: skip
    where = f"at {format_flops(decision['target'])} ({format_factor(decision['extrapolation'])} the largest run)"
    sure = f"probability {say_probability(decision['probability'], draws)}"
    if row["multiplier"] is None:
        return f"{where} {decision['leader']} is best ({sure}); {decision['rival']} never gets there"
    needs = f"{format_factor(row['multiplier'])} {format_interval(row['multiplier_interval'], format_factor)}"
    return f"{where} {decision['leader']} is best ({sure}), {decision['rival']} needs {needs} as much"


def _say_others(decisions: Sequence[dict[str, Any]], main: Sequence[dict[str, Any]]) -> str:
    """Where equal time or money has another leader."""
    leaders = {one["target"]: one["leader"] for one in main}
    said = [f"at equal {AT[one['notion']]} {one['leader']} leads at {format_flops(one['target'])} (probability "
            f"{one['probability']:.2f})" for one in decisions if one["leader"] != leaders[one["target"]]]  # fmt: skip
    return f"; {'; '.join(said)}" if said else ""


def list_notes(
    points: Points, targets: Sequence[float], largest: float, growth: float | None, axis: str, no_rates: str,
    free: bool,
) -> list[str]:  # fmt: skip
    """What a reader must know of the data and of the distance."""
    notes = []
    for status, words in (("edge", "at the smallest or largest size tried, so that its optimum may lie lower"),
                          ("single", "of the one size trained")):  # fmt: skip
        rows = [row for row in points.rows if row["status"] == status]
        if rows and not (status == "single" and axis != "C"):
            cells = ", ".join(f"{row['variant']} at {format_flops(row['x'])}" for row in rows[:4])
            notes.append(f"best loss {words}: {cells}" + (f" and {len(rows) - 4} more" if len(rows) > 4 else ""))
    notes += _say_budgets(points)
    for target in targets:
        if target <= largest * 1.0001:
            notes.append(f"target {format_flops(target)} lies inside the range measured: it is read off the laws, not "
                         f"foretold")  # fmt: skip
        if target > FAR * largest * 1.0001:
            decades = float(np.log10(target / largest))
            known = (f"in its backtests differences were missed by {growth:.2%} of the loss for every decade, so by "
                     f"{growth * decades:.2%} there" if growth is not None else
                     "there are too few budgets to backtest how errors grow")  # fmt: skip
            far = f"{format_factor(target / largest)} the largest run, more than {FAR:g}x"
            notes.append(f"warning: target {format_flops(target)} is {far}: {known}")
    notes.append(no_rates or ("equal cost is equal time unless --price says otherwise" if free else
                              "rates beyond the largest run are those at it"))  # fmt: skip
    return notes


def _say_budgets(points: Points) -> list[str]:
    notes = []
    counts = np.bincount(points.member, minlength=len(points.names))
    if counts.max() <= 4:
        few = f"{counts.min()} to {counts.max()}" if counts.min() < counts.max() else f"{counts.max()}"
        notes.append(f"{few} budgets a variant: floor and exponent can hardly be told apart, and the intervals say so")
    missing = [points.names[v] for v in range(len(points.names)) if counts[v] < counts.max()]
    if missing:
        notes.append(f"{', '.join(missing)} lack{'s' if len(missing) == 1 else ''} budgets that others have")
    if points.dof < 1:
        notes.append("nothing repeats: the noise is what the laws leave, with few degrees of freedom; a second seed of "
                     "some cells would tell it")  # fmt: skip
    if points.pairing > 0:
        notes.append(f"runs of equal seed have {points.pairing:.0%} of their noise in common, which differences do not "
                     f"feel")  # fmt: skip
    return notes
