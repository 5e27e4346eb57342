"""What a reading of the curves says: each budget's minimum, the exponents under other readings, figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxscale.fit import frontier, minima
from jaxscale.fit.cells import Cells
from jaxscale.fit.curves import Reading, choose_reading, judge_curve, locate_minimum, split_curves, weigh_curves
from jaxscale.fit.minima import MIN_SIZES, Curve
from jaxscale.fit.powers import value_powers
from jaxscale.fit.result import Budget

__all__ = ["FAR", "compare_readings", "draw_curve", "read_minima", "read_minimum", "say_disagreement",
           "span_readings"]  # fmt: skip

FAR, FAR_APART = 100.0, 1.2
"""Readings are compared this many times beyond the largest budget; factors in N below the second are agreement."""


def read_minima(cells: Cells) -> tuple[Budget, ...]:
    """Minimum and status of every budget under the default reading."""
    curves = split_curves(cells)
    reading = choose_reading(curves, cells, "auto", "auto")
    return tuple(read_minimum(curve, reading) for curve in weigh_curves(curves, reading))


def read_minimum(curve: Curve, reading: Reading) -> Budget:
    """Minimum and status of one weighed curve."""
    status, why = judge_curve(curve, reading)
    if status != "ok":
        return Budget(float(curve.C), None, None, None, status, len(curve.x), why)
    (x,), (loss,) = locate_minimum(curve, reading, curve.loss[None])
    D = float(np.exp(np.interp(x, curve.x, curve.log_D)))
    return Budget(float(curve.C), float(np.exp(x)), D, float(loss), "ok", len(curve.x))


def compare_readings(cells: Cells, default: Reading | None = None) -> list[dict[str, Any]]:
    """Exponents and far N_opt under other windows and interpolants: often a larger doubt than the interval.

    The last reading takes the lowest run of each budget as its minimum, as much of the literature does.
    """
    curves = split_curves(cells)
    most = max(len(curve.x) for curve in curves)
    known = default is not None and default.kind == "powers"
    readings = [default if default and known else choose_reading(curves, cells, "auto", "auto")]
    readings += [Reading("parabola", size, []) for size in sorted({5, 7, most}) if size <= most]
    return [_read_exponents(curves, reading) for reading in [*readings, Reading("akima", most, []), None]]


def span_readings(readings: list[dict[str, Any]]) -> dict[str, list[float] | None]:
    """Lowest and highest exponent (N and D) over the fitted readings that see as many budgets as the first, or more.

    A reading that loses budgets to their edges compares other data.
    """
    fitted = [row for row in readings[:-1] if row["N"] is not None and row["budgets"] >= readings[0]["budgets"]]
    return {
        name: [min(row[name] for row in fitted), max(row[name] for row in fitted)] if fitted else None for name in "ND"
    }


def say_disagreement(readings: list[dict[str, Any]], low: float | None, high: float | None) -> list[str]:
    """Sentences where another reading puts the far N_opt outside its interval and FAR_APART from the others."""
    *fitted, lowest = readings
    known = {row["N_far"]: row["interpolant"] for row in fitted if row["N_far"] is not None}
    if low is None or high is None or not known:
        return []
    where, words = f"{FAR:g} times beyond the largest budget", []
    if max(known) > FAR_APART * min(known) and (min(known) < low or max(known) > high):
        span = " to ".join(f"{N:.3g} ({known[N]})" for N in (min(known), max(known)))
        words.append(f"how the minima are read matters more than noise: N_opt {where} is {span}, "
                     f"its interval [{low:.3g}, {high:.3g}]")  # fmt: skip
    N = lowest["N_far"]
    if N is not None and (FAR_APART * high < N or low > FAR_APART * N):
        words.append(f"the lowest run of each budget, read as its minimum, would give {N:.3g} for N_opt {where}, "
                     f"outside [{low:.3g}, {high:.3g}]: the sizes are too far apart for that")  # fmt: skip
    return words


def _read_exponents(curves: list[Curve], reading: Reading | None) -> dict[str, Any]:
    """One reading; None is the lowest run."""
    row: dict[str, Any] = {"interpolant": "lowest run", "window": 1, "budgets": 0, "N": None, "D": None, "N_far": None}
    judging = reading or Reading("parabola", MIN_SIZES, [])
    weighed = weigh_curves(curves, judging)
    usable = [curve for curve in weighed if judge_curve(curve, judging)[0] == "ok"]
    row["budgets"] = len(usable)
    if reading is not None:
        row |= {"interpolant": reading.kind, "window": reading.window}
    if len(usable) > 1:
        x = np.array([_place(curve, reading) for curve in usable])
        log_D = np.array([np.interp(at, curve.x, curve.log_D) for at, curve in zip(x, usable, strict=True)])
        log_C = np.log([curve.C for curve in usable])
        (slope, intercept), (slope_D, _) = (frontier.fit_lines(log_C, y[None]) for y in (x, log_D))
        N_far = np.exp(intercept + slope * np.log(FAR * curves[-1].C))
        row |= {"N": float(slope[0]), "D": float(slope_D[0]), "N_far": float(N_far[0])}
    return row


def _place(curve: Curve, reading: Reading | None) -> float:
    """log N of the minimum."""
    if reading is None:
        return float(curve.x[np.argmin(curve.loss)])
    return float(locate_minimum(curve, reading, curve.loss[None])[0][0])


def draw_curve(curve: Curve, reading: Reading) -> dict[str, Any]:
    """What a figure needs: the points, the window, and the interpolant as a dense line."""
    window = curve.window(reading.window) if reading.kind == "parabola" else slice(0, len(curve.x))
    x, polynomial = np.linspace(curve.x[window][0], curve.x[window][-1], 61), None
    if reading.shape is not None:
        line, fitted = (value_powers(curve, reading.shape.delta, at) for at in (x, curve.x))
    elif reading.kind == "akima":
        line, fitted = minima.interpolate_akima(curve, x), curve.loss
    else:
        polynomial, center = minima.parabola_of(curve, window), curve.x[window].mean()
        line, fitted = (np.polyval(polynomial[::-1], at - center) for at in (x, curve.x))
    return {
        "C": float(curve.C), "window_N": [float(np.exp(x[0])), float(np.exp(x[-1]))],
        "center_log_N": float(curve.x[window].mean()),
        "coefficients": None if polynomial is None else polynomial.tolist(),
        "line": {"N": np.exp(x).tolist(), "loss": np.asarray(line).tolist()},
        "points": [
            {"N": float(np.exp(at)), "D": float(np.exp(d)), "loss": float(y), "fitted": float(f),
             "residual": float(y - f), "in_window": bool(window.start <= i < window.stop)}
            for i, (at, d, y, f) in enumerate(zip(curve.x, curve.log_D, curve.loss, fitted, strict=True))
        ],
    }  # fmt: skip
