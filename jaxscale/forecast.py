"""Fit -> Forecast: the optimal size, tokens and loss at a compute not yet spent, and how sure that is.

The mean curve and one future run are told apart: `loss` is the law itself; `loss_future_run` adds the noise
between runs, with Student's t where few degrees of freedom measured it. Several fits give a row each, one of
them the declared law, and a row "average" beside them whose interval their disagreement widens (fit/average.py).

The inverse question, the compute that reaches a loss L: C with L_opt(C) = L, solved in every bootstrap round.
A round whose irreducible loss lies above L needs infinite compute; the interval then has an open end.

All know only what the bootstrap knows: that the law holds beyond the largest budget is an assumption, and
`extrapolation` says how far it is stretched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.average import FEWEST_CLIMBS, Average, bears_average
from jaxscale.fit.result import Fit, Fits, without_nan
from jaxscale.fit.summary import percentile_ends, percentile_interval
from jaxscale.format import format_count, format_factor, format_flops, format_interval, format_loss
from jaxscale.laws import find_law
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Answer", "Forecast", "add_run_noise", "average_answer", "find_run_noise", "forecast_optimum"]

Answer = Fit | Average
"""What predicts an optimum and can draw it again."""

NOISY = 16
"""Single runs drawn for every bootstrap round."""
REACH, PER_DECADE = (-8, 16), 16
"""The inverse question looks this many decades of C around its answer, on a grid of that many points each."""


@dataclass(frozen=True)
class Forecast:
    """Rows by compute and method: method, law, declared, C, extrapolation, N_opt, D_opt, loss, tokens_per_param,
    intervals. With `target_loss` the rows answer at which C it is reached, and intervals hold "C"; those of
    N_opt and D_opt then vary with C. An end that is infinite is null, and `notes` says so."""

    fit: dict[str, Any]
    rule: str
    confidence: float
    rows: tuple[dict[str, Any], ...]
    target_loss: float | None = None
    notes: tuple[str, ...] = ()
    schema: str = "jaxscale.forecast/1"

    def to_json(self) -> str:
        """The forecast as JSON, schema jaxscale.forecast/1."""
        plain = {"schema": self.schema, "fit": self.fit, "rule": self.rule, "confidence": self.confidence,
                 "target_loss": self.target_loss, "rows": list(self.rows), "notes": list(self.notes)}  # fmt: skip
        return json.dumps(without_nan(plain), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a compute and method; intervals as columns NAME_low, NAME_high."""
        import pandas as pd

        return pd.DataFrame([_flatten(row) for row in self.rows])

    def __str__(self) -> str:
        counted = "6 N D" if self.rule == "6ND" else "the study's exact count"
        parts = [f"forecast, C counted as {counted}; {self.confidence:.0%} intervals in brackets"]
        if self.target_loss is not None:
            title = f"compute that reaches a loss of {self.target_loss:g}"
            parts.append(_table(title, ("method", "C", "beyond"), self.rows))
        elif len({row["method"] for row in self.rows}) == 1:
            parts.append(_table(f"by the {self.rows[0]['method']} fit", ("C", "beyond"), self.rows))
        else:
            for C in dict.fromkeys(row["C"] for row in self.rows):
                rows = [row for row in self.rows if row["C"] == C]
                beyond = format_factor(max(row["extrapolation"] for row in rows))
                title = f"at {format_flops(C)} FLOPs, {beyond} the largest budget"
                parts.append(_table(title, ("method",), rows))
        return "\n".join([*parts, *self._legend(), *(f"note: {note}" for note in self.notes)])

    def _legend(self) -> list[str]:
        words = []
        if self.target_loss is None:
            words.append("mean curve: of the law itself; one run: of a single future run, noise between runs included")
        if any(row["method"] == "average" for row in self.rows):
            words.append("* the declared law; average: equal weights, its interval widened by the disagreement")
        return words


