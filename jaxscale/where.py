"""Row filters a person can type: comparisons joined by and, or, not, on a table's own columns.

    excluded == 0 and (d_tokens > 1e9 or not role == "eval")

The text is parsed with `ast` and only these nodes are walked; nothing is ever evaluated as Python.
A comparison with a missing value is false, except `!=`, which is true.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["column_of", "select_rows"]

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def select_rows(frame: pd.DataFrame, where: str) -> np.ndarray:
    """Boolean mask (rows,) of the rows that satisfy `where`; MisuseError for anything but comparisons.

    >>> import pandas as pd
    >>> select_rows(pd.DataFrame({"n": [1, 2, 3]}), "n > 1 and not n == 3").tolist()
    [False, True, False]
    """
    try:
        tree = ast.parse(where.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise _misuse(where, f"does not parse ({getattr(error, 'msg', error)})") from None
    return _truth(tree.body, frame, where)


def column_of(frame: pd.DataFrame, name: str, asked_by: str) -> pd.Series:
    """A column by name; MisuseError where there are several, or none: then it proposes the nearest."""
    if (count := int((frame.columns == name).sum())) > 1:
        raise MisuseError(f"{asked_by}: {count} columns are named {name!r}; rename all but one")
    if count:
        return frame[name]
    names = [str(column) for column in frame.columns]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the columns are {', '.join(names)}"
    raise MisuseError(f"{asked_by}: no column {name!r}; {hint}")


def _truth(node: ast.expr, frame: pd.DataFrame, where: str) -> np.ndarray:
    if isinstance(node, ast.BoolOp):
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return reduce(join, (_truth(value, frame, where) for value in node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_truth(node.operand, frame, where)
    if isinstance(node, ast.Compare):
        return _compare(node, frame, where)
    raise _misuse(where, f"{ast.unparse(node)!r} is not a comparison")


def _compare(node: ast.Compare, frame: pd.DataFrame, where: str) -> np.ndarray:
    values = [_value(part, frame, where) for part in (node.left, *node.comparators)]
    mask = np.ones(len(frame), bool)
    for op, left, right in zip(node.ops, values, values[1:], strict=False):
        if type(op) not in COMPARISONS:
            raise _misuse(where, "only ==, !=, <, <=, >, >= compare")
        try:
            result = COMPARISONS[type(op)](left, right)
        except TypeError:
            raise _misuse(where, f"{ast.unparse(node)!r} compares text with numbers") from None
        mask &= np.broadcast_to(np.asarray(result, dtype=bool), mask.shape)
    return mask


def _value(node: ast.expr, frame: pd.DataFrame, where: str) -> Any:
    if isinstance(node, ast.Name):
        column = column_of(frame, node.id, f"where {where!r}")
        if column.dtype.kind not in "biuf":
            return column.astype(object).to_numpy()
        return column.to_numpy()
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and _is_number(node.operand):
        return -node.operand.value  # type: ignore[attr-defined]
    raise _misuse(where, f"{ast.unparse(node)!r} is neither a column, a number nor a quoted text")


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _misuse(where: str, problem: str) -> MisuseError:
    example = "N > 1e6 and role == 'grid'"
    return MisuseError(f'where {where!r}: {problem}; join comparisons by and, or, not, as in "{example}"')
