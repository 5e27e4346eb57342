"""What a reading of the curves says: each budget's minimum, the exponents under other readings, figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxscale.fit import frontier, minima
from jaxscale.fit.cells import Cells
from jaxscale.fit.curves import Reading, choose_reading, locate_minimum, split_curves
from jaxscale.fit.minima import Curve
from jaxscale.fit.result import Budget

__all__ = ["compare_readings", "draw_curve", "read_minima", "read_minimum"]


def read_minima(cells: Cells) -> tuple[Budget, ...]:
    """Minimum and status of every budget under the default reading."""
    curves = split_curves(cells)
    reading = choose_reading(curves, cells, "auto", "auto")
    return tuple(read_minimum(curve, reading) for curve in curves)


def read_minimum(curve: Curve, reading: Reading) -> Budget:
    """Minimum and status of one curve."""
    status, why = minima.judge_curve(curve, curve.window(reading.window))
    if status != "ok":
        return Budget(float(curve.C), None, None, None, status, len(curve.x), why)
    (x,), (loss,) = locate_minimum(curve, reading, curve.loss[None])
    D = float(np.exp(np.interp(x, curve.x, curve.log_D)))
    return Budget(float(curve.C), float(np.exp(x)), D, float(loss), "ok", len(curve.x))


def compare_readings(cells: Cells) -> list[dict[str, Any]]:
    """The exponents under other windows and interpolants: often a larger doubt than the interval."""
    curves = split_curves(cells)
    most = max(len(curve.x) for curve in curves)
    readings = [Reading(False, size, []) for size in sorted({5, 7, most}) if size <= most]
    return [_read_exponents(curves, reading) for reading in [*readings, Reading(True, most, [])]]


def _read_exponents(curves: list[Curve], reading: Reading) -> dict[str, Any]:
    usable = [c for c in curves if minima.judge_curve(c, c.window(reading.window))[0] == "ok"]
    row: dict[str, Any] = {"interpolant": "akima" if reading.akima else "parabola", "window": reading.window,
           "budgets": len(usable), "N": None, "D": None}  # fmt: skip
    if len(usable) > 1:
        x = [locate_minimum(curve, reading, curve.loss[None])[0][0] for curve in usable]
        log_D = [np.interp(at, curve.x, curve.log_D) for at, curve in zip(x, usable, strict=True)]
        log_C = np.log([curve.C for curve in usable])
        row["N"], row["D"] = (float(frontier.fit_lines(log_C, np.array([y]))[0][0]) for y in (x, log_D))
    return row


def draw_curve(curve: Curve, reading: Reading) -> dict[str, Any]:
    """What a figure needs: the points, the window, and the interpolant as a dense line."""
    window = slice(0, len(curve.x)) if reading.akima else curve.window(reading.window)
    x = np.linspace(curve.x[window][0], curve.x[window][-1], 61)
    if reading.akima:
        line, fitted, polynomial = minima.interpolate_akima(curve, x), curve.loss, None
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
