"""The verbs of a study folder: status, collect, reset, report; and the analysis that ends every run."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from jaxscale.cli.options import parse
from jaxscale.cli.tables import make_console, status_table
from jaxscale.config import Study
from jaxscale.errors import JaxscaleError, MisuseError
from jaxscale.runs import Observations, Plan, from_plain, write_json
from jaxscale.sweep import CellStatus, read_plan, read_status, reset_cell

__all__ = ["analyse", "collect", "report", "reset", "status"]


@dataclass(frozen=True)
class StatusOptions:
    """Where to look."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Study folder."""
    watch: bool = False
    """Keep the table live until every cell has ended."""
    out: Path | None = None
    """Also write the table as JSON here."""


def status(argv: list[str]) -> int:
    """Table of cells: state, progress, loss."""
    options = parse(StatusOptions, argv, "status", "Table of cells: state, progress, loss, time.\n\n"
                    "example: jaxscale status runs/quickstart --watch")  # fmt: skip
    planned = read_plan(options.directory)
    console = make_console()
    if not options.watch:
        statuses = read_status(options.directory, planned.cells)
        console.print(status_table(statuses, planned.study))
        if options.out is not None:
            write_json(options.out, json.dumps(_status_rows(statuses), indent=1))
        return 0
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            statuses = read_status(options.directory, planned.cells)
            live.update(status_table(statuses, planned.study), refresh=True)
            if all(s.state not in ("planned", "running") for s in statuses):
                return 0
            time.sleep(1.0)


def _status_rows(statuses: Sequence[CellStatus]) -> dict[str, Any]:
    rows = [
        {
            "run_id": status.cell.run_id,
            "role": status.cell.role,
            "budget": status.cell.spec.budget_flops,
            "N": status.cell.n_params,
            "D": status.cell.spec.tokens,
            "seed": status.cell.spec.seed,
            "state": status.state,
            "reason": status.reason,
            "step": status.step,
            "steps": status.cell.spec.steps,
            "loss": status.loss,
        }
        for status in statuses
    ]
    return {"schema": "jaxscale.status/1", "rows": rows}


@dataclass(frozen=True)
class CollectOptions:
    """Which folder, and what may be mixed."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Study folder."""
    allow_mixed: bool = False
    """Use runs together that differ in text, precision, device or version."""
    out: Path | None = None
    """Also write rows and refusals as JSON here."""


def collect(argv: list[str]) -> int:
    """Write observations.csv: finished runs as evidence, refused ones with their reason."""
    options = parse(CollectOptions, argv, "collect", "Finished runs as observations.csv, refused ones named.\n\n"
                    "example: jaxscale collect runs/quickstart")  # fmt: skip
    console = make_console()
    observations = _collect(options.directory, console, allow_mixed=options.allow_mixed)
    if options.out is not None:
        rows = json.loads(observations.frame.to_json(orient="records"))
        plain = {"schema": "jaxscale.observations/1", "rows": rows, "refused": observations.refused}
        write_json(options.out, json.dumps(plain, indent=1))
    return 0 if len(observations) else 1


@dataclass(frozen=True)
class ResetOptions:
    """Which cells to put back."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Study folder."""
    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run ids, or their beginnings."""


def reset(argv: list[str]) -> int:
    """Put cells back to planned; their folders are removed."""
    options = parse(ResetOptions, argv, "reset", "Put ended cells back to planned: their folders are removed.\n\n"
                    "example: jaxscale reset runs/quickstart 3f2a91")  # fmt: skip
    planned = read_plan(options.directory)
    if not options.runs:
        raise MisuseError("name at least one run to put back; `jaxscale status DIR` lists the ids")
    for cell in [planned.find_cell(run_id) for run_id in options.runs]:
        reset_cell(options.directory, cell)
        print(f"{cell.run_id}: planned")
    return 0


@dataclass(frozen=True)
class ReportOptions:
    """What to report on."""

    source: Annotated[Path, tyro.conf.Positional]
    """Study folder, or a FIT.json of data from outside."""
    out: Path | None = None
    """Folder for report.html and figures/; default: the study folder, or the FIT.json's."""


