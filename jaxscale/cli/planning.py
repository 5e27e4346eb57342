"""The plan in a study's folder: made with the text's own size, held against the one whose runs have begun, written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jaxscale.batchlaw import find_batch
from jaxscale.cli.data import build_data, text_is_here
from jaxscale.config import EVAL_FIELDS, Study
from jaxscale.errors import MisuseError
from jaxscale.leases import SWEEPS
from jaxscale.limits import check_limits
from jaxscale.plain import from_plain, to_plain, write_json
from jaxscale.plan import grow_plan, plan_isoflop
from jaxscale.rates import find_sweep
from jaxscale.runs import Plan
from jaxscale.sweep import read_plan, read_status
from jaxscale.vary import vary_study

if TYPE_CHECKING:
    pass

__all__ = ["differing_fields", "hold_folder", "keep_added", "make_any_plan", "write_plan"]

EXECUTION_FIELDS = ("mesh", "launch", "hardware", "bootstrap", "forecast_flops")
"""Study fields that may change under a half-finished study: they do not change what is measured."""
LOOKING_FIELDS = ("data.cache", *(f"recipe.{name}" for name in EVAL_FIELDS))
"""Others of that kind, inside of parts that decide the rest."""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """One `run` at a time in a study folder."""
    _make_folder(folder)
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MisuseError(f"{folder}: another jaxscale process is at work there; wait for it, or give this one "
                              f"another --out") from None  # fmt: skip
        yield


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise MisuseError(f"{folder}: is a file, not a folder; choose another --out") from None
    if not os.access(folder, os.W_OK):
        raise MisuseError(f"{folder}: cannot be written to; choose another --out")


def _make_plan(study: Study, console: Console) -> Plan:
    """Plan with the text's own size; a text that is declared need not be on this machine."""
    check_limits(study)  # before the text is read, which may take long
    if study.data.declared_train_tokens is not None and not text_is_here(study.data):
        return plan_isoflop(study)
    info = build_data(study.data, console)
    entries = info["vocab_size"]
    if entries > study.model.vocab_size:
        raise MisuseError(f"model.vocab_size: {study.model.vocab_size} is smaller than the {entries} entries of "
                          f"tokenizer {study.data.tokenizer}; use at least {entries}")  # fmt: skip
    return plan_isoflop(study, train_tokens=info["train_tokens"], data_sha256=info["data_sha256"])


def write_plan(study: Study, folder: Path, console: Console) -> Plan:
    """Plan, compare with what the folder holds, and write it there."""
    _make_folder(folder)
    kept, gone = _keep_plan(study, folder)
    if kept is not None:
        console.print(f"{gone}; the {'rates' if 'lr_from' in gone else 'batches'} in {folder}/plan.json hold")
        return kept
    planned, write = make_any_plan(study, folder, console)
    if (folder / "plan.json").exists():
        old = read_plan(folder)
        if planned.untuned and not old.untuned and old.config == planned.config and _has_begun(old, folder):
            console.print(f"runs of the sweeps in {folder}/{SWEEPS} are gone; the rates in {folder}/plan.json hold")
            return old
        planned = keep_added(old, planned)
        _check_unchanged(old, planned, folder)
    write(planned)
    return planned


def make_any_plan(study: Study, folder: Path | None, console: Console) -> tuple[Plan, Callable[[Plan], None]]:
    """The plan, and what writes it into the folder once it is agreed to."""
    if not vary_study(study):
        planned = _make_plan(study, console)
        return planned, lambda plan: write_json(Path(folder or "") / "plan.json", plan.to_json())
    from jaxscale.cli.variants import make_variant_plan, print_sweeps, write_variant_plan

    check_limits(study)
    found = make_variant_plan(study, folder, console)
    print_sweeps(found, folder, console)
    return found.grid, lambda plan: write_variant_plan(replace(found, grid=plan), Path(folder or ""))


def _keep_plan(study: Study, folder: Path) -> tuple[Plan | None, str]:
    """The folder's own plan of this very study, where a file of its rates or batches is no longer there; which."""
    sources = {"lr_from": find_sweep, "batch_from": find_batch}
    paths = {name: getattr(study.recipe, name) for name in sources}
    gone = [
        f"recipe.{name}: {path} is gone" for name, path in paths.items() if path and not sources[name](path).exists()
    ]
    if not gone or not (folder / "plan.json").exists():
        return None, ""
    planned = read_plan(folder)
    return planned if planned.config == to_plain(study) else None, gone[0]


def _check_unchanged(old: Plan, new: Plan, folder: Path) -> None:
    """Refuse a plan that differs from the one whose runs have begun, naming the difference."""
    if _identity(old) == _identity(new) or _only_adds(old, new) or not _has_begun(old, folder):
        return
    names = set(differing_fields(old.config, new.config))
    changed = [
        f"{name} was {before!r}, now {after!r}"
        for name, before, after in _differences(old.config, new.config)
        if name in names
    ]
    if old.data_sha256 and new.data_sha256 and old.data_sha256 != new.data_sha256:
        changed.insert(0, f"the training text was {old.data_sha256[:12]}, now {new.data_sha256[:12]}")
    what = "; ".join(changed[:3]) or "the planner changed"
    raise MisuseError(f"{folder}: its runs follow another plan ({what}); give the new plan another --out, or remove "
                      f"the folder")  # fmt: skip


def _identity(planned: Plan) -> tuple[Any, ...]:
    """What may not change once runs have begun: the runs, their text, the rule that refuses some, the declared law."""
    runs = frozenset((cell.run_id, cell.role) for cell in planned.cells)
    study = from_plain(planned.config, Study)  # a plan of before a field was there has its default
    return runs, planned.data_sha256, study.grid.exclude_spike, study.declared


def _only_adds(old: Plan, new: Plan) -> bool:
    """Whether the new plan is the old one with more variants: every run of before stays what it was, for the same."""
    if not old.variants or set(differing_fields(old.config, new.config)) != {"variants"}:
        return False
    known = {cell.run_id: cell for cell in new.cells}
    pairs = [(cell, known.get(cell.run_id)) for cell in old.cells]
    return all(
        now is not None and now.role == was.role and set(was.variants) <= set(now.variants)
        and new.text_of(now) == old.text_of(was)
        for was, now in pairs
    )  # fmt: skip


def keep_added(old: Plan, new: Plan) -> Plan:
    """The new plan with the cells that `plan --next K --add` put into the old one, where both are of one study."""
    known = {cell.run_id for cell in new.cells}
    added = tuple(cell for cell in old.cells if cell.run_id not in known)
    changed = differing_fields(old.config, new.config)
    whole = known <= {cell.run_id for cell in old.cells}
    if changed or not added or not whole or any(cell.role != "grid" for cell in added):
        return new
    return grow_plan(new, added)


def differing_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted names of the fields of two plain studies that differ, but for those of their execution."""
    filled = [to_plain(from_plain(config, Study)) for config in (old, new)]  # a field of later has its default
    return [
        name
        for name, _, _ in _differences(*filled)
        if name.split(".")[0] not in EXECUTION_FIELDS and name not in LOOKING_FIELDS
    ]


def _has_begun(planned: Plan, folder: Path) -> bool:
    return any(status.step or status.state != "planned" for status in read_status(folder, planned.cells))


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old, new) of every leaf that differs between two plain configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new})
        return [d for n in names for d in _differences(old.get(n), new.get(n), f"{prefix}.{n}" if prefix else n)]
    return [] if old == new else [(prefix, old, new)]
