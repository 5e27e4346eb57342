"""Damped Newton steps for many fits at once: the compiled heart of `solver.polish`.

    minimise  sum_i w_i h(r_i),   r_i = log L_i - LSE_k(z_ik),   z_ik = offset_ik + sum_p Z_ikp theta_p

With softmax weights s_k, pull psi = w h'(r) and bend c = w h''(r) + psi (the last for the curvature of LSE),

    gradient_p = - sum_i sum_k  psi s_k Z_kp
    Hessian_pq =   sum_i sum_kl c s_k s_l Z_kp Z_lq  -  sum_i sum_k psi s_k Z_kp Z_kq

Both are linear in the features psi s_k, (c s_k - psi) s_k and c s_k s_l (k < l) of a cell. The columns
Z_kp and Z_kp Z_lq that multiply them are few (1, x, y, x^2, y^2, xy for approach 3), so `tabulate` keeps
each once, and one matrix product of features with columns holds every derivative of every lane.

A step is accepted where it lowers the value (at equal value: the gradient). delta falls by DECAY once the
gradient is small against its own noise, delta sqrt(sum w): the same pass evaluates at the old delta, to
compare, and at the new one, to go on.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.fit.design import Problem

__all__ = ["MAX_STEPS", "State", "Tables", "advance", "blank", "tabulate"]

MAX_STEPS = 500
DECAY, SETTLED, PATIENCE = 0.2, 0.1, 12
"""Continuation: delta falls once the gradient is below SETTLED delta sqrt(sum w), or after PATIENCE steps."""
FIRST_DAMPING, LEAST_DAMPING, STUCK = 1e-3, 1e-15, 1e6
"""A lane whose steps no longer lower the value at STUCK has met the rounding of float64."""
EASE, KEEP, REJECT, REJECTED, TRUSTED = 0.1, 1.0, 4.0, 1e-5, 0.75
"""Factors on the damping: EASE after a step that brought TRUSTED of what it promised, KEEP after a poorer one,
REJECT (from REJECTED at least) after one that went up."""
ROUNDING = 1e-14
"""Relative error of a summed value: below it the gradient decides."""
BLOCK = 1024
"""Rows that one pass holds at a time: memory does not grow with the data."""


class Tables(NamedTuple):
    """A problem as the kernel sees it: columns (U, n), offset (K, n), assembly (F, U, P + P P).

    assembly adds the sums of feature f times column u to the gradient (first P) and the Hessian.
    """

    columns: np.ndarray
    offset: np.ndarray
    assembly: np.ndarray


class State(NamedTuple):
    """Where each lane is (R, ...): value, gradient and Hessian are those at `theta` and `delta`."""

    theta: Any
    value: Any
    gradient: Any
    hessian: Any
    damping: Any
    scale: Any
    delta: Any
    spent: Any
    steps: Any
    live: Any


def tabulate(problem: Problem, rows: int) -> Tables:
    """The distinct columns of a problem, padded with zeros to `rows`, and where their sums belong."""
    Z, offset = problem
    K, n, P = Z.shape
    used = [np.flatnonzero(term.any(0)).tolist() for term in Z]
    place: dict[bytes, int] = {}
    columns: list[np.ndarray] = []
    entries: list[tuple[int, int, int]] = []

    def add(feature: int, column: np.ndarray, target: int) -> None:
        key = column.tobytes()
        if key not in place:
            place[key] = len(columns)
            columns.append(column)
        entries.append((feature, place[key], target))

    pairs = [(k, k) for k in range(K)] + list(combinations(range(K), 2))
    for k in range(K):
        for p in used[k]:
            add(k, Z[k, :, p], p)
    for feature, (k, m) in enumerate(pairs, start=K):
        for one, other in {(k, m), (m, k)}:
            for p, q in product(used[one], used[other]):
                add(feature, Z[one, :, p] * Z[other, :, q], P + p * P + q)
    assembly = np.zeros((K + len(pairs), len(columns), P + P * P))
    np.add.at(assembly, tuple(np.array(entries).T), 1.0)
    pad = ((0, 0), (0, rows - n))
    return Tables(np.pad(np.array(columns), pad), np.pad(offset, pad), assembly)


def blank(lanes: int, P: int) -> State:
    """A state in which nothing is live: every lane waits to be reset."""
    scalar, vector = np.zeros(lanes), np.zeros((lanes, P))
    whole = np.zeros(lanes, int)
    hessian = np.zeros((lanes, P, P))
    return State(vector, scalar, vector, hessian, scalar, vector, scalar, whole, whole, np.zeros(lanes, bool))


@lru_cache(maxsize=1)
def advance() -> Any:
    """The compiled function (tables, y, w, theta, reset, state, deltas, tolerance, limit) -> State.

    Lanes in `reset` begin at their `theta`; then at most `limit` steps of every live lane. y = log loss and
    w are (R, n), deltas (first, last).
    """
    return jax.jit(_advance)


def _advance(
    tables: Tables, y: Any, w: Any, theta: Any, reset: Any, state: State, deltas: Any, tolerance: Any, limit: Any
) -> State:
    last = deltas[1]
    noise = jnp.sqrt(jnp.sum(w, 1))

    def go_on(carry: tuple[Any, State]) -> Any:
        return (carry[0] < limit) & carry[1].live.any()

    def step(carry: tuple[Any, State]) -> tuple[Any, State]:
        count, old = carry
        stuck = old.damping >= STUCK
        settled = stuck | (_norm(old.gradient) < SETTLED * old.delta * noise) | (old.spent >= PATIENCE)
        delta = jnp.where(settled, jnp.maximum(old.delta * DECAY, last), old.delta)
        ridge = old.damping[:, None] * old.scale
        move = -_solve(old.hessian, old.gradient, ridge)
        move = jnp.where(jnp.isfinite(move) & ~stuck[:, None], move, 0.0)
        trial = old.theta + move
        there, value, gradient, hessian = _evaluate(tables, trial, y, w, old.delta, delta)
        lower = there < old.value * (1 - ROUNDING)
        level = (there <= old.value * (1 + ROUNDING)) & ((delta < old.delta) | (_norm(gradient) < _norm(old.gradient)))
        accepted = lower | level
        promised = jnp.sum(move * (ridge * move - old.gradient), 1) / 2
        easy = accepted & (old.value - there > TRUSTED * promised)
        new = _follow(old, State(trial, value, gradient, hessian, *old[4:6], delta, *old[7:]), accepted, easy)
        at_end = (new.delta <= last) & ((_norm(new.gradient) <= tolerance) | (new.damping >= STUCK))
        return count + 1, _where(old.live, new._replace(live=~at_end & (new.steps < MAX_STEPS)), old)

    return jax.lax.while_loop(go_on, step, (0, _where(reset, _begin(theta, deltas[0]), state)))[1]


def _begin(theta: Any, delta: Any) -> State:
    """Before the first step: an infinite value and gradient, so that it only evaluates where it stands."""
    lanes, P = theta.shape
    one, vector = jnp.ones(lanes), jnp.zeros((lanes, P))
    whole = jnp.zeros(lanes, int)
    return State(
        theta, one * jnp.inf, vector + jnp.inf, jnp.zeros((lanes, P, P)), one * FIRST_DAMPING / EASE, vector,
        one * delta, whole, whole, jnp.full(lanes, True),
    )  # fmt: skip


def _follow(old: State, new: State, accepted: Any, easy: Any) -> State:
    """The accepted lanes at their trial, the others where they were; damping and counts of both."""
    fell = accepted & (new.delta < old.delta)
    kept = jnp.where(accepted, old.damping * KEEP, jnp.maximum(old.damping, REJECTED) * REJECT)
    damping = jnp.where(easy, old.damping * EASE, kept)
    damping = jnp.where(fell, FIRST_DAMPING, jnp.clip(damping, LEAST_DAMPING, STUCK))
    chosen = _where(accepted, new, old)
    curvature = jnp.abs(jnp.diagonal(chosen.hessian, axis1=1, axis2=2))
    return chosen._replace(
        damping=damping, scale=jnp.maximum(old.scale, curvature),
        spent=jnp.where(fell, 0, old.spent + 1), steps=old.steps + 1,
    )  # fmt: skip


def _evaluate(tables: Tables, theta: Any, y: Any, w: Any, delta: Any, next_delta: Any) -> tuple[Any, Any, Any, Any]:
    """Value (R,) at delta; value, gradient (R, P) and Hessian (R, P, P) at next_delta; BLOCK rows at a time."""
    (lanes, P), (F, U, _) = theta.shape, tables.assembly.shape
    K, rows = tables.offset.shape
    coefficients = (theta @ tables.assembly[:K, :, :P].reshape(K * U, P).T).reshape(lanes * K, U)

    def block(columns: Any, offset: Any, y: Any, w: Any) -> tuple[Any, Any, Any]:
        z = (coefficients @ columns).reshape(lanes, K, -1) + offset - y[:, None]
        s = jnp.exp(jnp.minimum(z, 700.0))  # exp(710) overflows; such a step is refused by its value
        total = s.sum(1)
        r, s = -jnp.log(total), s / total[:, None]
        clipped = jnp.clip(r, -next_delta[:, None], next_delta[:, None])
        psi = w * clipped
        bend = jnp.where(clipped == r, w, 0.0) + psi
        features = [psi * s[:, k] for k in range(K)] + [(bend * s[:, k] - psi) * s[:, k] for k in range(K)]
        features += [bend * s[:, k] * s[:, m] for k, m in combinations(range(K), 2)]
        sums = jnp.stack(features, 1).reshape(lanes * F, -1) @ columns.T
        return _value(r, w, delta), _value(r, w, next_delta), sums

    if rows <= BLOCK:
        there, value, sums = block(tables.columns, tables.offset, y, w)
    else:

        def add(i: Any, total: Any) -> Any:
            part = [jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, 1) for x in (*tables[:2], y, w)]
            return jax.tree.map(jnp.add, total, block(*part))

        zero = (jnp.zeros(lanes), jnp.zeros(lanes), jnp.zeros((lanes * F, U)))
        there, value, sums = jax.lax.fori_loop(0, rows // BLOCK, add, zero)
    derivatives = sums.reshape(lanes, F * U) @ tables.assembly.reshape(F * U, -1)
    return there, value, -derivatives[:, :P], derivatives[:, P:].reshape(lanes, P, P)


def _value(r: Any, w: Any, delta: Any) -> Any:
    size = jnp.abs(r)
    m = jnp.minimum(size, delta[:, None])
    return jnp.sum(w * m * (size - m / 2), 1)


def _solve(H: Any, g: Any, damping: Any) -> Any:
    """x of (H + diag(damping)) x = g for every lane, by Gauss-Jordan elimination.

    A pivot below 0 is taken by its size (a modified LDL^T), so that -x goes downhill also where H is not
    positive. A loop over the pivots compiles in half the time of an unrolled one, and LAPACK's batched
    solver takes as long as the exponentials of a step.
    """
    P = g.shape[1]
    unit = jnp.eye(P, P + 1)
    augmented = jnp.concatenate([H + damping[:, :, None] * jnp.eye(P), g[:, :, None]], 2)

    def eliminate(j: Any, A: Any) -> Any:
        row, column = A[:, j], A[:, :, j]
        pivot = jnp.abs(row[:, j, None]) + 1e-300
        row = jnp.where(unit[j] > 0, pivot, row)
        column = jnp.where(unit[j, :P] > 0, pivot - 1, column) / pivot
        return A - column[:, :, None] * row[:, None, :]

    return jax.lax.fori_loop(0, P, eliminate, augmented)[:, :, P]


def _norm(gradient: Any) -> Any:
    return jnp.sqrt(jnp.sum(gradient**2, 1))


def _where(chosen: Any, one: State, other: State) -> State:
    return jax.tree.map(lambda a, b: jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other)
