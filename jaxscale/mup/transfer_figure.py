"""The figure everybody knows: loss against log2 lr, a curve a width, the parameterizations side by side.

The y axis is shared by all panels and ends a little above the highest optimum: a run near divergence must not
flatten the minima. Runs above it are drawn at its top edge as hollow triangles, diverged ones as crosses, those
that were stopped as hopeless as hollow squares.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from jaxscale.mup.rates import Against, Curve, Ladder, format_rate
from jaxscale.mup.transfer import LadderTransfer, Optimum, Transfer, title_ladder
from jaxscale.report.charts import inline, save_picture, theme

__all__ = ["draw_transfer", "write_transfer_figure"]

PANEL, HEIGHT = 330, 340
ABOVE, SPREADS = 0.06, 0.5
"""The axis ends above the highest optimum by this share of the loss, and this share of the optima's spread."""
FAINT = 0.4


def draw_transfer(transfer: Transfer, against: Against = "width") -> dict[str, Any] | None:
    """Vega-Lite of all ladders over widths (or depths), a panel each; None where there is none."""
    chosen = [k for k, ladder in enumerate(transfer.ladders) if ladder.against == against]
    chosen = [k for k in chosen if len(transfer.ladders[k].curves) > 1] or chosen
    if not chosen:
        return None
    ladders = [transfer.ladders[k] for k in chosen]
    rungs = sorted({rung for ladder in ladders for rung in ladder.rungs})
    low, high = _domain([curve for ladder in ladders for curve in ladder.curves])
    x = _x(ladders)
    panels = [_panel(transfer, k, rungs, (low, high), x, first=k == chosen[0]) for k in chosen]
    chart = alt.hconcat(*panels, spacing=28).resolve_scale(color="shared", x="shared", y="shared")
    title = {"text": f"Loss against learning rate, a curve a {against}", "subtitle": _subtitle(ladders, transfer)}
    plain: dict[str, Any] = chart.properties(title=title).to_dict()
    config = theme(dark=False, ground="white")
    config["axisY"] = {**config["axisY"], "titleX": -44}
    config["legend"] = {**config["legend"], "offset": 4}
    return {**plain, "config": config}


def write_transfer_figure(transfer: Transfer, stem: Path) -> list[Path]:
    """Save STEM.svg and STEM.png for ladders over widths, STEM-depth.* for those over depths."""
    written: list[Path] = []
    against: Against
    for against in ("width", "depth"):
        drawn = draw_transfer(transfer, against)
        if drawn is None:
            continue
        file = stem if not written else stem.with_name(f"{stem.name}-{against}")
        written += save_picture(drawn, file)
    return written


def _subtitle(ladders: list[Ladder], transfer: Transfer) -> list[str]:
    told = title_ladder(ladders[0]).split(", ", 1)
    same = (
        f"{told[1]}; " if len(told) > 1 and len({title_ladder(one).split(", ", 1)[-1] for one in ladders}) == 1 else ""
    )
    marks = (f"dots: optima of the fitted curves with their {transfer.confidence:.0%} interval, joined by dashes; "
             f"crosses: diverged runs, triangles: runs above the axis")  # fmt: skip
    if any(curve.censored.any() for ladder in ladders for curve in ladder.curves):
        marks += ", squares: stopped as hopeless"
    return [f"{same}points: runs, lines: means over seeds", marks]


def _domain(curves: list[Curve]) -> tuple[float, float]:
    """From just below the lowest run to a little above the highest optimum."""
    known = [curve.loss[np.isfinite(curve.loss)] for curve in curves]
    known = [loss for loss in known if len(loss)]
    if not known:
        return 0.0, 1.0
    lowest = [float(loss.min()) for loss in known]
    top = max(lowest) * (1 + ABOVE) + SPREADS * (max(lowest) - min(lowest))
    top = min(top, max(float(loss.max()) for loss in known))
    span = max(top - min(lowest), 0.01 * top)
    return min(lowest) - 0.06 * span, top + 0.06 * span


def _x(ladders: list[Ladder]) -> dict[str, Any]:
    """Axis and scale of log2 lr: a tick every doubling, or every few."""
    x = np.concatenate([curve.x for ladder in ladders for curve in ladder.curves])
    low, high = math.floor(x.min() * 2) / 2, math.ceil(x.max() * 2) / 2
    step = max(1, math.ceil((high - low) / 8))
    axis = alt.Axis(values=list(range(math.ceil(low), math.floor(high) + 1, step)), format="d",
                    title="log2 learning rate", labelOverlap=False)  # fmt: skip
    return {"axis": axis, "scale": alt.Scale(domain=[low - 0.25, high + 0.25], nice=False)}


