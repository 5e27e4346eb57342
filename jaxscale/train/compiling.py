"""A run's programs are compiled once a machine: by one process while the others wait for it, kept on disk, and counted.

The lock is a file beside the compile cache, held by the kernel: a process that dies lets go of it. What comes out of
the cache is counted as reused, whichever process put it there.
"""

from __future__ import annotations

import fcntl
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

__all__ = ["Compiled", "compile_alone", "count_compilations"]

MIN_SECONDS = 0.1
"""What compiles faster is not kept on disk: mostly single operations, run outside of any program."""
PROGRAMS = ("begin", "advance", "sum_losses")
"""Functions of `step.Program` that are compiled whole: init, training, validation; a pack's are named after them."""


@dataclass
class Compiled:
    """Programs that this process compiled and the seconds that took, and those it found in the cache."""

    programs: int = 0
    seconds: float = 0.0
    reused: int = 0

    def take(self) -> dict[str, float]:
        """The figures since the last call."""
        told = asdict(self)
        self.programs, self.seconds, self.reused = 0, 0.0, 0
        return told


def count_compilations() -> Compiled:
    """Begin to count the programs of this process; the figures grow."""
    counted, here, guard = Compiled(), threading.local(), threading.Lock()

    def hear_event(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            here.hit = True  # of the program whose duration this thread tells next

    def hear_duration(event: str, duration_secs: float, **more: Any) -> None:
        if event != "/jax/core/compile/backend_compile_duration":
            return
        hit, here.hit = getattr(here, "hit", False), False
        if not any(name in str(more.get("fun_name", "")) for name in PROGRAMS):
            return
        with guard:
            if hit:
                counted.reused += 1
            else:
                counted.programs, counted.seconds = counted.programs + 1, counted.seconds + duration_secs

    jax.monitoring.register_event_listener(hear_event)
    jax.monitoring.register_event_duration_secs_listener(hear_duration)
    return counted


_done: set[Path] = set()
"""Locks of programs that this process has."""


@contextmanager
def compile_alone(cache: str, key: str) -> Iterator[None]:
    """Hold the right to compile the program that `key` names, and to call it for the first time in this process.

    Without a cache, and in later calls, there is nothing to wait for.
    """
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    file = Path(cache).expanduser() / "locks" / f"{name}.lock"
    if not cache or file in _done:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
        _done.add(file)
