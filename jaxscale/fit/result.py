"""What a fit is: the FIT.json contract as one value that prints as a table."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxscale.runs import from_plain, read_json

if TYPE_CHECKING:
    pass

__all__ = ["Budget", "Estimate", "Fit"]

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


@dataclass(frozen=True)
class Fit:
    """A fitted law with everything needed to judge it; field for field the FIT.json schema.

    N_opt(C) = coefficients["N"] * C ** exponents["N"], the same for D; both None where a law has none.
    `draws` holds the bootstrap replicates, one dict of equal-length lists (C in FLOPs, loss in nats),
    so that a forecast can carry the fit's uncertainty without the observations.
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

    def to_json(self) -> str:
        """The fit as JSON, schema jaxscale.fit/1; NaN and infinities become null."""
        plain = asdict(self)
        return json.dumps({"schema": plain.pop("schema"), **_without_nan(plain)}, indent=1)

    @classmethod
    def from_json(cls, path: str | Path) -> Fit:
        """Read a FIT.json; MisuseError names what is missing or unknown."""
        return from_plain(read_json(Path(path)), cls)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
