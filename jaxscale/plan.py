"""Study -> Plan: which sizes at which budgets, each with every derived number, and what was left out.

For every budget C each model of the ladder gets the tokens that C buys, D = C / flops_per_token, by the
exact count. Its place on the IsoFLOP curve is

    x = 1/2 log(tokens_per_param / (D/N)),      N = total parameters

the distance in log N from the expected optimum (at fixed C, D/N falls as N^-2). Sizes with |x| <= log(spread)
are kept; a budget without five of them, two on each side, is refused, since its parabola would be a guess.
The tokens are a whole number of batches; batch = coefficient * D^exponent; the learning-rate horizon is the
cell's own D (Hoffmann et al. 2022: curves cut short of their horizon mislead). The peak rate is recipe.lr, or with
recipe.lr_from a sweep's optimum moved to the cell's own D and B (jaxscale/rates). With grid.schedule
"wsd-branches" the cells of one size and seed share a trunk, and what is set by D is set by the geometric mean of
their horizons (jaxscale/trunks.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jaxscale.batchlaw import BatchLaw, settle_batch, tell_batch
from jaxscale.config import Grid, ModelConfig, Study
from jaxscale.errors import MisuseError
from jaxscale.flops import count_params, flops_per_token
from jaxscale.format import format_count, format_flops
from jaxscale.hardware import parse_hardware
from jaxscale.limits import check_limits
from jaxscale.plain import to_plain
from jaxscale.rates import RateLaw, read_rates, tell_rates
from jaxscale.resolve import count_batch_seqs, describe_run, price_run, resolve_run
from jaxscale.runs import Cell, Dropped, Plan, Role, RunSpec
from jaxscale.trunks import branch_off, mean_horizon

__all__ = [
    "BUDGET_TOLERANCE",
    "MIN_SIZES",
    "count_available",
    "grow_plan",
    "nearest_size",
    "offer_cells",
    "plan_isoflop",
]

BUDGET_TOLERANCE = 0.01
"""Largest relative distance of a cell's exact FLOPs from its budget."""
MIN_SIZES, MIN_ARM = 5, 2
"""Sizes that a parabola needs in all, and on each side of the expected optimum."""


@dataclass(frozen=True)
class _Candidate:
    """One ladder size at one budget; `x` is its log N distance from the expected optimum."""

    model: ModelConfig
    budget: float
    x: float
    n_params: int
    tokens: float


def plan_isoflop(study: Study, *, train_tokens: float | None = None, data_sha256: str = "") -> Plan:
    """The IsoFLOP grid of a study.

    `train_tokens` is the size of the training text (of what the data config chooses of it: `DataInfo.train_tokens`),
    which decides how often it would be repeated; None (the
    text is not on this machine) falls back to data.declared_train_tokens, and without it nothing is checked.
    `data_sha256` is that text's identity, where known. Raises MisuseError for a budget that the ladder cannot
    bracket and for a sweep (recipe.lr_from) that does not speak for this study, naming the way out.
    """
    _check_study(study)
    available = count_available(study, train_tokens)
    rates, asked = _read_rates(study, data_sha256), study
    study, batches = settle_batch(study, data_sha256)
    dropped: list[Dropped] = []
    chosen = {budget: _choose_sizes(study, budget, available, dropped) for budget in sorted(study.grid.budgets)}
    if study.grid.schedule == "wsd-branches":
        cells = _branch_cells(study, chosen, available, rates, dropped)
    else:
        cells = [_cell(study, c, "grid", available, i, rates) for kept in chosen.values()
                 for i in range(_count_seeds(study, kept[0].budget)) for c in kept]  # fmt: skip
    for budget in sorted(study.grid.holdout):
        kept = _choose_holdout(study, budget, available, dropped)
        cells += [_cell(study, c, "holdout", available, 0, rates) for c in kept]
    hardware = parse_hardware(study.hardware)
    return Plan.of_cells(
        cells,
        study=study.name,
        dropped=tuple(dropped),
        assumptions=_assumptions(study, available, hardware.describe())
        + _tell_laws(asked, [cell.spec for cell in cells if cell.role != "trunk"], rates, batches),
        config=to_plain(asked),
        hardware=study.hardware,
        data_sha256=data_sha256,
    )


