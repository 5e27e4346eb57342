"""Whether the data determine the law at all, and how well, in words.

With few sizes alpha trades against A and E, and a parameter is then only bounded from one side. Nothing is
hidden in a number: what cannot be determined is refused, what is weak is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxscale.fit.cells import Cells
from jaxscale.fit.design import Design

__all__ = ["find_obstacle", "judge_identifiability"]

EXPONENT_RANGE = (0.02, 2.0)
"""Exponents outside are taken as run away: published ones lie between .1 and .7."""
COLLINEAR = 0.95


def find_obstacle(cells: Cells, design: Design) -> str | None:
    """Why no fit is possible; None where one is."""
    if len(cells) < len(design.free) + 1:
        return f"{len(cells)} cells for {len(design.free)} free parameters, at least one more is needed"
    if np.ptp(np.log(cells.loss)) < 1e-9:
        return f"every loss is {cells.loss[0]:g}: there is nothing to fit; check the loss column"
    for name, values, pair in (("N", cells.N, ("A", "alpha")), ("D", cells.D, ("B", "beta"))):
        needed = 1 + sum(parameter in design.free for parameter in pair)
        sizes = len(np.unique(values))
        if sizes < needed:
            return f"{sizes} values of {name} cannot determine {pair[0]} and {pair[1]}; train {needed} or more"
    return None


def judge_identifiability(
    cells: Cells,
    design: Design,
    theta: np.ndarray,
    params: Mapping[str, float],
    draws: Mapping[str, np.ndarray],
) -> tuple[list[str], dict[str, Any]]:
    """Sentences for a reader, and the numbers behind them."""
    J = np.sqrt(cells.weight)[:, None] * design.jacobian(theta)
    size = np.maximum(np.linalg.norm(J, axis=0), 1e-300)
    singular = np.linalg.svd(J / size, compute_uv=False)
    numbers: dict[str, Any] = {"condition_number": float(singular[0] / max(singular[-1], 1e-300))}
    words = _judge_exponents(params, draws, numbers)
    if params["E"] < 1e-6 * cells.loss.min():
        words.append("E ends at 0: the data do not show an irreducible loss")
    return words, numbers


def _judge_exponents(
    params: Mapping[str, float], draws: Mapping[str, np.ndarray], numbers: dict[str, Any]
) -> list[str]:
    words = []
    for name in ("alpha", "beta"):
        if not EXPONENT_RANGE[0] < params[name] < EXPONENT_RANGE[1]:
            words.append(f"{name} = {params[name]:.3g} ran out of the range {EXPONENT_RANGE}: not determined")
        elif len(draws[name]) > 1 and np.std(draws[name]) > params[name] / 2:
            words.append(f"{name} is hardly determined: its standard error is above half its value")
    if len(draws["alpha"]) > 2 and np.ptp(draws["alpha"]) > 0 and np.ptp(draws["beta"]) > 0:
        numbers["correlation_alpha_beta"] = float(np.corrcoef(draws["alpha"], draws["beta"])[0, 1])
        if abs(numbers["correlation_alpha_beta"]) > COLLINEAR:
            words.append("alpha and beta are collinear: their ratio, not each of them, is determined")
    return words
