"""Learning-rate sweeps whose optima, shifts and regrets are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def curve(u: np.ndarray, tilt: float) -> np.ndarray:
    """Excess over the lowest loss at u doublings from the optimum, for curvature 1."""
    return u**2 / 2 if tilt == 0 else (np.exp(tilt * u) - 1 - tilt * u) / tilt**2


def plant_sweep(
    rng: np.random.Generator,
    *,
    rungs: Sequence[int] = (16, 32, 64, 128),
    rates: int = 9,
    seeds: int = 2,
    noise: float = 0.004,
    shift: float = 0.0,
    tilt: float = 0.6,
    curvature: float = 0.03,
    seed_noise: float = 0.0,
    shared: float = 0.0,
    seed_lean: float = 0.0,
    center: float | None = None,
    diverge_at: float = 99.0,
    excess: Any = None,
    against: str = "width",
    parameterization: str = "mup",
) -> tuple[pd.DataFrame, dict[int, tuple[float, float]]]:
    """Rows, and {rung: (log2 lr*, loss there)}. Noises are shares of the loss; `shared` is the variance share of the
    seed's offset that rungs have in common; `seed_lean` noise of the slope per doubling; runs more than `diverge_at`
    doublings above the optimum diverge; `excess(u)` replaces the curve."""
    x = -9.0 + np.arange(rates)
    middle = x.mean() - 0.3 if center is None else center
    truth, rows = {}, []
    common = rng.standard_normal(seeds)
    for k, rung in enumerate(rungs):
        best, loss = middle + shift * (k - (len(rungs) - 1) / 2), 1.75 + 2.4 * rung**-0.5
        own = np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.standard_normal(seeds)
        lean = rng.standard_normal(seeds)
        truth[rung] = (best, loss)
        for i in range(rates):
            u = np.array(x[i] - best)
            height = excess(u) if excess is not None else curvature * curve(u, tilt)
            for seed in range(seeds):
                error = noise * rng.standard_normal() + seed_noise * own[seed] + seed_lean * lean[seed] * float(u)
                done = float(u) <= diverge_at
                rows.append({
                    "parameterization": parameterization, "width": rung if against == "width" else 32,
                    "depth": 2 if against == "width" else rung, "tokens": 300032, "batch_tokens": 256, "steps": 1172,
                    "lr": float(2.0 ** x[i]), "weight_decay": 2.0, "init_scale": 1.0, "seed": seed,
                    "state": "done" if done else "diverged", "reason": "" if done else "loss is nan at step 100",
                    "loss": float((loss + height) + loss * error) if done else None,
                    "run_id": f"{parameterization}-{rung}-{i}-{seed}",
                })  # fmt: skip
    return pd.DataFrame(rows), truth
