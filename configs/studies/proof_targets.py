"""The runs that test the proof's forecasts: the forecast size at 1e13 FLOPs with two neighbours each side, and at 3e13.

Purpose:  The forecast on English (docs/studies/proof/forecasts.jsonl, records 0 and 1) says N 152k at 1e13 and 234k at
          3e13. Width 72 (162k) is nearest to the first, 88 (231k) to the second. Five sizes at 1e13 read the minimum
          itself. Written and committed with the register, before any of these runs.
Command:  jaxscale run configs/studies/proof_targets.py --data.files 'CORPUS/*.xz' --out runs/proof_targets
          jaxscale register score runs/proof_targets --register docs/studies/proof/forecasts.jsonl
          For another text, other sizes: --grid.widths, --grid.tokens-per-param (the forecast's D/N at 1e13).
Cost:     8e13 FLOPs, about 15 minutes on 2 CPU cores.
Expected: docs/studies/proof.md.
"""

from dataclasses import replace
from pathlib import Path

from jaxscale.config import Grid, Study
from jaxscale.study import load_study


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return replace(
        load_study(Path(__file__).with_name("proof.py")),
        name="proof_targets",
        grid=Grid(
            budgets=(1e13,),
            widths=(48, 56, 72, 88, 112),
            tokens_per_param=75.0,
            tokens_per_param_exponent=0.2,
            spread=4.0,
            sizes_per_budget=5,
            holdout=(3e13,),
            holdout_sizes=1,
        ),
    )
