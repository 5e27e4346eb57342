"""One study folder with the cells of several of one text: a grid and its targets, the next forecast's evidence.

Command: `python tests/bench/join_studies.py OUT DIR DIR ..`, then `jaxscale collect OUT`. Budgets of more than three
sizes become cells of role grid; the run folders are hard links.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jaxscale.plain import write_json
from jaxscale.plan import grow_plan
from jaxscale.runs import Cell, Plan
from jaxscale.sweep import read_plan


def as_grid(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, those of a whole curve with the role grid."""
    sizes: dict[float, set[int]] = {}
    for cell in cells:
        sizes.setdefault(cell.spec.budget_flops, set()).add(cell.n_params)
    return [replace(cell, role="grid") if len(sizes[cell.spec.budget_flops]) > 3 else cell for cell in cells]


def join(folders: Sequence[Path]) -> Plan:
    plan, *others = [read_plan(folder) for folder in folders]
    for other in others:
        if other.data_sha256 != plan.data_sha256:
            sys.exit(f"{other.study}: its text is not that of {plan.study}")
        plan = grow_plan(plan, as_grid(other.cells))
    return plan


def main(out: Path, *folders: Path) -> None:
    plan = join(folders)
    out.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        for cell in read_plan(folder).cells:
            if not (out / cell.run_id).exists():
                subprocess.run(["cp", "-al", str(folder / cell.run_id), str(out / cell.run_id)], check=True)
    write_json(out / "plan.json", plan.to_json())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
