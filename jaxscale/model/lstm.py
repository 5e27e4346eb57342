"""The LSTM of a block (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    f, i, o, z = split(W_in x_t + W_rec h_{t-1} + b)
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(z),   h_t = sigmoid(o) tanh(c_t),   h_0 = c_0 = 0

W_in x is one product for all positions; what remains in the loop over time is W_rec h. Its backward pass keeps the
gates and c, runs the loop backwards for the gates' gradients alone, and then makes the gradient of W_rec as one
product over all positions, as cuDNN does (Appleyard et al. 2016, 1604.01946): added up step by step inside the loop it
would read and write the whole matrix at every position. Gates and c are float32, h and what is kept of the gates have
the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["apply_lstm"]

Product = Callable[[jax.Array, jax.Array], jax.Array]


def apply_lstm(block: Mapping[str, jax.Array], x_btd: jax.Array, product: Product) -> jax.Array:
    """One layer's h [b, t, d] for its input [b, t, d]; position t sees positions up to t only."""
    x_tbd = x_btd.swapaxes(0, 1)  # before the product, which is four times wider
    gates_tbg = product(x_tbd, block["w_in"]) + block["bias"].astype(x_btd.dtype)
    return recur(gates_tbg, block["w_rec"].astype(x_btd.dtype)).swapaxes(0, 1)


@jax.custom_vjp
def recur(gates_tbg: jax.Array, w_dg: jax.Array) -> jax.Array:
    """States h [t, b, d] from the input's part of the gates [t, b, 4d] and the recurrent matrix [d, 4d]."""
    return _recur_forward(gates_tbg, w_dg)[0]


def _recur_forward(gates_tbg: jax.Array, w_dg: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
    def step(carry: tuple[jax.Array, jax.Array], gates_bg: jax.Array) -> tuple[Any, Any]:
        h_bd, c_bd = carry
        opened_bg = _open(gates_bg + jnp.matmul(h_bd, w_dg, preferred_element_type=c_bd.dtype))
        forget, write, read, fresh = jnp.split(opened_bg, 4, axis=-1)
        c_bd = forget * c_bd + write * fresh
        h_bd = (read * jnp.tanh(c_bd)).astype(h_bd.dtype)
        return (h_bd, c_bd), (h_bd, c_bd, opened_bg.astype(h_bd.dtype))

    exact = jnp.promote_types(gates_tbg.dtype, jnp.float32)
    start = jnp.zeros((gates_tbg.shape[1], w_dg.shape[0]), gates_tbg.dtype)
    _, (h_tbd, c_tbd, opened_tbg) = jax.lax.scan(step, (start, start.astype(exact)), gates_tbg)
    return h_tbd, (h_tbd, c_tbd, opened_tbg, w_dg)


def _open(gates_bg: jax.Array) -> jax.Array:
    """Sigmoid of the first three quarters, tanh of the last."""
    d = gates_bg.shape[-1] // 4
    return jnp.concatenate([jax.nn.sigmoid(gates_bg[..., : 3 * d]), jnp.tanh(gates_bg[..., 3 * d :])], axis=-1)


def _recur_backward(saved: tuple[Any, ...], dh_tbd: jax.Array) -> tuple[jax.Array, jax.Array]:
    h_tbd, c_tbd, opened_tbg, w_dg = saved

    def step(carry: tuple[jax.Array, jax.Array], now: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        dlater_bd, dc_bd = carry
        dout_bd, c_bd, before_bd, opened_bg = now
        forget, write, read, fresh = jnp.split(opened_bg.astype(dc_bd.dtype), 4, axis=-1)
        shown, dh_bd = jnp.tanh(c_bd), dout_bd + dlater_bd
        dc_bd = dc_bd + dh_bd * read * (1 - shown * shown)
        dgates_bg = jnp.concatenate([
            dc_bd * before_bd * forget * (1 - forget), dc_bd * fresh * write * (1 - write),
            dh_bd * shown * read * (1 - read), dc_bd * write * (1 - fresh * fresh),
        ], axis=-1).astype(dout_bd.dtype)  # fmt: skip
        dlater_bd = jnp.matmul(dgates_bg, w_dg.T, preferred_element_type=dc_bd.dtype)
        return (dlater_bd, dc_bd * forget), dgates_bg

    zero_bd = jnp.zeros_like(c_tbd[0])
    now = (dh_tbd, c_tbd, _shift(c_tbd), opened_tbg)
    _, dgates_tbg = jax.lax.scan(step, (zero_bd, zero_bd), now, reverse=True)
    return dgates_tbg, jnp.tensordot(_shift(h_tbd), dgates_tbg, axes=((0, 1), (0, 1)))


def _shift(x_tbd: jax.Array) -> jax.Array:
    """What each position finds: the value of the one before, zeros at the first."""
    return jnp.concatenate([jnp.zeros_like(x_tbd[:1]), x_tbd[:-1]])


recur.defvjp(_recur_forward, _recur_backward)
