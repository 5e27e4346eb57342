"""What Slurm says: which jobs of ours are in its queue, and the number of one that it took.

A queue that cannot be asked is an error, never an empty queue: what is submitted twice costs twice. Jobs are found by
their names, which a launch makes unique and writes down before it submits.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxscale.errors import VerdictError

__all__ = ["QueuedTask", "ask_queue", "has_slurm", "need_slurm", "send_script"]

COMMANDS = ("squeue", "sbatch")

QUEUE_SECONDS = 120.0
"""How long Slurm's commands may take; a busy controller answers after their own retries."""

FORMAT = "%j|%F|%K|%T|%r"
"""Job name, job id of the array, task of the array, state, reason: the name has no | in it."""


@dataclass(frozen=True)
class QueuedTask:
    """One task of an array in the queue: pending, running, or being taken away (COMPLETING)."""

    job_name: str
    job_id: str
    task: int
    state: str
    reason: str


def has_slurm() -> bool:
    """Whether Slurm's commands are on this machine."""
    return all(map(shutil.which, COMMANDS))


def need_slurm() -> None:
    """VerdictError where Slurm's commands are not on this machine."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise VerdictError(f"{missing[0]}: no such command here; launch from a node that submits to Slurm, or see the "
                           f"script with --dry-run")  # fmt: skip


def ask_queue(job_names: Sequence[str]) -> list[QueuedTask]:
    """Every task of these jobs that has not ended; VerdictError where the queue does not answer."""
    if not job_names:
        return []
    command = ["squeue", "--noheader", "--array", f"--format={FORMAT}", f"--name={','.join(job_names)}"]
    code, out, err = _call(command)
    if code:
        raise VerdictError(f"squeue failed with code {code} ({_last_line(err)}), so what is queued is not known and "
                           f"nothing was submitted; launch again when it answers")  # fmt: skip
    return [_read_line(line, job_names) for line in out.splitlines() if line.strip()]


def _read_line(line: str, job_names: Sequence[str]) -> QueuedTask:
    parts = line.strip().split("|", 4)
    if len(parts) != 5 or parts[0] not in job_names or not parts[1].isdecimal() or not parts[2].isdecimal():
        raise VerdictError(f"squeue answered {line!r}, which is no task of this study's launches; nothing was "
                           f"submitted")  # fmt: skip
    return QueuedTask(parts[0], parts[1], int(parts[2]), parts[3], parts[4])


def send_script(script: Path, lock: int) -> str:
    """Submit, and give the job id; VerdictError with sbatch's words where it refuses.

    sbatch holds the launch's lock, too, so that a launcher killed meanwhile leaves it locked until sbatch is through.
    """
    code, out, err = _call(["sbatch", "--parsable", str(script)], lock)
    found = re.fullmatch(r"(\d+)(;\S*)?", out.strip())
    if code or not found:
        raise VerdictError(f"sbatch failed with code {code}: {_last_line(err or out)}")
    return found[1]


def _call(command: Sequence[str], lock: int | None = None) -> tuple[int, str, str]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=QUEUE_SECONDS, stdin=subprocess.DEVNULL,
            pass_fds=() if lock is None else (lock,),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer within {QUEUE_SECONDS:g} s"
    return done.returncode, done.stdout, done.stderr


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
