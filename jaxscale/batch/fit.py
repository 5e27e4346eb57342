"""Batch against steps to a loss, at several losses and sizes, and how the critical batch grows.

    for each size N and target L:   steps S(B) = tokens to L / B,    S = S_min (1 + B_crit / B),   E_min = S_min B_crit
    over all of them:               B_crit = B* / L^(1/alpha_B)     Kaplan et al. 2020, eq. 1.4
                                    B_crit = A D^a, D = E_min       Zhang et al. 2024, 2410.21676
                                    B_crit constant                 what both must beat

D of a target is E_min, the tokens that a small batch takes to it: at B_crit a run takes 2 E_min. The targets of one
size lie on the same curves, so their errors are one: intervals are a bootstrap of the study. In each round every cell's
loss gets an error (its deviation is that between seeds, or what the hyperbolas miss, whichever is larger; t-widened),
and all from the curves to the laws is done again. The losses of a curve (points curves) share one error.

Which of L and D explains B_crit better is told by the error of predicting a size that was left out, with AICc (over
targets, so its gaps look larger than they are) and the share of rounds in which it misses less beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxscale.batch.cells import SeedNoise
from jaxscale.batch.reach import choose_losses, tokens_to_loss
from jaxscale.critical import HUGE, BatchFit, fit_tradeoff, redraw_tradeoffs
from jaxscale.errors import VerdictError
from jaxscale.fit.result import Interval
from jaxscale.fit.squares import aicc
from jaxscale.fit.summary import percentile_interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Law", "Sweep", "Target", "find_fewest", "fit_laws", "fit_targets"]

FEWEST = 3
"""Batches that a hyperbola needs."""
NUDGE = 0.01
"""Step in log loss over which the slope of a curve is taken."""
CLEAR = 0.9
"""Share of rounds from which one law is said to explain better."""


class Curve(NamedTuple):
    """Loss over rising tokens at one size and batch, and the runs behind each loss."""

    batch: float
    D: np.ndarray
    loss: np.ndarray
    seeds: np.ndarray


@dataclass(frozen=True)
class Target:
    """One size at one loss: tokens (batches,) to it (NaN or infinite where not known), the fit, its rounds."""

    N: float
    loss: float
    batch: np.ndarray
    tokens: np.ndarray
    fit: BatchFit | None
    S_min: np.ndarray
    B_crit: np.ndarray
    """(rounds,), NaN where a round did not reach the target in three batches."""

    def value(self, name: str) -> float:
        """S_min, E_min or B_crit as fitted; NaN without a fit."""
        return self.fit[name].value if self.fit is not None else float("nan")

    @property
    def spread(self) -> float:
        """Deviation of log B_crit over the rounds, by its middle 68%."""
        logs = np.log(self.B_crit[np.isfinite(self.B_crit)])
        return float(np.subtract(*np.quantile(logs, [0.84, 0.16])) / 2) if len(logs) > 1 else 0.0


class Sweep(NamedTuple):
    """The targets, the noise of a cell's log loss that was drawn, and where it is from."""

    targets: tuple[Target, ...]
    noise: float | None
    noise_from: str
    notes: tuple[str, ...]


