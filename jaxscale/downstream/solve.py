"""Bounded nonlinear least squares for many small problems at once, in float64.

    minimise  1/2 sum_i r_i(theta)^2    subject to  low <= theta <= high

Levenberg-Marquardt with Marquardt's scaling; a parameter at a bound whose gradient points outward is held there for
the step. One lane is one problem: a start, a bootstrap round, a backtest's split. All lanes run in one compiled
program until each has converged, so equal shapes share one compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["STEPS", "Found", "lowest_of_starts", "solve"]

STEPS = 200
FIRST, EASE, REJECT, STUCK = 1e-2, 0.25, 4.0, 1e14
"""Damping: at first, after a step down, after a step up, and where no step goes down any more."""
ROUNDING = 1e-15
SLOTS = (32, 512)
"""Lanes of a program; more take one of their own size."""


class Found(NamedTuple):
    """theta (lanes, P), the sum of squares / 2 there, and the largest free component of the scaled gradient."""

    theta: np.ndarray
    value: np.ndarray
    gradient: np.ndarray


def solve(
    residual: Callable[..., Any],
    theta: np.ndarray,
    data: Sequence[Any],
    *,
    bounds: tuple[Sequence[float], Sequence[float]],
    free: np.ndarray | None = None,
    steps: int = STEPS,
) -> Found:
    """theta (lanes, P) after the fit; `data` are arrays with a leading axis of lanes, or of 1 for all lanes alike.

    `residual(theta, *data of a lane) -> (n,)` must be traceable and is the key of the compiled program. Lanes are
    filled up to a few sizes, so that a file's tasks, splits and starts need few programs.
    """
    lanes, P = theta.shape
    free = np.ones((1, P)) if free is None else free
    slots = next((size for size in SLOTS if lanes <= size), lanes)

    def fill(part: Any) -> np.ndarray:
        part = np.asarray(part, float)
        part = np.broadcast_to(part, (lanes, *part.shape[1:]))
        return np.concatenate([part, np.repeat(part[:1], slots - lanes, 0)]) if slots > lanes else part

    with jax.enable_x64(True):
        out = _run(residual, steps, *(jnp.asarray(end, float) for end in bounds), *map(fill, [theta, free, *data]))
        theta, value, gradient, hessian = (np.asarray(part)[:lanes] for part in out)
    held = ((theta <= bounds[0]) & (gradient > 0)) | ((theta >= bounds[1]) & (gradient < 0)) | (free == 0)
    curvature = np.maximum(np.diagonal(hessian, axis1=1, axis2=2), 1e-30)
    slope = np.where(held, 0.0, np.abs(gradient)) / np.sqrt(curvature * (2 * value[:, None] + 1e-300))
    return Found(theta, value, slope.max(1))


def lowest_of_starts(found: Found, starts: int) -> Found:
    """The best of every `starts` neighbouring lanes."""
    value = np.where(np.isfinite(found.value), found.value, np.inf).reshape(-1, starts)
    best = value.argmin(1) + np.arange(len(value)) * starts
    return Found(*(part[best] for part in found))


@partial(jax.jit, static_argnums=0)
def _run(residual: Any, steps: Any, low: Any, high: Any, theta: Any, free: Any, *data: Any) -> Any:
    def look(theta: Any, *row: Any) -> tuple[Any, Any, Any]:
        r, J = residual(theta, *row), jax.jacfwd(residual)(theta, *row)
        return 0.5 * r @ r, J.T @ r, J.T @ J

    def move(theta: Any, gradient: Any, hessian: Any, damping: Any, free: Any) -> Any:
        held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)) | (free == 0)
        go = jnp.where(held, 0.0, 1.0)
        scale = jnp.maximum(jnp.diag(hessian), 1e-30)
        matrix = hessian * go[:, None] * go + jnp.diag(jnp.where(held, 1.0, damping * scale + 1e-300))
        step = jnp.linalg.solve(matrix, -gradient * go)
        return jnp.clip(theta + jnp.where(jnp.isfinite(step), step, 0.0), low, high)

    def step(carry: Any) -> Any:
        count, trial, at, damping, live = carry
        value = at[1]
        new = (trial, *jax.vmap(look)(trial, *data))
        down = (new[1] < value) & live
        level = down & jnp.isfinite(value) & (value - new[1] <= ROUNDING * value)
        at = jax.tree.map(lambda a, b: jnp.where(down.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, at)
        damping = jnp.where(down, jnp.maximum(damping * EASE, 1e-12), damping * REJECT)
        trial = jax.vmap(move)(at[0], at[2], at[3], damping, free)
        tiny = jnp.max(jnp.abs(trial - at[0]) / (jnp.abs(at[0]) + 1e-8), 1) < 1e-14
        return count + 1, trial, at, damping, live & ~tiny & ~level & (damping < STUCK)

    lanes, P = theta.shape
    nowhere = (theta, jnp.full(lanes, jnp.inf), jnp.zeros((lanes, P)), jnp.zeros((lanes, P, P)))
    begin = (0, theta, nowhere, jnp.full(lanes, FIRST / EASE), jnp.full(lanes, True))
    return jax.lax.while_loop(lambda carry: (carry[0] < steps) & carry[-1].any(), step, begin)[2]
