"""Tables from anywhere -> Observations: which rows are evidence, and why the others are not.

A source is a study folder (its observations.csv), a CSV (also .gz, .xz, .zst), Parquet, or a DataFrame.
Canonical columns: N (parameters), D (tokens), C (training FLOPs), loss (nats per token); optional budget,
U, run_id (or `run`), seed, weight, group, parent, role, family (how the learning rate came down), variant. A given C
always wins; 6 N D is computed only where the column is absent. The filter `where` is applied first, on the file's own
names, then rows are refused.

Conventions are switched here, so that every method sees the same numbers: `count` says which column N is,
`flops_rule` "6ND" recomputes C from it (budgets stay the groups they were), `loss_unit` "bits" turns bits per
token into nats. `near` keeps of each budget the sizes within a factor of its lowest cell's: a law that misses the far
arms of the curves may hold around their minima, which are what it is to extrapolate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.plain import read_json
from jaxscale.runs import Observations
from jaxscale.tuning import read_tuning
from jaxscale.variants import list_differing
from jaxscale.where import column_of, select_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BUDGET_WIDTH",
    "CANONICAL",
    "COUNTS",
    "as_observations",
    "check_one_variant",
    "keep_near",
    "label_budgets",
    "read_observations",
    "read_raw",
    "recount",
]

REQUIRED = ("N", "D", "loss")
CANONICAL = ("N", "D", "C", "loss", "budget", "U", "run_id", "seed", "weight", "group", "parent", "role",
             "N_non_embedding", "N_total", "loss_std_error", "train_loss", "family", "variant")  # fmt: skip
LOSSES = ("loss", "loss_std_error", "train_loss")
COUNTS = ("N", "N_non_embedding", "N_total")
"""Columns that can be the N of a law."""
BUDGET_WIDTH = 0.05
"""Largest relative width of a budget in C, from ARCHITECTURE.md."""

OPTIONAL_NUMBERS = {"U": "above", "loss_std_error": "at least", "train_loss": "at least"}
"""Columns that may be missing, and what 0 is to them; U may be infinite."""
LARGEST = 1e100
"""Numbers beyond it, and below its inverse, are no count and no loss: their squares leave float64."""

ALIASES = {"run_id": "run"}
"""A column that is read under another name where the canonical one is absent: rows of one run must stay together."""


def read_observations(
    source: str | Path | pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    count: str = "N",
    flops_rule: str = "given",
    loss_unit: str = "nats",
    near: float | None = None,
) -> Observations:
    """Read a study folder, CSV, Parquet or DataFrame; every row that is no evidence is listed.

    `columns` maps canonical names to the table's own; `count`, `flops_rule` (given or 6ND) and `loss_unit` (nats
    or bits) switch conventions, `near` is `keep_near`'s factor. MisuseError: no such file, column or expression;
    VerdictError: no row is left.

    >>> import pandas as pd
    >>> obs = read_observations(pd.DataFrame({"N": [1e6, -1.0], "D": [2e7, 2e7], "loss": [3.1, 3.0]}))
    >>> len(obs), float(obs.frame.C[0]), obs.refused
    (1, 120000000000000.0, ({'row': 1, 'reason': 'N is -1, must be above 0'},))
    """
    raw, path, rule = _load(source)
    table = _rename(raw, dict(columns or {}))
    chosen = select_rows(raw, where) if where else np.ones(len(raw), bool)
    frame, refused = _refuse(table, chosen)
    record = _describe(path, raw, columns, where, chosen, frame, refused)
    if path is not None and path.name == "observations.csv":
        record |= _ask_study(path.parent)
    if frame.empty:
        raise VerdictError(f"{record['path']}: none of {len(raw)} rows is usable: {_why_none(chosen, refused)}")
    obs = Observations(frame=frame, refused=tuple(refused), source=record, rule=rule)
    obs = recount(obs, count=count, flops_rule=flops_rule, loss_unit=loss_unit)
    return obs if near is None else keep_near(obs, near)


def keep_near(obs: Observations, factor: float) -> Observations:
    """The runs whose N lies within `factor` of their budget's lowest cell (mean over seeds), and those
    of no budget; the others are refused.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"N": [1e6, 2e6, 9e6], "D": [9e7, 4.5e7, 1e7], "loss": [3.0, 2.9, 3.2]})
    >>> keep_near(read_observations(table), 3).refused
    ({'row': 2, 'reason': "N is 4.5 times that of its budget's lowest cell, more than near = 3"},)
    """
    if not (np.isfinite(factor) and factor > 1):
        raise MisuseError(f"near: {factor:g} keeps no sizes around a minimum; use a factor above 1, as in 3")
    frame = obs.frame
    budget = frame["budget"] if "budget" in frame else label_budgets(frame["C"].to_numpy())
    counted = frame.assign(_budget=budget)[frame["weight"] > 0 if "weight" in frame else slice(None)]
    cells = counted.groupby(["_budget", "N"])["loss"].mean()
    lowest = cells.groupby("_budget").idxmin().map(lambda cell: cell[1])
    ratio = (frame["N"] / lowest.reindex(budget).to_numpy()).to_numpy()  # nan: of no budget, and kept
    good = ~(np.abs(np.log(ratio)) > np.log(factor) * (1 + 1e-9))
    rows = frame["row"] if "row" in frame else frame.index.to_series()
    refused = [{"row": int(rows.iloc[i]), "reason": f"N is {ratio[i]:.3g} times that of its budget's lowest cell, "
                f"{'more than' if ratio[i] > 1 else 'less than 1 /'} near = {factor:g}"}
               for i in np.flatnonzero(~good)]  # fmt: skip
    kept = frame[good].reset_index(drop=True)
    record = {**obs.source, "near": factor, "rows_used": len(kept), "rows_refused": [*obs.refused, *refused]}
    return Observations(frame=kept, refused=(*obs.refused, *refused), source=record, rule=obs.rule)


def recount(obs: Observations, *, count: str = "N", flops_rule: str = "given", loss_unit: str = "nats") -> Observations:
    """The same runs under other conventions; rows without the count asked for are refused.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"N": [2e6], "N_non_embedding": [1e6], "D": [1e7], "C": [1e14], "loss": [3.0]})
    >>> recount(read_observations(table), count="N_non_embedding", flops_rule="6ND").frame.C.tolist()
    [60000000000000.0]
    """
    _check_conventions(obs, count, flops_rule, loss_unit)
    frame, record, refused = obs.frame, dict(obs.source), list(obs.refused)
    if count != "N":
        frame, added = _switch_count(frame, count)
        refused += added
    if flops_rule == "6ND":
        if "budget" not in frame:
            frame = frame.assign(budget=label_budgets(frame["C"].to_numpy()))
        frame = frame.assign(C=6.0 * frame["N"] * frame["D"])
    if loss_unit == "bits":
        frame = frame.assign(**{name: frame[name] * np.log(2.0) for name in LOSSES if name in frame})
    asked = {"count": count, "flops_rule": flops_rule, "loss_unit": loss_unit}
    record |= {"rows_used": len(frame), "rows_refused": refused, "conventions": asked}
    rule = "6ND" if flops_rule == "6ND" else obs.rule
    return Observations(frame=frame, refused=tuple(refused), source=record, rule=rule)


def _check_conventions(obs: Observations, count: str, flops_rule: str, loss_unit: str) -> None:
    allowed = {"count": COUNTS, "flops_rule": ("given", "6ND"), "loss_unit": ("nats", "bits")}
    for name, value in (("count", count), ("flops_rule", flops_rule), ("loss_unit", loss_unit)):
        if value not in allowed[name]:
            raise MisuseError(f"{name} {value!r} is unknown; use one of {', '.join(allowed[name])}")
    if count not in obs.frame:
        raise MisuseError(f"count {count}: the table has no column {count}; map it as {count}=NAME in columns")


def _switch_count(frame: pd.DataFrame, count: str) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """N := the column `count`, and the rows that have none."""
    import pandas as pd

    number = pd.to_numeric(frame[count], errors="coerce").astype(float)
    good = np.isfinite(number) & (number > 0)
    rows = frame["row"] if "row" in frame else pd.Series(frame.index)
    refused = [
        {"row": int(rows.iloc[i]), "reason": _reason(count, frame[count].iloc[i], number.iloc[i])}
        for i in np.flatnonzero(~good)
    ]
    if not good.any():
        raise VerdictError(f"count {count}: no row has a number there; use --count N")
    return frame.assign(N=number)[good].reset_index(drop=True), refused


def label_budgets(C: np.ndarray) -> np.ndarray:
    """Numbers (rows,) from 0 by rising C: log C is cut wherever neighbours differ by more than 5%."""
    order = np.argsort(C, kind="stable")
    number = np.empty(len(C), int)
    cuts = np.diff(np.log(C[order])) > np.log1p(BUDGET_WIDTH)
    number[order] = np.concatenate([[0], np.cumsum(cuts)])
    return number


def _ask_study(folder: Path) -> dict[str, Any]:
    """What the study folder beside its observations.csv adds: its tuning audit, and in what its variants differ."""
    tuning = read_tuning(folder)
    plan = read_json(folder / "plan.json") if (folder / "plan.json").is_file() else {}
    differing = list_differing(plan.get("config", {}))
    return ({"tuning": tuning} if tuning else {}) | ({"variants_differ_in": differing} if differing else {})


def as_observations(source: Observations | pd.DataFrame | str | Path) -> Observations:
    """What every fit accepts, as Observations."""
    return source if isinstance(source, Observations) else read_observations(source)


def check_one_variant(frame: pd.DataFrame) -> None:
    """MisuseError where rows of several variants would enter one law.

    >>> import pandas as pd
    >>> check_one_variant(pd.DataFrame({"variant": ["adam", "adam"]}))
    """
    names = list(dict.fromkeys(frame["variant"].dropna())) if "variant" in frame else []
    if len(names) > 1:
        listed = ", ".join(map(str, names[:4])) + ", ..." * (len(names) > 4)
        raise MisuseError(f"variant: the rows are of {len(names)} variants ({listed}), and no one law is theirs; pick "
                          f"one with --where \"variant == '{names[0]}'\", or compare them with "
                          f"`jaxscale compare SOURCE`")  # fmt: skip


def read_raw(source: str | Path | pd.DataFrame) -> tuple[pd.DataFrame, Path | None]:
    """A table under its own column names, and its path; a DataFrame is taken as it is."""
    raw, path, _ = _load(source)
    return raw, path


def _load(source: str | Path | pd.DataFrame) -> tuple[pd.DataFrame, Path | None, Literal["6ND", "exact"]]:
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return source.reset_index(drop=True), None, "6ND"
    path = Path(source)
    if path.is_dir():
        path = path / "observations.csv"
        if not path.is_file():
            raise MisuseError(f"{path}: no such file; `jaxscale collect {path.parent}` writes it")
    if not path.is_file():
        raise MisuseError(f"{path}: no such file or study folder")
    own = (path.parent / "plan.json").is_file()
    return _read_table(path), path, "exact" if own else "6ND"


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    try:
        if suffixes[-1:] == [".parquet"]:
            return pd.read_parquet(path)
        if ".csv" in suffixes:
            return _read_csv(path)
    except MisuseError:
        raise
    except Exception as error:  # pandas, pyarrow and the decompressors each raise their own kinds
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MisuseError(f"{path}: not a readable table ({detail})") from error
    raise MisuseError(f"{path}: unknown kind of table {path.suffix!r}; use .csv, .csv.gz, .csv.xz or .parquet")


def _read_csv(path: Path) -> pd.DataFrame:
    """The table under the names of its own first line: pandas would call a second N "N.1".

    Rows longer than the header are an error, where pandas would shift every column by one.
    """
    import warnings

    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(path, index_col=False, low_memory=False)
    header = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0]
    pairs = zip(header, frame.columns, strict=True)
    frame.columns = pd.Index([own if pd.isna(name) else name.removeprefix("\ufeff") for name, own in pairs])
    if len(header) == 1 and (found := [mark for mark in ";\t|" if mark in frame.columns[0]]):
        raise MisuseError(f"{path}: its columns are separated by {found[0]!r}; save it with commas")
    return frame


def _rename(raw: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """The canonical columns of the table; MisuseError when a mapping or a required column is wrong."""
    import pandas as pd

    for name in columns:
        if name not in CANONICAL:
            raise MisuseError(f"columns: {name!r} is no canonical column; they are {', '.join(CANONICAL)}")
    own = {name: columns.get(name, name) for name in CANONICAL}
    own |= {name: other for name, other in ALIASES.items() if own[name] not in raw.columns and name not in columns}
    for name in REQUIRED:
        if own[name] not in raw.columns and name not in columns:
            raise MisuseError(f"columns: {name} is missing; map it as {name}=NAME, "
                              f"the table has {', '.join(map(str, raw.columns))}")  # fmt: skip
    present = {
        name: column_of(raw, theirs, "columns")
        for name, theirs in own.items()
        if name in columns or theirs in raw.columns
    }
    return pd.DataFrame(present)


def _refuse(table: pd.DataFrame, chosen: np.ndarray) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Numbers where numbers belong; rows without them become refusals with their 0-based row number."""
    import pandas as pd

    frame = table.copy()
    needed = [name for name in ("N", "D", "C", "loss") if name in frame]
    reasons: dict[int, str] = {}
    for name in needed:
        frame[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
        for row in np.flatnonzero(chosen & ~frame[name].between(1 / LARGEST, LARGEST)):
            reasons.setdefault(int(row), _reason(name, table[name].iloc[row], frame[name].iloc[row]))
    if "weight" in frame:
        given = table["weight"].where(table["weight"].notna(), 1.0)
        frame["weight"] = pd.to_numeric(given, errors="coerce").astype(float)
        for row in np.flatnonzero(chosen & ~frame["weight"].between(0.0, LARGEST)):
            reasons.setdefault(int(row), _reason("weight", given.iloc[row], frame["weight"].iloc[row], "at least"))
    for name, bound in OPTIONAL_NUMBERS.items():
        if name in frame:
            frame[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
            good = frame[name] > 0 if bound == "above" else frame[name] >= 0
            for row in np.flatnonzero(chosen & table[name].notna() & ~good):
                reasons.setdefault(int(row), _reason(name, table[name].iloc[row], frame[name].iloc[row], bound))
    if "C" not in frame:
        frame["C"] = 6.0 * frame["N"] * frame["D"]
    kept = chosen & ~np.isin(np.arange(len(frame)), list(reasons))
    frame.insert(0, "row", np.arange(len(frame)))
    refused = [{"row": row, "reason": reasons[row]} for row in sorted(reasons)]
    return frame[kept].reset_index(drop=True), refused


def _reason(name: str, given: Any, number: float, bound: str = "above") -> str:
    import pandas as pd

    if pd.isna(given):
        return f"{name} is missing"
    if np.isnan(number):
        return f"{name} is {given!r}, not a number"
    if np.isinf(number):
        return f"{name} is not finite"
    if number > 0:
        return f"{name} is {number:g}, must lie between {1 / LARGEST:g} and {LARGEST:g}"
    return f"{name} is {number:g}, must be {bound} 0"


def _describe(
    path: Path | None,
    raw: pd.DataFrame,
    columns: Mapping[str, str] | None,
    where: str | None,
    chosen: np.ndarray,
    frame: pd.DataFrame,
    refused: list[dict[str, Any]],
) -> dict[str, Any]:
    """The provenance record that every fit carries on as `source`."""
    return {
        "path": str(path) if path else "DataFrame",
        "sha256": _sha256(path, raw),
        "rows_total": len(raw),
        "rows_used": len(frame),
        "rows_refused": refused,
        "rows_filtered": int((~chosen).sum()),
        "columns": dict(columns or {}),
        "where": where,
    }


def _sha256(path: Path | None, raw: pd.DataFrame) -> str:
    content = path.read_bytes() if path else raw.to_csv(index=False).encode()
    return hashlib.sha256(content).hexdigest()


def _why_none(chosen: np.ndarray, refused: list[dict[str, Any]]) -> str:
    if refused:
        return f"row {refused[0]['row']}: {refused[0]['reason']}" + (", ..." if len(refused) > 1 else "")
    return "`where` selects none" if len(chosen) else "the table is empty"
