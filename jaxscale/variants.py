"""One plan of many variants: cells that do not differ are trained once, and everything says whom it serves.

Two cells are one where their run ids agree, that is where nothing that decides a run's result differs. A study is
validated on one text whatever is varied: variants with other validation tokens under one tokenizer are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from jaxscale.config import Study
from jaxscale.errors import MisuseError
from jaxscale.format import format_count
from jaxscale.plain import to_plain
from jaxscale.plan import plan_isoflop
from jaxscale.runs import Cell, Dropped, Plan
from jaxscale.vary import vary_study

__all__ = ["NO_TEXT", "Text", "list_differing", "merge_plans", "plan_study", "plan_variants"]

T = TypeVar("T")
ROLES = ("trunk", "sweep", "grid", "holdout")
"""The order in which a plan lists its cells; within a role by budget."""


@dataclass(frozen=True)
class Text:
    """What a plan knows of a variant's text; zeros and empty where it is not on the machine."""

    train_tokens: int = 0
    data_sha256: str = ""
    tokenizer: str = ""
    """Its name, or the SHA-256 of its file: BPEs of one size are others on other text."""
    val_sha256: str = ""
    """Of the validation tokens."""
    val_bytes: int = 0
    """0: also where it is not known."""


NO_TEXT = Text()


def list_differing(config: Mapping[str, Any]) -> list[str]:
    """Dotted fields in which the variants of a study, as plain data, differ by their own word; rising."""
    changed = [change for variant in config.get("variants", ()) for change in variant["changes"]]
    return sorted({change.partition("=")[0].strip() for change in changed})


def plan_study(study: Study) -> Plan:
    """The plan of a study with or without variants whose text is not looked at."""
    return plan_variants(study) if study.variants else plan_isoflop(study)


def plan_variants(
    study: Study, texts: Mapping[str, Text] | None = None, sweeps: Mapping[str, str] | None = None
) -> Plan:
    """The grids of all variants as one plan; `texts` and `sweeps` (sweep.json, for recipe.lr_from) by variant.

    With tuning and without a variant's sweep its rates are those of recipe.lr, and `untuned` names it. MisuseError: as
    `vary_study` and `plan_isoflop`, naming the variant; variants that are validated on different text.
    """
    texts, sweeps = texts or {}, sweeps or {}
    studies = vary_study(study)
    _check_validation({name: texts.get(name, NO_TEXT) for name in studies})
    plans = {}
    for name, own in studies.items():
        text = texts.get(name, NO_TEXT)
        own = replace(own, recipe=replace(own.recipe, lr_from=sweeps.get(name, own.recipe.lr_from)))
        try:
            plans[name] = plan_isoflop(own, train_tokens=text.train_tokens or None, data_sha256=text.data_sha256)
        except MisuseError as error:
            raise MisuseError(f"variant {name}: {error}") from error
    untuned = tuple(name for name in studies if name not in sweeps) if study.tuning.rates else ()
    return replace(merge_plans(study, plans), untuned=untuned)


def merge_plans(study: Study, plans: Mapping[str, Plan]) -> Plan:
    """The plans of a study's variants as one: equal cells once, what was dropped and assumed with its variants' names.

    MisuseError where one run is to be fitted for one variant and held out for another.
    """
    cells: dict[str, Cell] = {}
    for name, plan in plans.items():
        for cell in plan.cells:
            known = cells.get(cell.run_id, cell)
            if known.role != cell.role:
                raise MisuseError(f"variants: run {cell.run_id} is {known.role} for {', '.join(known.variants)} and "
                                  f"{cell.role} for {name}; give both the same budgets")  # fmt: skip
            cells[cell.run_id] = replace(known, variants=(*known.variants, name))
    ordered = sorted(cells.values(), key=lambda cell: (ROLES.index(cell.role), cell.spec.budget_flops))
    hashes = {name: plan.data_sha256 for name, plan in plans.items()}
    differ = len(set(hashes.values())) > 1
    return Plan.of_cells(
        ordered,
        study=study.name,
        dropped=_merge_dropped(plans),
        assumptions=(*_merge_assumptions(plans), *_tell_equal(plans)),
        config=to_plain(study),
        hardware=study.hardware,
        data_sha256=_hash(hashes) if differ else next(iter(hashes.values())),
        data_by_variant=hashes if differ else {},
    )


def _hash(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(hashes), sort_keys=True).encode()).hexdigest()


def _merge_dropped(plans: Mapping[str, Plan]) -> tuple[Dropped, ...]:
    whose = _group((drop, name) for name, plan in plans.items() for drop in plan.dropped)
    found = [replace(drop, variants=names) for drop, names in whose.items()]
    return tuple(sorted(found, key=lambda drop: drop.budget_flops))


def _merge_assumptions(plans: Mapping[str, Plan]) -> tuple[str, ...]:
    """Every line once, with the names of those it is said of where that is not all."""
    whose = _group((line, name) for name, plan in plans.items() for line in plan.assumptions)
    return tuple(line if len(names) == len(plans) else f"{', '.join(names)}: {line}" for line, names in whose.items())


def _group(pairs: Iterable[tuple[T, str]]) -> dict[T, tuple[str, ...]]:
    found: dict[T, tuple[str, ...]] = {}
    for key, name in pairs:
        found[key] = (*found.get(key, ()), name)
    return found


def _tell_equal(plans: Mapping[str, Plan]) -> tuple[str, ...]:
    """Variants whose changes make no other run: what is compared then is nothing."""
    whose = _group((frozenset(cell.run_id for cell in plan.cells), name) for name, plan in plans.items())
    return tuple(f"WARNING: {' and '.join(names)} have the same runs: their changes alter none"
                 for names in whose.values() if len(names) > 1)  # fmt: skip


def _check_validation(texts: Mapping[str, Text]) -> None:
    """MisuseError where losses would be means over different texts."""
    seen: dict[str, tuple[str, Text]] = {}
    for name, text in texts.items():
        if not text.val_sha256:
            continue
        other, first = seen.setdefault(text.tokenizer, (name, text))
        if first.val_sha256 != text.val_sha256:
            sizes = [f"{format_count(one.val_bytes)} bytes, " if one.val_bytes else "" for one in (first, text)]
            raise MisuseError(
                f"variants: {other} and {name} would be validated on different text "
                f"({sizes[0]}{first.val_sha256[:12]}, and {sizes[1]}{text.val_sha256[:12]}), so that their losses say "
                f"nothing of each other; name one text for all by data.val_files, and leave data.val_tokens, "
                f"data.val_bytes and data.val_fraction alone"
            )
