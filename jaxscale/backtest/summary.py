"""Many errors in few numbers, and the words for what they can and cannot decide.

Errors are taken in logs, e = log(predicted / measured), so that too high and too low count alike:
rms_error = sqrt(mean e^2), bias = mean e, skill = 1 - rms(e) / rms(e of the lowest runs extended), on the same
targets. Two methods are compared on the targets both predicted: d = |e_1| - |e_2|, its standard error robust to
clusters (sum of d - mean over each cluster; Liang and Zeger 1986), the larger of those by origin and by target,
since predictions from one origin, and those of one target, err together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxscale.format import format_factor, format_percent

__all__ = ["paired_difference", "ratio_bin", "summarize", "word_summary"]

Row = dict[str, Any]
WIDE = 1.05
"""Targets this much beyond an edge still belong below it: budgets 10 times apart are seldom exactly so."""


def ratio_bin(ratio: float) -> str:
    """Half decades of target C over the largest C fitted.

    >>> [ratio_bin(x) for x in (0.4, 2.0, 10.01, 400.0)]
    ['within', '1-3.2x', '3.2-10x', '320-1000x']
    """
    if ratio <= 1:
        return "within"
    k = max(int(np.ceil(2 * np.log10(ratio / WIDE) - 1e-9)), 1)
    return "-".join(f"{float(f'{10 ** (end / 2):.2g}'):g}" for end in (k - 1, k)) + "x"


def summarize(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """By split, method, law and quantity: all ratios together (where there are several bins), then each bin."""
    summary = []
    for key, mine in _group_by(rows, "split", "method", "law", "quantity"):
        bins = [(label, part) for (label,), part in _group_bins(mine)]
        groups = [("all", mine), *bins] if len(bins) > 1 else bins
        summary += [dict(zip(("split", "method", "law", "quantity"), key, strict=True)) | {"ratio": label}
                    | _describe(part) for label, part in groups]  # fmt: skip
    return summary


def _group_by(rows: Sequence[Row], *names: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.items())


def _group_bins(rows: Sequence[Row]) -> list[tuple[tuple[Any, ...], list[Row]]]:
    ordered = sorted(rows, key=lambda row: row["ratio"])
    return _group_by([{**row, "bin": ratio_bin(row["ratio"])} for row in ordered], "bin")


def _describe(rows: Sequence[Row]) -> dict[str, Any]:
    e = np.array([_log_error(row) for row in rows])
    known = np.isfinite(e)
    base = np.array([np.nan if row["baseline_error"] is None else np.log1p(row["baseline_error"]) for row in rows])
    both = known & np.isfinite(base)
    hits = [row["inside"] for row in rows if row["inside"] is not None]
    scores = [row["interval_score"] for row in rows if row["interval_score"] is not None]
    return {
        "count": len(rows), "unknown": int((~known).sum()), "origins": len({_origin(row) for row in rows}),
        "bias": float(e[known].mean()) if known.any() else None, "rms_error": _rms(e[known]),
        "worst": float(np.abs(e[known]).max()) if known.any() else None,
        "compute_factor": _typical_factor(rows), "inside": sum(hits) if hits else None, "tested": len(hits),
        "interval_score": float(np.mean(scores)) if scores else None,
        "skill": float(1 - _rms(e[both]) / _rms(base[both])) if both.any() and _rms(base[both]) else None,
    }  # fmt: skip


def _rms(e: np.ndarray) -> Any:
    return float(np.sqrt((e**2).mean())) if len(e) else None


def _log_error(row: Row) -> float:
    """log(predicted / measured); NaN where the law gave no number."""
    error = row["error"]
    return float(np.log1p(error)) if error is not None and np.isfinite(error) and error > -1 else float("nan")


def _typical_factor(rows: Sequence[Row]) -> float | None:
    """Median of max(f, 1/f) over the errors' worth in compute; None where half have no such factor."""
    if rows[0]["quantity"] == "N_opt":
        return None
    size = [np.inf if not row["compute_error"] else abs(np.log(row["compute_error"])) for row in rows]
    middle = float(np.median(size))
    return float(np.exp(middle)) if np.isfinite(middle) else None


def word_summary(rows: Sequence[Row]) -> list[str]:
    """For every split and quantity: how wrong the least wrong is, and why that chooses no winner."""
    return [_word(split, quantity, part) for (split, quantity), part in _group_by(rows, "split", "quantity")]


def _word(split: str, quantity: str, rows: Sequence[Row]) -> str:
    errors = {name: found for name, part in _group_by(rows, "method", "law")
              if (found := {_target(row): e for row in part if np.isfinite(e := _log_error(row))})}  # fmt: skip
    if not errors:
        return f"{split}, {quantity}: no prediction is a number"
    common = set.intersection(*map(set, errors.values())) if len(errors) > 1 else set(next(iter(errors.values())))
    if not common:
        return f"{split}, {quantity}: the methods predicted no target in common, so they are not compared"
    order = sorted(common)
    table = {name: np.array([found[key] for key in order]) for name, found in errors.items()}
    ranked = sorted(table, key=lambda name: _rms(table[name]))
    best = table[ranked[0]]
    origins, targets = (np.array([str(key[i]) for key in order]) for i in (0, 1))
    count = f"{len(order)} predictions of {len(set(targets))} targets from {len(set(origins))} origins"
    words = f"{split}, {quantity}: least wrong is {_name(ranked[0])}, rms {_size(_rms(best), quantity)}, "
    words += f"worst {_size(float(np.abs(best).max()), quantity)}, over {count}"
    if len(ranked) == 1:
        return words
    other = table[ranked[1]]
    gap, error = paired_difference(best, other, origins, targets)
    told = "with no standard error, one origin or target" if error is None else f"standard error {error:.2%}"
    return (f"{words}; next is {_name(ranked[1])}, rms {_size(_rms(other), quantity)}; |log error| differs by "
            f"{-gap:+.2%} in the mean ({told}): few errors choose no winner, the declared law stays")  # fmt: skip


def paired_difference(
    one: np.ndarray, other: np.ndarray, origins: np.ndarray, targets: np.ndarray
) -> tuple[float, float | None]:
    """Mean of |one| - |other| over log errors (n,) and its standard error; None with one cluster of either kind."""
    d = np.abs(one) - np.abs(other)
    errors = []
    for labels in (origins, targets):
        _, member = np.unique(labels, return_inverse=True)
        clusters = member.max() + 1
        if clusters < 2:
            return float(d.mean()), None
        sums = np.bincount(member, d - d.mean())
        errors.append(np.sqrt(clusters / (clusters - 1) * (sums**2).sum()) / len(d))
    return float(d.mean()), float(max(errors))


def _origin(row: Row) -> tuple[Any, ...]:
    return row["trained_to_C"], row["trained_to_N"] or 0.0, row["trained_to_D"] or 0.0


def _target(row: Row) -> tuple[Any, ...]:
    return _origin(row), (row["target_C"], row.get("N", 0.0), row.get("D", 0.0))


def _name(name: tuple[str, str]) -> str:
    method, law = name
    return method if method == "average" else f"{method} ({law})"


def _size(rms: float, quantity: str) -> str:
    """A log error for people: a factor in N, a share of the loss."""
    return format_factor(float(np.exp(rms))) if quantity == "N_opt" else format_percent(rms).lstrip("+")
