"""The tables of docs/coverage.md: one `jaxscale simulate` a row, printed as Markdown.

python tests/bench/coverage_tables.py --studies 1000 --bootstrap 300 > /tmp/coverage.md     about 10 minutes, 2 cores
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOISES = {
    "deviation falls as C^-.25": ["--noise-power", "0.25"],
    "2% outliers of +5%": ["--outliers", "0.02"],
    ".3% shared within a trunk": ["--trunk", "0.003"],
    ".5% shared by all cells": ["--shared", "0.005"],
    "3 budgets x 6 sizes, at 9e19": ["--count", "3", "--sizes", "6"],
    "noise 1%": ["--noise", "0.01"],
}
FORMS = ("broken-N", "broken-D", "kaplan", "interaction", "mistuned")
RESAMPLERS = ("auto", "wild", "noise", "pairs")
SHOWN = {
    "isoflop": ("a", "N_opt", "loss", "loss_future_run"),
    "parametric": ("a", "N_opt", "loss", "loss_future_run", "E", "alpha"),
}


def simulate(arguments: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one simulation."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sim.json"
        command = [sys.executable, "-m", "jaxscale", "simulate", "--studies", str(options.studies), "--bootstrap",
                   str(options.bootstrap), *arguments, "--out", str(out)]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    print(f"{' '.join(arguments)}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


def cell(row: dict[str, Any]) -> str:
    """Coverage (bold out of its band), mean width, bias, and in brackets the width over what was needed."""
    share = f"{row['coverage']:.1%}"
    share = share if row["within_band"] == "within" else f"**{share}**"
    width, bias = row["mean_width"], row["bias"]
    if row["quantity"] == "N_opt":
        text = f"x/ {2.718281828 ** (row['mean_log_width'] / 2):.3f}, bias {row['log_bias']:+.2%}"
    elif row["quantity"].startswith("loss"):
        text = f"±{width / 2 / row['truth']:.2%}, bias {bias / row['truth']:+.2%}"
    else:
        text = f"{width:.3g}, bias {bias:+.4f}"
    return f"{share} {text} ({row['width_ratio']:.2f})"


def print_tables(found: dict[str, list[dict[str, Any]]]) -> None:
    """One table a method; found: rows of each case."""
    for method, quantities in SHOWN.items():
        print(f"| {method} | {' | '.join(quantities)} |\n|{' --- |' * (len(quantities) + 1)}")
        for name, rows in found.items():
            mine = {row["quantity"]: row for row in rows if row["method"] == method}
            print(f"| {name} | {' | '.join(cell(mine[quantity]) for quantity in quantities if quantity in mine)} |")
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--bootstrap", type=int, default=300)
    options = parser.parse_args()
    print("### Resamplers")
    print_tables({name: simulate(["--resample", name], options) for name in RESAMPLERS})
    print("### Other kinds of noise")
    print_tables({name: simulate(arguments, options) for name, arguments in NOISES.items()})
    print("### Wrong forms")
    print_tables({name: simulate(["--wrong", name], options) for name in FORMS})


if __name__ == "__main__":
    main()
