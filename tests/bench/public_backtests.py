"""Backtests of every approach and law on each public set, as the tables of docs/backtests.md.

    python tests/bench/public_backtests.py --bootstrap 200 > /tmp/tables.md        about 25 minutes on one core

Reads ../shared/data (JAXSCALE_SHARED) and, where it is there, runs/quickstart. The laws are declared here, before
any error is seen.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from jaxscale.backtest import backtest_fit
from jaxscale.format import format_factor
from jaxscale.source import read_observations

LAWS = ("chinchilla", "chinchilla-tied", "kaplan", "rosenfeld-transition")
METHODS = ("isoflop", "parametric", "envelope")
TEN = "3.2-10x"
TITLES = {
    ("rolling", "loss"): "Rolling origin, the loss at the optimum",
    ("rolling", "N_opt"): "Rolling origin, the optimal size",
    ("rolling", "loss_at"): "Rolling origin, every larger run at its own N and D",
    ("corner", "loss_at"): "Corner, every run outside it",
    ("holdout", "loss"): "Held-out runs, the loss at the optimum",
}


def sources(shared: Path) -> dict[str, object]:
    """Every data set by its short name."""
    porian = shared / "porian_owt2" / "porian_isoflop_points.csv"
    columns = {"N": "n_params", "D": "d_tokens", "C": "c_flop", "loss": "loss_nats_per_token"}
    found: dict[str, object] = {}
    for number, name in enumerate(pd.read_csv(porian)["experiment"].unique(), start=1):
        found[f"P{number}"] = read_observations(porian, columns=columns, where=f"experiment == '{name}'")
    found["CS336"] = read_observations(
        shared / "cs336_isoflops" / "cs336_isoflops.csv", columns={**columns, "D": "d_tokens_6nd"}
    )
    found["Epoch"] = read_observations(
        shared / "epoch_chinchilla" / "epoch_chinchilla_245.csv", columns={**columns, "C": "c_train_flop"},
        where="excluded_in_published_fit == 0",
    )  # fmt: skip
    found["datablations"] = read_observations(
        shared / "datablations" / "datablations_all_runs.csv", where="epochs <= 1",
        columns={**columns, "C": "c_flop_6nd", "loss": "val_loss_nats_per_token"},
    )  # fmt: skip
    if Path("runs/quickstart/observations.csv").is_file():
        found["quick start"] = read_observations("runs/quickstart")
    return found


def table_rows(name: str, summary: list[dict[str, object]]) -> list[dict[str, object]]:
    """One row a method, law, split and quantity: all ratios, with the rms of the tenfold bin beside it."""
    table = pd.DataFrame([row for row in summary if "rms_error" in row])
    rows = []
    for key, part in table.groupby(["split", "quantity", "method", "law"], sort=False):
        whole = part[part["ratio"] == "all"].iloc[0] if (part["ratio"] == "all").any() else part.iloc[0]
        ten = part[part["ratio"] == TEN]
        rows.append({"data": name, **dict(zip(("split", "quantity", "method", "law"), key, strict=True)),
                     **{n: whole[n] for n in ("count", "origins", "rms_error", "worst", "compute_factor", "inside",
                                              "tested", "skill")},
                     "ten": ten["rms_error"].iloc[0] if len(ten) else None,
                     "ten_count": int(ten["count"].iloc[0]) if len(ten) else 0})  # fmt: skip
    return rows


def as_markdown(rows: list[dict[str, object]], quantity: str) -> str:
    """The table of one split and quantity."""
    size = _factor if quantity == "N_opt" else _percent
    lines = ["| data | method | n (origins) | rms | worst | rms at 3.2-10x (n) | worth in C | inside 95% | skill |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in rows:
        name = f"{row['method']}, {row['law']}" if row["method"] == "parametric" else str(row["method"])
        ten = f"{size(row['ten'])} ({row['ten_count']})" if row["ten_count"] else "–"
        inside = f"{row['inside']:.0f}/{row['tested']}" if row["tested"] else "–"
        skill = "–" if row["skill"] is None or pd.isna(row["skill"]) else f"{row['skill']:.0%}"
        lines.append(f"| {row['data']} | {name} | {row['count']} ({row['origins']}) | {size(row['rms_error'])} | "
                     f"{size(row['worst'])} | {ten} | {_known(row['compute_factor'], format_factor)} | {inside} | "
                     f"{skill} |")  # fmt: skip
    return "\n".join(lines)


def _known(value: object, style: object) -> str:
    return "–" if value is None or pd.isna(value) else style(float(value))  # type: ignore[call-overload, operator]


def _percent(value: object) -> str:
    return "–" if value is None or pd.isna(value) else f"{100 * float(value):.2g}%"  # type: ignore[call-overload, arg-type]


def _factor(value: object) -> str:
    return "–" if value is None or pd.isna(value) else f"{np.exp(float(value)):.3g}x"  # type: ignore[call-overload, arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", type=int, default=200)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    shared = Path(os.environ.get("JAXSCALE_SHARED", "../shared")) / "data"
    rows: list[dict[str, object]] = []
    for name, obs in sources(shared).items():
        if options.only and name not in options.only:
            continue
        began = time.monotonic()
        result = backtest_fit(obs, methods=METHODS, law=LAWS, split="all", bootstrap=options.bootstrap)  # type: ignore[arg-type]
        rows += table_rows(name, list(result.summary))
        print(
            f"{name}: {len(result.rows)} predictions in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
        )
    for (split, quantity), title in TITLES.items():
        part = [row for row in rows if (row["split"], row["quantity"]) == (split, quantity)]
        if part:
            print(f"### {title}\n{as_markdown(part, quantity)}\n")


if __name__ == "__main__":
    main()
