"""What must hold when the faults are over: every run once, to the bit, all of it evidence, and the ledger in full."""

from __future__ import annotations

import re
import statistics
from typing import Any

from harness import Grid, Launcher
from hits import PATIENCE_S, Hit, spot_check
from watch import Watch

from jaxscale.leases import read_holdings
from jaxscale.plain import read_lines
from jaxscale.runs import METRIC_FIELDS

__all__ = ["check_end", "find_tracebacks", "finish", "measure_losses"]

FREE = frozenset({"seconds", "crc"})
"""Fields of a line that say how long something took."""


def finish(grid: Grid) -> None:
    """One clean worker ends what the faults left; then `jaxscale collect`."""
    last = Launcher(grid, "last", grid.bench.cores[0], injected=False)
    for verb in (("work", str(grid.folder), "--workers", "1"), ("collect", str(grid.folder))):
        last.start(*verb)
        if (code := last.wait(5 * PATIENCE_S)) != 0:
            grid.problems.append(f"the last `jaxscale {verb[0]}`: exit code {code}: {last.tail()}")
    last.end()


def check_end(grid: Grid) -> None:
    """Add what is wrong to the grid's problems."""
    rows, refused = spot_check(grid)
    grid.problems += [f"collect: run {run_id} is refused at the end: {reason}" for run_id, reason in refused.items()]
    grid.problems += [
        f"collect: run {run_id} is missing" for run_id in grid.run_ids if run_id not in {**rows, **refused}
    ]
    for run_id in grid.run_ids:
        _check_curve(grid, run_id)
    commits = grid.commits()
    grid.problems += [
        f"run {run_id}: its result was written {commits[run_id]} times, and made void {grid.broken[run_id]} times"
        for run_id in grid.run_ids
        if commits[run_id] > 1 + grid.broken[run_id]
    ]
    spent = sum(holding.seconds * holding.chips for holding in read_holdings(grid.folder))
    needed = sum(grid.result(run_id).seconds for run_id in grid.ended_runs())
    if spent < needed:
        grid.problems.append(f"ledger: {spent:.1f} chip-seconds spent, and the curves took {needed:.1f}")
    left = ("*orbax-checkpoint-tmp*", "*.held")
    killed = {held.token for held in grid.held()}  # after their result: nobody claims the run again
    torn = [path for pattern in left for path in grid.folder.rglob(pattern) if path.stem not in killed]
    grid.litter += [f"left behind: {path}" for path in torn]


def _check_curve(grid: Grid, run_id: str) -> None:
    curves = [
        [{name: line[name] for name in line if name not in FREE}
         for line in read_lines(folder / run_id / "metrics.jsonl", METRIC_FIELDS)]
        for folder in (grid.folder, grid.bench.reference)
    ]  # fmt: skip
    if repr(curves[0]) != repr(curves[1]):
        first = next((b["step"] for a, b in zip(*curves, strict=False) if repr(a) != repr(b)), "its end")
        grid.problems.append(f"run {run_id}: its curve is not the undisturbed one from step {first} on "
                             f"({len(curves[0])} lines, {len(curves[1])} undisturbed)")  # fmt: skip


def find_tracebacks(grid: Grid) -> list[str]:
    """Distinct last lines of tracebacks in what launchers and workers wrote, with the innermost places.

    Left out: TensorStore's "Event loop is closed", which its C++ threads print into a worker's log for each array that
    was still being written when a save failed. The failure itself is raised, and told in a sentence.
    """
    found = set()
    for log in [*grid.outside.glob("*.log"), *(grid.folder / "logs").glob("*")]:
        for part in log.read_text(errors="replace").split("Traceback (most recent call last):")[1:]:
            places = re.findall(r'File "[^"]*/(\w+\.py)", line (\d+), in (\w+)', part)
            if {name for name, _, _ in places} <= {"base_events.py"}:
                continue
            ends = [
                line for line in part.splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit|Lost)\b", line)
            ]
            where = " < ".join(":".join(place) for place in reversed(places[-6:]))
            found.add(f"{(ends or ['?'])[0][:200]}  [{where}]")
    return sorted(found)


def measure_losses(grid: Grid, watch: Watch, hits: list[tuple[float, str, Hit]]) -> list[dict[str, Any]]:
    """For each kill: steps trained again, seconds until the run's next line, and what both cost.

    `alone` tells that no other fault came in between.
    """
    rows = []
    for moment, kind, hit in hits:
        if hit.killed is None or hit.at_step >= grid.plan.find_cell(hit.killed.run_id).spec.steps:
            continue  # nothing was left to train
        seen = watch.resumed(hit.killed.run_id, hit.killed.generation, moment)
        if seen is None:
            continue
        again = max(0, hit.at_step - seen.begun_from)
        gap = seen.time - moment
        between = [other for other, _, _ in hits if moment < other < seen.time]
        rows.append({"kind": kind, "run_id": hit.killed.run_id, "steps_again": again, "gap_s": round(gap, 3),
                     "lost_s": round(again * _step_seconds(grid, hit.killed.run_id) + gap, 3),
                     "alone": not between})  # fmt: skip
    return rows


def _step_seconds(grid: Grid, run_id: str) -> float:
    lines = read_lines(grid.bench.reference / run_id / "metrics.jsonl", METRIC_FIELDS)
    return float(lines[-1]["seconds"]) / float(lines[-1]["step"])


def summarise(losses: list[dict[str, Any]]) -> dict[str, float]:
    """Median and worst of what kills cost, and the longest gap."""
    parts = {"": losses, "_alone": [row for row in losses if row["alone"]]}
    told: dict[str, float] = {}
    for name, rows in parts.items():
        told[f"kills{name}"] = len(rows)
        told[f"steps_again_median{name}"] = statistics.median(row["steps_again"] for row in rows) if rows else 0
        told[f"lost_s_median{name}"] = round(statistics.median(row["lost_s"] for row in rows), 2) if rows else 0.0
        told[f"lost_s_worst{name}"] = max((row["lost_s"] for row in rows), default=0.0)
        told[f"longest_gap_s{name}"] = max((row["gap_s"] for row in rows), default=0.0)
    return told
