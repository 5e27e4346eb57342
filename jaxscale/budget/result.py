"""What a budget comes out as: rows of numbers, each with its unit, its formula and where it comes from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from jaxscale.format import format_count, format_flops, format_number
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Basis", "Budget", "Row"]

Basis = Literal["given", "computed", "assumed"]


@dataclass(frozen=True)
class Row:
    """One number: what it is, its unit, where it comes from."""

    quantity: str
    value: float
    unit: str
    formula: str
    basis: Basis


@dataclass(frozen=True)
class Budget:
    """Rows of a budget in the order they follow from each other; to_json has schema jaxscale.budget/1."""

    rows: tuple[Row, ...]
    schema: str = "jaxscale.budget/1"

    def __getitem__(self, quantity: str) -> float:
        """A quantity by name; KeyError names those there are."""
        found = {row.quantity: row.value for row in self.rows}
        if quantity not in found:
            raise KeyError(f"{quantity!r} does not follow from what was given; there are {', '.join(found)}")
        return found[quantity]

    def to_plain(self) -> dict[str, Any]:
        """The schema's dictionary."""
        return {"schema": self.schema, "rows": [asdict(row) for row in self.rows]}

    def to_json(self) -> str:
        """The rows as JSON."""
        return json.dumps(self.to_plain(), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a quantity."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def __str__(self) -> str:
        rows = [(row.quantity, _show(row), row.unit, row.basis, row.formula) for row in self.rows]
        return render_table("budget", ("quantity", "value", "unit", "", "formula"), rows)


def _show(row: Row) -> str:
    if row.unit in ("params", "tokens"):
        return format_count(row.value, 4)
    if row.value < 1e9 and row.value == round(row.value):
        return f"{row.value:.0f}"
    return format_flops(row.value, 4) if row.value >= 1e9 else format_number(float(row.value))
