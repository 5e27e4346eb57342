"""What a fit's bootstrap rounds say of runs not made: the variance of the forecast after a run, before it is paid for.

A round r predicts the target, f_r = log L_opt(C*), and what a run would show, y_r. With S the covariance of these
over the rounds and s the variance of the run's noise, the rounds after the run (linear Bayes, Hartigan 1969) have

    S' = S - S_y S_y^T / (S_yy + s),      gain = S_fy^2 / (S_yy + s)

For a law that is linear in its parameters S is X (J^T W J)^-1 X^T, and this is the c-optimal design's
g^T (J^T W J)^-1 g, updated by a row (Fedorov 1972; Atkinson, Donev and Tobias 2007, ch. 10). For any other law
the rounds are the linearization, and what they assume about E is in them.

parametric  y is the cell's own log L(N, D).
isoflop     a cell alone shows nothing of its law: what it reads is the minimum of a budget, y = log L_opt(C), with
            variance v = sigma^2 [(X^T W X)^-1]_00, X = (1, t, t^2), t = log N - log N_opt(C), W the runs of each size
            (the parabola's minimum by the delta method; two powers differ from it in the third order of t).
            More runs in a budget take v to v': as much as a new reading of variance 1 / (1/v' - 1/v).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.minima import MIN_SIZES
from jaxscale.fit.result import Fit

__all__ = ["Belief", "Places", "condition", "form_belief", "noise_of"]

FEWEST_ROUNDS = 100
"""Bootstrap rounds below which a covariance over them says little."""


@dataclass(frozen=True)
class Places:
    """Where runs are or may be, arrays (n,): budget number, N, D, cost of a run (FLOPs), whether one may be chosen.

    `budget_C` (budgets,) FLOPs by rising C.
    """

    budget: np.ndarray
    N: np.ndarray
    D: np.ndarray
    cost: np.ndarray
    offered: np.ndarray
    budget_C: np.ndarray

    def __len__(self) -> int:
        return len(self.N)




@dataclass(frozen=True)
class Belief:
    """A fit as the criterion sees it: `S` (1 + observables, same), the target first; `noise` variance of one run.

    `by_budget`: observables are minima of budgets; `t` (n,) is then log N - log N_opt of each place.
    """

    fit: Fit
    S: np.ndarray
    noise: float
    places: Places
    t: np.ndarray
    by_budget: bool

    def observe(self, S: np.ndarray, counts: np.ndarray, move: tuple[int, ...]) -> np.ndarray:
        """S after one more run at each place of `move` (all in one budget), `counts` (n,) runs being there before."""
        if not self.by_budget:
            for place in move:
                S = condition(S, 1 + place, self.noise)
            return S
        budget = int(self.places.budget[move[0]])
        grown = counts.copy()
        np.add.at(grown, list(move), 1.0)
        more = self.precision(budget, grown) - self.precision(budget, counts)
        return condition(S, 1 + budget, 1 / more) if more > 1e-9 / self.noise else S

    def precision(self, budget: int, counts: np.ndarray) -> float:
        """1 / variance of the log loss at a budget's minimum under `counts` runs; 0 where there is no minimum."""
        inside = (self.places.budget == budget) & (counts > 0)
        t, w = self.t[inside], counts[inside]
        if len(np.unique(t)) < MIN_SIZES or not t.min() < 0 < t.max():
            return 0.0
        X = np.vander(t, 3, increasing=True)
        return float(1 / (self.noise * np.linalg.inv(X.T @ (w[:, None] * X))[0, 0]))


def condition(S: np.ndarray, at: int, variance: float) -> np.ndarray:
    """Covariance after observable `at` was seen once with this variance.

    >>> condition(np.array([[4.0, 2.0], [2.0, 1.0]]), 1, 1.0).tolist()
    [[2.0, 1.0], [1.0, 0.5]]
    """
    column = S[:, at]
    return np.asarray(S - np.outer(column, column) / (column[at] + variance))


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # rounds without an optimum are left out
def form_belief(fit: Fit, places: Places, target_C: float) -> Belief:
    """The belief behind a fit's forecast at `target_C` FLOPs; errors name what the fit lacks."""
    if fit.method == "envelope":
        raise MisuseError("envelope: a staircase of best sizes moves by jumps, so that no run has a gain; declare "
                          "isoflop or parametric for --next")  # fmt: skip
    fit.require_answer()
    noise = noise_of(fit)
    target = np.log(fit.sample_optimum(target_C).loss)
    by_budget = fit.method == "isoflop"
    if by_budget:
        seen = np.log(fit.sample_optimum(places.budget_C).loss)
    else:
        law = fit.sampled_law()
        seen = np.log(np.stack([law.loss(N, D) for N, D in zip(places.N, places.D, strict=True)], 1))
    rounds = np.column_stack([target, seen])
    rounds = rounds[np.isfinite(rounds).all(1)]
    if len(rounds) < FEWEST_ROUNDS:
        raise VerdictError(f"{fit.method} fit: {len(rounds)} bootstrap rounds have a forecast, {FEWEST_ROUNDS} are "
                           f"needed to weigh cells; use --bootstrap 1000 or measure more")  # fmt: skip
    log_N_opt = np.log(fit.predict_optimum(places.budget_C).N)
    t = np.log(places.N) - log_N_opt[places.budget]
    return Belief(fit, np.cov(rounds, rowvar=False), noise**2, places, t, by_budget)


def noise_of(fit: Fit) -> float:
    """Deviation of one run's log loss: between seeds, else about the fit; VerdictError without either."""
    found = next((fit.noise[name] for name in ("seed_std", "residual_std") if fit.noise.get(name)), None)
    if not found:
        raise VerdictError(f"{fit.method} fit: no noise estimate, so that no run has a known gain; train a second seed "
                           f"of some cells (grid.seeds), or more sizes than a curve has coefficients")  # fmt: skip
    return float(found)
