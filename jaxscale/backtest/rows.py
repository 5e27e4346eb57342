"""Fit every method and law without what is held out, predict it, and put the scores in one table.

Methods and laws are declared beforehand, by naming them; all are scored alike, and with them the equal-weight
average over approaches (the first law of each), which is what a forecast shows beside the declared law.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.backtest.scores import score_split
from jaxscale.backtest.splits import Split, list_splits
from jaxscale.backtest.summary import summarize, word_summary
from jaxscale.errors import MisuseError
from jaxscale.fit.result import Fit, without_nan
from jaxscale.fit.together import fit_all
from jaxscale.forecast import Answer, average_answer
from jaxscale.format import format_factor, format_flops, format_interval, format_number, format_percent
from jaxscale.runs import Observations
from jaxscale.source import as_observations, keep_near
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Backtest", "backtest_fit"]

SHOWN = ("split", "method", "law", "trained_to_C", "target_C", "quantity", "predicted", "interval", "measured",
         "error", "compute_error", "inside")  # fmt: skip
SUMMED = ("split", "method", "law", "quantity", "ratio", "count", "bias", "rms_error", "compute_factor", "inside",
          "interval_score", "skill")  # fmt: skip
MOST_ROWS = 30
"""More rows than this are summed up; the JSON has them all."""


@dataclass(frozen=True)
class Backtest:
    """Rows: split, method, law, trained_to_C (and _N, _D of a corner), target_C, ratio, quantity, predicted,
    interval, measured, error, compute_error, inside, interval_score, baseline, baseline_error, and for loss_at
    the cell's N and D. Summary: groups of them, and {"method", "law", "verdict"} of fits without an answer."""

    rows: tuple[dict[str, Any], ...]
    summary: tuple[dict[str, Any], ...]
    words: tuple[str, ...] = ()
    schema: str = "jaxscale.backtest/1"

    def to_json(self) -> str:
        """The backtest as JSON, schema jaxscale.backtest/1."""
        plain = {"schema": self.schema, "rows": list(self.rows), "summary": list(self.summary),
                 "words": list(self.words)}  # fmt: skip
        return json.dumps(without_nan(plain), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a prediction."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def __str__(self) -> str:
        parts = []
        if len(self.rows) <= MOST_ROWS:
            rows = [[_show(name, row[name]) for name in SHOWN] for row in self.rows]
            parts.append(render_table(f"backtest, {len(rows)} predictions", [_head(name) for name in SHOWN], rows))
        groups = [row for row in self.summary if "verdict" not in row]
        cells = [[_show_sum(name, row) for name in SUMMED] for row in groups]
        title = f"backtest, {len(self.rows)} predictions by how far the target lies beyond what was fitted"
        parts.append(render_table(title, [_head(name) for name in SUMMED], cells))
        parts.append("rms and bias of log(predicted / measured); worth: typical factor in C of the error; "
                     "skill: over a power law through the lowest runs")  # fmt: skip
        return "\n".join([*parts, *self.words, *self._verdicts()])

    def _verdicts(self) -> Iterator[str]:
        """The first verdict of every method, law and split, and how many more there are."""
        silent: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in self.summary:
            if "verdict" in row:
                silent.setdefault((row["method"], row["law"], row["split"]), []).append(row)
        for (method, law, split), rows in silent.items():
            more = f" (and {len(rows) - 1} more origins)" if len(rows) > 1 else ""
            to = format_flops(rows[0]["trained_to_C"])
            yield f"verdict: {method} ({law}), {split} up to {to}{more}: {rows[0]['verdict']}"


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite is null
def backtest_fit(
    source: Observations | pd.DataFrame,
    *,
    methods: Sequence[str] = ("isoflop", "parametric"),
    law: str | Sequence[str] = "chinchilla",
    split: str = "auto",
    ratio: float | None = None,
    near: float | None = None,
    on_split: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Backtest:
    """Fit without what is held out and predict it; further options as for `fit_all`.

    `near`: fit only sizes within this factor of their budget's lowest cell (`source.keep_near`); targets stay whole.
    `law`: one or several for the parametric method. `split`: rolling, corner, holdout, all, or auto (rolling,
    and holdout where there are such rows). `ratio`: only targets at about so many times the largest C fitted.
    `on_split` hears how many splits are done, and of how many. VerdictError where nothing can be held out.
    """
    obs = as_observations(source)
    laws = (law,) if isinstance(law, str) else tuple(law)
    if not laws or len(set(laws)) < len(laws):
        raise MisuseError(f"law: {', '.join(laws) or 'none'} given; name each law once, as in chinchilla")
    splits = list_splits(obs, split, ratio)
    rows: list[dict[str, Any]] = []
    silent: list[dict[str, Any]] = []
    for number, one in enumerate(splits):
        if on_split:
            on_split(number, len(splits))
        fits = [fit for method in methods for fit in _fit_method(obs, one, method, laws, near, options)]
        silent += [_say_silent(one, fit) for fit in fits if fit.verdict]
        rows += score_split(_answers(fits, one), one)
    return Backtest(tuple(rows), (*summarize(rows), *silent), tuple(word_summary(rows)))


def _fit_method(
    obs: Observations, split: Split, method: str, laws: Sequence[str], near: float | None, options: dict[str, Any]
) -> Iterator[Fit]:
    """One fit, or one a law; a corner is for laws over (N, D) only."""
    if split.kind == "corner" and method != "parametric":
        return
    seen = replace(obs, frame=split.seen)
    seen = seen if near is None else keep_near(seen, near)
    for law in laws if method == "parametric" else laws[:1]:
        yield fit_all(seen, methods=(method,), law=law, **options).fits[0]


def _answers(fits: Sequence[Fit], split: Split) -> list[Answer]:
    answers: list[Answer] = [fit for fit in fits if fit.verdict is None]
    mean = average_answer(fits) if split.optima else None
    return [*answers, mean] if mean else answers


def _say_silent(split: Split, fit: Fit) -> dict[str, Any]:
    return {"split": split.kind, "method": fit.method, "law": fit.law, "trained_to_C": split.trained_to_C,
            "verdict": fit.verdict}  # fmt: skip


def _head(name: str) -> str:
    return {"trained_to_C": "fitted to", "target_C": "target C", "compute_error": "worth", "compute_factor": "worth",
            "rms_error": "rms", "interval_score": "score", "count": "n"}.get(name, name)  # fmt: skip


def _show(name: str, value: Any) -> Any:
    if name == "interval":
        return format_interval(value, format_number)
    if name in ("trained_to_C", "target_C"):
        return format_flops(value)
    if name in ("error", "compute_error"):
        return format_percent(value) if name == "error" else format_factor(value)
    return {True: "yes", False: "no"}.get(value, value) if name == "inside" else value


def _show_sum(name: str, row: dict[str, Any]) -> Any:
    value = row[name]
    if name == "inside":
        return f"{value}/{row['tested']}" if row["tested"] else None
    if name == "compute_factor":
        return format_factor(value)
    if name in ("bias", "rms_error"):  # logs: a factor in N, a share of the loss
        share = format_percent(value) if name == "bias" else format_percent(value).lstrip("+")
        return format_factor(None if value is None else float(np.exp(value))) if row["quantity"] == "N_opt" else share
    if name == "skill":
        return format_percent(value).lstrip("+")
    return format_number(value, 2) if name == "interval_score" else value
