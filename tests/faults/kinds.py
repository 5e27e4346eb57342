"""Every kind of fault: a function of a grid at work that does its damage and tells whom it hit, or None if nobody.

What a fault can tell at once is checked here (an exit code, a refusal, a woken worker that must leave); what only the
end shows, in `checks`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import LEASE_S, Grid, Launcher, wait_for

from jaxscale.collect import collect_runs
from jaxscale.leases import Holding, find_holding

__all__ = ["KINDS", "Hit"]

DAY = 86400
PATIENCE_S = 60.0
"""Seconds after which a process that was asked to leave counts as hung."""
NEVER, LATE = 0.0, 4102444800.0
"""File times: 1970 and 2100."""


@dataclass(frozen=True)
class Hit:
    """What a fault did: in words, and the holder that it killed, if it did."""

    what: str
    killed: Holding | None = None
    at_step: int = 0


Fault = Callable[[Grid, random.Random], "Hit | None"]


def _hit(grid: Grid, held: Holding, what: str) -> Hit:
    return Hit(f"{what}, run {held.run_id}", held, grid.last_step(held.run_id))


def kill_parent(grid: Grid, rng: random.Random) -> Hit | None:
    """kill -9 of a launcher alone: its worker sees the end of its input, saves and leaves."""
    target = grid.training(rng)
    if target is None:
        return None
    launcher, held = target
    children = launcher.children()
    hit = _hit(grid, held, "parent killed")
    launcher.send(signal.SIGKILL, launcher.pid)
    if not wait_for(lambda: not any(map(_lives, children)), PATIENCE_S):
        grid.problems.append(f"kill_parent: the worker of a killed launcher still runs after {PATIENCE_S:g} s")
        launcher.send(signal.SIGKILL, *children)
    return hit


def kill_child(grid: Grid, rng: random.Random) -> Hit | None:
    """kill -9 of a worker alone: its launcher starts another."""
    target = grid.training(rng)
    if target is None:
        return None
    time.sleep(rng.uniform(0, 0.5))
    hit = _hit(grid, target[1], "worker killed")
    target[0].send(signal.SIGKILL, *target[0].children())
    return hit


def kill_starting(grid: Grid, rng: random.Random) -> Hit | None:
    """kill -9 of a worker in its first second, before it is ready: its launcher starts another."""
    target = grid.training(rng)
    if target is None:
        return None
    launcher, held = target
    before = launcher.children()
    hit = _hit(grid, held, "worker killed, and the next one before it was ready")
    launcher.send(signal.SIGKILL, *before)
    heirs = wait_for(lambda: [pid for pid in launcher.children() if pid not in before], 5)
    time.sleep(rng.uniform(0, 0.4))
    launcher.send(signal.SIGKILL, *heirs)
    if wait_for(lambda: not launcher.running, 2):
        grid.problems.append(f"kill_starting: the launcher left: {launcher.tail()}")
    return hit


def kill_both(grid: Grid, rng: random.Random) -> Hit | None:
    """kill -9 of a launcher and its worker, at any instant, also before training begins."""
    launcher = rng.choice(grid.launchers)
    if not launcher.running:
        return None
    time.sleep(rng.uniform(0, 1.0))
    held = launcher.holding()
    hit = _hit(grid, held, "both killed") if held else Hit("both killed before they held a run")
    launcher.send(signal.SIGKILL, launcher.pid, *launcher.children())
    return hit


def _kill_inside(where: str) -> Fault:
    def kill(grid: Grid, rng: random.Random) -> Hit | None:
        target = grid.training(rng)
        if target is None:
            return None
        launcher = target[0]
        slow = launcher.control / "slow"
        slow.write_text(f"{where} 3")
        notes = wait_for(lambda: list(launcher.control.glob(f"at-{where}-*")), 8)
        held = launcher.holding()
        if notes:
            time.sleep(rng.uniform(0, 0.2))
            launcher.send(signal.SIGKILL, *(int(note.name.split("-")[-1]) for note in notes))
            if rng.random() < 0.5:
                launcher.send(signal.SIGKILL, launcher.pid)
        slow.unlink()
        for note in launcher.control.glob("at-*"):
            note.unlink()
        if not notes:
            return None
        if held is None or where == "ended":  # nothing is left to train
            return Hit(f"killed inside {where}")
        return _hit(grid, held, f"killed inside {where}")

    kill.__doc__ = f"kill -9 inside: {where}."
    return kill


def kill_at_temporary(grid: Grid, rng: random.Random) -> Hit | None:
    """kill -9 of a worker as soon as the temporary folder of a checkpoint appears, while its arrays are written."""
    target = grid.training(rng)
    if target is None:
        return None
    launcher, held = target
    folder = grid.folder / held.run_id / "checkpoints"
    if not wait_for(lambda: list(folder.glob("*orbax-checkpoint-tmp*")), 5, every=0.0005):
        return None
    hit = _hit(grid, held, "killed while arrays of a checkpoint were written")
    launcher.send(signal.SIGKILL, *launcher.children())
    return hit


def term_parent(grid: Grid, rng: random.Random) -> Hit | None:
    """SIGTERM of a launcher: all is saved, exit code 75."""
    target = grid.training(rng)
    if target is None:
        return None
    launcher, held = target
    hit = _hit(grid, held, "launcher terminated")
    launcher.send(signal.SIGTERM, launcher.pid)
    code = launcher.wait(PATIENCE_S)
    if code not in (0, 75):  # 0: its last run ended at that moment
        grid.problems.append(f"term_parent: exit code {code} instead of 75: {launcher.tail()}")
    return Hit(hit.what)


def term_child(grid: Grid, rng: random.Random) -> Hit | None:
    """SIGTERM of a worker: it saves and leaves, its launcher starts another."""
    target = grid.training(rng)
    if target is None:
        return None
    children = target[0].children()
    target[0].send(signal.SIGTERM, *children)
    if not wait_for(lambda: not any(map(_lives, children)), PATIENCE_S):
        grid.problems.append(f"term_child: the worker still runs {PATIENCE_S:g} s after SIGTERM")
    return Hit(f"worker terminated, run {target[1].run_id}")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def disk_full(grid: Grid, rng: random.Random) -> Hit | None:
    """No byte is left on the study's file system for some seconds; who leaves for that is started again."""
    if not grid.mounted or grid.training(rng) is None:
        return None
    ballast = grid.folder / "ballast"
    _fill(ballast)
    os.truncate(ballast, max(0, ballast.stat().st_size - rng.choice((0, 4096, 1 << 16))))
    until = time.monotonic() + rng.uniform(1.5, 4)
    while time.monotonic() < until:
        time.sleep(0.1)
        grid.revive()
    ballast.unlink()
    return Hit("disk full")


