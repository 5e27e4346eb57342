"""Critical batch size from measurements: the trade-off of steps against tokens, and how B_crit grows.

    fit_tradeoff        S(B) = S_min (1 + B_crit / B)          from a sweep of the batch to one target loss
    redraw_tradeoffs    the same for many redrawn sweeps at once
    fit_critical_batch  B_crit = A x^a, x the loss or D        a = -1 / alpha_B where x is the loss

Both are least squares of logs; intervals of the trade-off from a residual bootstrap, of the power law from t.
Laws and sources: laws/batch.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.fit.resample import t_quantile
from jaxscale.fit.result import Estimate, Interval, without_nan
from jaxscale.fit.squares import Model, best_lane, redraw, solve
from jaxscale.fit.summary import check_options, percentile_interval
from jaxscale.format import format_interval, format_number
from jaxscale.laws.batch import CriticalBatch, Tradeoff
from jaxscale.laws.compute import PowerLaw
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BatchFit", "fit_critical_batch", "fit_tradeoff", "redraw_tradeoffs"]

HUGE = 1e4
"""An interval that spans more than this factor is no bound."""


@dataclass(frozen=True)
class BatchFit:
    """A fitted law of the batch: estimates by name, notes on what the sweep cannot say."""

    law: Tradeoff | CriticalBatch | PowerLaw
    estimates: dict[str, Estimate]
    residual_std: float | None
    confidence: float
    notes: tuple[str, ...] = ()
    schema: str = "jaxscale.batch/1"

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    def to_json(self) -> str:
        """As JSON, schema jaxscale.batch/1."""
        plain = asdict(self)
        return json.dumps(
            {"schema": plain.pop("schema"), "equation": self.law.equation, **without_nan(plain)}, indent=1
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a quantity: quantity, value, low, high."""
        import pandas as pd

        rows = [{"quantity": name, "value": e.value, "low": e.interval[0], "high": e.interval[1]}
                for name, e in self.estimates.items()]  # fmt: skip
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        rows = [(name, e.value, format_interval(e.interval, format_number)) for name, e in self.estimates.items()]
        table = render_table(self.law.equation, ("quantity", "value", f"{self.confidence:.0%} interval"), rows)
        return "\n".join([table, *(f"note: {note}" for note in self.notes)])


def fit_tradeoff(batch: Any, steps: Any, *, bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0) -> BatchFit:
    """S_min, E_min and B_crit from steps (n,) to one target loss at batches (n,) in tokens; n at least 3.

    A sweep that stays on one side of B_crit bounds it from one side only, and a note says so.

    >>> B = np.array([1e4, 1e5, 1e6])
    >>> fit = fit_tradeoff(B, Tradeoff(S_min=1e3, E_min=2e8).steps(B), bootstrap=0)
    >>> round(fit["B_crit"].value)
    200000
    """
    check_options(bootstrap=bootstrap, resample="auto", confidence=confidence)
    B, S = _pair("batch", batch, "steps", steps, 3)
    if B.max() == B.min():
        raise MisuseError(f"batch is {B[0]:g} in every run; a sweep needs two sizes or more")
    y = np.log(S)
    model = _tradeoff_model(B)
    guesses = np.geomspace(B.min() / 30, B.max() * 30, 12)
    level = np.exp((y - np.log(1 + guesses[:, None] / B)).mean(1))
    theta = model.theta_of({"S_min": level, "B_crit": guesses})
    found = solve(model, theta, np.tile(y, (len(theta), 1)), np.ones((len(theta), len(y))))
    best = best_lane(found)
    drawn = redraw(model, found.theta[best], y, bootstrap, seed)
    std = float(np.sqrt(found.value[best] / (len(y) - 2)))
    S_min, B_crit = (float(value[best, 0]) for value in model.params_of(found.theta).values())
    rounds = {name: value[:, 0] for name, value in model.params_of(drawn).items()}
    rounds["E_min"] = rounds["S_min"] * rounds["B_crit"]
    law = Tradeoff(S_min, S_min * B_crit)
    values = {"S_min": S_min, "E_min": S_min * B_crit, "B_crit": B_crit}
    estimates = {name: Estimate(value, percentile_interval(rounds[name], confidence)) for name, value in values.items()}
    return BatchFit(law, estimates, std, confidence, tuple(_judge_sweep(B, estimates)))


def redraw_tradeoffs(batch: np.ndarray, steps: np.ndarray, law: Tradeoff) -> tuple[np.ndarray, np.ndarray]:
    """S_min and B_crit (rounds,) of redrawn steps (rounds, n) at batches (n,), each from the fitted `law` on.

    NaN steps leave a batch out of its round; a round with fewer than three has NaN.
    """
    known = np.isfinite(steps)
    model, enough = _tradeoff_model(batch), known.sum(1) >= 3
    theta = np.tile(model.theta_of({"S_min": np.array([law.S_min]), "B_crit": np.array([law.B_crit])}), (len(steps), 1))
    found = solve(model, theta, np.log(np.where(known, steps, 1.0)), known.astype(float))
    S_min, B_crit = (np.where(enough, value[:, 0], np.nan) for value in model.params_of(found.theta).values())
    return S_min, B_crit


