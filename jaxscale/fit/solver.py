"""The optimum of the summed robust loss on log residuals, for many data sets at once, in float64.

    minimise  sum_i w_i h(log L_i - LSE_k(z_ik)),   z_ik = offset_ik + sum_p Z_ikp theta_p
    h(r) = m (|r| - m / 2), m = min(|r|, delta):  Huber (1964); delta = inf gives squares

A law that is a sum of K positive powers has logs z linear in theta (log A, log B, log E, alpha, beta), so
its log is a log-sum-exp and gradient and Hessian are exact sums over softmax weights:

    d LSE = sum_k s_k Z_k,    d2 LSE = sum_k s_k Z_k Z_k^T - (d LSE)(d LSE)^T

`search` runs optax.lbfgs from many starts; `polish` runs damped Newton (Levenberg-Marquardt) steps along a
decreasing schedule of delta until the gradient norm is below a tolerance. Least absolute deviations is the
end of that schedule. Lanes run in chunks so that one compiled program serves every fit of a size.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxscale.config import MeshConfig
from jaxscale.fit.design import Problem

__all__ = ["Lanes", "Solution", "keep_programs", "polish", "search"]

CHUNK = 64
ROWS = 64
"""Lanes and rows are padded to multiples of these: a new size compiles a new program."""
SEARCH_STEPS = 40
BACKTRACKS = 15
MAX_STEPS = 300
FIRST_DAMPING, STUCK = 1e-3, 1e6
"""A lane whose steps no longer lower the value at STUCK has met the rounding of float64."""
DECAY, SETTLED, PATIENCE = 0.4, 0.1, 12
"""Continuation: delta falls once the gradient is below SETTLED * delta, or after PATIENCE steps."""


class Lanes(NamedTuple):
    """One fit a lane: theta (R, P) to start from, y = log loss (R, n), w (R, n)."""

    theta: np.ndarray
    y: np.ndarray
    w: np.ndarray


class Solution(NamedTuple):
    """theta (R, P), value (R,), gradient (R, P) and Hessian (R, P, P) there, steps (R,)."""

    theta: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    steps: np.ndarray


def search(problem: Problem, lanes: Lanes, delta: float) -> np.ndarray:
    """theta (R, P) after SEARCH_STEPS steps of optax.lbfgs, vmapped over the lanes: near, not to tolerance."""
    return _run(_searcher, problem, lanes, np.full(1, delta), 0.0)[0]


def polish(
    problem: Problem, lanes: Lanes, delta: float, *, start_delta: float | None = None, tolerance: float = 1e-9
) -> Solution:
    """Damped Newton steps until the norm of the gradient is below `tolerance`.

    `start_delta` above `delta`: continuation, delta falls by DECAY whenever the gradient has settled.
    """
    start = delta if start_delta is None else max(start_delta, delta)
    return Solution(*_run(_polisher, problem, lanes, np.array([start, delta]), tolerance))


def _run(make: Any, problem: Problem, lanes: Lanes, deltas: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """Pad rows (weight 0) and lanes, run chunk by chunk in float64, cut the padding off again."""
    count, n = lanes.y.shape
    rows = -n % ROWS
    Z = np.pad(problem.Z, ((0, 0), (0, rows), (0, 0)))
    offset = np.pad(problem.offset, ((0, 0), (0, rows)))
    y, w = (np.pad(part, ((0, -count % CHUNK), (0, rows)), mode="constant") for part in lanes[1:])
    theta = np.pad(lanes.theta, ((0, -count % CHUNK), (0, 0)), mode="edge")
    with jax.enable_x64(True):
        parts = [
            make()(Z, offset, theta[i : i + CHUNK], y[i : i + CHUNK], w[i : i + CHUNK], deltas, tolerance)
            for i in range(0, len(theta), CHUNK)
        ]
        return [np.concatenate([np.asarray(part) for part in column])[:count] for column in zip(*parts, strict=True)]


def keep_programs() -> None:
    """Keep the compiled programs on disk for the next process, unless the caller has set jax's own cache.

    For command lines only: a library leaves its caller's jax configuration alone.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = Path(MeshConfig().compile_cache).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written only costs the time to compile
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _terms(theta: Any, Z: Any, offset: Any) -> Any:
    return offset + (Z.reshape(-1, Z.shape[-1]) @ theta).reshape(offset.shape)


def _value(theta: Any, Z: Any, offset: Any, y: Any, w: Any, delta: Any) -> Any:
    r = y - jax.nn.logsumexp(_terms(theta, Z, offset), axis=0)
    m = jnp.minimum(jnp.abs(r), delta)
    return jnp.sum(w * m * (jnp.abs(r) - m / 2))


