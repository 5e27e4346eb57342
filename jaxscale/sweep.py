"""The state of every cell of a study, which cells go together, and which a worker takes next.

States are read from the study folder, never remembered: result.json says how a run ended, a lease that lives says
that it is running, anything else is planned (a killed run, too: it resumes from its checkpoint; and one whose result
or curve is damaged: it is made again).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal

from jaxscale.errors import MisuseError
from jaxscale.hopeless import Contest
from jaxscale.leases import LEASE_S, Claims, HeldElsewhere, Holding, find_holding, is_gone
from jaxscale.plain import from_plain, read_json, read_lines, read_sealed, seal_json, to_plain
from jaxscale.runs import METRIC_FIELDS, Cell, Plan, RunResult, RunSpec, State, run_dir
from jaxscale.storage import PosixStorage
from jaxscale.trunks import has_kept

__all__ = [
    "CellStatus",
    "Job",
    "Way",
    "fail_cell",
    "find_parent",
    "group_cells",
    "hash_file",
    "inspect_result",
    "next_job",
    "pack_key",
    "read_plan",
    "read_result",
    "read_status",
    "reset_cell",
    "shape",
]

Way = Literal["auto", "process", "pack", "turn"]
"""How the runs of a job are trained: one at a time, together, in turn inside one program, or as measured."""

OWN_NUMBERS = frozenset({
    "lr", "embed_lr", "head_lr", "adam_lr", "momentum", "b1", "b2", "eps", "weight_decay", "clip_norm", "z_loss",
    "router_balance", "warmup_steps", "decay_steps", "final_fraction", "seed", "budget_flops",
})  # fmt: skip
OWN_SCALES = frozenset({"embed_std", "hidden_std", "head_std", "init_scale"})
"""Fields in which the runs of a pack may differ: all else is a shape, or the text."""

MAX_MEMBERS = 64
"""Runs in a job at most."""


@dataclass(frozen=True)
class Job:
    """What a worker takes at once: one cell, or cells of one `pack_key`."""

    cells: tuple[Cell, ...]
    way: Way = "process"
    stops: bool = False
    """Whether its runs are stopped where hopeless: no rival of theirs may train in another job."""

    @property
    def seconds(self) -> float:
        """Planned seconds of all its cells."""
        return sum(cell.seconds for cell in self.cells)


@dataclass(frozen=True)
class CellStatus:
    """One cell as its folder shows it; `loss` is the newest known (training) or final (validation) one."""

    cell: Cell
    state: State
    reason: str
    step: int
    loss: float | None
    result: RunResult | None
    holding: Holding | None = None
    """Its newest lease, of whoever holds or held it."""
    trained_s: float = 0.0
    """Seconds of training in its curve."""
    silent_s: float = 0.0
    """Seconds since that lease's last sign of life, by this machine's clock: for people, no decision rests on it."""


def read_plan(study_dir: Path) -> Plan:
    """The plan of a study folder; MisuseError when the folder holds none."""
    file = Path(study_dir) / "plan.json"
    if not file.exists():
        raise MisuseError(f"{study_dir}: no plan.json there; make one with `jaxscale plan STUDY.py`")
    read_json(file)
    return Plan.from_json(file.read_text())


def read_status(study_dir: Path, cells: Sequence[Cell]) -> list[CellStatus]:
    """Status of every cell, in the order given."""
    return [_cell_status(Path(study_dir), cell) for cell in cells]


def _cell_status(study_dir: Path, cell: Cell) -> CellStatus:
    folder = run_dir(study_dir, cell.run_id)
    result, damage = inspect_result(folder)
    found = find_holding(study_dir, cell.run_id)
    holding = found.holding if found else None
    if result is not None:
        return CellStatus(cell, result.state, result.reason, result.steps_done, result.loss, result, holding)
    step, loss, trained_s = _last_metric(folder / "metrics.jsonl")
    silent_s = _silent_s(study_dir, holding) if holding else 0.0
    if holding is not None and not holding.released and not is_gone(study_dir, holding):
        reason = f"{holding.who}, silent for {silent_s:.0f} s" if silent_s > LEASE_S else ""
        return CellStatus(cell, "running", reason, step, loss, None, holding, trained_s, silent_s)
    reason = f"{damage}; to be made again" if damage else f"stopped at step {step}" if step else ""
    return CellStatus(cell, "planned", reason, step, loss, None, holding, trained_s, silent_s)


def _silent_s(study_dir: Path, holding: Holding) -> float:
    file = study_dir / "leases" / holding.run_id / f"{holding.generation:06}.json"
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except OSError:
        return 0.0


def inspect_result(folder: Path) -> tuple[RunResult | None, str]:
    """(result, what is damaged) of a run's folder: a result counts if it and the curve beside it are what was written.

    Neither where the run has not ended. A run whose `damage` is told has to be made again.
    """
    stamps = tuple(_stamp(folder / name) for name in ("result.json", "metrics.jsonl"))
    return _inspect(folder, stamps) if stamps[0] else (None, "")


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4096)
def _inspect(folder: Path, stamps: tuple[object, ...]) -> tuple[RunResult | None, str]:
    """`stamps` tell one content of the files from another."""
    try:
        result = read_result(folder / "result.json")
    except MisuseError as error:
        return None, str(error)
    curve = folder / "metrics.jsonl"
    if result.metrics_sha256 and (not stamps[1] or hash_file(curve) != result.metrics_sha256):
        return None, f"{curve}: not the curve that the result was written with"
    return result, ""


def hash_file(file: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_result(file: Path) -> RunResult:
    """The result.json of a run; MisuseError with its path when it is damaged or none."""
    try:
        return from_plain(read_sealed(file), RunResult)
    except MisuseError as error:
        said = str(error) if str(file) in str(error) else f"{file}: not the result of a run ({error})"
        raise MisuseError(f"{said}; `jaxscale train` makes it again, `jaxscale reset` puts the cell back") from error


def _last_metric(file: Path) -> tuple[int, float | None, float]:
    lines = read_lines(file, METRIC_FIELDS)
    return (int(lines[-1]["step"]), float(lines[-1]["loss"]), float(lines[-1]["seconds"])) if lines else (0, None, 0.0)


def pack_key(spec: RunSpec) -> str:
    """Equal for runs that can train in one program: same shapes, text, batch and number of steps."""
    plain = {name: value for name, value in to_plain(spec).items() if name not in OWN_NUMBERS}
    plain["model"] = {name: value for name, value in plain["model"].items() if name not in OWN_SCALES}
    return json.dumps(plain, sort_keys=True)


def group_cells(cells: Sequence[Cell], workers: int, way: Way, contests: Sequence[Contest] = ()) -> list[Job]:
    """Cells as jobs: each its own under `process`, else a group of one `pack_key` split evenly over the workers.

    Trunks and branches are trained by themselves. What a contest holds stays in one job, in its order, so that which
    runs are stopped depends on no other worker.
    """
    if contests:
        return _group_contests(cells, workers, way, contests)
    alone = [cell for cell in cells if way == "process" or cell.spec.keeps or cell.spec.parent]
    jobs = [Job((cell,)) for cell in alone]
    groups: dict[str, list[Cell]] = {}
    for cell in cells if len(alone) < len(cells) else ():
        if cell.spec.keeps or cell.spec.parent:
            continue
        groups.setdefault(pack_key(cell.spec), []).append(cell)
    for group in groups.values():
        parts = max(workers, -(-len(group) // MAX_MEMBERS))
        jobs += [Job(tuple(group[i::parts]), way) for i in range(min(parts, len(group)))]
    return jobs


def _group_contests(cells: Sequence[Cell], workers: int, way: Way, contests: Sequence[Contest]) -> list[Job]:
    """Contests as jobs: each its own under `process`, else those of one `pack_key` dealt out to the workers."""
    waiting = set(cells)
    whole = [tuple(cell for cell in contest.cells if cell in waiting) for contest in contests]
    groups: dict[Hashable, list[tuple[Cell, ...]]] = {}
    for k, mine in enumerate(whole):
        if mine:
            groups.setdefault(k if way == "process" else pack_key(mine[0].spec), []).append(mine)
    jobs = []
    for group in groups.values():
        parts = max(workers, -(-sum(map(len, group)) // MAX_MEMBERS))
        dealt = [tuple(chain.from_iterable(group[i::parts])) for i in range(min(parts, len(group)))]
        jobs += [Job(part, way) for part in dealt]
    return jobs


def next_job(waiting: Sequence[Job], compiled: Set[Hashable]) -> Job:
    """The longest job, trunks first; among those nearly as long, one whose shape this worker has compiled already."""
    waiting = [job for job in waiting if job.cells[0].spec.keeps] or waiting
    longest = max(waiting, key=lambda job: job.seconds)
    known = [job for job in waiting if shape(job.cells[0]) in compiled and job.seconds > 0.7 * longest.seconds]
    return max(known, key=lambda job: job.seconds, default=longest)


def shape(cell: Cell) -> Hashable:
    """What a compiled program depends on within a study."""
    spec, same = cell.spec, dict.fromkeys(OWN_SCALES, 1.0)
    return replace(spec.model, **same), spec.optimizer, spec.schedule, spec.precision  # type: ignore[arg-type]


def find_parent(study_dir: Path, spec: RunSpec) -> tuple[Literal["kept", "coming", "lost", "ended"], str]:
    """Whether a branch can begin: its trunk's state is kept, coming, lost, or will never be, with the reason.

    A trunk that diverged or failed beyond a state that it keeps does not touch the branch there.
    """
    if not spec.parent or has_kept(study_dir, spec.parent, spec.parent_step):
        return "kept", ""
    result, _ = inspect_result(run_dir(study_dir, spec.parent))
    if result is None:
        return "coming", f"trunk {spec.parent} has not kept its state at step {spec.parent_step} yet"
    if result.state == "done":
        return "lost", f"the state of trunk {spec.parent} at step {spec.parent_step} is gone"
    return "ended", f"its trunk {spec.parent} {result.state}: {result.reason}"


def fail_cell(study_dir: Path, cell: Cell, reason: str) -> RunResult:
    """End a cell that cannot be trained as failed, with the reason; `jaxscale reset` puts it back."""
    result = RunResult(
        run_id=cell.run_id,
        state="failed",
        reason=reason,
        loss=None,
        loss_std_error=None,
        bits_per_byte=None,
        train_loss=None,
        n_params=cell.n_params,
        n_params_non_embedding=cell.n_params_non_embedding,
        n_params_total=cell.n_params_total,
        tokens=0,
        flops=0.0,
        steps_done=0,
        seconds=0.0,
        tokens_per_s=0.0,
        flops_per_s=0.0,
        restarts=0,
    )
    storage = PosixStorage(run_dir(study_dir, cell.run_id))
    storage.create("result.json", seal_json(to_plain(result)).encode())
    return result


def reset_cell(study_dir: Path, cell: Cell) -> None:
    """Put a cell back to planned: its folder is removed, and with it its checkpoints; its leases stay."""
    try:
        lease = Claims(study_dir).claim(cell.run_id, job="reset")
    except HeldElsewhere as error:
        raise MisuseError(f"run {cell.run_id}: it is being trained; stop it before resetting it ({error})") from error
    folder = run_dir(study_dir, cell.run_id)
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise MisuseError(f"run {cell.run_id}: {folder} cannot be removed ({error.strerror})") from error
    finally:
        lease.release("vacant")
