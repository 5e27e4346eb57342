"""How much an optimum forgives: the loss lost by a size off by x, and the sizes within a tolerance.

Tokens move with the size so that C = k N^p D stays. With a surface the penalty is exact,

    L(x N_opt, D(C, x N_opt)) - L_opt(C)

An isoflop fit has curves at its budgets: L = L_opt + c log(N / N_opt)^2 with c from each budget's polynomial.
Beyond them c / (L_opt - E) is kept at its median over the budgets, E that of the fit's loss law. For
Chinchilla's law this is exact to second order: c = alpha beta (L_opt - E) / 2 under C = 6 N D.
A penalty in compute is the factor by which a budget could shrink at the optimum for the same loss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.result import Fit, Fits, without_nan
from jaxscale.fit.summary import percentile_interval
from jaxscale.fitted import answered, drawn_surface, has_surface, surface
from jaxscale.format import format_count, format_factor, format_flops, format_interval, format_number
from jaxscale.laws import FlopRule, Law, LossLaw, Optimum
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FACTORS", "TOLERANCES", "Flatness", "Valley", "measure_flatness", "measured_valley", "say_beyond",
           "valley_of"]  # fmt: skip

FACTORS = (0.5, 0.8, 1.25, 2.0)
"""Sizes over the optimal one at which the penalty is told."""
TOLERANCES = (0.001, 0.005, 0.01)
"""Losses over the lowest one, minus one, within which sizes are told."""
WIDEST, HALVINGS = 30.0, 80
"""Log of the largest factor looked at, and steps that narrow it below rounding."""
AROUND = 5
"""Sizes around the lowest that give a curvature where the curve is no polynomial."""


@dataclass(frozen=True)
class Flatness:
    """Rows of kind "off" (a size off by `factor`) and "range" (the sizes within `tolerance`), flat records.

    off: method, C, factor, N, D, tokens_per_param, penalty_nats, penalty, compute_factor; factor None is the
    fit's own N_opt, whose penalty interval says what its error may cost. range: tolerance, N_low, N_high,
    low and high as factors, tokens_per_param_low and _high (at N_high and N_low). Intervals NAME_interval.
    """

    rows: tuple[dict[str, Any], ...]
    confidence: float
    notes: tuple[str, ...] = ()
    schema: str = "jaxscale.flatness/1"

    def to_plain(self) -> dict[str, Any]:
        """The schema's dictionary."""
        plain = {"schema": self.schema, "confidence": self.confidence, "notes": list(self.notes)}
        return without_nan({**plain, "rows": list(self.rows)})

    def to_json(self) -> str:
        """The rows as JSON, schema jaxscale.flatness/1."""
        return json.dumps(self.to_plain(), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a budget and factor or tolerance."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def __str__(self) -> str:
        off = [row for row in self.rows if row["kind"] == "off"]
        within = [row for row in self.rows if row["kind"] == "range"]
        title = f"a size off the optimum, tokens adjusted to the same C, {self.confidence:.0%} intervals"
        parts = [
            render_table(title, ("method", "C", "N", "D/N", "off by", "nats lost", "interval", "loss", "compute"),
                         [_show_off(row) for row in off]),
            render_table("sizes within a tolerance of the lowest loss",
                         ("method", "C", "tolerance", "N from", "to", "factors", "D/N from", "to"),
                         [_show_range(row) for row in within]),
        ]  # fmt: skip
        return "\n\n".join([*parts, *(f"note: {note}" for note in self.notes)])


def _show_off(row: dict[str, Any]) -> tuple[Any, ...]:
    off = "the fit's error" if row["factor"] is None else format_factor(row["factor"])
    penalty = None if row["penalty"] is None else f"{100 * row['penalty']:+.3g}%"
    return (row["method"], format_flops(row["C"]), format_count(row["N"]), row["tokens_per_param"], off,
            row["penalty_nats"], format_interval(row["penalty_nats_interval"], lambda x: format_number(x, 3)),
            penalty, format_factor(row["compute_factor"]))  # fmt: skip


def _show_range(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["method"], format_flops(row["C"]), f"{100 * row['tolerance']:.3g}%", format_count(row["N_low"]),
            format_count(row["N_high"]), f"{format_factor(row['low'])} to {format_factor(row['high'])}",
            row["tokens_per_param_low"], row["tokens_per_param_high"])  # fmt: skip


@dataclass(frozen=True)
class Valley:
    """Loss across sizes at a compute, of one law or of many rounds: L(C, log(N / N_opt)).

    `best(C)` is the optimum, `across(C, x)` the loss at N = N_opt e^x, `compute(loss)` the frontier's inverse.
    """

    best: Callable[[Any], Optimum]
    across: Callable[[Any, Any], Any]
    compute: Callable[[Any], Any]
    rule: FlopRule


def valley_of(law: Law, rule: FlopRule) -> Valley:
    """The valley of a surface."""

    def across(C: Any, x: Any) -> Any:
        N = law.optimum(C, rule).N * np.exp(x)
        return law.loss(N, rule.tokens(C, N))

    return Valley(lambda C: law.optimum(C, rule), across, law.frontier(rule).compute, rule)


def measure_flatness(
    fit: Fit | Fits,
    flops: Sequence[float] = (),
    *,
    factors: Sequence[float] = FACTORS,
    tolerances: Sequence[float] = TOLERANCES,
) -> Flatness:
    """The penalty for sizes off by `factors` and the sizes within `tolerances`, at each C of `flops`.

    Without `flops`: at an isoflop fit's budgets, elsewhere at the largest C fitted. Penalties in nats, relative
    to the loss, and as a factor of compute. MisuseError for a factor, tolerance or C that is not above 0.
    """
    for name, values in (("flops", flops), ("factors", factors), ("tolerances", tolerances)):
        for value in values:
            if not (np.isfinite(value) and value > 0):
                raise MisuseError(f"{name}: {value:g} must be finite and above 0")
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for one in answered(fit):
        try:
            valley, words = measured_valley(one)
        except VerdictError as error:  # one of several methods without curves is a note, the only one a verdict
            notes.append(str(error))
            continue
        notes += words
        drawn = _drawn_valley(one)
        for C in [float(C) for C in flops] or _own_budgets(one):
            mine = list(_rows(one, valley, drawn, C, factors, tolerances))
            rows += mine
            for row in mine if not has_surface(one) else ():
                sizes = [row["factor"]] if row["kind"] == "off" else [row["low"], row["high"]]
                notes += say_beyond(one, _name_row(row), sizes)
    if not rows:
        raise VerdictError("; ".join(notes))
    return Flatness(tuple(rows), answered(fit)[0].confidence, tuple(dict.fromkeys(notes)))


def _name_row(row: dict[str, Any]) -> str:
    return f"off by {row['factor']:g}" if row["kind"] == "off" else f"{100 * row['tolerance']:g}% at {row['C']:.3g}"


def _own_budgets(fit: Fit) -> list[float]:
    found = [budget.C for budget in fit.budgets or () if budget.status == "ok"]
    return found or [float(fit.diagnostics["largest_C"])]


def _rows(
    fit: Fit, valley: Valley, drawn: Valley | None, C: float, factors: Sequence[float], tolerances: Sequence[float]
) -> Iterator[dict[str, Any]]:
    head = {"method": fit.method, "C": C}
    if drawn is not None:
        yield head | _fit_error(valley, drawn, C, fit.confidence)
    for factor in factors:
        yield head | _off_by(valley, drawn, C, factor, fit.confidence)
    for tolerance in tolerances:
        yield head | _within(valley, drawn, C, tolerance, fit.confidence)


def _fit_error(valley: Valley, drawn: Valley, C: float, confidence: float) -> dict[str, Any]:
    """What the fit's own N_opt loses where the truth is another bootstrap round."""
    N = valley.best(C).N
    lost = drawn.across(C, np.log(N / drawn.best(C).N)) - drawn.best(C).loss
    return {"kind": "off", "factor": None, **_place(valley, C, N), "penalty_nats": 0.0, "penalty": 0.0,
            "compute_factor": 1.0, "penalty_nats_interval": list(percentile_interval(lost, confidence))}  # fmt: skip


def _off_by(valley: Valley, drawn: Valley | None, C: float, factor: float, confidence: float) -> dict[str, Any]:
    best, loss = valley.best(C), float(valley.across(C, np.log(factor)))
    return {"kind": "off", "factor": float(factor), **_place(valley, C, best.N * factor),
            "penalty_nats": loss - float(best.loss), "penalty": loss / float(best.loss) - 1,
            "compute_factor": C / float(valley.compute(loss)),
            "penalty_nats_interval": _penalty_interval(drawn, C, factor, confidence)}  # fmt: skip


def _within(valley: Valley, drawn: Valley | None, C: float, tolerance: float, confidence: float) -> dict[str, Any]:
    low, high = (float(_reach(valley, C, tolerance, side)) for side in (-1.0, 1.0))
    N_low, N_high = (float(valley.best(C).N * np.exp(x)) for x in (low, high))
    return {"kind": "range", "tolerance": float(tolerance), "N_low": N_low, "N_high": N_high,
            "low": float(np.exp(low)), "high": float(np.exp(high)),
            "tokens_per_param_low": _place(valley, C, N_high)["tokens_per_param"],
            "tokens_per_param_high": _place(valley, C, N_low)["tokens_per_param"],
            "low_interval": _reach_interval(drawn, C, tolerance, -1.0, confidence),
            "high_interval": _reach_interval(drawn, C, tolerance, 1.0, confidence)}  # fmt: skip


def _place(valley: Valley, C: float, N: Any) -> dict[str, float]:
    D = valley.rule.tokens(C, N)
    return {"N": float(N), "D": float(D), "tokens_per_param": float(D / N)}


def _penalty_interval(drawn: Valley | None, C: float, factor: float, confidence: float) -> list[float | None]:
    if drawn is None:
        return [None, None]
    lost = drawn.across(C, np.log(factor)) - drawn.best(C).loss
    return list(percentile_interval(lost, confidence))


def _reach_interval(
    drawn: Valley | None, C: float, tolerance: float, side: float, confidence: float
) -> list[float | None]:
    if drawn is None:
        return [None, None]
    return list(percentile_interval(np.exp(_reach(drawn, C, tolerance, side)), confidence))


def _reach(valley: Valley, C: float, tolerance: float, side: float) -> Any:
    """log(N / N_opt) on one side at which the loss is `tolerance` over the lowest, by bisection."""
    best = np.asarray(valley.best(C).loss)
    inside, outside = np.zeros(best.shape), np.full(best.shape, side * WIDEST)
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        within = valley.across(C, middle) <= best * (1 + tolerance)
        inside, outside = np.where(within, middle, inside), np.where(within, outside, middle)
    return inside


def measured_valley(fit: Fit) -> tuple[Valley, list[str]]:
    """The fit's valley, and what to know of it."""
    if has_surface(fit):
        return valley_of(surface(fit), fit.rule), []
    curvature = measure_curvature(fit)
    share, loss_law = float(np.median(list(curvature.values()))), LossLaw(**(fit.loss_law or {}))

    def across(C: Any, x: Any) -> Any:
        loss = fit.predict_optimum(C).loss
        near = min(curvature, key=lambda budget: abs(np.log(budget / C)))
        measured = curvature[near] if abs(np.log(near / C)) < 0.05 else share
        return loss + measured * (loss - loss_law.E) * np.square(x)

    low, high = min(curvature.values()), max(curvature.values())
    words = (
        f"{fit.method}: parabolas in log N, trustworthy within the sizes trained; off the measured budgets the "
        f"curvature over L - E is their median, {share:.3g} (they span {low:.3g} to {high:.3g}); no intervals"
    )
    return Valley(fit.predict_optimum, across, loss_law.compute, fit.rule), [words]


def _drawn_valley(fit: Fit) -> Valley | None:
    law = drawn_surface(fit) if has_surface(fit) else None
    return valley_of(law, fit.rule) if law is not None else None


def measure_curvature(fit: Fit) -> dict[float, float]:
    """c / (L_opt - E) by budget, L = L_opt + c log(N / N_opt)^2 at it; VerdictError where no curve is kept."""
    E = (fit.loss_law or {}).get("E", 0.0)
    kept = {curve["C"]: curve for curve in fit.diagnostics.get("curves") or ()}
    found = {}
    for budget in fit.budgets or ():
        curve = next((kept[C] for C in kept if np.isclose(C, budget.C, rtol=1e-6)), None)
        if budget.status == "ok" and budget.loss_opt is not None and curve is not None:
            found[budget.C] = _second_order(curve) / (budget.loss_opt - E)
    found = {C: share for C, share in found.items() if np.isfinite(share) and share > 0}
    if not found:
        raise VerdictError(f"{fit.method} fit: it keeps no curve that opens upward, so flatness is not known; "
                           "fit with --method parametric, or again with --method isoflop")  # fmt: skip
    return found


def say_beyond(fit: Fit, what: str, factors: Sequence[float]) -> list[str]:
    """A word where sizes over the optimal one leave those that an isoflop fit's curves cover."""
    ends = [
        np.divide(curve["window_N"], budget.N_opt)
        for budget in fit.budgets or () for curve in fit.diagnostics.get("curves") or ()
        if budget.N_opt is not None and np.isclose(curve["C"], budget.C, rtol=1e-6)
    ]  # fmt: skip
    if not ends:
        return []
    low, high = np.min(ends), np.max(ends)
    beyond = [factor for factor in factors if not low <= factor <= high]
    if not beyond:
        return []
    asked = ", ".join(format_factor(factor) for factor in beyond)
    return [f"{fit.method}: {what} looks at {asked} the optimal size, the curves cover {format_factor(low)} to "
            f"{format_factor(high)}: there the parabola is a guess"]  # fmt: skip


def _second_order(curve: dict[str, Any]) -> float:
    """Coefficient of log(N)^2: the polynomial's, else of a parabola over the sizes around the lowest."""
    if curve["coefficients"] is not None:
        return float(curve["coefficients"][2])
    points = sorted(curve["points"], key=lambda point: point["N"])
    lowest = int(np.argmin([point["loss"] for point in points]))
    start = min(max(lowest - AROUND // 2, 0), max(len(points) - AROUND, 0))
    near = points[start : start + AROUND]
    return float(np.polyfit(np.log([p["N"] for p in near]), [p["loss"] for p in near], 2)[0])
