"""Was every variant tuned alike? Without that no winner is named (Choi et al. 2019, 1910.05446).

What looks better may only be tuned better: with enough trials for one optimizer and few for another any ranking can be
had. The rule: every variant had a sweep of its learning rate by the same rule (step, seeds, and the trials that the
study declares for all) and its best rate lies inside the rates tried. Data from outside bring a column tuning_trials,
equal for all and FEWEST or more; or whoever compares says that they were tuned alike (--tuned), which is written down.
"""

from __future__ import annotations

from typing import Any

from jaxscale.compare.read import Table
from jaxscale.format import format_number

__all__ = ["FEWEST", "judge_tuning"]

FEWEST = 3
"""Trials in which a best one can lie inside."""
ALIKE = ("step", "seeds")


def judge_tuning(table: Table, names: tuple[str, ...], stated: bool) -> dict[str, Any]:
    """{"equal", "by", "words", "variants"}: whether a winner may be named, on whose word, and what is missing."""
    if table.described:
        return _judge_study(table, names)
    if stated:
        return {"equal": True, "by": "statement", "words": "tuned alike by the statement of whoever compared (--tuned)",
                "variants": []}  # fmt: skip
    if "tuning_trials" in table.frame:
        return _judge_column(table, names)
    return {"equal": False, "by": "none", "variants": [], "words":
            f"nothing says how {', '.join(names)} were tuned: give a column tuning_trials, or say --tuned if each had "
            f"the same tuning budget by the same rule"}  # fmt: skip


def _judge_column(table: Table, names: tuple[str, ...]) -> dict[str, Any]:
    trials = {name: table.of(name)["tuning_trials"].dropna() for name in names}
    rows = [{"variant": name, "trials": float(one.min()) if len(one) else None} for name, one in trials.items()]
    verdict = {"by": "tuning_trials", "variants": rows}
    for name, one in trials.items():
        if one.empty:
            return {"equal": False, "words": f"variant {name} has no tuning_trials", **verdict}
        if one.min() != one.max():
            return {"equal": False, "words": f"variant {name} has tuning_trials from {one.min():g} to {one.max():g}",
                    **verdict}  # fmt: skip
    counts = {name: float(one.iloc[0]) for name, one in trials.items()}
    few, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[few] != counts[most]:
        return {"equal": False, "words": f"variant {few} had {counts[few]:g} tuning trials and {most} had "
                f"{counts[most]:g}: give {few} the same", **verdict}  # fmt: skip
    if counts[few] < FEWEST:
        return {"equal": False, "words": f"{counts[few]:g} tuning trials each cannot show a best one inside; {FEWEST} "
                f"can", **verdict}  # fmt: skip
    return {"equal": True, "words": f"{counts[few]:g} tuning trials each (column tuning_trials)", **verdict}


def _judge_study(table: Table, names: tuple[str, ...]) -> dict[str, Any]:
    """By variants.json; the trials may differ by what the study's own rule adds where a best rate was an end."""
    sweeps = {name: table.described.get(name, {}).get("tuning") or {} for name in names}
    rows = [{"variant": name, **{key: one.get(key) for key in ("trials", "step", "seeds", "width", "tokens", "flops",
                                                              "best_lr", "status")}}
            for name, one in sweeps.items()]  # fmt: skip
    lacks = []
    for name, one in sweeps.items():
        status = one.get("status", "none")
        if status == "ok" and one.get("trials"):
            continue
        why = {"none": "no sweep of its learning rate", "edge": "its best rate at an end of those tried",
               "diverged": "a sweep that diverged"}  # fmt: skip
        lacks.append(f"variant {name} has {why.get(status, f'a sweep of status {status}')}")
    verdict = {"by": "variants.json", "variants": rows}
    if lacks:
        return {"equal": False, "words": "; ".join(lacks), **verdict}
    allowed = int(table.rule.get("more", 0) or 0)
    first = names[0]
    for name in names[1:]:
        for key in ALIKE:
            a, b = sweeps[first].get(key), sweeps[name].get(key)
            if a != b:
                return {"equal": False, "words": f"variants {first} and {name} were tuned by other rules: {key} "
                        f"{format_number(a)} and {format_number(b)}", **verdict}  # fmt: skip
    trials = {name: int(one["trials"]) for name, one in sweeps.items()}
    few, most = min(trials, key=trials.__getitem__), max(trials, key=trials.__getitem__)
    if trials[most] - trials[few] > allowed:
        return {"equal": False, "words": f"variant {few} had {trials[few]} trials and {most} had {trials[most]}",
                **verdict}  # fmt: skip
    words = f"each had {trials[few]} trials of its learning rate"
    if trials[most] > trials[few]:
        words = (f"each was tuned by one rule: {trials[few]} to {trials[most]} trials, more where the best was an end "
                 f"(tuning.more {allowed})")  # fmt: skip
    return {"equal": True, "words": f"{words}, and a best one inside", **verdict}
