"""The verbs of a study folder that ask and mend: status, collect, reset."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Group
from rich.text import Text

from jaxscale.cli.answer import collect_evidence
from jaxscale.cli.options import parse
from jaxscale.cli.tables import make_console, status_table
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.runs import Plan, write_json
from jaxscale.sweep import CellStatus, read_plan, read_status, reset_cell

if TYPE_CHECKING:
    from jaxscale.register.watch import Watch

__all__ = ["collect", "reset", "status"]


@dataclass(frozen=True)
class StatusOptions:
    """Where to look."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Study folder."""
    watch: bool = False
    """Keep the table live until every cell has ended."""
    register: Path = Path("forecasts.jsonl")
    """Register of forecasts: a cell at a registered target is shown beside its band. Not there: nothing is said."""
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
        watches = _watch(options, planned, statuses)
        console.print(_show(statuses, planned.study, watches))
        if options.out is not None:
            write_json(options.out, json.dumps(_status_rows(statuses, watches), indent=1))
        return 0
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            statuses = read_status(options.directory, planned.cells)
            live.update(_show(statuses, planned.study, _watch(options, planned, statuses)), refresh=True)
            if all(s.state not in ("planned", "running") for s in statuses):
                return 0
            time.sleep(1.0)


def _watch(options: StatusOptions, planned: Plan, statuses: Sequence[CellStatus]) -> list[Watch]:
    """The cells that a registered forecast speaks of, beside each such forecast."""
    if not options.register.is_file():
        return []
    from jaxscale.register.chain import read_register
    from jaxscale.register.watch import watch_cells

    register = read_register(options.register)
    if register.breaks:
        raise VerdictError(f"{options.register}: its chain is broken at record {register.breaks[0].line}; `jaxscale "
                           f"register check` says how; give --register another, or none")  # fmt: skip
    return watch_cells(options.directory, planned, statuses, register)


def _show(statuses: list[CellStatus], title: str, watches: Sequence[Watch]) -> Group:
    """The table, and under it a line for every cell and forecast that speaks of it."""
    return Group(status_table(statuses, title), *(Text(str(watch)) for watch in watches))


def _status_rows(statuses: Sequence[CellStatus], watches: Sequence[Watch]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [
        {
            "run_id": status.cell.run_id,
            "role": status.cell.role,
            "budget": status.cell.spec.budget_flops,
            "N": status.cell.n_params,
            "D": status.cell.spec.tokens,
            "seed": status.cell.spec.seed,
            "parent": status.cell.spec.parent or None,
            "paid_flops": status.result.paid_flops if status.result else None,
            "state": status.state,
            "reason": status.reason,
            "step": status.step,
            "steps": status.cell.spec.steps,
            "loss": status.loss,
            "mfu": status.result.mfu if status.result else None,
        }
        for status in statuses
    ]
    for row in rows:
        told = [watch.to_plain() for watch in watches if watch.status.cell.run_id == row["run_id"]]
        if told:
            row |= {"forecast": told[-1], "forecasts": told}
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
    observations = collect_evidence(options.directory, console, allow_mixed=options.allow_mixed)
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
    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Run ids, or their beginnings."""
    censored: bool = False
    """Every run that was stopped as hopeless; `train --all`, or its sweep without --stop-hopeless, trains it anew."""


def reset(argv: list[str]) -> int:
    """Put cells back to planned; their folders are removed. A trunk takes the branches along that failed with it."""
    options = parse(ResetOptions, argv, "reset", "Put ended cells back to planned: their folders are removed.\n\n"
                    "example: jaxscale reset runs/quickstart 3f2a91")  # fmt: skip
    planned = read_plan(options.directory)
    asked = [planned.find_cell(run_id) for run_id in options.runs]
    if options.censored:
        stopped = [one.cell for one in read_status(options.directory, planned.cells) if one.state == "censored"]
        asked += [cell for cell in stopped if cell not in asked]
    if not asked and not options.censored:
        raise MisuseError("name at least one run to put back; `jaxscale status DIR` lists the ids")
    if not asked:
        print("no run is censored")
    trunks = {cell.run_id for cell in asked if cell.role == "trunk"}
    branches = [cell for cell in planned.cells if cell.spec.parent in trunks and cell not in asked]
    orphans = [status.cell for status in read_status(options.directory, branches) if status.state == "failed"]
    for cell in [*asked, *orphans]:
        reset_cell(options.directory, cell)
        print(f"{cell.run_id}: planned{f', a branch of {cell.spec.parent}' if cell in orphans else ''}")
    return 0
