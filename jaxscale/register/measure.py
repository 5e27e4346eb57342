"""Measurements to set beside a forecast, and when each run began.

A study folder gives its finished runs, with the time of their first start (attempts.jsonl) and the SHA-256 of their
result.json. A table gives rows; where it is the observations.csv of a folder whose run folders are there, they date
its rows. One run may be given by hand. A run whose beginning nobody recorded is scored and flagged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxscale.errors import JaxscaleError, MisuseError
from jaxscale.plain import read_lines
from jaxscale.register.chain import read_time
from jaxscale.runs import Observations
from jaxscale.sweep import read_plan

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Measured", "Run", "first_start", "gather_measured", "parse_measured"]

FIELDS = {"C": True, "loss": True, "N": True, "D": False, "began": False}
"""What --measured may say of a run, and whether it must."""


@dataclass(frozen=True)
class Run:
    """One measured run: N parameters, D tokens, C training FLOPs, loss in nats per token; `began` ISO time or None.

    `identity` hashes what was measured: the run's result.json, else the values themselves.
    """

    run_id: str
    N: float
    D: float
    C: float
    loss: float
    seed: int
    began: str | None
    identity: str


@dataclass(frozen=True)
class Measured:
    """Runs of one source, and the SHA-256 of its table (empty by hand)."""

    source: str
    sha256: str
    runs: tuple[Run, ...]
    refused: tuple[dict[str, Any], ...] = ()
    data_sha256: str = ""
    """Identity of the training text, where a plan tells it."""
    conventions: Mapping[str, Any] | None = None
    """Which count N is and how C was counted, as `read_observations` records it; None by hand."""


def gather_measured(source: str | Path, observations: Observations | None = None, **conventions: str) -> Measured:
    """The runs of a study folder, or of a table that was read as `observations`; MisuseError where there is neither.

    `conventions` as for `recount`, for a folder: count and flops_rule.
    """
    path = Path(source)
    if observations is None and path.is_dir() and not _has_runs(path):
        raise MisuseError(f"{source}: no plan.json and no run folder there; name a study folder or an observations.csv")
    folder = path if path.is_dir() else path.parent
    if observations is None:
        from jaxscale.collect import collect_runs
        from jaxscale.source import recount

        observations = recount(collect_runs(path), **conventions)
    runs = tuple(_read_run(row, folder) for row in observations.frame.to_dict("records"))
    return Measured(str(source), str(observations.source.get("sha256", "")), runs, observations.refused,
                    read_plan(folder).data_sha256 if (folder / "plan.json").is_file() else "",
                    observations.source.get("conventions"))  # fmt: skip


def _has_runs(folder: Path) -> bool:
    return (folder / "plan.json").is_file() or any(folder.glob("*/spec.json"))


def _read_run(row: Mapping[Any, Any], folder: Path) -> Run:
    run_id = str(row.get("run_id") or "")
    own = folder / run_id if run_id and (folder / run_id / "result.json").is_file() else None
    values = {name: float(row[name]) for name in ("N", "D", "C", "loss")}
    seed = row.get("seed")
    known = int(seed) if isinstance(seed, int | float) and seed == seed else 0
    content = (own / "result.json").read_bytes() if own else repr((run_id, values, known)).encode()
    return Run(run_id or _name(row), **values, seed=known, began=_began(row, own) if own else None,
               identity=hashlib.sha256(content).hexdigest())  # fmt: skip


def _began(row: Mapping[Any, Any], own: Path) -> str | None:
    """The first start of the run, or of the trunk it branches from: what its parent learned it knows."""
    parent = own.parent / str(row.get("parent") or own.name)
    starts = [first_start(folder) for folder in {own, parent} if folder.is_dir()]
    return min((start for start in starts if start), default=None) if all(starts) else None


def _name(row: Mapping[Any, Any]) -> str:
    return f"row {row['row']}" if "row" in row else "by hand"


def first_start(folder: Path) -> str | None:
    """When the run was first started; None where it was not recorded."""
    try:
        attempts = read_lines(folder / "attempts.jsonl", frozenset({"time"}))
        return datetime.fromtimestamp(min(float(a["time"]) for a in attempts), UTC).isoformat() if attempts else None
    except (JaxscaleError, TypeError, ValueError, OSError):
        return None


def parse_measured(words: Sequence[str]) -> Measured:
    """One run given by hand as C=1e13 loss=1.83 N=2e5 [D=8e6] [began=2026-11-22T14:00]; D is C / 6 N unless given.

    >>> run = parse_measured(["C=6e12", "loss=2", "N=1e5"]).runs[0]
    >>> run.D, run.began
    (10000000.0, None)
    """
    given = dict(word.partition("=")[::2] for word in words)
    unknown, lacking = given.keys() - FIELDS, [name for name, must in FIELDS.items() if must and not given.get(name)]
    if unknown or lacking or len(given) < len(words):
        what = (
            f"{min(unknown)!r} is unknown" if unknown else f"{lacking[0]} is missing" if lacking else "a field repeats"
        )
        raise MisuseError(f"measured: {what}; give C, loss and N, and where known D and began, as in "
                          f"--measured C=1e13 loss=1.83 N=2e5 D=8e6 began=2026-11-22T14:00")  # fmt: skip
    numbers = {name: _number(name, text) for name, text in given.items() if name != "began"}
    numbers.setdefault("D", numbers["C"] / 6 / numbers["N"])
    try:
        began = read_time(given["began"]).isoformat() if given.get("began") else None
    except ValueError:
        raise MisuseError(f"measured: began={given['began']} is no time; write it as 2026-11-22T14:00") from None
    identity = hashlib.sha256(repr(sorted(numbers.items())).encode()).hexdigest()
    return Measured("by hand", "", (Run("by hand", **numbers, seed=0, began=began, identity=identity),))


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise MisuseError(f"measured: {name}={text} must be a finite number above 0")
    return value


def as_observations(runs: Sequence[Run], C: float) -> Observations:
    """Runs as one budget of C FLOPs, for what reads minima."""
    import pandas as pd

    rows = [{"run_id": f"{i} {run.run_id}", "N": run.N, "D": run.D, "C": run.C, "loss": run.loss, "seed": run.seed}
            for i, run in enumerate(runs)]  # fmt: skip
    frame: pd.DataFrame = pd.DataFrame(rows).assign(budget=C)
    return Observations(frame)
