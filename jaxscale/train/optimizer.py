"""The optimizers with muP's groups, and schedules whose horizon is a runtime value.

Everything a sweep varies (rates, decay, epsilon, horizon) is traced, so cells that share shapes share one
compiled program. One group per distinct `Rule`; its update is

    p -= lr(step) * lr_rule * k * (u + lambda * decay_rule * p)

    adamw  u = m_hat / (sqrt(v_hat) + eps * eps_rule)
    sgd    u = m, m <- momentum * m + g
    muon   u = .2 sqrt(max(fan_in, fan_out)) * NewtonSchulz(Nesterov momentum), a matrix at a time; AdamW where the
           parameter is no hidden matrix, with k = adam_lr
    lion   u = sign(b1 m + (1 - b1) g), m <- b2 m + (1 - b2) g                   (Chen et al. 2023, 2302.06675)
    adafactor  u = mean of h over steps, b1 and Adam's correction of it; h = g / sqrt(v), over its RMS where that
           exceeds 1; v_ij = R_i C_j / mean R, R and C the means of g^2 over rows and columns and over steps with the
           decay 1 - t^-.8; a matrix at a time, vectors by v = mean of g^2     (Shazeer and Stern 2018, 1804.04235)

with k also embed_lr for the tables and head_lr for an untied head, else 1: k multiplies their decay too.

Adafactor factors every matrix, however small: a size from which on it does (optax has 128) would make one optimizer
of the narrow end of a ladder and another of its wide end. Its bound on the RMS makes "entries of about 1" hold at
every width. b1 = 0 takes the momentum away, as published.
"""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxscale.config import ModelConfig
from jaxscale.model.mup import MUON_RMS, Rule, param_rules
from jaxscale.runs import RunSpec

__all__ = ["Hyper", "learning_rate", "make_optimizer", "param_name"]


class Hyper(NamedTuple):
    """The runtime numbers of a run, float32 scalars; steps are optimizer steps."""

    lr: jax.Array
    embed_lr: jax.Array
    head_lr: jax.Array
    b1: jax.Array
    b2: jax.Array
    eps: jax.Array
    weight_decay: jax.Array
    clip_norm: jax.Array
    z_loss: jax.Array
    steps: jax.Array
    warmup_steps: jax.Array
    decay_steps: jax.Array
    final_fraction: jax.Array
    adam_lr: jax.Array | np.float32 = np.float32(1)
    momentum: jax.Array | np.float32 = np.float32(0.95)
    average_steps: jax.Array | np.float32 = np.float32(0)
    router_balance: jax.Array | np.float32 = np.float32(0.01)

    @classmethod
    def from_spec(cls, spec: RunSpec) -> Hyper:
        """The traced part of a run specification."""
        return cls(**{name: jnp.float32(getattr(spec, name)) for name in cls._fields})


def learning_rate(step: Any, hyper: Hyper, schedule: str, xp: Any = jnp) -> Any:
    """Rate of update number `step` (0-based): linear warmup, then cosine or stable and linear decay.

    The last update, step = steps - 1, is made at final_fraction * lr. With `xp=numpy` the host computes it, and waits
    for no device.
    """
    done = step + 1.0
    warmup = done / xp.maximum(hyper.warmup_steps, 1.0)
    if schedule == "cosine":
        span = xp.maximum(hyper.steps - hyper.warmup_steps, 1.0)
        left = 0.5 * (1 + xp.cos(xp.pi * xp.clip((done - hyper.warmup_steps) / span, 0, 1)))
    else:
        left = xp.clip((hyper.steps - done) / xp.maximum(hyper.decay_steps, 1.0), 0, 1)
    decayed = hyper.final_fraction + (1 - hyper.final_fraction) * left
    return hyper.lr * xp.where(done <= hyper.warmup_steps, warmup, decayed)


