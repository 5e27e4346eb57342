"""Well-known models as their papers state them: N, D, the FLOPs stated and how they were counted.

Beside each its tokens per parameter, 6 N D, and where a fit puts the optimum for those FLOPs. N is what the
paper calls the model's parameters (for a mixture of experts those active for a token); other tokenizers and
other data mean that a fit's optimum is a comparison, no verdict.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from jaxscale.fit.result import Fit, Fits, without_nan
from jaxscale.fitted import answered, has_surface, surface
from jaxscale.format import format_count, format_flops
from jaxscale.laws import SIX_ND
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KNOWN_MODELS", "Comparison", "KnownModel", "compare_models"]


@dataclass(frozen=True)
class KnownModel:
    """A model: parameters, training tokens, FLOPs as its source states them (None: not stated), the source."""

    name: str
    N: float
    D: float
    stated_C: float | None
    counted: str
    source: str


KNOWN_MODELS = (
    KnownModel("GPT-3", 174.6e9, 300e9, 3.14e23, "6 N D", "Brown et al. 2020, arXiv 2005.14165, table D.1"),
    KnownModel("Gopher", 280e9, 300e9, 5.76e23, "their own count", "Rae et al. 2021; Hoffmann et al. 2022, section 4"),
    KnownModel("Chinchilla", 70e9, 1.4e12, 5.76e23, "Gopher's budget", "Hoffmann et al. 2022, arXiv 2203.15556"),
    KnownModel("PaLM", 540.35e9, 780e9, None, "", "Chowdhery et al. 2022, arXiv 2204.02311, table 1"),
    KnownModel("LLaMA 65B", 65.2e9, 1.4e12, None, "", "Touvron et al. 2023, arXiv 2302.13971, table 2"),
    KnownModel("Llama 2 70B", 70e9, 2.0e12, None, "", "Touvron et al. 2023, arXiv 2307.09288, table 1"),
    KnownModel("Llama 3 405B", 405e9, 15.6e12, 3.8e25, "equals 6 N D", "Grattafiori et al. 2024, arXiv 2407.21783"),
    KnownModel("Qwen2.5 72B", 72.7e9, 18e12, None, "", "Qwen 2024, arXiv 2412.15115; N of the model card"),
    KnownModel("DeepSeek-V3", 37e9, 14.8e12, None, "N active of 671B", "DeepSeek-AI 2024, arXiv 2412.19437, abstract"),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Rows of known models, flat: N, D, tokens_per_param, C_6nd, stated_C; with a fit its optimum, one row a method."""

    rows: tuple[dict[str, Any], ...]
    schema: str = "jaxscale.models/1"

    def to_plain(self) -> dict[str, Any]:
        """The schema's dictionary."""
        return without_nan({"schema": self.schema, "rows": list(self.rows)})

    def to_json(self) -> str:
        """The rows as JSON."""
        return json.dumps(self.to_plain(), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a model and method."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def __str__(self) -> str:
        fitted = any("N_opt" in row for row in self.rows)
        head = ("model", "N", "D", "D/N", "6 N D", "stated", "counted as", "source")
        columns = (*head, "method", "N_opt", "D_opt", "D/N opt", "D/N over it") if fitted else head
        return render_table("known models", columns, [_show(row, fitted) for row in self.rows])


def _show(row: dict[str, Any], fitted: bool) -> tuple[Any, ...]:
    shown = (row["model"], format_count(row["N"]), format_count(row["D"]), row["tokens_per_param"],
             format_flops(row["C_6nd"]), format_flops(row["stated_C"]), row["counted"], row["source"])  # fmt: skip
    if not fitted:
        return shown
    return (*shown, row["method"], format_count(row["N_opt"]), format_count(row["D_opt"]),
            row["tokens_per_param_opt"], row["tokens_per_param"] / row["tokens_per_param_opt"])  # fmt: skip


def compare_models(fit: Fit | Fits | None = None, models: Sequence[KnownModel] = KNOWN_MODELS) -> Comparison:
    """Known models, and beside them the optimum of each of a fit's methods for 6 N D FLOPs."""
    rows = []
    for model in models:
        plain = asdict(model)
        C = float(SIX_ND.flops(model.N, model.D))
        row = {"model": plain.pop("name"), **plain, "tokens_per_param": model.D / model.N, "C_6nd": C}
        rows += [row | _optimum(one, C) for one in answered(fit)] if fit is not None else [row]
    return Comparison(tuple(rows))


def _optimum(fit: Fit, C: float) -> dict[str, Any]:
    best = surface(fit).optimum(C, fit.rule) if has_surface(fit) else fit.predict_optimum(C)
    N, D = float(best.N), float(best.D)
    return {"method": fit.method, "N_opt": N, "D_opt": D, "tokens_per_param_opt": D / N}
