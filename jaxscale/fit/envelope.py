"""Approach 1, envelope: the lowest of all curves at each compute, and power laws along it.

    N_opt(C) = G C^a,  D_opt(C) = H C^b,  L_opt(C) = E + A / C^alpha        (Hoffmann et al. 2022, sec. 3.1)

Differs from the paper: only the ends of runs count (their own horizons) unless told; the size on the envelope never
falls as C grows; the laws of N and D run through the places where one size overtakes the next, not through the
steps between them (stairs.py says why); and two biases of the loss are measured and taken off:

    noise   the lowest of several noisy curves is too low. Rounds redraw the noise about the curves; the mean
            envelope of the rounds minus the envelope they were drawn about is the bias.
    steps   between two sizes the envelope lies above the optimum, by curvature / 2 x (log N - log N_opt)^2.

The rounds of the interval stand on the noisy envelope and carry the bias once more: they are centred on the
corrected one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit import frontier
from jaxscale.fit.family import Family, build_family
from jaxscale.fit.result import Budget, Estimate, Fit, refused_fit
from jaxscale.fit.stairs import Lines, climb_stairs, find_climbs, find_edges, fit_climbs, fit_steps
from jaxscale.fit.summary import check_options, describe_rule, describe_source, summarize_draws
from jaxscale.fit.trajectories import Runs, gather_runs
from jaxscale.runs import Observations
from jaxscale.source import as_observations

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["fit_envelope"]

POINTS = 16
"""Points of the envelope that stand for its K = 1500 in the loss law and in `budgets`."""
BIAS_ROUNDS = 200
"""Rounds that measure the bias, whatever `bootstrap` is."""
MIN_CLIMBS = 2
NEARBY = 4.0
"""Sizes within this factor of N_opt tell the curvature of the loss in log N."""
LINES = ("a", "b", "G", "H")
SEEN = 0.975
"""E is free in the loss law where this share of the rounds has it above 0."""


class Reading(NamedTuple):
    """Lines of N and D, and the loss (rounds, points) at the points that stand for the envelope."""

    lines: Lines
    loss: np.ndarray

    def laws(self, C: np.ndarray, *, free_E: bool) -> dict[str, np.ndarray]:
        """a, G, b, H, E, A, alpha (rounds,), C (points,)."""
        law = frontier.fit_loss_laws(C, self.loss, free_E=free_E)
        a, log_G, b, log_H, _ = self.lines
        values = (a, np.exp(log_G), b, np.exp(log_H), law.E, law.A, law.alpha)
        return dict(zip(("a", "G", "b", "H", "E", "A", "alpha"), values, strict=True))


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
    check_options(bootstrap=bootstrap, resample=resample, confidence=confidence)
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
        verdict = f"{error}{_say_refused_rows(runs, allow_shared_horizon)}"
        return refused_fit("envelope", "power", record, options, verdict)
    path = climb_stairs(family.losses[None], family.grid.there)
    climbs, inside = find_climbs(path, family.grid.there), ~find_edges(path, family.grid.there)[0]
    if climbs.told.sum() < MIN_CLIMBS or inside.sum() < POINTS:
        verdict = _say_flat(family, int(climbs.told.sum())) + _say_refused_rows(runs, allow_shared_horizon)
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


def _say_refused_rows(runs: Runs, shared: bool) -> str:
    """What a verdict adds where rows before the ends of runs could have made curves."""
    if shared or not runs.intermediate:
        return ""
    return (
        f"; {runs.intermediate} rows before the ends of {len(runs.runs)} runs are refused, their learning-rate "
        f"schedule was laid out for another horizon: --allow-shared-horizon uses them all the same"
    )


def _say_flat(family: Family, climbs: int) -> str:
    low, high = np.exp(family.grid.log_C[[0, -1]])
    return (
        f"between {low:.3g} and {high:.3g} FLOPs a larger size overtakes a smaller one {climbs} times where three "
        f"sizes have a curve, at least {MIN_CLIMBS} times are needed; train sizes around the optimum of each compute"
    )


def _fit_family(
    obs: Observations, runs: Runs, family: Family, path: np.ndarray, record: dict[str, Any], options: dict[str, Any]
) -> Fit:
    shared, rounds = options.pop("shared"), options["bootstrap"] if family.noisy else 0
    grid, edge = family.grid, find_edges(path, family.grid.there)[0]
    at = np.flatnonzero(~edge)[np.linspace(0, (~edge).sum() - 1, POINTS).round().astype(int)]
    raw = _read(family.losses[None], family, at)
    rng = np.random.default_rng([options["seed"], 1])
    noise_bias = _measure_noise(family, at, rng) if family.noisy else np.zeros(POINTS)
    step_bias = _measure_steps(family, path[0], raw.lines, at)
    drawn = _draw(family, rounds, at, np.random.default_rng(options["seed"]))
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
    facts = _describe(runs, family, path, raw, draws, told, bias, free_E)
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
        noise=family.noise, budgets=_list_budgets(family, path[0], edge, at, corrected.loss[0]),
        diagnostics={
            "notes": _notes(facts, runs, shared, family), "flops": describe_rule(obs, runs.ends),
            "largest_C": float(C[-1]), "a_plus_b": point["a"] + point["b"],
            "horizon": "shared" if shared else "own", **facts,
        },
        draws={name: values.tolist() for name, values in draws.items()},
    )  # fmt: skip


def _read(losses: np.ndarray, family: Family, at: np.ndarray) -> Reading:
    """The envelope of losses (rounds, S, K): its lines, and its loss at grid points `at`."""
    path = climb_stairs(losses, family.grid.there)
    loss = np.take_along_axis(losses[:, :, at], path[:, None, at], 1)[:, 0]
    return Reading(fit_climbs(path, family.grid), loss)


def _draw(family: Family, rounds: int, at: np.ndarray, rng: np.random.Generator) -> Reading:
    """The same for redrawn curves, `rounds` of them."""
    read = [_read(losses, family, at) for losses in family.draw(rounds, rng)]
    if not read:
        return Reading(Lines(*np.empty((5, 0))), np.empty((0, len(at))))
    lines = Lines(*(np.concatenate(part) for part in zip(*(one.lines for one in read), strict=True)))
    return Reading(lines, np.concatenate([one.loss for one in read]))


def _measure_noise(family: Family, at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How far (points,) the lowest of noisy curves lies from the lowest of the curves, on average: below zero."""
    smoother = family.smoother()
    return np.asarray(
        _draw(smoother, BIAS_ROUNDS, at, rng).loss.mean(0) - _read(smoother.losses[None], family, at).loss[0]
    )


