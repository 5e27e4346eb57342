"""The verdict of a tuning audit: which budgets have a mistuned arm, and what that does to the exponents.

A cell is mistuned when its gain (tuned.py) is above the tolerance and believed (p < 5% over all cells together);
tuned when even the upper end of its gain (95%, one side) is within the tolerance; open when the noise decides
neither. A budget is flagged when one of its cells is mistuned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxscale.fit.cells import gather_cells
from jaxscale.fit.isoflop import fit_isoflop
from jaxscale.fit.result import without_nan
from jaxscale.format import format_flops, format_number
from jaxscale.mup.arms import Arm, list_cells
from jaxscale.mup.sensitivity import refit_at_best
from jaxscale.mup.tuned import LEVEL, Judgement, Noise, judge_gains, scatter_noise
from jaxscale.runs import Cell, Observations, RunResult
from jaxscale.tables import render_table
from jaxscale.tuning import AUDIT_SCHEMA

__all__ = ["Audit", "judge_audit", "measure_minima", "study_noise"]

ENDED = ("done", "diverged", "failed", "censored")


@dataclass(frozen=True)
class Audit:
    """audit.json: `rows` one an audited cell, `budgets` one a budget, `flagged` those with a mistuned cell."""

    study: str
    plan_sha256: str
    factor: float
    tolerance: float
    noise: dict[str, Any] | None
    curvature: float
    detectable: float
    rows: tuple[dict[str, Any], ...]
    budgets: tuple[dict[str, Any], ...]
    sensitivity: dict[str, Any] | None
    verdict: str
    notes: tuple[str, ...] = ()
    schema: str = AUDIT_SCHEMA

    @property
    def flagged(self) -> list[float]:
        """Budgets, FLOPs."""
        return [row["budget"] for row in self.budgets if row["state"] == "mistuned"]

    def to_json(self) -> str:
        """As JSON, schema jaxscale.mup_audit/1."""
        plain = asdict(self)
        return json.dumps({"schema": plain.pop("schema"), **without_nan(plain)}, indent=1)

    def __str__(self) -> str:
        columns = ("budget C", "N", "width", "position", "loss", f"at lr/{self.factor:g}", f"at lr*{self.factor:g}",
                   "lr", "best lr", "gain", "+-", "p", "state", "")  # fmt: skip
        rows = [
            (format_flops(r["budget"]), r["N"], r["width"], r["position"], r["loss"], _told(r, "half"),
             _told(r, "double"), r["lr"], r["lr_best"], _percent(r["gain"]), _percent(r["gain_error"]),
             None if r["p"] is None else round(r["p"], 3), r["state"], r["reason"])
            for r in self.rows
        ]  # fmt: skip
        title = f"tuning audit of {self.study}, tolerance {self.tolerance:.2%} of the loss"
        parts = [render_table(title, columns, rows)] if rows else [title]
        lost = [b for b in self.budgets if b["reason"]]
        parts += [f"{format_flops(b['budget'])} FLOPs: {b['state']}, {b['reason']}" for b in lost]
        parts += [_say_sensitivity(self.sensitivity)] if self.sensitivity else []
        return "\n".join([*parts, *(f"note: {note}" for note in self.notes), f"verdict: {self.verdict}"])


def measure_minima(obs: Observations) -> dict[float, float | None]:
    """N_opt by budget (FLOPs) where the IsoFLOP fit has a usable minimum."""
    fit = fit_isoflop(obs, bootstrap=0)
    budgets = sorted({float(C) for C in obs.frame.loc[obs.frame["role"] == "grid", "budget"]})
    found = {min(budgets, key=lambda C, b=b: abs(math.log(C / b.C))): b for b in fit.budgets or ()}  # type: ignore[misc]
    return {C: b.N_opt if b.status == "ok" else None for C, b in found.items()}


def study_noise(obs: Observations) -> list[Noise]:
    """What the study's own runs say of the noise of one log loss: between seeds, and about a parabola a budget.

    The misfit of least-squares parabolas in log N holds what a true valley is no parabola by: an upper limit, which
    the residual of the IsoFLOP fit is not (it counts cells far from the minimum less).
    """
    cells = gather_cells(obs)
    found, dof = [], float(cells.seed_dof.sum())
    if cells.seed_std and dof:
        found.append(Noise(cells.seed_std, dof, "seeds of the study"))
    total, left = 0.0, 0
    for here in (cells.budget == b for b in range(len(cells.budget_C))):
        if here.sum() > 3:
            x, y = np.log(cells.N[here]), np.log(cells.loss[here])
            total += float(((y - np.polyval(np.polyfit(x - x.mean(), y, 2), x - x.mean())) ** 2).sum())
            left += int(here.sum()) - 3
    if left:
        found.append(Noise(math.sqrt(total / left), float(left), "runs about a parabola through each budget"))
    return found


def judge_audit(
    study: str,
    plan_sha256: str,
    arms: Sequence[Arm],
    skipped: Mapping[float, str],
    results: Mapping[str, RunResult],
    obs: Observations,
    *,
    factor: float,
    tolerance: float,
    decay_rule: str,
    notes: Sequence[str] = (),
) -> Audit:
    """Judge every arm whose two reruns have ended; `results` by run id, `obs` the study's evidence."""
    reruns = [list_cells(arm, factor, decay_rule) for arm in arms]
    ended = [all(c.run_id in results and results[c.run_id].state in ENDED for c in pair) for pair in reruns]
    losses = np.array([[_loss(results, low), arm.loss, _loss(results, high)]
                       for arm, (low, high) in zip(arms, reruns, strict=True)]).reshape(-1, 3)  # fmt: skip
    usable = np.array(ended, bool) & np.isfinite(losses[:, [0, 2]]).any(1)
    judged = judged_of = None
    if usable.any():
        y = np.log(losses[usable])
        judged = judge_gains(y, [*study_noise(obs), *filter(None, [scatter_noise(y)])])
        judged_of = np.cumsum(usable) - 1
    rows = [
        _row(arm, pair, results, factor, tolerance, judged, int(judged_of[i]) if judged_of is not None and usable[i]
             else None)
        for i, (arm, pair) in enumerate(zip(arms, reruns, strict=True))
    ]  # fmt: skip
    begun = {row["budget"] for row in rows if row["half_state"] != "planned" or row["double_state"] != "planned"}
    rows = [row for row in rows if row["budget"] in begun]
    budgets = [_budget(C, rows, skipped) for C in sorted({arm.budget for arm in arms} | set(skipped))]
    return Audit(
        study=study, plan_sha256=plan_sha256, factor=factor, tolerance=tolerance,
        noise=asdict(judged.noise) if judged is not None and judged.noise else None,
        curvature=judged.curvature if judged is not None else 0.0,
        detectable=max(tolerance, -math.expm1(-judged.threshold)) if judged is not None else math.nan,
        rows=tuple(rows), budgets=tuple(budgets),
        sensitivity=_refit(obs, arms, usable, judged) if judged is not None else None,
        verdict=_say_verdict(budgets, rows, tolerance, judged), notes=(*notes, *_notes(judged), *_say_lean(rows)),
    )  # fmt: skip


