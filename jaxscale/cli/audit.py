"""The verb `mup audit`: were the arms of a finished study's budgets tuned? Runs in DIR/audit, answer in DIR/audit.json.

Resumable as `run` is: what has ended is kept, a killed rerun goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jaxscale.cli.options import parse
from jaxscale.cli.planning import hold_folder
from jaxscale.cli.study import say_preempted, train_pending
from jaxscale.cli.tables import make_console
from jaxscale.config import Study
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.format import format_count, format_flops, format_seconds
from jaxscale.hardware import parse_hardware
from jaxscale.plain import from_plain, write_json
from jaxscale.runs import Cell, Observations, Plan, RunResult
from jaxscale.sweep import read_plan, read_status
from jaxscale.tuning import TOLERANCE, identify_plan

if TYPE_CHECKING:
    from jaxscale.mup.arms import Arm
    from jaxscale.mup.audit import Audit

__all__ = ["audit"]


@dataclass(frozen=True)
class AuditOptions:
    """Options of `mup audit`."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Study folder whose runs have ended."""
    budgets: tuple[float, ...] = ()
    """Budgets to audit, FLOPs; default all. Budgets audited before stay in the answer."""
    tolerance: float = TOLERANCE
    """Share of the loss that a better rate may save before a cell counts as mistuned; .003 in one arm moves the
    exponent a by about .01 over one decade of compute (docs/tuning.md)."""
    factor: float = 2.0
    """Rates tried: the study's divided and multiplied by this."""
    dry_run: bool = False
    """Print the reruns and what they cost, train nothing."""
    allow_mixed: bool = False
    """Use runs of the study together that differ in text, precision, device or version."""
    out: Path | None = None
    """A second place for the JSON (jaxscale.mup_audit/1); the first is DIR/audit.json, which fits and report read."""


def audit(argv: list[str]) -> int:
    """0 when no budget is flagged, 1 when one is, 75 preempted and saved."""
    about = ("Rerun the minimum and both arms of each budget at half and double the learning rate.\n\n"
             "example: jaxscale mup audit runs/quickstart --dry-run")  # fmt: skip
    options = parse(AuditOptions, argv, "mup audit", about)
    if not 0 < options.tolerance < 1:
        raise MisuseError(f"--tolerance: {options.tolerance:g} is no share of a loss; use a number between 0 and 1, "
                          f"as in 0.003")  # fmt: skip
    from jaxscale.collect import collect_runs
    from jaxscale.mup.arms import choose_arms, pick_budgets, plan_audit
    from jaxscale.mup.audit import measure_minima

    folder, console = options.directory, make_console()
    planned = read_plan(folder)
    planned.check_single("mup audit")
    evidence = collect_runs(folder, allow_mixed=options.allow_mixed)
    _check_ended(folder, planned)
    if not len(evidence):
        raise VerdictError(f"{folder}: no run is done, there is nothing to audit")
    losses = {str(row["run_id"]): float(row["loss"]) for row in evidence.frame.to_dict("records")}
    arms, skipped = choose_arms(planned.cells, losses, measure_minima(evidence))
    if not arms:
        raise VerdictError(f"{folder}: no budget can be audited; "
                           f"{'; '.join(f'{C:g}: {why}' for C, why in skipped.items())}")  # fmt: skip
    asked = set(pick_budgets(sorted({arm.budget for arm in arms}), options.budgets))
    whole = plan_audit(planned, arms, options.factor)
    wanted = plan_audit(planned, [arm for arm in arms if arm.budget in asked], options.factor)
    _print_cost(wanted, folder / "audit", console)
    if options.dry_run:
        return 0
    with hold_folder(folder):
        kept = _keep_begun(whole, wanted, folder / "audit")
        (folder / "audit").mkdir(exist_ok=True)
        write_json(folder / "audit" / "plan.json", kept.to_json())
        if not train_pending(folder / "audit", kept, wanted.cells, console):
            return say_preempted("mup audit")
        result = _judge(options, planned, arms, skipped, evidence, whole)
        print(result)
        for file in [folder / "audit.json", *([options.out] if options.out is not None else [])]:
            write_json(file, result.to_json())
    console.print(f"written: {folder / 'audit.json'}; `jaxscale fit {folder}` and `jaxscale report {folder}` read it",
                  soft_wrap=True, markup=False)  # fmt: skip
    return 1 if result.flagged else 0


