"""The verbs of a study folder that gather and mend: collect, reset."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxscale.cli.answer import collect_evidence
from jaxscale.cli.options import parse
from jaxscale.cli.tables import make_console
from jaxscale.errors import MisuseError
from jaxscale.plain import write_json
from jaxscale.sweep import read_plan, read_status, reset_cell

__all__ = ["collect", "reset"]


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
    failed: bool = False
    """Every run that failed or diverged."""
    censored: bool = False
    """Every run that was stopped as hopeless; `train --all`, or its sweep without --stop-hopeless, trains it anew."""


def reset(argv: list[str]) -> int:
    """Put cells back to planned; their folders are removed. A trunk takes the branches along that failed with it."""
    options = parse(ResetOptions, argv, "reset", "Put ended cells back to planned: their folders are removed.\n\n"
                    "example: jaxscale reset runs/quickstart 3f2a91")  # fmt: skip
    planned = read_plan(options.directory)
    asked = [planned.find_cell(run_id) for run_id in options.runs]
    states = {*(("failed", "diverged") if options.failed else ()), *(("censored",) if options.censored else ())}
    ended = [one.cell for one in read_status(options.directory, planned.cells) if one.state in states]
    asked += [cell for cell in ended if cell not in asked]
    if not asked and not states:
        raise MisuseError("name at least one run to put back; `jaxscale status DIR` lists the ids")
    if not asked:
        print(f"no run is {' or '.join(sorted(states))}")
    trunks = {cell.run_id for cell in asked if cell.role == "trunk"}
    branches = [cell for cell in planned.cells if cell.spec.parent in trunks and cell not in asked]
    orphans = [status.cell for status in read_status(options.directory, branches) if status.state == "failed"]
    for cell in [*asked, *orphans]:
        reset_cell(options.directory, cell)
        print(f"{cell.run_id}: planned{f', a branch of {cell.spec.parent}' if cell in orphans else ''}")
    return 0
