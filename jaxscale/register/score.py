"""A registered forecast against what was measured: one score record a forecast, appended, never edited.

    loss          L_opt(C) against the measured minimum: interpolated where the sizes trained at C have a believable
                  one, else the lowest of them (which lies above it), if its N is the forecast's within SIZE
    loss_at_size  the same prediction against the run at the forecast's size, mean over its seeds: what following the
                  forecast gave; it lies above the minimum by what the ladder's step costs
    N_opt         against the interpolated minimum. A valley is flat and its bottom read off few noisy runs is itself
                  in doubt: `measured_interval` says how far it moves when the noise of the runs is drawn anew

error = predicted / measured - 1. compute_error is f with L_opt(f C) - L_opt(C) = measured - predicted on the registered
frontier. `inside` asks the interval of one future run, `inside_mean` that of the mean curve. The interval score is
Gneiting and Raftery's (2007, eq. 43) in logs, of the former. skill = 1 - |log error| / |log error of the baseline|.
All but the last two are the backtest's (backtest/scores.py).

A run that began before its forecast was registered is refused; one whose beginning is not known is flagged. A run
farther than the tolerance from the target's C is no measurement of it. The forecast's own evidence is none either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxscale.backtest.scores import compute_factor, score_interval
from jaxscale.fit.cells import Cells, gather_cells
from jaxscale.fit.minima import MIN_SIZES
from jaxscale.fit.readings import read_minima
from jaxscale.fit.summary import percentile_interval
from jaxscale.format import format_count, format_factor, format_percent
from jaxscale.register.chain import read_time
from jaxscale.register.entry import SIZE, TOLERANCE, frontier_of, say_nearest
from jaxscale.register.measure import Measured, Run, as_observations

__all__ = ["Scored", "main_rows", "score_forecast", "summarize_scores"]

COUNTED = ("count", "flops_rule")
"""Conventions in which a measurement must agree with a forecast: else another N or another C is compared."""
REDRAWN = 200
"""Times that a measured minimum is read again with other noise: enough for the ends of a 95% interval to two digits."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """The content of a score record, or None and why there is none; `told` is what a person must know besides."""

    forecast: Record
    content: dict[str, Any] | None
    reason: str = ""
    told: tuple[str, ...] = ()


def score_forecast(
    forecast: Record, measured: Sequence[Measured], scores: Sequence[Record] = (), *, tolerance: float = TOLERANCE
) -> Scored:
    """Score one forecast of a register by the runs of these sources that reach its target.

    `scores`: those that the register holds already; the same runs are not scored twice.
    """
    known, told = _screen(forecast, measured)
    C = float(forecast["C"])
    near = list({run.identity: run for run in known if abs(math.log(run.C / C)) <= math.log1p(tolerance)}.values())
    if not near:
        reason = f"no run within {tolerance:.2%} of its C; {say_nearest(C, [run.C for run in known])}"
        return Scored(forecast, None, reason, tuple(told))
    late, refused = _split_by_time(near, forecast["time"])
    if refused:
        first = min(str(run.began) for run in refused)
        told.append(f"{len(refused)} of {len(near)} runs at its C began before it was registered, the first at "
                    f"{first}: refused")  # fmt: skip
    if not late:
        return Scored(forecast, None, "every run at its C began before it was registered", tuple(told))
    undated = sum(run.began is None for run in late)
    if undated:
        told.append(f"{undated} of {len(late)} runs do not say when they began: whether it was after is not known")
    content = _score(forecast, late, refused, [source.source for source in measured], tolerance)
    if isinstance(content, str):
        return Scored(forecast, None, content, tuple(told))
    if any(score["forecast"] == forecast["hash"] and _runs_of(score) == _runs_of(content) for score in scores):
        return Scored(forecast, None, "it was scored by the very same runs before", tuple(told))
    return Scored(forecast, content, "", tuple(told))


def _screen(forecast: Record, measured: Sequence[Measured]) -> tuple[list[Run], list[str]]:
    """The runs that could measure this forecast, and a sentence for every source that cannot."""
    evidence = forecast["evidence"]
    runs: list[Run] = []
    told: list[str] = []
    for one in measured:
        if one.sha256 and one.sha256 == evidence["sha256"]:
            told.append(f"{one.source} is the forecast's own evidence and measures nothing of it")
        elif evidence.get("data_sha256") and one.data_sha256 not in ("", evidence["data_sha256"]):
            told.append(f"{one.source} was trained on another text than the forecast's evidence; its losses compare "
                        f"with nothing here")  # fmt: skip
        elif not _counts_alike(evidence.get("conventions"), one):
            wanted = ", ".join(f"{name} {evidence['conventions'].get(name)}" for name in COUNTED)
            told.append(f"{one.source} counts N or C otherwise than the forecast's evidence ({wanted}); read it so "
                        f"with --count-params and --flops-rule")  # fmt: skip
        else:
            runs += one.runs
    return runs, told


def _counts_alike(wanted: Mapping[str, Any] | None, one: Measured) -> bool:
    if not wanted or one.conventions is None:
        return True
    return all(wanted.get(name) == one.conventions.get(name) for name in COUNTED)


def _runs_of(score: Record) -> list[str]:
    return sorted(run["identity"] for run in score["runs"])


def _split_by_time(runs: Sequence[Run], registered: str) -> tuple[list[Run], list[Run]]:
    """Those that began at or after the forecast's time, or at an unknown one; and those that began before."""
    then = read_time(registered)
    early = [run for run in runs if run.began is not None and read_time(run.began) < then]
    return [run for run in runs if run not in early], early


