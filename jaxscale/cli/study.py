"""The verbs of a study: run, plan, train."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from jaxscale.cli.answer import analyse
from jaxscale.cli.data import build_data, text_is_here
from jaxscale.cli.options import PlanOptions, StudyOptions, check_alone, parse, parse_study
from jaxscale.cli.planning import hold_folder, make_any_plan, write_plan
from jaxscale.cli.progress import StudyProgress
from jaxscale.cli.tables import make_console, print_plan
from jaxscale.config import Study
from jaxscale.errors import MisuseError
from jaxscale.hopeless import Contest
from jaxscale.plain import from_plain, write_json
from jaxscale.runs import TUNING_ROLES, Cell, Plan
from jaxscale.sweep import read_plan, read_status
from jaxscale.train.pool import PREEMPTED, Terminated, count_workers, raise_on_sigterm, train_cells
from jaxscale.vary import vary_study

if TYPE_CHECKING:
    pass

__all__ = ["plan", "run", "say_preempted", "train", "train_pending"]


def run(argv: list[str]) -> int:
    """The main job, resumable: plan, train, collect, fit, forecast, report."""
    options = parse_study(StudyOptions, argv, "run", "Plan, train, collect, fit, forecast, report; resumable.\n\n"
                          "example: jaxscale run configs/quickstart.py --grid.seeds 2 1")  # fmt: skip
    try:
        with raise_on_sigterm(), hold_folder(options.folder):
            return _run(options, f"jaxscale run {shlex.join(argv)}")
    except Terminated:
        return say_preempted("run")


def _run(options: StudyOptions, command: str) -> int:
    console = make_console()
    for own in vary_study(options.study).values() or [options.study]:
        if not text_is_here(own.data):
            build_data(own.data, console)  # says which pattern matches nothing
    planned = write_plan(options.study, options.folder, console)
    print_plan(planned, console)
    if planned.untuned:
        from jaxscale.cli.variants import tune_variants

        tuned = tune_variants(options.study, options.folder, planned, console)
        if tuned is None:
            return say_preempted("run")
        print_plan(planned := tuned, console)
    if not train_pending(options.folder, planned, planned.cells, console):
        return say_preempted("run")
    return analyse(options.folder, planned, console, command)


def plan(argv: list[str]) -> int:
    """Print and write every cell with every derived number, before any cost."""
    about = ("Every cell of the grid with every derived number; --next: which cells to train next.\n\n"
             "example: jaxscale plan configs/isoflop_c4.py --hardware v5p:512\n\n"
             "example: jaxscale plan runs/quickstart --next 8 --next-target 1e13")  # fmt: skip
    options = _parse_plan(argv, about)
    console = make_console()
    if options.next is not None:
        from jaxscale.cli.nextcells import propose_next

        return propose_next(options, console)
    check_alone(options)
    if options.out is not None and options.out.suffix == ".json":
        planned, file = make_any_plan(options.study, None, console)[0], options.out
        write_json(file, planned.to_json())
    else:
        planned, file = write_plan(options.study, options.folder, console), options.folder / "plan.json"
    print_plan(planned, console)
    console.print(f"written: {file}", soft_wrap=True)
    return 0


def _parse_plan(argv: list[str], about: str) -> PlanOptions:
    """STUDY.py and overrides, or a study folder, whose own study is meant then."""
    if not argv or not (folder := Path(argv[0])).is_dir():
        return parse_study(PlanOptions, argv, "plan", about)
    study = from_plain(read_plan(folder).config, Study)
    options = parse(PlanOptions, argv[1:], f"plan {argv[0]}", about, PlanOptions(study=study))
    if options.next is None:
        raise MisuseError(f"{folder}: is planned already; give its STUDY.py to plan anew, or --next K for more cells")
    return replace(options, directory=folder)


@dataclass(frozen=True)
class TrainOptions:
    """Which cells of a planned study to train; say one of the three."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Study folder with a plan.json."""
    all: bool = False
    """Every cell that has not ended, by a pool of workers."""
    run: str | None = None
    """One cell by its run id (or the beginning of it), in this process, on all its devices."""
    index: int | None = None
    """One cell by its place in the plan, from 0 (a job array's task id)."""


