"""What a fit says of runs not made: the variance of its forecast log L_opt(C*) after a run, before it is paid for.

A cell of n runs tells log loss with the information w(n) = 1 / (sigma^2 (share + (1 - share) / n)) of noise.py: sigma
by compute, share the part that its runs have in common.

parametric  A bootstrap round r predicts the target f_r and what a run would show, y_r = log L_r(N, D). With S their
            covariance over the rounds, linear Bayes (Hartigan 1969) gives for one more run of a cell that has n

                S' = S - S_y S_y^T / (S_yy + s),      s = 1 / (w(n + 1) - w(n)),      gain = S_fy^2 / (S_yy + s)

            For a law that is linear in its parameters S is X (J^T W J)^-1 X^T, and this is the c-optimal design's
            g^T (J^T W J)^-1 g, updated by a row (Fedorov 1972; Atkinson, Donev and Tobias 2007, ch. 10).
isoflop     A cell alone shows nothing of its law. It reads the minimum of each budget, whose log has the variance

                v = [(X^T W X)^-1]_00 + m,    X = (1, t, t^2),  t = log N - log N_opt(C),  W = diag w(n)

            (a parabola's minimum by the delta method; two powers differ from it in the third order of t), m the
            variance with which minima miss the law, which no run of the budget averages away. Through
            the minima goes the loss law averaged over E. Its variance at the target is computed for the minima as they
            were found, and on the fitted law at budgets not yet measured. Its rounds mix values of E and are no
            linear function of the minima, so that linear Bayes over them is not used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit import frontier
from jaxscale.fit.minima import MIN_SIZES
from jaxscale.fit.result import Fit
from jaxscale.nextcells.noise import RunNoise, information, law_misfit

__all__ = ["Belief", "MinimumBelief", "Places", "SurfaceBelief", "condition", "form_belief"]

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


class Surface(NamedTuple):
    """Covariance of target and places (1 + n, 1 + n), and the runs at each place (n,)."""

    S: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class SurfaceBelief:
    """S (1 + n, 1 + n): covariance of target and places over the rounds; `noise` (n,) the variance of a first run."""

    method: str
    S: np.ndarray
    noise: np.ndarray
    share: float = 0.0

    def start(self, counts: np.ndarray) -> Surface:
        """S as the rounds have it: they know the runs made."""
        return Surface(self.S, counts)

    def after(self, state: Surface, move: tuple[int, ...]) -> Surface:
        """S conditioned on the runs, one by one."""
        S, counts = state.S, state.counts.copy()
        for place in move:
            known, more = (information(self.noise[place], self.share, counts[place] + k) for k in (0, 1))
            S = condition(S, 1 + place, float(1 / (more - known)))
            counts[place] += 1
        return Surface(S, counts)

    def variance(self, state: Surface) -> float:
        """Of the target."""
        return float(state.S[0, 0])


class Minima(NamedTuple):
    """Runs at each place (n,), and the variance of log loss at each budget's minimum (budgets,)."""

    counts: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class MinimumBelief:
    """`loss` (budgets,): the minimum measured there, or the fitted law's; `noise` (n,) the variance of a first run at
    each place; `misfit` the variance of the minima about the law; `target` FLOPs."""

    method: str
    loss: np.ndarray
    noise: np.ndarray
    places: Places
    target: float
    share: float = 0.0
    misfit: float = 0.0

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
        known = (state.variance[read] + self.misfit) * (dof / (dof - 2) if dof > 3 else 3.0)
        return frontier.spread_forecast(self.places.budget_C[read], self.loss[read], known, self.target)

    def minimum_variance(self, budget: int, counts: np.ndarray) -> float:
        """Of the log loss at a budget's minimum, without the misfit; infinite where its sizes make none."""
        inside = (self.places.budget == budget) & (counts > 0)
        t, w = self.places.t[inside], information(self.noise[inside], self.share, counts[inside])
        if len(t) < MIN_SIZES or not t.min() < 0 < t.max():
            return np.inf
        X = np.stack([np.ones(len(t)), t, t**2], 1)
        return float(np.linalg.inv(X.T @ (w[:, None] * X))[0, 0])

    def with_misfit(self, counts: np.ndarray) -> MinimumBelief:
        """The belief with the misfit that the minima of these runs leave room for, an average minimum's share."""
        variance = self.start(counts).variance
        read = np.isfinite(variance)
        C, loss, known = self.places.budget_C[read], self.loss[read], variance[read]
        if len(C) < 2:
            return self
        law = frontier.average_loss_laws(C, loss, known, 0.0, 1, np.random.default_rng(0))[0]
        share = law_misfit(float(law.ss[0]), max(len(C) - 3, 0))
        return replace(self, misfit=share * float(np.exp(np.log(known).mean())))


def condition(S: np.ndarray, at: int, variance: float) -> np.ndarray:
    """Covariance after observable `at` was seen once with this variance.

    >>> condition(np.array([[4.0, 2.0], [2.0, 1.0]]), 1, 1.0).tolist()
    [[2.0, 1.0], [1.0, 0.5]]
    """
    column = S[:, at]
    return np.asarray(S - np.outer(column, column) / (column[at] + variance))


def form_belief(fit: Fit, places: Places, counts: np.ndarray, noise: RunNoise, target_C: float) -> Belief:
    """The belief behind a fit's forecast at `target_C` FLOPs after `counts` (n,) runs; errors name what it lacks."""
    if fit.method == "envelope":
        raise MisuseError("declared: an envelope's staircase of best sizes moves by jumps, so that no single run has a "
                          "gain; use --declared isoflop or parametric with --next")  # fmt: skip
    fit.require_answer()
    variance = noise.variance(places.budget_C)[places.budget]
    if fit.method == "parametric":
        return SurfaceBelief("parametric", _cover_rounds(fit, places, target_C), variance, noise.share)
    loss = np.array(fit.predict_optimum(places.budget_C).loss)
    for budget in fit.budgets or ():
        if budget.status == "ok":
            loss[np.argmin(np.abs(np.log(places.budget_C / budget.C)))] = budget.loss_opt
    return MinimumBelief("isoflop", loss, variance, places, target_C, noise.share).with_misfit(counts)


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
