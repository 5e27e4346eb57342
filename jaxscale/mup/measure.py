"""What a few optimizer steps do to one model: sizes of changes, gradients, updates, decay and epsilon.

Everything is read off the code that trains: gradients from `Program.loss`, updates from `make_optimizer`, logits
from `Decoder.__call__` as a user of the model calls it. Only the sizes inside (of branches, routers, the residual
stream) come from a walk of its own over the same blocks; `tests/test_mup_check.py` holds it to the Decoder.

    change       RMS over a fixed batch of activation(after the steps) - activation(before)
    gradient     RMS of dL/dp over all steps
    update       RMS of the whole change of p over RMS of p before; of the change alone where p began at zero
    decay        l * lambda as the optimizer applies it: update with lambda = 1 minus update without, at p = 1
    epsilon      eps as the optimizer applies it, u(eps = 0) / u(eps = 1) - 1 at a gradient of one, over `gradient`
    paths        largest difference of a token's loss between the training path and the logits of inference
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxscale.config import MeshConfig, ModelConfig, Recipe
from jaxscale.model import decoder as blocks
from jaxscale.model.decoder import Decoder
from jaxscale.model.loss import token_losses
from jaxscale.model.position import turns
from jaxscale.train.optimizer import Hyper, make_optimizer, param_name
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import Program

__all__ = ["CLASSES", "Sizes", "list_activations", "measure_model", "walk"]

CLASSES = {
    "embed": "embedding", "positions": "positions", "head": "head", "final_norm": "final gain",
    "blocks.attn_norm": "gain", "blocks.mlp_norm": "gain", "blocks.q_norm": "QK gain", "blocks.k_norm": "QK gain",
    "blocks.wq": "q", "blocks.wk": "k", "blocks.wv": "v", "blocks.wo": "o", "blocks.w_up": "up",
    "blocks.w_gate": "gate", "blocks.w_down": "down", "blocks.w_router": "router", "blocks.norm": "gain",
    "blocks.w_in": "input", "blocks.w_rec": "recurrent", "blocks.bias": "bias",
}  # fmt: skip
"""The class under which a parameter is reported."""

NORMS = {"attention out": "attn_norm", "MLP out": "mlp_norm", "LSTM out": "norm"}
"""The gain of what each branch reads."""
INSIDE_BLOCKS = (*NORMS, "router logits")


def list_activations(model: ModelConfig) -> tuple[str, ...]:
    """What a coordinate check looks at in a model, in the order of the forward pass.

    >>> list_activations(ModelConfig(architecture="lstm"))
    ('embedding', 'LSTM out', 'residual stream', 'logits')
    """
    experts = ("router logits",) if model.n_experts else ()
    inside = ("LSTM out",) if model.architecture == "lstm" else ("attention out", *experts, "MLP out")
    return ("embedding", *inside, "residual stream", "logits")


Sizes = dict[tuple[str, str], float]
"""(quantity, class) -> size."""


def measure_model(model: ModelConfig, recipe: Recipe, windows_nbt: np.ndarray, *, lr: float, seed: int = 0) -> Sizes:
    """Sizes of everything after len(windows) steps of `recipe.optimizer` at the constant rate `lr`.

    windows int32 [steps, b, t + 1]. Clipping, schedule and decay are off while stepping: each would bend slopes
    of its own; decay is measured apart. All of it is one compiled program, since compiling is most of the time.
    """
    program = Program(model, "cosine", 1, make_mesh(MeshConfig(), jax.devices()[:1]), jnp.float32, recipe.optimizer)
    compiled = jax.jit(partial(_measure, program, recipe, lr), compiler_options=_compiler_options())
    sizes = compiled(jnp.uint32(seed), jnp.asarray(windows_nbt))
    return {key: float(value) for key, value in jax.device_get(sizes).items()}


def _compiler_options() -> dict[str, bool | int | float | str] | None:
    """On CPU compile without LLVM's optimizations: a few steps do not pay for them (half the time of a check)."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def _measure(
    program: Program, recipe: Recipe, lr: float, seed: jax.Array, windows_nbt: jax.Array
) -> dict[tuple[str, str], jax.Array]:
    _, before = nnx.split(blocks.make_decoder(program.model, seed), nnx.Param)
    after, gradient = _step(program, recipe, before, windows_nbt, lr)
    sizes = _changes(program, before, after, windows_nbt[0])
    sizes |= {("gradient", name): size for name, size in gradient.items()}
    change, start = _rms(jax.tree.map(jnp.subtract, after, before)), _rms(before)
    sizes |= {("update", name): size / jnp.where(start[name] > 0, start[name], 1.0) for name, size in change.items()}
    return sizes | _decay_and_epsilon(program, recipe, before, gradient)


def _hyper(recipe: Recipe) -> Hyper:
    """The recipe's traced numbers at rate 1, without clipping and decay."""
    plain: dict[str, Any] = {name: getattr(recipe, name, 0.0) for name in Hyper._fields}
    plain |= {"lr": 1.0, "clip_norm": 0.0, "weight_decay": 0.0, "z_loss": 0.0}
    return Hyper(**{name: jnp.float32(value) for name, value in plain.items()})


