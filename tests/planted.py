"""Studies drawn from a known law, for tests that count."""

import numpy as np
import pandas as pd

from jaxscale.laws import Chinchilla

LAW = Chinchilla(E=1.8, A=480.0, B=2085.0, alpha=0.34, beta=0.37)


def draw_grid(
    *, budgets=4, sizes=7, noise=0.0, seed=0, factor=3.0, span=6.0, seeds=1, law=LAW, first=1e18
) -> pd.DataFrame:
    """IsoFLOP grid with sizes within `span` of the optimum; log-normal noise of deviation `noise`."""
    rng = np.random.default_rng(seed)
    rows = []
    for C in first * factor ** np.arange(budgets):
        for N in law.optimum(C).N * np.geomspace(1 / span, span, sizes):
            for s in range(seeds):
                D = C / 6 / N
                loss = law.loss(N, D) * np.exp(noise * rng.standard_normal())
                rows.append({"N": N, "D": D, "C": C, "loss": loss, "budget": C, "seed": s})
    return pd.DataFrame(rows)
