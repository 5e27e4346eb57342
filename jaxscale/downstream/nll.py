"""Stage 1: the NLL of the correct answer at the end of a run, as a law of N and D, or of C.

    L = exp(t_N - alpha (log N - n)) + exp(t_D - beta (log D - d)) + E        n, d: means of the fitted runs
    minimise  sum_i h((log L_i - log y_i) / s)  +  sum_p ((theta_p - m_p) / s_p)^2 / 2

theta holds log alpha, log beta and log E; the second sum is the prior of the recipe (none: no sum), t_N - t_D included.
h is Huber's loss with its kink at 1.345 deviations. The deviation s of one run about the law is estimated with the
fit and drawn towards .5%, which the residuals of three runs cannot tell. A law of C alone is the first term with C
for N. A bootstrap round draws new runs about the law and new prior means: for a linear law that draws the posterior.

The published recipe (Huber with delta 1e-3, no prior) is solved to its global optimum by jaxscale.fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxscale.downstream.points import Run
from jaxscale.downstream.recipe import Prior, Recipe
from jaxscale.downstream.solve import STEPS, Found, lowest_of_starts, solve
from jaxscale.errors import MisuseError, VerdictError

__all__ = ["NllLaw", "Stage1", "choose_law", "fit_nll", "fit_splits"]

KINK = 1.345
SIGMA, SIGMA_RUNS = 0.005, 4.0
"""Deviation of log NLL that is assumed, and the runs it is worth beside those measured."""
SILENT = -60.0
"""log of a term that a law does not have."""
STARTS = (0.3, 0.65)
EVEN = np.zeros(1)
BOUNDS = ([-8.0, -8.0, -6.0, -6.0, SILENT], [6.0, 6.0, 1.5, 1.5, 6.0])


@dataclass(frozen=True)
class NllLaw:
    """theta (..., 5) = t_N, t_D, log alpha, log beta, log E about the centre (n, d); any leading axes."""

    law: str
    centre: tuple[float, float]
    theta: np.ndarray

    def nll(self, N: Any, D: Any, C: Any) -> np.ndarray:
        """NLL at N, D, C, broadcast against the leading axes of theta."""
        x, z = self._inputs(N, D, C)
        t = np.moveaxis(self.theta, -1, 0)
        first = np.exp(t[0] - np.exp(t[2]) * x)
        return first + np.exp(t[1] - np.exp(t[3]) * z) + np.exp(t[4])

    def _inputs(self, N: Any, D: Any, C: Any) -> tuple[Any, Any]:
        if self.law == "nd":
            return np.log(N) - self.centre[0], np.log(D) - self.centre[1]
        return np.log(C) - self.centre[0], 0.0

    @property
    def params(self) -> dict[str, float]:
        """The law's own letters; only for a single theta."""
        t_N, t_D, alpha, beta, E = self.theta
        a, b = float(np.exp(alpha)), float(np.exp(beta))
        A = float(np.exp(t_N + a * self.centre[0]))
        if self.law == "nd":
            B = float(np.exp(t_D + b * self.centre[1]))
            return {"A": A, "B": B, "alpha": a, "beta": b, "E": float(np.exp(E))}
        return {"A": A, "alpha": a, "E": 0.0 if self.law == "log-linear" else float(np.exp(E))}

    def split(self, C: np.ndarray, flops_per_nd: float, ratio: tuple[float, float]) -> tuple[Any, Any]:
        """N and D that give the lowest NLL at C = k N D, D/N kept inside the range of the fitted runs."""
        t = np.moveaxis(self.theta, -1, 0)
        a, b = np.exp(t[2]), np.exp(t[3])
        product = np.log(C / flops_per_nd)
        # d/dn: alpha e^(t_N - a(n - n0)) = beta e^(t_D - b(P - n - d0))
        n = (t[0] + t[2] + a * self.centre[0] - t[1] - t[3] - b * self.centre[1] + b * product) / (a + b)
        low, high = (product - np.log(end) for end in (ratio[1], ratio[0]))
        n = np.clip(n, low / 2, high / 2)
        return np.exp(n), np.exp(product - n)


@dataclass(frozen=True)
class Stage1:
    """The law, its deviation between runs (log NLL), bootstrap draws (rounds, 5), gradient norm at the optimum."""

    law: NllLaw
    sigma: float
    draws: NllLaw
    gradient: float
    objective: float | None = None


