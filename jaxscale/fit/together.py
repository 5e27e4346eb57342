"""The approaches on the same observations: their agreement is evidence, their disagreement a warning.

Weights are equal over the answers: a few backtest errors choose no winner (agreement.py, average.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxscale.errors import MisuseError
from jaxscale.fit.agreement import judge_agreement
from jaxscale.fit.isoflop import fit_isoflop
from jaxscale.fit.parametric import fit_parametric
from jaxscale.fit.result import Fit, Fits
from jaxscale.runs import Observations
from jaxscale.source import as_observations

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METHODS", "fit_all"]

METHODS: dict[str, Callable[..., Fit]] = {"isoflop": fit_isoflop, "parametric": fit_parametric}
OWN = {"isoflop": ("interpolant", "window"), "parametric": ("law", "objective", "delta", "fix", "start", "profile")}
SHARED = ("bootstrap", "resample", "confidence", "seed")


def fit_all(
    source: Observations | pd.DataFrame,
    *,
    methods: tuple[str, ...] = ("isoflop", "parametric"),
    **options: Any,
) -> Fits:
    """Fit by every method; each option goes to the methods that know it. Weights are equal over answers."""
    known = {*SHARED, *(name for names in OWN.values() for name in names)}
    for name in options:
        if name not in known:
            raise MisuseError(f"option {name!r} is unknown to every method; they take {', '.join(sorted(known))}")
    for method in methods:
        if method not in METHODS:
            raise MisuseError(f"method {method!r} is unknown; use {', '.join(METHODS)}")
    obs = as_observations(source)
    fits = tuple(
        METHODS[method](obs, **{k: v for k, v in options.items() if k in (*SHARED, *OWN[method])}) for method in methods
    )
    answers = sum(fit.verdict is None for fit in fits)
    weights = tuple(0.0 if fit.verdict else 1.0 / answers for fit in fits)
    return Fits(fits, weights, judge_agreement(fits))
