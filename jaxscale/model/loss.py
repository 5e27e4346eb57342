"""Head and cross-entropy: from the last hidden states to nats a token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxscale.model import cpu
from jaxscale.model.lowering import Lowering

__all__ = ["head_logits", "head_losses", "token_losses"]


def head_logits(x_btd: jax.Array, head_dv: jax.Array, scale: float) -> jax.Array:
    """Logits [b, t, v], float32."""
    return jnp.matmul(x_btd, head_dv.astype(x_btd.dtype), preferred_element_type=jnp.float32) * scale


def token_losses(logits_btv: jax.Array, targets_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats and log Z for every token, float32 [b, t] each."""
    log_z = jax.nn.logsumexp(logits_btv, axis=-1)
    picked = jnp.take_along_axis(logits_btv, targets_bt[..., None], axis=-1)[..., 0]
    return log_z - picked, log_z


def head_losses(
    x_btd: jax.Array, head_dv: jax.Array, targets_bt: jax.Array, scale: float,
    lowering: Lowering = Lowering(),  # noqa: B008 - frozen
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Cross-entropy in nats and log Z, float32 [b, t] each, of hidden states under the head."""
    if lowering.cpu_forms:
        return cpu.head_losses(x_btd, head_dv, targets_bt, scale)
    return token_losses(head_logits(x_btd, head_dv, scale), targets_bt)
