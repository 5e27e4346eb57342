"""Variants compared as a picture: losses with their laws and bands above, the distance to the leader below.

Above: the best loss of every variant and budget, the median law, its band, a line at every target, names at the ends of
the curves. Losses of variants differ by little beside what they fall: the lower panel shows the loss of each over that
of the leader, minus 1, as measured and as drawn, and there it is seen who wins where.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from jaxscale.compare import Comparison
from jaxscale.compare.result import AT, say_probability
from jaxscale.format import format_factor, format_flops, format_interval, format_loss
from jaxscale.report.charts import Figure, inline, log_axis, log_domain, save_picture, theme
from jaxscale.report.tables import Table

__all__ = ["compare_section", "draw_compare", "list_compared", "write_compare_figure"]

WIDTH, UPPER, LOWER = 600, 260, 190
LABEL_GAP, LABEL_ROOM, TARGET_ROOM = 0.075, 0.16, 0.06
"""Least distance of two names as a share of the panel's height; room for them right of the curves and for the name of a
target left of it, of the decades."""
THEMED = 5
"""Colours of the theme; more variants need a longer scale."""
AXIS = {"C": ("training FLOPs", "flops"), "D": ("training tokens", "count"), "N": ("parameters", "count")}
UNIT = {"loss": "loss, nats per token", "bits_per_byte": "bits per byte"}


def draw_compare(result: Comparison) -> dict[str, Any] | None:
    """Vega-Lite of both panels; None where there are no laws."""
    if not result.curves:
        return None
    x_ends = log_domain([row["x"] for row in result.curves], margin=0.03)
    x_ends = (x_ends[0], float(np.exp(np.log(x_ends[1]) + LABEL_ROOM * np.log(x_ends[1] / x_ends[0]))))
    chart = alt.vconcat(_upper(result, x_ends), _lower(result, x_ends), spacing=34).resolve_scale(color="shared")
    plain: dict[str, Any] = chart.to_dict()
    plain.pop("config", None)
    return plain


def write_compare_figure(result: Comparison, stem: Path) -> list[Path]:
    """Save STEM.svg and STEM.png; nothing where there are no laws."""
    drawn = draw_compare(result)
    if drawn is None:
        return []
    title = {"text": _title(result), "subtitle": _caption(result)}
    return save_picture({**drawn, "title": title, "config": theme(dark=False, ground="white")}, stem)


def compare_section(result: Comparison) -> tuple[Figure | None, Table]:
    """Figure and table for the report's page."""
    drawn = draw_compare(result)
    caption = " ".join(_caption(result))
    figure = None if drawn is None else Figure("compare", _title(result), caption, drawn, compound=True)
    return figure, list_compared(result)


def list_compared(result: Comparison) -> Table:
    """The page's table: a row a notion, target and variant; the verdict in the note."""
    rows = tuple(
        (AT[row["notion"]], row["variant"], format_flops(row["target"]), format_factor(row["extrapolation"]),
         format_loss(row["loss"]), format_interval(row["loss_interval"]),
         "" if row["leader"] else f"{row['difference']:+.4f}",
         "" if row["leader"] else format_factor(row["multiplier"]),
         "" if row["leader"] else format_interval(row["multiplier_interval"], format_factor),
         say_probability(row["probability_best"], result.draws))
        for row in result.rows
    )  # fmt: skip
    lost = " ".join(
        f"{one['variant']} has no law: {one['reason']}." for one in result.variants if one["status"] != "ok"
    )
    headings = ("at equal", "variant", "target", "beyond", "loss", "interval", "difference", "needs times as much",
                "interval", "P(best)")  # fmt: skip
    return Table(headings, rows, note=f"{result.verdict}: {result.words}. {lost}".strip(), words=2)


def _title(result: Comparison) -> str:
    if result.verdict == "settled":
        return f"{result.winner} wins"
    if result.verdict == "untuned":
        return "No winner is named: not all were tuned alike"
    return f"{result.leader} leads, not settled"


