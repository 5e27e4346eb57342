"""How numbers are written for people: three significant digits, short units, intervals in brackets.

One style for terminal tables, figures and the report, so that the same number looks the same everywhere.
A number that is unknown (None, NaN, infinite) is written as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

__all__ = [
    "UNKNOWN",
    "format_count",
    "format_factor",
    "format_flops",
    "format_interval",
    "format_loss",
    "format_number",
    "format_percent",
    "format_seconds",
]

UNKNOWN = "–"
"""Stands for a number that is not known."""

_SUFFIXES = ("", "k", "M", "B", "T")


def format_count(value: float | None, digits: int = 3) -> str:
    """Parameters or tokens with the suffixes k, M, B, T; powers of ten beyond.

    >>> [format_count(n) for n in (812, 999.7, 47500, 1_300_000, 7e10, 1.43e12, 3e16)]
    ['812', '1k', '47.5k', '1.3M', '70B', '1.43T', '3e16']
    >>> format_count(None)
    '–'
    """
    if not _is_known(value):
        return UNKNOWN
    rounded = float(f"{value:.{digits}g}")
    power = max(0, math.floor(math.log10(abs(rounded)) / 3)) if rounded else 0
    if power >= len(_SUFFIXES):
        return format_flops(value, digits)
    return f"{rounded / 1000**power:.{digits}g}{_SUFFIXES[power]}"


def format_flops(value: float | None, digits: int = 3) -> str:
    """FLOPs in powers of ten, without padding.

    >>> [format_flops(c) for c in (3e10, 1.26e11, 9.9999e20)]
    ['3e10', '1.26e11', '1e21']
    """
    if not _is_known(value):
        return UNKNOWN
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def format_seconds(value: float | None) -> str:
    """A duration in its two largest units.

    >>> [format_seconds(s) for s in (0.42, 12, 75, 3600, 11_100, 200_000)]
    ['0.42s', '12s', '1m15s', '1h', '3h5m', '2d7h']
    """
    if not _is_known(value):
        return UNKNOWN
    if value < 9.95:
        return f"{value:.2g}s"
    left = round(value)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
    return "".join(parts[:2])


def format_loss(value: float | None) -> str:
    """A loss in nats per token, to the third decimal.

    >>> format_loss(1.83449)
    '1.834'
    """
    return f"{value:.3f}" if _is_known(value) else UNKNOWN


def format_number(value: Any, digits: int = 4) -> str:
    """Any cell of a table: a number with `digits` significant ones, text and whole numbers as they are.

    >>> format_number(0.5123456), format_number(3.8e25), format_number(7), format_number(None)
    ('0.5123', '3.8e+25', '7', '–')
    """
    if not isinstance(value, float):
        return UNKNOWN if value is None else str(value)
    return f"{value:.{digits}g}" if _is_known(value) else UNKNOWN


def format_percent(value: float | None) -> str:
    """A signed relative error as a percentage.

    >>> [format_percent(x) for x in (0.0123, -0.5, 3.214)]
    ['+1.2%', '-50%', '+321%']
    """
    if not _is_known(value):
        return UNKNOWN
    percent = 100 * value
    return f"{percent:+.2g}%" if abs(percent) < 99.5 else f"{percent:+.0f}%"


def format_factor(value: float | None) -> str:
    """A ratio, as in "12x the largest budget".

    >>> [format_factor(x) for x in (0.9216, 1.0945, 10, 3812, 5e7)]
    ['0.922x', '1.09x', '10x', '3810x', '5e7x']
    """
    if not _is_known(value):
        return UNKNOWN
    if value >= 1e5:
        return f"{format_flops(value, 2)}x"
    return f"{float(f'{value:.3g}'):g}x"


def format_interval(interval: Sequence[float | None] | None, style: Callable[[float | None], str] = format_loss) -> str:
    """An interval in brackets, both ends in the given style; a dash when neither end is known.

    >>> format_interval((39_000, 58_200), format_count)
    '[39k, 58.2k]'
    >>> format_interval((1.8, None))
    '[1.800, –]'
    """
    if interval is None or not any(_is_known(end) for end in interval):
        return UNKNOWN
    low, high = interval
    return f"[{style(low)}, {style(high)}]"


def _is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
