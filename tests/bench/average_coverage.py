"""How often the average's interval holds the truth, with both approaches right and with one of them wrong.

Command: `PYTHONPATH=tests python tests/bench/average_coverage.py 150`. Results: docs/backtests.md.
Studies of Chinchilla's law, 5 budgets x 7 sizes, noise .5%; asked at 10 times the largest budget.
"""

import sys
from collections import defaultdict
from dataclasses import replace

import numpy as np
from planted import LAW, draw_grid

from jaxscale.fit import Fit, fit_isoflop, fit_parametric
from jaxscale.forecast import average_answer

C = 10 * 81e18
HELD_E = (None, 1.6, 1.0)
FACTORS = ((1.1, 1.005), (1.2, 1.01), (1.5, 1.03))
"""By how much a wrong isoflop fit has N_opt and the loss too high; also their inverses."""


def move_fit(fit: Fit, size: float, loss: float) -> Fit:
    """An isoflop fit and its rounds with N_opt and the loss times a factor."""
    by = {"G": size, "E": loss, "A": loss}
    draws = {name: [x * by.get(name, 1.0) for x in values] for name, values in fit.draws.items()}
    law = {name: x * by.get(name, 1.0) for name, x in (fit.loss_law or {}).items()}
    return replace(fit, params=fit.params | {"G": fit.params["G"] * size}, loss_law=law, draws=draws)


def main(studies: int) -> None:
    found = defaultdict(list)
    best = LAW.optimum(C)
    for seed in range(studies):
        grid = draw_grid(budgets=5, noise=0.005, seed=seed)
        isoflop = fit_isoflop(grid, bootstrap=200, seed=seed)
        laws = {E: fit_parametric(grid, bootstrap=200, seed=seed, fix={"E": E} if E else None) for E in HELD_E}
        pairs = {f"E held at {E}" if E else "both right": (isoflop, law) for E, law in laws.items()}
        for n, x in (*FACTORS, *((1 / n, 1 / x) for n, x in FACTORS)):
            pairs[f"isoflop N_opt x{n:.3g}, loss x{x:.4g}"] = (move_fit(isoflop, n, x), laws[None])
        for case, fits in pairs.items():
            for answer in (*fits, average_answer(fits)):
                drawn = answer.sample_optimum(C)
                for name, rounds, truth in (("N_opt", drawn.N, best.N), ("loss", drawn.loss, best.loss)):
                    low, high = np.quantile(rounds, [0.025, 0.975], method="weibull")
                    found[case, answer.method, name].append((low <= truth <= high, np.log(high / low)))
    for (case, method, name), hits in found.items():
        inside, width = np.array(hits, float).T
        print(f"{case:40} {method:10} {name:6} {inside.mean():.3f}  width {np.median(width):.3g}  n {len(hits)}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
