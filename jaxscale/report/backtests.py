"""What was predicted before it was seen: one line a method for the page's head, sums by origin, every prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.backtest.summary import summarize
from jaxscale.format import (
    UNKNOWN,
    format_count,
    format_factor,
    format_flops,
    format_interval,
    format_loss,
    format_percent,
)
from jaxscale.report.evidence import Evidence
from jaxscale.report.tables import Table

__all__ = ["Asked", "Test", "group_nearest", "list_tests", "sum_origins"]

QUANTITIES = {"loss": "lowest loss", "N_opt": "best size", "loss_at": "loss of a cell"}
MAX_TESTS = 300
"""More predictions than this are cut from the page: backtest.json has them all."""


@dataclass(frozen=True)
class Test:
    """One prediction, and what was then measured."""

    method: str
    trained_to: str
    target: str
    quantity: str
    predicted: str
    interval: str
    measured: str
    error: str
    compute: str
    inside: bool | None


@dataclass(frozen=True)
class Asked:
    """One measurement, and what every method had said."""

    trained_to: str
    target: str
    measured: str
    tests: tuple[Test, ...]


def list_tests(evidence: Evidence) -> list[Test]:
    """The first MAX_TESTS predictions as words; the error is predicted over measured, minus one."""
    return [_test(row, evidence) for row in evidence.backtest[:MAX_TESTS]]


def group_nearest(evidence: Evidence) -> list[Asked]:
    """For every method its loss farthest out from the largest origin: the test most like the forecast."""
    nearest: dict[str, dict[str, Any]] = {}
    for row in evidence.backtest:
        if row["quantity"] != "loss" or row.get("split") == "corner":
            continue
        name = evidence.name_row(row)
        if name not in nearest or _reach(row) > _reach(nearest[name]):
            nearest[name] = row
    groups: dict[tuple[str, str, str], list[Test]] = {}
    for row in nearest.values():
        test = _test(row, evidence)
        groups.setdefault((test.trained_to, test.target, test.measured), []).append(test)
    return [Asked(*key, tuple(tests)) for key, tests in groups.items()]


def sum_origins(evidence: Evidence) -> Table:
    """A row an origin, quantity and method: how wrong, worth how much compute, how often inside, and its skill."""
    headings = ("split", "fitted to", "quantity", "method", "up to", "predictions", "rms error", "worst",
                "worth in compute", "inside", "skill")  # fmt: skip
    origins: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in evidence.backtest:
        origins.setdefault(_origin(row), []).append(row)
    rows = [line for key in sorted(origins) for line in _sum_origin(origins[key], evidence)]
    note = ("Errors are of log(predicted / measured). Skill: one minus the error over that of a power law through the "
            "lowest runs; below 0 the law did worse than that line. Few errors choose no winner.")  # fmt: skip
    return Table(headings, rows, note, 4)


def _reach(row: dict[str, Any]) -> tuple[float, float]:
    return row["trained_to_C"], row["target_C"]


def _origin(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        ("rolling", "corner", "holdout").index(row["split"]),
        row["trained_to_C"],
        row["trained_to_N"] or 0.0,
        row["trained_to_D"] or 0.0,
    )


def _sum_origin(rows: list[dict[str, Any]], evidence: Evidence) -> list[tuple[str, ...]]:
    lines = []
    for quantity in QUANTITIES:
        mine = [row for row in rows if row["quantity"] == quantity]
        groups = [group for group in summarize(mine) if group["count"] == _count(mine, group)]
        lines += [_origin_line(group, mine, evidence) for group in groups]
    return lines


def _count(rows: list[dict[str, Any]], group: dict[str, Any]) -> int:
    """Predictions of the group's method: the group that holds them all is the one to show."""
    return sum((row["method"], row["law"]) == (group["method"], group["law"]) for row in rows)


def _origin_line(group: dict[str, Any], rows: list[dict[str, Any]], evidence: Evidence) -> tuple[str, ...]:
    factor = group["quantity"] == "N_opt"
    return (
        group["split"], format_flops(rows[0]["trained_to_C"]), QUANTITIES[group["quantity"]], evidence.name_row(group),
        format_factor(max(row["ratio"] for row in rows)), str(group["count"]),
        _size(group["rms_error"], factor), _size(group["worst"], factor), format_factor(group["compute_factor"]),
        f"{group['inside']}/{group['tested']}" if group["tested"] else UNKNOWN,
        format_percent(group["skill"]).lstrip("+"),
    )  # fmt: skip


def _size(log_error: float | None, factor: bool) -> str:
    """A log error for people: a factor in N, a share of the loss."""
    if log_error is None:
        return UNKNOWN
    return format_factor(float(np.exp(log_error))) if factor else format_percent(log_error).lstrip("+")


def _test(row: dict[str, Any], evidence: Evidence) -> Test:
    style = format_loss if row["quantity"].startswith("loss") else format_count
    predicted, measured = row["predicted"], row["measured"]
    known = predicted is not None and measured
    factor = row.get("compute_error")
    return Test(
        method=evidence.name_row(row),
        trained_to=format_flops(row["trained_to_C"]),
        target=format_flops(row["target_C"]),
        quantity=QUANTITIES.get(row["quantity"], row["quantity"]),
        predicted=style(predicted),
        interval=format_interval(row.get("interval"), style),
        measured=style(measured),
        error=format_percent(predicted / measured - 1 if known else None),
        compute=format_factor(max(factor, 1 / factor) if factor else None),  # the error's sign tells the direction
        inside=row.get("inside"),
    )