def _table(title: str, first: tuple[str, ...], rows: Sequence[dict[str, Any]]) -> str:
    """Rows under the columns of `first` and the answers; value and interval share a column."""
    header = (*first, "N_opt", "D_opt", "D/N", "loss, mean curve", "one run")
    several = any(row["method"] == "average" for row in rows)
    shown = slice(0, len(first) + 3 if "C" in rows[0]["intervals"] else None)  # the loss asked for is in the title
    return render_table(title, header[shown], [_cells(row, first, several)[shown] for row in rows])


def _cells(row: dict[str, Any], first: tuple[str, ...], several: bool) -> list[str]:
    intervals = row["intervals"]
    known = {
        "method": f"{'* ' if several and row['declared'] else ''}{row['method']}",
        "C": f"{format_flops(row['C'])} {_brackets(intervals['C'], format_flops) if 'C' in intervals else ''}".strip(),
        "beyond": format_factor(row["extrapolation"]),
    }
    N, D = (f"{format_count(row[name])} {_brackets(intervals[name], format_count)}" for name in ("N_opt", "D_opt"))
    loss = f"{format_loss(row['loss'])} {_brackets(intervals['loss'], format_loss)}"
    run = _brackets(intervals["loss_future_run"], format_loss)
    return [*(known[name] for name in first), N, D, f"{row['tokens_per_param']:.3g}", loss, run]


def _brackets(interval: Sequence[float | None], style: Any) -> str:
    """An interval as text; an end that is not known is open."""
    return format_interval(interval, style).replace("–]", "open]").replace("[–", "[open")


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite is null
def forecast_optimum(
    fit: Fit | Fits, *, flops: Sequence[float] = (), loss: float | None = None, declared: str | None = None
) -> Forecast:
    """N_opt (parameters), D_opt (tokens) and loss (nats per token) at each C of `flops` (training FLOPs).

    `loss` instead of `flops`: at the C where each method's frontier reaches that loss. With several fits
    every method gives its own row and their average one more; those without an answer give none, and a note
    says so. `declared` names the method or law that was declared beforehand, the first fit unless given.
    VerdictError where no fit has an answer, or no frontier gets that low.
    """
    targets = _check_targets(flops, loss)
    fits = fit.fits if isinstance(fit, Fits) else (fit,)
    first = _find_declared(fits, declared)
    spoken = [one for one in fits if one.verdict is None]
    if not spoken:
        raise VerdictError("; ".join(f"{one.method} fit: {one.verdict}" for one in fits))
    answered = [one for one in spoken if one.has_optimum]
    if not answered:
        raise MisuseError(_say_no_optimum(spoken[0]))
    answers: list[Answer] = list(answered)
    notes = [f"{one.method} gives no row: {one.verdict}" for one in fits if one.verdict]
    notes += [f"{one.method} gives no row: {_say_no_optimum(one)}" for one in spoken if not one.has_optimum]
    notes += [f"{one.method} is not in the average: {len(one.diagnostics['climbs'])} changes of size, "
              f"{FEWEST_CLIMBS} are needed" for one in answered if not bears_average(one)]  # fmt: skip
    notes += _say_disagreement(fit)
    mean = average_answer(fits)
    answers += [mean] if mean else []
    if loss is None:
        rows = [_forecast_one(one, C) for C in targets for one in answers]
    else:
        rows = _forecast_loss(answers, loss, notes)
    for row in rows:
        row["declared"] = (row["method"], row["law"]) == (first.method, first.law)
    plain = fit.to_plain()
    for record in plain["fits"] if isinstance(fit, Fits) else [plain]:
        record.pop("draws")
    rule = answered[0].diagnostics["flops"]["rule"]
    return Forecast(plain, rule, answered[0].confidence, tuple(rows), loss, tuple(notes))


def _say_no_optimum(fit: Fit) -> str:
    inputs = ", ".join(find_law(fit.law).inputs)
    return f"law {fit.law!r} takes {inputs}: it has no optimal N and D; forecast with a law over N and D"


