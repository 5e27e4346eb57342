"""The check as one figure: changes of activations over the ladder, and every slope beside its expected place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt

from jaxscale.mup.check import QUANTITIES, CoordinateCheck
from jaxscale.report.charts import inline, save_picture, theme

__all__ = ["draw_check", "write_figure"]

SHOWN = ("change", "gradient", "update", "decay", "epsilon")
REACH = 2.0
"""Slopes beyond this are drawn at the edge."""


def draw_check(check: CoordinateCheck, against: str = "width") -> dict[str, Any]:
    """Vega-Lite of one ladder: left the sizes over the ladder, right the slopes with their tolerance."""
    chart = (_curves(check, against) | _slopes(check, against)).resolve_scale(color="independent")
    failed = sum(not row.passed for row in check.rows)
    title = f"{check.parameterization}, {check.optimizer}: " + (
        f"{failed} of {len(check.rows)} rows fail" if failed else f"all {len(check.rows)} rows pass"
    )
    told = f"{check.steps} steps at rate {check.lr:.3g}; {check.batch}; expectations from the shapes alone"
    plain: dict[str, Any] = chart.properties(title={"text": title, "subtitle": told}).to_dict()
    return {**plain, "config": theme(dark=False, ground="white")}


def write_figure(check: CoordinateCheck, stem: Path) -> list[Path]:
    """Save STEM.svg and STEM.png for the first ladder, STEM-depth.* for a second one."""
    written: list[Path] = []
    for k, against in enumerate(check.ladders):
        file = stem if k == 0 else stem.with_name(f"{stem.name}-{against}")
        written += save_picture(draw_check(check, against), file)
    return written


def _curves(check: CoordinateCheck, against: str) -> alt.LayerChart:
    rows = [
        {"rung": rung, "size": size, "class": row.name}
        for row in check.rows
        if row.quantity == "change" and row.against == against
        for rung, size in zip(check.ladders[against], row.sizes, strict=True)
    ]
    axis = alt.Axis(values=list(check.ladders[against]), format="d", title=against)
    x = alt.X("rung:Q", scale=alt.Scale(type="log", base=2, nice=False), axis=axis)
    y = alt.Y("size:Q", title="RMS change of activations after the steps",
              scale=alt.Scale(type="log"), axis=alt.Axis(format="~g", tickCount=6))  # fmt: skip
    color = alt.Color("class:N", scale=alt.Scale(domain=list(dict.fromkeys(str(row["class"]) for row in rows))),
                      legend=alt.Legend(title=None, columns=3, orient="top"))  # fmt: skip
    chart = alt.Chart(inline(rows)).encode(x=x, y=y, color=color)
    return (chart.mark_line(strokeWidth=2) + chart.mark_point(filled=True, size=50)).properties(width=330, height=420)


def _slopes(check: CoordinateCheck, against: str) -> alt.LayerChart:
    rows = []
    for row in check.rows:
        if row.against != against or row.quantity not in SHOWN or row.expected[1] is None:
            continue
        low = -REACH if row.expected[0] is None else row.expected[0] - row.tolerance
        slope = None if row.slope is None else max(-REACH, min(REACH, row.slope))
        rows.append({"label": f"{QUANTITIES[row.quantity]}: {row.name}", "slope": slope, "low": low,
                     "high": row.expected[1] + row.tolerance, "result": "pass" if row.passed else "fail"})  # fmt: skip
    order = [str(row["label"]) for row in rows]
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(labelLimit=260, labelFontSize=11, grid=False))
    scale = alt.Scale(domain=[-REACH, REACH])
    base = alt.Chart(inline(rows))
    band = base.mark_bar(height=9, opacity=0.35, color="#8c8c8c").encode(
        x=alt.X("low:Q", scale=scale, title=f"slope against {against} (bar: expected, with tolerance)"),
        x2="high:Q",
        y=y,
    )
    color = alt.Color("result:N", scale=alt.Scale(domain=["pass", "fail"], range=["#0072b2", "#b3261e"]),
                      legend=alt.Legend(title=None, orient="top"))  # fmt: skip
    shape = alt.Shape("result:N", scale=alt.Scale(domain=["pass", "fail"], range=["circle", "cross"]), legend=None)
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=alt.X("slope:Q", scale=scale), y=y, color=color, shape=shape
    )
    return (band + dots).properties(width=380, height=alt.Step(15))
