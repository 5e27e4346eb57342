"""Equal compute four ways: --next, a plain further budget, more seeds everywhere, a plain grid from the start.

    nice -n 19 python tests/bench/next_cells.py --studies 300 --out next_cells.jsonl      goes on where it stopped

First grid: 4 budgets 1e18 to 2.7e19 (factor 3), 7 sizes within 6x of the optimum, one seed; then `copies` times its
cost again. `next budget`: one more of 7 sizes for the whole sum; `seeds`: the first grid once or twice again; `next`:
the same sum by propose_cells, chosen anew for each target, budgets up to that of the plain row; `plain grid`: no first
grid, 4 budgets of 7 sizes for first grid and sum together. Truths (law: Besiroglu et al.'s):

    law, broken-N, kaplan  noise .5% of the loss; the last two are forms that no fit here represents (simulate/forms.py)
    falling                the law, noise C^-1/3: 1% at the smallest budget, .33% at the largest, .23% at 3x that
    cells                  the law, noise .43%, and .25% that all runs of a cell share (together .5%)

Candidate sizes lie around the *fitted* optimum. A run (cell and seed) has the same loss in every arm of a study.
Counted: rms error and mean width of the forecast loss in logs, coverage of its 95% interval, and the width that
propose_cells expected over the width found. Only the parts of fit_isoflop that make the loss law are run for the arms
(`fit_loss`), which is a third of the time; study 0 of each truth is checked against the whole fit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxscale.fit import Fit, curves, fit_isoflop
from jaxscale.fit.cells import gather_cells
from jaxscale.fit.frontier import LossLaws
from jaxscale.fit.isoflop import _fit_loss_law, _loss_variance
from jaxscale.fit.readings import read_minimum
from jaxscale.laws import SIX_ND, Chinchilla
from jaxscale.nextcells import Candidate, NextCells, propose_cells
from jaxscale.nextcells.propose import next_budgets
from jaxscale.simulate.forms import Form, build_form
from jaxscale.tables import render_table

LAW = Chinchilla(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
BUDGETS = 1e18 * 3.0 ** np.arange(4)
SIZES, SPAN, ROUNDS = 7, 6.0, 400
TARGETS = (10.0, 100.0)
GRID_COST = SIZES * BUDGETS.sum()
PLACE = np.geomspace(1 / SPAN, SPAN, SIZES)
VARIANTS: dict[str, dict[str, Any]] = {"next": {}}


@dataclass(frozen=True)
class World:
    """What is true: expected loss, a run's deviation at 1e18 FLOPs, its power of C, deviation that a cell's runs share.

    A run's errors hang on (study, budget, N, seed) alone.
    """

    form: Form
    noise: float = 0.005
    power: float = 0.0
    cell: float = 0.0

    def run(self, cells: Iterable[tuple[float, float, int]], study: int) -> pd.DataFrame:
        """One row a (C, N, seed)."""
        C, N, seed = (np.array(part) for part in zip(*cells, strict=True))
        loss = self.form.measured(N, C / 6 / N) * np.exp([self._error(study, *c) for c in zip(C, N, seed, strict=True)])
        return pd.DataFrame({"N": N, "D": C / 6 / N, "C": C, "loss": loss, "budget": C, "seed": seed})

    def _error(self, study: int, C: float, N: float, seed: int) -> float:
        key = [study, round(1e6 * np.log(C)), round(1e6 * np.log(N))]
        shared = self.cell * np.random.default_rng(key).standard_normal() if self.cell else 0.0
        scale = self.noise * (C / BUDGETS[0]) ** self.power
        return float(shared + scale * np.random.default_rng([*key, int(seed)]).standard_normal())


def build_world(name: str) -> World:
    """A truth by the name that the module's table gives it."""
    form = build_form(name if name in ("broken-N", "kaplan") else "", LAW, np.ones(1), BUDGETS.max(), SIX_ND)
    if name == "falling":
        return World(form, 0.01, -1 / 3)
    return World(form, 0.00433, cell=0.0025) if name == "cells" else World(form)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--truths", nargs="+", default=["law", "broken-N", "kaplan", "falling", "cells"])
    parser.add_argument("--copies", nargs="+", type=int, default=[2])
    parser.add_argument("--out", type=Path, default=Path("next_cells.jsonl"))
    options = parser.parse_args()
    count(options.truths, options.copies, options.studies, options.out)
    show(options.out)


