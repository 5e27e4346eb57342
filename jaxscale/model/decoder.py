"""Language models: Flax NNX modules over stacked blocks, pure functions inside; by default a decoder-only transformer.

Pre-norm blocks, x += f(norm(x)) for attention and MLP, with RMSNorm or LayerNorm, positions as in
`model.position`, optional QK-norm and grouped queries, GELU / SwiGLU / GeGLU / ReLU / ReLU^2 or experts of such
(`model.experts`), tied or untied head. Logits are float32. With architecture "lstm" a block is x += LSTM(norm(x))
(`model.lstm`), between the same embedding and head: norm and residual as around the transformer's halves, so that a
comparison (Kaplan et al. 2020, section 3.2.1) is of what mixes positions and not of what lets deep stacks train.
Letters in names are axes: b batch, t position, d width, h heads, k key/value heads, e head width, v vocab.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale.config import ModelConfig
from jaxscale.model import cpu
from jaxscale.model.attention import attend_heads
from jaxscale.model.experts import Load, apply_experts
from jaxscale.model.loss import head_logits, head_losses
from jaxscale.model.lowering import Lowering
from jaxscale.model.lstm import apply_lstm
from jaxscale.model.mup import forward_multipliers, param_rules
from jaxscale.model.partition import gather_block, gather_keys, place
from jaxscale.model.position import Turns, alibi_slopes, position_rows, rope_table, rotate, turns
from jaxscale.model.quantize import multiply_int8
from jaxscale.model.remat import rematerialize
from jaxscale.params import count_mask_rows, param_shapes, vector_start

__all__ = ["Decoder", "Stds", "init_stds", "make_decoder", "rope_table", "rotate"]

Stds = Mapping[str, float | jax.Array]
"""Init standard deviation of every matrix by its name in `params.param_shapes`; may be traced."""

BETWEEN, INSIDE = ("batch", "sequence", "width"), ("batch", "positions", "width")
"""Logical axes of [b, t, d] between the halves of a block and inside them."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,
    "swiglu": jax.nn.silu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu": jax.nn.relu,
    "geglu": jax.nn.gelu,
}


class Blocks(nnx.Module):
    """All blocks' parameters, each stacked over a leading layers axis."""


