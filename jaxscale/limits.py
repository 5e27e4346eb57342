"""The range of every number in a study: what lies outside is refused by name, before anything is planned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jaxscale.config import MeshConfig, ModelConfig, Study
from jaxscale.errors import MisuseError

__all__ = ["check_limits", "check_mesh"]

MAX_SEED = 2**32
"""Seeds are 32-bit: the key of the parameters and of the data order."""

POSITIVE = """
    model.head_dim model.kv_groups model.n_layers model.mlp_ratio model.mlp_multiple model.vocab_size model.seq_len
    model.base_d_model model.base_n_layers model.base_head_dim model.base_mlp_ratio model.rope_theta
    recipe.lr recipe.batch_coefficient recipe.batch_min_tokens recipe.batch_max_tokens recipe.microbatch_seqs
    recipe.batch_critical model.experts_per_token
    data.val_tokens data.max_epochs data.declared_train_tokens data.unique_tokens data.decontaminate_ngram
    data.bytes_per_token data.val_bytes tuning.step tuning.tokens tuning.seeds tuning.width
    grid.budgets grid.holdout grid.widths grid.aspect grid.tokens_per_param grid.seeds grid.min_steps
    grid.holdout_sizes forecast_flops launch.max_chip_hours launch.max_attempts launch.lease_s
"""
NOT_NEGATIVE = """
    model.embed_std model.hidden_std model.head_std model.init_scale model.norm_eps recipe.embed_lr recipe.head_lr
    model.n_experts recipe.router_balance tuning.rates tuning.more
    recipe.adam_lr recipe.eps recipe.weight_decay recipe.clip_norm recipe.z_loss recipe.eval_shots
    grid.exclude_spike mesh.workers mesh.checkpoint_every_s mesh.head_chunks mesh.fsdp mesh.tensor mesh.context
    mesh.microbatch_seqs
    bootstrap seed
"""
FINITE = """
    model.embed_scale model.logit_scale recipe.batch_exponent grid.tokens_per_param_exponent grid.spread
    recipe.lr_horizon_exponent recipe.lr_batch_exponent
"""
BETWEEN = {
    "recipe.b1": (0.0, 0.9999999),
    "recipe.b2": (0.0, 0.9999999),
    "recipe.momentum": (0.0, 0.9999999),
    "recipe.warmup_fraction": (0.0, 1.0),
    "recipe.decay_fraction": (0.0, 1.0),
    "recipe.final_fraction": (0.0, 1.0),
    "recipe.average_fraction": (0.0, 1.0),
    "recipe.eval_points": (0.0, 1.0),
    "model.depth_alpha": (0.5, 1.0),
    "data.quality_keep": (1e-6, 1.0),
}
"""Least and largest value, both allowed."""
ONE_OF = {
    "recipe.optimizer": ("adamw", "sgd", "muon", "lion", "adafactor"),
    "recipe.precision": ("mesh", "float32", "bfloat16", "int8"),
    "model.parameterization": ("mup", "completep", "standard"),
    "model.architecture": ("transformer", "lstm"),
    "model.objective": ("autoregressive", "masked_diffusion"),
    "model.mlp": ("gelu", "swiglu", "relu2", "relu", "geglu"),
    "model.norm": ("rmsnorm", "layernorm"),
    "model.position": ("rope", "learned", "sinusoidal", "alibi", "none"),
    "recipe.eval_normalization": ("sum", "token", "byte", "char"),
    "grid.schedule": ("runs", "wsd-branches"),
}
"""Names that have rules; a study file is not checked by the command line's types."""
NOT_EMPTY = ("grid.budgets", "grid.widths", "grid.seeds")


def check_limits(study: Study) -> None:
    """MisuseError for the first number of a study that is outside its range: field, value, limit."""
    for name, value in _values(study, POSITIVE.split()):
        if not (math.isfinite(value) and value > 0):
            raise MisuseError(f"{name}: {value:g} is not a positive number; give one or leave the default")
    for name, value in _values(study, NOT_NEGATIVE.split()):
        if not (math.isfinite(value) and value >= 0):
            raise MisuseError(f"{name}: {value:g} is not a number of 0 or more; give one or leave the default")
    for name, value in _values(study, FINITE.split()):
        if not math.isfinite(value):
            raise MisuseError(f"{name}: {value:g} is not a finite number; give one or leave the default")
    for name, value in _values(study, BETWEEN):
        low, high = BETWEEN[name]
        if not low <= value <= high:
            raise MisuseError(f"{name}: {value:g} is outside {low:g} to {high:.8g}; give a number in there")
    for name, allowed in ONE_OF.items():
        if _value(study, name) not in allowed:
            raise MisuseError(f"{name}: {_value(study, name)!r} has no rules here; use {', '.join(allowed)}")
    _check_together(study)


