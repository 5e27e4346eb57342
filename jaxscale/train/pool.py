"""Train many cells with a pool of worker processes: one a core on CPU, one in all on accelerators.

The parent never imports JAX. It hands out jobs (a cell, or cells that train together) longest first, listens, shows
progress, restarts a worker that died, and on Ctrl-C asks all workers to save before it leaves. A cell that kills its
worker three times ends as failed, with the worker's last words; a pack that does is taken apart first.
Where hopeless runs are stopped, a contest stays in one job; taken apart, its runs are trained to their ends.
A branch is handed out when its trunk has kept the state it begins from, and ends as failed when that will never be.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, Queue
from typing import Any, cast

from jaxscale.config import MeshConfig
from jaxscale.errors import JaxscaleError, MisuseError, VerdictError
from jaxscale.hardware import has_device_file
from jaxscale.hopeless import Contest, check_stoppable
from jaxscale.runs import Cell
from jaxscale.sweep import Job, Way, fail_cell, find_parent, group_cells, next_job, read_plan, shape
from jaxscale.train.packs import Pack, PackFolder, open_packs
from jaxscale.train.seats import Seat, seat_worker

__all__ = ["MAX_ATTEMPTS", "PREEMPTED", "Terminated", "count_workers", "train_cells"]

MAX_ATTEMPTS = 3
"""Times a cell may take its worker down before it ends as failed."""
PREEMPTED = 75
"""Exit code of a process that was asked to stop and has saved."""
STOP_SECONDS = 60.0
"""How long workers get to save when the parent is interrupted."""

Listener = Callable[[dict[str, Any]], None]


class Terminated(Exception):
    """The parent got SIGTERM (a scheduler takes the machine back); its workers have saved."""


@dataclass
class _Worker:
    """A process, what it trains, what of that has ended, the shapes it has compiled, and one it may be compiling."""

    index: int
    process: subprocess.Popen[str]
    log: Path
    job: Job | None = None
    ready: bool = False
    ended: set[str] = field(default_factory=set)
    compiled: set[Hashable] = field(default_factory=set)
    compiling: Hashable = None


def count_workers(mesh: MeshConfig) -> tuple[int, bool]:
    """(worker processes, whether each gets cores of its own)."""
    if _has_accelerator():
        return max(1, mesh.workers), False
    cores = len(os.sched_getaffinity(0))
    return (min(mesh.workers, cores) if mesh.workers else cores), True


def _has_accelerator() -> bool:
    """Whether JAX sees a GPU or TPU; asked of a child process, and only where a device file hints at one."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu" or not has_device_file():
        return False
    probe = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(probe, capture_output=True, text=True).stdout.strip() not in ("cpu", "")


def train_cells(
    study_dir: Path, cells: Sequence[Cell], mesh: MeshConfig, listen: Listener = lambda event: None,
    contests: Sequence[Contest] = (),
) -> None:  # fmt: skip
    """Train every cell to its end, in packs as `mesh.packs` says; `listen` gets each event with the worker's index.

    With `contests`, which hold all of the cells, hopeless runs are stopped early and end as censored. Raises what a
    worker reported as the user's to mend (data missing, disk full), and Terminated on SIGTERM, after all have saved.
    """
    if not cells:
        return
    check_stoppable([cell for contest in contests for cell in contest.cells])
    workers, pinned = count_workers(mesh)
    rivals = {run_id: ids for contest in contests for run_id, ids in contest.rivals.items()}
    jobs = _resume_packs(study_dir, cells)
    begun = {cell.run_id for job in jobs for cell in job.cells}
    jobs += group_cells([cell for cell in cells if cell.run_id not in begun], workers, mesh.packs, contests)
    workers = min(workers, len(jobs))
    seats = [seat_worker(i, workers, mesh, cells) if pinned else None for i in range(workers)]
    pool = _Pool(study_dir, [_allow_stops(job, rivals, cells) for job in jobs], {cell.run_id for cell in cells}, listen,
                 seats, rivals)  # fmt: skip
    with _raise_on_sigterm():
        try:
            pool.run()
        finally:
            pool.stop()


