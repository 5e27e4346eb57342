"""How the candidates for the default recipe do where the answer is known: the public ladder's fitted runs, backtested.

    python tests/bench/downstream_candidates.py [olmo_ladder_checkpoints.csv.gz]      (a minute on 2 cores)

Smaller fitted runs foretell the larger fitted ones (jaxscale.downstream.backtest); targets take no part. Columns: mean
absolute relative error of accuracy over all predictions, at the farthest run of each origin, of NLL, and by task.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from jaxscale.downstream import fit_downstream
from jaxscale.downstream.recipe import RECIPES, Prior, Recipe
from jaxscale.fit.solver import keep_programs

COLUMNS = {"N": "n_params_nonemb", "D": "d_tokens", "C": "c_flop", "nll": "bpb_bits_per_byte", "accuracy": "rc_acc"}
OURS, SIGMOID, LOGLOGISTIC = RECIPES["default"], ("sigmoid",), ("loglogistic",)
PUBLISHED = replace(RECIPES["olmo-ladder"], huber_delta=None)
CANDIDATES: dict[str, tuple[Recipe, str]] = {
    "default": (OURS, "auto"),
    "no prior, sigmoid (as published, but least squares)": (PUBLISHED, "auto"),
    "no prior, both curves": (replace(OURS, prior=None), "auto"),
    "prior, sigmoid alone": (replace(OURS, forms=SIGMOID), "auto"),
    "prior, loglogistic alone": (replace(OURS, forms=LOGLOGISTIC), "auto"),
    "prior, lower end free": (replace(OURS, chance_sd=None), "auto"),
    "prior, lower end within .01 of chance": (replace(OURS, chance_sd=0.01), "auto"),
    "prior, all checkpoints": (replace(OURS, skip=0.0), "auto"),
    "prior, last half of the checkpoints": (replace(OURS, skip=0.5), "auto"),
    "prior, ends of runs only": (replace(OURS, skip=0.999), "auto"),
    "prior, no trailing means": (replace(OURS, window=1), "auto"),
    "exponents about .3": (replace(OURS, prior=Prior(exponent=0.3)), "auto"),
    "exponents twice as free": (replace(OURS, prior=Prior(exponent_sd=0.4)), "auto"),
    "power law of C with a floor": (OURS, "power"),
    "line in logs of C (Llama 3)": (OURS, "log-linear"),
}


def score(table: Path, recipe: Recipe, law: str, nll: str = "bpb_bits_per_byte") -> dict[str, float]:
    """Errors in percent, over tasks."""
    result = fit_downstream(table, columns={**COLUMNS, "nll": nll}, fit_where="role == 'train'", recipe=recipe, law=law,
                            bootstrap=50)  # fmt: skip
    summary = {name: {row["method"]: row for row in task["stages"]["backtest"]["summary"]}
               for name, task in result.tasks.items()}  # fmt: skip
    chained = {name: rows["chained"] for name, rows in summary.items()}
    keys = {"all": "mean_abs_error", "farthest": "farthest_abs_error", "NLL": "nll_mean_abs_error"}
    found = {name: 100 * float(np.mean([row[key] for row in chained.values()])) for name, key in keys.items()}
    found |= {name.split("_")[0]: 100 * row["mean_abs_error"] for name, row in chained.items()}
    one_stage = 100 * float(np.mean([rows["one-stage"]["mean_abs_error"] for rows in summary.values()]))
    return found | {"one stage": one_stage}


if __name__ == "__main__":
    keep_programs()
    here = Path(__file__).parents[2].parent / "shared/data/olmo_ladder/olmo_ladder_checkpoints.csv.gz"
    table = Path(sys.argv[1]) if len(sys.argv) > 1 else here
    rows = {name: score(table, recipe, law) for name, (recipe, law) in CANDIDATES.items()}
    rows["default on C4 loss instead of the task's NLL"] = score(table, OURS, "auto", "c4_ce_nats_per_token")
    rows["default on NLL over the choices (soft)"] = score(table, OURS, "auto", "rc_soft_nll_nats")
    print(pd.DataFrame(rows).T.round(2).to_string())
