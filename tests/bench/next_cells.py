"""Equal extra compute three ways after the same first grid: --next, a plain further budget, more seeds everywhere.

    nice -n 19 python tests/bench/next_cells.py --studies 300 --out next_cells.json

First grid: 4 budgets 1e18 to 2.7e19 (factor 3), 7 sizes within 6x of the optimum, one seed, noise .5% of the loss;
the law is Besiroglu et al.'s, or a form that no fit here represents. Extra compute: `next budget` one more of 7 sizes,
whose whole cost is the sum given; `seeds` the first grid once or twice again; `next` the same sum by propose_cells,
chosen anew for each target, budgets up to that of the plain row. Candidate sizes lie around the *fitted* optimum.
Every arm of a study shares the first grid's losses. Counted: rms error and mean width of the forecast loss in logs,
coverage of its 95% interval, and the width that propose_cells expected over the width found.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from jaxscale.fit import Fit, fit_isoflop
from jaxscale.fit.cells import gather_cells
from jaxscale.laws import SIX_ND, Chinchilla
from jaxscale.nextcells import Candidate, propose_cells
from jaxscale.nextcells.propose import next_budgets
from jaxscale.simulate.forms import build_form
from jaxscale.tables import render_table

LAW = Chinchilla(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
BUDGETS = 1e18 * 3.0 ** np.arange(4)
SIZES, SPAN, NOISE, ROUNDS = 7, 6.0, 0.005, 400
TARGETS = (10.0, 100.0)
GRID_COST = SIZES * BUDGETS.sum()
PLACE = np.geomspace(1 / SPAN, SPAN, SIZES)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--forms", nargs="+", default=["", "broken-N", "kaplan"])
    parser.add_argument("--copies", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = []
    for form in options.forms:
        for copies in options.copies:
            rows += count(form, copies, options.studies)
    columns = ("truth", "extra", "target", "arm", "rms %", "+-", "width %", "coverage", "expected/found", "refused")
    print(render_table(f"{options.studies} studies", columns, [[row[name] for name in columns] for row in rows]))
    if options.out:
        options.out.write_text(json.dumps({"studies": options.studies, "rows": rows}, indent=1))


def count(name: str, copies: int, studies: int) -> list[dict]:
    form = build_form(name, LAW, np.ones(1), BUDGETS.max(), SIX_ND)
    records = [record for number in range(studies) for record in judge(form, copies, number)]
    frame = pd.DataFrame(records)
    rows = []
    for (target, arm), part in frame.groupby(["target", "arm"], sort=False):
        known = part.dropna(subset=["error"])
        square = known["error"] ** 2
        rms, holds = float(np.sqrt(square.mean())), float(known["inside"].mean())
        rows.append({
            "truth": name or "the law", "extra": f"{copies} x grid", "target": f"{target:g}x", "arm": arm,
            "rms %": round(100 * rms, 3), "+-": round(100 * float(square.std() / rms / 2 / np.sqrt(len(square))), 3),
            "width %": round(100 * float(known["width"].mean()), 3), "coverage": round(holds, 3),
            "expected/found": None if known["expected"].isna().all()
            else round(float(known["expected"].mean() / known["width"].mean()), 3),
            "refused": len(part) - len(known),
        })  # fmt: skip
    return rows


def judge(form, copies: int, number: int) -> list[dict]:
    rng = np.random.default_rng([number, copies])
    spend = copies * GRID_COST
    first = run(form, [(C, N) for C in BUDGETS for N in form.optimum(C).N * PLACE], rng)
    fit = fit_isoflop(first, bootstrap=ROUNDS, seed=number)
    records = []
    if fit.verdict:
        return [{"target": t, "arm": arm, "error": None} for t in TARGETS for arm in ("first", "next")]
    row_C = spend / SIZES
    plain = pd.concat([first, run(form, [(row_C, N) for N in fit.predict_optimum(row_C).N * PLACE], rng)])
    again = pd.concat([first, *(run(form, first[["C", "N"]].to_numpy(), rng) for _ in range(copies))])
    arms = {"first": first, "next budget": plain, "seeds": again}
    found = {arm: fit_isoflop(seeded(frame), bootstrap=ROUNDS, seed=number) for arm, frame in arms.items()}
    for times in TARGETS:
        target = times * BUDGETS.max()
        chosen = choose(first, fit, target, spend, row_C)
        more = run(form, [(row["budget"], row["N"]) for row in chosen.rows], rng)
        found["next"] = fit_isoflop(seeded(pd.concat([first, more])), bootstrap=ROUNDS, seed=number)
        expected = chosen.rows[-1]["width"] if chosen.rows else chosen.before["width"]
        for arm, one in found.items():
            records.append({"target": times, "arm": arm, **score(one, form, target),
                            "expected": expected if arm == "next" else None})  # fmt: skip
    return records


def choose(first: pd.DataFrame, fit: Fit, target: float, spend: float, limit: float):
    cells = gather_cells(first)
    offers = [Candidate(C, N, C / 6 / N, C) for C, N in first[["C", "N"]].drop_duplicates().to_numpy()]
    for C in {*next_budgets(BUDGETS, limit), limit} - set(BUDGETS):
        offers += [Candidate(C, N, C / 6 / N, C) for N in fit.predict_optimum(C).N * PLACE]
    return propose_cells(cells, [fit], offers, target_C=target, count=10**6, spend_flops=spend)


def run(form, cells, rng: np.random.Generator) -> pd.DataFrame:
    C, N = np.array(list(cells), float).T
    D = C / 6 / N
    loss = form.measured(N, D) * np.exp(NOISE * rng.standard_normal(len(C)))
    return pd.DataFrame({"N": N, "D": D, "C": C, "loss": loss, "budget": C})


def seeded(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(seed=frame.groupby(["budget", "N"]).cumcount()).reset_index(drop=True)


def score(fit: Fit, form, target: float) -> dict:
    if fit.verdict:
        return {"error": None}
    truth = float(form.optimum(target, SIX_ND).loss)
    drawn = np.asarray(fit.sample_optimum(target).loss)
    low, high = np.quantile(drawn, [0.025, 0.975], method="weibull")
    error = float(np.log(fit.predict_optimum(target).loss / truth))
    return {"error": error, "width": float(np.log(high / low)), "inside": bool(low <= truth <= high)}


if __name__ == "__main__":
    main()
