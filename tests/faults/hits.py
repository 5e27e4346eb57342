"""What a fault tells of itself, and the looks at processes and evidence that several kinds share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Grid

from jaxscale.collect import collect_runs
from jaxscale.leases import Holding

__all__ = ["PATIENCE_S", "Fault", "Hit", "hit_holder", "lives", "spot_check"]

PATIENCE_S = 60.0
"""Seconds after which a process that was asked to leave counts as hung."""


@dataclass(frozen=True)
class Hit:
    """What a fault did: in words, and the holder that it killed, if it did."""

    what: str
    killed: Holding | None = None
    at_step: int = 0


Fault = Callable[[Grid, random.Random], "Hit | None"]


def hit_holder(grid: Grid, held: Holding, what: str) -> Hit:
    return Hit(f"{what}, run {held.run_id}", held, grid.last_step(held.run_id))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def spot_check(grid: Grid) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What would be evidence at this moment, and what is refused why; a row unlike the reference's is a problem."""
    observations = collect_runs(grid.folder)
    refused = {str(row["run_id"]): str(row["reason"]) for row in observations.refused}
    grid.problems += [f"collect: run {run_id} is refused without a reason" for run_id in refused if not refused[run_id]]
    expected = {row["run_id"]: row for row in collect_runs(grid.bench.reference).frame.to_dict("records")}
    rows = {str(row["run_id"]): row for row in observations.frame.to_dict("records")}
    for run_id, row in rows.items():
        wrong = [name for name in row if name != "seconds" and repr(row[name]) != repr(expected[run_id][name])]
        grid.problems += [f"collect: {name} of run {run_id} is {row[name]!r}, undisturbed {expected[run_id][name]!r}"
                          for name in wrong]  # fmt: skip
    return rows, refused
