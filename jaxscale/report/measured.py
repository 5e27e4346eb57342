"""Figures of what was measured: the IsoFLOP valleys and the training curves."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from jaxscale.fit.result import Budget, Fit
from jaxscale.format import format_count, format_flops, format_loss
from jaxscale.report.charts import Figure, budget_color, finish, inline, linear_y, log_axis, log_domain, tips
from jaxscale.report.curves import draw_valley
from jaxscale.report.evidence import Evidence

__all__ = ["POINT_TIPS", "draw_isoflop", "draw_training", "point_rows"]

MAX_POINTS = 800
"""More points than this are thinned evenly: a page must stay light, and no eye counts them."""
CURVE_SAMPLES = 70
"""Points kept of a training curve, means over bins of equal log width."""
POINT_TIPS = tips(
    run="run",
    size="parameters N",
    tokens="tokens D",
    compute="FLOPs C",
    measured="loss, nats/token",
    seed="seed",
)
LOSS_TITLE = "validation loss (nats/token)"


def point_rows(points: pd.DataFrame) -> list[dict[str, Any]]:
    """Points as rows for a figure, with the words that hovering shows; at most MAX_POINTS."""
    step = max(1, -(-len(points) // MAX_POINTS))
    return [_describe(row) for row in points.iloc[::step].to_dict("records")]


def draw_isoflop(evidence: Evidence) -> Figure | None:
    """Loss against size at fixed compute, a parabola and its minimum for each budget."""
    points = evidence.points
    if points["budget_C"].isna().all():
        return _draw_cloud(evidence)
    fit = next((fit for fit in evidence.fits.values() if fit.method == "isoflop"), None)
    N = log_axis(alt.X, "N", "parameters N", log_domain(list(points["N"])), "count")
    loss = linear_y("loss", LOSS_TITLE)
    color = budget_color(evidence.budget_labels, legend=False)
    layers = [*_valley_layers(evidence, fit), *_measured_layers(evidence), *_label_layer(evidence)]
    if fit is not None:
        layers.append(_minimum_layer(fit))
    spec = alt.layer(*(layer.encode(x=N, y=loss) for layer in layers)).encode(color=color)
    return Figure("isoflop", _isoflop_title(fit), _isoflop_caption(evidence, fit), finish(spec))


def draw_training(evidence: Evidence) -> Figure | None:
    """Training loss of every run against the FLOPs it has spent, runs that failed in a warning colour."""
    curves = _binned_curves(evidence)
    if curves is None:
        return None
    failed = {result.run_id for result in evidence.results if result.state in ("diverged", "failed")}
    low, high = np.quantile(curves["loss"], [0, 0.97])
    x_name, unit = ("flops", "flops") if "flops" in curves else ("tokens", "count")
    title = {"flops": "training FLOPs spent", "tokens": "training tokens"}[x_name]
    x = log_axis(alt.X, x_name, title, log_domain(list(curves[x_name]), margin=0.02), unit)
    y = linear_y("loss", "training loss (nats/token)", (low - 0.03 * (high - low), high))
    good, bad = curves[~curves["run_id"].isin(failed)], curves[curves["run_id"].isin(failed)]
    layers = [*_curve_layers(good, x, y, budget_color(evidence.budget_labels, legend=True))]
    if len(bad):
        layers += _curve_layers(bad, x, y, None)
    caption = (
        "Each line is one run, ending at its own budget; the lower envelope is the best loss that compute "
        "has bought so far. Means over bins of equal log width."
    )
    if failed:
        caption += " Red: runs that diverged or failed; they are no evidence."
    return Figure("training", "Training curves", caption, finish(alt.layer(*layers)))


def _draw_cloud(evidence: Evidence) -> Figure:
    """Without budgets there are no valleys: the same plane, the points alone."""
    N = log_axis(alt.X, "N", "parameters N", log_domain(list(evidence.points["N"])), "count")
    chart = (
        alt.Chart(inline(point_rows(evidence.points)))
        .mark_point(filled=True, size=45, opacity=0.85)
        .encode(
            x=N,
            y=linear_y("loss", LOSS_TITLE),
            color=budget_color(evidence.budget_labels),
            tooltip=POINT_TIPS,
        )
    )
    caption = "The runs do not share budgets of compute, so there is no valley to read a minimum from."
    return Figure("isoflop", "Loss against model size", caption, finish(chart))


def _valley_layers(evidence: Evidence, fit: Fit | None) -> list[alt.Chart]:
    """Parabolas: solid where the minimum counts, dashed where it does not."""
    layers = []
    for usable, dash in ((True, [1, 0]), (False, [5, 4])):
        rows = []
        for budget in fit.budgets or () if fit else ():
            valley = draw_valley(evidence, fit, budget) if fit else None
            if valley is None or (budget.status == "ok") is not usable:
                continue
            label = evidence.points_of(budget.C)["budget"].iloc[0]
            rows += [{**row, "budget": label} for row in valley.to_dict("records")]
        if rows:
            mark = alt.Chart(inline(rows)).mark_line(strokeDash=dash, strokeWidth=2, clip=True)
            layers.append(mark.encode(detail="budget:N"))
    return layers


def _measured_layers(evidence: Evidence) -> list[alt.Chart]:
    fitted = alt.Chart(inline(point_rows(evidence.fitted))).mark_point(filled=True, size=55, opacity=0.9)
    layers = [fitted.encode(tooltip=POINT_TIPS)]
    if len(evidence.holdout):
        held = alt.Chart(inline(point_rows(evidence.holdout)))
        layers.append(held.mark_point(shape="square", size=80, strokeWidth=2).encode(tooltip=POINT_TIPS))
    return layers


def _minimum_layer(fit: Fit) -> alt.Chart:
    rows = [
        {"N": budget.N_opt, "loss": budget.loss_opt, "best": format_count(budget.N_opt),
         "tokens": format_count(budget.D_opt), "measured": format_loss(budget.loss_opt),
         "compute": format_flops(budget.C)}
        for budget in fit.budgets or () if budget.status == "ok"
    ]  # fmt: skip
    mark = alt.Chart(inline(rows)).mark_point(
        shape="diamond", size=150, filled=True, style="inkfill", opacity=1
    )
    return mark.encode(
        tooltip=tips(compute="minimum at C", best="N_opt", tokens="D_opt", measured="loss, nats/token")
    )


def _label_layer(evidence: Evidence) -> list[alt.Chart]:
    """The budget's name beside the largest size of its curve, in its colour."""
    ends = evidence.points.sort_values("N").groupby("budget_C").tail(1)
    rows = [
        {
            **_describe(row),
            "label": f"{row['budget']} held out" if row["role"] == "holdout" else row["budget"],
        }
        for row in ends.to_dict("records")
    ]
    mark = alt.Chart(inline(rows)).mark_text(align="center", dy=-14, fontSize=12.5, fontWeight="bold")
    return [mark.encode(text="label:N")]


