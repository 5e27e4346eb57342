"""Every kind of fault: a function of a grid at work that does its damage and tells whom it hit, or None if nobody.

What a fault can tell at once is checked where it is made (an exit code, a refusal, a woken worker that must leave);
what only the end shows, in `checks`. Here: company, pauses, NaNs and clocks; the others in `kills` and `damage`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from damage import damage_checkpoint, damage_ended, damage_lease, damage_running, disk_full
from harness import LEASE_S, Grid, Launcher, wait_for
from hits import PATIENCE_S, Fault, Hit, spot_check
from kills import (
    kill_at_temporary,
    kill_both,
    kill_child,
    kill_inside,
    kill_parent,
    kill_starting,
    term_child,
    term_parent,
)

from jaxscale.leases import Holding, find_holding

__all__ = ["KINDS"]

DAY = 86400
NEVER, LATE = 0.0, 4102444800.0
"""File times: 1970 and 2100."""


def two_launchers(grid: Grid, rng: random.Random) -> Hit | None:
    """Two more `work` at the same instant, for some seconds; then SIGTERM."""
    extras = [grid.launch_extra(core, "work", str(grid.folder), "--workers", "1") for core in grid.bench.cores[:2]]
    time.sleep(rng.uniform(2, 4))
    for extra in extras:
        extra.send(signal.SIGTERM, extra.pid)
    for extra in extras:
        code = extra.wait(PATIENCE_S)
        if code not in (0, 75):
            grid.problems.append(f"two_launchers: exit code {code}: {extra.tail()}")
        extra.end()
    return Hit("two more launchers")


def two_runs(grid: Grid, rng: random.Random) -> Hit | None:
    """Two `train --all` at the same instant: one is refused in a sentence."""
    extras = [grid.launch_extra(core, "train", str(grid.folder), "--all") for core in grid.bench.cores[:2]]
    refused = wait_for(lambda: [extra for extra in extras if not extra.running], 10)
    others = [extra for extra in extras if extra not in refused]
    for extra in refused:
        code = extra.wait(1)
        if not (code == 2 and "another jaxscale process is at work there" in extra.tail()) and code != 0:
            grid.problems.append(f"two_runs: exit code {code}: {extra.tail()}")
    if len(refused) != 1 and grid.open_runs():
        grid.problems.append(f"two_runs: {len(refused)} of 2 were refused")
    for extra in others:
        extra.send(signal.SIGTERM, extra.pid)
        if (code := extra.wait(PATIENCE_S)) not in (0, 75) and grid.open_runs():  # else it had nothing to save
            grid.problems.append(f"two_runs: exit code {code} after SIGTERM: {extra.tail()}")
    for extra in extras:
        extra.end()
    return Hit("two `train --all`")


def _pause(who: str, where: str = "") -> Fault:
    def pause(grid: Grid, rng: random.Random) -> Hit | None:
        target = grid.training(rng)
        if target is None:
            return None
        launcher, held = target
        if where:
            held = _dwell(launcher, where, held)
            if held is None:
                return None
        children = launcher.children()
        stopped = [*children, launcher.pid] if who == "both" else children
        launcher.send(signal.SIGSTOP, *stopped)
        for left in ("slow", *(f"at-{where}-{pid}" for pid in children)):
            (launcher.control / left).unlink(missing_ok=True)
        before = grid.commits_of(children)
        heir = grid.launch_extra(launcher.core, "work", str(grid.folder), "--workers", "1", "--cells", held.run_id)
        taken = wait_for(lambda: _was_taken(grid, held), 4 * LEASE_S + 10)
        time.sleep(rng.uniform(0, 1))
        launcher.send(signal.SIGCONT, *stopped)
        if not taken and grid.result(held.run_id) is None and heir.running:
            grid.problems.append(f"pause: run {held.run_id} was not taken over in {4 * LEASE_S + 10:g} s")
        if taken and not wait_for(lambda: _has_left(launcher, held), PATIENCE_S):
            grid.problems.append(f"pause: the woken worker still holds run {held.run_id}")
        heir.send(signal.SIGTERM, heir.pid)
        if (code := heir.wait(PATIENCE_S)) not in (0, 75):
            grid.problems.append(f"pause: the heir's exit code is {code}: {heir.tail()}")
        heir.end()
        if where == "result":  # it had asked before it was stopped, asks again, and takes its result back
            grid.broken[held.run_id] += grid.commits_of(children) - before
        return Hit(f"{who} paused {where and 'inside ' + where}, run {held.run_id} {'' if taken else 'not '}taken over")

    pause.__doc__ = f"SIGSTOP of {who}, {where or 'anywhere'}, past the lease; its run is taken over; SIGCONT."
    return pause


def _dwell(launcher: Launcher, where: str, held: Holding) -> Holding | None:
    """What a launcher's worker holds when it has come to a place where it dwells for some seconds."""
    (launcher.control / "slow").write_text(f"{where} 5")
    if wait_for(lambda: list(launcher.control.glob(f"at-{where}-*")), 8):
        return launcher.holding()
    (launcher.control / "slow").unlink()
    return None


