"""What variants must have in common: the validation text always, everything else unless it is what they compare.

A variant declares the fields it changes (variants.json); for tables from outside --allow names what differs on purpose.
Losses per token of different tokenizers do not compare; bits per byte of the same text do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from jaxscale.compare.read import Table
from jaxscale.source import label_budgets

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ALLOWED", "Common", "check_common"]

ALLOWED = ("seed", "data_sha256", "seq_len", "tokenizer", "vocab_size")
"""What may differ by declaration; the last two only where bits per byte are known."""
FIELDS = {"data_sha256": ("data.",), "seq_len": ("model.seq_len",), "seed": ("grid.seeds",)}
"""Fields of a study whose change explains the difference."""
SAYS = {"val_sha256": "validation text", "validation": "validation text", "data_sha256": "training text",
        "seq_len": "context length", "tokenizer": "tokenizer", "vocab_size": "vocabulary",
        "objective": "objective"}  # fmt: skip


@dataclass(frozen=True)
class Common:
    """The column to compare, why the variants cannot be compared (else empty), and what to know."""

    loss: str
    problem: str = ""
    notes: tuple[str, ...] = ()


def check_common(table: Table, names: tuple[str, ...], allow: Sequence[str]) -> Common:
    """Whether the variants measure the same thing."""
    for name in ("val_sha256", "validation"):
        if words := _differ(table, names, name):
            others = _differ(table, names, "tokenizer")
            way_out = "set data.val_bytes, one text for every tokenizer" if others else "validate all on one"
            return Common("loss", f"{words}: losses on different texts do not compare; {way_out}")
    loss, notes = "loss", []
    if words := _differ(table, names, "objective"):
        notes.append(f"{words}: under masked_diffusion the loss is an upper bound of the text's, not its own")
    for name in ("tokenizer", "vocab_size"):
        if not (words := _differ(table, names, name)):
            continue
        if "bits_per_byte" not in table.frame or not (table.frame["bits_per_byte"] > 0).all():
            return Common("loss", f"{words}, and not every run has bits_per_byte: losses per token of different "
                          f"tokenizers do not compare")  # fmt: skip
        loss = "bits_per_byte"
        notes.append(f"{words}: compared in bits per byte")
        if "validation" in table.frame and "val_sha256" not in table.frame:
            notes.append("as many validation tokens of another tokenizer are not the same stretch of text, unless they "
                         "are all that was held out")  # fmt: skip
    for name in ("data_sha256", "seq_len"):
        if name in allow or _declared(table, name):
            continue
        if words := _differ(table, names, name):
            return Common(loss, f"{words} by accident: train all on the same, or say --allow {name} if that is the "
                          f"question")  # fmt: skip
    if "seed" not in allow and not _declared(table, "seed") and (words := _other_seeds(table, names)):
        return Common(loss, words)
    return Common(loss, notes=tuple(notes))


def _declared(table: Table, name: str) -> bool:
    return any(field.startswith(FIELDS[name]) for field in table.declared)


def _differ(table: Table, names: tuple[str, ...], column: str) -> str:
    """Two variants whose values of a column are not the same; empty where all are."""
    if column not in table.frame:
        return ""
    values: dict[str, list[Any]] = {name: sorted(set(map(str, table.of(name)[column].dropna()))) for name in names}
    for a, b in combinations([name for name in names if values[name]], 2):
        if values[a] != values[b]:
            return (f"variants {a} and {b} differ in {SAYS[column]} ({', '.join(values[a])[:40]} and "
                    f"{', '.join(values[b])[:40]})")  # fmt: skip
    return ""


def _other_seeds(table: Table, names: tuple[str, ...]) -> str:
    """Seeds decide the order of the data: where two variants share a budget one has the other's, or more."""
    frame = table.frame
    if "seed" not in frame or frame["seed"].isna().any():
        return ""
    labelled = frame.assign(_budget=_label(frame))
    for a, b in combinations(names, 2):
        one, two = (_seeds(labelled[labelled["variant"] == name]) for name in (a, b))
        for budget in one.keys() & two.keys():
            if not (one[budget] <= two[budget] or two[budget] <= one[budget]):
                said = (", ".join(map(str, sorted(seeds[budget]))) for seeds in (one, two))
                C = float(frame["C"][labelled["_budget"] == budget].median())
                return (f"variants {a} and {b} differ in data order by accident: seeds {next(said)} and {next(said)} "
                        f"at {C:.3g} FLOPs; train both with the same, or say --allow seed")  # fmt: skip
    return ""


def _label(frame: pd.DataFrame) -> list[Any]:
    """The budget of every row: its label, or the cluster of its C."""
    if "budget" in frame and frame["budget"].notna().all():
        return list(frame["budget"])
    return list(label_budgets(frame["C"].to_numpy(float)))


def _seeds(frame: pd.DataFrame) -> dict[Any, set[Any]]:
    """Seeds by budget."""
    return {key: set(part) for key, part in frame.groupby("_budget")["seed"]}
