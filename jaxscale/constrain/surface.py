"""Constrained plans of a fit that knows the loss at any N and D, and of its bootstrap rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.allocate import Limits, Repeated, lowest_loss, lowest_spend, repeat_data
from jaxscale.constrain.cases import AT_CAP, FREE, Case, binding_caps, list_cases, make_row
from jaxscale.errors import VerdictError
from jaxscale.fit.result import Fit
from jaxscale.fitted import drawn_surface, surface
from jaxscale.format import format_count
from jaxscale.laws import MUENNIGHOFF_2023, FlopRule, Kaplan, Law, Optimum

__all__ = ["plan_surface", "say_overfitting"]

ENDLESS_FLOPS = 1e60
"""A compute nobody will spend."""
USED_UP = 1e-4
"""Relative gain in loss from twice the compute below which the unique data count as used up."""


@dataclass(frozen=True)
class _Problem:
    """A law (or its rounds), how FLOPs count, what is asked, and how repetition decays."""

    law: Law
    rule: FlopRule
    asked: Mapping[str, float]
    R_D: Any
    R_N: Any

    def on_data(self, case: Case) -> Law:
        """The law on the case's data."""
        return self.law if case.U is None else repeat_data(self.law, case.U, self.R_D, self.R_N)

    def solve(self, case: Case, free: Optimum | None = None) -> Optimum:
        """The plan of a case; NaN where there is none."""
        law = self.on_data(case)
        if case.fixed and free is not None:
            return Optimum(free.N, free.D, law.loss(free.N, free.D))
        if "flops" in self.asked:
            return lowest_loss(law, self.asked["flops"], case.limits, self.rule)
        if case.limits != Limits() or isinstance(law, Repeated):
            return lowest_spend(law, self.asked["loss"], case.limits, self.rule)
        C = law.frontier(self.rule).compute(self.asked["loss"])
        return law.optimum(np.where(np.isfinite(C), C, np.nan), self.rule)

    def numbers(self, plan: Optimum, free: Optimum) -> dict[str, Any]:
        """What a plan costs, beside the free one."""
        serving = Limits(
            served_tokens=self.asked.get("served_tokens", 0.0), serving_ratio=self.asked.get("serving_ratio", 1.0)
        )
        C_train = self.rule.flops(plan.N, plan.D)
        if plan is free:
            factor = np.ones(np.shape(plan.loss))
        elif "flops" in self.asked:
            factor = self.asked["flops"] / self.law.frontier(self.rule).compute(plan.loss)
        else:
            factor = C_train / self.rule.flops(free.N, free.D)
        lifetime = serving.lifetime_flops(plan.N, plan.D, self.rule)
        return {"N": plan.N, "D": plan.D, "loss": plan.loss, "C_train": C_train, "C_lifetime": lifetime,
                "loss_cost": plan.loss - free.loss, "compute_factor": factor,
                "lifetime_factor": lifetime / serving.lifetime_flops(free.N, free.D, self.rule)}  # fmt: skip

    def binding(self, case: Case, plan: Optimum) -> list[str]:
        """The constraints of a case that its plan stands at."""
        N, D = float(plan.N), float(plan.D)
        binds = binding_caps(case, N, D, float(self.rule.flops(N, D)))
        law = self.on_data(case)
        if isinstance(law, Repeated):
            repeats, decays = case.U is not None and case.U * (1 + AT_CAP) < D, float(law.size) < N
            binds += ["unique_tokens"] * (repeats or decays)
        return binds + ["served_tokens"] * self._serving_matters(case, plan, binds)

    def _serving_matters(self, case: Case, plan: Optimum, binds: list[str]) -> bool:
        """Whether the plan would be another without tokens to serve: not where caps alone fix it."""
        if not case.limits.served_tokens:
            return False
        if "flops" not in self.asked:
            return "max_params" not in binds
        lifetime = float(case.limits.lifetime_flops(plan.N, plan.D, self.rule))
        return lifetime > self.asked["flops"] * (1 - AT_CAP)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # rounds without a plan are NaN and counted
