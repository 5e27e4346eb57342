"""Checkpoints and their task scores from a table or a study folder: which rows are fitted, which are targets.

A row is a (run, checkpoint, task). Columns: run, task, nll (of the correct answer, normalized), accuracy (a fraction),
N and D or C or all three; optional step, loss (general validation loss), items, chance, family, role, nll_unit.
A given C wins; 6 N D stands in where the column is absent. A target row may lack nll and accuracy: a model not yet
trained. Expressions select on the table's own names, as `where` of every other verb.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.downstream.study import is_evaluated, read_evaluations
from jaxscale.errors import MisuseError
from jaxscale.source import read_raw
from jaxscale.where import column_of, select_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Rows", "read_rows"]

NEEDED = ("run", "task", "nll", "accuracy")
NUMBERS = ("N", "D", "C", "nll", "accuracy", "loss", "step", "items", "chance")
COLUMNS = (*NEEDED, "N", "D", "C", "step", "loss", "items", "chance", "family", "role", "nll_unit")
PER_UNIT = {"nats": 1.0, "bits_per_byte": float(np.log(2.0))}
"""Nats in one of each unit; both are taken per byte where they meet in one table."""


@dataclass(frozen=True)
class Rows:
    """Usable rows in canonical columns with masks `fit` and `target`, what was refused, and where it came from."""

    frame: pd.DataFrame
    fit: np.ndarray
    target: np.ndarray
    refused: tuple[dict[str, Any], ...]
    source: dict[str, Any]


def read_rows(
    source: str | Path | pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    fit_where: str | None = None,
    target_where: str | None = None,
    nll_unit: str | None = None,
) -> Rows:
    """Rows of a CSV, Parquet, DataFrame or study folder with evals.jsonl; MisuseError names what is wrong.

    Without expressions the roles of a study decide (grid fits, holdout is the target); a table without roles has all
    its rows fitted. One expression alone: what it does not select is the other part, except that `fit_where` alone
    leaves no targets.
    """
    raw, path = _load(source)
    table = _rename(raw, dict(columns or {}))
    fit, target = _masks(raw, table, fit_where, target_where)
    frame = _numbers(table, fit | target, nll_unit)
    refused = _refuse(frame, fit, target)
    bad = np.isin(np.arange(len(frame)), [row["row"] for row in refused])
    used = {"rows_fitted": int((fit & ~bad).sum()), "rows_target": int((target & ~bad).sum())}
    record = {"path": str(path) if path else "DataFrame", "rows_total": len(raw), **used, "rows_refused": refused,
              "columns": dict(columns or {}), "fit_where": fit_where, "target_where": target_where}  # fmt: skip
    kept = (fit | target) & ~bad
    if not (fit & ~bad).any():
        why = f"row {refused[0]['row']}: {refused[0]['reason']}" if refused else _say_none(fit_where)
        raise MisuseError(f"fit rows: none of {len(raw)} rows can be fitted: {why}")
    return Rows(frame[kept].reset_index(drop=True), fit[kept], target[kept], tuple(refused), record)


def _load(source: str | Path | pd.DataFrame) -> tuple[pd.DataFrame, Path | None]:
    if isinstance(source, str | Path) and is_evaluated(Path(source)):
        return read_evaluations(Path(source)), Path(source)
    if isinstance(source, str | Path) and Path(source).is_dir():
        raise MisuseError(f"{source}: no evals.jsonl in any of its runs; declare recipe.evals and run the study, or "
                          f"give a table")  # fmt: skip
    return read_raw(source)


def _rename(raw: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    import pandas as pd

    for name in columns:
        if name not in COLUMNS:
            raise MisuseError(f"columns: {name!r} is no column of this verb; they are {', '.join(COLUMNS)}")
    has = {name: columns.get(name, name) for name in COLUMNS if name in columns or name in raw.columns}
    for name in NEEDED:
        if name not in has:
            raise MisuseError(f"columns: {name} is missing; map it as {name}=NAME, the table has "
                              f"{', '.join(map(str, raw.columns))}")  # fmt: skip
    if "C" not in has and not {"N", "D"} <= has.keys():
        raise MisuseError("columns: neither C nor both N and D are there; map them as N=NAME D=NAME C=NAME")
    return pd.DataFrame({name: column_of(raw, theirs, "columns") for name, theirs in has.items()})


def _masks(
    raw: pd.DataFrame, table: pd.DataFrame, fit_where: str | None, target_where: str | None
) -> tuple[np.ndarray, np.ndarray]:
    every = np.ones(len(raw), bool)
    if fit_where is None and target_where is None:
        if "role" not in table or not (table["role"] == "grid").any():
            return every, ~every
        return (table["role"] == "grid").to_numpy(), (table["role"] == "holdout").to_numpy()
    target = select_rows(raw, target_where) if target_where else ~every
    fit = select_rows(raw, fit_where) if fit_where else ~target
    if target_where and not target.any():
        raise MisuseError(f"target-where {target_where!r}: no row is a target; it selects none of {len(raw)} rows")
    if (fit & target).any():
        raise MisuseError(f"target-where: row {int(np.argmax(fit & target))} is a target and fitted too; a run cannot "
                          f"foretell itself, make the expressions disjoint")  # fmt: skip
    return fit, target


def _numbers(table: pd.DataFrame, used: np.ndarray, nll_unit: str | None) -> pd.DataFrame:
    """Numbers where numbers belong, one unit of NLL, and C where it is not given."""
    import pandas as pd

    frame = table.copy()
    for name in NUMBERS:
        if name in frame:
            frame[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    for name in ("run", "task"):
        frame[name] = table[name].astype(str)
    if "C" not in frame:
        frame["C"] = 6.0 * frame["N"] * frame["D"]
    _check_range(frame, used)
    return _one_unit(frame, used, nll_unit)


def _check_range(frame: pd.DataFrame, used: np.ndarray) -> None:
    """Accuracy and chance are fractions: outside of [0, 1] the whole column is something else."""
    for name, hint in (("accuracy", "is it a percentage? divide by 100"), ("chance", "give a fraction, as in 0.25")):
        if name not in frame:
            continue
        values = frame[name].to_numpy()
        wrong = used & ((values < 0) | (values > 1))
        if wrong.any():
            row = int(np.argmax(wrong))
            hint = hint if values[row] > 1 else "it must lie between 0 and 1"
            raise MisuseError(f"{name}: row {row} has {values[row]:g}, outside 0 to 1; {hint}")


def _one_unit(frame: pd.DataFrame, used: np.ndarray, nll_unit: str | None) -> pd.DataFrame:
    """Rows in several units become one, where it is said which; a single unit needs no word, it cancels."""
    if nll_unit is not None and nll_unit not in PER_UNIT:
        raise MisuseError(f"nll-unit {nll_unit!r} is unknown; use one of {', '.join(PER_UNIT)}")
    if "nll_unit" not in frame:
        return frame.assign(nll_unit=nll_unit or "as given")
    given = sorted(set(frame["nll_unit"][used].astype(str)))
    if len(given) > 1 and nll_unit is None:
        raise MisuseError(f"nll-unit: rows are in {' and '.join(given)}; state the one to bring them to, as --nll-unit "
                          f"bits_per_byte")  # fmt: skip
    unknown = [unit for unit in given if unit not in PER_UNIT]
    if nll_unit is None or given == [nll_unit]:
        return frame
    if unknown:
        raise MisuseError(f"nll-unit: rows are in {unknown[0]!r}, which is none of {', '.join(PER_UNIT)}; bring "
                          f"them to one unit")  # fmt: skip
    factor = frame["nll_unit"].astype(str).map(PER_UNIT) / PER_UNIT[nll_unit]
    return frame.assign(nll=frame["nll"] * factor, nll_unit=nll_unit)


def _refuse(frame: pd.DataFrame, fit: np.ndarray, target: np.ndarray) -> list[dict[str, Any]]:
    """Rows without a usable number, with the reason; a target needs only what places it."""
    reasons: dict[int, str] = {}
    for name in ("N", "D", "C"):
        if name in frame:
            for row in np.flatnonzero((fit | target) & ~(frame[name] > 0) | ((fit | target) & np.isinf(frame[name]))):
                reasons.setdefault(int(row), f"{name} is {frame[name][row]:g}, must be finite and above 0")
    for row in np.flatnonzero(fit & ~((frame["nll"] > 0) & np.isfinite(frame["nll"]))):
        reasons.setdefault(int(row), f"nll is {frame['nll'][row]:g}, must be finite and above 0")
    for row in np.flatnonzero(fit & ~np.isfinite(frame["accuracy"])):
        reasons.setdefault(int(row), "accuracy is missing")
    return [{"row": row, "reason": reasons[row]} for row in sorted(reasons)]


def _say_none(fit_where: str | None) -> str:
    return f"fit-where {fit_where!r} selects none" if fit_where else "the table is empty"
