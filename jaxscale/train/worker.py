"""A worker process: trains the cells its parent names, one line each way at a time.

stdin: a run id a line; the end of the stream (also a parent killed at once) asks it to save and stop.
stdout: a JSON object a line: ready, progress, ended, or error with the sentence a person should read.
SIGTERM saves and exits with 75; SIGINT is left to the parent.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from jaxscale.config import MeshConfig, Study
from jaxscale.errors import JaxscaleError
from jaxscale.runs import from_plain
from jaxscale.sweep import read_plan
from jaxscale.train.pool import PREEMPTED

__all__ = ["main", "use_compile_cache"]


def main(argv: list[str]) -> int:
    """Entry point: the study folder, and the core to stay on or -1."""
    study_dir, core = Path(argv[0]), int(argv[1])
    if core >= 0:
        os.sched_setaffinity(0, {core})  # before JAX sizes its thread pools
    stop = threading.Event()
    names: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # its put may be called in a signal handler

    def leave(*_: object) -> None:
        stop.set()
        names.put(None)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plan = read_plan(study_dir)
    mesh = from_plain(plan.config, Study).mesh
    threading.Thread(target=_listen, args=(names, stop), daemon=True).start()
    use_compile_cache(mesh)
    _tell("ready")
    while (name := names.get()) is not None:
        if not _train(study_dir, name, mesh, stop):
            return PREEMPTED
    return 0


def _listen(names: queue.SimpleQueue[str | None], stop: threading.Event) -> None:
    for line in sys.stdin:
        names.put(line.strip())
    stop.set()
    names.put(None)


def _train(study_dir: Path, run_id: str, mesh: MeshConfig, stop: threading.Event) -> bool:
    """Train one cell and tell how it went; False when it was preempted."""
    from jaxscale.train.loop import Preempted, Progress, train_run

    def report(progress: Progress) -> None:
        _tell("progress", **vars(progress))

    try:
        plan = read_plan(study_dir)
        result = train_run(
            plan.find_cell(run_id).spec,
            study_dir,
            mesh=mesh,
            on_progress=report,
            should_stop=stop.is_set,
            data_sha256=plan.data_sha256,
        )
    except Preempted:
        return False
    except JaxscaleError as error:
        _tell("error", run_id=run_id, message=str(error), exit_code=error.exit_code)
        return True
    except OSError as error:  # a file system's trouble is not the cell's
        _tell("error", run_id=run_id, message=f"run {run_id}: {error}; the same command goes on", exit_code=1)
        return True
    _tell("ended", run_id=run_id, state=result.state, loss=result.loss, reason=result.reason)
    return True


def use_compile_cache(mesh: MeshConfig) -> None:
    """Keep compiled programs on disk, so that a shape is compiled once a machine."""
    import jax

    if mesh.compile_cache:
        folder = Path(mesh.compile_cache).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _tell(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