def _panel(
    transfer: Transfer, k: int, rungs: list[int], domain: tuple[float, float], x: dict[str, Any], *, first: bool
) -> Any:
    ladder, told = transfer.ladders[k], transfer.transfers[k]
    start = sum(len(one.curves) for one in transfer.ladders[:k])
    optima = transfer.optima[start : start + len(ladder.curves)]
    y = alt.Y("loss:Q", title="loss, nats per token" if first else " ",
              scale=alt.Scale(domain=list(domain), nice=False), axis=alt.Axis(tickCount=6, labels=first))  # fmt: skip
    key = alt.Legend(title=ladder.against, columns=8, symbolType="circle")
    color = alt.Color("rung:O", scale=alt.Scale(domain=rungs), legend=key)
    layers = _layers(ladder, optima, domain, x, y, color)
    names = [one.parameterization for one in transfer.transfers if one.against == ladder.against]
    name = told.parameterization if names.count(told.parameterization) == 1 else title_ladder(ladder)
    title = {"text": name, "subtitle": _told(told), "fontSize": 14}
    return alt.layer(*layers).properties(width=PANEL, height=HEIGHT, title=title)


def _layers(
    ladder: Ladder,
    optima: tuple[Optimum, ...],
    domain: tuple[float, float],
    across: dict[str, Any],
    y: alt.Y,
    color: alt.Color,
) -> list[alt.Chart]:
    runs, means = _runs(ladder, domain)
    x, beside = alt.X("x:Q", **across), alt.X("beside:Q", **across)
    best = [{"rung": one.rung, "x": one.log2_lr, "loss": one.loss, "low": np.log2(one.lr_interval[0] or np.nan),
             "high": np.log2(one.lr_interval[1] or np.nan), "lr": format_rate(one.lr)}
            for one in optima if one.lr is not None and None not in one.lr_interval]  # fmt: skip
    mean = alt.Chart(inline(means)).mark_line(clip=True, strokeWidth=2, strokeOpacity=0.85)
    base = alt.Chart(inline(runs))
    inside = base.transform_filter("datum.state == 'done'").mark_point(filled=True, size=22, opacity=FAINT)
    above = base.transform_filter("datum.state == 'above'").mark_point(shape="triangle-up", size=50, filled=False)
    crosses = base.transform_filter("datum.state == 'diverged'").mark_text(text="×", fontSize=17, fontWeight="bold")
    squares = base.transform_filter("datum.state == 'censored'").mark_point(shape="square", size=36, filled=False)
    rule = alt.Chart(inline(best)).mark_rule(strokeWidth=4, opacity=0.75).encode(
        x=alt.X("low:Q", **across), x2="high:Q", y=y, color=color)  # fmt: skip
    dot = alt.Chart(inline(best)).mark_point(filled=True, size=75, opacity=1, stroke="white", strokeWidth=1)
    path = alt.Chart(inline(best)).mark_line(strokeDash=[3, 4], strokeWidth=1.5, color="#6b6b70")
    return [mean.encode(x=x, y=y, color=color, detail="part:N"), inside.encode(x=x, y=y, color=color),
            above.encode(x=beside, y=y, color=color),
            crosses.encode(x=beside, y=y, color=color), squares.encode(x=beside, y=y, color=color),
            path.encode(x=x, y=y, order="rung:Q"), rule, dot.encode(x=x, y=y, color=color)]  # fmt: skip


def _runs(ladder: Ladder, domain: tuple[float, float]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every run with its place, and the means; those above the axis stand at its edge, a little apart by rung."""
    runs, means = [], []
    edge = domain[1] - 0.02 * (domain[1] - domain[0])
    for k, (rung, curve) in enumerate(zip(ladder.rungs, ladder.curves, strict=True)):
        apart = 0.5 * ((k + 0.5) / len(ladder.curves) - 0.5)
        part = 0
        for i, at in enumerate(curve.x.tolist()):
            place = {"rung": rung, "x": at, "beside": at + apart}
            if curve.diverged[i].any():
                runs.append({**place, "loss": edge, "state": "diverged"})
            elif curve.censored[i].any():
                runs.append({**place, "loss": edge, "state": "censored"})
            for loss in curve.loss[i][np.isfinite(curve.loss[i])].tolist():
                out = loss > domain[1]
                runs.append({**place, "loss": edge if out else loss, "state": "above" if out else "done"})
            if i in curve.stable:
                means.append({**place, "loss": float(curve.mean[i]), "part": f"{rung} {part}"})
            else:
                part += 1
    return runs, means


def _told(told: LadderTransfer) -> list[str]:
    """Shift and regret under a panel's title."""
    if told.shift is None:
        return [told.words, " "]
    low, high = told.shift_interval
    ends = "" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]"
    lines = [f"shift per doubling {told.shift:+.2f}{ends}"]
    if told.regret_relative_high is not None and told.regret_relative is not None:
        cost = f"{told.regret_relative:.2%} of the loss (at most {told.regret_relative_high:.2%})"
    else:
        cost = f"above {told.regret_relative_low:.1%} of the loss, unbounded"
    return [*lines, f"regret at {told.to_rung} of {told.from_rung}'s rate: {cost}"]
