"""A learning-rate sweep: rates x widths (or depths) x seeds of one study, as a plan, and its runs as rows.

Every run has the same tokens, so that only width and rate differ; batch, horizon, warmup and decay follow the study's
own rules. The plan is a study folder's like any other (its cells have the role "sweep", which no law is fitted to),
so the pool trains it and a kill loses little. A folder's sweep may grow: what an earlier call trained stays in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from jaxscale.config import EVAL_FIELDS, ModelConfig, Study
from jaxscale.errors import MisuseError
from jaxscale.flops import count_params, flops_per_token
from jaxscale.format import format_count
from jaxscale.hardware import parse_hardware
from jaxscale.limits import MAX_SEED, check_limits
from jaxscale.plain import from_plain, to_plain
from jaxscale.resolve import plan_run
from jaxscale.runs import Cell, Plan, RunSpec
from jaxscale.sweep import CellStatus

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SweepGrid", "default_rates", "default_tokens", "grow_plan", "plan_sweep", "sweep_record", "tabulate_runs"]

Parameterization = Literal["mup", "completep", "standard"]
VARIED_MODEL = frozenset({"d_model", "n_layers", "parameterization", "init_scale"})
VARIED_RECIPE = frozenset({"lr", "weight_decay", *EVAL_FIELDS})
"""What may differ inside one sweep's folder; the rest of model, recipe and text may not."""


@dataclass(frozen=True)
class SweepGrid:
    """The axes of a sweep. Depths, decays and init scales: empty for the study's. Several widths and several depths:
    the product."""

    parameterizations: tuple[Parameterization, ...]
    widths: tuple[int, ...]
    lrs: tuple[float, ...]
    seeds: int
    tokens: tuple[float, ...]
    depths: tuple[int, ...] = ()
    weight_decays: tuple[float, ...] = ()
    init_scales: tuple[float, ...] = ()


def default_rates(study: Study, count: int = 9, step: float = 1.0) -> tuple[float, ...]:
    """`count` rates around the recipe's, `step` doublings apart.

    >>> default_rates(Study(), 3)
    (0.01, 0.02, 0.04)
    """
    return tuple(study.recipe.lr * 2.0 ** (step * (i - (count - 1) / 2)) for i in range(count))


def default_tokens(study: Study) -> float:
    """Tokens of the smallest budget at its expected optimum: C = k N D at D = tokens_per_param * N, over the ladder."""
    budget, ratio = min(study.grid.budgets), study.grid.tokens_per_param
    models = [replace(study.model, d_model=width) for width in study.grid.widths]
    nearest = min(models, key=lambda m: abs(budget / flops_per_token(m) / count_params(m)["active"] - ratio))
    return budget / flops_per_token(nearest)


def plan_sweep(study: Study, grid: SweepGrid, *, train_tokens: float | None = None) -> Plan:
    """Every run of a sweep, each once, largest first; MisuseError for an axis that makes no sense."""
    check_limits(study)
    _check(study, grid, train_tokens)
    cells = []
    axes = product(grid.parameterizations, grid.widths, grid.depths or (study.model.n_layers,), grid.tokens,
                   grid.weight_decays or (study.recipe.weight_decay,), grid.init_scales or (study.model.init_scale,),
                   grid.lrs, range(grid.seeds))  # fmt: skip
    for parameterization, width, depth, tokens, decay, scale, lr, seed in axes:
        model = replace(study.model, parameterization=parameterization, d_model=width, n_layers=depth,
                        init_scale=scale)  # fmt: skip
        own = replace(study, recipe=replace(study.recipe, lr=lr, weight_decay=decay))
        cells.append(plan_run(own, model, tokens, study.seed + seed, "sweep", train_tokens))
    if len({_question(cell) for cell in cells}) < len(cells):
        raise MisuseError(f"--tokens: {', '.join(f'{v:g}' for v in grid.tokens)} come to the same number of "
                          f"batches for two of them; give horizons further apart")  # fmt: skip
    return _total(study, sorted(cells, key=lambda cell: -cell.seconds))


def _question(cell: Cell) -> RunSpec:
    """What a run asks: tokens asked for that round to the same batches are one horizon, whatever they would cost."""
    return replace(cell.spec, budget_flops=0.0)


def _total(study: Study, cells: Sequence[Cell]) -> Plan:
    return Plan.of_cells(
        cells,
        study=study.name,
        dropped=(),
        assumptions=(f"time: {parse_hardware(study.hardware).describe()}; compiling not counted",),
        config=to_plain(study),
        hardware=study.hardware,
    )