def _step(
    program: Program, recipe: Recipe, params: Any, windows_nbt: jax.Array, lr: float
) -> tuple[Any, dict[str, jax.Array]]:
    """Parameters after the steps, and the RMS of each class's gradient over all of them."""
    hyper = _hyper(recipe)
    optimizer = make_optimizer(program.model, params, hyper, program.optimizer)

    def one(carry: tuple[Any, Any], windows_bt: jax.Array) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
        params, state = carry
        draw = program.draw(jnp.uint32(0), 0, 0, 1, len(windows_bt))  # the same masks in every step
        gradient, _ = jax.grad(program.loss, has_aux=True)(params, windows_bt, hyper, *draw)
        updates, state = optimizer.update(gradient, state, params)
        return (jax.tree.map(lambda p, u: p - lr * u, params, updates), state), _rms(gradient)

    (params, _), sizes = jax.lax.scan(one, (params, optimizer.init(params)), windows_nbt)
    return params, {name: jnp.sqrt(jnp.mean(jnp.square(size))) for name, size in sizes.items()}


def _changes(program: Program, before: Any, after: Any, windows_bt: jax.Array) -> dict[tuple[str, str], jax.Array]:
    """Changes of activations over the first batch, and how far training's losses are from those of the logits."""

    def see(params: Any) -> dict[str, jax.Array]:
        decoder: Decoder = nnx.merge(program.graphdef, params)
        hidden = [draw.hidden for draw in program.draw(jnp.uint32(0), 0, 0, 1, len(windows_bt))]
        inputs, targets = program.read(windows_bt, *hidden)
        logits = decoder(inputs)
        trained, _ = program.apply(params, windows_bt, *hidden)
        told, _ = token_losses(logits, targets)
        return walk(decoder, inputs) | {"logits": logits, "paths": jnp.max(jnp.abs(trained - told))}

    seen = jax.lax.map(see, jax.tree.map(lambda *both: jnp.stack(both), before, after))  # compiled once
    paths = jnp.max(seen.pop("paths"))
    sizes = {("change", name): jnp.sqrt(jnp.mean(jnp.square(x[1] - x[0]))) for name, x in seen.items()}
    return sizes | {("paths", "loss"): paths}


def walk(decoder: Decoder, tokens_bt: jax.Array) -> dict[str, jax.Array]:
    """Activations inside: embedding, branch outputs [layers, b, t, d], the last residual stream; routers' logits
    [layers, b, t, e].

    Branch outputs are as the block computes them, before the residual multiplier.
    """
    model = decoder.model
    scale = blocks.forward_multipliers(model)
    layers = {path[0]: value[...] for path, value in nnx.to_flat_state(nnx.state(decoder.blocks))}
    rope = turns(tokens_bt.shape[1], model)
    embedding = x = decoder.embedded(tokens_bt)
    seen: dict[str, list[jax.Array]] = {name: [] for name in list_activations(model) if name in INSIDE_BLOCKS}
    for i in range(model.n_layers):
        block = {str(name): value[i] for name, value in layers.items()}
        for branch in ("LSTM out",) if model.architecture == "lstm" else ("attention out", "MLP out"):
            normed = blocks.normalize(x, block[NORMS[branch]], model)
            if branch == "MLP out" and model.n_experts:
                seen["router logits"].append(normed @ block["w_router"])
            seen[branch].append(_apply_branch(branch, block, normed, rope, model))
            x = x + scale.residual * seen[branch][-1]
    return {"embedding": embedding, **{name: jnp.stack(each) for name, each in seen.items()}, "residual stream": x}


def _apply_branch(branch: str, block: dict[str, jax.Array], x_btd: jax.Array, rope: Any, model: ModelConfig) -> Any:
    if branch == "LSTM out":
        return blocks.apply_lstm(block, x_btd, jnp.matmul)
    if branch == "attention out":
        return blocks.attend(block, x_btd, rope, model)
    if model.n_experts:
        return blocks.mix_experts(block, x_btd, model)[0]
    return blocks.apply_mlp(block, x_btd, model)


def _rms(tree: Any) -> dict[str, jax.Array]:
    """RMS of a parameters' tree over each class."""
    members: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        members.setdefault(CLASSES[param_name(path)], []).append(leaf)
    return {
        name: jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves) / sum(leaf.size for leaf in leaves))
        for name, leaves in members.items()
    }


def _decay_and_epsilon(
    program: Program, recipe: Recipe, params: Any, gradient: dict[str, jax.Array]
) -> dict[tuple[str, str], jax.Array]:
    """Both out of the optimizer itself, at p = 1 and a gradient of one; epsilon over the gradient measured."""
    ones = jax.tree.map(jnp.ones_like, params)

    def update(eps: jax.Array, weight_decay: jax.Array) -> Any:
        hyper = _hyper(recipe)._replace(eps=eps, weight_decay=weight_decay)
        optimizer = make_optimizer(program.model, params, hyper, program.optimizer)
        return optimizer.update(ones, optimizer.init(params), ones)[0]

    three = jax.vmap(update)(jnp.array([0.0, 0.0, 1.0]), jnp.array([0.0, 1.0, 0.0]))  # compiled once
    plain, decayed, shrunk = (jax.tree.map(lambda u, lane=lane: u[lane], three) for lane in range(3))
    decay = _rms(jax.tree.map(jnp.subtract, decayed, plain))
    epsilon = _rms(jax.tree.map(lambda u, v: u / v - 1, plain, shrunk))
    return {("decay", name): value for name, value in decay.items()} | {
        ("epsilon", name): value / gradient[name] for name, value in epsilon.items()
    }
