"""Any law by automatic differentiation: the dense twin of design.py and solver.py.

    minimise  sum_i w_i h(log L_i - log f(x_i; theta)),   f a `Law`, h Huber's loss

theta holds every parameter of the law, logs of the positive ones; a mask (lanes, P) says which may move, so
that `fix`, a profile and a free fit are one compiled program. Steps are damped Newton with exact gradient
and Hessian from jax, delta lowered step by step to its end. Starts: the best of many guesses of the law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.fit.cells import Cells
from jaxscale.fit.solver import Lanes, Solution
from jaxscale.laws import Law

__all__ = ["GeneralDesign", "build_general"]

CHUNK, ROWS = 16, 64
"""Lanes and rows are padded to multiples of these: a new size compiles a new program."""
GUESSES, STARTS = 2048, 32
MAX_STEPS, FIRST_DAMPING, STUCK = 400, 1e-2, 1e9
LARGEST_STEP = 5.0
"""In theta, whose logs span decades: an indefinite Hessian must not throw a lane out of the data."""
DECAY, SETTLED, PATIENCE = 0.4, 0.1, 12
"""Continuation: delta falls once the gradient is below SETTLED * delta, or after PATIENCE steps."""


@dataclass(frozen=True)
class GeneralDesign:
    """A law on its inputs (each (n,)): which parameters are `free`, `fixed` values of the others."""

    law: type[Law]
    inputs: tuple[np.ndarray, ...]
    fixed: dict[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, in the order of theta."""
        return self.law.param_names()

    @property
    def free(self) -> tuple[str, ...]:
        """Parameters that a fit moves."""
        return tuple(name for name in self.names if name not in self.fixed)

    @property
    def mask(self) -> np.ndarray:
        """1 for free parameters (P,)."""
        return np.array([name not in self.fixed for name in self.names], float)

    def fix(self, values: Mapping[str, float]) -> GeneralDesign:
        """The same with more parameters held still."""
        return replace(self, fixed={**self.fixed, **values})

    def params_of(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters by name, each (R,), from theta (R, P)."""
        return {
            name: np.exp(column) if name in self.law.positive else column.copy()
            for name, column in zip(self.names, theta.T, strict=True)
        }

    def theta_of(self, params: Mapping[str, Any]) -> np.ndarray:
        """theta (R, P) from parameters (R,); fixed ones have their fixed value."""
        rows = max(np.size(params[name]) for name in self.names if name in params)
        columns = []
        with np.errstate(divide="ignore"):
            for name in self.names:
                value = np.broadcast_to(np.asarray(self.fixed.get(name, params.get(name)), float), (rows,))
                columns.append(np.log(value) if name in self.law.positive else value)
        return np.stack(columns, -1)

    def gradient_norm(self, gradient: np.ndarray) -> np.ndarray:
        """Norm (R,) over the free parameters."""
        return np.linalg.norm(gradient * self.mask, axis=1)

    def uncentre(self, gradient: np.ndarray) -> np.ndarray:
        """Nothing is centred here."""
        return gradient

    def move(self, theta: np.ndarray, step: np.ndarray) -> np.ndarray:
        """theta (P,) after a step (free,) of the free parameters."""
        moved = theta.copy()
        moved[self.mask > 0] += step
        return moved

    def residuals(self, theta: np.ndarray, y: np.ndarray) -> np.ndarray:
        """y - log f (n,) for one theta (P,)."""
        params = {name: values[0] for name, values in self.params_of(theta[None]).items()}
        return y - np.log(self.law(**params).loss(*self.inputs))

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """d log f / d theta (n, free) for one theta (P,), by complex steps."""
        step, columns = 1e-30, []
        for i in np.flatnonzero(self.mask):
            moved = theta.astype(complex)
            moved[i] += 1j * step
            params = {name: values[0] for name, values in self.params_of(moved[None]).items()}
            columns.append(np.imag(np.log(self.law(**params).loss(*self.inputs))) / step)
        return np.stack(columns, -1)

    def starts(self, cells: Cells) -> np.ndarray:
        """theta (STARTS, P): the guesses that miss the losses least (median absolute log residual)."""
        u = _halton(GUESSES, len(self.names))
        inputs = dict(zip(self.law.inputs, self.inputs, strict=True))
        guesses = self.law.guess(inputs, cells.loss, u)
        theta = self.theta_of({name: np.broadcast_to(guesses[name], GUESSES) for name in self.names})
        params = {name: values[:, None] for name, values in self.params_of(theta).items()}
        some = np.linspace(0, len(cells) - 1, min(len(cells), 256)).astype(int)
        predicted = self.law(**params).loss(*(x[some] for x in self.inputs))
        miss = np.median(np.abs(np.log(cells.loss[some]) - np.log(predicted)), axis=1)
        order = np.argsort(np.where(np.isfinite(miss), miss, np.inf))
        return theta[order[:STARTS]]

    def search(self, lanes: Lanes, delta: float) -> np.ndarray:
        """theta (R, P) near an optimum: continuation from squares down to delta, to a loose tolerance."""
        return self.polish(lanes, delta, start_delta=1e3 * delta, tolerance=1e-6).theta

    def polish(
        self, lanes: Lanes, delta: float, *, start_delta: float | None = None, tolerance: float = 1e-9,
        mask: np.ndarray | None = None,
    ) -> Solution:  # fmt: skip
        """Damped Newton steps until the norm of the gradient is below `tolerance`; mask (R, P) or the design's."""
        start = delta if start_delta is None else max(start_delta, delta)
        masks = np.broadcast_to(self.mask if mask is None else mask, lanes.theta.shape)
        return _run(self, lanes, masks, np.array([start, delta]), tolerance)


def build_general(law: type[Law], cells: Cells, fix: Mapping[str, float]) -> GeneralDesign:
    """The design of a law on cells; `fix` holds some of its parameters still. MisuseError names what is wrong."""
    names = law.param_names()
    for name, value in fix.items():
        if name not in names:
            raise MisuseError(f"fix: {name!r} is no parameter of {law.name}; they are {', '.join(names)}")
        zero = name == "E" and value == 0
        if not np.isfinite(value) or (name in law.positive and value <= 0 and not zero):
            raise MisuseError(f"fix: {name} = {value:g} must be finite{' and above 0' * (name in law.positive)}")
    if set(names) <= set(fix):
        raise MisuseError(f"fix: all {len(names)} parameters are fixed, nothing is left to fit; free one")
    return GeneralDesign(law, tuple(cells.input(name) for name in law.inputs), dict(fix))


def _halton(count: int, dimensions: int) -> np.ndarray:
    """Halton's (1960) even points in the unit cube (count, dimensions)."""
    primes = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)[:dimensions]
    points = np.zeros((count, dimensions))
    for column, base in enumerate(primes):
        index, share = np.arange(1, count + 1), 1.0
        while index.any():
            share /= base
            points[:, column] += share * (index % base)
            index = index // base
    return points


