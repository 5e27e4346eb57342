"""The runs of a study whose text has several sources -> a learning curve for each, and its loss against another's.

`collect` writes a column loss:NAME for every source of the validation text. Runs of one size are a curve over D; of
a grid the cells with the lowest loss, one a budget, are a curve over C, along which size and data grow together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.composition import SourceComparison, compare_sources
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.source import BUDGET_WIDTH, label_budgets, read_raw
from jaxscale.transfer import TransferFit, fit_transfer
from jaxscale.where import select_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SourceStudy", "list_curves", "study_sources"]

LOSS = "loss:"


@dataclass(frozen=True)
class SourceStudy:
    """One exponent for all sources or one each (`comparison`, None with a `reason`), and loss to loss (`transfers`).

    `along`: D or C, what the curves are over. `transfers`: by (from, to).
    """

    along: str
    comparison: SourceComparison | None
    reason: str
    transfers: Mapping[tuple[str, str], TransferFit]
    schema: str = "jaxscale.composition/1"

    def to_json(self) -> str:
        """As JSON, schema jaxscale.composition/1."""
        told = [{"from": x, "to": y, **json.loads(fit.to_json())} for (x, y), fit in self.transfers.items()]
        compared = json.loads(self.comparison.to_json()) if self.comparison else None
        plain = {"schema": self.schema, "along": self.along, "sources": compared, "reason": self.reason}
        return json.dumps(plain | {"transfers": told}, indent=1)

    def __str__(self) -> str:
        law = str(self.comparison) if self.comparison else f"no law: {self.reason}"
        parts = [f"losses by source over {self.along}", law]
        parts += [f"\nfrom the loss on {x} to that on {y}\n{fit}" for (x, y), fit in self.transfers.items()]
        return "\n".join(parts)


def study_sources(
    source: pd.DataFrame | str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    transfer_from: str | None = None,
    floor: bool = True,
    bootstrap: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> SourceStudy:
    """Compare the sources of a table: with columns loss:NAME (a study's), or long with a column group (`columns`).

    `transfer_from`: also the losses on the other sources as functions of the loss on this one, over all runs.
    MisuseError: neither kind of table, no such source.
    """
    raw, _ = read_raw(source)
    names = [str(name).removeprefix(LOSS) for name in raw.columns if str(name).startswith(LOSS)]
    options: dict[str, Any] = {"bootstrap": bootstrap, "confidence": confidence, "seed": seed}
    if not names:
        if transfer_from is not None:
            raise MisuseError(f"transfer_from: {transfer_from!r}: there is no column {LOSS}NAME; `jaxscale collect` "
                              f"writes them where the validation text has several sources")  # fmt: skip
        found = compare_sources(source, floor=floor, columns=columns, where=where, **options)
        return SourceStudy("D", found, "", {})
    frame = raw[select_rows(raw, where)] if where else raw
    transfers = {} if transfer_from is None else _transfer(frame, names, transfer_from, options)
    curves, along = list_curves(frame)
    try:
        return SourceStudy(along, compare_sources(curves, floor=floor, **options), "", transfers)
    except VerdictError as error:
        return SourceStudy(along, None, str(error), transfers)


def list_curves(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A long table group, D, loss from columns loss:NAME, and what its D is: tokens, or the FLOPs of lowest cells.

    >>> import pandas as pd
    >>> runs = {"N": [1, 2, 1, 2], "D": [6, 3, 60, 30], "C": [1e2, 1e2, 1e3, 1e3], "loss": [3, 4, 2, 1.5]}
    >>> list_curves(pd.DataFrame({**runs, "loss:a": [2, 3, 1, 0.5]}))[0].to_dict("list")
    {'group': ['a', 'a'], 'D': [100.0, 1000.0], 'loss': [2.0, 0.5]}
    """
    import pandas as pd

    names = [str(name) for name in frame.columns if str(name).startswith(LOSS)]
    N = frame["N"].to_numpy(float)
    along = "D" if N.max() <= (1 + BUDGET_WIDTH) * N.min() else "C"
    if along == "C":
        frame = _lowest_cells(frame, names)
    D = frame[along].astype(float)
    parts = [pd.DataFrame({"group": name.removeprefix(LOSS), "D": D, "loss": frame[name]}) for name in names]
    return pd.concat(parts, ignore_index=True).dropna(), along


def _lowest_cells(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Means over the seeds of the cell with the lowest loss, one a budget; held-out budgets among them."""
    budget = frame["budget"].to_numpy() if "budget" in frame else label_budgets(frame["C"].to_numpy(float))
    cells = frame.assign(_budget=budget).groupby(["_budget", "N"])[["C", "loss", *names]].mean().reset_index()
    return cells.loc[cells.groupby("_budget")["loss"].idxmin()]


def _transfer(
    frame: pd.DataFrame, names: Sequence[str], start: str, options: Mapping[str, Any]
) -> dict[tuple[str, str], TransferFit]:
    if start not in names:
        raise MisuseError(f"transfer_from: no loss on {start!r}; the sources are {', '.join(names)}")
    found = {}
    for name in names:
        both = frame[[f"{LOSS}{start}", f"{LOSS}{name}"]].dropna().to_numpy(float)
        if name != start:
            found[start, name] = fit_transfer(both[:, 0], both[:, 1], at=[float(np.min(both[:, 0]))], **options)
    return found
