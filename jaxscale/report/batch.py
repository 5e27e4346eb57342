"""A study of the batch as a picture: steps against tokens to each loss with the fitted hyperbolas (McCandlish et al.
2018, figure 1 there) on the left, B_crit against the loss and against D with the noise scales beside on the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from jaxscale.batch.result import BatchStudy
from jaxscale.format import format_count, format_loss
from jaxscale.report.charts import inline, log_axis, log_domain, save_picture, theme

__all__ = ["draw_batches", "write_batch_figure"]

PANEL, HEIGHT = 330, 300
POINTS = 60
TITLE = "Steps and tokens to a loss, and the critical batch size"
KINDS = ("B_crit, measured", "B_simple, noise scale")
HEAD = 1.25
"""Room above the highest mark of the right panels."""


def write_batch_figure(result: BatchStudy, stem: Path) -> list[Path]:
    """Save STEM.svg and STEM.png."""
    config = theme(dark=False, ground="white")
    config["legend"] = {**config["legend"], "orient": "bottom", "offset": 8, "columns": 6}
    title = {"text": TITLE, "subtitle": _caption(result)}
    return save_picture({**draw_batches(result), "title": title, "config": config}, stem)


def draw_batches(result: BatchStudy) -> dict[str, Any]:
    """Vega-Lite of the panels."""
    fitted = [row for row in result.tradeoffs if row["B_crit"]]
    left, right = _hyperbolas(result, fitted), [_growth(result, fitted, of) for of in ("loss", "D")]
    chart = alt.hconcat(left, *right, spacing=44).resolve_scale(color="independent", shape="independent")
    plain: dict[str, Any] = chart.to_dict()
    plain.pop("config", None)
    return plain


def _caption(result: BatchStudy) -> list[str]:
    return [
        f"Left: each point is a batch at one size and loss; curves: (S/S_min - 1)(E/E_min - 1) = 1. Right: B_crit "
        f"with {result.confidence:.0%} intervals,",
        "its law (line), and the gradient noise scale of the runs at that loss (plain gradients).",
    ]


def _hyperbolas(result: BatchStudy, fitted: list[dict[str, Any]]) -> Any:
    sizes = [format_count(N) for N in sorted({row["N"] for row in fitted})]
    dots = [{"E": row["tokens"], "S": row["steps"], "N": format_count(row["N"]), "loss": format_loss(row["loss"]),
             "B": format_count(row["batch"])} for row in result.steps if row["tokens"]]  # fmt: skip
    line = []
    for row in fitted:
        own = [r["batch"] for r in result.steps if (r["N"], r["loss"]) == (row["N"], row["loss"]) and r["tokens"]]
        for B in np.geomspace(min(own) / 2, max(own) * 2, POINTS):
            S = row["S_min"] * (1 + row["B_crit"] / B)
            line.append(
                {"E": float(S * B), "S": float(S), "N": format_count(row["N"]), "loss": format_loss(row["loss"])}
            )
    x = log_axis(alt.X, "S", "optimizer steps", log_domain([row["S"] for row in dots]), "count")
    y = log_axis(alt.Y, "E", "tokens to the loss", log_domain([row["E"] for row in dots]), "count")
    color = alt.Color("N", type="nominal", scale=alt.Scale(domain=sizes), legend=alt.Legend(title="N"))
    curves = alt.Chart(inline(line)).mark_line(strokeWidth=1.4, opacity=0.75, clip=True)
    marks = alt.Chart(inline(dots)).mark_point(filled=True, size=36, opacity=0.9)
    tips = [alt.Tooltip(f"{name}:N") for name in ("N", "loss", "B")]
    layers = [curves.encode(x, y, color, alt.Detail("loss:N")), marks.encode(x, y, color, tooltip=tips)]
    for size, below in zip(sizes, (False, True), strict=False) if len(sizes) < 3 else ():
        ends = inline(_label_ends([dot for dot in dots if dot["N"] == size]))
        names = alt.Chart(ends).mark_text(align="center", dy=11 if below else -10, fontSize=10.5)
        layers.append(
            names.encode(x, y, alt.Text("loss:N"), alt.Color("N", type="nominal", scale=alt.Scale(domain=sizes)))
        )
    return alt.layer(*layers).properties(width=PANEL, height=HEIGHT)


def _label_ends(dots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The loss beside the point of the smallest batch of each curve."""
    last: dict[str, dict[str, Any]] = {}
    for dot in sorted(dots, key=lambda dot: dot["S"]):
        last[dot["loss"]] = dot
    return list(last.values())


def _growth(result: BatchStudy, fitted: list[dict[str, Any]], of: str) -> Any:
    place = "loss" if of == "loss" else "E_min"
    marks, bars = [], []
    for row in fitted:
        marks.append({"x": row[place], "B": row["B_crit"], "kind": KINDS[0], "N": format_count(row["N"])})
        if row["B_crit_low"] and row["B_crit_high"]:
            bars.append({"x": row[place], "low": row["B_crit_low"], "high": row["B_crit_high"], "kind": KINDS[0]})
        if row["B_simple"]:
            marks.append({"x": row[place], "B": row["B_simple"], "kind": KINDS[1], "N": format_count(row["N"])})
    values = [mark["B"] for mark in marks] + [bar[end] for bar in bars for end in ("low", "high")]
    middle = np.array([mark["B"] for mark in marks])
    domain = (max(min(values), middle.min() / 30), min(max(values), middle.max() * 30) * HEAD)
    ends = [mark["x"] for mark in marks]
    if of == "loss":
        pad = 0.06 * (max(ends) - min(ends) or 1.0)
        scale = alt.Scale(domain=[max(ends) + pad, min(ends) - pad], nice=False)
        x = alt.X("x", type="quantitative", title="loss, nats per token", scale=scale, axis=alt.Axis(tickCount=5))
    else:
        x = log_axis(alt.X, "x", "E_min, fewest tokens to the loss", log_domain(ends), "count")
    y = log_axis(alt.Y, "B", "batch, tokens", log_domain(list(domain)), "count")
    low = log_axis(alt.Y, "low", "batch, tokens", log_domain(list(domain)), "count")
    key = alt.Legend(title=None) if of == "loss" else None  # one for both panels
    color = alt.Color("kind", type="nominal", scale=alt.Scale(domain=list(KINDS)), legend=key)
    shape = alt.Shape(
        "kind", type="nominal", scale=alt.Scale(domain=list(KINDS), range=["circle", "diamond"]), legend=key
    )
    dots = alt.Chart(inline(marks)).mark_point(filled=True, size=58, opacity=0.95)
    layers = [dots.encode(x, y, color, shape, tooltip=[alt.Tooltip("N:N")])]
    if bars:
        layers.insert(0, alt.Chart(inline(bars)).mark_rule(strokeWidth=1.6, clip=True).encode(
            x, low, alt.Y2("high:Q"), color))  # fmt: skip
    if of in result.laws:
        at = np.linspace(min(ends), max(ends), POINTS) if of == "loss" else np.geomspace(min(ends), max(ends), POINTS)
        law = [{"x": float(a), "B": float(b)} for a, b in zip(at, result.laws[of].at(at), strict=True)]
        layers.insert(
            0, alt.Chart(inline(law)).mark_line(strokeWidth=1.5, style="muted", opacity=0.8, clip=True).encode(x, y)
        )
    return alt.layer(*layers).properties(width=PANEL * 0.8, height=HEIGHT)
