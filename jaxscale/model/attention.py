"""Attention on heads, causal or of all positions, by the kernel that a lowering names; all agree within rounding.

out[t] = sum_{s <= t, or all s} softmax_s(scale q_t . k_s) v_s,   softmax in float32

xla      jax.nn.dot_product_attention as XLA compiles it: everywhere
chunked, cudnn, splash: `jaxscale.model.flash`
blocked  rows of queries in blocks, with a backward pass of its own (`model.cpu`): CPUs
"""

from __future__ import annotations

import jax

from jaxscale.model import cpu
from jaxscale.model.flash import attend_chunked, attend_cudnn, attend_splash
from jaxscale.model.lowering import Lowering

__all__ = ["attend_heads"]


def attend_heads(
    q_bthe: jax.Array, k_btke: jax.Array, v_btke: jax.Array, scale: float, lowering: Lowering, causal: bool = True
) -> jax.Array:
    """Attention of queries [b, t, h, e] over keys and values [b, t, k, e]; k divides h. Gives [b, t, h, e]."""
    if lowering.attention == "chunked":
        return attend_chunked(q_bthe, k_btke, v_btke, scale, lowering.mesh, causal)
    if lowering.attention == "cudnn":
        return attend_cudnn(q_bthe, k_btke, v_btke, scale)
    if lowering.attention == "splash":
        return attend_splash(q_bthe, k_btke, v_btke, scale, lowering.mesh, lowering.interpret, causal)
    if lowering.attention == "blocked":
        return cpu.attend_blocked(q_bthe, k_btke, v_btke, scale, causal)
    return jax.nn.dot_product_attention(q_bthe, k_btke, v_btke, is_causal=causal, scale=scale)
