"""Do the approaches agree? The table of a and b, a test of each difference, and reasons where they do not.

The interval of a difference x_1 - x_2 comes from the two intervals [l_m, u_m] (Zou and Donner 2008):

    lower = x_1 - x_2 - sqrt((x_1 - l_1)^2 + (u_2 - x_2)^2),   upper with the other two ends

which keeps their skewness. It takes the approaches as independent. They are not: both read the same losses,
so their errors go together, the true interval is narrower, and "agree" is said more readily than it should be;
"disagree" can be believed. Compared are a, b, and log N_opt and log L_opt at 10 times the largest budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.fit.average import bears_average
from jaxscale.fit.reasons import find_reasons
from jaxscale.fit.summary import percentile_ends
from jaxscale.format import format_factor, format_interval, format_number, format_percent
from jaxscale.tables import render_table

if TYPE_CHECKING:
    from jaxscale.fit.result import Fit

__all__ = ["BEYOND", "describe_agreement", "judge_agreement", "tabulate_exponents"]

BEYOND = 10.0
"""N_opt and the loss are compared at this many times the largest budget."""
PUBLISHED = (
    ("approach 1, envelope", 0.50, (0.488, 0.502), 0.50, (0.501, 0.512)),
    ("approach 2, IsoFLOP", 0.49, (0.462, 0.534), 0.51, (0.483, 0.529)),
    ("approach 3, parametric", 0.46, (0.454, 0.455), 0.54, (0.542, 0.543)),
)
"""Hoffmann et al. 2022, table 2: a and b with 10th and 90th percentiles. Context, never part of a judgement."""
ASSUMPTION = (
    "taken as independent although they read the same losses: 'agree' is said too readily, 'disagree' can be believed"
)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # rounds without an optimum are left out
def judge_agreement(fits: Sequence[Fit]) -> dict[str, Any] | None:
    """Every pair of answers compared; None with fewer than two. An envelope of too few climbs is no answer here."""
    answers = [fit for fit in fits if bears_average(fit)]
    if len(answers) < 2:
        return None
    C = BEYOND * max(fit.diagnostics["largest_C"] for fit in answers)
    pairs = [_compare(one, other, C) for one, other in combinations(answers, 2)]
    tested = [pair["verdict"] for pair in pairs]
    verdict = next((word for word in ("disagree", "agree") if word in tested), "untested")
    return {"verdict": verdict, "confidence": answers[0].confidence, "C": C, "paired": False,
            "assumption": ASSUMPTION, "pairs": pairs}  # fmt: skip


def describe_agreement(record: dict[str, Any]) -> list[str]:
    """The judgement as sentences, a line a quantity: difference, for N_opt as a factor, for the loss as a share."""
    lines = []
    for pair in record["pairs"]:
        one, other = pair["methods"]
        words = {"disagree": f"disagree at {record['confidence']:.0%}", "agree": "agree"}
        said = words.get(pair["verdict"], "cannot be compared: a fit has no intervals")
        lines.append(f"{one} and {other} {said}; {one} against {other} with {record['confidence']:.0%} intervals:")
        lines += [f"  {_say_difference(row)}" for row in pair["quantities"] if row["difference"] is not None]
        lines += [f"  why they may not: {reason}" for reason in pair["reasons"]]
    return [*lines, f"note: {record['assumption']}"]


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite is unknown
def tabulate_exponents(fits: Sequence[Fit]) -> str:
    """Method, a and b with our intervals, the same as 10th to 90th percentiles, and Hoffmann et al.'s beside."""
    level = f"[{fits[0].confidence:.0%}]"
    header = ("method", "law", "a", level, "[10-90%]", "b", level, "[10-90%]")
    rows = [[fit.method, fit.law, *_exponent_cells(fit, "N"), *_exponent_cells(fit, "D")] for fit in fits]
    ours = render_table("N_opt ~ C^a, D_opt ~ C^b", header, rows)
    theirs = [
        f"  {name}: a {a:.2f} {list(a_ends)}, b {b:.2f} {list(b_ends)}" for name, a, a_ends, b, b_ends in PUBLISHED
    ]
    return "\n".join([ours, "for context, Hoffmann et al. 2022, table 2, their data, all [10-90%]:", *theirs])


