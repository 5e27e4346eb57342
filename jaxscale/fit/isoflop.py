"""Approach 2, IsoFLOP: the minimum of each budget's curve, and power laws through the minima.

    N_opt(C) = G C^a,  D_opt(C) = H C^b,  L_opt(C) = E + A / C^alpha        (Hoffmann et al. 2022, sec. 3.2)

Differs from the paper: a curve is read as two powers with a skew shared by all budgets (powers.py), not as a
parabola; edge and nonconvex minima never enter; the bootstrap redraws losses within budgets instead of
dropping points, and each round refits skew, curves and lines; E is averaged over its likelihood (frontier.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.fit import frontier, minima
from jaxscale.fit.cells import SPREAD, Cells, gather_cells
from jaxscale.fit.curves import (
    Reading,
    choose_reading,
    doubt_shape,
    model_noise,
    redraw_minima,
    split_curves,
    weigh_curves,
)
from jaxscale.fit.minima import Curve
from jaxscale.fit.readings import FAR, compare_readings, draw_curve, read_minimum, say_disagreement, span_readings
from jaxscale.fit.resample import NoiseModel, choose_resample, f_tail
from jaxscale.fit.result import Budget, Estimate, Fit, refused_fit
from jaxscale.fit.summary import (
    check_options,
    describe_rule,
    describe_source,
    percentile_interval,
    summarize_draws,
)
from jaxscale.fit.suspect import annotate_fit, contradict_budgets, describe_shared_error, recomputed_flops, shared_error
from jaxscale.runs import Observations
from jaxscale.source import as_observations

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["fit_isoflop"]

LINES = ("a", "b", "G", "H")
SMALLEST_VARIANCE = 1e-14
"""Of a log loss: below it is rounding."""


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite is null, and said
def fit_isoflop(
    source: Observations | pd.DataFrame,
    *,
    interpolant: str = "auto",
    window: str | int = "auto",
    bootstrap: int = 1000,
    resample: str = "auto",
    confidence: float = 0.95,
    seed: int = 0,
) -> Fit:
    """Fit N_opt(C), D_opt(C) and L_opt(C) from IsoFLOP curves.

    Columns N, D, C, loss (nats per token). Fewer than two usable budgets: a Fit whose `verdict` says why
    and whose exponents are None. `params` and `draws`: a, b and the
    coefficients G, H; the draws also hold the loss law's E, A, alpha, with E free from 3 budgets on.
    """
    check_options(bootstrap=bootstrap, resample=resample, confidence=confidence, seed=seed)
    _check_reading(interpolant, window)
    obs = as_observations(source)
    cells = gather_cells(obs)
    options = {"confidence": confidence, "bootstrap": bootstrap, "resample": resample, "seed": seed}
    return annotate_fit(_fit_cells(obs, cells, interpolant, window, options), obs)


def _fit_cells(obs: Observations, cells: Cells, interpolant: str, window: str | int, options: dict[str, Any]) -> Fit:
    """The fit, or one whose verdict says why there is none."""
    verdict = _no_budgets(cells) if not len(cells.budget_C) else contradict_budgets(obs, cells)
    if verdict:
        return refused_fit("isoflop", "power", describe_source(obs), options, verdict)
    curves = split_curves(cells)
    reading = choose_reading(curves, cells, interpolant, window)
    curves = weigh_curves(curves, reading)
    budgets = tuple(read_minimum(curve, reading) for curve in curves)
    usable = [curve for curve, budget in zip(curves, budgets, strict=True) if budget.status == "ok"]
    if len(usable) < 2:
        verdict = _no_answer(obs, cells, budgets, len(usable))
        return refused_fit("isoflop", "power", describe_source(obs), options, verdict, budgets)
    return _fit_usable(obs, cells, usable, budgets, reading, options)


def _check_reading(interpolant: str, window: str | int) -> None:
    if interpolant not in ("auto", "powers", "parabola", "akima"):
        raise MisuseError(f"interpolant {interpolant!r} is unknown; use auto, powers, parabola or akima")
    if window != "auto" and (not isinstance(window, int) or window < minima.MIN_SIZES):
        raise MisuseError(f"window {window!r} must be auto or at least {minima.MIN_SIZES} sizes")


def _no_budgets(cells: Cells) -> str:
    return (
        f"no budgets: C spreads over {cells.spread:.0%} in its widest cluster, the limit is {SPREAD:.0%}; "
        f"give a budget column, or use --method parametric"
    )


def _no_answer(obs: Observations, cells: Cells, budgets: tuple[Budget, ...], usable: int) -> str:
    unusable = [budget for budget in budgets if budget.status != "ok"]
    reasons = "; ".join(f"{b.C:.3g} FLOPs is {b.status}: {b.reason}" for b in unusable[:3])
    more = f"; and {len(unusable) - 3} more" if len(unusable) > 3 else ""
    why = f" ({reasons}{more})" if unusable else ""
    return f"{usable} usable budgets of {len(budgets)}, at least 2 are needed{why}{_say_spread(obs, cells, '; ')}"


def _say_spread(obs: Observations, cells: Cells, before: str = "") -> str:
    """What to know of budgets whose runs differ in C; empty where they do not."""
    if cells.spread <= SPREAD:
        return ""
    words = f"runs of one budget differ by {cells.spread:.0%} in C"
    if recomputed_flops(obs):
        return f"{before}{words} recomputed as 6 N D: the budgets are the groups that were trained"
    return f"{before}{words}, more than {SPREAD:.0%}: check the budget column"


def _fit_usable(
    obs: Observations,
    cells: Cells,
    curves: list[Curve],
    budgets: tuple[Budget, ...],
    reading: Reading,
    options: dict[str, Any],
) -> Fit:
    C = np.array([curve.C for curve in curves])
    found = [budget for budget in budgets if budget.status == "ok"]
    log_N, log_D = (np.log([[getattr(b, name) for b in found]]) for name in ("N_opt", "D_opt"))
    loss = np.array([[b.loss_opt for b in found]])
    model, windows = model_noise(curves, cells, reading)
    kind = choose_resample(options["resample"], planned=True, cluster=model.cluster, intraclass=model.intraclass)
    rounds = options["bootstrap"] if model.total_dof >= 1 else 0
    rng = np.random.default_rng(options["seed"])
    drawn_N, drawn_D, drawn_loss = redraw_minima(curves, reading, model, windows, kind, rounds, rng)
    drawn_N, factor_N = _widen(C, log_N, drawn_N, model.total_dof)
    drawn_D, factor_D = _widen(C, log_D, drawn_D, model.total_dof)
    drawn_N, drawn_D = doubt_shape(curves, reading, (drawn_N, drawn_D), rng)
    spread = _loss_variance(loss[0], drawn_loss, model)
    law, drawn_law, no_floor = _fit_loss_law(C, loss[0], spread, model.total_dof, len(drawn_loss), options["seed"])
    draws = _fit_lines(C, drawn_N, drawn_D) | _name_law(drawn_law)
    point = {name: float(v[0]) for name, v in (_fit_lines(C, log_N, log_D) | _name_law(law)).items()}
    shared = shared_error(obs)
    draws = _share_error(draws, shared or 0.0, options["seed"])
    intervals, errors = summarize_draws({name: draws[name] for name in LINES}, options["confidence"])
    params = {name: point[name] for name in LINES}
    readings, far = compare_readings(cells, reading), np.log(draws["G"]) + draws["a"] * np.log(FAR * C.max())
    notes = _notes(obs, cells, budgets, found, rounds, max(factor_N, factor_D), no_floor)
    notes += [describe_shared_error(shared)] if shared else []
    notes += _bounds(point) + _say_misfit(reading)
    notes += _say_sensitivity(intervals, span_readings(readings))
    notes += say_disagreement(readings, *percentile_interval(np.exp(far), options["confidence"]))
    return Fit(
        method="isoflop", law="power", source=describe_source(obs), params=params, intervals=intervals,
        std_errors=errors, confidence=options["confidence"], bootstrap=rounds, resample=kind,
        seed=options["seed"],
        exponents={"N": Estimate(params["a"], intervals["a"]), "D": Estimate(params["b"], intervals["b"])},
        coefficients={"N": Estimate(params["G"], intervals["G"]), "D": Estimate(params["H"], intervals["H"])},
        loss_law={name: point[name] for name in ("E", "A", "alpha")},
        objective={
            "name": "squares", "delta": None, "reduction": "sum", "value": None, "gradient_norm": None,
            "reading": reading.words,
        },
        noise=model.describe() | _cell_noise(reading), budgets=budgets,
        diagnostics={
            "notes": notes,
            "flops": describe_rule(obs, cells), "largest_C": float(C.max()),
            "interpolant": reading.kind, "window": reading.window,
            "windows_tried": reading.tried, "a_plus_b": point["a"] + point["b"],
            "shared_error": shared,
            "line_misfit_factor": {"N": factor_N, "D": factor_D},
            "loss_law_E": {"weight_on_0": no_floor}, "sensitivity": readings,
            "sensitivity_span": span_readings(readings),
            "weighted_lines": {
                name: _weigh_line(C, y, rounds_of, options)
                for name, y, rounds_of in (("N", log_N, drawn_N), ("D", log_D, drawn_D))
            },
            "curves": [draw_curve(curve, reading) for curve in curves],
        },
        draws={name: values.tolist() for name, values in draws.items()},
    )  # fmt: skip


def _fit_lines(C: np.ndarray, log_N: np.ndarray, log_D: np.ndarray) -> dict[str, np.ndarray]:
    """a, G, b, H (rounds,) from minima (rounds, budgets)."""
    (a, log_G), (b, log_H) = (frontier.fit_lines(np.log(C), y) for y in (log_N, log_D))
    return {"a": a, "G": np.exp(log_G), "b": b, "H": np.exp(log_H)}


def _name_law(law: frontier.LossLaws) -> dict[str, np.ndarray]:
    return {"E": law.E, "A": law.A, "alpha": law.alpha}


def _widen(C: np.ndarray, center: np.ndarray, drawn: np.ndarray, dof: float) -> tuple[np.ndarray, float]:
    """Rounds widened about the minima by Birge's ratio where a line misses them beyond their noise (5%)."""
    if len(C) < 3 or not len(drawn):
        return drawn, 1.0
    slope, intercept = frontier.fit_lines(np.log(C), center)
    residual = center[0] - intercept - slope * np.log(C)
    ratio = float((residual**2 / drawn.var(0)).sum() / (len(C) - 2))
    if f_tail(ratio, len(C) - 2, dof) > 0.05:
        return drawn, 1.0
    return center + np.sqrt(ratio) * (drawn - center), float(np.sqrt(ratio))


