"""Figures of what was measured: loss against size at fixed compute, with the valley of each budget."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from jaxscale.fit.result import Budget, Fit
from jaxscale.format import UNKNOWN, format_count, format_flops, format_interval, format_loss
from jaxscale.report.charts import Figure, budget_color, finish, inline, linear_y, log_axis, log_domain, tips
from jaxscale.report.curves import draw_valley
from jaxscale.report.evidence import Evidence, records

__all__ = ["LOSS_TITLE", "POINT_TIPS", "describe_point", "draw_isoflop", "point_rows"]

MAX_POINTS = 800
"""More points than this are thinned evenly: a page must stay light, and no eye counts them."""
APART = 0.035
"""Names of curves that end at about one size stand this share of the height apart, or the higher is left out."""
LOSS_TITLE = "validation loss (nats/token)"
POINT_TIPS = tips(
    run="run",
    size="parameters N",
    tokens="tokens D",
    compute="FLOPs C",
    measured="loss, nats/token",
    seed="seed",
)
MINIMUM_TIPS = tips(compute="minimum at C", size="N_opt", tokens="D_opt", measured="loss, nats/token")
MISTUNED_TIPS = tips(
    place="mistuned",
    compute="at C",
    size="parameters N",
    measured="loss, nats/token",
    why="how",
    left="left on the table",
)
EXCUSES = {
    "edge": "minimum at the edge of the sizes tried",
    "nonconvex": "no valley",
    "too_few": "too few sizes",
}


def describe_point(row: dict[str, Any]) -> dict[str, Any]:
    """A point's numbers, and the words that hovering shows."""
    seed = row.get("seed")
    return {
        "N": row["N"], "D": row["D"], "C": row["C"], "loss": row["loss"], "budget": row["budget"],
        "run": str(row["run_id"]), "size": format_count(row["N"]), "tokens": format_count(row["D"]),
        "compute": format_flops(row["C"]), "measured": format_loss(row["loss"]),
        "seed": "" if pd.isna(seed) else f"{seed:.0f}", "residual": row.get("residual"),
    }  # fmt: skip


