"""Loss to loss: what a loss on one distribution says about the loss on another, over the same runs.

    offset  L_t = L_s + c                       Kaplan et al. 2020, section 3.2.2
    linear  L_t = E_t + K L_s                   kappa = 1
    power   L_t = E_t + K (L_s - E_s)^kappa     Brandfonbrener et al. 2024, arXiv 2411.12925

Each contains the one before it. The simplest stands until an F test rejects it and AICc agrees; what each
predicts for the lowest third of the losses from the others is reported beside it. L_s is taken as exact: its
own noise flattens the slope a little.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.fit.resample import f_tail
from jaxscale.fit.result import Estimate, without_nan
from jaxscale.fit.squares import Model, Solved, aicc, best_lane, redraw, solve
from jaxscale.fit.summary import check_options, percentile_interval
from jaxscale.format import format_interval, format_loss, format_number, format_percent
from jaxscale.laws.sources import Transfer
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TransferFit", "fit_transfer"]

FORMS: dict[str, tuple[str, ...]] = {"offset": ("c",), "linear": ("K", "E_t"), "power": ("K", "E_t", "kappa", "E_s")}
FEWEST = 6
FLOORS, KAPPAS = (0.05, 0.3, 0.6, 0.85, 0.97), (0.5, 0.8, 1.0, 1.3, 2.0)
"""Starts of the power: E_s over the smallest L_s, and kappa."""


@dataclass(frozen=True)
class TransferFit:
    """The three forms and the one the data ask for.

    `forms`: a record a form with params, rms of log loss, aicc, held_out, p_value against the simpler one.
    `predictions`: x, y, interval of the mean curve, interval_run of one further run.
    """

    chosen: str
    law: Transfer
    estimates: dict[str, Estimate]
    forms: tuple[dict[str, Any], ...]
    predictions: tuple[dict[str, Any], ...]
    words: str
    confidence: float
    notes: tuple[str, ...] = ()
    schema: str = "jaxscale.transfer/1"

    def to_json(self) -> str:
        """As JSON, schema jaxscale.transfer/1."""
        plain = asdict(self)
        return json.dumps({"schema": plain.pop("schema"), **without_nan(plain)}, indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a form: form, parameters, rms, aicc, held_out, p_value."""
        import pandas as pd

        return pd.DataFrame([{**form, "parameters": len(form["params"])} for form in self.forms]).drop(columns="params")

    def __str__(self) -> str:
        def percent(value: float | None) -> str:
            return format_percent(value).lstrip("+")

        rows = [(f["form"], ", ".join(f"{k} {format_number(v)}" for k, v in f["params"].items()),
                 percent(f["rms"]), f["aicc"], percent(f["held_out"]), f["p_value"])
                for f in self.forms]  # fmt: skip
        parts = [
            render_table("loss to loss", ("form", "parameters", "rms", "AICc", "held out", "p of the simpler"), rows)
        ]
        told = [(p["x"], format_loss(p["y"]), format_interval(p["interval"]), format_interval(p["interval_run"]))
                for p in self.predictions]  # fmt: skip
        header = ("L_s", "L_t", f"{self.confidence:.0%} interval", "one further run")
        parts += [render_table(f"predicted by {self.chosen}", header, told)] if told else []
        return "\n".join([*parts, *(f"note: {note}" for note in self.notes), f"verdict: {self.words}"])


def fit_transfer(
    x: Any, y: Any, *, at: Sequence[float] = (), bootstrap: int = 500, confidence: float = 0.95, seed: int = 0
) -> TransferFit:
    """Loss y (n,) on a test distribution against loss x (n,) on the training one, nats, a row a run; n from 6.

    >>> x = np.linspace(2.5, 4.0, 8)
    >>> fit_transfer(x, x + 0.3, bootstrap=0).chosen
    'offset'
    """
    check_options(bootstrap=bootstrap, resample="auto", confidence=confidence)
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim != 1 or x.shape != y.shape or len(x) < FEWEST:
        raise MisuseError(f"x and y have {x.shape} and {y.shape} losses; give one pair a run, {FEWEST} or more")
    if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all() or len(np.unique(x)) < 4:
        raise MisuseError("x and y must be finite and above 0, with four different x or more")
    everything = np.ones(len(x))
    fits = {form: _solve(form, x, y, everything) for form in FORMS}
    forms = _compare(x, y, fits)
    chosen = _choose(forms, 1 - confidence)
    model, theta = _model(chosen, x), fits[chosen].theta
    drawn = redraw(model, theta[0], np.log(y), bootstrap, seed)
    rounds = {name: value[:, 0] for name, value in model.params_of(drawn).items()}
    params = {name: float(value[0, 0]) for name, value in model.params_of(theta).items()}
    estimates = {name: Estimate(value, percentile_interval(rounds[name], confidence)) for name, value in params.items()}
    predictions = _predict(chosen, at, theta, drawn, _noise(y, fits[chosen], model), confidence, seed)
    return TransferFit(
        chosen=chosen, law=_law(chosen, params), estimates=estimates, forms=tuple(forms),
        predictions=tuple(predictions),
        words=_words(chosen, forms), confidence=confidence, notes=tuple(_notes(x, at, chosen, params)),
    )  # fmt: skip


def _model(form: str, x: Any) -> Model:
    """Log L_t; K, kappa, E_s positive."""

    def predict(p: Any) -> Any:
        if form == "offset":
            return np.log(x + p["c"])
        if form == "linear":
            return np.log(p["E_t"] + p["K"] * x)
        return np.log(p["E_t"] + p["K"] * (x - p["E_s"]) ** p["kappa"])

    return Model(FORMS[form], frozenset({"K", "kappa", "E_s"}) & frozenset(FORMS[form]), predict)


