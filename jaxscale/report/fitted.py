"""Figures of laws over compute: N_opt, D_opt and the loss they promise, with bands, out to the forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
import numpy as np

from jaxscale.fit.average import bears_average
from jaxscale.fit.result import Budget, Fit
from jaxscale.format import UNKNOWN, format_count, format_flops, format_interval, format_loss
from jaxscale.report.charts import (
    Figure,
    Records,
    finish,
    fit_color,
    inline,
    linear_y,
    log_axis,
    log_domain,
    tips,
)
from jaxscale.report.curves import Quantity, band_at, optimum_at
from jaxscale.report.evidence import Evidence
from jaxscale.report.measured import LOSS_TITLE, POINT_TIPS, point_rows

__all__ = ["compute_range", "draw_loss_law", "draw_optima"]

SAMPLES = 60
CLEAR = 14
"""Pixels from a forecast to its number: beyond the average's tick."""
NEAR = 1.02
"""Forecasts within this factor stand on one spot of a figure."""
STYLES: dict[str, Callable[[float | None], str]] = {"N": format_count, "D": format_count, "loss": format_loss}
TITLES = {"N": "parameters N", "D": "training tokens D", "loss": LOSS_TITLE}
KEYS = {"N": "N_opt", "D": "D_opt", "loss": "loss"}
LAW_TIPS = tips(fit="fit", kind="", compute="FLOPs C", shown="value", interval="interval")


def draw_optima(evidence: Evidence) -> list[Figure]:
    """N_opt and D_opt against C: minima, each fit's power law with its band, and the forecast."""
    return [figure for quantity in ("N", "D") if (figure := _draw_optimum(evidence, quantity))]


def draw_loss_law(evidence: Evidence) -> Figure | None:
    """The loss at the optimum against C, every measured point behind it, the holdout in front."""
    lines = _line_rows(evidence, "loss")
    if not lines:
        return None
    behind = _points(point_rows(evidence.fitted), filled=True, size=22, opacity=0.45, style="muted")
    held = _points(point_rows(evidence.holdout), shape="square", size=80, style="ink", strokeWidth=2)
    chart = _layer_law(evidence, "loss", lines, [behind, held] if len(evidence.holdout) else [behind])
    caption = f"Grey dots: every fitted run. {_law_caption(evidence, lines, 'loss')}"
    if len(evidence.holdout):
        caption += " Hollow squares: measured, but held out from the fits."
    return Figure("loss_law", "The best loss that compute buys", caption, finish(chart))


def compute_range(evidence: Evidence) -> tuple[float, float]:
    """The C axis of every law: from the smallest run to the largest run or forecast."""
    C = [*evidence.points["C"], *(row["C"] for row in evidence.forecast)]
    return min(C), max(C)


def _draw_optimum(evidence: Evidence, quantity: Quantity) -> Figure | None:
    lines = _line_rows(evidence, quantity)
    if not lines:
        return None
    title = f"{quantity}_opt, the best {'size' if quantity == 'N' else 'token count'}"
    leading = evidence.fits.get(evidence.leader or evidence.declared or "")
    if leading is not None and leading.exponents:
        exponent = leading.exponents[quantity]
        interval = format_interval(exponent.interval, _two_digits)
        title = f"{title}, grows as C^{exponent.value:.2f} {interval if interval != UNKNOWN else ''}"
    chart = _layer_law(evidence, quantity, lines, [])
    return Figure(
        f"optimum_{quantity}", title.strip(), _law_caption(evidence, lines, quantity), finish(chart), wide=False
    )


