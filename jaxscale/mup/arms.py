"""Which cells of a study a tuning audit reruns, and at which rates.

Three cells a budget: the one nearest to the measured IsoFLOP minimum, and the smallest and the largest size that
gave evidence (the arms of its curve). Each is rerun with its own seed at lr / factor and lr * factor, so that init
and order of the data are those of the run it is compared with, and the difference holds less noise than two seeds.
All else is equal. What "equal" means for weight decay follows the study's rule:

    horizon    lr * lambda * steps stays: lambda is divided by what the rate is multiplied with
    constant   lambda stays
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaxscale.config import Study
from jaxscale.errors import MisuseError
from jaxscale.plain import from_plain
from jaxscale.runs import Cell, Plan, RunSpec

__all__ = ["Arm", "Position", "choose_arms", "list_cells", "pick_budgets", "plan_audit", "retune"]

Position = Literal["small arm", "minimum", "large arm"]
MIN_SIZES = 3
"""Finished sizes that have a minimum between two arms."""
SAME_BUDGET = 0.05
"""A budget asked for on the command line is the planned one within this share."""


@dataclass(frozen=True)
class Arm:
    """A finished cell to rerun: where it lies on its budget's curve, and its loss in nats per token."""

    budget: float
    position: Position
    cell: Cell
    loss: float


def choose_arms(
    cells: Sequence[Cell], losses: Mapping[str, float], minima: Mapping[float, float | None]
) -> tuple[list[Arm], dict[float, str]]:
    """The cells to rerun by rising budget and size, and the budgets that cannot be audited with their reason.

    `losses`: loss of every run that is evidence, by run id. `minima`: N_opt by budget (FLOPs) where the IsoFLOP fit
    found one; elsewhere the size of lowest loss stands for it. Where that is itself an arm, two cells are left.
    """
    arms: list[Arm] = []
    skipped: dict[float, str] = {}
    for budget in sorted({cell.spec.budget_flops for cell in cells if cell.role == "grid"}):
        sizes = _finished_sizes(cells, losses, budget)
        if len(sizes) < MIN_SIZES:
            skipped[budget] = f"{len(sizes)} sizes have a finished run, {MIN_SIZES} are needed"
            continue
        lowest = min(sizes, key=lambda N: sum(losses[c.run_id] for c in sizes[N]) / len(sizes[N]))
        wanted = minima.get(budget) or lowest
        middle = min(sizes, key=lambda N: abs(math.log(N / wanted)))
        places: dict[int, Position] = {middle: "minimum", min(sizes): "small arm", max(sizes): "large arm"}
        for N in sorted(places):
            cell = min(sizes[N], key=lambda c: c.spec.seed)
            arms.append(Arm(budget, places[N], cell, losses[cell.run_id]))
    return arms, skipped


def _finished_sizes(cells: Sequence[Cell], losses: Mapping[str, float], budget: float) -> dict[int, list[Cell]]:
    sizes: dict[int, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.role == "grid" and cell.spec.budget_flops == budget and cell.run_id in losses:
            sizes[cell.n_params].append(cell)
    return dict(sizes)


def pick_budgets(known: Sequence[float], asked: Sequence[float]) -> list[float]:
    """The budgets meant by those asked for, all where none is; MisuseError for one that the study lacks."""
    picked = []
    for budget in asked:
        near = [one for one in known if abs(one / budget - 1) <= SAME_BUDGET] if budget > 0 else []
        if not near:
            names = ", ".join(f"{one:g}" for one in known)
            raise MisuseError(f"--budgets: {budget:g} is no budget that can be audited; use some of {names}")
        picked.append(min(near, key=lambda one: abs(one / budget - 1)))
    return sorted(set(picked)) if asked else sorted(known)


def retune(spec: RunSpec, times: float, decay_rule: str) -> RunSpec:
    """The same run at `times` its learning rate, of its own where it was a branch; weight decay as the rule wants."""
    decay = spec.weight_decay / times if decay_rule == "horizon" else spec.weight_decay
    return replace(spec, lr=spec.lr * times, weight_decay=decay, parent="", parent_step=0)


def list_cells(arm: Arm, factor: float, decay_rule: str) -> tuple[Cell, Cell]:
    """The arm's two reruns, the lower rate first."""
    low, high = (
        replace(arm.cell, spec=retune(arm.cell.spec, times, decay_rule), role="audit")
        for times in (1 / factor, factor)
    )  # fmt: skip
    return low, high


def plan_audit(planned: Plan, arms: Sequence[Arm], factor: float) -> Plan:
    """The reruns as a plan of role "audit", under the study's own configuration and text."""
    if not (math.isfinite(factor) and factor > 1):
        raise MisuseError(f"--factor: {factor:g} asks for no other rate; use a number above 1, as in 2")
    rule = from_plain(planned.config, Study).recipe.decay_rule
    cells = (cell for arm in arms for cell in list_cells(arm, factor, rule))
    kept = "lr * weight_decay * steps is" if rule == "horizon" else "weight_decay is"
    return replace(
        planned.with_cells(cells),
        study=f"{planned.study}, tuning audit",
        dropped=(),
        assumptions=(f"each cell at 1/{factor:g} and {factor:g} times its learning rate, same seed; {kept} that of "
                     f"the study",),
    )  # fmt: skip
