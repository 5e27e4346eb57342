"""The steps of a comparison in their order: read, check, best losses, laws, answers, verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxscale.compare import verdict as say
from jaxscale.compare.answers import answer_target, find_crossings
from jaxscale.compare.backtest import backtest_differences, error_per_decade
from jaxscale.compare.cells import AXES, VariantCells, gather_variants
from jaxscale.compare.check import ALLOWED, check_common
from jaxscale.compare.clock import check_prices, read_rates_of, same_seconds
from jaxscale.compare.cost import count_cost, count_spent
from jaxscale.compare.curves import draw_curves
from jaxscale.compare.draws import FORM_NAMES, Draws, draw_laws
from jaxscale.compare.forms import fit_forms, test_forms
from jaxscale.compare.points import Points, find_points
from jaxscale.compare.read import Table, read_variants
from jaxscale.compare.result import Comparison
from jaxscale.compare.settle import find_addition
from jaxscale.compare.tuned import judge_tuning
from jaxscale.errors import MisuseError
from jaxscale.fit.summary import check_options

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare_variants"]

DEFAULT_TARGETS = (10.0, 100.0)
"""Times the largest run."""
NOTIONS = {"C": "flops", "D": "tokens", "N": "params"}
FEWEST_BUDGETS, FEWEST_DRAWS = 2, 200


def compare_variants(
    source: pd.DataFrame | Any,
    *,
    x: str = "C",
    targets: Sequence[float] = (),
    variants: Sequence[str] = (),
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    prices: Mapping[str, float] | None = None,
    tuned: bool = False,
    allow: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    **conventions: Any,
) -> Comparison:
    """A law of the best loss along `x` (C, D or N) for every variant, and which of them wins at `targets` (of x).

    `source`: a study folder, a table (CSV, Parquet) or a DataFrame with columns variant, N, D, loss, and C, budget,
    seed, seconds, bits_per_byte, tuning_trials where known. `targets`: 10 and 100 times the largest run unless given.
    `prices`: dollars per hour by variant. `tuned`: your word that all had the same tuning budget by the same rule.
    `allow`: what may differ on purpose (seed, data_sha256, seq_len). Further options are those of `read_observations`.
    MisuseError: what is asked for is not there. A comparison that cannot be made has the verdict incomparable.
    """
    _check(x, confidence, draws, seed, allow)
    table = read_variants(source, columns=columns, where=where, variants=variants, **conventions)
    names = tuple(name for name in table.names if len(table.of(name)))
    common = check_common(table, names, allow)
    usable = _Usable(names, None, None, _describe(table, {}), ())
    if not common.problem:  # in the order of their names: the draws are then those of any order
        usable = _find_usable(table, tuple(sorted(names)), x, common.loss)
    notes = (*table.notes, *common.notes, *usable.notes)
    base = Comparison(
        verdict="incomparable", words=common.problem or say.too_few(usable.records), winner=None, leader=None, axis=x,
        confidence=confidence, draws=draws, seed=seed, loss=common.loss, source=table.source, variants=usable.records,
        tuning=judge_tuning(table, usable.names if len(usable.names) > 1 else table.names, tuned), notes=notes,
    )  # fmt: skip
    if usable.cells is None or usable.points is None:
        return base
    table = replace(table, frame=table.frame[table.frame["variant"].isin(usable.names)], names=usable.names)
    found = _answer(base, table, usable.cells, usable.points, prices or {}, targets)
    for name in ("rows", "points", "forms", "cost", "curves"):  # back to the order of the source
        found[name] = tuple(sorted(found[name], key=lambda row: _place(row, base.names, found["rows"])))
    return replace(base, **found | {"notes": (*notes, *found["notes"])})


def _place(row: Mapping[str, Any], names: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    """Records by target and notion, by form or by x, then by variant in the order of the source."""
    variant = names.index(row["variant"]) if row["variant"] in names else len(names)
    if "notion" in row:
        return row["target"], [one["notion"] for one in rows].index(row["notion"]), variant
    if "form" in row:
        return FORM_NAMES.index(row["form"]), variant
    return variant, row.get("x", 0.0)


class _Usable(NamedTuple):
    """The variants whose best losses can bear a law, with cells and points where two have one; a record of each."""

    names: tuple[str, ...]
    cells: VariantCells | None
    points: Points | None
    records: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def _check(x: str, confidence: float, draws: int, seed: int, allow: Sequence[str]) -> None:
    check_options(bootstrap=draws, resample="auto", confidence=confidence, seed=seed)
    if x not in AXES:
        raise MisuseError(f"x: {x!r} is no axis; use C, D or N")
    if draws < FEWEST_DRAWS:
        raise MisuseError(f"draws {draws} are too few for an interval; use {FEWEST_DRAWS} or more, 2000 is the default")
    for name in allow:
        if name not in ALLOWED:
            raise MisuseError(f"allow: {name!r} cannot be allowed to differ; use one of {', '.join(ALLOWED)}")


def _describe(table: Table, reasons: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """A record a variant: what it changes, its refused runs, why it has no law."""
    rows = []
    for name in table.names:
        refused = table.refused.get(name, [])
        reason = reasons.get(name, "")
        if not len(table.of(name)):
            reason = f"none of its runs is evidence: {refused[0]}" if refused else "it has no runs"
            reason += f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        changes = list(table.described.get(name, {}).get("changes", ()))
        rows.append({"variant": name, "status": "none" if reason else "ok", "reason": reason, "changes": changes,
                     "runs": len(table.of(name)), "refused": refused})  # fmt: skip
    return tuple(rows)


def _find_usable(table: Table, names: tuple[str, ...], x: str, loss: str) -> _Usable:
    """Variants are left out one after another until all that are left have a law."""
    reasons: dict[str, str] = {}
    while len(names) >= 2:
        cells, notes = gather_variants(table.frame, names, x, loss)
        points = find_points(cells, names)
        bad = {name: why for v, name in enumerate(names) if (why := _why_none(points, v, x))}
        if not bad:
            return _Usable(names, cells, points, _describe(table, reasons), notes)
        reasons |= bad
        names = tuple(name for name in names if name not in bad)
    return _Usable(names, None, None, _describe(table, reasons), ())


def _why_none(points: Points, v: int, x: str) -> str:
    mine = points.member == v
    if mine.sum() < FEWEST_BUDGETS:
        return f"1 budget, a law needs {FEWEST_BUDGETS}, and 4 to be tested; train smaller or larger budgets"
    if np.polyfit(points.log_x[mine], points.y[mine], 1)[0] >= 0:
        return f"its loss does not fall with {x}: check its runs"
    return ""


def _answer(
    base: Comparison, table: Table, cells: VariantCells, points: Points, prices: Mapping[str, float],
    targets: Sequence[float],
) -> dict[str, Any]:  # fmt: skip
    """Everything that is said of variants with laws."""
    axis, confidence, draws, seed, tuning = base.axis, base.confidence, base.draws, base.seed, base.tuning
    largest, asked = _find_targets(table.frame, points, axis, targets)
    forms = fit_forms(points)
    laws = draw_laws(points, draws, seed)
    cost, spent = count_cost(table, points.names, prices), count_spent(table, cells)
    rates, no_rates = read_rates_of(table.frame, points, axis)
    priced = check_prices(prices, points.names)
    rows, pairs, decisions = [], [], []
    for target in asked:
        log_x = np.full(len(points.names), np.log(target))
        for notion, at, extra in _notions(axis, log_x, laws, points, rates, priced, confidence):
            answer = answer_target(laws, points.names, at, confidence)
            where = {"notion": notion, "target": target, "extrapolation": target / largest}
            rows += [where | extra | row for row in answer.rows]
            pairs += [where | pair for pair in answer.pairs]
            more = None
            if notion == NOTIONS[axis]:
                sure = min(answer.beats_rival, answer.probability) if answer.probability > 0.5 else answer.beats_rival
                more = find_addition(laws, points, (answer.leader, answer.rival), at, sure, confidence, spent)
            decisions.append(say.decide(where, answer, points.names, tuning, confidence, draws, more))
    history = backtest_differences(points, confidence, seed)
    growth = error_per_decade(history)
    verdict, winner, leader, words = say.conclude(decisions, rows, tuning, NOTIONS[axis], draws)
    low, high = float(points.log_x.min()), float(np.log(max(*asked, largest)))
    return {
        "verdict": verdict, "winner": winner, "leader": leader, "words": words, "rows": tuple(rows),
        "pairs": tuple(pairs), "decisions": tuple(decisions), "points": points.rows,
        "crossings": tuple(find_crossings(laws, points.names, low, high, confidence)),
        "forms": tuple(record | {"aicc": form.aicc} for form in forms.values()
                       for record in form.to_plain(points.names)),
        "tests": tuple(test_forms(points, forms)), "weights": laws.weights,
        "noise": {"run_std": points.std, "dof": points.dof, "pairing": points.pairing, "curvature": points.curvature,
                  "curvature_p": points.curvature_p, "no_floor": laws.no_floor},
        "backtest": tuple(history), "error_per_decade": growth, "cost": cost,
        "curves": draw_curves(laws, points, low, high, leader, confidence),
        "notes": tuple(say.list_notes(points, asked, largest, growth, axis, no_rates, priced is None)),
    }  # fmt: skip


def _find_targets(
    frame: pd.DataFrame, points: Points, axis: str, targets: Sequence[float]
) -> tuple[float, list[float]]:
    """The largest x, as the budget it was meant to be where that is a number, and the targets."""
    import pandas as pd

    largest = float(np.exp(points.log_x.max()))
    if axis == "C" and "budget" in frame:
        meant = float(pd.to_numeric(frame["budget"], errors="coerce").max())
        largest = meant if abs(meant / largest - 1) < 0.1 else largest
    smallest = float(np.exp(points.log_x.min()))
    for target in targets:
        if not (np.isfinite(target) and target > 0):
            raise MisuseError(f"target {target:g} must be above 0, {AXES[axis]}")
        if target < 0.9 * smallest:
            raise MisuseError(f"target {target:.3g} {AXES[axis]} lies below the smallest run ({smallest:.3g}); a law "
                              f"says nothing there")  # fmt: skip
    return largest, list(dict.fromkeys(targets)) or [factor * largest for factor in DEFAULT_TARGETS]


def _notions(
    axis: str, log_x: np.ndarray, laws: Draws, points: Points, rates: Any, prices: Any, confidence: float
) -> list[tuple[str, np.ndarray, dict[str, Any]]]:
    """Equal x, and what each variant makes in the time, and for the money, that the leader at equal x spends."""
    found: list[tuple[str, np.ndarray, dict[str, Any]]] = [(NOTIONS[axis], log_x, {})]
    if rates is None:
        return found
    leader = answer_target(laws, points.names, log_x, confidence).leader
    level = [1.0] * len(points.names)
    at, seconds = same_seconds(rates, level, leader, float(log_x[0]))
    found.append(("seconds", at, {"seconds": seconds}))
    if prices is not None:
        at, seconds = same_seconds(rates, prices, leader, float(log_x[0]))
        found.append(("dollars", at, {"dollars": seconds * prices[leader] / 3600}))
    return found
