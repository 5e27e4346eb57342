"""Train many cells with a pool of worker processes: one a core on CPU, one in all on accelerators.

The parent never imports JAX. It hands out jobs (a cell, or cells that train together) longest first, listens, shows
progress, restarts a worker that died, and on Ctrl-C asks all workers to save before it leaves. Other pools, on this
machine or others, may be at work in the same folder: what somebody else holds is passed over and looked at again, until
it has ended there or is free to be taken. A cell that kills its workers (`launch.max_attempts` in a row without a newer
checkpoint) ends as failed, with the last one's last words; a pack that does is taken apart first.
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
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import Empty, Queue
from typing import Any, cast

from jaxscale.config import LaunchConfig, MeshConfig, Study
from jaxscale.errors import JaxscaleError, MisuseError, VerdictError
from jaxscale.hardware import has_device_file
from jaxscale.hopeless import Contest, check_stoppable
from jaxscale.leases import Claims, find_holding
from jaxscale.plain import from_plain
from jaxscale.runs import Cell, run_dir
from jaxscale.spend import Purse
from jaxscale.sweep import (
    Job,
    Way,
    fail_cell,
    find_parent,
    group_cells,
    inspect_result,
    next_job,
    read_plan,
    shape,
)
from jaxscale.train.children import Worker, start_worker
from jaxscale.train.packs import Pack, PackFolder, open_packs
from jaxscale.train.seats import Seat, seat_worker

__all__ = ["PREEMPTED", "Terminated", "count_workers", "raise_on_sigterm", "train_cells"]

PREEMPTED = 75
"""Exit code of a process that was asked to stop and has saved."""
STOP_SECONDS = 60.0
"""How long workers get to save when the parent is interrupted."""
LOOK_S = 1.0
"""Seconds between looks at a job that another pool holds."""

Listener = Callable[[dict[str, Any]], None]


class Terminated(Exception):
    """The parent got SIGTERM (a scheduler takes the machine back); its workers have saved."""


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
    plan = read_plan(study_dir)
    launch = from_plain(plan.config, Study).launch
    seats = [seat_worker(i, workers, mesh, cells) if pinned else None for i in range(workers)]
    pool = _Pool(study_dir, [_allow_stops(job, rivals, cells) for job in jobs], {cell.run_id for cell in cells}, listen,
                 seats, rivals, launch, Purse(study_dir, plan))  # fmt: skip
    with raise_on_sigterm():
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
def raise_on_sigterm() -> Iterator[None]:
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
        launch: LaunchConfig | None = None, purse: Purse | None = None,
    ) -> None:  # fmt: skip
        self.rivals, self.launch, self.purse = rivals or {}, launch or LaunchConfig(), purse
        self.claims = Claims(study_dir, self.launch.lease_s)
        self.parked: dict[Job, float] = {}
        self.unpaid: set[Job] = set()
        """Jobs that nobody holds and the spend cap does not pay for."""
        self.study_dir, self.waiting, self.listen, self.seats = study_dir, waiting, listen, seats
        self.open_ids = open_ids
        self.events: Queue[tuple[Worker, dict[str, Any] | None]] = Queue()
        self.workers: dict[int, Worker] = {}
        self.attempts: Counter[Job] = Counter()
        self.next_count, self.starts, self.stillborn = 0.0, 0, 0

    def run(self) -> None:
        for index in range(len(self.seats)):
            self._start(index)
        while self.workers:
            self._feed_idle()
            self._check_purse()
            try:
                worker, event = self.events.get(timeout=LOOK_S)
            except Empty:
                continue
            if event is None:
                self._bury(worker)
            else:
                self._hear(worker, event)

    def _start(self, index: int) -> None:
        """Start a worker and a thread that turns its output into events, None for its end."""
        self.starts += 1
        worker = start_worker(self.study_dir, index, self.seats[index], f"{index}.{self.starts}")
        self.workers[index] = worker
        threading.Thread(target=self._pump, args=(worker,), daemon=True).start()

    def _pump(self, worker: Worker) -> None:
        for event in worker.events():
            self.events.put((worker, event))
        worker.process.wait()
        self.events.put((worker, None))

    def _hear(self, worker: Worker, event: dict[str, Any]) -> None:
        if event["event"] == "error":
            raise {2: MisuseError, 1: VerdictError}.get(event["exit_code"], JaxscaleError)(event["message"])
        job = worker.job
        if event["event"] == "compiled":
            self.listen({"worker": worker.index, **event})
            return
        if event["event"] in ("held", "lost", "apart"):
            self._take_back(worker, event)
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

    def _hand_out(self, worker: Worker) -> None:
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
        stale = {cell.run_id: digest for cell in job.cells if (digest := self.claims.stale_digest(cell.run_id))}
        order = {"runs": [cell.run_id for cell in job.cells], "way": job.way, "rivals": rivals, "stale": stale}
        try:
            worker.process.stdin.write(json.dumps(order) + "\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; its burial puts the cell back

    def _feed_idle(self) -> None:
        """Give work to the workers that waited for a trunk, or let them go when none is left."""
        for worker in list(self.workers.values()):
            if worker.ready and worker.job is None and not worker.is_closed():
                self._hand_out(worker)

    def _choose(self, worker: Worker) -> Job | None:
        """The job to hand out next; None where there is none, or what waits is held elsewhere or a branch too early."""
        self._end_orphans()
        while (job := self._pick(worker)) is not None:
            self.unpaid.discard(job)
            if self._is_free(job):
                if self.purse is None or self.purse.affords(job.cells):
                    return job
                self.unpaid.add(job)
            self.parked.setdefault(job, time.monotonic() + LOOK_S)
        return None

    def _pick(self, worker: Worker) -> Job | None:
        """The best of the jobs that were not looked at just now."""
        now = time.monotonic()
        self.parked = {job: until for job, until in self.parked.items() if until > now and job in self.waiting}
        waiting = [job for job in self.waiting if job not in self.parked]
        states = {job: find_parent(self.study_dir, job.cells[0].spec)[0] for job in waiting}
        ready = [job for job, state in states.items() if state != "coming"]  # a lost state is told by its worker
        if not ready and not any(other.job for other in self.workers.values()) and not self.parked:
            ready = waiting  # nobody trains the trunk
        busy = {other.compiling for other in self.workers.values()}
        free = [job for job in ready if shape(job.cells[0]) not in busy]  # else two compile the same, or one waits
        return next_job(free or ready, worker.compiled) if ready else None

    def _is_free(self, job: Job) -> bool:
        """Whether nobody else is at a job; what ended elsewhere is told, what is held there parts from the rest."""
        results = {cell: inspect_result(run_dir(self.study_dir, cell.run_id))[0] for cell in job.cells}
        if all(results.values()):
            self.waiting.remove(job)
            for cell, result in results.items():
                if result is not None and cell.run_id in self.open_ids:
                    self.open_ids.remove(cell.run_id)
                    self.listen({"worker": -1, "event": "ended", "run_id": cell.run_id, "state": result.state,
                                 "loss": result.loss, "reason": result.reason})  # fmt: skip
            return False
        holders = {cell: self.claims.find_holder(cell.run_id) for cell in job.cells if results[cell] is None}
        held = [cell for cell, found in holders.items() if found is not None]
        for cell in held:
            holding = holders[cell].holding if holders[cell] else None  # type: ignore[union-attr]
            self.listen({"worker": -1, "event": "held", "run_id": cell.run_id, "who": holding.who if holding else "?"})
        if held and len(job.cells) > 1 and not job.stops and len(held) < len(job.cells):
            self.waiting.remove(job)
            self.waiting += [Job((cell,)) for cell in held]
            self.waiting.append(replace(job, cells=tuple(cell for cell in job.cells if cell not in held)))
        return not held

    def _take_back(self, worker: Worker, event: dict[str, Any]) -> None:
        """A worker could not have its job, or lost it to another process; a pack that kills its workers is parted."""
        job, worker.job, worker.compiling = worker.job, None, None
        assert job is not None
        self.listen({"worker": worker.index, **event})
        if event["event"] == "apart":
            self.waiting += [Job((each,)) for each in job.cells if each.run_id in self.open_ids]
        else:
            self.waiting.append(job)
            self.parked[job] = time.monotonic() + LOOK_S
        self._hand_out(worker)

    def _check_purse(self) -> None:
        """VerdictError where the cap keeps what waits from beginning, and nothing runs; or where all is spent."""
        if self.purse is None or self.purse.cap is None or time.monotonic() < self.next_count:
            return
        self.next_count = time.monotonic() + self.launch.lease_s / 6
        idle = not any(worker.job for worker in self.workers.values())
        if self.purse.is_empty() or (idle and self.waiting and self.unpaid >= set(self.waiting)):
            raise VerdictError(f"launch.max_chip_hours: {self.purse.cap:g} chip-hours do not pay for the "
                               f"{len(self.open_ids)} cells that have not ended; all are saved; plan the study again "
                               f"with a higher --launch.max-chip-hours to go on")  # fmt: skip

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

    def _bury(self, worker: Worker) -> None:
        """A worker has ended: put its cell back or give it up, and start another if cells wait."""
        del self.workers[worker.index]
        worker.close()
        self.stillborn = 0 if worker.ready else self.stillborn + 1
        if not worker.ready and (worker.process.returncode > 0 or self.stillborn >= self.launch.max_attempts):
            raise VerdictError(f"worker {worker.index} did not start: {worker.last_words()}; see {worker.log}")
        if worker.job is not None:
            worker.note(f"worker ended with code {worker.process.returncode}")
            how = worker.last_words()
            self._put_back(worker, worker.job, how)
        if self.waiting:
            self._start(worker.index)

    def _put_back(self, worker: Worker, job: Job, how: str) -> None:
        """A job whose worker died waits again. Leases count the deaths of its holders, this those before a lease."""
        cell = next((cell for cell in job.cells if cell.run_id not in worker.ended), job.cells[0])
        self.attempts[job] += not self._was_held(cell, worker)
        if self.attempts[job] < self.launch.max_attempts:
            self.waiting.append(job)
        elif len(job.cells) > 1:
            PackFolder(self.study_dir, Pack(tuple(each.run_id for each in job.cells), job.way)).remove()
            self.waiting += [Job((each,)) for each in job.cells if each.run_id in self.open_ids]
        else:
            self._fail(worker.index, cell, f"{how} ({self.launch.max_attempts} attempts)", how)
            return
        self.listen({"worker": worker.index, "event": "died", "run_id": cell.run_id, "reason": how})

    def _was_held(self, cell: Cell, worker: Worker) -> bool:
        """Whether this worker held the run that it died with: then its lease tells of it."""
        found = find_holding(self.study_dir, cell.run_id)
        return found is not None and found.holding is not None and found.holding.pid == worker.process.pid

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
            worker.close()
        self.workers.clear()
