"""The run folder as the trainer writes it: spec, metrics, attempts, lock, result.

metrics.jsonl has a line per logging interval: step, tokens, flops, loss (mean training loss of the interval,
nats per token), lr, grad_norm, seconds. Lines are appended and flushed; on resume those past the restored step
are cut off, so the finished file is the one that an uninterrupted run would have written, `seconds` aside.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from jaxscale.data.store import NO_SPACE
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.flops import count_params
from jaxscale.runs import (
    METRIC_FIELDS,
    RunResult,
    RunSpec,
    from_plain,
    read_json,
    read_lines,
    run_dir,
    to_plain,
    write_json,
)
from jaxscale.sweep import find_parent, read_result
from jaxscale.trunks import kept_dir

__all__ = ["RunFolder", "is_disk_full"]

MIN_FREE_BYTES = 64 << 20
"""Free disk below which no run is started, besides room for one more checkpoint."""
STATE_BYTES = 12
"""Bytes of a checkpoint for each parameter: weights and two moments in float32."""
FIXED_KINDS = {"data_sha256": "training text", "precision": "compute precision (mesh.dtype)"}
"""What may not change between the starts of one run; other kinds may, and the result names all of them."""

ATTEMPT_FIELDS = frozenset({"step", "kinds"})
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
        states = 1 + len(self.spec.keeps)
        needed = MIN_FREE_BYTES + states * STATE_BYTES * count_params(self.spec.model)["total"]
        if free < needed:
            raise VerdictError(
                f"{self.path}: {free >> 20} MiB of disk left, this run needs {needed >> 20}; "
                f"free some and run the same command again"
            )
        file = self.path / "spec.json"
        if not file.exists():
            write_json(file, json.dumps(to_plain(self.spec), indent=1))
        problem = self._find_foreign(read_json(file))
        if problem:
            raise MisuseError(
                f"{file}: {problem}; the folder is foreign or was edited; move it away and run the same command again"
            )

    def _find_foreign(self, plain: Any) -> str:
        try:
            found = from_plain(plain, RunSpec).run_id
        except MisuseError as error:
            return f"is no specification of a run ({error})"
        return "" if found == self.spec.run_id else f"describes run {found}, not {self.spec.run_id}"

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
        return read_result(file) if file.exists() else None

    def has_begun(self) -> bool:
        """Whether a start is noted; a run that was reset has none."""
        return bool(read_lines(self.path / "attempts.jsonl", frozenset({"step", "kinds"})))

    def write_result(self, result: RunResult) -> None:
        """End the run: written whole or not at all."""
        write_json(self.path / "result.json", json.dumps(asdict(result), indent=1))

    def count_attempt(self, step: int, kinds: dict[str, str]) -> tuple[int, dict[str, str]]:
        """Note a start from `step`: how many there were before, and the kinds of all whose training is kept.

        MisuseError when the state at `step` was trained on another text or in another precision.
        """
        file = self.path / "attempts.jsonl"
        before = read_lines(file, ATTEMPT_FIELDS)
        kept = [attempt["kinds"] for attempt in _lead_to(step, before)]
        for kind, name in FIXED_KINDS.items():
            other = [then[kind] for then in kept if then[kind] != kinds[kind]]
            if other:
                raise MisuseError(
                    f"run {self.spec.run_id}: it began with {name} {other[0][:12]} and would go on with "
                    f"{kinds[kind][:12]}; restore that, or start it anew with `jaxscale reset DIR {self.spec.run_id}`"
                )
        line = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid(), "step": step, "kinds": kinds}
        _write_lines(file, [*before, line])
        own = [attempt for attempt in before if attempt["step"] >= self.spec.parent_step]
        return len(own), {kind: _join(kind, [*kept, kinds]) for kind in kinds}

    def keep_lines(self, step: int) -> Path:
        """Copy what led a trunk to `step`, its curve and its starts, for the branches; the folder of that state."""
        folder = kept_dir(self.path.parent, self.spec.run_id, step)
        lines = [line for line in read_lines(self.path / "metrics.jsonl", METRIC_FIELDS) if line["step"] <= step]
        attempts = read_lines(self.path / "attempts.jsonl", ATTEMPT_FIELDS)
        _write_lines(folder / "metrics.jsonl", lines)
        _write_lines(folder / "attempts.jsonl", [attempt for attempt in attempts if attempt["step"] < step])
        return folder

    def inherit(self) -> Path:
        """Begin a branch with its trunk's curve and starts; the folder of its trunk's state.

        MisuseError where the state is not there, with what brings it.
        """
        spec, study_dir = self.spec, self.path.parent
        state, reason = find_parent(study_dir, spec)
        if state != "kept":
            way = {"coming": "train the trunk first"}.get(
                state, f"train it anew after `jaxscale reset DIR {spec.parent}`"
            )
            raise MisuseError(f"run {spec.run_id}: {self._short_trunk() or f'{reason}; {way}'}")
        kept = kept_dir(study_dir, spec.parent, spec.parent_step)
        own = read_lines(self.path / "attempts.jsonl", ATTEMPT_FIELDS)
        before = read_lines(kept / "attempts.jsonl", ATTEMPT_FIELDS)
        _write_lines(self.path / "attempts.jsonl", before + [a for a in own if a["step"] >= spec.parent_step])
        shutil.copyfile(kept / "metrics.jsonl", self.path / "metrics.jsonl")
        return kept

    def _short_trunk(self) -> str:
        """What is wrong where the trunk never comes to this branch's step; empty if it does."""
        file = run_dir(self.path.parent, self.spec.parent) / "spec.json"
        trunk = from_plain(read_json(file), RunSpec) if file.exists() else None
        if trunk is None or self.spec.parent_step in trunk.keeps:
            return ""
        return (f"its trunk {self.spec.parent} has {trunk.steps} steps and keeps no state at {self.spec.parent_step}; "
                f"plan the study anew")  # fmt: skip

    def inherited_seconds(self) -> float:
        """Seconds of the trunk in this branch's curve; 0 for a run of its own."""
        lines = read_lines(self.path / "metrics.jsonl", METRIC_FIELDS)
        return max((float(line["seconds"]) for line in lines if line["step"] <= self.spec.parent_step), default=0.0)

    def cut_metrics(self, step: int) -> tuple[float, float]:
        """Drop metric lines past `step`: the seconds trained up to it, and the last line's loss (NaN: none)."""
        file = self.path / "metrics.jsonl"
        kept = [line for line in read_lines(file, METRIC_FIELDS) if line["step"] <= step]
        _write_lines(file, kept)
        return (float(kept[-1]["seconds"]), float(kept[-1]["loss"])) if kept else (0.0, math.nan)

    @contextmanager
    def metrics(self) -> Iterator[Any]:
        """Append access to metrics.jsonl: call with a dict to write a line."""
        with open(self.path / "metrics.jsonl", "a") as stream:

            def write(line: dict[str, float]) -> None:
                stream.write(json.dumps(line) + "\n")
                stream.flush()

            yield write


def _write_lines(file: Path, records: Sequence[dict[str, Any]]) -> None:
    write_json(file, "".join(json.dumps(record) + "\n" for record in records))


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lead_to(step: int, attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attempts whose training is part of the state at `step`: a start from further back undoes later ones."""
    kept: list[dict[str, Any]] = []
    for attempt in attempts:
        kept = [*(earlier for earlier in kept if earlier["step"] < attempt["step"]), attempt]
    return [attempt for attempt in kept if attempt["step"] < step]


def _join(kind: str, attempts: list[dict[str, str]]) -> str:
    return " then ".join(dict.fromkeys(attempt[kind] for attempt in attempts if kind in attempt))  # some are newer


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind this error; Orbax says it in words only."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    return any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))
