"""Both stages of one task as one value: the forecast of a model, its interval, and the compute an accuracy needs.

    accuracy(N, D) = mean over forms of F(L(N, D))

The interval of a model's measured accuracy is drawn, in logits:

    z = logit F_r(L_r(N, D) e^(s u)) + m t        then    y = p + sqrt(p (1 - p) / items) v,    p = 1 / (1 + e^-z)

round r takes the parameters of both stages from their bootstrap and the forms in turn; s u is the noise between runs;
m t the misfit that the backtests found at this distance, where it is more than the rounds say themselves (t with 6
degrees of freedom: few origins measured it); v the questions that a task of `items` happens to hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.downstream.accuracy import Curve, lower_end
from jaxscale.downstream.backtest import Reach, logit
from jaxscale.downstream.nll import NllLaw
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.format import format_flops

__all__ = ["ASSUMED_ITEMS", "Chain", "Reached"]

ASSUMED_ITEMS = 1000
"""Questions of a task that are assumed where neither the table nor its accuracies say."""
MISFIT_DOF = 6
PER_DECADE, BELOW, ABOVE = 24, 2, 9
"""Where the inverse looks: this many decades below the smallest and above the largest fitted compute."""


@dataclass(frozen=True)
class Reached:
    """The compute at which a compute-optimal model reaches an accuracy; an end of the interval that is open is None."""

    accuracy: float
    C: float
    interval: tuple[float | None, float | None]
    never: float
    """Share of the rounds that reach it at no compute looked at."""
    N: float | None
    D: float | None
    extrapolation: float


@dataclass(frozen=True)
class Chain:
    """The fitted stages of a task, with what its intervals need."""

    law: NllLaw
    law_draws: NllLaw
    curves: tuple[Curve, ...]
    curve_draws: tuple[Curve, ...]
    sigma: float
    rate: float
    chance: float
    items: float
    reach: Reach
    flops_per_nd: float
    """C / (N D) of the fitted runs; nan where N or D is not known."""
    confidence: float
    seed: int

    def nll(self, N: Any, D: Any, C: Any) -> np.ndarray:
        """Stage 1."""
        return self.law.nll(N, D, C)

    def accuracy(self, nll: Any) -> np.ndarray:
        """Stage 2."""
        return np.mean([one.accuracy(nll) for one in self.curves], axis=0)

    def misfit(self, N: Any, D: Any, C: Any) -> np.ndarray:
        """Deviation in logits that the backtests foretell there."""
        return self.rate * self.reach.distance(N, D, C)

    def interval(self, N: float, D: float, C: float) -> tuple[float, float]:
        """Of the accuracy that a run at N, D, C will measure."""
        rng = np.random.default_rng([self.seed, 3])
        rounds = len(self.law_draws.theta)
        x = self.law_draws.nll(N, D, C) * np.exp(self.sigma * rng.standard_normal(rounds))
        z = logit(self._by_round(x))
        z = z + self._extra(z, self.misfit(N, D, C)) * self._heavy(rng, rounds)
        p = 1 / (1 + np.exp(-z))
        y = p + np.sqrt(p * (1 - p) / self.items) * rng.standard_normal(rounds)
        return self._ends(np.clip(y, 0, 1), float(self.accuracy(self.nll(N, D, C))))

    def interval_of_curve(self, nll: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of stage 2 alone at NLLs (n,), parameters only: the band of a figure."""
        drawn = np.concatenate([one.accuracy(nll[:, None]).T for one in self.curve_draws])
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
        return low, high

    def optimal(self, C: np.ndarray) -> tuple[Any, Any]:
        """N and D of the compute-optimal model at C, by the fitted law; nan where the law knows C alone."""
        return self._split(self.law, np.asarray(C, float))

    def compute_for(self, accuracy: float) -> Reached:
        """The least compute at which a compute-optimal model reaches this accuracy.

        MisuseError at or below chance; VerdictError above what the fitted stages reach at any compute.
        """
        if not self.chance < accuracy < 1:
            where = "is not a fraction below 1" if accuracy >= 1 else f"is not above chance, {self.chance:.3g}"
            raise MisuseError(f"accuracy {accuracy:g} {where}; ask for one between {self.chance:.3g} and 1")
        grid = self._grid()
        centre = self.accuracy(self.law.nll(*self.optimal(grid), grid))
        C = float(_crossing(grid, centre[None], accuracy)[0])
        if not np.isfinite(C):
            raise VerdictError(f"accuracy {accuracy:g}: no compute up to {format_flops(grid[-1])} FLOPs reaches it, "
                               f"the fitted stages level off at {self.ceiling:.3f}; ask for less")  # fmt: skip
        if C / grid[0] <= 1:
            raise VerdictError(f"accuracy {accuracy:g}: is reached far below the smallest fitted run, "
                               f"{format_flops(self.reach.smallest_C)} FLOPs; the fit says nothing there, ask for "
                               f"more")  # fmt: skip
        drawn = _crossing(grid, self._path_draws(grid), accuracy)
        tail = (1 - self.confidence) / 2
        ends = np.quantile(np.log(np.where(np.isfinite(drawn), drawn, 1e300)), [tail, 1 - tail], method="inverted_cdf")
        low, high = (None if end > 690 else float(np.exp(end)) for end in ends)
        N, D = (float(part) for part in self.optimal(np.array(C)))
        known = np.isfinite(N)
        interval = None if low is None or low <= grid[0] else min(low, C), None if high is None else max(high, C)
        return Reached(accuracy, C, interval, float(np.isinf(drawn).mean()), N if known else None, D if known else None,
                       C / self.reach.C)  # fmt: skip

    @property
    def ceiling(self) -> float:
        """Accuracy at unlimited compute: stage 2 at the NLL that stage 1 never goes below."""
        return float(self.accuracy(np.exp(self.law.theta[4])))

    @property
    def floor(self) -> float:
        """Accuracy of a model that knows nothing, by the fitted curves."""
        return float(np.mean([lower_end(one) for one in self.curves]))

    def _grid(self) -> np.ndarray:
        low, high = np.log10(self.reach.smallest_C) - BELOW, np.log10(self.reach.C) + ABOVE
        return 10.0 ** np.arange(low, high, 1 / PER_DECADE)

    def _path_draws(self, grid: np.ndarray) -> np.ndarray:
        """Accuracy of the compute-optimal model (rounds, grid), parameters and misfit drawn."""
        rng = np.random.default_rng([self.seed, 4])
        law = NllLaw(self.law.law, self.law.centre, self.law_draws.theta[:, None])
        N, D = self._split(law, grid)
        z = logit(self._by_round(law.nll(N, D, grid)))
        z = z + self._extra(z, self.misfit(*self.optimal(grid), grid)) * self._heavy(rng, len(z))[:, None]
        return 1 / (1 + np.exp(-z))

    def _split(self, law: NllLaw, C: np.ndarray) -> tuple[Any, Any]:
        if law.law != "nd":
            return np.full(np.shape(C), np.nan), np.full(np.shape(C), np.nan)
        return law.split(C, self.flops_per_nd, self.reach.ratio)

    def _by_round(self, x: np.ndarray) -> np.ndarray:
        """Accuracy of each round's NLLs (rounds, ...), the forms taking turns."""
        out = np.empty_like(x)
        for i, one in enumerate(self.curve_draws):
            mine = slice(i, None, len(self.curve_draws))
            theta = one.theta[mine]
            out[mine] = Curve(one.form, theta.reshape(len(theta), *[1] * (x.ndim - 1), 4)).accuracy(x[mine])
        return out

    @staticmethod
    def _extra(z: np.ndarray, misfit: np.ndarray) -> np.ndarray:
        """What the misfit adds to the spread (over rounds) that the draws have already."""
        return np.sqrt(np.maximum(misfit**2 - z.var(0), 0.0))

    @staticmethod
    def _heavy(rng: np.random.Generator, rounds: int) -> np.ndarray:
        """Student's t of unit variance."""
        return rng.standard_t(MISFIT_DOF, rounds) * np.sqrt((MISFIT_DOF - 2) / MISFIT_DOF)

    def _ends(self, drawn: np.ndarray, centre: float) -> tuple[float, float]:
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail])
        return min(float(low), centre), max(float(high), centre)

    def to_plain(self, digits: int = 6) -> dict[str, Any]:
        """What `from_plain` reads: parameters and draws."""

        def rounded(values: np.ndarray) -> list[list[float]]:
            return [[float(f"{v:.{digits}g}") for v in row] for row in values]

        return {
            "law": self.law.law, "centre": list(self.law.centre), "theta": self.law.theta.tolist(),
            "draws": rounded(self.law_draws.theta),
            "curves": [{"form": one.form, "theta": one.theta.tolist()} for one in self.curves],
            "curve_draws": [rounded(one.theta) for one in self.curve_draws],
            "sigma": self.sigma, "rate": self.rate, "chance": self.chance, "items": self.items,
            "reach": {**vars(self.reach), "ratio": list(self.reach.ratio)}, "flops_per_nd": self.flops_per_nd,
            "confidence": self.confidence, "seed": self.seed,
        }  # fmt: skip

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Chain:
        """A chain as `to_plain` wrote it."""
        law, centre = plain["law"], (float(plain["centre"][0]), float(plain["centre"][1]))
        forms = [one["form"] for one in plain["curves"]]
        N, D, ratio = (plain["reach"][name] for name in ("N", "D", "ratio"))
        reach = Reach(_float(N), _float(D), plain["reach"]["C"], plain["reach"]["smallest_C"],
                      (_float(ratio[0]), _float(ratio[1])))  # fmt: skip
        return cls(
            NllLaw(law, centre, np.array(plain["theta"], float)), NllLaw(law, centre, np.array(plain["draws"], float)),
            tuple(Curve(one["form"], np.array(one["theta"], float)) for one in plain["curves"]),
            tuple(Curve(form, np.array(drawn, float)) for form, drawn in zip(forms, plain["curve_draws"], strict=True)),
            **{name: plain[name] for name in ("sigma", "rate", "chance", "items", "confidence", "seed")},
            reach=reach, flops_per_nd=_float(plain["flops_per_nd"]),
        )  # fmt: skip


def _float(value: float | None) -> float:
    """A number of JSON, where nan is null."""
    return float("nan") if value is None else float(value)


def _crossing(grid: np.ndarray, accuracy: np.ndarray, level: float) -> np.ndarray:
    """C (rounds,) where accuracy (rounds, grid) first reaches the level; inf where it never does."""
    reached = accuracy >= level
    at = np.maximum(reached.argmax(1), 1)
    row = np.arange(len(accuracy))
    before, after = logit(accuracy[row, at - 1]), logit(accuracy[row, at])
    share = np.clip((logit(level) - before) / np.maximum(after - before, 1e-12), 0, 1)
    log_C = np.log(grid)
    C = np.exp(log_C[at - 1] + share * (log_C[at] - log_C[at - 1]))
    return np.where(reached.any(1), np.where(reached[:, 0], grid[0], C), np.inf)
