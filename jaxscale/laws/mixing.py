"""What a mixture of sources gives: the loss on each text as a function of the shares of the training tokens.

    L_s(w) = c_s + k_s exp(t_s . w)        Ye et al. 2024, arXiv 2403.16952, eq. 6 (w the shares, sum 1)

A share more of a source multiplies what is left of a loss by the same factor. At fixed N and D; k_s > 0. With the
sum of w given, t_s counts only up to a constant: that of the first source is 0 here and k_s holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Mixing", "minimise_mixture"]

STEPS, HALVINGS = 2000, 50
FIRST_STEP, LARGEST_STEP = 0.5, 1e6


@dataclass(frozen=True)
class Mixing:
    """The loss on one text: floor c, height k, and a slope t for each source by name.

    >>> law = Mixing(c=1.0, k=2.0, t={"web": 0.0, "code": -np.log(2)})
    >>> [round(float(law.loss({name: 1.0})), 9) for name in ("web", "code")]
    [3.0, 2.0]
    """

    c: float
    k: float
    t: Mapping[str, float]
    equation = "L_s = c_s + k_s exp(sum_j t_sj w_j)"
    source = "Ye et al. 2024, arXiv 2403.16952"

    def loss(self, shares: Mapping[str, Any]) -> Any:
        """Loss in nats at shares of the training tokens by source; one that is not named gets none."""
        return self.c + self.k * np.exp(sum(self.t[name] * share for name, share in shares.items()))


def minimise_mixture(height: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Shares w (lanes, k), at least 0 with sum 1, that minimise sum_s height_s exp(slope_s . w).

    height (lanes, S), at least 0, slope (lanes, S, k). The sum is convex: of two sources its derivative is bisected; of
    more the steps are those of exponentiated gradient (Kivinen and Warmuth 1997), smaller where they do not lower it.

    >>> float(minimise_mixture(np.array([[1.0, 1.0]]), np.array([[[0, -2.0], [-2.0, 0]]]))[0, 0].round(6))
    0.5
    """
    lanes, _, k = slope.shape
    if k == 2:
        return _bisect(height * np.exp(slope[..., 0]), slope[..., 1] - slope[..., 0])

    def terms(w: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return height * np.exp(np.einsum("lsk,lk->ls", slope, w))

    w, step = np.full((lanes, k), 1 / k), np.full((lanes, 1), FIRST_STEP)
    value = terms(w)
    for _ in range(STEPS):
        pull = np.einsum("ls,lsk->lk", value, slope) / np.maximum(value.sum(1, keepdims=True), 1e-300)
        pull = pull - (pull * w).sum(1, keepdims=True)
        if (np.abs(pull * w).max(1, initial=0.0) < 1e-9).all():
            break
        power = np.clip(-step * pull, -30, 30)
        moved = w * np.exp(power - power.max(1, keepdims=True))
        moved /= moved.sum(1, keepdims=True)
        new = terms(moved)
        better = (new.sum(1) <= value.sum(1))[:, None]
        w, value = np.where(better, moved, w), np.where(better, new, value)
        step = np.clip(np.where(better, step * 1.5, step / 3), 1e-12, LARGEST_STEP)
    return w


def _bisect(height: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Shares (lanes, 2) where the derivative of sum_s height_s exp(slope_s w) changes sign, w the second's share."""
    low, high = np.zeros(len(height)), np.ones(len(height))
    with np.errstate(over="ignore"):
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            rises = (height * slope * np.exp(slope * middle[:, None])).sum(1) > 0
            low, high = np.where(rises, low, middle), np.where(rises, middle, high)
    return np.stack([1 - middle, middle], -1)
