"""The cells of a study that a registered forecast speaks of, and how each stands to its band.

A cell belongs to every forecast of its own text whose C is its budget within the tolerance: rivals stand side by side.
The band is that of one future run at the forecast's size; of the sizes of that budget that no forecast speaks of only
the expected end is told. Finished runs
that trained by the same recipe, in this folder and in that of the forecast's evidence, say how a loss still falls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.errors import JaxscaleError
from jaxscale.format import format_interval, format_loss
from jaxscale.plain import read_lines
from jaxscale.register.chain import Register, read_time
from jaxscale.register.entry import SIZE, TOLERANCE
from jaxscale.register.measure import first_start
from jaxscale.register.outlook import Curve, Outlook, Verdict, follow_run, judge_run
from jaxscale.runs import METRIC_FIELDS, TUNING_ROLES, Plan, RunSpec, run_dir
from jaxscale.sweep import CellStatus, read_plan, read_status

__all__ = ["Watch", "read_curve", "watch_cells"]

SHARE = 0.01
"""Warmup and decay may differ by this share of the steps and be one recipe still: they are whole steps."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Watch:
    """A cell and its forecast: the newest outlook (None: too early, too few finished runs, or ended), and the verdict.

    `band` is None for a size that the forecast does not speak of.
    """

    forecast: Record
    status: CellStatus
    band: tuple[float, float] | None
    outlook: Outlook | None
    verdict: Verdict
    late: bool = False
    """Whether the run began before the forecast was registered: it is no test of it then."""

    def __str__(self) -> str:
        number, confidence = self.forecast["number"], self.forecast["confidence"]
        about = f"{self.status.cell.run_id}, forecast {number}{' (made after the run began)' * self.late}: "
        if self.band is None:
            unknown = None in self.forecast["answer"]["intervals"]["loss_future_run"]
            return f"{about}{self._end()}; the forecast {'has no interval' if unknown else 'speaks of another size'}"
        about += (
            f"{format_loss(self.forecast['answer']['loss'])} {format_interval(self.band)} ({confidence:.0%}, one run)"
        )
        return f"{about}; {self._end()}: {self._verdict()}"

    def _end(self) -> str:
        if self.status.state == "done":
            return f"ended at {format_loss(self.status.loss)}"
        if self.status.state not in ("planned", "running"):
            return self.status.state
        if self.outlook is None:
            return "its end cannot be told yet"
        span = format_interval((self.outlook.low, self.outlook.high))
        return f"at {self.outlook.fraction:.0%} its end is expected at {format_loss(self.outlook.loss)} {span}"

    def _verdict(self) -> str:
        done, verdict = self.status.state == "done", self.verdict
        if verdict.state == "left" and not done:
            return f"LEFT THE BAND, {verdict.side} it since {verdict.since:.0%} of its steps"
        words = {"inside": "inside", "left": f"outside, {verdict.side} the band", "unknown": "not known",
                 "outside": f"expected {verdict.side} the band, not surely"}  # fmt: skip
        return words[verdict.state]

    def to_plain(self) -> dict[str, Any]:
        """For the JSON of `status`."""
        look = self.outlook
        return {
            "forecast": self.forecast["hash"], "loss": self.forecast["answer"]["loss"],
            "band": None if self.band is None else list(self.band), "state": self.verdict.state,
            "side": self.verdict.side, "since": self.verdict.since, "late": self.late,
            "expected": None if look is None else {"fraction": look.fraction, "loss": look.loss,
                                                   "interval": [look.low, look.high]},
        }  # fmt: skip


def watch_cells(study_dir: Path, plan: Plan, statuses: Sequence[CellStatus], register: Register) -> list[Watch]:
    """A Watch for every cell that has begun and every forecast of the register that speaks of it."""
    begun = [status for status in statuses if status.step and status.cell.role not in TUNING_ROLES]
    pairs = [(status, forecast) for status in begun for forecast in _find_forecasts(register, plan, status, statuses)]
    references: dict[str, list[tuple[RunSpec, Curve]]] = {}
    found = []
    for status, forecast in pairs:
        if forecast["hash"] not in references:
            references[forecast["hash"]] = _read_references(Path(study_dir), plan, statuses, forecast)
        finished = [curve for spec, curve in references[forecast["hash"]] if _alike(spec, status.cell.spec)]
        found.append(_watch(Path(study_dir), status, forecast, statuses, finished))
    return found


