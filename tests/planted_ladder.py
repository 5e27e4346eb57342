"""Ladders of models with planted two-stage laws: L(N, D), a curve to accuracy, noise of runs and of questions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

SIZES, RATIOS = (190e6, 370e6, 760e6, 1.3e9), (20.0, 40.0, 100.0, 200.0)
TARGETS = {"on line": (4.3e9, 86e9), "10x": (3e9, 600e9), "100x": (9e9, 2e12)}
CHECKPOINTS = 24


@dataclass(frozen=True)
class Planted:
    """One task's truth. `curve`: sigmoid, loglogistic, or gompertz, which neither form of ours can be."""

    alpha: float = 0.3
    beta: float = 0.28
    E: float = 0.5
    share: float = 0.5
    level: float = 1.0
    curve: str = "loglogistic"
    middle: float = 0.75
    steep: float = 7.0
    floor: float = 0.25
    ceiling: float = 1.0
    run_std: float = 0.004
    items: int = 2000
    chance: float = 0.25

    def nll(self, N, D):
        """`level` at the smallest run."""
        rest = self.level - self.E
        return (self.E + rest * self.share * (N / SIZES[0]) ** -self.alpha
                + rest * (1 - self.share) * (D / (SIZES[0] * RATIOS[0])) ** -self.beta)  # fmt: skip

    def accuracy(self, nll):
        rise = self.ceiling - self.floor
        if self.curve == "sigmoid":
            return self.floor + rise / (1 + np.exp(self.steep / self.middle * (nll - self.middle)))
        if self.curve == "loglogistic":
            return self.floor + rise / (1 + (nll / self.middle) ** self.steep)
        return self.floor + rise * np.exp(-np.log(2) * (nll / self.middle) ** (0.6 * self.steep))


def draw_planted(rng: np.random.Generator) -> Planted:
    """A task as tasks are: exponents, floors, curves and sizes over their usual ranges."""
    level = rng.uniform(0.8, 1.4)
    return Planted(
        alpha=rng.uniform(0.17, 0.4), beta=rng.uniform(0.17, 0.4), E=level * rng.uniform(0.3, 0.6),
        share=rng.uniform(0.35, 0.65), level=level, curve=str(rng.choice(["sigmoid", "loglogistic", "gompertz"])),
        middle=level * rng.uniform(0.65, 0.85), steep=rng.uniform(5, 10), floor=0.25 + rng.uniform(-0.03, 0.03),
        ceiling=1 - rng.choice([0.0, rng.uniform(0, 0.08)]), run_std=rng.uniform(0.002, 0.006),
        items=int(rng.choice([600, 1200, 5000, 10000])),
    )  # fmt: skip


def make_ladder(tasks: dict[str, Planted], rng: np.random.Generator, sizes=SIZES, ratios=RATIOS) -> pd.DataFrame:
    """Rows (run, step, task) of a grid and the targets; the last step is the end, earlier ones lie on one curve."""
    runs = {f"{N:.0f}-{ratio:g}": (N, ratio * N, "train", CHECKPOINTS) for N in sizes for ratio in ratios}
    runs |= {name: (N, D, "eval", 1) for name, (N, D) in TARGETS.items()}
    rows = []
    for run, (N, D, role, steps) in runs.items():
        way = np.linspace(1 / steps, 1, steps)
        for task, law in tasks.items():
            drift = np.exp(law.run_std * rng.standard_normal())
            nll = law.nll(N, D * way) * (1 + 0.15 * (1 - way)) * drift * np.exp(0.002 * rng.standard_normal(steps))
            p = np.clip(law.accuracy(nll), 0, 1)
            right = rng.binomial(law.items, p) / law.items
            rows.append(pd.DataFrame({
                "run": run, "step": np.arange(steps) + 1, "N": N, "D": D * way, "C": 6 * N * D * way, "task": task,
                "nll": nll, "accuracy": right, "items": law.items, "chance": law.chance, "role": role,
            }))  # fmt: skip
    return pd.concat(rows, ignore_index=True)
