"""A table of runs -> what each budget says about mixtures.

Columns: share:NAME, the share of the training tokens that a source gave; loss:NAME, the validation loss on a text,
nats per token; optional budget (else C, clustered), N, role, run_id and val_tokens:NAME. `collect` writes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.source import label_budgets, read_raw
from jaxscale.where import select_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Mixtures", "read_mixtures"]

SHARE, LOSS, COUNT = "share:", "loss:", "val_tokens:"
SAME = 1e-4
"""Shares closer than this are one mixture."""


@dataclass(frozen=True, eq=False)
class Mixtures:
    """The runs of one budget: shares w (n, k), losses y (n, S) by text, `cell` (n,), the number of each run's size.

    Runs of one size differ in mixture (and seed) alone.
    """

    C: float
    sources: tuple[str, ...]
    texts: tuple[str, ...]
    w: np.ndarray
    y: np.ndarray
    cell: np.ndarray

    @cached_property
    def mixture(self) -> np.ndarray:
        """Number of each run's mixture (n,)."""
        return np.unique(np.round(self.w, 9), axis=0, return_inverse=True)[1].ravel()

    @property
    def count(self) -> int:
        """Different mixtures."""
        return int(self.mixture.max()) + 1

    @cached_property
    def cells(self) -> np.ndarray:
        """A column of 0 and 1 for each size (n, sizes)."""
        return (self.cell[:, None] == np.unique(self.cell)).astype(float)

    @property
    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest share of each source (k,) that was trained."""
        return self.w.min(0), self.w.max(0)

    def take(self, rows: np.ndarray) -> Mixtures:
        """Some of the runs."""
        return replace(self, w=self.w[rows], y=self.y[rows], cell=self.cell[rows])


def read_mixtures(
    source: pd.DataFrame | str | Path, weights: Mapping[str, float] | None, where: str | None
) -> tuple[tuple[Mixtures, ...], dict[str, float], dict[str, Any]]:
    """Budgets by rising C, the weights of the texts (sum 1), and the record of the source.

    MisuseError: no such columns, a weight of no text. VerdictError: no usable row.
    """
    raw, path = read_raw(source)
    frame = raw[select_rows(raw, where)] if where else raw
    sources, texts = _named(frame, SHARE), _named(frame, LOSS)
    if len(sources) < 2 or not texts:
        raise MisuseError(f"{path or 'the table'}: needs two columns {SHARE}NAME or more (there: {len(sources)}) and a "
                          f"column {LOSS}NAME (there: {len(texts)}); `jaxscale collect DIR` writes them for runs of a "
                          f"study with data.mixture")  # fmt: skip
    good, refused = _refuse(frame, sources, texts)
    frame = frame[good].drop_duplicates("run_id") if "run_id" in frame else frame[good]
    if frame.empty:
        raise VerdictError(f"{path or 'the table'}: none of {len(raw)} rows is a run of a mixture; {_why(refused)}")
    chosen = _choose_weights(frame, texts, weights)
    record = {"path": str(path) if path else "DataFrame", "sha256": _hash(frame), "rows_total": len(raw),
              "rows_used": len(frame), "rows_refused": refused, "where": where}  # fmt: skip
    budgets = _budgets(frame)
    kept = tuple(text for text in texts if chosen[text] > 0)
    found = [_gather(frame[budgets == budget], sources, kept) for budget in np.unique(budgets)]
    return tuple(sorted(found, key=lambda one: one.C)), {text: chosen[text] for text in kept}, record


def _named(frame: pd.DataFrame, kind: str) -> tuple[str, ...]:
    return tuple(str(name).removeprefix(kind) for name in frame.columns if str(name).startswith(kind))


def _refuse(frame: pd.DataFrame, sources: tuple[str, ...], texts: tuple[str, ...]) -> tuple[Any, list[dict[str, Any]]]:
    """The mask of usable rows, and the reason of the others: held-out rows are left out without a word."""
    shares = frame[[f"{SHARE}{name}" for name in sources]].to_numpy(float)
    losses = frame[[f"{LOSS}{name}" for name in texts]].to_numpy(float)
    sums = np.nan_to_num(shares).sum(1)
    grid = np.ones(len(frame), bool) if "role" not in frame else (frame["role"] != "holdout").to_numpy()
    whole, finite = np.abs(sums - 1) < 1e-3, (np.isfinite(losses) & (losses > 0)).all(1)
    refused, rows = [], frame.index.to_numpy()
    for i in np.flatnonzero(grid & ~(whole & finite)):
        reason = "a loss is missing" if whole[i] else f"its shares add up to {sums[i]:.3g}"
        refused.append({"row": int(rows[i]), "reason": reason})
    return grid & whole & finite, refused


def _why(refused: list[dict[str, Any]]) -> str:
    return refused[0]["reason"] if refused else "all are held out"


def _choose_weights(
    frame: pd.DataFrame, texts: tuple[str, ...], weights: Mapping[str, float] | None
) -> dict[str, float]:
    """Weights by text with sum 1: as asked, else as the validation set has them, else equal."""
    if weights:
        unknown = [name for name in weights if name not in texts]
        if unknown:
            raise MisuseError(f"weights: no loss on {unknown[0]!r}; the texts are {', '.join(texts)}")
        if not all(np.isfinite(value) and value >= 0 for value in weights.values()) or not sum(weights.values()) > 0:
            raise MisuseError("weights: give numbers of 0 or more, one of them above 0")
    elif all(f"{COUNT}{text}" in frame for text in texts):
        weights = {text: float(frame[f"{COUNT}{text}"].mean()) for text in texts}
    else:
        weights = dict.fromkeys(texts, 1.0)
    total = sum(weights.values())
    return {text: weights.get(text, 0.0) / total for text in texts}


def _budgets(frame: pd.DataFrame) -> np.ndarray:
    if "budget" in frame:
        return frame["budget"].to_numpy()
    return label_budgets(frame["C"].to_numpy(float)) if "C" in frame else np.zeros(len(frame))


def _gather(frame: pd.DataFrame, sources: tuple[str, ...], texts: tuple[str, ...]) -> Mixtures:
    C = float(frame["C"].median()) if "C" in frame else float("nan")
    if "budget" in frame and isinstance(frame["budget"].iloc[0], int | float | np.number):
        C = float(frame["budget"].iloc[0])
    w = frame[[f"{SHARE}{name}" for name in sources]].to_numpy(float)
    y = frame[[f"{LOSS}{name}" for name in texts]].to_numpy(float)
    cell = frame["N"].to_numpy(float) if "N" in frame else np.zeros(len(frame))
    w = np.rint(np.nan_to_num(w) / SAME) * SAME  # shares of one mixture are one number
    return Mixtures(C, sources, texts, w / w.sum(1, keepdims=True), y, cell)


def _hash(frame: pd.DataFrame) -> str:
    return hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
