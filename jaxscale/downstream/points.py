"""Rows of a task -> runs with an end, and the pairs (NLL, accuracy) of their checkpoints.

The end of a run is the mean over its last `window` checkpoints: NLL and accuracy of a checkpoint are noisy, and the
last few are nearly one model. A sparse run (a checkpoint each tenth of its way) is not averaged over what is no end:
its window shrinks to a fifth of its checkpoints, and only those count that lie in the last 5% of its tokens.
Pairs for stage 2 leave out the first ceil(`skip` n) checkpoints, then take trailing means, first windows partial.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jaxscale.downstream.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Pairs", "Run", "gather_runs", "infer_chance", "infer_items", "pair_checkpoints", "thin"]

NEAR_END = 0.95
"""Share of a run's tokens from which a checkpoint counts to its end."""
LEVELS = (1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 10, 0.0)
"""Chance levels looked for where none is given: two to five choices, ten, and open answers."""
MOST_ITEMS = 20_000


@dataclass(frozen=True)
class Run:
    """One run on one task. `x` and `y` are NLL and accuracy at its end, nan where not measured."""

    name: str
    family: str
    N: float
    D: float
    C: float
    nll: float
    accuracy: float
    loss: float
    items: float
    checkpoints: dict[str, np.ndarray] = field(repr=False)
    """nll, accuracy and loss (checkpoints,) in order."""


@dataclass(frozen=True)
class Pairs:
    """x (n,) NLL and y (n,) accuracy of checkpoints; `run` (n,) numbers the run each belongs to."""

    x: np.ndarray
    y: np.ndarray
    run: np.ndarray


def gather_runs(frame: pd.DataFrame, recipe: Recipe) -> list[Run]:
    """The runs of one task by rising C at their end; repeated rows of a checkpoint count once."""
    order = [name for name in ("step", "D", "C") if name in frame][:1]
    runs = []
    for name, rows in frame.groupby("run", sort=False):
        rows = rows.sort_values(order, kind="stable").drop_duplicates(subset=[*order, "nll", "accuracy"])
        runs.append(_run(str(name), rows, recipe))
    return sorted(runs, key=lambda run: (run.C, run.N, run.name))


def _run(name: str, rows: pd.DataFrame, recipe: Recipe) -> Run:
    def column(name: str) -> np.ndarray:
        return rows[name].to_numpy(float) if name in rows else np.full(len(rows), np.nan)

    parts = {key: column(key) for key in ("nll", "accuracy", "loss")}
    D = column("D") if "D" in rows else column("C")
    window = min(recipe.window, len(rows))
    if recipe.sparse and len(rows) > 1:
        window = max(1, min(window, int((D / D[-1] >= NEAR_END).sum())))
    ends = {key: float(values[-window:].mean()) for key, values in parts.items()}
    last = rows.iloc[-1]
    family = str(last["family"]) if "family" in rows else ""
    N = float(last["N"]) if "N" in rows else np.nan
    tokens = float(last["D"]) if "D" in rows else np.nan
    items = float(last["items"]) if "items" in rows else np.nan
    return Run(name, family, N, tokens, float(last["C"]), ends["nll"], ends["accuracy"], ends["loss"], items, parts)


def pair_checkpoints(runs: list[Run], recipe: Recipe, source: str = "nll") -> Pairs:
    """What stage 2 sees of the runs; `source` loss takes the general validation loss for the NLL."""
    x, y, of = [], [], []
    for number, run in enumerate(runs):
        first, given = run.checkpoints[source], run.checkpoints["accuracy"]
        seen = slice(min(int(np.ceil(recipe.skip * len(first))), len(first) - 1), None)
        window = recipe.window if not recipe.sparse else max(1, min(recipe.window, len(first) // 5))
        x.append(_trailing(first[seen], window))
        y.append(_trailing(given[seen], window))
        of.append(np.full(len(x[-1]), number))
    return Pairs(np.concatenate(x), np.concatenate(y), np.concatenate(of))


def _trailing(values: np.ndarray, window: int) -> np.ndarray:
    """Means over each value and up to `window` - 1 before it.

    >>> _trailing(np.array([1.0, 3.0, 5.0]), 2).tolist()
    [1.0, 2.0, 4.0]
    """
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - window, 0)
    return (total[end] - total[begin]) / (end - begin)


def thin(pairs: Pairs, most: int) -> Pairs:
    """Every k-th pair of each run, its last one included: what bootstrap rounds see of long curves."""
    stride = -(-len(pairs.x) // most)
    place = np.arange(len(pairs.x))
    last = np.array([place[pairs.run == number].max() for number in pairs.run])
    kept = (last - place) % stride == 0
    return Pairs(pairs.x[kept], pairs.y[kept], pairs.run[kept])


def infer_items(accuracies: np.ndarray) -> int | None:
    """The number of questions n of which every accuracy is a k-th: the least that fits all; None where none does.

    Accuracies written with up to five digits are multiples of a power of ten, which says nothing.

    >>> infer_items(np.array([311, 402, 517, 640, 702, 333, 455, 811]) / 1172)
    1172
    >>> infer_items(np.array([0.25, 0.31, 0.42, 0.44, 0.51, 0.63])) is None
    True
    """
    values = np.unique(accuracies[np.isfinite(accuracies)])
    values = values[(values > 0) & (values < 1)]
    if len(values) < 4:
        return None
    n = np.arange(20, MOST_ITEMS + 1)[:, None]
    some = values[:: -(-len(values) // 40)]
    off = np.abs(some * n - np.round(some * n)).max(1)
    fits = np.flatnonzero(off < 2e-3)
    if not len(fits):
        return None
    best = int(n[fits[0], 0])
    rounded = any(np.abs(some * 10**digits - np.round(some * 10**digits)).max() < 1e-6 for digits in range(1, 6))
    return None if rounded else best


def infer_chance(accuracies: np.ndarray) -> float:
    """The chance level that the lowest accuracies (of all checkpoints) stand on or above.

    >>> infer_chance(np.array([0.247, 0.26, 0.31])), round(infer_chance(np.array([0.52, 0.55, 0.7])), 2)
    (0.25, 0.5)
    """
    low = float(np.quantile(accuracies, 0.05))
    return next(level for level in LEVELS if level <= low + 0.03)