def _judge(
    options: AuditOptions, planned: Plan, arms: Sequence[Arm], skipped: dict[float, str], obs: Observations, whole: Plan
) -> Audit:
    from jaxscale.mup.audit import judge_audit

    statuses = read_status(options.directory / "audit", whole.cells)
    results = {status.cell.run_id: status.result for status in statuses if status.result}
    centers = [s.result for s in read_status(options.directory, [arm.cell for arm in arms]) if s.result]
    return judge_audit(
        planned.study, identify_plan(planned), arms, skipped, results, obs,
        notes=_say_mixed(centers, [*results.values()]), factor=options.factor, tolerance=options.tolerance,
        decay_rule=from_plain(planned.config, Study).recipe.decay_rule,
    )  # fmt: skip


def _say_mixed(centers: Sequence[RunResult], reruns: Sequence[RunResult]) -> list[str]:
    """A sentence for every kind in which the reruns differ from the runs they are compared with."""
    from jaxscale.collect import KINDS

    words = []
    for kind in KINDS:
        before, now = ({str(one.provenance.get(kind)) for one in some if one.state == "done"}
                       for some in (centers, reruns))  # fmt: skip
        if now - before:
            words.append(f"reruns differ from the study's runs in {kind} ({', '.join(sorted(now - before))} beside "
                         f"{', '.join(sorted(before))}): that is in the differences too")  # fmt: skip
    return words


def _check_ended(folder: Path, planned: Plan) -> None:
    """A study still under way has no minimum to audit yet."""
    waiting = sum(s.state in ("planned", "running") for s in read_status(folder, planned.cells))
    if waiting:
        raise VerdictError(f"{folder}: {waiting} of {len(planned)} cells have not ended; finish them with `jaxscale "
                           f"train {folder} --all` and audit then")  # fmt: skip


def _keep_begun(whole: Plan, wanted: Plan, folder: Path) -> Plan:
    """The plan of the audit's folder: what is asked for now, and what earlier calls have begun."""
    ids = {cell.run_id for cell in wanted.cells}
    begun = {s.cell.run_id for s in read_status(folder, whole.cells) if s.step or s.state != "planned"}
    return whole.with_cells(cell for cell in whole.cells if cell.run_id in ids | begun)


def _print_cost(wanted: Plan, folder: Path, console: Console) -> None:
    """Every rerun, and what those that have not ended will cost."""
    table = Table(title=wanted.study, title_justify="left")
    for name in ("budget C", "d", "L", "N", "tokens D", "steps", "seed", "lr", "weight decay", "time", "state"):
        table.add_column(name, justify="right")
    statuses = read_status(folder, wanted.cells)
    for status in statuses:
        table.add_row(*_cost_row(status.cell), status.state)
    console.print(table)
    left = [s.cell for s in statuses if s.state in ("planned", "running")]
    chips = parse_hardware(wanted.hardware).chips
    for line in wanted.assumptions:
        console.print(f"  assumed: {line}", soft_wrap=True)
    console.print(f"  to train: {len(left)} of {len(wanted)} runs, {format_flops(sum(c.flops for c in left))} FLOPs, "
                  f"{format_seconds(sum(c.seconds for c in left))} on {wanted.hardware} ({chips} "
                  f"{'cores' if wanted.hardware.startswith('cpu') else 'chips'}), compiling not counted",
                  soft_wrap=True)  # fmt: skip


def _cost_row(cell: Cell) -> list[str]:
    spec = cell.spec
    return [
        format_flops(spec.budget_flops), str(spec.model.d_model), str(spec.model.n_layers),
        format_count(cell.n_params), format_count(spec.tokens), f"{spec.steps:,}", str(spec.seed), f"{spec.lr:g}",
        f"{spec.weight_decay:.4g}", format_seconds(cell.seconds),
    ]  # fmt: skip
