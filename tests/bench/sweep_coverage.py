"""How often the intervals of `analyse_sweep` hold the planted truth: the tables of docs/coverage.md, as Markdown.

python tests/bench/sweep_coverage.py --sweeps 100 > /tmp/sweeps.md     about 20 minutes on one core
python tests/bench/sweep_coverage.py --only forms --sweeps 400
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from planted_sweep import curve, plant_sweep  # noqa: E402

from jaxscale.mup import analyse_sweep  # noqa: E402
from jaxscale.mup.transfer import Transfer  # noqa: E402

GRID = {"seeds": (2, 3, 8), "rates": (7, 9), "noise": (0.002, 0.005, 0.01), "shift": (0.0, 0.1, 0.5, 1.0),
        "seed_noise": (0.0, 0.005)}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "as fitted, tilt .6": {},
    "a parabola, tilt 0": {"tilt": 0.0},
    "tilt 1.2": {"tilt": 1.2},
    "two exponentials, 2^-u/2 and 2^1.5u": {"excess": lambda u: 0.03 * _two(u, 0.5, 1.5)},
    "log cosh on the left, a wall on the right": {"excess": lambda u: 0.03 * _wall(u)},
    "two exponentials, shift .3": {"excess": lambda u: 0.03 * _two(u, 0.5, 1.5), "shift": 0.3},
    "the wall, shift .3": {"excess": lambda u: 0.03 * _wall(u), "shift": 0.3},
    "one seed": {"seeds": 1},
    "seeds that lean .2% a doubling": {"seed_lean": 0.002},
    "the same, 3 seeds": {"seed_lean": 0.002, "seeds": 3},
    "the same, 8 seeds": {"seed_lean": 0.002, "seeds": 8},
    "half of the seed's offset shared by widths": {"seed_noise": 0.005, "shared": 0.5},
    "all of it shared by widths": {"seed_noise": 0.005, "shared": 1.0},
    "widths 16 and 128 alone": {"rungs": (16, 128)},
    "6 widths": {"rungs": (8, 16, 32, 64, 128, 256), "shift": 0.1},
}
COLUMNS = ("optimum", "loss", "shift", "regret bound")


def _two(u: np.ndarray, p: float, q: float) -> np.ndarray:
    """Slow learning and instability as powers of the rate, lowest at 0 with curvature 1."""
    a, b = p * np.log(2), q * np.log(2)
    return (np.exp(-a * u) / a + np.exp(b * u) / b - 1 / a - 1 / b) / (a + b)


def _wall(u: np.ndarray) -> np.ndarray:
    """log cosh to the left; to the right a parabola with a wall two doublings on."""
    right = u**2 / 2 + np.where(u > 2, (np.abs(u) - 2) ** 3, 0.0)
    return np.where(u < 0, np.log(np.cosh(u)), right)


class Count:
    """Held, asked, widths."""

    def __init__(self) -> None:
        self.held, self.asked, self.width, self.other = Counter(), Counter(), defaultdict(list), Counter()

    def add(self, name: str, held: bool, width: float | None) -> None:
        self.held[name] += bool(held)
        self.asked[name] += 1
        if width is not None:
            self.width[name].append(width)

    def __iadd__(self, other: Count) -> Count:
        self.held += other.held
        self.asked += other.asked
        self.other += other.other
        for name, widths in other.width.items():
            self.width[name] += widths
        return self

    def cells(self) -> Iterable[str]:
        for name in COLUMNS:
            asked, held = self.asked[name], self.held[name]
            share = held / max(asked, 1)
            spread = (0.95 * 0.05 / max(asked, 1)) ** 0.5
            yield f"{share:.1%} ±{spread:.1%}, {np.median(self.width[name] or [np.nan]):.3g}"
        yield ", ".join(f"{n} {what}" for what, n in sorted(self.other.items())) or "none"


def judge(
    result: Transfer, truth: dict[int, tuple[float, float]], height: Callable[[float], float], count: Count
) -> None:
    """Adds one sweep's intervals to the count."""
    for one in result.optima:
        if one.status != "ok":
            count.other[one.status] += 1
            continue
        best, loss = truth[one.rung]
        low, high = np.log2(one.lr_interval)
        count.add("optimum", low <= best <= high, high - low)
        count.add("loss", one.loss_interval[0] <= loss <= one.loss_interval[1],
                  100 * (one.loss_interval[1] - one.loss_interval[0]) / loss)  # fmt: skip
    told = result.transfers[0]
    if told.from_rung is None:
        return
    z = np.log2(told.used)
    slope = float(np.polyfit(z, [truth[rung][0] for rung in told.used], 1)[0])
    low, high = told.shift_interval
    count.add("shift", (low is None or low <= slope) and (high is None or slope <= high),
              None if low is None or high is None else high - low)  # fmt: skip
    regret = height(truth[told.from_rung][0] - truth[told.to_rung][0])
    bound = told.regret_high
    if bound is None:
        count.other["regrets unbounded"] += 1
    else:
        count.add("regret bound", regret <= bound, 100 * told.regret_relative_high)