def report(argv: list[str]) -> int:
    """Rebuild the report of a study folder, or make one for a FIT.json."""
    options = parse(ReportOptions, argv, "report", "Everything as one page, with figures as SVG and PNG.\n\n"
                    "example: jaxscale report runs/quickstart")  # fmt: skip
    console = make_console()
    command = f"jaxscale report {shlex.join(argv)}"
    if options.source.is_dir():
        return analyse(options.source, read_plan(options.source), console, command, out=options.out)
    return _report_fit(options, console, command)


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
    page = write_report(
        options.out or options.source.parent,
        title=Path(source["path"]).stem,
        plan=None,
        observations=observations,
        fits=fits,
        forecast=forecast_optimum(found, flops=_targets((), observations)) if any(f.exponents for f in fits) else None,
        provenance={"source": source["path"], "source_sha256": source["sha256"]},
        commands=[command],
    )
    console.print(f"report: {page}", soft_wrap=True)
    return 0


def _reading(source: dict[str, Any]) -> dict[str, Any]:
    """How the fit read its table, to read it the same way again."""
    return {key: source[key] for key in ("columns", "where") if source.get(key)}


def _collect(folder: Path, console: Console, *, allow_mixed: bool = False) -> Observations:
    from jaxscale.collect import collect_runs

    observations = collect_runs(folder, allow_mixed=allow_mixed)
    write_json(folder / "observations.csv", observations.frame.to_csv(index=False))
    console.print(f"evidence: {len(observations)} runs, {len(observations.refused)} refused")
    for row in observations.refused:
        console.print(f"  refused {row['run_id']}: {row['reason']}", soft_wrap=True, markup=False)
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
    """Collect, fit, forecast, backtest, report: 0 when the report stands."""
    from jaxscale.backtest import backtest_fit
    from jaxscale.fit import fit_isoflop, fit_parametric
    from jaxscale.fit.solver import keep_programs
    from jaxscale.forecast import forecast_optimum

    keep_programs()
    study = from_plain(planned.config, Study)
    observations = _collect(folder, console)
    if not len(observations):
        console.print("nothing to fit: no run is done")
        return 1
    fits = [
        fit
        for fit in (
            _attempt(console, lambda: fit_isoflop(observations, bootstrap=study.bootstrap)),
            _attempt(console, lambda: fit_parametric(observations, law="chinchilla", bootstrap=study.bootstrap)),
        )
        if fit is not None
    ]
    for fit in fits:
        write_json(folder / "fits" / f"{fit.method}.json", fit.to_json())
        console.print(str(fit))
    usable = [fit for fit in fits if fit.exponents]
    forecasts = [forecast_optimum(fit, flops=_targets(study.forecast_flops, observations)) for fit in usable]
    if forecasts:
        write_json(folder / "forecast.json", forecasts[0].to_json())
    for forecast in forecasts:
        console.print(str(forecast))
    backtest = _attempt(console, lambda: backtest_fit(observations))
    if backtest is not None:
        write_json(folder / "backtest.json", backtest.to_json())
        console.print(str(backtest))
    page = _write_page(out or folder, folder, planned, observations, fits, forecasts, backtest, command)
    console.print(f"report: {page}", soft_wrap=True)
    return 0 if usable else 1


def _attempt(console: Console, make: Any) -> Any:
    """A step of the analysis, or None with the reason printed: one step's no does not hide the others."""
    try:
        return make()
    except JaxscaleError as error:
        console.print(f"  not done: {error}", soft_wrap=True, markup=False)
        return None


def _write_page(
    out: Path, folder: Path, planned: Plan, observations: Observations, fits: Any, forecasts: Any, backtest: Any,
    command: str,
) -> Path:  # fmt: skip
    from jaxscale.collect import read_curves
    from jaxscale.report import write_report

    results = [status.result for status in read_status(folder, planned.cells) if status.result]
    provenance = dict(results[0].provenance) if results else {}
    provenance["plan"] = json.dumps({key: planned.config[key] for key in ("name", "seed", "hardware")})
    return write_report(
        out,
        title=planned.study,
        plan=planned,
        observations=observations,
        fits=fits,
        forecast=forecasts or None,
        backtest=backtest,
        results=results,
        curves=read_curves(folder, planned),
        provenance=provenance,
        commands=[command],
    )