def _layer_law(
    evidence: Evidence, quantity: Quantity, lines: Records, behind: list[alt.Chart]
) -> alt.LayerChart | alt.FacetChart:
    """Points, bands, lines (dashed beyond the data), minima and forecasts over one C axis."""
    x = log_axis(alt.X, "C", "training FLOPs C", log_domain(compute_range(evidence), 0.07), "flops")
    minima, predicted = _minimum_rows(evidence, quantity), _forecast_rows(evidence, quantity)
    forecast = [row for row in predicted if row["fit"] in evidence.fits]
    average = [row for row in predicted if row["fit"] not in evidence.fits]  # no law to draw a line of
    drawn = [{"value": row["loss"]} for layer in behind for row in layer.data.values]
    y = _value_axis(quantity, [*lines, *minima, *predicted, *drawn])
    color = fit_color(list(evidence.fits), (row["fit"] for row in lines))
    layers = [layer.encode(x=x, y=y("loss")) for layer in behind]
    layers += [layer.encode(x=x) for layer in _average_layers(average, y)]
    bands, bars = ([row for row in rows if row["low"]] for rows in (lines, forecast))
    thin = {name for name, fit in evidence.fits.items() if not bears_average(fit)}
    bars = [row for row in bars if row["fit"] not in thin]  # too wide for any axis: in the table
    layers += [layer.encode(x=x, color=color) for layer in (
        _chart(bands).mark_area(opacity=0.16, clip=True).encode(y=y("low"), y2="high"),
        *_line_layers(lines, y),
        _points(minima, LAW_TIPS, filled=True, shape="diamond", size=110, opacity=1).encode(y=y("value")),
        _chart(bars).mark_rule(strokeWidth=2, clip=True).encode(y=y("low"), y2="high"),
        _points(forecast, LAW_TIPS, filled=True, shape="circle", size=110, opacity=1).encode(y=y("value")),
        _forecast_label(quantity, forecast).encode(y=y("value")),
    )]  # fmt: skip
    return alt.layer(*(layer for layer in layers if layer.data.values))


def _average_layers(average: Records, y: Callable[[str], Any]) -> list[alt.Chart]:
    """The average over approaches as a broad pale bar with a tick at its middle."""
    bars = [row for row in average if row["low"]]
    bar = _chart(bars).mark_rule(strokeWidth=13, clip=True, opacity=0.22, style="ink").encode(y=y("low"), y2="high")
    tick = _chart(average).mark_tick(thickness=3, size=20, style="ink", orient="horizontal", opacity=0.8)
    return [bar, tick.encode(y=y("value"), tooltip=LAW_TIPS)]


def _forecast_label(quantity: Quantity, forecast: Records) -> alt.Chart:
    """Numbers for the first method forecast, on the empty side of the lines; the others are in the table."""
    first = [row for row in forecast if row["fit"] == forecast[0]["fit"]] if forecast else []
    falls = quantity == "loss"
    ratios = [other["value"] / row["value"] for row in first for other in forecast if other["C"] == row["C"]]
    above, below = (any(ratio > NEAR for ratio in ratios), any(ratio < 1 / NEAR for ratio in ratios))
    crowded = below if falls else above  # by another method, where the number would stand
    mark = _chart(first).mark_text(align="left" if crowded else "right", dx=CLEAR if crowded else -CLEAR,
                                   dy=16 if falls != crowded else -10, fontWeight="bold")  # fmt: skip
    return mark.encode(text="shown:N")


def _line_layers(lines: Records, y: Callable[[str], Any]) -> list[alt.Chart]:
    """Solid over the data, dashed beyond the largest budget fitted."""
    parts = ((False, [1, 0]), (True, [5, 4]))
    return [
        _chart([row for row in lines if row["beyond"] is beyond])
        .mark_line(strokeWidth=2.2, strokeDash=dash, clip=True)
        .encode(y=y("value"))
        for beyond, dash in parts
    ]


def _value_axis(quantity: Quantity, rows: Records) -> Callable[[str], Any]:
    """A maker of vertical channels that share one scale and one title."""
    values = [row[key] for row in rows for key in ("value", "low", "high") if row.get(key)]
    if quantity == "loss":
        room = 0.07 * (max(values) - min(values))
        return lambda name: linear_y(name, TITLES[quantity], (min(values) - room, max(values) + room))
    middle = [row["value"] for row in rows]
    domain = log_domain([max(min(values), min(middle) / 10), min(max(values), max(middle) * 10)])
    return lambda name: log_axis(alt.Y, name, TITLES[quantity], domain, "count")