def _score(
    forecast: Record, runs: Sequence[Run], refused: Sequence[Run], sources: Sequence[str], tolerance: float
) -> dict[str, Any] | str:
    """The content of a score record, or why the runs cannot answer."""
    cells = gather_cells(as_observations(runs, forecast["C"]), role="all")
    values, by = _measure(forecast, runs, cells)
    if not values:
        return by
    doubts = _doubt(cells, forecast) if "N_opt" in values else {}
    answers = (forecast["answer"], *forecast["beside"])
    rows = [_row(forecast, answer, quantity, value) | {"measured_interval": doubts.get(quantity)}
            for answer in answers for quantity, value in values.items()]  # fmt: skip
    return {
        "kind": "score", "forecast": forecast["hash"], "forecast_number": forecast["number"], "C": forecast["C"],
        "measured_C": float(np.exp(np.mean(np.log(cells.C)))), "measured_by": by, "tolerance": tolerance,
        "began": "unknown" if any(run.began is None for run in runs) else "after",
        "sources": list(sources), "runs": [vars(run) for run in runs], "runs_before": [vars(run) for run in refused],
        "rows": rows,
    }  # fmt: skip


def _measure(forecast: Record, runs: Sequence[Run], cells: Cells) -> tuple[dict[str, float], str]:
    """What was measured of the forecast, by quantity, and how; nothing, and why."""
    minimum = read_minima(cells)[0]
    lowest, best = int(np.argmin(cells.loss)), forecast["answer"]["N"]
    N, sizes = float(cells.N[lowest]), "one size" if len(cells) == 1 else f"{len(cells)} sizes"
    values, by = {}, "one size" if len(cells) == 1 else f"the lowest of {sizes}"
    if minimum.status == "ok" and minimum.loss_opt and minimum.N_opt:
        values, by = {"loss": minimum.loss_opt, "N_opt": minimum.N_opt}, f"the interpolated minimum of {sizes}"
    elif abs(math.log(N / best)) <= math.log(SIZE):
        values = {"loss": float(cells.loss[lowest])}
    else:
        by = (f"{sizes} measured at its C, the lowest {format_factor(N / best)} the forecast's N, so that the optimum "
              f"is not known; train N near {format_count(best)}, or {MIN_SIZES} sizes around it")  # fmt: skip
    at_size = _at_size(forecast, runs)
    if at_size is not None and (len(cells) > 1 or not values):
        by = by if values else f"the run at the forecast's size; {by}"
        values["loss_at_size"] = at_size
    return values, by


