"""The cost of finding out: grid and tuning of every variant, in FLOPs, seconds and dollars; shared runs count once in
the total and for each variant that they serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxscale.compare.cells import VariantCells
from jaxscale.compare.read import Table
from jaxscale.compare.settle import Spent

__all__ = ["count_cost", "count_spent"]


def count_cost(table: Table, names: tuple[str, ...], prices: Mapping[str, float]) -> tuple[dict[str, Any], ...]:
    """A record a variant, and one of all together ("all")."""
    rows = []
    for name in (*names, "all"):
        part = table.frame if name == "all" else table.of(name)
        part = part.drop_duplicates("run_id") if name == "all" and "run_id" in part else part
        sweeps = [table.described.get(one, {}).get("tuning") or {} for one in names if name in (one, "all")]
        tuning = [sweep.get("flops") for sweep in sweeps]
        seconds = part["seconds"].sum() if "seconds" in part and part["seconds"].notna().all() else None
        row: dict[str, Any] = {"variant": name, "runs": len(part), "flops": float(part["C"].sum()), "dollars": None,
                               "tuning_flops": float(sum(filter(None, tuning))) if any(tuning) else None,
                               "seconds": None if seconds is None else float(seconds)}  # fmt: skip
        if name in prices and seconds is not None:
            row["dollars"] = float(seconds) * prices[name] / 3600
        rows.append(row)
    if all(row["dollars"] is not None for row in rows[:-1]):
        rows[-1]["dollars"] = sum(row["dollars"] for row in rows[:-1])
    return tuple(rows)


def count_spent(table: Table, cells: VariantCells) -> Spent:
    """FLOPs of one seed of every cell and of all runs and their tuning, and FLOPs along the axis."""
    frame = table.frame.drop_duplicates("run_id") if "run_id" in table.frame else table.frame
    tuning = sum((one.get("tuning") or {}).get("flops") or 0.0 for one in table.described.values())
    b, a = np.polyfit(cells.log_x, cells.log_C, 1)
    return Spent(float(np.exp(cells.log_C).sum()), float(frame["C"].sum()) + tuning, float(a), float(b))