def choose_law(asked: str, runs: list[Run]) -> str:
    """nd where every run has N and D; MisuseError where it is asked for and they are missing."""
    has = all(np.isfinite(run.N) and np.isfinite(run.D) for run in runs)
    if asked == "nd" and not has:
        raise MisuseError("law nd: the table has no N and D; map them as N=NAME D=NAME, or use --law power")
    return ("nd" if has else "power") if asked == "auto" else asked


def residual(
    theta: Any, x: Any, z: Any, y: Any, w: Any, sigma: Any, mean: Any, precision: Any, even: Any, pull: Any
) -> Any:
    """Weighted residuals of log NLL in deviations, Huber's loss as a square, and those of the prior."""
    model = jnp.exp(theta[0] - jnp.exp(theta[2]) * x) + jnp.exp(theta[1] - jnp.exp(theta[3]) * z) + jnp.exp(theta[4])
    r = (jnp.log(model) - y) / sigma
    size = jnp.abs(r)
    far = jnp.sqrt(2 * KINK * jnp.maximum(size, KINK) - KINK**2)
    robust = jnp.where(size <= KINK, r, jnp.sign(r) * far)
    return jnp.concatenate([w * robust, (theta - mean) * precision, ((theta[0] - theta[1] - even) * pull)[None]])


def fit_nll(runs: list[Run], recipe: Recipe, law: str, *, rounds: int, seed: int, source: str = "nll") -> Stage1:
    """Stage 1 on the ends of these runs."""
    law = choose_law(law, runs)
    y = np.log([getattr(run, source) for run in runs])
    law_fit, deviation, gradient = fit_splits(runs, recipe, law, np.ones((1, len(runs))), source)
    centre, theta, sigma = law_fit.centre, law_fit.theta[0], float(deviation[0])
    objective = None
    best = NllLaw(law, centre, theta)
    if recipe.huber_delta is not None and law == "nd":
        best, gradient_norm, objective = _published(runs, recipe.huber_delta, centre, source)
    else:
        gradient_norm = float(gradient[0])
    draws = _draw(runs, recipe, NllLaw(law, centre, theta), y, sigma, rounds, seed)
    if best.theta is not theta:  # rounds are drawn about least squares: carry their deviations over
        draws = draws - theta + best.theta
    return Stage1(best, sigma, NllLaw(law, centre, draws), gradient_norm, objective)


def fit_splits(
    runs: list[Run], recipe: Recipe, law: str, seen: np.ndarray, source: str = "nll"
) -> tuple[NllLaw, np.ndarray, np.ndarray]:
    """A fit for each row of `seen` (splits, runs), weights of 0 and 1: laws, deviations (splits,), gradients."""
    x, z, centre = _inputs(runs, law)
    y = np.log([getattr(run, source) for run in runs])
    splits, sigma = len(seen), np.full(len(seen), SIGMA)
    mean, precision, free = _prior(recipe.prior, law, y, seen)
    starts, pull = _starts(mean, law, y, seen), _pull(recipe.prior, law)
    for _ in range(3):
        rows = [np.repeat(part, len(STARTS), 0) for part in (seen, sigma, mean)]
        found = _solve(starts, [x[None], z[None], y[None], *rows, precision, EVEN, pull], free)
        best = lowest_of_starts(found, len(STARTS))
        r = np.log(NllLaw(law, centre, best.theta[:, None]).nll(*_ndc(runs))) - y
        r = np.clip(r, -3 * sigma[:, None], 3 * sigma[:, None])
        left = np.maximum(seen.sum(1) - 3, 0)
        sigma = np.sqrt((SIGMA_RUNS * SIGMA**2 + (seen * r**2).sum(1)) / (SIGMA_RUNS + left))
        starts = np.repeat(best.theta, len(STARTS), 0)
    return NllLaw(law, centre, best.theta.reshape(splits, 5)), sigma, best.gradient


def _draw(
    runs: list[Run], recipe: Recipe, law: NllLaw, y: np.ndarray, sigma: float, rounds: int, seed: int
) -> np.ndarray:
    """theta (rounds, 5) fitted to runs drawn about the law, the deviation drawn too."""
    rng = np.random.default_rng([seed, 1])
    x, z, _ = _inputs(runs, law.law)
    dof = SIGMA_RUNS + max(len(runs) - 3, 0)
    spread = sigma * np.sqrt(dof / rng.chisquare(dof, (rounds, 1)))
    drawn = np.log(law.nll(*_ndc(runs))) + spread * rng.standard_normal((rounds, len(runs)))
    mean, precision, free = _prior(recipe.prior, law.law, y, np.ones((1, len(runs))))
    noise = np.where(precision > 0, 1 / np.maximum(precision, 1e-30), 0.0) * rng.standard_normal((rounds, 5))
    ones = np.ones((1, len(runs)))
    theta = np.tile(law.theta, (rounds, 1))
    pull = _pull(recipe.prior, law.law)
    even = rng.standard_normal(rounds) / np.where(pull > 0, pull, np.inf)
    data = [x[None], z[None], drawn, ones, np.array([sigma]), mean + noise, precision, even, pull]
    return _solve(theta, data, free, steps=60).theta


