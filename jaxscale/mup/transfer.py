"""Does the best learning rate of a small model serve a large one? A sweep's runs as optima, shifts and regrets.

    shift    slope of the members' log2 lr* against log2 width (or depth), least squares with equal weights
    regret   loss of the largest member at the smallest one's best rate, less its own lowest (jaxscale.mup.regret)

A ladder transfers if the upper bound of its relative regret and the whole interval of its shift are within the
tolerances, moves if either is beyond them for certain, and is unsettled otherwise. Only members whose optimum
stands (status ok) count; the smallest and the largest of those, where others fell out, are named.

Everything is computed, nothing is drawn: a bootstrap over two seeds has three distinct resamples, and its intervals
hold the truth far too seldom (docs/coverage.md, Learning-rate sweeps).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.format import format_count, format_interval, format_loss
from jaxscale.mup.level import Between, loss_interval, measure_between
from jaxscale.mup.rates import Against, Curve, Ladder, Status, edge_reason, format_rate, judge_points, read_ladders
from jaxscale.mup.regret import Regret, measure_regret
from jaxscale.mup.tilt import Joint, choose_size, count_dof, fit_joint, take_window
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["REGRET_TOLERANCE", "SHIFT_TOLERANCE", "LadderTransfer", "Optimum", "Transfer", "analyse_sweep"]

REGRET_TOLERANCE = 0.003
"""Share of the loss that the regret's upper bound must stay below."""
SHIFT_TOLERANCE = 0.1
"""Doublings of the rate per doubling of the width that the shift's interval must stay within."""
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
        told = self.status if self.status == "ok" else f"{self.status}: {self.reason}"
        lost = ", ".join(
            f"{n} {what}" for n, what in ((self.runs_diverged, "diverged"), (self.runs_failed, "failed")) if n
        )
        return (self.rung, lr, format_interval(self.lr_interval, format_rate), loss, format_interval(self.loss_interval),
                f"{self.runs_done} done" + (f", {lost}" if lost else ""), told)  # fmt: skip


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
            parts.append("\n".join([table, *_lines(told), *(f"note: {note}" for note in told.notes)]))
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
        if one["rung"] != told.from_rung:
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


def analyse_sweep(
    rows: pd.DataFrame,
    *,
    confidence: float = 0.95,
    regret_tolerance: float = REGRET_TOLERANCE,
    shift_tolerance: float = SHIFT_TOLERANCE,
) -> Transfer:
    """Optimum of every member, shift and regret of every ladder of a sweep's rows (columns of sweep.json's rows).

    Losses in nats; lr is the base-width rate. The same rows in any order give the same answer, and nothing is
    random. Raises MisuseError for rows that are no sweep (jaxscale.mup.rates) and a confidence outside (.5, 1).
    """
    if not 0.5 < confidence < 1:
        raise MisuseError(f"confidence {confidence:g} is not between 0.5 and 1; use 0.95")
    ladders = read_ladders(rows)
    optima: list[Optimum] = []
    transfers = []
    for ladder in ladders:
        mine, told = _analyse_ladder(ladder, confidence, regret_tolerance, shift_tolerance)
        optima += mine
        transfers.append(told)
    return Transfer(tuple(optima), tuple(transfers), confidence, regret_tolerance, shift_tolerance, tuple(ladders))


