"""Least squares for small fits of any shape: many starts or many redrawn data sets at once, in numpy.

    minimise  sum_i w_i (y_i - f_i(theta))^2        Levenberg 1944, Marquardt 1963, scaled as by More 1978

Learning curves have ten points and five parameters, and a question about them needs thousands of fits of ten
different laws. A jax program would be compiled for each law and shape, longer than all of those fits take here.
f may be any function of the parameters that numpy can evaluate at complex numbers: the Jacobian is a complex
step, exact to rounding. A parameter called positive is moved in its log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxscale.fit.resample import NoiseModel, draw_errors

__all__ = ["Model", "Solved", "aicc", "best_lane", "leverage_of", "redraw", "solve"]

STEP = 1e-100
MAX_STEPS = 120
FIRST_DAMPING, STUCK = 1e-3, 1e10
COSINE = 1e-7
"""Converged: cosine of the angle between the residual and any column of the Jacobian. The value of the sum only
resolves 1e-8: a step at that angle lowers it by 1e-16 of itself."""
EXACT = 1e-24
"""Or the data are met to rounding: the sum of squares over that of y."""
NEAR, REFIT_STEPS = 1e-4, 60
"""Where a redrawn fit may stop: its sum of squares is then 1e-8 of itself above the optimum's."""
LOG_RANGE = 200.0
"""Logs of positive parameters stay within this of 0: a parameter that runs to 0 stops somewhere."""


