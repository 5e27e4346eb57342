"""How the best learning rate moves with the horizon and the batch, on this code: docs/studies/lr_horizon.md.

    taskset -c 1 nice -n 10 python tests/bench/lr_horizon.py --out runs/lr_horizon

Width 32 of the quick start (its model, recipe and text), muP at base width: three horizons at one batch, three
batches at one horizon. Rates a factor 2 apart are added until the lowest mean loss has one on each side and a
second on its lower side; a seed's optimum is the minimum of the cubic through those four, since the curves lean.
Its error is that of the mean over seeds, with half the distance to the bare parabola's vertex for the form. One
process; runs that have ended in --out are read, so a second call costs nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from jaxscale.plan import plan_isoflop
from jaxscale.rates import Optimum, describe_rates, fit_rates
from jaxscale.runs import RunSpec
from jaxscale.study import load_study
from jaxscale.train.loop import train_run

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.py"
SETTINGS = [(2**19, 512), (2**17, 512), (2**19, 2048), (2**19, 256), (2**21, 512)]
"""(tokens, tokens a batch), the cheapest answers first."""
FIRST, MOST = (-6.5, -5.5, -4.5), 7
"""log2 of the first rates (.011, .022, .044), and how many a setting may take."""


def make_spec(base: RunSpec, tokens: int, batch: int, lr: float, seed: int) -> RunSpec:
    """The quick start's run at another horizon, batch, rate and seed; decay and warmup by its own rules."""
    steps = tokens // batch
    decay = base.weight_decay * base.lr * base.steps / (lr * steps)
    return replace(base, tokens=tokens, steps=steps, batch_seqs=batch // base.model.seq_len, lr=lr, weight_decay=decay,
                   warmup_steps=max(1, round(0.03 * steps)), decay_steps=max(1, round(0.2 * steps)), seed=seed,
                   budget_flops=float(tokens))  # fmt: skip


def sweep(base: RunSpec, tokens: int, batch: int, seeds: int, out: Path) -> dict[float, list[float]]:
    """Loss of every seed at each log2 rate, with the lowest mean inside."""
    losses: dict[float, list[float]] = {}

    def measure(x: float) -> None:
        found = []
        for seed in range(seeds):
            result = train_run(make_spec(base, tokens, batch, 2**x, seed), out)
            found.append(result.loss if result.loss is not None else math.inf)
        losses[x] = found

    for x in FIRST:
        measure(x)
    while len(losses) < MOST:
        best = min(losses, key=lambda x: float(np.mean(losses[x])))
        beyond = [x for x in (best - 1, best + 1) if x not in losses] or [x for x in four(losses) if x not in losses]
        if not beyond:
            break
        measure(beyond[0])
    return dict(sorted(losses.items()))


def four(losses: dict[float, list[float]]) -> list[float]:
    """The lowest rate, its neighbours, and one further on the side of the lower neighbour."""
    mean = {x: float(np.mean(values)) for x, values in losses.items()}
    best = min(mean, key=lambda x: mean[x])
    first = best - 1 if mean.get(best + 1, math.inf) < mean.get(best - 1, math.inf) else best - 2
    return [first + i for i in range(4)]


def find_optima(losses: dict[float, list[float]]) -> tuple[list[float], list[float]]:
    """Each seed's optimum in log2 rate: the cubic's minimum (nan without one), and the parabola's vertex."""
    x = four(losses)
    if not set(x) <= losses.keys():
        return [], []
    best = min(x, key=lambda one: float(np.mean(losses[one])))
    cubic, square = [], []
    for seed in range(len(losses[best])):
        y = [losses[one][seed] for one in x]
        slope = np.polyder(np.poly1d(np.polyfit(np.array(x) - best, y, 3)))
        roots = [r.real for r in slope.roots if abs(r.imag) < 1e-9 and np.polyder(slope)(r.real) > 0]
        cubic.append(best + roots[0] if roots else math.nan)
        low, middle, high = (losses[best + step][seed] for step in (-1, 0, 1))
        square.append(best - (high - low) / 2 / (low - 2 * middle + high))
    return cubic, square


def main() -> None:
    """Run every setting, fit the law, write all into OUT/lr_horizon.json."""
    options = argparse.ArgumentParser()
    options.add_argument("--out", type=Path, default=Path("runs/lr_horizon"))
    options.add_argument("--seconds", type=float, default=600.0, help="CPU seconds after which no setting is begun")
    asked = options.parse_args()
    study = load_study(CONFIG)
    base = next(spec for spec in plan_isoflop(study) if spec.model.d_model == 32)
    rows = []
    for tokens, batch in SETTINGS:
        if time.process_time() > asked.seconds:
            print(f"left out for time: D = {tokens}, B = {batch}")
            continue
        losses = sweep(base, tokens, batch, 3 if tokens < 2**20 else 2, asked.out)
        optima, vertices = find_optima(losses)
        rows.append({"tokens": tokens, "batch_tokens": batch, "losses": losses, "optima": optima,
                     "vertices": vertices, "cpu_seconds": round(time.process_time())})  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    write_law(rows, asked.out / "lr_horizon.json")


def write_law(rows: list[dict[str, Any]], file: Path) -> None:
    """The settings' optima with their errors, and the law they make."""
    usable = [row for row in rows if row["optima"] and np.all(np.isfinite(row["optima"]))]
    apart = [np.array(row["optima"]) - np.mean(row["optima"]) for row in usable]
    freedom = sum(len(one) - 1 for one in apart)
    deviation = math.sqrt(sum(float((one**2).sum()) for one in apart) / freedom)
    optima = []
    for row in usable:
        center, form = float(np.mean(row["optima"])), float(np.mean(row["optima"]) - np.mean(row["vertices"])) / 2
        error = math.hypot(deviation / math.sqrt(len(row["optima"])), form)
        optima.append(Optimum(32, 2, row["tokens"], row["batch_tokens"], center, error))
        print(f"D = {row['tokens']:>8} B = {row['batch_tokens']:>5}: {2**center:.4f}, log2 {center:.2f} +- {error:.2f}")
    law = fit_rates(optima)
    print(f"standard deviation of a seed's optimum {deviation:.3f} in log2 rate ({freedom} degrees of freedom)")
    print("\n".join(describe_rates(law)))
    plain = {"rows": rows, "deviation": deviation, "optima": [vars(one) for one in optima],
             "law": describe_rates(law)}  # fmt: skip
    file.write_text(json.dumps(plain, indent=1))


if __name__ == "__main__":
    main()
