"""The study of the batch, from runs to its JSON: hyperbolas, laws, noise scales beside them, and C_min of every run.

    C_min = C / (1 + B / B_crit(L)),   S_min = S / (1 + B_crit(L) / B)      Kaplan et al. 2020, eq. 5.5 and 5.4

what the run's final loss L would have cost at a batch far below B_crit, and how few steps it would have taken far
above. Kaplan et al. have B_crit by the loss; where a law of D predicts a size left out better, B_crit is that law's at
the run's E_min, which solves E_min (1 + B / B_crit(E_min)) = D. Rows say which (`by`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.batch.cells import pick_cells, pool_seeds
from jaxscale.batch.fit import CLEAR, Law, Target, fit_laws, fit_targets
from jaxscale.batch.read import Points, Runs, read_runs, trace_curves
from jaxscale.batch.result import BatchStudy
from jaxscale.errors import MisuseError
from jaxscale.fit.summary import check_options
from jaxscale.laws.batch import least_compute, least_steps

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["study_batches"]


def study_batches(
    source: str | Path | pd.DataFrame, *, losses: Sequence[float] = (), targets: int = 4, points: Points = "auto",
    columns: Mapping[str, str] | None = None, where: str | None = None, seq_len: int | None = None,
    loss_unit: str = "nats", bootstrap: int = 400, confidence: float = 0.95, seed: int = 0,
) -> BatchStudy:  # fmt: skip
    """Critical batch sizes from runs that differ in their batch; losses in nats per token, batches in tokens.

    `losses`: target losses for every size; none: `targets` of each size's own, where all its batches come. `points`:
    ends of runs, `curves` at a constant rate, or auto: ends where two batches or more have two horizons. MisuseError
    for what cannot be asked, VerdictError where no hyperbola can be fitted.
    """
    check_options(bootstrap=bootstrap, resample="auto", confidence=confidence, seed=seed)
    if targets < 1 or any(not (np.isfinite(loss) and loss > 0) for loss in losses):
        raise MisuseError("loss: targets must be numbers above 0, and there must be one or more")
    runs = read_runs(source, columns=columns, where=where, seq_len=seq_len, loss_unit=loss_unit)
    _check_batches(runs)
    chosen = _choose_points(runs, points)
    used = runs if chosen == "ends" else trace_curves(str(source), runs)
    cells = pick_cells(used.frame)
    sweep = fit_targets(cells, losses=losses, count=targets, seeds=pool_seeds(used.frame) if chosen == "ends" else None,
                        shared=chosen == "curves", bootstrap=bootstrap, confidence=confidence, seed=seed)  # fmt: skip
    laws = fit_laws(sweep.targets, confidence)
    law = _choose_law(laws, len({one.N for one in sweep.targets if one.fit}))
    notes = [
        *runs.notes,
        *_say_spikes(runs),
        *sweep.notes,
        *_say_rates(cells),
        *_say_unreached(sweep.targets),
        *_say_sides(sweep.targets),
    ]
    return BatchStudy(
        source=runs.source, identity=runs.identity, points=chosen, confidence=confidence,
        noise={"log_loss_std": sweep.noise, "from": sweep.noise_from},
        runs=_price_runs(runs, law), cells=[dict(row) for _, row in cells.iterrows()],
        steps=_list_steps(sweep.targets, cells),
        tradeoffs=[_describe_target(one, runs.noise) for one in sweep.targets], laws=laws,
        noise_scale=runs.noise, verdict=_compare(laws, sweep.targets), notes=tuple(notes),
    )  # fmt: skip


def _check_batches(runs: Runs) -> None:
    sizes = sorted(set(runs.frame["batch"]))
    if len(sizes) < 3:
        told = " and ".join(f"{size:g}" for size in sizes)
        raise MisuseError(f"batch: the runs have {told} tokens a step; a hyperbola needs three batches or more, "
                          f"a factor 2 to 4 apart")  # fmt: skip


def _choose_points(runs: Runs, points: Points) -> Points:
    if points != "auto":
        return points
    horizons = runs.frame.groupby(["N", "batch"])["D"].nunique()
    return "curves" if runs.stable and (horizons > 1).sum() < 3 else "ends"


def _choose_law(laws: dict[str, Law], sizes: int) -> Law:
    """Kaplan's law of the loss, unless one of D predicts a size left out better."""
    if "D" in laws and sizes > 1 and laws["D"].left_out_error < laws["loss"].left_out_error:
        return laws["D"]
    return laws.get("loss", laws["constant"])