def _loss(results: Mapping[str, RunResult], cell: Cell) -> float:
    result = results.get(cell.run_id)
    done = result is not None and result.state == "done" and result.tokens == cell.spec.tokens
    return result.loss if done and result is not None and result.loss and math.isfinite(result.loss) else math.nan


def _row(
    arm: Arm,
    pair: tuple[Cell, Cell],
    results: Mapping[str, RunResult],
    factor: float,
    tolerance: float,
    judged: Judgement | None,
    place: int | None,
) -> dict[str, Any]:
    spec = arm.cell.spec
    row: dict[str, Any] = {
        "budget": arm.budget, "N": arm.cell.n_params, "D": spec.tokens, "width": spec.model.d_model,
        "depth": spec.model.n_layers, "position": arm.position, "run_id": arm.cell.run_id, "seed": spec.seed,
        "lr": spec.lr, "loss": arm.loss,
    }  # fmt: skip
    for name, cell in zip(("half", "double"), pair, strict=True):
        result, loss = results.get(cell.run_id), _loss(results, cell)
        row |= {f"{name}_run_id": cell.run_id, f"{name}_state": result.state if result else "planned",
                f"{name}_reason": result.reason if result else "",
                f"loss_{name}": loss if math.isfinite(loss) else None}  # fmt: skip
    if judged is None or place is None:
        unknown = dict.fromkeys(("lr_best", "loss_best", "gain", "gain_error", "p"))
        return {**row, **unknown, "direction": "", "flagged": False, "state": "incomplete", "reason": _missing(row)}
    gain, x, p = (float(values[place]) for values in (judged.gain, judged.x, judged.p))
    share = -math.expm1(-gain)  # of the loss itself; gains are differences of its logarithm
    flagged = share > tolerance and p < LEVEL
    sure = -math.expm1(-float(judged.upper[place])) <= tolerance
    direction = "" if gain == 0 else "rate too high" if x < 0 else "rate too low"
    return {
        **row, "lr_best": spec.lr * factor**x, "loss_best": arm.loss * math.exp(-gain), "gain": share,
        "gain_error": float(judged.error[place]) * math.exp(-gain), "p": p, "direction": direction, "flagged": flagged,
        "state": "mistuned" if flagged else "tuned" if sure else "open", "reason": _say_row(row, x, direction, flagged),
    }  # fmt: skip


def _missing(row: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {row[f'{name}_state']}{', ' + row[f'{name}_reason'] if row[f'{name}_reason'] else ''}"
                     for name in ("half", "double") if row[f"loss_{name}"] is None)  # fmt: skip


