"""One study fitted and judged, and many judged studies counted.

    coverage   share of studies whose interval holds the truth; standard error sqrt(p (1 - p) / n)
    band       counts k with P(X <= k) and P(X >= k) above (1 - .99) / (2 m), X ~ Binomial(n, confidence): with m
               rows in a table all of them lie in their bands in 99% of simulations if every interval is right
               (Bonferroni, so whatever the dependence between the rows)

    width_ratio  mean width over that of the narrowest interval of constant width about the estimates that holds
               the truth in `confidence` of the studies: 1 is no wider than needed

A study that a fit refuses, or that gets no interval, covers nothing: `coverage` is over the answered ones,
`coverage_all` over all. loss_future_run is judged by one more drawn run, at the N_opt that the study
forecasts, with the noise of its runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import lgamma
from typing import Any

import numpy as np

from jaxscale.errors import JaxscaleError
from jaxscale.fit.result import Fit
from jaxscale.fit.summary import percentile_interval
from jaxscale.fit.together import METHODS
from jaxscale.forecast import add_run_noise
from jaxscale.simulate.scenario import Draw, Scenario, draw_study

__all__ = ["SIMULTANEOUS", "Task", "binomial_band", "count_rows", "judge_study", "true_values"]

SIMULTANEOUS = 0.99
"""Joint probability of the bands."""
ALWAYS = ("a", "b", "N_opt", "D_opt", "loss", "loss_future_run")
"""Rows of every method; where no study is answered they say so."""
RELATIVE = ("A", "B", "N_opt", "D_opt", "loss", "loss_future_run")
"""Quantities whose error and width are also given as logs of ratios."""


@dataclass(frozen=True)
class Task:
    """What is done with each study."""

    scenario: Scenario
    methods: tuple[str, ...]
    resamplers: tuple[str, ...]
    bootstrap: int
    confidence: float
    seed: int


def true_values(scenario: Scenario) -> dict[str, float]:
    """The truth of each quantity: exponents and optimum at the target; E, A, B, alpha, beta where it has them."""
    form, rule, C = scenario.form, scenario.layout.flop_rule, scenario.target_C
    best, (a, b) = form.optimum(C, rule), form.exponents(C, rule)
    found = {"a": a, "b": b, "N_opt": float(best.N), "D_opt": float(best.D), "loss": float(best.loss)}
    found["loss_future_run"] = found["loss"]
    law = form.law
    return found | ({name: float(getattr(law, name)) for name in law.param_names()} if law else {})


def judge_study(task: Task, number: int) -> list[dict[str, Any]]:
    """Records of one study: an estimate and interval for every quantity, or one with a verdict, a fit."""
    truth, draw = true_values(task.scenario), draw_study(task.scenario, task.seed, number)
    records = []
    for method in task.methods:
        for resample in task.resamplers:
            for found in _fit_once(task, draw, truth, method, resample):
                records.append({"study": number, "method": method, "resample": resample, **found})
    return records


def _fit_once(task: Task, draw: Draw, truth: Mapping[str, float], method: str, resample: str) -> list[dict[str, Any]]:
    try:
        fit = METHODS[method](
            draw.observations, bootstrap=task.bootstrap, resample=resample, confidence=task.confidence,
            seed=draw.fit_seed,
        )  # fmt: skip
    except (JaxscaleError, np.linalg.LinAlgError) as error:
        return [{"quantity": None, "verdict": str(error)}]
    if fit.verdict:
        return [{"quantity": None, "verdict": fit.verdict}]
    return _read_fit(task, draw, truth, fit)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite has no interval, and is counted
def _read_fit(task: Task, draw: Draw, truth: Mapping[str, float], fit: Fit) -> list[dict[str, Any]]:
    C, exponents = task.scenario.target_C, fit.exponents or {}
    best, drawn = fit.predict_optimum(C), fit.sample_optimum(C)
    read: dict[str, tuple[Any, Any]] = {
        name: (exponents[key].value, exponents[key].interval) for name, key in (("a", "N"), ("b", "D"))
    }
    if fit.method == "parametric":
        read |= {name: (fit.params[name], fit.intervals[name]) for name in fit.params}
    samples = (*drawn, add_run_noise(fit, drawn.loss))
    for name, value, rounds in zip(RELATIVE[2:], (*best, best.loss), samples, strict=True):
        read[name] = float(value), percentile_interval(np.asarray(rounds), fit.confidence)
    future = _run_future(task.scenario, float(best.N), draw.future_error)
    return [
        {"quantity": name, "estimate": float(read[name][0]), "low": read[name][1][0], "high": read[name][1][1],
         "truth": future if name == "loss_future_run" else truth[name], "resample_used": fit.resample,
         "budgets": sum(b.status == "ok" for b in fit.budgets) if fit.budgets else None}
        for name in truth if name in read
    ]  # fmt: skip


def _run_future(scenario: Scenario, N: float, error: float) -> float:
    """Loss of the run that the forecast would have started: its N, the tokens that pay for it, one draw of noise."""
    D = scenario.layout.flop_rule.tokens(scenario.target_C, N)
    return float(scenario.form.true(N, D) * np.exp(error))


def count_rows(records: Sequence[Mapping[str, Any]], truth: Mapping[str, float], confidence: float) -> list[dict]:
    """One row a (method, resampler, quantity): truth, bias, rms error, coverage, width, and what was refused."""
    rows = []
    for method, resample in dict.fromkeys((record["method"], record["resample"]) for record in records):
        mine = [record for record in records if (record["method"], record["resample"]) == (method, resample)]
        refused = sum(record["quantity"] is None for record in mine)
        found = {name: [record for record in mine if record["quantity"] == name] for name in truth}
        answered = [name for name in truth if found[name]] or list(ALWAYS)
        for name in answered:
            row = _count_one(name, found[name], refused, confidence, len(answered))
            rows.append({"method": method, "resample": resample, "quantity": name, "truth": truth[name], **row})
    return rows


def _count_one(name: str, part: Sequence[Mapping[str, Any]], refused: int, confidence: float, family: int) -> dict:
    """Fields of one row; bias, rms_error and mean_width in the quantity's own unit, log_* as logs of ratios."""
    estimate, truth, low, high = (
        np.array([r[key] for r in part], float) for key in ("estimate", "truth", "low", "high")
    )
    known = np.isfinite(low) & np.isfinite(high)
    inside = int((known & (low <= truth) & (truth <= high)).sum())
    n = int(known.sum())
    share = inside / n if n else None
    band = binomial_band(n, confidence, family)
    row: dict[str, Any] = {
        "bias": _mean(estimate - truth), "rms_error": _root(estimate - truth), "coverage": share,
        "coverage_std_error": float(np.sqrt(share * (1 - share) / n)) if share is not None else None,
        "mean_width": _mean((high - low)[known]), "band": list(band), "within_band": _place(share, band),
        "answered": n, "no_interval": len(part) - n, "refused": refused,
        "coverage_all": inside / (len(part) + refused) if len(part) + refused else None,
        "missed_low": int((known & (truth < low)).sum()), "missed_high": int((known & (truth > high)).sum()),
    }  # fmt: skip
    off, width = estimate - truth, (high - low)[known]
    logs = dict.fromkeys(("log_bias", "log_rms_error", "mean_log_width"))
    if name in RELATIVE and len(part):
        with np.errstate(all="ignore"):
            off, width = np.log(estimate / truth), np.log(high / low)[known]
        logs = {"log_bias": _mean(off), "log_rms_error": _root(off), "mean_log_width": _mean(width)}
    return row | logs | {"width_ratio": _compare_width(off, width, confidence)}


