"""The verb `work`: a pull worker. Any number of them, on any number of hosts, share a study folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from jaxscale.cli.options import parse
from jaxscale.cli.progress import StudyProgress
from jaxscale.cli.study import say_preempted
from jaxscale.cli.tables import make_console
from jaxscale.cli.together import work_together
from jaxscale.config import Study
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.launch import read_task
from jaxscale.plain import from_plain
from jaxscale.runs import Cell, Plan
from jaxscale.sweep import read_plan, read_status
from jaxscale.train.address import is_one_of_many
from jaxscale.train.canary import has_agreed
from jaxscale.train.pool import Terminated, count_workers, raise_on_sigterm, train_cells
from jaxscale.train.seats import seat_worker

__all__ = ["work"]


@dataclass(frozen=True)
class WorkOptions:
    """Which cells to pull, and how."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Study folder with a plan.json, on a file system that all workers see."""
    cells: tuple[str, ...] = ()
    """Only these run ids (or their beginnings); default every cell of the plan."""
    workers: int | None = None
    """Worker processes on this machine; default mesh.workers."""
    launch: int | None = None
    """With --task: only the cells of that task of a launch, as the script of `jaxscale launch` asks."""
    task: int | None = None
    """With --launch: the task's place in its array."""


def work(argv: list[str]) -> int:
    """Train what nobody else holds until every cell has ended; resumable, and never alone."""
    options = parse(WorkOptions, argv, "work", "A pull worker: trains what no other worker holds, longest first, takes "
                    "over from those that died, and waits until every cell has ended.\n\n"
                    "example: jaxscale work /shared/runs/isoflop_c4")  # fmt: skip
    planned = read_plan(options.directory)
    planned.check_tuned()
    cells = choose_cells(planned, _list_asked(options))
    console = make_console()
    try:
        with raise_on_sigterm():
            return _work(options, planned, cells, console)
    except Terminated:
        return say_preempted("work")


def _list_asked(options: WorkOptions) -> tuple[str, ...]:
    """Run ids that were asked for, by --cells or as a task of a launch; none: every cell."""
    if options.launch is None and options.task is None:
        return options.cells
    if options.launch is None or options.task is None or options.cells:
        raise MisuseError("--launch K --task I: go together, and without --cells; give both or neither")
    return read_task(options.directory, options.launch, options.task)


def choose_cells(planned: Plan, run_ids: Sequence[str]) -> tuple[Cell, ...]:
    """The cells with these ids, all where none is given."""
    return tuple(planned.find_cell(run_id) for run_id in run_ids) or planned.cells


def _work(options: WorkOptions, planned: Plan, cells: tuple[Cell, ...], console: Console) -> int:
    study = from_plain(planned.config, Study)
    if options.workers is not None and options.workers < 1:
        raise MisuseError(f"--workers: {options.workers} trains nothing; give 1 or more, or leave it out")
    mesh = study.mesh if options.workers is None else replace(study.mesh, workers=options.workers)
    open_cells = [s.cell for s in read_status(options.directory, cells) if s.state in ("planned", "running")]
    if not open_cells:
        console.print(f"all {len(cells)} cells have ended")
        return 0
    if is_one_of_many(os.environ):
        return work_together(options.directory, [cell.run_id for cell in open_cells], open_cells, study, console)
    if study.launch.canary and not has_agreed(options.directory, planned):
        _send_canary(options.directory, study, open_cells, console)
    workers, _ = count_workers(mesh)
    with StudyProgress(open_cells, workers, console) as progress:
        train_cells(options.directory, open_cells, mesh, progress)
    progress.say_compiled()
    return 0


def _send_canary(folder: Path, study: Study, cells: Sequence[Cell], console: Console) -> None:
    """VerdictError where this machine does not compute what the others do."""
    pinned = count_workers(study.mesh)[1]
    seat = seat_worker(0, 1, study.mesh, cells) if pinned else None
    child = subprocess.Popen(
        [sys.executable, "-m", "jaxscale.train.canary", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=seat.environment() if seat else None, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = child.communicate()
    finally:
        child.kill()
    if child.returncode not in (0, 1) or not out.strip():
        words = (err.strip().splitlines() or ["it left no message"])[-1][:300]
        raise VerdictError(f"canary: it ended with code {child.returncode} before any cell began: {words}")
    verdict = json.loads(out.strip().splitlines()[-1])
    if not verdict["agrees"]:
        raise VerdictError(verdict["reason"])
    told = [f"agrees with {verdict['others']} other kinds of machine"] if verdict["others"] else []
    told.append("the first of its kind" if verdict["fresh"] else "its kind has been here")
    console.print(f"canary on {verdict['pool']}: {', '.join(told)}", soft_wrap=True, style="dim", markup=False)
