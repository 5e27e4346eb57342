"""Fit -> Forecast: the optimal size, tokens and loss at a compute not yet spent, and how sure that is.

Two intervals are told apart: that of the law itself (`loss`), and that of one future run (`loss_future_run`),
which adds the noise between runs. Both know only what the fit's bootstrap knows: that the law holds beyond
the largest budget is an assumption, and `extrapolation` says how far it is stretched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.result import Fit, Fits, without_nan
from jaxscale.fit.summary import percentile_interval
from jaxscale.format import format_interval, format_number
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Forecast", "add_run_noise", "forecast_optimum"]

INTERVALS = ("N_opt", "D_opt", "loss", "loss_future_run")
SHOWN = (
    "method",
    "C",
    "x largest",
    "N_opt",
    "interval",
    "D_opt",
    "interval",
    "D/N",
    "loss",
    "interval",
    "one run",
)


@dataclass(frozen=True)
class Forecast:
    """Rows by compute and method: C, extrapolation, N_opt, D_opt, loss, tokens_per_param, intervals."""

    fit: dict[str, Any]
    rule: str
    confidence: float
    rows: tuple[dict[str, Any], ...]
    schema: str = "jaxscale.forecast/1"

    def to_json(self) -> str:
        """The forecast as JSON, schema jaxscale.forecast/1."""
        plain = {"schema": self.schema, "fit": self.fit, "rule": self.rule, "confidence": self.confidence,
                 "rows": list(self.rows)}  # fmt: skip
        return json.dumps(without_nan(plain), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a compute and method; intervals as columns NAME_low, NAME_high."""
        import pandas as pd

        return pd.DataFrame([_flatten(row) for row in self.rows])

    def __str__(self) -> str:
        rows = []
        for row in self.rows:
            N, D, loss, run = (format_interval(row["intervals"][name], format_number) for name in INTERVALS)
            head = (row["method"], row["C"], row["extrapolation"], row["N_opt"], N, row["D_opt"], D)
            rows.append((*head, row["tokens_per_param"], row["loss"], loss, run))
        counted = "6 N D" if self.rule == "6ND" else "the study's exact count"
        return render_table(f"forecast, C counted as {counted}, {self.confidence:.0%} intervals", SHOWN, rows)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite is null
def forecast_optimum(fit: Fit | Fits, *, flops: Sequence[float] = (), loss: float | None = None) -> Forecast:
    """N_opt (parameters), D_opt (tokens) and loss (nats per token) at each C of `flops` (training FLOPs).

    `loss` instead of `flops`: at the C where each method's frontier reaches that loss. With several fits
    every method gives its own row; those without an answer give none. VerdictError where no fit has an
    answer, or no frontier gets that low.
    """
    targets = _check_targets(flops, loss)
    fits = fit.fits if isinstance(fit, Fits) else (fit,)
    answers = [one for one in fits if one.verdict is None]
    if not answers:
        raise VerdictError("; ".join(f"{one.method} fit: {one.verdict}" for one in fits))
    if loss is None:
        rows = tuple(_forecast_one(one, C) for C in targets for one in answers)
    else:
        rows = _forecast_loss(answers, loss)
    plain = fit.to_plain()
    for record in plain["fits"] if isinstance(fit, Fits) else [plain]:
        record.pop("draws")
    return Forecast(plain, answers[0].diagnostics["flops"]["rule"], answers[0].confidence, rows)


def _check_targets(flops: Sequence[float], loss: float | None) -> list[float]:
    targets = [float(C) for C in flops]
    if bool(targets) == (loss is not None):
        raise MisuseError("give flops (one or more, as in 1e22) or a loss to reach (as in 2.1), one of the two")
    for name, value in [*(("flops", C) for C in targets), *([] if loss is None else [("loss", loss)])]:
        if not (np.isfinite(value) and value > 0):
            raise MisuseError(f"{name}: {value:g} must be finite and above 0, as in {'1e22' if targets else '2.1'}")
    return targets


def _forecast_loss(fits: Sequence[Fit], loss: float) -> tuple[dict[str, Any], ...]:
    """A row for every fit whose frontier reaches the loss."""
    found = [(fit, float(fit.frontier().compute(loss))) for fit in fits]
    rows = tuple(_forecast_one(fit, C) for fit, C in found if np.isfinite(C))
    if not rows:
        lowest = ", ".join(f"{fit.frontier().E:.4g} ({fit.method})" for fit in fits)
        raise VerdictError(f"loss {loss:g}: no compute reaches it, the irreducible loss is {lowest}; ask for more")
    return rows


def _forecast_one(fit: Fit, C: float) -> dict[str, Any]:
    best, draws = fit.predict_optimum(C), fit.sample_optimum(C)
    samples = dict(zip(INTERVALS, (*draws, add_run_noise(fit, draws.loss)), strict=True))
    return {
        "method": fit.method, "C": C, "extrapolation": C / fit.diagnostics["largest_C"],
        "N_opt": float(best.N), "D_opt": float(best.D), "loss": float(best.loss),
        "tokens_per_param": float(best.D / best.N),
        "intervals": {name: list(percentile_interval(x, fit.confidence)) for name, x in samples.items()},
    }  # fmt: skip


def add_run_noise(fit: Fit, losses: np.ndarray) -> np.ndarray:
    """Losses of single runs (rounds,): the deviation between seeds, else that about the fit, in log loss."""
    noise = fit.noise["seed_std"] if fit.noise["seed_std"] is not None else fit.noise["residual_std"]
    rng = np.random.default_rng([fit.seed, 1])
    return losses * np.exp((noise or 0.0) * rng.standard_normal(len(losses)))


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in row.items() if name != "intervals"}
    for name, (low, high) in row["intervals"].items():
        flat |= {f"{name}_low": low, f"{name}_high": high}
    return flat
