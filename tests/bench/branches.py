"""Cooldown branches against runs of their own, side by side: exponents, losses, and what was paid.

Command: `python tests/bench/branches.py --out runs/branches_study`; it goes on where it was. Results: docs/branches.md.
Three arms of one study file, each trained and fitted by `jaxscale run` in a folder of its own: branches of WSD trunks,
the same cells as WSD runs, and as cosine runs. Further words go to every arm, as in --data.files 'corpus/*.txt'.
Studies that are trained already: `--folders branches=DIR cosine=DIR`, nothing is trained.
"""

import argparse
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from jaxscale.fit import fit_isoflop, fit_parametric
from jaxscale.format import format_flops
from jaxscale.runs import Plan
from jaxscale.source import read_observations
from jaxscale.sweep import read_plan, read_status

STUDY = Path(__file__).parents[2] / "configs" / "studies" / "branches.py"
ARMS = {
    "branches": ("--grid.schedule", "wsd-branches", "--recipe.schedule", "wsd"),
    "wsd": ("--grid.schedule", "runs", "--recipe.schedule", "wsd"),
    "cosine": ("--grid.schedule", "runs", "--recipe.schedule", "cosine"),
}


def train_arm(study: Path, folder: Path, words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "jaxscale", "run", str(study), "--out", str(folder), *words])
    if done.returncode not in (0, 1):  # 1: it ran, and a fit has no answer
        sys.exit(done.returncode)


def paid(folder: Path, planned: Plan) -> tuple[float, float, float]:
    """FLOPs planned and counted of the grid and its trunks, and their seconds; held-out runs are in every arm."""
    grid = [cell for cell in planned.cells if cell.role != "holdout"]
    results = [status.result for status in read_status(folder, grid) if status.result]
    counted = sum(result.paid_flops for result in results)
    return sum(cell.paid_flops for cell in grid), counted, sum(result.seconds for result in results)


def grid_of(folder: Path) -> pd.DataFrame:
    """Mean log loss of every cell, by budget and N."""
    frame = read_observations(folder).frame
    frame = frame[frame.role == "grid"].assign(log_loss=lambda t: np.log(t.loss))
    return frame.groupby(["budget", "N"]).agg(log_loss=("log_loss", "mean"), runs=("log_loss", "size")).reset_index()


def compare_losses(arms: dict[str, pd.DataFrame], other: str) -> list[str]:
    """By budget: mean and spread over sizes of log(loss of a branch / loss of the other arm)."""
    both = arms["branches"].merge(arms[other], on=["budget", "N"], suffixes=("", "_other"))
    both["gap"] = both.log_loss - both.log_loss_other
    rows = [
        f"  {format_flops(budget):>8}  {100 * rows.gap.mean():+.2f}% +- {100 * rows.gap.std():.2f}%, {len(rows)} sizes"
        for budget, rows in both.groupby("budget")
    ]
    slope = [np.polyfit(np.log(rows.N), rows.gap, 1)[0] for _, rows in both.groupby("budget") if len(rows) > 2]
    return [*rows, f"  tilt along a budget, d gap / d log N: {np.mean(slope):+.4f} (what would move an exponent)"]


def tell_fits(folder: Path, C: float) -> dict[str, tuple[float, float, float]]:
    """Exponent of N_opt with its 95% interval by both approaches, printed with N_opt at C."""
    found = {}
    for fit in (fit_isoflop(folder, bootstrap=1000), fit_parametric(folder, bootstrap=1000)):
        if fit.verdict or fit.exponents is None:
            print(f"  {fit.method:>10}  no answer: {fit.verdict}")
            continue
        a = fit.exponents["N"]
        found[fit.method] = (a.value, *a.interval)
        drawn = np.quantile(fit.sample_optimum(C).N, [0.025, 0.5, 0.975])
        print(f"  {fit.method:>10}  a {a.value:.3f} [{a.interval[0]:.3f}, {a.interval[1]:.3f}]  N_opt at "
              f"{format_flops(C)} {drawn[1]:.3g} [{drawn[0]:.3g}, {drawn[2]:.3g}]  noise {fit.noise}")  # fmt: skip
    return found


def find_arms(args: argparse.Namespace, words: list[str]) -> dict[str, Path]:
    """The folder of each arm, trained."""
    if args.folders:
        return {name: Path(folder) for name, _, folder in (word.partition("=") for word in args.folders)}
    for name, own in ARMS.items():
        train_arm(args.study, args.out / name, [*own, "--name", name, *words])
    return {name: args.out / name for name in ARMS}


def compare_fits(fits: dict[str, dict[str, tuple[float, float, float]]], other: str) -> None:
    for method in fits["branches"].keys() & fits[other].keys():
        (a, low, high), (b, low_b, high_b) = fits["branches"][method], fits[other][method]
        inside = low <= b <= high and low_b <= a <= high_b
        half_width = math.hypot(high - low, high_b - low_b) / 2
        print(f"  {method}: a differs by {a - b:+.3f}, combined 95% half-width {half_width:.3f}; each inside the "
              f"other's interval: {'yes' if inside else 'no'}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--out", type=Path, default=Path("runs/branches_study"))
    parser.add_argument("--folders", nargs="+", help="NAME=DIR of arms that are trained, branches among them")
    args, words = parser.parse_known_args()
    arms = find_arms(args, words)
    costs, fits, losses = {}, {}, {}
    for name, folder in arms.items():
        planned = read_plan(folder)
        costs[name], losses[name] = paid(folder, planned), grid_of(folder)
        print(f"{name}: {format_flops(costs[name][1])} FLOPs counted, {format_flops(costs[name][0])} planned, "
              f"{costs[name][2]:.0f} s")  # fmt: skip
        fits[name] = tell_fits(folder, 10 * max(planned.config["grid"]["budgets"]))
    for other in arms.keys() - {"branches"}:
        shares = [
            f"{costs['branches'][i] / costs[other][i]:.0%} of its {what}" for i, what in ((1, "FLOPs"), (2, "time"))
        ]
        print(f"branches against {other}: {', '.join(shares)}")
        print("\n".join(compare_losses(losses, other)))
        compare_fits(fits, other)


if __name__ == "__main__":
    main()
