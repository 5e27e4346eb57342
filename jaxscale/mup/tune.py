"""The learning-rate sweep of every variant of a study, by one rule: which rates, when one more, what comes of it.

    rates      `tuning.rates` of them around the variant's own recipe.lr, `tuning.step` doublings apart
    one more   on the side of the best rate, where that is the first or the last tried; `tuning.more` times at most
    best       the lowest mean loss over seeds, of rates at which every seed ended; a diverged neighbour is worse
    the rate   fitted: the optimum of `analyse_sweep`, where it has one with an interval
               vertex: else of the parabola through the best rate and its neighbours, at most half a step away from it
               tried: where a neighbour diverged, or the best has only one: the best itself

Width, tokens and seeds are the same for all variants: what Choi et al. (2019, 1910.05446) call the tuning protocol,
without which a comparison of optimizers says who was tuned. The search space is judged as there: an optimum at its
edge is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from jaxscale.config import Study
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.mup.analyse import analyse_sweep
from jaxscale.mup.rates import Curve, format_rate, read_ladders
from jaxscale.mup.sweep import SweepGrid, default_tokens, plan_sweep, sweep_record, tabulate_runs
from jaxscale.rates.law import Z
from jaxscale.runs import Plan
from jaxscale.sweep import CellStatus
from jaxscale.variants import NO_TEXT, Text
from jaxscale.vary import vary_study

__all__ = ["Added", "Tuned", "extend_rates", "judge_sweep", "plan_variant_sweeps"]


@dataclass(frozen=True)
class Added:
    """Rates added below and above the first ones."""

    below: int = 0
    above: int = 0


@dataclass(frozen=True)
class Tuned:
    """What a variant's sweep came to. `lr` is the base-width rate of models of `width` on `tokens` tokens."""

    rates: tuple[float, ...]
    trials: int
    flops: float
    status: Literal["ok", "edge", "diverged"]
    lr: float | None
    rule: Literal["fitted", "vertex", "tried"] | None
    """Where the rate is from."""
    reason: str
    record: Mapping[str, Any]
    """Content of its sweep.json."""


def plan_variant_sweeps(
    study: Study, added: Mapping[str, Added] | None = None, texts: Mapping[str, Text] | None = None
) -> dict[str, Plan]:
    """The sweep of each variant; MisuseError where one cannot be tuned so."""
    tuning, added, texts = study.tuning, added or {}, texts or {}
    tokens = tuning.tokens or default_tokens(study)
    width = tuning.width or study.model.base_d_model
    found = {}
    for name, own in vary_study(study).items():
        if own.model.parameterization == "standard":
            raise MisuseError(f"variant {name}: under model.parameterization standard the best rate moves with width, "
                              f"and tuning.rates sweeps one; use mup or completep, or tuning.rates 0")  # fmt: skip
        depth = own.model.n_layers if own.grid.aspect is None else max(1, round(width / own.grid.aspect))
        text = texts.get(name, NO_TEXT)
        grid = SweepGrid(
            (own.model.parameterization,), (width,), _list_rates(study, own, added.get(name, Added())), tuning.seeds,
            (tokens,), depths=(depth,),
        )  # fmt: skip
        available = text.train_tokens or own.data.declared_train_tokens
        try:
            plan = plan_sweep(own, grid, train_tokens=available)
        except MisuseError as error:
            raise MisuseError(f"variant {name}, tuning: {error}") from error
        found[name] = replace(plan, data_sha256=text.data_sha256)
    return found


def _list_rates(study: Study, own: Study, added: Added) -> tuple[float, ...]:
    """Rates of a sweep, rising; the first ones keep their last bits, and so their runs, when others are added."""
    count, step = study.tuning.rates, study.tuning.step
    places = range(-added.below, count + added.above)
    return tuple(own.recipe.lr * 2.0 ** (step * (i - (count - 1) / 2)) for i in places)


def extend_rates(own: Study, more: int, statuses: Sequence[CellStatus], added: Added) -> Added:
    """One more rate for a variant's sweep whose best is the first or the last, `more` in all; its runs have ended."""
    if added.below + added.above >= more:
        return added
    curve = _read_curve(statuses, own)
    best = _find_best(curve)
    if best == 0:
        return replace(added, below=added.below + 1)
    return replace(added, above=added.above + 1) if best == len(curve.x) - 1 else added