def _analyse_ladder(
    ladder: Ladder, confidence: float, regret_tolerance: float, shift_tolerance: float
) -> tuple[list[Optimum], LadderTransfer]:
    status = [judge_points(curve) for curve in ladder.curves]
    joint, tried = None, []
    while used := [k for k, (word, _) in enumerate(status) if word == "ok"]:
        curves = [ladder.curves[k] for k in used]
        if count_dof([take_window(curve, len(curve.x)) for curve in curves]) < 1:
            told = "too_few", "no degree of freedom is left for the noise, add rates or seeds"
            status = [told if k in used else one for k, one in enumerate(status)]
            continue
        size, tried = choose_size(curves, confidence)
        joint = fit_joint([take_window(curve, size) for curve in curves], confidence)
        found = [_judge_fit(joint, k, curve, confidence) for k, curve in enumerate(curves)]
        if all(word == "ok" for word, _ in found):
            break
        for k, one in zip(used, found, strict=True):
            status[k] = one
    if not used or joint is None:
        return [_optimum(ladder, curve, one) for curve, one in zip(ladder.curves, status, strict=True)], _refuse(ladder)
    between = measure_between(joint)
    optima = [_optimum(ladder, curve, status[k], joint, used.index(k) if k in used else None, between, confidence)
              for k, curve in enumerate(ladder.curves)]  # fmt: skip
    told = _transfer(ladder, joint, used, optima, confidence)
    verdict, words = _judge(told, regret_tolerance, shift_tolerance)
    notes = (*_notes(ladder, optima, between), *told["notes"])
    return optima, LadderTransfer(
        **{**told, "notes": notes}, verdict=verdict, words=words, tilt=float(joint.c[joint.best]),
        tilt_interval=joint.lean_interval(confidence), window=int(tried[-1]["rates"]), windows_tried=tuple(tried),
        noise=_noise(joint, between, optima),
    )  # fmt: skip


def _judge_fit(joint: Joint, member: int, curve: Curve, confidence: float) -> tuple[Status, str]:
    """What the fitted curve says of an optimum that the points allow."""
    x = float(joint.lanes[member].optimum()[joint.best])
    if not np.isfinite(x):
        return "nonconvex", "its fitted curve has no minimum, look at the runs"
    block = curve.block()
    if not curve.x[block[0]] < x < curve.x[block[-1]]:
        return (
            "edge",
            f"the fitted minimum is beyond the stable rates: {edge_reason(curve, block, x > curve.x[block[0]])}",
        )
    if None in joint.interval(member, confidence):
        return "nonconvex", "too flat for its noise, the optimum has no bounded interval; add seeds or a wider range"
    return "ok", ""


def _optimum(
    ladder: Ladder, curve: Curve, status: tuple[Status, str], joint: Joint | None = None, member: int | None = None,
    between: Between | None = None, confidence: float = 0.95,
) -> Optimum:  # fmt: skip
    stable, mean = curve.stable, curve.mean
    lowest = int(stable[np.argmin(mean[stable])]) if len(stable) else None
    lr = loss = curvature = None
    lr_interval = loss_ends = window = (None, None)
    if joint is not None and member is not None and between is not None:
        lane = joint.lanes[member]
        x = float(lane.optimum()[joint.best])
        lr, lr_interval = 2.0**x, tuple(2.0**end for end in joint.interval(member, confidence) if end is not None)
        loss, loss_ends = loss_interval(joint, member, between, confidence)
        curvature = float(lane.coef[joint.best][1] * np.exp(joint.c[joint.best] * (x - lane.window.origin)))
        window = tuple(2.0**end for end in lane.window.ends)
    return Optimum(
        ladder.against, ladder.settings["parameterization"], curve.width, curve.depth, dict(ladder.settings),
        lr, lr_interval, loss, loss_ends, curvature, *status,
        None if lowest is None else float(2 ** curve.x[lowest]), None if lowest is None else float(mean[lowest]),
        window, len(curve.x), len(curve.seeds), int(np.isfinite(curve.loss).sum()), int(curve.diverged.sum()),
        int(curve.failed.sum()), tuple(float(2 ** x) for x in curve.x[curve.diverged.any(1)]),
    )  # fmt: skip


