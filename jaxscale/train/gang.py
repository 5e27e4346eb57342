"""Several processes that train cell after cell of a study, each cell over the devices of all.

Process 0 picks and claims the next cell and tells its run id; all train it, and come together again at the next pick.
A refusal that all have raised costs the cell, not the gang; an error of one process ends them all, and the next start
goes on from the last checkpoint. SIGTERM to any of them saves one step on all, and all end with 75.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, Literal

from jaxscale.config import MeshConfig, Study
from jaxscale.errors import JaxscaleError
from jaxscale.runs import TUNING_ROLES, Cell, Plan, RunResult, from_plain
from jaxscale.sweep import Job, fail_cell, find_parent, next_job, read_plan, read_status
from jaxscale.train import hosts
from jaxscale.train.loop import Preempted, Progress, train_run
from jaxscale.train.pool import PREEMPTED

__all__ = ["Pick", "pick_pending", "train_gang"]

Pick = Callable[[Set[str]], Cell | Literal["wait"] | None]
"""Called in process 0 with the run ids that this gang has refused: the next cell, claimed; "wait" where others hold
what is left; None where nothing is."""

POLL_S = 1.0
"""Seconds between picks while others hold what is left."""


def train_gang(
    study_dir: Path,
    pick: Pick,
    *,
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
            result = _train(study_dir, order, tell, should_stop)
            tell({"event": "ended", "run_id": order, "state": result.state, "loss": result.loss,
                  "reason": result.reason})  # fmt: skip
        except Preempted:
            return PREEMPTED
        except JaxscaleError as error:
            if hosts.is_alone_with(error):
                raise
            refused[order] = str(error)
            tell({"event": "error", "run_id": order, "message": str(error), "exit_code": error.exit_code})


def _order(picked: Cell | Literal["wait"] | None) -> str | None:
    return picked.run_id if isinstance(picked, Cell) else picked


def _train(
    study_dir: Path, run_id: str, tell: Callable[[dict[str, Any]], None], should_stop: Callable[[], bool]
) -> RunResult:
    """One cell over all processes; each reads the plan anew, which may have grown."""
    plan, cell, mesh = hosts.together(lambda: _find(study_dir, run_id), "plan")
    tell({"event": "start", "run_id": run_id})

    def report(progress: Progress) -> None:
        tell({"event": "progress", **vars(progress)})

    return train_run(
        cell.spec, study_dir, mesh=mesh, on_progress=report, should_stop=should_stop, data_sha256=plan.data_sha256,
        keep_weights=cell.role not in (*TUNING_ROLES, "trunk"),
    )  # fmt: skip


def _find(study_dir: Path, run_id: str) -> tuple[Plan, Cell, MeshConfig]:
    plan = read_plan(study_dir)
    return plan, plan.find_cell(run_id), from_plain(plan.config, Study).mesh


def pick_pending(study_dir: Path, cells: Sequence[Cell]) -> Pick:
    """Picks by the run folders alone: the longest cell that nobody trains, trunks first; no claim before training."""

    def pick(refused: Set[str]) -> Cell | Literal["wait"] | None:
        statuses = [status for status in read_status(study_dir, cells) if status.cell.run_id not in refused]
        parents = {status.cell: find_parent(study_dir, status.cell.spec) for status in statuses if not status.result}
        for cell in [cell for cell, (state, _) in parents.items() if state == "ended"]:
            fail_cell(study_dir, cell, parents.pop(cell)[1])
        free = {status.cell for status in statuses if status.state == "planned"}
        ready = [cell for cell, (state, _) in parents.items() if cell in free and state != "coming"]
        if ready:
            return next_job([Job((cell,)) for cell in ready], set()).cells[0]
        elsewhere = any(status.state == "running" for status in statuses)
        left = [cell for cell in parents if cell in free]
        return "wait" if elsewhere else (left[0] if left else None)  # a branch without a trunk: training says so

    return pick
