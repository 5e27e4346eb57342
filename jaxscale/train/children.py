"""A worker process as its parent sees it: how it is started, what it says, what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxscale.sweep import Job
from jaxscale.train.logs import name_log, read_last_words
from jaxscale.train.seats import Seat

__all__ = ["Worker", "start_worker"]


@dataclass
class Worker:
    """A process, what it trains, what of that has ended, the shapes it has compiled, and one it may be compiling."""

    index: int
    process: subprocess.Popen[str]
    log: Path
    job: Job | None = None
    ready: bool = False
    ended: set[str] = field(default_factory=set)
    compiled: set[Hashable] = field(default_factory=set)
    compiling: Hashable = None

    def events(self) -> Iterator[dict[str, Any]]:
        """What it says, until its output ends; a kill may tear the last line."""
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                if line.startswith("{") and line.endswith("}\n"):
                    yield json.loads(line)

    def is_closed(self) -> bool:
        """Whether it has been told that no work is left."""
        return self.process.stdin is None or self.process.stdin.closed

    def close(self) -> None:
        """Close this end of an ended worker's input; what was still in it is of no use to anybody."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def last_words(self) -> str:
        """What its log ends with."""
        return read_last_words(self.log)

    def note(self, words: str) -> None:
        """Add to its log what its parent saw; a full disk loses that only."""
        with suppress(OSError), open(self.log, "a") as log:
            log.write(words + "\n")


def start_worker(study_dir: Path, index: int, seat: Seat | None, name: str) -> Worker:
    """Start a worker on its seat; Ctrl-C reaches the parent only, which lets it save."""
    log = name_log(study_dir, name)
    cores = seat.listed if seat else ""
    with open(log, "a") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxscale.train.worker", str(study_dir), cores, log.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=seat.environment() if seat else dict(os.environ),
            start_new_session=True,
        )
    return Worker(index, process, log)
