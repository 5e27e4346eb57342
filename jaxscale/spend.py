"""What a study's runs have cost in chip-hours and may still cost: the ledger of leases against `launch.max_chip_hours`.

    spent      sum over all leases of seconds * chips, killed and repeated attempts included
    reserved   what the runs that are held now have left by the plan
    affords    spent + reserved + the run's own planned rest <= cap

A plan is an estimate: a run that outruns it is saved and stopped when `spent` reaches the cap, so that the cap is
overdrawn by what all workers use between two signs of life at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxscale.config import Study
from jaxscale.hardware import parse_hardware
from jaxscale.leases import spent_chip_hours
from jaxscale.plain import from_plain
from jaxscale.runs import Cell, Plan
from jaxscale.sweep import CellStatus, read_status

__all__ = ["Purse", "Spending", "chip_hours", "read_spending", "remaining_seconds", "unit_name"]


@dataclass(frozen=True)
class Spending:
    """Chip-hours (CPU: core-hours) of a study."""

    planned: float
    """Of the whole plan."""
    spent: float
    reserved: float
    """Planned rest of the runs that are held now."""
    left: float
    """Planned rest of the runs that wait."""
    cap: float | None
    unit: str
    """core-hours on CPU, chip-hours elsewhere."""


def read_spending(study_dir: Path, plan: Plan, statuses: Sequence[CellStatus] | None = None) -> Spending:
    """Where a study stands; `statuses` saves reading them once more."""
    rest = {"running": 0.0, "planned": 0.0}
    for status in read_status(study_dir, plan.cells) if statuses is None else statuses:
        if status.state in rest:
            rest[status.state] += remaining_seconds(status) * parse_hardware(plan.hardware).chips / 3600
    spent = spent_chip_hours(study_dir)
    planned = sum(chip_hours(plan, cell) for cell in plan.cells)
    cap = from_plain(plan.config, Study).launch.max_chip_hours
    return Spending(planned, spent, rest["running"], rest["planned"], cap, unit_name(plan))


def unit_name(plan: Plan) -> str:
    """On CPU a chip is a core."""
    return "core-hours" if parse_hardware(plan.hardware).name == "cpu" else "chip-hours"


def remaining_seconds(status: CellStatus) -> float:
    """Planned seconds of what a cell has not trained yet: all of them for one that is to be made again."""
    spec = status.cell.spec
    if status.state == "planned" and status.step >= spec.steps:
        return status.cell.seconds
    todo = (spec.steps - max(status.step, spec.parent_step)) / (spec.steps - spec.parent_step)
    return status.cell.seconds * min(1.0, max(0.0, todo))


def chip_hours(plan: Plan, cell: Cell) -> float:
    """Planned chip-hours of a cell on the plan's hardware."""
    return cell.seconds * parse_hardware(plan.hardware).chips / 3600


class Purse:
    """The spend cap of a study folder; without one everything is affordable."""

    def __init__(self, study_dir: Path, plan: Plan) -> None:
        self.study_dir, self.plan = Path(study_dir), plan
        self.cap = from_plain(plan.config, Study).launch.max_chip_hours

    def affords(self, cells: tuple[Cell, ...]) -> bool:
        """Whether these cells, of which nobody else holds one, fit beside what is spent and reserved."""
        if self.cap is None:
            return True
        now = read_spending(self.study_dir, self.plan)
        own = sum(chip_hours(self.plan, cell) for cell in cells)
        return now.spent + now.reserved + own <= self.cap

    def is_empty(self) -> bool:
        """Whether all is spent."""
        return self.cap is not None and read_spending(self.study_dir, self.plan).spent >= self.cap
