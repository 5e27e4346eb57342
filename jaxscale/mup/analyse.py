"""Does the best learning rate of a small model serve a large one? From a sweep's runs to the answer.

    shift    slope of the members' log2 lr* against log2 width (or depth), least squares with equal weights
    regret   loss of the largest member at the smallest one's best rate, less its own lowest (jaxscale.mup.regret)

The members of a ladder are fitted together (jaxscale.mup.tilt). One whose points or whose fit show no optimum gets
a status and a reason, and the others are fitted again without it; smallest and largest are then those left.

Everything is computed, nothing is drawn: a bootstrap over two seeds has three distinct resamples, and its intervals
hold the truth far too seldom (docs/coverage.md, Learning-rate sweeps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.mup.level import Between, loss_interval, measure_between
from jaxscale.mup.rates import Curve, Ladder, Status, edge_reason, format_rate, judge_points, read_ladders
from jaxscale.mup.regret import Regret, measure_regret
from jaxscale.mup.tilt import Joint, choose_size, count_dof, fit_joint, take_window
from jaxscale.mup.transfer import Interval, LadderTransfer, Optimum, Transfer, judge_transfer

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["REGRET_TOLERANCE", "SHIFT_TOLERANCE", "analyse_sweep"]

REGRET_TOLERANCE = 0.003
"""Share of the loss that the regret's upper bound must stay below."""
SHIFT_TOLERANCE = 0.1
"""Doublings of the rate per doubling of the width that the shift's interval must stay within."""
REGRET_FIELDS = {"regret": "regret", "regret_low": "low", "regret_high": "high", "regret_relative": "relative",
                 "regret_relative_low": "relative_low", "regret_relative_high": "relative_high"}  # fmt: skip
Judged = tuple[Status, str]


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
    status, used, joint, tried = _fit_members(ladder, confidence)
    if joint is None:
        return [_optimum(ladder, curve, one) for curve, one in zip(ladder.curves, status, strict=True)], _refuse(ladder)
    between = measure_between(joint)
    optima = [_optimum(ladder, curve, status[k], joint, used.index(k) if k in used else None, between, confidence)
              for k, curve in enumerate(ladder.curves)]  # fmt: skip
    told = _transfer(ladder, joint, used, optima, confidence)
    verdict, words = judge_transfer(told, regret_tolerance, shift_tolerance)
    notes = (*_notes(ladder, optima, between), *told["notes"])
    return optima, LadderTransfer(
        **{**told, "notes": notes}, verdict=verdict, words=words, tilt=float(joint.c[joint.best]),
        tilt_interval=joint.lean_interval(confidence), window=int(tried[-1]["rates"]), windows_tried=tuple(tried),
        noise=_noise(joint, between, optima),
    )  # fmt: skip


def _fit_members(
    ladder: Ladder, confidence: float
) -> tuple[list[Judged], list[int], Joint | None, list[dict[str, float]]]:
    """Every curve's status, the curves used, their joint fit (None where none is left), the windows tried."""
    status = [judge_points(curve) for curve in ladder.curves]
    while used := [k for k, (word, _) in enumerate(status) if word == "ok"]:
        curves = [ladder.curves[k] for k in used]
        if count_dof([take_window(curve, len(curve.x)) for curve in curves]) < 1:
            lost: Judged = "too_few", "no degree of freedom is left for the noise, add rates or seeds"
            return [lost if k in used else one for k, one in enumerate(status)], [], None, []
        size, tried = choose_size(curves, confidence)
        joint = fit_joint([take_window(curve, size) for curve in curves], confidence)
        found = [_judge_fit(joint, k, curve, confidence) for k, curve in enumerate(curves)]
        if all(word == "ok" for word, _ in found):
            return status, used, joint, tried
        for k, one in zip(used, found, strict=True):
            status[k] = one
    return status, [], None, []


def _judge_fit(joint: Joint, member: int, curve: Curve, confidence: float) -> tuple[Status, str]:
    """What the fitted curve says of an optimum that the points allow."""
    x = float(joint.lanes[member].optimum()[joint.best])
    if not np.isfinite(x):
        return "nonconvex", "its fitted curve has no minimum, look at the runs"
    block = curve.block()
    if not curve.x[block[0]] < x < curve.x[block[-1]]:
        told = edge_reason(curve, block, last=x > curve.x[block[0]])
        return "edge", f"the fitted minimum is beyond the stable rates: {told}"
    if None in joint.interval(member, confidence):
        return "nonconvex", "too flat for its noise, the optimum has no bounded interval; add seeds or a wider range"
    return "ok", ""


