"""How wrong the recipe was where the answer is known: smaller fitted runs foretell larger fitted runs.

An origin is a cut: runs up to some compute (or some size) are fitted, the others above it foretold. Only fitted runs
take part, never a target. Errors are kept in logits of accuracy, e = logit(predicted) - logit(measured), where a miss
near chance and one near the ceiling are of one size, and grow with the distance d from the fitted runs, in log C:

    d = max(1, log C/C_max, 2 log N/N_max, 2 log D/D_max, how far log D/N lies outside)
    sd of the misfit at d  =  rate d,    rate^2 = (sum e^2 / d^2 + k rate0^2) / (n + k)

(on a compute-optimal path N and D each grow as the root of C)
less what item noise alone makes. rate0, shared by the tasks of a source and of a usual size where there are few, keeps
one lucky task from a narrow interval. The sum over tasks of one source is pooled in `pool_rates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.downstream.accuracy import MOST, fit_curves
from jaxscale.downstream.nll import fit_splits
from jaxscale.downstream.points import Pairs, Run, thin
from jaxscale.downstream.recipe import Recipe

__all__ = ["Backtest", "Reach", "logit", "pool_rates", "run_backtest", "span"]

FEWEST_SEEN = 5
MOST_ORIGINS = 8
NEAREST = 1.0
"""Least distance at which a misfit is counted: the errors of next-door runs do not vanish."""
USUAL_RATE = 0.04
"""Logits a factor e in compute: the rate assumed, and its worth in independent errors."""
USUAL_WORTH = 3.0
POOL_WORTH = 4.0
METHODS = ("chained", "one-stage", "loss input")


@dataclass(frozen=True)
class Backtest:
    """Rows (origin, run, method, error relative, logits, d) and the summary of each method."""

    rows: tuple[dict[str, Any], ...]

    def errors(self, method: str = "chained") -> list[dict[str, Any]]:
        """The rows of one method."""
        return [row for row in self.rows if row["method"] == method]

    def summary(self) -> list[dict[str, Any]]:
        """Mean absolute and mean signed relative error of accuracy, of NLL, and at the farthest run of each origin."""
        found = []
        for method in METHODS:
            rows = self.errors(method)
            if not rows:
                continue
            last = [
                max((r for r in rows if r["origin"] == o), key=lambda r: r["C"]) for o in {r["origin"] for r in rows}
            ]
            nll = [abs(row["nll_error"]) for row in rows if row["nll_error"] is not None]
            found.append({
                "method": method, "predictions": len(rows), "origins": len(last),
                "mean_abs_error": float(np.mean([abs(row["relative_error"]) for row in rows])),
                "mean_error": float(np.mean([row["relative_error"] for row in rows])),
                "farthest_abs_error": float(np.mean([abs(row["relative_error"]) for row in last])),
                "nll_mean_abs_error": float(np.mean(nll)) if nll else None,
            })  # fmt: skip
        return found


def logit(accuracy: Any) -> Any:
    """log(p / (1 - p)), p kept off the ends."""
    p = np.clip(accuracy, 1e-4, 1 - 1e-4)
    return np.log(p / (1 - p))


@dataclass(frozen=True)
class Reach:
    """What the fitted runs span: largest N, D and C, smallest C, and the ends of D / N; nan where not known."""

    N: float
    D: float
    C: float
    smallest_C: float
    ratio: tuple[float, float]

    def distance(self, N: Any, D: Any, C: Any) -> np.ndarray:
        """How far a model lies beyond the fitted runs, in log C, at least NEAREST.

        >>> reach = Reach(1e9, 1e11, 6e20, 1e19, (20.0, 200.0))
        >>> [round(float(reach.distance(*at)), 2) for at in ((1e9, 1e11, 6e20), (1e10, 1e12, 6e22))]
        [1.0, 4.61]
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log(np.asarray(D) / N)
            parts = [
                np.log(np.asarray(C) / self.C),
                2 * np.log(np.asarray(N) / self.N),
                2 * np.log(np.asarray(D) / self.D),
                ratio - np.log(self.ratio[1]),
                np.log(self.ratio[0]) - ratio,
            ]
        return np.maximum(NEAREST, np.fmax.reduce(np.broadcast_arrays(*parts)))


def span(runs: Sequence[Run]) -> Reach:
    """What these runs span."""
    N, D, C = (np.array([getattr(run, name) for run in runs]) for name in "NDC")
    return Reach(
        float(N.max()), float(D.max()), float(C.max()), float(C.min()), (float((D / N).min()), float((D / N).max()))
    )


def run_backtest(runs: list[Run], pairs: dict[str, Pairs], recipe: Recipe, law: str, chance: float) -> Backtest:
    """Every origin's predictions, by the chain, by the one-stage law, and with the loss as stage 2's input."""
    seen = _origins(runs)
    if not len(seen):
        return Backtest(())
    predicted: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    predicted["one-stage"] = _one_stage(runs, seen, chance, recipe), None
    for method, source in (("chained", "nll"), ("loss input", "loss")):
        if source in pairs:
            predicted[method] = _chain(runs, pairs[source], recipe, law, chance, seen, source)
    rows = [
        _row(runs, seen[o], o, method, i, accuracy[o, i], None if nll is None else nll[o, i])
        for method, (accuracy, nll) in predicted.items()
        for o in range(len(seen))
        for i in _asked(runs, seen[o])
    ]
    return Backtest(tuple(rows))


