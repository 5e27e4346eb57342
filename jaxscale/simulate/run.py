"""Judge many studies by worker processes, each with a core and one thread of its own.

Which process judges a study changes nothing: its generator is (seed, number). Also one worker is a process: XLA
rounds otherwise where it may use threads, and the last digits would depend on `workers`. Workers are started anew,
never forked, because JAX's threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from queue import Queue
from typing import Any

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.summary import check_options
from jaxscale.fit.together import METHODS
from jaxscale.plain import to_plain
from jaxscale.simulate.count import Task
from jaxscale.simulate.result import Simulation, summarize
from jaxscale.simulate.scenario import Scenario

__all__ = ["Interrupted", "simulate_studies"]

Listener = Callable[[int, int], None]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
AHEAD = 2
"""Studies a worker has been handed at a time, so that it never waits for its parent."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a simulation; `partial` is what had been counted."""

    def __init__(self, partial: Simulation) -> None:
        super().__init__()
        self.partial = partial


def simulate_studies(
    scenario: Scenario,
    *,
    studies: int = 200,
    methods: Sequence[str] = ("isoflop",),
    resamplers: Sequence[str] = ("auto",),
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    workers: int = 1,
    listen: Listener = lambda done, studies: None,
) -> Simulation:
    """Draw `studies` studies of a scenario, fit each by every method and resampler, and count.

    `workers` processes share the studies; the result does not depend on it. `listen(done, studies)` follows it.
    Raises MisuseError for an option out of range, and Interrupted with what was counted on Ctrl-C.
    """
    task = Task(scenario, tuple(methods), tuple(resamplers), bootstrap, confidence, seed)
    _check(task, studies, workers)
    scenario.form  # noqa: B018  an unknown wrong form is told before a worker starts
    judged: list[list[dict[str, Any]]] = []
    stream = _judge_all(task, studies, min(workers, studies))
    try:
        for records in stream:
            judged.append(records)
            listen(len(judged), studies)
    except KeyboardInterrupt:
        raise Interrupted(summarize(task, studies, judged)) from None
    finally:
        stream.close()
    return summarize(task, studies, judged)


def _check(task: Task, studies: int, workers: int) -> None:
    if studies < 1 or workers < 1:
        raise MisuseError(f"studies {studies}, workers {workers}: both must be 1 or more")
    if task.seed < 0:
        raise MisuseError(f"seed: {task.seed} must be 0 or more")
    if task.bootstrap < 2:
        raise MisuseError(f"bootstrap {task.bootstrap}: intervals are what is counted, give 2 or more; 1000 is usual")
    for method in task.methods:
        if method not in METHODS:
            raise MisuseError(f"method {method!r} is unknown; use {', '.join(METHODS)}")
    for resample in task.resamplers:
        check_options(bootstrap=task.bootstrap, resample=resample, confidence=task.confidence)
    if not (task.methods and task.resamplers):
        raise MisuseError("give at least one method and one resampler")


def _judge_all(task: Task, studies: int, count: int) -> Generator[list[dict[str, Any]], None, None]:
    """Records of each study as workers finish it."""
    cores = sorted(os.sched_getaffinity(0))
    waiting, lines = iter(range(studies)), Queue[tuple[int, str | None]]()
    with tempfile.TemporaryFile("w+") as log:
        workers = [_start(task, cores[i] if count == len(cores) else -1, log) for i in range(count)]
        try:
            for index, worker in enumerate(workers):
                threading.Thread(target=_pump, args=(index, worker, lines), daemon=True).start()
                for _ in range(AHEAD):
                    _hand_out(worker, waiting)
            for _ in range(studies):
                index, line = lines.get()
                if line is None:
                    raise VerdictError(f"worker {index} ended before its studies: {_last_words(log)}")
                _hand_out(workers[index], waiting)
                yield json.loads(line)
        finally:
            for worker in workers:
                worker.kill()
                _close(worker)


def _start(task: Task, core: int, log: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jaxscale.simulate.worker", str(core)]
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment(),
        start_new_session=True,  # Ctrl-C reaches the parent only, which counts what is there
    )  # fmt: skip
    assert worker.stdin is not None
    with suppress(BrokenPipeError):  # it did not start; its stream's end says so
        worker.stdin.write(json.dumps(to_plain(task)) + "\n")
        worker.stdin.flush()
    return worker


def _environment() -> dict[str, str]:
    """One thread each, on the CPU: fits are many and small."""
    given = os.environ.get("XLA_FLAGS", "").split()
    flags = [flag for flag in given if "host_platform_device_count" not in flag]
    flags.append("--xla_cpu_multi_thread_eigen=false")
    one = dict.fromkeys(THREADS, "1")
    return {**os.environ, **one, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}


def _hand_out(worker: subprocess.Popen[str], waiting: Iterator[int]) -> None:
    assert worker.stdin is not None
    number = next(waiting, None)
    with suppress(BrokenPipeError):  # it has died; its stream's end says so
        if number is not None:
            worker.stdin.write(f"{number}\n")
        worker.stdin.flush()


def _pump(index: int, worker: subprocess.Popen[str], lines: Queue[tuple[int, str | None]]) -> None:
    assert worker.stdout is not None
    with worker.stdout as stream:
        for line in stream:
            if line.endswith("\n"):  # a kill may tear the last line
                lines.put((index, line))
    lines.put((index, None))


def _close(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    with suppress(BrokenPipeError):
        worker.stdin.close()
    worker.wait()


def _last_words(log: Any) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it left no message"
