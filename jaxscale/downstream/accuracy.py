"""Stage 2: from the NLL of the correct answer to accuracy, over the checkpoints of many runs.

    sigmoid       F(x) = b + a / (1 + exp(-k (x - x0)))          -1 <= a <= 0, 0 <= b <= 1, x0 >= 0, k >= 0
    loglogistic   F(x) = f + (1 - c - f) / (1 + (x / x0)^k)      c >= 0 the part never reached, f the lower end

At NLL 0 the right answer is certain: the loglogistic curve reaches 1 - c there by its form, the sigmoid is given the
point (0, 1). Where the recipe says so the lower end is drawn towards the chance level and c towards 0; weights are
such that a run is worth three independent points, its checkpoints being one model growing. The lower end may lie
below chance: length-normalized scores of a model that knows nothing do. A bootstrap round weighs whole runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxscale.downstream.points import Pairs, thin
from jaxscale.downstream.published import fit_as_published
from jaxscale.downstream.recipe import Recipe
from jaxscale.downstream.solve import lowest_of_starts, solve

__all__ = ["PARAMS", "Curve", "Stage2", "curve", "fit_accuracy", "fit_curves", "lower_end"]

PARAMS = {"sigmoid": ("a", "x0", "k", "b"), "loglogistic": ("log_x0", "log_k", "floor", "lost")}
NOISE = 0.01
"""Deviation of accuracy about its curve that weighs the data against the priors."""
WORTH = 3.0
"""Independent points that the checkpoints of a run are worth."""
LOST_SD = 0.03
"""Half-normal prior of the accuracy never reached: label noise of a percent or two is usual."""
MOST = 400
"""Pairs that splits and bootstrap rounds see."""
BOUNDS = {"sigmoid": ([-1.0, 0.0, 0.0, 0.0], [0.0, 1e6, 1e6, 1.0]),
          "loglogistic": ([-12.0, -3.0, -0.2, 0.0], [12.0, 5.0, 1.0, 0.9])}  # fmt: skip


def sigmoid(theta: Any, x: Any) -> Any:
    """theta = a, x0, k, b."""
    return theta[3] + theta[0] / (1 + jnp.exp(jnp.clip(-theta[2] * (x - theta[1]), -500, 500)))


def loglogistic(theta: Any, x: Any) -> Any:
    """theta = log x0, log k, f, c; x above 0."""
    u = jnp.exp(theta[1]) * (jnp.log(jnp.maximum(x, 1e-30)) - theta[0])
    return theta[2] + (1 - theta[3] - theta[2]) / (1 + jnp.exp(jnp.clip(u, -500, 500)))


@dataclass(frozen=True)
class Curve:
    """One form with theta (..., 4)."""

    form: str
    theta: np.ndarray

    def accuracy(self, x: Any) -> np.ndarray:
        """Accuracy at NLL x, broadcast against the leading axes of theta."""
        t = np.moveaxis(self.theta, -1, 0)
        with np.errstate(over="ignore", divide="ignore"):
            if self.form == "sigmoid":
                return t[3] + t[0] / (1 + np.exp(np.clip(-t[2] * (x - t[1]), -500, 500)))
            u = np.clip(np.exp(t[1]) * (np.log(np.maximum(x, 1e-30)) - t[0]), -500, 500)
            return t[2] + (1 - t[3] - t[2]) / (1 + np.exp(u))

    @property
    def params(self) -> dict[str, float]:
        """Parameters by name, x0 and k of both forms as themselves."""
        named = dict(zip(PARAMS[self.form], map(float, self.theta), strict=True))
        for name in ("x0", "k"):
            if f"log_{name}" in named:
                named[name] = float(np.exp(named.pop(f"log_{name}")))
        return named


@dataclass(frozen=True)
class Stage2:
    """Curves, bootstrap draws of each (rounds, 4), gradient norms at the optimum, residual deviation of accuracy."""

    curves: tuple[Curve, ...]
    draws: tuple[Curve, ...]
    gradients: tuple[float, ...]
    residual: float
    optima: tuple[Curve, ...]
    """The optimum of each curve: the curves themselves, but for a recipe that stops short of it."""

    def accuracy(self, x: Any) -> np.ndarray:
        """The mean of the curves."""
        return np.mean([one.accuracy(x) for one in self.curves], axis=0)


def curve(form: str) -> Any:
    """A form as a traceable function (theta, x) -> accuracy."""
    return {"sigmoid": sigmoid, "loglogistic": loglogistic}[form]


def lower_end(one: Curve) -> Any:
    """Accuracy far above every NLL."""
    return one.theta[..., 0] + one.theta[..., 3] if one.form == "sigmoid" else one.theta[..., 2]


def sigmoid_residual(theta: Any, x: Any, y: Any, w: Any, pull: Any, chance: Any, lost: Any) -> Any:
    """Residuals of the pairs, of the point (0, 1), and of the lower end's prior."""
    anchor = sigmoid(theta, 0.0) - 1
    return jnp.concatenate([w * (sigmoid(theta, x) - y), jnp.stack([anchor, pull * (theta[0] + theta[3] - chance)])])


