"""What the best losses leave open: draws of all variants' laws, over form, floor, noise and misfit.

    L_v(x) = E_v + A_v x^-alpha_v        log(L_v - E_v) is a line in log x once E_v is known

    shared     one floor, one exponent               slopes     one floor, exponents of their own
    separate   floors and exponents of their own, the floors about a common one (FLOORS_APART)

Every form, floor, noise level and misfit is weighed by the likelihood of the best losses at its best lines, times
exp(-p) for the p parameters of those lines (Akaike's weights), times what it was worth before the losses were seen:

    floor     even odds for E = 0 and for an E anywhere below the lowest loss       (as in fit.frontier)
    noise     s^2 nu / chi^2_nu, nu degrees of freedom; where nothing repeats any size between NOISE_RANGE
    misfit    no law holds over all budgets: scatter about it, and drift from the top down          (as in fit.frontier)

A draw takes one of each by weight and refits the lines to losses with errors drawn anew, in which variants have their
noise in common as far as it was found. The weights have no correction for few points (AICc): it would leave the shared
form alone in the field whenever budgets are few, and then say with certainty what nobody measured (docs/compare.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxscale.compare.points import Points
from jaxscale.compare.weights import FORM_NAMES, Form, Weights, list_levels
from jaxscale.errors import VerdictError

__all__ = ["FORM_NAMES", "Draws", "draw_laws"]

MISFIT_IN_COMMON = 0.5
"""Assumption: share of a misfit's variance that the variants of a budget have in common; the text bends all laws."""
ALPHAS = (1e-3, 5.0)
"""Exponents that a draw may have."""


@dataclass(frozen=True)
class Draws:
    """Laws (draws, variants) L = E + exp(height - alpha (log x - middle)); `form` (draws,) an index of FORM_NAMES.

    `weights`: of each form that the points can bear; `no_floor` the weight on E = 0. `noise` (draws, n): the noise that
    each draw gave the best losses; `scatter` the mean variance of a law's misfit at the largest budgets.
    """

    E: np.ndarray
    height: np.ndarray
    alpha: np.ndarray
    form: np.ndarray
    middle: float
    weights: dict[str, float]
    no_floor: float
    noise: np.ndarray
    scatter: float

    def __len__(self) -> int:
        return len(self.E)

    def loss(self, log_x: np.ndarray | float) -> np.ndarray:
        """Loss (draws, variants) at log x, one for all or one for each variant (variants,)."""
        return np.asarray(self.E + np.exp(self.height - self.alpha * (np.asarray(log_x) - self.middle)))

    def reach(self, loss: np.ndarray, variant: int) -> np.ndarray:
        """log x (draws,) at which a variant has the loss (draws,); infinite where it never gets there."""
        above = loss - self.E[:, variant]
        with np.errstate(divide="ignore", invalid="ignore"):
            log_x = self.middle + (self.height[:, variant] - np.log(above)) / self.alpha[:, variant]
        return np.where(above > 0, log_x, np.inf)


def draw_laws(points: Points, rounds: int, seed: int) -> Draws:
    """Draws of the laws; every variant needs two budgets or more."""
    rng = np.random.default_rng(seed)
    study = Weights(points, list_levels(points))
    forms = {name: study.weigh(name) for name in FORM_NAMES if study.bears(name)}
    top = max(float(form.log_weight.max()) for form in forms.values())
    if not np.isfinite(top):
        raise VerdictError("the best losses do not fall along x: no law can be drawn through them")
    mass = {name: np.exp(form.log_weight - top) for name, form in forms.items()}
    total = sum(float(one.sum()) for one in mass.values())
    form, level, share = _pick(study, forms, mass, rounds, rng)
    root = np.linalg.cholesky(points.cov)
    noise = np.sqrt(study.levels.scale[level])[:, None] * (rng.standard_normal((rounds, len(points))) @ root.T)
    E, height, alpha = _refit(study, level, share, form == FORM_NAMES.index("shared"), noise, rng)
    no_floor = sum(float(mass[name][one.share == 0].sum()) for name, one in forms.items()) / total
    weights = {name: float(one.sum()) / total for name, one in mass.items()}
    scatter = float(study.levels.misfit[level].min(1).mean())
    return Draws(E, height, alpha, form, study.middle, weights, no_floor, noise, scatter)


def _pick(
    study: Weights, forms: dict[str, Form], mass: dict[str, np.ndarray], rounds: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Form (rounds,), level (rounds,) and floors (rounds, V) by their weights, as evenly as their number allows."""
    flat = np.cumsum(np.concatenate([mass[name].ravel() for name in forms]))
    at = np.searchsorted(flat, (np.arange(rounds) + rng.random()) / rounds * flat[-1]).clip(0, len(flat) - 1)
    at = rng.permutation(at)
    starts = np.cumsum([0, *(mass[name].size for name in forms)])
    place = np.searchsorted(starts, at, "right") - 1
    level, share = np.empty(rounds, int), np.empty((rounds, len(study.points.names)))
    for f, name in enumerate(forms):
        mine = np.flatnonzero(place == f)
        level[mine], node = np.divmod(at[mine] - starts[f], mass[name].shape[1])
        common = forms[name].share[level[mine], node]
        share[mine] = study.floors_about(common, level[mine], rng) if name == "separate" else common[:, None]
    return np.array([FORM_NAMES.index(name) for name in forms])[place], level, share


def _refit(
    weights: Weights,
    level: np.ndarray,
    share: np.ndarray,
    shared: np.ndarray,
    noise: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E, height and alpha (draws, V): lines through losses with errors drawn anew."""
    points, variance = weights.points, weights.variance[level]
    common = rng.standard_normal((len(level), points.budget.max() + 1))[:, points.budget]
    own = rng.standard_normal(noise.shape)
    misfit = np.sqrt(MISFIT_IN_COMMON) * common + np.sqrt(1 - MISFIT_IN_COMMON) * own
    error = noise + np.sqrt(weights.levels.misfit[level]) * misfit
    part = share[:, points.member] * np.exp(points.y.min() - points.y)
    z, w = points.y + np.log1p(-part) + error / (1 - part), (1 - part) ** 2 / variance
    mine = (points.member[:, None] == np.arange(len(points.names))).astype(float)
    x = points.log_x - weights.middle
    total = w @ mine
    mx, mz = (w * x) @ mine / total, (w * z) @ mine / total
    dx, dz = x - mx[:, points.member], z - mz[:, points.member]
    xx, xz = (w * dx * dx) @ mine, (w * dx * dz) @ mine
    slope = np.where(shared[:, None], xz.sum(1, keepdims=True) / xx.sum(1, keepdims=True), xz / xx)
    alpha = np.clip(-slope, *ALPHAS)
    return share * weights.lowest, mz + alpha * mx, alpha
