"""The verbs of a study: run, plan, train, data."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from jaxscale.batchlaw import find_batch
from jaxscale.cli.answer import analyse
from jaxscale.cli.options import PlanOptions, StudyOptions, check_alone, parse, parse_study
from jaxscale.cli.progress import StudyProgress, data_progress
from jaxscale.cli.tables import make_console, print_plan
from jaxscale.config import EVAL_FIELDS, DataConfig, Study
from jaxscale.errors import MisuseError
from jaxscale.hopeless import Contest
from jaxscale.leases import SWEEPS
from jaxscale.limits import check_limits
from jaxscale.plain import from_plain, to_plain, write_json
from jaxscale.plan import grow_plan, plan_isoflop
from jaxscale.rates import find_sweep
from jaxscale.runs import TUNING_ROLES, Cell, Plan
from jaxscale.sweep import read_plan, read_status
from jaxscale.train.pool import PREEMPTED, Terminated, count_workers, raise_on_sigterm, train_cells
from jaxscale.vary import vary_study

if TYPE_CHECKING:
    from jaxscale.data.files import TokenFiles

__all__ = [
    "build_data",
    "build_files",
    "data",
    "differing_fields",
    "hold_folder",
    "plan",
    "run",
    "say_preempted",
    "text_is_here",
    "train",
    "train_pending",
    "write_plan",
]

EXECUTION_FIELDS = ("mesh", "launch", "hardware", "bootstrap", "forecast_flops")
"""Study fields that may change under a half-finished study: they do not change what is measured."""
SHOWN_SOURCES = 40
LOOKING_FIELDS = ("data.cache", *(f"recipe.{name}" for name in EVAL_FIELDS))
"""Others of that kind, inside of parts that decide the rest."""


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
        planned, file = _make_any_plan(options.study, None, console)[0], options.out
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


def data(argv: list[str]) -> int:
    """Build the token files of a study and say what they hold."""
    options = parse_study(StudyOptions, argv, "data", "Build the token files: counts, hashes, size.\n\n"
                          "example: jaxscale data configs/quickstart.py --data.files 'corpus/**/*.txt'")  # fmt: skip
    console = make_console()
    texts: dict[DataConfig, dict[str, Any]] = {}
    for name, own in vary_study(options.study).items():
        texts.setdefault(own.data, {"variants": []})["variants"].append(name)
    rows, sources = [], []
    for config, told in (texts or {options.study.data: {}}).items():
        rows.append(build_data(config, console) | told)
        for name, value in rows[-1].items():
            console.print(f"{name:>22}  {value}", soft_wrap=True, markup=False)
        sources += [source | told for source in _print_sources(config, console)]
    if options.out is not None:
        plain = {"schema": "jaxscale.data/1", "rows": rows, "sources": sources}
        write_json(options.out, json.dumps(plain, indent=1))
    return 0


def _print_sources(config: DataConfig, console: Console) -> list[dict[str, Any]]:
    """What each source gives and what of it is read; a long list is cut for people, not for programs."""
    from jaxscale.data.select import count_read
    from jaxscale.data.tokens import build_tokens
    from jaxscale.tables import render_table

    rows = count_read(build_tokens(config))
    header = ("source", "documents", "train_tokens", "read_tokens", "share", "val_tokens")
    told = [[row[name] for name in header] for row in rows[:SHOWN_SOURCES]]
    table = render_table(f"{len(rows)} sources", [name.replace("_", " ") for name in header], told)
    more = f"\n... and {len(rows) - SHOWN_SOURCES} more" if len(rows) > SHOWN_SOURCES else ""
    console.print(f"{table}{more}", soft_wrap=True, markup=False)
    return rows


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """One `run` at a time in a study folder."""
    _make_folder(folder)
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MisuseError(f"{folder}: another jaxscale process is at work there; wait for it, or give this one "
                              f"another --out") from None  # fmt: skip
        yield


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise MisuseError(f"{folder}: is a file, not a folder; choose another --out") from None
    if not os.access(folder, os.W_OK):
        raise MisuseError(f"{folder}: cannot be written to; choose another --out")


def build_data(config: DataConfig, console: Console) -> dict[str, Any]:
    """The text in numbers, built where it was not."""
    return {name: value for name, value in vars(build_files(config, console).info).items() if name != "sources"}


def build_files(config: DataConfig, console: Console) -> TokenFiles:
    """The token files of a text, built behind a progress bar where they were not."""
    from jaxscale.data.tokens import build_tokens

    with data_progress(console) as bars:
        task = bars.add_task("reading the text", total=1.0)
        return build_tokens(config, lambda done, total: bars.update(task, completed=done / max(total, 1)))


def _make_plan(study: Study, console: Console) -> Plan:
    """Plan with the text's own size; a text that is declared need not be on this machine."""
    check_limits(study)  # before the text is read, which may take long
    if study.data.declared_train_tokens is not None and not text_is_here(study.data):
        return plan_isoflop(study)
    info = build_data(study.data, console)
    entries = info["vocab_size"]
    if entries > study.model.vocab_size:
        raise MisuseError(f"model.vocab_size: {study.model.vocab_size} is smaller than the {entries} entries of "
                          f"tokenizer {study.data.tokenizer}; use at least {entries}")  # fmt: skip
    return plan_isoflop(study, train_tokens=info["train_tokens"], data_sha256=info["data_sha256"])