class Decoder(nnx.Module):
    """A language model: int32 tokens [b, t] -> float32 logits [b, t, v].

    Logits at a position are those of the next token; under masked diffusion of the token that belongs there.
    Parameters are float32 and named as in `params.param_shapes`; each carries its logical `axes` as
    metadata. `dtype` is the compute precision of everything but norms, softmax and logits.
    """

    embed: nnx.Param[jax.Array]
    positions: nnx.Param[jax.Array]
    final_norm: nnx.Param[jax.Array]
    head: nnx.Param[jax.Array]

    def __init__(
        self, model: ModelConfig, *, key: jax.Array, dtype: Any = jnp.float32, stds: Stds | None = None,
        lowering: Lowering | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.dtype = dtype
        self.lowering = Lowering() if lowering is None else lowering
        self.blocks = Blocks()
        stds = init_stds(model) if stds is None else stds
        for name, axes in param_shapes(model).items():
            owner, _, leaf = name.rpartition(".")
            value = _init_param(key, name, tuple(n for _, n in axes), stds.get(name))
            setattr(self.blocks if owner else self, leaf, nnx.Param(value, axes=tuple(a for a, _ in axes)))

    def __call__(self, tokens_bt: jax.Array) -> jax.Array:
        """Logits for every position."""
        return head_logits(self.hidden(tokens_bt), self._head(), forward_multipliers(self.model).logits)

    def logits_at(self, tokens_bt: jax.Array, place_b: jax.Array) -> jax.Array:
        """Next-token logits [b, v] at one position of each row."""
        x_b1d = jnp.take_along_axis(self.hidden(tokens_bt), place_b[:, None, None], axis=1)
        return head_logits(x_b1d, self._head(), forward_multipliers(self.model).logits)[:, 0]

    def losses(self, tokens_bt: jax.Array, targets_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cross-entropy in nats and log Z for every token, float32 [b, t] each."""
        return self.losses_and_load(tokens_bt, targets_bt)[:2]

    def losses_and_load(self, tokens_bt: jax.Array, targets_bt: jax.Array) -> tuple[jax.Array, jax.Array, Load | None]:
        """`losses`, and every layer's load (leaves lead with layers; None without experts)."""
        scale = forward_multipliers(self.model).logits
        x_btd, load = self.hidden_and_load(tokens_bt)
        if self.lowering.cpu_forms and self.lowering.head_chunks == 1:
            return *cpu.head_losses(x_btd, self._head(), targets_bt, scale), load
        return *head_losses(x_btd, self._head(), targets_bt, scale, self.lowering), load

    def hidden(self, tokens_bt: jax.Array) -> jax.Array:
        """What the head reads: the normed last states [b, t, d]."""
        return self.hidden_and_load(tokens_bt)[0]

    def hidden_and_load(self, tokens_bt: jax.Array) -> tuple[jax.Array, Load | None]:
        """`hidden`, and every layer's load."""
        mesh = self.lowering.mesh
        x_btd = self.embedded(tokens_bt).astype(self.dtype)
        x_btd, load = self._run_blocks(place(x_btd, BETWEEN, mesh))
        return normalize(x_btd, place(self.final_norm[...], ("width",), mesh), self.model), load

    def embedded(self, tokens_bt: jax.Array) -> jax.Array:
        """What the first block reads, float32 [b, t, d]: tokens, and positions where those are added."""
        scale, model = forward_multipliers(self.model), self.model
        x_btd = _embed(self.embed[...], tokens_bt, self.lowering) * scale.embed
        table_pd = self.positions[...] if model.position == "learned" else None
        rows_td = position_rows(tokens_bt.shape[1], model, table_pd, scale.embed)
        if rows_td is None:
            return x_btd
        return x_btd + place(rows_td, ("positions", "embed"), self.lowering.mesh)

    def _head(self) -> jax.Array:
        if not self.model.tied:
            return self.head[...]
        table_vd = self.embed[...]
        return (table_vd[: self.model.vocab_size] if count_mask_rows(self.model) else table_vd).T

    def _run_blocks(self, x_btd: jax.Array) -> tuple[jax.Array, Load | None]:
        names = [name.removeprefix("blocks.") for name in param_shapes(self.model) if name.startswith("blocks.")]
        layers = {name: getattr(self.blocks, name)[...] for name in names}
        rope = turns(x_btd.shape[1], self.model)

        def body(x: jax.Array, block: dict[str, jax.Array]) -> tuple[jax.Array, Load | None]:
            block = gather_block(block, self.model, self.lowering.mesh, self.dtype)
            return route_block(block, x, rope, self.model, self.lowering)

        body = rematerialize(body, self.lowering, x_btd.dtype)
        if self.lowering.unroll:
            loads = []
            for i in range(self.model.n_layers):
                x_btd, load = body(x_btd, {name: value[i] for name, value in layers.items()})
                loads.append(load)
            return x_btd, jax.tree.map(lambda *each: jnp.stack(each), *loads)
        return jax.lax.scan(body, x_btd, layers)


def make_decoder(
    model: ModelConfig, seed: int | jax.Array, dtype: Any = jnp.float32, stds: Stds | None = None,
    lowering: Lowering | None = None,
) -> Decoder:  # fmt: skip
    """A freshly initialized model; equal seeds give equal weights on any mesh.

    `stds` (default `init_stds(model)`) may be traced, so that models of several init scales share a program.
    """
    return Decoder(model, key=jax.random.key(seed), dtype=dtype, stds=stds, lowering=lowering)


def init_stds(model: ModelConfig) -> dict[str, float]:
    """Init standard deviation of every matrix of a model; gains, which begin as ones, have none."""
    return {name: rule.init_std for name, rule in param_rules(model).items() if rule.role != "vector"}


def _init_param(key: jax.Array, name: str, shape: tuple[int, ...], std: float | jax.Array | None) -> jax.Array:
    if std is None:
        parts = vector_start(name)
        if len(parts) > 1:
            return jnp.broadcast_to(jnp.repeat(jnp.array(parts), shape[-1] // len(parts)), shape)
        return jnp.ones(shape, jnp.float32)
    own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return std * jax.random.normal(own_key, shape, jnp.float32)


def _embed(table_vd: jax.Array, tokens_bt: jax.Array, lowering: Lowering) -> jax.Array:
    """Rows of a table that may be split over fsdp by width: looked up for all rows of the batch, then exchanged."""
    tokens_bt = place(tokens_bt, ("rows", "positions"), lowering.mesh)
    x_btd = cpu.embed_rows(table_vd, tokens_bt) if lowering.cpu_forms else jnp.take(table_vd, tokens_bt, axis=0)
    return place(x_btd, ("rows", "positions", "embed"), lowering.mesh)


def apply_block(
    block: dict[str, jax.Array], x_btd: jax.Array, rope: Turns, model: ModelConfig,
    lowering: Lowering = Lowering(),  # noqa: B008 - frozen
) -> jax.Array:  # fmt: skip
    """One block on [b, t, d]: attention, then MLP, each on a normed copy and added back; or an LSTM so."""
    return route_block(block, x_btd, rope, model, lowering)[0]


def route_block(
    block: dict[str, jax.Array], x_btd: jax.Array, rope: Turns, model: ModelConfig,
    lowering: Lowering = Lowering(),  # noqa: B008 - frozen
) -> tuple[jax.Array, Load | None]:  # fmt: skip
    """`apply_block`, and where its experts' tokens went; None without experts."""
    residual, mesh = forward_multipliers(model).residual, lowering.mesh
    if model.architecture == "lstm":
        normed = place(normalize(x_btd, block["norm"], model), INSIDE, mesh)
        state = apply_lstm(block, normed, partial(multiply, lowering=lowering))
        return x_btd + residual * place(state, BETWEEN, mesh), None
    normed = place(normalize(x_btd, block["attn_norm"], model), INSIDE, mesh)
    x_btd = x_btd + residual * place(attend(block, normed, rope, model, lowering), BETWEEN, mesh)
    normed = place(normalize(x_btd, block["mlp_norm"], model), INSIDE, mesh)
    if model.n_experts:
        mixed, load = mix_experts(block, normed, model, lowering)
        return x_btd + residual * place(mixed, BETWEEN, mesh), load
    return x_btd + residual * place(apply_mlp(block, normed, model, lowering), BETWEEN, mesh), None


def attend(
    block: dict[str, jax.Array], x_btd: jax.Array, rope: Turns, model: ModelConfig,
    lowering: Lowering = Lowering(),  # noqa: B008 - frozen
) -> jax.Array:  # fmt: skip
    """Self-attention, causal unless the model fills masks; softmax in float32."""
    q_bthe, k_btke, v_btke = _project_heads(block, x_btd, model, lowering)
    if model.qk_norm:
        q_bthe = rms_norm(q_bthe, block["q_norm"], model.norm_eps)
        k_btke = rms_norm(k_btke, block["k_norm"], model.norm_eps)
    q_bthe = place(q_bthe, ("batch", "positions", "heads", "head_dim"), lowering.mesh)
    scale = forward_multipliers(model).attention
    k_btke, v_btke = gather_keys(rotate(k_btke, rope), model, lowering.mesh), gather_keys(v_btke, model, lowering.mesh)
    causal, slopes = model.objective == "autoregressive", alibi_slopes(model)
    mixed_bthe = attend_heads(rotate(q_bthe, rope), k_btke, v_btke, scale, lowering, causal, slopes)
    mixed_bthe = place(mixed_bthe, ("batch", "positions", "heads", "head_dim"), lowering.mesh)
    return multiply(mixed_bthe.reshape(x_btd.shape), block["wo"], lowering)


def _project_heads(
    block: dict[str, jax.Array], x_btd: jax.Array, model: ModelConfig, lowering: Lowering
) -> list[jax.Array]:
    """Queries [b, t, h, e], keys and values [b, t, k, e]."""
    names, sizes = ("wq", "wk", "wv"), (model.n_heads, model.n_kv_heads, model.n_kv_heads)
    if lowering.cpu_forms:
        joined = multiply(x_btd, jnp.concatenate([block[name] for name in names], axis=1), lowering)
        cuts = [model.n_heads * model.d_head, (model.n_heads + model.n_kv_heads) * model.d_head]
        flat = jnp.split(joined, cuts, axis=-1)
    else:
        flat = [multiply(x_btd, block[name], lowering) for name in names]
    return [each.reshape(*x_btd.shape[:2], size, -1) for each, size in zip(flat, sizes, strict=True)]


def multiply(x: jax.Array, w_io: jax.Array, lowering: Lowering) -> jax.Array:
    """x [.., i] @ w [i, o] in the precision of x."""
    w_io = w_io.astype(x.dtype)
    if lowering.int8:
        return multiply_int8(x, w_io, lowering.cpu_forms)
    return cpu.project(x, w_io) if lowering.cpu_forms else x @ w_io


def apply_mlp(
    block: dict[str, jax.Array], x_btd: jax.Array, model: ModelConfig,
    lowering: Lowering = Lowering(),  # noqa: B008 - frozen
) -> jax.Array:  # fmt: skip
    """The feed-forward half: act(x W_up) W_down, or act(x W_gate) * (x W_up) W_down for swiglu and geglu."""
    up = multiply(x_btd, block["w_up"], lowering)
    gate = multiply(x_btd, block["w_gate"], lowering) if "w_gate" in block else None
    hidden = place(_activate(model, lowering, up, gate), ("batch", "positions", "mlp"), lowering.mesh)
    return multiply(hidden, block["w_down"], lowering)


def mix_experts(
    block: dict[str, jax.Array], x_btd: jax.Array, model: ModelConfig,
    lowering: Lowering = Lowering(),  # noqa: B008 - frozen
) -> tuple[jax.Array, Load]:  # fmt: skip
    """The feed-forward half with experts, and how tokens fell on them."""
    return apply_experts(block, x_btd, model, lowering, partial(_activate, model, lowering))


def _activate(model: ModelConfig, lowering: Lowering, up: jax.Array, gate: jax.Array | None) -> jax.Array:
    """Hidden values of an MLP from its products with w_up and, if it has one, w_gate."""
    activate = cpu.gelu if lowering.cpu_forms and model.mlp in ("gelu", "geglu") else ACTIVATIONS[model.mlp]
    return activate(up) if gate is None else activate(gate) * up


def normalize(x: jax.Array, gain: jax.Array, model: ModelConfig) -> jax.Array:
    """The norm of the residual stream."""
    return (layer_norm if model.norm == "layernorm" else rms_norm)(x, gain, model.norm_eps)


def layer_norm(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / deviation * gain over the last axis (Ba et al. 2016, 1607.06450), without bias, in float32."""
    x32 = x.astype(jnp.float32)
    return rms_norm(x32 - jnp.mean(x32, axis=-1, keepdims=True), gain, eps).astype(x.dtype)


def rms_norm(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * gain over the last axis (Zhang and Sennrich 2019), in float32."""
    x32 = x.astype(jnp.float32)
    scaled = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (scaled * gain).astype(x.dtype)
