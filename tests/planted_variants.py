"""Studies of variants with planted laws L_v(C) = E + A (C / 1e18)^-alpha, for tests that count."""

import numpy as np
import pandas as pd

FIRST = 1e18
SAME = {"adam": (1.8, 1.2, 0.15), "sgd": (1.8, 1.26, 0.15)}
SLOPES = {"adam": (1.8, 1.2, 0.15), "sgd": (1.8, 1.23, 0.165)}
SEPARATE = {"adam": (1.8, 1.2, 0.15), "sgd": (1.74, 1.3, 0.145)}
IDENTICAL = {"adam": (1.8, 1.2, 0.15), "sgd": (1.8, 1.2, 0.15)}


def loss_of(law, C):
    E, A, alpha = law
    return E + A * (C / FIRST) ** -alpha


def draw_variants(
    laws, budgets=4, sizes=5, noise=0.003, seeds=1, seed=0, factor=3.0, span=4.0, curvature=0.1, common=0.0, speed=None
) -> pd.DataFrame:
    """IsoFLOP curves whose minima lie on the laws; `common` of the noise's variance is that of the seed."""
    rng = np.random.default_rng(seed)
    rows = []
    for C in FIRST * factor ** np.arange(budgets):
        best = 1e7 * (C / FIRST) ** 0.5
        for ratio in np.geomspace(1 / span, span, sizes) if sizes > 1 else (1.0,):
            for s in range(seeds):
                shared = rng.standard_normal()
                for name, law in laws.items():
                    z = np.sqrt(common) * shared + np.sqrt(1 - common) * rng.standard_normal()
                    rise = curvature / 2 * np.log(ratio) ** 2
                    row = {
                        "variant": name,
                        "C": C,
                        "N": best * ratio,
                        "D": C / 6 / best / ratio,
                        "budget": C,
                        "seed": s,
                    }
                    rows.append(row | {"loss": loss_of(law, C) * np.exp(rise + noise * z)})
                    if speed is not None:
                        rows[-1]["seconds"] = C / speed[name]
    return pd.DataFrame(rows)
