"""`work` as one of several processes that train each cell together: a parent that keeps its own process alive.

The parent loads no JAX, for a peer that dies takes its process down with a code that nobody can catch. Where Slurm
started it, Slurm puts the task back into its queue; elsewhere (a TPU pod, by hand) the parent starts its process again,
as the parents on the other hosts do, and they find each other and go on from the last checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxscale.cli.progress import StudyProgress
from jaxscale.config import Study
from jaxscale.errors import JaxscaleError, MisuseError, VerdictError
from jaxscale.runs import Cell
from jaxscale.train.logs import name_log, read_last_words
from jaxscale.train.pool import PREEMPTED, STOP_SECONDS, Terminated, count_workers
from jaxscale.train.seats import seat_worker

__all__ = ["work_together"]

FINAL = (0, 1, 2, PREEMPTED, 130)
"""Exit codes after which no other start would do better."""
PAUSE_S = 2.0
"""Seconds before another start: the others have to notice, too."""


def work_together(
    folder: Path, run_ids: Sequence[str], cells: Sequence[Cell], study: Study, console: Console
) -> int:  # fmt: skip
    """Train these cells with the other processes: 0 all ended, 1 one was refused; Terminated when all were stopped.

    VerdictError where the process ended with another code as often as `launch.max_attempts` in a row without a new
    cell, or once under Slurm, with that code as `exit_code`.
    """
    deaths, queued = 0, bool(os.environ.get("SLURM_JOB_ID"))
    with StudyProgress(cells, 1, console) as progress:
        for start in range(1, 1_000_000):
            ended, code, refusal, log = _run_once(folder, run_ids, cells, study, progress, start)
            if refusal is not None and code in (1, 2):
                raise refusal
            if code == PREEMPTED:
                raise Terminated("stopped by SIGTERM")
            if code in FINAL:
                return code
            deaths = 1 if ended else deaths + 1
            if queued or deaths >= study.launch.max_attempts:
                error = VerdictError(f"its process ended with code {code} ({read_last_words(log)}); see {log}; the "
                                     f"same command goes on from the last checkpoint")  # fmt: skip
                error.exit_code = code
                raise error
            console.print(f"the process ended with code {code}; started again", style="yellow", markup=False)
            time.sleep(PAUSE_S)
    raise AssertionError("a million starts")


def _run_once(
    folder: Path, run_ids: Sequence[str], cells: Sequence[Cell], study: Study, progress: StudyProgress, start: int
) -> tuple[int, int, JaxscaleError | None, Path]:  # fmt: skip
    """(cells ended, exit code, what it refused to do at all, its log)."""
    log = name_log(folder, f"gang.{start}")
    pinned = count_workers(study.mesh)[1]
    environment = seat_worker(0, 1, study.mesh, cells).environment() if pinned else dict(os.environ)
    with open(log, "a") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "jaxscale.train.gang", str(folder), log.name, *run_ids], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
        )  # fmt: skip
    ended, refusal = 0, None
    try:
        assert child.stdout is not None
        for line in child.stdout:
            event = _parse(line)
            if event.get("event") == "error":
                kind = MisuseError if event["exit_code"] == 2 else VerdictError
                refusal = kind(event["message"])
                progress.console.print(event["message"], style="red", markup=False, soft_wrap=True)
            elif event:
                ended += event["event"] == "ended"
                progress({"worker": 0, **event})
        code = child.wait()
    finally:
        _stop(child)
    return ended, code if code >= 0 else 128 - code, refusal, log


def _parse(line: str) -> dict[str, Any]:
    if line.startswith("{") and line.endswith("}\n"):
        with suppress(ValueError):
            event: dict[str, Any] = json.loads(line)
            return event
    return {}  # what libraries print


def _stop(child: subprocess.Popen[str]) -> None:
    """Have a process save that still runs; the end of its stdin asks for that."""
    assert child.stdin is not None
    with suppress(BrokenPipeError):
        child.stdin.close()
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