def _tradeoff_model(B: np.ndarray) -> Model:
    return Model(("S_min", "B_crit"), frozenset({"S_min", "B_crit"}),
                 lambda p: np.log(p["S_min"]) + np.log(1 + p["B_crit"] / B))  # fmt: skip


def fit_critical_batch(
    x: Any, B_crit: Any, *, of: str = "loss", weight: Any = None, confidence: float = 0.95
) -> BatchFit:
    """B_crit = A x^a through measured B_crit (n,) at x (n,): `of` is loss (nats per token), D (tokens) or N.

    `weight`: how exactly each log B_crit is known, 1 / variance up to a factor. Intervals are t, n - 2 degrees
    of freedom, none with two points.

    >>> L = np.array([4.0, 3.0, 2.5])
    >>> fit = fit_critical_batch(L, CriticalBatch(B=2e8, alpha_B=0.21).at(L))
    >>> round(fit["alpha_B"].value, 6), round(fit["B*"].value / 1e8, 6)
    (0.21, 2.0)
    """
    if of not in ("loss", "D", "N"):
        raise MisuseError(f"of {of!r} must be loss, D or N")
    x, B = _pair(of, x, "B_crit", B_crit, 2)
    w = np.ones(len(x)) if weight is None else np.asarray(weight, float)
    if w.shape != x.shape or not ((w >= 0) & np.isfinite(w)).all() or (w > 0).sum() < 2 or np.ptp(x[w > 0]) == 0:
        raise MisuseError(f"weight must have {len(x)} values of at least 0, above 0 at two different {of} or more")
    root, u, y = np.sqrt(w), np.log(x) - np.average(np.log(x), weights=w), np.log(B)
    design = root[:, None] * np.stack([np.ones(len(u)), u], 1)
    (middle, a), *_ = np.linalg.lstsq(design, root * y, rcond=None)
    dof = int((w > 0).sum()) - 2
    std = float(np.sqrt((w * (y - middle - a * u) ** 2).sum() / dof)) if dof else None
    covariance = np.linalg.inv(design.T @ design)
    center = float(np.average(np.log(x), weights=w))
    log_A = middle - a * center
    errors = None
    if std is not None:
        shift = np.array([1.0, -center])
        errors = (std * np.sqrt(shift @ covariance @ shift), std * np.sqrt(covariance[1, 1]))
    half = [None if errors is None else t_quantile(confidence, dof) * error for error in errors or (0, 0)]
    A = Estimate(float(np.exp(log_A)), _ends(log_A, half[0], np.exp))
    slope = Estimate(float(a), _ends(a, half[1], float))
    if of != "loss":
        return BatchFit(PowerLaw(A.value, slope.value), {"A": A, "a": slope}, std, confidence)
    alpha = Estimate(float(-1 / a), _inverse(slope.interval))
    notes = () if a < 0 else ("B_crit does not grow as the loss falls: alpha_B has no meaning here",)
    return BatchFit(CriticalBatch(A.value, alpha.value), {"B*": A, "alpha_B": alpha}, std, confidence, notes)


def _pair(name: str, x: Any, other: str, y: Any, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim != 1 or x.shape != y.shape or len(x) < fewest:
        raise MisuseError(f"{name} and {other} have {x.shape} and {y.shape} values; give {fewest} or more each")
    if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
        raise MisuseError(f"{name} and {other} must be finite and above 0; leave out runs that missed the target")
    return x, y


def _judge_sweep(B: np.ndarray, estimates: dict[str, Estimate]) -> list[str]:
    """On which side of B_crit the sweep lies, and what it then does not bound."""
    B_crit, (low, high) = estimates["B_crit"].value, estimates["B_crit"].interval
    notes = []
    if B_crit > B.max():
        notes.append(f"B_crit {B_crit:.3g} is above the largest batch {B.max():.3g}: S_min is extrapolated; "
                     f"add larger batches")  # fmt: skip
    if B_crit < B.min():
        notes.append(f"B_crit {B_crit:.3g} is below the smallest batch {B.min():.3g}: E_min is extrapolated; "
                     f"add smaller batches")  # fmt: skip
    if low is not None and high is not None and high > HUGE * low:
        side = "below" if low > B.min() / HUGE else "above"
        notes.append(f"B_crit is bounded from {side} only" if B.min() / HUGE < low or high < HUGE * B.max()
                     else "B_crit is not bounded by this sweep")  # fmt: skip
    return notes


def _ends(center: float, half: float | None, link: Any) -> Interval:
    return (None, None) if half is None else (float(link(center - half)), float(link(center + half)))


def _inverse(interval: Interval) -> Interval:
    """-1 / a over an interval of a; unbounded where it holds 0."""
    low, high = interval
    if low is None or high is None or low * high <= 0:
        return None, None
    return -1 / low, -1 / high
