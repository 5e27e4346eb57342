"""DOWNSTREAM.json as a value: tasks with their targets and stages, a table for people, and the way back to chains.

tasks.NAME.targets   run, C, nll_pred, nll_true, accuracy_pred, accuracy_interval, accuracy_given_true_nll,
                     accuracy_true, relative_error, extrapolation, one_stage_pred
tasks.NAME.stages    what was fitted (docs/downstream.md); `verdict` instead where nothing can be forecast
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.downstream.chain import Chain
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.format import format_factor, format_flops, format_interval, format_loss, format_percent
from jaxscale.plain import read_json
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMA", "Downstream"]

SCHEMA = "jaxscale.downstream/1"


@dataclass(frozen=True)
class Downstream:
    """Forecasts of every task of a source; `tasks` is as in DOWNSTREAM.json."""

    recipe: str
    tasks: dict[str, dict[str, Any]]
    confidence: float
    nll_unit: str
    source: dict[str, Any]
    notes: tuple[str, ...] = ()
    schema: str = SCHEMA

    @property
    def verdicts(self) -> dict[str, str]:
        """Why a task has no forecast, by task."""
        return {name: task["stages"]["verdict"] for name, task in self.tasks.items() if task["stages"]["verdict"]}

    def chain(self, task: str) -> Chain:
        """The fitted stages of a task; MisuseError for another name, VerdictError where there is no fit."""
        if task not in self.tasks:
            raise MisuseError(f"task {task!r} is not there; the tasks are {', '.join(self.tasks)}")
        stages = self.tasks[task]["stages"]
        if stages["verdict"]:
            raise VerdictError(f"{task}: {stages['verdict']}")
        return Chain.from_plain(stages["chain"])

    def to_json(self) -> str:
        """The forecasts as JSON, schema jaxscale.downstream/1."""
        plain = {"schema": self.schema, "recipe": self.recipe, "confidence": self.confidence, "nll_unit": self.nll_unit,
                 "source": self.source, "notes": list(self.notes), "tasks": self.tasks}  # fmt: skip
        return json.dumps(_plain(plain), indent=1)

    @classmethod
    def from_json(cls, path: Path) -> Downstream:
        """Read what `to_json` wrote; MisuseError for any other file."""
        plain = read_json(path)
        if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
            raise MisuseError(f"{path}: is no {SCHEMA}; `jaxscale downstream SOURCE --out` writes one")
        return cls(plain["recipe"], plain["tasks"], plain["confidence"], plain["nll_unit"], plain["source"],
                   tuple(plain["notes"]))  # fmt: skip

    def to_frame(self) -> pd.DataFrame:
        """One row a task and target; the interval as accuracy_low and accuracy_high."""
        import pandas as pd

        rows = []
        for name, task in self.tasks.items():
            for target in task["targets"]:
                low, high = target["accuracy_interval"] or (None, None)
                rest = {key: value for key, value in target.items() if key != "accuracy_interval"}
                rows.append({"task": name, **rest, "accuracy_low": low, "accuracy_high": high})
        return pd.DataFrame(rows)

    def mean_error(self) -> float | None:
        """Mean absolute relative error over tasks and targets that were measured."""
        errors = [abs(target["relative_error"]) for task in self.tasks.values() for target in task["targets"]
                  if target["relative_error"] is not None]  # fmt: skip
        return float(np.mean(errors)) if errors else None

    def __str__(self) -> str:
        parts = [
            f"two-stage forecast, recipe {self.recipe}; {self.confidence:.0%} intervals in brackets; "
            f"NLL {self.nll_unit.replace('_', ' ')}"
        ]
        parts += [self._targets(), self._backtests(), self._stages()]
        parts += [f"{name}: nothing can be forecast: {why}" for name, why in self.verdicts.items()]
        return "\n".join([part for part in parts if part] + [f"note: {note}" for note in self.notes])

    def _targets(self) -> str:
        rows = [
            (name, target["run"], format_flops(target["C"]), format_factor(target["extrapolation"]),
             f"{format_loss(target['nll_pred'])} / {format_loss(target['nll_true'])}",
             f"{format_loss(target['accuracy_pred'])} {format_interval(target['accuracy_interval'])}",
             format_loss(target["accuracy_true"]), format_percent(target["relative_error"]),
             format_loss(target["accuracy_given_true_nll"]), format_loss(target["one_stage_pred"]))
            for name, task in self.tasks.items() for target in task["targets"]
        ]  # fmt: skip
        if not rows:
            return "" if self.verdicts else "no targets: say which rows are, as --target-where \"role == 'eval'\""
        mean = self.mean_error()
        title = "targets" + (f": mean absolute error {mean:.2%} of the accuracy measured" if mean is not None else "")
        columns = ("task", "run", "C", "beyond", "NLL forecast / true", "accuracy forecast", "measured", "error",
                   "from true NLL", "one stage")  # fmt: skip
        return render_table(title, columns, rows)

    def _backtests(self) -> str:
        rows = [
            (name, one["method"], one["predictions"], format_percent(one["mean_abs_error"]).lstrip("+"),
             format_percent(one["mean_error"]), format_percent(one["farthest_abs_error"]).lstrip("+"),
             format_percent(one["nll_mean_abs_error"]).lstrip("+"))
            for name, task in self.tasks.items() if not task["stages"]["verdict"]
            for one in task["stages"]["backtest"]["summary"]
        ]  # fmt: skip
        columns = ("task", "method", "predictions", "error", "signed", "farthest", "NLL error")
        return render_table("backtests: smaller fitted runs foretell the larger ones", columns, rows) if rows else ""

    def _stages(self) -> str:
        rows = []
        for name, task in self.tasks.items():
            stages = task["stages"]
            if stages["verdict"]:
                continue
            law = " ".join(f"{key}={value:.3g}" for key, value in stages["nll"]["params"].items())
            ends = (f"{stages[key]:.3f}" for key in ("floor", "ceiling"))
            chance, items = (f"{stages[key]['value']:.5g}" for key in ("chance", "items"))
            rows.append((name, len(stages["runs"]), stages["nll"]["law"], law, chance, *ends, items))
        columns = ("task", "runs", "law", "stage 1", "chance", "lower end", "at unlimited C", "items")
        return render_table("fits", columns, rows) if rows else ""


def _plain(value: Any) -> Any:
    """The same with what is not finite as null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
