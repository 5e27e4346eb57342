"""A planted sweep of the batch: losses of runs whose critical batch follows a known law of D."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

__all__ = ["PlantedBatch"]


@dataclass(frozen=True)
class PlantedBatch:
    """L = E + (A / N)^alpha + (D0 / E_min)^beta; D = E_min (1 + B / B_crit), B_crit = K E_min^a (or a law of L)."""

    E: float = 1.2
    A: float = 2e3
    alpha: float = 0.4
    D0: float = 3e4
    beta: float = 0.35
    K: float = 4.0
    a: float = 0.5
    of: str = "D"
    alpha_B: float = 0.4
    """Above beta: else D would fall as E_min rises, where the loss is high."""

    def loss(self, N: float, fewest: np.ndarray) -> np.ndarray:
        return self.E + (self.A / N) ** self.alpha + (self.D0 / fewest) ** self.beta

    def critical(self, N: float, fewest: np.ndarray) -> np.ndarray:
        if self.of == "D":
            return self.K * fewest**self.a
        return 1e4 * self.loss(N, fewest) ** (-1 / self.alpha_B)

    def fewest(self, N: float, D: float, B: float) -> float:
        """E_min of a run of D tokens at batch B, by bisection."""
        low, high = np.log(D) - 20, np.log(D)
        for _ in range(100):
            middle = (low + high) / 2
            wanted = np.exp(middle) * (1 + B / self.critical(N, np.exp(middle)))
            low, high = (middle, high) if wanted < D else (low, middle)
        return float(np.exp(low))

    def runs(
        self,
        sizes=(1e4, 4e4),
        batches=(256, 512, 1024, 2048, 4096, 8192, 16384),
        horizons=8,
        noise=0.0,
        rates=1,
        seed=0,
    ) -> pd.DataFrame:
        """Each size at each batch on horizons a factor 2 apart; a rate off by a factor 2 costs 1%."""
        rng = np.random.default_rng(seed)
        rows = []
        for N in sizes:
            for B in batches:
                for D in 1e5 * 2.0 ** np.arange(horizons):
                    for off in range(-(rates // 2), rates // 2 + 1):
                        L = self.loss(N, self.fewest(N, D, B)) * np.exp(noise * rng.standard_normal() + 0.01 * off**2)
                        rows.append({"N": N, "batch": B, "D": D, "loss": L, "lr": 1e-3 * np.sqrt(B) * 2.0**off})
        return pd.DataFrame(rows)
