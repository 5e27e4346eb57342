"""The run folder as the trainer writes it: spec, metrics, attempts, lock, result.

metrics.jsonl has a line per logging interval: step, tokens, flops, loss (mean training loss of the interval,
nats per token), lr, grad_norm, seconds. Lines are appended and flushed; on resume those past the restored step
are cut off, so the finished file is the one that an uninterrupted run would have written, `seconds` aside.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.runs import RunResult, RunSpec, from_plain, read_json, run_dir, to_plain, write_json

__all__ = ["RunFolder"]

MIN_FREE_BYTES = 64 << 20
"""Free disk below which no run is started."""


LOCK_PATIENCE_S = 60.0
"""Seconds to wait for another process to let go of a run."""


class RunFolder:
    """One run's folder under a study's."""

    def __init__(self, study_dir: Path, spec: RunSpec) -> None:
        self.path = run_dir(study_dir, spec.run_id)
        self.spec = spec

    @property
    def checkpoints(self) -> Path:
        """Folder that Orbax owns."""
        return self.path / "checkpoints"

    def prepare(self) -> None:
        """Create the folder and write spec.json, or check the one that is there.

        MisuseError if it belongs to another run; VerdictError if the disk is full.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path).free
        if free < MIN_FREE_BYTES:
            raise VerdictError(
                f"{self.path}: {free >> 20} MiB of disk left, a run needs {MIN_FREE_BYTES >> 20}; "
                f"free some and run the same command again"
            )
        file = self.path / "spec.json"
        if not file.exists():
            write_json(file, json.dumps(to_plain(self.spec), indent=1))
        found = from_plain(read_json(file), RunSpec)
        if found.run_id != self.spec.run_id:
            raise MisuseError(
                f"{file}: describes run {found.run_id}, not {self.spec.run_id}; the folder is foreign or was "
                f"edited; move it away and run the same command again"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; MisuseError if another keeps it. A dead process holds nothing.

        A worker whose parent was killed may still be saving: it gets a minute.
        """
        with open(self.path / "lock", "a+") as file:
            deadline = time.monotonic() + LOCK_PATIENCE_S
            while not _try_lock(file):
                if time.monotonic() > deadline:
                    raise MisuseError(
                        f"run {self.spec.run_id}: another process is training it in {self.path}; wait for it or stop it"
                    )
                time.sleep(0.2)
            yield

    def read_result(self) -> RunResult | None:
        """The result of an ended run, or None."""
        file = self.path / "result.json"
        return from_plain(read_json(file), RunResult) if file.exists() else None

    def write_result(self, result: RunResult) -> None:
        """End the run: written whole or not at all."""
        write_json(self.path / "result.json", json.dumps(asdict(result), indent=1))

    def count_attempt(self, step: int) -> int:
        """Note a start from `step` and return how many there were before."""
        file = self.path / "attempts.jsonl"
        before = len(file.read_text().splitlines()) if file.exists() else 0
        line = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid(), "step": step}
        with open(file, "a") as stream:
            stream.write(json.dumps(line) + "\n")
        return before

    def cut_metrics(self, step: int) -> float:
        """Drop metric lines past `step` and return the seconds trained up to it."""
        file = self.path / "metrics.jsonl"
        kept = [line for line in read_metrics(file) if line["step"] <= step]
        write_json(file, "".join(json.dumps(line) + "\n" for line in kept))
        return float(kept[-1]["seconds"]) if kept else 0.0

    @contextmanager
    def metrics(self) -> Iterator[Any]:
        """Append access to metrics.jsonl: call with a dict to write a line."""
        with open(self.path / "metrics.jsonl", "a") as stream:

            def write(line: dict[str, float]) -> None:
                stream.write(json.dumps(line) + "\n")
                stream.flush()

            yield write


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Lines of a metrics.jsonl that are whole; a torn last line (a kill mid-write) is left out."""
    if not file.exists():
        return []
    lines = file.read_text().split("\n")
    parsed = []
    for line in lines[:-1]:
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return parsed