def _find_forecasts(
    register: Register, plan: Plan, status: CellStatus, statuses: Sequence[CellStatus]
) -> Sequence[Record]:
    """Those of the cell's size; where there is none, the newest of its budget."""
    C = status.cell.spec.budget_flops
    mine = [forecast for forecast in register.of_kind("forecast")
            if abs(math.log(C / forecast["C"])) <= math.log1p(TOLERANCE)
            and forecast["evidence"].get("data_sha256") in (None, "", plan.data_sha256)]  # fmt: skip
    return [forecast for forecast in mine if _is_its_size(status, forecast, statuses)] or mine[-1:]


def _watch(
    folder: Path, status: CellStatus, forecast: Record, statuses: Sequence[CellStatus], finished: Sequence[Curve]
) -> Watch:
    low, high = forecast["answer"]["intervals"]["loss_future_run"]
    speaks = _is_its_size(status, forecast, statuses) and low is not None and high is not None
    band = (float(low), float(high)) if speaks else None
    began = first_start(run_dir(folder, status.cell.run_id))
    late = began is not None and read_time(began) < read_time(forecast["time"])
    if status.state == "done" and status.loss is not None:
        ended = [Outlook(1.0, status.loss, status.loss, status.loss)]
        return Watch(forecast, status, band, None, judge_run(ended, band) if band else Verdict("unknown"), late)
    curve = read_curve(folder, status) if status.state in ("planned", "running") else None
    looks = follow_run(finished, curve, forecast["confidence"]) if curve is not None else []
    verdict = judge_run(looks, band) if band else Verdict("unknown")
    return Watch(forecast, status, band, looks[-1] if looks else None, verdict, late)


def _is_its_size(status: CellStatus, forecast: Record, statuses: Sequence[CellStatus]) -> bool:
    """Whether this cell's N is the one of its budget nearest to the forecast's, and near."""
    N = forecast["answer"]["N"]

    def distance(other: CellStatus) -> float:
        return abs(math.log(other.cell.n_params / N))

    rivals = [other for other in statuses if other.cell.spec.budget_flops == status.cell.spec.budget_flops]
    return distance(status) <= min(math.log(SIZE), min(distance(other) for other in rivals))


def _read_references(
    folder: Path, plan: Plan, statuses: Sequence[CellStatus], forecast: Record
) -> list[tuple[RunSpec, Curve]]:
    """Finished runs of this folder and of the evidence's, each once."""
    found = {spec.run_id: (spec, curve) for spec, curve in _finished(folder, statuses)}
    path = Path(str(forecast["evidence"].get("path")))
    other = path if path.is_dir() else path.parent
    if (other / "plan.json").is_file() and other.resolve() != folder.resolve():
        try:
            theirs = read_plan(other)
            if theirs.data_sha256 == plan.data_sha256:
                found |= {
                    spec.run_id: (spec, curve) for spec, curve in _finished(other, read_status(other, theirs.cells))
                }
        except JaxscaleError:
            pass  # without them the intervals are wider, or nothing is said
    return list(found.values())


def _finished(folder: Path, statuses: Sequence[CellStatus]) -> Iterator[tuple[RunSpec, Curve]]:
    for status in statuses:
        if status.state == "done" and status.cell.role not in TUNING_ROLES:
            curve = read_curve(folder, status)
            if curve is not None and curve.final:
                yield status.cell.spec, curve


def read_curve(folder: Path, status: CellStatus) -> Curve | None:
    """The training curve of a cell, with its validation loss where it is done; None without a logged line."""
    spec = status.cell.spec
    lines = read_lines(run_dir(folder, spec.run_id) / "metrics.jsonl", METRIC_FIELDS)
    if not lines:
        return None
    fraction = np.array([line["step"] for line in lines], float) / spec.steps
    final = status.loss if status.state == "done" else None
    return Curve(status.cell.n_params, spec.tokens, fraction, np.array([line["loss"] for line in lines], float), final)


def _alike(one: RunSpec, other: RunSpec) -> bool:
    """Whether two runs anneal alike: schedule, optimizer, and warmup, decay and averaging as shares of their steps."""
    shares = [abs(getattr(one, name) / one.steps - getattr(other, name) / other.steps) for name in
              ("warmup_steps", "decay_steps", "average_steps")]  # fmt: skip
    same = all(getattr(one, name) == getattr(other, name) for name in ("schedule", "optimizer", "final_fraction"))
    return same and max(shares) <= SHARE
