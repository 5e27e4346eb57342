"""Tables of a plan for people, and the console they go to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jaxscale.flops import PF_DAY_FLOPS
from jaxscale.format import format_count, format_flops, format_loss, format_seconds
from jaxscale.hardware import parse_hardware
from jaxscale.runs import Cell, Plan

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STYLES", "best_losses_table", "make_console", "name_variants", "plan_table", "print_plan"]

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
    if plan.variants:
        _print_shares(plan, console)
    trunks = sum(cell.role == "trunk" for cell in plan.cells)
    if trunks:
        alone = sum(cell.flops for cell in plan.cells if cell.role != "trunk")
        console.print(
            f"  {trunks} trunks, counted once, and {len(plan) - trunks} runs that are evidence; these as runs of their "
            f"own: {format_flops(alone)} FLOPs, so {plan.total_flops / alone:.0%} is paid\n"
            f"  from S: a branch, the decay of its size's trunk from step S on"
        )


def _print_shares(plan: Plan, console: Console) -> None:
    """What each variant costs by itself, and what sharing saves."""
    by_itself = {name: [cell for cell in plan.cells if name in cell.variants] for name in plan.variants}
    flops = {name: sum(cell.paid_flops for cell in cells) for name, cells in by_itself.items()}
    told = "; ".join(f"{name} {len(by_itself[name])} cells, {format_flops(flops[name])} FLOPs" for name in by_itself)
    console.print(f"  variants by themselves: {told}", soft_wrap=True, markup=False)
    shared = sum(len(cell.variants) > 1 for cell in plan.cells)
    apart = sum(flops.values())
    saved = f", which saves {1 - plan.total_flops / apart:.0%} of {format_flops(apart)} FLOPs" if shared else ""
    console.print(f"  shared: {shared} of {len(plan)} cells serve more than one variant{saved}", soft_wrap=True)


def name_variants(names: Sequence[str], among: Sequence[str]) -> str:
    """Whom a run serves, short: the names, or how many of how many.

    >>> name_variants(("a", "b"), ("a", "b")), name_variants(("a",), ("a", "b"))
    ('all', 'a')
    """
    if len(names) == len(among) > 1:
        return "all"
    return ", ".join(names) if len(names) < 4 else f"{len(names)} of {len(among)}"


def plan_table(plan: Plan) -> Table:
    """One row a cell; repeated seeds of a cell are one row."""
    table = Table(title=f"plan of {plan.study}", title_justify="left")
    if plan.variants:
        table.add_column("variant", no_wrap=True)
    for name in ("budget C", "L", "d", "heads", "N total", "N non-emb", "tokens D", "D/N", "steps", "batch",
                 "lr", "exact FLOPs", "off", "6ND", "epochs", "seeds", "time"):  # fmt: skip
        if name not in _left_out(plan):
            table.add_column(name, justify="right")
    table.add_column("", justify="right", no_wrap=True)
    for _, group in groupby(plan.cells, key=_section):
        cells = list(group)
        counted = Counter(_shape(cell) for cell in cells)
        firsts = {_shape(cell): cell for cell in reversed(cells)}
        for shape in sorted(counted, key=lambda one: (*_place(plan, one[2]), one)):
            whose = [name_variants(shape[2], plan.variants)] if plan.variants else []
            row = _plan_row(firsts[shape], counted[shape])
            table.add_row(*whose, *(text for name, text in row.items() if name not in _left_out(plan)))
        table.add_section()
    return table


def best_losses_table(frame: pd.DataFrame, variants: Sequence[str]) -> Table:
    """The lowest mean loss over seeds at each budget, of every variant, and its size; held-out budgets are marked."""
    table = Table(title="best losses, nats per token (N)", title_justify="left")
    table.add_column("budget C", justify="right")
    for name in variants:
        table.add_column(name, justify="right", no_wrap=True)
    means = frame.groupby(["budget", "role", "variant", "N", "D"])["loss"].mean().reset_index()
    for (budget, role), mine in means.groupby(["budget", "role"]):
        row = []
        for name in variants:
            cells = mine[mine["variant"] == name]
            best = min(cells[["loss", "N"]].itertuples(index=False), default=None)
            row.append("" if best is None else f"{format_loss(best[0])} ({format_count(best[1])})")
        table.add_row(format_flops(float(str(budget))) + " held out" * (role == "holdout"), *row)
    return table


def _section(cell: Cell) -> float | str:
    """Cells that stand together: those of a budget, or all trunks."""
    return "trunk" if cell.role == "trunk" else cell.spec.budget_flops


def _shape(cell: Cell) -> tuple[int, int, tuple[str, ...], int]:
    return cell.n_params, cell.spec.tokens, cell.variants, cell.spec.model.n_layers


def _place(plan: Plan, names: tuple[str, ...]) -> tuple[int, int]:
    """What all share first, then by variant as the study lists them."""
    return -len(names), plan.variants.index(names[0]) if names else 0


def _left_out(plan: Plan) -> tuple[str, ...]:
    """Columns that make room for the variants' names: both say how near a cell is to its budget."""
    return ("off", "6ND") if plan.variants else ()


def _plan_row(cell: Cell, seeds: int) -> dict[str, str]:
    spec, model, trunk = cell.spec, cell.spec.model, cell.role == "trunk"
    return {
        "budget C": "trunk" if trunk else format_flops(spec.budget_flops),
        "L": str(model.n_layers),
        "d": str(model.d_model),
        "heads": str(model.n_heads) if model.kv_groups == 1 else f"{model.n_heads}/{model.n_kv_heads}",
        "N total": format_count(cell.n_params),
        "N non-emb": format_count(cell.n_params_non_embedding),
        "tokens D": format_count(spec.tokens),
        "D/N": f"{spec.tokens / cell.n_params:.3g}",
        "steps": f"{spec.steps:,}",
        "batch": f"{spec.batch_seqs}x{model.seq_len}",
        "lr": f"{spec.lr:g}",
        "exact FLOPs": format_flops(cell.flops, 4),
        "off": "" if trunk else f"{cell.flops / spec.budget_flops - 1:+.2%}",
        "6ND": format_flops(cell.flops_6nd),
        "epochs": "" if cell.epochs is None else f"{cell.epochs:.2f}",
        "seeds": str(seeds),
        "time": format_seconds(cell.seconds * seeds),
        "": _remark(cell),
    }


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
    if plan.variants:
        table.add_column("variant", no_wrap=True)
    for name in ("budget C", "L", "d", "N total", "tokens D"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for drop in plan.dropped:
        table.add_row(
            *([name_variants(drop.variants, plan.variants)] if plan.variants else []),
            format_flops(drop.budget_flops), str(drop.n_layers), str(drop.d_model), format_count(drop.n_params),
            format_count(drop.tokens), drop.reason,
        )  # fmt: skip
    return table
