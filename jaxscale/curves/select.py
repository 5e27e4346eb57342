"""Which family foretells larger data: rolling origins, not goodness of fit.

At each origin a family sees the points up to some D and predicts all larger ones. Its error is the root mean
square of log(predicted / measured) over origins and points. Families that fit the seen points best often miss
the next ones most, so in-sample error is reported and never used.

Are two errors different? The noise is drawn again on top of the measured losses and everything repeated: a
family stays in the running while its error is at or below the winner's in more than 1 - confidence of these
rounds. Noise on top of noise makes this cautious. Among those in the running the fewest parameters win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from jaxscale.curves.family import CurveData, Family, Fitted
from jaxscale.laws.curves import CONTAINS

__all__ = ["Choice", "choose", "place_origins", "predict_held_out", "score", "spread_noise"]

FEWEST_SEEN = 5
"""Points that the first origin sees: one more than the parameters of Pow4 and Exp4."""
SMALLEST_NOISE = 1e-6
"""Assumption: no measured log loss is better than this."""
WORST = 3.0
"""A prediction that is not above 0 counts as wrong by this in log loss, a factor of twenty."""


@dataclass(frozen=True)
class Choice:
    """The family that extrapolates best, those not told apart from it, and how the redraws went.

    `share`: of the redraws, in how many a family was best; `beats`: in how many it was no worse than the winner.
    """

    law: str
    running: tuple[str, ...]
    rivals: tuple[str, ...]
    share: Mapping[str, float]
    beats: Mapping[str, float]


def place_origins(data: CurveData, held_out: float) -> np.ndarray:
    """Largest D that is seen at each origin, rising; empty where nothing can be held out.

    The top `held_out` of the distinct D are predicted, one more origin for each; at least two where there are
    five points, and never fewer than FEWEST_SEEN seen where that leaves two.
    """
    D = data.distinct
    if len(D) < 5:
        return D[:0]
    first = min(max(ceil((1 - held_out) * len(D)), FEWEST_SEEN), len(D) - 2)
    return D[first - 1 : -1]


def predict_held_out(family: Family, origins: np.ndarray, seed: int) -> list[tuple[float, Fitted, np.ndarray]]:
    """At each origin: its D, the fit, and predicted losses at all points of the curve (n,)."""
    fits = family.fit_each(origins, seed)
    return [
        (float(D), fitted, family.at(fitted.theta[None], family.data.D)[0])
        for D, fitted in zip(origins, fits, strict=True)
    ]


def score(data: CurveData, origins: np.ndarray, predicted: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Rms log error (...,) of predicted (..., origins, n) over the points above each origin; loss (..., n)."""
    held = data.D[None] > origins[:, None]
    with np.errstate(all="ignore"):
        error = np.log(predicted) - np.log(loss)[..., None, :]
    error = np.clip(np.where(np.isfinite(error), error, WORST), -WORST, WORST)
    return np.sqrt((held * error**2).sum((-1, -2)) / held.sum())


def spread_noise(data: CurveData, fits: Mapping[str, Fitted]) -> float:
    """Deviation of one log loss: between seeds where D repeats, else the smallest about any family."""
    _, member, counts = np.unique(data.D, return_inverse=True, return_counts=True)
    dof = len(data.D) - len(counts)
    if dof >= 3:
        y = np.log(data.loss)
        mean = np.bincount(member, y) / counts
        return max(float(np.sqrt(((y - mean[member]) ** 2).sum() / dof)), SMALLEST_NOISE)
    known = [fitted.noise for fitted in fits.values() if np.isfinite(fitted.noise)]
    return max(min(known, default=SMALLEST_NOISE), SMALLEST_NOISE)


def choose(
    families: Mapping[str, Family],
    starts: Mapping[str, Sequence[np.ndarray]],
    origins: np.ndarray,
    errors: Mapping[str, float],
    *,
    noise: float,
    rounds: int,
    confidence: float,
    seed: int,
) -> Choice:
    """Repeat the selection with the noise drawn again; `starts`: theta of each family at each origin."""
    best = min(errors, key=errors.__getitem__)
    again = {
        name: _score_again(family, starts[name], origins, noise, rounds, seed) for name, family in families.items()
    }
    table = np.stack(list(again.values()))
    share = dict(zip(again, (np.bincount(table.argmin(0), minlength=len(table)) / rounds).tolist(), strict=True))
    beats = {name: float((row <= again[best]).mean()) for name, row in again.items()}
    running = [name for name in errors if beats[name] > 1 - confidence]
    chosen = min(running, key=lambda name: (families[name].count, errors[name]))
    rivals = tuple(name for name in running if name != chosen and chosen not in CONTAINS.get(name, ()))
    return Choice(chosen, tuple(sorted(running, key=errors.__getitem__)), rivals, share, beats)


def _score_again(
    family: Family, starts: Sequence[np.ndarray], origins: np.ndarray, noise: float, rounds: int, seed: int
) -> np.ndarray:
    """Rms log errors (rounds,) of a family on curves redrawn about the measured one; the same draws for all."""
    data, rng = family.data, np.random.default_rng(seed)
    test = noise * rng.standard_normal((rounds, len(data.D)))
    train = noise * rng.standard_normal((rounds, len(data.D)))
    y = family.y + (np.concatenate([test, train], 1) if family.joint else test)
    lanes = np.repeat(y, len(origins), 0)
    w = np.tile((family.row_D[None] <= origins[:, None]).astype(float), (rounds, 1))
    own = np.tile(np.stack(starts), (rounds, 1))
    late = np.tile(starts[-1], (len(lanes), 1))
    theta = family.refit(np.stack([own, late]), lanes, w)
    predicted = family.at(theta, data.D).reshape(rounds, len(origins), -1)
    return score(data, origins, predicted, np.exp(np.log(data.loss) + test))