def _solve(theta: np.ndarray, data: list[np.ndarray], free: np.ndarray, steps: int = STEPS) -> Found:
    """Runs filled up to a multiple of 16 by runs of no weight, so that files share a compiled program."""
    more = -data[0].shape[1] % 16
    return solve(residual, theta, [*(np.pad(part, ((0, 0), (0, more))) for part in data[:4]), *data[4:]], bounds=BOUNDS,
                 free=free, steps=steps)  # fmt: skip


def _inputs(runs: list[Run], law: str) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    N, D, C = _ndc(runs)
    if law != "nd":
        middle = float(np.log(C).mean())
        return np.log(C) - middle, np.zeros(len(C)), (middle, 0.0)
    centre = float(np.log(N).mean()), float(np.log(D).mean())
    return np.log(N) - centre[0], np.log(D) - centre[1], centre


def _ndc(runs: list[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.array([getattr(run, name) for run in runs]) for name in "NDC")  # type: ignore[return-value]


def _prior(prior: Prior | None, law: str, y: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means (splits, 5), inverse deviations (1, 5) and which parameters are free (1, 5).

    C on a compute-optimal line with alpha = beta goes as N^2, so that its exponent is about half.
    """
    it = prior or Prior()
    lowest = np.where(seen > 0, y, np.inf).min(1)
    exponent = np.log(it.exponent / (1 if law == "nd" else 2))
    mean = np.stack([0 * lowest, 0 * lowest, exponent + 0 * lowest, exponent + 0 * lowest,
                     np.log(it.floor) + lowest], 1)  # fmt: skip
    free = np.array([[1.0, law == "nd", 1.0, law == "nd", law != "log-linear"]])
    precision = np.array([[0, 0, 1 / it.exponent_sd, 1 / it.exponent_sd, 1 / it.floor_sd]]) * free
    return mean, precision if prior else precision * 0, free


def _pull(prior: Prior | None, law: str) -> np.ndarray:
    """Inverse deviation (1,) of t_N - t_D about 0: runs on one line of D / N say nothing of how the two share."""
    return np.array([1 / prior.share_sd if prior and law == "nd" else 0.0])


def _starts(mean: np.ndarray, law: str, y: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(splits x STARTS, 5): shares of the floor, the rest halved between N and D."""
    level = np.log((np.exp(y) * (seen > 0)).sum(1) / (seen > 0).sum(1))
    rows = []
    for i in range(len(seen)):
        for share in STARTS:
            rest = level[i] + np.log1p(-share)
            floor = level[i] + np.log(share)
            if law == "nd":
                rows.append([rest - np.log(2), rest - np.log(2), mean[i, 2], mean[i, 3], floor])
            elif law == "power":
                rows.append([rest, SILENT, mean[i, 2], 0.0, floor])
            else:
                rows.append([level[i], SILENT, mean[i, 2], 0.0, SILENT])
    return np.clip(np.array(rows), [SILENT] * 5, BOUNDS[1])


def _published(runs: list[Run], delta: float, centre: tuple[float, float], source: str) -> tuple[NllLaw, float, float]:
    """Huber on log residuals at its global optimum; VerdictError where the runs do not determine the law."""
    import pandas as pd

    from jaxscale.fit.cells import gather_cells
    from jaxscale.fit.identify import find_obstacle
    from jaxscale.fit.optimize import check_objective, design_for, find_optimum
    from jaxscale.laws import find_law

    N, D, C = _ndc(runs)
    cells = gather_cells(pd.DataFrame({"N": N, "D": D, "C": C, "loss": [getattr(run, source) for run in runs]}))
    design = design_for(find_law("chinchilla"), cells, {})
    if obstacle := find_obstacle(cells, design):
        raise VerdictError(obstacle)
    best = find_optimum(cells, design, check_objective("huber", delta))
    p = best.params
    theta = np.array([np.log(p["A"]) - p["alpha"] * centre[0], np.log(p["B"]) - p["beta"] * centre[1],
                      np.log(p["alpha"]), np.log(p["beta"]), np.log(max(p["E"], 1e-26))])  # fmt: skip
    return NllLaw("nd", centre, theta), best.norm, best.value