def _fit_loss_law(
    C: np.ndarray, loss: np.ndarray, variance: np.ndarray, dof: float, rounds: int, seed: int
) -> tuple[frontier.LossLaws, frontier.LossLaws, float]:
    """The averaged loss law, draws of it, and the weight left on E = 0."""
    return frontier.average_loss_laws(C, loss, variance, dof, rounds, np.random.default_rng([seed, 2]))


def _weigh_line(C: np.ndarray, center: np.ndarray, drawn: np.ndarray, options: dict[str, Any]) -> dict[str, Any] | None:
    """Exponent of the line weighted by precision, with the scatter between budgets; None without rounds."""
    if len(drawn) < 2:
        return None
    log_C, variance = np.log(C), np.maximum(drawn.var(0), SMALLEST_VARIANCE)
    scatter = frontier.extra_scatter(log_C, center[0], variance)
    slopes = [frontier.fit_lines(log_C, y, 1 / (variance + scatter))[0] for y in (center, drawn)]
    interval = percentile_interval(slopes[1], options["confidence"])
    return {"value": float(slopes[0][0]), "interval": list(interval), "scatter": float(np.sqrt(scatter))}


def _cell_noise(reading: Reading) -> dict[str, float | None]:
    """What the runs of a cell share, which one more cell draws anew, where it was proved."""
    shape = reading.shape
    return {"cell_std": float(np.sqrt(shape.kappa) * shape.sigma)} if shape is not None and shape.kappa > 0 else {}


