"""The grammar all figures share: axes with few labels, one colour scale for budgets, light and dark themes.

A figure's spec holds no colour but by role ("ink", "muted", "alarm", a budget, a fit): the theme decides,
so the page can follow the reader's light or dark setting and print in light.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

__all__ = [
    "Figure",
    "Records",
    "budget_color",
    "finish",
    "fit_color",
    "inline",
    "linear_y",
    "log_axis",
    "log_domain",
    "save_picture",
    "theme",
    "tips",
]

Records = Sequence[dict[str, Any]]
LABELS = {
    "flops": "replace(format(datum.value, '~e'), '+', '')",
    "count": "replace(format(datum.value, '.3~s'), 'G', 'B')",
}
"""How a log axis writes its ticks: 1e11 for FLOPs; 50k, 1M, 7B for parameters and tokens."""
HEIGHT = 340
STATIC_WIDTH = 720
NARROW_WIDTH = 420
FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"


@dataclass(frozen=True)
class Figure:
    """A drawing with the sentence it proves. `spec` is Vega-Lite without width, title or theme."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any] = field(repr=False)
    wide: bool = True
    compound: bool = False
    """Panels side by side, each with its own width: the spec takes none from outside."""

    def static_spec(self) -> dict[str, Any]:
        """The spec as it stands alone in a file: fixed width, white ground, its title above."""
        title = {"text": _wrap(self.title, 70), "subtitle": _wrap(self.caption, 98)}
        return {
            **self._sized(STATIC_WIDTH),
            "title": title,
            "config": theme(dark=False, ground="white"),
        }

    def still_spec(self) -> dict[str, Any]:
        """The spec as the page shows it where no script runs: fixed width, titled by the page."""
        return {
            **self._sized(STATIC_WIDTH if self.wide else NARROW_WIDTH),
            "config": {**theme(dark=False, ground="white"), "aria": False},
        }

    def page_spec(self) -> dict[str, Any]:
        """The spec as the page embeds it: as wide as its column, titled by the page."""
        if self.compound:
            return self.spec
        return {**self.spec, "width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}

    def _sized(self, width: int) -> dict[str, Any]:
        return self.spec if self.compound else {**self.spec, "width": width}


def inline(rows: Records) -> alt.InlineData:
    """Rows as data inside the spec: no hashed data set names, so equal input gives equal output."""
    return alt.InlineData(
        values=[{key: _round(value) for key, value in row.items() if value is not None} for row in rows]
    )


def log_domain(values: Sequence[float], margin: float = 0.05) -> tuple[float, float]:
    """The range of positive values, widened by a share of its decades on both sides.

    >>> tuple(round(end) for end in log_domain([10, 1000], margin=0.5))
    (1, 10000)
    """
    low, high = math.log(min(values)), math.log(max(values))
    pad = max(margin * (high - low), 0.1)
    return math.exp(low - pad), math.exp(high + pad)


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten inside the range, thinned to `most`; 1-2-5 steps where fewer than three fit.

    >>> log_ticks(3e9, 2e12), log_ticks(8e3, 1.2e5)
    ([10000000000.0, 100000000000.0, 1000000000000.0], [10000.0, 20000.0, 50000.0, 100000.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [float(f"1e{decade}") for decade in decades if low <= 10.0**decade <= high]
    if len(powers) >= 3:
        return powers[:: math.ceil(len(powers) / most)]
    steps = [float(f"{step}e{decade}") for decade in decades for step in (1, 2, 5)]
    return [tick for tick in steps if low <= tick <= high]


def log_axis(channel: type[alt.X] | type[alt.Y], name: str, title: str, domain: tuple[float, float], unit: str) -> Any:
    """A log position channel over `domain` with few, round, readable ticks; `unit` is a key of LABELS."""
    axis = alt.Axis(values=log_ticks(*domain), labelExpr=LABELS[unit], title=title)
    return channel(name, type="quantitative", axis=axis, scale=_log_scale(domain))


def linear_y(name: str, title: str, domain: tuple[float, float] | None = None) -> alt.Y:
    """A linear vertical position that does not start at zero."""
    scale = alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain), nice=False, clamp=False)
    return alt.Y(name, type="quantitative", title=title, scale=scale, axis=alt.Axis(tickCount=6))


def budget_color(labels: list[str], shown: Iterable[str]) -> alt.Color:
    """Darker to lighter with compute, the same for a budget in every figure; the legend names `shown`."""
    named = set(shown)
    key = alt.Legend(title="C, FLOPs", values=[label for label in labels if label in named]) if named else None
    return alt.Color("budget", type="ordinal", scale=alt.Scale(domain=labels), legend=key)


def fit_color(names: list[str], shown: Iterable[str]) -> alt.Color:
    """One colour a fit, the same in every figure; the legend names `shown`."""
    drawn = set(shown)
    key = alt.Legend(title=None, symbolType="circle", values=[name for name in names if name in drawn])
    return alt.Color("fit", type="nominal", scale=alt.Scale(domain=names), legend=key)


def tips(**titles: str) -> list[alt.Tooltip]:
    """What hovering shows: columns, already written for people, under their titles."""
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in titles.items()]