def judge_sweep(own: Study, plan: Plan, statuses: Sequence[CellStatus]) -> Tuned:
    """What the ended sweep of a variant says; `own` is the variant's study.

    VerdictError where a run failed for a reason that says nothing about its rate.
    """
    curve = _read_curve(statuses, own)
    best, rows = _find_best(curve), tabulate_runs(statuses, own)
    found = analyse_sweep(rows)
    record = sweep_record(own, plan, rows, found.to_records())
    rates = tuple(sorted({status.cell.spec.lr for status in statuses}))
    flops = sum(status.cell.flops for status in statuses)
    told: dict[str, Any] = {"rates": rates, "trials": len(statuses), "flops": flops}
    if best is None:
        lost = "no rate at which every seed ended: " + ", ".join(f"{format_rate(r)} {curve.fate(i)}"
                                                                 for i, r in enumerate(rates))  # fmt: skip
        return Tuned(**told, status="diverged", lr=None, rule=None, reason=lost, record=record)
    at_edge = best in (0, len(rates) - 1)
    (optimum,) = found.optima
    rule: Literal["fitted", "vertex", "tried"]
    if not at_edge and optimum.status == "ok" and optimum.lr is not None and None not in optimum.lr_interval:
        rule, lr = "fitted", optimum.lr
    elif not at_edge and {best - 1, best + 1} <= set(curve.stable):
        rule, lr = "vertex", float(2 ** _find_vertex(curve.x[best - 1 : best + 2], curve.mean[best - 1 : best + 2]))
    else:
        rule, lr = "tried", rates[best]
    side = "first" if best == 0 else "last"
    reason = f"the best of {len(rates)} rates, {format_rate(rates[best])}, is the {side} tried" if at_edge else ""
    outcome = Tuned(**told, status="edge" if at_edge else "ok", lr=lr, rule=rule, reason=reason, record=record)
    return replace(outcome, record={**record, "tuning": _to_plain(outcome, statuses)})


def _find_vertex(x: np.ndarray, y: np.ndarray) -> float:
    """Where the parabola through three points, evenly spaced and the middle one lowest, is lowest.

    >>> _find_vertex(np.array([0.0, 1.0, 2.0]), np.array([1.0, 0.0, 1.0]))
    1.0
    """
    left, right = float(y[0] - y[1]), float(y[2] - y[1])
    return float(x[1] + (x[2] - x[1]) * (left - right) / (2 * (left + right))) if left + right > 0 else float(x[1])


def _to_plain(outcome: Tuned, statuses: Sequence[CellStatus]) -> dict[str, Any]:
    """The block `tuning` of sweep.json, which `jaxscale.rates` reads where no optimum could be fitted."""
    spec, rates = statuses[0].cell.spec, outcome.rates
    step = math.log2(rates[-1] / rates[0]) / (len(rates) - 1) if len(rates) > 1 else 1.0
    assert outcome.lr is not None
    return {
        "status": outcome.status, "rule": outcome.rule, "reason": outcome.reason, "trials": outcome.trials,
        "lr": outcome.lr, "log2_lr": math.log2(outcome.lr), "width": spec.model.d_model, "depth": spec.model.n_layers,
        "tokens": spec.tokens, "batch_tokens": spec.batch_seqs * spec.model.seq_len,
        "log2_error": step / Z,  # the optimum is within a step of the best rate tried, wherever it is inside
    }  # fmt: skip


def _read_curve(statuses: Sequence[CellStatus], own: Study) -> Curve:
    for status in statuses:
        if status.state == "failed":
            raise VerdictError(f"run {status.cell.run_id} of its sweep failed, which says nothing about its rate "
                               f"({status.reason}); put it back with `jaxscale reset DIR/tuning/runs "
                               f"{status.cell.run_id}` and go on with the same command")  # fmt: skip
    ((curve,),) = (ladder.curves for ladder in read_ladders(tabulate_runs(statuses, own)))
    return curve


def _find_best(curve: Curve) -> int | None:
    """Place of the rate with the lowest mean loss, of those that no seed diverged at; None where there is none."""
    stable = curve.stable
    return int(stable[np.argmin(curve.mean[stable])]) if len(stable) else None
