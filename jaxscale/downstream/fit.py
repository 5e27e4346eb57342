"""Rows -> Downstream: every task judged, fitted in both stages, tested on itself, and asked for its targets.

Tasks are fitted alone; the one thing they share is how wrong the recipe usually is (backtest.pool_rates).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.downstream.accuracy import Stage2, fit_accuracy, fit_curves
from jaxscale.downstream.backtest import Backtest, pool_rates, run_backtest, span
from jaxscale.downstream.chain import ASSUMED_ITEMS, Chain
from jaxscale.downstream.families import choose_family, compare_families
from jaxscale.downstream.nll import Stage1, choose_law, fit_nll
from jaxscale.downstream.points import Pairs, Run, gather_runs, infer_chance, infer_items, pair_checkpoints, thin
from jaxscale.downstream.read import Rows, read_rows
from jaxscale.downstream.recipe import LAWS, Recipe, find_recipe
from jaxscale.downstream.result import Downstream
from jaxscale.downstream.verdicts import find_verdict
from jaxscale.errors import MisuseError, VerdictError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["fit_downstream"]

CLEARLY = 0.75
"""Share of the backtests' error below which another fit takes the default's place."""
SHOWN = 240
"""Pairs of a task that are kept for the figure."""


NONE = Backtest(())


@dataclass(frozen=True)
class _Work:
    """A task on its way: `verdict` ends it."""

    name: str
    runs: list[Run]
    targets: list[Run]
    chance: tuple[float, str]
    items: tuple[float, str]
    verdict: str | None = None
    pairs: dict[str, Pairs] | None = None
    stage1: Stage1 | None = None
    stage2: Stage2 | None = None
    families: dict[str, Any] | None = None
    backtest: Backtest = NONE
    one_stage: np.ndarray | None = None
    prior: bool = False


def fit_downstream(
    source: str | Path | pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    fit_where: str | None = None,
    target_where: str | None = None,
    nll_unit: str | None = None,
    recipe: str | Recipe = "default",
    law: str = "auto",
    families: str = "auto",
    chance: Mapping[str, float] | None = None,
    items: Mapping[str, float] | None = None,
    confidence: float = 0.95,
    bootstrap: int = 500,
    seed: int = 0,
) -> Downstream:
    """Two-stage forecasts of every task's targets.

    `source` has a row a (run, checkpoint, task), see jaxscale.downstream.read; `law` is stage 1's (nd, power,
    log-linear), `chance` and `items` are by task where the table does not say. MisuseError for what a user can mend;
    a task that cannot be forecast is in `verdicts`.
    """
    chosen = find_recipe(recipe)
    _check(law, confidence, bootstrap)
    rows = read_rows(source, columns=columns, fit_where=fit_where, target_where=target_where, nll_unit=nll_unit)
    names = list(dict.fromkeys(rows.frame["task"][rows.fit]))
    for option, given in (("chance", chance), ("items", items)):
        for name in given or {}:
            if name not in names:
                raise MisuseError(f"{option}: {name!r} is no task of the fit rows; they are {', '.join(names)}")
    work = [_gather(rows, name, chosen, chance or {}, items or {}) for name in names]
    unit = str(rows.frame["nll_unit"].iloc[0])
    bits = 1 / np.log(2) if unit == "nats" else 1.0
    options = (law, families, bootstrap, seed, bits)
    gathered = work
    work = [_fit(one, chosen, *options) for one in gathered]
    freed = _free_prior(work, chosen)
    if freed is not None:
        work = [_fit(one, freed, *options) for one in gathered]
    fitted = [one for one in work if not one.verdict]
    rates = pool_rates([one.backtest for one in fitted], [one.items[0] for one in fitted]) if fitted else []
    rate_of = dict(zip((one.name for one in fitted), rates, strict=True))
    tasks = {one.name: _conclude(one, rate_of.get(one.name), confidence, seed) for one in work}
    notes = _notes(rows, work)
    if freed is not None:
        notes.append(
            "stage 1 is fitted without its prior: on the runs of this source it foretells the larger ones better"
        )
    if chosen.early_stop and unit == "as given":
        notes.append("the recipe begins stage 2 at a point in bits per byte, which the NLL is taken to be in; "
                     "--nll-unit nats says otherwise")  # fmt: skip
    return Downstream(chosen.name, tasks, confidence, unit, rows.source, tuple(notes))


def _check(law: str, confidence: float, bootstrap: int) -> None:
    if law not in LAWS:
        raise MisuseError(f"law {law!r} is unknown; use one of {', '.join(LAWS)}")
    if not 0 < confidence < 1:
        raise MisuseError(f"confidence: {confidence:g} must lie between 0 and 1, as in 0.95")
    if bootstrap < 50:
        raise MisuseError(f"bootstrap: {bootstrap} rounds are too few for an interval; use 50 or more")


def _gather(rows: Rows, name: str, recipe: Recipe, chance: Mapping[str, float], items: Mapping[str, float]) -> _Work:
    mine = (rows.frame["task"] == name).to_numpy()
    runs = gather_runs(rows.frame[mine & rows.fit], recipe)
    targets = gather_runs(rows.frame[mine & rows.target], recipe)
    seen = np.concatenate([run.checkpoints["accuracy"] for run in runs])
    return _Work(name, runs, targets, _chance(rows, mine, name, chance, seen), _items(runs, name, items, seen))


def _chance(rows: Rows, mine: np.ndarray, name: str, given: Mapping[str, float], seen: np.ndarray) -> tuple[float, str]:
    if name in given:
        if not 0 <= given[name] < 1:
            raise MisuseError(f"chance: {name} = {given[name]:g} must be a fraction from 0 to below 1")
        return float(given[name]), "given"
    if "chance" in rows.frame and rows.frame["chance"][mine].notna().any():
        return float(rows.frame["chance"][mine].median()), "column"
    return infer_chance(seen), "inferred from the lowest accuracies"


def _items(runs: list[Run], name: str, given: Mapping[str, float], seen: np.ndarray) -> tuple[float, str]:
    if name in given:
        if not given[name] >= 1:
            raise MisuseError(f"items: {name} = {given[name]:g} must be 1 or more")
        return float(given[name]), "given"
    known = [run.items for run in runs if np.isfinite(run.items) and run.items >= 1]
    if known:
        return float(np.median(known)), "column"
    found = infer_items(seen)
    return (float(found), "all accuracies are multiples of 1/items") if found else (float(ASSUMED_ITEMS), "assumed")


def _fit(one: _Work, recipe: Recipe, law: str, families: str, rounds: int, seed: int, bits: float) -> _Work:
    """Both stages and the backtest of a task, or its verdict."""
    own = choose_family(one.runs, one.targets, families)
    grid = [run for run in one.runs if run.family == own]
    pairs = {"nll": pair_checkpoints(one.runs, recipe)}
    chance, items = one.chance[0], one.items[0]
    if verdict := find_verdict(grid, pair_checkpoints(grid, recipe) if grid else pairs["nll"], recipe, chance, items):
        return replace(one, verdict=verdict)
    told = compare_families(pairs["nll"], one.runs, own, recipe, chance, families)
    runs = one.runs if told is None else [run for run in one.runs if run.family in told["stage2"]]
    pairs = {"nll": pair_checkpoints(runs, recipe)}
    if all(np.isfinite(run.loss) for run in grid):
        pairs["loss"] = pair_checkpoints(grid, recipe, "loss")
    law = choose_law(law, [*grid, *one.targets])
    try:
        stage1 = fit_nll(grid, recipe, law, rounds=rounds, seed=seed)
    except VerdictError as error:
        return replace(one, verdict=str(error))
    stage2 = fit_accuracy(pairs["nll"], recipe, chance, rounds=rounds, seed=seed, bits=bits)
    mine = {**pairs, "nll": pair_checkpoints(grid, recipe)}
    backtest = run_backtest(grid, mine, recipe, law, chance)
    return replace(one, runs=grid, pairs=pairs, stage1=stage1, stage2=stage2, families=told, backtest=backtest,
                   one_stage=_one_stage(grid, recipe, chance), prior=recipe.prior is not None)  # fmt: skip


def _free_prior(work: list[_Work], recipe: Recipe) -> Recipe | None:
    """The recipe without its prior, where that is clearly better in the backtests of all tasks together.

    The prior is right for what falls as a power law does; an NLL over the choices, say, ends at log(choices).
    """
    tested = [one for one in work if one.backtest.rows and one.pairs is not None]
    if recipe.prior is None or not tested:
        return None
    freed = replace(recipe, prior=None)
    errors = np.zeros(2)
    for one in tested:
        assert one.pairs is not None and one.stage1 is not None
        pairs = {"nll": pair_checkpoints(one.runs, recipe)}
        other = run_backtest(one.runs, pairs, freed, one.stage1.law.law, one.chance[0])
        errors += [np.mean([abs(row["logits"]) for row in test.errors()]) for test in (one.backtest, other)]
    return freed if errors[1] < CLEARLY * errors[0] else None


def _one_stage(runs: list[Run], recipe: Recipe, chance: float) -> np.ndarray:
    """Parameters of a loglogistic curve of 1 / C, for comparison."""
    pairs = Pairs(1 / np.array([run.C for run in runs]) * _scale(runs), np.array([run.accuracy for run in runs]),
                  np.arange(len(runs)))  # fmt: skip
    return fit_curves(pairs, recipe, "loglogistic", chance, np.ones((1, len(runs))))[0].theta[0]


def _scale(runs: list[Run]) -> float:
    return float(np.exp(np.log([run.C for run in runs]).mean()))


def _conclude(one: _Work, rate: float | None, confidence: float, seed: int) -> dict[str, Any]:
    """A task as it stands in DOWNSTREAM.json."""
    if one.verdict or one.stage1 is None or one.stage2 is None or rate is None:
        return {"targets": [_unforeseen(run) for run in one.targets],
                "stages": {"verdict": one.verdict, "chance": _named(one.chance), "items": _named(one.items),
                           "runs": [_measured(run) for run in one.runs]}}  # fmt: skip
    chain = _chain(one, rate, confidence, seed)
    return {"targets": [_target(one, chain, run) for run in one.targets], "stages": _stages(one, chain)}


def _chain(one: _Work, rate: float, confidence: float, seed: int) -> Chain:
    assert one.stage1 is not None and one.stage2 is not None
    N, D, C = (np.array([getattr(run, name) for run in one.runs]) for name in "NDC")
    return Chain(
        one.stage1.law, one.stage1.draws, one.stage2.curves, one.stage2.draws, one.stage1.sigma, rate,
        one.chance[0], one.items[0], span(one.runs), float(np.median(C / (N * D))), confidence, seed,
    )  # fmt: skip


def _target(one: _Work, chain: Chain, run: Run) -> dict[str, Any]:
    from jaxscale.downstream.accuracy import Curve

    nll = float(chain.nll(run.N, run.D, run.C))
    accuracy = float(chain.accuracy(nll))
    measured = bool(np.isfinite(run.accuracy))
    assert one.one_stage is not None
    return {
        "run": run.name, "N": run.N, "D": run.D, "C": run.C, "extrapolation": run.C / chain.reach.C,
        "nll_pred": nll, "nll_true": run.nll, "nll_relative_error": nll / run.nll - 1,
        "accuracy_pred": accuracy, "accuracy_interval": list(chain.interval(run.N, run.D, run.C)),
        "accuracy_given_true_nll": float(chain.accuracy(run.nll)) if np.isfinite(run.nll) else None,
        "accuracy_true": run.accuracy if measured else None,
        "relative_error": accuracy / run.accuracy - 1 if measured else None,
        "one_stage_pred": float(Curve("loglogistic", one.one_stage).accuracy(_scale(one.runs) / run.C)),
    }  # fmt: skip


def _unforeseen(run: Run) -> dict[str, Any]:
    """A target of a task that cannot be forecast: what is known of it."""
    names = ("extrapolation", "nll_pred", "nll_relative_error", "accuracy_pred", "accuracy_interval",
             "accuracy_given_true_nll", "relative_error", "one_stage_pred")  # fmt: skip
    return {"run": run.name, "N": run.N, "D": run.D, "C": run.C, "nll_true": run.nll, "accuracy_true": run.accuracy,
            **dict.fromkeys(names)}  # fmt: skip


def _stages(one: _Work, chain: Chain) -> dict[str, Any]:
    assert one.stage1 is not None and one.stage2 is not None and one.pairs is not None
    shown = thin(one.pairs["nll"], SHOWN)
    return {
        "verdict": None,
        "nll": {"law": chain.law.law, "params": chain.law.params, "run_std": one.stage1.sigma,
                "objective": one.stage1.objective, "gradient_norm": one.stage1.gradient, "prior": one.prior},
        "accuracy": {"curves": [{"form": c.form, "params": c.params, "optimum": best.params, "gradient_norm": g}
                                for c, best, g in zip(one.stage2.curves, one.stage2.optima, one.stage2.gradients,
                                                      strict=True)],
                     "residual_std": one.stage2.residual},
        "chance": _named(one.chance), "items": _named(one.items), "floor": chain.floor, "ceiling": chain.ceiling,
        "misfit": {"logits_per_log_C": chain.rate,
                   "at_targets": [float(chain.misfit(run.N, run.D, run.C)) for run in one.targets]},
        "backtest": {"summary": one.backtest.summary(), "rows": list(one.backtest.errors())},
        "families": one.families, "runs": [_measured(run) for run in one.runs],
        "checkpoints": {"nll": shown.x.tolist(), "accuracy": shown.y.tolist()},
        "chain": chain.to_plain(),
    }  # fmt: skip


def _named(pair: tuple[float, str]) -> dict[str, Any]:
    return {"value": pair[0], "from": pair[1]}


def _measured(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in ("name", "family", "N", "D", "C", "nll", "accuracy")}


def _notes(rows: Rows, work: list[_Work]) -> list[str]:
    first = rows.refused[:1]
    notes = [f"{len(rows.refused)} rows refused, as row {row['row']}: {row['reason']}" for row in first]
    for key, what in (("items", "questions"), ("chance", "chance level")):
        names = [one.name for one in work if getattr(one, key)[1] in ("assumed", "inferred from the lowest accuracies")]
        if names:
            values = ", ".join(f"{one.name} {getattr(one, key)[0]:.4g}" for one in work if one.name in names)
            word = "assumed" if key == "items" else "inferred"
            notes.append(f"{what} {word}: {values}; map a column {key}, or give --{key} TASK=VALUE")
    notes += [f"{one.name}: {one.families['words']}" for one in work if one.families]
    for one in work:
        inside = [run.name for run in one.targets if max(other.C for other in one.runs) > run.C]
        if inside and not one.verdict:
            notes.append(
                f"{one.name}: {', '.join(inside)} spent less than the largest fitted run; no extrapolation is tested"
            )
    return notes
