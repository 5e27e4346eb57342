"""The optimum of the summed robust loss on log residuals, for many data sets at once, in float64.

    minimise  sum_i w_i h(log L_i - LSE_k(z_ik)),   z_ik = offset_ik + sum_p Z_ikp theta_p
    h(r) = m (|r| - m / 2), m = min(|r|, delta):  Huber (1964); delta = inf gives squares

`search` runs optax.lbfgs from many starts; `polish` runs damped Newton (Levenberg-Marquardt) steps along a
decreasing schedule of delta until the gradient norm is below a tolerance (newton.py). Least absolute
deviations is the end of that schedule. Fits share a program of fixed size, so that one compilation serves
every fit of a size and memory does not grow with their number.
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
from jaxscale.fit import newton
from jaxscale.fit.design import Problem

__all__ = ["Lanes", "Solution", "keep_programs", "polish", "search"]

SMALLEST = 16
"""Slots of the smallest program, and of `search`: one for each start."""
ROWS = 64
IN_CACHE = 16384
"""Slots x rows of a program: about ten arrays of this size in float64 are what the second cache holds."""
SHIFT = 4
"""Steps between two looks at which slots are free."""
SEARCH_STEPS = 3
SEARCH_ROWS = 4096
BACKTRACKS = 15


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
    """theta (R, P) after SEARCH_STEPS steps of optax.lbfgs, vmapped over the lanes: near, not to tolerance.

    Above SEARCH_ROWS cells it sees every k-th of them: Newton's method sees all.
    """
    n = lanes.y.shape[1]
    seen = slice(None, None, -(-n // SEARCH_ROWS))
    Z, offset = problem.Z[:, seen], problem.offset[:, seen]
    y, w = lanes.y[:, seen], lanes.w[:, seen]
    rows = _round_up(y.shape[1], ROWS) - y.shape[1]
    Z, offset = np.pad(Z, ((0, 0), (0, rows), (0, 0))), np.pad(offset, ((0, 0), (0, rows)))
    found = []
    with jax.enable_x64(True):
        for i in range(0, len(y), SMALLEST):
            pad = max(i + SMALLEST - len(y), 0)
            theta = np.pad(lanes.theta[i : i + SMALLEST], ((0, pad), (0, 0)), mode="edge")
            data = (np.pad(part[i : i + SMALLEST], ((0, pad), (0, rows))) for part in (y, w))
            found.append(np.asarray(_searcher()(Z, offset, theta, *data, delta)))
    return np.concatenate(found)[: len(y)]


def polish(
    problem: Problem, lanes: Lanes, delta: float, *, start_delta: float | None = None, tolerance: float = 1e-9
) -> Solution:
    """Damped Newton steps until the norm of the gradient is below `tolerance`.

    `start_delta` above `delta`: continuation, delta falls by newton.DECAY whenever the gradient has settled.
    A lane that has not come down to `delta` after newton.MAX_STEPS has an infinite value and gradient.

    The lanes wait in a queue: a slot whose fit has ended takes the next one, so that no fit waits for the
    slowest beside it.
    """
    (count, n), P = lanes.y.shape, lanes.theta.shape[1]
    slots, rows = _choose_shape(count, n)
    tables = newton.tabulate(problem, rows)
    deltas = np.array([delta if start_delta is None else max(start_delta, delta), delta])
    theta, value, gradient, hessian = (np.full((count, *shape), np.inf) for shape in ((P,), (), (P,), (P, P)))
    found = Solution(theta, value, gradient, hessian, np.zeros(count, int))
    state, holder, taken = newton.blank(slots, P), np.full(slots, -1), 0
    theta, y, w = np.zeros((slots, P)), np.zeros((slots, rows)), np.zeros((slots, rows))
    while taken < count or (holder >= 0).any():
        free = np.flatnonzero(holder < 0)[: count - taken]
        holder[free] = entering = np.arange(taken, taken + len(free))
        theta[free], y[free, :n], w[free, :n] = (part[entering] for part in lanes)
        taken += len(free)
        limit = SHIFT if taken < count else newton.MAX_STEPS
        reset = np.isin(np.arange(slots), free)
        with jax.enable_x64(True):
            state = newton.advance()(tables, y, w, theta, reset, state, deltas, tolerance, limit)
        done = np.flatnonzero((holder >= 0) & ~np.asarray(state.live))
        _store(found, holder[done], state, done, delta)
        holder[done] = -1
    return found


def _store(found: Solution, fits: np.ndarray, state: newton.State, slots: np.ndarray, delta: float) -> None:
    """Copy what ended in `slots` to its place; one that stopped above `delta` leaves its value infinite."""
    ended = np.asarray(state.delta)[slots] <= delta
    for name in Solution._fields:
        part = np.asarray(getattr(state, name))[slots]
        kept = slice(None) if name in ("theta", "steps") else ended
        getattr(found, name)[fits[kept]] = part[kept]


def _choose_shape(count: int, n: int) -> tuple[int, int]:
    """Slots and padded rows: a new pair compiles a new program, and slots x rows should stay in cache."""
    rows = _round_up(n, ROWS if n <= newton.BLOCK else newton.BLOCK)
    most = max(SMALLEST, IN_CACHE // min(rows, newton.BLOCK) // SMALLEST * SMALLEST)
    return (SMALLEST if count <= SMALLEST else most), rows


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


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


def _value(theta: Any, Z: Any, offset: Any, y: Any, w: Any, delta: Any) -> Any:
    z = offset + (Z.reshape(-1, Z.shape[-1]) @ theta).reshape(offset.shape)
    r = y - jax.nn.logsumexp(z, axis=0)
    m = jnp.minimum(jnp.abs(r), delta)
    return jnp.sum(w * m * (jnp.abs(r) - m / 2))


@lru_cache(maxsize=1)
def _searcher() -> Any:
    # a backtracking line search compiles twice as fast as optax's zoom; the last digits are Newton's work
    optimizer = optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(BACKTRACKS, store_grad=True))

    def lane(Z: Any, offset: Any, theta: Any, y: Any, w: Any, delta: Any) -> Any:
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
        return theta

    return jax.jit(jax.vmap(lane, in_axes=(None, None, 0, 0, 0, None)))
