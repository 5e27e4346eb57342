"""What looks wrong with a table before any law is fitted to it, in words; nothing is ever corrected in silence.

units     C / (6 N D) is 1 within a factor of a few for every transformer; D / N lies between .1 and 10^4
losses    above ln(10^6) nats per token no model is worse than chance: a perplexity
budgets   runs of one budget share their C; runs counted twice are counted once
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from jaxscale.fit.cells import Cells, assign_budgets, grid_rows, merge_repeats
from jaxscale.fit.result import Fit
from jaxscale.fit.schedules import annotate_family, suspect_families
from jaxscale.fit.tuned import annotate_tuning
from jaxscale.flops import PF_DAY_FLOPS
from jaxscale.runs import Observations

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MIXED", "annotate_fit", "contradict_budgets", "describe_shared_error", "find_suspicions",
           "recomputed_flops", "shared_error"]  # fmt: skip

MIXED = 3.0
"""Runs of one budget that differ more than this in C are no IsoFLOP curve; conventions alone differ less."""
CHANCE = float(np.log(1e6))
"""Nats per token of a uniform guess over a vocabulary of a million."""
PLAUSIBLE_D_N = (0.1, 1e4)
ABSURD_D_N = (1e-3, 1e6)
PLAUSIBLE_C = (0.2, 5.0)
"""C over 6 N D: embeddings, attention and non-embedding counts stay inside."""
SMALLEST_N, LARGEST_N = 300.0, 1e11
"""The median size of a grid, parameters: between a toy and what nobody trains a grid of."""
MOST_WRONG = 2
"""Columns in other units at once that are a likelier guess than none."""
BIT_NAMES = ("bit", "bpb", "bpc", "bpt")
FACTORS = {
    "N": {1e6: "millions", 1e9: "billions", 1e3: "thousands"},
    "D": {1e9: "billions", 1e6: "millions", 1e12: "trillions", 1e3: "thousands"},
    "C": {PF_DAY_FLOPS: "PF-days", 1e18: "EFLOPs", 1e21: "ZFLOPs", 1e15: "PFLOPs", 1e12: "TFLOPs"},
}
"""Units that tables use, the commonest first."""


def find_suspicions(obs: Observations) -> list[str]:
    """Sentences about the table, the gravest first; empty where nothing is odd."""
    frame = obs.frame[grid_rows(obs.frame)]
    if frame.empty:
        return []
    unique, repeats = merge_repeats(frame)
    words = _suspect_units(*(unique[name].to_numpy(float) for name in ("N", "D", "C")))
    words += _suspect_losses(obs, unique["loss"].to_numpy(float)) + suspect_families(unique)
    if "budget" in unique and not recomputed_flops(obs):
        words += _suspect_labels(unique["budget"].to_numpy(), unique["C"].to_numpy(float))
        words += _suspect_mixture(unique)
    if repeats:
        rows = "1 row repeats a run" if repeats == 1 else f"{repeats} rows repeat runs"
        words.append(f"{rows} of the table (equal run_id, or N, D, C and loss equal to the last digit): each run is "
                     f"counted once, since counting it twice would shrink the intervals")  # fmt: skip
    return words


def annotate_fit(fit: Fit, obs: Observations) -> Fit:
    """The fit with the suspicions among its notes, or behind its verdict, each said once, families, tuning audit."""
    fit = annotate_family(annotate_tuning(fit, obs), obs.frame[grid_rows(obs.frame)])
    words = [word for word in find_suspicions(obs) if word not in fit.notes and word not in (fit.verdict or "")]
    if not words:
        return fit
    if fit.verdict:
        return replace(fit, diagnostics={**fit.diagnostics, "verdict": "; ".join([fit.verdict, *words])})
    return replace(fit, diagnostics={**fit.diagnostics, "notes": [*words, *fit.notes]})


def recomputed_flops(obs: Observations) -> bool:
    """Whether C was asked to be recounted: budgets then differ in C by that count, not by a mistake."""
    return (obs.source.get("conventions") or {}).get("flops_rule") == "6ND"


def contradict_budgets(obs: Observations, cells: Cells) -> str | None:
    """Why the budgets cannot be read as IsoFLOP curves; None where they can."""
    return None if not len(cells.budget_C) or recomputed_flops(obs) else _say_mixed(cells.spread)


def _say_mixed(spread: float) -> str | None:
    """What runs of one budget that differ in C by 1 + `spread` say of the budget column."""
    if spread + 1 <= MIXED:
        return None
    return (
        f"the budget column contradicts N and D: runs of one budget differ {spread + 1:.3g}-fold in C; "
        f"check the column, or leave it out so that budgets are found from C"
    )


def _suspect_units(N: np.ndarray, D: np.ndarray, C: np.ndarray) -> list[str]:
    """Columns that are probably in other units, or exchanged."""
    share, tokens = float(np.median(C / (6 * N * D))), float(np.median(D / N))
    odd_C = not PLAUSIBLE_C[0] < share < PLAUSIBLE_C[1]
    odd_D = not ABSURD_D_N[0] < tokens < ABSURD_D_N[1]
    odd_N = float(np.median(N)) < SMALLEST_N
    if not (odd_C or odd_D or odd_N):
        return _suspect_exchange(tokens)
    seen = [f"C is {share:.3g} times 6 N D"] * odd_C + [f"D / N is {tokens:.3g}"] * odd_D
    seen += [f"N is {np.median(N):.3g} parameters"] * odd_N
    guess = _guess_units(float(np.median(N)), share, tokens)
    if not guess and odd_C:
        guess = f"{_say_factor(share)}: check C, N and D, or let C be recomputed (flops rule 6ND)"
    return [f"units look wrong: in the median {' and '.join(seen)}; {guess or 'check N and D'}"]


def _suspect_exchange(tokens: float) -> list[str]:
    if tokens >= PLAUSIBLE_D_N[0]:
        return []
    return [f"in the median D / N is {tokens:.2g} tokens per parameter, far below the usual 1 to 100: "
            f"check that N and D are not exchanged"]  # fmt: skip


def _say_factor(share: float) -> str:
    """A power of a thousand between C and 6 N D, else that no usual unit explains it."""
    power = 3 * round(float(np.log10(share)) / 3)
    if power and abs(np.log10(share) - power) < 0.3:
        return f"C, or N or D, is off by a factor of 1e{abs(power)}"
    return "no usual unit explains it"


def _guess_units(N: float, share: float, tokens: float) -> str:
    """The fewest columns in other units that make the table plausible, in words; empty where none do."""
    found, computed = [], abs(share - 1) < 1e-9
    for n, d, c in product(*({1.0: "", **FACTORS[name]} for name in "NDC")):
        if computed and c != 1.0:
            continue  # C follows from N and D
        ratio = share if computed else share * c / n / d
        plausible = PLAUSIBLE_C[0] < ratio < PLAUSIBLE_C[1] and n * N > SMALLEST_N
        if plausible and PLAUSIBLE_D_N[0] < tokens * d / n < PLAUSIBLE_D_N[1]:
            factors = {name: by for name, by in zip("NDC", (n, d, c), strict=True) if by != 1.0}
            rank = sum(list(FACTORS[name]).index(by) for name, by in factors.items())
            if len(factors) <= MOST_WRONG and n * N < LARGEST_N:
                found.append((len(factors), rank, factors))
    if not found:
        return ""
    factors = min(found, key=lambda item: item[:2])[2]
    parts = [f"{name} is in {FACTORS[name][by]} (multiply by {by:.3g})" for name, by in factors.items()]
    return "probably " + " and ".join(parts) if parts else ""


def _suspect_losses(obs: Observations, loss: np.ndarray) -> list[str]:
    conventions = obs.source.get("conventions") or {}
    column = str((obs.source.get("columns") or {}).get("loss", "loss")).lower()
    if float(np.median(loss)) > CHANCE:
        return [f"the median loss is {np.median(loss):.3g}, above the {CHANCE:.3g} nats per token of a uniform guess "
                f"over a million tokens: probably a perplexity; give its logarithm"]  # fmt: skip
    if conventions.get("loss_unit") == "bits" or not any(mark in column for mark in BIT_NAMES):
        return []
    return [f"the loss column is called {column!r}: if it holds bits, give --loss-unit bits (exponents do not depend "
            f"on it, E and A do); it was read as nats"]  # fmt: skip


def _suspect_labels(labels: np.ndarray, C: np.ndarray) -> list[str]:
    """Budget labels that are FLOPs themselves, and other ones than C."""
    try:
        given = labels.astype(float)
    except (TypeError, ValueError):
        return []
    if not np.isfinite(given).all() or given.min() < 1e9:
        return []
    ratio = C / given
    worst = ratio[np.argmax(np.abs(np.log(ratio)))]
    if 0.5 < worst < 2:
        return []
    return [f"the budget column contradicts C: C is {worst:.3g} times its budget's label in the worst row; "
            f"the fit goes by C"]  # fmt: skip


def _suspect_mixture(unique: pd.DataFrame) -> list[str]:
    """Budgets, where every row has one, whose runs differ far in C."""
    if not unique["budget"].notna().all():
        return []
    said = _say_mixed(assign_budgets(unique)[1])
    return [said] if said else []


def shared_error(obs: Observations) -> float | None:
    """Relative error that every loss shares through a fixed validation set; None where the table has none.

    The median of loss_std_error / loss. It moves all losses together: exponents, N_opt and D_opt do not feel
    it, the absolute loss does.
    """
    if "loss_std_error" not in obs.frame:
        return None
    frame = obs.frame[grid_rows(obs.frame)]
    ratio = (frame["loss_std_error"].astype(float) / frame["loss"]).to_numpy()
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    return float(np.median(ratio)) if len(ratio) else None


def describe_shared_error(error: float) -> str:
    """The note that goes with `shared_error`."""
    return (
        f"the validation set gives every loss a shared error of {error:.2%}: it cancels in the exponents and "
        f"optima, and is in the intervals of the loss"
    )
