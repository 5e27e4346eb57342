"""What would settle a choice: the cheapest further runs that bring its probability to the confidence.

    Var(d | new)  =  Var(d) - c' (S + R)^-1 c         c = Cov(d, y_new), S = Cov(y_new) over the draws, R their noise

d is the difference in loss at the target and y_new what new runs would tell: linear Bayes (Raiffa and Schlaifer 1961),
which is g' (J' W J)^-1 g of a linear model, with the uncertainty of form, floor and misfit counted in. More seeds tell
the noise of the best losses that there are, and nothing of how a law misses them; a new budget tells the law there.
If the difference stays what it is, a probability of Phi(z) becomes Phi(z sqrt(Var(d) / Var(d | new))).
Tried: k more seeds of every cell, and one more budget at 3 or 10 times the largest run with s sizes of r seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import erf, sqrt
from typing import Any

import numpy as np

from jaxscale.compare.draws import Draws
from jaxscale.compare.points import Points
from jaxscale.format import format_flops

__all__ = ["Spent", "expected_variance", "find_addition"]

SEEDS = (1, 2, 4, 8, 16)
FACTORS, SIZES, REPEATS = (3.0, 10.0), (1, 3, 5), (1, 2, 4)
TRIMMED = 0.01
"""Share of draws on either side whose values are brought in: a variance should not hang on the wildest law."""


@dataclass(frozen=True)
class Spent:
    """What the comparison cost so far: FLOPs of one seed of every cell, and of everything; C = exp(a + b log x)."""

    one_seed: float
    total: float
    a: float
    b: float

    def flops(self, x: float) -> float:
        """FLOPs of one run at x."""
        return float(np.exp(self.a + self.b * np.log(x)))


def find_addition(
    draws: Draws, points: Points, pair: tuple[int, int], log_x: np.ndarray, probability: float, confidence: float,
    spent: Spent,
) -> dict[str, Any]:  # fmt: skip
    """The cheapest addition, as {"what", "seeds", "x", "sizes", "flops", "over_spent", "probability", "words"}.

    `pair` is the leader and its rival, log_x (V,) where each is asked.
    """
    if probability >= confidence:
        return {"what": "nothing", "flops": 0.0, "over_spent": 0.0, "probability": probability,
                "words": "already settled"}  # fmt: skip
    loss = draws.loss(log_x)
    gap = _trim(loss[:, pair[1]] - loss[:, pair[0]])
    best: dict[str, Any] | None = None
    for row, new, noise in _list_additions(draws, points, float(log_x.max()), spent):
        left = expected_variance(gap, _trim(new), noise)
        z = _normal_quantile(probability) * sqrt(float(gap.var()) / max(left, 1e-300))
        row |= {"probability": _normal(z), "over_spent": row["flops"] / spent.total}
        enough, so_far = row["probability"] >= confidence, best is not None and best["probability"] >= confidence
        if (
            best is None
            or (enough and (not so_far or row["flops"] < best["flops"]))
            or (not so_far and not enough and row["probability"] > best["probability"])
        ):
            best = row
    assert best is not None
    return best | {"words": _say(best, confidence)}


def expected_variance(value: np.ndarray, new: np.ndarray, noise: np.ndarray) -> float:
    """Variance of `value` (draws,) once `new` (draws, m) is measured with variances `noise` (m,)."""
    both = np.cov(np.column_stack([value, new]), rowvar=False)
    gain = both[0, 1:] @ np.linalg.solve(both[1:, 1:] + np.diag(noise), both[0, 1:])
    return float(max(both[0, 0] - gain, 0.0))


def _list_additions(
    draws: Draws, points: Points, target: float, spent: Spent
) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Every addition: its record, draws of what it measures (draws, m), and the variance of measuring it (m,)."""
    variance = _noise_of(points)
    runs = np.array([row["runs"] / row["sizes"] for row in points.rows])
    for k in SEEDS:
        row = {"what": "seeds", "seeds": k, "x": None, "sizes": None, "flops": k * spent.one_seed}
        yield row, draws.noise, variance * runs / k
    sizes = np.array([row["sizes"] for row in points.rows])
    one = float(np.median(variance * runs * sizes))  # of a single run of one size
    top, V = float(points.log_x.max()), len(points.names)
    known = SIZES if sizes.max() > 1 else (1,)
    for factor in FACTORS:
        x = top + float(np.log(factor))
        new = np.log(draws.loss(x))
        for s in known:
            for r in REPEATS:
                flops = V * s * r * spent.flops(float(np.exp(x)))
                row = {"what": "budget", "seeds": r, "x": float(np.exp(x)), "sizes": s, "flops": flops}
                if x <= target + 1e-9:
                    yield row, new, np.full(V, one / s / r + draws.scatter)


def _noise_of(points: Points) -> np.ndarray:
    """Variance (n,) of the best losses; where nothing repeats it is what a line through them leaves."""
    if points.dof >= 1:
        return np.diag(points.cov)
    left = []
    for v in range(len(points.names)):
        mine = points.member == v
        degree = 2 if mine.sum() > 3 else 1
        left.append((points.y[mine] - np.polyval(np.polyfit(points.log_x[mine], points.y[mine], degree),
                                                 points.log_x[mine])).var() * mine.sum()
                    / max(mine.sum() - degree - 1, 1))  # fmt: skip
    return np.diag(points.cov) * max(float(np.mean(left)), 1e-12)


def _say(row: dict[str, Any], confidence: float) -> str:
    what = (f"{row['seeds']} more seed{'s' if row['seeds'] > 1 else ''} of every cell" if row["what"] == "seeds" else
            f"a budget at {format_flops(row['x'])} with {row['sizes']} size{'s' if row['sizes'] > 1 else ''} and "
            f"{row['seeds']} seed{'s' if row['seeds'] > 1 else ''} a variant")  # fmt: skip
    cost = f"{format_flops(row['flops'])} FLOPs, {row['over_spent']:.2g} times what was spent"
    if row["probability"] >= confidence:
        return f"{what} ({cost}), if the difference stays as it is"
    return (f"nothing that was tried settles it: {what} ({cost}) brings the probability to {row['probability']:.3f}, "
            f"if the difference stays as it is")  # fmt: skip


def _trim(values: np.ndarray) -> np.ndarray:
    low, high = np.quantile(values, [TRIMMED, 1 - TRIMMED], axis=0)
    return np.clip(values, low, high)


def _normal(z: float) -> float:
    return (1 + erf(z / sqrt(2))) / 2


def _normal_quantile(p: float) -> float:
    low, high = -10.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _normal(middle) < p else (low, middle)
    return low