def _derivatives(theta: Any, Z: Any, offset: Any, y: Any, w: Any, delta: Any) -> tuple[Any, Any, Any, Any]:
    """Value, gradient (P,), Hessian (P, P), and the damping scale (P,): the diagonal of J^T W J."""
    z = _terms(theta, Z, offset)
    top = jnp.max(z, axis=0)
    s = jnp.exp(z - top)
    total = jnp.sum(s, axis=0)
    r, s = y - top - jnp.log(total), s / total
    J = jnp.sum(s[..., None] * Z, axis=0)
    m = jnp.minimum(jnp.abs(r), delta)
    psi = w * jnp.clip(r, -delta, delta)
    curved = jnp.where(jnp.abs(r) <= delta, w, 0.0) + psi
    outer = (Z[..., :, None] * Z[..., None, :]).reshape(s.size, -1)  # the same for every lane: one product
    bent = ((s * psi).reshape(-1) @ outer).reshape(J.shape[-1], -1)
    hessian = (J * curved[:, None]).T @ J - bent
    scale = jnp.sum(w[:, None] * J**2, axis=0)
    return jnp.sum(w * m * (jnp.abs(r) - m / 2)), -(psi @ J), hessian, scale


@lru_cache(maxsize=1)
def _searcher() -> Any:
    # a backtracking line search compiles twice as fast as optax's zoom; the last digits are Newton's work
    optimizer = optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(BACKTRACKS, store_grad=True))

    def lane(Z: Any, offset: Any, theta: Any, y: Any, w: Any, delta: Any) -> tuple[Any, ...]:
        def objective(theta: Any) -> Any:
            return _value(theta, Z, offset, y, w, delta) / unit

        def step(carry: Any, _: None) -> tuple[Any, None]:
            theta, state = carry
            value, gradient = value_and_grad(theta, state=state)
            update, state = optimizer.update(gradient, state, theta, value=value, grad=gradient, value_fn=objective)
            return (optax.apply_updates(theta, update), state), None

        unit = jnp.minimum(delta, 1.0) ** 2  # brings the objective to the size of a count
        value_and_grad = optax.value_and_grad_from_state(objective)
        (theta, _), _ = jax.lax.scan(step, (theta, optimizer.init(theta)), None, length=SEARCH_STEPS)
        return (theta,)

    lanes = jax.vmap(lane, in_axes=(None, None, 0, 0, 0, None))
    return jax.jit(lambda Z, offset, theta, y, w, deltas, _: lanes(Z, offset, theta, y, w, deltas[0]))


class _State(NamedTuple):
    """One lane of `polish`: where it is, its damping, its delta and the steps spent at that delta."""

    step: Any
    theta: Any
    damping: Any
    delta: Any
    spent: Any
    norm: Any


@lru_cache(maxsize=1)
def _polisher() -> Any:
    def lane(Z: Any, offset: Any, theta: Any, y: Any, w: Any, deltas: Any, tolerance: Any) -> tuple[Any, ...]:
        final = deltas[1]

        def go_on(state: _State) -> Any:
            unfinished = (state.norm > tolerance) | (state.delta > final)
            return (state.step < MAX_STEPS) & (state.damping < STUCK) & unfinished

        def newton(state: _State) -> _State:
            theta, delta, damping = state.theta, state.delta, state.damping
            value, gradient, hessian, scale = _derivatives(theta, Z, offset, y, w, delta)
            norm = jnp.linalg.norm(gradient)  # where the step begins: the last one is a bonus
            damped = hessian + jnp.diag(damping * (scale + 1e-12 * scale.max()) + 1e-300)
            move = -jnp.linalg.solve(damped, gradient)
            trial = theta + jnp.where(jnp.isfinite(move), move, 0.0)
            better = _value(trial, Z, offset, y, w, delta) <= value * (1 + 1e-15)
            theta = jnp.where(better, trial, theta)
            damping = jnp.clip(damping * jnp.where(better, 0.1, 8.0), 1e-15, STUCK)
            settled = (norm < SETTLED * delta) | (state.spent >= PATIENCE)
            lower = jnp.where(settled, jnp.maximum(delta * DECAY, final), delta)
            damping = jnp.where(lower < delta, FIRST_DAMPING, damping)
            spent = jnp.where(lower < delta, 0, state.spent + 1)
            return _State(state.step + 1, theta, damping, lower, spent, norm)

        zero = jnp.zeros((), theta.dtype)
        state = _State(0, theta, zero + FIRST_DAMPING, zero + deltas[0], 0, zero + jnp.inf)
        state = jax.lax.while_loop(go_on, newton, state)
        value, gradient, hessian, _ = _derivatives(state.theta, Z, offset, y, w, final)
        return state.theta, value, gradient, hessian, state.step

    return jax.jit(jax.vmap(lane, in_axes=(None, None, 0, 0, 0, None, None)))
