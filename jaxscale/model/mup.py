"""muP: how init, learning rate, epsilon, decay and multipliers follow width (and depth).

Yang et al. 2022 (2203.03466) for AdamW, with CompleteP's depth rule (Dey et al. 2025, 2505.01618).
r = fan_in / fan_in at base width, per tensor; w = d_model / base_d_model; m = n_layers / base_n_layers.

    role      init std        learning rate   epsilon   lambda (optax: multiplied by the rate)
    input     embed_std       l               eps/w     lambda
    hidden    sigma/sqrt(r)   l/r             eps/w     lambda*r, so that l*lambda stays fixed
    head      head_std        l               eps/w     lambda            logits scaled by tau/w
    vector    1 (gains)       l               eps/w     0

Every class needs eps/w because the gradient's RMS falls as 1/w in every class. `completep` scales the
residual branches by m^-alpha, block epsilons by m^-alpha, block rates by m^(alpha-1) and block decay by
m^(1-alpha). `standard` keeps one rate, epsilon and lambda for all and inits hidden matrices at
1/sqrt(fan_in). Ratios below 1 (widths under the base) are used as they are, never clamped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

from jaxscale.config import ModelConfig
from jaxscale.params import Axes, param_shapes

__all__ = ["WIDTH_AXES", "Multipliers", "Role", "Rule", "forward_multipliers", "param_role", "param_rules"]

Role = Literal["input", "hidden", "head", "vector"]

WIDTH_AXES = frozenset({"embed", "heads", "mlp"})
"""Logical axes that grow with d_model; "kv" may not (grouped queries), "vocab" and "head_dim" do not."""


@dataclass(frozen=True)
class Rule:
    """One parameter's constants: init std (0 with role vector: ones), and factors on lr, eps, lambda."""

    role: Role
    init_std: float
    lr: float
    eps: float
    decay: float


@dataclass(frozen=True)
class Multipliers:
    """Factors in the forward pass."""

    embed: float
    attention: float
    residual: float
    logits: float


def param_role(axes: Axes) -> Role:
    """Role of a parameter from its logical axes, the stacked "layers" axis set aside.

    >>> param_role((("layers", 4), ("embed", 64), ("kv", 16)))  # grouped-query keys
    'hidden'
    >>> param_role((("layers", 4), ("embed", 64)))  # a stacked gain is still a vector
    'vector'
    """
    names = [name for name, _ in axes if name != "layers"]
    if len(names) == 1:
        return "vector"
    if names[-1] == "vocab":
        return "head"
    return "hidden" if names[0] in WIDTH_AXES else "input"


def _fan_in(axes: Axes) -> int:
    return next(size for name, size in axes if name != "layers")


def _base(model: ModelConfig) -> ModelConfig:
    return replace(model, d_model=model.base_d_model)


def param_rules(model: ModelConfig) -> dict[str, Rule]:
    """The rule of every parameter of a concrete model, keyed like `param_shapes`."""
    base = param_shapes(_base(model))
    return {name: _rule(name, axes, base[name], model) for name, axes in param_shapes(model).items()}


def _rule(name: str, axes: Axes, base_axes: Axes, model: ModelConfig) -> Rule:
    role = param_role(axes)
    fan_in, base_fan_in = _fan_in(axes), _fan_in(base_axes)
    scaled = model.parameterization != "standard"
    r = fan_in / base_fan_in if role == "hidden" and scaled else 1.0
    w = model.d_model / model.base_d_model if scaled else 1.0
    sigma = 1 / sqrt(base_fan_in if scaled else fan_in) if model.hidden_std is None else model.hidden_std
    std = {"input": model.embed_std, "hidden": sigma / sqrt(r), "head": model.head_std, "vector": 0.0}[role]
    depth, alpha = _depth_ratio(model) if name.startswith("blocks.") else 1.0, model.depth_alpha
    decay = 0.0 if role == "vector" else r * depth ** (1 - alpha)
    return Rule(role, std, depth ** (alpha - 1) / r, depth**-alpha / w, decay)


def _depth_ratio(model: ModelConfig) -> float:
    return model.n_layers / model.base_n_layers if model.parameterization == "completep" else 1.0


def forward_multipliers(model: ModelConfig) -> Multipliers:
    """Multipliers of the forward pass; attention is 1/sqrt(d_head) at base and 1/d_head beyond it."""
    if model.parameterization == "standard":
        return Multipliers(model.embed_scale, model.d_head**-0.5, 1.0, model.logit_scale)
    width = model.d_model / model.base_d_model
    return Multipliers(
        embed=model.embed_scale,
        attention=sqrt(_base(model).d_head) / model.d_head,
        residual=_depth_ratio(model) ** -model.depth_alpha,
        logits=model.logit_scale / width,
    )