def finish(chart: alt.Chart | alt.LayerChart | alt.FacetChart) -> dict[str, Any]:
    """The chart as Vega-Lite, validated; its theme and width are added where it is shown."""
    plain: dict[str, Any] = chart.properties(height=HEIGHT).to_dict()
    plain.pop("config", None)
    return plain


def theme(*, dark: bool, ground: str = "transparent") -> dict[str, Any]:
    """Vega-Lite config: colour-blind safe (viridis, Okabe and Ito), quiet axes, readable sizes."""
    ink, muted, grid = ("#e8e6e3", "#a3a09b", "#3a3a3c") if dark else ("#1c1c1e", "#6b6b70", "#e4e4e7")
    fits = ["#56b4e9", "#e69f00", "#2cc08f"] if dark else ["#0072b2", "#d55e00", "#009e73"]
    alarm = "#ff7b72" if dark else "#b3261e"
    text = {"labelColor": muted, "titleColor": ink, "labelFontSize": 13, "titleFontSize": 13}
    return {
        "background": ground,
        "font": FONT,
        "padding": 12 if ground == "white" else 4,
        "view": {"stroke": None},
        "title": {"anchor": "start", "color": ink, "subtitleColor": muted, "fontSize": 16, "offset": 14,
                  "subtitleFontSize": 12.5, "subtitleLineHeight": 16, "subtitlePadding": 6},
        "axis": {**text, "titleFontWeight": "normal", "gridColor": grid, "domain": False, "ticks": False,
                 "labelPadding": 6, "titlePadding": 10, "labelOverlap": True},
        "axisY": {"titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom", "titleX": -36,
                  "titleY": -10},
        "legend": {**text, "labelColor": ink, "titleFontWeight": "normal", "titleColor": muted,
                   "orient": "top", "direction": "horizontal", "columns": 4, "offset": 26,
                   "titleOrient": "left", "symbolStrokeWidth": 3, "symbolSize": 90, "symbolOpacity": 1},
        "range": {"ordinal": {"scheme": "viridis", "extent": [0.28, 1.0] if dark else [0.0, 0.86]},
                  "category": [*fits, "#cc79a7", "#8c8c8c"]},
        "text": {"fontSize": 12.5, "color": ink},
        "style": {"ink": {"color": ink},
                  "muted": {"color": muted}, "note": {"color": muted, "fontSize": 12},
                  "alarm": {"color": alarm}},
    }  # fmt: skip


def _log_scale(domain: tuple[float, float]) -> alt.Scale:
    return alt.Scale(type="log", domain=[_round(end) for end in domain], nice=False)


def _round(value: Any) -> Any:
    """Six digits are more than a screen shows, and keep the page small; unknown numbers become null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def save_picture(drawn: dict[str, Any], stem: Path) -> list[Path]:
    """Write STEM.svg and STEM.png of a Vega-Lite drawing; an ending .svg or .png of the stem is not doubled."""
    base = stem.with_suffix("") if stem.suffix in (".svg", ".png") else stem
    svg = vl_convert.vegalite_to_svg(drawn)
    files = {Path(f"{base}.svg"): svg.encode(), Path(f"{base}.png"): vl_convert.svg_to_png(svg, scale=2)}
    base.parent.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        file.write_bytes(content)
    return list(files)