def plan_surface(fit: Fit, asked: Mapping[str, float]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of every case, and what to know of them."""
    problem, drawn = _pose(fit, asked), _pose_rounds(fit, asked)
    free = problem.solve(FREE)
    free_drawn = drawn.solve(FREE) if drawn is not None else free
    rows, notes = [], _say_assumed(fit, problem)
    for case in list_cases(asked):
        plan = free if case is FREE else problem.solve(case, free)
        if not np.isfinite(plan.loss):
            raise VerdictError(_no_plan(problem, case))
        samples: dict[str, Any] = {}
        if drawn is not None:
            many = free_drawn if case is FREE else drawn.solve(case, free_drawn)
            samples = drawn.numbers(many, free_drawn)
            notes += _say_unreached(case, many)
        rows.append(make_row(fit, case, problem.numbers(plan, free), samples, problem.binding(case, plan), asked))
        notes += _say_used_up(problem, case, plan)
    N, tokens = rows[-1]["N"], asked.get("unique_tokens", rows[-1]["D"])
    return rows, notes + ([words] if (words := say_overfitting(problem.law, N, tokens)) else [])


def _pose(fit: Fit, asked: Mapping[str, float]) -> _Problem:
    decays = {name: asked.get(name, _own_decay(fit, name)) for name in ("R_D", "R_N")}
    return _Problem(surface(fit), fit.rule, asked, **decays)


def _own_decay(fit: Fit, name: str) -> float:
    return float(fit.params[name]) if fit.law == "repetition" else float(getattr(MUENNIGHOFF_2023, name))


def _pose_rounds(fit: Fit, asked: Mapping[str, float]) -> _Problem | None:
    """The same for every bootstrap round; decays that the fit measured vary with the rounds."""
    law = drawn_surface(fit)
    if law is None:
        return None
    decays = {
        name: np.asarray(fit.draws[name]) if name in fit.draws and name not in asked
        else asked.get(name, _own_decay(fit, name)) for name in ("R_D", "R_N")
    }  # fmt: skip
    return _Problem(law, fit.rule, asked, **decays)


def _no_plan(problem: _Problem, case: Case) -> str:
    """Why there is none, and the lowest loss there is."""
    if "flops" in problem.asked:
        return (f"flops {problem.asked['flops']:g}: no plan fits under {case.name} as asked; "
                "give more FLOPs or lift a constraint")  # fmt: skip
    what = "at any compute" if case is FREE else f"under {case.name} as asked"
    lowest = float(lowest_loss(problem.on_data(case), ENDLESS_FLOPS, case.limits, problem.rule).loss)
    return (f"loss {problem.asked['loss']:g}: no plan reaches it {what}, the lowest is {lowest:.4g}; "
            "ask for a higher loss or lift a constraint")  # fmt: skip


def _say_assumed(fit: Fit, problem: _Problem) -> list[str]:
    """The decays, where nobody measured them."""
    assumed = [name for name in ("R_D", "R_N") if name not in problem.asked]
    if "unique_tokens" not in problem.asked or fit.law == "repetition" or not assumed:
        return []
    values = ", ".join(f"{name} = {getattr(problem, name):.4g}" for name in assumed)
    return [f"{values}: assumed from Muennighoff et al. 2023 (C4), where R_D is bounded from below only; "
            "give your own"]  # fmt: skip


def _say_unreached(case: Case, drawn: Optimum) -> list[str]:
    """A word where some rounds have no plan."""
    share = float(np.mean(~np.isfinite(drawn.loss)))
    if not share:
        return []
    return [f"{case.name}: no plan in {share:.1%} of the bootstrap rounds, the intervals are of the rest"]


def _say_used_up(problem: _Problem, case: Case, plan: Optimum) -> list[str]:
    """A word where the unique data, not the compute, set the loss."""
    law = problem.on_data(case)
    if case.fixed or "flops" not in problem.asked or not isinstance(law, Repeated):
        return []
    more = lowest_loss(law, 2 * problem.asked["flops"], case.limits, problem.rule)
    gain = 1 - float(more.loss) / float(plan.loss)
    if gain > USED_UP:
        return []
    enough = lowest_spend(law, float(plan.loss) * (1 + USED_UP), case.limits, problem.rule)
    return [f"{case.name}: {case.U:.3g} unique tokens are used up: twice the compute lowers the loss by {gain:.0e}, "
            f"and {problem.rule.flops(enough.N, enough.D):.3g} FLOPs (N {format_count(float(enough.N))}, "
            f"D {format_count(float(enough.D))}) come within {USED_UP:.2%} of it"]  # fmt: skip


def say_overfitting(law: Law, N: float, tokens: float) -> str | None:
    """Kaplan et al.'s bound on unique tokens with the fitted constants; None for any other law.

    D >= Dc (N/Nc)^(alphaN/alphaD) / (1.02^(1/alphaD) - 1), with the paper's constants 5e3 N^.74 (eq. 4.4).
    """
    if not isinstance(law, Kaplan):
        return None
    bound = float(law.tokens_without_overfitting(N))
    verdict = "met" if tokens >= bound else "not met"
    return (f"overfitting stays below 2% from {format_count(bound)} unique tokens on at {format_count(N)} parameters "
            f"(Kaplan et al. 2020, eq. 4.4, fitted constants): {verdict} by {format_count(tokens)}")  # fmt: skip
