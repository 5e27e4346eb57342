"""What a comparison of learning-curve families says, as one value that prints as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from jaxscale.fit.result import Estimate, without_nan
from jaxscale.format import format_count, format_factor, format_interval, format_loss, format_number, format_percent
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CurveFits", "FamilyFit", "list_refused"]


@dataclass(frozen=True)
class FamilyFit:
    """One family on the whole curve. Errors are rms of log loss: .01 is one percent.

    `reason` says why a family has no fit. `share`: of the redrawn curves, on how many it extrapolated best.
    `dimension`: 1 / alpha, for laws with an exponent.
    """

    law: str
    equation: str
    params: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    floor: float | None = None
    in_sample: float | None = None
    held_out: float | None = None
    share: float | None = None
    status: str = "fitted"
    dimension: Estimate | None = None
    dimension_smooth: Estimate | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CurveFits:
    """Families on one curve; `chosen` extrapolates best, `rivals` could not be told apart from it.

    `backtest`: law, fitted_to_D, D, predicted, measured, error, one row a held-out point. `predictions`: law, D,
    loss, interval of the mean curve, interval_run of one further run. `spread`: D, low, high over the families
    still in the running. `noise`: deviation of log loss of one point.
    """

    families: tuple[FamilyFit, ...]
    chosen: str | None
    running: tuple[str, ...]
    rivals: tuple[str, ...]
    verdict: str
    origins: tuple[float, ...]
    noise: float | None
    backtest: tuple[dict[str, Any], ...]
    predictions: tuple[dict[str, Any], ...]
    spread: tuple[dict[str, Any], ...]
    source: dict[str, Any]
    confidence: float
    bootstrap: int
    seed: int
    notes: tuple[str, ...] = ()
    schema: str = "jaxscale.curves/1"

    def __getitem__(self, law: str) -> FamilyFit:
        """The family of that name; KeyError where it was not asked for."""
        for family in self.families:
            if family.law == law:
                return family
        raise KeyError(law)

    def to_json(self) -> str:
        """As JSON, schema jaxscale.curves/1; NaN and infinities become null."""
        plain = asdict(self)
        return json.dumps({"schema": plain.pop("schema"), **without_nan(plain)}, indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a family: law, parameters, in_sample, held_out, share, status, dimension, reason."""
        import pandas as pd

        kept = ("law", "parameters", "in_sample", "held_out", "share", "status", "dimension", "reason")
        rows = [
            {
                **asdict(family),
                "parameters": len(family.params),
                "dimension": family.dimension and family.dimension.value,
            }
            for family in self.families
        ]
        return pd.DataFrame([{name: row[name] for name in kept} for row in rows])

    def __str__(self) -> str:
        title = f"learning curves, {self.source.get('rows_used', '?')} rows of {self.source.get('path', '?')}"
        parts = [self._family_table(title)]
        if self.predictions:
            parts.append(self._prediction_table())
        parts += [f"spread at D = {format_count(row['D'])}: {format_loss(row['low'])} to {format_loss(row['high'])} "
                  f"over {', '.join(self.running)}" for row in self.spread if len(self.running) > 1]  # fmt: skip
        parts += list_refused(self.source)
        parts += [f"note: {note}" for note in self.notes]
        parts += [f"note: {family.law}: {note}" for family in self.families for note in family.notes]
        return "\n".join([*parts, f"verdict: {self.verdict}"])

    def _family_table(self, title: str) -> str:
        header = ("law", "equation", "parameters", "in-sample", "held out", "best in", "floor", "d = 1/alpha", "of d",
                  "")  # fmt: skip
        rows = []
        for f in self.families:
            d = f.dimension
            params = ", ".join(f"{name} {format_number(value, 3)}" for name, value in f.params.items())
            rows.append((
                f.law, f.equation, params or "–", _plain_percent(f.in_sample), _plain_percent(f.held_out),
                _plain_percent(f.share), format_loss(f.floor), format_number(d.value, 3) if d else "–",
                format_interval(d.interval, lambda x: format_number(x, 3)) if d else "–", f.reason or f.status,
            ))  # fmt: skip
        return render_table(title, header, rows)

    def _prediction_table(self) -> str:
        header = ("law", "D", "of the largest", "loss", f"{self.confidence:.0%} interval", "one further run")
        rows = [
            (row["law"], format_count(row["D"]), format_factor(row["extrapolation"]), format_loss(row["loss"]),
             format_interval(row["interval"]), format_interval(row["interval_run"]))
            for row in self.predictions
        ]  # fmt: skip
        return render_table("extrapolation", header, rows)


def list_refused(source: Mapping[str, Any]) -> list[str]:
    """A line for each of the first five refused rows, and how many more there are."""
    refused = source.get("rows_refused") or []
    lines = [f"row {row.get('row', row.get('run_id'))} refused: {row['reason']}" for row in refused[:5]]
    return [*lines, f"... and {len(refused) - 5} more rows refused"] if len(refused) > 5 else lines


def _plain_percent(value: float | None) -> str:
    return format_percent(value).removeprefix("+")