def _exponent_cells(fit: Fit, key: str) -> list[Any]:
    found = (fit.exponents or {}).get(key)
    if found is None:
        return [None, None, None]
    inner = _interval(_sample(fit, fit.diagnostics["largest_C"])["a" if key == "N" else "b"], 0.8)
    return [found.value, format_interval(found.interval, _short), format_interval(inner, _short)]


def _compare(one: Fit, other: Fit, C: float) -> dict[str, Any]:
    points, draws = [_point(fit, C) for fit in (one, other)], [_sample(fit, C) for fit in (one, other)]
    rows = []
    for name in points[0]:
        values = [point[name] for point in points]
        ends = [_interval(drawn[name], one.confidence) for drawn in draws]
        rows.append({"quantity": name, "values": values, **_difference(values, ends)})
    tested = [row["agree"] for row in rows if row["agree"] is not None]
    verdict = "untested" if not tested else "agree" if all(tested) else "disagree"
    reasons = find_reasons(one, other) if verdict == "disagree" else []
    return {"methods": [one.method, other.method], "laws": [one.law, other.law], "verdict": verdict,
            "quantities": rows, "reasons": reasons}  # fmt: skip


def _difference(values: Sequence[float], ends: Sequence[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Difference of two answers and its interval; `agree` where the interval holds 0, None where unknown.

    >>> _difference([1.0, 0.0], [(0.7, 1.3), (-0.4, 0.4)])
    {'difference': 1.0, 'interval': [0.5, 1.5], 'agree': False}
    """
    gap = values[0] - values[1]
    (l1, u1), (l2, u2) = ends
    if l1 is None or u1 is None or l2 is None or u2 is None or not np.isfinite(gap):
        return {"difference": float(gap) if np.isfinite(gap) else None, "interval": [None, None], "agree": None}
    down = float(np.hypot(max(values[0] - l1, 0), max(u2 - values[1], 0)))
    up = float(np.hypot(max(u1 - values[0], 0), max(values[1] - l2, 0)))
    return {"difference": float(gap), "interval": [float(gap - down), float(gap + up)], "agree": -up <= gap <= down}


def _point(fit: Fit, C: float) -> dict[str, float]:
    best, next_one = fit.predict_optimum(C), fit.predict_optimum(np.e * C)
    return {"a": float(np.log(next_one.N / best.N)), "b": float(np.log(next_one.D / best.D)),
            "log N_opt": float(np.log(best.N)), "log loss": float(np.log(best.loss))}  # fmt: skip


def _sample(fit: Fit, C: float) -> dict[str, np.ndarray]:
    """a, b, log N_opt and log loss of every round; a is the slope of log N_opt between C and e C."""
    drawn = fit.sample_optimum(np.array([C, np.e * C]))
    log_N, log_D = np.log(drawn.N), np.log(drawn.D)
    return {"a": log_N[:, 1] - log_N[:, 0], "b": log_D[:, 1] - log_D[:, 0],
            "log N_opt": log_N[:, 0], "log loss": np.log(drawn.loss[:, 0])}  # fmt: skip


def _interval(draws: np.ndarray, confidence: float) -> tuple[float | None, float | None]:
    finite = draws[np.isfinite(draws)]
    if len(finite) < 2:
        return None, None
    low, high = percentile_ends(finite, confidence)
    return float(low), float(high)


def _say_difference(row: dict[str, Any]) -> str:
    """One quantity's difference: as a factor for N_opt, as a share for the loss."""
    name, style = {
        "log N_opt": (f"N_opt at {BEYOND:g}x", _factor),
        "log loss": (f"loss at {BEYOND:g}x", _share),
    }.get(row["quantity"], (row["quantity"], _signed))
    mark = "" if row["agree"] is not False else ": they differ"
    return f"{name} {style(row['difference'])} {format_interval(row['interval'], style)}{mark}"


def _signed(value: float | None) -> str:
    return _short(value) if value is None else f"{value:+.3g}"


def _factor(log: float | None) -> str:
    return format_factor(None if log is None else float(np.exp(log)))


def _share(log: float | None) -> str:
    return format_percent(None if log is None else float(np.expm1(log)))


def _short(value: float | None) -> str:
    return format_number(value, 3)
