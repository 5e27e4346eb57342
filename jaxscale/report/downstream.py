"""The downstream forecast as a picture in Llama 3's form (figure 4 there): NLL of the right answer against training
FLOPs on the left, accuracy against that NLL on the right, one row a task.

Left: the ends of the fitted runs, the compute-optimal line of stage 1, the targets forecast and measured. Right: the
checkpoints, the curve of stage 2 with its band, and the targets again with their interval.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from jaxscale.downstream.chain import Chain
from jaxscale.downstream.result import Downstream
from jaxscale.format import format_factor, format_flops, format_interval, format_loss, format_percent
from jaxscale.report.charts import Figure, inline, log_axis, log_domain, save_picture, theme
from jaxscale.report.tables import Table

__all__ = ["downstream_figure", "draw_downstream", "list_targets", "write_downstream_figure"]

PANEL, HEIGHT = 320, 230
POINTS = 60
SERIES = ("fitted runs", "forecast", "measured")
TITLE = "From compute to NLL to accuracy"


def draw_downstream(result: Downstream) -> dict[str, Any] | None:
    """Vega-Lite of every task that has a forecast; None without one."""
    names = [name for name, task in result.tasks.items() if not task["stages"]["verdict"]]
    if not names:
        return None
    rows = [alt.hconcat(*_panels(name, result), spacing=40) for name in names]
    chart = alt.vconcat(*rows, spacing=28).resolve_scale(color="shared")
    plain: dict[str, Any] = chart.to_dict()
    plain.pop("config", None)
    return plain


def write_downstream_figure(result: Downstream, stem: Path) -> list[Path]:
    """Save STEM.svg and STEM.png; nothing where no task can be forecast."""
    drawn = draw_downstream(result)
    if drawn is None:
        return []
    title = {"text": TITLE, "subtitle": [_caption(result)]}
    config = theme(dark=False, ground="white")
    config["legend"] = {**config["legend"], "offset": 6}
    return save_picture({**drawn, "title": title, "config": config}, stem)


def downstream_figure(result: Downstream) -> Figure | None:
    """The same for the report's page."""
    drawn = draw_downstream(result)
    return None if drawn is None else Figure("downstream", TITLE, _caption(result), drawn, compound=True)


def list_targets(result: Downstream) -> Table:
    """The page's table: a row a task and target; tasks without a forecast say why in the note."""
    rows = tuple(
        (name, target["run"], format_flops(target["C"]), format_factor(target["extrapolation"]),
         f"{format_loss(target['nll_pred'])} / {format_loss(target['nll_true'])}", format_loss(target["accuracy_pred"]),
         format_interval(target["accuracy_interval"]), format_loss(target["accuracy_true"]),
         format_percent(target["relative_error"]))
        for name, task in result.tasks.items() for target in task["targets"]
    )  # fmt: skip
    why = " ".join(f"{name}: {words}." for name, words in result.verdicts.items())
    headings = ("task", "run", "C, FLOPs", "beyond", "NLL forecast / true", "accuracy", "interval", "measured", "error")
    return Table(headings, rows, note=why, words=2)


def _caption(result: Downstream) -> str:
    left = "Left: NLL of the right answer at the end of each run, and the compute-optimal line."
    return f"{left} Right: checkpoints and the curve with its {result.confidence:.0%} band; bars: intervals."


def _panels(name: str, result: Downstream) -> tuple[Any, Any]:
    task, chain = result.tasks[name], result.chain(name)
    targets = [target for target in task["targets"] if target["accuracy_pred"] is not None]
    return _left(name, task, chain, targets, result.nll_unit), _right(task, chain, targets, result.nll_unit)


def _color() -> alt.Color:
    return alt.Color("series", type="nominal", scale=alt.Scale(domain=list(SERIES)), legend=alt.Legend(title=None))


