"""What letting the loss law drift gains: rolling extrapolation of measured minima, with and without.

Command: `python tests/bench/loss_drift.py [STUDY_DIR ..]`, half a minute; reads ../shared/data (JAXSCALE_SHARED) and
the study folders named. The minima are those of the whole table, their noise is taken as .2%; from four budgets or more
every later one 2.5 to 35 times beyond is predicted by `average_loss_laws`, with drifts of 0 only and with DRIFTS.
"""

import os
import sys
from pathlib import Path

import numpy as np
from public_backtests import sources

from jaxscale.fit import fit_isoflop, frontier
from jaxscale.source import read_observations

NOISE, REACH = 0.002, (2.5, 35.0)
ARMS = {"exact law": (np.zeros(1), np.zeros(1)), "drifting": (frontier.DRIFTS, frontier.SCATTERS)}


def predict(C: np.ndarray, loss: np.ndarray, k: int, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted losses, and draws (rounds, targets), from the first k minima."""
    rng, variance = np.random.default_rng(0), np.full(k, NOISE**2)
    law, draws, _ = frontier.average_loss_laws(C[:k], loss[:k], variance, 20.0, 1000, rng)
    drawn = draws.E[:, None] + draws.A[:, None] / targets ** draws.alpha[:, None]
    return law.E[0] + law.A[0] / targets ** law.alpha[0], drawn


def roll(C: np.ndarray, loss: np.ndarray) -> tuple[float, int, int]:
    """rms of the log error, targets inside the 95% interval, targets."""
    errors: list[float] = []
    inside: list[bool] = []
    for k in range(4, len(C)):
        reach = C[k:] / C[k - 1]
        near = (reach > REACH[0]) & (reach < REACH[1])
        if near.any():
            point, drawn = predict(C, loss, k, C[k:][near])
            low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
            errors += list(np.log(point / loss[k:][near]))
            inside += list((low <= loss[k:][near]) & (loss[k:][near] <= high))
    return float(np.sqrt(np.mean(np.square(errors)))), sum(inside), len(inside)


def main() -> None:
    shared = Path(os.environ.get("JAXSCALE_SHARED", Path(__file__).parents[3] / "shared")) / "data"
    found = {name: obs for name, obs in sources(shared).items() if name.startswith("P") or name == "CS336"}
    found |= {Path(folder).name: read_observations(folder) for folder in sys.argv[1:]}
    print(
        "| data | targets | rms, exact law | inside | rms, drifting | inside |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, obs in found.items():
        minima = [budget for budget in fit_isoflop(obs, bootstrap=0).budgets if budget.status == "ok"]
        C, loss = (np.array([getattr(budget, field) for budget in minima]) for field in ("C", "loss_opt"))
        cells = []
        for drifts in ARMS.values():
            frontier.DRIFTS, frontier.SCATTERS = drifts
            rms, inside, count = roll(C, loss)
            cells += [f"{rms:.2%}", f"{inside}"]
        print(f"| {name} | {count} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
