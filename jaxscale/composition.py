"""Sources of data compared: does one exponent serve all of them, or has each its own?

    shared  L_s = E_s + A_s / D^alpha        free  L_s = E_s + A_s / D^alpha_s        least squares of log loss

Three looks at the same question: an F test of the nested pair, AICc, and the prediction of the largest D of
every source from the smaller ones. A test that does not reject is no proof: a shared exponent is called
supported only where the data bound how far the exponents could still lie apart (TIGHT).
`floor=False` sets every E_s to 0: straight lines in logs, for sources with few points.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.curves import read_curve
from jaxscale.curves.result import list_refused
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.resample import f_tail
from jaxscale.fit.result import Estimate, Interval, without_nan
from jaxscale.fit.squares import Model, Solved, aicc, best_lane, redraw, solve
from jaxscale.fit.summary import check_options, percentile_interval
from jaxscale.format import format_interval, format_number, format_percent
from jaxscale.laws.curves import Pow3
from jaxscale.laws.sources import Sources
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SourceComparison", "compare_exponents", "compare_sources"]

EXPONENTS = np.geomspace(0.03, 2.0, 14)
LEAST_SHARE = 1e-3
TIGHT = 0.25
"""Assumption: exponents that differ by less than this share of their mean are one for practical purposes."""
HELD_OUT = 2
"""How many of the largest D of each source are predicted."""


@dataclass(frozen=True)
class SourceComparison:
    """Both laws on the same sources. `verdict` is shared, free or undecided; `words` says it in a sentence.

    `difference`: exponent of the steepest source over that of the flattest, minus 1, with its interval.
    `models`: a record a law with parameters, rms of log loss, aicc, held_out. `refused`: sources left out.
    """

    verdict: str
    words: str
    shared: Sources
    free: Sources
    alpha: Estimate
    alphas: dict[str, Estimate]
    difference: Estimate
    f_ratio: float
    p_value: float
    models: tuple[dict[str, Any], ...]
    refused: tuple[dict[str, str], ...]
    source: dict[str, Any]
    confidence: float
    notes: tuple[str, ...] = ()
    schema: str = "jaxscale.sources/1"

    def to_json(self) -> str:
        """As JSON, schema jaxscale.sources/1."""
        plain = asdict(self)
        return json.dumps({"schema": plain.pop("schema"), **without_nan(plain)}, indent=1, default=float)

    def to_frame(self) -> pd.DataFrame:
        """One row a source: source, E, A, alpha with its interval, and E, A under the shared exponent."""
        import pandas as pd

        rows = []
        for name, curve in self.free.curves.items():
            low, high = self.alphas[name].interval
            one = self.shared.curves[name]
            rows.append({"source": name, "E": curve.E, "A": curve.A, "alpha": curve.alpha, "low": low, "high": high,
                         "E_shared": one.E, "A_shared": one.A, "alpha_shared": one.alpha})  # fmt: skip
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        rows = []
        for name, curve in self.free.curves.items():
            one, span = self.shared.curves[name], format_interval(self.alphas[name].interval, format_number)
            rows.append((name, curve.E, curve.A, curve.alpha, span, one.E, one.A))
        header = ("source", "E", "A", "alpha", f"{self.confidence:.0%} interval", "E (shared)", "A (shared)")
        interval = format_interval(self.alpha.interval, format_number)
        models = [(m["law"], m["parameters"], format_percent(m["rms"]).lstrip("+"), m["aicc"],
                   format_percent(m["held_out"]).lstrip("+")) for m in self.models]  # fmt: skip
        parts = [
            render_table(f"sources; the shared alpha is {self.alpha.value:.4g} {interval}", header, rows),
            render_table("the two laws", ("law", "parameters", "rms", "AICc", "held out"), models),
            f"F test of one exponent: F = {self.f_ratio:.3g}, p = {self.p_value:.2g}",
            *(f"source {one['source']} left out: {one['reason']}" for one in self.refused),
            *list_refused(self.source),
            *(f"note: {note}" for note in self.notes), f"verdict: {self.words}",
        ]  # fmt: skip
        return "\n".join(parts)


def compare_sources(
    source: pd.DataFrame | str | Path,
    *,
    floor: bool = True,
    bootstrap: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
) -> SourceComparison:
    """Compare sources in a long table: group (source), D (tokens), loss (nats per token), one model size.

    VerdictError: fewer than two sources have enough different D (four, without floors three).
    """
    check_options(bootstrap=bootstrap, resample="auto", confidence=confidence)
    frame, record = _read(source, columns, where)
    names, refused = _usable(frame, 4 if floor else 3)
    study = _Study.of(frame[frame["group"].isin(names)], names, floor)
    shared, free = study.solve(shared=True), study.solve(shared=False)
    n, p0, p1 = len(study.y), shared.theta.shape[1], free.theta.shape[1]
    ss0, ss1 = float(shared.value[0]), float(free.value[0])
    f_ratio, p_value = _f_test(shared, free, n)
    held = [study.predict_held_out(shared=one) for one in (True, False)]
    models = tuple(
        {"law": law, "parameters": p, "rms": float(np.sqrt(ss / n)), "aicc": aicc(ss, n, p), "held_out": out}
        for law, p, ss, out in (("shared", p0, ss0, held[0]), ("free", p1, ss1, held[1]))
    )
    drawn = {one: redraw(study.model(one), fit.theta[0], study.y, bootstrap, seed)
             for one, fit in ((True, shared), (False, free))}  # fmt: skip
    alphas = _exponents(study, free, drawn[False], confidence)
    difference = _difference(study, free, drawn[False], confidence)
    alpha = Estimate(float(study.alphas(shared.theta, True)[0, 0]),
                     percentile_interval(study.alphas(drawn[True], True)[:, 0], confidence))  # fmt: skip
    verdict, words = _judge(p_value, models, difference, 1 - confidence)
    return SourceComparison(
        verdict=verdict, words=words, shared=study.law(shared.theta, True), free=study.law(free.theta, False),
        alpha=alpha, alphas=alphas, difference=difference, f_ratio=f_ratio, p_value=p_value, models=models,
        refused=tuple(refused), source=record, confidence=confidence, notes=tuple(study.notes()),
    )  # fmt: skip


def compare_exponents(
    source: pd.DataFrame | str | Path, *, floor: bool = True, columns: Mapping[str, str] | None = None
) -> tuple[float, float]:
    """F and p of one exponent for all sources against one each: the test alone, without intervals.

    Of 300 planted studies with a shared exponent 4.3% had p below .05 and 10.3% below .1 (tests/test_composition.py).
    """
    frame, _ = _read(source, columns, None)
    names, _ = _usable(frame, 4 if floor else 3)
    study = _Study.of(frame[frame["group"].isin(names)], names, floor)
    return _f_test(study.solve(shared=True), study.solve(shared=False), len(study.y))


def _f_test(shared: Solved, free: Solved, n: int) -> tuple[float, float]:
    """F of the sums of squares of nested fits, and its tail."""
    p0, p1 = shared.theta.shape[1], free.theta.shape[1]
    ss0, ss1 = float(shared.value[0]), float(free.value[0])
    f_ratio = max((ss0 - ss1) / (p1 - p0), 0.0) / max(ss1 / (n - p1), 1e-300)
    return f_ratio, f_tail(f_ratio, p1 - p0, n - p1)


@dataclass(frozen=True)
class _Study:
    """Points with their source; terms are measured at the middle D0 of the data, T = A / D0^alpha."""

    names: tuple[str, ...]
    D: np.ndarray
    y: np.ndarray
    member: np.ndarray
    floor: bool
    weight: np.ndarray

    @classmethod
    def of(cls, frame: pd.DataFrame, names: Sequence[str], floor: bool) -> _Study:
        member = np.array([names.index(name) for name in frame["group"]])
        y = np.log(frame["loss"].to_numpy())
        return cls(tuple(names), frame["D"].to_numpy(), y, member, floor, np.ones(len(frame)))

    @cached_property
    def x(self) -> np.ndarray:
        """Log D from the middle of the data."""
        return np.log(self.D) - np.log(self.D).mean()

    def model(self, shared: bool) -> Model:
        """Parameters E0.., T0.., alpha or alpha0.., all positive."""
        count = range(len(self.names))
        names = (*(f"E{g}" for g in count if self.floor), *(f"T{g}" for g in count),
                 *(f"a{g}" for g in (range(1) if shared else count)))  # fmt: skip

        def predict(params: Mapping[str, Any]) -> Any:
            E, T, alpha = (self._column(params, letter) for letter in "ETa")
            return np.log(E + T * np.exp(-alpha * self.x))

        return Model(names, frozenset(names), predict)

    def _column(self, params: Mapping[str, Any], letter: str) -> Any:
        """A parameter of each point's source (lanes, n); a shared one (lanes, 1), a missing one 0."""
        columns = [params[f"{letter}{g}"] for g in range(len(self.names)) if f"{letter}{g}" in params]
        if not columns:
            return 0.0
        return columns[0] if len(columns) == 1 else np.concatenate(columns, -1)[:, self.member]

    def alphas(self, theta: np.ndarray, shared: bool) -> np.ndarray:
        """Exponents (lanes, 1 or sources)."""
        return np.exp(theta[:, -(1 if shared else len(self.names)) :])

    def law(self, theta: np.ndarray, shared: bool) -> Sources:
        """The fitted curves, A in units of D."""
        params = {name: float(value[0, 0]) for name, value in self.model(shared).params_of(theta).items()}
        middle = float(np.log(self.D).mean())
        curves = {}
        for g, name in enumerate(self.names):
            alpha = params["a0" if shared else f"a{g}"]
            curves[name] = Pow3(params.get(f"E{g}", 0.0), params[f"T{g}"] * float(np.exp(alpha * middle)), alpha)
        return Sources(curves)

    def solve(self, shared: bool) -> Solved:
        """The best optimum (one lane): starts from a grid of exponents, for free ones source by source."""
        model = self.model(shared)
        E, T, ss = self._project()
        if shared:
            rows = [np.arange(len(EXPONENTS))] * len(self.names)
        else:  # sources are independent: the k-th best exponent of every source together
            rows = list(np.argsort(ss, 0).T[:, :4])
        a = [EXPONENTS[row] for row in rows]
        parts = {f"E{g}": E[row, g] for g, row in enumerate(rows)} | {f"T{g}": T[row, g] for g, row in enumerate(rows)}
        theta = model.theta_of({**parts, **{f"a{g}": value for g, value in enumerate(a)}})
        lanes = len(theta)
        found = solve(model, theta, np.tile(self.y, (lanes, 1)), np.tile(self.weight, (lanes, 1)))
        best = best_lane(found)
        return Solved(*(part[best : best + 1] for part in found))

    def _project(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """E, T and relative squares (exponents, sources) by linear least squares at each exponent."""
        shape = (len(EXPONENTS), len(self.names))
        E, T, ss = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        for g in range(len(self.names)):
            seen = (self.member == g) & (self.weight > 0)
            loss, x = np.exp(self.y[seen]), self.x[seen]
            for i, alpha in enumerate(EXPONENTS):
                columns = [np.exp(-alpha * x)] + ([np.ones(len(x))] if self.floor else [])
                basis = np.stack(columns, 1) / loss[:, None]
                found = np.linalg.lstsq(basis, np.ones(len(x)), rcond=None)[0]
                found = np.maximum(found, LEAST_SHARE * loss.min())
                T[i, g], E[i, g] = found[0], found[1] if self.floor else 0.0
                ss[i, g] = ((basis @ found - 1) ** 2).sum()
        return E, T, ss

    def predict_held_out(self, shared: bool) -> float:
        """Rms log error over the HELD_OUT largest D of each source, seen by no fit that predicts them."""
        errors = []
        for j in range(1, HELD_OUT + 1):
            held = np.zeros(len(self.y), bool)
            for g in range(len(self.names)):
                mine = self.member == g
                held |= mine & (np.unique(self.D[mine])[-j - 1] < self.D)
            found = replace(self, weight=(~held).astype(float)).solve(shared)
            model = self.model(shared)
            errors.append((self.y - model.predict(model.params_of(found.theta))[0])[held])
        return float(np.sqrt((np.concatenate(errors) ** 2).mean()))

    def notes(self) -> list[str]:
        """What a reader should know of the design."""
        spans = [float(np.ptp(np.log10(self.D[self.member == g]))) for g in range(len(self.names))]
        if min(spans) >= 1:
            return []
        return [f"source {self.names[int(np.argmin(spans))]} covers a factor {10 ** min(spans):.3g} in D: exponents "
                f"of a curve with a floor need a decade or more"]  # fmt: skip


def _read(source: Any, columns: Mapping[str, str] | None, where: str | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    obs = read_curve(source, columns=columns, where=where)
    if "group" not in obs.frame:
        raise MisuseError("columns: group is missing; map the column that names the source as group=NAME")
    N = obs.frame["N"]
    if obs.source.get("N") != "absent" and N.max() > 1.05 * N.min():
        raise MisuseError(f"N goes from {N.min():.3g} to {N.max():.3g}; compare sources at one size, "
                          f'choose it with where "N == {N.max():.6g}"')  # fmt: skip
    return obs.frame.assign(group=obs.frame["group"].astype(str)), dict(obs.source)


def _usable(frame: pd.DataFrame, fewest: int) -> tuple[list[str], list[dict[str, str]]]:
    counts = frame.groupby("group")["D"].nunique()
    names = [str(name) for name in counts.index[counts >= fewest]]
    refused = [{"source": str(name), "reason": f"{count} different D, {fewest} are needed"}
               for name, count in counts.items() if count < fewest]  # fmt: skip
    if len(names) < 2:
        raise VerdictError(f"{len(names)} of {len(counts)} sources have {fewest} different D or more; "
                           f"two are needed to compare exponents")  # fmt: skip
    return names, refused


def _exponents(study: _Study, free: Solved, drawn: np.ndarray, confidence: float) -> dict[str, Estimate]:
    values, rounds = study.alphas(free.theta, False)[0], study.alphas(drawn, False)
    return {name: Estimate(float(values[g]), percentile_interval(rounds[:, g], confidence))
            for g, name in enumerate(study.names)}  # fmt: skip


def _difference(study: _Study, free: Solved, drawn: np.ndarray, confidence: float) -> Estimate:
    """Steepest exponent over flattest, minus 1, of the two sources that are so in the fit."""
    values, rounds = study.alphas(free.theta, False)[0], study.alphas(drawn, False)
    top, low = int(values.argmax()), int(values.argmin())
    return Estimate(
        float(values[top] / values[low] - 1), percentile_interval(rounds[:, top] / rounds[:, low] - 1, confidence)
    )


def _judge(p: float, models: Sequence[Mapping[str, Any]], difference: Estimate, level: float) -> tuple[str, str]:
    """The verdict and its sentence."""
    shared, free = models
    predicts = "free" if free["held_out"] < shared["held_out"] else "shared"
    gap = shared["aicc"] - free["aicc"]
    span = _words(difference.interval)
    errors = f"{shared['held_out']:.2g} shared, {free['held_out']:.2g} free"
    held = f"on held-out larger D the {predicts} law errs less ({errors})"
    if p < level and gap > 0:
        sure = "" if predicts == "free" else ", though not where it counts most"
        return "free", f"the sources have exponents of their own (p = {p:.2g}{sure}); {held}; they differ by {span}"
    low, high = difference.interval
    if p >= level and gap <= 0 and low is not None and high is not None and max(abs(low), abs(high)) <= TIGHT:
        return "shared", f"one exponent serves all sources (p = {p:.2g}); they could differ by {span} at most; {held}"
    why = f"p = {p:.2g}, AICc prefers {'free' if gap > 0 else 'shared'}"
    return (
        "undecided",
        f"shared and free exponents cannot be told apart ({why}); exponents could differ by {span}; {held}",
    )


def _words(interval: Interval) -> str:
    low, high = interval
    return "an unknown share" if low is None or high is None else f"{low:+.0%} to {high:+.0%}"
