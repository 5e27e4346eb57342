"""The weight of every form, floor, noise level and misfit, by the likelihood of the best losses.

    log w = log prior - 1/2 sum log var - 1/2 chi^2 + 1/2 log det(X' W_0 X) / det(X' W X) - p

chi^2 is that of the best lines log(L_v - E_v) = h_v - alpha_v log x at the weights W = (1 - E/L)^2 / var: once floors
are known a form is linear. The determinants let a line fitted cost its degrees of freedom, so that a noise level is
weighed by what is left, as s^2 = chi^2 / (n - p) would be; W_0 is W at the noise as it was estimated, without misfit,
and there p alone compares the forms (Akaike). Floors are summed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from math import erf
from typing import Any, NamedTuple

import numpy as np

from jaxscale.compare.points import Points
from jaxscale.fit.frontier import DRIFTS, NO_FLOOR, SCATTERS

__all__ = ["FORM_NAMES", "Form", "Levels", "Weights", "list_levels"]

FORM_NAMES = ("shared", "slopes", "separate")
FLOORS_APART, ANYWHERE = 0.03, 0.05
"""Assumption: floors of variants lie about a common one by this share of the loss (one deviation): most questions leave
the floor alone. One in twenty (other data, other objectives) lies anywhere."""
NOISE_RANGE = (5e-4, 0.05)
"""Assumption: noise of log loss where nothing repeats lies in it, any size as likely on a log scale."""
LARGEST_SHARE, NODES, ZOOMS, NEGLIGIBLE = 0.98, 48, 8, 1e-7
QUANTILES = (np.arange(8) + 0.5) / 8


class Levels(NamedTuple):
    """Noise factor on the covariance (K,), variances of misfit (K, n), log weight (K,)."""

    scale: np.ndarray
    misfit: np.ndarray
    log_weight: np.ndarray


class Lines(NamedTuple):
    """Sums of every variant's line at levels K and floors S (K, S, V): weight, and squares about its middle."""

    total: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray


class Form(NamedTuple):
    """Log weights (K, S) of a form at floors (K, S), shares of the lowest loss."""

    share: np.ndarray
    log_weight: np.ndarray


def list_levels(points: Points) -> Levels:
    """Noise levels by what repeats, times every misfit."""
    below = np.zeros(len(points))
    for v in np.unique(points.member):
        mine = points.member == v
        below[mine] = points.log_x[mine].max() - points.log_x[mine]
    if points.dof >= 1:
        scale = points.dof / _chi2_quantiles(points.dof, QUANTILES)
        misfits = [(d * below) ** 2 + s**2 for d in DRIFTS for s in SCATTERS]
    else:  # a scatter is then what noise is
        scale = np.geomspace(*NOISE_RANGE, 24) ** 2
        misfits = [(d * below) ** 2 for d in DRIFTS]
    scales = np.repeat(scale, len(misfits))
    return Levels(scales, np.tile(np.array(misfits), (len(scale), 1)), np.full(len(scales), -np.log(len(scales))))


def _chi2_quantiles(dof: float, shares: np.ndarray) -> np.ndarray:
    """Quantiles of chi^2, by adding up the density of its log.

    >>> _chi2_quantiles(3.0, np.array([0.05, 0.5, 0.95])).round(2).tolist()
    [0.35, 2.37, 7.81]
    """
    u = np.linspace(np.log(dof) - 40 / np.sqrt(dof), np.log(dof + 12 * np.sqrt(2 * dof) + 40), 20_001)
    log_density = dof / 2 * u - np.exp(u) / 2
    density = np.exp(log_density - log_density.max())
    return np.asarray(np.exp(np.interp(shares, (np.cumsum(density) - density / 2) / density.sum(), u)))


