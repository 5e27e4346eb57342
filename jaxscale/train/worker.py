"""A worker process: trains the cells its parent names, one line each way at a time.

stdin: a job a line, {"runs": [run id, ..], "way": .., "rivals": {run id: {run id: bool}}, "stale": {run id: lease}};
its end (also a parent killed at once) asks to save and stop.
stdout: a JSON object a line: ready, way, progress, ended; held or lost where another process has a run of the job;
apart where a pack keeps killing its workers; or error with the sentence a person should read.
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
from jaxscale.leases import Claims, HeldElsewhere, LeaseLost
from jaxscale.plain import from_plain
from jaxscale.runs import TUNING_ROLES, Cell, Plan
from jaxscale.sweep import Way, read_plan
from jaxscale.train.pool import PREEMPTED

__all__ = ["main", "use_compile_cache"]

PATIENCE_S = 0.0
"""Seconds to wait for a run that another process holds: the parent has others, and comes back to it."""


def main(argv: list[str]) -> int:
    """Entry point: the study folder, the cores to stay on, as "0,1", or "" for all, and the name of its log."""
    study_dir, cores = Path(argv[0]), {int(core) for core in argv[1].split(",") if core}
    if cores:
        os.sched_setaffinity(0, cores)  # before JAX sizes its thread pools
    stop = threading.Event()
    jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # its put may be called in a signal handler

    def leave(*_: object) -> None:
        stop.set()
        jobs.put(None)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    study = from_plain(read_plan(study_dir).config, Study)
    mesh = study.mesh
    claims = Claims(study_dir, study.launch.lease_s, argv[2])
    threading.Thread(target=_listen, args=(jobs, stop), daemon=True).start()
    use_compile_cache(mesh)
    from jaxscale.train.compiling import count_compilations

    compiled = count_compilations()
    _tell("ready")
    while (line := jobs.get()) is not None:
        whole = _train(study_dir, json.loads(line), study, claims, stop)
        _tell("compiled", **compiled.take())
        if not whole:
            return PREEMPTED
    return 0


def _listen(jobs: queue.SimpleQueue[str | None], stop: threading.Event) -> None:
    for line in sys.stdin:
        jobs.put(line)
    stop.set()
    jobs.put(None)


def _train(study_dir: Path, order: dict[str, Any], study: Study, claims: Claims, stop: threading.Event) -> bool:
    """Train the runs of one job and tell how they went; False when it was preempted."""
    from jaxscale.train.loop import Preempted
    from jaxscale.train.opening import PackWorn

    run_ids: list[str] = order["runs"]
    claims.believe(order["stale"])
    try:
        plan = read_plan(study_dir)
        cells = [plan.find_cell(run_id) for run_id in run_ids]
        _train_cells(study_dir, plan, cells, order["way"], order["rivals"], study, claims, stop)
    except Preempted:
        return False
    except (HeldElsewhere, LeaseLost, PackWorn) as error:
        event = {HeldElsewhere: "held", LeaseLost: "lost", PackWorn: "apart"}[type(error)]
        _tell(event, run_id=run_ids[0], message=str(error), who=getattr(error, "who", ""))
    except JaxscaleError as error:
        _tell("error", run_id=run_ids[0], message=str(error), exit_code=error.exit_code)
    except OSError as error:  # a file system's trouble is not the cell's
        _tell("error", run_id=run_ids[0], message=f"run {run_ids[0]}: {error}; the same command goes on", exit_code=1)
    return True


def _train_cells(
    study_dir: Path, plan: Plan, cells: list[Cell], way: Way, rivals: dict[str, dict[str, bool]], study: Study,
    claims: Claims, stop: threading.Event,
) -> None:  # fmt: skip
    from jaxscale.evals.record import find_evals
    from jaxscale.train.loop import Progress, train_pack
    from jaxscale.train.probe import choose_way

    def report(progress: Progress) -> None:
        _tell("progress", **vars(progress))

    specs, mesh = [cell.spec for cell in cells], study.mesh
    kept = cells[0].role not in (*TUNING_ROLES, "trunk")
    evals = find_evals(study.recipe) if kept else None
    if way == "auto":
        way, ms = choose_way(specs, mesh, sum(cell.seconds for cell in cells))
        _tell("way", run_id=specs[0].run_id, way=way, runs=len(specs), ms=ms)
    for part in [[spec] for spec in specs] if way == "process" else [specs]:
        results = train_pack(
            part, study_dir, way, mesh=mesh, on_progress=report, should_stop=stop.is_set,
            data_sha256=plan.text_of(cells[0]), keep_weights=kept,
            rivals=rivals, claims=claims, patience_s=PATIENCE_S, launch=study.launch, evals=evals,
            measure_noise=study.recipe.measure_noise,
        )  # fmt: skip
        for result in results:
            _tell("ended", run_id=result.run_id, state=result.state, loss=result.loss, reason=result.reason)


def use_compile_cache(mesh: MeshConfig) -> None:
    """Keep compiled programs on disk, so that a shape is compiled once a machine."""
    import jax

    from jaxscale.train.compiling import MIN_SECONDS

    if mesh.compile_cache:
        folder = Path(mesh.compile_cache).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _tell(event: str, **fields: Any) -> None:
    try:
        print(json.dumps({"event": event, **fields}), flush=True)
    except BrokenPipeError:  # the parent was killed: the end of stdin asks to save, and nobody listens any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