def _say_misfit(reading: Reading) -> list[str]:
    if reading.shape is not None and reading.shape.kappa > 0:
        return [f"the cells miss their curves by more than their seeds say: all seeds of a cell share an error of "
                f"{np.sqrt(reading.shape.kappa) * reading.shape.sigma:.2g} of the loss, which further seeds do not "
                f"average away"]  # fmt: skip
    if reading.shape is None or reading.shape.rho == 0:
        return []
    share = reading.shape.rho * reading.shape.sigma
    return [f"no curve of two powers fits every size (misfit {share:.2g} of the rise above the minimum): cells count "
            f"less the higher they lie, and the distance to Akima's interpolant is in the intervals"]  # fmt: skip


def _say_sensitivity(intervals: Any, span: dict[str, list[float] | None]) -> list[str]:
    """How far other windows and interpolants move a, beside its interval."""
    low, high = intervals["a"]
    if low is None or span["N"] is None:
        return []
    return [f"other windows and interpolants give a from {span['N'][0]:.4f} to {span['N'][1]:.4f}, to be read "
            f"beside the interval [{low:.4f}, {high:.4f}] of the default reading"]  # fmt: skip


def _share_error(draws: dict[str, np.ndarray], error: float, seed: int) -> dict[str, np.ndarray]:
    """Loss laws of the rounds (E and A) under the error that every loss shares; the lines do not feel it."""
    factor = np.exp(error * np.random.default_rng([seed, 3]).standard_normal(len(draws["E"])))
    return draws | {"E": draws["E"] * factor, "A": draws["A"] * factor}


