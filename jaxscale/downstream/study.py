"""The evaluations of a study's own runs as rows: runs/<study>/<run_id>/evals.jsonl, one line a (step, task).

N is the run's total parameters, C its exact FLOPs at that step, nll the normalized NLL of the correct answer in nats
per byte. The state of a run and its role come from the plan: only runs that ended well are evidence. A held-out run
that has not been trained yet is a target without a measurement.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxscale.errors import VerdictError
from jaxscale.plain import read_lines
from jaxscale.runs import Cell
from jaxscale.sweep import read_plan, read_status

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["is_evaluated", "read_evaluations"]

NEEDS = frozenset({"step", "tokens", "flops", "task", "items", "nll_per_byte", "accuracy", "chance"})


def is_evaluated(folder: Path) -> bool:
    """Whether any run of this study folder has task scores."""
    return (folder / "plan.json").is_file() and next(folder.glob("*/evals.jsonl"), None) is not None


def read_evaluations(folder: Path) -> pd.DataFrame:
    """Rows of every run that is done: run, step, N, D, C, task, nll, accuracy, items, chance, role, budget, family.

    Behind them a row a task of every held-out run that is planned, its nll and accuracy missing.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    planned = read_plan(folder)
    planned.check_single("downstream")
    statuses = read_status(folder, planned.cells)
    for status in statuses:
        cell = status.cell
        if status.state != "done" or cell.role not in ("grid", "holdout"):
            continue
        for line in read_lines(folder / cell.run_id / "evals.jsonl", NEEDS):
            rows.append({
                "run": cell.run_id, "step": line["step"], "N": cell.n_params, "D": line["tokens"], "C": line["flops"],
                "task": line["task"], "nll": line["nll_per_byte"], "accuracy": line["accuracy"], "items": line["items"],
                "chance": line["chance"], "role": cell.role, "budget": cell.spec.budget_flops,
                "family": cell.spec.family, "nll_unit": "nats",
            })  # fmt: skip
    if not rows:
        raise VerdictError(f"{folder}: no run with task scores is done; `jaxscale status {folder}` says how they stand")
    tasks = {row["task"]: row for row in rows}
    coming = [s.cell for s in statuses if s.state in ("planned", "running") and s.cell.role == "holdout"]
    ends = [row | _plan_end(cell) for cell in coming for row in tasks.values()]
    return pd.DataFrame(rows + ends)


def _plan_end(cell: Cell) -> dict[str, Any]:
    """What is known of a run's end before it is trained."""
    return {"run": cell.run_id, "step": cell.spec.steps, "N": cell.n_params, "D": cell.spec.tokens, "C": cell.flops,
            "nll": float("nan"), "accuracy": float("nan"), "role": cell.role, "budget": cell.spec.budget_flops,
            "family": cell.spec.family}  # fmt: skip