def count(truths: list[str], copies: list[int], studies: int, out: Path) -> None:
    """Every study that `out` lacks, a line a study, truth and sum; truths in turn, so that any stop is a fair count."""
    done = {tuple(json.loads(line)[:3]) for line in out.read_text().splitlines()} if out.exists() else set()
    worlds = {name: build_world(name) for name in truths}
    with out.open("a") as file:
        for number, name, extra in product(range(studies), truths, copies):
            if (number, name, extra) not in done:
                line = [number, name, extra, judge(worlds[name], extra, number)]
                print(json.dumps(line), file=file, flush=True)


def show(out: Path) -> None:
    """The counts of every truth and sum in `out`."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    records = pd.DataFrame([{"truth": name, "extra": extra, **row} for _, name, extra, rows in lines for row in rows])
    for (name, extra), frame in records.groupby(["truth", "extra"], sort=False):
        rows = sum_up(frame)
        title = f"{name}, {extra} x the first grid more, {frame['study'].nunique()} studies"
        print(render_table(title, tuple(rows[0]), [[*row.values()] for row in rows]))


def sum_up(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a target and arm."""
    plain = frame[frame["arm"] == "next budget"].set_index(["target", "study"])["error"] ** 2
    rows = []
    for (target, arm), part in frame.groupby(["target", "arm"], sort=False):
        known = part.dropna(subset=["error"])
        square = known.set_index("study")["error"] ** 2
        rms, holds = float(np.sqrt(square.mean())), float(known["inside"].mean())
        gain = (square - plain[target]).dropna()  # the same studies, so that what they share falls out
        rows.append({
            "target": f"{target:g}x", "arm": arm,
            "rms %": round(100 * rms, 3), "+-": round(100 * float(square.std() / rms / 2 / np.sqrt(len(square))), 3),
            "over next budget, in se": round(float(gain.mean() / max(gain.std(), 1e-30) * np.sqrt(len(gain))), 1),
            "width %": round(100 * float(known["width"].mean()), 3), "coverage": round(holds, 3),
            "expected/found": None if known["expected"].isna().all()
            else round(float(known["expected"].mean() / known["width"].mean()), 3),
            "runs": round(float(known["runs"].mean()), 1), "top share": round(float(known["top"].mean()), 2),
            "refused": len(part) - len(known),
        })  # fmt: skip
    return rows


def judge(world: World, copies: int, number: int) -> list[dict[str, Any]]:
    """Errors of every arm for one study."""
    spend, form = copies * GRID_COST, world.form
    first = world.run([(C, N, 0) for C in BUDGETS for N in form.optimum(C).N * PLACE], number)
    fit = fit_isoflop(first, bootstrap=150, seed=number)
    if fit.verdict:
        return [{"study": number, "target": t, "arm": arm, "error": None} for t in TARGETS for arm in ("first", "next")]
    row_C = spend / SIZES
    plain = world.run([(row_C, N, 0) for N in fit.predict_optimum(row_C).N * PLACE], number)
    again = [(C, N, k) for k in range(1, copies + 1) for C, N in first[["C", "N"]].to_numpy()]
    whole = [(C, N, 0) for C in BUDGETS * (1 + copies) for N in form.optimum(C).N * PLACE]
    arms = {"first": first, "next budget": pd.concat([first, plain]),
            "seeds": pd.concat([first, world.run(again, number)]), "plain grid": world.run(whole, number)}  # fmt: skip
    common = {arm: fit_loss(frame.reset_index(drop=True), number) for arm, frame in arms.items()}
    if not number:
        _check_short(first, common["first"])
    records = []
    for times in TARGETS:
        found, target, expected = dict(common), times * BUDGETS.max(), {}
        for name, options in VARIANTS.items():
            chosen = choose(first, fit, target, spend, row_C, options)
            more = world.run([(row["budget"], row["N"], row["seed"]) for row in chosen.rows], number)
            arms[name] = pd.concat([first, more], ignore_index=True)
            found[name] = fit_loss(arms[name], number)
            expected[name] = chosen.rows[-1]["width"]
        for arm, one in found.items():
            top = arms[arm].query(f"C > {1.1 * BUDGETS[-1]}")["C"].sum()
            records.append({"study": number, "target": times, "arm": arm, **score(one, form, target),
                            "expected": expected.get(arm), "runs": len(arms[arm]), "top": top / spend})  # fmt: skip
    return records