def _measure_steps(family: Family, path: np.ndarray, lines: Lines, at: np.ndarray) -> np.ndarray:
    """How far (points,) the envelope lies above the optimum because nothing was trained between two sizes.

    The curvature is the median, over the points, of that of a parabola in log N through all sizes within
    NEARBY of N_opt: the winner and its neighbours alone would show the luck that made it win.
    """
    grid = family.grid
    log_N_opt = lines.log_G[0] + lines.a[0] * grid.log_C[at]
    near = grid.there[:, at] & (np.abs(grid.log_N[:, None] - log_N_opt) <= np.log(NEARBY))
    curvatures = [
        2 * np.polyfit(grid.log_N[inside], family.losses[inside, i], 2)[0]
        for i, inside in zip(at, near.T, strict=True)
        if inside.sum() > 2
    ]
    if not curvatures:
        return np.zeros(len(at))
    farthest = np.diff(grid.log_N[near.any(1)]).max() / 2
    off = np.clip(grid.log_N[path[at]] - log_N_opt, -farthest, farthest)
    return np.asarray(max(float(np.median(curvatures)), 0.0) / 2 * off**2)


def _list_budgets(
    family: Family, path: np.ndarray, edge: np.ndarray, at: np.ndarray, loss: np.ndarray
) -> tuple[Budget, ...]:
    """The points that stand for the envelope, and the middle of every stretch at its edge."""
    grid, found = family.grid, dict(zip(at.tolist(), loss.tolist(), strict=True))
    starts = np.flatnonzero(np.diff(edge.astype(int), prepend=0) == 1)
    stretch = {int(s): int(np.argmin(np.append(edge[s:], False))) for s in starts}
    for s, length in stretch.items():
        found[s + length // 2] = float(family.losses[path[s + length // 2], s + length // 2])
    reasons = {s + length // 2: _say_edge(grid.there, path, s + length // 2, length) for s, length in stretch.items()}
    return tuple(
        Budget(
            C=float(np.exp(grid.log_C[i])), N_opt=float(grid.N[path[i]]),
            D_opt=float(np.exp(grid.log_C[i] - grid.log_rate[path[i]])), loss_opt=found[i],
            status="edge" if i in reasons else "ok", points=int(grid.there[:, i].sum()), reason=reasons.get(i, ""),
        )
        for i in sorted(found)
    )  # fmt: skip


def _say_edge(there: np.ndarray, path: np.ndarray, i: int, length: int) -> str:
    side = "smallest" if not there[: path[i], i].any() else "largest"
    return f"the lowest is the {side} size with a curve here, {length} of {there.shape[1]} points"


def _describe(
    runs: Runs, family: Family, path: np.ndarray, raw: Reading, draws: dict[str, np.ndarray], told: np.ndarray,
    bias: dict[str, np.ndarray], free_E: bool,
) -> dict[str, Any]:  # fmt: skip
    """What a reader of FIT.json may want to know of how it came about."""
    grid, climbs = family.grid, find_climbs(path, family.grid.there)
    steps = fit_steps(path, grid)
    low, high = (value[0][climbs.told[0]] for value in (path[:, :-1], path[:, 1:]))
    return {
        "smoothing": family.words, "grid_points": len(grid.log_C), "runs": len(runs.runs), "sizes": len(grid.N),
        "rows_merged": runs.merged, "rows_intermediate": runs.intermediate,
        "climbs": [
            {"C": float(np.exp((grid.log_C[i] + grid.log_C[i + 1]) / 2)), "from_N": float(grid.N[j]),
             "to_N": float(grid.N[k])}
            for i, j, k in zip(np.flatnonzero(climbs.told[0]), low, high, strict=True)
        ],
        "climbs_unused": int((climbs.any & ~climbs.told).sum()),
        "largest_step": float(np.exp((grid.log_N[high] - grid.log_N[low]).max())),
        "steps_reading": {"N": float(steps.a[0]), "D": float(steps.b[0]), "points": int(steps.climbs[0])},
        "bias_nats": {name: {"mean": float(v.mean()), "largest": float(v[np.argmax(np.abs(v))])}
                      for name, v in bias.items()},
        "bias_a": float(np.median(draws["a"]) - raw.lines.a[0]) if told.any() else None,
        "rounds_without_line": float(1 - told.mean()) if len(told) else 0.0,
        "run_noise_dof": family.run_dof, "loss_law_E": "free" if free_E else "fixed at 0",
    }  # fmt: skip


def _notes(facts: dict[str, Any], runs: Runs, shared: bool, family: Family) -> list[str]:
    noise, steps = (facts["bias_nats"][name]["mean"] for name in ("noise", "steps"))
    count, read = len(facts["climbs"]), facts["steps_reading"]["N"]
    notes = [
        f"the lowest of noisy curves lies {-noise:.2g} nats too low on average, the steps between sizes {steps:.2g} too "
        f"high: both are taken off the loss law" if family.noisy else
        f"the noise is not known: no intervals, and the bias of a minimum over noisy curves is left in; the steps "
        f"between sizes lie {steps:.2g} nats too high, which is taken off the loss law",
        f"the laws of N and D run through the {count} computes where a size overtakes the next, up to "
        f"{facts['largest_step']:.3g} times smaller; least squares through the steps would give a = {read:.3g}",
    ]  # fmt: skip
    notes += _note_horizon(runs, shared, family)
    if count < 4:
        notes.append(f"{count} sizes overtake another: {'a line through two points cannot be tested' if count == 2 else 'lack of fit of the line is hardly testable'}")  # fmt: skip
    if facts["climbs_unused"]:
        notes.append(f"{facts['climbs_unused']} changes of size happen where a curve begins or ends, or where fewer than "
                     f"three sizes have one, and tell nothing")  # fmt: skip
    if facts["rounds_without_line"] > 0:
        notes.append(f"{facts['rounds_without_line']:.1%} of the bootstrap rounds have no line through their steps: "
                     f"intervals are without them, and too narrow")  # fmt: skip
    if facts["loss_law_E"] != "free":
        notes.append("the envelope does not show an irreducible loss, E is fixed at 0 in the loss law; "
                     "the intervals let it vary")  # fmt: skip
    return notes


def _note_horizon(runs: Runs, shared: bool, family: Family) -> list[str]:
    """What was counted as evidence, and what that leaves out."""
    notes = [f"{runs.merged} rows repeated a checkpoint of their run and were averaged"] if runs.merged else []
    if not runs.named:
        notes.append("no run_id column: " + ("rows of one size are one curve" if shared else "every row is taken as the end of a run of its own"))  # fmt: skip
    if shared:
        notes.append("rows before the end of a run count although its learning-rate schedule was laid out for another "
                     "horizon: their loss is too high, most where no run of the size ends nearby")  # fmt: skip
        if not family.run_dof:
            notes.append("no ends to spare to measure how lucky a run is: intervals know the scatter within curves "
                         "alone, and are too narrow")  # fmt: skip
    elif runs.intermediate:
        notes.append(f"{runs.intermediate} rows before the ends of runs are refused: their learning-rate schedule was "
                     f"laid out for another horizon; --allow-shared-horizon uses them")  # fmt: skip
    return notes
