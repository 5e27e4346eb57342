"""Which plans are compared: free, under each constraint alone, under all together; and which constraints bind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.allocate import Limits
from jaxscale.fit.result import Fit
from jaxscale.fit.summary import percentile_interval

__all__ = ["AT_CAP", "CAPS", "FREE", "Case", "binding_caps", "list_cases", "make_row"]

NOTHING = Limits()
CAPS = ("max_params", "max_tokens", "max_train_flops")
AT_CAP = 1e-6
"""Relative distance at which a plan counts as standing at a cap."""
ROUNDING = 1e-12
"""Nats below which a cost is the arithmetic's."""
DRAWN = ("N", "D", "loss", "C_train", "C_lifetime", "compute_factor")


@dataclass(frozen=True)
class Case:
    """A line of the table: its name, its limits, U where data repeat.

    `fixed`: the free plan itself, read on U unique tokens.
    """

    name: str
    limits: Limits = NOTHING
    U: float | None = None
    fixed: bool = False


FREE = Case("free")


def list_cases(asked: Mapping[str, float]) -> Iterator[Case]:
    """Free, each constraint alone, all together where there are several."""
    served = {name: asked[name] for name in ("served_tokens", "serving_ratio") if name in asked}
    caps = {name: asked[name] for name in CAPS if name in asked and asked[name] != asked.get("flops")}
    U = asked.get("unique_tokens")
    yield FREE
    for name, value in caps.items():
        yield Case(name, Limits(**{name: value}))
    if U is not None:
        yield Case("unique_tokens", U=U)
        if "flops" in asked:
            yield Case("free, on U", U=U, fixed=True)
    if served:
        yield Case("served_tokens", Limits(**served))
    if len(caps) + bool(served) + (U is not None) > 1:
        yield Case("together", Limits(**caps, **served), U)


def binding_caps(case: Case, N: float, D: float, C_train: float) -> list[str]:
    """The caps of a case that a plan stands at."""
    at = zip(CAPS, (N, D, C_train), strict=True)
    return [name for name, value in at if value > getattr(case.limits, name) * (1 - AT_CAP)]


def make_row(
    fit: Fit, case: Case, numbers: Mapping[str, Any], samples: Mapping[str, Any], binds: list[str],
    asked: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """A flat record of plain numbers, with the intervals of the quantities that have rounds."""
    plain = {name: float(value) for name, value in numbers.items()}
    if abs(plain["loss_cost"]) < ROUNDING:
        plain["loss_cost"] = 0.0
    epochs = None if case.U is None else plain["D"] / min(case.U, plain["D"])
    return {
        "method": fit.method, "constraint": case.name, **plain, "tokens_per_param": plain["D"] / plain["N"],
        "epochs": epochs,
        "cost_lifetime": plain["C_lifetime"] * asked["price_per_flop"] if "price_per_flop" in asked else None,
        "binds": ", ".join(binds),
        "intervals": {
            name: list(percentile_interval(np.asarray(samples[name], float), fit.confidence))
            for name in DRAWN if np.ndim(samples.get(name, 0.0))
        },
    }  # fmt: skip
