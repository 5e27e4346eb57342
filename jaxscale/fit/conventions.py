"""What the counting alone does to the exponents: every N in the table times every way to count C.

Kaplan et al. 2020 count non-embedding parameters, Hoffmann et al. 2022 all of them; C is measured, or 6 N D
with the N at hand. The same runs then give another a: .835 against .706 in Porian et al. 2024. Budgets stay
the groups that were trained; where C is recomputed their runs differ in C, and `spread` says by how much.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.fit.cells import SPREAD, gather_cells
from jaxscale.fit.isoflop import fit_isoflop
from jaxscale.fit.result import Fit, without_nan
from jaxscale.format import format_interval, format_number, format_percent
from jaxscale.runs import Observations
from jaxscale.source import COUNTS, as_observations, recount
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Conventions", "compare_conventions"]


@dataclass(frozen=True)
class Conventions:
    """Rows: count, flops_rule, spread, budgets, a, a_interval, b, b_interval, reason (why there is no answer)."""

    rows: tuple[dict[str, Any], ...]
    confidence: float
    schema: str = "jaxscale.conventions/1"

    def to_json(self) -> str:
        """The table as JSON, schema jaxscale.conventions/1."""
        plain = {"schema": self.schema, "confidence": self.confidence, "rows": list(self.rows)}
        return json.dumps(without_nan(plain), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a convention; intervals as columns a_low, a_high, b_low, b_high."""
        import pandas as pd

        rows = []
        for row in self.rows:
            ends = {
                f"{name}_{end}": row[f"{name}_interval"][i] for name in "ab" for i, end in enumerate(("low", "high"))
            }
            rows.append({name: value for name, value in row.items() if not name.endswith("_interval")} | ends)
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        header = ("N is", "C is", "C differs by", "budgets", "a", "interval", "b", "interval", "")
        rows = [
            (row["count"], row["flops_rule"], format_percent(row["spread"]), row["budgets"],
             row["a"], format_interval(row["a_interval"], format_number),
             row["b"], format_interval(row["b_interval"], format_number), row["reason"] or "")
            for row in self.rows
        ]  # fmt: skip
        found = [row["a"] for row in self.rows if row["a"] is not None]
        title = f"isoflop exponents by convention, {self.confidence:.0%} intervals"
        words = f"the counting alone moves a from {min(found):.3f} to {max(found):.3f}" if len(found) > 1 else ""
        return "\n".join(part for part in (render_table(title, header, rows), words) if part)


def compare_conventions(
    source: Observations | pd.DataFrame, *, bootstrap: int = 200, confidence: float = 0.95, seed: int = 0
) -> Conventions:
    """The isoflop exponents of N_opt ~ C^a and D_opt ~ C^b under every convention that the table allows.

    N, N_non_embedding and N_total where present, each with C as given and with 6 N D. The observations should
    not be recounted yet. A convention without an answer has None and its reason.
    """
    import pandas as pd

    obs = as_observations(source)
    rows = []
    for count in (
        name for name in COUNTS if name in obs.frame and (pd.to_numeric(obs.frame[name], errors="coerce") > 0).any()
    ):
        for flops_rule in ("given", "6ND"):
            names = {"count": count, "flops_rule": flops_rule}
            recounted = recount(obs, **names)
            fit = fit_isoflop(recounted, bootstrap=bootstrap, confidence=confidence, seed=seed)
            rows.append({**names, **_describe(fit, gather_cells(recounted).spread)})
    return Conventions(tuple(rows), confidence)


def _describe(fit: Fit, spread: float) -> dict[str, Any]:
    usable = sum(budget.status == "ok" for budget in fit.budgets or ())
    row: dict[str, Any] = {"spread": float(spread) if spread > 1e-9 else 0.0, "budgets": usable, "reason": fit.verdict}
    for name, key in (("a", "N"), ("b", "D")):
        found = fit.exponents[key] if fit.exponents else None
        row |= {name: found.value if found else None, f"{name}_interval": found.interval if found else (None, None)}
    if row["reason"] is None and np.isfinite(spread) and spread > SPREAD:
        row["reason"] = "budgets are the groups trained"
    return row
