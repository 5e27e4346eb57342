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

__all__ = ["Found", "lowest_of_starts", "solve"]

STEPS = 200
FIRST, EASE, REJECT, STUCK = 1e-2, 0.25, 4.0, 1e14
"""Damping: at first, after a step down, after a step up, and where no step goes down any more."""
ROUNDING = 1e-15


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

    `residual(theta, *data of a lane) -> (n,)` must be traceable and is the key of the compiled program.
    """
    lanes, P = theta.shape
    free = np.ones((1, P)) if free is None else free
    axes = tuple(None if len(part) == 1 and lanes > 1 else 0 for part in [*data, free])
    rows = [np.asarray(part, float) for part in [*data, free]]
    rows = [part[0] if axis is None else part for part, axis in zip(rows, axes, strict=True)]
    with jax.enable_x64(True):
        low, high = (jnp.asarray(end, float) for end in bounds)
        out = _run(residual, axes, steps, jnp.asarray(theta, float), low, high, *rows)
        return Found(*(np.asarray(part) for part in out))


def lowest_of_starts(found: Found, starts: int) -> Found:
    """The best of every `starts` neighbouring lanes."""
    value = np.where(np.isfinite(found.value), found.value, np.inf).reshape(-1, starts)
    best = value.argmin(1) + np.arange(len(value)) * starts
    return Found(*(part[best] for part in found))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(residual: Any, axes: Any, steps: int, theta: Any, low: Any, high: Any, *rows: Any) -> Any:
    def look(theta: Any, *row: Any) -> tuple[Any, Any, Any]:
        *data, free = row
        r, J = residual(theta, *data), jax.jacfwd(residual)(theta, *data)
        return 0.5 * r @ r, J.T @ r, J.T @ J

    def move(theta: Any, gradient: Any, hessian: Any, damping: Any, *row: Any) -> Any:
        held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)) | (row[-1] == 0)
        go = jnp.where(held, 0.0, 1.0)
        scale = jnp.maximum(jnp.diag(hessian), 1e-30)
        matrix = hessian * go[:, None] * go + jnp.diag(jnp.where(held, 1.0, damping * scale + 1e-300))
        step = jnp.linalg.solve(matrix, -gradient * go)
        size = jnp.max(jnp.abs(gradient) * go / jnp.sqrt(scale))
        return jnp.clip(theta + jnp.where(jnp.isfinite(step), step, 0.0), low, high), size

    looks = jax.vmap(look, (0, *axes))
    moves = jax.vmap(move, (0, 0, 0, 0, *axes))

    def step(carry: Any) -> Any:
        count, theta, value, gradient, hessian, damping, live = carry
        trial, _ = moves(theta, gradient, hessian, damping, *rows)
        there, its_gradient, its_hessian = looks(trial, *rows)
        down = (there < value) & live
        tiny = jnp.max(jnp.abs(trial - theta) / (jnp.abs(theta) + 1e-8), 1) < 1e-14
        level = down & (value - there <= ROUNDING * value)
        damping = jnp.where(down, jnp.maximum(damping * EASE, 1e-12), damping * REJECT)

        def pick(new: Any, old: Any) -> Any:
            return jnp.where(down.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        live = live & ~tiny & ~level & (damping < STUCK)
        return (count + 1, pick(trial, theta), pick(there, value), pick(its_gradient, gradient),
                pick(its_hessian, hessian), damping, live)  # fmt: skip

    def go_on(carry: Any) -> Any:
        return (carry[0] < steps) & carry[-1].any()

    value, gradient, hessian = looks(theta, *rows)
    begin = (0, theta, value, gradient, hessian, jnp.full(len(theta), FIRST), jnp.isfinite(value))
    _, theta, value, gradient, hessian, damping, _ = jax.lax.while_loop(go_on, step, begin)
    _, size = moves(theta, gradient, hessian, damping, *rows)
    return theta, value, size / jnp.sqrt(2 * value + 1e-300)
