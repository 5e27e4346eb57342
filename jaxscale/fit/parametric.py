"""Approach 3, parametric: L = E + A / N^alpha + B / D^beta by the summed robust loss on log residuals.

    starts    variable projection over (alpha, beta)                              starts.py
    search    optax.lbfgs from every start, at a smooth delta                     solver.py
    polish    damped Newton to a gradient norm below 1e-8, delta lowered to its end
    vertex    for least absolute deviations the exact optimum                     lad.py

Differs from Hoffmann et al. 2022: delta defaults to 1.345 robust deviations of the residuals (Huber's 95%
efficiency) instead of 1e-3, which is nearly least absolute deviations at real noise levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.fit.cells import Cells, gather_cells
from jaxscale.fit.design import Design, build_design, residuals
from jaxscale.fit.identify import find_obstacle, judge_identifiability
from jaxscale.fit.lad import finish_lad
from jaxscale.fit.resample import NoiseModel, choose_resample, draw_counts, draw_errors
from jaxscale.fit.result import Estimate, Fit, refused_fit
from jaxscale.fit.starts import project_starts
from jaxscale.fit.summary import (
    check_options,
    describe_rule,
    describe_source,
    percentile_interval,
    summarize_draws,
)
from jaxscale.laws import Chinchilla, FlopRule
from jaxscale.runs import Observations
from jaxscale.source import as_observations

if TYPE_CHECKING:
    import pandas as pd

    from jaxscale.fit.solver import Solution

__all__ = ["HUBER_EFFICIENT", "fit_parametric"]

HUBER_EFFICIENT = 1.345
"""Deviations at which Huber's loss keeps 95% efficiency under normal errors (Huber 1964)."""
TOLERANCE = 1e-11
FAILED_NORM = 1e-6
"""A bootstrap round whose gradient norm stays above this is left out, and counted."""
LAD_SMOOTHING = 1e-2
"""Bootstrap rounds of lad are Huber fits at this share of the robust deviation, close to their vertices."""
STRATUM_PRIOR_DOF = 1.0
"""A budget's noise is its own: the law has five parameters for all budgets, which leaves each nearly all its degrees of
freedom, and noise that falls with compute is usual. Counted in docs/coverage.md against 8."""
SMALLEST_DELTA = 1e-9
"""Robust deviations below this are rounding: the law fits exactly."""


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

    design: Design
    theta: np.ndarray
    delta: float
    scale: float
    value: float
    norm: float
    starts_agreeing: float


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite is null, and said
def fit_parametric(
    source: Observations | pd.DataFrame,
    *,
    law: str = "chinchilla",
    objective: str = "huber",
    delta: str | float = "auto",
    bootstrap: int = 1000,
    resample: str = "auto",
    confidence: float = 0.95,
    seed: int = 0,
    fix: Mapping[str, float] | None = None,
) -> Fit:
    """Fit L(N, D) to cells N (parameters), D (tokens), loss (nats per token).

    `fix` holds parameters still, as {"E": 1.7}. `delta` is in log loss. A law the data cannot determine
    (too few cells or sizes, equal losses) comes back as a Fit whose `verdict` says so.
    """
    check_options(bootstrap=bootstrap, resample=resample, confidence=confidence)
    goal = _check_objective(law, objective, delta)
    obs = as_observations(source)
    cells = gather_cells(obs)
    options = {"confidence": confidence, "bootstrap": bootstrap, "resample": resample, "seed": seed}
    design = build_design(cells.N, cells.D, dict(fix or {}))
    obstacle = find_obstacle(cells, design)
    if obstacle:
        return refused_fit("parametric", law, describe_source(obs), options, obstacle)
    best = _optimize(cells, design, goal)
    if not np.isfinite([*best.design.params_of(best.theta[None]).values()]).all():
        verdict = "the parameters run away to infinity: the data do not determine the law; check the units of N and D"
        return refused_fit("parametric", law, describe_source(obs), options, verdict)
    return _assemble(obs, cells, design, best, goal, options)


def _check_objective(law: str, objective: str, delta: str | float) -> Objective:
    if law != "chinchilla":
        raise MisuseError(f"law {law!r} is unknown; use chinchilla")
    if objective not in ("huber", "lad", "squares"):
        raise MisuseError(f"objective {objective!r} is unknown; use huber, lad or squares")
    if delta != "auto" and not (isinstance(delta, int | float) and 0 < delta < np.inf):
        raise MisuseError(f"delta {delta!r} must be auto or above 0 in log loss; 1e-3 reproduces the papers")
    return Objective(objective, delta)


