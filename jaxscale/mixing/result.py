"""What is told of the best mixture: by budget, by method, with what was left out and how it was foretold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from jaxscale.fit.result import Interval, without_nan
from jaxscale.format import format_flops, format_interval, format_loss
from jaxscale.laws.mixing import Mixing
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BudgetMixture", "MixtureFit", "Reading"]


@dataclass(frozen=True)
class Reading:
    """One method's answer: shares, their intervals, the loss there (nats) at the best size, errors in nats.

    `flat`: shares of the first of two sources that cost less than .1% more.
    """

    best: dict[str, float]
    intervals: dict[str, Interval]
    loss: float
    rms: float
    held_out: float | None
    form: str
    flat: tuple[float, float] | None


@dataclass(frozen=True)
class BudgetMixture:
    """A budget: `status` ok, edge or too_few with its reason; `chosen` of `readings`; the best mixture trained."""

    C: float
    status: str
    reason: str
    chosen: str
    mixtures: int
    points: int
    tried: dict[str, float]
    tried_loss: float
    readings: dict[str, Reading]
    laws: Mapping[str, Mixing]


@dataclass(frozen=True)
class MixtureFit:
    """The best mixtures, smallest budget first; `weights` of the texts whose loss is minimised."""

    sources: tuple[str, ...]
    weights: dict[str, float]
    budgets: tuple[BudgetMixture, ...]
    confidence: float
    bootstrap: int
    seed: int
    source: dict[str, Any]
    schema: str = "jaxscale.mixture/1"

    @property
    def verdict(self) -> str:
        """Empty where a budget has an answer, else why none has."""
        good = any(one.status == "ok" for one in self.budgets)
        return "" if good else "; ".join(f"{format_flops(one.C)}: {one.reason}" for one in self.budgets)

    def best(self, C: float | None = None) -> dict[str, float]:
        """Shares by source at a budget (default the largest with an answer); empty where there is none."""
        good = [one for one in self.budgets if one.status == "ok" and (C is None or abs(one.C / C - 1) < 0.05)]
        return dict(good[-1].readings[good[-1].chosen].best) if good else {}

    def to_json(self) -> str:
        """As JSON, schema jaxscale.mixture/1."""
        plain = asdict(self)
        for told, one in zip(plain["budgets"], self.budgets, strict=True):
            told["laws"] = {text: {"c": law.c, "k": law.k, "t": dict(law.t)} for text, law in one.laws.items()}
        return json.dumps({"schema": plain.pop("schema"), **without_nan(plain)}, indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a budget, method and source: C, status, method, chosen, source, share, low, high, loss, held_out."""
        import pandas as pd

        rows = [
            {"C": one.C, "status": one.status, "method": name, "chosen": name == one.chosen, "source": source,
             "share": share, "low": reading.intervals[source][0], "high": reading.intervals[source][1],
             "loss": reading.loss, "held_out": reading.held_out}
            for one in self.budgets for name, reading in one.readings.items() for source, share in reading.best.items()
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        weights = ", ".join(f"{value:.3g} {name}" for name, value in self.weights.items())
        shown = self.sources[:-1] if len(self.sources) == 2 else self.sources
        header = ["C", "method"]
        for name in shown:
            header += [f"share of {name}", f"{self.confidence:.0%} interval"]
        header += ["loss", "rms", "left out", "within .1%"]
        rows = [_row(one, name, shown) for one in self.budgets for name in one.readings]
        lines = [render_table(f"best mixture for the loss {weights}", header, rows)] if rows else []
        return "\n".join([*lines, *map(self._say, self.budgets)])

    def _say(self, one: BudgetMixture) -> str:
        tried = ", ".join(f"{share:.3g} {name}" for name, share in one.tried.items())
        head = f"{format_flops(one.C)}: "
        if one.status != "ok":
            return f"{head}{one.status}: {one.reason}; the best of {one.mixtures} mixtures trained is {tried}"
        reading = one.readings[one.chosen]
        best = ", ".join(f"{share:.3g} {name}" for name, share in reading.best.items())
        gain = one.tried_loss / reading.loss - 1
        return f"{head}best {best} by the {one.chosen}; loss {reading.loss:.4f}, the best trained ({tried}) {gain:+.2%}"


def _row(one: BudgetMixture, name: str, shown: Sequence[str]) -> list[str]:
    """A method's answer at one budget; the chosen one has a star."""
    reading = one.readings[name]
    row = [format_flops(one.C), f"{name}{'*' if name == one.chosen else ''} ({reading.form})"]
    for source in shown:
        row += [f"{reading.best[source]:.3f}", format_interval(reading.intervals[source], "{:.3f}".format)]
    row += [format_loss(reading.loss), f"{reading.rms:.1e}"]
    row += ["" if reading.held_out is None else f"{reading.held_out:.1e}"]
    return [*row, "" if reading.flat is None else f"{reading.flat[0]:.2f} to {reading.flat[1]:.2f}"]
