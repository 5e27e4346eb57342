"""Rounds of faults: a new grid, faults of every kind in a random order until its runs have ended, checks; again."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checks import check_end, find_tracebacks, finish, measure_losses
from harness import Bench, Grid, wait_for
from hits import Hit, spot_check
from kinds import KINDS
from watch import Watch

__all__ = ["Tally", "run_rounds"]

CALM = 0.4
"""Share of the kills after which nothing happens until the run goes on: their cost is measured alone."""


@dataclass
class Tally:
    """Counts and findings over all rounds so far."""

    faults: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    problems: list[str] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)
    """Files of no consequence that nobody removed."""
    tracebacks: Counter[str] = field(default_factory=Counter)
    losses: list[dict[str, Any]] = field(default_factory=list)
    spot_checks: int = 0
    seconds: float = 0.0

    def to_plain(self) -> dict[str, Any]:
        return {**vars(self), "faults": dict(self.faults), "tracebacks": dict(self.tracebacks)}

    @classmethod
    def read(cls, file: Path) -> Tally:
        """What an earlier start noted; empty without one."""
        plain = json.loads(file.read_text()) if file.exists() else {}
        known = {
            name: plain[name]
            for name in ("rounds", "problems", "litter", "losses", "spot_checks", "seconds")
            if name in plain
        }
        return cls(Counter(plain.get("faults", {})), tracebacks=Counter(plain.get("tracebacks", {})), **known)


class _Bag:
    """Kinds in random order, each as often as any other; one that could not be done now comes back later."""

    def __init__(self, kinds: list[str], rng: random.Random) -> None:
        self.kinds, self.rng, self.left = kinds, rng, list[str]()

    def draw(self) -> str:
        if not self.left:
            self.left = self.rng.sample(self.kinds, len(self.kinds))
        return self.left.pop(0)

    def put_back(self, kind: str) -> None:
        self.left.insert(min(len(self.left), 3), kind)


def run_rounds(
    bench: Bench, rng: random.Random, tally: Tally, wanted: int, deadline: float, kinds: list[str] | None = None,
    say: Callable[[str], None] = print, after_round: Callable[[Tally], None] = lambda tally: None, calm: float = CALM,
) -> None:  # fmt: skip
    """Inject until `wanted` faults are counted or time.monotonic() passes `deadline`."""
    names = kinds or list(KINDS)
    if bench.no_mount and "full disk" in names:
        names.remove("full disk")
        say(f"full disk: left out, a tmpfs cannot be mounted here ({bench.no_mount})")
    bag = _Bag(names, rng)
    while tally.faults.total() < wanted and time.monotonic() < deadline:
        _round(bench, rng, tally, wanted, deadline, bag, say, calm)
        after_round(tally)


def _round(
    bench: Bench, rng: random.Random, tally: Tally, wanted: int, deadline: float, bag: _Bag,
    say: Callable[[str], None], calm: float,
) -> None:  # fmt: skip
    started, tally.rounds = time.monotonic(), tally.rounds + 1
    grid = Grid(bench, bench.root / f"round{tally.rounds:02}")
    watch = Watch(grid)
    hits: list[tuple[float, str, Hit]] = []
    try:
        grid.write_plan()
        watch.start()
        while grid.open_runs() and tally.faults.total() < wanted and time.monotonic() < deadline:
            grid.revive()
            time.sleep(rng.uniform(0.1, 0.6))
            _inject(grid, bag, rng, hits, tally, say)
            if hits and hits[-1][2].killed is not None and rng.random() < calm:
                _wait_for_heir(grid, watch, hits[-1])
            spot_check(grid)
            tally.spot_checks += 1
        wait_for(lambda: grid.revive() or not grid.open_runs(), 180, every=0.1)
        for launcher in grid.launchers:
            launcher.wait(60)
            launcher.end()
        finish(grid)
        watch.over.set()
        check_end(grid)
        tally.losses += measure_losses(grid, watch, hits)
        tally.tracebacks.update(find_tracebacks(grid))
    finally:
        watch.over.set()
        grid.close()
    for problem in grid.problems:
        say(f"PROBLEM round {tally.rounds}: {problem}")
    tally.problems += [f"round {tally.rounds}: {problem}" for problem in grid.problems]
    tally.litter += [f"round {tally.rounds}: {left}" for left in grid.litter]
    tally.seconds += time.monotonic() - started
    say(f"round {tally.rounds}: {len(hits)} faults in {time.monotonic() - started:.0f} s, "
        f"{tally.faults.total()} in all, {len(grid.problems)} problems")  # fmt: skip


def _wait_for_heir(grid: Grid, watch: Watch, last: tuple[float, str, Hit]) -> None:
    moment, _, hit = last
    assert hit.killed is not None
    run_id, generation = hit.killed.run_id, hit.killed.generation
    wait_for(lambda: grid.revive() or grid.result(run_id) or watch.resumed(run_id, generation, moment), 20, every=0.1)


def _inject(
    grid: Grid, bag: _Bag, rng: random.Random, hits: list[tuple[float, str, Hit]], tally: Tally,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    kind = bag.draw()
    began = time.monotonic()
    hit = KINDS[kind](grid, rng)
    if hit is None:
        bag.put_back(kind)
        return
    hits.append((time.monotonic(), kind, hit))
    tally.faults[kind] += 1
    say(f"  {tally.faults.total():>4} {kind}: {hit.what} ({time.monotonic() - began:.1f} s)")
