"""Several processes that train cell after cell of a study, each cell over the devices of all.

Process 0 picks and claims the next cell and tells its run id; all train it, and come together again at the next pick.
A refusal that all have raised costs the cell, not the gang; an error of one process ends them all, and the next start
goes on from the last checkpoint. SIGTERM to any of them saves one step on all, and all end with 75.

    python -m jaxscale.train.gang DIR LOG [RUN_ID ..]

is what `jaxscale work` starts where the environment names several processes; its stdin's end asks to save.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, Literal

from jaxscale.config import Study
from jaxscale.errors import JaxscaleError, VerdictError
from jaxscale.evals.record import Evals, find_evals
from jaxscale.leases import Claims
from jaxscale.plain import from_plain
from jaxscale.runs import TUNING_ROLES, Cell, Plan, RunResult
from jaxscale.spend import Purse
from jaxscale.sweep import Job, fail_cell, find_parent, next_job, read_plan, read_status
from jaxscale.train import hosts
from jaxscale.train.loop import Preempted, Progress, train_run
from jaxscale.train.pool import PREEMPTED

__all__ = ["Pick", "main", "pick_pending", "train_gang"]

Pick = Callable[[Set[str]], Cell | Literal["wait"] | None]
"""Called in process 0 with the run ids that this gang has refused: the next cell, claimed; "wait" where others hold
what is left; None where nothing is."""

POLL_S = 1.0
"""Seconds between picks while others hold what is left."""


def train_gang(
    study_dir: Path,
    pick: Pick,
    *,
    claims: Claims | None = None,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Train what `pick` gives until it gives None: 0 all trained, 1 some cell was refused, 75 stopped and saved.

    Every process calls it, after `hosts.connect`; alone it is a loop over cells. `on_event` hears in process 0 what
    a worker tells its parent: start, progress, ended, error. An error that not all processes have is raised where it
    comes up; `hosts.leave_together` around the call ends the others.
    """
    refused: dict[str, str] = {}
    tell = on_event if hosts.is_first() else lambda event: None
    while True:
        order = hosts.from_first(lambda: _order(pick(refused.keys())), "next cell")
        if hosts.agree((should_stop(),), "next cell, or stop")[0]:
            return PREEMPTED
        if order is None:
            return 1 if refused else 0
        if order == "wait":
            time.sleep(POLL_S)
            continue
        try:
            result = _train(study_dir, order, tell, should_stop, claims)
            tell({"event": "ended", "run_id": order, "state": result.state, "loss": result.loss,
                  "reason": result.reason})  # fmt: skip
        except Preempted:
            return PREEMPTED
        except JaxscaleError as error:
            if hosts.is_alone_with(error):
                raise
            if "HeldElsewhere" in (error.kind, type(error).__name__):
                continue  # somebody was quicker: pick again
            refused[order] = str(error)
            tell({"event": "error", "run_id": order, "message": str(error), "exit_code": error.exit_code})


def _order(picked: Cell | Literal["wait"] | None) -> str | None:
    return picked.run_id if isinstance(picked, Cell) else picked


def _train(
    study_dir: Path, run_id: str, tell: Callable[[dict[str, Any]], None], should_stop: Callable[[], bool],
    claims: Claims | None,
) -> RunResult:  # fmt: skip
    """One cell over all processes; each reads the plan anew, which may have grown."""
    plan, cell, study, evals = hosts.together(lambda: _find(study_dir, run_id), "plan")
    tell({"event": "start", "run_id": run_id})

    def report(progress: Progress) -> None:
        tell({"event": "progress", **vars(progress)})

    return train_run(
        cell.spec, study_dir, mesh=study.mesh, on_progress=report, should_stop=should_stop,
        data_sha256=plan.text_of(cell), keep_weights=cell.role not in (*TUNING_ROLES, "trunk"), claims=claims,
        patience_s=0.0, launch=study.launch, evals=evals, measure_noise=study.recipe.measure_noise,
    )  # fmt: skip


def _find(study_dir: Path, run_id: str) -> tuple[Plan, Cell, Study, Evals | None]:
    plan = read_plan(study_dir)
    cell, study = plan.find_cell(run_id), from_plain(plan.config, Study)
    return plan, cell, study, find_evals(study.recipe) if cell.role not in (*TUNING_ROLES, "trunk") else None


def pick_pending(study_dir: Path, cells: Sequence[Cell], claims: Claims | None = None) -> Pick:
    """The longest cell that nobody holds, trunks first; it is claimed as its training begins.

    VerdictError where the spend cap does not pay for what is left.
    """
    claims, purse = claims or Claims(study_dir), Purse(study_dir, read_plan(study_dir))

    def pick(refused: Set[str]) -> Cell | Literal["wait"] | None:
        statuses = [status for status in read_status(study_dir, cells) if status.cell.run_id not in refused]
        parents = {status.cell: find_parent(study_dir, status.cell.spec) for status in statuses if not status.result}
        for cell in [cell for cell, (state, _) in parents.items() if state == "ended"]:
            fail_cell(study_dir, cell, parents.pop(cell)[1])
        free = {status.cell for status in statuses if not status.result and not claims.find_holder(status.cell.run_id)}
        ready = [cell for cell, (state, _) in parents.items() if cell in free and state != "coming"]
        paid = [cell for cell in ready if purse.affords((cell,))]
        if paid:
            return next_job([Job((cell,)) for cell in paid], set()).cells[0]
        elsewhere = any(not status.result and status.cell not in free for status in statuses)
        if ready and not elsewhere:
            raise VerdictError(f"launch.max_chip_hours: {purse.cap:g} chip-hours do not pay for the {len(ready)} cells "
                               f"that are left; plan the study again with a higher one to go on")  # fmt: skip
        left = [cell for cell in parents if cell in free]
        return "wait" if elsewhere else (left[0] if left else None)  # a branch without a trunk: training says so

    return pick


def main(argv: list[str]) -> int:
    """Join the other processes and train: the study folder, the name of the log, the run ids (none: every cell)."""
    from jaxscale.train.worker import use_compile_cache

    study_dir, log, run_ids = Path(argv[0]), argv[1], argv[2:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    try:
        plan = read_plan(study_dir)
        cells = [plan.find_cell(run_id) for run_id in run_ids] or list(plan.cells)
        study = from_plain(plan.config, Study)
        hosts.connect()
        use_compile_cache(study.mesh)
        claims = Claims(study_dir, study.launch.lease_s, log)
        with hosts.leave_together():
            return train_gang(study_dir, pick_pending(study_dir, cells, claims), claims=claims, on_event=_tell,
                              should_stop=stop.is_set)  # fmt: skip
    except JaxscaleError as error:
        _tell({"event": "error", "run_id": "", "message": str(error), "exit_code": error.exit_code})
        return error.exit_code


def _watch_parent(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def _tell(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
