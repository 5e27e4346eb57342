"""A study folder or a table -> the runs of each variant, and what is known about how they were made.

Rows need a column `variant` beside those of any source (jaxscale.source). Further columns are read where they are:
seconds, flops_per_s (speed), bits_per_byte, tuning_trials, and what must not differ by accident (check.py).
Of a study folder every run's result and spec are asked as well, and DIR/variants.json says what each variant changes
and how it was tuned.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.cells import grid_rows, merge_repeats
from jaxscale.plain import read_json
from jaxscale.runs import Observations, read_spec, run_dir
from jaxscale.source import read_observations, read_raw
from jaxscale.sweep import read_plan, read_result
from jaxscale.where import column_of, select_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EXTRA", "Table", "read_variants"]

EXTRA = ("variant", "seconds", "flops_per_s", "bits_per_byte", "device_kind", "tokenizer", "vocab_size", "seq_len",
         "data_sha256", "val_sha256", "objective", "tuning_trials", "lr")  # fmt: skip
"""Columns of a comparison beside the canonical ones."""
NUMBERS = ("seconds", "flops_per_s", "bits_per_byte", "tuning_trials", "lr")
SCHEMA = "jaxscale.variants/1"
PROVENANCE = ("data_sha256", "val_sha256", "tokenizer", "device_kind", "objective")


@dataclass(frozen=True)
class Table:
    """Runs that may be fitted, one row a (run, variant); `names` in the order of the study or of the table.

    `refused`: reasons by variant. `described`: the records of variants.json by name, empty for a table from outside.
    `rule`: the learning-rate sweep that the study declares.
    """

    frame: pd.DataFrame
    names: tuple[str, ...]
    refused: dict[str, list[str]]
    source: dict[str, Any]
    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def declared(self) -> tuple[str, ...]:
        """Dotted fields in which some variant differs by its declaration."""
        return tuple(dict.fromkeys(name for one in self.described.values() for name in one.get("declared", ())))

    def of(self, name: str) -> pd.DataFrame:
        """The rows of one variant."""
        return self.frame[self.frame["variant"] == name]


def read_variants(
    source: Any, *, columns: Mapping[str, str] | None = None, where: str | None = None, variants: Sequence[str] = (),
    **conventions: Any,
) -> Table:  # fmt: skip
    """Read a study folder, CSV, Parquet or DataFrame; `variants` keeps only some. MisuseError: no column variant, an
    unknown name; VerdictError: fewer than two variants."""
    folder = Path(source) if isinstance(source, str | Path) and (Path(source) / "plan.json").is_file() else None
    table = _read_study(folder, where) if folder else _read_table(source, dict(columns or {}), where, conventions)
    table = _keep(table, variants)
    frame = table.frame[grid_rows(table.frame)]
    parts = [merge_repeats(frame[frame["variant"] == name]) for name in table.names]
    frame = _concat([part for part, _ in parts], frame)
    return replace(table, frame=frame.reset_index(drop=True))


def _concat(parts: list[pd.DataFrame], like: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    parts = [part for part in parts if len(part)]
    return pd.concat(parts) if parts else like.iloc[:0]


def _keep(table: Table, asked: Sequence[str]) -> Table:
    for name in asked:
        if name not in table.names:
            near = difflib.get_close_matches(name, table.names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(table.names)}"
            raise MisuseError(f"variants: no variant {name!r}; {hint}")
    names = tuple(name for name in table.names if not asked or name in asked)
    if len(names) < 2:
        raise VerdictError(f"one variant only ({', '.join(names)}): there is nothing to compare it with; "
                           f"`jaxscale fit --where \"variant == '{names[0]}'\"` fits its law")  # fmt: skip
    described = {name: one for name, one in table.described.items() if name in names}
    return replace(table, names=names, described=described, frame=table.frame[table.frame["variant"].isin(names)])


def _read_table(source: Any, columns: dict[str, str], where: str | None, conventions: dict[str, Any]) -> Table:
    """A table from anywhere; extra columns are found by the number of their row."""
    import pandas as pd

    if isinstance(source, Observations):
        raw, obs = source.frame, source
    else:
        raw, _ = read_raw(source)
        own = {name: theirs for name, theirs in columns.items() if name not in EXTRA}
        obs = read_observations(source, columns=own, where=where, **conventions)
    if columns.get("variant", "variant") not in raw.columns:
        raise MisuseError(f"columns: variant is missing; map the column that names the variant as variant=NAME, "
                          f"the table has {', '.join(map(str, raw.columns))}")  # fmt: skip
    frame = obs.frame.copy()
    rows = frame["row"].to_numpy() if "row" in frame else np.arange(len(frame))
    for name in EXTRA:
        theirs = columns.get(name, name)
        if name in columns or theirs in raw.columns:
            frame[name] = column_of(raw, theirs, "columns").iloc[rows].to_numpy()
    for name in NUMBERS:
        if name in frame:
            frame[name] = pd.to_numeric(frame[name], errors="coerce").astype(float)
    all_names = column_of(raw, columns.get("variant", "variant"), "columns")
    unnamed = frame["variant"].isna()
    frame, labels = frame[~unnamed].assign(variant=frame["variant"][~unnamed].astype(str)), all_names.dropna()
    notes = (f"{int(unnamed.sum())} rows name no variant and are left out",) if unnamed.any() else ()
    chosen = select_rows(raw, where) if where else np.ones(len(raw), bool)
    names = tuple(dict.fromkeys(labels[chosen[labels.index]].astype(str)))
    refused: dict[str, list[str]] = {}
    for one in obs.refused:
        owner = all_names.iloc[one["row"]] if "row" in one else None
        refused.setdefault("" if owner is None or pd.isna(owner) else str(owner), []).append(
            f"row {one.get('row')}: {one['reason']}"
        )
    return Table(frame, names, refused, dict(obs.source), notes=notes)


def _read_study(folder: Path, where: str | None) -> Table:
    from jaxscale.collect import collect_runs

    obs = collect_runs(folder)
    if "variant" not in obs.frame:
        raise MisuseError(f"{folder}: the study has no variants; give it a `variants` block, or a table with a column "
                          f"variant")  # fmt: skip
    chosen = select_rows(obs.frame, where) if where else np.ones(len(obs.frame), bool)
    frame = _ask_runs(obs.frame[chosen].reset_index(drop=True), folder)
    described = _read_described(folder / "variants.json")
    plan = read_plan(folder)
    refused: dict[str, list[str]] = {}
    for one in obs.refused:
        for name in one.get("variants", ()):
            if not str(one["reason"]).startswith("trunk"):
                refused.setdefault(name, []).append(f"run {one['run_id']}: {one['reason']}")
    return Table(frame, plan.variants, refused, dict(obs.source), described, dict(plan.config.get("tuning", {})))


def _ask_runs(frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Columns that the results and specs of the runs know: what was validated on, the device, the tokenizer."""
    known: dict[str, dict[str, Any]] = {}
    for run_id in frame["run_id"].unique():
        place = run_dir(folder, str(run_id))
        result, spec = read_result(place / "result.json"), read_spec(place / "spec.json")
        told = {name: result.provenance[name] for name in PROVENANCE if name in result.provenance}
        if "val_text_sha256" in result.provenance:  # of the text, which tokens of another tokenizer share
            told["val_sha256"] = result.provenance["val_text_sha256"]
        data = spec.data
        text = f"{data.val_files or data.files}, val_fraction {data.val_fraction:g}, val_tokens {data.val_tokens}"
        known[run_id] = {"validation": text, "seq_len": spec.model.seq_len, "seconds": result.seconds,
                         "flops_per_s": result.flops_per_s, **told}  # fmt: skip
    columns = list(dict.fromkeys(name for one in known.values() for name in one))
    frame = frame.copy()
    for name in columns:
        if name not in frame:
            frame[name] = [known[run_id].get(name) for run_id in frame["run_id"]]
    return frame


def _read_described(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    plain = read_json(path)
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA or not isinstance(plain.get("variants"), list):
        raise MisuseError(f"{path}: is no {SCHEMA}; `jaxscale plan` writes it anew")
    return {one["name"]: one for one in plain["variants"]}