def _isoflop_title(fit: Fit | None) -> str:
    usable = sum(budget.status == "ok" for budget in fit.budgets or ()) if fit else 0
    if not usable:
        return "Loss against size at fixed compute: no budget has a usable minimum"
    return "Loss against size at fixed compute: the floor of each valley is the best size"


def _isoflop_caption(evidence: Evidence, fit: Fit | None) -> str:
    parts = ["Labels give each curve's training FLOPs C."]
    if fit is not None:
        parts.append("Diamonds mark the minima the power laws are fitted to.")
    if any(budget.status != "ok" for budget in (fit.budgets or () if fit else ())):
        parts.append(
            f"Dashed, not used: {'; '.join(_excuse(b) for b in fit.budgets or () if b.status != 'ok')}."
        )
    if len(evidence.holdout):
        parts.append("Hollow squares were held out from every fit.")
    return " ".join(parts)


def _excuse(budget: Budget) -> str:
    words = {
        "edge": "minimum at the edge of the sizes tried",
        "nonconvex": "no valley",
        "too_few": "too few sizes",
    }
    return f"{format_flops(budget.C)} ({words[budget.status]})"


def _binned_curves(evidence: Evidence) -> pd.DataFrame | None:
    """Curves as run_id, budget, loss and flops or tokens, with what hovering shows; None without any."""
    if evidence.curves is None:
        return None
    x = "flops" if "flops" in evidence.curves else "tokens"
    curves = evidence.curves[["run_id", x, "train_loss"]].rename(columns={"train_loss": "loss"})
    curves = curves[np.isfinite(curves["loss"].astype(float)) & (curves[x] > 0)]
    if not len(curves):
        return None
    log_x = np.log(curves[x].astype(float))
    edges = np.linspace(log_x.min(), log_x.max() * (1 + 1e-9), CURVE_SAMPLES + 1)
    binned = curves.assign(bin=np.digitize(log_x, edges)).groupby(["run_id", "bin"], as_index=False)
    binned = binned.agg({x: "max", "loss": "mean"})
    known = {row["run_id"]: _describe(row) for row in evidence.points.to_dict("records")}
    planned = (
        {cell.run_id: format_flops(cell.spec.budget_flops) for cell in evidence.plan.cells}
        if evidence.plan
        else {}
    )
    rows = [
        {**known.get(row["run_id"], {"run": row["run_id"], "budget": planned.get(row["run_id"])}), **row}
        for row in binned.drop(columns="bin").to_dict("records")
    ]
    return pd.DataFrame(rows)


def _curve_layers(curves: pd.DataFrame, x: Any, y: Any, color: alt.Color | None) -> list[alt.Chart]:
    """One thin line a run, in its budget's colour or, without one, in the warning colour."""
    rows = curves.to_dict("records")
    line = alt.Chart(inline(rows)).encode(x=x, y=y, detail="run_id:N", tooltip=POINT_TIPS)
    style = {"style": "alarm"} if color is None else {}
    thin = line.mark_line(strokeWidth=1.4, clip=True, opacity=0.9, **style)
    return [thin if color is None else thin.encode(color=color)]


def _describe(row: dict[str, Any]) -> dict[str, Any]:
    seed = row.get("seed")
    return {
        "N": row["N"], "D": row["D"], "C": row["C"], "loss": row["loss"], "budget": row["budget"],
        "run": str(row["run_id"]), "size": format_count(row["N"]), "tokens": format_count(row["D"]),
        "compute": format_flops(row["C"]), "measured": format_loss(row["loss"]),
        "seed": "" if pd.isna(seed) else f"{seed:.0f}", "role": row["role"], "residual": row.get("residual"),
    }  # fmt: skip
