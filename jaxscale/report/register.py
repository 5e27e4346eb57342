"""The register as one picture: each forecast with its interval on its own frontier, and what was measured.

A panel a text, log C across, loss up. What was measured is black and on top of all; a series is the forecasts that one
evidence gave by one method and law.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from jaxscale.format import format_flops
from jaxscale.register.entry import frontier_of
from jaxscale.report.charts import inline, log_axis, log_domain, save_picture, theme

__all__ = ["draw_register", "write_register_figure"]

PANEL, HEIGHT = 420, 340
APART = 0.13
"""Distance in log C between forecasts of one target, so that their intervals can be told apart."""
Record = Mapping[str, Any]


def draw_register(records: Sequence[Record]) -> dict[str, Any] | None:
    """Vega-Lite of every forecast and the newest measurement of each; None without a forecast."""
    forecasts = [record for record in records if record["kind"] == "forecast"]
    if not forecasts:
        return None
    scores = {record["forecast"]: record for record in records if record["kind"] == "score"}
    texts: dict[str, list[Record]] = {}
    for forecast in forecasts:
        texts.setdefault(str(forecast["evidence"].get("data_sha256")), []).append(forecast)
    names = list(dict.fromkeys(_series(forecast, forecasts) for forecast in forecasts))
    panels = [_panel(mine, forecasts, scores, names) for mine in texts.values()]
    chart = alt.hconcat(*panels, spacing=36).resolve_scale(color="shared", y="independent")
    confidence = sorted({forecast["confidence"] for forecast in forecasts})
    told = " or ".join(f"{level:.0%}" for level in confidence)
    title = {"text": "Forecasts written down before the runs, and what the runs gave",
             "subtitle": [f"bars: {told} interval of one run; lines: the frontier each forecast stands on; "
                          "numbers: records; black diamonds: measured"]}  # fmt: skip
    plain: dict[str, Any] = chart.properties(title=title).to_dict()
    config = theme(dark=False, ground="white")
    config["legend"] = {**config["legend"], "offset": 4, "columns": 3}
    return {**plain, "config": config}


def write_register_figure(records: Sequence[Record], stem: Path) -> list[Path]:
    """Save STEM.svg and STEM.png; nothing without a forecast."""
    drawn = draw_register(records)
    if drawn is None:
        return []
    return save_picture(drawn, stem)


def _series(forecast: Record, forecasts: Sequence[Record]) -> str:
    """Method, law where it is a choice, and the largest budget it was made from.

    A frontier that takes another's place, of the same text and budgets, says so.
    """
    answer = forecast["answer"]
    first = next(other for other in forecasts if _kind(other) == _kind(forecast))
    again = " again" if first["answer"]["frontier"] != answer["frontier"] else ""
    law = f" {answer['law']}" if answer["method"] == "parametric" else ""
    return f"{answer['method']}{law}, from {format_flops(float(forecast['evidence']['largest_C']))} FLOPs{again}"


def _kind(forecast: Record) -> tuple[Any, ...]:
    answer, evidence = forecast["answer"], forecast["evidence"]
    return answer["method"], answer["law"], evidence.get("data_sha256"), float(evidence["largest_C"])


def _panel(
    forecasts: Sequence[Record], every: Sequence[Record], scores: Mapping[str, Record], names: Sequence[str]
) -> Any:
    named = {forecast["number"]: _series(forecast, every) for forecast in forecasts}
    points = [_point(forecast, forecasts, named[forecast["number"]]) for forecast in forecasts]
    lines = [row for name in names for row in _line([f for f in forecasts if named[f["number"]] == name], name)]
    measured = {
        (score["C"], row["measured"]): row
        for forecast in forecasts
        if (score := scores.get(forecast["hash"]))
        for row in score["rows"]
        if row["quantity"] == "loss"
    }
    dots = [_measured(C, row) for (C, _), row in measured.items()]
    values = [row[key] for row in points for key in ("low", "high", "loss")] + [row["loss"] for row in dots]
    domain = log_domain([row["C"] for row in points] + [row["C"] for row in lines])
    x = log_axis(alt.X, "C", "C, training FLOPs", domain, "flops")
    y = alt.Y("loss", type="quantitative", title="loss, nats a token", axis=alt.Axis(tickCount=6),
              scale=alt.Scale(domain=[min(values) - 0.03, max(values) + 0.05], nice=False))  # fmt: skip
    color = alt.Color(
        "series", type="nominal", scale=alt.Scale(domain=list(names)), legend=alt.Legend(title=None, labelLimit=320)
    )
    curve = alt.Chart(inline(lines)).mark_line(clip=True, opacity=0.45, strokeWidth=1.5).encode(x, y, color)
    bars = alt.Chart(inline(points)).mark_rule(strokeWidth=3).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), color=color)
    marks = alt.Chart(inline(points)).mark_point(filled=True, size=70, opacity=1).encode(x, y, color)
    numbers = alt.Chart(inline(points)).mark_text(dy=10, style="muted").encode(x, alt.Y("low:Q"), text="number:N")
    layers: list[Any] = [curve, bars, marks, numbers]
    if dots:
        spans = alt.Chart(inline(dots)).mark_rule(strokeWidth=1.5, style="ink").encode(x, alt.Y("low:Q"),
                                                                                       alt.Y2("high:Q"))  # fmt: skip
        layers += [spans, alt.Chart(inline(dots)).mark_point(filled=True, shape="diamond", size=110, color="black",
                                                             opacity=1).encode(x, y)]  # fmt: skip
    study = str(forecasts[0]["evidence"].get("study") or "")
    return alt.layer(*layers).properties(width=PANEL, height=HEIGHT, title=study)


def _point(forecast: Record, forecasts: Sequence[Record], series: str) -> dict[str, Any]:
    """The forecast's loss and interval, set aside of the others of its C."""
    answer, C = forecast["answer"], float(forecast["C"])
    rivals = [other for other in forecasts if abs(math.log(other["C"] / C)) < APART]
    aside = APART * (rivals.index(forecast) - (len(rivals) - 1) / 2)
    low, high = answer["intervals"]["loss_future_run"]
    none = low is None or high is None
    loss = answer["loss"]
    return {"C": C * math.exp(aside), "loss": loss, "low": loss if none else low, "high": loss if none else high,
            "number": forecast["number"], "series": series}  # fmt: skip


def _line(forecasts: Sequence[Record], name: str) -> list[dict[str, Any]]:
    """The frontier from the largest budget of the evidence to the farthest target."""
    if not forecasts:
        return []
    last = max(forecasts, key=lambda forecast: float(forecast["C"]))
    law = frontier_of(last["answer"]["frontier"])
    C = np.geomspace(float(last["evidence"]["largest_C"]), float(last["C"]), 24)
    return [{"C": float(c), "loss": float(law.loss(c)), "series": name} for c in C]


def _measured(C: float, row: Record) -> dict[str, Any]:
    low, high = row["measured_interval"] or (row["measured"], row["measured"])
    return {"C": C, "loss": row["measured"], "low": low, "high": high}