def _resume_packs(study_dir: Path, cells: Sequence[Cell]) -> list[Job]:
    """Packs that were begun and hold a waiting cell: the same runs together again, for their states lie together."""
    waiting = {cell.run_id for cell in cells}
    begun = [pack for pack in open_packs(study_dir) if waiting & set(pack.run_ids)]
    planned = {cell.run_id: cell for cell in read_plan(study_dir).cells} if begun else {}
    whole: list[Pack] = []
    for pack in begun:  # a kill may leave two packs with a run in common: one of them holds it now
        taken = {run_id for other in whole for run_id in other.run_ids}
        if set(pack.run_ids) <= set(planned) and not set(pack.run_ids) & taken:
            whole.append(pack)
    return [Job(tuple(planned[run_id] for run_id in pack.run_ids), cast(Way, pack.way)) for pack in whole]


def _allow_stops(job: Job, rivals: Mapping[str, Mapping[str, bool]], cells: Sequence[Cell]) -> Job:
    """The job, with its runs stopped where hopeless if no rival of theirs trains in another job."""
    elsewhere = {cell.run_id for cell in cells} - {cell.run_id for cell in job.cells}
    known = [rivals.get(cell.run_id) for cell in job.cells]
    return replace(job, stops=bool(rivals) and all(ids is not None and not elsewhere & set(ids) for ids in known))


@contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated, once; only the main thread may ask for that."""

    def leave(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated("stopped by SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Pool:
    """The parent's side: cells waiting, workers, events."""

    def __init__(
        self, study_dir: Path, waiting: list[Job], open_ids: set[str], listen: Listener,
        seats: Sequence[Seat | None], rivals: Mapping[str, Mapping[str, bool]] | None = None,
    ) -> None:  # fmt: skip
        self.rivals = rivals or {}
        self.study_dir, self.waiting, self.listen, self.seats = study_dir, waiting, listen, seats
        self.open_ids = open_ids
        self.events: Queue[tuple[_Worker, dict[str, Any] | None]] = Queue()
        self.workers: dict[int, _Worker] = {}
        self.attempts: Counter[Job] = Counter()

    def run(self) -> None:
        for index in range(len(self.seats)):
            self._start(index)
        while self.workers:
            self._feed_idle()
            try:
                worker, event = self.events.get(timeout=1.0)
            except Empty:
                continue
            if event is None:
                self._bury(worker)
            else:
                self._hear(worker, event)

    def _start(self, index: int) -> None:
        """Start a worker and a thread that turns its output into events, None for its end."""
        logs = self.study_dir / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"worker{index}.log"
        seat = self.seats[index]
        with open(log, "w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "jaxscale.train.worker", str(self.study_dir), seat.listed if seat else ""],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=seat.environment() if seat else dict(os.environ),
                start_new_session=True,  # Ctrl-C reaches the parent only, which lets them save
            )
        worker = _Worker(index, process, log)
        self.workers[index] = worker
        threading.Thread(target=self._pump, args=(worker,), daemon=True).start()

    def _pump(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        with worker.process.stdout as stream:
            for line in stream:
                if line.startswith("{") and line.endswith("}\n"):  # a kill may tear the last line
                    self.events.put((worker, json.loads(line)))
        worker.process.wait()
        self.events.put((worker, None))

    def _hear(self, worker: _Worker, event: dict[str, Any]) -> None:
        if event["event"] == "error":
            raise {2: MisuseError, 1: VerdictError}.get(event["exit_code"], JaxscaleError)(event["message"])
        job = worker.job
        if event["event"] == "compiled":
            self.listen({"worker": worker.index, **event})
            return
        if event["event"] in ("progress", "ended"):
            worker.compiling = None
        if event["event"] == "ended":
            assert job is not None
            worker.compiled.add(shape(job.cells[0]))
            worker.ended.add(event["run_id"])
        if job is None or worker.ended >= {cell.run_id for cell in job.cells}:
            self._hand_out(worker)
        if event["event"] == "ended":
            if event["run_id"] not in self.open_ids:
                return  # ended at an earlier start, and only read
            self.open_ids.remove(event["run_id"])
        self.listen({"worker": worker.index, **event})

    def _hand_out(self, worker: _Worker) -> None:
        assert worker.process.stdin is not None
        worker.ready, worker.job, worker.ended = True, None, set()
        job = self._choose(worker)
        if job is None:
            if not self.waiting:
                worker.process.stdin.close()
            return  # else it idles until a trunk has come far enough
        worker.job = job
        worker.compiling = None if self._is_compiled(shape(job.cells[0])) else shape(job.cells[0])
        self.waiting.remove(job)
        self.listen({"worker": worker.index, "event": "start", "run_id": job.cells[0].run_id, "runs": len(job.cells)})
        rivals = {cell.run_id: self.rivals[cell.run_id] for cell in job.cells} if job.stops else {}
        order = {"runs": [cell.run_id for cell in job.cells], "way": job.way, "rivals": rivals}
        try:
            worker.process.stdin.write(json.dumps(order) + "\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; its burial puts the cell back

    def _feed_idle(self) -> None:
        """Give work to the workers that waited for a trunk, or let them go when none is left."""
        for worker in list(self.workers.values()):
            if worker.ready and worker.job is None and not _closed(worker):
                self._hand_out(worker)

    def _choose(self, worker: _Worker) -> Job | None:
        """The job to hand out next; None where there is none, or all that wait are branches whose trunk is coming."""
        self._end_orphans()
        states = {job: find_parent(self.study_dir, job.cells[0].spec)[0] for job in self.waiting}
        ready = [job for job, state in states.items() if state != "coming"]  # a lost state is told by its worker
        if not ready and not any(other.job for other in self.workers.values()):
            ready = self.waiting  # nobody here trains the trunk
        busy = {other.compiling for other in self.workers.values()}
        free = [job for job in ready if shape(job.cells[0]) not in busy]  # else two compile the same, or one waits
        return next_job(free or ready, worker.compiled) if ready else None

    def _is_compiled(self, wanted: Hashable) -> bool:
        return any(wanted in other.compiled for other in self.workers.values())

    def _end_orphans(self) -> None:
        """End branches whose trunk ended before the step they begin from."""
        for job in list(self.waiting):
            state, reason = find_parent(self.study_dir, job.cells[0].spec)
            if state == "ended":
                self.waiting.remove(job)
                self._fail(-1, job.cells[0], reason)

    def _fail(self, index: int, cell: Cell, reason: str, shown: str | None = None) -> None:
        fail_cell(self.study_dir, cell, reason)
        self.open_ids.discard(cell.run_id)
        self.listen({"worker": index, "event": "ended", "run_id": cell.run_id, "state": "failed", "loss": None,
                     "reason": shown or reason})  # fmt: skip

    def _bury(self, worker: _Worker) -> None:
        """A worker has ended: put its cell back or give it up, and start another if cells wait."""
        del self.workers[worker.index]
        _close(worker)
        if not worker.ready:
            raise VerdictError(f"worker {worker.index} did not start: {_last_words(worker)}; see {worker.log}")
        if worker.job is not None:
            how = f"worker ended with code {worker.process.returncode}: {_last_words(worker)}"
            self._put_back(worker, worker.job, how)
        if self.waiting:
            self._start(worker.index)

    def _put_back(self, worker: _Worker, job: Job, how: str) -> None:
        """A job whose worker died waits again; after MAX_ATTEMPTS a pack is taken apart and a cell ends as failed."""
        self.attempts[job] += 1
        cell = next((cell for cell in job.cells if cell.run_id not in worker.ended), job.cells[0])
        if self.attempts[job] < MAX_ATTEMPTS:
            self.waiting.append(job)
        elif len(job.cells) > 1:
            PackFolder(self.study_dir, Pack(tuple(each.run_id for each in job.cells), job.way)).remove()
            self.waiting += [Job((each,)) for each in job.cells if each.run_id in self.open_ids]
        else:
            self._fail(worker.index, cell, f"{how} ({MAX_ATTEMPTS} attempts)", how)
            return
        self.listen({"worker": worker.index, "event": "died", "run_id": cell.run_id, "reason": how})

    def stop(self) -> None:
        """Ask what still runs to save and leave; kill what does not within a minute."""
        for worker in self.workers.values():
            worker.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self.workers.values():
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
            _close(worker)
        self.workers.clear()


def _closed(worker: _Worker) -> bool:
    """Whether the worker has been told that no work is left."""
    return worker.process.stdin is None or worker.process.stdin.closed


def _close(worker: _Worker) -> None:
    """Close this end of an ended worker's input; what was still in it is of no use to anybody."""
    assert worker.process.stdin is not None
    with suppress(BrokenPipeError):
        worker.process.stdin.close()


def _last_words(worker: _Worker) -> str:
    lines = [line.strip() for line in worker.log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it left no message"
