"""How often the outlook of a run holds its end, counted on a finished study: the figures of docs/register.md.

Command:  python tests/bench/outlook_coverage.py runs/quickstart
Each budget from the third on is the target in turn: its runs within 2% of its lowest loss, seen at several shares of
their steps, against the finished grid runs of the smaller budgets. By a line over log N and log D, and by a plain mean.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxscale.register import outlook
from jaxscale.register.watch import read_curve
from jaxscale.sweep import read_plan, read_status

SHARES = np.arange(0.1, 1.0, 0.05)
NEAR = 1.02


def count_hits(folder: Path) -> str:
    """One line: hits, looks, half width and error of the expected ends, in log loss."""
    done = [status for status in read_status(folder, read_plan(folder).cells) if status.state == "done"]
    rows = []
    for C in sorted({status.cell.spec.budget_flops for status in done})[2:]:
        smaller = [s for s in done if s.cell.spec.budget_flops < C and s.cell.role == "grid"]
        finished = [curve for s in smaller if (curve := read_curve(folder, s)) is not None]
        targets = [s for s in done if s.cell.spec.budget_flops == C and s.loss is not None]
        for target in targets:
            if target.loss > NEAR * min(s.loss for s in targets):
                continue
            curve = replace(read_curve(folder, target), final=None)
            looks = [outlook.project_end(finished, curve, float(f)) for f in SHARES]
            rows += [(look.low <= target.loss <= look.high, np.log(look.high / look.low) / 2,
                      np.log(look.loss / target.loss)) for look in looks if look is not None]  # fmt: skip
    hits, half, error = np.array(rows, float).T
    rms = np.sqrt((error**2).mean())
    return f"{hits.sum():.0f} of {len(hits)} inside, half width {half.mean():.4f}, rms error {rms:.4f}"


if __name__ == "__main__":
    print("line:", count_hits(Path(sys.argv[1])))
    outlook.FEWEST = 10**9
    print("mean:", count_hits(Path(sys.argv[1])))
