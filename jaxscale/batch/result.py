"""BATCH.json as a value, schema jaxscale.batch_study/1, and its tables for people. Rows are flat; batches in tokens.

runs        C_min and S_min of every run                steps       tokens and steps to each target by batch
cells       loss at the best rate, how it was found     tradeoffs   S_min, E_min, B_crit of each size and target
laws        B_crit of loss, of D, and constant          noise_scale B_simple along the curve of every run
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.batchlaw import SCHEMA
from jaxscale.fit.result import without_nan
from jaxscale.format import format_count, format_flops, format_interval, format_loss, format_number, format_percent
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

    from jaxscale.batch.fit import Law

__all__ = ["SCHEMA", "BatchStudy"]

EQUATIONS = {"loss": "B* / L^(1/alpha_B)", "D": "A D^a, D = E_min", "constant": "constant"}


@dataclass(frozen=True)
class BatchStudy:
    """A fitted study of the batch; `tradeoffs` and the rest are the rows of BATCH.json."""

    source: dict[str, Any]
    identity: dict[str, Any]
    points: str
    confidence: float
    noise: dict[str, Any]
    runs: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    tradeoffs: list[dict[str, Any]]
    laws: dict[str, Law]
    noise_scale: Sequence[dict[str, Any]] = ()
    verdict: str = ""
    notes: tuple[str, ...] = field(default=())
    schema: str = SCHEMA

    def totals(self) -> dict[str, float]:
        """FLOPs of all runs together: C, C_min, and the share of C that large batches cost."""
        C, C_min = (sum(row[name] for row in self.runs) for name in ("C", "C_min"))
        return {"C": C, "C_min": C_min, "overhead": C / C_min - 1}

    def to_json(self) -> str:
        """The study as JSON, schema jaxscale.batch_study/1."""
        plain = {name: value for name, value in vars(self).items() if name not in ("schema", "laws")}
        laws = [_describe_law(law) for law in self.laws.values()]
        return json.dumps(
            {"schema": self.schema, **without_nan(plain | {"laws": laws, "totals": self.totals()})}, indent=1
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a size and target: `tradeoffs`."""
        import pandas as pd

        return pd.DataFrame(self.tradeoffs)

    def __str__(self) -> str:
        words = {"ends": "ends of runs", "curves": "curves at a constant rate"}[self.points]
        parts = [self._steps(words), self._tradeoffs(), self._laws(), self.verdict, self._rates(), self._noise_scales(),
                 self._totals()]  # fmt: skip
        return "\n".join([part for part in parts if part] + [f"note: {note}" for note in self.notes])

    def _steps(self, words: str) -> str:
        batches = sorted({row["batch"] for row in self.steps})
        rows = []
        for one in self.tradeoffs:
            own = {
                row["batch"]: row["steps"] for row in self.steps if (row["N"], row["loss"]) == (one["N"], one["loss"])
            }
            steps = (format_number(own.get(batch)) for batch in batches)
            rows.append((format_count(one["N"]), format_loss(one["loss"]), *steps))
        columns = ("N", "loss", *(f"B {format_count(batch)}" for batch in batches))
        return render_table(f"steps to a loss, by batch in tokens ({words})", columns, rows)

    def _tradeoffs(self) -> str:
        rows = [
            (format_count(r["N"]), format_loss(r["loss"]), r["batches"], format_number(r["S_min"]),
             format_count(r["E_min"]), format_count(r["B_crit"]),
             format_interval((r["B_crit_low"], r["B_crit_high"]), format_count),
             format_percent(r["residual_std"]).lstrip("+"), _with_error(r["B_simple"], r["B_simple_std_error"]))
            for r in self.tradeoffs
        ]  # fmt: skip
        title = f"S = S_min (1 + B_crit / B), {self.confidence:.0%} intervals of B_crit; B_simple is the noise scale"
        columns = ("N", "loss", "batches", "S_min", "E_min", "B_crit", "interval", "misses steps by", "B_simple")
        return render_table(title, columns, rows)

    def _laws(self) -> str:
        rows = [
            (EQUATIONS[law.of], format_number(law.A), format_interval(law.A_interval, format_number),
             _exponent(law)[0], format_interval(_exponent(law)[1], format_number), law.points,
             format_number(law.left_out_error, 2), format_number(law.aicc), format_number(law.better_share, 2))
            for law in self.laws.values()
        ]  # fmt: skip
        columns = ("B_crit =", "factor", "interval", "exponent", "interval", "targets", "left out", "AICc", "rounds")
        return render_table("how the critical batch grows (alpha_B for the loss, a for D)", columns, rows)

    def _rates(self) -> str:
        rows = []
        for batch in sorted({cell["batch"] for cell in self.cells}):
            own = [cell for cell in self.cells if cell["batch"] == batch]
            states = [cell["tuned"] for cell in own]
            told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
            rates = [cell["lr"] for cell in own if np.isfinite(cell["lr"])]
            span = f"{min(rates):.3g} to {max(rates):.3g}" if rates else "unknown"
            rows.append((format_count(batch), len(own), max(cell["rates"] for cell in own), span, told))
        return render_table("learning rates", ("batch", "cells", "rates", "best rates", "how found"), rows)

    def _noise_scales(self) -> str:
        ends: dict[Any, Any] = {}
        for row in self.noise_scale:  # the longest run of each size and batch, its last window
            place = (row["N"], row["batch"])
            if row["B_simple"] and (place not in ends or row["D"] > ends[place]["D"]):
                ends[place] = row
        rows = [
            (format_count(N), format_count(batch), format_count(row["D"]), format_loss(row["loss"]),
             _with_error(row["B_simple"], row["std_error"]))
            for (N, batch), row in sorted(ends.items())
        ]  # fmt: skip
        title = "gradient noise scale of the last window of the longest runs, tokens (plain gradients)"
        return render_table(title, ("N", "batch", "D", "train loss", "B_simple"), rows) if rows else ""

    def _totals(self) -> str:
        total, outside = self.totals(), sum(not row["inside"] for row in self.runs)
        by = {"constant": "one B_crit for all"}.get(self.runs[0]["by"], f"B_crit by {self.runs[0]['by']}")
        far = f"; for {outside} of {len(self.runs)} runs that law is extrapolated" if outside else ""
        return (f"C_min = C / (1 + B / B_crit), {by}: {format_flops(total['C'])} FLOPs in all runs, "
                f"{format_flops(total['C_min'])} at batches far below B_crit "
                f"({format_percent(total['overhead'])} for larger batches){far}")  # fmt: skip


def _exponent(law: Law) -> tuple[str, tuple[float | None, float | None]]:
    """alpha_B = -1/a of the loss's law, a of D's."""
    if law.of == "constant":
        return "–", (None, None)
    if law.of == "D":
        return format_number(law.a), law.a_interval
    low, high = law.a_interval
    known = low is not None and high is not None and low * high > 0
    return format_number(-1 / law.a) if law.a else "–", (-1 / low, -1 / high) if known else (None, None)  # type: ignore[operator]


def _describe_law(law: Law) -> dict[str, Any]:
    plain = law._asdict()
    for name in ("A", "a"):
        plain[f"{name}_low"], plain[f"{name}_high"] = plain.pop(f"{name}_interval")
    plain["x_low"], plain["x_high"] = plain.pop("x_range")
    return plain | ({"alpha_B": -1 / law.a if law.a else None} if law.of == "loss" else {})


def _with_error(value: float | None, error: float | None) -> str:
    return "–" if value is None else f"{format_count(value)} ± {format_count(error, 2)}"
