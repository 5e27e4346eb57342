"""The law of each text's loss over the shares, and the shares that minimise the weighted sum of them.

    L_s = c_s,N + k_s exp(t_s . w)      (laws/mixing.py), one c for each size N, k and t for all sizes of a budget

By least squares in nats. The rounds of the bootstrap draw the same runs for all texts, whose errors a run has in
common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxscale.fit.squares import Model, Solved, best_lane, redraw, solve
from jaxscale.laws.mixing import Mixing, minimise_mixture
from jaxscale.mixing.read import Mixtures

__all__ = ["LawFit", "fit_laws"]

REACH = (0.3, 1.0, 3.0, 8.0)
"""Starts: lengths of t along the loss's own slope."""


@dataclass(frozen=True, eq=False)
class LawFit:
    """A law a text: theta (P,) of each, and its bootstrap rounds (R, P)."""

    data: Mixtures
    weights: np.ndarray
    thetas: tuple[np.ndarray, ...]
    rounds: tuple[np.ndarray, ...]

    @cached_property
    def best(self) -> np.ndarray:
        """Shares (k,) that minimise the weighted loss."""
        return np.asarray(_minimise(self.thetas, self.data, self.weights)[0])

    @cached_property
    def draws(self) -> np.ndarray:
        """Those of the rounds (R, k)."""
        return _minimise(self.rounds, self.data, self.weights)

    @property
    def rms(self) -> float:
        """Deviation of a run's weighted loss from the law, nats."""
        miss = self.data.y @ self.weights - self.predict(self.data.w, self.data.cells)
        dof = max(len(miss) - self.data.cells.shape[1] - self.data.w.shape[1], 1)
        return float(np.sqrt((miss**2).sum() / dof))

    def predict(self, w: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Weighted loss (n,) at shares (n, k) and sizes as columns of 0 and 1 (n, sizes)."""
        parts = [_model(w, cells).predict(_params(w, cells, theta))[0] for theta in self.thetas]
        return np.asarray(np.stack(parts, -1) @ self.weights)

    def laws(self) -> dict[str, Mixing]:
        """The law of each text at the size whose loss is lowest."""
        found = {}
        for text, theta in zip(self.data.texts, self.thetas, strict=True):
            p = _params(self.data.w, self.data.cells, theta)
            floors = [float(v[0, 0]) for name, v in p.items() if name.startswith("c")]
            slopes = [0.0, *(float(v[0, 0]) for name, v in p.items() if name.startswith("t"))]
            found[text] = Mixing(min(floors), float(p["k"][0, 0]), dict(zip(self.data.sources, slopes, strict=True)))
        return found


def fit_laws(data: Mixtures, weights: np.ndarray, bootstrap: int, seed: int) -> LawFit:
    """The laws of a budget with k + 2 different mixtures or more."""
    model = _model(data.w, data.cells)
    thetas = tuple(_solve(model, data, y).theta[0] for y in data.y.T)
    rounds = tuple(redraw(model, theta, y, bootstrap, seed) for theta, y in zip(thetas, data.y.T, strict=True))
    return LawFit(data, weights, thetas, rounds)


def _model(w: np.ndarray, cells: np.ndarray) -> Model:
    floors = tuple(f"c{i}" for i in range(cells.shape[1]))
    slopes = tuple(f"t{j}" for j in range(1, w.shape[1]))

    def predict(p: Mapping[str, Any]) -> Any:
        floor = sum(p[name] * cells[:, i] for i, name in enumerate(floors))
        return floor + p["k"] * np.exp(sum(p[name] * w[:, int(name[1:])] for name in slopes))

    return Model((*floors, "k", *slopes), frozenset((*floors, "k")), predict)


def _params(w: np.ndarray, cells: np.ndarray, theta: np.ndarray) -> dict[str, np.ndarray]:
    return _model(w, cells).params_of(np.atleast_2d(theta))


def _solve(model: Model, data: Mixtures, y: np.ndarray) -> Solved:
    """The best optimum (one lane) from slopes along the linear fit's, floors and height by least squares there."""
    free = data.w[:, 1:]
    line = np.linalg.lstsq(np.c_[data.cells, free], y, rcond=None)[0][data.cells.shape[1] :]
    steepest = line / max(float(np.linalg.norm(line)), 1e-12)
    starts = []
    for reach in REACH:
        t = reach * steepest
        found = np.linalg.lstsq(np.c_[data.cells, np.exp(free @ t)], y, rcond=None)[0]
        found = np.maximum(found, 1e-3 * y.min())
        starts.append(model.theta_of({name: [value] for name, value in zip(model.names, [*found, *t], strict=True)})[0])
    lanes = len(starts)
    solved = solve(model, np.array(starts), np.tile(y, (lanes, 1)), np.ones((lanes, len(y))))
    best = best_lane(solved)
    return Solved(*(part[best : best + 1] for part in solved))


def _minimise(thetas: tuple[np.ndarray, ...], data: Mixtures, weights: np.ndarray) -> np.ndarray:
    """Best shares (R, k) for laws with theta (R, P) or (P,) of each text."""
    height, slope = [], []
    for theta in thetas:
        p = _params(data.w, data.cells, theta)
        slopes = [p[f"t{j}"][:, 0] for j in range(1, data.w.shape[1])]
        height.append(p["k"][:, 0])
        slope.append(np.stack([np.zeros_like(height[-1]), *slopes], -1))
    return minimise_mixture(np.stack(height, -1) * weights, np.stack(slope, 1))
