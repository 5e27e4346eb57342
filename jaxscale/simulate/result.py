"""What a simulation found, as one value: a table for people, JSON for programs, and the planner's sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.fit.result import without_nan
from jaxscale.fit.summary import TOLERATED
from jaxscale.format import UNKNOWN, format_flops, format_number
from jaxscale.plain import to_plain
from jaxscale.simulate.count import SIMULTANEOUS, Task, count_rows, true_values
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

    from jaxscale.simulate.scenario import Scenario

__all__ = ["Simulation", "summarize"]

SHOWN = ("method", "resample", "quantity", "truth", "bias", "rms error", "coverage", "in band", "of all", "mean width",
         "x needed")  # fmt: skip
FACTORS = ("N_opt", "D_opt", "A", "B")
"""Their widths are factors, those of losses percentages."""


@dataclass(frozen=True)
class Simulation:
    """Rows by method, resampler and quantity, field for field as `count.count_rows` makes them.

    `studies` were counted of the `asked`; `fits` says of each method and resampler how many studies it answered
    and refused, with one refusal in words. `records` are the single estimates, for those who want to look.
    """

    law: dict[str, Any]
    noise: dict[str, float]
    grid: dict[str, Any]
    target_C: float
    studies: int
    asked: int
    confidence: float
    bootstrap: int
    seed: int
    rows: tuple[dict[str, Any], ...]
    fits: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()
    records: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    schema: str = "jaxscale.simulate/1"

    def to_json(self) -> str:
        """The simulation as JSON, schema jaxscale.simulate/1, without the single records."""
        plain = {name: value for name, value in vars(self).items() if name != "records"}
        return json.dumps(without_nan({"schema": plain.pop("schema"), **plain}), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a method, resampler and quantity."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def records_frame(self) -> pd.DataFrame:
        """One row a study, method, resampler and quantity: estimate, low, high, truth; verdict where refused."""
        import pandas as pd

        return pd.DataFrame(list(self.records))

    def __str__(self) -> str:
        title = f"{self.studies} of {self.asked} studies" if self.studies < self.asked else f"{self.studies} studies"
        truth = f"wrong form {self.law['wrong']} around " if self.law["wrong"] else ""
        law = ", ".join(f"{name} {format_number(self.law[name])}" for name in ("E", "A", "B", "alpha", "beta"))
        unused = set() if self.noise["outliers"] else {"outlier_size"}
        noise = ", ".join(f"{name} {value:g}" for name, value in self.noise.items() if value and name not in unused)
        lines = [
            render_table(f"{title} of {self.grid['cells']} cells and {self.grid['runs']} runs, {self.bootstrap} "
                         f"bootstraps, {self.confidence:.0%} intervals, C = {format_flops(self.target_C)}",
                         SHOWN, [_show(row) for row in self.rows]),
            f"truth: {truth}L = E + A/N^alpha + B/D^beta with {law}",
            f"noise of log loss: {noise or 'none'}",
        ]  # fmt: skip
        lines += [_say_fit(found, self.studies) for found in self.fits]
        lines += self._say_bands()
        lines.append("x needed: mean width over the narrowest constant width about the estimates that would have held")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, *self.answer()])

    def _say_bands(self) -> list[str]:
        told = f"in band: coverage within simultaneous {SIMULTANEOUS:.0%} binomial bands about {self.confidence:.0%}"
        missed = [row for row in self.rows if row["within_band"] not in (None, "within")]
        if not missed:
            return [f"{told}: every row is"]
        words = (f"{r['quantity']} ({r['method']}, {r['resample']}) {r['coverage']:.1%}, {r['within_band']} "
                 f"[{r['band'][0]:.1%}, {r['band'][1]:.1%}]" for r in missed)  # fmt: skip
        return [f"{told}; outside: {'; '.join(words)}"]

    def answer(self) -> list[str]:
        """The planner's answer in words, one sentence a method (its first resampler)."""
        lines = []
        for method in dict.fromkeys(row["method"] for row in self.rows):
            mine = [row for row in self.rows if row["method"] == method]
            first = {row["quantity"]: row for row in mine if row["resample"] == mine[0]["resample"]}
            lines.append(self._say_widths(method, first))
        return lines

    def _say_widths(self, method: str, row: dict[str, dict[str, Any]]) -> str:
        where = f"with this grid and this noise ({method})"
        if row["loss"]["mean_log_width"] is None:
            return f"{where} there is no interval at {format_flops(self.target_C)} FLOPs: no study was answered"
        loss, run = (np.expm1(row[name]["mean_log_width"] / 2) for name in ("loss", "loss_future_run"))
        N, D = (np.exp(row[name]["mean_log_width"] / 2) for name in ("N_opt", "D_opt"))
        held = ", ".join(f"{row[name]['coverage']:.0%} for {name}" for name in ("loss", "N_opt"))
        return (f"{where} the {self.confidence:.0%} interval of the loss at {format_flops(self.target_C)} FLOPs is "
                f"+-{loss:.2%} wide on average (+-{run:.2%} for one future run), of N_opt a factor {N:.3g} either way "
                f"and of D_opt {D:.3g}; it held the truth in {held} of the studies")  # fmt: skip