@dataclass(frozen=True)
class Weights:
    """The points with every level of noise and misfit, and the weights of forms over them."""

    points: Points
    levels: Levels

    @property
    def lowest(self) -> float:
        """The lowest loss of all: floors are shares of it."""
        return float(np.exp(self.points.y.min()))

    @property
    def middle(self) -> float:
        """Mean log x, from which lines are measured."""
        return float(self.points.log_x.mean())

    @cached_property
    def variance(self) -> np.ndarray:
        """Of every log loss at every level (K, n)."""
        return np.asarray(self.levels.scale[:, None] * np.diag(self.points.cov) + self.levels.misfit)

    def bears(self, name: str) -> bool:
        """Whether a degree of freedom is left for its lines."""
        V = len(self.points.names)
        return len(self.points) + self.points.dof - (V + 1 if name == "shared" else 2 * V) >= 1

    def weigh(self, name: str) -> Form:
        """Log weights of a form over levels and floors, the floors where its weight lies."""
        size = np.log(self.variance / self._reference).sum(1)
        level = (self.levels.log_weight - size / 2)[:, None]
        if name == "separate":
            share, own = self._weigh_separate()
            return Form(share, level + own)
        share, log_weight = _zoom(lambda share, k: self._weigh_common(name, share, k), len(level), len(self.points))
        none = self._weigh_common(name, np.zeros((len(level), 1)), slice(None))[0] + np.log(NO_FLOOR)
        prior = np.log((1 - NO_FLOOR) / LARGEST_SHARE)
        return Form(np.append(share, np.zeros((len(level), 1)), 1), level + np.append(log_weight + prior, none, 1))

    def _weigh_common(self, name: str, share: np.ndarray, k: Any) -> tuple[np.ndarray, np.ndarray]:
        """Log likelihood times exp(-p), and chi^2 (K, S), of a form with one floor, at the levels k."""
        lines, plain = self._lines(share, self.variance[k]), self._lines(share, self._reference)
        V = len(self.points.names)
        if name == "shared":
            xy, xx = lines.xy.sum(-1), lines.xx.sum(-1)
            chi2, falls, p = lines.yy.sum(-1) - xy**2 / xx, xy < 0, V + 1
            known = np.log(plain.xx.sum(-1) / xx) + np.log(plain.total / lines.total).sum(-1)
        else:
            chi2, falls, p = (lines.yy - lines.xy**2 / lines.xx).sum(-1), (lines.xy < 0).all(-1), 2 * V
            known = np.log(plain.xx * plain.total / lines.xx / lines.total).sum(-1)
        return np.where(falls, (known - chi2) / 2 - p, -np.inf), chi2

    @cached_property
    def _reference(self) -> np.ndarray:
        """Variances (1, n) that densities are measured against: lines fitted then cost degrees of freedom alone."""
        variance = np.diag(self.points.cov)[None]
        return variance if self.points.dof >= 1 else variance * self._residual_scale()

    def _residual_scale(self) -> float:
        """Scale of the noise where only lines through the losses tell it."""
        V, n = len(self.points.names), len(self.points)
        lines = self._lines((np.arange(NODES)[None] + 0.5) / NODES * LARGEST_SHARE, np.diag(self.points.cov)[None])
        own = (lines.yy - lines.xy**2 / lines.xx).sum(-1).min() / max(n - 2 * V, 1)
        shared = (lines.yy.sum(-1) - lines.xy.sum(-1) ** 2 / lines.xx.sum(-1)).min() / max(n - V - 1, 1)
        return max(float(own if n > 2 * V else shared), NOISE_RANGE[0] ** 2)

    def _lines(self, share: np.ndarray, variance: np.ndarray) -> Lines:
        """Weighted sums of the lines log(L - E) of every variant; share (K, S), variance (K, n)."""
        part = share[..., None] * np.exp(self.points.y.min() - self.points.y)
        part = np.minimum(part, 1 - 1e-12)  # above another variant's loss: its line is then nobody's
        z = self.points.y + np.log1p(-part)
        z = z - z.mean(-1, keepdims=True)
        w = (1 - part) ** 2 / variance[:, None, :]  # an error of log L grows by L / (L - E)
        mine = (self.points.member[:, None] == np.arange(len(self.points.names))).astype(float)
        x = self.points.log_x - self.middle
        total = w @ mine
        mx, mz = (w * x) @ mine / total, (w * z) @ mine / total
        dx, dz = x - mx[..., self.points.member], z - mz[..., self.points.member]
        return Lines(total, (w * dx * dx) @ mine, (w * dx * dz) @ mine, (w * dz * dz) @ mine)

    def _weigh_separate(self) -> tuple[np.ndarray, np.ndarray]:
        """Common floors and log weights (K, S), own floors summed over."""
        common = (np.arange(NODES) + 0.5) / NODES * LARGEST_SHARE
        found = np.full((len(self.levels.scale), NODES), -2.0 * len(self._own_floors) - np.log(NODES))
        for (share, weight), end in zip(self._own_floors, self._own_ends, strict=True):
            both = weight[:, None, :] + _log_near(common[None, :, None], share[:, None, :], end)
            top = both.max(-1, keepdims=True, initial=-1e300)
            found += np.log(np.exp(both - top).sum(-1)) + top[..., 0]
        return np.tile(common, (len(found), 1)), found

    @property
    def _own_ends(self) -> list[float]:
        """The largest floor of each variant, by its own lowest loss, as a share of the lowest of all."""
        y, member = self.points.y, self.points.member
        return [LARGEST_SHARE * float(np.exp(y[member == v].min() - y.min())) for v in range(len(self.points.names))]

    @cached_property
    def _own_floors(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of every variant: floors (K, S) where its weight lies, and log likelihood times their width (K, S)."""
        count, n = len(self.levels.scale), len(self.points)
        return [_zoom(partial(self._weigh_own, v), count, n, end) for v, end in enumerate(self._own_ends)]

    def _weigh_own(self, v: int, share: np.ndarray, k: Any) -> tuple[np.ndarray, np.ndarray]:
        lines, plain = self._lines(share, self.variance[k]), self._lines(share, self._reference)
        total, xx, xy, yy = (part[..., v] for part in lines)
        known, chi2 = np.log(plain.xx[..., v] * plain.total[..., v] / xx / total), yy - xy**2 / xx
        return np.where(xy < 0, (known - chi2) / 2, -np.inf), chi2

    def floors_about(self, common: np.ndarray, level: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Floors (draws, V) of the variants, given the common one and the level of each draw."""
        found = np.empty((len(common), len(self.points.names)))
        for v, (share, weight) in enumerate(self._own_floors):
            log_weight = weight[level] + _log_near(common[:, None], share[level], self._own_ends[v])
            drawn = np.cumsum(np.exp(log_weight - log_weight.max(1, keepdims=True)), 1)
            at = (drawn < rng.random((len(common), 1)) * drawn[:, -1:]).sum(1).clip(0, NODES - 1)
            found[:, v] = share[level, at]
        return found


def _zoom(
    weigh: Callable[[np.ndarray, Any], tuple[np.ndarray, np.ndarray]], count: int, n: int, end: float = LARGEST_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """Floors (K, S) over the range in which the weight of each level lies, and the log weight times their width.

    A peak narrower than the first floors are apart is found from its flanks: chi^2 there counts against its least.
    """
    low, high = np.zeros(count), np.full(count, end)
    share, log_weight, going = np.empty((count, NODES)), np.empty((count, NODES)), np.arange(count)
    for _ in range(ZOOMS):
        width = (high - low) / NODES
        share[going] = low[going, None] + (np.arange(NODES) + 0.5) * width[going, None]
        found, chi2 = weigh(share[going], going)
        log_weight[going] = found + np.log(width[going, None])
        heat = np.maximum(1.0, chi2.min(1, keepdims=True) / n)
        top = found.max(1, keepdims=True)
        kept = (found - np.where(np.isfinite(top), top, 0.0)) / heat > np.log(NEGLIGIBLE)
        first, last = kept.argmax(1), NODES - 1 - kept[:, ::-1].argmax(1)
        new_low = np.maximum(low[going], share[going, first] - 1.5 * width[going])
        new_high = np.minimum(high[going], share[going, last] + 1.5 * width[going])
        closer = kept.any(1) & (new_high - new_low < 0.5 * (high - low)[going])
        low[going[closer]], high[going[closer]] = new_low[closer], new_high[closer]
        going = going[closer]
        if not len(going):
            break
    return share, log_weight


def _log_near(common: np.ndarray, own: np.ndarray, end: float) -> np.ndarray:
    """Log density of a variant's floor about the common one, between 0 and the largest that it can have."""
    span = FLOORS_APART * np.sqrt(2)
    inside = (_erf((end - common) / span) + _erf(common / span)) / 2
    near = np.exp(-(((own - common) / FLOORS_APART) ** 2) / 2) / (FLOORS_APART * np.sqrt(2 * np.pi) * inside)
    return np.asarray(np.log((1 - ANYWHERE) * near + ANYWHERE / end))


_erf = np.vectorize(erf, otypes=[float])
