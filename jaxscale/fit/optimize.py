"""The best point of a law on its cells: from many starts, under a robust objective with a stated scale.

    starts    variable projection (Chinchilla) or the law's own guesses
    search    optax.lbfgs (Chinchilla) or loose Newton steps, at a smooth delta
    polish    damped Newton to a gradient norm below 1e-8, delta lowered to its end
    vertex    for least absolute deviations the exact optimum                     lad.py

delta "auto" is 1.345 robust deviations of the residuals (Huber's 95% efficiency under normal errors, Huber
1964); 1e-3, as in the papers, is nearly least absolute deviations at real noise levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.fit.cells import Cells
from jaxscale.fit.design import Design, build_design
from jaxscale.fit.lad import finish_lad
from jaxscale.laws import Law

if TYPE_CHECKING:
    from jaxscale.fit.general import GeneralDesign
    from jaxscale.fit.solver import Lanes, Solution

__all__ = ["HUBER_EFFICIENT", "SMALLEST_DELTA", "TOLERANCE", "Objective", "Optimum", "check_objective", "design_for",
           "find_optimum"]  # fmt: skip

HUBER_EFFICIENT = 1.345
"""Deviations at which Huber's loss keeps 95% efficiency under normal errors (Huber 1964)."""
TOLERANCE = 1e-11
SCALE_ROUNDS = 25
HOPS = 8
"""Rounds of fits strewn about the best point, at most."""
SMALLEST_DELTA = 1e-9
"""Robust deviations below this are rounding: the law fits exactly."""
VANISHING_E = 1e-2
"""An E below this share of the lowest loss is compared with E = 0."""


@dataclass(frozen=True)
class Objective:
    """huber with its delta ("auto" until the residuals are known), lad, or squares."""

    name: str
    delta: str | float

    def delta_for(self, scale: float) -> float:
        """Huber's delta given the robust deviation of the residuals."""
        if self.name == "squares":
            return np.inf
        if self.name == "lad":
            return 1e-6 * scale
        return HUBER_EFFICIENT * scale if self.delta == "auto" else float(self.delta)


@dataclass(frozen=True)
class Optimum:
    """Where a fit ended: theta (P,), delta, value, gradient norm (for lad the subgradient residual)."""

    design: Design | GeneralDesign
    theta: np.ndarray
    delta: float
    scale: float
    value: float
    norm: float
    starts_agreeing: float

    @property
    def params(self) -> dict[str, float]:
        """The law's parameters."""
        return {name: float(values[0]) for name, values in self.design.params_of(self.theta[None]).items()}


def check_objective(objective: str, delta: str | float) -> Objective:
    """MisuseError naming what is wrong."""
    if objective not in ("huber", "lad", "squares"):
        raise MisuseError(f"objective {objective!r} is unknown; use huber, lad or squares")
    if delta != "auto" and not (isinstance(delta, int | float) and 0 < delta < np.inf):
        raise MisuseError(f"delta {delta!r} must be auto or above 0 in log loss; 1e-3 reproduces the papers")
    return Objective(objective, delta)


def design_for(law: type[Law], cells: Cells, fix: Mapping[str, float]) -> Design | GeneralDesign:
    """The structured design where there is one, else the general one."""
    if law.name == "chinchilla":
        return build_design(cells.N, cells.D, fix)
    from jaxscale.fit.general import build_general

    return build_general(law, cells, fix)


def find_optimum(
    cells: Cells, design: Design | GeneralDesign, goal: Objective, start: Mapping[str, float] | None = None
) -> Optimum:
    """The best optimum over all starts, or the one reached from `start`; E fixed at 0 where the data push it there."""
    best = _optimize(cells, design, goal, start)
    if "E" not in design.free or best.params["E"] / cells.loss.min() > VANISHING_E:
        return best
    others = None if start is None else {name: value for name, value in start.items() if name != "E"}
    flat = _optimize(cells, design.fix({"E": 0.0}), goal, others)
    return flat if flat.value <= best.value * (1 + 1e-6) + 1e-18 else best