def summarize(task: Task, asked: int, judged: Sequence[Sequence[dict[str, Any]]]) -> Simulation:
    """Count what was judged; the order in which studies ended does not matter."""
    scenario = task.scenario
    records = [record for study in sorted(judged, key=lambda study: study[0]["study"]) for record in study]
    truth = true_values(scenario)
    form, layout = scenario.form, scenario.layout
    law = {"name": "chinchilla", **to_plain(scenario.law), "wrong": scenario.wrong, **form.constants}
    grid = {"cells": len(layout), "runs": layout.runs, "budgets": layout.budgets, "largest_C": max(layout.C),
            "rule": layout.rule, "N": list(layout.N), "D": list(layout.D), "C": list(layout.C),
            "seeds": list(layout.seeds)}  # fmt: skip
    return Simulation(
        law=law, noise=to_plain(scenario.noise), grid=grid, target_C=scenario.target_C, studies=len(judged),
        asked=asked, confidence=task.confidence, bootstrap=task.bootstrap, seed=task.seed,
        rows=tuple(count_rows(records, truth, task.confidence)), fits=tuple(_count_fits(task, records)),
        notes=tuple(_notes(scenario)), records=tuple(records),
    )  # fmt: skip


def _notes(scenario: Scenario) -> list[str]:
    notes = []
    if scenario.wrong and scenario.form.law is None:
        notes.append("the truth is no power law: a and b are the local slopes at C, and E, A, B, alpha, beta have none")
    if scenario.wrong and scenario.form.law is not None:
        notes.append("the truth is the tuned law; the runs of the grid are not tuned")
    layout = scenario.layout
    N, D, C = (np.asarray(part) for part in (layout.N, layout.D, layout.C))
    off = float(np.abs(layout.flop_rule.flops(N, D) / C - 1).max())
    if off > TOLERATED:
        notes.append(
            f"C of the cells differs from the rule of the truth ({layout.rule}) by up to {off:.0%}: an isoflop fit "
            f"goes by the cells' C, and its bias holds the difference; --flops-rule 6ND makes them one"
        )
    if scenario.noise.shared:
        notes.append("an error shared by all cells is no part of the truth of the loss, and cannot be seen in a study")
    return notes


def _count_fits(task: Task, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each method and resampler did: answered, refused, resampler used, mean usable budgets, a refusal."""
    found = []
    for method in task.methods:
        for resample in task.resamplers:
            mine = [r for r in records if (r["method"], r["resample"]) == (method, resample)]
            refused = [r["verdict"] for r in mine if r["quantity"] is None]
            answered = [r for r in mine if r["quantity"] == "a"]
            budgets = [r["budgets"] for r in answered if r["budgets"] is not None]
            found.append({
                "method": method, "resample": resample, "answered": len(answered), "refused": len(refused),
                "resample_used": sorted({r["resample_used"] for r in answered}),
                "usable_budgets": float(np.mean(budgets)) if budgets else None,
                "refusal": refused[0] if refused else None,
            })  # fmt: skip
    return found


def _say_fit(found: dict[str, Any], studies: int) -> str:
    used = "" if found["resample"] in found["resample_used"] else f" ({', '.join(found['resample_used'])})"
    words = f"{found['method']}, resample {found['resample']}{used}: {found['answered']} of {studies} studies answered"
    if found["usable_budgets"] is not None:
        words += f", {found['usable_budgets']:.3g} usable budgets on average"
    if found["refused"]:
        words += f", {found['refused']} refused, as: {found['refusal']}"
    return words


def _show(row: dict[str, Any]) -> tuple[Any, ...]:
    share, error = row["coverage"], row["coverage_std_error"]
    covered = UNKNOWN if share is None else f"{share:.1%} +- {error:.1%}"
    mark = {"within": "yes", None: UNKNOWN}.get(row["within_band"], row["within_band"])
    of_all = UNKNOWN if row["coverage_all"] is None else f"{row['coverage_all']:.1%}"
    bias, rms, width = row["bias"], row["rms_error"], row["mean_width"]
    if row["mean_log_width"] is not None:
        bias, rms = f"{np.expm1(row['log_bias']):+.2%}", f"{np.expm1(row['log_rms_error']):.2%}"
        half = np.exp(row["mean_log_width"] / 2)
        width = f"x/ {half:.3g}" if row["quantity"] in FACTORS else f"+-{half - 1:.2%}"
    ratio = UNKNOWN if row["width_ratio"] is None else f"{row['width_ratio']:.2f}"
    name = (row["method"], row["resample"], row["quantity"])
    return (*name, row["truth"], bias, rms, covered, mark, of_all, width, ratio)
