"""Figures of one law over the plane of N and D: what it leaves unexplained, and its efficient frontier."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from jaxscale.fitted import has_surface, surface
from jaxscale.format import format_count, format_flops, format_percent
from jaxscale.laws import Law
from jaxscale.report.charts import (
    Figure,
    Records,
    budget_color,
    finish,
    inline,
    linear_y,
    log_axis,
    log_domain,
    tips,
)
from jaxscale.report.curves import Array, fit_residuals, optimum_at
from jaxscale.report.evidence import Evidence
from jaxscale.report.fitted import compute_range
from jaxscale.report.measured import POINT_TIPS, point_rows

__all__ = ["draw_contour", "draw_residuals"]

SAMPLES = 80
STEPS = 600
"""Token counts at which a surface is read for a line of equal loss."""
MAX_LINES = 9
LEAST_PERCENT = 0.01
"""Smaller residuals than this are rounding, not evidence."""


def draw_residuals(evidence: Evidence) -> list[Figure]:
    """Measured over predicted loss for each fit: a good law leaves noise, a bad one leaves a shape."""
    residuals = [(name, fit, fit_residuals(evidence, fit)) for name, fit in evidence.fits.items()]
    return [
        _draw_residual(evidence, f"residuals_{number}_{fit.method}", name, points)
        for number, (name, fit, points) in enumerate(residuals, start=1)
        if len(points)
    ]


def draw_contour(evidence: Evidence) -> Figure | None:
    """Lines of equal loss in the plane of tokens and parameters, the frontier, and the measured points."""
    fit = next((fit for fit in evidence.fits.values() if has_surface(fit)), None)
    if fit is None:
        return None
    C = np.geomspace(*compute_range(evidence), SAMPLES)
    sizes, tokens = optimum_at(fit, "N", C), optimum_at(fit, "D", C)
    if sizes is None or tokens is None:
        return None
    N_domain, D_domain = (
        log_domain([*evidence.points["N"], *sizes]),
        log_domain([*evidence.points["D"], *tokens]),
    )
    law = surface(fit)
    lines = _iso_rows(law, N_domain, D_domain, law.loss(sizes, tokens))
    x = log_axis(alt.X, "D", "training tokens D", D_domain, "count")
    y = log_axis(alt.Y, "N", "parameters N", N_domain, "count")
    layers = [*_iso_layers(lines), _frontier(sizes, tokens, C), _measured(evidence)]
    caption = (
        f"Thin lines join sizes and token counts of equal loss (nats/token) under the law {fit.law}. "
        "Thick line: the efficient frontier, the best split of compute. Points: measured runs."
    )
    chart = alt.layer(*(layer.encode(x=x, y=y) for layer in layers))
    return Figure("contour", "The loss surface and its efficient frontier", caption, finish(chart))


def _draw_residual(evidence: Evidence, name: str, fit_name: str, points: pd.DataFrame) -> Figure:
    rms = float(np.sqrt(np.mean(points["residual"] ** 2)))
    rows = [
        {**row, "residual": 100 * row["residual"], "shown": format_percent(row["residual"])}
        for row in point_rows(points)
    ]
    x = log_axis(alt.X, "N", "parameters N", log_domain(list(points["N"])), "count")
    reach = max(1.1 * max(abs(row["residual"]) for row in rows), LEAST_PERCENT)
    y = linear_y("residual", "measured above the fit (%)", (-reach, reach))
    zero = alt.Chart(inline([{"residual": 0.0}])).mark_rule(style="ink", strokeWidth=1).encode(y=y)
    dots = alt.Chart(inline(rows)).mark_point(filled=True, size=55, opacity=0.9)
    dots = dots.encode(
        x=x,
        y=y,
        color=budget_color(evidence.budget_labels, points["budget"]),
        tooltip=[*POINT_TIPS, *tips(shown="residual")],
    )
    title = f"{fit_name[0].upper()}{fit_name[1:]}: {_percent(rms)} rms left unexplained"
    caption = f"{_rms_by_budget(points)} Noise scatters; a bow or a tilt in one colour is a law that misfits."
    return Figure(name, title, caption, finish(alt.layer(zero, dots)), wide=False)


def _rms_by_budget(points: pd.DataFrame) -> str:
    rms = points.groupby("budget", sort=False)["residual"].apply(lambda values: np.sqrt(np.mean(values**2)))
    order = points.sort_values("C")["budget"].drop_duplicates()
    return (
        f"rms by {'budget' if points['budget_C'].notna().any() else 'decade of compute'}: "
        + ", ".join(f"{budget}: {_percent(rms[budget])}" for budget in order)
        + "."
    )


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.2g}%" if percent >= LEAST_PERCENT else f"under {LEAST_PERCENT}%"


def _iso_rows(
    law: Law, N_domain: tuple[float, float], D_domain: tuple[float, float], frontier: Array
) -> list[dict[str, Any]]:
    """Round losses along the frontier, each read off the surface for D over the sizes shown: more text, less loss."""
    N, log_D = np.geomspace(*N_domain, SAMPLES), np.log(np.geomspace(*D_domain, STEPS))
    losses = np.asarray(law.loss(N[:, None], np.exp(log_D)))
    rows = []
    levels = _round_levels(float(frontier.min()), float(frontier.max()))
    digits = max(len(f"{level:g}".partition(".")[2]) for level in levels) if levels else 0
    for level in levels:
        name = f"{level:.{digits}f}"
        D = np.exp([np.interp(-level, -along, log_D) for along in losses])
        shown = (losses[:, 0] >= level) & (level >= losses[:, -1])
        rows += [{"N": float(n), "D": float(d), "level": name} for n, d in zip(N[shown], D[shown], strict=True)]
    return rows


def _round_levels(low: float, high: float) -> list[float]:
    """At most MAX_LINES round losses from low to high.

    >>> _round_levels(1.42, 2.07)
    [1.5, 1.6, 1.7, 1.8, 1.9, 2.0]
    """
    rough = max(high - low, 1e-6) / MAX_LINES
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(float(k * step), 6) for k in range(int(np.ceil(low / step)), int(high / step) + 1)]


def _iso_layers(lines: Records) -> list[alt.Chart]:
    """The contours, each named at its largest size."""
    ends = {row["level"]: row for row in lines}
    line = alt.Chart(inline(lines)).mark_line(strokeWidth=1, style="muted").encode(detail="level:N", order="N:Q")
    name = alt.Chart(inline(list(ends.values()))).mark_text(style="note", align="left", dx=3, dy=-5)
    return [line, name.encode(text="level:N")]


def _frontier(sizes: Array, tokens: Array, C: Array) -> alt.Chart:
    rows = [
        {
            "N": float(n),
            "D": float(d),
            "compute": format_flops(c),
            "size": format_count(n),
            "tokens": format_count(d),
        }
        for n, d, c in zip(sizes, tokens, C, strict=True)
    ]
    line = alt.Chart(inline(rows)).mark_line(style="ink", strokeWidth=3)
    return line.encode(order="D:Q", tooltip=tips(compute="FLOPs C", size="N_opt", tokens="D_opt"))


def _measured(evidence: Evidence) -> alt.Chart:
    dots = alt.Chart(inline(point_rows(evidence.points))).mark_point(filled=True, size=50, opacity=0.9)
    return dots.encode(color=budget_color(evidence.budget_labels, evidence.budget_labels), tooltip=POINT_TIPS)