def _left(name: str, task: dict[str, Any], chain: Chain, targets: list[dict[str, Any]], unit: str) -> Any:
    runs = task["stages"]["runs"]
    far = max([run["C"] for run in runs] + [target["C"] for target in targets])
    C = np.geomspace(min(run["C"] for run in runs), far, POINTS)
    line = [{"C": float(c), "nll": float(v)} for c, v in zip(C, chain.nll(*chain.optimal(C), C), strict=True)]
    dots = [{"C": run["C"], "nll": run["nll"], "series": SERIES[0]} for run in runs]
    dots += [{"C": target["C"], "nll": target["nll_pred"], "series": SERIES[1]} for target in targets]
    dots += [{"C": target["C"], "nll": target["nll_true"], "series": SERIES[2]} for target in targets
             if _known(target["nll_true"])]  # fmt: skip
    x = log_axis(alt.X, "C", "training FLOPs", log_domain([row["C"] for row in dots]), "flops")
    y = _linear("nll", f"{name}: NLL, {_say(unit)}", [row["nll"] for row in [*dots, *line]])
    marks = alt.Chart(inline(dots)).mark_point(filled=True, size=46, opacity=0.9).encode(x, y, _color(), _shape())
    curve = alt.Chart(inline(line)).mark_line(strokeWidth=1.5, style="muted", clip=True, opacity=0.7).encode(x, y)
    return alt.layer(curve, marks).properties(width=PANEL, height=HEIGHT)


def _right(task: dict[str, Any], chain: Chain, targets: list[dict[str, Any]], unit: str) -> Any:
    cloud = [{"nll": x, "accuracy": y, "series": SERIES[0]}
             for x, y in zip(*task["stages"]["checkpoints"].values(), strict=True)]  # fmt: skip
    forecast = [{"nll": t["nll_pred"], "accuracy": t["accuracy_pred"], "low": t["accuracy_interval"][0],
                 "high": t["accuracy_interval"][1], "series": SERIES[1]} for t in targets]  # fmt: skip
    measured = [{"nll": t["nll_true"], "accuracy": t["accuracy_true"], "series": SERIES[2]} for t in targets
                if _known(t["nll_true"]) and _known(t["accuracy_true"])]  # fmt: skip
    every = [row["nll"] for row in [*cloud, *forecast, *measured]]
    x_line = np.linspace(min(every), max(every), POINTS)
    low, high = chain.interval_of_curve(x_line)
    line = [{"nll": float(a), "accuracy": float(b), "low": float(c), "high": float(d)}
            for a, b, c, d in zip(x_line, chain.accuracy(x_line), low, high, strict=True)]  # fmt: skip
    pad = 0.03 * (max(every) - min(every))
    x = alt.X("nll", type="quantitative", title=f"NLL, {_say(unit)}", axis=alt.Axis(tickCount=5),
              scale=alt.Scale(domain=[max(every) + pad, min(every) - pad], nice=False))  # fmt: skip
    heights = [row[key] for row in [*cloud, *measured, *forecast] for key in ("accuracy", "low", "high") if key in row]
    y = _linear("accuracy", "accuracy", heights)
    low_end = _linear("low", "accuracy", heights)
    band = alt.Chart(inline(line)).mark_area(opacity=0.18, clip=True).encode(x, low_end, alt.Y2("high:Q"))
    curve = alt.Chart(inline(line)).mark_line(strokeWidth=1.5, style="muted", opacity=0.7, clip=True).encode(x, y)
    dots = alt.Chart(inline(cloud)).mark_point(filled=True, size=12, opacity=0.35).encode(x, y, _color())
    layers = [band, curve, dots]
    if forecast:
        bars = alt.Chart(inline(forecast)).mark_rule(strokeWidth=2.5)
        layers.append(bars.encode(x, low_end, alt.Y2("high:Q"), _color()))
    ends = alt.Chart(inline([*forecast, *measured])).mark_point(filled=True, size=60, opacity=1)
    layers.append(ends.encode(x, y, _color(), _shape()))
    return alt.layer(*layers).properties(width=PANEL, height=HEIGHT)


def _shape() -> alt.Shape:
    """Colour alone does not tell a forecast from what was measured."""
    scale = alt.Scale(domain=list(SERIES), range=["circle", "square", "diamond"])
    return alt.Shape("series", type="nominal", scale=scale, legend=alt.Legend(title=None))


def _linear(name: str, title: str, values: list[float]) -> alt.Y:
    pad = 0.06 * (max(values) - min(values) or 1.0)
    scale = alt.Scale(domain=[min(values) - pad, max(values) + pad], nice=False)
    return alt.Y(name, type="quantitative", title=title, scale=scale, axis=alt.Axis(tickCount=5))


def _say(unit: str) -> str:
    return unit.replace("_", " ")


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