def average_answer(fits: Sequence[Fit]) -> Average | None:
    """The average over approaches: the first fit of every method that bears on it; None with fewer than two."""
    by_method: dict[str, Fit] = {}
    for fit in fits:
        if bears_average(fit):
            by_method.setdefault(fit.method, fit)
    return Average(tuple(by_method.values())) if len(by_method) > 1 else None


def _say_disagreement(fit: Fit | Fits) -> list[str]:
    """A sentence for every pair of fits that were found to disagree."""
    record = fit.agreement if isinstance(fit, Fits) else None
    if record is None:
        return []
    words = []
    for pair in record["pairs"]:
        where = ", ".join(row["quantity"] for row in pair["quantities"] if row["agree"] is False)
        if where:
            words.append(f"{' and '.join(pair['methods'])} disagree at {record['confidence']:.0%} ({where}): "
                         f"trust no interval but the average's; `jaxscale fit --method all` says why")  # fmt: skip
    return words


def _check_targets(flops: Sequence[float], loss: float | None) -> list[float]:
    targets = [float(C) for C in flops]
    if bool(targets) == (loss is not None):
        raise MisuseError("give flops (one or more, as in 1e22) or a loss to reach (as in 2.1), one of the two")
    for name, value in [*(("flops", C) for C in targets), *([] if loss is None else [("loss", loss)])]:
        if not (np.isfinite(value) and value > 0):
            raise MisuseError(f"{name}: {value:g} must be finite and above 0, as in {'1e22' if targets else '2.1'}")
    return targets


def _find_declared(fits: Sequence[Fit], declared: str | None) -> Fit:
    if declared is None:
        return fits[0]
    for fit in fits:
        if declared in (fit.method, fit.law):
            return fit
    known = ", ".join(dict.fromkeys(name for fit in fits for name in (fit.method, fit.law)))
    raise MisuseError(f"declared: {declared!r} is none of the fits; they are {known}")


def _forecast_one(answer: Answer, C: float) -> dict[str, Any]:
    best, draws = answer.predict_optimum(C), answer.sample_optimum(C)
    samples = {"N_opt": draws.N, "D_opt": draws.D, "loss": draws.loss}
    samples["loss_future_run"] = add_run_noise(answer, draws.loss)
    return {
        "method": answer.method, "law": answer.law, "C": C, "extrapolation": C / _largest(answer),
        "N_opt": float(best.N), "D_opt": float(best.D), "loss": float(best.loss),
        "tokens_per_param": float(best.D / best.N),
        "intervals": {name: list(percentile_interval(x, answer.confidence)) for name, x in samples.items()},
    }  # fmt: skip


def _largest(answer: Answer) -> float:
    return answer.largest_C if isinstance(answer, Average) else float(answer.diagnostics["largest_C"])


def _forecast_loss(answers: Sequence[Answer], loss: float, notes: list[str]) -> list[dict[str, Any]]:
    """A row for every frontier that reaches the loss; words for those that do not, and for open ends."""
    rows, lowest = [], []
    for answer in answers:
        frontier = answer.frontier()
        C = float(frontier.compute(loss))
        if not np.isfinite(C):
            lowest.append(f"{float(frontier.E):.4g} ({answer.method})")
            continue
        row = _forecast_one(answer, C)
        drawn = sample_compute(answer, loss, C)
        for name, values in drawn.items():
            row["intervals"][name] = list(_open_interval(values, answer.confidence))
        rows.append(row)
        notes += _say_unreached(answer.method, loss, drawn["C"], row["intervals"]["C"])
    below = f"the irreducible loss is {', '.join(lowest)}"
    if not rows:
        raise VerdictError(f"loss {loss:g}: no compute reaches it, {below}; ask for more")
    if lowest:
        notes.append(f"loss {loss:g} is never reached by every method: {below}")
    return rows


