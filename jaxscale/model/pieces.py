"""Head and cross-entropy in pieces of the vocabulary: float32 logits of one piece at a time, forward and back.

log Z = logsumexp over pieces of (logsumexp within a piece)
d loss / d logit_v = exp(logit_v - log Z) - [v = target],   d log Z / d logit_v = exp(logit_v - log Z)

The backward pass computes each piece's logits again. Pieces of the vocabulary, not of the sequence: the gradient of
each piece of the head is then complete at once, and goes between chips once. Under tensor parallelism each chip has
its own part of the vocabulary [d, k, c, n]: k parts over chips, c pieces in turn, n columns.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxscale.model.partition import place

__all__ = ["losses_in_pieces"]

HIDDEN = ("batch", "positions", "width")
LOGITS = ("batch", "positions", "vocab", "width")


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def losses_in_pieces(
    x_btd: jax.Array, head_dv: jax.Array, targets_bt: jax.Array, scale: float, pieces: int, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats and log Z, float32 [b, t] each; `head_dv` in float32, used in the dtype of `x_btd`."""
    return _forward(x_btd, head_dv, targets_bt, scale, pieces, mesh)[0]


def _forward(x_btd: Any, head_dv: Any, targets_bt: Any, scale: float, pieces: int, mesh: Any) -> Any:
    x_btd = place(x_btd, HIDDEN, mesh)
    stack, ids = _cut(head_dv, pieces, mesh, x_btd.dtype)

    def one(picked_bt: jax.Array, piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits_btkn = _logits(x_btd, piece, head_dv.shape[1], scale, mesh)
        here = piece[1] == targets_bt[..., None, None]
        picked_bt = picked_bt + jnp.sum(jnp.where(here, logits_btkn, 0), axis=(-2, -1))
        return picked_bt, jax.nn.logsumexp(logits_btkn, axis=(-2, -1))

    picked_bt, log_z_cbt = jax.lax.scan(one, jnp.zeros(targets_bt.shape, jnp.float32), (stack, ids))
    log_z_bt = jax.nn.logsumexp(log_z_cbt, axis=0)
    return (log_z_bt - picked_bt, log_z_bt), (x_btd, head_dv, targets_bt, log_z_bt)


def _backward(scale: float, pieces: int, mesh: Any, kept: Any, grads: tuple[jax.Array, jax.Array]) -> Any:
    x_btd, head_dv, targets_bt, log_z_bt = kept
    loss_bt, either_bt = grads[0], grads[0] + grads[1]
    stack, ids = _cut(head_dv, pieces, mesh, x_btd.dtype)

    def one(grad_x: jax.Array, piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits_btkn = _logits(x_btd, piece, head_dv.shape[1], scale, mesh)
        here = piece[1] == targets_bt[..., None, None]
        share = jnp.exp(logits_btkn - log_z_bt[..., None, None]) * either_bt[..., None, None]
        grad = ((share - jnp.where(here, loss_bt[..., None, None], 0)) * scale).astype(x_btd.dtype)
        grad_x = grad_x + jnp.einsum("btkn,dkn->btd", grad, piece[0], preferred_element_type=jnp.float32)
        own = jnp.einsum("btd,btkn->dkn", x_btd, grad, preferred_element_type=jnp.float32)
        return place(grad_x, HIDDEN, mesh), place(own, ("embed", "vocab", "width"), mesh)

    grad_x, grad_cdkn = jax.lax.scan(one, jnp.zeros(x_btd.shape, jnp.float32), (stack, ids))
    grad_head = jnp.moveaxis(grad_cdkn, 0, 2).reshape(head_dv.shape[0], -1)[:, : head_dv.shape[1]]
    return grad_x.astype(x_btd.dtype), place(grad_head, ("embed", "vocab"), mesh), None


losses_in_pieces.defvjp(_forward, _backward)


def _cut(head_dv: jax.Array, pieces: int, mesh: Mesh | None, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The head as pieces [c, d, k, n] with the vocabulary entry of each column [c, k, n]; the last ones may be none."""
    parts = 1 if mesh is None else mesh.shape["tensor"]
    head_dv = place(head_dv.astype(dtype), ("width", "vocab"), mesh)
    head_dv = jnp.pad(head_dv, ((0, 0), (0, -head_dv.shape[1] % (pieces * parts))))
    stack = jnp.moveaxis(head_dv.reshape(head_dv.shape[0], parts, pieces, -1), 2, 0)
    ids = jnp.moveaxis(jnp.arange(head_dv.shape[1]).reshape(parts, pieces, -1), 1, 0)
    return place(stack, ("layers", "width", "vocab", "width"), mesh), ids


def _logits(x_btd: jax.Array, piece: tuple[jax.Array, jax.Array], vocab: int, scale: float, mesh: Any) -> jax.Array:
    """Float32 [b, t, k, n] of one piece; entries that are none count for nothing."""
    logits_btkn = jnp.einsum("btd,dkn->btkn", x_btd, piece[0], preferred_element_type=jnp.float32) * scale
    return place(jnp.where(piece[1] < vocab, logits_btkn, -jnp.inf), LOGITS, mesh)
