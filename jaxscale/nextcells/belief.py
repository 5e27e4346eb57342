"""What a fit says of runs not made: the variance of its forecast log L_opt(C*) after a run, before it is paid for.

parametric  A bootstrap round r predicts the target f_r and what a run would show, y_r = log L_r(N, D). With S their
            covariance over the rounds and s the variance of the run's noise, linear Bayes (Hartigan 1969) gives

                S' = S - S_y S_y^T / (S_yy + s),      gain = S_fy^2 / (S_yy + s)

            For a law that is linear in its parameters S is X (J^T W J)^-1 X^T, and this is the c-optimal design's
            g^T (J^T W J)^-1 g, updated by a row (Fedorov 1972; Atkinson, Donev and Tobias 2007, ch. 10).
isoflop     A cell alone shows nothing of its law. It reads the minimum of each budget, whose log has the variance

                v = sigma^2 [(X^T W X)^-1]_00,    X = (1, t, t^2),  t = log N - log N_opt(C),  W the runs of a size

            (a parabola's minimum by the delta method; two powers differ from it in the third order of t), and through
            the minima goes the loss law averaged over E. Its variance at the target is computed for the minima as they
            were found, and on the fitted law at budgets not yet measured. Its rounds mix values of E and are no
            linear function of the minima, so that linear Bayes over them is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit import frontier
from jaxscale.fit.minima import MIN_SIZES
from jaxscale.fit.result import Fit

__all__ = ["Belief", "MinimumBelief", "Places", "SurfaceBelief", "condition", "form_belief", "noise_of"]

FEWEST_ROUNDS = 100
"""Bootstrap rounds below which a covariance over them says little."""


@dataclass(frozen=True)
class Places:
    """Where runs are or may be, arrays (n,): budget number, N, D, cost of a run (FLOPs), whether one may be chosen.

    `budget_C` (budgets,) FLOPs by rising C; `t` (n,) log N - log N_opt of the declared fit.
    """

    budget: np.ndarray
    N: np.ndarray
    D: np.ndarray
    cost: np.ndarray
    offered: np.ndarray
    budget_C: np.ndarray
    t: np.ndarray

    def __len__(self) -> int:
        return len(self.N)


class Belief(Protocol):
    """A fit as the criterion sees it. A state is what it needs to know of the runs made and chosen."""

    @property
    def method(self) -> str:
        """Of the fit."""
        ...

    def start(self, counts: np.ndarray) -> Any:
        """The state with `counts` (n,) runs at each place."""
        ...

    def after(self, state: Any, move: tuple[int, ...]) -> Any:
        """The state with one more run at each place of `move`."""
        ...

    def variance(self, state: Any) -> float:
        """Of the forecast log loss."""
        ...


@dataclass(frozen=True)
class SurfaceBelief:
    """S (1 + n, 1 + n): covariance of target and places over the rounds; `noise` the variance of one run."""

    method: str
    S: np.ndarray
    noise: float

    def start(self, counts: np.ndarray) -> np.ndarray:
        """S as the rounds have it: they know the runs made."""
        return self.S

    def after(self, state: np.ndarray, move: tuple[int, ...]) -> np.ndarray:
        """S conditioned on the runs, one by one."""
        for place in move:
            state = condition(state, 1 + place, self.noise)
        return state

    def variance(self, state: np.ndarray) -> float:
        """Of the target."""
        return float(state[0, 0])


class Minima(NamedTuple):
    """Runs at each place (n,), and the variance of log loss at each budget's minimum (budgets,)."""

    counts: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class MinimumBelief:
    """`loss` (budgets,): the minimum measured there, or the fitted law's; `target` FLOPs."""

    method: str
    loss: np.ndarray
    noise: float
    places: Places
    target: float

    def start(self, counts: np.ndarray) -> Minima:
        """The minima under these runs."""
        return Minima(counts, np.array([self.minimum_variance(b, counts) for b in range(len(self.loss))]))

    def after(self, state: Minima, move: tuple[int, ...]) -> Minima:
        """The minima with the runs of a move."""
        counts, variance = state.counts.copy(), state.variance.copy()
        np.add.at(counts, list(move), 1.0)
        for budget in {int(self.places.budget[place]) for place in move}:
            variance[budget] = self.minimum_variance(budget, counts)
        return Minima(counts, variance)

    def variance(self, state: Minima) -> float:
        """Of the averaged loss law at the target, with the noise known to the degrees of freedom of the design."""
        read = np.isfinite(state.variance)
        if read.sum() < 2:
            return np.inf
        dof = state.counts.sum() - 3 * read.sum() - 1
        known = state.variance[read] * (dof / (dof - 2) if dof > 3 else 3.0)
        return frontier.spread_forecast(self.places.budget_C[read], self.loss[read], known, self.target)

    def minimum_variance(self, budget: int, counts: np.ndarray) -> float:
        """Of the log loss at a budget's minimum; infinite where its sizes make none."""
        inside = (self.places.budget == budget) & (counts > 0)
        t, w = self.places.t[inside], counts[inside]
        if len(t) < MIN_SIZES or not t.min() < 0 < t.max():
            return np.inf
        X = np.stack([np.ones(len(t)), t, t**2], 1)
        return float(self.noise * np.linalg.inv(X.T @ (w[:, None] * X))[0, 0])


