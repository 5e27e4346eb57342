"""Processes that do the portions of a build: tasks are handed out one by one, largest first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any

from jaxscale.errors import MisuseError, VerdictError

__all__ = ["Crew", "Task"]

PACKAGE_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Task:
    """A line for a worker, and how much there is to do, in the unit in which it tells its progress."""

    line: dict[str, Any]
    size: int


class Crew:
    """`count` processes at work in a folder of portions; use as a context manager, which ends them."""

    def __init__(self, folder: Path, count: int) -> None:
        paths = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
        self._heard: SimpleQueue[tuple[int, dict[str, Any] | None]] = SimpleQueue()
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "jaxscale.data.portion", str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
            )
            for _ in range(count)
        ]  # fmt: skip
        self._listeners = [Thread(target=self._listen, args=(index,), daemon=True) for index in range(count)]
        for listener in self._listeners:
            listener.start()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process, listener in zip(self._processes, self._listeners, strict=True):
            process.kill()  # what it was at is of no use: a portion is whole or not there
            process.wait()
            listener.join()
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]

    def run(self, tasks: Sequence[Task], report: Callable[[int], None] | None = None) -> None:
        """Do all tasks; `report` hears how much is done of the sum of their sizes.

        Raises what a task raised, and VerdictError where a process died.
        """
        waiting = sorted(tasks, key=lambda task: task.size)
        at_work: dict[int, Task] = {}
        done, ended = dict[int, int](), 0
        for index in range(min(len(self._processes), len(waiting))):
            self._hand(index, waiting, at_work)
        while at_work:
            index, words = self._heard.get()
            if words is None:
                raise VerdictError(f"a process that builds token files ended with {self._processes[index].wait()}; "
                                   f"the same command goes on with what is done")  # fmt: skip
            if "failed" in words:
                _raise(words)
            if "done" in words:
                done[index] = words["done"]
            else:
                ended += at_work.pop(index).size
                done.pop(index, None)
                self._hand(index, waiting, at_work)
            if report:
                report(ended + sum(done.values()))

    def _hand(self, index: int, waiting: list[Task], at_work: dict[int, Task]) -> None:
        if waiting:
            at_work[index] = waiting.pop()
            stdin = self._processes[index].stdin
            assert stdin is not None
            try:
                stdin.write(json.dumps(at_work[index].line) + "\n")
                stdin.flush()
            except BrokenPipeError:
                pass  # its end is heard of next

    def _listen(self, index: int) -> None:
        stdout = self._processes[index].stdout
        assert stdout is not None
        with stdout:
            for line in stdout:
                if line.endswith("\n"):  # a kill may tear the last one
                    self._heard.put((index, json.loads(line)))
        self._heard.put((index, None))


def _raise(words: dict[str, Any]) -> None:
    """What a task raised in its process."""
    if words.get("errno"):
        raise OSError(words["errno"], words["failed"])
    raise (MisuseError if words["kind"] == "MisuseError" else VerdictError)(words["failed"])