def train(argv: list[str]) -> int:
    """Train cells of a planned study; resumable."""
    options = parse(TrainOptions, argv, "train", "Train cells of a planned study; resumable.\n\n"
                    "example: jaxscale train runs/quickstart --all")  # fmt: skip
    planned = read_plan(options.directory)
    planned.check_tuned()
    if sum((options.all, options.run is not None, options.index is not None)) != 1:
        raise MisuseError("say which cells: --all, --run RUN_ID or --index I")
    console = make_console()
    if options.all:
        try:
            with raise_on_sigterm(), hold_folder(options.directory):
                whole = train_pending(options.directory, planned, planned.cells, console)
        except Terminated:
            whole = False
        return 0 if whole else say_preempted("train")
    return _train_one(options, planned, console)


def _train_one(options: TrainOptions, planned: Plan, console: Console) -> int:
    """One cell in this process, or in this and others: 0 done, 1 diverged, 75 preempted and saved, 130 interrupted."""
    import signal

    from jaxscale.evals.record import find_evals
    from jaxscale.train import hosts
    from jaxscale.train.loop import Preempted, train_run
    from jaxscale.train.worker import use_compile_cache

    cell = _pick(options, planned)
    study = from_plain(planned.config, Study)
    mesh, kept = study.mesh, cell.role not in TUNING_ROLES
    asked = kept and cell.role != "trunk"
    stopped: list[int] = []
    watched = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, lambda number, _: stopped.append(number)) for number in watched]
    hosts.connect()
    use_compile_cache(mesh)
    progress = StudyProgress([cell], 1, console if hosts.is_first() else Console(quiet=True))
    progress({"event": "start", "worker": 0, "run_id": cell.run_id})
    try:
        with hosts.leave_together(), progress:
            evals = hosts.together(lambda: find_evals(study.recipe) if asked else None, "tasks")
            result = train_run(
                cell.spec,
                options.directory,
                mesh=mesh,
                on_progress=lambda p: progress({"event": "progress", "worker": 0, **vars(p)}),
                should_stop=lambda: bool(stopped),
                data_sha256=planned.text_of(cell),
                keep_weights=kept,
                launch=study.launch,
                evals=evals,
                measure_noise=study.recipe.measure_noise,
            )
    except Preempted as saved:
        print(f"jaxscale train: {saved}; the same command goes on there", file=sys.stderr)
        return 130 if stopped and signal.SIGTERM not in stopped else PREEMPTED  # not asked: another process was
    finally:
        for number, handler in zip(watched, previous, strict=True):
            signal.signal(number, handler)
    progress({"event": "ended", "worker": 0, "run_id": cell.run_id, "state": result.state, "loss": result.loss,
              "reason": result.reason})  # fmt: skip
    return 0 if result.state == "done" else 1


def _pick(options: TrainOptions, planned: Plan) -> Cell:
    if options.run is not None:
        return planned.find_cell(options.run)
    assert options.index is not None
    if not 0 <= options.index < len(planned):
        raise MisuseError(
            f"--index: {options.index} is outside the plan's {len(planned)} cells; use 0 to {len(planned) - 1}"
        )
    return planned.cells[options.index]


def say_preempted(verb: str) -> int:
    print(f"jaxscale {verb}: stopped by SIGTERM, all cells saved; the same command goes on there", file=sys.stderr)
    return PREEMPTED


def train_pending(
    folder: Path,
    planned: Plan,
    cells: Sequence[Cell],
    console: Console,
    on_way: Callable[[dict[str, Any]], None] = lambda event: None,
    contests: Sequence[Contest] = (),
) -> bool:
    """Train every cell that has not ended; False when SIGTERM stopped it and all have saved.

    `on_way` hears how each pack was trained and what that was chosen by; with `contests` hopeless runs are stopped.
    """
    pending = [
        s.cell for s in read_status(folder, planned.cells) if s.state in ("planned", "running") and s.cell in cells
    ]
    if not pending:
        console.print(f"all {len(planned)} cells have ended")
        return True
    study = from_plain(planned.config, Study)
    mesh = study.mesh
    if study.recipe.evals:
        from jaxscale.evals.record import find_evals

        find_evals(study.recipe)  # what is wrong with a task file is said before anything is trained
    workers, _ = count_workers(mesh)
    with StudyProgress(pending, workers, console) as progress:

        def listen(event: dict[str, Any]) -> None:
            if event["event"] == "way":
                on_way(event)
            progress(event)

        try:
            train_cells(folder, pending, mesh, listen, contests)
        except Terminated:
            return False
    progress.say_compiled()
    return True
