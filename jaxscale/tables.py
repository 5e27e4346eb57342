"""A table for people as text: columns right-aligned, numbers short, missing values as a dash."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from jaxscale.format import format_number

__all__ = ["render_table"]


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