def _loss_variance(loss: np.ndarray, drawn: np.ndarray, model: NoiseModel) -> np.ndarray:
    """Variance of each log loss_opt (budgets,) under the noise as estimated: the rounds hold a draw of it too."""
    dof = model.total_dof
    if len(drawn) > 1:
        shrink = (dof - 2) / dof if dof > 3 else 1 / 3
        return np.maximum(np.var(np.log(drawn / loss), 0) * shrink, SMALLEST_VARIANCE)
    leverage = [model.leverage[model.stratum == b].min() for b in range(len(model.dof))]
    return np.maximum(model.scales() ** 2 * np.array(leverage), SMALLEST_VARIANCE)


def _bounds(point: dict[str, float]) -> list[str]:
    """What an exponent at a bound, or outside what a law of compute can have, says."""
    words = [
        f"{name} = {point[name]:.3g}: {what}_opt would not grow with C, or faster than it; check N, D and C"
        for name, what in (("a", "N"), ("b", "D"))
        if not 0 < point[name] < 1
    ]
    if abs(point["a"] + point["b"] - 1) > 0.1:
        words.append(f"a + b = {point['a'] + point['b']:.3g}, far from the 1 of C ~ N D: C is not counted as 6 N D")
    if not 1.01 * frontier.ALPHAS[0] < point["alpha"] < 0.99 * frontier.ALPHAS[1]:
        words.append(f"alpha = {point['alpha']:.3g} ends at the bound of its range {frontier.ALPHAS}: the losses of "
                     f"the budgets do not determine L_opt(C)")  # fmt: skip
    return words


def _notes(
    obs: Observations,
    cells: Cells,
    budgets: tuple[Budget, ...],
    found: list[Budget],
    rounds: int,
    factor: float,
    no_floor: float,
) -> list[str]:
    notes = [f"budget {b.C:.3g} left out: {b.status}, {b.reason}" for b in budgets if b.status != "ok"]
    notes += [words] if (words := _say_spread(obs, cells)) else []
    if len(found) == 2:
        notes.append("two usable budgets: a line through two points cannot be tested")
    if len(found) == 3:
        notes.append("three usable budgets: one degree of freedom, lack of fit of the lines cannot be tested")
    if factor > 1:
        notes.append(f"a line misses the minima by more than their noise: intervals widened {factor:.2g} times")
    if no_floor > 0.05:
        notes.append(f"the budgets hardly show an irreducible loss: E = 0 keeps {no_floor:.0%} of the weight, E is "
                     f"the mean, and the intervals let it vary")  # fmt: skip
    if not rounds:
        notes.append("no degrees of freedom for the noise, or bootstrap 0: no intervals")
    return notes
