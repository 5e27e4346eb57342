"""What a fit is: the FIT.json contract as one value that prints as a table and predicts.

Exponents and coefficients are None, and `verdict` says why, where the data gave no usable answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.format import format_interval, format_number
from jaxscale.laws import FlopRule, Law, LossLaw, Optimum, PowerLaw, Repetition, find_law
from jaxscale.plain import from_plain, read_json
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Budget", "Estimate", "Fit", "Fits", "refused_fit"]

Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class Estimate:
    """A number and its interval at the fit's confidence."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Budget:
    """One IsoFLOP curve's minimum. `status` other than "ok" never enters a power law."""

    C: float
    N_opt: float | None
    D_opt: float | None
    loss_opt: float | None
    status: Literal["ok", "edge", "nonconvex", "too_few"]
    points: int
    reason: str = ""
    tuning: str = ""
    """What a tuning audit found there: tuned, mistuned, open, not audited; empty without an audit."""


@dataclass(frozen=True)
class Fit:
    """A fitted law with everything needed to judge it; field for field the FIT.json schema.

    N_opt(C) = coefficients["N"] * C ** exponents["N"], the same for D; both None where a law has none.
    `params`: those of the law for parametric (E, A, B, alpha, beta for chinchilla); a, b and the coefficients
    G, H for isoflop.
    `draws` holds the bootstrap replicates, one dict of equal-length lists (C in FLOPs, loss in nats),
    so that a forecast can carry the fit's uncertainty without the observations.
    `noise`: deviations of log loss, that is relative, between seeds and about the fit.
    """

    method: Literal["isoflop", "parametric", "envelope"]
    law: str
    source: dict[str, Any]
    params: dict[str, float]
    confidence: float
    bootstrap: int
    resample: str
    seed: int
    intervals: dict[str, Interval]
    std_errors: dict[str, float | None]
    exponents: dict[str, Estimate] | None
    coefficients: dict[str, Estimate] | None
    loss_law: dict[str, float] | None
    objective: dict[str, Any]
    noise: dict[str, float | None]
    budgets: tuple[Budget, ...] | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, list[float]] = field(default_factory=dict)
    schema: str = "jaxscale.fit/1"

    @property
    def verdict(self) -> str | None:
        """Why there is no usable answer; None where there is one."""
        return self.diagnostics.get("verdict")

    @property
    def notes(self) -> list[str]:
        """What a reader should know before trusting the numbers, one sentence each."""
        return list(self.diagnostics.get("notes", ()))

    @property
    def rule(self) -> FlopRule:
        """C = k N^p D, as the fit was told to count."""
        flops = self.diagnostics["flops"]
        return FlopRule(flops["k"], flops["p"])

    @property
    def has_optimum(self) -> bool:
        """Whether there is an answer that says which N and D are best at a compute: not for a law of one variable."""
        if self.method == "parametric":
            return self.verdict is None and find_law(self.law).inputs[:2] == ("N", "D")
        return self.verdict is None and self.exponents is not None

    def law_value(self) -> Law:
        """The fitted law as a value of `jaxscale.laws`; MisuseError for a method that fits none over (N, D)."""
        return self._law(self.params)

    def sampled_law(self) -> Law:
        """The same law with arrays (rounds,) for parameters, one entry a bootstrap round."""
        return self._law({name: np.asarray(values) for name, values in self.draws.items()})

    def _law(self, values: Mapping[str, Any]) -> Law:
        if self.method != "parametric":
            raise MisuseError(f"method {self.method!r} predicts the loss at the optimum of C only; "
                              f"fit with method parametric for loss(N, D)")  # fmt: skip
        self.require_answer()
        return find_law(self.law)(**values)

    def predict_loss(self, *inputs: Any) -> Any:
        """Loss at the law's inputs, (N, D) or with U unique tokens (N, D, U), nats per token."""
        return self.law_value().loss(*inputs)

    def sample_loss(self, *inputs: Any) -> Any:
        """The same for every bootstrap round: (rounds,) for scalars."""
        return self.sampled_law().loss(*inputs)

    def predict_optimum(self, C: Any) -> Optimum:
        """N, D and loss that are optimal at C FLOPs; VerdictError where the fit has no answer."""
        self.require_answer()
        return self._optimum({**self.params, **(self.loss_law or {})}, C)

    def sample_optimum(self, C: Any) -> Optimum:
        """The same for every bootstrap round: arrays (rounds,), or (rounds, n) for C (n,)."""
        self.require_answer()
        shape = (-1, *(1 for _ in np.shape(C)))
        return self._optimum({name: np.reshape(values, shape) for name, values in self.draws.items()}, C)

    def frontier(self) -> Any:
        """L_opt(C) as a value that can be inverted."""
        self.require_answer()
        if self.method == "parametric":
            return self._surface(self.law_value()).frontier(self.rule)
        return LossLaw(**(self.loss_law or {}))

    def _surface(self, law: Law) -> Law:
        """The law, if it is one over (N, D), which alone has an optimum at a compute."""
        if isinstance(law, Repetition):
            return law.unlimited
        if law.inputs != ("N", "D"):
            raise MisuseError(f"law {law.name!r} takes {', '.join(law.inputs)}: it has no optimal N and D; "
                              f"forecast with a law over N and D")  # fmt: skip
        return law

    def require_answer(self) -> None:
        """VerdictError with the reason where the fit has no answer."""
        if self.verdict:
            raise VerdictError(f"{self.method} fit: {self.verdict}")

    def _optimum(self, values: Mapping[str, Any], C: Any) -> Optimum:
        if self.method == "parametric":
            return self._surface(self._law(values)).optimum(C, self.rule)
        loss = LossLaw(values["E"], values["A"], values["alpha"]).loss(C)
        return Optimum(PowerLaw(values["G"], values["a"]).at(C), PowerLaw(values["H"], values["b"]).at(C), loss)

    def to_json(self) -> str:
        """The fit as JSON, schema jaxscale.fit/1; NaN and infinities become null."""
        return json.dumps(self.to_plain(), indent=1)

    def to_plain(self) -> dict[str, Any]:
        """The schema's dictionary."""
        plain = asdict(self)
        return {"schema": plain.pop("schema"), **without_nan(plain)}

    @classmethod
    def from_json(cls, path: str | Path) -> Fit:
        """Read a FIT.json; MisuseError names what is missing or unknown."""
        return from_plain(_read_draws(read_json(Path(path))), cls)

    def to_frame(self) -> pd.DataFrame:
        """One row a quantity: quantity, value, low, high, std_error."""
        import pandas as pd

        rows = [{"quantity": name, "value": value, "low": low, "high": high, "std_error": error}
                for name, value, (low, high), error in self._quantities()]  # fmt: skip
        return pd.DataFrame(rows, columns=["quantity", "value", "low", "high", "std_error"])

    def _quantities(self) -> list[tuple[str, float, Interval, float | None]]:
        rows = [
            (name, value, self.intervals.get(name, (None, None)), self.std_errors.get(name))
            for name, value in self.params.items()
        ]
        if self.method == "parametric" and self.exponents and self.coefficients:
            rows += [(f"{n}_opt exponent", e.value, e.interval, None) for n, e in self.exponents.items()]
            rows += [(f"{n}_opt coefficient", e.value, e.interval, None) for n, e in self.coefficients.items()]
        return rows

    def __str__(self) -> str:
        title = f"{self.method} fit, {self.source.get('rows_used', '?')} rows of {self.source.get('path', '?')}"
        rows: list[tuple[Any, ...]] = [
            (name, value, format_interval(i, format_number), error) for name, value, i, error in self._quantities()
        ]
        header = ["quantity", "value", f"{self.confidence:.0%} interval", "std error"]
        if profile := self.diagnostics.get("identifiability", {}).get("profile"):
            header.append("by profile")
            rows = [(*row, format_interval(profile.get(row[0], {}).get("interval"), format_number)) for row in rows]
        parts = [render_table(title, header, rows) if rows else title]
        if self.budgets:
            parts.append(self._budget_table(self.budgets))
        if self.loss_law:
            law = {name: format_number(value) for name, value in self.loss_law.items()}
            parts.append(f"L_opt(C) = {law['E']} + {law['A']} / C^{law['alpha']}")
        refused = self.source.get("rows_refused") or []
        parts += [f"row {row.get('row', row.get('run_id'))} refused: {row['reason']}" for row in refused[:5]]
        parts += [f"... and {len(refused) - 5} more rows refused"] if len(refused) > 5 else []
        objective = ", ".join(
            f"{name} {format_number(value)}" for name, value in self.objective.items() if value is not None
        )
        parts.append(f"objective: {objective}" if objective else "")
        parts += [f"verdict: {self.verdict}"] if self.verdict else [f"note: {note}" for note in self.notes]
        return "\n".join(part for part in parts if part)

    @staticmethod
    def _budget_table(budgets: tuple[Budget, ...]) -> str:
        audited = any(b.tuning for b in budgets)
        rows = [
            (b.C, b.N_opt, b.D_opt, b.loss_opt, b.points, b.status, *([b.tuning] if audited else []), b.reason)
            for b in budgets
        ]
        columns = ("C", "N_opt", "D_opt", "loss", "sizes", "status", *(["tuning"] if audited else []), "")
        return render_table("budgets", columns, rows)