def _doubt(cells: Cells, forecast: Record) -> dict[str, list[float | None]]:
    """Intervals of a measured minimum: read again off its own points with noise drawn anew, REDRAWN times.

    Points that are noisy twice have a lower minimum: the rounds are moved so that their median is the measurement.
    """
    noise = forecast.get("noise")
    if not noise:
        return {}
    rng = np.random.default_rng(0)
    errors = noise / np.sqrt(cells.seed_dof + 1) * rng.standard_normal((REDRAWN, len(cells)))
    drawn = [read_minima(replace(cells, loss=cells.loss * np.exp(error)))[0] for error in errors]
    found = {
        name: np.array([getattr(one, name) for one in drawn if one.status == "ok"]) for name in ("N_opt", "loss_opt")
    }
    if len(found["N_opt"]) <= REDRAWN / 2:
        return {}
    middle = {name: getattr(read_minima(cells)[0], name) / np.median(values) for name, values in found.items()}
    ends = {name: percentile_interval(values * middle[name], forecast["confidence"]) for name, values in found.items()}
    return {"N_opt": list(ends["N_opt"]), "loss": list(ends["loss_opt"])}


def _at_size(forecast: Record, runs: Sequence[Run]) -> float | None:
    """Mean loss of the runs nearest to the forecast's size; None where none is near.

    The ladder's own nearest (`size`) is found by this too, where it was trained.
    """
    size = forecast["answer"]["N"]
    nearest = min((run.N for run in runs), key=lambda N: abs(math.log(N / size)))
    if abs(math.log(nearest / size)) > math.log(SIZE) / 2:
        return None
    return float(np.mean([run.loss for run in runs if nearest == run.N]))


def _row(forecast: Record, answer: Record, quantity: str, measured: float) -> dict[str, Any]:
    of_loss = quantity != "N_opt"
    predicted = float(answer["loss" if of_loss else "N"])
    interval = answer["intervals"]["loss_future_run" if of_loss else "N_opt"]
    mean = answer["intervals"]["loss"] if of_loss else None
    baseline = forecast["baseline"].get("loss" if of_loss else "N_opt")
    return {
        "method": answer["method"], "law": answer["law"], "declared": answer["declared"], "quantity": quantity,
        "predicted": predicted, "interval": interval, "interval_mean": mean, "measured": measured,
        "error": predicted / measured - 1,
        "compute_error": _in_compute(forecast, answer, measured - predicted) if of_loss else None,
        "inside": _holds(interval, measured), "inside_mean": None if mean is None else _holds(mean, measured),
        "interval_score": score_interval(tuple(interval), measured, forecast["confidence"]),
        "baseline": baseline, "baseline_error": None if baseline is None else baseline / measured - 1,
        "skill": _skill(predicted, baseline, measured),
    }  # fmt: skip


def _in_compute(forecast: Record, answer: Record, shift: float) -> float | None:
    return compute_factor(frontier_of(answer["frontier"]), float(forecast["C"]), shift)


def _holds(interval: Sequence[float | None], measured: float) -> bool | None:
    low, high = interval
    return None if low is None or high is None else low <= measured <= high


def _skill(predicted: float, baseline: float | None, measured: float) -> float | None:
    """Share of the baseline's log error that the forecast does not make; None where the baseline makes none."""
    if baseline is None or baseline == measured:
        return None
    return 1 - abs(math.log(predicted / measured)) / abs(math.log(baseline / measured))


def main_rows(score: Record) -> list[dict[str, Any]]:
    """The rows of the registered answer itself, without those that stand beside it."""
    first = score["rows"][0]
    return [row for row in score["rows"] if (row["method"], row["law"]) == (first["method"], first["law"])]


def summarize_scores(scores: Sequence[Record]) -> list[str]:
    """What the declared answers' scores come to, by quantity, and how little a few of them can say."""
    newest = {score["forecast"]: score for score in scores}.values()
    words = []
    for quantity in ("loss", "loss_at_size", "N_opt"):
        rows = [row for score in newest for row in main_rows(score) if row["quantity"] == quantity]
        if not rows:
            continue
        errors = np.array([math.log1p(row["error"]) for row in rows])
        base = np.array(
            [math.nan if row["baseline_error"] is None else math.log1p(row["baseline_error"]) for row in rows]
        )
        hits = [row["inside"] for row in rows if row["inside"] is not None]
        rms = format_percent(float(np.sqrt(np.mean(errors**2)))).lstrip("+")
        text = f"{quantity}: {len(rows)} scored, rms error {rms}, {sum(hits)} of {len(hits)} inside"
        both = np.isfinite(base)
        if both.any() and np.any(base[both]):
            skill = 1 - math.sqrt(np.mean(errors[both] ** 2) / np.mean(base[both] ** 2))
            text += f", skill over the extended envelope {format_percent(skill).lstrip('+')}"
        words.append(text)
    return words
