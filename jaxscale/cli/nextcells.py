"""`plan --next K`: the next cells of a measured study, and, with --add, into its plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from jaxscale.cli.options import PlanOptions
from jaxscale.config import Study
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.format import format_flops
from jaxscale.plain import to_plain, write_json
from jaxscale.plan import grow_plan, offer_cells
from jaxscale.runs import Cell, Plan
from jaxscale.sweep import read_plan

if TYPE_CHECKING:
    from jaxscale.fit import Fit
    from jaxscale.nextcells import NextCells
    from jaxscale.runs import Observations

__all__ = ["propose_next"]

FAR, SHARE = 10.0, 1 / 3
"""Default target over the largest budget measured; default largest budget of a cell over the target."""
WEIGHED = ("isoflop", "parametric")
"""Approaches that can weigh a run: the declared one leads, the other guards against its model error."""


def propose_next(options: PlanOptions, console: Console) -> int:
    """0 when a choice was made (and added), by errors what stands against one."""
    folder = options.folder
    planned = read_plan(folder)
    planned.check_single("plan --next")
    if options.next is not None and options.next < 1:  # before any run is read
        raise MisuseError(f"--next: {options.next} cells; ask for 1 or more")
    if options.study.declared not in WEIGHED:
        raise MisuseError(f"declared: {options.study.declared} moves from size to size by jumps, so that no single "
                          f"run has a gain; use --declared isoflop or parametric with --next")  # fmt: skip
    _check_same(options.study, planned, folder)
    chosen, offers = _choose(options, planned, folder)
    console.print(str(chosen), soft_wrap=True, markup=False)
    if options.out is not None and options.out.suffix == ".json":
        write_json(options.out, chosen.to_json())
        console.print(f"written: {options.out}", soft_wrap=True)
    if options.add and chosen.rows:
        _add(chosen, offers, folder)
        console.print(f"added {len(chosen.rows)} cells to {folder}/plan.json; train them with `jaxscale train "
                      f"{folder} --all`", soft_wrap=True, markup=False)  # fmt: skip
    return 0


def _check_same(study: Study, planned: Plan, folder: Path) -> None:
    """The study asked about is the one that was measured; how it is run, fitted and asked may differ."""
    from jaxscale.cli.planning import differing_fields

    changed = [name for name in differing_fields(planned.config, to_plain(study)) if name != "declared"]
    if changed:
        raise MisuseError(f"{changed[0]}: differs from the plan in {folder}, whose runs the next cells would join; "
                          f"leave it, or plan a new study with another --out")  # fmt: skip


def _choose(options: PlanOptions, planned: Plan, folder: Path) -> tuple[NextCells, list[Cell]]:
    from jaxscale.collect import collect_runs
    from jaxscale.fit.cells import gather_cells
    from jaxscale.nextcells import MOST_RUNS, Candidate, check_request, next_budgets, propose_cells

    observations = collect_runs(folder)
    if not len(observations):
        raise VerdictError(f"{folder}: no run is done; train the plan first with `jaxscale train {folder} --all`")
    cells = gather_cells(observations)
    if not len(cells.budget_C):
        raise VerdictError(f"{folder}: its runs form no budgets; plan a grid of three or more")
    study, largest = options.study, float(cells.budget_C.max())
    target = next(iter(study.forecast_flops), FAR * largest) if options.next_target is None else options.next_target
    most_runs = MOST_RUNS if options.next_repeats is None else options.next_repeats
    assert options.next is not None
    check_request(cells, target, options.next, options.next_flops, most_runs)
    limit = target * SHARE if options.next_max_flops is None else options.next_max_flops
    measured = sorted({c.spec.budget_flops for c in planned.cells if c.role == "grid"})
    budgets = [C for C in next_budgets(measured, limit) if limit * 1.01 >= C and not _is_held(C, study)]
    if not budgets:
        raise MisuseError(f"--next-max-flops: {format_flops(limit)} is below the smallest budget, "
                          f"{format_flops(min(measured))}; give that or more")  # fmt: skip
    offers = _offer(study, planned, budgets)
    made = Counter((c.spec.budget_flops, c.n_params) for c in planned.cells if c.role == "grid")
    candidates = [
        Candidate(c.spec.budget_flops, float(c.n_params), float(c.spec.tokens), c.flops,
                  study.seed + made[c.spec.budget_flops, c.n_params])
        for c in offers
    ]  # fmt: skip
    fits = _fit(observations, study)
    chosen = propose_cells(cells, fits, candidates, target_C=target, count=options.next,
                           spend_flops=options.next_flops, most_runs=most_runs)  # fmt: skip
    waiting = sum(c.role == "grid" for c in planned.cells) - len(observations.frame.query("role == 'grid'"))
    notes = [f"budgets of cells up to {format_flops(limit)} FLOPs (--next-max-flops)"]
    notes += [f"{waiting} planned cells are no evidence yet, and not counted"] if waiting else []
    return replace(chosen, notes=(*chosen.notes, *notes)), offers


def _is_held(C: float, study: Study) -> bool:
    """Whether a budget is one that the study predicts: no evidence is bought there."""
    return any(abs(C / held - 1) < 0.05 for held in study.grid.holdout)


def _offer(study: Study, planned: Plan, budgets: list[float]) -> list[Cell]:
    """Cells by the study's rules; those of a size that the plan has at that budget are the plan's own."""
    own = {(c.spec.budget_flops, c.n_params): c for c in reversed(planned.cells) if c.role == "grid"}
    tokens = [c.spec.tokens / c.epochs for c in planned.cells if c.epochs]
    offers = []
    for budget in budgets:
        fresh = offer_cells(study, budget, train_tokens=tokens[0] if tokens else None, data_sha256=planned.data_sha256)
        offers += [own.get((budget, cell.n_params), cell) for cell in fresh]
    return offers


def _fit(observations: Observations, study: Study) -> list[Fit]:
    """The declared approach, and the other beside it."""
    from jaxscale.fit.together import METHODS

    order = sorted(WEIGHED, key=lambda name: name != study.declared)
    return [METHODS[name](observations, bootstrap=study.bootstrap) for name in order]


def _add(chosen: NextCells, offers: list[Cell], folder: Path) -> None:
    from jaxscale.cli.planning import hold_folder

    cells = []
    for row in chosen.rows:
        cell = offers[row["candidate"]]
        cells.append(replace(cell, spec=replace(cell.spec, seed=row["seed"])))
    with hold_folder(folder):
        write_json(folder / "plan.json", grow_plan(read_plan(folder), cells).to_json())