@dataclass(frozen=True)
class Fits:
    """Several methods on the same observations; `weights` (equal) are those of their average.

    `agreement`: what `judge_agreement` found between them; None in files of before, or with one answer.
    """

    fits: tuple[Fit, ...]
    weights: tuple[float, ...]
    agreement: dict[str, Any] | None = None
    schema: str = "jaxscale.fits/1"

    def to_json(self) -> str:
        """The fits as JSON, schema jaxscale.fits/1."""
        return json.dumps(self.to_plain(), indent=1)

    def to_plain(self) -> dict[str, Any]:
        """The schema's dictionary."""
        fits = [fit.to_plain() for fit in self.fits]
        agreement = without_nan(self.agreement)
        return {"schema": self.schema, "fits": fits, "weights": list(self.weights), "agreement": agreement}

    @classmethod
    def from_json(cls, path: str | Path) -> Fits:
        """Read a FITS.json; MisuseError names what is missing or unknown."""
        plain = read_json(Path(path))
        if isinstance(plain, dict) and isinstance(plain.get("fits"), list):
            plain = {**plain, "fits": [_read_draws(fit) for fit in plain["fits"]]}
        return from_plain(plain, cls)

    def to_frame(self) -> pd.DataFrame:
        """The rows of every fit with a column `method`."""
        import pandas as pd

        return pd.concat([fit.to_frame().assign(method=fit.method) for fit in self.fits], ignore_index=True)

    def __str__(self) -> str:
        from jaxscale.fit.agreement import describe_agreement, tabulate_exponents

        words = describe_agreement(self.agreement) if self.agreement else []
        table = "\n".join([tabulate_exponents(self.fits), *words])
        return "\n\n".join([*(str(fit) for fit in self.fits), table])


def refused_fit(
    method: Literal["isoflop", "parametric", "envelope"],
    law: str,
    source: dict[str, Any],
    options: Mapping[str, Any],
    verdict: str,
    budgets: tuple[Budget, ...] | None = None,
) -> Fit:
    """A fit without an answer: every number None, the reason in `verdict`."""
    return Fit(
        method=method, law=law, source=source, params={}, intervals={}, std_errors={}, exponents=None,
        coefficients=None, loss_law=None, objective={}, noise={"seed_std": None, "residual_std": None},
        budgets=budgets, diagnostics={"verdict": verdict}, **options,
    )  # fmt: skip


def _read_draws(plain: Any) -> Any:
    """Plain data of a fit with the nulls of its rounds, which `without_nan` wrote, as NaN again."""
    if not isinstance(plain, dict) or not isinstance(plain.get("draws"), dict):
        return plain
    draws = {
        name: [math.nan if value is None else value for value in values] if isinstance(values, list) else values
        for name, values in plain["draws"].items()
    }
    return {**plain, "draws": draws}


def without_nan(value: Any) -> Any:
    """Plain data with NaN and infinities as None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