def _tell_laws(
    study: Study, specs: Sequence[RunSpec], rates: RateLaw | None, batches: BatchLaw | None
) -> tuple[str, ...]:
    """What there is to say of measured rates and batches, and of a noise scale that cannot be measured."""
    told = tell_batch(batches, study, specs) if batches else ()
    told += tell_rates(rates, specs) if rates else ()
    if study.recipe.measure_noise and (unmeasured := _find_unmeasured(study, specs)):
        told += (f"noise scale: {unmeasured}, where it cannot be measured; set mesh.microbatch_seqs to half the "
                 f"smallest batch or less",)  # fmt: skip
    return told


def _find_unmeasured(study: Study, specs: Sequence[RunSpec]) -> str:
    """Which cells may have no two batch sizes in a step; empty where all have."""
    given = study.mesh.microbatch_seqs
    if not given and parse_hardware(study.hardware).name != "cpu":
        return "a microbatch is what fits the accelerator, which may be the whole batch"
    single = sum((given or spec.microbatch_seqs) == spec.batch_seqs for spec in specs)
    return f"{single} of {len(specs)} cells have one microbatch a step" if single else ""


def count_available(study: Study, train_tokens: float | None) -> float | None:
    """Training tokens before any is read again: of the text, else as declared, data.unique_tokens at most."""
    available = train_tokens or study.data.declared_train_tokens
    unique = study.data.unique_tokens
    return min(available, unique) if available and unique else available or unique


def _read_rates(study: Study, data_sha256: str) -> RateLaw | None:
    return read_rates(study.recipe.lr_from, study, data_sha256=data_sha256) if study.recipe.lr_from else None


def _count_seeds(study: Study, budget: float) -> int:
    """How often each cell of this budget is trained."""
    rank = sorted(study.grid.budgets).index(budget)
    return study.grid.seeds[min(rank, len(study.grid.seeds) - 1)]


def _branch_cells(
    study: Study, chosen: dict[float, list[_Candidate]], available: float | None, rates: RateLaw | None,
    dropped: list[Dropped],
) -> list[Cell]:  # fmt: skip
    """A trunk for every size and seed, then the branches by budget as cells of role "grid"."""
    models = dict.fromkeys(c.model for kept in chosen.values() for c in kept)
    means = {m: mean_horizon([c.tokens for kept in chosen.values() for c in kept if c.model == m]) for m in models}
    runs: dict[tuple[ModelConfig, int], list[RunSpec]] = {}
    for budget, kept in chosen.items():
        reasons = {c: _refuse_branch(study, c, means[c.model], rates) for c in kept}
        dropped += [_drop(c, reason) for c, reason in reasons.items() if reason]
        usable = [c for c in kept if not reasons[c]]
        _check_bracket(study, budget, usable, dropped)
        for seed in range(_count_seeds(study, budget)):
            for c in usable:
                spec = _resolve(study, c, study.seed + seed, rates, means[c.model])
                runs.setdefault((c.model, seed), []).append(spec)
    grown = [branch_off(several) for several in runs.values()]
    branches = sorted(
        (b for _, several in grown for b in several), key=lambda b: (b.budget_flops, b.seed, b.model.d_model)
    )
    return [price_run(study, trunk, "trunk", available) for trunk, _ in grown] + [
        price_run(study, branch, "grid", available) for branch in branches
    ]


def _refuse_branch(study: Study, c: _Candidate, mean: float, rates: RateLaw | None) -> str:
    """Why this size cannot branch off at this budget, at its trunk's batch; empty if it can."""
    spec = _resolve(study, c, study.seed, rates, mean)
    reason = _refuse_steps(study, c, spec.batch_seqs)
    start = spec.steps - spec.decay_steps
    if not reason and start <= spec.warmup_steps:
        reason = f"would branch at step {start}, inside its trunk's warmup of {spec.warmup_steps}"
    return f"{reason} (batch and warmup of its trunk)" if reason else ""