def point_rows(points: pd.DataFrame) -> list[dict[str, Any]]:
    """Points as rows for a figure, at most MAX_POINTS of them."""
    step = max(1, -(-len(points) // MAX_POINTS))
    return [describe_point(row) for row in records(points.iloc[::step])]


def draw_isoflop(evidence: Evidence) -> Figure:
    """Loss against size at fixed compute, the curve each minimum was read from, and the minimum."""
    points = evidence.points
    if points["budget_C"].isna().all():
        return _draw_cloud(evidence)
    fit = next((fit for fit in evidence.fits.values() if fit.method == "isoflop"), None)
    x = log_axis(alt.X, "N", "parameters N", log_domain([*points["N"], 1.08 * points["N"].max()]), "count")
    colored = [*_valley_layers(evidence, fit), *_measured_layers(evidence), _label_layer(evidence)]
    layers = [layer.encode(color=budget_color(evidence.budget_labels, ())) for layer in colored]
    if fit is not None:
        layers.append(_minimum_layer(fit))
    if evidence.tuning and evidence.tuning.get("flagged"):
        layers.append(_mistuned_layer(evidence.tuning["flagged"]))
    low, high = _loss_room(evidence)
    chart = alt.layer(*(layer.encode(x=x, y=linear_y("loss", LOSS_TITLE, (low, high))) for layer in layers))
    return Figure("isoflop", _title(fit), _caption(evidence, fit), finish(chart))


def _draw_cloud(evidence: Evidence) -> Figure:
    """Without budgets there are no valleys: the same plane, the points alone."""
    x = log_axis(alt.X, "N", "parameters N", log_domain(list(evidence.points["N"])), "count")
    color = budget_color(evidence.budget_labels, evidence.budget_labels)
    chart = alt.Chart(inline(point_rows(evidence.points))).mark_point(filled=True, size=45, opacity=0.85)
    chart = chart.encode(x=x, y=linear_y("loss", LOSS_TITLE), color=color, tooltip=POINT_TIPS)
    caption = "The runs do not share budgets of compute, so there is no valley to read a minimum from."
    return Figure("isoflop", "Loss against model size", caption, finish(chart))


def _loss_room(evidence: Evidence) -> tuple[float, float]:
    """Losses measured, and a little room: a curve that rises far above its points is cut."""
    low, high = evidence.points["loss"].min(), evidence.points["loss"].max()
    room = max(0.06 * (high - low), 1e-6)
    return float(low - room), float(high + room)


def _valley_layers(evidence: Evidence, fit: Fit | None) -> list[alt.Chart]:
    """The fit's curves: solid where the minimum counts; where it does not a parabola, dashed."""
    solid = _valley_rows(evidence, fit, usable=True)
    dashed = _valley_rows(evidence, fit, usable=False)
    styles = ((solid, [1, 0]), (dashed, [5, 4]))
    return [
        alt.Chart(inline(rows)).mark_line(strokeDash=dash, strokeWidth=2, clip=True).encode(detail="budget:N")
        for rows, dash in styles
        if rows
    ]


def _valley_rows(evidence: Evidence, fit: Fit | None, usable: bool) -> list[dict[str, Any]]:
    rows = []
    for budget in _budgets(fit):
        valley = draw_valley(evidence, fit, budget) if fit and (budget.status == "ok") is usable else None
        if valley is not None:
            labels = [*evidence.points_of(budget.C)["budget"], format_flops(budget.C)]
            rows += [{**row, "budget": labels[0]} for row in records(valley)]
    return rows


def _measured_layers(evidence: Evidence) -> list[alt.Chart]:
    fitted = alt.Chart(inline(point_rows(evidence.fitted))).mark_point(filled=True, size=55, opacity=0.9)
    held = alt.Chart(inline(point_rows(evidence.holdout))).mark_point(shape="square", size=80, strokeWidth=2)
    layers = [fitted, held] if len(evidence.holdout) else [fitted]
    return [layer.encode(tooltip=POINT_TIPS) for layer in layers]


def _label_layer(evidence: Evidence) -> alt.Chart:
    """The budget's name to the right of its curve, in its colour, where it has room; the pointer tells the others."""
    ends = evidence.points.sort_values("N", kind="stable").groupby("budget_C").tail(1).sort_values("loss")
    low, high = _loss_room(evidence)
    shown: list[dict[str, Any]] = []
    for row in point_rows(ends):
        near = (abs(row["loss"] - one["loss"]) < APART * (high - low) and row["N"] < 1.3 * one["N"] < 1.69 * row["N"]
                for one in shown)  # fmt: skip
        if not any(near):
            shown.append(row)
    mark = alt.Chart(inline(shown)).mark_text(align="left", dx=9, fontWeight="bold")
    return mark.encode(text="budget:N")


def _minimum_layer(fit: Fit) -> alt.Chart:
    rows = [
        {"N": budget.N_opt, "loss": budget.loss_opt, "size": format_count(budget.N_opt),
         "tokens": format_count(budget.D_opt), "measured": format_loss(budget.loss_opt),
         "compute": format_flops(budget.C)}
        for budget in _budgets(fit) if budget.status == "ok"
    ]  # fmt: skip
    mark = alt.Chart(inline(rows)).mark_point(shape="diamond", size=130, filled=True, style="ink", opacity=1)
    return mark.encode(tooltip=MINIMUM_TIPS)


def _mistuned_layer(flagged: list[dict[str, Any]]) -> alt.Chart:
    """A ring around every cell that the tuning audit flags: its loss is not what its size can reach."""
    rows = [
        {"N": row["N"], "loss": row["loss"], "size": format_count(row["N"]), "compute": format_flops(row["budget"]),
         "measured": format_loss(row["loss"]), "place": row["position"], "why": row["direction"],
         "left": f"{row['gain']:.2%} of the loss"}
        for row in flagged
    ]  # fmt: skip
    mark = alt.Chart(inline(rows)).mark_point(
        shape="circle", size=380, filled=False, strokeWidth=2.5, style="alarm", opacity=1
    )
    return mark.encode(tooltip=MISTUNED_TIPS)


def _title(fit: Fit | None) -> str:
    if fit is None:
        return "Loss against size at fixed compute"
    if not any(budget.status == "ok" for budget in _budgets(fit)):
        return "Loss against size at fixed compute: no budget has a usable minimum"
    return "Loss against size at fixed compute: the floor of each valley is the best size"


def _caption(evidence: Evidence, fit: Fit | None) -> str:
    parts = ["Labels give each curve's training FLOPs C."]
    if any(budget.status == "ok" for budget in _budgets(fit)):
        parts.append("Diamonds: the minima that the power laws are fitted to.")
    parts += _reading_words(fit)
    lost = [f"{format_flops(b.C)} ({EXCUSES[b.status]})" for b in _budgets(fit) if b.status != "ok"]
    if lost:
        parts.append(f"Not used, dashed where a curve exists: {'; '.join(lost)}.")
    parts += _tuning_words(evidence)
    if len(evidence.holdout):
        parts.append("Hollow squares: held out from every fit.")
    return " ".join(parts)


def _tuning_words(evidence: Evidence) -> list[str]:
    """What the tuning audit says, in a word a budget; nothing without one."""
    tuning = evidence.tuning
    if tuning is None or "refused" in tuning:
        return []
    states = "; ".join(
        f"{format_flops(row['budget'])} {row['state']}{' (' + ', '.join(row['arms']) + ')' if row['arms'] else ''}"
        for row in tuning["budgets"]
    )
    rings = "Rings: mistuned cells. " if tuning["flagged"] else ""
    return [f"{rings}Tuning audit at {tuning['tolerance']:.2%} of the loss: {states}."]


def _reading_words(fit: Fit | None) -> list[str]:
    """How the minima were read, and how far other ways of reading move a."""
    if fit is None or not fit.exponents:
        return []
    words = [f"Lines: {fit.objective['reading']}."] if fit.objective.get("reading") else []
    span = (fit.diagnostics.get("sensitivity_span") or {}).get("N")
    if span:
        a = fit.exponents["N"]
        beside = format_interval(a.interval, _three_digits)
        words.append(f"Other windows and interpolants give a from {span[0]:.3f} to {span[1]:.3f}, beside "
                     f"{a.value:.3f} {'' if beside == UNKNOWN else beside} by this reading.")  # fmt: skip
    return words


def _three_digits(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def _budgets(fit: Fit | None) -> tuple[Budget, ...]:
    return (fit.budgets or ()) if fit else ()