def _optimize(cells: Cells, design: Design, goal: Objective) -> Optimum:
    """The best optimum over all starts; E fixed at 0 where the data push it there."""
    best = _optimize_free(cells, design, goal)
    E = design.params_of(best.theta[None])["E"][0]
    if "E" not in design.free or E / cells.loss.min() > 1e-2:
        return best
    without = build_design(cells.N, cells.D, {**design.fixed, "E": 0.0})
    flat = _optimize_free(cells, without, goal)
    return flat if flat.value <= best.value * (1 + 1e-6) + 1e-18 else best


def _optimize_free(cells: Cells, design: Design, goal: Objective) -> Optimum:
    from jaxscale.fit.solver import Lanes, polish, search

    y, w = np.log(cells.loss), cells.weight
    theta = design.theta_of(project_starts(cells.N, cells.D, cells.loss, w))
    scale = min(_robust_scale(design, start, y, w) for start in theta)
    lanes = Lanes(theta, np.tile(y, (len(theta), 1)), np.tile(w, (len(theta), 1)))
    smooth = max(HUBER_EFFICIENT * scale, SMALLEST_DELTA)
    theta = search(design.problem, lanes, smooth)
    for _ in range(2 if goal.name == "huber" and goal.delta == "auto" else 1):
        found = polish(design.problem, lanes._replace(theta=theta), smooth, tolerance=TOLERANCE)
        theta = found.theta
        scale = max(_robust_scale(design, found.theta[_lowest(found)], y, w), SMALLEST_DELTA)
        smooth = max(HUBER_EFFICIENT * scale, SMALLEST_DELTA)
    delta = goal.delta_for(scale)
    tolerance = TOLERANCE if goal.name != "lad" else 1e-6 * delta
    lanes = lanes._replace(theta=theta)
    found = polish(design.problem, lanes, delta, start_delta=smooth, tolerance=tolerance)
    best = _lowest(found)
    agreeing = float((found.value <= found.value[best] * (1 + 1e-6) + 1e-18).mean())
    value, norm = float(found.value[best]), float(design.gradient_norm(found.gradient)[best])
    theta_best = found.theta[best]
    if goal.name == "lad":
        theta_best, value, norm = finish_lad(design, theta_best, y, w)
    return Optimum(design, theta_best, delta, scale, value, norm, agreeing)


def _lowest(found: Solution) -> int:
    return int(np.nanargmin(found.value))


def _robust_scale(design: Design, theta: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """1.4826 times the median absolute residual sqrt(w) |r|, corrected for the parameters fitted."""
    size = np.sqrt(w) * np.abs(residuals(design.problem, theta, y))
    return float(1.4826 * np.median(size) * np.sqrt(len(y) / (len(y) - len(theta))))


def _model_noise(cells: Cells, best: Optimum) -> NoiseModel:
    """Residuals of log loss, a stratum a budget (one in all without budgets)."""
    J = np.sqrt(cells.weight)[:, None] * best.design.jacobian(best.theta)
    leverage = (np.linalg.qr(J)[0] ** 2).sum(1)
    stratum = np.maximum(cells.budget, 0)
    strata = stratum.max() + 1
    dof = np.bincount(stratum, 1 - leverage, strata)
    seed_ss, seed_dof = (np.bincount(stratum, part, strata) for part in (cells.seed_ss, cells.seed_dof))
    cluster = np.unique(cells.cluster, return_inverse=True)[1]
    r = residuals(best.design.problem, best.theta, np.log(cells.loss))
    return NoiseModel(
        r, leverage, cells.weight, stratum, cluster, dof, seed_ss, seed_dof, prior_dof=STRATUM_PRIOR_DOF
    )  # fmt: skip


def _bootstrap(
    cells: Cells, design: Design, best: Optimum, goal: Objective, model: NoiseModel, kind: str,
    options: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], float]:  # fmt: skip
    """E, A, B, alpha, beta (rounds,) and the share of rounds that converged."""
    from jaxscale.fit.solver import Lanes, polish

    rounds, y = options["bootstrap"], np.log(cells.loss)
    if not rounds:
        return design.params_of(np.empty((0, len(design.free)))), 1.0
    rng = np.random.default_rng(options["seed"])
    if kind == "pairs":
        losses, w = np.tile(y, (rounds, 1)), cells.weight * draw_counts(model, rounds, rng)
    else:
        losses = y - model.residual + draw_errors(model, kind, rounds, rng)
        w = np.tile(cells.weight, (rounds, 1))
    start = {name: values[0] for name, values in best.design.params_of(best.theta[None]).items()}
    start["E"] = max(start["E"], 1e-2 * cells.loss.min()) if "E" in design.free else start["E"]
    theta = np.tile(design.theta_of(start), (rounds, 1))
    delta = max(best.delta, LAD_SMOOTHING * best.scale)
    lanes = Lanes(theta, losses, w)
    smooth = HUBER_EFFICIENT * best.scale
    found = polish(design.problem, lanes, delta, start_delta=smooth, tolerance=TOLERANCE)
    good = design.gradient_norm(found.gradient) < FAILED_NORM
    params = design.params_of(found.theta[good])
    return params, float(good.mean())