def _line_rows(evidence: Evidence, quantity: Quantity) -> list[dict[str, Any]]:
    """Every fit's law over the C axis, cut at the largest fitted budget so that the dash starts there."""
    edge = evidence.largest_fitted_C or compute_range(evidence)[1]
    low, high = compute_range(evidence)
    grids = [(False, np.geomspace(low, min(edge, high), SAMPLES))]
    if high > edge * 1.01:
        grids.append((True, np.geomspace(edge, high, SAMPLES // 2)))
    rows = []
    for name, fit in evidence.fits.items():
        for beyond, C in grids:
            value = optimum_at(fit, quantity, C)
            band = band_at(fit, quantity, C) if bears_average(fit) else None
            if value is None:
                continue
            ends = zip(*band, strict=True) if band else [(None, None)] * len(C)
            rows += [
                {"fit": name, "C": float(c), "value": float(v), "low": lo, "high": hi, "beyond": beyond}
                for c, v, (lo, hi) in zip(C, value, ends, strict=True)
            ]
    return rows


def _minimum_rows(evidence: Evidence, quantity: Quantity) -> list[dict[str, Any]]:
    rows = []
    for name, fit in evidence.fits.items():
        kind = "change of size" if fit.method == "envelope" and quantity != "loss" else "minimum of one budget"
        for C, value in _points_behind(fit, quantity):
            row = {"fit": name, "C": C, "value": value, "kind": kind}
            rows.append({**row, "compute": format_flops(C), "shown": STYLES[quantity](value)})
    return rows


def _points_behind(fit: Fit, quantity: Quantity) -> list[tuple[float, float]]:
    """(C, value) that a power law runs through: minima of budgets; of an envelope where one size overtakes another."""
    if fit.method == "envelope" and quantity != "loss":
        climbs = [(climb["C"], float(np.sqrt(climb["from_N"] * climb["to_N"])))
                  for climb in fit.diagnostics.get("climbs") or ()]  # fmt: skip
        return climbs if quantity == "N" else [(C, float(fit.rule.tokens(C, N))) for C, N in climbs]
    found = [(b.C, _value_of(b, quantity)) for b in fit.budgets or () if b.status == "ok"]
    return [(C, value) for C, value in found if value is not None]


def _forecast_rows(evidence: Evidence, quantity: Quantity) -> list[dict[str, Any]]:
    rows = []
    for row in evidence.forecast:
        value = row.get(KEYS[quantity])
        if value is None:
            continue
        low, high = (row.get("intervals") or {}).get(KEYS[quantity]) or (None, None)
        style = STYLES[quantity]
        rows.append({
            "fit": evidence.name_row(row), "C": row["C"], "value": value, "low": low,
            "high": high, "kind": "forecast", "compute": format_flops(row["C"]), "shown": style(value),
            "interval": format_interval((low, high), style),
        })  # fmt: skip
    return rows


def _law_caption(evidence: Evidence, lines: Records, quantity: Quantity) -> str:
    methods = {fit.method for fit in evidence.fits.values() if fit.budgets and fit.exponents}
    behind = ["minima of the budgets"] * ("isoflop" in methods)
    of_envelope = "points of the envelope" if quantity == "loss" else "where a size overtakes the next in the envelope"
    behind += [of_envelope] * ("envelope" in methods)
    words = [f"Diamonds: {' and '.join(behind)}."] if behind else []
    if any(row["beyond"] for row in lines):
        words.append(f"Dashed: beyond the largest budget fitted, {format_flops(evidence.largest_fitted_C)}.")
    if evidence.forecast:
        words.append("Circles: the forecast.")
    if any(row["method"] == "average" for row in evidence.forecast):
        words.append("Pale bars: the average of the approaches.")
    confidence = {f"{fit.confidence:.0%}" for fit in evidence.fits.values() if fit.bootstrap}
    if any(row["low"] for row in lines) and confidence:
        words.append(f"Bands: {', '.join(sorted(confidence))} bootstrap intervals.")
    words += [f"No band: {name}, which too few changes of size carry." for name, fit in evidence.fits.items()
              if fit.verdict is None and not bears_average(fit)]  # fmt: skip
    return " ".join(words)


def _value_of(budget: Budget, quantity: Quantity) -> float | None:
    return {"N": budget.N_opt, "D": budget.D_opt, "loss": budget.loss_opt}[quantity]


def _chart(rows: Records) -> alt.Chart:
    return alt.Chart(inline(rows))


def _points(rows: Records, tooltip: list[alt.Tooltip] = POINT_TIPS, **mark: Any) -> alt.Chart:
    return _chart(rows).mark_point(**mark).encode(tooltip=tooltip)


def _two_digits(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"
