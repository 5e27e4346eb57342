"""Approach 3, parametric: a law over (N, D), or over any inputs, by the summed robust loss on log residuals.

Chinchilla's law runs through its own structured solver (design.py, solver.py), any other law through
automatic differentiation (general.py); optimize.py finds the optimum of either.

Differs from Hoffmann et al. 2022: delta defaults to 1.345 robust deviations of the residuals (Huber's 95%
efficiency) instead of 1e-3, which is nearly least absolute deviations at real noise levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.fit.cells import Cells, gather_cells
from jaxscale.fit.design import Design
from jaxscale.fit.identify import find_obstacle, judge_identifiability, say_no_optimum
from jaxscale.fit.optimize import (
    HUBER_EFFICIENT,
    TOLERANCE,
    Objective,
    Optimum,
    check_objective,
    design_for,
    find_optimum,
)
from jaxscale.fit.outliers import find_outliers
from jaxscale.fit.profile import judge_profiles, profile_parameters
from jaxscale.fit.resample import (
    LARGEST_HAT,
    NoiseModel,
    choose_resample,
    draw_counts,
    draw_errors,
    estimate_intraclass,
)
from jaxscale.fit.result import Estimate, Fit, refused_fit
from jaxscale.fit.summary import (
    check_options,
    describe_rule,
    describe_source,
    percentile_interval,
    say_rule,
    summarize_draws,
)
from jaxscale.fit.suspect import annotate_fit, describe_shared_error, shared_error
from jaxscale.laws import FlopRule, find_law
from jaxscale.runs import Observations
from jaxscale.source import as_observations

if TYPE_CHECKING:
    import pandas as pd

    from jaxscale.fit.general import GeneralDesign

__all__ = ["fit_parametric"]

FAILED_NORM = 1e-6
"""A bootstrap round whose gradient norm stays above this is left out, and counted."""
LEAST_EXPLAINED = 0.5
"""Share of the variance of log loss below which a law is no description of the data."""
LAD_SMOOTHING = 1e-2
"""Bootstrap rounds of lad are Huber fits at this share of the robust deviation, close to their vertices."""
DRAWN = 2**24
"""Numbers a block of bootstrap rounds may draw: 128 MiB in float64."""
STRATUM_PRIOR_DOF = 1.0
"""A budget's noise is its own: the law has few parameters for all budgets, which leaves each nearly all its degrees of
freedom, and noise that falls with compute is usual. Counted in docs/coverage.md against 8."""


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
    start: Mapping[str, float] | None = None,
    profile: bool = False,
) -> Fit:
    """Fit a law of `jaxscale.laws.LAWS` to cells N (parameters), D (tokens), U (unique tokens), loss (nats).

    `fix` holds parameters still, as {"E": 1.7}; `start` fits from one given point instead of many; `profile`
    adds profile likelihood intervals. `delta` is in log loss. A law the data cannot determine (too few cells
    or sizes, equal losses) comes back as a Fit whose `verdict` says so.
    """
    check_options(bootstrap=bootstrap, resample=resample, confidence=confidence, seed=seed)
    kind, goal = find_law(law), check_objective(objective, delta)
    obs = as_observations(source)
    cells = gather_cells(obs, inputs=kind.inputs)
    options = {"confidence": confidence, "bootstrap": bootstrap, "resample": resample, "seed": seed}
    design = design_for(kind, cells, dict(fix or {}))
    obstacle = find_obstacle(cells, design)
    if obstacle:
        return annotate_fit(refused_fit("parametric", law, describe_source(obs), options, obstacle), obs)
    best = find_optimum(cells, design, goal, start)
    if np.isfinite([best.value, *best.params.values()]).all():
        verdict = say_no_optimum(best)
    else:
        verdict = "the parameters run away to infinity: the data do not determine the law; check the units of N and D"
    if verdict:
        return annotate_fit(refused_fit("parametric", law, describe_source(obs), options, verdict), obs)
    return annotate_fit(_assemble(obs, cells, design, best, goal, options | {"profile": profile}), obs)


def _model_noise(cells: Cells, best: Optimum) -> NoiseModel:
    """Residuals of log loss, a stratum a budget (one in all without budgets)."""
    J = np.sqrt(cells.weight)[:, None] * best.design.jacobian(best.theta)
    Q = np.linalg.qr(J)[0]
    leverage = (Q**2).sum(1)
    stratum = np.maximum(cells.budget, 0)
    strata = stratum.max() + 1
    dof = np.bincount(stratum, 1 - leverage, strata)
    seed_ss, seed_dof = (np.bincount(stratum, part, strata) for part in (cells.seed_ss, cells.seed_dof))
    cluster = np.unique(cells.cluster, return_inverse=True)[1]
    r = best.design.residuals(best.theta, np.log(cells.loss))
    return NoiseModel(
        r, leverage, cells.weight, stratum, cluster, dof, seed_ss, seed_dof, prior_dof=STRATUM_PRIOR_DOF,
        intraclass=_share_in_clusters(cells, Q, r, cluster),
    )  # fmt: skip


def _share_in_clusters(cells: Cells, Q: np.ndarray, residual: np.ndarray, cluster: np.ndarray) -> float:
    """Share of the noise that cells of a run or trunk have in common; 0 where none share one, or there are too many."""
    if len(np.unique(cluster)) == len(cluster) or len(cluster) > LARGEST_HAT:
        return 0.0
    root = np.sqrt(cells.weight)
    return estimate_intraclass(residual, cells.weight, (Q / root[:, None]) @ (Q * root[:, None]).T, cluster)


def _bootstrap(
    cells: Cells, design: Design | GeneralDesign, best: Optimum, model: NoiseModel, kind: str,
    options: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], float]:  # fmt: skip
    """The law's parameters (rounds,) and the share of rounds that converged."""
    from jaxscale.fit.solver import Lanes

    rounds = options["bootstrap"]
    if not rounds:
        return {name: np.empty(0) for name in design.law.param_names()}, 1.0
    start = dict(best.params)
    if "E" in design.free:
        start["E"] = max(start["E"], 1e-2 * cells.loss.min())
    theta = design.theta_of({name: np.array([value]) for name, value in start.items()})
    delta, smooth = max(best.delta, LAD_SMOOTHING * best.scale), HUBER_EFFICIENT * best.scale
    kept = []
    for losses, w in _draw_rounds(cells, model, kind, rounds, np.random.default_rng(options["seed"])):
        lanes = Lanes(np.repeat(theta, len(losses), 0), losses, w)
        found = design.polish(lanes, delta, start_delta=smooth, tolerance=TOLERANCE)
        kept.append(found.theta[design.gradient_norm(found.gradient) < FAILED_NORM])
    drawn = np.concatenate(kept)
    return design.params_of(drawn), len(drawn) / rounds


