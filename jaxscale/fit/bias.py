"""Two biases of an envelope's loss, measured: the luck of the lowest, and the steps between sizes.

noise   the lowest of several noisy curves is too low. Rounds redraw the noise about smoother curves; their mean
        envelope minus the envelope of the smoother curves themselves is the bias.
steps   nothing was trained between two sizes, so the envelope lies above the optimum there, by
        curvature / 2 x (log N - log N_opt)^2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxscale.fit import frontier
from jaxscale.fit.family import Family
from jaxscale.fit.stairs import Lines, climb_stairs, fit_climbs

__all__ = ["Reading", "draw_readings", "measure_noise", "measure_steps", "read_envelope"]

BIAS_ROUNDS = 200
"""Rounds that measure the bias, whatever `bootstrap` is."""
NEARBY = 4.0
"""Sizes within this factor of N_opt tell the curvature of the loss in log N."""


class Reading(NamedTuple):
    """Lines of N and D, and the loss (rounds, points) at the points that stand for the envelope."""

    lines: Lines
    loss: np.ndarray

    def laws(self, C: np.ndarray, *, free_E: bool) -> dict[str, np.ndarray]:
        """a, G, b, H, E, A, alpha (rounds,), C (points,)."""
        law = frontier.fit_loss_laws(C, self.loss, free_E=free_E)
        a, log_G, b, log_H, _ = self.lines
        values = (a, np.exp(log_G), b, np.exp(log_H), law.E, law.A, law.alpha)
        return dict(zip(("a", "G", "b", "H", "E", "A", "alpha"), values, strict=True))


def read_envelope(losses: np.ndarray, family: Family, at: np.ndarray) -> Reading:
    """The envelope of losses (rounds, S, K): its lines, and its loss at grid points `at`."""
    path = climb_stairs(losses, family.grid.there)
    loss = np.take_along_axis(losses[:, :, at], path[:, None, at], 1)[:, 0]
    return Reading(fit_climbs(path, family.grid), loss)


def draw_readings(family: Family, rounds: int, at: np.ndarray, rng: np.random.Generator) -> Reading:
    """The same for redrawn curves, `rounds` of them."""
    read = [read_envelope(losses, family, at) for losses in family.draw(rounds, rng)]
    if not read:
        return Reading(Lines(*np.empty((5, 0))), np.empty((0, len(at))))
    lines = Lines(*(np.concatenate(part) for part in zip(*(one.lines for one in read), strict=True)))
    return Reading(lines, np.concatenate([one.loss for one in read]))


def measure_noise(family: Family, at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How far (points,) the lowest of noisy curves lies from the lowest of the curves, on average: below zero."""
    smoother = family.smoother()
    return np.asarray(
        draw_readings(smoother, BIAS_ROUNDS, at, rng).loss.mean(0)
        - read_envelope(smoother.losses[None], family, at).loss[0]
    )


def measure_steps(family: Family, path: np.ndarray, lines: Lines, at: np.ndarray) -> np.ndarray:
    """How far (points,) the envelope lies above the optimum because nothing was trained between two sizes.

    The curvature is the median, over the points, of that of a parabola in log N through all sizes within
    NEARBY of N_opt: the winner and its neighbours alone would show the luck that made it win.
    """
    grid = family.grid
    log_N_opt = lines.log_G[0] + lines.a[0] * grid.log_C[at]
    near = grid.there[:, at] & (np.abs(grid.log_N[:, None] - log_N_opt) <= np.log(NEARBY))
    curvatures = [
        2 * np.polyfit(grid.log_N[inside], family.losses[inside, i], 2)[0]
        for i, inside in zip(at, near.T, strict=True)
        if inside.sum() > 2
    ]
    if not curvatures:
        return np.zeros(len(at))
    farthest = np.diff(grid.log_N[near.any(1)]).max() / 2
    off = np.clip(grid.log_N[path[at]] - log_N_opt, -farthest, farthest)
    return np.asarray(max(float(np.median(curvatures)), 0.0) / 2 * off**2)
