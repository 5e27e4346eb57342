"""From finished runs to an answer: collect, fit by every approach, forecast, backtest, page. And the verb report.

The declared approach leads whatever the backtest says; its equal-weight average over the approaches stands beside
it, and where they disagree only the average's interval knows (fit/average.py).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from rich.console import Console

from jaxscale.cli.options import parse
from jaxscale.cli.tables import make_console
from jaxscale.config import Study
from jaxscale.errors import JaxscaleError, MisuseError
from jaxscale.plain import from_plain, write_json
from jaxscale.runs import Observations, Plan
from jaxscale.sweep import read_plan, read_status

if TYPE_CHECKING:
    from jaxscale.backtest import Backtest
    from jaxscale.downstream import Downstream
    from jaxscale.fit import Fit, Fits
    from jaxscale.forecast import Forecast

__all__ = ["analyse", "collect_evidence", "report"]

T = TypeVar("T")
BACKTEST_ROUNDS = 200
"""Bootstrap rounds of a backtest's fits: each origin is fitted by every approach anew, and an interval that is
asked only whether it holds a measurement needs fewer."""


@dataclass(frozen=True)
class ReportOptions:
    """What to report on."""

    source: Annotated[Path, tyro.conf.Positional]
    """Study folder, or a FIT.json or FITS.json of data from outside."""
    declared: str | None = None
    """Method or law of a FITS.json that was declared beforehand; default its first fit. A study says its own."""
    out: Path | None = None
    """Folder for report.html and figures/; default: the study folder, or the FIT.json's."""


def report(argv: list[str]) -> int:
    """Rebuild the report of a study folder, or make one for a FIT.json or FITS.json."""
    options = parse(ReportOptions, argv, "report", "Everything as one page, with figures as SVG and PNG.\n\n"
                    "example: jaxscale report runs/quickstart")  # fmt: skip
    console = make_console()
    command = f"jaxscale report {shlex.join(argv)}"
    if not options.source.is_dir():
        return _report_fit(options, console, command)
    if options.declared is not None:
        raise MisuseError("declared: a study declares its law before its runs, as `declared` in the study file")
    return analyse(options.source, read_plan(options.source), console, command, out=options.out)


def _report_fit(options: ReportOptions, console: Console, command: str) -> int:
    from jaxscale.cli.analysis import read_fits
    from jaxscale.fit import Fits
    from jaxscale.forecast import forecast_optimum
    from jaxscale.report import write_report
    from jaxscale.source import read_observations

    found = read_fits(options.source)
    fits = found.fits if isinstance(found, Fits) else (found,)
    source = fits[0].source
    observations = read_observations(source["path"], **_reading(source))
    optimal = any(fit.has_optimum for fit in fits)
    targets = _targets((), observations)
    page = write_report(
        options.out or options.source.parent,
        title=Path(source["path"]).stem,
        plan=None,
        observations=observations,
        fits=found if isinstance(found, Fits) else fits,
        forecast=forecast_optimum(found, flops=targets, declared=options.declared) if optimal else None,
        declared=options.declared,
        provenance={"source": source["path"], "source_sha256": source["sha256"]},
        commands=[command],
    )
    console.print(f"report: {page}", soft_wrap=True)
    return 0


def _reading(source: dict[str, Any]) -> dict[str, Any]:
    """How the fit read its table, to read it the same way again: columns, rows, and conventions."""
    reading = {key: source[key] for key in ("columns", "where", "near") if source.get(key)}
    return reading | (source.get("conventions") or {})


def collect_evidence(folder: Path, console: Console, *, allow_mixed: bool = False) -> Observations:
    """observations.csv of a study folder, with every refusal printed."""
    from jaxscale.collect import collect_runs

    observations = collect_runs(folder, allow_mixed=allow_mixed)
    write_json(folder / "observations.csv", observations.frame.to_csv(index=False))
    rows = observations.frame
    shared = f" as {len(rows)} rows of run and variant" if "variant" in rows else ""
    console.print(f"evidence: {rows['run_id'].nunique()} runs{shared}, {len(observations.refused)} refused")
    for row in observations.refused:
        whose = f" ({', '.join(row['variants'])})" if "variants" in row else ""
        console.print(f"  refused {row['run_id']}{whose}: {row['reason']}", soft_wrap=True, markup=False)
    return observations


def _targets(asked: Sequence[float], observations: Observations) -> list[float]:
    """FLOPs to forecast: as asked, else 10x and 100x the largest budget fitted."""
    import pandas as pd

    frame = observations.frame
    grid = frame[frame["role"] != "holdout"] if "role" in frame else frame
    largest = float(grid["C"].max())
    meant = float(pd.to_numeric(grid["budget"], errors="coerce").max()) if "budget" in grid else largest
    largest = meant if abs(meant / largest - 1) < 0.1 else largest  # a budget may be a name
    return list(asked) or [10 * largest, 100 * largest]