def _price_runs(runs: Runs, law: Law) -> list[dict[str, Any]]:
    """C_min and S_min of every run; `inside`: where its B_crit was measured, or between."""
    low, high = law.x_range if law.of != "constant" else (0.0, np.inf)
    rows = []
    for run in runs.frame.to_dict("records"):
        B_crit, x = law.of_run(run["D"], run["batch"], run["loss"])
        kept = {name: run[name] for name in ("run_id", "N", "batch", "D", "C", "loss")}
        kept["run_id"] = str(kept["run_id"])
        rows.append(kept | {
            "lr": run["lr"], "steps": run["D"] / run["batch"], "B_crit": B_crit,
            "C_min": float(least_compute(run["C"], run["batch"], B_crit)),
            "S_min": float(least_steps(run["D"] / run["batch"], run["batch"], B_crit)),
            "by": law.of, "inside": bool(low <= x <= high),
        })  # fmt: skip
    return rows


def _list_steps(targets: Sequence[Target], cells: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a size, target and batch: tokens and steps, or why there are none; how the rates there were found."""
    rows = []
    for one in targets:
        for batch, tokens in zip(one.batch, one.tokens, strict=True):
            own = cells[(cells["N"] == one.N) & (cells["batch"] == batch)]
            state = (
                "ok" if np.isfinite(tokens) else "never reached" if np.isinf(tokens) else "passed before its first D"
            )
            known = tokens if state == "ok" else None
            rows.append({"N": one.N, "loss": one.loss, "batch": float(batch), "status": state, "tokens": known,
                         "steps": known and known / batch, "lr_low": own["lr"].min(), "lr_high": own["lr"].max(),
                         "rates": int(own["rates"].min()), "tuned": _join(own["tuned"])})  # fmt: skip
    return rows


def _join(states: pd.Series) -> str:
    counts = states.value_counts()
    return str(counts.index[0]) if len(counts) == 1 else ", ".join(f"{n} {state}" for state, n in counts.items())


def _describe_target(one: Target, noise: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fit of one size and target as a flat row, with the noise scale that runs of this size had at that loss."""
    known = np.isfinite(one.tokens)
    row: dict[str, Any] = {"N": one.N, "loss": one.loss, "batches": int(known.sum()),
                           "unreached": [float(b) for b in one.batch[np.isposinf(one.tokens)]]}  # fmt: skip
    for name in ("S_min", "E_min", "B_crit"):
        estimate = one.fit[name] if one.fit else None
        low, high = estimate.interval if estimate else (None, None)
        row |= {name: estimate.value if estimate else None, f"{name}_low": low, f"{name}_high": high}
    row["residual_std"] = one.fit.residual_std if one.fit else None
    row["status"] = "ok" if one.fit else "fewer than three batches reach it"
    return row | _noise_at(one, noise)


def _noise_at(one: Target, noise: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """B_simple at the target's loss: along each run's curve by log-linear interpolation, then the mean of logs over
    runs, weighted by their errors; its standard error is the larger of that and what the runs differ by."""
    logs, weights = [], []
    for run in {row["run_id"] for row in noise if row["N"] == one.N}:
        rows = sorted((r["loss"], r["B_simple"], r["std_error"]) for r in noise if r["run_id"] == run and r["B_simple"])
        if len(rows) < 2 or not rows[0][0] <= one.loss <= rows[-1][0]:
            continue
        loss, B, error = (np.array(column) for column in zip(*rows, strict=True))
        logs.append(float(np.interp(np.log(one.loss), np.log(loss), np.log(B))))
        weights.append(1 / max(float(np.interp(one.loss, loss, error / B)), 1e-3) ** 2)
    if not logs:
        return {"B_simple": None, "B_simple_std_error": None, "B_simple_runs": 0}
    w, y = np.array(weights), np.array(logs)
    mean = np.average(y, weights=w)
    apart = np.sqrt(np.average((y - mean) ** 2, weights=w) / max(len(y) - 1, 1))
    value = float(np.exp(mean))
    return {"B_simple": value, "B_simple_std_error": value * float(max(w.sum() ** -0.5, apart)),
            "B_simple_runs": len(y)}  # fmt: skip


def _compare(laws: dict[str, Law], targets: Sequence[Target]) -> str:
    """Whether loss or tokens explain B_crit better, in a sentence."""
    if "D" not in laws:
        return "one target: B_crit is a number, not a law; give more horizons or more --loss"
    sizes = {one.N for one in targets if one.fit}
    if len(sizes) < 2:
        return ("one size: loss and tokens fall together along its curve, so which of them B_crit follows cannot be "
                "told; train a second size")  # fmt: skip
    better, other = sorted((laws["loss"], laws["D"]), key=lambda law: law.left_out_error)
    share = better.better_share
    grows = min(better.left_out_error, other.left_out_error) < laws["constant"].left_out_error
    words = (
        f"a size left out is predicted within {better.left_out_error:.2f} in log B_crit by the law of {better.of}, "
        f"{other.left_out_error:.2f} by that of {other.of}, {laws['constant'].left_out_error:.2f} by a constant"
    )
    sure = share is not None and share >= CLEAR
    told = (
        f"B_crit follows {better.of} rather than {other.of}" if sure else "which of loss and D B_crit follows is open"
    )
    shares = "" if share is None else f"; {better.of} misses less in {share:.0%} of the bootstrap rounds"
    return f"{told}: {words}{shares}" + ("" if grows else "; that it grows at all is not shown")


def _say_spikes(runs: Runs) -> list[str]:
    spiky = [row for row in runs.noise if row["left_out"] > 0]
    if not spiky:
        return []
    most = max(row["left_out"] for row in spiky)
    return [f"noise scale: gradient spikes, lines of more than 10 times the usual square, are left out in {len(spiky)} "
            f"of {len(runs.noise)} windows, at most {most:.0%} of one; B_simple_all has them"]  # fmt: skip


def _say_rates(cells: pd.DataFrame) -> list[str]:
    notes = []
    for state, words in (("one", "were trained at one learning rate, which no sweep chose"),
                         ("edge", "have their best rate at the end of those tried")):  # fmt: skip
        found = cells[cells["tuned"] == state]
        if len(found):
            batches = ", ".join(f"{b:g}" for b in sorted(set(found["batch"])))
            notes.append(f"WARNING: {len(found)} of {len(cells)} cells (batches {batches}) {words}; a batch whose rate "
                         f"is off looks slow, and B_crit is off with it")  # fmt: skip
    return notes


def _say_unreached(targets: Sequence[Target]) -> list[str]:
    notes = []
    for one in targets:
        lost = ", ".join(f"{b:g}" for b in one.batch[np.isposinf(one.tokens)])
        if lost:
            notes.append(f"N {one.N:g}, loss {one.loss:.4g}: batches {lost} never reach it and are left out; give them "
                         f"longer horizons")  # fmt: skip
    return notes


def _say_sides(targets: Sequence[Target]) -> list[str]:
    return [f"N {one.N:g}, loss {one.loss:.4g}: {note}" for one in targets if one.fit for note in one.fit.notes]