def _caption(result: Comparison) -> list[str]:
    sure = [f"{format_flops(one['target'])}: {one['leader']} best with probability "
            f"{say_probability(one['probability'], result.draws)}" for one in result.decisions
            if one["notion"] in ("flops", "tokens", "params")]  # fmt: skip
    lines = f"Points: best measured losses; lines and bands: laws, {result.confidence:.0%} intervals; dashed: targets,"
    lines += " in times the largest run."
    return [lines, "; ".join(sure)]


def _color(names: tuple[str, ...]) -> alt.Color:
    scale = alt.Scale(domain=list(names)) if len(names) <= THEMED else alt.Scale(domain=list(names), scheme="tableau10")
    return alt.Color("variant", type="nominal", scale=scale, legend=None)


def _upper(result: Comparison, x_ends: tuple[float, float]) -> Any:
    curves = [{"variant": row["variant"], "x": row["x"], "y": row["loss"], "low": row["interval"][0],
               "high": row["interval"][1]} for row in result.curves]  # fmt: skip
    points = [{"variant": row["variant"], "x": row["x"], "y": row["loss"]} for row in result.points]
    values = [row["y"] for row in points] + [row[key] for row in curves for key in ("low", "high", "y")]
    ends = log_domain([value for value in values if value and value > 0], margin=0.04)
    ticks = _nice_ticks(*ends)
    axis = alt.Axis(values=ticks, format="~g", title=UNIT[result.loss])
    y = alt.Y("y", type="quantitative", axis=axis, scale=alt.Scale(type="log", domain=list(ends), nice=False))
    return _panel(result, curves, points, [], x_ends, y, ends, UPPER, log=True)


def _lower(result: Comparison, x_ends: tuple[float, float]) -> Any:
    reference = result.curves[0]["reference"]
    curves = [{"variant": row["variant"], "x": row["x"], "y": 100 * row["relative"],
               "low": 100 * row["relative_interval"][0], "high": 100 * row["relative_interval"][1]}
              for row in result.curves]  # fmt: skip
    points, bars = _measured_gaps(result, reference)
    top = max(abs(row[key]) for row in [*curves, *bars] for key in ("low", "high"))
    least = min(row[key] for row in [*curves, *bars] for key in ("low", "high"))
    most = max(row[key] for row in [*curves, *bars] for key in ("low", "high"))
    ends = (least - 0.08 * top, most + 0.08 * top)
    y = alt.Y("y", type="quantitative", title=f"loss above that of {reference}, %", axis=alt.Axis(tickCount=5),
              scale=alt.Scale(domain=list(ends), nice=False))  # fmt: skip
    return _panel(result, curves, points, bars, x_ends, y, ends, LOWER, log=False)