def _optimize(
    cells: Cells, design: Design | GeneralDesign, goal: Objective, start: Mapping[str, float] | None
) -> Optimum:
    from jaxscale.fit.solver import Lanes

    y, w = np.log(cells.loss), cells.weight
    theta = design.starts(cells) if start is None else _from_start(design, start)
    scale = np.nanmin([_robust_scale(design, one, y, w) for one in theta])
    lanes = Lanes(theta, np.tile(y, (len(theta), 1)), np.tile(w, (len(theta), 1)))
    smooth = max(HUBER_EFFICIENT * scale, SMALLEST_DELTA)
    if start is None:
        lanes = lanes._replace(theta=design.search(lanes, smooth))
        lanes = lanes._replace(theta=design.polish(lanes, smooth, tolerance=TOLERANCE).theta)
    scale = _settle_scale(design, lanes, smooth)
    smooth = max(HUBER_EFFICIENT * scale, SMALLEST_DELTA)
    delta = goal.delta_for(scale)
    tolerance = TOLERANCE if goal.name != "lad" else 1e-6 * delta
    begin = None if start is not None else smooth
    found = design.polish(lanes, delta, start_delta=begin, tolerance=tolerance)
    if start is None and delta < smooth and not isinstance(design, Design):
        found = _hop(design, lanes, found, delta, tolerance)
    return _conclude(design, found, goal, delta, scale, (y, w))


def _settle_scale(design: Design | GeneralDesign, lanes: Lanes, smooth: float) -> float:
    """The robust deviation about the Huber optimum whose delta it sets itself: a fixed point, whatever the path."""
    y, w, scale = lanes.y[0], lanes.w[0], 0.0
    for _ in range(SCALE_ROUNDS):
        found = design.polish(lanes, smooth, tolerance=TOLERANCE)
        best = _lowest(found)
        before, scale = scale, max(_robust_scale(design, found.theta[best], y, w), SMALLEST_DELTA)
        if abs(scale - before) <= 1e-6 * scale:
            break
        smooth = max(HUBER_EFFICIENT * scale, SMALLEST_DELTA)
        lanes = lanes._replace(theta=found.theta[best][None], y=y[None], w=w[None])
    return scale


def _hop(design: GeneralDesign, lanes: Lanes, found: Solution, delta: float, tolerance: float) -> Solution:
    """Fits from points strewn about the best one, until none is better: a small delta has many local optima."""
    rng = np.random.default_rng(0)
    for _ in range(HOPS):
        best = _lowest(found)
        hessian = found.hessian[best] + np.diag(1 - design.mask)
        reach = np.sqrt(np.clip(delta / np.maximum(np.abs(np.diag(hessian)), 1e-300), 1e-6, 1.0))
        strewn = found.theta[best] + reach * design.mask * rng.standard_t(2, lanes.theta.shape)
        again = design.polish(lanes._replace(theta=strewn), delta, tolerance=tolerance)
        if not np.nanmin(again.value) < found.value[best] * (1 - 1e-9):
            break
        found = again
    return found


def _conclude(
    design: Design | GeneralDesign, found: Solution, goal: Objective, delta: float, scale: float,
    data: tuple[np.ndarray, np.ndarray],
) -> Optimum:  # fmt: skip
    best = _lowest(found)
    agreeing = float((found.value <= found.value[best] * (1 + 1e-6) + 1e-18).mean())
    theta, value = found.theta[best], float(found.value[best])
    norm = float(design.gradient_norm(found.gradient)[best])
    if goal.name == "lad":
        theta, value, norm = finish_lad(design, theta, *data)
    return Optimum(design, theta, delta, scale, value, norm, agreeing)


def _from_start(design: Design | GeneralDesign, start: Mapping[str, float]) -> np.ndarray:
    """theta (1, P) of a start given by hand: every free parameter is needed."""
    for name, value in start.items():
        positive = name in design.law.positive
        if not np.isfinite(value) or (positive and value <= 0):
            raise MisuseError(f"start: {name} = {value:g} must be finite{' and above 0' * positive}")
    missing = [name for name in design.free if name not in start]
    if missing:
        raise MisuseError(f"start: {', '.join(missing)} missing; give every free parameter: {', '.join(design.free)}")
    unknown = [name for name in start if name not in design.free]
    if unknown:
        raise MisuseError(f"start: {', '.join(unknown)} not free in this fit; the free ones are "
                          f"{', '.join(design.free)}")  # fmt: skip
    return design.theta_of({name: np.array([value]) for name, value in {**design.fixed, **start}.items()})


def _lowest(found: Solution) -> int:
    return int(np.nanargmin(found.value)) if np.isfinite(found.value).any() else 0


def _robust_scale(design: Design | GeneralDesign, theta: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """1.4826 times the median absolute residual sqrt(w) |r|, corrected for the parameters fitted."""
    size = np.sqrt(w) * np.abs(design.residuals(theta, y))
    return float(1.4826 * np.median(size) * np.sqrt(len(y) / (len(y) - len(design.free))))