def _check(study: Study, grid: SweepGrid, available: float | None) -> None:
    for name, values in (("widths", grid.widths), ("lrs", grid.lrs), ("tokens", grid.tokens),
                         ("depths", grid.depths), ("weight-decays", grid.weight_decays),
                         ("init-scales", grid.init_scales)):  # fmt: skip
        low = 0.0 if name == "weight-decays" else 1e-30
        wrong = [value for value in values if not low <= value < float("inf")]
        if wrong:
            raise MisuseError(f"--{name}: {wrong[0]:g} is no positive number; give positive ones")
        if len(set(values)) < len(values):
            raise MisuseError(f"--{name}: {', '.join(f'{v:g}' for v in values)} names one twice; give each once")
    if len(set(grid.parameterizations)) < len(grid.parameterizations):
        raise MisuseError(f"--parameterizations: {', '.join(grid.parameterizations)} names one twice; give each once")
    odd = [width for width in grid.widths if width % 2]
    if odd:
        raise MisuseError(f"--widths: {odd[0]} is odd and rotary positions need pairs; use {odd[0] + 1}")
    if grid.seeds < 1 or not all((grid.widths, grid.lrs, grid.parameterizations, grid.tokens)):
        raise MisuseError("a sweep needs a seed, a width, a rate, a parameterization and a number of tokens at least; "
                          "give one of each")  # fmt: skip
    if study.seed + grid.seeds > MAX_SEED:
        raise MisuseError(f"--seeds: {grid.seeds} from seed {study.seed} on go beyond 32 bits; use fewer, or a lower "
                          f"--seed")  # fmt: skip
    most = max(grid.tokens)
    if available and most > available * study.data.max_epochs * 1.01:
        raise MisuseError(f"--tokens: {format_count(most)} are {most / available:.2f} epochs of the text, more than "
                          f"data.max_epochs = {study.data.max_epochs:g}; use {format_count(available)} or raise it"
                          )  # fmt: skip


def grow_plan(old: Plan, new: Plan) -> Plan:
    """The old sweep's cells and the new one's, each once; MisuseError where they are not one sweep."""
    if old.data_sha256 != new.data_sha256:
        raise MisuseError(f"the sweep there was made on text {old.data_sha256[:12] or 'unknown'}, this one is on "
                          f"{new.data_sha256[:12]}; give the new sweep another --out")  # fmt: skip
    if any(cell.role != "sweep" for cell in old.cells):
        raise MisuseError(f"the folder holds the grid of study {old.study!r}, not a sweep; give another --out")
    changed = [name for name in _fixed(new.config) if _fixed(old.config).get(name) != _fixed(new.config)[name]]
    if changed:
        name = changed[0]
        raise MisuseError(f"{name}: the sweep there has {_fixed(old.config).get(name)!r}, this one "
                          f"{_fixed(new.config)[name]!r}; give the new sweep another --out")  # fmt: skip
    cells = {_question(cell): cell for cell in (*new.cells, *old.cells)}  # what is there keeps its name
    grown = sorted(cells.values(), key=lambda cell: -cell.seconds)
    return replace(_total(from_plain(new.config, Study), grown), data_sha256=new.data_sha256)


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What all runs of one folder share, by its field's name."""
    config = to_plain(from_plain(config, Study))  # a plan of before a field was there has its default
    model = {f"model.{k}": v for k, v in config["model"].items() if k not in VARIED_MODEL}
    recipe = {f"recipe.{k}": v for k, v in config["recipe"].items() if k not in VARIED_RECIPE}
    return model | recipe | {f"data.{k}": v for k, v in config["data"].items() if k != "cache"}


def tabulate_runs(statuses: Sequence[CellStatus], study: Study) -> pd.DataFrame:
    """One row a run with the columns that `analyse_sweep` reads; loss is missing unless the run is done."""
    import pandas as pd

    return pd.DataFrame([_row(status, study) for status in statuses])


def _row(status: CellStatus, study: Study) -> dict[str, Any]:
    spec, model = status.cell.spec, status.cell.spec.model
    horizon = study.recipe.decay_rule == "horizon"
    done = status.state == "done"
    return {
        "parameterization": model.parameterization, "width": model.d_model, "depth": model.n_layers,
        "tokens": spec.tokens, "batch_tokens": spec.batch_seqs * model.seq_len, "steps": spec.steps, "lr": spec.lr,
        "weight_decay": _round(spec.weight_decay * spec.lr * spec.steps if horizon else spec.weight_decay),
        "init_scale": model.init_scale, "seed": spec.seed, "state": status.state, "reason": status.reason,
        "loss": status.loss if done else None, "run_id": status.cell.run_id,
    }  # fmt: skip


def _round(value: float) -> float:
    """The study's own number again: lambda * lr * steps of two rates differ in the last bits."""
    return float(f"{value:.12g}")


def sweep_record(
    study: Study, plan: Plan, rows: pd.DataFrame, records: Mapping[str, Any], ways: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The result file of a sweep, schema jaxscale.mup_sweep/1; `records` are the analysis's optima and transfers."""
    model: ModelConfig = study.model
    return {
        "schema": "jaxscale.mup_sweep/1",
        "study": study.name,
        "text": {
            "data_sha256": plan.data_sha256, "tokenizer": study.data.tokenizer, "vocab_size": model.vocab_size,
            "seq_len": model.seq_len,
        },
        "model": to_plain(model),
        "recipe": to_plain(study.recipe),
        "rows": json.loads(rows.to_json(orient="records", double_precision=15)),
        **records,
        "ways": list(ways),
    }  # fmt: skip