def _solve(form: str, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> Solved:
    """The best optimum (one lane) over starts from linear least squares at a grid of E_s and kappa."""
    model, seen = _model(form, x), w > 0
    if form == "offset":
        starts = {"c": np.array([float((y - x)[seen].mean())])}
    else:
        grid = [(0.0, 1.0)]
        if form == "power":
            grid = [(E * float(x[seen].min()), kappa) for E in FLOORS for kappa in KAPPAS]
        found = []
        for E, kappa in grid:
            K, E_t = np.polyfit((x[seen] - E) ** kappa, y[seen], 1)
            found.append((max(K, 1e-6), E_t, kappa, max(E, 1e-9)))
        starts = dict(zip(("K", "E_t", "kappa", "E_s"), np.array(found).T, strict=True))
    theta = model.theta_of({name: starts[name] for name in model.names})
    lanes = len(theta)
    solved = solve(model, theta, np.tile(np.log(y), (lanes, 1)), np.tile(w, (lanes, 1)))
    best = best_lane(solved)
    return Solved(*(part[best : best + 1] for part in solved))


def _compare(x: np.ndarray, y: np.ndarray, fits: dict[str, Solved]) -> list[dict[str, Any]]:
    n, forms = len(x), []
    w = np.ones(n)
    w[np.argsort(x, kind="stable")[: max(n // 3, 2)]] = 0.0
    before = None
    for form, fit in fits.items():
        p, ss = len(FORMS[form]), max(float(fit.value[0]), 1e-300)
        record = {"form": form, "params": {k: float(v[0, 0]) for k, v in _model(form, x).params_of(fit.theta).items()},
                  "rms": float(np.sqrt(ss / n)), "aicc": aicc(ss, n, p), "held_out": None, "p_value": None}  # fmt: skip
        if before is not None and n > p:
            q, ss0 = p - before[0], before[1]
            record["p_value"] = f_tail(max(ss0 - ss, 0.0) / q / (ss / (n - p)), q, n - p)
        if w.sum() > p:
            model = _model(form, x)
            seen = _solve(form, x, y, w).theta
            with np.errstate(all="ignore"):
                error = (np.log(y) - model.predict(model.params_of(seen))[0])[w == 0]
            record["held_out"] = float(np.sqrt((error**2).mean())) if np.isfinite(error).all() else float("inf")
        forms.append(record)
        before = (p, ss)
    return forms


def _choose(forms: Sequence[dict[str, Any]], level: float) -> str:
    """The simplest that no larger one beats both by F test and by AICc; differences of rounding do not count."""
    chosen = forms[0]
    for form in forms[1:]:
        if chosen["rms"] < 1e-9:
            break
        p = form["p_value"] if chosen is forms[forms.index(form) - 1] else None
        beats = form["aicc"] < chosen["aicc"] and (p is None or p < level)
        chosen = form if beats else chosen
    return str(chosen["form"])


def _law(form: str, params: dict[str, float]) -> Transfer:
    if form == "offset":
        return Transfer(K=1.0, E_s=0.0, kappa=1.0, E_t=params["c"])
    return Transfer(**{"E_s": 0.0, "kappa": 1.0, **params})


def _noise(y: np.ndarray, fit: Solved, model: Model) -> float:
    return float(np.sqrt(fit.value[0] / (len(y) - len(model.names))))


def _predict(
    form: str, at: Sequence[float], theta: np.ndarray, drawn: np.ndarray, noise: float, confidence: float, seed: int
) -> list[dict[str, Any]]:
    """A row for every L_s asked for; NaN below the fitted E_s."""
    if not len(at):
        return []
    model = _model(form, np.asarray(at, float))
    with np.errstate(all="ignore"):
        center = np.exp(model.predict(model.params_of(theta)))[0]
        rounds = np.exp(model.predict(model.params_of(drawn)))
    rounds = np.where(np.isfinite(center), rounds, np.nan)  # no interval about nothing
    run = rounds * np.exp(noise * np.random.default_rng(seed).standard_normal(rounds.shape))
    return [
        {"x": float(one), "y": float(center[i]), "interval": percentile_interval(rounds[:, i], confidence),
         "interval_run": percentile_interval(run[:, i], confidence)}
        for i, one in enumerate(at)
    ]  # fmt: skip


def _words(chosen: str, forms: Sequence[dict[str, Any]]) -> str:
    mine = next(form for form in forms if form["form"] == chosen)
    head = "offset is enough: the others are no better" if chosen == "offset" else (
        f"{chosen}: the simpler form is rejected (p = {mine['p_value']:.2g})")  # fmt: skip
    if mine["held_out"] is None:
        return head
    best = min((form for form in forms if form["held_out"] is not None), key=lambda form: form["held_out"])
    if best is mine or best["held_out"] > 0.9 * mine["held_out"]:
        return f"{head}; it also errs least on the lowest third of the losses, held out ({mine['held_out']:.2g})"
    own = f"{mine['held_out']:.2g}" if np.isfinite(mine["held_out"]) else "below its floor"
    return (f"{head}; but on the lowest third of the losses, held out, {best['form']} errs less "
            f"({best['held_out']:.2g}, {chosen} {own}): extrapolate with care")  # fmt: skip


def _notes(x: np.ndarray, at: Sequence[float], chosen: str, params: dict[str, float]) -> list[str]:
    notes = []
    if len(at) and min(at) < x.min() - np.ptp(x):
        notes.append(f"L_s = {min(at):.3g} is further below the lowest run than the runs spread: no held-out test "
                     f"reaches that far")  # fmt: skip
    if chosen == "power" and len(at) and min(at) <= params["E_s"]:
        notes.append(
            f"L_s = {min(at):.3g} is not above the fitted floor E_s = {params['E_s']:.3g}: nothing is predicted"
        )
    return notes