def condition(S: np.ndarray, at: int, variance: float) -> np.ndarray:
    """Covariance after observable `at` was seen once with this variance.

    >>> condition(np.array([[4.0, 2.0], [2.0, 1.0]]), 1, 1.0).tolist()
    [[2.0, 1.0], [1.0, 0.5]]
    """
    column = S[:, at]
    return np.asarray(S - np.outer(column, column) / (column[at] + variance))


def form_belief(fit: Fit, places: Places, target_C: float) -> Belief:
    """The belief behind a fit's forecast at `target_C` FLOPs; errors name what the fit lacks."""
    if fit.method == "envelope":
        raise MisuseError("declared: an envelope's staircase of best sizes moves by jumps, so that no single run has a "
                          "gain; use --declared isoflop or parametric with --next")  # fmt: skip
    fit.require_answer()
    noise = noise_of(fit) ** 2
    if fit.method == "parametric":
        return SurfaceBelief("parametric", _cover_rounds(fit, places, target_C), noise)
    loss = np.array(fit.predict_optimum(places.budget_C).loss)
    for budget in fit.budgets or ():
        if budget.status == "ok":
            loss[np.argmin(np.abs(np.log(places.budget_C / budget.C)))] = budget.loss_opt
    return MinimumBelief("isoflop", loss, noise, places, target_C)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # rounds without an optimum are left out
def _cover_rounds(fit: Fit, places: Places, target_C: float) -> np.ndarray:
    law = fit.sampled_law()
    seen = [law.loss(N, D) for N, D in zip(places.N, places.D, strict=True)]
    rounds = np.log(np.stack([fit.sample_optimum(target_C).loss, *seen], 1))
    rounds = rounds[np.isfinite(rounds).all(1)]
    if len(rounds) < FEWEST_ROUNDS:
        raise VerdictError(f"{fit.method} fit: {len(rounds)} bootstrap rounds have a forecast, {FEWEST_ROUNDS} are "
                           f"needed to weigh cells; use --bootstrap 1000 or measure more")  # fmt: skip
    return np.cov(rounds, rowvar=False)


def noise_of(fit: Fit) -> float:
    """Deviation of one run's log loss: between seeds, else about the fit; VerdictError without either."""
    found = next((fit.noise[name] for name in ("seed_std", "residual_std") if fit.noise.get(name)), None)
    if not found:
        raise VerdictError(f"{fit.method} fit: no noise estimate, so that no run has a known gain; train a second seed "
                           f"of some cells (grid.seeds), or more sizes than a curve has coefficients")  # fmt: skip
    return float(found)