def _optimum(
    ladder: Ladder, curve: Curve, status: Judged, joint: Joint | None = None, member: int | None = None,
    between: Between | None = None, confidence: float = 0.95,
) -> Optimum:  # fmt: skip
    stable, mean = curve.stable, curve.mean
    lowest = int(stable[np.argmin(mean[stable])]) if len(stable) else None
    lr = loss = curvature = None
    lr_ends: Interval = (None, None)
    loss_ends: Interval = (None, None)
    window: Interval = (None, None)
    if joint is not None and member is not None and between is not None:
        lane = joint.lanes[member]
        x = float(lane.optimum()[joint.best])
        low, high = joint.interval(member, confidence)
        lr, lr_ends = 2.0**x, (None if low is None else 2.0**low, None if high is None else 2.0**high)
        loss, loss_ends = loss_interval(joint, member, between, confidence)
        curvature = float(lane.coef[joint.best][1] * np.exp(joint.c[joint.best] * (x - lane.window.origin)))
        window = 2.0 ** lane.window.ends[0], 2.0 ** lane.window.ends[1]
    return Optimum(
        ladder.against, ladder.settings["parameterization"], curve.width, curve.depth, dict(ladder.settings),
        lr, lr_ends, loss, loss_ends, curvature, *status,
        None if lowest is None else float(2 ** curve.x[lowest]), None if lowest is None else float(mean[lowest]),
        window, len(curve.x), len(curve.seeds), int(np.isfinite(curve.loss).sum()), int(curve.diverged.sum()),
        int(curve.failed.sum()), tuple(float(2 ** x) for x in curve.x[curve.diverged.any(1)]),
        int(curve.censored.sum()), tuple(float(2 ** x) for x in curve.x[curve.censored.any(1)]),
    )  # fmt: skip


def _transfer(
    ladder: Ladder, joint: Joint, used: list[int], optima: Sequence[Optimum], confidence: float
) -> dict[str, Any]:
    """Shift and regrets over the rungs used, as fields of LadderTransfer."""
    rungs, chosen = ladder.rungs, [optima[k] for k in used]
    shift: float | None = None
    ends: Interval = (None, None)
    if len(used) > 1:
        z = np.log2([rungs[k] for k in used])
        weights = (z - z.mean()) / ((z - z.mean()) ** 2).sum()
        shift, ends = joint.sum_interval(weights, confidence)
    regrets = [_regret_record(one, measure_regret(joint, 0, k, ladder.curves[used[k]], confidence))
               for k, one in enumerate(chosen)]  # fmt: skip
    last = regrets[-1] if len(used) > 1 else dict.fromkeys(regrets[0])
    x = [one.log2_lr for one in chosen if one.log2_lr is not None]
    lost = [rungs[k] for k in range(len(rungs)) if k not in used]
    told = f"{ladder.against} {', '.join(map(str, lost))} has no optimum and is not in shift and regret"
    notes = [told] if lost else []
    if len(used) > 1 and last["regret"] is None:
        notes.append(f"regret: {last['reason']}")
    return {
        "against": ladder.against, "parameterization": ladder.settings["parameterization"], "fixed": ladder.fixed,
        "settings": dict(ladder.settings), "rungs": tuple(rungs), "used": tuple(rungs[k] for k in used),
        "shift": shift, "shift_interval": ends, "spread": max(x) - min(x) if len(x) > 1 else None,
        "from_rung": rungs[used[0]] if len(used) > 1 else None, "to_rung": rungs[used[-1]] if len(used) > 1 else None,
        **{name: last[field] for name, field in REGRET_FIELDS.items()},
        "regrets": tuple(regrets), "notes": notes,
    }  # fmt: skip


def _regret_record(one: Optimum, regret: Regret) -> dict[str, Any]:
    """A rung's regret in nats and over its loss."""
    nats = {"": regret.value, "_low": regret.low, "_high": regret.high}
    plain = {name.strip("_") or "regret": value for name, value in nats.items()}
    over = {f"relative{name}": None if value is None or one.loss is None else value / one.loss
            for name, value in nats.items()}  # fmt: skip
    return {"rung": one.rung, **plain, **over, "reason": regret.reason}


def _noise(joint: Joint, between: Between, optima: Sequence[Optimum]) -> dict[str, float | None]:
    """Deviations of one run in nats and what they rest on."""
    loss = float(np.mean([one.loss for one in optima if one.loss is not None]))
    return {"run_std": between.run_std, "run_std_relative": between.run_std / loss, "seed_std": between.seed_std,
            "residual_std": float(np.sqrt(joint.variance)), "shared_over_members": between.shared,
            "lean_inflation": joint.inflation, "dof": joint.dof}  # fmt: skip


def _notes(ladder: Ladder, optima: Sequence[Optimum], between: Between) -> list[str]:
    notes = []
    if between.dof < 1:
        notes.append("one seed: nothing is known about other seeds; intervals rest on the scatter about the curves, "
                     "and that of the loss holds for this seed")  # fmt: skip
    lost = [f"{one.rung} at {', '.join(map(format_rate, one.diverged_lr))}" for one in optima if one.diverged_lr]
    if lost:
        notes.append(f"a run diverged at {ladder.against} {'; '.join(lost)}: those rates are not fitted, whatever "
                     f"their other seeds gave")  # fmt: skip
    stopped = [f"{one.rung} at {', '.join(map(format_rate, one.censored_lr))}" for one in optima if one.censored_lr]
    if stopped:
        notes.append(f"a run was stopped as hopeless at {ladder.against} {'; '.join(stopped)}: those rates are not "
                     f"fitted, whatever their other seeds gave")  # fmt: skip
    return notes


def _refuse(ladder: Ladder) -> LadderTransfer:
    nothing = (None, None)
    words = f"unsettled: no {ladder.against} has an optimum with an interval, see their status"
    return LadderTransfer(
        ladder.against, ladder.settings["parameterization"], ladder.fixed, dict(ladder.settings), tuple(ladder.rungs),
        (), None, nothing, None, None, None, None, None, None, None, None, None, (), "unsettled", words, None, nothing,
        None, (), {}, (),
    )  # fmt: skip
