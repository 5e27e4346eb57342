"""What a coordinate check should find: how each size moves over a ladder of models under a right parameterization.

Worked out from the shapes alone, apart from `model.mup`, so that a slip in the rules cannot hide in the
expectation. Sizes are relative to the first model of the ladder; o, i, w, m are growths of output axis, input
axis, width and depth, a = depth_alpha. Two ends where two parts of a size grow differently:

    change      1; branch outputs m^(a-1) .. 1 over depth (their own share shrinks, the stream's change does not);
                logits of a head that begins random, and of routers, which do, w^(-1/2) .. 1 (a changed stream through
                random weights, and aligned)
                what experts give, and the stream, 1 .. w^(1/4): a router's first logits fall as w^(-1/2), their change
                does not, so that the share of tokens that it sends elsewhere grows up to w^(1/2), until it is all
    gradient    1/o .. 1/sqrt(o w), in blocks times m^-a: the part aligned over outputs, and the random part of
                sums that run over w inputs for o shared outputs (gains over heads, keys over their queries)
    update      of a matrix i^(-1/2), for it has size i^(-1/2) and moves by 1/i; in blocks times m^(a-1)
                of a router 1, for it begins at size 1/i
                Muon: i^(-1/2) where the gradient's rank is the batch's, sqrt(o/max growth) where it is full
                SGD: times the gradient's two ends over 1/o
    decay       1; exactly 0 for vectors
    epsilon     at most 1: eps may not gain on the gradient
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from jaxscale.config import ModelConfig
from jaxscale.params import Axes, param_shapes

__all__ = ["TOLERANCE", "Expected", "expect_ratio"]

TOLERANCE: dict[str, float] = {"change": 0.2, "gradient": 0.35, "update": 0.2, "decay": 0.05, "epsilon": 0.35,
                               "router logits": 0.35}  # fmt: skip
"""How far a slope may lie from its expectation; an update of SGD has its gradient's. A router's few logits move by a
few directions only: their slope differs by .15 between seeds (docs/architectures.md)."""

BRANCHES = ("attention out", "MLP out", "LSTM out")


@dataclass(frozen=True)
class Expected:
    """The least and the largest ratio of a size to that of the first model."""

    low: float
    high: float


def expect_ratio(quantity: str, parameter: str, model: ModelConfig, first: ModelConfig, optimizer: str) -> Expected:
    """Size at `model` over size at `first`; `parameter` a name of `param_shapes`, or an activation's."""
    m, a = model.n_layers / first.n_layers, model.depth_alpha
    if quantity == "change":
        share = m ** (a - 1) if parameter in BRANCHES else 1.0
        random_head = parameter == "logits" and (model.embed_std if model.tied else model.head_std) > 0
        if random_head or parameter == "router logits":
            share = sqrt(first.d_model / model.d_model)
        rerouted = 1.0
        if parameter in ("MLP out", "residual stream") and model.n_experts > model.experts_per_token:
            rerouted = (model.d_model / first.d_model) ** 0.25
        return Expected(min(share, 1.0), max(share, rerouted))
    if quantity == "decay":
        return Expected(1.0, 1.0)
    if quantity == "epsilon":
        return Expected(0.0, 1.0)
    axes, base = param_shapes(model)[parameter], param_shapes(first)[parameter]
    depth = m if axes[0][0] == "layers" else 1.0
    if quantity == "gradient":
        return _scale(_gradient(axes, base, model.d_model / first.d_model), depth**-a)
    return _scale(_update(axes, base, model.d_model / first.d_model, optimizer), depth ** (a - 1))


def _gradient(axes: Axes, base: Axes, w: float) -> Expected:
    o = w if axes[-1][0] == "vocab" else _growth(axes, base, -1)
    return _between(1 / o, 1 / sqrt(o * w))


def _update(axes: Axes, base: Axes, w: float, optimizer: str) -> Expected:
    spread = Expected(1.0, 1.0)
    if optimizer == "sgd":
        gradient = _gradient(axes, base, w)
        o = w if axes[-1][0] == "vocab" else _growth(axes, base, -1)
        spread = _scale(gradient, o)
    if not _is_hidden(axes):
        return spread
    o, i = _growth(axes, base, -1), _growth(axes, base, -2)
    if optimizer == "muon":
        widest = max(axes[-1][1], axes[-2][1]) / max(base[-1][1], base[-2][1])
        return _between(i**-0.5, sqrt(o / widest))
    return _scale(spread, i**-0.5)


def _is_hidden(axes: Axes) -> bool:
    names = [name for name, _ in axes if name not in ("layers", "experts")]
    return len(names) == 2 and "vocab" not in names


def _growth(axes: Axes, base: Axes, place: int) -> float:
    return axes[place][1] / base[place][1]


def _between(a: float, b: float) -> Expected:
    return Expected(min(a, b), max(a, b))


def _scale(expected: Expected, factor: float) -> Expected:
    return Expected(expected.low * factor, expected.high * factor)
