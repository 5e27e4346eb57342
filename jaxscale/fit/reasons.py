"""Why two approaches may disagree: what their own diagnostics say, each with the number behind it.

The parametric law's lack of fit is tested by F = s_fit^2 / s_noise^2: its residual variance against that
between seeds of one cell (pure error), or, where no seed repeats, against that about the local curves of the
budgets. Degrees of freedom are counted from the fits: cells - parameters, and rows - cells for the seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxscale.fit.resample import f_tail
from jaxscale.format import format_interval, format_number

if TYPE_CHECKING:
    from jaxscale.fit.result import Fit

__all__ = ["find_reasons"]

SIGNIFICANCE = 0.05
FEW_BUDGETS = 3
"""A line through this many minima or fewer has at most one degree of freedom to be tested with."""


def find_reasons(one: Fit, other: Fit) -> list[str]:
    """Sentences, gravest first; one that says so where no diagnostic explains the difference."""
    rules: tuple[Callable[[Fit, Fit], Iterator[str]], ...] = (
        _other_rows, _few_budgets, _lack_of_fit, _bent_lines, _lopsided, _sensitive, _other_E, _collinear,
    )  # fmt: skip
    found = [words for rule in rules for words in [*rule(one, other), *rule(other, one)]]
    return list(dict.fromkeys(found)) or ["no diagnostic of either fit tells; one of the two forms may be wrong"]


def _other_rows(fit: Fit, other: Fit) -> Iterator[str]:
    left_out = [b for b in fit.budgets or () if b.status != "ok"]
    if left_out:
        names = ", ".join(f"{b.C:.3g}" for b in left_out[:4]) + (", ..." if len(left_out) > 4 else "")
        yield f"different rows: {fit.method} leaves out {len(left_out)} of {len(fit.budgets or ())} budgets ({names})"
    mine, theirs = fit.source.get("rows_used"), other.source.get("rows_used")
    if mine is not None and theirs is not None and mine < theirs:
        yield f"different rows: {fit.method} used {mine}, {other.method} {theirs}"


def _few_budgets(fit: Fit, other: Fit) -> Iterator[str]:
    usable = sum(b.status == "ok" for b in fit.budgets or ())
    if fit.budgets and usable <= FEW_BUDGETS:
        yield f"{fit.method} stands on {usable} budgets: too few to test that N_opt is a power law at all"


def _lack_of_fit(fit: Fit, other: Fit) -> Iterator[str]:
    """Residuals of the law over (N, D) beyond what noise explains."""
    cells, std = fit.diagnostics.get("residuals"), fit.noise.get("residual_std")
    if not cells or not std:
        return
    dof = len(cells) - len(fit.params)
    noise, noise_dof, named = fit.noise.get("seed_std"), fit.source.get("rows_used", 0) - len(cells), "between seeds"
    if not noise:
        noise, noise_dof = other.noise.get("residual_std"), _curve_dof(other)
        named = "about the local curves of the budgets"
    if not noise or dof < 1 or noise_dof < 1:
        return
    p = f_tail((std / noise) ** 2, dof, noise_dof)
    if p < SIGNIFICANCE:
        yield (f"{fit.method}: the law {fit.law} misses the cells by {std:.2%} where the noise {named} is "
               f"{noise:.2%} (F test, p = {p:.2g}): the form does not hold over all cells")  # fmt: skip


def _curve_dof(fit: Fit) -> float:
    """Degrees of freedom left by a parabola over the window of every usable budget, about."""
    window = fit.diagnostics.get("window")
    if not window:
        return 0
    return float(sum(max(min(window, b.points) - 3, 0) for b in fit.budgets or () if b.status == "ok"))


def _bent_lines(fit: Fit, other: Fit) -> Iterator[str]:
    worst = max((fit.diagnostics.get("line_misfit_factor") or {}).values(), default=1.0)
    if worst > 1:
        yield f"{fit.method}: a straight line in logs misses its minima {worst:.2g} times beyond their noise"


def _lopsided(fit: Fit, other: Fit) -> Iterator[str]:
    tried = fit.diagnostics.get("windows_tried") or []
    if tried and tried[0]["p_value"] < SIGNIFICANCE:
        yield (f"{fit.method}: the curves are lopsided (p = {tried[0]['p_value']:.2g} for a parabola over "
               f"{tried[0]['window']} sizes), so their minima depend on the window")  # fmt: skip


def _sensitive(fit: Fit, other: Fit) -> Iterator[str]:
    """Exponents under other readings against the interval; the last reading is the lowest run."""
    read = [row["N"] for row in (fit.diagnostics.get("sensitivity") or [])[:-1] if row["N"] is not None]
    interval = fit.exponents["N"].interval if fit.exponents else (None, None)
    if interval[0] is None or interval[1] is None or not read:
        return
    if min(read) < interval[0] or max(read) > interval[1]:
        yield (f"{fit.method}: a is {min(read):.3g} to {max(read):.3g} by how the minima are read, outside its "
               f"interval {format_interval(interval, format_number)}")  # fmt: skip


def _other_E(fit: Fit, other: Fit) -> Iterator[str]:
    fixed, free = _irreducible(fit), _irreducible(other)
    if fixed == 0 and free:
        yield f"E is 0 in the {fit.method} fit and {free:.4g} in the {other.method} fit: the losses far out part"


def _irreducible(fit: Fit) -> float | None:
    E = {**fit.params, **(fit.loss_law or {})}.get("E")
    return None if E is None else float(np.round(E, 9))


def _collinear(fit: Fit, other: Fit) -> Iterator[str]:
    together = (fit.diagnostics.get("identifiability") or {}).get("correlation_alpha_beta")
    if together is not None and abs(together) > 0.95:
        yield f"{fit.method}: alpha and beta are collinear ({together:.2f}), so a rests on their ratio alone"