def _was_taken(grid: Grid, held: Holding) -> bool:
    found = find_holding(grid.folder, held.run_id)
    return found is not None and found.generation > held.generation and grid.last_step(held.run_id) > 0


def _has_left(launcher: Launcher, held: Holding) -> bool:
    """Whether a process of this launcher has no lock of that lease any more."""
    for pid in launcher.children():
        try:
            names = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if any(held.token in name for name in names):
            return False
    return True


def plant_nan(grid: Grid, rng: random.Random) -> Hit | None:
    """A NaN in the training loss at a step: the run ends as diverged, names it, is no evidence, and is reset."""
    target = grid.training(rng)
    if target is None:
        return None
    run_id = target[1].run_id
    steps = grid.plan.find_cell(run_id).spec.steps
    ahead = grid.last_step(run_id) + steps // 10
    if ahead >= steps - 1:
        return None
    at, order = rng.randint(ahead, min(steps, ahead + steps // 3)), grid.control / f"nan-{run_id}"
    order.write_text(str(at))
    result = wait_for(lambda: grid.revive() or grid.result(run_id), 40, every=0.1)
    order.unlink(missing_ok=True)
    done = order.with_name(f"{order.name}.done")
    if not done.exists():
        return None
    done.unlink()
    result = result or wait_for(lambda: grid.result(run_id), 5)
    if result is None or result.state != "diverged" or f"nan at step {at} " not in result.reason:
        grid.problems.append(f"plant_nan: step {at}, but the run ended as {result and (result.state, result.reason)}")
    rows, refused = spot_check(grid)
    if run_id in rows or f"diverged: training loss nan at step {at} " not in refused.get(run_id, ""):
        grid.problems.append(f"plant_nan: the refusal of {run_id} is {refused.get(run_id)!r}")
    grid.broken[run_id] += 1
    reset = grid.launch_extra(grid.bench.cores[0], "reset", str(grid.folder), run_id)
    if (code := reset.wait(PATIENCE_S)) != 0:
        grid.problems.append(f"plant_nan: reset ended with code {code}: {reset.tail()}")
    return Hit(f"NaN at step {at}, run {run_id}")


def jump_clock(grid: Grid, rng: random.Random) -> Hit | None:
    """time.time of a launcher and its worker moves by a day, forth or back, while they run."""
    launcher = rng.choice(grid.launchers)
    (launcher.control / "clock.new").write_text(str(rng.choice((-DAY, DAY, 0))))
    os.replace(launcher.control / "clock.new", launcher.control / "clock")
    time.sleep(0.3)
    return Hit("clock moved")


def jump_file_times(grid: Grid, rng: random.Random) -> Hit | None:
    """Files of the study get times of 1970 or 2100: leases, curves, checkpoints, results."""
    when, count = rng.choice((NEVER, LATE)), 0
    for file in sorted(grid.folder.rglob("*")):
        if rng.random() < 0.5:
            try:
                os.utime(file, (when, when))
                count += 1
            except FileNotFoundError:
                continue
    return Hit(f"{count} files of the year {1970 if when == NEVER else 2100}") if count else None


KINDS: dict[str, Fault] = {
    "kill -9 parent": kill_parent,
    "kill -9 worker": kill_child,
    "kill -9 worker at its start": kill_starting,
    "kill -9 both": kill_both,
    "kill -9 while a checkpoint is written": kill_at_temporary,
    "kill -9 before a checkpoint is named": kill_inside("save"),
    "kill -9 before result.json is named": kill_inside("result"),
    "kill -9 after result.json is named": kill_inside("ended"),
    "SIGTERM parent": term_parent,
    "SIGTERM worker": term_child,
    "full disk": disk_full,
    "truncated checkpoint": damage_checkpoint("truncate"),
    "flipped checkpoint": damage_checkpoint("flip"),
    "truncated spec": damage_running("spec.json", "truncate"),
    "flipped spec": damage_running("spec.json", "flip"),
    "truncated list of starts": damage_running("attempts.jsonl", "truncate"),
    "flipped list of starts": damage_running("attempts.jsonl", "flip"),
    "truncated curve of a running cell": damage_running("metrics.jsonl", "truncate"),
    "flipped curve of a running cell": damage_running("metrics.jsonl", "flip"),
    "truncated curve of an ended cell": damage_ended("metrics.jsonl", "truncate"),
    "flipped curve of an ended cell": damage_ended("metrics.jsonl", "flip"),
    "truncated result": damage_ended("result.json", "truncate"),
    "flipped result": damage_ended("result.json", "flip"),
    "truncated lease": damage_lease("truncate"),
    "flipped lease": damage_lease("flip"),
    "two launchers at once": two_launchers,
    "two `train --all` at once": two_runs,
    "both paused past the lease": _pause("both"),
    "worker paused past the lease": _pause("worker"),
    "worker paused before a checkpoint is named": _pause("worker", "save"),
    "worker paused before result.json is named": _pause("worker", "result"),
    "planted NaN": plant_nan,
    "clock moved by a day": jump_clock,
    "file times of 1970 or 2100": jump_file_times,
}
