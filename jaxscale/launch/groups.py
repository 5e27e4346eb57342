"""Pending cells -> tasks: which cells one job of the cluster trains.

    unit    a trunk with its branches (a branch waits for its trunk's states), or one cell
    load    sum of the planned seconds of a task's cells, at most task_minutes; a larger unit is a task of its own
    order   longest task first; in a task trunks first, then longest first

Cells of one `pack_key` are dealt to as few tasks as their seconds need, so that those of a task can train together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxscale.runs import Cell
from jaxscale.sweep import pack_key

__all__ = ["Unit", "group_tasks", "list_units"]

Unit = tuple[Cell, ...]
"""Cells that must share a task."""


def list_units(cells: Sequence[Cell]) -> list[Unit]:
    """Trunks with those of their branches that are here, and every other cell by itself, in the order given."""
    trunks = {cell.run_id for cell in cells if cell.spec.keeps}
    families: dict[str, list[Cell]] = {}
    for cell in cells:
        head = cell.spec.parent if cell.spec.parent in trunks else cell.run_id
        families.setdefault(head, []).append(cell)
    return [tuple(sorted(family, key=_rank)) for family in families.values()]


def _rank(cell: Cell) -> tuple[bool, float]:
    """Trunks first, then longest first."""
    return not cell.spec.keeps, -cell.seconds


def group_tasks(cells: Sequence[Cell], most_seconds: float) -> list[tuple[Cell, ...]]:
    """Tasks of at most `most_seconds` planned seconds each, balanced, longest first."""
    blocks = [block for group in _group_packs(list_units(cells)) for block in _cut_group(group, most_seconds)]
    if not blocks:
        return []
    blocks.sort(key=_sum_seconds, reverse=True)
    fewest = max(1, math.ceil(sum(map(_sum_seconds, blocks)) / most_seconds))
    for count in range(min(fewest, len(blocks)), len(blocks) + 1):
        tasks = _deal(blocks, count)
        if all(len(task) == 1 or sum(map(_sum_seconds, task)) <= most_seconds for task in tasks):
            break
    whole = [tuple(sorted((cell for block in task for cell in block), key=_rank)) for task in tasks]
    return sorted(whole, key=_sum_seconds, reverse=True)


def _group_packs(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units that could train in one program together; a family is a group of its own."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        first = unit[0]
        alone = len(unit) > 1 or first.spec.keeps or first.spec.parent
        groups.setdefault(first.run_id if alone else pack_key(first.spec), []).append(unit)
    return list(groups.values())


def _cut_group(group: Sequence[Unit], most_seconds: float) -> list[Unit]:
    """A group as blocks of at most `most_seconds`, or of one unit, as even as they come."""
    total = sum(map(_sum_seconds, group))
    for count in range(min(len(group), max(1, math.ceil(total / most_seconds))), len(group) + 1):
        dealt = [[cell for unit in part for cell in unit] for part in _deal(group, count)]
        if count == len(group) or all(sum(cell.seconds for cell in part) <= most_seconds for part in dealt):
            return [tuple(part) for part in dealt if part]
    return []


def _deal(units: Sequence[Unit], count: int) -> list[list[Unit]]:
    """Longest first, each to the task with the least so far."""
    tasks: list[list[Unit]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for unit in sorted(units, key=_sum_seconds, reverse=True):
        least = min(range(count), key=lambda i: (loads[i], len(tasks[i])))
        tasks[least].append(unit)
        loads[least] += _sum_seconds(unit)
    return [task for task in tasks if task]


def _sum_seconds(cells: Sequence[Cell]) -> float:
    return sum(cell.seconds for cell in cells)