def _draw_rounds(
    cells: Cells, model: NoiseModel, kind: str, rounds: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Log losses and weights (some rounds, n), DRAWN numbers at a time: one draw up to 69,905 rounds of 240 cells.

    Beyond that the rounds come from the same generator block after block, which is another stream of numbers
    than one draw would give.
    """
    y = np.log(cells.loss)
    most = max(DRAWN // len(y), 1)
    for first in range(0, rounds, most):
        shape = (min(most, rounds - first), len(y))
        if kind == "pairs":
            yield np.broadcast_to(y, shape), cells.weight * draw_counts(model, shape[0], rng)
        else:
            errors = draw_errors(model, kind, shape[0], rng)
            yield y - model.residual + errors, np.broadcast_to(cells.weight, shape)


def _assemble(
    obs: Observations, cells: Cells, design: Design | GeneralDesign, best: Optimum, goal: Objective,
    options: dict[str, Any],
) -> Fit:  # fmt: skip
    model = _model_noise(cells, best)
    planned = bool(len(cells.budget_C))
    known = model.intraclass if len(cells) <= LARGEST_HAT else None
    kind = choose_resample(options["resample"], planned=planned, cluster=model.cluster, intraclass=known)
    draws, converged = _bootstrap(cells, design, best, model, kind, options)
    shared = shared_error(obs)
    draws = _share_error(draws, shared or 0.0, options["seed"])
    intervals, errors = summarize_draws(draws, options["confidence"])
    flops = describe_rule(obs, cells)
    exponents, coefficients = _derive(best, draws, FlopRule(flops["k"], flops["p"]), options["confidence"])
    words, numbers = judge_identifiability(cells, best, draws)
    words = [*_doubt_fit(cells, best, model), *words]
    words += _doubt_rounds(draws if design.law.power_optimum else {}, converged)
    if options["profile"]:
        numbers["profile"] = profile_parameters(cells, best, model, options["confidence"])
        words += judge_profiles(numbers["profile"])
    words += say_rule(flops) if design.law.power_optimum else []
    words += [describe_shared_error(shared)] if shared else []
    outliers = find_outliers(cells, best, goal)
    return Fit(
        method="parametric", law=design.law.name, source=describe_source(obs), params=best.params,
        intervals=intervals, std_errors=errors, confidence=options["confidence"],
        bootstrap=options["bootstrap"], resample=kind,
        seed=options["seed"], exponents=exponents, coefficients=coefficients, loss_law=None,
        objective=_describe_objective(goal, best),
        noise=model.describe(),
        diagnostics={
            "notes": [*words, *outliers.pop("notes")], "identifiability": numbers, "flops": flops,
            "largest_C": float(cells.C.max()), "robust_std": best.scale, "starts_at_optimum": best.starts_agreeing,
            "bootstrap_converged": converged, "shared_error": shared, "outliers": outliers,
            "residuals": _describe_residuals(cells, model),
        },
        draws={name: values.tolist() for name, values in draws.items()},
    )  # fmt: skip


def _share_error(draws: dict[str, np.ndarray], error: float, seed: int) -> dict[str, np.ndarray]:
    """Rounds whose losses are all off by one factor each: E, A and B scale with it, exponents and optima stay."""
    if not error or not {"E", "A", "B"} <= draws.keys() or "L0" in draws:
        return draws
    factor = np.exp(error * np.random.default_rng([seed, 2]).standard_normal(len(draws["E"])))
    return {name: values * factor if name in ("E", "A", "B") else values for name, values in draws.items()}


def _doubt_fit(cells: Cells, best: Optimum, model: NoiseModel) -> list[str]:
    """Where the search stopped short of an optimum, and a law that misses the data."""
    words = []
    if not best.norm <= FAILED_NORM:
        words.append(f"no optimum was reached: the gradient norm is {best.norm:.2g}, not below {FAILED_NORM:g}; the "
                     f"numbers are those where the search ended")  # fmt: skip
    y, w = np.log(cells.loss), cells.weight
    spread = float((w * (y - np.average(y, weights=w)) ** 2).sum())
    explained = 1 - float((w * model.residual**2).sum()) / spread
    if explained < LEAST_EXPLAINED:
        words.append(f"the law misses the data: it explains {max(explained, 0.0):.0%} of the variance of log loss")
    return words


def _doubt_rounds(draws: Mapping[str, np.ndarray], converged: float) -> list[str]:
    """What the bootstrap could not do, in words."""
    words = []
    names = [name for name in ("alpha", "beta", "gamma") if name in draws and len(draws[name])]
    if names and (unbound := float(np.mean(np.min([draws[name] for name in names], axis=0) <= 0))):
        words.append(f"{unbound:.1%} of the bootstrap rounds have no optimum ({' or '.join(names)} below 0): "
                     f"intervals of exponents, N_opt and D_opt are without them, and too narrow")  # fmt: skip
    if converged < 1:
        words.append(f"{1 - converged:.1%} of the bootstrap rounds did not converge and are left out")
    return words


def _derive(
    best: Optimum, draws: Mapping[str, np.ndarray], rule: FlopRule, confidence: float
) -> tuple[dict[str, Estimate], dict[str, Estimate]] | tuple[None, None]:
    """Exponents and coefficients of N_opt and D_opt under C = k N^p D; None for laws without."""
    if not best.design.law.power_optimum:
        return None, None
    law, sampled = best.design.law(**best.params), best.design.law(**draws)
    coefficients = np.exp(sampled.log_coefficients(rule))
    bound = np.isfinite(coefficients).all(0)  # a round whose loss rises with N or D has no optimum, and no exponent
    found = []
    for center, rounds in (
        (law.exponents(rule), [np.where(bound, drawn, np.nan) for drawn in sampled.exponents(rule)]),
        (np.exp(law.log_coefficients(rule)), coefficients),
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
        record["robust_std"] = best.scale
    return record | {"gradient_norm": best.norm} | ({"subgradient_residual": best.norm} if goal.name == "lad" else {})


def _describe_residuals(cells: Cells, model: NoiseModel) -> list[dict[str, float]]:
    """One record a cell: where it is, its weight (seeds), its residual of log loss, log L - log L(N, D)."""
    return [
        {"N": float(N), "D": float(D), "C": float(C), "loss": float(loss), "weight": float(w), "residual": float(r)}
        for N, D, C, loss, w, r in zip(cells.N, cells.D, cells.C, cells.loss, cells.weight, model.residual, strict=True)
    ]
