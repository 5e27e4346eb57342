"""The batch of each cell of a study from a measured critical batch size: recipe.batch_from, a BATCH.json -> the rule.

The file has B_crit = A E_min^a (`jaxscale batch`), E_min the fewest tokens to a loss. A run at batch_critical = c times
B_crit takes D = E_min (1 + c), so for a cell of D tokens

    batch = c B_crit = c A (1 + c)^-a D^a

which is the batch rule with another coefficient and exponent: `settle_batch` puts them there, and nothing below it
knows of the file. What gives a batch its meaning must agree and is refused where it does not: text and tokenizer,
parameterization, optimizer, objective, architecture. Context length and a table that says nothing of these are told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxscale.config import Study
from jaxscale.errors import MisuseError
from jaxscale.format import format_count, format_factor
from jaxscale.plain import read_json
from jaxscale.runs import RunSpec

__all__ = ["SCHEMA", "BatchLaw", "find_batch", "read_batch", "settle_batch", "tell_batch"]

SCHEMA = "jaxscale.batch_study/1"
REFUSED = ("tokenizer", "vocab_size", "parameterization", "objective", "architecture", "optimizer")
FAR = 100.0
"""Factor in D beyond what was measured from which the plan warns."""


@dataclass(frozen=True)
class BatchLaw:
    """B_crit = A E_min^a tokens, measured at E_min from `low` to `high` tokens; `notes` say what to doubt."""

    A: float
    a: float
    a_interval: tuple[float | None, float | None]
    low: float
    high: float
    source: str
    notes: tuple[str, ...] = ()

    def coefficient(self, critical: float) -> float:
        """Of the batch rule, coefficient * D^a, that keeps every run at `critical` times its B_crit.

        >>> law = BatchLaw(A=2.0, a=0.5, a_interval=(None, None), low=1e5, high=1e6, source="")
        >>> round(law.coefficient(1.0) * 2e6**0.5), law.A * 1e6**0.5  # a run at B_crit takes twice its fewest tokens
        (2000, 2000.0)
        """
        return float(critical * self.A * (1 + critical) ** -self.a)

    def reach(self, tokens: float, critical: float) -> float:
        """How many times beyond the E_min measured a run of `tokens` lies, above or below; 1 within them."""
        fewest = tokens / (1 + critical)
        return max(fewest / self.high, self.low / fewest, 1.0)


def find_batch(path: str | Path) -> Path:
    """The file that recipe.batch_from means: relative to the working directory, `~` expanded, a folder's batch.json."""
    file = Path(path).expanduser()
    return file / "batch.json" if file.is_dir() else file


def settle_batch(study: Study, data_sha256: str = "") -> tuple[Study, BatchLaw | None]:
    """The study with the law of recipe.batch_from as its batch rule, and that law; itself and None without one."""
    recipe = study.recipe
    if not recipe.batch_from:
        return study, None
    law = read_batch(recipe.batch_from, study, data_sha256=data_sha256)
    rule = replace(
        recipe, batch_from="", batch_coefficient=law.coefficient(recipe.batch_critical), batch_exponent=law.a
    )
    return replace(study, recipe=rule), law


def read_batch(path: str | Path, study: Study, *, data_sha256: str = "") -> BatchLaw:
    """The law for a study from the result of `jaxscale batch`; `data_sha256`: its training text, where known.

    MisuseError for a file that is none, has no law of D, or was measured on what means something else.
    """
    file = find_batch(path)
    where = f"recipe.batch_from: {file}"
    try:
        plain = read_json(file)
    except MisuseError as error:
        raise MisuseError(f"recipe.batch_from: {error}; make it with `jaxscale batch DIR --out batch.json`") from error
    found = plain.get("schema") if isinstance(plain, dict) else None
    if found != SCHEMA:
        raise MisuseError(f"{where}: schema {found!r} is not {SCHEMA!r}; give what `jaxscale batch DIR --out` wrote")
    law, identity = _find_law(plain, where), plain.get("identity")
    if not isinstance(identity, dict):
        raise MisuseError(f"{where}: no 'identity' there; run `jaxscale batch` again")
    notes = _check_identity(where, identity, study, data_sha256)
    A, a, low, high = (float(law[name]) for name in ("A", "a", "x_low", "x_high"))
    interval = (law.get("a_low"), law.get("a_high"))
    return BatchLaw(A, a, interval, low, high, str(file), tuple(notes))


