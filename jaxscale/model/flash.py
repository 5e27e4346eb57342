"""Attention that never holds T x T scores: the kernels of accelerators, and a plain form in pieces for all others.

cudnn    cuDNN's flash attention on NVIDIA, through jax.nn.dot_product_attention
splash   TPU splash attention (jax.experimental.pallas), a chip's own rows, heads and positions at a time
chunked  XLA, some queries at a time against all keys; the backward pass computes each piece's scores again

Under context parallelism queries are a chip's own positions and keys are all of them.
"""

from __future__ import annotations

from functools import lru_cache, partial
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscale.axes import split_axes
from jaxscale.layout import SCORES_BYTES
from jaxscale.model.position import alibi_bias

__all__ = ["attend_chunked", "attend_cudnn", "attend_splash"]

QUERIES, KEYS = ("batch", "positions", "heads", "head_dim"), ("batch", "keys", "kv", "head_dim")
SPLASH_BLOCKS = 512
"""Positions of a block of splash attention, at most; they divide the sequence."""


def attend_cudnn(q_bthe: jax.Array, k_bske: jax.Array, v_bske: jax.Array, scale: float) -> jax.Array:
    """Causal attention [b, t, h, e] by cuDNN; bfloat16 only."""
    return jax.nn.dot_product_attention(q_bthe, k_bske, v_bske, is_causal=True, scale=scale, implementation="cudnn")


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def attend_chunked(
    q_bthe: jax.Array, k_bske: jax.Array, v_bske: jax.Array, scale: float, mesh: Mesh | None, causal: bool = True,
    slopes: tuple[float, ...] | None = None,
) -> jax.Array:  # fmt: skip
    """Attention [b, t, h, e], at most about SCORES_BYTES of scores on a chip at a time, forward and back."""
    return _attend_pieces(q_bthe, k_bske, v_bske, scale, mesh, causal, slopes)


def _attend_forward(q_bthe: Any, k_bske: Any, v_bske: Any, scale: float, mesh: Any, causal: bool, slopes: Any) -> Any:
    return _attend_pieces(q_bthe, k_bske, v_bske, scale, mesh, causal, slopes), (q_bthe, k_bske, v_bske)


def _attend_backward(scale: float, mesh: Any, causal: bool, slopes: Any, kept: Any, grad_bthe: jax.Array) -> Any:
    return jax.vjp(lambda q, k, v: _attend_pieces(q, k, v, scale, mesh, causal, slopes), *kept)[1](grad_bthe)


attend_chunked.defvjp(_attend_forward, _attend_backward)


def _attend_pieces(
    q_bthe: jax.Array, k_bske: jax.Array, v_bske: jax.Array, scale: float, mesh: Any, causal: bool, slopes: Any
) -> jax.Array:
    b, t, h, e = q_bthe.shape
    parts = 1 if mesh is None else mesh.shape["context"]
    share = 1 if mesh is None else mesh.size // parts  # rows and heads are split over the other axes
    pieces = _count_pieces(t // parts, 4 * h * t * b // share)
    q_cbthe = jnp.moveaxis(q_bthe.reshape(b, parts, pieces, -1, h, e), 2, 0).reshape(pieces, b, -1, h, e)
    ids_ct = jnp.moveaxis(jnp.arange(t).reshape(parts, pieces, -1), 1, 0).reshape(pieces, -1)
    keys, values = k_bske.astype(jnp.float32), v_bske.astype(jnp.float32)  # their gradients add up in float32

    @partial(jax.checkpoint, prevent_cse=False)
    def attend(q_bte: jax.Array, ids_t: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        seen = (jnp.arange(t) <= ids_t[:, None])[None, None] if causal else None
        own = (keys.astype(q_bte.dtype), values.astype(q_bte.dtype))
        bias = None if slopes is None else alibi_bias(slopes, ids_t, jnp.arange(t))[None]
        return jax.nn.dot_product_attention(q_bte, *own, bias, seen, scale=scale)

    def one(carry: None, piece: Any) -> tuple[None, jax.Array]:
        return carry, attend(*piece, keys, values)

    out = jax.lax.scan(one, None, (q_cbthe, ids_ct))[1].reshape(pieces, b, parts, -1, h, e)
    return jnp.moveaxis(out, 0, 2).reshape(b, t, h, e)


def _count_pieces(positions: int, row_bytes: int) -> int:
    """The fewest equal pieces of `positions` rows that each stay below SCORES_BYTES."""
    fits = (n for n in range(1, positions + 1) if positions % n == 0 and positions // n * row_bytes <= SCORES_BYTES)
    return next(fits, positions)


def attend_splash(
    q_bthe: jax.Array, k_bske: jax.Array, v_bske: jax.Array, scale: float, mesh: Mesh | None, interpret: bool = False,
    causal: bool = True,
) -> jax.Array:  # fmt: skip
    """Attention [b, t, h, e] by TPU splash attention; `interpret` runs it on a CPU, slowly."""
    q_bhte = jnp.swapaxes(q_bthe * jnp.asarray(scale, q_bthe.dtype), 1, 2)
    k_bkse, v_bkse = jnp.swapaxes(k_bske, 1, 2), jnp.swapaxes(v_bske, 1, 2)
    sizes = {"context": 1} if mesh is None else mesh.shape
    heads = q_bhte.shape[1]
    if mesh is None:
        kernel = _make_kernel(heads, q_bhte.shape[2], sizes["context"], interpret, causal)
        return jnp.swapaxes(jax.vmap(kernel)(q_bhte, k_bkse, v_bkse), 1, 2)
    queries, keys = (
        PartitionSpec(*(split_axes(axes, x.shape, sizes)[i] for i in (0, 2, 1, 3)))
        for axes, x in ((QUERIES, q_bthe), (KEYS, k_bske))
    )
    local = heads // sizes["tensor"] if queries[1] else heads
    kernel = _make_kernel(local, q_bhte.shape[2], sizes["context"], interpret, causal)
    context = "context" if sizes["context"] > 1 else None
    masks = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, context)))
    run = jax.shard_map(
        lambda kernel, q, k, v: jax.vmap(kernel)(q, k, v),
        mesh=mesh, in_specs=(masks, queries, keys, keys), out_specs=queries, check_vma=False,
    )  # fmt: skip
    return jnp.swapaxes(run(kernel, q_bhte, k_bkse, v_bkse), 1, 2)


@lru_cache(maxsize=16)
def _make_kernel(heads: int, length: int, shards: int, interpret: bool, causal: bool) -> Any:
    """The kernel for these shapes, its masks as numpy arrays that belong to no trace."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    own, every = gcd(length // shards, SPLASH_BLOCKS), gcd(length, SPLASH_BLOCKS)
    blocks = splash.BlockSizes(
        block_q=own, block_kv=every, block_q_dkv=own, block_kv_dkv=every, block_q_dq=own, block_kv_dq=every
    )
    kind = masks.CausalMask if causal else masks.FullMask
    seen = masks.MultiHeadMask([kind((length, length))] * heads)
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mha(seen, block_sizes=blocks, head_shards=1, q_seq_shards=shards, interpret=interpret)
