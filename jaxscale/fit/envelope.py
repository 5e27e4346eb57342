"""Approach 1, envelope: the lowest of all curves at each compute, and power laws along it.

    N_opt(C) = G C^a,  D_opt(C) = H C^b,  L_opt(C) = E + A / C^alpha        (Hoffmann et al. 2022, sec. 3.1)

Differs from the paper: only the ends of runs count (their own horizons) unless told; the size on the envelope never
falls as C grows; the laws of N and D run through the places where one size overtakes the next, not through the
steps between them (stairs.py says why); and two biases of the loss are measured and taken off (bias.py). The rounds
of the interval stand on a noisy envelope and carry the bias of the lowest once more: they are centred on the
corrected one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.bias import draw_readings, measure_noise, measure_steps, read_envelope
from jaxscale.fit.envelope_words import describe_envelope, list_budgets, note_envelope, say_flat, say_refused_rows
from jaxscale.fit.family import Family, build_family
from jaxscale.fit.result import Estimate, Fit, refused_fit
from jaxscale.fit.stairs import climb_stairs, find_climbs, find_edges
from jaxscale.fit.summary import check_options, describe_rule, describe_source, summarize_draws
from jaxscale.fit.trajectories import Runs, gather_runs
from jaxscale.runs import Observations
from jaxscale.source import as_observations

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["fit_envelope"]

POINTS = 16
"""Points of the envelope that stand for its K = 1500 in the loss law and in `budgets`."""
MIN_CLIMBS = 2
LINES = ("a", "b", "G", "H")
SEEN = 0.975
"""E is free in the loss law where this share of the rounds has it above 0."""


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite is null, and said
def fit_envelope(
    source: Observations | pd.DataFrame,
    *,
    allow_shared_horizon: bool = False,
    smoothing: str | float = "auto",
    bootstrap: int = 1000,
    resample: str = "auto",
    confidence: float = 0.95,
    seed: int = 0,
) -> Fit:
    """Fit N_opt(C), D_opt(C) and L_opt(C) along the envelope of training curves.

    Columns run_id, N, D, C, loss (nats per token), one row a checkpoint; without run_id every row is a run.
    By default only the last row of each run counts. `allow_shared_horizon` takes all rows, although the schedule
    of an unfinished run is not laid out for it. `smoothing`: half width of the window in log D, 0 for none.
    Where there is no answer: a Fit whose `verdict` says why. `params` and `draws` as for `fit_isoflop`.
    """
    check_options(bootstrap=bootstrap, resample=resample, confidence=confidence, seed=seed)
    _check_smoothing(smoothing)
    obs = as_observations(source)
    options = {"confidence": confidence, "bootstrap": bootstrap, "resample": resample, "seed": seed}
    if resample == "pairs":
        words = "resample pairs would drop curves from the envelope; use auto, residual, wild or noise"
        return refused_fit("envelope", "power", describe_source(obs), options, words)
    runs = gather_runs(obs, by_size=allow_shared_horizon)
    record = _describe_rows(obs, runs)
    try:
        family = build_family(runs, shared=allow_shared_horizon, smoothing=smoothing, resample=resample)
    except VerdictError as error:
        verdict = f"{error}{say_refused_rows(runs, allow_shared_horizon)}"
        return refused_fit("envelope", "power", record, options, verdict)
    path = climb_stairs(family.losses[None], family.grid.there)
    climbs, inside = find_climbs(path, family.grid.there), ~find_edges(path, family.grid.there)[0]
    if climbs.told.sum() < MIN_CLIMBS or inside.sum() < POINTS:
        verdict = say_flat(family, int(climbs.told.sum()), MIN_CLIMBS) + say_refused_rows(runs, allow_shared_horizon)
        return refused_fit("envelope", "power", record, options, verdict)
    return _fit_family(obs, runs, family, path, record, options | {"shared": allow_shared_horizon})


def _check_smoothing(smoothing: str | float) -> None:
    if isinstance(smoothing, str) and smoothing != "auto":
        raise MisuseError(f"smoothing {smoothing!r} must be auto or a half width in log D, as in 0.1")
    if not isinstance(smoothing, str) and not 0 <= smoothing <= 2:
        raise MisuseError(f"smoothing {smoothing:g} must lie between 0 (none) and 2; 0.1 is within 10% of D")


def _describe_rows(obs: Observations, runs: Runs) -> dict[str, Any]:
    record = describe_source(obs)
    return {**record, "rows_refused": [*record.get("rows_refused", ()), *runs.refused]}


def _fit_family(
    obs: Observations, runs: Runs, family: Family, path: np.ndarray, record: dict[str, Any], options: dict[str, Any]
) -> Fit:
    shared, rounds = options.pop("shared"), options["bootstrap"] if family.noisy else 0
    grid, edge = family.grid, find_edges(path, family.grid.there)[0]
    at = np.flatnonzero(~edge)[np.linspace(0, (~edge).sum() - 1, POINTS).round().astype(int)]
    raw = read_envelope(family.losses[None], family, at)
    rng = np.random.default_rng([options["seed"], 1])
    noise_bias = measure_noise(family, at, rng) if family.noisy else np.zeros(POINTS)
    step_bias = measure_steps(family, path[0], raw.lines, at)
    drawn = draw_readings(family, rounds, at, np.random.default_rng(options["seed"]))
    told = np.isfinite(drawn.lines.a)
    C = np.exp(grid.log_C[at])
    again = drawn.loss.mean(0) - raw.loss[0] if rounds else 0.0
    moved = drawn._replace(loss=drawn.loss - again - noise_bias - step_bias)
    draws = {name: values[told] for name, values in moved.laws(C, free_E=True).items()}
    corrected = raw._replace(loss=raw.loss - noise_bias - step_bias)
    free_E = not told.any() or float(np.mean(draws["E"] > 0)) >= SEEN
    point = {name: float(values[0]) for name, values in corrected.laws(C, free_E=free_E).items()}
    intervals, errors = summarize_draws({name: draws[name] for name in LINES}, options["confidence"])
    params = {name: point[name] for name in LINES}
    bias = {"noise": noise_bias, "steps": step_bias}
    facts = describe_envelope(runs, family, path, raw, drawn, bias)
    return Fit(
        method="envelope", law="power", source=record, params=params, intervals=intervals, std_errors=errors,
        confidence=options["confidence"], bootstrap=rounds, resample=family.resample, seed=options["seed"],
        exponents={"N": Estimate(params["a"], intervals["a"]), "D": Estimate(params["b"], intervals["b"])},
        coefficients={"N": Estimate(params["G"], intervals["G"]), "D": Estimate(params["H"], intervals["H"])},
        loss_law={name: point[name] for name in ("E", "A", "alpha")},
        objective={
            "name": "squares", "delta": None, "reduction": "sum", "value": None, "gradient_norm": None,
            "smoothing": family.words,
        },
        noise=family.noise, budgets=list_budgets(family, path[0], edge, at, corrected.loss[0]),
        diagnostics={
            "notes": note_envelope(facts, runs, family, shared=shared, free_E=free_E),
            "flops": describe_rule(obs, runs.ends), "largest_C": float(C[-1]), "a_plus_b": point["a"] + point["b"],
            "horizon": "shared" if shared else "own", "loss_law_E": "free" if free_E else "fixed at 0", **facts,
        },
        draws={name: values.tolist() for name, values in draws.items()},
    )  # fmt: skip
