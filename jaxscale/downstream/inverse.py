"""The inverse question: at which compute does a compute-optimal model reach an accuracy, and how sure is that?

Compute-optimal by stage 1: at each C the N and D of lowest NLL of the right answer, with tokens per parameter kept
inside the range of the fitted runs. The interval is that of the mean over runs; a model of its own, on a task of few
questions, scatters about it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from jaxscale.downstream.chain import Reached
from jaxscale.downstream.result import Downstream
from jaxscale.format import format_count, format_factor, format_flops, format_interval
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Answers", "reach_accuracy"]


@dataclass(frozen=True)
class Answers:
    """A `Reached` for each task asked for; `notes` say in words where an interval is open."""

    rows: tuple[tuple[str, Reached], ...]
    confidence: float
    recipe: str
    notes: tuple[str, ...]
    schema: str = "jaxscale.downstream_forecast/1"

    def records(self) -> list[dict[str, Any]]:
        """Flat records: task, accuracy, C, interval, never, N, D, extrapolation."""
        return [{"task": task, **asdict(one), "interval": list(one.interval)} for task, one in self.rows]

    def to_json(self) -> str:
        """As JSON; an open end is null."""
        plain = {"schema": self.schema, "recipe": self.recipe, "confidence": self.confidence, "rows": self.records(),
                 "notes": list(self.notes)}  # fmt: skip
        return json.dumps(plain, indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a task; the interval as C_low and C_high."""
        import pandas as pd

        rows = [{**row, "C_low": row["interval"][0], "C_high": row["interval"][1]} for row in self.records()]
        return pd.DataFrame(rows).drop(columns="interval")

    def __str__(self) -> str:
        rows = [
            (task, f"{one.accuracy:g}", f"{format_flops(one.C)} {_interval(one.interval)}",
             format_factor(one.extrapolation), format_count(one.N), format_count(one.D), f"{one.never:.1%}")
            for task, one in self.rows
        ]  # fmt: skip
        title = (
            f"compute at which a compute-optimal model reaches an accuracy; {self.confidence:.0%} intervals in brackets"
        )
        table = render_table(title, ("task", "accuracy", "C", "beyond", "N", "D", "rounds that never do"), rows)
        return "\n".join([table, *(f"note: {note}" for note in self.notes)])


def reach_accuracy(found: Downstream, wanted: Mapping[str, float]) -> Answers:
    """The compute each task needs for its accuracy; refuses levels at chance, above the ceiling, far below the data."""
    rows, notes = [], []
    for task, accuracy in wanted.items():
        one = found.chain(task).compute_for(accuracy)
        rows.append((task, one))
        if one.interval[1] is None:
            notes.append(
                f"{task}: the interval of C has no upper end: {one.never:.1%} of the rounds never reach {accuracy:g}"
            )
        if one.interval[0] is None:
            notes.append(f"{task}: the interval of C has no lower end: it lies far below the smallest fitted run")
    return Answers(tuple(rows), found.confidence, found.recipe, tuple(notes))


def _interval(interval: tuple[float | None, float | None]) -> str:
    return format_interval(interval, format_flops).replace("–]", "open]").replace("[–", "[open")