def fit_targets(
    cells: pd.DataFrame, *, losses: Sequence[float] = (), count: int = 4, seeds: SeedNoise | None = None,
    shared: bool = False, bootstrap: int = 400, confidence: float = 0.95, seed: int = 0,
) -> Sweep:  # fmt: skip
    """Hyperbolas of every size (with three batches) at `losses`, or at `count` of its own; VerdictError for none."""
    curves = {N: _curves(cells[cells["N"] == N]) for N in sorted(set(cells["N"].astype(float)))}
    notes = [f"N {N:g} has {len(own)} batches of two horizons or more; a hyperbola needs {FEWEST}"
             for N, own in curves.items() if len(own) < FEWEST]  # fmt: skip
    curves = {N: own for N, own in curves.items() if len(own) >= FEWEST}
    chosen = {N: np.array(losses, float) if losses else choose_losses([(c.D, c.loss) for c in own], count)
              for N, own in curves.items()}  # fmt: skip
    notes += [f"N {N:g}: no three batches share a loss; give longer horizons to the large ones"
              for N, own in chosen.items() if not len(own)]  # fmt: skip
    points = [_fit_one(N, i, curves[N], chosen[N], confidence) for N in curves for i in range(len(chosen[N]))]
    if not any(one.fit for one in points):
        why = "; ".join(notes) or f"no loss of {', '.join(f'{v:g}' for v in losses)} is reached by three batches"
        raise VerdictError(f"no hyperbola can be fitted: {why}")
    noise, dof, told = _find_noise(points, curves, seeds)
    if noise is None or not bootstrap:
        return Sweep(tuple(points), noise, told, tuple(notes))
    rng = np.random.default_rng(seed)
    widen = np.sqrt(dof / rng.chisquare(dof, bootstrap))
    drawn = []
    for N, own in curves.items():
        drawn += _draw(own, [one for one in points if one.N == N], noise * widen, shared, confidence, rng)
    return Sweep(tuple(drawn), noise, told, tuple(notes))


def _curves(cells: pd.DataFrame) -> list[Curve]:
    """(batch, D, loss, runs behind each) of every batch with two horizons or more, D rising."""
    found = []
    for batch in sorted(set(cells["batch"].astype(float))):
        own = cells[cells["batch"] == batch].sort_values("D")
        if len(own) > 1:
            found.append(Curve(batch, *(own[name].to_numpy(float) for name in ("D", "loss", "seeds"))))
    return found


def _fit_one(N: float, i: int, curves: Sequence[Curve], losses: np.ndarray, confidence: float) -> Target:
    batch = np.array([curve[0] for curve in curves])
    tokens = np.array([tokens_to_loss(D, loss, losses[i : i + 1])[0] for _, D, loss, _ in curves])
    known, none = np.isfinite(tokens), np.empty(0)
    enough = known.sum() >= FEWEST
    fit = (
        fit_tradeoff(batch[known], tokens[known] / batch[known], bootstrap=0, confidence=confidence) if enough else None
    )
    return Target(float(N), float(losses[i]), batch, tokens, fit, none, none)


def _find_noise(
    points: Sequence[Target], curves: dict[float, list[Curve]], seeds: SeedNoise | None
) -> tuple[float | None, float, str]:
    """Deviation of a cell's log loss, its degrees of freedom, and where it is from."""
    misses = [(one.fit.residual_std * _slope(one, curves[one.N]), int(np.isfinite(one.tokens).sum()) - 2)
              for one in points if one.fit is not None and one.fit.residual_std is not None]  # fmt: skip
    known = [(miss, dof) for miss, dof in misses if np.isfinite(miss)]
    total = sum(dof for _, dof in known)
    scatter = float(np.sqrt(sum(dof * miss**2 for miss, dof in known) / total)) if total else None
    dof = max((dof for _, dof in known), default=1) * len({one.N for one in points})
    if seeds is not None and (scatter is None or seeds.std >= scatter):
        return seeds.std, float(seeds.dof), "between seeds"
    return scatter, float(dof), "what the hyperbolas miss"


def _slope(target: Target, curves: Sequence[Curve]) -> float:
    """-d log loss / d log tokens at the target, the median over batches."""
    ends = np.exp(np.log(target.loss) + np.array([NUDGE, -NUDGE]))
    found = [tokens_to_loss(D, loss, ends) for _, D, loss, _ in curves]
    gaps = [float(np.log(tokens[1] / tokens[0])) for tokens in found if np.isfinite(tokens).all()]
    return 2 * NUDGE / float(np.median(gaps)) if gaps and np.median(gaps) > 0 else np.nan


