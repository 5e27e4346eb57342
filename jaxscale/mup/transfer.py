"""What a learning-rate sweep says, as values: optima, ladders' shifts and regrets, a verdict, and the table of it.

A ladder transfers if the upper bound of its relative regret and the whole interval of its shift are within the
tolerances and both ends of the ladder have an optimum, moves if shift or regret is beyond them for certain, and is
unsettled otherwise. `analyse_sweep` makes them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxscale.format import format_count, format_interval, format_loss
from jaxscale.mup.rates import Against, Ladder, Status, format_rate
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LadderTransfer", "Optimum", "Transfer", "Verdict", "judge_transfer", "title_ladder"]

Interval = tuple[float | None, float | None]
Verdict = Literal["transfers", "moves", "unsettled"]


@dataclass(frozen=True)
class Optimum:
    """One member of a ladder. lr, its interval, loss and curvature (nats per doubling of lr, squared) are None
    unless status is ok; lowest_lr, lowest_loss are the tried rate with the lowest mean, at any status."""

    against: Against
    parameterization: str
    width: int
    depth: int
    settings: dict[str, Any] = field(hash=False)
    lr: float | None
    lr_interval: Interval
    loss: float | None
    loss_interval: Interval
    curvature: float | None
    status: Status
    reason: str
    lowest_lr: float | None
    lowest_loss: float | None
    window_lr: Interval
    rates: int
    seeds: int
    runs_done: int
    runs_diverged: int
    runs_failed: int
    diverged_lr: tuple[float, ...]
    runs_censored: int
    censored_lr: tuple[float, ...]

    @property
    def rung(self) -> int:
        """Its width, or its depth in a ladder over depths."""
        return self.width if self.against == "width" else self.depth

    @property
    def log2_lr(self) -> float | None:
        """log2 of the best rate."""
        return None if self.lr is None else float(np.log2(self.lr))

    def cells(self) -> tuple[Any, ...]:
        """The member as the table shows it."""
        loss = format_loss(self.loss if self.loss is not None else self.lowest_loss)
        lr = format_rate(self.lr) if self.lr is not None else f"({format_rate(self.lowest_lr)})"
        counts = ((self.runs_done, "done"), (self.runs_diverged, "diverged"), (self.runs_censored, "censored"),
                  (self.runs_failed, "failed"))  # fmt: skip
        runs = ", ".join(f"{n} {what}" for n, what in counts if n or what == "done")
        return (self.rung, lr, format_interval(self.lr_interval, format_rate), loss,
                format_interval(self.loss_interval), runs, self.status)  # fmt: skip


@dataclass(frozen=True)
class LadderTransfer:
    """What a ladder says. shift in log2 lr per doubling; `spread` is max less min of log2 lr* over the rungs used;
    regret of the rung `to_rung` at the best rate of `from_rung`, in nats and over its loss: estimate, lower and
    upper bound (one-sided each). `regrets`: the same for every rung used. `tilt`: c of jaxscale.mup.tilt."""

    against: Against
    parameterization: str
    fixed: int
    settings: dict[str, Any] = field(hash=False)
    rungs: tuple[int, ...]
    used: tuple[int, ...]
    shift: float | None
    shift_interval: Interval
    spread: float | None
    from_rung: int | None
    to_rung: int | None
    regret: float | None
    regret_low: float | None
    regret_high: float | None
    regret_relative: float | None
    regret_relative_low: float | None
    regret_relative_high: float | None
    regrets: tuple[dict[str, Any], ...] = field(hash=False)
    verdict: Verdict
    words: str
    tilt: float | None
    tilt_interval: Interval
    window: int | None
    windows_tried: tuple[dict[str, float], ...] = field(hash=False)
    noise: dict[str, float | None] = field(hash=False)
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Transfer:
    """Optima and transfers of a sweep. `ladders` are the runs themselves, for the figure; not in the JSON."""

    optima: tuple[Optimum, ...]
    transfers: tuple[LadderTransfer, ...]
    confidence: float
    regret_tolerance: float
    shift_tolerance: float
    ladders: tuple[Ladder, ...] = field(repr=False, compare=False)
    schema: str = "jaxscale.mup_transfer/1"

    def to_records(self) -> dict[str, list[dict[str, Any]]]:
        """{"optima": [...], "transfers": [...]} as plain values, for a sweep's result file."""
        plain = {"optima": [{**asdict(one), "log2_lr": one.log2_lr} for one in self.optima],
                 "transfers": [asdict(one) for one in self.transfers]}  # fmt: skip
        loaded: dict[str, list[dict[str, Any]]] = json.loads(json.dumps(plain, allow_nan=False))
        return loaded

    def to_json(self) -> str:
        """As JSON, schema jaxscale.mup_transfer/1."""
        head = {"schema": self.schema, "confidence": self.confidence, "regret_tolerance": self.regret_tolerance,
                "shift_tolerance": self.shift_tolerance}  # fmt: skip
        return json.dumps({**head, **self.to_records()}, indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row an optimum, its settings and interval ends as columns."""
        import pandas as pd

        rows = []
        for record in self.to_records()["optima"]:
            row = {**record.pop("settings"), **record}
            for name in ("lr", "loss", "window_lr"):
                low, high = row.pop(f"{name}_interval" if name != "window_lr" else name)
                row |= {f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        parts, optima = [], list(self.optima)
        for ladder, told in zip(self.ladders, self.transfers, strict=True):
            mine, optima = optima[: len(ladder.curves)], optima[len(ladder.curves) :]
            columns = (
                ladder.against,
                "best lr",
                f"{self.confidence:.0%} interval",
                "loss",
                "interval",
                "runs",
                "status",
            )
            table = render_table(title_ladder(ladder), columns, [one.cells() for one in mine])
            lost = [f"{ladder.against} {one.rung} is {one.status}: {one.reason}" for one in mine if one.reason]
            parts.append("\n".join([table, *lost, *_lines(told), *(f"note: {note}" for note in told.notes)]))
        return "\n\n".join(parts)


def title_ladder(ladder: Ladder) -> str:
    """A ladder in words: parameterization, what varies, the settings."""
    other = "depth" if ladder.against == "width" else "width"
    named = {"tokens": "{} tokens", "batch_tokens": "batch of {}", "weight_decay": "weight decay {}",
             "init_scale": "init scale {}"}  # fmt: skip
    told = [text.format(format_count(ladder.settings[name]) if "tokens" in name else f"{ladder.settings[name]:g}")
            for name, text in named.items() if ladder.settings.get(name) is not None]  # fmt: skip
    over = f"over {ladder.against}s at {other} {ladder.fixed}"
    return ", ".join([f"{ladder.settings['parameterization']} {over}", *told])


def _lines(told: LadderTransfer) -> list[str]:
    lines = []
    if told.shift is not None:
        spread = "" if told.spread is None else f"; the optima span {told.spread:.2f} doublings"
        lines.append(f"shift of log2 lr per doubling of {told.against}: {told.shift:+.3f} "
                     f"{format_interval(told.shift_interval, _signed)}{spread}")  # fmt: skip
    for one in told.regrets:
        if told.from_rung is not None and one["rung"] != told.from_rung:
            lines.append(
                f"regret at {told.against} {one['rung']} of using {told.from_rung}'s rate: {_regret_words(one)}"
            )
    return [*lines, f"verdict: {told.words}"]


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _regret_words(one: dict[str, Any]) -> str:
    if one["regret"] is None:
        return f"more than {one['relative_low']:.3%} of the loss, {one['reason']}"
    bound = "unbounded, " + one["reason"] if one["high"] is None else f"at most {one['relative_high']:.3%}"
    return f"{one['relative']:.3%} of the loss ({bound})"


def judge_transfer(told: dict[str, Any], most_regret: float, most_shift: float) -> tuple[Verdict, str]:
    """The verdict and its numbers in a sentence, from the fields of a LadderTransfer."""
    rung, against = told["to_rung"], told["against"]
    if rung is None:
        return "unsettled", f"unsettled: one {against} with an optimum shows no transfer, two or more are needed"
    low, high = told["shift_interval"]
    regret, floor = told["regret_relative_high"], told["regret_relative_low"]
    shift = (
        f"shift per doubling {told['shift']:+.3f} {format_interval((low, high), _signed)} (tolerance +-{most_shift:g})"
    )
    bound = f"is above {floor:.3%} of the loss, unbounded" if regret is None else f"is at most {regret:.3%} of the loss"
    cost = f"regret at {against} {rung} of {told['from_rung']}'s rate {bound} (tolerance {100 * most_regret:g}%)"
    small = regret is not None and regret < most_regret
    still = low is not None and high is not None and -most_shift < low and high < most_shift
    large = floor > most_regret
    moved = (low is not None and low > most_shift) or (high is not None and high < -most_shift)
    lost = [end for end in (told["rungs"][0], told["rungs"][-1]) if end not in told["used"]]
    verdict: Verdict = "moves" if large or moved else "transfers" if small and still and not lost else "unsettled"
    without = f"; without {against} {' and '.join(map(str, lost))}, an end of the ladder" if lost else ""
    return verdict, f"{verdict}: {cost}; {shift}{without}"
