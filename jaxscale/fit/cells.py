"""Observations -> cells: which rows enter a fit, which budget each belongs to, what repeated seeds say.

A cell is one (budget, N, D, U). Its seeds are averaged (weights count), and the spread of log loss between
them is the only noise estimate that owes nothing to a law. Rows of `role` "holdout" and rows of weight 0
stay out.
A row that repeats another is no second run and is counted once.
Weights are relative: they are divided by their mean, so that noise is that of a run of average weight.
Budgets are the `budget` column where every row has one; else log C is cut wherever neighbours differ by
more than 5%, and a cluster wider than 5% means that the data have no budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from jaxscale.errors import VerdictError
from jaxscale.runs import Observations
from jaxscale.source import BUDGET_WIDTH, as_observations, check_one_variant, label_budgets

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SPREAD", "Cells", "assign_budgets", "gather_cells", "grid_rows", "merge_repeats"]

SPREAD = BUDGET_WIDTH


@dataclass(frozen=True)
class Cells:
    """Arrays of length n, ordered by (C of the budget, N, D).

    `budget` (n,) counts budgets from 0 by rising C, -1 where there are none; `budget_C` their FLOPs;
    `cluster` (n,) numbers the cells that share a parent or a run; `seed_ss` and `seed_dof` are the sum of
    squared deviations of log loss between seeds and its degrees of freedom; `spread` is max C / min C - 1
    of the widest budget.
    """

    N: np.ndarray
    D: np.ndarray
    C: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    budget: np.ndarray
    budget_C: np.ndarray
    cluster: np.ndarray
    seed_ss: np.ndarray
    seed_dof: np.ndarray
    spread: float
    U: np.ndarray
    """Unique tokens (n,); D where the table does not say."""

    def input(self, name: str) -> np.ndarray:
        """N, D, C or U (n,), as a law names its inputs."""
        values: np.ndarray = getattr(self, name)
        return values

    def __len__(self) -> int:
        return len(self.N)

    def take(self, chosen: np.ndarray) -> Cells:
        """Some of the cells, budgets renumbered."""
        parts = {name: getattr(self, name)[chosen] for name in _PER_CELL}
        kept, renumbered = np.unique(parts.pop("budget"), return_inverse=True)
        if not len(self.budget_C):
            return replace(self, **parts, budget=self.budget[chosen])
        return replace(self, **parts, budget=renumbered, budget_C=self.budget_C[kept])

    @property
    def seed_std(self) -> float | None:
        """Pooled standard deviation of log loss between seeds of one cell; None without repeats."""
        dof = self.seed_dof.sum()
        return float(np.sqrt(self.seed_ss.sum() / dof)) if dof else None


_PER_CELL = ("N", "D", "C", "loss", "weight", "budget", "cluster", "seed_ss", "seed_dof", "U")


def grid_rows(frame: pd.DataFrame) -> pd.Series:
    """Mask of the rows a fit may see: all but role "holdout" and weight 0."""
    import pandas as pd

    seen = pd.Series(True, index=frame.index)
    if "role" in frame:
        seen &= frame["role"] != "holdout"
    if "weight" in frame:
        seen &= frame["weight"] > 0
    return seen


def gather_cells(source: Observations | pd.DataFrame, *, role: str = "grid", inputs: Sequence[str] = ()) -> Cells:
    """The cells of a source; role "all" includes held-out rows. VerdictError when none is left.

    `inputs` of the law that is to be fitted: variants of a study that differ in unique tokens alone are rows of one
    law that reads U. MisuseError for any others.
    """
    obs = as_observations(source)
    frame = obs.frame
    if not ("U" in inputs and obs.source.get("variants_differ_in") == ["data.unique_tokens"]):
        check_one_variant(frame)
    frame = merge_repeats(frame[grid_rows(frame)] if role == "grid" else frame)[0]
    if frame.empty:
        raise VerdictError("no row is left to fit: every one is held out (role) or has weight 0")
    budget, spread = assign_budgets(frame)
    return _average(frame.assign(_budget=budget, _cluster=_clusters(frame)), spread)


def merge_repeats(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The rows with each run once, and how many were dropped: counted twice they would shrink every interval.

    A row repeats another of its run_id (and seed) at the same N and D, or, where no run_id is given, one whose
    N, D, C and loss (and seed) agree to the last digit. The first is kept.
    """
    seed = ["seed"] if "seed" in frame else []
    alike = frame.duplicated(["N", "D", "C", "loss", *seed])
    if "run_id" in frame:
        alike = frame.duplicated(["run_id", "N", "D", *seed]).where(frame["run_id"].notna(), alike)
    return frame[~alike], int(alike.sum())


def assign_budgets(frame: pd.DataFrame) -> tuple[np.ndarray, float]:
    """Budget number of each row by rising C, or -1 everywhere, and the widest spread met."""
    C = frame["C"].to_numpy()
    if "budget" in frame and frame["budget"].notna().all():
        labels = frame["budget"].to_numpy()
        named = sorted(set(labels), key=lambda label: float(np.median(C[labels == label])))
        number = np.array([named.index(label) for label in labels])
        return number, _widest(C, number)
    number = label_budgets(C)
    spread = _widest(C, number)
    return (number, spread) if spread <= SPREAD else (np.full(len(C), -1), spread)


def _widest(C: np.ndarray, number: np.ndarray) -> float:
    return max(float(C[number == b].max() / C[number == b].min() - 1) for b in np.unique(number))


def _clusters(frame: pd.DataFrame) -> np.ndarray:
    """Rows that share a parent, else a run_id, are one cluster; a row without either is its own."""
    import pandas as pd

    label = pd.Series([f"row {i}" for i in range(len(frame))], index=frame.index, dtype=object)
    for name in ("run_id", "parent"):
        if name in frame:
            label = frame[name].astype(object).where(frame[name].notna(), label)
    return pd.factorize(label)[0]


def _average(frame: pd.DataFrame, spread: float) -> Cells:
    """Seeds of equal (budget, N, D) as one cell: weighted mean loss, summed weight, spread of log loss."""
    weight = frame["weight"].to_numpy(float) if "weight" in frame else np.ones(len(frame))
    weight = weight / weight.mean()
    unique = frame["U"].fillna(frame["D"]) if "U" in frame else frame["D"]
    frame = frame.assign(_U=np.minimum(unique.to_numpy(float), frame["D"].to_numpy(float)))
    columns = [frame[name].to_numpy(float) for name in ("_budget", "N", "D", "_U")]
    keys, cell = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
    cell = cell.reshape(-1)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(cell, weight * values) / np.bincount(cell, weight)

    log_loss, C = np.log(frame["loss"].to_numpy()), frame["C"].to_numpy()
    deviation = log_loss - mean(log_loss)[cell]
    first = np.unique(cell, return_index=True)[1]
    budget = keys[:, 0].astype(int)
    log_C = mean(np.log(C))
    return Cells(
        N=keys[:, 1], D=keys[:, 2], C=np.exp(log_C), loss=mean(frame["loss"].to_numpy()),
        weight=np.bincount(cell, weight), budget=budget,
        budget_C=np.array([np.exp(log_C[budget == b].mean()) for b in np.unique(budget) if b >= 0]),
        cluster=frame["_cluster"].to_numpy()[first],
        seed_ss=np.bincount(cell, weight * deviation**2), seed_dof=np.bincount(cell) - 1.0, spread=spread,
        U=keys[:, 3],
    )  # fmt: skip