def _draw(
    curves: Sequence[Curve], points: Sequence[Target], noise: np.ndarray, shared: bool, confidence: float,
    rng: np.random.Generator,
) -> list[Target]:  # fmt: skip
    """The targets of one size with the rounds of redrawn losses; `noise` (rounds,) of one run's log loss."""
    losses, rounds = np.array([one.loss for one in points]), len(noise)
    tokens = np.empty((len(curves), rounds, len(points)))
    for b, (_, D, loss, runs) in enumerate(curves):
        errors = rng.standard_normal((rounds, 1 if shared else len(D))) / np.sqrt(runs)
        for r, moved in enumerate(np.log(loss) + noise[:, None] * errors):
            tokens[b, r] = tokens_to_loss(D, np.exp(moved), losses)
    drawn = []
    for i, one in enumerate(points):
        if one.fit is None:
            drawn.append(one)
            continue
        steps = np.where(np.isfinite(tokens[..., i]), tokens[..., i], np.nan).T / one.batch
        S_min, B_crit = redraw_tradeoffs(one.batch, steps, one.fit.law)  # type: ignore[arg-type]
        drawn.append(_with_rounds(one, S_min, B_crit, confidence))
    return drawn


def _with_rounds(one: Target, S_min: np.ndarray, B_crit: np.ndarray, confidence: float) -> Target:
    assert one.fit is not None
    rounds = {"S_min": S_min, "E_min": S_min * B_crit, "B_crit": B_crit}
    estimates = {name: replace(e, interval=_bound(e.value, percentile_interval(rounds[name], confidence)))
                 for name, e in one.fit.estimates.items()}  # fmt: skip
    return replace(one, fit=replace(one.fit, estimates=estimates), S_min=S_min, B_crit=B_crit)


def _bound(value: float, interval: Interval) -> Interval:
    """The interval without ends that lie so far off that they bound nothing."""
    low, high = (None if end is None or not 1 / HUGE < end / value < HUGE else end for end in interval)
    return low, high


class Law(NamedTuple):
    """B_crit = A x^a over the targets, x the loss, D (E_min), or nothing (a = 0)."""

    of: str
    A: float
    a: float
    A_interval: Interval
    a_interval: Interval
    points: int
    x_range: tuple[float, float]
    residual_std: float
    aicc: float
    left_out_error: float
    better_share: float | None
    """Share of bootstrap rounds in which it misses less than the other of loss and D."""

    def at(self, x: Any) -> Any:
        """B_crit in tokens."""
        return self.A * np.power(x, self.a)

    def of_run(self, D: float, batch: float, loss: float) -> tuple[float, float]:
        """B_crit of a run of D tokens that ended at `loss`, and the x of the law that it stands at."""
        x = {"loss": loss, "D": find_fewest(D, batch, self.A, self.a)}.get(self.of, 1.0)
        return float(self.at(x)), x


def find_fewest(D: float, batch: float, A: float, a: float) -> float:
    """E_min of a run of D tokens, E_min (1 + batch / B_crit) = D with B_crit = A E_min^a, by bisection.

    Where a is above 1 the larger of two roots.

    >>> round(find_fewest(2e6, 1e3, 1.0, 0.5))  # B_crit of 1e6 tokens is 1e3
    1000000
    """
    low, high = np.log(D) - 40.0, np.log(D)
    if a > 1:
        low = min(high, np.log((a - 1) * batch / A) / a)
    for _ in range(80):
        middle = (low + high) / 2
        more = np.exp(middle) + batch / A * np.exp((1 - a) * middle) < D
        low, high = (middle, high) if more else (low, middle)
    return float(np.exp(high))


