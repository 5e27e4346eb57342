"""A parabola through the weighted losses of the mixtures of two sources around the lowest: in the share, or its logit.

    L = a_N + b u + c u^2,    u = w or log(w / (1 - w)),    one a for each size N

The form with the smaller sum of squares; logits where every mixture has both sources. It sees the lowest mixture and
up to two on each side: losses rise exponentially where a source is missing, which no parabola does. Nothing is read
beyond the shares that were trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.fit.squares import Model, redraw, solve
from jaxscale.mixing.read import Mixtures

__all__ = ["CurveFit", "fit_curve", "near_lowest", "parabola", "solve_parabola"]

GRID = 2001
NEIGHBOURS, FEWEST = 2, 4
"""Mixtures on each side of the lowest, and in all at least."""


@dataclass(frozen=True, eq=False)
class CurveFit:
    """`form` weight or logit. `best` (2,) shares and their rounds `draws` (R, 2); `rms` in nats."""

    form: str
    theta: np.ndarray
    best: np.ndarray
    draws: np.ndarray
    rms: float

    def predict(self, w: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Weighted loss (n,) at shares (n, 2) and sizes as columns of 0 and 1 (n, sizes)."""
        model = parabola(_scale(self.form, w[:, 0]), cells)
        return np.asarray(model.predict(model.params_of(self.theta[None]))[0])


def fit_curve(data: Mixtures, weights: np.ndarray, bootstrap: int, seed: int) -> CurveFit:
    """The parabola of a budget with four different mixtures or more of two sources."""
    data = data.take(near_lowest(data, weights))
    y, share = data.y @ weights, data.w[:, 0]
    forms = ("weight", "logit") if share.min() > 0 and share.max() < 1 else ("weight",)
    found = {form: solve_parabola(parabola(_scale(form, share), data.cells), y) for form in forms}
    form = min(found, key=lambda name: found[name][1])
    theta, ss = found[form]
    rounds = redraw(parabola(_scale(form, share), data.cells), theta, y, bootstrap, seed)
    low, high = float(share.min()), float(share.max())
    dof = max(len(y) - len(theta), 1)
    return CurveFit(form, theta, _lowest(form, theta[None], low, high)[0], _lowest(form, rounds, low, high),
                    float(np.sqrt(ss / dof)))  # fmt: skip


def near_lowest(data: Mixtures, weights: np.ndarray) -> np.ndarray:
    """The mask (n,) of the runs whose mixture is the lowest or close to it; all of them for more than two sources."""
    if len(data.sources) != 2:
        return np.ones(len(data.w), bool)
    y, order = data.y @ weights, np.unique(data.w[:, 0])
    columns = np.c_[data.cells, (data.w[:, :1] == order).astype(float)[:, 1:]]
    level = np.r_[0.0, np.linalg.lstsq(columns, y, rcond=None)[0][data.cells.shape[1] :]]  # of each mixture
    place = int(level.argmin())
    first, last = max(place - NEIGHBOURS, 0), min(place + NEIGHBOURS, len(order) - 1)
    while last - first + 1 < min(FEWEST, len(order)):
        first, last = max(first - 1, 0), min(last + 1, len(order) - 1)
    return np.asarray((data.w[:, 0] >= order[first]) & (data.w[:, 0] <= order[last]))


def _scale(form: str, share: np.ndarray) -> np.ndarray:
    return share if form == "weight" else np.log(share) - np.log1p(-share)


def parabola(u: np.ndarray, cells: np.ndarray) -> Model:
    """a_N + b u + c u^2 at u (n,) of sizes as columns of 0 and 1 (n, sizes)."""
    levels = tuple(f"a{i}" for i in range(cells.shape[1]))

    def predict(p: Mapping[str, Any]) -> Any:
        level = sum(p[name] * cells[:, i] for i, name in enumerate(levels))
        return level + p["b"] * u + p["c"] * u**2

    return Model((*levels, "b", "c"), frozenset(), predict)


def solve_parabola(model: Model, y: np.ndarray) -> tuple[np.ndarray, float]:
    """theta (P,) of least squares to y (n,), the levels first, then b and c; and the sum."""
    start = model.theta_of({name: [1.0 if name.startswith("a") else 0.0] for name in model.names})
    solved = solve(model, start, y[None], np.ones((1, len(y))))
    return solved.theta[0], float(solved.value[0])


def _lowest(form: str, theta: np.ndarray, low: float, high: float) -> np.ndarray:
    """Shares (R, 2) of the lowest point between the shares trained, of parabolas theta (R, P)."""
    share = np.linspace(low, high, GRID)
    u = _scale(form, share)
    at = (theta[:, -2:-1] * u + theta[:, -1:] * u**2).argmin(1)
    return np.stack([share[at], 1 - share[at]], -1)