def write_plan(study: Study, folder: Path, console: Console) -> Plan:
    """Plan, compare with what the folder holds, and write it there."""
    _make_folder(folder)
    kept, gone = _keep_plan(study, folder)
    if kept is not None:
        console.print(f"{gone}; the {'rates' if 'lr_from' in gone else 'batches'} in {folder}/plan.json hold")
        return kept
    planned, write = _make_any_plan(study, folder, console)
    if (folder / "plan.json").exists():
        old = read_plan(folder)
        if planned.untuned and not old.untuned and old.config == planned.config and _has_begun(old, folder):
            console.print(f"runs of the sweeps in {folder}/{SWEEPS} are gone; the rates in {folder}/plan.json hold")
            return old
        planned = keep_added(old, planned)
        _check_unchanged(old, planned, folder)
    write(planned)
    return planned


def _make_any_plan(study: Study, folder: Path | None, console: Console) -> tuple[Plan, Callable[[Plan], None]]:
    """The plan, and what writes it into the folder once it is agreed to."""
    if not vary_study(study):
        planned = _make_plan(study, console)
        return planned, lambda plan: write_json(Path(folder or "") / "plan.json", plan.to_json())
    from jaxscale.cli.variants import make_variant_plan, print_sweeps, write_variant_plan

    check_limits(study)
    found = make_variant_plan(study, folder, console)
    print_sweeps(found, folder, console)
    return found.grid, lambda plan: write_variant_plan(replace(found, grid=plan), Path(folder or ""))


def _keep_plan(study: Study, folder: Path) -> tuple[Plan | None, str]:
    """The folder's own plan of this very study, where a file of its rates or batches is no longer there; which."""
    sources = {"lr_from": find_sweep, "batch_from": find_batch}
    paths = {name: getattr(study.recipe, name) for name in sources}
    gone = [
        f"recipe.{name}: {path} is gone" for name, path in paths.items() if path and not sources[name](path).exists()
    ]
    if not gone or not (folder / "plan.json").exists():
        return None, ""
    planned = read_plan(folder)
    return planned if planned.config == to_plain(study) else None, gone[0]


def text_is_here(config: DataConfig) -> bool:
    import glob

    return not config.files or any(glob.glob(os.path.expanduser(pattern), recursive=True) for pattern in config.files)


def _check_unchanged(old: Plan, new: Plan, folder: Path) -> None:
    """Refuse a plan that differs from the one whose runs have begun, naming the difference."""
    if _identity(old) == _identity(new) or _only_adds(old, new) or not _has_begun(old, folder):
        return
    names = set(differing_fields(old.config, new.config))
    changed = [
        f"{name} was {before!r}, now {after!r}"
        for name, before, after in _differences(old.config, new.config)
        if name in names
    ]
    if old.data_sha256 and new.data_sha256 and old.data_sha256 != new.data_sha256:
        changed.insert(0, f"the training text was {old.data_sha256[:12]}, now {new.data_sha256[:12]}")
    what = "; ".join(changed[:3]) or "the planner changed"
    raise MisuseError(f"{folder}: its runs follow another plan ({what}); give the new plan another --out, or remove "
                      f"the folder")  # fmt: skip


def _identity(planned: Plan) -> tuple[Any, ...]:
    """What may not change once runs have begun: the runs, their text, the rule that refuses some, the declared law."""
    runs = frozenset((cell.run_id, cell.role) for cell in planned.cells)
    study = from_plain(planned.config, Study)  # a plan of before a field was there has its default
    return runs, planned.data_sha256, study.grid.exclude_spike, study.declared


def _only_adds(old: Plan, new: Plan) -> bool:
    """Whether the new plan is the old one with more variants: every run of before stays what it was, for the same."""
    if not old.variants or set(differing_fields(old.config, new.config)) != {"variants"}:
        return False
    known = {cell.run_id: cell for cell in new.cells}
    pairs = [(cell, known.get(cell.run_id)) for cell in old.cells]
    return all(
        now is not None and now.role == was.role and set(was.variants) <= set(now.variants)
        and new.text_of(now) == old.text_of(was)
        for was, now in pairs
    )  # fmt: skip


def keep_added(old: Plan, new: Plan) -> Plan:
    """The new plan with the cells that `plan --next K --add` put into the old one, where both are of one study."""
    known = {cell.run_id for cell in new.cells}
    added = tuple(cell for cell in old.cells if cell.run_id not in known)
    changed = differing_fields(old.config, new.config)
    whole = known <= {cell.run_id for cell in old.cells}
    if changed or not added or not whole or any(cell.role != "grid" for cell in added):
        return new
    return grow_plan(new, added)


def differing_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted names of the fields of two plain studies that differ, but for those of their execution."""
    filled = [to_plain(from_plain(config, Study)) for config in (old, new)]  # a field of later has its default
    return [
        name
        for name, _, _ in _differences(*filled)
        if name.split(".")[0] not in EXECUTION_FIELDS and name not in LOOKING_FIELDS
    ]


def _has_begun(planned: Plan, folder: Path) -> bool:
    return any(status.step or status.state != "planned" for status in read_status(folder, planned.cells))


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old, new) of every leaf that differs between two plain configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new})
        return [d for n in names for d in _differences(old.get(n), new.get(n), f"{prefix}.{n}" if prefix else n)]
    return [] if old == new else [(prefix, old, new)]


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