def _check_together(study: Study) -> None:
    recipe, grid = study.recipe, study.grid
    if not study.name or ".." in study.name.split("/"):
        raise MisuseError(f"name: {study.name!r} does not name a folder in runs/; use letters, or --out for a path")
    if recipe.schedule == "wsd" and recipe.warmup_fraction + recipe.decay_fraction > 1:
        raise MisuseError(f"recipe.decay_fraction: {recipe.decay_fraction:g} and recipe.warmup_fraction "
                          f"{recipe.warmup_fraction:g} are more than the whole run; lower one")  # fmt: skip
    _check_branches(study)
    _check_data(study)
    _check_objective(study)
    _check_architecture(study)
    check_mesh(study.model, study.mesh)
    for name in ("lr_horizon_exponent", "lr_batch_exponent"):
        if getattr(recipe, name) is not None and not recipe.lr_from:
            raise MisuseError(f"recipe.{name}: is read only with a sweep; give its file by --recipe.lr-from")
    if recipe.batch_critical != 1 and not recipe.batch_from:
        raise MisuseError("recipe.batch_critical: is read only with a measured critical batch; give its file by "
                          "--recipe.batch-from")  # fmt: skip
    if study.seed + max(grid.seeds) > MAX_SEED:
        raise MisuseError(f"seed: {study.seed} is beyond 32 bits; use one below {MAX_SEED - max(grid.seeds)}")
    for name, budgets in (("grid.budgets", grid.budgets), ("grid.holdout", grid.holdout)):
        twice = [budget for budget in budgets if budgets.count(budget) > 1]
        if twice:
            raise MisuseError(f"{name}: {twice[0]:g} is there twice; name it once and repeat it with grid.seeds")


def _check_data(study: Study) -> None:
    data = study.data
    for pattern, weight in data.mixture:
        if not (math.isfinite(weight) and weight > 0):
            raise MisuseError(f"data.mixture: weight {weight:g} of {pattern!r} is not a positive number; a source that "
                              f"is not to be trained on is left out")  # fmt: skip
    if data.quality_keep != 1 and not data.quality_from:
        raise MisuseError(f"data.quality_keep: {data.quality_keep:g} is read only with data.quality_from, the text "
                          f"that documents are to be like; give both")  # fmt: skip


def _check_objective(study: Study) -> None:
    model = study.model
    if model.objective != "masked_diffusion":
        return
    if model.architecture != "transformer":
        raise MisuseError(f"model.objective: masked_diffusion fills in what stands on both sides, and an "
                          f"{model.architecture} reads from one; use --model.architecture transformer")  # fmt: skip
    if model.position in ("none", "alibi"):
        raise MisuseError(f"model.position: {model.position} does not tell left from right without a causal mask, and "
                          f"masked_diffusion has none; use rope, learned or sinusoidal")  # fmt: skip
    if study.recipe.evals:
        raise MisuseError("recipe.evals: tasks are scored by the likelihood of the next tokens, of which "
                          "model.objective masked_diffusion has a bound only; leave recipe.evals empty")  # fmt: skip


def _check_branches(study: Study) -> None:
    recipe, mesh = study.recipe, study.mesh
    if study.grid.schedule != "wsd-branches":
        return
    if recipe.schedule != "wsd":
        raise MisuseError(f"grid.schedule: wsd-branches decays from a constant rate and recipe.schedule is "
                          f"{recipe.schedule!r}; use --recipe.schedule wsd")  # fmt: skip
    if not recipe.decay_fraction:
        raise MisuseError("recipe.decay_fraction: 0 leaves a branch nothing to decay; use .1 to .3")
    if mesh.packs in ("pack", "turn"):
        raise MisuseError(f"mesh.packs: {mesh.packs} trains no trunks and branches; use process")


def _check_architecture(study: Study) -> None:
    model, rounds = study.model, study.recipe.precision == "int8"
    if model.n_experts and model.experts_per_token > model.n_experts:
        raise MisuseError(f"model.experts_per_token: {model.experts_per_token} of {model.n_experts} experts cannot be "
                          f"chosen; use {model.n_experts} or fewer, or more model.n_experts")  # fmt: skip
    if rounds and model.n_experts:
        raise MisuseError("recipe.precision: int8 has no form for the products of experts; use bfloat16 or float32")
    if model.architecture != "lstm":
        return
    if rounds:
        raise MisuseError("recipe.precision: int8 has no form for an LSTM's loop over time; use bfloat16 or float32")
    if model.n_experts:
        raise MisuseError(f"model.n_experts: {model.n_experts} needs MLPs and an LSTM has none; use 0, or "
                          f"model.architecture transformer")  # fmt: skip
    for name, silent in (("position", ("rope", "none")), ("kv_groups", (1,))):
        if getattr(model, name) not in silent:
            raise MisuseError(f"model.{name}: {getattr(model, name)} is an attention's and an LSTM has none; use "
                              f"{silent[-1]}")  # fmt: skip


def check_mesh(model: ModelConfig, mesh: MeshConfig) -> None:
    """MisuseError for a mesh that asks of an LSTM what only a transformer can do."""
    if model.architecture != "lstm":
        return
    for name, why in (("tensor", "its loop over time would wait for the others at every position"),
                      ("context", "it reads a sequence from its beginning")):  # fmt: skip
        if getattr(mesh, name) > 1:
            raise MisuseError(f"mesh.{name}: {getattr(mesh, name)} does not split an LSTM, {why}; use 1, and mesh.data "
                              f"or mesh.fsdp")  # fmt: skip
    if mesh.attention != "auto":
        raise MisuseError(f"mesh.attention: {mesh.attention} is a kernel of attention and an LSTM has none; use auto")


def _values(study: Study, names: Any) -> Iterator[tuple[str, float]]:
    """(name, value) of each number; every element of a tuple, 0 for an empty one that must not be, None left out."""
    for name in names:
        value = _value(study, name)
        many = value if isinstance(value, tuple) else (value,)
        yield from ((name, number) for number in many if number is not None)
        if not many and name in NOT_EMPTY:
            yield name, 0


def _value(study: Study, name: str) -> Any:
    value: Any = study
    for part in name.split("."):
        value = getattr(value, part)
    return value