def count_sweeps(sweeps: int, name: str, **planted: Any) -> Count:
    """Sweeps of one plant, seeded by its name."""
    count, tilt = Count(), planted.get("tilt", 0.6)
    excess = planted.get("excess")
    height = (lambda u: float(excess(np.array(u)))) if excess else (lambda u: float(0.03 * curve(np.array(u), tilt)))
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(sweeps):
        rows, truth = plant_sweep(rng, diverge_at=3.5, **planted)
        judge(analyse_sweep(rows), truth, height, count)
    return count


def print_rows(title: str, rows: dict[str, Count]) -> None:
    print(f"| {title} | {' | '.join(COLUMNS)} | not answered |\n|{' --- |' * (len(COLUMNS) + 2)}")
    for name, count in rows.items():
        print(f"| {name} | {' | '.join(count.cells())} |", flush=True)
    print(flush=True)


def print_grid(sweeps: int) -> None:
    """The full factorial, by each factor, and its extreme cells."""
    by: dict[str, Count] = defaultdict(Count)
    cells: dict[str, Count] = {}
    for values in itertools.product(*GRID.values()):
        planted = dict(zip(GRID, values, strict=True))
        name = ", ".join(f"{key} {value:g}" for key, value in planted.items())
        began = time.process_time()
        cells[name] = count_sweeps(sweeps, name, **planted)
        print(f"{name}: {time.process_time() - began:.1f} s", file=sys.stderr, flush=True)
        by["all"] += cells[name]
        for key, value in planted.items():
            by[f"{key} {value:g}"] += cells[name]
    order = ["all", *(f"{key} {value:g}" for key, values in GRID.items() for value in values)]
    print_rows("factor", {name: by[name] for name in order})
    for column in COLUMNS:
        share = {name: one.held[column] / one.asked[column] for name, one in cells.items() if one.asked[column]}
        worst = min(share, key=lambda name: share[name])
        print(f"lowest {column}: {share[worst]:.1%} of {cells[worst].asked[column]} at {worst}")
    print()


def seed_bootstrap(rows: pd.DataFrame, rng: np.random.Generator, rounds: int = 200) -> dict[int, tuple[float, float]]:
    """What the obvious method gives: seeds redrawn, a parabola through the five rates around the lowest mean."""
    found = {}
    for width, cell in rows[rows["state"] == "done"].groupby("width"):
        table = cell.pivot(index="lr", columns="seed", values="loss").dropna()
        x, y = np.log2(table.index.to_numpy(float)), table.to_numpy()
        start = int(np.clip(y.mean(1).argmin() - 2, 0, len(x) - 5))
        x, y = x[start : start + 5], y[start : start + 5]
        drawn = y[:, rng.integers(0, y.shape[1], (rounds, y.shape[1]))].mean(2)
        c2, c1, _ = np.polyfit(x - x.mean(), drawn, 2)
        low, high = np.percentile(x.mean() - c1 / (2 * c2), [2.5, 97.5])
        found[int(width)] = float(low), float(high)
    return found


def print_bootstrap(sweeps: int) -> None:
    """Coverage of the optimum by a bootstrap over seeds, beside this module's."""
    print("| seeds | tilt | bootstrap over seeds | analyse_sweep |\n| --- | --- | --- | --- |")
    for seeds, tilt in itertools.product((2, 3, 8), (0.0, 0.6)):
        rng = np.random.default_rng(seeds)
        held, asked, count = 0, 0, Count()
        for _ in range(sweeps):
            rows, truth = plant_sweep(rng, seeds=seeds, tilt=tilt, diverge_at=3.5)
            for width, (low, high) in seed_bootstrap(rows, rng).items():
                held, asked = held + (low <= truth[width][0] <= high), asked + 1
            judge(analyse_sweep(rows), truth, lambda u: 0.0, count)
        ours = count.held["optimum"] / count.asked["optimum"]
        print(f"| {seeds} | {tilt:g} | {held / asked:.1%} | {ours:.1%} |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--only", choices=("grid", "forms", "bootstrap"))
    options = parser.parse_args()
    if options.only in (None, "grid"):
        print_grid(options.sweeps)
    if options.only in (None, "forms"):
        print_rows("plant", {name: count_sweeps(options.sweeps, name, **planted) for name, planted in FORMS.items()})
    if options.only in (None, "bootstrap"):
        print_bootstrap(options.sweeps)


if __name__ == "__main__":
    main()
