"""Fit -> the best plan under constraints, and what each of them costs against the free optimum.

A budget (`flops`) or a target (`loss`), and any of: parameters capped, tokens capped, U unique tokens that may
be repeated (Muennighoff et al. 2023), training FLOPs capped by a deadline, T tokens to serve (Sardana et al.
2024). The plan is found free, under each constraint alone, and under all together. allocate.py has the
equations. An isoflop fit knows one line of constant C at a time: it answers caps under a budget, from its
frontier and the curvature of its parabolas (flatness.py), and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.allocate import Limits, Repeated, lowest_loss, lowest_spend, repeat_data
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.result import Fit, Fits, without_nan
from jaxscale.fit.summary import percentile_interval
from jaxscale.fitted import answered, drawn_surface, has_surface, surface
from jaxscale.flatness import Valley, measured_valley
from jaxscale.format import format_count, format_factor, format_flops, format_interval, format_loss
from jaxscale.laws import MUENNIGHOFF_2023, FlopRule, Kaplan, Law, Optimum, find_law
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Constrained", "constrain_optimum", "say_overfitting"]

CAPS = ("max_params", "max_tokens", "max_train_flops")
AT_CAP = 1e-6
"""Relative distance at which a plan counts as standing at a cap."""
USED_UP = 1e-4
"""Relative gain in loss from twice the compute below which the unique data count as used up."""
ROUNDING = 1e-12
"""Nats below which a cost is the arithmetic's."""
DRAWN = ("N", "D", "loss", "C_train", "C_lifetime", "compute_factor")
SHOWN = ("method", "constraint", "N", "interval", "D", "D/N", "epochs", "C train", "C lifetime", "loss", "interval",
         "costs nats", "compute", "lifetime", "binds")  # fmt: skip