def analyse(folder: Path, planned: Plan, console: Console, command: str, *, out: Path | None = None) -> int:
    """Collect, fit by every approach, backtest, forecast, report: 0 when the report stands on an answer.

    A study with variants is compared instead: no law is that of all of them.
    """
    if planned.variants:
        return _compare(folder, planned, console)
    from jaxscale.fit.solver import keep_programs

    keep_programs()
    study = from_plain(planned.config, Study)
    observations = collect_evidence(folder, console)
    if not len(observations):
        console.print("nothing to fit: no run is done")
        return 1
    fits = _attempt(console, lambda: _fit_every(observations, study, folder, console))
    answered = fits is not None and any(fit.verdict is None for fit in fits.fits)
    backtest = _attempt(console, lambda: _backtest(observations, study, folder, console))
    forecast = _forecast(fits, observations, study, folder, console) if fits is not None and answered else None
    for name, made in (("forecast", forecast), ("backtest", backtest)):
        if made is None:  # an answer of before must not stand beside this page
            (folder / f"{name}.json").unlink(missing_ok=True)
    tasks = _attempt(console, lambda: _forecast_tasks(folder, console))
    page = _write_page(out or folder, folder, planned, observations, fits, forecast, backtest, command, tasks)
    console.print(f"report: {page}", soft_wrap=True)
    return 0 if answered else 1


def _compare(folder: Path, planned: Plan, console: Console) -> int:
    """Collect, the best losses of every variant, and what `jaxscale compare` says of them."""
    from jaxscale.cli.compare import compare_folder
    from jaxscale.cli.tables import best_losses_table

    observations = collect_evidence(folder, console)
    if not len(observations):
        console.print("nothing to compare: no run is done")
        return 1
    console.print(best_losses_table(observations.frame, planned.variants))
    return compare_folder(folder, console, from_plain(planned.config, Study).forecast_flops)


def _attempt(console: Console, make: Callable[[], T]) -> T | None:
    """A step of the analysis, or None with the reason printed: one step's no does not hide the others."""
    try:
        return make()
    except JaxscaleError as error:
        console.print(f"  not done: {error}", soft_wrap=True, markup=False)
        return None


def _fit_every(observations: Observations, study: Study, folder: Path, console: Console) -> Fits:
    """The three approaches, in fits/METHOD.json each, also one without an answer: its verdict is its content."""
    from jaxscale.fit import fit_all
    from jaxscale.fit.agreement import describe_agreement, tabulate_exponents
    from jaxscale.fit.suspect import annotate_fit

    found = fit_all(observations, bootstrap=study.bootstrap, profile=study.bootstrap > 0)
    fits = replace(found, fits=tuple(annotate_fit(fit, observations) for fit in found.fits))
    for fit in fits.fits:
        write_json(folder / "fits" / f"{fit.method}.json", fit.to_json())
    write_json(folder / "fits" / "all.json", fits.to_json())
    lines = [tabulate_exponents(fits.fits), *(describe_agreement(fits.agreement) if fits.agreement else ())]
    lines += [f"{fit.method} has no answer: {fit.verdict}" for fit in fits.fits if fit.verdict]
    lines.append(f"parameters, budgets and notes of every fit: {folder / 'fits'}, and on the page")
    console.print("\n".join(lines), soft_wrap=True, markup=False)
    return fits


def _forecast(fits: Fits, observations: Observations, study: Study, folder: Path, console: Console) -> Forecast:
    from jaxscale.forecast import forecast_optimum

    targets = _targets(study.forecast_flops, observations)
    forecast = forecast_optimum(fits, flops=targets, declared=study.declared)
    write_json(folder / "forecast.json", forecast.to_json())
    console.print(f"\n{forecast}", soft_wrap=True, markup=False)
    return forecast


def _backtest(observations: Observations, study: Study, folder: Path, console: Console) -> Backtest:
    from jaxscale.backtest import backtest_fit
    from jaxscale.fit.together import METHODS

    rounds = min(study.bootstrap, BACKTEST_ROUNDS)
    backtest = backtest_fit(observations, methods=tuple(METHODS), bootstrap=rounds)
    write_json(folder / "backtest.json", backtest.to_json())
    lines = ["", f"backtest: {len(backtest.rows)} predictions of what was held out, intervals of {rounds} rounds"]
    lines += [*backtest.words, f"every prediction: {folder / 'backtest.json'}, and on the page"]
    console.print("\n".join(lines), soft_wrap=True, markup=False)
    return backtest


def _forecast_tasks(folder: Path, console: Console) -> Downstream | None:
    """Task accuracy in two stages, in downstream.json, where the runs of the study were evaluated."""
    from jaxscale.downstream.study import is_evaluated

    if not is_evaluated(folder):
        return None
    from jaxscale.downstream import fit_downstream

    tasks = fit_downstream(folder)
    write_json(folder / "downstream.json", tasks.to_json())
    console.print(f"\n{tasks}", soft_wrap=True, markup=False)
    return tasks


def _write_page(
    out: Path, folder: Path, planned: Plan, observations: Observations, fits: Fits | None,
    forecast: Forecast | None, backtest: Backtest | None, command: str, tasks: Downstream | None,
) -> Path:  # fmt: skip
    from jaxscale.collect import read_curves
    from jaxscale.report import write_report

    results = [status.result for status in read_status(folder, planned.cells) if status.result]
    provenance = dict(results[0].provenance) if results else {}
    provenance["plan"] = json.dumps({key: planned.config[key] for key in ("name", "seed", "hardware")})
    none: Sequence[Fit] = ()
    return write_report(
        out,
        title=planned.study,
        plan=planned,
        observations=observations,
        fits=none if fits is None else fits,
        forecast=forecast,
        backtest=backtest,
        declared=from_plain(planned.config, Study).declared,
        results=results,
        curves=read_curves(folder, planned),
        provenance=provenance,
        commands=[command],
        downstream=tasks,
    )
