"""How often the interval of a downstream forecast holds what is measured, on simulated ladders.

    python tests/bench/downstream_coverage.py [ladders]      (about 10 s a ladder of 8 tasks on 2 cores)

Laws, curves (a third of them of a form that the recipe does not have), ceilings, noise and task sizes are drawn as in
tests/planted_ladder.py; targets are at 10 and at about 100 times the largest compute fitted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from planted_ladder import RATIOS, SIZES, draw_planted, make_ladder

from jaxscale.downstream import fit_downstream
from jaxscale.fit.solver import keep_programs

DESIGNS = {"16 runs": (SIZES, RATIOS), "8 runs": (SIZES, RATIOS[:2]), "compute-optimal, 8 runs": (
    (100e6, 150e6, 220e6, 330e6, 500e6, 750e6, 1e9, 1.3e9), RATIOS[:1])}  # fmt: skip


def count(ladders: int, recipe: str = "default") -> pd.DataFrame:
    """A row a design, task and target."""
    found = []
    for design, (sizes, ratios) in DESIGNS.items():
        for ladder in range(ladders):
            rng = np.random.default_rng([ladder, 7])
            tasks = {f"t{i}": draw_planted(rng) for i in range(8)}
            table = make_ladder(tasks, rng, sizes, ratios)
            result = fit_downstream(table, fit_where="role == 'train'", target_where="role == 'eval'", recipe=recipe)
            frame = result.to_frame()
            frame = frame.assign(design=design, ladder=ladder, curve=[tasks[t].curve for t in frame["task"]])
            found.append(frame)
    return pd.concat(found, ignore_index=True)


def summarize(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Coverage, mean width and mean absolute relative error."""
    frame = frame[frame["accuracy_pred"].notna()]
    inside = (frame["accuracy_low"] <= frame["accuracy_true"]) & (frame["accuracy_true"] <= frame["accuracy_high"])
    shown = frame.assign(
        inside=inside, width=frame["accuracy_high"] - frame["accuracy_low"], error=frame["relative_error"].abs(),
        one_stage=(frame["one_stage_pred"] / frame["accuracy_true"] - 1).abs(),
    )  # fmt: skip
    columns = shown.groupby(by)[["inside", "width", "error", "one_stage"]].mean()
    return columns.assign(n=shown.groupby(by).size())


if __name__ == "__main__":
    keep_programs()
    recipe = sys.argv[2] if len(sys.argv) > 2 else "default"
    frame = count(int(sys.argv[1]) if len(sys.argv) > 1 else 12, recipe)
    for by in (["design", "run"], ["design", "curve"], ["run"]):
        print(summarize(frame, by).round(3).to_string(), "\n")