def make_optimizer(
    model: ModelConfig, params: Any, hyper: Hyper, optimizer: str = "adamw"
) -> optax.GradientTransformation:
    """Clipping, then each group's updates, to be multiplied by -learning_rate; `params` gives the tree's structure."""
    rules = param_rules(model, optimizer)
    labels = jax.tree.map_with_path(lambda path, _: _label(param_name(path), rules), params)
    groups = {_label(name, rules): _group(name, rule, hyper, optimizer) for name, rule in rules.items()}
    return optax.chain(_clip(hyper.clip_norm), optax.partition(groups, labels))


def _label(name: str, rules: dict[str, Rule]) -> str:
    updating = replace(rules[name], init_std=0.0)  # where a weight began does not matter here
    return "/".join(str(part) for part in astuple(updating)) + ("/tied" if name == "embed" else "")


def param_name(path: tuple[Any, ...]) -> str:
    """The name in `params.param_shapes` of a leaf of the parameters' tree, from its path."""
    keys = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    return ".".join(str(key) for key in keys if isinstance(key, str) and key != "value")


def _group(name: str, rule: Rule, hyper: Hyper, optimizer: str) -> optax.GradientTransformation:
    own: dict[str, Any] = {"embed": hyper.embed_lr, "positions": hyper.embed_lr, "head": hyper.head_lr}
    rate = own.get(name, 1.0) * rule.lr
    if optimizer == "muon" and rule.optimizer == "adamw":
        rate = rate * hyper.adam_lr
    decay = optax.add_decayed_weights(hyper.weight_decay * rule.decay)
    return optax.chain(_direction(rule, hyper), decay, optax.scale(rate))


def _direction(rule: Rule, hyper: Hyper) -> optax.GradientTransformation:
    if rule.optimizer == "sgd":
        return optax.trace(decay=hyper.momentum)
    if rule.optimizer == "muon":
        return optax.chain(
            scale_by_muon(beta=hyper.momentum, weight_dimension_numbers=_matrices), optax.stateless(_one_rms)
        )
    if rule.optimizer == "lion":
        return optax.scale_by_lion(b1=hyper.b1, b2=hyper.b2)
    if rule.optimizer == "adafactor":
        one = optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=1), optax.clip_by_block_rms(1.0))
        return optax.chain(_each_tensor(one, 1 if rule.role == "vector" else 2), optax.ema(hyper.b1))
    return optax.scale_by_adam(b1=hyper.b1, b2=hyper.b2, eps=hyper.eps * rule.eps)


def _matrices(params: Any) -> Any:
    """The last two axes are the matrix; the layers before them are orthogonalized one by one."""
    return jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), params)


class _Done:
    """An update with its new state, a leaf to trees."""

    def __init__(self, both: tuple[Any, Any]) -> None:
        self.both = both


def _each_tensor(one: optax.GradientTransformation, axes: int) -> optax.GradientTransformation:
    """`one` for each vector (1) or matrix (2 axes) by itself, the axes before them being layers or experts."""

    def spread(function: Any, leaf: jax.Array) -> Any:
        for _ in range(leaf.ndim - axes):
            function = jax.vmap(function)
        return function

    def update(grads: Any, states: Any, params: Any = None) -> tuple[Any, Any]:
        done = jax.tree.map(lambda g, state, p: _Done(spread(one.update, g)(g, state, p)), grads, states, params)
        return jax.tree.map(lambda d: d.both[0], done), jax.tree.map(lambda d: d.both[1], done)

    return optax.GradientTransformation(lambda params: jax.tree.map(lambda p: spread(one.init, p)(p), params), update)


def _one_rms(updates: Any, _: Any) -> Any:
    """Orthogonal matrices [.., i, o] have RMS 1/sqrt(max(i, o)); bring them to MUON_RMS."""
    return jax.tree.map(lambda u: u * MUON_RMS * max(u.shape[-2:]) ** 0.5, updates)


def _clip(max_norm: jax.Array) -> optax.GradientTransformation:
    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        norm = optax.tree.norm(grads)
        factor = jnp.where((max_norm > 0) & (norm > max_norm), max_norm / norm, 1.0)
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
