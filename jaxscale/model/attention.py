"""Attention on heads, causal or of all positions, by the kernel that a lowering names; all agree within rounding.

out[t] = sum_{s <= t, or all s} softmax_s(scale q_t . k_s - m |t - s|) v_s,   softmax in float32; m = 0 but for alibi

xla      jax.nn.dot_product_attention as XLA compiles it: everywhere
chunked, cudnn, splash: `jaxscale.model.flash`
blocked  rows of queries in blocks, with a backward pass of its own (`model.cpu`): CPUs
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxscale.model import cpu
from jaxscale.model.flash import attend_chunked, attend_cudnn, attend_splash
from jaxscale.model.lowering import Lowering
from jaxscale.model.position import alibi_bias

__all__ = ["attend_heads"]


def attend_heads(
    q_bthe: jax.Array, k_btke: jax.Array, v_btke: jax.Array, scale: float, lowering: Lowering, causal: bool = True,
    slopes: tuple[float, ...] | None = None,
) -> jax.Array:  # fmt: skip
    """Attention of queries [b, t, h, e] over keys and values [b, t, k, e]; k divides h. Gives [b, t, h, e].

    `slopes`: m of each head, which xla, chunked and blocked know to subtract.
    """
    if lowering.attention == "chunked":
        return attend_chunked(q_bthe, k_btke, v_btke, scale, lowering.mesh, causal, slopes)
    if lowering.attention == "cudnn":
        return attend_cudnn(q_bthe, k_btke, v_btke, scale)
    if lowering.attention == "splash":
        return attend_splash(q_bthe, k_btke, v_btke, scale, lowering.mesh, lowering.interpret, causal)
    if lowering.attention == "blocked":
        return cpu.attend_blocked(q_bthe, k_btke, v_btke, scale, causal, slopes)
    place_t = jnp.arange(q_bthe.shape[1])
    bias = None if slopes is None else alibi_bias(slopes, place_t, place_t)[None]
    return jax.nn.dot_product_attention(q_bthe, k_btke, v_btke, bias, is_causal=causal, scale=scale)