def _fill(ballast: Path) -> None:
    """Write until no byte is left."""
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def _damage(file: Path, rng: random.Random, how: str) -> None:
    """Cut a file off somewhere, or flip one bit of it, in place."""
    size = file.stat().st_size
    with open(file, "r+b") as stream:
        if how == "truncate":
            stream.truncate(rng.randrange(size))
            return
        place = rng.randrange(size)
        stream.seek(place)
        byte = stream.read(1)[0] ^ (1 << rng.randrange(8))
        stream.seek(place)
        stream.write(bytes([byte]))


def _damage_checkpoint(how: str) -> Fault:
    def damage(grid: Grid, rng: random.Random) -> Hit | None:
        target = grid.training(rng)
        if target is None:
            return None
        launcher, held = target
        hit = _hit(grid, held, f"checkpoint {how}")
        launcher.send(signal.SIGKILL, launcher.pid, *launcher.children())
        wait_for(lambda: not launcher.running, 5)
        steps = [p for p in (grid.folder / held.run_id / "checkpoints").glob("*") if p.name.isdigit()]
        files = [f for f in sorted(max(steps, key=lambda p: int(p.name)).rglob("*")) if f.is_file()] if steps else []
        files = [f for f in files if f.stat().st_size]
        if not files:
            return hit  # killed all the same
        big = max(files, key=lambda f: f.stat().st_size)
        _damage(rng.choice([big, *files]), rng, how)
        return hit

    damage.__doc__ = f"{how} a file of the newest checkpoint of a run whose worker was killed."
    return damage


def _damage_running(name: str, how: str) -> Fault:
    def damage(grid: Grid, rng: random.Random) -> Hit | None:
        target = grid.training(rng)
        if target is None:
            return None
        launcher, held = target
        file = grid.folder / held.run_id / name
        if not file.exists() or not file.stat().st_size:
            return None
        _damage(file, rng, how)
        if (grid.folder / held.run_id / "result.json").exists():
            grid.broken[held.run_id] += 1  # it ended meanwhile
        if rng.random() < 0.5:
            return Hit(f"{name} {how}, run {held.run_id} goes on")
        hit = _hit(grid, held, f"{name} {how} and its worker killed")
        launcher.send(signal.SIGKILL, *launcher.children())
        return hit

    damage.__doc__ = f"{how} {name} of a run in training; every other time its worker is killed too."
    return damage


