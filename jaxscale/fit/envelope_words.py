"""What an envelope fit tells: points of the envelope, how it came about, and what to know before trusting it."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxscale.fit.bias import Reading
from jaxscale.fit.family import Family
from jaxscale.fit.result import Budget
from jaxscale.fit.stairs import find_climbs, fit_steps
from jaxscale.fit.trajectories import Runs

__all__ = ["describe_envelope", "list_budgets", "note_envelope", "say_flat", "say_refused_rows"]


def list_budgets(
    family: Family, path: np.ndarray, edge: np.ndarray, at: np.ndarray, loss: np.ndarray
) -> tuple[Budget, ...]:
    """The points that stand for the envelope, and the middle of every stretch at its edge."""
    grid, found = family.grid, dict(zip(at.tolist(), loss.tolist(), strict=True))
    starts = np.flatnonzero(np.diff(edge.astype(int), prepend=0) == 1)
    stretch = {int(s): int(np.argmin(np.append(edge[s:], False))) for s in starts}
    for s, length in stretch.items():
        found[s + length // 2] = float(family.losses[path[s + length // 2], s + length // 2])
    reasons = {s + length // 2: _say_edge(grid.there, path, s + length // 2, length) for s, length in stretch.items()}
    return tuple(
        Budget(
            C=float(np.exp(grid.log_C[i])), N_opt=float(grid.N[path[i]]),
            D_opt=float(np.exp(grid.log_C[i] - grid.log_rate[path[i]])), loss_opt=found[i],
            status="edge" if i in reasons else "ok", points=int(grid.there[:, i].sum()), reason=reasons.get(i, ""),
        )
        for i in sorted(found)
    )  # fmt: skip


def _say_edge(there: np.ndarray, path: np.ndarray, i: int, length: int) -> str:
    side = "smallest" if not there[: path[i], i].any() else "largest"
    return f"the lowest is the {side} size with a curve here, {length} of {there.shape[1]} points"


def describe_envelope(
    runs: Runs, family: Family, path: np.ndarray, raw: Reading, drawn: Reading, bias: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What a reader of FIT.json may want to know of how it came about; path (1, K)."""
    grid, climbs = family.grid, find_climbs(path, family.grid.there)
    steps, line = fit_steps(path, grid), np.isfinite(drawn.lines.a)
    low, high = (value[0][climbs.told[0]] for value in (path[:, :-1], path[:, 1:]))
    return {
        "smoothing": family.words, "grid_points": len(grid.log_C), "runs": len(runs.runs), "sizes": len(grid.N),
        "rows_merged": runs.merged, "rows_intermediate": runs.intermediate,
        "climbs": [
            {"C": float(np.exp((grid.log_C[i] + grid.log_C[i + 1]) / 2)), "from_N": float(grid.N[j]),
             "to_N": float(grid.N[k])}
            for i, j, k in zip(np.flatnonzero(climbs.told[0]), low, high, strict=True)
        ],
        "climbs_unused": int((climbs.any & ~climbs.told).sum()),
        "largest_step": float((grid.N[high] / grid.N[low]).max()),
        "steps_reading": {"N": float(steps.a[0]), "D": float(steps.b[0]), "points": int(steps.climbs[0])},
        "bias_nats": {
            name: {"mean": float(v.mean()), "largest": float(v[np.argmax(np.abs(v))])} for name, v in bias.items()
        },
        "bias_a": float(np.median(drawn.lines.a[line]) - raw.lines.a[0]) if line.any() else None,
        "rounds_without_line": float(1 - line.mean()) if len(line) else 0.0, "run_noise_dof": family.run_dof,
    }  # fmt: skip


def note_envelope(facts: dict[str, Any], runs: Runs, family: Family, *, shared: bool, free_E: bool) -> list[str]:
    """Sentences for a reader, the weightiest first."""
    count = len(facts["climbs"])
    notes = [_note_bias(facts, family.noisy), *_note_horizon(runs, shared, family)]
    notes.append(
        f"the laws of N and D run through the {count} computes where a size overtakes one up to "
        f"{facts['largest_step']:.3g} times smaller; least squares through the steps between them, which stand "
        f"still, would give a = {facts['steps_reading']['N']:.3g}"
    )
    if count == 2:
        notes.append("two sizes overtake another: a line through two points cannot be tested")
    if count == 3:
        notes.append("three sizes overtake another: one degree of freedom, lack of fit is hardly testable")
    if facts["climbs_unused"]:
        notes.append(f"{facts['climbs_unused']} changes of size happen where a curve begins or ends, or where fewer "
                     f"than three sizes have one, and tell nothing")  # fmt: skip
    if facts["rounds_without_line"] > 0:
        notes.append(f"{facts['rounds_without_line']:.1%} of the bootstrap rounds have no line through their steps: "
                     f"intervals are without them, and too narrow")  # fmt: skip
    if not free_E:
        notes.append("the envelope does not show an irreducible loss, E is fixed at 0 in the loss law; "
                     "the intervals let it vary")  # fmt: skip
    return notes


def _note_bias(facts: dict[str, Any], noisy: bool) -> str:
    noise, steps = (facts["bias_nats"][name]["mean"] for name in ("noise", "steps"))
    if not noisy:
        return (
            f"the noise is not known: no intervals, and the bias of a minimum over noisy curves stays in the loss law; "
            f"the steps between sizes raise it by {steps:.2g} nats, which are taken off"
        )
    return (
        f"a minimum over noisy curves is biased, here by {noise:+.2g} nats on average, and the steps between sizes add "
        f"{steps:+.2g}: both are taken off the loss law"
    )


def _note_horizon(runs: Runs, shared: bool, family: Family) -> list[str]:
    """What was counted as evidence, and what that leaves out."""
    notes = [f"{runs.merged} rows repeated a checkpoint of their run and were averaged"] if runs.merged else []
    if not runs.named:
        taken = "rows of one size are one curve" if shared else "every row is taken as the end of a run of its own"
        notes.append(f"no run_id column: {taken}")
    if shared:
        notes.append("rows before the end of a run count although its learning-rate schedule was laid out for another "
                     "horizon: their loss is too high, most where no run of the size ends nearby")  # fmt: skip
        if not family.run_dof:
            notes.append("no ends to spare to measure how lucky a run is: intervals know the scatter within curves "
                         "alone, and are too narrow")  # fmt: skip
    elif runs.intermediate:
        notes.append(f"{runs.intermediate} rows before the ends of runs are refused: their learning-rate schedule was "
                     f"laid out for another horizon; --allow-shared-horizon uses them")  # fmt: skip
    return notes


def say_flat(family: Family, climbs: int, least: int) -> str:
    low, high = np.exp(family.grid.log_C[[0, -1]])
    return (
        f"between {low:.3g} and {high:.3g} FLOPs a larger size overtakes a smaller one {climbs} times where three "
        f"sizes have a curve, at least {least} times are needed; train sizes around the optimum of each compute"
    )


def say_refused_rows(runs: Runs, shared: bool) -> str:
    """What a verdict adds where rows before the ends of runs could have made curves."""
    if shared or not runs.intermediate:
        return ""
    return (
        f"; {runs.intermediate} rows before the ends of {len(runs.runs)} runs are refused, their learning-rate "
        f"schedule was laid out for another horizon: --allow-shared-horizon uses them all the same"
    )