def _run(
    design: GeneralDesign, lanes: Lanes, masks: np.ndarray, deltas: np.ndarray, tolerance: float
) -> Solution:  # fmt: skip
    """Pad rows (weight 0, the last row again) and lanes, run chunk by chunk in float64, cut the padding off."""
    count, n = lanes.y.shape
    rows = -n % ROWS
    inputs = [np.pad(x, (0, rows), mode="edge") for x in design.inputs]
    y, w = (np.pad(part, ((0, 0), (0, rows))) for part in lanes[1:])
    parts = []
    with jax.enable_x64(True):
        solve = _solver(design.law)  # type: ignore[arg-type]
        for i in range(0, count, CHUNK):
            chunk = [np.pad(part[i : i + CHUNK], ((0, max(i + CHUNK - count, 0)), (0, 0)), mode="edge")
                     for part in (lanes.theta, masks, y, w)]  # fmt: skip
            parts.append([np.asarray(part) for part in solve(inputs, *chunk, deltas, tolerance)])
    return Solution(*(np.concatenate(column)[:count] for column in zip(*parts, strict=True)))


@lru_cache(maxsize=64)
def _solver(law: type[Law]) -> Any:
    """The compiled program of one law, vmapped over lanes."""
    positive = np.array([name in law.positive for name in law.param_names()])

    def residuals(theta: Any, inputs: Sequence[Any], y: Any) -> Any:
        fields = [jnp.exp(t) if log else t for t, log in zip(theta, positive, strict=True)]
        return y - jnp.log(law(*fields).loss(*inputs))

    def value(theta: Any, inputs: Any, y: Any, w: Any, delta: Any) -> Any:
        r = jnp.abs(residuals(theta, inputs, y))
        m = jnp.minimum(r, delta)
        return jnp.sum(jnp.where(w > 0, w * m * (r - m / 2), 0.0))

    def derivatives(theta: Any, mask: Any, inputs: Any, y: Any, w: Any, delta: Any) -> tuple[Any, Any, Any]:
        def slope(theta: Any) -> tuple[Any, tuple[Any, Any]]:
            here, gradient = jax.value_and_grad(value)(theta, inputs, y, w, delta)
            return gradient, (here, gradient)

        hessian, (here, gradient) = jax.jacfwd(slope, has_aux=True)(theta)
        return here, gradient * mask, hessian * mask[:, None] * mask

    def lane(inputs: Any, theta: Any, mask: Any, y: Any, w: Any, deltas: Any, tolerance: Any) -> tuple[Any, ...]:
        final = deltas[1]

        def go_on(state: tuple[Any, ...]) -> Any:
            step, _, damping, delta, _, norm = state
            return (step < MAX_STEPS) & (damping < STUCK) & ((norm > tolerance) | (delta > final))

        def newton(state: tuple[Any, ...]) -> tuple[Any, ...]:
            step, theta, damping, delta, spent, _ = state
            here, gradient, hessian = derivatives(theta, mask, inputs, y, w, delta)
            norm, scale = jnp.linalg.norm(gradient), jnp.abs(jnp.diag(hessian))
            damped = hessian + jnp.diag(damping * (scale + 1e-9 * scale.max()) + 1e-300 + (1 - mask))
            move = -jnp.linalg.solve(damped, gradient) * mask
            move = jnp.clip(jnp.where(jnp.isfinite(move), move, 0.0), -LARGEST_STEP, LARGEST_STEP)
            trial = theta + move
            better = (value(trial, inputs, y, w, delta) <= here * (1 + 1e-15)) & (gradient @ move <= 0)
            theta = jnp.where(better, trial, theta)
            damping = jnp.clip(damping * jnp.where(better, 0.1, 8.0), 1e-15, STUCK)
            settled = (norm < SETTLED * delta) | (spent >= PATIENCE)
            lower = jnp.where(settled, jnp.maximum(delta * DECAY, final), delta)
            damping = jnp.where(lower < delta, FIRST_DAMPING, damping)
            return step + 1, theta, damping, lower, jnp.where(lower < delta, 0, spent + 1), norm

        zero = jnp.zeros((), theta.dtype)
        state = (0, theta, zero + FIRST_DAMPING, zero + deltas[0], 0, zero + jnp.inf)
        state = jax.lax.while_loop(go_on, newton, state)
        found, gradient, hessian = derivatives(state[1], mask, inputs, y, w, final)
        return state[1], found, gradient, hessian, state[0]

    return jax.jit(jax.vmap(lane, in_axes=(None, 0, 0, 0, 0, None, None)))
