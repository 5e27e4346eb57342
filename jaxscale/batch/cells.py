"""One loss for each size, batch and horizon: the mean over seeds at the best of the rates that were tried.

Every batch needs its own learning rate: at one rate for all, a batch may look slow that is only mistuned (Shallue et
al. 2019, 1811.03600). So each cell says how its rate was found:

    interior    the best of three or more lies between others        swept    its variant had a sweep of its own
    edge        the best is the first or last: further out may win    one      nothing else was tried
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SeedNoise", "pick_cells", "pool_seeds"]

Tuned = Literal["interior", "edge", "one", "swept"]


class SeedNoise(NamedTuple):
    """Deviation of log loss between seeds of one cell and rate, and its degrees of freedom."""

    std: float
    dof: int


def pick_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each (N, batch, D): loss, lr, rates (how many), tuned, seeds (runs behind the loss)."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for (N, batch, D), group in frame.groupby(["N", "batch", "D"]):
        losses: dict[float, list[float]] = {}
        for rate, loss in zip(group["lr"].fillna(0.0), group["loss"], strict=True):
            losses.setdefault(float(rate), []).append(float(loss))
        means = {rate: float(np.mean(several)) for rate, several in sorted(losses.items())}
        best = min(means, key=means.__getitem__)
        rows.append({"N": N, "batch": batch, "D": D, "loss": means[best], "lr": best or np.nan, "rates": len(means),
                     "tuned": _judge(list(means), best, bool(group["tuned"].all())),
                     "seeds": len(losses[best])})  # fmt: skip
    return pd.DataFrame(rows)


def _judge(rates: list[float], best: float, swept: bool) -> Tuned:
    if len(rates) < 2:
        return "swept" if swept else "one"
    return "interior" if rates[0] < best < rates[-1] else "edge"


def pool_seeds(frame: pd.DataFrame) -> SeedNoise | None:
    """Pooled deviation of log loss between runs of one cell and rate; None without repeats."""
    logs = np.log(frame["loss"])
    groups = logs.groupby([frame["N"], frame["batch"], frame["D"], frame["lr"].fillna(0.0)])
    dof = int((groups.size() - 1).sum())
    return SeedNoise(float(np.sqrt((groups.var(ddof=0) * groups.size()).sum() / dof)), dof) if dof else None
