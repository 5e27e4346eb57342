"""Fit -> the best plan under constraints, and what each of them costs against the free optimum.

A budget (`flops`) or a target (`loss`), and any of: parameters capped, tokens capped, U unique tokens that may
be repeated (Muennighoff et al. 2023), training FLOPs capped by a deadline, T tokens to serve (Sardana et al.
2024). The plan is found free, under each constraint alone, and under all together; allocate.py has the
equations, surface.py and line.py what a fit with and without L(N, D) can answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxscale.constrain.line import plan_line, refuse_line
from jaxscale.constrain.result import Constrained
from jaxscale.constrain.surface import plan_surface, say_overfitting
from jaxscale.errors import MisuseError
from jaxscale.fit.result import Fit, Fits
from jaxscale.fitted import answered, has_surface

__all__ = ["Constrained", "constrain_optimum", "say_overfitting"]

NEEDS = (("serving_ratio", "served_tokens"), ("R_D", "unique_tokens"), ("R_N", "unique_tokens"))


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
    price_per_flop: float | None = None,
) -> Constrained:
    """The best plan for `flops` or for a target `loss`, free and constrained.

    flops: FLOPs to spend, on training and on serving `served_tokens`. loss: nats per token, reached at the lowest
    lifetime FLOPs. max_params, max_tokens, max_train_flops: caps; the last alone is also the budget.
    unique_tokens: repeated at will, with the decays R_D (epochs) and R_N of Muennighoff et al.: the fit's own for
    law repetition, else the published ones, an assumption that the notes name. serving_ratio: price of a served
    FLOP in training FLOPs, 1 unless given. price_per_flop: of training, adds `cost_lifetime` in its currency.
    MisuseError for a request that means nothing, VerdictError where no plan exists.
    """
    given = {"flops": flops, "loss": loss, "max_params": max_params, "max_tokens": max_tokens,
             "unique_tokens": unique_tokens, "max_train_flops": max_train_flops, "served_tokens": served_tokens,
             "serving_ratio": serving_ratio, "R_D": R_D, "R_N": R_N, "price_per_flop": price_per_flop}  # fmt: skip
    asked = _check({name: float(value) for name, value in given.items() if value is not None})
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    silent: list[str] = []
    for one in answered(fit):
        if not has_surface(one) and (reason := refuse_line(one, asked)):
            silent.append(reason)
            continue
        mine, words = plan_surface(one, asked) if has_surface(one) else plan_line(one, asked)
        rows += mine
        notes += words
    if not rows:
        raise MisuseError("; ".join(silent))
    return Constrained(asked, tuple(rows), answered(fit)[0].confidence, tuple(notes + silent))


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
    for name, needs in NEEDS:
        if name in asked and needs not in asked:
            raise MisuseError(f"{name} says something about {needs}, which is not given; give {needs} or leave it out")
    return asked