def _transfer(ladder: Ladder, joint: Joint, used: list[int], optima: Sequence[Optimum], confidence: float) -> Any:
    """Shift and regrets over the rungs used, as fields of LadderTransfer."""
    rungs, chosen = ladder.rungs, [optima[k] for k in used]
    shift, ends = None, (None, None)
    if len(used) > 1:
        z = np.log2([rungs[k] for k in used])
        weights = (z - z.mean()) / ((z - z.mean()) ** 2).sum()
        shift, ends = joint.sum_interval(weights, confidence)
    regrets = [_regret_record(one, measure_regret(joint, 0, k, ladder.curves[used[k]], confidence))
               for k, one in enumerate(chosen)]  # fmt: skip
    last = regrets[-1] if len(used) > 1 else dict.fromkeys(regrets[0])
    x = [one.log2_lr for one in chosen if one.log2_lr is not None]
    lost = [rungs[k] for k in range(len(rungs)) if k not in used]
    notes = (
        [f"{ladder.against} {', '.join(map(str, lost))} has no optimum and is not in shift and regret"] if lost else []
    )
    if len(used) > 1 and last["regret"] is None:
        notes.append(f"regret: {last['reason']}")
    return {
        "against": ladder.against, "parameterization": ladder.settings["parameterization"], "fixed": ladder.fixed,
        "settings": dict(ladder.settings), "rungs": tuple(rungs), "used": tuple(rungs[k] for k in used),
        "shift": shift, "shift_interval": ends, "spread": max(x) - min(x) if len(x) > 1 else None,
        "from_rung": rungs[used[0]] if len(used) > 1 else None, "to_rung": rungs[used[-1]] if len(used) > 1 else None,
        **{f"regret{'_' if name else ''}{name}": last[name or "regret"]
           for name in ("", "low", "high", "relative", "relative_low", "relative_high")},
        "regrets": tuple(regrets), "notes": notes,
    }  # fmt: skip


def _regret_record(one: Optimum, regret: Regret) -> dict[str, Any]:
    """A rung's regret in nats and over its loss."""
    plain = {"rung": one.rung, "regret": regret.value, "low": regret.low, "high": regret.high}
    over = {f"relative{'' if name == 'regret' else '_' + name}": None if plain[name] is None or one.loss is None
            else plain[name] / one.loss for name in ("regret", "low", "high")}  # fmt: skip
    return {**plain, **over, "reason": regret.reason}


def _judge(told: Any, most_regret: float, most_shift: float) -> tuple[Verdict, str]:
    """The verdict and its numbers in a sentence."""
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
    verdict: Verdict = "transfers" if small and still else "moves" if large or moved else "unsettled"
    return verdict, f"{verdict}: {cost}; {shift}"


def _noise(joint: Joint, between: Between, optima: Sequence[Optimum]) -> dict[str, float | None]:
    """Deviations of one run in nats and what they rest on."""
    loss = float(np.mean([one.loss for one in optima if one.loss is not None]))
    return {"run_std": between.run_std, "run_std_relative": between.run_std / loss, "seed_std": between.seed_std,
            "residual_std": float(np.sqrt(joint.variance)), "shared_over_members": between.shared,
            "lean_inflation": joint.inflation, "dof": joint.dof}  # fmt: skip


def _notes(ladder: Ladder, optima: Sequence[Optimum], between: Between) -> list[str]:
    notes = []
    if between.dof < 1:
        notes.append("one seed: nothing is known about other seeds; intervals rest on the scatter about the curves, and "
                     "that of the loss holds for this seed")  # fmt: skip
    lost = [f"{one.rung} at {', '.join(map(format_rate, one.diverged_lr))}" for one in optima if one.diverged_lr]
    if lost:
        notes.append(f"a run diverged at {ladder.against} {'; '.join(lost)}: those rates are not fitted, whatever their "
                     f"other seeds gave")  # fmt: skip
    return notes


def _refuse(ladder: Ladder) -> LadderTransfer:
    nothing = (None, None)
    words = f"unsettled: no {ladder.against} has an optimum with an interval, see their status"
    return LadderTransfer(
        ladder.against, ladder.settings["parameterization"], ladder.fixed, dict(ladder.settings), tuple(ladder.rungs),
        (), None, nothing, None, None, None, None, None, None, None, None, None, (), "unsettled", words, None, nothing,
        None, (), {}, (),
    )  # fmt: skip