def _check_study(study: Study) -> None:
    grid = study.grid
    if study.variants:
        raise MisuseError(f"variants: {len(study.variants)} of them are no single grid; plan each, or all by "
                          f"jaxscale.variants.plan_variants (`jaxscale plan` does)")  # fmt: skip
    check_limits(study)
    if grid.spread <= 1:
        raise MisuseError(f"grid.spread: {grid.spread:g} leaves no sizes around the optimum; use 2 or more")
    if grid.bracket and grid.sizes_per_budget < MIN_SIZES:
        raise MisuseError(f"grid.sizes_per_budget: {grid.sizes_per_budget} sizes do not make a parabola; "
                          f"use {MIN_SIZES} or more")  # fmt: skip
    odd = [width for width in grid.widths if width % 2]
    if odd:
        raise MisuseError(f"grid.widths: {odd[0]} is odd and rotary positions need pairs; use {odd[0] + 1}")
    _check_mesh(study)
    overlap = set(grid.holdout) & set(grid.budgets)
    if overlap:
        raise MisuseError(f"grid.holdout: {min(overlap):g} is also in grid.budgets; keep it in one of them")


def _check_mesh(study: Study) -> None:
    """On named chips a microbatch, and so every batch, must divide over the devices that split it; auto counts as 1."""
    hardware, mesh = parse_hardware(study.hardware), study.mesh
    if hardware.name == "cpu":
        return
    fsdp, tensor, context = max(1, mesh.fsdp), max(1, mesh.tensor), max(1, mesh.context)
    replicas, rest = divmod(hardware.chips, tensor * context)
    if rest or replicas % fsdp or mesh.data not in (-1, replicas // fsdp):
        raise MisuseError(
            f"mesh: data={mesh.data} x fsdp={fsdp} x tensor={tensor} x context={context} does not make "
            f"the {hardware.chips} chips of {study.hardware}; use --mesh.data -1 and divisors of {hardware.chips}"
        )
    batch = study.recipe.microbatch_seqs
    if batch % replicas:
        near = max(1, batch // replicas) * replicas
        raise MisuseError(
            f"recipe.microbatch_seqs: {batch} sequences do not divide over {replicas} devices "
            f"({study.hardware}, tensor {tensor}); use {near} or fewer chips"
        )


def _ladder(study: Study) -> Iterator[ModelConfig]:
    for width in sorted(set(study.grid.widths)):
        aspect = study.grid.aspect
        depth = study.model.n_layers if aspect is None else max(1, round(width / aspect))
        yield replace(study.model, d_model=width, n_layers=depth)


def _expected_ratio(grid: Grid, budget: float) -> float:
    return grid.tokens_per_param * (budget / min(grid.budgets)) ** grid.tokens_per_param_exponent


def _candidates(study: Study, budget: float) -> list[_Candidate]:
    ratio = _expected_ratio(study.grid, budget)
    found = []
    for model in _ladder(study):
        n_params = count_params(model)["active"]
        tokens = budget / flops_per_token(model)
        x = 0.5 * math.log(ratio / (tokens / n_params))
        found.append(_Candidate(model, budget, x, n_params, tokens))
    return found


def _choose_sizes(study: Study, budget: float, available: float | None, dropped: list[Dropped]) -> list[_Candidate]:
    usable = _usable(study, budget, available, dropped)
    _check_bracket(study, budget, usable, dropped)
    kept = _thin(usable, study.grid.sizes_per_budget)
    dropped += [
        _drop(c, f"beyond grid.sizes_per_budget = {study.grid.sizes_per_budget}") for c in usable if c not in kept
    ]
    return kept


def _check_bracket(study: Study, budget: float, usable: list[_Candidate], dropped: list[Dropped]) -> None:
    """MisuseError where these sizes make no parabola, with the reasons and the way out; any do without grid.bracket."""
    below, above = sum(c.x < 0 for c in usable), sum(c.x > 0 for c in usable)
    if not study.grid.bracket and usable:
        return
    if len(usable) < MIN_SIZES or min(below, above) < MIN_ARM:
        raise MisuseError(_cannot_bracket(study, budget, usable, below, above, dropped))


def _choose_holdout(study: Study, budget: float, available: float | None, dropped: list[Dropped]) -> list[_Candidate]:
    usable = _usable(study, budget, available, dropped)
    if not usable:
        reasons = {drop.reason for drop in dropped if drop.budget_flops == budget}
        raise MisuseError(f"grid.holdout: no size of the ladder can be trained at {format_flops(budget)} FLOPs "
                          f"({'; '.join(sorted(reasons))}); add larger grid.widths or lower the budget")  # fmt: skip
    nearest = sorted(usable, key=lambda c: abs(c.x))[: study.grid.holdout_sizes]
    return sorted(nearest, key=lambda c: c.n_params)


def _usable(study: Study, budget: float, available: float | None, dropped: list[Dropped]) -> list[_Candidate]:
    """Candidates that can be trained as asked; the others go to `dropped` with their reason."""
    usable = []
    for candidate in _candidates(study, budget):
        reason = _refuse(study, candidate, available)
        if reason:
            dropped.append(_drop(candidate, reason))
        else:
            usable.append(candidate)
    return usable


def _refuse(study: Study, c: _Candidate, available: float | None) -> str:
    grid, limit = study.grid, study.data.max_epochs
    aspect = c.model.d_model / c.model.n_layers
    low, high = grid.aspect_range
    if not low <= aspect <= high:
        return f"aspect ratio {aspect:.3g} outside {low:g} to {high:g}"
    if abs(c.x) > math.log(grid.spread):
        side = "above" if c.x > 0 else "below"
        return f"{math.exp(abs(c.x)):.1f}x {side} the expected optimum (spread {grid.spread:g})"
    epochs = c.tokens / available if available else 0.0
    if epochs > limit * (1 + BUDGET_TOLERANCE):
        text = "the source of data.mixture that is used up first" if study.data.mixture else "the text"
        return f"{epochs:.2f} epochs of {text}, more than data.max_epochs = {limit:g}"
    return _refuse_steps(study, c, count_batch_seqs(study.recipe, c.model, c.tokens))


def _refuse_steps(study: Study, c: _Candidate, batch_seqs: int) -> str:
    """Why the tokens do not make a run of such batches; empty if they do."""
    steps = round(c.tokens / (batch_seqs * c.model.seq_len))
    if steps < study.grid.min_steps:
        return f"{steps} steps, fewer than grid.min_steps = {study.grid.min_steps}"
    miss = abs(steps * batch_seqs * c.model.seq_len / c.tokens - 1)
    return f"misses its budget by {miss:.1%}" if miss > BUDGET_TOLERANCE else ""


def _drop(c: _Candidate, reason: str) -> Dropped:
    return Dropped(c.budget, c.model.d_model, c.model.n_layers, c.n_params, c.tokens, reason)


def _thin(usable: list[_Candidate], count: int) -> list[_Candidate]:
    """`count` candidates closest to an even spacing in log N, both ends kept."""
    if len(usable) <= count:
        return usable
    chosen: list[_Candidate] = []
    for i in range(count):
        target = usable[0].x + (usable[-1].x - usable[0].x) * i / (count - 1)
        free = [c for c in usable if c not in chosen]
        chosen.append(min(free, key=lambda c: abs(c.x - target)))
    return sorted(chosen, key=lambda c: c.n_params)


def _cannot_bracket(
    study: Study, budget: float, usable: list[_Candidate], below: int, above: int, dropped: list[Dropped]
) -> str:
    reasons = [f"width {d.d_model}: {d.reason}" for d in dropped if d.budget_flops == budget]
    counts = f"{len(usable)} sizes ({below} below the expected optimum, {above} above)"
    way_out = []
    if below < MIN_ARM:
        way_out.append(f"add grid.widths below {min(study.grid.widths)} or raise the budget")
    if above < MIN_ARM:
        way_out.append(f"add grid.widths above {max(study.grid.widths)} or lower the budget")
    if any("epochs" in reason for reason in reasons):
        way_out.append("give more text or raise data.max_epochs")
    if not way_out:
        way_out.append("add grid.widths in between or raise grid.spread")
    dropped_text = f"; dropped: {', '.join(reasons)}" if reasons else ""
    return (f"grid.budgets: {format_flops(budget)} FLOPs cannot be bracketed, the ladder gives {counts} and a "
            f"parabola needs {MIN_SIZES}, {MIN_ARM} on each side; {' and '.join(way_out)}{dropped_text}")  # fmt: skip


def _cell(study: Study, c: _Candidate, role: Role, available: float | None, repeat: int, rates: RateLaw | None) -> Cell:
    return price_run(study, _resolve(study, c, study.seed + repeat, rates), role, available)


def _resolve(
    study: Study, c: _Candidate, seed: int, rates: RateLaw | None = None, horizon: float | None = None
) -> RunSpec:
    return resolve_run(study, c.model, c.budget, c.tokens, seed, rates, horizon)


def nearest_size(study: Study, budget: float, n_params: float) -> Cell:
    """The run of the study's ladder nearest in log N to `n_params`, with the tokens that `budget` FLOPs buy it."""
    study, _ = settle_batch(study)
    near = min(_candidates(study, budget), key=lambda c: abs(math.log(c.n_params / n_params)))
    return describe_run(_resolve(study, near, study.seed))


def offer_cells(study: Study, budget: float, *, train_tokens: float | None = None, data_sha256: str = "") -> list[Cell]:
    """Every size of the ladder that the study's rules allow at one budget, as grid cells of its first seed."""
    check_limits(study)
    if study.grid.schedule != "runs":
        raise MisuseError(f"grid.schedule: {study.grid.schedule} has branches of one trunk a size, to which no single "
                          f"runs can be added yet; plan the next budgets as a study of their own")  # fmt: skip
    available = count_available(study, train_tokens)
    rates = _read_rates(study, data_sha256)
    study, _ = settle_batch(study, data_sha256)
    return [_cell(study, c, "grid", available, 0, rates) for c in _usable(study, budget, available, [])]


def grow_plan(plan: Plan, cells: Sequence[Cell]) -> Plan:
    """The plan with more cells at its end, so that the places of the others stay; a cell it has already is misuse."""
    known = {cell.run_id for cell in plan.cells}
    twice = [cell.run_id for cell in cells if cell.run_id in known]
    if twice:
        raise MisuseError(f"plan of {plan.study}: run {twice[0]} is in it already; add runs of another seed or size")
    return plan.with_cells((*plan.cells, *cells))


def _assumptions(study: Study, available: float | None, hardware: str) -> tuple[str, ...]:
    grid, recipe = study.grid, study.recipe
    drift = f" * (C/{min(grid.budgets):g})^{grid.tokens_per_param_exponent:g}" * bool(grid.tokens_per_param_exponent)
    text = f"{format_count(available)} training tokens" if available else "unknown training tokens: epochs unchecked"
    if available and study.data.mixture:
        text += " until the first source of data.mixture is used up"
    branched = (
        "one trunk a size and seed: batch, rate, decay and warmup are those of the geometric mean of the size's "
        "horizons, not of each cell's own",
        f"a branch decays over the last {recipe.decay_fraction:g} of its own steps and is the run of its own that "
        f"these settings give; its C counts the trunk's part, which is paid once; held-out cells branch off no trunk",
    )
    return (
        f"optimum expected at D/N = {grid.tokens_per_param:g}{drift} (a guess); sizes within {grid.spread:g}x of it",
        f"batch = {recipe.batch_coefficient:g} * D^{recipe.batch_exponent:g} tokens, in whole microbatches of "
        f"{recipe.microbatch_seqs} x {study.model.seq_len}",
        f"{recipe.schedule} schedule over each cell's own tokens; {study.model.parameterization} from width "
        f"{study.model.base_d_model}",
        f"time: {hardware}; compiling not counted",
        f"text: {text}",
        *(branched if grid.schedule == "wsd-branches" else ()),
    )
