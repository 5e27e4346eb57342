"""What is evaluated, when, and evals.jsonl, where a run's folder keeps it.

A line for each (step, task): step, tokens, flops, the numbers of `measure`, how they were asked for (normalization,
shots, sha256 of the task), choices whose context was cut, seconds, crc. A line that answers the same question is not
made again; one that answers another (a task file that changed, other shots) takes its place. On resume lines past the
restored step are cut off, so that the finished file is an undisturbed run's, `seconds` aside.

A point p of a run of S steps is due at the first logging interval that ends at step pS or later; the end always is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxscale.config import Recipe
from jaxscale.evals.encode import encode_task
from jaxscale.evals.measure import Normalization, measure_task
from jaxscale.evals.task import Item, Task, find_tasks, read_task
from jaxscale.flops import flops_per_token
from jaxscale.plain import read_lines, seal_line, write_json
from jaxscale.runs import RunSpec

if TYPE_CHECKING:
    from jaxscale.evals.score import LoadedModel

__all__ = ["Evals", "add_line", "cut_evals", "evaluate_run", "evaluate_task", "find_evals", "find_missing",
           "read_eval_lines", "write_lines"]  # fmt: skip

LINE_FIELDS = frozenset({"step", "task", "accuracy"})


@dataclass(frozen=True)
class Evals:
    """Tasks, how they are asked, and at which shares of a run besides its end."""

    tasks: tuple[Task, ...]
    normalization: Normalization = "byte"
    shots: int = 0
    pool: tuple[Item, ...] = ()
    points: tuple[float, ...] = ()

    def is_due(self, covered: int, step: int, steps: int) -> bool:
        """Whether a point of a run of `steps` lies after step `covered` and at `step` or before it.

        >>> evals = Evals((), points=(0.25, 0.5))
        >>> [evals.is_due(0, 24, 100), evals.is_due(0, 26, 100), evals.is_due(26, 49, 100), evals.is_due(26, 50, 100)]
        [False, True, False, True]
        """
        return any(covered < math.ceil(point * steps) <= step for point in self.points)

    def describe(self, task: Task) -> dict[str, Any]:
        """What decides a line's numbers besides the weights."""
        return {"task": task.name, "normalization": self.normalization, "shots": self.shots, "sha256": task.sha256}


def find_evals(recipe: Recipe, options: bool = False) -> Evals | None:
    """What a recipe asks for, None for nothing; `options`: named on the command line of `eval`.

    MisuseError where a task file cannot be read.
    """
    if not recipe.evals:
        return None
    tasks = tuple(read_task(file) for file in find_tasks(recipe.evals, "--tasks" if options else "recipe.evals"))
    pool: tuple[Item, ...] = ()
    if recipe.eval_shots_from:
        field = "--shots-from" if options else "recipe.eval_shots_from"
        pool = tuple(item for file in find_tasks((recipe.eval_shots_from,), field) for item in read_task(file).items)
    return Evals(tasks, recipe.eval_normalization, recipe.eval_shots, pool, recipe.eval_points)


def read_eval_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's folder, in the order they were made; none where there is no file."""
    return read_lines(folder / "evals.jsonl", LINE_FIELDS)


def cut_evals(folder: Path, step: int) -> int:
    """Drop lines past `step`; the last step that has any, 0 without."""
    lines = read_eval_lines(folder)
    kept = [line for line in lines if line["step"] <= step]
    if len(kept) < len(lines):
        write_lines(folder / "evals.jsonl", kept)
    return max((int(line["step"]) for line in kept), default=0)


def write_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a file of sealed lines whole or not at all."""
    write_json(file, "".join(map(seal_line, lines)))


def evaluate_run(
    load: Callable[[], LoadedModel], spec: RunSpec, step: int, evals: Evals, folder: Path
) -> list[dict[str, Any]]:
    """The lines of all tasks for a run's weights after `step`; `load` gives them where lines have to be made.

    VerdictError where a likelihood is not finite.
    """
    for task in find_missing(evals, folder, step):
        add_line(folder, evaluate_task(load(), spec, step, evals, task))
    lines = {line["task"]: line for line in read_eval_lines(folder) if line["step"] == step}
    return [lines[task.name] for task in evals.tasks]


def find_missing(evals: Evals, folder: Path, step: int) -> list[Task]:
    """The tasks without a line for `step` that answers the same question."""
    lines = [line for line in read_eval_lines(folder) if line["step"] == step]
    return [task for task in evals.tasks
            if not any(evals.describe(task).items() <= line.items() for line in lines)]  # fmt: skip


def add_line(folder: Path, line: dict[str, Any]) -> None:
    """Put a line in its place, by step and task, instead of one that was there."""
    place = (line["step"], line["task"])
    others = [other for other in read_eval_lines(folder) if (other["step"], other["task"]) != place]
    write_lines(folder / "evals.jsonl", sorted([*others, line], key=lambda one: int(one["step"])))


def evaluate_task(model: LoadedModel, spec: RunSpec, step: int, evals: Evals, task: Task) -> dict[str, Any]:
    """A task's line for weights after `step`; VerdictError where a likelihood is not finite."""
    begun = time.perf_counter()
    encoded = encode_task(task, model.tokenizer, spec.model.seq_len, evals.shots, evals.pool)
    nll = encoded.add_up(model.scorer.score(model.params, encoded.windows))
    measured = measure_task(task, nll, encoded.tokens, evals.normalization)
    tokens = step * spec.batch_seqs * spec.model.seq_len
    place = {"step": step, "tokens": tokens, "flops": float(tokens * flops_per_token(spec.model))}
    seconds = round(time.perf_counter() - begun, 3)
    return place | measured | evals.describe(task) | {"truncated": encoded.truncated, "seconds": seconds}
