"""Figure of approach 1: the curves of all sizes over compute, the lowest of them, and where one overtakes the next."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from jaxscale.fit.result import Fit
from jaxscale.format import UNKNOWN, format_count, format_flops, format_interval, format_loss
from jaxscale.report.charts import Figure, finish, inline, linear_y, log_axis, log_domain, tips
from jaxscale.report.evidence import Evidence, records
from jaxscale.report.measured import LOSS_TITLE

__all__ = ["draw_envelope"]

MAX_KNOTS = 60
"""Points kept of one size's curve."""
MAX_LABELS = 12
"""More curves or climbs than this are named under the pointer only."""
ABOVE, BELOW = 0.35, 0.12
"""Shares of the envelope's own range shown above and below it: curves far above tell nothing of it."""
APART = 0.035
"""Names at the ends of curves stand this share of the height apart, or the higher one is left out."""
CURVE_TIPS = tips(size="parameters N", compute="FLOPs C", measured="loss, nats/token")
CLIMB_TIPS = tips(compute="FLOPs C", change="the best size changes", measured="envelope, nats/token")


def draw_envelope(evidence: Evidence) -> Figure | None:
    """Loss against C for every size, the envelope and its climbs; None where the fit has no answer."""
    fit = next((fit for fit in evidence.fits.values() if fit.method == "envelope" and fit.verdict is None), None)
    curves = _curve_rows(evidence.fitted) if fit else []
    if fit is None or not curves:
        return None
    frontier = _frontier_rows(fit)
    climbs = _climb_rows(fit, frontier)
    low, high = (end([row["loss"] for row in frontier]) for end in (min, max))
    room = (low - BELOW * (high - low), high + ABOVE * (high - low))
    x = log_axis(alt.X, "C", "training FLOPs C", log_domain([row["C"] for row in curves]), "flops")
    y = linear_y("loss", LOSS_TITLE, room)
    layers = [*_curve_layers(curves, room), *_frontier_layers(frontier, climbs)]
    chart = alt.layer(*(layer.encode(x=x, y=y) for layer in layers))
    return Figure("envelope", _title(fit), _caption(fit), finish(chart))


def _curve_rows(points: pd.DataFrame) -> list[dict[str, Any]]:
    """Every size with runs at two computes or more, its repeats averaged, thinned to MAX_KNOTS."""
    rows = []
    for N in sorted(points["N"].unique()):
        runs = points[points["N"] == N]
        means = runs.groupby("C", as_index=False)["loss"].mean()
        if len(means) < 2:
            continue
        step = -(-len(means) // MAX_KNOTS)
        for one in records(means.iloc[:: max(step, 1)]):
            rows.append({
                "N": float(N), "C": one["C"], "loss": one["loss"], "size": format_count(float(N)),
                "compute": format_flops(one["C"]), "measured": format_loss(one["loss"]),
            })  # fmt: skip
    return rows


def _frontier_rows(fit: Fit) -> list[dict[str, Any]]:
    return [{"C": b.C, "loss": b.loss_opt} for b in fit.budgets or () if b.status == "ok" and b.loss_opt is not None]


def _climb_rows(fit: Fit, frontier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where one size overtakes the next, on the line that joins the envelope's points."""
    log_C, losses = np.log([row["C"] for row in frontier]), [row["loss"] for row in frontier]
    rows = []
    for climb in fit.diagnostics.get("climbs") or ():
        loss = float(np.interp(np.log(climb["C"]), log_C, losses))
        change = f"{format_count(climb['from_N'])} to {format_count(climb['to_N'])}"
        rows.append({"C": climb["C"], "loss": loss, "compute": format_flops(climb["C"]), "change": change,
                     "measured": format_loss(loss)})  # fmt: skip
    return rows


def _curve_layers(curves: list[dict[str, Any]], room: tuple[float, float]) -> list[alt.Chart]:
    """Thin lines with their measured points, each named where it ends."""
    chart = alt.Chart(inline(curves))
    detail = {"detail": "N:N", "tooltip": CURVE_TIPS}
    points = chart.mark_point(filled=True, size=22, style="muted", opacity=0.7, clip=True)
    line = chart.mark_line(strokeWidth=1.1, style="muted", opacity=0.7, clip=True)
    names = alt.Chart(inline(_end_names(curves, room))).mark_text(align="left", dx=6, style="note")
    return [line.encode(**detail), points.encode(**detail), names.encode(text="size:N")]


def _end_names(curves: list[dict[str, Any]], room: tuple[float, float]) -> list[dict[str, Any]]:
    """The last point of each curve in view, from the lowest up, where its name has room."""
    ends = sorted({row["N"]: row for row in curves}.values(), key=lambda row: row["loss"])
    shown: list[dict[str, Any]] = []
    for row in ends if len(ends) <= MAX_LABELS else ():
        gap = APART * (room[1] - room[0])
        near = [one for one in shown if abs(one["loss"] - row["loss"]) < gap and abs(np.log(one["C"] / row["C"])) < 0.5]
        if row["loss"] < room[1] and not near:
            shown.append(row)
    return shown


def _frontier_layers(frontier: list[dict[str, Any]], climbs: list[dict[str, Any]]) -> list[alt.Chart]:
    layers = [alt.Chart(inline(frontier)).mark_line(strokeWidth=3.5, opacity=0.55, style="ink")]
    if climbs:
        chart = alt.Chart(inline(climbs))
        layers.append(chart.mark_point(filled=True, shape="diamond", size=120, style="ink", opacity=1)
                      .encode(tooltip=CLIMB_TIPS))  # fmt: skip
    if len(climbs) <= MAX_LABELS:
        layers.append(alt.Chart(inline(climbs)).mark_text(dy=18, fontWeight="bold").encode(text="change:N"))
    return layers


def _title(fit: Fit) -> str:
    climbs = len(fit.diagnostics.get("climbs") or ())
    a = fit.exponents["N"] if fit.exponents else None
    if a is None:
        return "The envelope: the lowest of all curves"
    interval = format_interval(a.interval, lambda end: UNKNOWN if end is None else f"{end:.2f}")
    return f"The envelope: {climbs} times a larger size overtakes, N_opt grows as C^{a.value:.2f} {interval}"


def _caption(fit: Fit) -> str:
    lost = [b for b in fit.budgets or () if b.status != "ok"]
    smoothing = fit.objective.get("smoothing")
    words = ["Thin: one line a size, straight between its runs. Thick: the envelope, its biases taken off"
             f"{f' (smoothing: {smoothing})' if smoothing else ''}.",
             "Diamonds: where a larger size overtakes; the laws of N and D run through them."]  # fmt: skip
    if lost:
        words.append(f"Not counted, at the edge of the sizes: {', '.join(format_flops(b.C) for b in lost)}.")
    return " ".join(words)
