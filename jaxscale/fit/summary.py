"""From bootstrap rounds to intervals, and the options every fit shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.fit.cells import Cells, grid_rows
from jaxscale.fit.resample import RESAMPLERS
from jaxscale.runs import Observations

__all__ = [
    "check_options",
    "describe_rule",
    "describe_source",
    "percentile_ends",
    "percentile_interval",
    "say_rule",
    "summarize_draws",
]

TOLERATED = 0.05
"""Relative difference between C and its rule that is not mentioned: the width that a budget may have."""
ABSURD = 4.0
"""Beyond it a unit is wrong, which suspect.py says."""


def check_options(*, bootstrap: int, resample: str, confidence: float, seed: int = 0) -> None:
    """MisuseError naming the option that is out of its range."""
    if bootstrap < 0:
        raise MisuseError(f"bootstrap {bootstrap} must be 0 or more; 1000 is the default")
    if resample not in RESAMPLERS:
        raise MisuseError(f"resample {resample!r} is unknown; use one of {', '.join(RESAMPLERS)}")
    if not 0 < confidence < 1:
        raise MisuseError(f"confidence {confidence:g} must lie between 0 and 1; 0.95 is the default")
    if seed < 0:
        raise MisuseError(f"seed {seed} must be 0 or more; 0 is the default")


def describe_source(obs: Observations) -> dict[str, Any]:
    """The source's record with the rows that this fit saw: held-out rows and weight 0 are not used."""
    seen = int(grid_rows(obs.frame).sum())
    record = {name: value for name, value in obs.source.items() if name != "tuning"}  # stands in the diagnostics
    return {**record, "rows_used": seen, "rows_held_out": len(obs.frame) - seen}


def percentile_interval(draws: np.ndarray, confidence: float) -> tuple[float | None, float | None]:
    """Central percentile interval of rounds (rounds,); (None, None) with fewer than two.

    >>> low, high = percentile_interval(np.arange(1.0, 100.0), 0.9)
    >>> round(low, 9), round(high, 9)
    (5.0, 95.0)
    """
    finite = draws[np.isfinite(draws)]
    if len(finite) < 2:
        return None, None
    low, high = percentile_ends(finite, confidence)
    return float(low), float(high)


def percentile_ends(draws: np.ndarray, confidence: float) -> np.ndarray:
    """Both ends (2, ...) of the central interval over the first axis, NaN left out.

    The k-th of R rounds stands for the share k / (R + 1) of the distribution (Weibull's position): one more
    draw then falls outside with exactly 1 - confidence. numpy's default, (k - 1) / (R - 1), leaves out 6%
    instead of 5% at 200 rounds.
    """
    tail = (1 - confidence) / 2
    return np.asarray(np.nanquantile(draws, [tail, 1 - tail], axis=0, method="weibull"))


def summarize_draws(
    draws: Mapping[str, np.ndarray], confidence: float
) -> tuple[dict[str, tuple[float | None, float | None]], dict[str, float | None]]:
    """Interval and standard error of each quantity."""
    intervals = {name: percentile_interval(values, confidence) for name, values in draws.items()}
    errors = {name: float(np.std(v, ddof=1)) if len(v) > 1 else None for name, v in draws.items()}
    return intervals, errors


def describe_rule(obs: Observations, cells: Cells) -> dict[str, Any]:
    """What C means: 6 N D, or k N^p D by least squares of log(C / D) on log N along the study's own sizes.

    `misfit` is the largest relative error of the rule on the cells. Beyond the sizes trained k N^p is an
    assumption: exact counts approach 6 N D as the width grows.
    """
    C, N, D = cells.C, cells.N, cells.D
    k, p = 6.0, 1.0
    if obs.rule == "exact" and len(np.unique(N)) > 1:
        p, log_k = np.polyfit(np.log(N), np.log(C / D), 1)
        k, p = float(np.exp(log_k)), float(p)
    misfit = float(np.abs(k * N**p * D / C - 1).max())
    return {"rule": obs.rule, "k": k, "p": p, "misfit": misfit}


def say_rule(flops: Mapping[str, Any]) -> list[str]:
    """A sentence where C of the table is not what the rule counts: the optimum of a law over N and D goes by it."""
    if not TOLERATED < flops["misfit"] < ABSURD:
        return []
    counted = "6 N D" if flops["rule"] == "6ND" else f"{flops['k']:.3g} N^{flops['p']:.3g} D"
    return [f"C of the table and {counted} differ by up to {flops['misfit']:.0%}: a compute asked of this fit counts "
            f"as {counted}, that of an isoflop fit as in the table; --flops-rule 6ND makes them one"]  # fmt: skip
