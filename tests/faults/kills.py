"""Processes that are killed or terminated, at any instant and inside the writes that matter."""

from __future__ import annotations

import random
import signal
import time

from harness import Grid, wait_for
from hits import PATIENCE_S, Fault, Hit, hit_holder, lives

__all__ = ["kill_at_temporary", "kill_both", "kill_child", "kill_inside", "kill_parent", "kill_starting", "term_child",
           "term_parent"]  # fmt: skip


def kill_parent(grid: Grid, rng: random.Random) -> Hit | None:
    """kill -9 of a launcher alone: its worker sees the end of its input, saves and leaves."""
    target = grid.training(rng)
    if target is None:
        return None
    launcher, held = target
    children = launcher.children()
    hit = hit_holder(grid, held, "parent killed")
    launcher.send(signal.SIGKILL, launcher.pid)
    if not wait_for(lambda: not any(map(lives, children)), PATIENCE_S):
        grid.problems.append(f"kill_parent: the worker of a killed launcher still runs after {PATIENCE_S:g} s")
        launcher.send(signal.SIGKILL, *children)
    return hit


def kill_child(grid: Grid, rng: random.Random) -> Hit | None:
    """kill -9 of a worker alone: its launcher starts another."""
    target = grid.training(rng)
    if target is None:
        return None
    time.sleep(rng.uniform(0, 0.5))
    hit = hit_holder(grid, target[1], "worker killed")
    target[0].send(signal.SIGKILL, *target[0].children())
    return hit


def kill_starting(grid: Grid, rng: random.Random) -> Hit | None:
    """kill -9 of a worker in its first second, before it is ready: its launcher starts another."""
    target = grid.training(rng)
    if target is None:
        return None
    launcher, held = target
    before = launcher.children()
    hit = hit_holder(grid, held, "worker killed, and the next one before it was ready")
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
    hit = hit_holder(grid, held, "both killed") if held else Hit("both killed before they held a run")
    launcher.send(signal.SIGKILL, launcher.pid, *launcher.children())
    return hit


def kill_inside(where: str) -> Fault:
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
        return hit_holder(grid, held, f"killed inside {where}")

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
    hit = hit_holder(grid, held, "killed while arrays of a checkpoint were written")
    launcher.send(signal.SIGKILL, *launcher.children())
    return hit


def term_parent(grid: Grid, rng: random.Random) -> Hit | None:
    """SIGTERM of a launcher: all is saved, exit code 75."""
    target = grid.training(rng)
    if target is None:
        return None
    launcher, held = target
    hit = hit_holder(grid, held, "launcher terminated")
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
    if not wait_for(lambda: not any(map(lives, children)), PATIENCE_S):
        grid.problems.append(f"term_child: the worker still runs {PATIENCE_S:g} s after SIGTERM")
    return Hit(f"worker terminated, run {target[1].run_id}")