def _measured_gaps(result: Comparison, reference: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Points of the variants over the reference's point of the same budget, and bars of one standard error."""
    base = [row for row in result.points if row["variant"] == reference]
    points, bars = [], []
    for row in result.points:
        near = min(base, key=lambda one: abs(np.log(one["x"] / row["x"])))
        if abs(np.log(near["x"] / row["x"])) > 0.1:
            continue
        gap = 100 * (row["loss"] / near["loss"] - 1)
        points.append({"variant": row["variant"], "x": row["x"], "y": gap})
        if row["std_error"] is not None and row["variant"] != reference:
            error = 100 * float(np.hypot(row["std_error"], near["std_error"]))
            bars.append({"variant": row["variant"], "x": row["x"], "low": gap - error, "high": gap + error})
    return points, bars


def _panel(
    result: Comparison, curves: list[dict[str, Any]], points: list[dict[str, Any]], bars: list[dict[str, Any]],
    x_ends: tuple[float, float], y: alt.Y, ends: tuple[float, float], height: int, *, log: bool,
) -> Any:  # fmt: skip
    title, unit = AXIS[result.axis]
    x = log_axis(alt.X, "x", title, x_ends, unit)
    color = _color(result.names)
    low = y.copy()
    low.shorthand = "low"
    layers = [alt.Chart(inline(curves)).mark_area(opacity=0.16, clip=True).encode(x, low, alt.Y2("high:Q"), color)]
    rules = _name_targets(result, x_ends)
    layers.append(
        alt.Chart(inline(rules)).mark_rule(strokeDash=[4, 4], strokeWidth=1.2, style="muted", opacity=0.8).encode(x)
    )
    for level in sorted({rule["level"] for rule in rules}) if log else ():
        here = [rule for rule in rules if rule["level"] == level]
        layers.append(alt.Chart(inline(here)).mark_text(align="right", dx=-4, style="note", baseline="top").encode(
            x, alt.Text("say:N"), y=alt.value(16 * level)))  # fmt: skip
    layers.append(alt.Chart(inline(curves)).mark_line(strokeWidth=2.2, clip=True).encode(x, y, color))
    if bars:
        layers.append(alt.Chart(inline(bars)).mark_rule(strokeWidth=1.5).encode(x, low, alt.Y2("high:Q"), color))
    layers.append(alt.Chart(inline(points)).mark_point(filled=True, size=46, opacity=1).encode(x, y, color))
    names = _place_names(curves, ends, log)
    layers.append(alt.Chart(inline(names)).mark_text(align="left", dx=8, fontWeight="bold").encode(
        x, y, alt.Text("variant:N"), color))  # fmt: skip
    return alt.layer(*layers).properties(width=WIDTH, height=height)


def _name_targets(result: Comparison, x_ends: tuple[float, float]) -> list[dict[str, Any]]:
    """The targets with what they are called; a name too close to the one left of it goes a line lower."""
    found: list[dict[str, Any]] = []
    for target, factor in sorted({(row["target"], row["extrapolation"]) for row in result.rows}):
        close = bool(found) and np.log(target / found[-1]["x"]) < TARGET_ROOM * np.log(x_ends[1] / x_ends[0])
        found.append({"x": target, "say": format_factor(factor),
                      "level": found[-1]["level"] + 1 if close else 0})  # fmt: skip
    return found


def _place_names(curves: list[dict[str, Any]], ends: tuple[float, float], log: bool) -> list[dict[str, Any]]:
    """Names at the right ends of the curves, moved apart where they would overlap and kept inside the panel."""
    last: dict[str, dict[str, Any]] = {}
    for row in curves:
        if row["variant"] not in last or row["x"] > last[row["variant"]]["x"]:
            last[row["variant"]] = row
    low, high = (np.log(ends) if log else np.array(ends)).tolist()
    order = sorted(last.values(), key=lambda row: row["y"])
    place = np.array([((np.log(row["y"]) if log else row["y"]) - low) / (high - low) for row in order])
    for _ in range(200):
        gap = np.diff(place)
        tight = np.flatnonzero(gap < LABEL_GAP - 1e-9)
        if not len(tight):
            break
        for i in tight:
            move = (LABEL_GAP - (place[i + 1] - place[i])) / 2
            place[i], place[i + 1] = place[i] - move, place[i + 1] + move
    place += max(0.02 - place[0], 0.0) - max(place[-1] - 0.98, 0.0)
    at = low + place * (high - low)
    return [{"variant": row["variant"], "x": row["x"], "y": float(np.exp(one) if log else one)}
            for row, one in zip(order, at, strict=True)]  # fmt: skip


def _nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round ticks of a short log axis: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(high - low))
    for step in (power / 10 * k for k in (1, 2, 5, 10, 20, 50)):
        first = np.ceil(low / step)
        count = int(np.floor(high / step) - first) + 1
        if count <= most:
            return [float(f"{(first + i) * step:.6g}") for i in range(count)]
    return [float(f"{low:.3g}"), float(f"{high:.3g}")]