def loglogistic_residual(theta: Any, x: Any, y: Any, w: Any, pull: Any, chance: Any, lost: Any) -> Any:
    """Residuals of the pairs and of both priors."""
    prior = jnp.stack([pull * (theta[2] - chance), lost * theta[3]])
    return jnp.concatenate([w * (loglogistic(theta, x) - y), prior])


RESIDUALS = {"sigmoid": sigmoid_residual, "loglogistic": loglogistic_residual}


def fit_accuracy(pairs: Pairs, recipe: Recipe, chance: float, *, rounds: int, seed: int, bits: float = 1.0) -> Stage2:
    """Stage 2 on all pairs; bootstrap rounds on thinned ones, each run weighed by an exponential draw.

    `bits`: bits per byte in one unit of the NLL, for a recipe whose start is in bits per byte.
    """
    runs = int(pairs.run.max()) + 1
    full = [fit_curves(pairs, recipe, form, chance, np.ones((1, runs))) for form in recipe.forms]
    few = thin(pairs, MOST)
    rng = np.random.default_rng([seed, 2])
    weight = rng.exponential(1.0, (rounds, runs))
    weight *= runs / weight.sum(1, keepdims=True)
    shift = np.full(rounds, chance)
    if recipe.chance_sd:
        shift = shift + recipe.chance_sd * rng.standard_normal(rounds)
    draws = []
    for form, (best, _) in zip(recipe.forms, full, strict=True):
        start = np.tile(best.theta[0], (rounds, 1))
        drawn, _ = fit_curves(few, recipe, form, shift, weight, start=start)
        centre, _ = fit_curves(few, recipe, form, chance, np.ones((1, runs)), start=best.theta)
        low, high = BOUNDS[form]
        draws.append(Curve(form, np.clip(drawn.theta - centre.theta + best.theta, low, high)))
    optima = tuple(Curve(best.form, best.theta[0]) for best, _ in full)
    curves = optima
    if recipe.early_stop:
        a, x0, k, b = fit_as_published(pairs.x * bits, pairs.y, chance)
        curves = (Curve("sigmoid", np.array([a, x0 / bits, k * bits, b])),)
    r = np.mean([one.accuracy(pairs.x) for one in curves], axis=0) - pairs.y
    return Stage2(
        curves, tuple(draws), tuple(float(norm[0]) for _, norm in full), float(np.sqrt((r**2).mean())), optima
    )


def fit_curves(
    pairs: Pairs, recipe: Recipe, form: str, chance: Any, seen: np.ndarray, *, start: np.ndarray | None = None
) -> tuple[Curve, np.ndarray]:
    """A curve for each row of run weights `seen` (lanes, runs), and its gradient norm (lanes,).

    Without `start` each lane begins from several points and the best is kept.
    """
    lanes = len(seen)
    w = np.sqrt(seen[:, pairs.run])
    count = (seen[:, pairs.run] > 0).sum(1)
    unit = NOISE * np.sqrt(count / (WORTH * np.maximum((seen > 0).sum(1), 1)))
    pull = unit / recipe.chance_sd if recipe.chance_sd else np.zeros(lanes)
    lost = unit / LOST_SD
    chance = np.broadcast_to(np.asarray(chance, float), (lanes,))
    x, y, w = _pad(pairs.x, pairs.y, w)
    if start is not None:
        data = [x[None], y[None], w, pull, chance, lost]
        found = solve(RESIDUALS[form], start, data, bounds=BOUNDS[form], steps=40)
        return Curve(form, found.theta), found.gradient
    starts = _starts(form, pairs, float(chance.mean()))
    theta = np.tile(starts, (lanes, 1))
    rows = [np.repeat(part, len(starts), 0) for part in (w, pull, chance, lost)]
    found = lowest_of_starts(solve(RESIDUALS[form], theta, [x[None], y[None], *rows], bounds=BOUNDS[form]), len(starts))
    return Curve(form, found.theta), found.gradient


def _pad(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Up to 128, 256, 512, ... pairs by pairs of no weight: tasks share a compiled program."""
    more = 128 * 2 ** int(np.ceil(np.log2(max(len(x), 128) / 128))) - len(x)
    return np.pad(x, (0, more), mode="edge"), np.pad(y, (0, more), mode="edge"), np.pad(w, ((0, 0), (0, more)))


def _starts(form: str, pairs: Pairs, chance: float) -> np.ndarray:
    """Points to begin from, in units of the NLL met."""
    low, middle = float(pairs.x.min()), float(pairs.x.mean())
    if form == "sigmoid":
        return np.array([[chance - 1, x0, k / middle, 1.0] for x0 in (0.9 * low, middle) for k in (3.0, 9.0)])
    return np.array([[np.log(x0), np.log(k), chance, 0.02] for x0 in (0.7 * low, middle) for k in (3.0, 8.0)])
