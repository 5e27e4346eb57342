"""Observations -> training curves: which rows belong to one run, and which of them are evidence.

The schedule of a run is laid out for its own end: at half its tokens the learning rate is still high, and
the loss lies above what a run planned for half the tokens would reach (Hoffmann et al. 2022, sec. 3.1; Porian
et al. 2024). So only the last row of a run counts, its own horizon, unless the caller says otherwise.
A decayed branch of a trunk is a run with a run_id of its own; its `parent` names the trunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import VerdictError
from jaxscale.fit.cells import Cells, gather_cells, grid_rows
from jaxscale.runs import Observations
from jaxscale.source import check_one_variant

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "Runs", "gather_runs"]


@dataclass(frozen=True)
class Run:
    """One curve by rising D: log C, log D and log loss (points,); runs of one `cluster` share a trunk."""

    name: str
    cluster: int
    N: float
    log_C: np.ndarray
    log_D: np.ndarray
    log_loss: np.ndarray


@dataclass(frozen=True)
class Runs:
    """All curves, the cells of their ends, and what was done to the rows.

    `N` (sizes,) rises; `log_rate` (sizes,) is the log of C / D, FLOPs a token. `merged` rows repeated a
    checkpoint, `intermediate` rows lie before the end of their run. `refused`: {"run_id", "reason"}.
    """

    runs: tuple[Run, ...]
    ends: Cells
    N: np.ndarray
    log_rate: np.ndarray
    merged: int
    intermediate: int
    refused: tuple[dict[str, Any], ...]
    named: bool


def gather_runs(obs: Observations, *, by_size: bool = False) -> Runs:
    """Curves of a table with run_id, N, D, C, loss; without run_id every row is a run.

    `by_size`: without run_id, rows of one N are one curve instead. Rows that repeat a checkpoint (run, N, D)
    become their mean. VerdictError where no run is left.

    >>> import pandas as pd
    >>> from jaxscale.source import as_observations
    >>> table = pd.DataFrame({"run": "r", "N": 1e6, "D": [2e7, 1e7, 2e7], "loss": [3.0, 3.5, 3.0]})
    >>> runs = gather_runs(as_observations(table))
    >>> len(runs.runs[0].log_D), runs.merged, runs.intermediate
    (2, 1, 1)
    """
    frame = obs.frame[grid_rows(obs.frame)]
    check_one_variant(frame)
    if frame.empty:
        raise VerdictError("no row is left to fit: every one is held out (role) or has weight 0")
    named = "run_id" in frame and bool(frame["run_id"].notna().any())
    table, merged = _merge(frame.assign(_run=_label(frame, by_size)))
    reasons = {name: reason for name, rows in table.groupby("_run", sort=False) if (reason := _find_fault(rows))}
    refused = tuple({"run_id": str(name), "reason": reason} for name, reason in reasons.items())
    table = table[~table["_run"].isin(list(reasons))]
    if table.empty:
        raise VerdictError(f"no run is left: {refused[0]['run_id']}: {refused[0]['reason']}")
    ends = table[~table.duplicated("_run", keep="last")]
    N, size = np.unique(table["N"].to_numpy(), return_inverse=True)
    rate = np.log(table["C"].to_numpy() / table["D"].to_numpy())
    return Runs(
        runs=tuple(_read_run(rows) for _, rows in table.groupby("_run", sort=False)),
        ends=gather_cells(replace(obs, frame=ends.drop(columns=["_run", "_cluster", "role"], errors="ignore"))),
        N=N, log_rate=np.bincount(size, rate) / np.bincount(size), merged=merged,
        intermediate=len(table) - len(ends), refused=refused, named=named,
    )  # fmt: skip


def _label(frame: pd.DataFrame, by_size: bool) -> pd.Series:
    """The run of every row: run_id; a row without one stands alone, or with its size."""
    import pandas as pd

    alone = [f"N = {N:.6g}" if by_size else f"row {row}" for row, N in zip(frame.index, frame["N"], strict=True)]
    label = pd.Series(alone, index=frame.index, dtype=object)
    return frame["run_id"].astype(object).where(frame["run_id"].notna(), label) if "run_id" in frame else label


def _merge(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """One row a checkpoint, sorted by run and D: means of C and loss, the first of everything else."""
    import pandas as pd

    names = {name: "first" for name in frame.columns if name not in ("_run", "N", "D")}
    table = frame.groupby(["_run", "N", "D"], sort=False, as_index=False).agg(names | {"C": "mean", "loss": "mean"})
    label = table["_run"]
    if "parent" in table:
        label = table["parent"].astype(object).where(table["parent"].notna(), label)
    table["_cluster"] = pd.factorize(label)[0]
    return table.sort_values(["N", "_run", "D"], kind="stable", ignore_index=True), len(frame) - len(table)


def _find_fault(rows: pd.DataFrame) -> str | None:
    """Why a run is no curve; None where it is."""
    N, C = rows["N"].to_numpy(), rows["C"].to_numpy()
    if np.ptp(N) > 0:
        return f"N changes from {N.min():.6g} to {N.max():.6g} within the run; give each size a run_id of its own"
    falls = np.flatnonzero(np.diff(C) <= 0)
    if len(falls):
        i = int(falls[0])
        return f"C does not rise with D ({C[i]:.6g}, then {C[i + 1]:.6g}); check both columns"
    return None


def _read_run(rows: pd.DataFrame) -> Run:
    first = rows.iloc[0]
    log_C, log_D, log_loss = (np.log(rows[name].to_numpy(float)) for name in ("C", "D", "loss"))
    return Run(str(first["_run"]), int(first["_cluster"]), float(first["N"]), log_C, log_D, log_loss)
