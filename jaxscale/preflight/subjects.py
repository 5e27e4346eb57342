"""What is to be checked: the distinct runs of a study's plan, and the flagship that a forecast asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxscale.config import ModelConfig, Study
from jaxscale.errors import MisuseError
from jaxscale.flops import count_params
from jaxscale.plain import read_json
from jaxscale.resolve import plan_run
from jaxscale.runs import Cell
from jaxscale.variants import plan_study

__all__ = ["Subject", "continue_ladder", "find_flagship", "list_cells", "own_run", "read_flagship"]

MOST_PARAMS = 1e16
"""Above this a number of parameters is a slip: no ladder is climbed so far."""


@dataclass(frozen=True)
class Subject:
    """Runs that one program serves at one batch."""

    kind: str
    """cell or flagship."""
    model: ModelConfig
    """Without its init scales, which are given at run time."""
    batch_seqs: int
    steps: float
    """Optimizer steps of all these runs together."""
    runs: int
    schedule: str
    optimizer: str
    averages: bool

    @property
    def step_tokens(self) -> int:
        return self.batch_seqs * self.model.seq_len


def list_cells(study: Study) -> list[Subject]:
    """Runs of the study's plan by shape and batch, smallest model first.

    The text's size is taken from data.declared_train_tokens; without it epochs are not checked. The plan's own
    hardware is set aside: the target's chips are what the batch must divide over.
    """
    cells = plan_study(replace(study, hardware="cpu")).cells
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_identity(cell), []).append(cell)
    found = [_subject("cell", several) for several in groups.values()]
    return sorted(found, key=lambda one: (count_params(one.model)["total"], one.batch_seqs))


def _identity(cell: Cell) -> tuple[Any, ...]:
    spec = cell.spec
    return _strip(spec.model), spec.batch_seqs, spec.schedule, spec.optimizer, spec.average_steps > 0


def _subject(kind: str, cells: list[Cell]) -> Subject:
    model, batch_seqs, schedule, optimizer, averages = _identity(cells[0])
    steps = sum(cell.spec.steps * (1 - cell.spec.parent_step / cell.spec.steps) for cell in cells)
    return Subject(kind, model, batch_seqs, steps, len(cells), schedule, optimizer, averages)


def _strip(model: ModelConfig) -> ModelConfig:
    """As `train.step.strip_init`, which is on the side of the house that loads Flax."""
    return replace(model, embed_std=1.0, hidden_std=None, head_std=1.0, init_scale=1.0)


def find_flagship(study: Study, params: float, tokens: float) -> Subject:
    """The run of `params` parameters, on the study's ladder continued, on `tokens` tokens at its batch rule."""
    return own_run(study, continue_ladder(study, params), tokens)


def own_run(study: Study, model: ModelConfig, tokens: float) -> Subject:
    """A run of this model on `tokens` tokens, by the study's rules."""
    return _subject("flagship", [plan_run(study, model, tokens, study.seed, "grid", None)])


def continue_ladder(study: Study, params: float) -> ModelConfig:
    """The shape nearest to `params` in log N, its depth by grid.aspect, its width a whole number of heads."""
    if not 0 < params < MOST_PARAMS:
        raise MisuseError(f"--params: {params:g} is no size; write for example 7e9")
    best = min(_shapes(study, params), key=lambda model: abs(math.log(count_params(model)["active"] / params)))
    off = abs(math.log(count_params(best)["active"] / params))
    if off > 0.35:
        raise MisuseError(
            f"--params: {params:g} is {math.exp(off):.1f}x off the nearest shape of this study's ladder (d_model "
            f"{best.d_model}, {best.n_layers} layers); set --model.n-layers or --grid.aspect"
        )
    return best


def _shapes(study: Study, params: float) -> Iterator[ModelConfig]:
    """Shapes of rising width, until they are far above."""
    aspect, width = study.grid.aspect, 0
    while True:
        width += study.model.head_dim
        depth = study.model.n_layers if aspect is None else max(1, round(width / aspect))
        model = replace(study.model, d_model=width, n_layers=depth)
        yield model
        if count_params(model)["active"] > 2 * params:
            return


def read_flagship(folder: Path) -> tuple[float, float]:
    """(N, D) of the largest compute in a study folder's forecast.json, by the declared method.

    MisuseError where there is none.
    """
    path = folder / "forecast.json" if folder.is_dir() else folder
    if not path.exists():
        raise MisuseError(f"--flagship: {path} is not there; run the study first, give --forecast FILE, or "
                          f"--params N --tokens D")  # fmt: skip
    rows = read_json(path).get("rows", [])
    spoken = [row for row in rows if row.get("declared", True) and row.get("N_opt") and row.get("D_opt")]
    if not spoken:
        raise MisuseError(f"--flagship: {path} has no row of the declared method; give --params N --tokens D")
    largest = max(spoken, key=lambda row: float(row["C"]))
    return float(largest["N_opt"]), float(largest["D_opt"])