def _compare_width(off: np.ndarray, width: np.ndarray, confidence: float) -> float | None:
    """Mean width over the needed one; None with too few studies to see the tail, or without error."""
    if len(width) * (1 - confidence) < 1:
        return None
    needed = 2 * float(np.quantile(np.abs(off), confidence))
    return float(width.mean()) / needed if needed > 0 else None


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _root(values: np.ndarray) -> float | None:
    return float(np.sqrt((values**2).mean())) if len(values) else None


def _place(share: float | None, band: tuple[float, float]) -> str | None:
    """within, below or above; None without intervals."""
    if share is None:
        return None
    return "below" if share < band[0] - 1e-12 else "above" if share > band[1] + 1e-12 else "within"


@lru_cache(maxsize=256)
def binomial_band(n: int, confidence: float, family: int = 1, level: float = SIMULTANEOUS) -> tuple[float, float]:
    """Coverage counted in n studies lies in here for all of `family` rows with probability `level` or more.

    >>> low, high = binomial_band(2000, 0.95, 4)
    >>> round(low, 4), round(high, 4)
    (0.9345, 0.964)
    """
    if not n:
        return 0.0, 1.0
    tail = (1 - level) / (2 * family)
    k = np.arange(n + 1)
    log_ways = lgamma(n + 1) - np.array([lgamma(i + 1) + lgamma(n - i + 1) for i in k])
    below = np.cumsum(np.exp(log_ways + k * np.log(confidence) + (n - k) * np.log1p(-confidence)))
    low, high = (int(np.searchsorted(below, edge)) for edge in (tail, 1 - tail))
    return low / n, min(high, n) / n
