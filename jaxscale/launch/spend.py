"""Chip-hours: planned, spent, and what a cap leaves.

    planned = seconds of the plan * chips of plan.hardware / 3600       spent = what the runs have held so far

A launch may submit while spent + queued + submitted <= launch.max_chip_hours. Units are taken shortest first, so the
longest are held back: small budgets make a study, the largest alone does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxscale.hardware import parse_hardware
from jaxscale.launch.groups import Unit
from jaxscale.runs import Cell, Plan
from jaxscale.sweep import CellStatus, read_plan, read_status

__all__ = ["Costs", "chip_hours", "keep_cap", "read_cap", "remaining_seconds", "spent_chip_hours", "unit_name"]


@dataclass(frozen=True)
class Costs:
    """Chip-hours of a study around one launch."""

    spent: float
    """What its runs have used until now."""
    planned_ended: float
    """What the plan said of the runs that have ended."""
    queued: float
    """Planned, still to come from earlier launches."""
    submitted: float
    """Planned, of this launch."""
    held: float
    """Planned, of the cells held back."""
    cap: float | None
    """launch.max_chip_hours."""
    unit: str = "chip-hours"


def unit_name(plan: Plan) -> str:
    """On CPU a chip is a core."""
    return "core-hours" if parse_hardware(plan.hardware).name == "cpu" else "chip-hours"


def read_cap(plan: Plan) -> float | None:
    """launch.max_chip_hours of the plan's study; None where there is none."""
    cap = (plan.config.get("launch") or {}).get("max_chip_hours")
    return None if cap is None else float(cap)


def remaining_seconds(status: CellStatus) -> float:
    """Planned seconds of what a cell has not trained yet."""
    spec = status.cell.spec
    todo = (spec.steps - max(status.step, spec.parent_step)) / (spec.steps - spec.parent_step)
    return status.cell.seconds * min(1.0, max(0.0, todo))


def chip_hours(plan: Plan, seconds: float) -> float:
    """Planned seconds as chip-hours of the plan's hardware."""
    return seconds * parse_hardware(plan.hardware).chips / 3600


def spent_chip_hours(study_dir: Path) -> float:
    """Chip-hours of the runs that have ended, by the seconds of their results."""
    plan = read_plan(study_dir)
    statuses = read_status(study_dir, plan.cells)
    return chip_hours(plan, sum(status.result.seconds for status in statuses if status.result))


def keep_cap(units: Sequence[Unit], plan: Plan, left: float | None) -> tuple[list[Cell], list[Cell]]:
    """(cells that `left` chip-hours pay for, cells held back); units shortest first, each whole or not at all."""
    taken: list[Cell] = []
    held: list[Cell] = []
    used = 0.0
    for unit in sorted(units, key=lambda unit: sum(cell.seconds for cell in unit)):
        used += chip_hours(plan, sum(cell.seconds for cell in unit))
        (taken if left is None or used <= left else held).extend(unit)
    return taken, held
