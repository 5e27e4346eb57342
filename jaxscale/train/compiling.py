"""A run's programs are compiled once a machine: by one process while the others wait for it, kept on disk, and counted.

The lock is a file beside the compile cache, held by the kernel: a process that dies lets go of it. What comes out of
the cache is counted as reused, whichever process put it there.
"""

from __future__ import annotations

import fcntl
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import jax

__all__ = ["Compiled", "compile_alone", "count_compilations"]

MIN_SECONDS = 0.1
"""What compiles faster is not kept on disk: mostly single operations, run outside of any program."""
PATIENCE_S, POLL_S = 900.0, 0.05
"""Seconds to wait for another process to compile, and between looks; after them both compile."""
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
def compile_alone(cache: str, key: str, should_stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold the right to compile the program that `key` names, and to call it for the first time in this process.

    Without a cache, and in later calls, there is nothing to wait for; nor among the processes of one program, which
    compile and begin together. A lock that cannot be had (a cache that is read-only or on a file system without locks,
    a holder that hangs, `should_stop`) saves nothing and is gone without.
    """
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    file = Path(cache).expanduser() / "locks" / f"{name}.lock"
    if not cache or file in _done or jax.process_count() > 1:
        yield
        return
    with ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _wait(held.enter_context(open(file, "a+")), should_stop)
        except OSError:
            pass
        yield
        _done.add(file)


def _wait(stream: IO[str], should_stop: Callable[[], bool]) -> None:
    """Until this process holds the lock, is asked to stop, or has been patient; OSError where there are no locks."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if should_stop() or time.monotonic() > deadline:
                return
        time.sleep(POLL_S)