def _say_row(row: Mapping[str, Any], x: float, direction: str, flagged: bool) -> str:
    words = []
    if flagged:
        end = row["loss_half" if x < 0 else "loss_double"]
        lower = end is not None and end < row["loss"]
        measured = "measured lower at the edge of the rates tried" if abs(x) > 0.99 else "lower"
        words.append(f"{direction}: {'half' if x < 0 else 'double'} the rate is {measured}" if lower
                     else f"{direction}: by the parabola, the best rate lies between")  # fmt: skip
    if missing := _missing(row):
        words.append(missing)
    return "; ".join(words)


def _budget(C: float, rows: Sequence[Mapping[str, Any]], skipped: Mapping[float, str]) -> dict[str, Any]:
    """One state a budget: the gravest of its cells."""
    mine = [row for row in rows if row["budget"] == C]
    if not mine:
        return {"budget": C, "state": "not audited", "arms": [], "reason": skipped.get(C, "its reruns were not asked")}
    state = next(s for s in ("mistuned", "incomplete", "open", "tuned") if any(row["state"] == s for row in mine))
    arms = [f"{row['position']}: {row['direction']}, {row['gain']:.2%}" for row in mine if row["flagged"]]
    lone = "" if any(row["position"] == "minimum" for row in mine) and len(mine) == 3 else "its minimum is an arm"
    return {"budget": C, "state": state, "arms": arms, "reason": lone}


def _refit(obs: Observations, arms: Sequence[Arm], usable: np.ndarray, judged: Judgement) -> dict[str, Any]:
    kept = [arm for arm, good in zip(arms, usable, strict=True) if good]
    corrections, draws = [], []
    for C in sorted({arm.budget for arm in kept}):
        places = sorted((i for i, arm in enumerate(kept) if arm.budget == C), key=lambda i: kept[i].cell.n_params)
        corrections.append((C, [math.log(kept[i].cell.n_params) for i in places], judged.gain[places].tolist()))
        draws.append(judged.draws[:, places])
    return refit_at_best(obs, corrections, draws if judged.noise else [])


def _say_verdict(
    budgets: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], tolerance: float, judged: Judgement | None
) -> str:
    if judged is None:
        return "nothing can be judged: no cell has a rerun that ended with a loss"
    seen = [b for b in budgets if b["state"] not in ("not audited", "incomplete")]
    mistuned = [b for b in seen if b["state"] == "mistuned"]
    unsure = sum(row["state"] == "open" for row in rows)
    told = ""
    if unsure:
        least = -math.expm1(-judged.threshold)
        told = f"; {unsure} of {len(rows)} cells are open: under this noise only a gain above {least:.2%} is believed"
    if mistuned:
        names = "; ".join(f"{format_flops(b['budget'])} FLOPs ({', '.join(b['arms'])})" for b in mistuned)
        return f"{len(mistuned)} of {len(seen)} budgets are mistuned by more than {tolerance:.2%}: {names}{told}"
    return f"no mistuning above {tolerance:.2%} found in {len(seen)} budgets{told}"


def _say_lean(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence where most cells lean one way (sign test, 5% for both sides): then the whole grid's rate is off."""
    for name, word in (("half", "high"), ("double", "low")):
        seen = [row[f"loss_{name}"] < row["loss"] for row in rows if row[f"loss_{name}"] is not None]
        lower, n = sum(seen), len(seen)
        if sum(math.comb(n, k) for k in range(lower, n + 1)) / 2**n < LEVEL / 2:
            return [f"{name} the rate is lower in {lower} of {n} cells: the rate is too {word} for most of the grid, "
                    f"not for its arms alone"]  # fmt: skip
    return []


def _notes(judged: Judgement | None) -> list[str]:
    notes = []
    if judged is not None and judged.noise is None:
        notes.append("the noise is not known (no repeated seeds, few cells): gains are taken as measured")
    elif judged is not None and judged.noise is not None:
        noise = judged.noise
        notes.append(f"noise of one loss {noise.std:.2%}, {noise.dof:.3g} degrees of freedom, from the {noise.origin}; "
                     f"runs are paired by seed, so differences hold no more than that")  # fmt: skip
    return notes


def _say_sensitivity(record: Mapping[str, Any]) -> str:
    if record.get("a_before") is None or record.get("a_after") is None:
        why = record.get("verdict_before") or record.get("verdict_after")
        return f"exponents: no IsoFLOP answer to compare ({why})"
    error = record.get("shift_std_error")
    doubt = f" (standard error of the shift {error:.3f})" if error is not None else ""
    pairs = [f"{name} {format_number(record[f'{name}_before'])} -> {format_number(record[f'{name}_after'])}"
             for name in ("a", "b", "N_opt", "loss")]  # fmt: skip
    return (f"with every loss at its best rate: {', '.join(pairs[:2])}{doubt}; at {format_flops(record['C_before'])} "
            f"FLOPs {', '.join(pairs[2:])}")  # fmt: skip


def _told(row: Mapping[str, Any], name: str) -> Any:
    loss = row[f"loss_{name}"]
    return row[f"{name}_state"] if loss is None else loss


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.2%}"
