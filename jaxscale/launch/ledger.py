"""What was submitted: one file a launch, written before sbatch is called.

    <study>/launches/lock          held by the launcher at work
                     <k>.json      schema jaxscale.launch/1: the job, the settings, the cells of every task
                     <k>.sh        its script
                     <k>-<task>.deaths   a line for every end of a task without a save

    submitting -> submitted        sbatch gave the job's number
               -> refused          sbatch said no
               -> lost             a launcher died before sbatch; no job of that name is in the queue

A record appears whole and once (jaxscale/storage.py), so two launchers never share a number, and tells its own damage.
"""

from __future__ import annotations

import fcntl
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from jaxscale.errors import MisuseError
from jaxscale.plain import from_plain, read_sealed, seal_json, to_plain
from jaxscale.storage import PosixStorage
from jaxscale.sweep import read_plan

__all__ = ["Launch", "create_launch", "hold_launches", "launch_file", "make_launch", "read_launches", "read_task",
           "update_launch"]  # fmt: skip

LOCK_SECONDS = 120.0
"""How long a launcher waits for another one."""


@dataclass(frozen=True)
class Launch:
    """One array: job `job_id` of Slurm, task i of it trains the cells `tasks[i]`."""

    number: int
    job_name: str
    tasks: tuple[tuple[str, ...], ...]
    settings: dict[str, Any]
    planned_chip_hours: float
    script: str
    submitted_at: str
    host: str
    state: Literal["submitting", "submitted", "refused", "lost"] = "submitting"
    job_id: str = ""
    reason: str = ""
    on: Literal["slurm"] = "slurm"
    schema: str = "jaxscale.launch/1"

    def to_json(self) -> str:
        """The record, schema jaxscale.launch/1."""
        plain = to_plain(self)
        return seal_json({"schema": plain.pop("schema"), **plain})


def launch_file(study_dir: Path, number: int, kind: Literal["json", "sh"] = "json") -> Path:
    """Record or script of one launch."""
    return Path(study_dir) / "launches" / f"{number}.{kind}"


def make_launch(
    study_dir: Path, study: str, number: int, tasks: tuple[tuple[str, ...], ...], settings: dict[str, Any],
    planned_chip_hours: float,
) -> Launch:  # fmt: skip
    """A launch that is about to be submitted, under a job name that no other launch has."""
    short = re.sub(r"[^\w.-]", "-", study, flags=re.ASCII)[:40]
    return Launch(
        number=number,
        job_name=f"jaxscale-{short}-{number}-{uuid.uuid4().hex[:8]}",
        tasks=tasks,
        settings=settings,
        planned_chip_hours=planned_chip_hours,
        script=str(launch_file(study_dir, number, "sh").absolute()),
        submitted_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
    )


def create_launch(study_dir: Path, launch: Launch) -> bool:
    """Write a new record; False where this number is taken."""
    return PosixStorage(study_dir).create(f"launches/{launch.number}.json", launch.to_json().encode())


def update_launch(study_dir: Path, launch: Launch, **changes: Any) -> Launch:
    """Replace the record by one with these changes."""
    launch = replace(launch, **changes)
    PosixStorage(study_dir).replace(f"launches/{launch.number}.json", launch.to_json().encode())
    return launch


def read_launches(study_dir: Path) -> list[Launch]:
    """Every launch of a study, by number; MisuseError for a record that is none."""
    folder = Path(study_dir) / "launches"
    files = [file for file in folder.glob("*.json") if file.stem.isdecimal()] if folder.is_dir() else []
    return [_read(file) for file in sorted(files, key=lambda file: int(file.stem))]


def _read(file: Path) -> Launch:
    plain = read_sealed(file)
    try:
        launch = from_plain(plain, Launch)
    except MisuseError as error:
        raise MisuseError(f"{file}: not the record of a launch ({error}); move it away once its job has left the "
                          f"queue") from error  # fmt: skip
    if launch.number != int(file.stem) or launch.schema != "jaxscale.launch/1":
        raise MisuseError(f"{file}: is launch {launch.number} of schema {launch.schema}; move it away once its job has "
                          f"left the queue")  # fmt: skip
    return launch


def read_task(study_dir: Path, number: int, task: int) -> tuple[str, ...]:
    """Run ids that one task of a launch trains, each a cell of the plan."""
    file = launch_file(study_dir, number)
    if not file.exists():
        raise MisuseError(f"--launch: {number} is no launch of {study_dir}; its launches are in {file.parent}")
    launch = _read(file)
    if not 0 <= task < len(launch.tasks):
        raise MisuseError(f"--task: {task} is outside the {len(launch.tasks)} tasks of launch {number}; use 0 to "
                          f"{len(launch.tasks) - 1}")  # fmt: skip
    planned = {cell.run_id for cell in read_plan(study_dir).cells}
    strange = [run_id for run_id in launch.tasks[task] if run_id not in planned]
    if strange:
        raise MisuseError(f"{file}: run {strange[0]!r} of task {task} is no cell of the plan; launch anew")
    return launch.tasks[task]


@contextmanager
def hold_launches(study_dir: Path) -> Iterator[int]:
    """One launcher at a time, for which others wait; gives the lock's file descriptor."""
    file = Path(study_dir) / "launches" / "lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+") as stream:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise MisuseError(f"{file}: another launcher has been at work for {LOCK_SECONDS:g} s; wait for "
                                      f"it, or end it") from None  # fmt: skip
                time.sleep(0.1)
        yield stream.fileno()