def fit_laws(targets: Sequence[Target], confidence: float = 0.95) -> dict[str, Law]:
    """The laws of the loss, of D and the constant, by name; only the constant where one target has a fit."""
    used = [one for one in targets if one.fit is not None]
    y = np.log([one.value("B_crit") for one in used])
    x = {"loss": np.log([one.loss for one in used]), "D": np.log([one.value("E_min") for one in used])}
    spread = np.array([one.spread for one in used])
    weight = 1 / np.maximum(spread, 0.5 * np.median(spread)) ** 2 if (spread > 0).all() else np.ones(len(used))
    weight = weight / weight.mean()
    rounds = min((len(one.B_crit) for one in used), default=0)
    drawn_y = np.array([np.log(one.B_crit[:rounds]) for one in used]).T
    drawn_x = {"loss": np.tile(x["loss"], (rounds, 1)),
               "D": np.array([np.log(one.S_min[:rounds] * one.B_crit[:rounds]) for one in used]).T}  # fmt: skip
    whole = np.isfinite(drawn_y).all(1) if rounds else np.zeros(0, bool)
    names = ["loss", "D"] if len(used) > 1 and all(np.ptp(v) > 0 for v in x.values()) else []
    y_rounds = drawn_y[whole] if rounds else np.empty((0, len(y)))
    missed = {
        name: np.array([_line(u, v, weight)[2] for u, v in zip(drawn_x[name][whole], y_rounds, strict=True)])
        for name in names
    }
    laws = {}
    for name in [*names, "constant"]:
        u = x.get(name, np.zeros(len(y)))
        draws = [_line(a, b, weight) for a, b in zip(drawn_x.get(name, np.zeros_like(drawn_y))[whole],
                                                     drawn_y[whole], strict=True)]  # fmt: skip
        other = missed.get({"loss": "D", "D": "loss"}.get(name, ""))
        share = float((missed[name] < other).mean()) if other is not None and len(other) else None
        laws[name] = _law(name, u, y, weight, [one.N for one in used], draws, share, confidence)
    return laws


def _law(
    name: str, x: np.ndarray, y: np.ndarray, w: np.ndarray, sizes: list[float], draws: list[Any],
    share: float | None, confidence: float,
) -> Law:  # fmt: skip
    level, a, ss = _line(x, y, w)
    free = 2 if name != "constant" else 1
    drawn = np.array([d[:2] for d in draws]).reshape(-1, 2)
    return Law(
        of=name, A=float(np.exp(level)), a=float(a),
        A_interval=_exp_ends(percentile_interval(drawn[:, 0], confidence)),
        a_interval=percentile_interval(drawn[:, 1], confidence),
        points=len(y), x_range=(float(np.exp(x.min())), float(np.exp(x.max()))),
        residual_std=float(np.sqrt(ss / (len(y) - free))) if len(y) > free else float("nan"),
        aicc=aicc(ss, len(y), free), left_out_error=_leave_out(x, y, w, np.array(sizes)), better_share=share,
    )  # fmt: skip


def _exp_ends(logs: Interval) -> Interval:
    """Both ends of an interval of a log; what float64 cannot hold is no end."""
    low, high = (None if end is None or abs(end) > 700 else float(np.exp(end)) for end in logs)
    return low, high


def _line(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[float, float, float]:
    """Level at x = 0, slope (0 where x does not vary) and weighted sum of squares."""
    center, mean = np.average(x, weights=w), np.average(y, weights=w)
    own = float((w * (x - center) ** 2).sum())
    a = float((w * (x - center) * (y - mean)).sum() / own) if own > 0 else 0.0
    level = float(mean - a * center)
    return level, a, float((w * (y - level - a * x) ** 2).sum())


def _leave_out(x: np.ndarray, y: np.ndarray, w: np.ndarray, sizes: np.ndarray) -> float:
    """Root mean square error of log B_crit at the sizes, or with one size the targets, left out in turn."""
    groups = sizes if len(set(sizes)) > 1 else np.arange(len(y))
    errors = []
    for group in dict.fromkeys(groups):
        rest = groups != group
        if rest.sum() < 2:
            return float("nan")
        level, a, _ = _line(x[rest], y[rest], w[rest])
        errors += list(y[~rest] - level - a * x[~rest])
    return float(np.sqrt(np.mean(np.square(errors))))
