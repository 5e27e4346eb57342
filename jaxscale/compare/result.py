"""COMPARE.json as a value: verdict, rows of numbers, a table for people.

rows       one a notion (flops, seconds, dollars), target and variant: x, loss, difference to the leader, multiplier
pairs      the same for every two variants        decisions   one a notion and target: leader, probability, verdict
points     best loss of every variant and budget  forms, tests, weights   the nested laws, F tests, weights of the draws
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from jaxscale.fit.result import without_nan
from jaxscale.format import format_factor, format_flops, format_interval, format_loss, format_number, format_seconds
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMA", "Comparison", "Verdict", "say_probability"]

SCHEMA = "jaxscale.compare/1"
Verdict = Literal["settled", "open", "untuned", "incomparable"]
Records = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Comparison:
    """Variants compared; every record is plain data. `winner` is named only where the verdict is settled.

    `verdict`: settled (one variant wins at every target at equal FLOPs with the confidence), open, untuned (not all
    were tuned alike), incomparable (no numbers). `words` says it in a sentence.
    """

    verdict: Verdict
    words: str
    winner: str | None
    leader: str | None
    axis: str
    confidence: float
    draws: int
    seed: int
    loss: str
    source: dict[str, Any]
    variants: Records
    tuning: dict[str, Any]
    rows: Records = ()
    pairs: Records = ()
    decisions: Records = ()
    crossings: Records = ()
    points: Records = ()
    forms: Records = ()
    tests: Records = ()
    weights: dict[str, float] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=dict)
    backtest: Records = ()
    error_per_decade: float | None = None
    cost: Records = ()
    curves: Records = ()
    notes: tuple[str, ...] = ()
    schema: str = SCHEMA

    @property
    def names(self) -> tuple[str, ...]:
        """The variants that have a law, in the order of the source."""
        return tuple(one["variant"] for one in self.variants if one["status"] == "ok")

    def to_json(self) -> str:
        """As JSON, schema jaxscale.compare/1."""
        plain = asdict(self)
        return json.dumps({"schema": plain.pop("schema"), **without_nan(plain)}, indent=1, default=float)

    def to_frame(self) -> pd.DataFrame:
        """One row a notion, target and variant; intervals as *_low and *_high."""
        import pandas as pd

        rows = []
        for row in self.rows:
            flat: dict[str, Any] = {}
            for name, value in row.items():
                if name.endswith("_interval"):
                    stem = name.removesuffix("_interval")
                    flat |= {f"{stem}_low": value[0], f"{stem}_high": value[1]}
                else:
                    flat[name] = value
            rows.append(flat)
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        parts = [self._targets(), self._laws(), self._costs()]
        parts += [f"variant {one['variant']} has no law: {one['reason']}" for one in self.variants
                  if one["status"] != "ok"]  # fmt: skip
        parts += [f"variant {one['variant']}: {len(one['refused'])} runs are no evidence, {one['refused'][0]}"
                  for one in self.variants if one["status"] == "ok" and one["refused"]]  # fmt: skip
        parts += [one["words"] for one in self.decisions if one["words"]]
        parts += [f"note: {note}" for note in self.notes]
        return "\n".join([*(part for part in parts if part), f"verdict: {self.verdict}: {self.words}"])

    def _targets(self) -> str:
        rows = [
            (AT[row["notion"]], format_flops(row["target"]), format_factor(row["extrapolation"]), row["variant"],
             format_flops(row["x"]), f"{format_loss(row['loss'])} {format_interval(row['loss_interval'])}",
             f"{row['difference']:+.4f} {format_interval(row['difference_interval'], _signed)}"
             if not row["leader"] else "leads",
             f"{format_factor(row['multiplier'])} {format_interval(row['multiplier_interval'], format_factor)}"
             if not row["leader"] else "", say_probability(row["probability_best"], self.draws))
            for row in self.rows
        ]  # fmt: skip
        columns = ("at equal", "target", "beyond", "variant", self.axis, self.loss.replace("_", " "),
                   "difference", f"needs times the {self.axis}", "P(best)")  # fmt: skip
        title = f"{len(self.names)} variants; {self.confidence:.0%} intervals in brackets, {self.draws:,} draws"
        return render_table(title, columns, rows) if rows else ""

    def _laws(self) -> str:
        if not self.forms:
            return ""
        rows = [(one["form"], one["variant"], one["E"], one["A"], one["alpha"], one["aicc"],
                 self.weights.get(one["form"])) for one in self.forms]  # fmt: skip
        table = render_table("laws L = E + A / x^alpha", ("form", "variant", "E", "A", "alpha", "AICc", "weight"), rows)
        said = [f"{row['more']} against {row['less']}: " + ("no degree of freedom to test with" if row["p"] is None else
                f"F = {row['F']:.3g}, p = {row['p']:.2g}") for row in self.tests]  # fmt: skip
        crossed = [f"{row['a']} and {row['b']} cross at {format_flops(row['x'])} "
                   f"{format_interval(row['interval'], format_flops)} ({row['share']:.0%} of the draws; below it "
                   f"{row['better_below']} is better)" if row["x"] is not None else
                   f"{row['a']} and {row['b']} do not cross between the smallest run and the largest target in "
                   f"{1 - row['share']:.0%} of the draws" for row in self.crossings]  # fmt: skip
        return "\n".join([table, *said, *crossed])

    def _costs(self) -> str:
        rows = [(one["variant"], one["runs"], format_flops(one["flops"]), format_flops(one["tuning_flops"]),
                 format_seconds(one["seconds"]), format_number(one["dollars"])) for one in self.cost]  # fmt: skip
        columns = ("variant", "runs", "grid FLOPs", "tuning FLOPs", "time", "dollars")
        return render_table("cost of finding out", columns, rows) if rows else ""


AT = {"flops": "FLOPs", "tokens": "tokens", "params": "parameters", "seconds": "time", "dollars": "cost"}


def say_probability(share: float, draws: int) -> str:
    """A share of draws, no surer than their number allows.

    >>> say_probability(1.0, 2000), say_probability(0.613, 2000)
    ('> 0.9995', '0.61')
    """
    floor = 1 / (draws + 1)
    if share > 1 - floor:
        return f"> {1 - floor:.4f}"
    if share < floor:
        return f"< {floor:.4f}"
    return f"{share:.2f}" if 0.01 <= share <= 0.99 else f"{share:.4f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"
