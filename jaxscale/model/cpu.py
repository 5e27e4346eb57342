"""The decoder's operations with backward passes of their own, in forms that XLA compiles well for CPUs.

Each equals its plain form within rounding. What XLA makes of the plain forms' derivatives is slow there: products
whose contracted axis comes first, with whatever made their factors fused into a strided copy; a softmax whose
backward reduces over a T x T array; scatters.

    product      dW = X^T dY as a product of the narrower factor, transposed in memory, with the other
    attention    rows of queries in blocks, each over the keys it sees; sum(P dP) as O dO (Dao et al. 2022, 2205.14135)
    gelu         x / (1 + exp(-2u)), u = sqrt(2/pi) (x + .044715 x^3): one exponential, nothing kept but x
    embedding    gradient as a product with one-hot rows
    losses       dlogits = softmax * (dloss + dlogZ) - onehot * dloss, from the logits and log Z; the logits' scale
                 is put on the hidden states, which are fewer
"""

from __future__ import annotations

from functools import partial
from math import pi, sqrt
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.model.position import alibi_bias

__all__ = ["attend_blocked", "embed_rows", "gelu", "head_losses", "project", "token_losses"]

BLOCK = 128
"""Rows of queries in a block of attention."""
ONE_HOT_VOCAB = 1024
"""Largest vocabulary whose embedding gets its gradient by a product; a larger one adds row by row."""

Pair = tuple[jax.Array, jax.Array]

_in_memory = jax.lax.optimization_barrier
"""Written out as it stands: what reads it is not fused with what made it."""


@jax.custom_vjp
def project(x: jax.Array, w_io: jax.Array) -> jax.Array:
    """x [.., i] @ w [i, o]."""
    return _project_forward(x, w_io)[0]


def _project_forward(x: jax.Array, w_io: jax.Array) -> tuple[jax.Array, Pair]:
    return x @ w_io, (x, w_io)


def _project_backward(saved: Pair, dy: jax.Array) -> Pair:
    x, w_io = saved
    dy = _in_memory(dy)
    return dy @ w_io.T, _contract_rows(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]))


def _contract_rows(x_ni: jax.Array, y_no: jax.Array) -> jax.Array:
    """x^T y [i, o], the narrower of the two transposed in memory."""
    x_ni, y_no = _in_memory((x_ni, y_no))
    if x_ni.shape[1] <= y_no.shape[1]:
        return _in_memory(x_ni.T) @ y_no
    return _in_memory(_in_memory(y_no.T) @ x_ni).T


