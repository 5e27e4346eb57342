"""Where the law begins: do the smallest budgets belong to the fit?

    stability   the fit again without the 1, 2, ... smallest budgets: exponents and the far loss as they move
    membership  the law fitted above a budget predicts that budget's cells:
                T = r' S^-1 r / m  against F(m, nu),  S = noise + covariance of the prediction over the rounds;
                from the smallest up, until one belongs
    break       the minima L_opt(C) under a power law with floor against one broken once (Caballero et al. 2023),
                by AICc, where there are enough budgets to see a break

Small cells are where warm-up, embeddings and tuning bend a law. What is dropped is a decision for the reader:
nothing is left out of a fit by this module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import VerdictError
from jaxscale.fit.cells import assign_budgets, gather_cells, grid_rows
from jaxscale.fit.isoflop import fit_isoflop
from jaxscale.fit.parametric import fit_parametric
from jaxscale.fit.resample import f_tail
from jaxscale.fit.result import Fit, without_nan
from jaxscale.fit.squares import aicc
from jaxscale.format import format_interval, format_number
from jaxscale.runs import Observations
from jaxscale.source import as_observations
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Beginning", "find_beginning"]

LEVEL = 0.01
"""A budget is called foreign when its cells are this improbable under the law above it."""
FEWEST = 3
"""Budgets that must be left to fit."""
MOST_DROPPED = 5
"""Budgets left out at most: a law that does not hold above that is no law of these data."""
FAR = 10.0
"""The far loss is taken this many times beyond the largest budget."""
BREAKABLE = 10
"""Budgets from which a break (three more parameters) can be looked for."""
CLEARLY = 4.0
"""Difference of AICc from which the better law is called so (Burnham and Anderson 2002)."""


@dataclass(frozen=True)
class Beginning:
    """`rows`: one a method and number of budgets dropped; `tests`: one a budget tried; `broken`: the break."""

    rows: tuple[dict[str, Any], ...]
    tests: tuple[dict[str, Any], ...]
    broken: dict[str, Any]
    verdict: str
    schema: str = "jaxscale.beginning/1"

    def to_json(self) -> str:
        """As JSON, schema jaxscale.beginning/1."""
        plain = {"schema": self.schema, "rows": list(self.rows), "tests": list(self.tests), "broken": self.broken,
                 "verdict": self.verdict}  # fmt: skip
        return json.dumps(without_nan(plain), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a method and number of budgets dropped."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def __str__(self) -> str:
        shown = []
        for row in self.rows:
            ends = [format_interval(row[f"{name}_interval"], format_number) for name in ("a", "loss_far")]
            shown.append((row["method"], row["dropped"], row["from_C"], row["a"], ends[0], row["loss_far"], ends[1]))
        header = ("method", "dropped", "from C", "a", "interval", f"loss at {FAR:g}x", "interval")
        table = render_table("without the smallest budgets", header, shown)
        return "\n".join([table, f"verdict: {self.verdict}", self.broken["words"]])


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite is null
def find_beginning(
    source: Observations | pd.DataFrame, *, law: str = "chinchilla", bootstrap: int = 200, confidence: float = 0.95,
    seed: int = 0,
) -> Beginning:  # fmt: skip
    """Stability without the smallest budgets, and whether each belongs to the law above it.

    VerdictError with fewer than four budgets: one is tested, three must be left.
    """
    obs = as_observations(source)
    frame = obs.frame[grid_rows(obs.frame)].reset_index(drop=True)
    number, spread = assign_budgets(frame)
    budgets = len(np.unique(number)) if number.max() >= 0 else 0
    if budgets < FEWEST + 1:
        what = f"{budgets} budgets" if budgets else f"no budgets (C spreads over {spread:.0%})"
        raise VerdictError(f"stability: {what}, at least {FEWEST + 1} are needed to leave the smallest out")
    options: dict[str, Any] = {"bootstrap": bootstrap, "confidence": confidence, "seed": seed}
    far = FAR * float(frame["C"].max())
    rows: list[dict[str, Any]] = []
    above: dict[int, Fit] = {}
    for dropped in range(min(budgets - FEWEST, MOST_DROPPED) + 1):
        part = replace(obs, frame=frame[number >= dropped].reset_index(drop=True))
        above[dropped] = fit_parametric(part, law=law, **options)
        for fit in (fit_isoflop(part, **options), above[dropped]):
            rows += [] if fit.verdict or not fit.exponents else [_row(fit, dropped, part, far)]
    parts = {k: replace(obs, frame=frame[number == k].reset_index(drop=True)) for k in range(budgets)}
    tests = _test_members(above, parts)
    return Beginning(tuple(rows), tests, _find_break(obs, options), _say(tests, budgets))


def _row(fit: Fit, dropped: int, part: Observations, far: float) -> dict[str, Any]:
    from jaxscale.fit.summary import percentile_interval

    assert fit.exponents is not None
    loss = percentile_interval(np.asarray(fit.sample_optimum(far).loss), fit.confidence)
    return {
        "method": fit.method, "dropped": dropped, "from_C": float(part.frame["C"].min()),
        "a": fit.exponents["N"].value, "a_interval": list(fit.exponents["N"].interval),
        "b": fit.exponents["D"].value, "b_interval": list(fit.exponents["D"].interval),
        "loss_far": float(fit.predict_optimum(far).loss), "loss_far_interval": list(loss),
    }  # fmt: skip


def _test_members(above: Mapping[int, Fit], parts: Mapping[int, Observations]) -> tuple[dict[str, Any], ...]:
    """From the smallest budget up, until one belongs to the law of those above it."""
    tests = []
    for k in range(len(above) - 1):
        fit = above[k + 1]
        if fit.verdict or not fit.draws:
            break
        tests.append(_test_budget(fit, parts[k]))
        if tests[-1]["belongs"]:
            break
    return tuple(tests)


def _test_budget(fit: Fit, part: Observations) -> dict[str, Any]:
    cells = gather_cells(part)
    inputs = [cells.input(name) for name in fit.law_value().inputs]
    r = np.log(cells.loss) - np.log(fit.predict_loss(*inputs))
    drawn = np.log(np.stack([fit.sample_loss(*one) for one in zip(*inputs, strict=True)], 1))
    drawn = drawn[np.isfinite(drawn).all(1)]
    doubt = np.cov(drawn, rowvar=False).reshape(len(r), len(r)) if len(drawn) > 1 else 0.0
    noise = fit.noise["residual_std"] or 0.0
    S = np.diag(noise**2 / cells.weight) + doubt
    statistic = float(r @ np.linalg.pinv(S, hermitian=True) @ r / len(r))
    dof = len(fit.diagnostics["residuals"]) - len(fit.params)
    p = f_tail(statistic, len(r), max(dof, 1))
    return {
        "C": float(np.exp(np.log(cells.C).mean())), "cells": len(r), "bias": float(r.mean()),
        "rms": float(np.sqrt((r**2).mean())), "statistic": statistic, "p_value": p, "belongs": p >= LEVEL,
    }  # fmt: skip


def _say(tests: tuple[dict[str, Any], ...], budgets: int) -> str:
    foreign = [test for test in tests if not test["belongs"]]
    if not tests:
        return "the law above the smallest budget cannot be fitted: whether it belongs cannot be tested"
    last = tests[-1]
    if not foreign:
        return (f"the smallest budget ({last['C']:.3g} FLOPs) belongs: the law of the larger ones predicts its "
                f"{last['cells']} cells to {last['rms']:.2%} (p = {last['p_value']:.2g})")  # fmt: skip
    biases = ", ".join(f"{test['C']:.3g} ({test['bias']:+.2%}, p = {test['p_value']:.1g})" for test in foreign)
    if last["belongs"]:
        which = (
            f"the {len(foreign)} smallest of {budgets} budgets do" if len(foreign) > 1 else "the smallest budget does"
        )
        return (f"{which} not belong to the law above: {biases} measured against predicted; the law begins at "
                f"{last['C']:.3g} FLOPs: fit from there with --where")  # fmt: skip
    return (f"none of the {len(foreign)} smallest budgets belongs to the law above it ({biases}): the law itself "
            f"misses the data, or the budgets were trained differently")  # fmt: skip


def _find_break(obs: Observations, options: Mapping[str, Any]) -> dict[str, Any]:
    """Power law with floor against one break through the minima of the budgets."""
    import pandas as pd

    fit = fit_isoflop(obs, **{**options, "bootstrap": 0})
    found = [b for b in fit.budgets or () if b.status == "ok"]
    record: dict[str, Any] = {"budgets": len(found), "preferred": None}
    if len(found) < BREAKABLE:
        words = f"{len(found)} minima: a broken power law cannot be told from a straight one below {BREAKABLE}"
        return record | {"words": words}
    frame = pd.DataFrame([{"N": b.N_opt, "D": b.D_opt, "C": b.C, "loss": b.loss_opt} for b in found])
    scores = {}
    for law in ("compute", "broken"):
        one = fit_parametric(frame, law=law, objective="squares", bootstrap=0)
        scores[law] = aicc(2 * one.objective["value"], len(found), len(one.params)) if not one.verdict else np.inf
        record[law] = {"params": one.params, "aicc": scores[law]}
    gain, at = scores["compute"] - scores["broken"], record["broken"]["params"].get("Cb", 0.0)
    if gain > CLEARLY and found[0].C < at < found[-1].C:
        return record | {
            "preferred": "broken",
            "words": f"a break at {at:.3g} FLOPs describes the minima better (AICc {gain:.1f} lower)",
        }
    words = f"no break is seen inside the minima (AICc of a broken power law {-gain:+.1f})"
    return record | {"preferred": "compute", "words": words}
