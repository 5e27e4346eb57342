"""How init, learning rate, epsilon, decay and forward multipliers follow width and depth: one table.

Each factor is relative to the base model, where all are 1. i and o are the growth of a tensor's input and
output axis over the base shape, w = d_model / base_d_model, m = n_layers / base_n_layers in blocks under
completep and 1 elsewhere, a = depth_alpha. With activations of size one and a loss that moves by O(1):

    role      init std        size of the gradient   size wanted of an update
    input     embed_std       1/o                    1
    hidden    sigma/sqrt(i)   m^-a / o               m^(a-1)/i
    head      head_std        1/w                    1            logits scaled by tau/w
    vector    1 (gains)       m^-a / o               m^(a-1)
    router    sigma/i         m^-a                   m^(a-1)/i

A router's logits, a few whatever the width, are sums over the width like the head's. Its start falls as 1/i, the
head's 1/w on weights instead of logits: changes of the stream align with it, and at sigma/sqrt(i) would move the logits
by sqrt(w) (docs/architectures.md measures w^.47). Experts are hidden matrices, stacked like layers. An LSTM's states
lie between -1 and 1, its recurrent matrix is a hidden one, its bias a vector (0, and 1 on the forget gate).
The gradient is that of features that have aligned (x^T dL/dy, each of the o outputs an equal share of dL);
with all shapes growing alike it is 1/w for every class. What an optimizer makes of it gives its factor on l:

    AdamW   update/gradient -> 1               factor = size wanted: hidden l/r, others l
    SGD     update ~ gradient                  factor = size wanted / gradient: hidden o/i, input and gains w, head w
    Lion    every entry is -1, 0 or 1          factor = size wanted, as for AdamW
    Adafactor  update has RMS 1, rank of the   factor = size wanted, as for AdamW
            gradient
    Muon    .2 sqrt(max(fan_in, fan_out)) O    factor = sqrt(o/i) / growth of sqrt(max(fan_in, fan_out))

Lion's sign is AdamW's first step: x^T dL/dy is aligned with the features whatever its size, so that a change
of entries of 1/i moves an output by O(1). Adafactor divides each row and column of a gradient by one number,
which leaves its few directions as they are, and bounds the RMS of the result by 1 (`train.optimizer`); neither
has an epsilon that the gradients come near. Adafactor's rate relative to the size of its weights (Shazeer and
Stern 2018, section 8) is left out: RMS(p) falls as i^-1/2 with the init and not as the 1/i that is wanted, moves
as the weights grow, and is a floor of 1e-3 under a head that begins at zero.

O, the orthogonalized momentum, has singular values near 1. The .2 sqrt(max) makes its RMS .2, that of AdamW
(Liu et al. 2025, 2502.16982), so that one l serves both at base width; but held at every width that RMS lets
the spectral norm grow as sqrt(width), for O has full rank where AdamW's update has few directions. What keeps
the change of activations is the spectral norm sqrt(fan_out/fan_in) (Yang, Simon, Bernstein 2023, 2310.17813),
hence the factor: l/sqrt(r) where all shapes grow alike. Muon moves hidden matrices only, AdamW the rest.

epsilon: times the gradient's size, eps/w in every class (a hidden matrix whose output is d_ff or the heads:
eps/o); grouped keys, QK gains and routers, whose gradients fall slower, keep eps/w, which is only smaller.
lambda: over the factor on l, so that l*lambda stays fixed; 0 for vectors.
`standard` keeps one rate, epsilon and lambda for all and inits hidden matrices at 1/sqrt(fan_in).
Ratios below 1 (widths under the base) are used as they are, never clamped.

Sources: Yang et al. 2022 (2203.03466), Dey et al. 2025 (CompleteP, 2505.01618), Wortsman et al. 2023
(2309.14322, epsilon), Everett et al. 2024 (2407.05872, alignment).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal, get_args

from jaxscale.config import ModelConfig
from jaxscale.errors import MisuseError
from jaxscale.params import Axes, param_shapes

__all__ = [
    "MUON_RMS",
    "OPTIMIZERS",
    "WIDTH_AXES",
    "Multipliers",
    "Optimizer",
    "Role",
    "Rule",
    "base_model",
    "forward_multipliers",
    "param_role",
    "param_rules",
]

Role = Literal["input", "hidden", "head", "vector", "router"]
Optimizer = Literal["adamw", "sgd", "muon", "lion", "adafactor"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

WIDTH_AXES = frozenset({"embed", "heads", "mlp", "state", "gates"})
"""Logical axes that grow with d_model; "kv" may not (grouped queries), "vocab", "head_dim" and "experts" do not."""
STACKS = ("layers", "experts")
"""Axes that stack matrices, outermost."""

MUON_RMS = 0.2
"""RMS of a Muon update over the learning rate at base width: about that of AdamW's (2502.16982, section 2.2)."""


@dataclass(frozen=True)
class Rule:
    """One parameter's constants: init std (0 with role vector: ones), factors on lr, eps, lambda, and its optimizer."""

    role: Role
    init_std: float
    lr: float
    eps: float
    decay: float
    optimizer: Optimizer = "adamw"