@dataclass(frozen=True)
class Model:
    """f as a function of named parameters, each (lanes, 1), giving (lanes, n) in the space of y."""

    names: tuple[str, ...]
    positive: frozenset[str]
    predict: Callable[[Mapping[str, Any]], Any]

    def params_of(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters (lanes, 1) at theta (lanes, P), which may be complex."""
        columns = {name: theta[:, i : i + 1] for i, name in enumerate(self.names)}
        return {name: np.exp(column) if name in self.positive else column for name, column in columns.items()}

    def theta_of(self, params: Mapping[str, Any]) -> np.ndarray:
        """theta (lanes, P) at parameters (lanes,)."""
        columns = [np.log(params[name]) if name in self.positive else params[name] for name in self.names]
        return np.stack(np.broadcast_arrays(*(np.asarray(column, float) for column in columns)), -1)


class Solved(NamedTuple):
    """theta (lanes, P), sum of squares (lanes,), whether it converged, Jacobian (lanes, n, P)."""

    theta: np.ndarray
    value: np.ndarray
    converged: np.ndarray
    jacobian: np.ndarray


@np.errstate(all="ignore")  # a step that leaves the law's domain is not finite, and is not taken
def solve(
    model: Model, theta: np.ndarray, y: np.ndarray, w: np.ndarray, steps: int = MAX_STEPS, cosine: float = COSINE
) -> Solved:
    """Local optimum of every lane from theta (lanes, P); y and w (lanes, n), a row of w = 0 leaves a point out."""
    theta, y, w = np.array(theta, float), np.asarray(y, float), np.asarray(w, float)
    value = _value(model, theta, y, w)
    damping = np.full(len(theta), FIRST_DAMPING)
    converged = np.zeros(len(theta), bool)
    floor = EXACT * (w * y**2).sum(1)
    going = np.flatnonzero(np.isfinite(value))
    for _ in range(steps):
        if not len(going):
            break
        moved, lower, done = _step(model, theta[going], y[going], w[going], value[going], damping[going], cosine)
        better = lower <= value[going] * (1 + 1e-15)
        theta[going[better]], value[going[better]] = moved[better], lower[better]
        damping[going] = np.clip(damping[going] * np.where(better, 0.2, 6.0), 1e-15, None)
        converged[going] = done | (value[going] <= floor[going])
        going = going[~converged[going] & (damping[going] < STUCK)]
    converged |= damping >= STUCK  # no step lowers the value: rounding, or a kink, has been met
    return Solved(theta, np.where(np.isfinite(value), value, np.inf), converged, _jacobian(model, theta))


def best_lane(found: Solved) -> int:
    """The lane of the lowest sum."""
    return int(np.argmin(found.value))


@np.errstate(all="ignore")
def redraw(model: Model, theta: np.ndarray, y: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """theta (rounds, P) of a residual bootstrap about an optimum theta (P,) of y (n,): errors r / sqrt(1 - h)
    drawn anew and widened as t; no rounds where no degree of freedom is left."""
    n, dof = len(y), len(y) - len(theta)
    if not rounds or dof < 1:
        return np.empty((0, len(theta)))
    fitted = model.predict(model.params_of(theta[None]))[0]
    leverage, zero = leverage_of(_jacobian(model, theta[None])[0]), np.zeros(1)
    noise = NoiseModel(
        residual=y - fitted, leverage=leverage, weight=np.ones(n), stratum=np.zeros(n, int), cluster=np.arange(n),
        dof=zero + dof, seed_ss=zero, seed_dof=zero,
    )  # fmt: skip
    drawn = fitted + draw_errors(noise, "residual", rounds, np.random.default_rng(seed))
    return solve(model, np.tile(theta, (rounds, 1)), drawn, np.ones_like(drawn), REFIT_STEPS, NEAR).theta


def leverage_of(jacobian: np.ndarray) -> np.ndarray:
    """Diagonal of the hat matrix (n,) of a Jacobian (n, P)."""
    J = np.where(np.isfinite(jacobian), jacobian, 0.0)
    return (np.linalg.qr(J / (np.abs(J).max(0) + 1e-150))[0] ** 2).sum(1)


def aicc(ss: float, n: int, p: int) -> float:
    """Akaike's criterion for few data (Hurvich and Tsai 1989) of p parameters and the noise; infinite without dof.

    >>> round(aicc(1.0, 10, 2), 3)
    -13.026
    """
    k = p + 1
    return float(n * np.log(max(ss, 1e-300) / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)) if n > k + 1 else float("inf")


def _value(model: Model, theta: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        r = np.where(w > 0, y - model.predict(model.params_of(theta)), 0.0)
        value = (w * r**2).sum(1)
    return np.where(np.isfinite(value), value, np.inf)


def _jacobian(model: Model, theta: np.ndarray) -> np.ndarray:
    columns = []
    for i in range(theta.shape[1]):
        moved = theta.astype(complex)
        moved[:, i] += 1j * STEP
        columns.append(np.imag(model.predict(model.params_of(moved))) / STEP)
    return np.stack(columns, -1)


def _step(
    model: Model, theta: np.ndarray, y: np.ndarray, w: np.ndarray, value: np.ndarray, damping: np.ndarray, cosine: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A damped step of every lane, the value there, and whether the lane had converged before it."""
    root = np.sqrt(w)
    r = np.where(w > 0, root * (y - model.predict(model.params_of(theta))), 0.0)
    J = np.where((w > 0)[..., None], root[..., None] * _jacobian(model, theta), 0.0)
    J = np.where(np.isfinite(J), J, 0.0)
    pull = np.einsum("lnp,ln->lp", J, r)
    scale = np.sqrt(np.einsum("lnp,lnp->lp", J, J)) + 1e-150
    done = np.abs(pull / scale).max(1) <= cosine * np.sqrt(value)
    K = J / scale[:, None]  # equal columns: the damping then has no units
    normal = np.einsum("lnp,lnq->lpq", K, K) + damping[:, None, None] * np.eye(K.shape[-1])
    move = np.linalg.solve(normal, (pull / scale)[..., None])[..., 0] / scale
    moved = theta + np.where(np.isfinite(move), move, 0.0)
    logs = [i for i, name in enumerate(model.names) if name in model.positive]
    moved[:, logs] = np.clip(moved[:, logs], -LOG_RANGE, LOG_RANGE)
    return moved, _value(model, moved, y, w), done
