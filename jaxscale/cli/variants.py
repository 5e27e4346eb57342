"""The plan of a study with variants, in its folder: their texts, their sweeps, their grid, and who they are.

    DIR/plan.json                 the grid of all; while a sweep has not ended its rates are provisional (`untuned`)
    DIR/tuning/runs/              the sweeps' runs, a study folder of its own: `status`, `work`, `reset` take it too
    DIR/tuning/NAME/sweep.json    what a variant's sweep came to
    DIR/variants.json             names, changes, tuning

Every file follows from the study and from runs that have ended, so that a kill between any two loses nothing: the
same command finds the runs and writes the files anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jaxscale.config import DataConfig, Study, Variant
from jaxscale.errors import JaxscaleError, MisuseError, VerdictError
from jaxscale.format import format_count, format_flops, format_seconds
from jaxscale.leases import SWEEPS
from jaxscale.plain import read_json, write_json
from jaxscale.runs import Cell, Plan
from jaxscale.sweep import read_status
from jaxscale.tables import render_table
from jaxscale.variants import NO_TEXT, Text, merge_plans, plan_variants
from jaxscale.vary import declared_fields, vary_study

if TYPE_CHECKING:
    from jaxscale.mup.tune import Tuned

__all__ = ["SCHEMA", "VariantPlan", "make_variant_plan", "print_sweeps", "tune_variants", "write_variant_plan"]

SCHEMA = "jaxscale.variants/1"


@dataclass(frozen=True)
class VariantPlan:
    """The grid of all variants and, where they are tuned, their sweeps: all runs, and what has come of them."""

    study: Study
    grid: Plan
    sweeps: Plan | None
    tuned: Mapping[str, Tuned]


def make_variant_plan(study: Study, folder: Path | None, console: Console) -> VariantPlan:
    """Plan sweeps and grid by what lies in the study's folder (None: nowhere yet); writes sweep.json files only.

    VerdictError where a variant diverged at every rate of its sweep, after all that is known has been written.
    """
    studies = vary_study(study)
    texts = _read_texts(studies, console)
    if not study.tuning.rates:
        return VariantPlan(study, plan_variants(study, texts), None, {})
    sweeps, tuned = _read_sweeps(study, studies, texts, folder)
    files = {name: str(_sweep_file(folder, name)) for name in tuned if folder is not None}
    for name, file in files.items():
        write_json(Path(file), json.dumps(tuned[name].record, indent=1))
    lost = [name for name, one in tuned.items() if one.status == "diverged"]
    if lost and folder is not None:
        _write_variants(study, folder, tuned)
        raise VerdictError(f"variant {lost[0]}: its sweep has {tuned[lost[0]].reason}; lower its recipe.lr, around "
                           f"which tuning.rates lie")  # fmt: skip
    return VariantPlan(study, plan_variants(study, texts, files), sweeps, tuned)


def _sweep_file(folder: Path, name: str) -> Path:
    return folder / "tuning" / name / "sweep.json"


def _read_texts(studies: Mapping[str, Study], console: Console) -> dict[str, Text]:
    """The text of every variant, each built once; one that is declared need not be on this machine."""
    from jaxscale.cli.data import build_files, text_is_here

    known: dict[DataConfig, Text] = {}
    for name, own in studies.items():
        if own.data in known:
            continue
        if own.data.declared_train_tokens is not None and not text_is_here(own.data):
            known[own.data] = NO_TEXT
            continue
        try:
            files = build_files(own.data, console)
        except JaxscaleError as error:
            raise type(error)(f"variant {name}: {error}") from error
        written = read_json(files.folder / "meta.json")["files"]
        tokenizer = written.get("tokenizer.json", {}).get("sha256", files.info.tokenizer)
        known[own.data] = Text(files.info.train_tokens, files.info.data_sha256, tokenizer,
                               files.val_sha256, files.info.val_bytes or 0)  # fmt: skip
        _check_vocabulary(name, own, files.info.vocab_size)
    return {name: known[own.data] for name, own in studies.items()}


def _check_vocabulary(name: str, own: Study, entries: int) -> None:
    if entries > own.model.vocab_size:
        raise MisuseError(f"variant {name}: model.vocab_size: {own.model.vocab_size} is smaller than the {entries} "
                          f"entries of tokenizer {own.data.tokenizer}; use at least {entries}")  # fmt: skip


def _read_sweeps(
    study: Study, studies: Mapping[str, Study], texts: Mapping[str, Text], folder: Path | None
) -> tuple[Plan, dict[str, Tuned]]:
    """All runs of the sweeps, grown as far as the runs that have ended ask for, and the sweeps that are over."""
    from jaxscale.mup.tune import Added, extend_rates, judge_sweep, plan_variant_sweeps

    added = dict.fromkeys(studies, Added())
    tuned: dict[str, Tuned] = {}
    plans = plan_variant_sweeps(study, added, texts)
    for name, own in studies.items() if folder is not None else ():
        assert folder is not None
        while True:
            statuses = read_status(folder / SWEEPS, plans[name].cells)
            if any(status.result is None for status in statuses):
                break
            try:
                grown = extend_rates(own, study.tuning.more, statuses, added[name])
                if grown == added[name]:
                    tuned[name] = judge_sweep(own, plans[name], statuses)
                    break
            except VerdictError as error:
                raise VerdictError(f"variant {name}: {error}") from error
            added[name] = grown
            plans = plan_variant_sweeps(study, added, texts)
    return merge_plans(study, plans), tuned


def write_variant_plan(found: VariantPlan, folder: Path) -> None:
    """variants.json, the sweeps' plan and the grid's, in the order in which they are needed."""
    _write_variants(found.study, folder, found.tuned)
    if found.sweeps is not None:
        write_json(folder / SWEEPS / "plan.json", found.sweeps.to_json())
    write_json(folder / "plan.json", found.grid.to_json())


def _write_variants(study: Study, folder: Path, tuned: Mapping[str, Tuned]) -> None:
    rows = [
        {"name": variant.name, "changes": list(variant.changes), "declared": list(declared_fields(variant)),
         "tuning": _describe_tuning(study, variant, tuned.get(variant.name))}
        for variant in study.variants
    ]  # fmt: skip
    write_json(folder / "variants.json", json.dumps({"schema": SCHEMA, "variants": rows}, indent=1))


def _describe_tuning(study: Study, variant: Variant, one: Tuned | None) -> dict[str, Any]:
    """What a variant was tuned with, and what came of it; status none while it was not."""
    told = one.record.get("tuning", {}) if one else {}
    return {
        "trials": one.trials if one else 0, "step": study.tuning.step, "width": told.get("width"),
        "tokens": told.get("tokens"), "seeds": study.tuning.seeds, "flops": one.flops if one else 0.0,
        "best_lr": one.lr if one else None, "status": one.status if one else "none",
        "rates": list(one.rates) if one else [], "rule": one.rule if one else None, "reason": one.reason if one else "",
        "sweep": f"tuning/{variant.name}/sweep.json" if one else None,
    }  # fmt: skip


def tune_variants(study: Study, folder: Path, planned: Plan, console: Console) -> Plan | None:
    """Train the sweeps of all variants to their end and plan the grid by them; None when SIGTERM stopped it."""
    from jaxscale.cli.planning import write_plan
    from jaxscale.cli.study import train_pending
    from jaxscale.sweep import read_plan

    while planned.untuned:
        sweeps = read_plan(folder / SWEEPS)
        if not train_pending(folder / SWEEPS, sweeps, sweeps.cells, console):
            return None
        planned = write_plan(study, folder, console)
    return planned


def print_sweeps(found: VariantPlan, folder: Path | None, console: Console) -> None:
    """Sweeps of all variants: what they cost, and what those came to that are over."""
    if found.sweeps is None:
        return
    rows = [_sweep_row(found, variant.name, found.sweeps.cells) for variant in found.study.variants]
    columns = ("variant", "width", "tokens", "rates", "seeds", "runs", "FLOPs", "best lr", "from", "status")
    console.print(render_table("learning-rate sweeps, one rule for all", columns, rows), soft_wrap=True, markup=False)
    cells, more = found.sweeps.cells, found.study.tuning.more
    wait = [s.cell for s in read_status(folder / SWEEPS, cells) if s.result is None] if folder else list(cells)
    console.print(f"  in all: {len(cells)} runs, {format_flops(found.sweeps.total_flops)} FLOPs, "
                  f"{format_seconds(found.sweeps.total_seconds)} on {found.sweeps.hardware}; {len(wait)} of them are "
                  f"still to be trained\n  one more rate, {more} times at most, where the best is the first or the "
                  f"last", soft_wrap=True)  # fmt: skip
    if found.grid.untuned:
        console.print("  the rates of the grid below are provisional: those of recipe.lr until the sweeps have ended",
                      soft_wrap=True)  # fmt: skip


def _sweep_row(found: VariantPlan, name: str, cells: tuple[Cell, ...]) -> tuple[Any, ...]:
    mine = [cell for cell in cells if name in cell.variants]
    spec, rates = mine[0].spec, sorted({cell.spec.lr for cell in mine})
    one = found.tuned.get(name)
    lr = "" if one is None or one.lr is None else f"{one.lr:.4g}"
    told = (lr, one.rule or "", f"{one.status} {one.reason}".strip()) if one else ("", "", "to be trained")
    return (name, spec.model.d_model, format_count(spec.tokens), f"{len(rates)}: {rates[0]:.4g} to {rates[-1]:.4g}",
            found.study.tuning.seeds, len(mine), format_flops(sum(cell.flops for cell in mine)), *told)  # fmt: skip
