"""The laws as dense lines for a figure: loss of every variant with its band, and its distance to a reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxscale.compare.answers import summarize
from jaxscale.compare.draws import Draws
from jaxscale.compare.points import Points

__all__ = ["draw_curves"]

GRID = 60


def draw_curves(
    draws: Draws, points: Points, low: float, high: float, reference: str, confidence: float
) -> tuple[dict[str, Any], ...]:
    """Records (variant, x, loss, interval, relative, relative_interval) at GRID points of x; relative is the loss over
    that of the reference, minus 1."""
    base = points.names.index(reference)
    rows: list[dict[str, Any]] = []
    for x in np.linspace(low, high, GRID):
        loss = draws.loss(np.full(len(points.names), x))
        for v, name in enumerate(points.names):
            value, interval = summarize(loss[:, v], confidence)
            relative, span = summarize(loss[:, v] / loss[:, base] - 1, confidence)
            rows.append({"variant": name, "x": float(np.exp(x)), "loss": value, "interval": interval,
                         "relative": relative, "relative_interval": span, "reference": reference})  # fmt: skip
    return tuple(rows)