def _damage_ended(name: str, how: str) -> Fault:
    def damage(grid: Grid, rng: random.Random) -> Hit | None:
        ended = grid.ended_runs()
        if not ended:
            return None
        run_id = rng.choice(ended)
        grid.broken[run_id] += 1
        _damage(grid.folder / run_id / name, rng, how)
        rows, refused = spot_check(grid)
        if run_id in rows:
            grid.problems.append(f"{name} {how}: run {run_id} is still evidence")
        elif not any(word in refused.get(run_id, "") for word in ("damaged", "not valid", "not the", "running", "no ")):
            grid.problems.append(f"{name} {how}: the refusal of {run_id} names no damage: {refused.get(run_id)!r}")
        return Hit(f"{name} {how}, ended run {run_id}")

    damage.__doc__ = f"{how} {name} of a run that has ended: it stops being evidence and is made again."
    return damage


def _damage_lease(how: str) -> Fault:
    def damage(grid: Grid, rng: random.Random) -> Hit | None:
        target = grid.training(rng)
        if target is None:
            return None
        launcher, held = target
        file = grid.folder / "leases" / held.run_id / f"{held.generation:06}.json"
        if rng.random() < 0.5:
            _damage(file, rng, how)
            return Hit(f"lease {how}, its holder goes on")
        hit = _hit(grid, held, f"lease {how} and its holder killed")
        launcher.send(signal.SIGKILL, *launcher.children())
        _damage(file, rng, how)
        return hit

    damage.__doc__ = f"{how} the lease of a run in training; every other time its holder is killed too."
    return damage


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


def spot_check(grid: Grid) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What would be evidence at this moment, and what is refused why; a row unlike the reference's is a problem."""
    observations = collect_runs(grid.folder)
    refused = {str(row["run_id"]): str(row["reason"]) for row in observations.refused}
    grid.problems += [f"collect: run {run_id} is refused without a reason" for run_id in refused if not refused[run_id]]
    expected = {row["run_id"]: row for row in collect_runs(grid.bench.reference).frame.to_dict("records")}
    rows = {str(row["run_id"]): row for row in observations.frame.to_dict("records")}
    for run_id, row in rows.items():
        wrong = [name for name in row if name != "seconds" and repr(row[name]) != repr(expected[run_id][name])]
        grid.problems += [f"collect: {name} of run {run_id} is {row[name]!r}, undisturbed {expected[run_id][name]!r}"
                          for name in wrong]  # fmt: skip
    return rows, refused


KINDS: dict[str, Fault] = {
    "kill -9 parent": kill_parent,
    "kill -9 worker": kill_child,
    "kill -9 worker at its start": kill_starting,
    "kill -9 both": kill_both,
    "kill -9 while a checkpoint is written": kill_at_temporary,
    "kill -9 before a checkpoint is named": _kill_inside("save"),
    "kill -9 before result.json is named": _kill_inside("result"),
    "kill -9 after result.json is named": _kill_inside("ended"),
    "SIGTERM parent": term_parent,
    "SIGTERM worker": term_child,
    "full disk": disk_full,
    "truncated checkpoint": _damage_checkpoint("truncate"),
    "flipped checkpoint": _damage_checkpoint("flip"),
    "truncated spec": _damage_running("spec.json", "truncate"),
    "flipped spec": _damage_running("spec.json", "flip"),
    "truncated list of starts": _damage_running("attempts.jsonl", "truncate"),
    "flipped list of starts": _damage_running("attempts.jsonl", "flip"),
    "truncated curve of a running cell": _damage_running("metrics.jsonl", "truncate"),
    "flipped curve of a running cell": _damage_running("metrics.jsonl", "flip"),
    "truncated curve of an ended cell": _damage_ended("metrics.jsonl", "truncate"),
    "flipped curve of an ended cell": _damage_ended("metrics.jsonl", "flip"),
    "truncated result": _damage_ended("result.json", "truncate"),
    "flipped result": _damage_ended("result.json", "flip"),
    "truncated lease": _damage_lease("truncate"),
    "flipped lease": _damage_lease("flip"),
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
