"""A table for people as text: columns right-aligned, numbers short, missing values as a dash."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

__all__ = ["format_interval", "format_number", "render_table"]


def format_number(value: Any, digits: int = 4) -> str:
    """A number with `digits` significant ones; text as it is; None and NaN as a dash.

    >>> format_number(0.5123456), format_number(3.8e25), format_number(None)
    ('0.5123', '3.8e+25', '-')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def format_interval(interval: Sequence[float | None] | None) -> str:
    """An interval as [low, high]; a dash where there is none.

    >>> format_interval((0.25, 0.5)), format_interval((None, None))
    ('[0.25, 0.5]', '-')
    """
    if interval is None or interval[0] is None or interval[1] is None:
        return "-"
    return f"[{format_number(interval[0])}, {format_number(interval[1])}]"


def render_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The table as plain text, as wide as its content."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(format_number(value) for value in row))
    text = io.StringIO()
    Console(file=text, width=400, color_system=None, markup=False, highlight=False).print(table)
    return "\n".join([title, *(line.rstrip() for line in text.getvalue().strip("\n").splitlines())]).rstrip()
