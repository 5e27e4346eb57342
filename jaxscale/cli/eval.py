"""The verb `eval`: tasks and texts on the final models of a study's runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from jaxscale.cli.options import parse
from jaxscale.cli.planning import hold_folder
from jaxscale.cli.tables import make_console
from jaxscale.config import Study
from jaxscale.errors import MisuseError
from jaxscale.format import format_count, format_flops, format_loss
from jaxscale.plain import from_plain, read_lines, write_json
from jaxscale.runs import TUNING_ROLES, Plan, run_dir
from jaxscale.sweep import CellStatus, read_plan, read_status

if TYPE_CHECKING:
    from jaxscale.evals.record import Evals
    from jaxscale.evals.score import LoadedModel
    from jaxscale.evals.texts import Text

__all__ = ["evaluate"]


@dataclass(frozen=True)
class EvalOptions:
    """What to ask of which runs."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Study folder."""
    tasks: tuple[str, ...] = ()
    """Task files (.jsonl with question, choices, label; glob patterns); default the study's recipe.evals."""
    texts: tuple[str, ...] = ()
    """Text files whose loss is measured too, a source each (glob patterns; as in data.files)."""
    run: tuple[str, ...] = ()
    """Run ids, or their beginnings; default every run that is done."""
    normalization: Literal["sum", "token", "byte", "char"] | None = None
    """Which score decides `accuracy`; default the study's recipe.eval_normalization."""
    shots: int | None = None
    """Solved examples before every question; default the study's recipe.eval_shots."""
    shots_from: str | None = None
    """Task file to draw the examples from; default each task's own first items."""
    harness: tuple[str, ...] = ()
    """Tasks of lm-eval by name (extra `[eval]`), whose data must be within reach."""
    harness_include: Path | None = None
    """Folder with lm-eval tasks of your own (YAML)."""
    harness_limit: int | None = None
    """Only so many items of each of them."""
    out: Path | None = None
    """Where the JSON goes (jaxscale.eval/1)."""


ABOUT = """Tasks and texts on the final models of a study; resumable.

example: jaxscale eval runs/quickstart --tasks 'evals/*.jsonl' --texts notes.txt --out eval.json"""


def evaluate(argv: list[str]) -> int:
    """Evaluate what has not been evaluated yet, print all of it, and write it with --out."""
    options = parse(EvalOptions, argv, "eval", ABOUT)
    planned = read_plan(options.directory)
    study = from_plain(planned.config, Study)
    done = _pick_runs(options, planned)
    evals, texts = _read_questions(options, study)
    console = make_console()
    rows: dict[str, list[dict[str, Any]]] = {"rows": [], "texts": [], "harness": []}
    with hold_folder(options.directory):
        for count, status in enumerate(done, start=1):
            console.print(f"[{count}/{len(done)}] {status.cell.run_id}", style="dim") if console.is_terminal else None
            asked = _Run(options.directory, status, study)
            rows["rows"] += asked.ask_tasks(evals)
            rows["texts"] += asked.ask_texts(texts)
            rows["harness"] += asked.ask_harness(options)
    _print(rows, console)
    if options.out is not None:
        write_json(options.out, json.dumps({"schema": "jaxscale.eval/1", **rows}, indent=1))
    return 0


def _pick_runs(options: EvalOptions, planned: Plan) -> list[CellStatus]:
    """The runs asked for, smallest first; MisuseError where one is not done, or none is."""
    statuses = {status.cell.run_id: status for status in read_status(options.directory, planned.cells)}
    if options.run:
        picked = [statuses[planned.find_cell(run).run_id] for run in options.run]
        undone = [status for status in picked if status.state != "done"]
        if undone:
            raise MisuseError(f"--run: {undone[0].cell.run_id} is {undone[0].state}; only runs that are done have "
                              f"weights to evaluate")  # fmt: skip
        return picked
    picked = [s for s in statuses.values() if s.state == "done" and s.cell.role not in (*TUNING_ROLES, "trunk")]
    if not picked:
        raise MisuseError(f"{options.directory}: none of its {len(planned)} runs is done; `jaxscale status` says more")
    return sorted(picked, key=lambda status: status.cell.flops)


def _read_questions(options: EvalOptions, study: Study) -> tuple[Evals | None, tuple[Text, ...]]:
    """Tasks and texts, read before any model is loaded; MisuseError where there are none."""
    from jaxscale.evals.record import find_evals
    from jaxscale.evals.texts import read_texts

    recipe = study.recipe
    recipe = replace(
        recipe,
        evals=options.tasks or recipe.evals,
        eval_normalization=options.normalization or recipe.eval_normalization,
        eval_shots=recipe.eval_shots if options.shots is None else options.shots,
        eval_shots_from=recipe.eval_shots_from if options.shots_from is None else options.shots_from,
    )
    if recipe.eval_shots < 0:
        raise MisuseError(f"--shots: {recipe.eval_shots} examples cannot be given; use 0 or more")
    if not (recipe.evals or options.texts or options.harness):
        raise MisuseError(f"{options.directory}: its recipe.evals is empty; name task files with --tasks, texts with "
                          f"--texts, or lm-eval's tasks with --harness")  # fmt: skip
    evals = find_evals(recipe, options=bool(options.tasks))
    return evals, read_texts(options.texts, study.data) if options.texts else ()


