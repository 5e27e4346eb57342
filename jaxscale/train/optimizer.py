"""AdamW with muP's groups, and schedules whose horizon is a runtime value.

Everything a sweep varies (rates, decay, epsilon, horizon) is traced, so cells that share shapes share one
compiled program. One group per distinct `Rule`; its update is

    p -= lr(step) * lr_rule * k * (m_hat / (sqrt(v_hat) + eps * eps_rule) + lambda * decay_rule * p)

with k = embed_lr for the table, head_lr for an untied head, else 1: k multiplies their decay too.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxscale.config import ModelConfig
from jaxscale.model.mup import Rule, param_rules
from jaxscale.runs import RunSpec

__all__ = ["Hyper", "learning_rate", "make_optimizer"]


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

    @classmethod
    def from_spec(cls, spec: RunSpec) -> Hyper:
        """The traced part of a run specification."""
        return cls(**{name: jnp.float32(getattr(spec, name)) for name in cls._fields})


def learning_rate(step: jax.Array, hyper: Hyper, schedule: str) -> jax.Array:
    """Rate of update number `step` (0-based): linear warmup, then cosine or stable and linear decay.

    The last update, step = steps - 1, is made at final_fraction * lr.
    """
    done = step + 1.0
    warmup = done / jnp.maximum(hyper.warmup_steps, 1.0)
    if schedule == "cosine":
        span = jnp.maximum(hyper.steps - hyper.warmup_steps, 1.0)
        left = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((done - hyper.warmup_steps) / span, 0, 1)))
    else:
        left = jnp.clip((hyper.steps - done) / jnp.maximum(hyper.decay_steps, 1.0), 0, 1)
    decayed = hyper.final_fraction + (1 - hyper.final_fraction) * left
    return hyper.lr * jnp.where(done <= hyper.warmup_steps, warmup, decayed)


def make_optimizer(model: ModelConfig, params: Any, hyper: Hyper) -> optax.GradientTransformation:
    """AdamW whose updates are to be multiplied by -learning_rate; `params` gives the tree's structure."""
    rules = param_rules(model)
    labels = jax.tree.map_with_path(lambda path, _: _label(_name(path), rules), params)
    groups = {_label(name, rules): _group(name, rule, hyper) for name, rule in rules.items()}
    return optax.chain(_clip(hyper.clip_norm), optax.partition(groups, labels))


def _label(name: str, rules: dict[str, Rule]) -> str:
    return "/".join(str(part) for part in astuple(rules[name])) + ("/tied" if name == "embed" else "")


def _name(path: tuple[Any, ...]) -> str:
    keys = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    return ".".join(str(key) for key in keys if isinstance(key, str) and key != "value")


def _group(name: str, rule: Rule, hyper: Hyper) -> optax.GradientTransformation:
    rate = {"embed": hyper.embed_lr, "head": hyper.head_lr}.get(name, 1.0) * rule.lr
    adam = optax.scale_by_adam(b1=hyper.b1, b2=hyper.b2, eps=hyper.eps * rule.eps)
    decay = optax.add_decayed_weights(hyper.weight_decay * rule.decay)
    return optax.chain(adam, decay, optax.scale(rate))


def _clip(max_norm: jax.Array) -> optax.GradientTransformation:
    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        norm = optax.tree.norm(grads)
        factor = jnp.where((max_norm > 0) & (norm > max_norm), max_norm / norm, 1.0)
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