def _origins(runs: list[Run]) -> np.ndarray:
    """Masks (origins, runs) of what is fitted: cuts in C and, where several sizes grow, in N."""
    C, N = np.array([run.C for run in runs]), np.array([run.N for run in runs])
    masks = []
    for values in (C, N):
        for cut in np.unique(values)[:-1]:
            mask = values <= cut * (1 + 1e-9)
            if mask.sum() >= max(FEWEST_SEEN, 0.4 * len(runs)) and len(_asked(runs, mask)):
                masks.append(mask)
    unique = np.unique(np.array(masks), axis=0) if masks else np.zeros((0, len(runs)), bool)
    order = np.argsort(unique.sum(1), kind="stable")
    chosen = np.unique(np.linspace(0, len(order) - 1, min(MOST_ORIGINS, len(order))).round().astype(int))
    return unique[order[chosen]].astype(float) if len(order) else unique


def _asked(runs: list[Run], mask: np.ndarray) -> list[int]:
    """Runs not fitted whose compute lies beyond all that is."""
    largest = max(run.C for run, inside in zip(runs, mask, strict=True) if inside)
    return [i for i, run in enumerate(runs) if not mask[i] and run.C / largest > 1.1]


def _chain(
    runs: list[Run], pairs: Pairs, recipe: Recipe, law: str, chance: float, seen: np.ndarray, source: str
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and NLL (origins, runs) foretold by both stages."""
    fitted, _, _ = fit_splits(runs, recipe, law, seen, source)
    C, N, D = (np.array([getattr(run, name) for run in runs]) for name in "CND")
    x = type(fitted)(fitted.law, fitted.centre, fitted.theta[:, None]).nll(N, D, C)
    few = thin(pairs, MOST)
    parts = []
    for form in recipe.forms:
        found, _ = fit_curves(few, recipe, form, chance, seen)
        parts.append(type(found)(form, found.theta[:, None]).accuracy(x))
    return np.mean(parts, axis=0), x


def _one_stage(runs: list[Run], seen: np.ndarray, chance: float, recipe: Recipe) -> np.ndarray:
    """Accuracy (origins, runs) as a loglogistic curve of C alone, without the NLL."""
    C = np.array([run.C for run in runs])
    x = 1 / (C / np.exp(np.log(C).mean()))
    pairs = Pairs(x, np.array([run.accuracy for run in runs]), np.arange(len(runs)))
    found, _ = fit_curves(pairs, recipe, "loglogistic", chance, seen)
    return type(found)("loglogistic", found.theta[:, None]).accuracy(x)


def _row(
    runs: list[Run], mask: np.ndarray, origin: int, method: str, i: int, accuracy: float, nll: float | None
) -> dict[str, Any]:
    reach = span([run for run, inside in zip(runs, mask, strict=True) if inside])
    true = runs[i].loss if method == "loss input" else runs[i].nll
    return {
        "method": method, "origin": origin, "fitted_runs": int(mask.sum()), "fitted_to_C": reach.C, "run": runs[i].name,
        "C": runs[i].C, "accuracy_pred": float(accuracy), "accuracy_true": runs[i].accuracy,
        "relative_error": float(accuracy / runs[i].accuracy - 1),
        "logits": float(logit(accuracy) - logit(runs[i].accuracy)),
        "distance": float(reach.distance(runs[i].N, runs[i].D, runs[i].C)),
        "nll_error": None if nll is None else float(nll / true - 1),
    }  # fmt: skip


def pool_rates(backtests: Sequence[Backtest], items: Sequence[float]) -> list[float]:
    """The misfit rate of each task, in logits a factor e of compute, drawn towards that of all."""
    sums = [_sum_squares(one, n) for one, n in zip(backtests, items, strict=True)]
    total, count = (sum(part) for part in zip(*sums, strict=True))
    pooled = (total + USUAL_WORTH * USUAL_RATE**2) / (count + USUAL_WORTH)
    return [float(np.sqrt((s + POOL_WORTH * pooled) / (n + POOL_WORTH))) for s, n in sums]


def _sum_squares(one: Backtest, items: float) -> tuple[float, float]:
    """Sum of (e / d)^2 less item noise over an origin's mean, and the number of origins: its errors are one error."""
    by_origin: dict[int, list[float]] = {}
    for row in one.errors():
        p = row["accuracy_true"]
        noise = 1 / max(items * p * (1 - p), 1.0)
        by_origin.setdefault(row["origin"], []).append(max(row["logits"] ** 2 - noise, 0.0) / row["distance"] ** 2)
    means = [float(np.mean(values)) for values in by_origin.values()]
    return sum(means), float(len(means))
