"""The nested forms of the laws at their best: parameters, F tests between them, and AICc.

    shared     L_v = E   + A_v x^-alpha           slopes    L_v = E + A_v x^-alpha_v
    separate   L_v = E_v + A_v x^-alpha_v         with floors 0 where a variant has fewer than three budgets

Least squares of log loss by the weights of the points. What the tests are measured against is what the form of more
parameters leaves together with what the cells leave of their parabolas and the seeds of their cells, unless the law
misses the points by more than that explains: then what the law leaves alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.compare.points import Points
from jaxscale.fit.resample import f_tail
from jaxscale.fit.squares import Model, aicc, best_lane, solve

__all__ = ["Form", "fit_forms", "test_forms"]

EXPONENTS = np.geomspace(0.02, 1.5, 12)
LEAST_SHARE, NO_SHARE = 1e-3, 1e-9
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Form:
    """A form's optimum: E, A, alpha of every variant (V,), weighted squares in units of the noise, parameters."""

    name: str
    E: np.ndarray
    A: np.ndarray
    alpha: np.ndarray
    ss: float
    parameters: int
    aicc: float | None

    def to_plain(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """A record a variant."""
        return [{"form": self.name, "variant": name, "E": float(self.E[v]), "A": float(self.A[v]),
                 "alpha": float(self.alpha[v])} for v, name in enumerate(names)]  # fmt: skip


def fit_forms(points: Points) -> dict[str, Form]:
    """The forms that have no more parameters than there are points."""
    V = len(points.names)
    floor = bool(np.bincount(points.member, minlength=V).min() >= 3)
    counts = {"shared": V + 1 + floor, "slopes": 2 * V + floor, "separate": (2 + floor) * V}
    return {name: _fit(points, name, floor, p) for name, p in counts.items()
            if p <= len(points) and (floor or name != "separate")}  # fmt: skip


def test_forms(points: Points, forms: Mapping[str, Form]) -> list[dict[str, Any]]:
    """F and p of every nested pair; None where no degree of freedom is left to test with."""
    last = list(forms.values())[-1]
    left = len(points) - last.parameters
    pure, dof = (points.dof, points.dof) if points.dof >= 1 else (0.0, 0.0)
    if left >= 1 and dof >= 1 and f_tail(last.ss / left / (pure / dof), left, dof) < SIGNIFICANCE:
        pure, dof = 0.0, 0.0
    rows = []
    names = list(forms)
    for i, less in enumerate(names):
        for more in names[i + 1 :]:
            one, two = forms[less], forms[more]
            extra, below = two.parameters - one.parameters, len(points) - two.parameters + dof
            row: dict[str, Any] = {"less": less, "more": more, "F": None, "p": None, "dof": [extra, below]}
            if below >= 1:
                F = max(one.ss - two.ss, 0.0) / extra / max((two.ss + pure) / below, 1e-300)
                row |= {"F": F, "p": f_tail(F, extra, below)}
            rows.append(row)
    return rows


test_forms.__test__ = False  # type: ignore[attr-defined]  # a name that pytest would collect


def _fit(points: Points, name: str, floor: bool, p: int) -> Form:
    """Best optimum from a grid of exponents; terms are measured at the middle of the data."""
    V, x = len(points.names), points.log_x - points.log_x.mean()
    floors, slopes = (V if name == "separate" else 1) * floor, 1 if name == "shared" else V
    names = (*(f"E{v}" for v in range(floors)), *(f"T{v}" for v in range(V)), *(f"a{v}" for v in range(slopes)))

    def spread(params: Mapping[str, Any], letter: str, count: int) -> Any:
        if not count:
            return 0.0
        columns = np.concatenate([params[f"{letter}{v}"] for v in range(count)], -1)
        return columns[:, points.member] if count > 1 else columns

    def predict(params: Mapping[str, Any]) -> Any:
        E, T, alpha = (spread(params, *one) for one in (("E", floors), ("T", V), ("a", slopes)))
        return np.log(E + T * np.exp(-alpha * x))

    model, lanes = Model(names, frozenset(names), predict), len(EXPONENTS)
    weight = 1 / np.diag(points.cov)
    theta = model.theta_of(_start(points, x, floors, slopes))
    found = solve(model, theta, np.tile(points.y, (lanes, 1)), np.tile(weight / weight.mean(), (lanes, 1)))
    best = best_lane(found)
    params = {key: float(value[0, 0]) for key, value in model.params_of(found.theta[best : best + 1]).items()}
    E = np.array([params.get(f"E{v if floors > 1 else 0}", 0.0) for v in range(V)])
    E = np.where(np.exp(points.y.min()) * NO_SHARE > E, 0.0, E)  # a log that ran away
    alpha = np.array([params[f"a{v if slopes > 1 else 0}"] for v in range(V)])
    A = np.array([params[f"T{v}"] for v in range(V)]) * np.exp(alpha * points.log_x.mean())
    ss = float(found.value[best]) * float(weight.mean())
    n = len(points) + points.dof
    total = ss + points.dof if points.dof >= 1 else ss
    value = aicc(total, n, p) if n > p + 2 else None  # type: ignore[arg-type]
    return Form(name, E, A, alpha, ss, p, value)


def _start(points: Points, x: np.ndarray, floors: int, slopes: int) -> dict[str, np.ndarray]:
    """E and T (lanes,) of every variant by linear least squares at each exponent, floors averaged where shared."""
    V, parts = len(points.names), []
    for v in range(V):
        seen = points.member == v
        loss, rows = np.exp(points.y[seen]), []
        for alpha in EXPONENTS:
            columns = [np.exp(-alpha * x[seen])] + ([np.ones(seen.sum())] if floors else [])
            found = np.linalg.lstsq(np.stack(columns, 1) / loss[:, None], np.ones(len(loss)), rcond=None)[0]
            rows.append(np.append(np.maximum(found, LEAST_SHARE * loss.min()), [] if floors else [0.0]))
        parts.append(np.array(rows))
    E = [part[:, 1] for part in parts]
    start = {f"T{v}": part[:, 0] for v, part in enumerate(parts)}
    start |= {f"E{v}": E[v] if floors > 1 else np.mean(E, 0) for v in range(floors)}
    return start | {f"a{v}": EXPONENTS for v in range(slopes)}
