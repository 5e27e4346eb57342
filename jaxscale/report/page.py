"""One self-contained page: evidence in, `report.html` and `figures/*.{svg,png}` out.

The page carries Vega once for all figures and never reaches for the network (a content security policy
enforces it). Every figure is there twice: as a still picture, shown at once and in print, and as live
Vega with hover, which takes its place where scripts run. Equal input gives equal bytes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vl_convert
from altair.utils.schemapi import debug_mode
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from jaxscale.fit.result import Fit, Fits
from jaxscale.plain import write_json
from jaxscale.report.approaches import judge_approaches, list_notes, list_parameters
from jaxscale.report.backtests import group_nearest, list_tests, sum_origins
from jaxscale.report.charts import Figure, theme
from jaxscale.report.compare import compare_section
from jaxscale.report.downstream import downstream_figure, list_targets
from jaxscale.report.envelope import draw_envelope
from jaxscale.report.evidence import METHOD_NAMES, Evidence, HasRows, collect_evidence
from jaxscale.report.fitted import draw_loss_law, draw_optima
from jaxscale.report.measured import draw_isoflop
from jaxscale.report.surface import draw_contour, draw_residuals
from jaxscale.report.tables import (
    list_dropped,
    list_plan,
    list_provenance,
    list_refused,
    list_runs,
    summarize_fits,
)
from jaxscale.report.training import draw_training
from jaxscale.report.verdict import find_cautions, list_answers, say_leader
from jaxscale.runs import Observations, Plan, RunResult

if TYPE_CHECKING:
    import pandas as pd

    from jaxscale.compare import Comparison
    from jaxscale.downstream import Downstream

__all__ = ["write_report"]

CLIP_ID = re.compile(r"\bclip\d+\b")
PNG_SCALE = 2.0
"""Pixels per unit in PNG files: sharp on a dense screen and in a document."""


def write_report(
    out_dir: str | Path,
    *,
    title: str,
    plan: Plan | None,
    observations: Observations,
    fits: Fits | Sequence[Fit],
    forecast: HasRows | Sequence[HasRows] | None = None,
    backtest: HasRows | None = None,
    declared: str | None = None,
    results: Sequence[RunResult] = (),
    curves: pd.DataFrame | None = None,
    provenance: dict[str, Any],
    commands: Sequence[str] = (),
    downstream: Downstream | None = None,
    comparison: Comparison | None = None,
) -> Path:
    """Write `report.html` and `figures/` under `out_dir`; the path of the page.

    `forecast` and `backtest` have `.rows` in the shape of FORECAST.json and the backtest schema; a sequence
    of forecasts (one a method) is shown side by side. `declared`: the method or law that was declared beforehand
    and leads the page, the first fit unless given; `Fits` bring the judgement of their agreement. `curves`: run_id,
    train_loss, and flops or tokens. `downstream`: forecasts of task accuracy; `comparison`: a study's variants.
    Everything but `observations` and `provenance` may be missing; the page says what that leaves open.
    """
    evidence = collect_evidence(observations, fits, forecast, backtest, results, plan, curves, declared)
    with debug_mode(False):  # each figure is validated once, when it is finished, and not part by part
        sections = [] if comparison else _draw_sections(evidence)  # those show the runs of one variant
        tasks = downstream_figure(downstream) if downstream else None
        sections += [("Task accuracy", [tasks])] if tasks else []
        variants, compared = compare_section(comparison) if comparison else (None, None)
        sections = [("Variants", [variants]), *sections] if variants else sections
    stills = {figure.name: _write_still(figure, Path(out_dir) / "figures") for _, drawn in sections for figure in drawn}
    html = _render(
        title=title,
        answers=list_answers(evidence),
        leader=say_leader(evidence),
        average=METHOD_NAMES["average"],
        agreement=judge_approaches(evidence),
        nearest=group_nearest(evidence),
        tests=list_tests(evidence),
        origins=sum_origins(evidence),
        suspicions=evidence.suspicions,
        cautions=find_cautions(evidence, lawful=comparison is not None),
        notes=list_notes(evidence),
        parameters=list_parameters(evidence),
        confidence=" and ".join(sorted({f"{fit.confidence:.0%}" for fit in evidence.fits.values() if fit.bootstrap})),
        sections=sections,
        stills=stills,
        specs={figure.name: figure.page_spec() for _, drawn in sections for figure in drawn},
        tasks=list_targets(downstream) if downstream else None,
        compared=compared,
        fits=summarize_fits(evidence),
        refused=list_refused(evidence),
        runs=list_runs(evidence),
        plan=list_plan(plan) if plan else None,
        dropped=list_dropped(plan) if plan else None,
        assumptions=plan.assumptions if plan else (),
        provenance=list_provenance(observations.source, provenance),
        commands=commands,
    )
    path = Path(out_dir) / "report.html"
    write_json(path, html)
    return path


def _draw_sections(evidence: Evidence) -> list[tuple[str, list[Figure]]]:
    """The figures in reading order under their headings; a heading without a figure is left out."""
    if not len(evidence.points):
        return []
    drawn: list[tuple[str, Sequence[Figure | None]]] = [
        (_isoflop_heading(evidence), [draw_isoflop(evidence)]),
        ("Envelope of the sizes", [draw_envelope(evidence)]),
        ("How size and tokens should grow", draw_optima(evidence)),
        ("What loss to expect", [draw_loss_law(evidence)]),
        ("Training", [draw_training(evidence)]),
        ("Residuals", draw_residuals(evidence)),
        ("Loss surface", [draw_contour(evidence)]),
    ]
    kept = [(heading, [figure for figure in figures if figure is not None]) for heading, figures in drawn]
    return [(heading, figures) for heading, figures in kept if figures]


def _isoflop_heading(evidence: Evidence) -> str:
    return "IsoFLOP curves" if evidence.points["budget_C"].notna().any() else "What was measured"


def _write_still(figure: Figure, folder: Path) -> str:
    """Save a figure as SVG and PNG; the SVG as a data URL for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    svg = _to_svg(figure.static_spec())
    (folder / f"{figure.name}.svg").write_text(svg)
    (folder / f"{figure.name}.png").write_bytes(vl_convert.svg_to_png(svg, scale=PNG_SCALE))
    still = _to_svg(figure.still_spec())
    return "data:image/svg+xml;base64," + base64.b64encode(still.encode()).decode()


def _to_svg(spec: dict[str, Any]) -> str:
    """The picture, with clip paths numbered from one: the converter counts on through a whole process."""
    svg = vl_convert.vegalite_to_svg(spec)
    ids = {name: f"clip_{number}" for number, name in enumerate(dict.fromkeys(CLIP_ID.findall(svg)), start=1)}
    return CLIP_ID.sub(lambda found: ids[found[0]], svg)


def _render(**values: Any) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("page.html.j2"))
    themes = {"light": theme(dark=False), "dark": theme(dark=True)}
    return template.render(
        **values,
        themes=themes,
        css=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")),
        vega=Markup(_vega()),
    )


def _asset(name: str) -> str:
    return files("jaxscale.report").joinpath(name).read_text()


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vegaEmbed as one script that cannot close its own tag; kept, as it takes a second."""
    path = Path(f"~/.cache/jaxscale/vega-{version('vl-convert-python')}.js").expanduser()
    if path.is_file():
        return path.read_text()
    script = vl_convert.javascript_bundle(snippet="window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    with suppress(OSError):  # a home that cannot be written only costs that second
        write_json(path, script)
    return script
