"""One run of a study, every number of it: batch, steps, rate, decay, warmup, and what it costs.

    batch = coefficient * D^exponent tokens in whole microbatches;   steps = D / batch
    lambda = weight_decay / (lr * steps) under the horizon rule, weight_decay under the constant one

With recipe.batch_from the rule is a measured critical batch's (jaxscale/batchlaw). D are the run's own tokens, or for a
branch the horizon its trunk is set for. The rate is recipe.lr, or with recipe.lr_from a sweep's optimum moved to D and
the batch (jaxscale/rates).
"""

from __future__ import annotations

from dataclasses import replace

from jaxscale.batchlaw import settle_batch
from jaxscale.config import ModelConfig, Recipe, Study
from jaxscale.errors import MisuseError
from jaxscale.flops import count_params, flops_6nd, flops_per_token, validation_flops
from jaxscale.hardware import parse_hardware
from jaxscale.rates import RateLaw
from jaxscale.runs import Cell, Role, RunSpec

__all__ = ["count_batch_seqs", "describe_run", "plan_run", "price_run", "resolve_run"]


def plan_run(study: Study, model: ModelConfig, tokens: float, seed: int, role: Role, available: float | None) -> Cell:
    """One run of a model of one's own on about `tokens` tokens, by the study's rules; its budget is what it costs."""
    study, _ = settle_batch(study)
    return price_run(study, resolve_run(study, model, tokens * flops_per_token(model), tokens, seed), role, available)


def resolve_run(
    study: Study, model: ModelConfig, budget: float, tokens: float, seed: int, rates: RateLaw | None = None,
    horizon: float | None = None,
) -> RunSpec:  # fmt: skip
    """Every number of a run of `model` on about `tokens` tokens, from the study's rules and a sweep's rates.

    `horizon`: tokens at which batch, rate, decay and warmup are set, where they are not the run's own.
    MisuseError for tokens that do not make a step.
    """
    recipe = study.recipe
    batch_seqs = count_batch_seqs(recipe, model, horizon or tokens)
    batch_tokens = batch_seqs * model.seq_len
    steps = round(tokens / batch_tokens)
    if steps < 1:
        raise MisuseError(f"tokens: {tokens:g} are less than half a batch of {batch_tokens}; use more")
    set_steps = steps if horizon is None else round(horizon / batch_tokens)
    lr = rates.rate(set_steps * batch_tokens, batch_tokens) if rates else recipe.lr
    by_horizon = recipe.decay_rule == "horizon"
    return RunSpec(
        model=model,
        data=study.data,
        budget_flops=budget,
        tokens=steps * batch_tokens,
        steps=steps,
        batch_seqs=batch_seqs,
        microbatch_seqs=recipe.microbatch_seqs,
        optimizer=recipe.optimizer,
        lr=lr,
        embed_lr=recipe.embed_lr,
        head_lr=recipe.head_lr,
        b1=recipe.b1,
        b2=recipe.b2,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay / (lr * set_steps) if by_horizon else recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        z_loss=recipe.z_loss,
        schedule=recipe.schedule,
        warmup_steps=max(1, round(recipe.warmup_fraction * set_steps)),
        decay_steps=max(1, round(recipe.decay_fraction * steps)),
        final_fraction=recipe.final_fraction,
        seed=seed,
        adam_lr=recipe.adam_lr,
        momentum=recipe.momentum,
        average_steps=round(recipe.average_fraction * steps),
        router_balance=recipe.router_balance,
        precision=recipe.precision,
    )


def count_batch_seqs(recipe: Recipe, model: ModelConfig, tokens: float) -> int:
    """Sequences a step: the batch rule, rounded to whole microbatches. A recipe with batch_from is to be settled first
    (`batchlaw.settle_batch`)."""
    assert not recipe.batch_from, "recipe.batch_from is not settled"
    wanted = recipe.batch_coefficient * tokens**recipe.batch_exponent
    bounded = min(max(wanted, recipe.batch_min_tokens), recipe.batch_max_tokens)
    microbatches = max(1, round(bounded / (model.seq_len * recipe.microbatch_seqs)))
    return microbatches * recipe.microbatch_seqs


def describe_run(spec: RunSpec, role: Role = "grid") -> Cell:
    """A run with its counted numbers; epochs and seconds, which need a text and a machine, are left open."""
    counts = count_params(spec.model)
    return Cell(
        spec=spec,
        role="trunk" if spec.keeps else role,
        n_params=counts["active"],
        n_params_non_embedding=counts["non_embedding"],
        flops=float(flops_per_token(spec.model) * spec.tokens),
        flops_6nd=flops_6nd(counts["active"], spec.tokens),
        epochs=None,
        seconds=0.0,
        n_params_total=counts["total"],
    )


def price_run(study: Study, spec: RunSpec, role: Role, available: float | None) -> Cell:
    """A run with its epochs of the text, and the seconds of what it makes itself."""
    model = spec.model
    rate = parse_hardware(study.hardware).flops_per_s(model.d_model)
    val_tokens = study.data.val_bytes or study.data.val_tokens  # a token is a byte or more
    evaluation = validation_flops(model, val_tokens)
    cell = describe_run(spec, role)
    epochs = spec.tokens / available if available else None
    return replace(cell, epochs=epochs, seconds=(cell.paid_flops + evaluation) / rate)
