"""Tables of a plan for people, and the console they go to."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from rich.console import Console
from rich.table import Table

from jaxscale.flops import PF_DAY_FLOPS
from jaxscale.format import format_count, format_flops, format_seconds
from jaxscale.hardware import parse_hardware
from jaxscale.runs import Cell, Plan

__all__ = ["STYLES", "make_console", "plan_table", "print_plan"]

STYLES = {"done": "green", "running": "cyan", "diverged": "red", "failed": "red", "planned": "dim",
          "censored": "yellow"}  # fmt: skip
"""Colours of the states of a run."""


def make_console() -> Console:
    """A console on stdout; wide enough for the tables when nobody watches."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def print_plan(plan: Plan, console: Console) -> None:
    """Cells, dropped sizes with reasons, assumptions and totals."""
    console.print(plan_table(plan))
    if plan.dropped:
        console.print(_dropped_table(plan))
    for line in plan.assumptions:
        console.print(f"  assumed: {line}")
    hardware = parse_hardware(plan.hardware)
    chip_hours = plan.total_seconds * hardware.chips / 3600
    console.print(
        f"  in all: {len(plan)} cells, {format_flops(plan.total_flops)} FLOPs = "
        f"{plan.total_flops / PF_DAY_FLOPS:.3g} PF-days, {format_seconds(plan.total_seconds)} on "
        f"{plan.hardware} ({chip_hours:.3g} {'core' if hardware.name == 'cpu' else 'chip'}-hours)"
    )
    trunks = sum(cell.role == "trunk" for cell in plan.cells)
    if trunks:
        alone = sum(cell.flops for cell in plan.cells if cell.role != "trunk")
        console.print(
            f"  {trunks} trunks, counted once, and {len(plan) - trunks} runs that are evidence; these as runs of their "
            f"own: {format_flops(alone)} FLOPs, so {plan.total_flops / alone:.0%} is paid\n"
            f"  from S: a branch, the decay of its size's trunk from step S on"
        )


def plan_table(plan: Plan) -> Table:
    """One row a cell; repeated seeds of a cell are one row."""
    table = Table(title=f"plan of {plan.study}", title_justify="left")
    for name in ("budget C", "L", "d", "heads", "N total", "N non-emb", "tokens D", "D/N", "steps", "batch",
                 "lr", "exact FLOPs", "off", "6ND", "epochs", "seeds", "time"):  # fmt: skip
        table.add_column(name, justify="right")
    table.add_column("", justify="right", no_wrap=True)
    for _, group in groupby(plan.cells, key=_section):
        cells = list(group)
        counted = Counter(_shape(cell) for cell in cells)
        firsts = {_shape(cell): cell for cell in reversed(cells)}
        for shape in sorted(counted):
            table.add_row(*_plan_row(firsts[shape], counted[shape]))
        table.add_section()
    return table


def _section(cell: Cell) -> float | str:
    """Cells that stand together: those of a budget, or all trunks."""
    return "trunk" if cell.role == "trunk" else cell.spec.budget_flops


def _shape(cell: Cell) -> tuple[int, int]:
    return cell.n_params, cell.spec.tokens


def _plan_row(cell: Cell, seeds: int) -> list[str]:
    spec, model, trunk = cell.spec, cell.spec.model, cell.role == "trunk"
    return [
        "trunk" if trunk else format_flops(spec.budget_flops),
        str(model.n_layers),
        str(model.d_model),
        str(model.n_heads) if model.kv_groups == 1 else f"{model.n_heads}/{model.n_kv_heads}",
        format_count(cell.n_params),
        format_count(cell.n_params_non_embedding),
        format_count(spec.tokens),
        f"{spec.tokens / cell.n_params:.3g}",
        f"{spec.steps:,}",
        f"{spec.batch_seqs}x{model.seq_len}",
        f"{spec.lr:g}",
        format_flops(cell.flops, 4),
        "" if trunk else f"{cell.flops / spec.budget_flops - 1:+.2%}",
        format_flops(cell.flops_6nd),
        "" if cell.epochs is None else f"{cell.epochs:.2f}",
        str(seeds),
        format_seconds(cell.seconds * seeds),
        _remark(cell),
    ]


def _remark(cell: Cell) -> str:
    """What else a reader should know of a cell."""
    spec = cell.spec
    if spec.keeps:
        return f"{len(spec.keeps)} branches"
    if spec.parent:
        return f"from {spec.parent_step:,}"
    return "held out" if cell.role == "holdout" else ""


def _dropped_table(plan: Plan) -> Table:
    table = Table(title="left out", title_justify="left")
    for name in ("budget C", "L", "d", "N total", "tokens D"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for drop in plan.dropped:
        table.add_row(
            format_flops(drop.budget_flops), str(drop.n_layers), str(drop.d_model), format_count(drop.n_params),
            format_count(drop.tokens), drop.reason,
        )  # fmt: skip
    return table
