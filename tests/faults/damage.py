"""Disks that are full, and files that are cut off or have a bit flipped."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from harness import Grid, wait_for
from hits import Fault, Hit, hit_holder, spot_check

__all__ = ["damage_checkpoint", "damage_ended", "damage_lease", "damage_running", "disk_full"]


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


def damage_checkpoint(how: str) -> Fault:
    def damage(grid: Grid, rng: random.Random) -> Hit | None:
        target = grid.training(rng)
        if target is None:
            return None
        launcher, held = target
        hit = hit_holder(grid, held, f"checkpoint {how}")
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


def damage_running(name: str, how: str) -> Fault:
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
        hit = hit_holder(grid, held, f"{name} {how} and its worker killed")
        launcher.send(signal.SIGKILL, *launcher.children())
        return hit

    damage.__doc__ = f"{how} {name} of a run in training; every other time its worker is killed too."
    return damage


def damage_ended(name: str, how: str) -> Fault:
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


def damage_lease(how: str) -> Fault:
    def damage(grid: Grid, rng: random.Random) -> Hit | None:
        target = grid.training(rng)
        if target is None:
            return None
        launcher, held = target
        file = grid.folder / "leases" / held.run_id / f"{held.generation:06}.json"
        if rng.random() < 0.5:
            _damage(file, rng, how)
            return Hit(f"lease {how}, its holder goes on")
        hit = hit_holder(grid, held, f"lease {how} and its holder killed")
        launcher.send(signal.SIGKILL, *launcher.children())
        _damage(file, rng, how)
        return hit

    damage.__doc__ = f"{how} the lease of a run in training; every other time its holder is killed too."
    return damage
