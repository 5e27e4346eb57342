"""Which pending cells a launch would submit, as which tasks, and why it leaves the others out.

pending = planned by its folder, in no task that the queue still has, within the spend cap, its trunk not elsewhere
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from jaxscale.config import LaunchConfig, Study
from jaxscale.launch.costs import Costs, keep_cap, sum_chip_hours
from jaxscale.launch.groups import group_tasks, list_units
from jaxscale.launch.ledger import Launch
from jaxscale.launch.queue import QueuedTask, ask_queue
from jaxscale.launch.settings import SlurmSettings
from jaxscale.leases import spent_chip_hours
from jaxscale.plain import from_plain
from jaxscale.runs import Cell, Plan
from jaxscale.spend import remaining_seconds, unit_name
from jaxscale.sweep import CellStatus, read_plan, read_status
from jaxscale.trunks import has_kept

__all__ = ["Held", "Proposal", "propose_launch"]


@dataclass(frozen=True)
class Held:
    """A pending cell that this launch leaves out, and why."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class Proposal:
    """What a launch would submit. The seconds of its cells are those still to train."""

    plan: Plan
    tasks: tuple[tuple[Cell, ...], ...]
    held: tuple[Held, ...]
    queued: tuple[QueuedTask, ...]
    """Tasks of earlier launches that the queue still has."""
    busy: int
    """Cells of those tasks that have not ended, and cells that are being trained by others."""
    ended: int
    costs: Costs
    asked: bool
    """Whether the queue was asked; without Slurm only a dry run is possible."""

    @property
    def ids(self) -> tuple[tuple[str, ...], ...]:
        """Run ids of every task."""
        return tuple(tuple(cell.run_id for cell in task) for task in self.tasks)


def propose_launch(study_dir: Path, settings: SlurmSettings, launches: Sequence[Launch], asks: bool) -> Proposal:
    """What to submit now; `asks`: whether the queue is asked for the tasks of earlier launches."""
    plan = read_plan(study_dir)
    plan.check_tuned()
    rules = from_plain(plan.config, Study).launch
    statuses = read_status(study_dir, plan.cells)
    ended = {status.cell.run_id for status in statuses if status.result is not None}
    queued = _list_queued(launches, ended) if asks else []
    busy = _list_busy(launches, queued, statuses, rules) - ended
    rest = {status.cell.run_id: replace(status.cell, seconds=remaining_seconds(status)) for status in statuses}
    waiting, held = _hold_orphans(study_dir, [c for run_id, c in rest.items() if run_id not in busy | ended], busy)
    coming, spent = sum_chip_hours(plan, (rest[run_id] for run_id in busy)), spent_chip_hours(study_dir)
    cap = rules.max_chip_hours
    taken, costly = keep_cap(list_units(waiting), plan, None if cap is None else cap - spent - coming)
    held += [Held(cell, f"beyond launch.max_chip_hours = {cap:g}") for cell in costly]
    tasks = group_tasks(taken, min(settings.task_minutes * 60, settings.most_seconds or float("inf")))
    held += [Held(cell, f"beyond slurm.max_tasks = {settings.max_tasks}; launch again when tasks have ended")
             for task in tasks[settings.max_tasks :] for cell in task]  # fmt: skip
    costs = Costs(
        spent=spent,
        planned_ended=sum_chip_hours(plan, (cell for cell in plan.cells if cell.run_id in ended)),
        queued=coming,
        submitted=sum_chip_hours(plan, chain.from_iterable(tasks[: settings.max_tasks])),
        held=sum_chip_hours(plan, (one.cell for one in held)),
        cap=cap,
        unit=unit_name(plan),
    )
    held.sort(key=lambda one: one.cell.seconds)
    tasks = tasks[: settings.max_tasks]
    return Proposal(plan, tuple(tasks), tuple(held), tuple(queued), len(busy), len(ended), costs, asks)


def _list_busy(
    launches: Sequence[Launch], queued: Sequence[QueuedTask], statuses: Iterable[CellStatus], rules: LaunchConfig
) -> set[str]:
    """Cells of the tasks in the queue, and cells that somebody trains.

    One whose holder has been silent for longer than a lease lasts is sent: its worker waits until it may take it over.
    """
    cells_of = {(launch.job_name, i): task for launch in launches for i, task in enumerate(launch.tasks)}
    waiting = {run_id for task in queued for run_id in cells_of.get((task.job_name, task.task), ())}
    lively = (one for one in statuses if one.state == "running" and one.silent_s <= rules.lease_s)
    return waiting | {status.cell.run_id for status in lively}


def _list_queued(launches: Sequence[Launch], ended: set[str]) -> list[QueuedTask]:
    """What the queue has of the launches that may still have something to train."""
    unfinished = [launch for launch in launches if not ended.issuperset(chain.from_iterable(launch.tasks))]
    return ask_queue([launch.job_name for launch in unfinished])


def _hold_orphans(study_dir: Path, cells: Sequence[Cell], busy: set[str]) -> tuple[list[Cell], list[Held]]:
    """Branches whose trunk trains in another job would only wait for it: they come with a later launch."""
    waits = {cell.run_id for cell in cells if cell.spec.parent in busy
             and not has_kept(study_dir, cell.spec.parent, cell.spec.parent_step)}  # fmt: skip
    held = [Held(cell, f"its trunk {cell.spec.parent} trains in another job; launch again when that has ended")
            for cell in cells if cell.run_id in waits]  # fmt: skip
    return [cell for cell in cells if cell.run_id not in waits], held
