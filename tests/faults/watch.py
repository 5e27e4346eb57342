"""A thread that notes when each run of a grid got further, by its lease generations, starts and lines."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import Grid

__all__ = ["Seen", "Watch"]


@dataclass(frozen=True)
class Seen:
    """A run at a moment: its newest start (lease generation and the step it began from) and its last line."""

    time: float
    generation: int
    begun_from: int
    step: int


class Watch(threading.Thread):
    """Notes every change of a run's newest start or last line, about 20 times a second."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(daemon=True)
        self.grid, self.over = grid, threading.Event()
        self.seen: dict[str, list[Seen]] = {run_id: [] for run_id in grid.run_ids}

    def run(self) -> None:
        while not self.over.wait(0.05):
            for run_id in self.grid.run_ids:
                now = self._look(run_id)
                before = self.seen[run_id][-1] if self.seen[run_id] else None
                if now is not None and (before is None or replace(now, time=before.time) != before):
                    self.seen[run_id].append(now)

    def _look(self, run_id: str) -> Seen | None:
        folder = self.grid.folder / run_id
        start, line = _last_record(folder / "attempts.jsonl"), _last_record(folder / "metrics.jsonl")
        if start is None:
            return None
        step = line.get("step", 0) if line else 0
        return Seen(time.monotonic(), start.get("generation", 0), start.get("step", 0), step)

    def resumed(self, run_id: str, generation: int, after: float) -> Seen | None:
        """When a later holder of a run than this one had its first line."""
        later = (now for now in list(self.seen[run_id]) if now.time > after and now.generation > generation)
        return next((now for now in later if now.step > now.begun_from), None)


def _last_record(file: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError), open(file, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - 2000))
        lines = stream.read().split(b"\n")
        record = json.loads(lines[-2]) if len(lines) > 1 else None
        return record if isinstance(record, dict) else None
    return None
