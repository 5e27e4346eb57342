"""Runs of all variants -> cells: one size at one budget of one variant, its seeds averaged.

Budgets are those of `fit.cells`: the column `budget`, else clusters of C. Along D or N every value of that axis is a
budget of its own, and a variant has one size (or one number of tokens) at each. Where a cell was trained at several
learning rates its best one counts: the others are its tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.cells import SPREAD, assign_budgets
from jaxscale.format import format_count
from jaxscale.source import label_budgets

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AXES", "VariantCells", "gather_variants"]

AXES = {"C": "FLOPs", "D": "tokens", "N": "parameters"}
ONE_SIZE = 1.05
"""Sizes (or tokens) within this factor are one."""


@dataclass(frozen=True)
class VariantCells:
    """Arrays (m,) by variant, budget and size. `y` mean log loss, `runs` weight of its seeds, `spread` sum of squared
    deviations between them, `repeats` its degrees of freedom; `seeds` the deviation of each seed by name."""

    member: np.ndarray
    budget: np.ndarray
    log_x: np.ndarray
    log_C: np.ndarray
    log_N: np.ndarray
    log_D: np.ndarray
    y: np.ndarray
    runs: np.ndarray
    spread: np.ndarray
    repeats: np.ndarray
    seeds: tuple[dict[Any, float], ...]

    def __len__(self) -> int:
        return len(self.y)

    def group(self, variant: int, budget: int) -> np.ndarray:
        """Indices of the cells of one variant at one budget, sizes rising."""
        return np.flatnonzero((self.member == variant) & (self.budget == budget))


def gather_variants(
    frame: pd.DataFrame, names: tuple[str, ...], axis: str, loss: str = "loss"
) -> tuple[VariantCells, tuple[str, ...]]:
    """Cells of a table with columns variant, N, D, C and `loss` (log of it is compared); and what to know of them.

    VerdictError where the budgets of a variant cannot be told apart; MisuseError where sizes are mixed along D or N.
    """
    import pandas as pd

    if axis not in AXES:
        raise MisuseError(f"x: {axis!r} is no axis; use C, D or N")
    parts = [_label(frame[frame["variant"] == name].assign(_member=i), name, axis) for i, name in enumerate(names)]
    table = pd.concat(parts, ignore_index=True)
    table["_budget"] = _common_budgets(table, axis)
    table, notes = _best_rates(table, loss)
    weight = table["weight"].to_numpy(float) if "weight" in table else np.ones(len(table))
    table = table.assign(_axis=axis, _w=weight / weight.mean(), _y=np.log(table[loss].to_numpy(float)))
    cells = [_average(part) for _, part in table.groupby(["_member", "_budget", "_size"], sort=True)]
    columns = {name: np.array([cell[name] for cell in cells]) for name in cells[0] if name != "seeds"}
    return VariantCells(**columns, seeds=tuple(cell["seeds"] for cell in cells)), notes


def _label(frame: pd.DataFrame, name: str, axis: str) -> pd.DataFrame:
    """Budget and size numbers of the rows of one variant."""
    if axis == "C":
        budget, spread = assign_budgets(frame)
        if (budget < 0).any():
            raise VerdictError(f"variant {name}: C spreads over {spread:.0%} in its widest cluster, a budget may have "
                               f"{SPREAD:.0%}; give a column budget, or --x D or N for one size")  # fmt: skip
        return frame.assign(_own=budget, _size=label_budgets(frame["N"].to_numpy()))
    other = {"D": "N", "N": "D"}[axis]
    budget = label_budgets(frame[axis].to_numpy())
    for number in np.unique(budget):
        values = frame[other].to_numpy()[budget == number]
        if values.max() > ONE_SIZE * values.min():
            at = format_count(frame[axis].to_numpy()[budget == number][0])
            span = f"from {format_count(values.min())} to {format_count(values.max())}"
            raise MisuseError(f"x {axis}: at {axis} = {at} variant {name} has {other} {span}; choose one with --where")
    return frame.assign(_own=budget, _size=0)


def _common_budgets(table: pd.DataFrame, axis: str) -> np.ndarray:
    """Budget numbers that all variants share: equal labels, or an x within a budget's width."""
    x = np.log(table[axis].to_numpy(float))
    if axis == "C" and "budget" in table and table["budget"].notna().all():
        key = table["budget"].to_numpy()
    else:
        middle = table.assign(_x=x).groupby(["_member", "_own"])["_x"].transform("mean").to_numpy()
        key = label_budgets(np.exp(middle - middle.mean()))
    order = sorted(set(key.tolist()), key=lambda one: float(np.median(x[key == one])))
    return np.array([order.index(one) for one in key.tolist()])


def _best_rates(table: pd.DataFrame, loss: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Of a cell at several learning rates, the rows of the best."""
    if "lr" not in table or table["lr"].isna().all():
        return table, ()
    cell = ["_member", "_budget", "_size"]
    mean = table.groupby([*cell, "lr"], dropna=False)[loss].transform("mean")
    best = mean == mean.groupby([table[name] for name in cell]).transform("min")
    several = int((table.groupby(cell)["lr"].nunique() > 1).sum())
    note = f"{several} cells were trained at several learning rates: the best of each counts, the others are its tuning"
    return table[best], (note,) if several else ()


def _average(part: pd.DataFrame) -> dict[str, Any]:
    w, y = part["_w"].to_numpy(), part["_y"].to_numpy()
    share = w / w.sum()
    middle = {f"log_{name}": float(share @ np.log(part[name].to_numpy(float))) for name in "CND"}
    axis = part["_axis"].iloc[0] if "_axis" in part else "C"
    seeds = part["seed"].tolist() if "seed" in part and part["seed"].notna().all() else []
    return {
        "member": int(part["_member"].iloc[0]), "budget": int(part["_budget"].iloc[0]), "log_x": middle[f"log_{axis}"],
        **middle, "y": float(share @ y), "runs": float(w.sum()), "spread": float(w @ (y - share @ y) ** 2),
        "repeats": len(part) - 1.0, "seeds": dict(zip(seeds, y - share @ y, strict=True)) if seeds else {},
    }  # fmt: skip