def _assemble(
    obs: Observations, cells: Cells, design: Design, best: Optimum, goal: Objective, options: dict[str, Any]
) -> Fit:
    model = _model_noise(cells, best)
    planned = bool(len(cells.budget_C))
    kind = choose_resample(options["resample"], planned=planned, cluster=model.cluster)
    draws, converged = _bootstrap(cells, design, best, goal, model, kind, options)
    params = {name: float(values[0]) for name, values in best.design.params_of(best.theta[None]).items()}
    intervals, errors = summarize_draws(draws, options["confidence"])
    flops = describe_rule(obs, cells)
    exponents, coefficients = _derive(params, draws, FlopRule(flops["k"], flops["p"]), options["confidence"])
    words, numbers = judge_identifiability(cells, best.design, best.theta, params, draws)
    unbound = float(np.mean((draws["alpha"] <= 0) | (draws["beta"] <= 0))) if len(draws["alpha"]) else 0.0
    if unbound:
        words.append(f"{unbound:.1%} of the bootstrap rounds have no optimum (alpha or beta below 0): "
                     f"intervals of N_opt and D_opt are without them, and too narrow")  # fmt: skip
    if converged < 1:
        words.append(f"{1 - converged:.1%} of the bootstrap rounds did not converge and are left out")
    return Fit(
        method="parametric", law="chinchilla", source=describe_source(obs), params=params,
        intervals=intervals, std_errors=errors, confidence=options["confidence"],
        bootstrap=options["bootstrap"], resample=kind,
        seed=options["seed"], exponents=exponents, coefficients=coefficients, loss_law=None,
        objective=_describe_objective(goal, best),
        noise={"seed_std": model.seed_std, "residual_std": model.residual_std},
        diagnostics={
            "notes": words, "identifiability": numbers, "flops": flops, "largest_C": float(cells.C.max()),
            "robust_std": best.scale, "starts_at_optimum": best.starts_agreeing,
            "bootstrap_converged": converged, "residuals": _describe_residuals(cells, model),
        },
        draws={name: values.tolist() for name, values in draws.items()},
    )  # fmt: skip


def _derive(
    params: Mapping[str, float], draws: Mapping[str, np.ndarray], rule: FlopRule, confidence: float
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Exponents and coefficients of N_opt and D_opt under C = k N^p D."""
    law, sampled = Chinchilla(**params), Chinchilla(**draws)
    found = []
    for center, rounds in (
        (law.exponents(rule), sampled.exponents(rule)),
        (np.exp(law.log_coefficients(rule)), np.exp(sampled.log_coefficients(rule))),
    ):
        found.append({
            name: Estimate(float(value), percentile_interval(np.asarray(drawn), confidence))
            for name, value, drawn in zip("ND", center, rounds, strict=True)
        })  # fmt: skip
    return found[0], found[1]


def _describe_objective(goal: Objective, best: Optimum) -> dict[str, Any]:
    record: dict[str, Any] = {"name": goal.name, "delta": None, "reduction": "sum", "value": best.value}
    if goal.name == "huber":
        record |= {"delta": best.delta, "delta_rule": "auto" if goal.delta == "auto" else "given"}
    return record | {"subgradient_residual" if goal.name == "lad" else "gradient_norm": best.norm}


def _describe_residuals(cells: Cells, model: NoiseModel) -> list[dict[str, float]]:
    """One record a cell: where it is, its weight (seeds), its residual of log loss, log L - log L(N, D)."""
    return [
        {"N": float(N), "D": float(D), "C": float(C), "loss": float(loss), "weight": float(w), "residual": float(r)}
        for N, D, C, loss, w, r in zip(cells.N, cells.D, cells.C, cells.loss, cells.weight, model.residual, strict=True)
    ]