def _find_law(plain: dict[str, Any], where: str) -> dict[str, Any]:
    laws = plain.get("laws")
    rows = [row for row in laws if isinstance(row, dict) and row.get("of") == "D"] if isinstance(laws, list) else []
    if not rows:
        raise MisuseError(f"{where}: has no law of B_crit over D; it takes two targets or more, as from several "
                          f"horizons")  # fmt: skip
    for name in ("A", "a", "x_low", "x_high"):
        value = rows[0].get(name)
        if not isinstance(value, int | float) or not math.isfinite(value) or (name != "a" and value <= 0):
            raise MisuseError(f"{where}: its law of D has {name} {value!r}; run `jaxscale batch` again")
    return rows[0]


def _check_identity(where: str, identity: dict[str, Any], study: Study, data_sha256: str) -> list[str]:
    """Refuse what means something else; say what may."""
    if not identity:
        return ["WARNING: recipe.batch_from is from a table that does not say on which text and recipe it was measured"]
    own = _own(study)
    for name in REFUSED:
        if identity.get(name) != own[name]:
            raise MisuseError(f"{where}: measured with {name} {identity.get(name)} and this study has {own[name]}, so "
                              f"its batch means something else; sweep the batch of this study")  # fmt: skip
    theirs = identity.get("data_sha256") or ""
    if theirs and data_sha256 and theirs != data_sha256:
        raise MisuseError(f"{where}: measured on text {theirs[:12]} and this study's is {data_sha256[:12]}; sweep the "
                          f"batch on this text")  # fmt: skip
    if identity.get("seq_len") != own["seq_len"]:
        return [f"WARNING: B_crit was measured with contexts of {identity.get('seq_len')} tokens and this study has "
                f"{own['seq_len']}: tokens of one context are not independent, so batches in tokens may not carry "
                f"over"]  # fmt: skip
    return []


def _own(study: Study) -> dict[str, Any]:
    model = study.model
    shape = {name: getattr(model, name) for name in ("vocab_size", "parameterization", "objective", "architecture")}
    return {**shape, "seq_len": model.seq_len, "tokenizer": study.data.tokenizer, "optimizer": study.recipe.optimizer}


def tell_batch(law: BatchLaw, study: Study, specs: Sequence[RunSpec]) -> tuple[str, ...]:
    """What a plan says of its batches: the law, where it is from, how far it is carried, what bounds cut off."""
    recipe, c = study.recipe, study.recipe.batch_critical
    low, high = law.a_interval
    doubt = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else " (its error is not known)"
    told = [
        f"batch: {c:g} x B_crit, B_crit = {law.A:.3g} E_min^{law.a:.2f}{doubt} and E_min = D / {1 + c:g}, measured at "
        f"E_min of {format_count(law.low)} to {format_count(law.high)} tokens in {law.source}; "
        f"recipe.batch_coefficient and batch_exponent are not read",
        *law.notes,
    ]
    reach = max(law.reach(spec.tokens, c) for spec in specs)
    if reach > FAR:
        told.append(f"WARNING: the farthest cell lies {format_factor(reach)} beyond the E_min at which B_crit was "
                    f"measured, more than {FAR:g}x; the exponent decides its batch")  # fmt: skip
    bounds = (recipe.batch_min_tokens, recipe.batch_max_tokens)
    wanted = [law.coefficient(c) * spec.tokens**law.a for spec in specs]
    cut = sum(not bounds[0] <= value <= bounds[1] for value in wanted)
    if cut:
        told.append(f"{cut} of {len(specs)} batches end at recipe.batch_min_tokens {bounds[0]} or batch_max_tokens "
                    f"{bounds[1]}, away from {c:g} x B_crit")  # fmt: skip
    return tuple(told)