@dataclass(frozen=True)
class Constrained:
    """Rows by method and constraint: free, each constraint alone, together; flat but for `intervals`.

    `compute_factor` is the budget (for a target loss: the training FLOPs) over what the free optimum needs for
    the row's loss; `lifetime_factor` is training and serving together over that of the free plan.
    "free, on U" is the free plan trained on U unique tokens all the same.
    """

    request: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    confidence: float
    notes: tuple[str, ...] = ()
    schema: str = "jaxscale.constrained/1"

    def to_plain(self) -> dict[str, Any]:
        """The schema's dictionary."""
        plain = {"schema": self.schema, "request": self.request, "confidence": self.confidence}
        return without_nan({**plain, "notes": list(self.notes), "rows": list(self.rows)})

    def to_json(self) -> str:
        """The plans as JSON, schema jaxscale.constrained/1."""
        return json.dumps(self.to_plain(), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a method and constraint; intervals as columns NAME_low, NAME_high."""
        import pandas as pd

        flat = []
        for row in self.rows:
            ends = {f"{k}_{end}": v for k, pair in row["intervals"].items() for end, v in zip(("low", "high"), pair)}
            flat.append({k: v for k, v in row.items() if k != "intervals"} | ends)
        return pd.DataFrame(flat)

    def __str__(self) -> str:
        asked = ", ".join(f"{name} {value:.4g}" for name, value in self.request.items())
        table = render_table(f"plans for {asked}; {self.confidence:.0%} intervals", SHOWN, [_show(r) for r in self.rows])
        return "\n".join([table, *(f"note: {note}" for note in self.notes)])


def _show(row: Mapping[str, Any]) -> tuple[Any, ...]:
    N, loss = (row["intervals"].get(name) for name in ("N", "loss"))
    epochs = None if row["epochs"] is None else f"{row['epochs']:.3g}"
    return (row["method"], row["constraint"], format_count(row["N"]), format_interval(N, format_count),
            format_count(row["D"]), row["tokens_per_param"], epochs, format_flops(row["C_train"]),
            format_flops(row["C_lifetime"]), format_loss(row["loss"]), format_interval(loss), row["loss_cost"],
            format_factor(row["compute_factor"]), format_factor(row["lifetime_factor"]), row["binds"])  # fmt: skip


@dataclass(frozen=True)
class _Case:
    """One line of the table: its name, its limits, and U where data repeat."""

    name: str
    limits: Limits
    U: float | None = None
    fixed: bool = False
    """The free plan itself, read on U unique tokens."""


def constrain_optimum(
    fit: Fit | Fits,
    *,
    flops: float | None = None,
    loss: float | None = None,
    max_params: float | None = None,
    max_tokens: float | None = None,
    unique_tokens: float | None = None,
    max_train_flops: float | None = None,
    served_tokens: float | None = None,
    serving_ratio: float | None = None,
    R_D: float | None = None,
    R_N: float | None = None,
) -> Constrained:
    """The best plan for `flops` or for a target `loss`, free and constrained.

    flops: FLOPs to spend, on training and on serving `served_tokens`; loss: nats per token to reach at the lowest
    lifetime FLOPs. max_params, max_tokens, max_train_flops: caps; the last alone is also the budget. unique_tokens:
    repeated at will with the decays R_D, R_N (epochs; the fit's own for law repetition, else Muennighoff et al.'s,
    an assumption that the notes name). serving_ratio: price of a served FLOP in training FLOPs (1). MisuseError
    for a request that cannot be read, VerdictError where no plan exists.
    """
    given = {"flops": flops, "loss": loss, "max_params": max_params, "max_tokens": max_tokens,
             "unique_tokens": unique_tokens, "max_train_flops": max_train_flops, "served_tokens": served_tokens,
             "serving_ratio": serving_ratio, "R_D": R_D, "R_N": R_N}  # fmt: skip
    asked = _check({name: float(value) for name, value in given.items() if value is not None})
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    unanswered: list[str] = []
    for one in answered(fit):
        if has_surface(one):
            mine, words = _plan_surface(one, asked)
        elif silent := _beyond_line(one, asked):
            unanswered.append(silent)
            continue
        else:
            mine, words = _plan_line(one, asked)
        rows += mine
        notes += words
    if not rows:
        raise MisuseError("; ".join(unanswered))
    return Constrained(asked, tuple(rows), answered(fit)[0].confidence, tuple(notes + unanswered))


def _check(asked: dict[str, float]) -> dict[str, float]:
    """The request with its budget; MisuseError for a value or a combination that means nothing."""
    for name, value in asked.items():
        zero = name == "served_tokens" and value == 0
        if not (np.isfinite(value) and (value > 0 or zero)):
            raise MisuseError(f"{name}: {value:g} must be finite and above 0")
    if "flops" in asked and "loss" in asked:
        raise MisuseError("flops and loss are both given; give the budget or the target, one of the two")
    if not {"flops", "loss"} & set(asked):
        if "max_train_flops" not in asked:
            raise MisuseError("give a budget (flops, as in 1e22), a target (loss, as in 2.1) or a deadline")
        asked = {"flops": asked["max_train_flops"], **asked}
    for name, needs in (("serving_ratio", "served_tokens"), ("R_D", "unique_tokens"), ("R_N", "unique_tokens")):
        if name in asked and needs not in asked:
            raise MisuseError(f"{name} says something about {needs}, which is not given; give {needs} or leave it out")
    return asked


def _cases(asked: Mapping[str, float]) -> Iterator[_Case]:
    """Free, each constraint alone, all together."""
    served = {name: asked[name] for name in ("served_tokens", "serving_ratio") if name in asked}
    caps = {name: asked[name] for name in CAPS if name in asked and asked[name] != asked.get("flops")}
    U = asked.get("unique_tokens")
    yield _Case("free", Limits())
    for name, value in caps.items():
        yield _Case(name, Limits(**{name: value}))
    if U is not None:
        yield _Case("unique_tokens", Limits(), U)
        if "flops" in asked:
            yield _Case("free, on U", Limits(), U, fixed=True)
    if served:
        yield _Case("served_tokens", Limits(**served))
    if len(caps) + bool(served) + (U is not None) > 1:
        yield _Case("together", Limits(**caps, **served), U)


def _plan_surface(fit: Fit, asked: Mapping[str, float]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a fit with a surface."""
    law, drawn = surface(fit), drawn_surface(fit)
    decays, notes = _decays(fit, asked)
    free, free_drawn = (one and _solve(one, _Case("free", Limits()), asked, fit.rule, decays) for one in (law, drawn))
    rows = []
    for case in _cases(asked):
        plan = _solve(law, case, asked, fit.rule, decays, free)
        if not np.isfinite(plan.loss):
            raise VerdictError(_no_plan(case, asked))
        row = _numbers(law, case, plan, free, asked, fit.rule)
        samples = {}
        if drawn is not None:
            many = _solve(drawn, case, asked, fit.rule, decays, free_drawn)
            samples = _numbers(drawn, case, many, free_drawn, asked, fit.rule)
        rows.append(_row(fit, law, case, row, samples, decays))
        notes += _say_used_up(law, case, asked, fit.rule, decays, plan)
    notes += [words] if (words := say_overfitting(law, rows[-1]["N"], asked.get("unique_tokens", rows[-1]["D"]))) else []
    return rows, notes


def _decays(fit: Fit, asked: Mapping[str, float]) -> tuple[tuple[float, float], list[str]]:
    """R_D and R_N, and the assumption they are where nobody measured them."""
    own = find_law(fit.law)(**fit.params) if fit.law == "repetition" else MUENNIGHOFF_2023
    decays = tuple(asked.get(name, getattr(own, name)) for name in ("R_D", "R_N"))
    assumed = [name for name in ("R_D", "R_N") if name not in asked and fit.law != "repetition"]
    if "unique_tokens" not in asked or not assumed:
        return decays, []  # type: ignore[return-value]
    words = (f"{' and '.join(assumed)} are an assumption: R_D = {decays[0]:.4g}, R_N = {decays[1]:.4g} epochs from "
             "Muennighoff et al. 2023 (C4), where R_D is bounded from below only; give your own")  # fmt: skip
    return decays, [words]  # type: ignore[return-value]


def _solve(
    law: Law, case: _Case, asked: Mapping[str, float], rule: FlopRule, decays: tuple[float, float], free: Any = None
) -> Optimum:
    """The plan of a case, for a law or for its rounds."""
    one = law if case.U is None else repeat_data(law, case.U, *decays)
    if case.fixed:
        return Optimum(free.N, free.D, one.loss(free.N, free.D))
    if "flops" in asked:
        return lowest_loss(one, asked["flops"], case.limits, rule)
    target = asked["loss"]
    if case.limits == Limits() and not isinstance(one, Repeated):
        with np.errstate(over="ignore", invalid="ignore"):
            return law.optimum(_finite(law.frontier(rule).compute(target)), rule)
    return lowest_spend(one, target, case.limits, rule)


def _finite(C: Any) -> Any:
    return np.where(np.isfinite(C), C, np.nan)


def _numbers(
    law: Law, case: _Case, plan: Optimum, free: Optimum, asked: Mapping[str, float], rule: FlopRule
) -> dict[str, Any]:
    """What a plan costs, beside the free one; scalars or rounds."""
    serving = Limits(served_tokens=asked.get("served_tokens", 0.0), serving_ratio=asked.get("serving_ratio", 1.0))
    C_train, C_free = rule.flops(plan.N, plan.D), rule.flops(free.N, free.D)
    needed = law.frontier(rule).compute(plan.loss) if "flops" in asked else C_free
    spent = asked.get("flops", C_train)
    lifetime = serving.lifetime_flops(plan.N, plan.D, rule)
    return {"N": plan.N, "D": plan.D, "loss": plan.loss, "C_train": C_train, "C_lifetime": lifetime,
            "loss_cost": _beyond_rounding(plan.loss - free.loss), "compute_factor": spent / needed,
            "lifetime_factor": lifetime / serving.lifetime_flops(free.N, free.D, rule)}  # fmt: skip


def _beyond_rounding(cost: Any) -> Any:
    return np.where(np.abs(cost) < ROUNDING, 0.0, cost)


def _row(
    fit: Fit, law: Law, case: _Case, row: Mapping[str, Any], samples: Mapping[str, Any], decays: tuple[float, float]
) -> dict[str, Any]:
    numbers = {name: float(value) for name, value in row.items()}
    if case.name == "free":  # both by definition; the closed form inverts itself to rounding only
        numbers |= {"loss_cost": 0.0, "compute_factor": 1.0}
    return {
        "method": fit.method, "constraint": case.name, **numbers, "tokens_per_param": numbers["D"] / numbers["N"],
        "epochs": None if case.U is None else numbers["D"] / min(case.U, numbers["D"]),
        "binds": ", ".join(_binding(law, case, numbers, decays)),
        "intervals": {
            name: list(percentile_interval(np.asarray(samples[name], float), fit.confidence))
            for name in DRAWN if name in samples and np.ndim(samples[name])
        },
    }  # fmt: skip


def _binding(law: Law, case: _Case, row: Mapping[str, float], decays: tuple[float, float]) -> Iterator[str]:
    """The constraints of a case that its plan stands at."""
    for name, value in zip(CAPS, (row["N"], row["D"], row["C_train"]), strict=True):
        if value > getattr(case.limits, name) * (1 - AT_CAP):
            yield name
    if case.U is not None:
        decayed = row["N"] > float(repeat_data(law, case.U, *decays).size)
        if decayed or row["D"] > case.U * (1 + AT_CAP):
            yield "unique_tokens"
    if case.limits.served_tokens:
        yield "served_tokens"


def _no_plan(case: _Case, asked: Mapping[str, float]) -> str:
    if "loss" in asked:
        what = "any compute" if case.name == "free" else f"{case.name} as asked"
        return f"loss {asked['loss']:g}: no plan reaches it under {what}; ask for a higher loss or lift a constraint"
    return f"flops {asked['flops']:g}: no plan fits under {case.name} as asked; give more FLOPs or lift a constraint"


def _say_used_up(
    law: Law, case: _Case, asked: Mapping[str, float], rule: FlopRule, decays: tuple[float, float], plan: Optimum
) -> list[str]:
    """A word where the unique data, not the compute, set the loss."""
    if case.U is None or case.fixed or "flops" not in asked:
        return []
    more = _solve(law, case, {**asked, "flops": 2 * asked["flops"]}, rule, decays)
    gain = 1 - float(more.loss) / float(plan.loss)
    if gain > USED_UP:
        return []
    enough = lowest_spend(repeat_data(law, case.U, *decays), float(plan.loss) * (1 + USED_UP), case.limits, rule)
    return [f"{case.name}: {case.U:.3g} unique tokens are used up: twice the compute lowers the loss by {gain:.0e}, and "
            f"{rule.flops(enough.N, enough.D):.3g} FLOPs (N {format_count(enough.N)}, D {format_count(enough.D)}) come "
            f"within {USED_UP:.2%} of it"]  # fmt: skip


def say_overfitting(law: Law, N: float, tokens: float) -> str | None:
    """Kaplan et al.'s bound D >= Dc (N/Nc)^(alphaN/alphaD) / (1.02^(1/alphaD) - 1), with the fitted constants."""
    if not isinstance(law, Kaplan):
        return None
    bound = float(law.tokens_without_overfitting(N))
    verdict = "met" if tokens >= bound else "not met"
    return (f"overfitting stays below 2% from {format_count(bound)} unique tokens on at {format_count(N)} parameters "
            f"(Kaplan et al. 2020, eq. 4.4, fitted constants): {verdict} by {format_count(tokens)}")  # fmt: skip


def _beyond_line(fit: Fit, asked: Mapping[str, float]) -> str:
    """Why an isoflop fit cannot answer; empty where it can."""
    beyond = [name for name in ("loss", "unique_tokens", "served_tokens") if name in asked]
    if not beyond:
        return ""
    return (f"{fit.method}: {', '.join(beyond)} needs the loss at any N and D, which this fit does not have; "
            "fit with --method parametric")  # fmt: skip


def _plan_line(fit: Fit, asked: Mapping[str, float]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a fit that knows lines of constant C only: caps move the size along one."""
    valley, notes = measured_valley(fit)
    drawn = fit.sample_optimum(asked["flops"]) if len(next(iter(fit.draws.values()), ())) > 1 else None
    free = valley.best(asked["flops"])
    rows = []
    for case in _cases(asked):
        low, high, C = _line_bounds(case.limits, asked["flops"], fit.rule)
        if low > high:
            raise VerdictError(f"{fit.method} fit: {case.name} leaves FLOPs unspent at {C:.3g}, where only a surface "
                               "knows the loss; fit with --method parametric")  # fmt: skip
        row = _numbers_on_line(valley, free, low, high, C, asked["flops"])
        samples = {"N": np.clip(drawn.N, low, high)} if drawn is not None and C == asked["flops"] else {}
        rows.append(_row(fit, Law(), case, row, samples, (1.0, 1.0)))
    return rows, notes


def _line_bounds(limits: Limits, flops: float, rule: FlopRule) -> tuple[float, float, float]:
    """Smallest and largest size on the line of the C that may be spent, and that C."""
    C = min(flops, limits.max_train_flops)
    return float(rule.params(C, limits.max_tokens)) if np.isfinite(limits.max_tokens) else 0.0, limits.max_params, C


def _numbers_on_line(
    valley: Valley, free: Optimum, low: float, high: float, C: float, flops: float
) -> dict[str, Any]:
    best = valley.best(C)
    N = np.clip(best.N, low, high)
    D, loss = valley.rule.tokens(C, N), valley.across(C, np.log(N / best.N))
    return {"N": N, "D": D, "loss": loss, "C_train": C, "C_lifetime": C, "loss_cost": _beyond_rounding(loss - free.loss),
            "compute_factor": flops / valley.compute(loss), "lifetime_factor": C / flops}  # fmt: skip
