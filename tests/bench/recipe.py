"""The search for a recipe: every step's cells beside those of the step it changes.

Command: `python tests/bench/recipe.py --out runs/recipe --data.files 'corpus/*.xz'`; it goes on where it was, and
`--only NAME ..` trains some. Results: docs/studies/recipe.md. A step is a name, the step it starts from, and options
of configs/studies/recipe.py. Printed a step, and a budget: mean and spread over cells of log(loss / loss of the step
it starts from), paired by size and seed; the seeds' standard deviation pooled over sizes, in log loss.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from jaxscale.format import format_flops
from jaxscale.source import read_observations

STUDY = Path(__file__).parents[2] / "configs" / "studies" / "recipe.py"
R, M = "--recipe.", "--model."
STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "start": ("", ()),
    "micro2": ("start", (R + "microbatch-seqs", "2", R + "batch-min-tokens", "128")),
    "lr.014": ("micro2", (R + "lr", ".014")),
    "final0": ("lr.014", (R + "final-fraction", "0")),
    "average": ("final0", (R + "average-fraction", ".1")),
    "half-batch": ("final0", (R + "batch-coefficient", ".25")),
    "b2.99": ("final0", (R + "b2", ".99")),
    "warmup10": ("final0", (R + "warmup-fraction", ".1")),
    "wsd30": ("final0", (R + "schedule", "wsd", R + "decay-fraction", ".3")),
    "half-batch-lr.01": ("warmup10", (R + "batch-coefficient", ".25", R + "lr", ".010")),
    "warmup20": ("warmup10", (R + "warmup-fraction", ".2")),
    "b2.99-warm": ("warmup10", (R + "b2", ".99")),
    "embed-lr1": ("warmup10", (R + "embed-lr", "1")),
    "decay1": ("warmup10", (R + "weight-decay", "1")),
    "embed-lr4": ("warmup10", (R + "embed-lr", "4")),
    "batch.7": ("warmup10", (R + "batch-coefficient", ".0324", R + "batch-exponent", ".7")),
    "swiglu": ("warmup10", (M + "mlp", "swiglu", M + "mlp-ratio", "2.667", M + "mlp-multiple", "4")),
    "joint": ("batch.7", (R + "warmup-fraction", ".2", R + "embed-lr", "4")),
    "joint-lr.010": ("joint", (R + "lr", ".010")),
    "chosen": ("warmup20", (R + "embed-lr", "3")),
    "no-qk-norm": ("warmup10", (M + "no-qk-norm", "")),
    "head-lr6": ("warmup10", (R + "head-lr", "6")),
    "embed.5": ("warmup10", (M + "embed-std", ".5")),
    "muon": ("warmup10", (R + "optimizer", "muon")),
    "relu2": ("warmup10", (M + "mlp", "relu2")),
    "wsd30-average": ("wsd30", (R + "final-fraction", ".3", R + "average-fraction", ".15")),
}


def options_of(step: str) -> list[str]:
    """All options of a step, those of the steps before it first; a later one of the same name wins; "" for a flag."""
    chain: list[tuple[str, ...]] = []
    while step:
        step, own = STEPS[step]
        chain.insert(0, own)
    merged: dict[str, str] = {}
    for own in chain:
        merged |= dict(zip(own[::2], own[1::2], strict=True))
    return [word for pair in merged.items() for word in pair if word]


def train_step(step: str, folder: Path, words: list[str]) -> None:
    if (folder / "observations.csv").exists():
        return
    command = [sys.executable, "-m", "jaxscale"]
    own = [*options_of(step), "--name", step, *words]
    subprocess.run([*command, "plan", str(STUDY), "--out", str(folder), *own], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*command, "train", str(folder), "--all"], check=True)
    subprocess.run([*command, "collect", str(folder)], check=True, stdout=subprocess.DEVNULL)


def cells_of(folder: Path) -> pd.DataFrame:
    frame = read_observations(folder).frame
    return frame.assign(log_loss=np.log(frame.loss))[["budget", "N", "seed", "log_loss"]]


def seed_noise(cells: pd.DataFrame) -> float:
    """Standard deviation of log loss over seeds, pooled over sizes."""
    groups = cells.groupby("N").log_loss
    freedom = groups.size() - 1
    return float(np.sqrt((groups.var() * freedom).sum() / freedom.sum())) if freedom.sum() else float("nan")


def tell_step(step: str, out: Path) -> None:
    base = STEPS[step][0]
    cells = cells_of(out / step)
    both = cells.merge(cells_of(out / base), on=["budget", "N", "seed"], suffixes=("", "_base")) if base else None
    for budget, rows in cells.groupby("budget"):
        text = f"{step:>14}  {format_flops(budget):>7}  seeds {100 * seed_noise(rows):.2f}%"
        lowest = np.exp(rows.groupby("N").log_loss.mean().min())
        text += f"  lowest {lowest:.4f}"
        if both is not None:
            pairs = both[both.budget == budget]
            gap = (pairs.log_loss - pairs.log_loss_base).groupby(pairs.N)
            sizes = " ".join(f"{100 * value:+.2f}" for value in gap.mean())
            error = np.sqrt((gap.var() / gap.size()).mean() / gap.ngroups)
            text += f"  against {base} {100 * gap.mean().mean():+.2f}% +- {100 * error:.2f}  by size {sizes}"
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(STEPS))
    parser.add_argument("--tell", action="store_true", help="train nothing, print what is there")
    args, words = parser.parse_known_args()
    for step in args.only:
        if not args.tell:
            train_step(step, args.out / step, words)
        if (args.out / step / "observations.csv").exists():
            tell_step(step, args.out)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
