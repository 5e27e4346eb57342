"""What a tuning audit left in a study folder, for those who fit it: DIR/audit.json, checked against the study.

An audit judges the runs it was made beside. One of another plan, or of runs that were trained anew since, is refused
with a sentence and used for nothing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxscale.errors import MisuseError
from jaxscale.format import format_flops, format_number
from jaxscale.plain import read_json
from jaxscale.runs import Plan, run_dir
from jaxscale.sweep import read_plan, read_result

__all__ = ["AUDIT_SCHEMA", "TOLERANCE", "identify_plan", "read_tuning", "say_tuning"]

TOLERANCE = 0.003
"""Share of the loss that a better rate may save; mup/sensitivity.py says what it is worth in the exponents."""
AUDIT_SCHEMA = "jaxscale.mup_audit/1"
NEEDS = frozenset({"plan_sha256", "tolerance", "factor", "rows", "budgets", "sensitivity", "verdict"})
ROW_NEEDS = frozenset({"run_id", "budget", "N", "loss", "position", "direction", "gain", "flagged"})


def identify_plan(planned: Plan) -> str:
    """SHA-256 over what a study measures: its runs with their roles, and its text."""
    runs = sorted((cell.run_id, cell.role) for cell in planned.cells)
    return hashlib.sha256(json.dumps([runs, planned.data_sha256]).encode()).hexdigest()


def read_tuning(study_dir: str | Path) -> dict[str, Any] | None:
    """The audit of a study folder: None where there is none, {"refused": sentence} where it is not this study's.

    Else tolerance, factor, verdict, sensitivity, `budgets` (one state each) and `flagged` (rows of audit.json).
    """
    file = Path(study_dir) / "audit.json"
    if not file.is_file() or not (Path(study_dir) / "plan.json").is_file():
        return None
    try:
        plain = read_json(file)
        problem = _find_stale(plain, Path(study_dir))
    except MisuseError as error:
        problem = str(error)
    if problem:
        return {"refused": f"the tuning audit is not used: {problem}; run `jaxscale mup audit {study_dir}` again"}
    kept = {name: plain[name] for name in ("tolerance", "factor", "verdict", "sensitivity", "budgets")}
    return {**kept, "flagged": [row for row in plain["rows"] if row["flagged"]]}


def _find_stale(plain: Any, folder: Path) -> str:
    if not isinstance(plain, dict) or plain.get("schema") != AUDIT_SCHEMA or not plain.keys() >= NEEDS:
        return f"{folder / 'audit.json'} is no {AUDIT_SCHEMA}"
    if odd := _find_odd(plain):
        return f"{folder / 'audit.json'}: {odd} is not what an audit writes"
    if plain["plan_sha256"] != identify_plan(read_plan(folder)):
        return f"audit.json belongs to another plan than {folder / 'plan.json'}"
    for row in plain["rows"]:
        result = run_dir(folder, row["run_id"]) / "result.json"
        loss = read_result(result).loss if result.is_file() else None
        if loss != row["loss"]:
            return f"run {row['run_id']} had loss {format_number(row['loss'])} then and has {format_number(loss)} now"
    return ""


def _find_odd(plain: dict[str, Any]) -> str:
    """The first part of an audit.json that cannot be read; empty where all can."""
    effect = plain["sensitivity"]
    for name, fine in (
        ("tolerance", _is_number(plain["tolerance"])),
        ("rows", isinstance(plain["rows"], list) and all(map(_is_row, plain["rows"]))),
        ("budgets", isinstance(plain["budgets"], list) and all(map(_is_budget, plain["budgets"]))),
        ("sensitivity", effect is None or _is_effect(effect)),
    ):
        if not fine:
            return name
    return ""


def _is_row(row: Any) -> bool:
    return (isinstance(row, dict) and row.keys() >= ROW_NEEDS and isinstance(row["run_id"], str)
            and all(_is_number(row[name]) for name in ("budget", "N", "loss"))
            and (_is_number(row["gain"]) or not row["flagged"]))  # fmt: skip


def _is_budget(row: Any) -> bool:
    return (isinstance(row, dict) and row.keys() >= {"budget", "state", "arms"} and _is_number(row["budget"])
            and isinstance(row["arms"], list))  # fmt: skip


def _is_effect(effect: Any) -> bool:
    return isinstance(effect, dict) and all(
        effect.get(end) is None or _is_number(effect[end]) for end in ("a_before", "a_after")
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def say_tuning(record: dict[str, Any]) -> list[str]:
    """What a reader of a fit must know of the audit; nothing where no budget is flagged."""
    if "refused" in record:
        return [record["refused"]]
    if not record["flagged"]:
        return []
    cells = [f"{format_flops(row['budget'])} FLOPs, {row['position']}, {row['direction']}, {row['gain']:.2%} of the "
             f"loss left" for row in record["flagged"]]  # fmt: skip
    effect = ""
    if record["sensitivity"] and record["sensitivity"].get("a_after") is not None:
        a = [record["sensitivity"][name] for name in ("a_before", "a_after")]
        effect = f"; at the best rates found a moves from {a[0]:.3f} to {a[1]:.3f}"
    return [f"tuning audit, tolerance {record['tolerance']:.2%}: {'; '.join(cells)}; mistuned arms move "
            f"exponents{effect}"]  # fmt: skip
