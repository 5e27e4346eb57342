"""A curve of loss over data -> which family extrapolates it, and what each foretells.

    fit_curves(frame)          every family, selected by held-out extrapolation (select.py)
    fit_cortes(D, test, train) the pair of test and training error with one asymptote

A curve is one model size trained on different amounts of data: columns D and loss, optional train_loss; N may
be there if it is one value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.curves.family import CurveData, Family, Fitted
from jaxscale.curves.result import CurveFits, FamilyFit
from jaxscale.curves.select import Choice, choose, place_origins, predict_held_out, score, spread_noise
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.result import Estimate
from jaxscale.fit.summary import check_options, percentile_interval
from jaxscale.laws import find_law
from jaxscale.laws.base import Law
from jaxscale.laws.curves import CURVES, Cortes, intrinsic_dimension
from jaxscale.runs import Observations
from jaxscale.source import CANONICAL, read_observations

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CurveFits", "FamilyFit", "fit_cortes", "fit_curves", "read_curve"]

ONE_SIZE = 1.05
"""Sizes within this factor of each other are one curve."""
REDRAWS = 200


@np.errstate(all="ignore")  # a law outside of its domain is not finite: it is refused, or scored as such
def fit_curves(
    source: Observations | pd.DataFrame | str | Path,
    *,
    laws: Sequence[str] | None = None,
    at: Sequence[float] = (),
    held_out: float = 0.5,
    bootstrap: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
) -> CurveFits:
    """Fit every family to a curve of loss (nats) over D, choose by held-out extrapolation, predict `at` D.

    `held_out` is the share of the largest distinct D that is predicted, from rolling origins. Selection needs
    five distinct D. MisuseError: several sizes N in one curve, or a law that is not of D alone.
    """
    check_options(bootstrap=bootstrap, resample="auto", confidence=confidence, seed=seed)
    if not 0 < held_out < 1:
        raise MisuseError(f"held_out {held_out:g} must lie between 0 and 1; 0.5 is the default")
    for D in at:
        if not (np.isfinite(D) and D > 0):
            raise MisuseError(f"at: {D:g} must be finite and above 0, an amount of data as in 1e12")
    data, record = _gather(read_curve(source, columns=columns, where=where))
    families, refused = _families(laws, data)
    fits = {name: family.fit(seed) for name, family in families.items()}
    for name in [name for name, fitted in fits.items() if not np.isfinite(fitted.rms)]:
        family = families.pop(name)
        reason = f"not finite at D = {data.D[0]:g} to {data.D[-1]:g}; check the unit of D"
        refused.append(FamilyFit(name, family.law.equation, status="refused", reason=reason))
        del fits[name]
    origins = place_origins(data, held_out)
    tried = {name: family for name, family in families.items() if _can_start(family, origins)}
    held = {name: predict_held_out(family, origins, seed) for name, family in tried.items()} if len(origins) else {}
    errors = {
        name: float(score(data, origins, np.stack([part[2] for part in parts]), data.loss))
        for name, parts in held.items()
    }
    noise = spread_noise(data, fits)
    choice = None
    if errors:
        starts = {name: [part[1].theta for part in parts] for name, parts in held.items()}
        choice = choose(tried, starts, origins, errors, noise=noise, rounds=bootstrap or REDRAWS,
                        confidence=confidence, seed=seed)  # fmt: skip
    draws = {name: family.bootstrap(fits[name], bootstrap, seed) for name, family in families.items()}
    foretold = tuple(row for name in families
                     for row in _predict(families[name], fits[name], draws[name], at, confidence, seed))  # fmt: skip
    described = [_describe(families[name], fits[name], draws[name], errors, choice, confidence) for name in families]
    running = choice.running if choice else tuple(families)
    return CurveFits(
        families=(*sorted(described, key=_rank), *refused),
        chosen=choice.law if choice else None, running=running, rivals=choice.rivals if choice else (),
        verdict=_verdict(choice, data, errors), origins=tuple(map(float, origins)), noise=noise,
        backtest=tuple(_backtest(data, held)), predictions=foretold, spread=tuple(_spread(foretold, running)),
        source=record, confidence=confidence, bootstrap=bootstrap, seed=seed,
        notes=tuple(_notes(data, at, noise)),
    )  # fmt: skip


@np.errstate(all="ignore")
def fit_cortes(
    D: Any, test: Any, train: Any, *, bootstrap: int = 200, confidence: float = 0.95, seed: int = 0
) -> FamilyFit:
    """Test error E + A / D^alpha and training error E - B / D^beta fitted together; arrays (n,), n at least 3.

    >>> law = Cortes(E=2.0, A=8.0, alpha=0.5, B=4.0, beta=0.5)
    >>> D = np.array([1e2, 3e2, 1e3, 3e3, 1e4])
    >>> round(fit_cortes(D, law.loss(D), law.train(D), bootstrap=0).params["E"], 6)
    2.0
    """
    D, test, train = (np.asarray(values, float) for values in (D, test, train))
    if len(D) < 3 or not (D.shape == test.shape == train.shape):
        raise MisuseError(
            f"D, test and train have {D.shape}, {test.shape}, {train.shape} values; give three or more each"
        )
    if not all(np.isfinite(x).all() and (x > 0).all() for x in (D, test, train)):
        raise MisuseError("D, test and train must be finite and above 0")
    order = np.argsort(D, kind="stable")
    family = Family(Cortes, CurveData(D[order], test[order], train[order]))
    fitted = family.fit(seed)
    return _describe(family, fitted, family.bootstrap(fitted, bootstrap, seed), {}, None, confidence)


def read_curve(
    source: Observations | pd.DataFrame | str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
) -> Observations:
    """Observations of one curve; a table without N is read as if N were D, which keeps every row that D keeps.

    A weight of 0 leaves a row out; other weights are not used.
    """
    if isinstance(source, Observations):
        return source
    train = (columns or {}).get("train_loss", "train_loss")
    names = {name: theirs for name, theirs in (columns or {}).items() if name in CANONICAL or name != "train_loss"}
    try:
        obs = read_observations(source, columns=names, where=where)
    except MisuseError:
        if "N" in names:
            raise
        obs = read_observations(source, columns={**names, "N": names.get("D", "D")}, where=where)
        obs.source.update(N="absent", columns=names)
    if "train_loss" in obs.frame:
        return obs
    if not isinstance(source, str | Path) and train in source:
        obs.frame["train_loss"] = source[train].to_numpy()[obs.frame["row"]]
    elif "train_loss" in (columns or {}):
        raise MisuseError(f"columns: train_loss={train} can be given with a DataFrame that has this column, not a file")
    return obs


def _gather(obs: Observations) -> tuple[CurveData, dict[str, Any]]:
    frame = obs.frame.sort_values("D", kind="stable")
    frame = frame[frame["weight"] > 0] if "weight" in frame else frame
    if frame.empty:
        raise VerdictError("no row is left to fit: every one has weight 0")
    N = frame["N"].to_numpy()
    if obs.source.get("N") != "absent" and N.max() > ONE_SIZE * N.min():
        raise MisuseError(f"N goes from {N.min():.3g} to {N.max():.3g}; a learning curve has one size, "
                          f'choose it with where "N == {N[-1]:.6g}"')  # fmt: skip
    train = None
    if "train_loss" in frame:
        values = frame["train_loss"].to_numpy(float)
        train = values if np.isfinite(values).all() and (values > 0).all() else None
    return CurveData(frame["D"].to_numpy(), frame["loss"].to_numpy(), train), dict(obs.source)


def _families(laws: Sequence[str] | None, data: CurveData) -> tuple[dict[str, Family], list[FamilyFit]]:
    """The families that can be fitted, and the others with the reason."""
    kept: dict[str, Family] = {}
    refused = []
    for name in dict.fromkeys(laws or CURVES):
        law: type[Law] = CURVES[name] if name in CURVES else find_law(name)
        if law.inputs != ("D",):
            raise MisuseError(f"law {name!r} needs {', '.join(law.inputs)}; a learning curve has D alone")
        family, reason = Family(law, data), None
        if family.joint and data.train is None:
            reason = "needs a column train_loss, above 0 in every row"
        elif len(data.distinct) < (3 if family.joint else family.count):
            reason = f"{family.count} parameters, {len(data.distinct)} different D"
        if reason is None:
            kept[name] = family
        elif laws is not None or name != "cortes":
            refused.append(FamilyFit(name, law.equation, status="refused", reason=reason))
    return kept, refused


def _can_start(family: Family, origins: np.ndarray) -> bool:
    """Whether the first origin shows as many different D as a family has parameters (three for the pair)."""
    seen = (family.data.distinct <= origins[0]).sum() if len(origins) else 0
    return bool(seen >= (3 if family.joint else family.count))


def _describe(
    family: Family, fitted: Fitted, draws: np.ndarray, errors: Mapping[str, float], choice: Choice | None,
    confidence: float,
) -> FamilyFit:  # fmt: skip
    name = family.law.name
    params = {key: float(value[0, 0]) for key, value in family.model.params_of(fitted.theta[None]).items()}
    drawn = {key: value[:, 0] for key, value in family.model.params_of(draws).items()}
    dimensions: list[Estimate | None] = [None, None]
    if name in ("hestness", "pow3", "pow4", "cortes"):
        for i, rule in enumerate(("resolution", "smooth")):
            d, rounds = (intrinsic_dimension(alpha, rule) for alpha in (params["alpha"], drawn["alpha"]))
            dimensions[i] = Estimate(float(d), percentile_interval(rounds, confidence))
    status = "fitted"
    if choice:
        status = "chosen" if name == choice.law else "in the running" if name in choice.running else "worse"
        status = status if name in errors else "not held out: too few points"
    value: Any = family.law(**params)
    notes = [] if fitted.converged else ["its optimum was not met: its parameters run along a valley"]
    return FamilyFit(
        law=name, equation=family.law.equation, params=params,
        intervals={key: percentile_interval(rounds, confidence) for key, rounds in drawn.items()},
        floor=float(getattr(value, "floor", getattr(value, "E", np.nan))), in_sample=fitted.rms,
        held_out=errors.get(name), share=choice.share.get(name) if choice else None, status=status,
        dimension=dimensions[0], dimension_smooth=dimensions[1], notes=tuple(notes),
    )  # fmt: skip


def _predict(
    family: Family, fitted: Fitted, draws: np.ndarray, at: Sequence[float], confidence: float, seed: int
) -> list[dict[str, Any]]:
    """A row for every D asked for."""
    if not len(at):
        return []
    D = np.asarray(at, float)
    center, rounds = family.at(fitted.theta[None], D)[0], family.at(draws, D)
    noise = fitted.noise if np.isfinite(fitted.noise) else 0.0
    run = rounds * np.exp(noise * np.random.default_rng(seed).standard_normal(rounds.shape))
    return [
        {"law": family.law.name, "D": float(D[i]), "extrapolation": float(D[i] / family.data.D[-1]),
         "loss": float(center[i]), "interval": percentile_interval(rounds[:, i], confidence),
         "interval_run": percentile_interval(run[:, i], confidence)}
        for i in range(len(D))
    ]  # fmt: skip


def _spread(predictions: Sequence[Mapping[str, Any]], running: Sequence[str]) -> list[dict[str, Any]]:
    """Lowest and highest loss at each D over the families in the running."""
    found = []
    for D in dict.fromkeys(row["D"] for row in predictions):
        losses = [row["loss"] for row in predictions if row["D"] == D and row["law"] in running]
        found.append({"D": D, "low": min(losses), "high": max(losses), "families": list(running)})
    return found


def _backtest(data: CurveData, held: Mapping[str, list[tuple[float, Fitted, np.ndarray]]]) -> list[dict[str, Any]]:
    return [
        {"law": name, "fitted_to_D": origin, "D": float(data.D[i]), "predicted": float(predicted[i]),
         "measured": float(data.loss[i]), "error": float(predicted[i] / data.loss[i] - 1)}
        for name, parts in held.items() for origin, _, predicted in parts for i in np.flatnonzero(origin < data.D)
    ]  # fmt: skip


def _verdict(choice: Choice | None, data: CurveData, errors: Mapping[str, float]) -> str:
    if choice is None:
        return (f"{len(data.distinct)} different D: nothing can be held out, so no family is chosen; "
                f"give five or more")  # fmt: skip
    mine = f"rms log error {errors[choice.law]:.2g} on held-out larger D"
    if choice.rivals:
        others = ", ".join(choice.rivals)
        return f"cannot tell {choice.law} from {others} by extrapolation ({choice.law}: {mine}); use their spread"
    wider = [f"{name} ({errors[name]:.2g})" for name in choice.running if name != choice.law]
    if not wider:
        return f"{choice.law} extrapolates best: {mine}, every other family is worse"
    return f"{choice.law} is enough: {mine}; {', '.join(wider)} contain it and cannot be shown to do better"


def _notes(data: CurveData, at: Sequence[float], noise: float) -> list[str]:
    notes = []
    largest = data.D[-1]
    span = largest / data.D[0]
    beyond = max(at, default=0.0) / largest
    if beyond > span:
        notes.append(f"D = {max(at):.3g} is {beyond:.3g} times the largest measured, that only {span:.3g} times the "
                     f"smallest: no held-out test reaches that far")  # fmt: skip
    if np.log(data.loss.max() / data.loss.min()) < 5 * noise:
        notes.append("the loss falls by less than five deviations of its noise: no form can be seen")
    return notes


def _rank(family: FamilyFit) -> tuple[bool, float]:
    return (family.held_out is None, family.held_out if family.held_out is not None else family.in_sample or 0.0)