def fit_loss(frame: pd.DataFrame, seed: int, rounds: int = 150) -> tuple[LossLaws, LossLaws] | None:
    """Point and draws of the loss law as fit_isoflop has them; None under two usable budgets."""
    cells = gather_cells(frame)
    read = curves.split_curves(cells)
    reading = curves.choose_reading(read, cells, "auto", "auto")
    read = curves.weigh_curves(read, reading)
    found = [(curve, minimum) for curve in read if (minimum := read_minimum(curve, reading)).status == "ok"]
    if len(found) < 2:
        return None
    read, minima = [curve for curve, _ in found], [minimum for _, minimum in found]
    model, windows = curves.model_noise(read, cells, reading)
    drawn = curves.redraw_minima(read, reading, model, windows, "residual", rounds, np.random.default_rng(seed))[2]
    C, loss = np.array([curve.C for curve in read]), np.array([minimum.loss_opt for minimum in minima])
    variance = _loss_variance(loss, drawn, model)
    law, draws, _ = _fit_loss_law(C, loss, variance, model.total_dof, ROUNDS, seed)
    return law, draws


def _check_short(frame: pd.DataFrame, short: tuple[LossLaws, LossLaws] | None) -> None:
    """The short fit against the whole one: forecasts within a fifth of an interval, widths within a fifth."""
    whole, target = fit_isoflop(frame, bootstrap=ROUNDS), TARGETS[0] * BUDGETS.max()
    assert short is not None
    low, point, high = predict(short, target)
    drawn = np.quantile(np.asarray(whole.sample_optimum(target).loss), [0.025, 0.975])
    assert abs(point - float(whole.predict_optimum(target).loss)) < 0.2 * (drawn[1] - drawn[0])
    assert abs(np.log((high - low) / (drawn[1] - drawn[0]))) < 0.2, (low, high, drawn)


def predict(laws: tuple[LossLaws, LossLaws], target: float) -> tuple[float, float, float]:
    """Low end, forecast and high end of the loss at `target` FLOPs."""
    point, drawn = (law.E + law.A * target**-law.alpha for law in laws)
    low, high = np.quantile(drawn, [0.025, 0.975], method="weibull")
    return float(low), float(point[0]), float(high)


def choose(
    first: pd.DataFrame, fit: Fit, target: float, spend: float, limit: float, options: dict[str, Any]
) -> NextCells:
    """The verb's choice for the sum, from the measured sizes and seven about the fitted optimum of each new budget."""
    offers = [Candidate(C, N, C / 6 / N, C, 1) for C, N in first[["C", "N"]].to_numpy()]
    for C in {*next_budgets(BUDGETS, limit), limit} - set(BUDGETS):
        offers += [Candidate(C, N, C / 6 / N, C) for N in fit.predict_optimum(C).N * PLACE]
    return propose_cells(gather_cells(first), [fit], offers, target_C=target, count=10**6, spend_flops=spend, **options)


def score(fit: tuple[LossLaws, LossLaws] | None, form: Form, target: float) -> dict[str, Any]:
    """Error, width and cover of the forecast; error None where there is none."""
    if fit is None:
        return {"error": None}
    truth = float(form.optimum(target, SIX_ND).loss)
    low, point, high = predict(fit, target)
    return {"error": float(np.log(point / truth)), "width": float(np.log(high / low)), "inside": low <= truth <= high}


if __name__ == "__main__":
    main()