class _Run:
    """A finished run; its weights are read when something is missing."""

    def __init__(self, directory: Path, status: CellStatus, study: Study) -> None:
        self.directory, self.cell, self.study = directory, status.cell, study
        self.spec, self.folder = status.cell.spec, run_dir(directory, status.cell.run_id)
        self.model: LoadedModel | None = None
        self.head = {
            "run": self.cell.run_id, "role": self.cell.role, "budget": self.spec.budget_flops, "seed": self.spec.seed,
            "N": self.cell.n_params, "D": self.spec.tokens, "C": self.cell.flops,
        }  # fmt: skip

    def load(self) -> LoadedModel:
        if self.model is None:
            from jaxscale.train.weights import read_weights
            from jaxscale.train.worker import use_compile_cache

            use_compile_cache(self.study.mesh)
            self.model = read_weights(self.directory, self.spec, self.study.mesh)
        return self.model

    def ask_tasks(self, evals: Evals | None) -> list[dict[str, Any]]:
        """A row a task."""
        from jaxscale.evals.record import evaluate_run

        if evals is None:
            return []
        return [self.head | line for line in evaluate_run(self.load, self.spec, self.spec.steps, evals, self.folder)]

    def ask_texts(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        """A row a text; what is known stands in texts.jsonl."""
        from jaxscale.evals.record import write_lines
        from jaxscale.evals.texts import measure_text

        file, rows = self.folder / "texts.jsonl", []
        for text in texts:
            key = {"text": text.source, "sha256": text.sha256, "step": self.spec.steps}
            lines = read_lines(file, frozenset(key))
            known = [line for line in lines if key.items() <= line.items()]
            if not known:
                known = [{"step": self.spec.steps, **measure_text(self.load(), text)}]
                write_lines(file, [*(line for line in lines if line["text"] != text.source), *known])
            rows.append(self.head | known[0])
        return rows

    def ask_harness(self, options: EvalOptions) -> list[dict[str, Any]]:
        """A row a metric of lm-eval's tasks; not kept."""
        if not options.harness:
            return []
        from jaxscale.evals.harness import evaluate_harness

        include = None if options.harness_include is None else str(options.harness_include)
        told = evaluate_harness(self.load(), options.harness, options.shots, options.harness_limit, include)
        return [self.head | row for row in told]


def _print(rows: dict[str, list[dict[str, Any]]], console: Console) -> None:
    """Tables, a row a run."""
    if rows["rows"]:
        first = {row["task"]: row for row in rows["rows"]}
        console.print(_table("accuracy ± standard error (nats per byte of the right answer)", rows["rows"], "task",
                             _tell_task))  # fmt: skip
        for task, row in first.items():
            cut = f", {row['truncated']} choices with a context cut to the model's window" if row["truncated"] else ""
            console.print(f"  {task}: {row['items']} items, {row['shots']} shots, chance {row['chance']:.3g}, by "
                          f"{row['normalization']}{cut}", soft_wrap=True)  # fmt: skip
        seconds = math.fsum(row["seconds"] for row in rows["rows"]) / len({row["run"] for row in rows["rows"]})
        console.print(f"  {seconds:.2g} s a run")
    if rows["texts"]:
        console.print(_table("nats per token (bits per byte)", rows["texts"], "text", _tell_text))
    if rows["harness"]:
        for row in rows["harness"]:
            row["task metric"] = f"{row['task']} {row['metric']}"
        console.print(_table("lm-eval", rows["harness"], "task metric", _tell_metric))
        for row in rows["harness"]:
            del row["task metric"]


def _tell_task(row: dict[str, Any]) -> str:
    return f"{row['accuracy']:.3f} ±{row['accuracy_std_error']:.3f} ({row['nll_per_byte']:.3f})"


def _tell_text(row: dict[str, Any]) -> str:
    return f"{format_loss(row['nll_per_token'])} ({row['bits_per_byte']:.3f})"


def _tell_metric(row: dict[str, Any]) -> str:
    error = f" ±{row['std_error']:.3f}" if row["std_error"] is not None else ""
    return f"{row['value']:.3f}{error}"


def _table(title: str, rows: Sequence[dict[str, Any]], column: str, tell: Any) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("run", no_wrap=True)
    for name in ("C", "N", "D", *dict.fromkeys(row[column] for row in rows)):
        table.add_column(name, justify="right", overflow="fold")
    for run in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == run]
        sizes = [format_flops(own[0]["C"]), format_count(own[0]["N"]), format_count(own[0]["D"])]
        table.add_row(run, *sizes, *map(tell, own))
    return table
