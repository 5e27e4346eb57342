"""Causal attention on heads, by the kernel that a lowering names; all agree within rounding.

out[t] = sum_{s <= t} softmax_s(scale q_t . k_s) v_s,   softmax in float32

xla      jax.nn.dot_product_attention as XLA compiles it: everywhere
blocked  rows of queries in blocks, with a backward pass of its own (`model.cpu`): CPUs
"""

from __future__ import annotations

import jax

from jaxscale.model import cpu
from jaxscale.model.lowering import Lowering

__all__ = ["attend_heads"]


def attend_heads(
    q_bthe: jax.Array, k_btke: jax.Array, v_btke: jax.Array, scale: float, lowering: Lowering
) -> jax.Array:
    """Causal attention of queries [b, t, h, e] over keys and values [b, t, k, e]; k divides h. Gives [b, t, h, e]."""
    if lowering.attention == "blocked":
        return cpu.attend_blocked(q_bthe, k_btke, v_btke, scale)
    return jax.nn.dot_product_attention(q_bthe, k_btke, v_btke, is_causal=True, scale=scale)
