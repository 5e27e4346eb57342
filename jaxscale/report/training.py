"""Figure of how every run was trained: loss against the compute it had spent."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from jaxscale.format import format_count, format_flops, format_loss
from jaxscale.report.charts import Figure, budget_color, finish, inline, linear_y, log_axis, log_domain, tips
from jaxscale.report.evidence import Evidence, records

__all__ = ["draw_training"]

NO_EVIDENCE = ("diverged", "failed", "censored")
SAMPLES = 60
"""Points kept of a curve, means over bins of equal log width."""
CURVE_TIPS = tips(run="run", state="state", size="parameters N", final="final loss, nats/token", seed="seed")
CAPTION = (
    "One line a run, ending at its own budget; the lower envelope is the best loss that compute has "
    "bought so far. Means over bins of equal log width."
)


def draw_training(evidence: Evidence) -> Figure | None:
    """Training loss of every run against the FLOPs it has spent, failed runs in a warning colour."""
    curves = _bin_curves(evidence.curves)
    if curves is None:
        return None
    labels = _label_runs(evidence)
    rows = [{"run": run, **labels.get(run, {"state": "unknown"}), **row} for run, row in curves]
    good = [row for row in rows if row["state"] not in NO_EVIDENCE]
    bad = [row for row in rows if row["state"] in NO_EVIDENCE]
    by_flops = evidence.curves is not None and "flops" in evidence.curves
    title, unit = ("training FLOPs spent", "flops") if by_flops else ("training tokens", "count")
    x = log_axis(alt.X, "x", title, log_domain([row["x"] for row in rows], margin=0.02), unit)
    low, high = np.quantile([row["loss"] for row in rows], [0, 0.97])
    y = linear_y("loss", "training loss (nats/token)", (low - 0.03 * (high - low), high))
    color = budget_color(evidence.budget_labels, [row["budget"] for row in good if "budget" in row])
    layers = (
        [_lines(good).encode(color=color), _lines(bad, style="alarm")] if bad else [_lines(good).encode(color=color)]
    )
    chart = alt.layer(*(layer.encode(x=x, y=y) for layer in layers))
    caption = f"{CAPTION} Red: diverged, failed or stopped early, and no evidence." if bad else CAPTION
    return Figure("training", "Training curves", caption, finish(chart))


def _lines(rows: list[dict[str, Any]], **mark: Any) -> alt.Chart:
    line = alt.Chart(inline(rows)).mark_line(strokeWidth=1.5, clip=True, **mark)
    return line.encode(detail="run:N", tooltip=CURVE_TIPS)


def _bin_curves(curves: pd.DataFrame | None) -> list[tuple[str, dict[str, float]]] | None:
    """(run_id, {x, loss}) in order of compute; None where nothing was logged."""
    if curves is None:
        return None
    x = "flops" if "flops" in curves else "tokens"
    usable = np.isfinite(curves["train_loss"].astype(float)) & (curves[x] > 0)
    if not usable.any():
        return None
    kept = curves.loc[usable, ["run_id", x, "train_loss"]].set_axis(["run_id", "x", "loss"], axis=1)
    log_x = np.log(kept["x"].astype(float))
    width = max(float(log_x.max() - log_x.min()), 1e-9) / SAMPLES
    groups = kept.assign(bin=np.floor((log_x - log_x.min()) / width)).groupby(["run_id", "bin"])
    binned = groups.agg({"x": "max", "loss": "mean"}).reset_index()
    return [(row["run_id"], {"x": row["x"], "loss": row["loss"]}) for row in records(binned)]


def _label_runs(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """What is known of a run without its curve: budget, size, seed from the plan, the end from its result."""
    labels: dict[str, dict[str, Any]] = {}
    for row in records(evidence.points):
        seed = "" if pd.isna(row["seed"]) else f"{row['seed']:.0f}"
        labels[row["run_id"]] = {"budget": row["budget"], "size": format_count(row["N"]), "seed": seed,
                                 "state": "done", "final": format_loss(row["loss"])}  # fmt: skip
    for cell in evidence.plan.cells if evidence.plan else ():
        known = {"budget": format_flops(cell.spec.budget_flops), "size": format_count(cell.n_params),
                 "seed": str(cell.spec.seed), "state": "running"}  # fmt: skip
        labels.setdefault(cell.run_id, known)
    for result in evidence.results:
        known = labels.get(result.run_id, {"size": format_count(result.n_params)})
        labels[result.run_id] = {**known, "state": result.state, "final": format_loss(result.loss)}
    return labels
