"""The next cells of any table of runs: candidates are its own sizes and seven about the optimum of each new budget.

python tests/bench/next_cells_tables.py TABLE.csv --next 12 [--columns N=n_params C=c_flop loss=loss_nats_per_token]
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from jaxscale.fit import fit_isoflop
from jaxscale.fit.cells import gather_cells
from jaxscale.nextcells import Candidate, next_budgets, propose_cells


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("table")
    parser.add_argument("--next", type=int, default=12)
    parser.add_argument("--columns", nargs="*", default=[])
    parser.add_argument("--where", default="N > 0")
    options = parser.parse_args()
    frame = pd.read_csv(options.table)
    frame = frame.rename(columns={given: name for name, given in (pair.split("=") for pair in options.columns)})
    frame = frame.query(options.where).assign(D=lambda f: f["D"] if "D" in f else f["C"] / 6 / f["N"])
    cells, fit = gather_cells(frame), fit_isoflop(frame)
    target = 10 * float(cells.budget_C.max())
    measured = zip(cells.budget_C[cells.budget], cells.N, cells.D, cells.C, cells.seed_dof, strict=True)
    offers = [Candidate(float(b), N, D, C, int(dof) + 1) for b, N, D, C, dof in measured]
    for C in set(next_budgets(cells.budget_C.tolist(), target / 3)) - set(cells.budget_C):
        offers += [Candidate(C, N, C / 6 / N, C) for N in fit.predict_optimum(C).N * np.geomspace(1 / 6, 6, 7)]
    print(propose_cells(cells, [fit], offers, target_C=target, count=options.next))


if __name__ == "__main__":
    main()
