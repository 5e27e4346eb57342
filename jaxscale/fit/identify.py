"""Whether the data determine the law at all, and how well, in words.

With few sizes alpha trades against A and E, and a parameter is then only bounded from one side. Nothing is
hidden in a number: what cannot be determined is refused, what is weak is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.fit.cells import Cells
from jaxscale.fit.design import Design

if TYPE_CHECKING:
    from jaxscale.fit.general import GeneralDesign
    from jaxscale.fit.optimize import Optimum

__all__ = ["find_obstacle", "judge_identifiability", "say_no_optimum"]

EXPONENT_RANGE = (0.02, 2.0)
"""Exponents outside are taken as run away: published ones lie between .1 and .7."""
EXPONENTS = ("alpha", "beta", "gamma")
SLOPES = (*EXPONENTS, "alphaN", "alphaD")
LEAST_EXPONENT = 1e-6
"""Of N_opt and D_opt: below it is rounding about an exponent of 0."""
COLLINEAR = 0.95


def find_obstacle(cells: Cells, design: Design | GeneralDesign) -> str | None:
    """Why no fit is possible; None where one is."""
    if len(cells) < len(design.free) + 1:
        return f"{len(cells)} cells for {len(design.free)} free parameters, at least one more is needed"
    if np.ptp(np.log(cells.loss)) < 1e-9:
        return f"every loss is {cells.loss[0]:g}: there is nothing to fit; check the loss column"
    if isinstance(design, Design):
        return _few_sizes(cells, design)
    for name in design.law.inputs:
        if len(np.unique(cells.input(name))) < 2 and name != "U":
            return f"every {name} is {cells.input(name)[0]:g}: {design.law.name} needs runs that differ in {name}"
    return None


def _few_sizes(cells: Cells, design: Design) -> str | None:
    for name, values, pair in (("N", cells.N, ("A", "alpha")), ("D", cells.D, ("B", "beta"))):
        needed = 1 + sum(parameter in design.free for parameter in pair)
        sizes = len(np.unique(values))
        if sizes < needed:
            return f"{sizes} values of {name} cannot determine {pair[0]} and {pair[1]}; train {needed} or more"
    return None


def say_no_optimum(best: Optimum) -> str | None:
    """Why a law that should have an optimum at every C has none: its loss does not fall as N, or D, grows."""
    law = best.design.law(**best.params)
    if not law.power_optimum:
        return None
    if np.isfinite(law.log_coefficients()).all() and min(map(float, law.exponents())) > LEAST_EXPONENT:
        return None
    found = ", ".join(f"{name} = {best.params[name]:.3g}" for name in best.params if name in SLOPES)
    return (f"the loss of the fitted law does not fall as both N and D grow ({found}), so no size is optimal; "
            f"check the columns N, D and loss")  # fmt: skip


def judge_identifiability(
    cells: Cells, best: Optimum, draws: Mapping[str, np.ndarray]
) -> tuple[list[str], dict[str, Any]]:
    """Sentences for a reader, and the numbers behind them."""
    J = np.sqrt(cells.weight)[:, None] * best.design.jacobian(best.theta)
    size = np.maximum(np.linalg.norm(J, axis=0), 1e-300)
    singular = np.linalg.svd(J / size, compute_uv=False)
    numbers: dict[str, Any] = {"condition_number": float(singular[0] / max(singular[-1], 1e-300))}
    words = _judge_exponents(best, draws)
    words += _judge_correlation(draws, numbers)
    if best.params.get("E", 1.0) < 1e-6 * cells.loss.min():
        words.append("E ends at 0: the data do not show an irreducible loss")
    return words, numbers


def _judge_exponents(best: Optimum, draws: Mapping[str, np.ndarray]) -> list[str]:
    words = []
    for name in (name for name in best.design.free if name in EXPONENTS):
        value = best.params[name]
        if not EXPONENT_RANGE[0] < value < EXPONENT_RANGE[1]:
            words.append(f"{name} = {value:.3g} ran out of the range {EXPONENT_RANGE}: not determined")
        elif len(draws[name]) > 1 and np.std(draws[name]) > value / 2:
            words.append(f"{name} is hardly determined: its standard error is above half its value")
    return words


def _judge_correlation(draws: Mapping[str, np.ndarray], numbers: dict[str, Any]) -> list[str]:
    pair = [draws[name] for name in ("alpha", "beta") if name in draws]
    if len(pair) < 2 or len(pair[0]) < 3 or not all(np.ptp(values) > 0 for values in pair):
        return []
    numbers["correlation_alpha_beta"] = float(np.corrcoef(pair[0], pair[1])[0, 1])
    if abs(numbers["correlation_alpha_beta"]) <= COLLINEAR:
        return []
    return ["alpha and beta are collinear: their ratio, not each of them, is determined"]
