"""The run folder as the trainer writes it: spec, metrics, attempts, lock, result.

metrics.jsonl has a line per logging interval: step, tokens, flops, loss (mean training loss of the interval,
nats per token), lr, grad_norm, seconds, crc, and with recipe.measure_noise grad_sq_small, grad_sq_big (mean squared
gradient norms of microbatches and batches) and microbatch_tokens. Lines are appended and flushed; on resume those past
the restored step are cut off, so the finished file is the one that an uninterrupted run would have written, `seconds`
aside.

Only the process that holds the run's lease writes here, and asks before each write whether it still does. A file that
is damaged (a seal that is not its content's) is moved to damaged/ and made again: spec.json from the plan, a result
from the last checkpoint, a curve by training anew from a checkpoint before the damage.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jaxscale.data.store import NO_SPACE, sync_file
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.flops import count_params
from jaxscale.leases import Claims, HeldElsewhere, Lease, LeaseLost, hold_all
from jaxscale.plain import from_plain, read_lines, read_sealed, seal_json, seal_line, to_plain, write_json
from jaxscale.runs import METRIC_FIELDS, RunResult, RunSpec, read_spec, run_dir
from jaxscale.storage import PosixStorage
from jaxscale.sweep import find_parent, inspect_result
from jaxscale.trunks import kept_dir

__all__ = ["RunFolder", "hold_runs", "is_disk_full"]

MIN_FREE_BYTES = 64 << 20
"""Free disk below which no run is started, besides room for one more checkpoint."""
STATE_BYTES = 12
"""Bytes of a checkpoint for each parameter: weights and two moments in float32."""
FIXED_KINDS = {"data_sha256": "training text", "precision": "compute precision (mesh.dtype)"}
"""What may not change between the starts of one run; other kinds may, and the result names all of them."""

ATTEMPT_FIELDS = frozenset({"step", "kinds"})
LOCK_PATIENCE_S = 75.0
"""Seconds to wait for another process to let go of a run: longer than it takes to tell that one is dead."""


class RunFolder:
    """One run's folder under a study's; `lease` is there while this process holds the run."""

    def __init__(self, study_dir: Path, spec: RunSpec) -> None:
        self.path = run_dir(study_dir, spec.run_id)
        self.spec = spec
        self.lease: Lease | None = None
        self._curve = bytearray()

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
        if file.exists() and (problem := self._find_foreign(file)):
            raise MisuseError(
                f"{file}: {problem}; the folder is foreign or was edited; move it away and run the same command again"
            )

    def _find_foreign(self, file: Path) -> str:
        """What says that the folder is another run's; empty where spec.json is this run's, or damaged."""
        try:
            plain = read_sealed(file)
            if not isinstance(plain, dict):
                return "is no specification of a run"
            found = from_plain(plain, RunSpec).run_id
        except MisuseError:
            return ""  # `mend` makes it again
        return "" if found == self.spec.run_id else f"describes run {found}, not {self.spec.run_id}"

    def mend(self) -> None:
        """Write spec.json where it is not there, and set damaged files aside; the run must be held."""
        self.check()
        file = self.path / "spec.json"
        try:
            known = file.exists() and read_spec(file) is not None
        except MisuseError:
            self._set_aside(file)
            known = False
        if not known:
            write_json(file, seal_json(to_plain(self.spec)))
        if inspect_result(self.path)[1]:
            self._set_aside(self.path / "result.json")

    def _set_aside(self, file: Path) -> None:
        aside = self.path / "damaged"
        aside.mkdir(exist_ok=True)
        file.rename(aside / f"{file.name}-{uuid.uuid4().hex[:8]}")

    def list_damaged(self) -> list[str]:
        """Names of what was set aside over the life of this run."""
        return sorted(path.name for path in (self.path / "damaged").glob("*"))

    @property
    def saved_step(self) -> int:
        """The newest step that a checkpoint here claims to hold."""
        return max((int(path.name) for path in self.checkpoints.glob("*") if path.name.isdigit()), default=0)

    def check(self) -> None:
        """LeaseLost where another process has taken the run; to be asked before each write."""
        if self.lease is not None:
            self.lease.check()

    def tell(self, **news: Any) -> None:
        """Fields of the lease that others are to see."""
        if self.lease is not None:
            self.lease.tell(**news)

    def read_result(self) -> RunResult | None:
        """The result of an ended run, or None; a damaged one is none."""
        return inspect_result(self.path)[0]

    def has_begun(self) -> bool:
        """Whether a start is noted; a run that was reset has none."""
        return bool(read_lines(self.path / "attempts.jsonl", frozenset({"step", "kinds"})))

    def write_result(self, result: RunResult) -> None:
        """End the run: written whole or not at all, and once; LeaseLost where another has ended it."""
        self.check()
        data = seal_json(to_plain(result)).encode()
        if not PosixStorage(self.path).create("result.json", data):
            raise LeaseLost(f"run {self.spec.run_id}: another process has ended it meanwhile; its result stands")
        try:
            self.check()
        except LeaseLost:  # taken over since the check before: the curve is the successor's, and its result will be
            (self.path / "result.json").unlink(missing_ok=True)
            raise

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
        held = self.lease.holding if self.lease else None
        told = {"generation": held.generation, "log": held.log} if held else {}
        line = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid(), "step": step, **told,
                "kinds": kinds}  # fmt: skip
        _write_lines(file, [*before, line])
        own = [attempt for attempt in before if attempt["step"] >= self.spec.parent_step]
        return len(own), {kind: _join(kind, [*kept, kinds]) for kind in kinds}

    def keep_lines(self, step: int) -> Path:
        """Copy what led a trunk to `step`, its curve and its starts, for the branches; the folder of that state."""
        self.check()
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
        lines = read_lines(kept / "metrics.jsonl", METRIC_FIELDS)
        if not lines or lines[-1]["step"] != spec.parent_step:
            raise MisuseError(f"run {spec.run_id}: the curve that its trunk kept in {kept} is damaged; train the trunk "
                              f"anew after `jaxscale reset DIR {spec.parent}`")  # fmt: skip
        _write_lines(self.path / "metrics.jsonl", lines)
        return kept

    def _short_trunk(self) -> str:
        """What is wrong where the trunk never comes to this branch's step; empty if it does."""
        file = run_dir(self.path.parent, self.spec.parent) / "spec.json"
        trunk = read_spec(file) if file.exists() else None
        if trunk is None or self.spec.parent_step in trunk.keeps:
            return ""
        return (f"its trunk {self.spec.parent} has {trunk.steps} steps and keeps no state at {self.spec.parent_step}; "
                f"plan the study anew")  # fmt: skip

    def inherited_seconds(self) -> float:
        """Seconds of the trunk in this branch's curve; 0 for a run of its own."""
        lines = read_lines(self.path / "metrics.jsonl", METRIC_FIELDS)
        return max((float(line["seconds"]) for line in lines if line["step"] <= self.spec.parent_step), default=0.0)

    def last_line(self) -> int:
        """The step up to which the curve is whole."""
        lines = read_lines(self.path / "metrics.jsonl", METRIC_FIELDS)
        return int(lines[-1]["step"]) if lines else 0

    def cut_metrics(self, step: int) -> tuple[float, float]:
        """Drop metric lines past `step`: the seconds trained up to it, and the last line's loss (NaN: none)."""
        file = self.path / "metrics.jsonl"
        kept = [line for line in read_lines(file, METRIC_FIELDS) if line["step"] <= step]
        _write_lines(file, kept)
        return (float(kept[-1]["seconds"]), float(kept[-1]["loss"])) if kept else (0.0, math.nan)

    def sync_metrics(self) -> None:
        """Bring the curve to the disk, ahead of the checkpoint that continues it; LeaseLost if another has the run."""
        self.check()
        file = self.path / "metrics.jsonl"
        if file.exists():
            sync_file(file)

    @contextmanager
    def metrics(self) -> Iterator[Any]:
        """Append access to metrics.jsonl: call with a dict to write a line."""
        file = self.path / "metrics.jsonl"
        self._curve = bytearray(file.read_bytes() if file.exists() else b"")
        with open(file, "a") as stream:

            def write(line: dict[str, float]) -> None:
                self.check()
                text = seal_line(line)
                stream.write(text)
                stream.flush()
                self._curve += text.encode()

            yield write

    def mend_curve(self) -> None:
        """Set the curve aside and write it again where it is not what this process wrote; no line may follow."""
        self.check()
        file = self.path / "metrics.jsonl"
        if file.exists():
            if file.read_bytes() == self._curve:
                return
            self._set_aside(file)
        if self._curve:
            write_json(file, self._curve.decode())


def _write_lines(file: Path, records: Sequence[dict[str, Any]]) -> None:
    write_json(file, "".join(map(seal_line, records)))


@contextmanager
def hold_runs(
    folders: Sequence[RunFolder], claims: Claims, job: str = "", saved_step: int | None = None,
    patience_s: float | None = None,
) -> Iterator[None]:  # fmt: skip
    """Hold these runs together for this process; HeldElsewhere if another keeps one for longer than `patience_s`.

    `saved_step` is a pack's; runs alone have their own. A worker whose parent was killed may still be saving.
    """
    deadline = time.monotonic() + (LOCK_PATIENCE_S if patience_s is None else patience_s)
    with ExitStack() as stack:
        while True:
            wanted = [(f.spec.run_id, f.saved_step if saved_step is None else saved_step) for f in folders]
            try:
                leases = stack.enter_context(hold_all(claims, wanted, job))
                break
            except HeldElsewhere:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        for folder, lease in zip(folders, leases, strict=True):
            folder.lease = lease
        try:
            yield
        except Exception:
            for folder in folders:
                folder.check()  # LeaseLost: what goes wrong after a take-over is its consequence
            raise


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
