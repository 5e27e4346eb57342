"""Chip-hours: planned, spent, and what a cap leaves.

    planned = seconds of the plan * chips of plan.hardware / 3600       spent = by the leases (jaxscale/spend.py)

A launch may submit while spent + queued + submitted <= launch.max_chip_hours. Units are taken shortest first, so the
longest are held back: small budgets make a study, the largest alone does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxscale.launch.groups import Unit
from jaxscale.runs import Cell, Plan
from jaxscale.spend import chip_hours

__all__ = ["Costs", "keep_cap", "sum_chip_hours"]


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


def sum_chip_hours(plan: Plan, cells: Iterable[Cell]) -> float:
    """Planned chip-hours of cells together."""
    return sum(chip_hours(plan, cell) for cell in cells)


def keep_cap(units: Sequence[Unit], plan: Plan, left: float | None) -> tuple[list[Cell], list[Cell]]:
    """(cells that `left` chip-hours pay for, cells held back); units shortest first, each whole or not at all."""
    taken: list[Cell] = []
    held: list[Cell] = []
    used = 0.0
    for unit in sorted(units, key=lambda unit: sum(cell.seconds for cell in unit)):
        used += sum_chip_hours(plan, unit)
        (taken if left is None or used <= left else held).extend(unit)
    return taken, held
