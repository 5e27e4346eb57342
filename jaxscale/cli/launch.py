"""The verb `launch`: submit the pending cells of a study to a cluster, or show what would be submitted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxscale.cli.options import parse
from jaxscale.cli.tables import make_console
from jaxscale.errors import MisuseError
from jaxscale.format import format_flops, format_seconds
from jaxscale.launch import Launch, Proposal, SlurmSettings, load_settings, plan_launch, submit_launch
from jaxscale.launch.costs import sum_chip_hours
from jaxscale.plain import to_plain, write_json

__all__ = ["launch"]

SETTINGS = Path("launch/slurm.py")
"""Where settings are looked for when none are named."""


@dataclass(frozen=True)
class LaunchOptions:
    """What to launch, and where."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Study folder with a plan.json, under a path that every node sees."""
    on: Literal["slurm"]
    """Cluster; for a TPU pod and SkyPilot see launch/tpu_pod.sh and launch/skypilot.yaml."""
    settings: Path | None = None
    """File with get_settings(); default launch/slurm.py where it exists."""
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    """Each setting can be overridden."""
    dry_run: bool = False
    """Print the script and the tasks, and submit nothing; works without Slurm."""
    out: Path | None = None
    """Also write the launch as JSON here."""


def launch(argv: list[str]) -> int:
    """Submit one job array over the pending cells; asks the queue first, so that no cell is submitted twice."""
    options = _parse(argv)
    console = make_console()
    if options.settings is not None:
        console.print(f"settings: {options.settings}", soft_wrap=True, markup=False)
    if options.dry_run:
        proposal, script = plan_launch(options.directory, options.slurm)
        console.print(script, markup=False, soft_wrap=True)
        if not proposal.asked:
            console.print("Slurm is not on this machine: what is queued already is not known")
        sent = None
    else:
        proposal, sent = submit_launch(options.directory, options.slurm)
    _print_proposal(proposal, console)
    _print_end(options, proposal, sent, console)
    if options.out is not None:
        write_json(options.out, json.dumps(_to_json(proposal, sent), indent=1))
    return 0


def _parse(argv: list[str]) -> LaunchOptions:
    """The settings file gives the defaults, the options override them."""
    file = _find_settings(argv)
    settings = load_settings(file) if file else SlurmSettings()
    about = ("Submit the pending cells of a study as one job array; asks the queue first.\n\n"
             "example: jaxscale launch runs/quickstart --on slurm --slurm.partition gpu --dry-run")  # fmt: skip
    default: Any = LaunchOptions(tyro.MISSING_NONPROP, tyro.MISSING_NONPROP, slurm=settings)
    return replace(parse(LaunchOptions, argv, "launch", about, default), settings=file)


def _find_settings(argv: list[str]) -> Path | None:
    for i, word in enumerate(argv):
        if word == "--settings":
            if i + 1 == len(argv):
                raise MisuseError("--settings: names no file; use --settings launch/slurm.py")
            return Path(argv[i + 1])
        if word.startswith("--settings="):
            return Path(word.partition("=")[2])
    return SETTINGS if SETTINGS.is_file() else None


def _print_proposal(proposal: Proposal, console: Console) -> None:
    if proposal.tasks:
        console.print(_task_table(proposal))
    if proposal.held:
        table = Table(title="held back", title_justify="left")
        for name in ("run", "budget C", "planned"):
            table.add_column(name, justify="right")
        table.add_column("why")
        for held in proposal.held:
            cell = held.cell
            table.add_row(cell.run_id, format_flops(cell.spec.budget_flops), format_seconds(cell.seconds),
                          escape(held.reason))  # fmt: skip
        console.print(table)
    states = Counter(f"{task.state} ({task.reason})" if task.reason not in ("", "None") else task.state
                     for task in proposal.queued)  # fmt: skip
    if states:
        told = ", ".join(f"{count} {state}" for state, count in states.items())
        console.print(f"  in the queue from earlier launches: {told}", markup=False)
    console.print(_tell_costs(proposal))


def _task_table(proposal: Proposal) -> Table:
    unit = proposal.costs.unit
    table = Table(title=f"tasks of {proposal.plan.study}", title_justify="left")
    for name in ("task", "cells", "longest", "planned", unit):
        table.add_column(name, justify="right")
    table.add_column("runs")
    for i, task in enumerate(proposal.tasks):
        seconds = sum(cell.seconds for cell in task)
        ids = " ".join(cell.run_id for cell in task[:4]) + (f" and {len(task) - 4} more" if len(task) > 4 else "")
        table.add_row(str(i), str(len(task)), format_seconds(max(cell.seconds for cell in task)),
                      format_seconds(seconds), f"{sum_chip_hours(proposal.plan, task):.3g}", ids)  # fmt: skip
    return table


def _tell_costs(proposal: Proposal) -> str:
    costs = proposal.costs
    cap = "no cap (launch.max_chip_hours)" if costs.cap is None else f"launch.max_chip_hours {costs.cap:.3g}"
    return (f"  {costs.unit} planned: {costs.submitted:.3g} in this launch, {costs.queued:.3g} under way, "
            f"{costs.held:.3g} held back; {cap}\n"
            f"  {costs.unit} spent: {costs.spent:.3g} so far; {costs.planned_ended:.3g} was planned for the cells "
            f"that have ended")  # fmt: skip


def _print_end(options: LaunchOptions, proposal: Proposal, sent: Launch | None, console: Console) -> None:
    tasks = f"{len(proposal.tasks)} task{'s' * (len(proposal.tasks) != 1)}"
    cells = f"{sum(map(len, proposal.tasks))} cells in {tasks}"
    have, are = ("had", "were") if sent is not None else ("have", "are")
    counts = f"{proposal.ended} of {len(proposal.plan)} cells {have} ended, {proposal.busy} {are} queued or running"
    if sent is not None:
        console.print(f"submitted: {cells} as job {sent.job_id} ({sent.job_name}), "
                      f"launch {sent.number}; {counts}", soft_wrap=True, markup=False)  # fmt: skip
    elif proposal.tasks:
        console.print(f"dry run: {cells}, nothing was submitted; {counts}")
    else:
        console.print(f"nothing to launch: {counts}, {len(proposal.held)} are held back")


def _to_json(proposal: Proposal, sent: Launch | None) -> dict[str, Any]:
    """The record that was written (null: nothing was submitted), with the tasks and costs around it."""
    return {
        "schema": "jaxscale.launch/1",
        "launch": None if sent is None else to_plain(sent),
        "rows": [
            {"task": i, "runs": list(ids), "seconds": sum(cell.seconds for cell in task)}
            for i, (ids, task) in enumerate(zip(proposal.ids, proposal.tasks, strict=True))
        ],
        "held": [{"run_id": held.cell.run_id, "reason": held.reason} for held in proposal.held],
        "queued": [to_plain(task) for task in proposal.queued],
        "costs": to_plain(proposal.costs),
    }