def sample_compute(answer: Answer, loss: float, C: float) -> dict[str, np.ndarray]:
    """C (rounds,) at which each round's frontier reaches the loss, and its N_opt and D_opt there.

    Read off a grid of C around the answer, log C linear in the loss between its points: any law that can draw
    its optimum will do. Infinite where no compute of the grid is enough.
    """
    decades = np.arange(REACH[0] * PER_DECADE, REACH[1] * PER_DECADE + 1) / PER_DECADE
    grid = C * 10.0**decades
    drawn = answer.sample_optimum(grid)
    reached = np.asarray(drawn.loss) <= loss
    row, at = np.arange(len(reached)), np.maximum(np.argmax(reached, 1), 1)
    before, after = drawn.loss[row, at - 1], drawn.loss[row, at]
    share = np.clip((before - loss) / (before - after), 0, 1)
    unknown = np.isnan(drawn.loss).any(1)

    def read(values: np.ndarray) -> np.ndarray:
        between = np.exp((1 - share) * np.log(values[row, at - 1]) + share * np.log(values[row, at]))
        return np.where(unknown, np.nan, np.where(reached.any(1), between, np.inf))

    return {"C": read(np.broadcast_to(grid, reached.shape)), "N_opt": read(drawn.N), "D_opt": read(drawn.D)}


def _open_interval(values: np.ndarray, confidence: float) -> tuple[float | None, float | None]:
    """Percentile interval of rounds that may be infinite; an infinite end is None."""
    log_x, beyond = np.log(values[~np.isnan(values)]), 1e6
    if len(log_x) < 2:
        return None, None
    low, high = percentile_ends(np.where(np.isinf(log_x), beyond, log_x), confidence)
    ends = [float(np.exp(end)) if end < 700 else None for end in (low, high)]
    return ends[0], ends[1]


def _say_unreached(method: str, loss: float, C: np.ndarray, interval: Sequence[float | None]) -> list[str]:
    known = C[~np.isnan(C)]
    never = float(np.isinf(known).mean()) if len(known) else 0.0
    if not never:
        return []
    end = ": the upper end of its C is open" if interval[1] is None else ""
    return [f"{method}: {never:.1%} of the bootstrap rounds never reach a loss of {loss:g}{end}"]


def find_run_noise(noise: Mapping[str, Any]) -> float | None:
    """Deviation of one run's log loss: between seeds, else about the fit, and what the seeds of a cell share.

    >>> find_run_noise({"seed_std": 0.003, "residual_std": 0.01, "cell_std": 0.004})
    0.005
    """
    known = (noise.get(name) for name in ("seed_std", "residual_std"))
    own = next((float(value) for value in known if value is not None), None)
    return None if own is None else math.hypot(own, noise.get("cell_std") or 0.0)


def add_run_noise(answer: Answer, losses: np.ndarray) -> np.ndarray:
    """Losses of single runs (NOISY rounds,), drawn about each round's loss with `find_run_noise` in log loss.

    Student's t with `noise["dof"]` degrees of freedom where the fit tells how many measured the deviation.
    Every round meets NOISY runs, half of them mirrored, so that the interval of a run is the wider one also
    where the noise is small beside the law's own doubt.
    """
    if isinstance(answer, Average):
        blocks = np.split(losses, len(answer.fits))
        return np.concatenate([add_run_noise(fit, part) for fit, part in zip(answer.fits, blocks, strict=True)])
    noise = find_run_noise(answer.noise)
    rng, dof, shape = np.random.default_rng([answer.seed, 1]), answer.noise.get("dof"), (NOISY // 2, len(losses))
    normal = rng.standard_normal(shape)
    errors = (noise or 0.0) * normal * (np.sqrt(dof / rng.chisquare(dof, shape)) if dof else 1.0)
    return (losses * np.exp(np.concatenate([errors, -errors]))).reshape(-1)


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in row.items() if name != "intervals"}
    for name, (low, high) in row["intervals"].items():
        flat |= {f"{name}_low": low, f"{name}_high": high}
    return flat