@dataclass(frozen=True)
class Multipliers:
    """Factors in the forward pass."""

    embed: float
    attention: float
    residual: float
    logits: float


def param_role(axes: Axes) -> Role:
    """Role of a parameter from its logical axes, those that stack matrices set aside.

    >>> param_role((("layers", 4), ("embed", 64), ("kv", 16)))  # grouped-query keys
    'hidden'
    >>> param_role((("layers", 4), ("embed", 64)))  # a stacked gain is still a vector
    'vector'
    """
    if axes[-1][0] == "experts":
        return "router"
    names = [name for name, _ in axes if name not in STACKS]
    if len(names) == 1:
        return "vector"
    if names[-1] == "vocab":
        return "head"
    return "hidden" if names[0] in WIDTH_AXES else "input"


def base_model(model: ModelConfig) -> ModelConfig:
    """The model at base width, whose shapes all ratios are taken over; its depth is the model's own."""
    return replace(
        model,
        d_model=model.base_d_model,
        head_dim=model.base_head_dim or model.head_dim,
        mlp_ratio=model.base_mlp_ratio or model.mlp_ratio,
    )


def param_rules(model: ModelConfig, optimizer: str = "adamw") -> dict[str, Rule]:
    """The rule of every parameter of a concrete model, keyed like `param_shapes`.

    MisuseError for an optimizer without a rule of its own: none is taken over from another.
    """
    chosen = next((name for name in OPTIMIZERS if name == optimizer), None)
    if chosen is None:
        raise MisuseError(f"recipe.optimizer: {optimizer!r} has no rule for width here; use {', '.join(OPTIMIZERS)}")
    base = param_shapes(base_model(model))
    return {name: _rule(axes, base[name], model, chosen) for name, axes in param_shapes(model).items()}


def _rule(axes: Axes, base_axes: Axes, model: ModelConfig, optimizer: Optimizer) -> Rule:
    role = param_role(axes)
    mine: Optimizer = "adamw" if optimizer == "muon" and role != "hidden" else optimizer
    std = {"input": model.embed_std, "head": model.head_std, "vector": 0.0}.get(role)
    if std is None:
        std = _hidden_std(axes, base_axes, model)
    std *= model.init_scale
    if model.parameterization == "standard":
        return Rule(role, std, 1.0, 1.0, 0.0 if role == "vector" else 1.0, mine)
    depth = _depth_ratio(model) if axes[0][0] == "layers" else 1.0
    width = model.d_model / model.base_d_model
    lr = _wanted(role, axes, base_axes) * depth ** (model.depth_alpha - 1)
    if mine == "sgd":
        gradient = width if role == "head" else _growth(axes, base_axes, -1)
        lr *= gradient * depth**model.depth_alpha
    elif mine == "muon":
        lr = depth ** (model.depth_alpha - 1) * _spectral(axes, base_axes)
    eps = depth**-model.depth_alpha / (_growth(axes, base_axes, -1) if axes[-1][0] in WIDTH_AXES else width)
    return Rule(role, std, lr, eps, 0.0 if role == "vector" else 1 / lr, mine)


def _hidden_std(axes: Axes, base_axes: Axes, model: ModelConfig) -> float:
    fan_in, base_fan_in = axes[-2][1], base_axes[-2][1]
    if model.parameterization == "standard":
        return 1 / sqrt(fan_in) if model.hidden_std is None else model.hidden_std
    sigma = 1 / sqrt(base_fan_in) if model.hidden_std is None else model.hidden_std
    return sigma / (fan_in / base_fan_in if axes[-1][0] == "experts" else sqrt(fan_in / base_fan_in))


def _growth(axes: Axes, base_axes: Axes, place: int) -> float:
    return axes[place][1] / base_axes[place][1]


def _wanted(role: Role, axes: Axes, base_axes: Axes) -> float:
    """Size of an update over its size at base width, depth aside."""
    return 1 / _growth(axes, base_axes, -2) if role in ("hidden", "router") else 1.0


def _spectral(axes: Axes, base_axes: Axes) -> float:
    """Muon's factor: the spectral norm sqrt(fan_out/fan_in), given updates of one RMS."""
    wide = max(axes[-2][1], axes[-1][1]) / max(base_axes[-2][1], base_axes[-1][1])
    return sqrt(_growth(axes, base_axes, -1) / _growth(axes, base_axes, -2) / wide)


def _depth_ratio(model: ModelConfig) -> float:
    return model.n_layers / model.base_n_layers if model.parameterization == "completep" else 1.0


def forward_multipliers(model: ModelConfig) -> Multipliers:
    """Multipliers of the forward pass; attention is 1/sqrt(d_head) at base and 1/d_head beyond it."""
    if model.parameterization == "standard":
        return Multipliers(model.embed_scale, model.d_head**-0.5, 1.0, model.logit_scale)
    width = model.d_model / model.base_d_model
    return Multipliers(
        embed=model.embed_scale,
        attention=sqrt(base_model(model).d_head) / model.d_head,
        residual=_depth_ratio(model) ** -model.depth_alpha,
        logits=model.logit_scale / width,
    )
