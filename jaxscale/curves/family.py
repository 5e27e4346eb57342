"""One family of learning curves fitted to one curve: least squares of log loss, with a residual bootstrap.

    minimise  sum_i w_i (log L_i - log L(D_i))^2,   for `cortes` with the training errors in the same sum

Every fit is local; it starts from many places (the law's `guess`), its bootstrap rounds from two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.fit.squares import NEAR, REFIT_STEPS, Model, Solved, leverage_of, redraw, solve
from jaxscale.laws.base import Law
from jaxscale.laws.curves import Cortes

__all__ = ["CurveData", "Family", "Fitted"]

STARTS = 32


@dataclass(frozen=True)
class CurveData:
    """D (n,) rising, test loss (n,), and training loss (n,) where it was measured."""

    D: np.ndarray
    loss: np.ndarray
    train: np.ndarray | None = None

    @property
    def distinct(self) -> np.ndarray:
        """The different D: repeated ones are seeds of one point."""
        return np.unique(self.D)


@dataclass(frozen=True)
class Fitted:
    """theta (P,) with residuals of log loss (rows,), leverage (rows,) and whether the optimum was met."""

    theta: np.ndarray
    residual: np.ndarray
    leverage: np.ndarray
    converged: bool

    @property
    def rms(self) -> float:
        """Root mean square of the residuals of log loss, without a correction for parameters."""
        return float(np.sqrt((self.residual**2).mean()))

    @property
    def noise(self) -> float:
        """Deviation of one point about the curve, in log loss, corrected for the parameters."""
        dof = len(self.residual) - len(self.theta)
        return float(np.sqrt((self.residual**2).sum() / dof)) if dof > 0 else float("nan")


@dataclass(frozen=True)
class Family:
    """A law bound to the points of a curve; rows of the fit are its test losses, then its training losses."""

    law: type[Law]
    data: CurveData

    @property
    def joint(self) -> bool:
        """Whether training losses enter the fit."""
        return self.law is Cortes

    @property
    def count(self) -> int:
        """Number of parameters."""
        return len(self.law.param_names())

    @property
    def y(self) -> np.ndarray:
        """Log losses (rows,)."""
        parts = [self.data.loss, self.data.train] if self.joint and self.data.train is not None else [self.data.loss]
        return np.log(np.concatenate(parts))

    @property
    def row_D(self) -> np.ndarray:
        """D of each row."""
        return np.tile(self.data.D, len(self.y) // len(self.data.D))

    @property
    def model(self) -> Model:
        """The law as logs of its losses at the rows."""
        D, law = self.data.D, self.law

        def predict(params: Any) -> Any:
            value: Any = law(**params)
            logs = np.log(value.loss(D))
            return np.concatenate([logs, np.log(value.train(D))], -1) if self.joint else logs

        return Model(law.param_names(), frozenset(law.positive), predict)

    def at(self, theta: np.ndarray, D: np.ndarray) -> np.ndarray:
        """Test losses (lanes, len(D)) at theta (lanes, P); NaN outside of the law's domain."""
        with np.errstate(all="ignore"):
            value = self.law(**self.model.params_of(theta)).loss(np.asarray(D, float)[None])
        return np.broadcast_to(value, (len(theta), len(D)))

    def start(self, seed: int, seen: np.ndarray) -> np.ndarray:
        """theta (STARTS, P) from the law's own guess at the points seen (n,)."""
        u = np.random.default_rng(seed).random((STARTS, self.count))
        return self.model.theta_of(self.law.guess({"D": self.data.D[seen]}, self.data.loss[seen], u))

    def fit(self, seed: int = 0) -> Fitted:
        """The best optimum over all starts."""
        return self.fit_each(np.array([np.inf]), seed)[0]

    def fit_each(self, cuts: np.ndarray, seed: int = 0) -> list[Fitted]:
        """A fit for every cut (cuts,) of the points with D up to it."""
        theta = np.concatenate([self.start(seed, cut >= self.data.D) for cut in cuts])
        w = np.repeat((self.row_D[None] <= cuts[:, None]).astype(float), STARTS, 0)
        found = solve(self.model, theta, np.tile(self.y, (len(theta), 1)), w)
        best = np.argmin(found.value.reshape(len(cuts), STARTS), 1) + STARTS * np.arange(len(cuts))
        return [self._describe(found, lane, w[lane] > 0) for lane in best]

    def _describe(self, found: Solved, best: int, seen: np.ndarray) -> Fitted:
        residual = self.y - self.model.predict(self.model.params_of(found.theta[best : best + 1]))[0]
        leverage = np.zeros(len(seen))
        leverage[seen] = leverage_of(found.jacobian[best][seen]) if np.isfinite(found.value[best]) else 1.0
        return Fitted(found.theta[best], residual[seen], leverage[seen], bool(found.converged[best]))

    def refit(self, starts: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """theta (lanes, P) for other data y (lanes, rows), from each of starts (k, lanes, P) the lowest."""
        found = [solve(self.model, theta, y, w, steps=REFIT_STEPS, cosine=NEAR) for theta in starts]
        lowest = np.argmin([one.value for one in found], 0)
        return np.stack([one.theta for one in found])[lowest, np.arange(len(y))]

    def bootstrap(self, fitted: Fitted, rounds: int, seed: int) -> np.ndarray:
        """theta (rounds, P) of data redrawn about the fit: residuals over sqrt(1 - leverage), t-widened."""
        return redraw(self.model, fitted.theta, self.y, rounds, seed)
