"""The count of next_cells.py at a tenth of its time: choices are made for a few first grids, and drawn many times.

    nice -n 19 python tests/bench/next_cells_short.py --choices 12 --draws 25 --truths law broken-N

A choice is made by propose_cells for each of `choices` first grids; then all losses, those of the first grid too, are
drawn anew `draws` times for every arm. What is lost: the tie between a choice and the noise that led to it. The
estimator is fit_isoflop's with the skew held at its prior's mean and the variance of a minimum by the delta method,
not by the bootstrap (`fit_short`); the loss law averaged over E and its widening for misfit are the fit's own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from next_cells import BUDGETS, GRID_COST, PLACE, SIZES, TARGETS, World, build_world, choose, score, sum_up

from jaxscale.fit import fit_isoflop
from jaxscale.fit.frontier import LossLaws
from jaxscale.fit.isoflop import _fit_loss_law
from jaxscale.fit.minima import Curve
from jaxscale.fit.powers import minimum_powers, powers_hat
from jaxscale.fit.resample import NoiseModel
from jaxscale.tables import render_table

ROUNDS = 300


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--choices", type=int, default=12)
    parser.add_argument("--draws", type=int, default=25)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--truths", nargs="+", default=["law", "broken-N", "falling", "kaplan", "cells"])
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    for name in options.truths:
        world, records = build_world(name), []
        for number in range(options.choices):
            records += draw_arms(world, options.copies, number, options.draws)
        rows = sum_up(pd.DataFrame(records))
        found += [{"truth": name, **row} for row in rows]
        title = f"{name}: {options.choices} choices, {options.draws} draws of each"
        print(render_table(title, tuple(rows[0]), [[*row.values()] for row in rows]), flush=True)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1))


def draw_arms(world: World, copies: int, number: int, draws: int) -> list[dict[str, Any]]:
    """Errors of every arm under fresh losses, its cells from one first grid."""
    form, spend = world.form, copies * GRID_COST
    cells = [(C, N, 0) for C in BUDGETS for N in form.optimum(C).N * PLACE]
    first = world.run(cells, number)
    fit = fit_isoflop(first, bootstrap=150, seed=number)
    if fit.verdict:
        return []
    row_C = spend / SIZES
    arms = {
        "first": cells,
        "next budget": cells + [(row_C, N, 0) for N in fit.predict_optimum(row_C).N * PLACE],
        "seeds": [(C, N, k) for k in range(copies + 1) for C, N, _ in cells],
        "plain grid": [(C, N, 0) for C in BUDGETS * (1 + copies) for N in form.optimum(C).N * PLACE],
    }
    expected: dict[str, float] = {}
    for times in TARGETS:
        rows = choose(first, fit, times * BUDGETS.max(), spend, row_C, {}).rows
        arms[f"next {times:g}"] = cells + [(row["budget"], row["N"], row["seed"]) for row in rows]
        expected[f"next {times:g}"] = rows[-1]["width"]
    records = []
    for draw in range(draws):
        study = 10_000 + 1000 * number + draw
        for arm, design in arms.items():
            laws = fit_short(world.run(design, study), study)
            top = sum(C for C, _, _ in design if 1.1 * BUDGETS[-1] < C) / spend
            records += [
                {"study": study, "target": times, "arm": arm.split(" 1")[0], **score(laws, form, times * BUDGETS.max()),
                 "expected": expected.get(arm), "runs": len(design), "top": top}
                for times in TARGETS if not arm.startswith("next 1") or arm == f"next {times:g}"
            ]  # fmt: skip
    return records


def fit_short(frame: pd.DataFrame, seed: int) -> tuple[LossLaws, LossLaws] | None:
    """Point and draws of the loss law through the minima; None where a lowest loss lies at an end of its sizes."""
    C, N, loss = (frame[name].to_numpy() for name in ("C", "N", "loss"))
    parts: list[tuple[Curve, np.ndarray, float, float]] = []
    for budget in np.unique(C):
        inside = budget == C
        sizes, cell, runs = np.unique(N[inside], return_inverse=True, return_counts=True)
        mean = np.bincount(cell, loss[inside]) / runs
        ss = float(((np.log(loss[inside]) - np.log(mean)[cell]) ** 2).sum())
        curve = Curve(float(budget), np.log(sizes), np.log(sizes), mean, runs.astype(float), cell)
        if 0 < np.argmin(mean) < len(mean) - 1:
            fitted = powers_hat(curve, 0.0) @ mean
            parts.append((curve, mean / fitted - 1, ss, float(inside.sum() - len(sizes))))
    if len(parts) < 2:
        return None
    curves, residuals, seed_ss, seed_dof = zip(*parts, strict=True)
    r, w = np.concatenate(residuals), np.concatenate([curve.weight for curve in curves])
    stratum = np.repeat(np.arange(len(curves)), [len(curve.x) for curve in curves])
    dof = np.array([len(curve.x) - 3.0 for curve in curves])
    model = NoiseModel(r, 0 * r, w, stratum, np.arange(len(r)), dof, np.array(seed_ss), np.array(seed_dof))
    found = [minimum_powers(curve, curve.loss[None], 0.0) for curve in curves]
    leverage = [_leverage(curve, float(x[0])) for curve, (x, _) in zip(curves, found, strict=True)]
    lowest, at = np.array([float(value[0]) for _, value in found]), np.array([curve.C for curve in curves])
    law, draws, _ = _fit_loss_law(at, lowest, model.scales() ** 2 * leverage, model.total_dof, ROUNDS, seed)
    return law, draws


def _leverage(curve: Curve, x: float) -> float:
    X = np.vander(curve.x - x, 3, increasing=True)
    return float(np.linalg.inv(X.T @ (curve.weight[:, None] * X))[0, 0])


if __name__ == "__main__":
    main()
