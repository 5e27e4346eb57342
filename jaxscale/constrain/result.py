"""What a constrained plan comes out as: rows by method and constraint, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxscale.fit.result import without_nan
from jaxscale.format import format_count, format_factor, format_flops, format_interval, format_loss
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Constrained"]

SHOWN = ("method", "constraint", "N", "interval", "D", "D/N", "epochs", "C train", "C lifetime", "loss", "interval",
         "costs nats", "compute", "lifetime", "price", "binds")  # fmt: skip


@dataclass(frozen=True)
class Constrained:
    """Rows by method and constraint: free, each constraint alone, together; flat but for `intervals`.

    `compute_factor` is the budget (for a target loss: the training FLOPs) over what the free optimum needs for
    the row's loss; `lifetime_factor` is training and serving together over that of the free plan.
    "free, on U" is the free plan trained on U unique tokens all the same.
    """

    request: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    confidence: float
    notes: tuple[str, ...] = ()
    schema: str = "jaxscale.constrained/1"

    def to_plain(self) -> dict[str, Any]:
        """The schema's dictionary."""
        plain = {"schema": self.schema, "request": self.request, "confidence": self.confidence}
        return without_nan({**plain, "notes": list(self.notes), "rows": list(self.rows)})

    def to_json(self) -> str:
        """The plans as JSON, schema jaxscale.constrained/1."""
        return json.dumps(self.to_plain(), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a method and constraint; intervals as columns NAME_low, NAME_high."""
        import pandas as pd

        flat = []
        for row in self.rows:
            ends = {
                f"{k}_{end}": v
                for k, pair in row["intervals"].items()
                for end, v in zip(("low", "high"), pair, strict=True)
            }
            flat.append({k: v for k, v in row.items() if k != "intervals"} | ends)
        return pd.DataFrame(flat)

    def __str__(self) -> str:
        asked = ", ".join(f"{name} {value:.4g}" for name, value in self.request.items())
        shown = [_show(row) for row in self.rows]
        used = [i for i in range(len(SHOWN)) if any(row[i] is not None for row in shown)]
        columns, rows = [SHOWN[i] for i in used], [[row[i] for i in used] for row in shown]
        table = render_table(f"plans for {asked}; {self.confidence:.0%} intervals", columns, rows)
        return "\n".join([table, *(f"note: {note}" for note in self.notes)])


def _show(row: Mapping[str, Any]) -> tuple[Any, ...]:
    N, loss = (row["intervals"].get(name) for name in ("N", "loss"))
    epochs = None if row["epochs"] is None else f"{row['epochs']:.3g}"
    return (row["method"], row["constraint"], format_count(row["N"]), format_interval(N, format_count),
            format_count(row["D"]), row["tokens_per_param"], epochs, format_flops(row["C_train"]),
            format_flops(row["C_lifetime"]), format_loss(row["loss"]), format_interval(loss), row["loss_cost"],
            format_factor(row["compute_factor"]), format_factor(row["lifetime_factor"]),
            row["cost_lifetime"], row["binds"])  # fmt: skip