project.defvjp(_project_forward, _project_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GELU by the tanh formula (Hendrycks and Gimpel 2016)."""
    return x * _gelu_gate(x)


def _gelu_gate(x: jax.Array) -> jax.Array:
    return 1 / (1 + jnp.exp(-2 * sqrt(2 / pi) * x * (1 + 0.044715 * x * x)))


def _gelu_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    x = _in_memory(x)  # so that the gate is computed again, not kept
    gate = _gelu_gate(x)
    slope = 2 * sqrt(2 / pi) * (1 + 3 * 0.044715 * x * x)
    return (dy * gate * (1 + x * (1 - gate) * slope),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def embed_rows(table_vd: jax.Array, tokens_bt: jax.Array) -> jax.Array:
    """Rows of the table [b, t, d]."""
    return _embed_forward(table_vd, tokens_bt)[0]


def _embed_forward(table_vd: jax.Array, tokens_bt: jax.Array) -> tuple[jax.Array, Pair]:
    return jnp.take(table_vd, tokens_bt, axis=0), (table_vd, tokens_bt)


def _embed_backward(saved: Pair, dx_btd: jax.Array) -> tuple[jax.Array, None]:
    table_vd, tokens_n = saved[0], saved[1].reshape(-1)
    dx_nd = _in_memory(dx_btd.reshape(-1, dx_btd.shape[-1]))
    if table_vd.shape[0] > ONE_HOT_VOCAB:
        return jnp.zeros_like(table_vd).at[tokens_n].add(dx_nd), None
    onehot_vn = jnp.arange(table_vd.shape[0])[:, None] == tokens_n
    return onehot_vn.astype(dx_nd.dtype) @ dx_nd, None


embed_rows.defvjp(_embed_forward, _embed_backward)


@jax.custom_vjp
def token_losses(logits_btv: jax.Array, targets_bt: jax.Array) -> Pair:
    """Cross-entropy in nats and log Z for every token, float32 [b, t] each."""
    return _losses_forward(logits_btv, targets_bt)[0]


def _losses_forward(logits_btv: jax.Array, targets_bt: jax.Array) -> tuple[Pair, tuple[jax.Array, ...]]:
    log_z_bt = jax.nn.logsumexp(logits_btv, axis=-1)
    picked_bt = jnp.take_along_axis(logits_btv, targets_bt[..., None], axis=-1)[..., 0]
    return (log_z_bt - picked_bt, log_z_bt), (logits_btv, targets_bt, log_z_bt)


def _losses_backward(saved: tuple[jax.Array, ...], slopes: Pair) -> tuple[jax.Array, None]:
    logits_btv, targets_bt, log_z_bt = saved
    dloss_bt, dlog_z_bt = slopes
    p_btv = jnp.exp(logits_btv - log_z_bt[..., None])
    is_target = jnp.arange(logits_btv.shape[-1]) == targets_bt[..., None]
    return p_btv * (dloss_bt + dlog_z_bt)[..., None] - jnp.where(is_target, dloss_bt[..., None], 0), None


token_losses.defvjp(_losses_forward, _losses_backward)


def head_losses(x_btd: jax.Array, head_dv: jax.Array, targets_bt: jax.Array, scale: float) -> Pair:
    """`token_losses` of hidden states under the head."""
    x_btd = x_btd.astype(jnp.promote_types(x_btd.dtype, jnp.float32))
    return token_losses(project(x_btd * scale, head_dv.astype(x_btd.dtype)), targets_bt)


def attend_blocked(
    q_bthe: jax.Array, k_btke: jax.Array, v_btke: jax.Array, scale: float, causal: bool = True,
    slopes: tuple[float, ...] | None = None,
) -> jax.Array:  # fmt: skip
    """Attention of queries [b, t, h, e] over keys and values [b, t, k, e]; k divides h. Gives [b, t, h, e].

    `slopes`: m of each head, whose score falls by m for every step back.
    """
    b, t, h, e = q_bthe.shape
    k, dtype = k_btke.shape[2], jnp.promote_types(q_bthe.dtype, jnp.float32)
    q_bkgte = (q_bthe.astype(dtype) * scale).reshape(b, t, k, h // k, e).transpose(0, 2, 3, 1, 4)
    k_bkte, v_bkte = (x_btke.astype(dtype).swapaxes(1, 2) for x_btke in (k_btke, v_btke))
    mixed_bkgte = _attend(q_bkgte, k_bkte, v_bkte, causal, slopes)
    return mixed_bkgte.transpose(0, 3, 1, 2, 4).reshape(b, t, h, e).astype(q_bthe.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, slopes: tuple[float, ...] | None) -> jax.Array:
    return _attend_forward(q, k, v, causal, slopes)[0]


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, slopes: tuple[float, ...] | None
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Keeps each block's exp(scores - max) and one over its sums."""
    t, rows, kept = q.shape[3], [], []
    for low in range(0, t, BLOCK):
        high = min(low + BLOCK, t)
        end = high if causal else t
        scores = jnp.einsum("bkgte,bkse->bkgts", q[..., low:high, :], k[:, :, :end])
        if slopes is not None:
            bias_hts = alibi_bias(slopes, jnp.arange(low, high), jnp.arange(end))
            scores = scores + bias_hts.reshape(*scores.shape[1:3], *bias_hts.shape[1:])
        if causal:
            seen = low + jnp.arange(high - low)[:, None] >= jnp.arange(high)
            scores = jnp.where(seen, scores, -jnp.inf)
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        shrink = 1 / jnp.sum(weights, axis=-1, keepdims=True)
        rows.append(jnp.einsum("bkgts,bkse->bkgte", weights, v[:, :, :end]) * shrink)
        kept.append((weights, shrink))
    out = jnp.concatenate(rows, axis=3)
    return out, (q, k, v, out, kept)


def _attend_backward(causal: bool, slopes: Any, saved: tuple[Any, ...], dout: jax.Array) -> tuple[jax.Array, ...]:
    """The slopes are in the weights that were kept, and get no gradient."""
    q, k, v, out, kept = saved
    t = q.shape[3]
    inner = jnp.sum(dout * out, axis=-1, keepdims=True)
    dq, dk_bket, dv_bket = [], jnp.zeros_like(k.mT), jnp.zeros_like(v.mT)
    for low, (weights, shrink) in zip(range(0, t, BLOCK), kept, strict=True):
        high = min(low + BLOCK, t)
        block, end = slice(low, high), high if causal else t
        dout_i = dout[..., block, :] * shrink
        dweights = jnp.einsum("bkgte,bkse->bkgts", dout_i, v[:, :, :end])
        dscores = weights * (dweights - inner[..., block, :] * shrink)
        dq.append(jnp.einsum("bkgts,bkse->bkgte", dscores, k[:, :, :end]))
        dk_bket = dk_bket.at[..., :end].add(_contract_block(q[..., block, :], dscores))
        dv_bket = dv_bket.at[..., :end].add(_contract_block(dout_i, weights))
    return jnp.concatenate(dq, axis=3), dk_bket.mT, dv_bket.mT


def _contract_block(x: jax.Array, y: jax.Array) -> jax.Array:
    """x^T y over groups and rows: [b, k, e, s] of x [b, k, g, t, e] and y [b, k, g, t, s]."""
    return jnp.sum(_in_memory(x.mT) @ y, axis=2)


_attend.defvjp(_attend_forward, _attend_backward)
