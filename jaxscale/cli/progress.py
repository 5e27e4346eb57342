"""Progress of a study for a person: one bar for the whole, one a worker, a line for every ended cell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from jaxscale.format import format_count, format_flops, format_loss, format_seconds
from jaxscale.runs import TUNING_ROLES, Cell

__all__ = ["StudyProgress", "data_progress"]


class StudyProgress:
    """Listens to the events of `train_cells` for these cells; use as a context manager."""

    def __init__(self, cells: Sequence[Cell], workers: int, console: Console) -> None:
        self.cells = {cell.run_id: cell for cell in cells}
        self.workers, self.console = workers, console
        self.share: dict[str, float] = dict.fromkeys(self.cells, 0.0)
        self.total_s = sum(cell.seconds for cell in cells) or 1.0
        self.ended = 0
        self.held: set[str] = set()
        self.programs, self.compile_s, self.reused = 0, 0.0, 0
        self.started = time.monotonic()
        columns = (TextColumn("{task.description:<42}"), BarColumn(30), TextColumn("{task.fields[info]}"))
        self.bars = Progress(*columns, console=console, transient=True)
        self.overall = self.bars.add_task(f"{len(self.cells)} cells", total=1.0, info="")
        self.tasks: dict[int, TaskID] = {}

    def __enter__(self) -> StudyProgress:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _task(self, worker: int) -> TaskID:
        if worker not in self.tasks:
            self.tasks[worker] = self.bars.add_task("starting", total=1.0, info="")
        return self.tasks[worker]

    def _on_start(self, event: dict[str, Any]) -> None:
        cell = self.cells.get(event["run_id"])
        runs = event.get("runs", 1)
        name = f"{runs} runs, " if runs > 1 else ""
        self.bars.update(self._task(event["worker"]), description=f"{name}{_name(cell)}" if cell else name,
                         completed=0.0, info="compiling")  # fmt: skip

    def _on_way(self, event: dict[str, Any]) -> None:
        cell = self.cells.get(event["run_id"])
        if cell is None or not event["ms"]:
            return
        ms = ", ".join(f"{way} {value:.3g}" for way, value in event["ms"].items())
        self.console.print(f"{_shape(cell)}: {event['runs']} runs by {event['way']} (ms a step of one run: {ms})",
                           soft_wrap=True, markup=False, style="dim")  # fmt: skip

    def _on_progress(self, event: dict[str, Any]) -> None:
        cell = self.cells.get(event["run_id"])
        begun = cell.spec.parent_step if cell else 0
        done = (event["step"] - begun) / (event["steps"] - begun)
        if event["run_id"] in self.share:
            self.share[event["run_id"]] = done
        info = (f"loss {format_loss(event['loss'])}  {format_count(event['tokens_per_s'])} tok/s  "
                f"{format_flops(event['flops_per_s'], 2)} FLOP/s"
                + (f"  MFU {event['mfu']:.0%}" if event.get("mfu") is not None else ""))  # fmt: skip
        self.bars.update(self._task(event["worker"]), completed=done, info=info)
        self._update_overall()

    def _on_ended(self, event: dict[str, Any]) -> None:
        self.share[event["run_id"]] = 1.0
        self.ended += 1
        self._update_overall()
        cell = self.cells[event["run_id"]]
        verdict = (
            f"loss {format_loss(event['loss'])}" if event["state"] == "done" else f"{event['state']}: {event['reason']}"
        )
        self.console.print(
            f"[{self.ended}/{len(self.cells)}] {event['run_id']}  {_name(cell)}  {verdict}  {self._left()}",
            soft_wrap=True,
            markup=False,
        )

    def _on_compiled(self, event: dict[str, Any]) -> None:
        self.programs += event["programs"]
        self.compile_s += event["seconds"]
        self.reused += event["reused"]

    def say_compiled(self) -> None:
        """A line on what was compiled; nothing where no worker told of it."""
        if self.programs or self.reused:
            self.console.print(f"compiled {self.programs} programs in {format_seconds(self.compile_s)} of the workers' "
                               f"time, {self.reused} taken from the cache", soft_wrap=True)  # fmt: skip

    def _on_held(self, event: dict[str, Any]) -> None:
        if event["run_id"] not in self.held:
            self.held.add(event["run_id"])
            self.console.print(f"{event['run_id']}: held by {event['who']}", soft_wrap=True, style="dim", markup=False)

    def _on_lost(self, event: dict[str, Any]) -> None:
        self.console.print(event["message"], soft_wrap=True, style="yellow", markup=False)

    def _on_apart(self, event: dict[str, Any]) -> None:
        self.console.print(event["message"] + "; its runs go on apart", soft_wrap=True, style="yellow", markup=False)

    def _on_died(self, event: dict[str, Any]) -> None:
        self.console.print(
            f"{event['run_id']}: {event['reason']}; put back", soft_wrap=True, style="yellow", markup=False
        )

    def _update_overall(self) -> None:
        self.bars.update(
            self.overall, completed=self._done(), info=", ".join(filter(None, (f"{self.ended} ended", self._left())))
        )

    def _done(self) -> float:
        return sum(self.share[run_id] * cell.seconds for run_id, cell in self.cells.items()) / self.total_s

    def _left(self) -> str:
        """Time left for the study, from the share of planned seconds done so far."""
        done, elapsed = self._done(), time.monotonic() - self.started
        return f"{format_seconds(elapsed * (1 - done) / done)} left" if 0 < done < 1 else ""


def _shape(cell: Cell) -> str:
    model = cell.spec.model
    return f"{model.parameterization} d {model.d_model} L {model.n_layers}"


def _name(cell: Cell) -> str:
    spec, whose = cell.spec, ", ".join(cell.variants) if len(cell.variants) < 4 else f"{len(cell.variants)} variants"
    kind = f"{whose}: " * bool(whose)
    if cell.role in TUNING_ROLES:
        return f"{kind}{_shape(cell)} lr {spec.lr:.4g} seed {spec.seed}"
    kind += "trunk, " if spec.keeps else ""
    return f"{kind}C {format_flops(spec.budget_flops)} d {spec.model.d_model} seed {spec.seed}"


def data_progress(console: Console) -> Progress:
    """A bar for building token files; use as a context manager."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.percentage:>3.0f}%"),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
