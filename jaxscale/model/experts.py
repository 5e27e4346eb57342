"""A mixture of experts in place of a block's MLP: a router picks k of E for each token, and no token is dropped.

    p = softmax(x W_router),  chosen = the k largest,  g = p over their sum (k > 1),  g = p (k = 1)
    y = sum over the chosen of (g act(x W_up)) W_down                                        each expert its own W

Gates over the chosen alone as in GShard (Lepikhin et al. 2020, 2006.16668) and Mixtral (2401.04088); a single chosen
expert keeps its own probability as in Switch (Fedus et al. 2021, 2101.03961), for over itself it would be 1 whatever
the router says and the router would learn nothing from the loss. The gate multiplies the hidden values, which gives
the same y and needs no output of an expert for its own gradient. There is no capacity: what a token computes depends
on no other token, so the model is causal and does not see who shares its batch (Gale et al. 2022, 2211.15841).

The balancing loss is E sum_e f_e P_e (Switch, equation 4), f_e the share of a sequence's choices that fall on e and
P_e its mean p, 1 where even; the mean over sequences, the sum over layers. By sequence (as DeepSeek-V3, 2412.19437,
equation 17), not by batch: so it does not change with microbatches and devices.

What is executed, by `Lowering`:
    cpu_forms    a row for every choice, in blocks of one expert each (`choose_block`), its last block filled up with
                 zeros: up to about twice the active products where experts are many and tokens few
    else         rows sorted by expert, `jax.lax.ragged_dot`: the active products where a backend has a kernel for it,
                 XLA for CPUs multiplies all experts; on a mesh each chip sorts its own tokens
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import Mesh, PartitionSpec

from jaxscale.axes import split_axes
from jaxscale.config import ModelConfig
from jaxscale.model.lowering import Lowering
from jaxscale.params import EXPERT_MATRICES

__all__ = ["Load", "apply_experts", "choose_block", "route_tokens"]

SMALLEST, LARGEST = 16, 64
"""Rows of a block: smaller ones copy more of the weights than they multiply, larger ones multiply more zeros."""

Activate = Callable[[jax.Array, jax.Array | None], jax.Array]
"""Hidden values from those of w_up and, where the MLP has one, of w_gate."""


class Load(NamedTuple):
    """How a layer's tokens fall on its experts."""

    share_be: jax.Array
    """Share of each sequence's choices that fall on an expert, float32."""
    balance: jax.Array
    """The balancing loss, float32 scalar: 1 where shares or probabilities are even."""


def route_tokens(w_router: jax.Array, x_btd: jax.Array, experts_per_token: int) -> tuple[jax.Array, jax.Array, Load]:
    """Gates [b, t, k] in float32 and places [b, t, k] of the chosen experts, the likeliest first, and their load."""
    exact = jnp.promote_types(x_btd.dtype, jnp.float32)
    logits_bte = jnp.matmul(x_btd, w_router.astype(x_btd.dtype), preferred_element_type=exact)
    p_bte = jax.nn.softmax(logits_bte, axis=-1)
    gates_btk, chosen_btk = jax.lax.top_k(p_bte, experts_per_token)
    if experts_per_token > 1:
        gates_btk = gates_btk / jnp.sum(gates_btk, axis=-1, keepdims=True)
    n_experts = p_bte.shape[-1]
    share_be = jnp.mean(jax.nn.one_hot(chosen_btk, n_experts, dtype=exact), axis=(1, 2))
    balance = n_experts * jnp.mean(jnp.sum(share_be * jnp.mean(p_bte, axis=1), axis=-1))
    return gates_btk, chosen_btk, Load(share_be, balance)


def apply_experts(
    block: Mapping[str, jax.Array], x_btd: jax.Array, model: ModelConfig, lowering: Lowering, activate: Activate
) -> tuple[jax.Array, Load]:
    """The mixture's output [b, t, d] and its load."""
    gates_btk, chosen_btk, load = route_tokens(block["w_router"], x_btd, model.experts_per_token)
    gates_btk = gates_btk.astype(x_btd.dtype)
    weights = {name: _cast(block[name], x_btd.dtype) for name in EXPERT_MATRICES if name in block}
    if lowering.mesh is not None:
        return _mix_on_mesh(weights, x_btd, gates_btk, chosen_btk, lowering.mesh, activate), load
    mix = _mix_blocks if lowering.cpu_forms else _mix_sorted
    x_nd, gates_nk, chosen_nk = (part.reshape(-1, part.shape[-1]) for part in (x_btd, gates_btk, chosen_btk))
    return mix(weights, x_nd, gates_nk, chosen_nk, activate).reshape(x_btd.shape), load


def _cast(w_eio: jax.Array, dtype: Any) -> jax.Array:
    """In the compute dtype; as one matrix, for `model.remat` keeps what has more axes as if it were an activation."""
    if w_eio.dtype == dtype:
        return w_eio
    return w_eio.reshape(-1, w_eio.shape[-1]).astype(dtype).reshape(w_eio.shape)


def choose_block(rows: int, n_experts: int) -> int:
    """Rows of a block: about what an expert gets, a power of two.

    >>> choose_block(512, 8), choose_block(512, 16), choose_block(65536, 8)
    (64, 32, 64)
    """
    return int(min(LARGEST, max(SMALLEST, 2 ** ((rows // n_experts).bit_length() - 1))))


def _mix_blocks(
    weights: Mapping[str, jax.Array], x_nd: jax.Array, gates_nk: jax.Array, chosen_nk: jax.Array, activate: Activate
) -> jax.Array:
    """A product a block."""
    slots_nk, source_s, expert_j = _plan_blocks(chosen_nk, weights["w_up"].shape[0])
    j, k = expert_j.shape[0], chosen_nk.shape[1]
    x_jsd = spread(x_nd, source_s // k, slots_nk).reshape(j, -1, x_nd.shape[1])
    gates_js = spread(gates_nk.reshape(-1), source_s, slots_nk.reshape(-1, 1)).reshape(j, -1)
    own = {name: pick(w, expert_j) for name, w in weights.items()}
    up, gate = x_jsd @ own["w_up"], x_jsd @ own["w_gate"] if "w_gate" in own else None
    y_jsd = (activate(up, gate) * gates_js[..., None]) @ own["w_down"]
    return bring_back(y_jsd.reshape(-1, x_nd.shape[1]), source_s // k, slots_nk)


def _plan_blocks(chosen_nk: jax.Array, n_experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each choice's slot [n, k], each slot's choice [s] (n k where empty), each block's expert [j].

    There are as many blocks as hold all rows however they fall on the experts.
    """
    rows, size = chosen_nk.size, choose_block(chosen_nk.size, n_experts)
    blocks = min(rows, (rows + n_experts * (size - 1)) // size)
    chosen_a = chosen_nk.reshape(-1)
    is_own_ae = (chosen_a[:, None] == jnp.arange(n_experts)).astype(jnp.int32)
    so_far_ae = jnp.cumsum(is_own_ae, axis=0)
    ends_e = jnp.cumsum(-(-so_far_ae[-1] // size))
    starts_e = jnp.concatenate([jnp.zeros(1, jnp.int32), ends_e[:-1]])
    slots_a = size * starts_e[chosen_a] + jnp.sum(so_far_ae * is_own_ae, axis=1) - 1
    source_s = jnp.full(blocks * size, rows, jnp.int32).at[slots_a].set(jnp.arange(rows, dtype=jnp.int32))
    expert_j = jnp.sum(jnp.arange(blocks)[:, None] >= ends_e, axis=1)
    return slots_a.reshape(chosen_nk.shape), source_s, jnp.minimum(expert_j, n_experts - 1)


@jax.custom_vjp
def spread(x_m: jax.Array, source_s: jax.Array, slots_mk: jax.Array) -> jax.Array:
    """Rows [s, ..] of x [m, ..] by source, zeros where it is m or more; slots say where each row went."""
    return jnp.take(x_m, source_s, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def bring_back(y_s: jax.Array, source_s: jax.Array, slots_mk: jax.Array) -> jax.Array:
    """Sum [m, ..] of the rows of y [s, ..] in each one's slots: `spread` backwards."""
    return jnp.sum(jnp.take(y_s, slots_mk, axis=0), axis=1)


spread.defvjp(lambda x, source, slots: (spread(x, source, slots), (source, slots)),
              lambda places, dy: (bring_back(dy, *places), None, None))  # fmt: skip
bring_back.defvjp(lambda y, source, slots: (bring_back(y, source, slots), (source, slots)),
                  lambda places, dx: (spread(dx, *places), None, None))  # fmt: skip


@jax.custom_vjp
def pick(w_eio: jax.Array, expert_j: jax.Array) -> jax.Array:
    """Each block's matrix [j, i, o]; its gradient is a product with one-hot rows, which adds faster than a scatter."""
    return jnp.take(w_eio, expert_j, axis=0)


def _pick_backward(kept: tuple[jax.Array, int], dw_jio: jax.Array) -> tuple[jax.Array, None]:
    expert_j, n_experts = kept
    onehot_ej = (jnp.arange(n_experts)[:, None] == expert_j).astype(dw_jio.dtype)
    return (onehot_ej @ dw_jio.reshape(len(dw_jio), -1)).reshape(n_experts, *dw_jio.shape[1:]), None


pick.defvjp(lambda w, expert: (pick(w, expert), (expert, w.shape[0])), _pick_backward)


def _mix_sorted(
    weights: Mapping[str, jax.Array], x_nd: jax.Array, gates_nk: jax.Array, chosen_nk: jax.Array, activate: Activate
) -> jax.Array:
    """Rows sorted by expert, one product over groups of unequal size."""
    k = chosen_nk.shape[1]
    order_a = jnp.argsort(chosen_nk.reshape(-1), stable=True)
    slots_nk = jnp.argsort(order_a).reshape(chosen_nk.shape)
    sizes_e = jnp.sum(chosen_nk.reshape(-1, 1) == jnp.arange(weights["w_up"].shape[0]), axis=0, dtype=jnp.int32)
    x_ad = spread(x_nd, order_a // k, slots_nk)
    gates_a = spread(gates_nk.reshape(-1), order_a, slots_nk.reshape(-1, 1))
    up = multiply_groups(x_ad, weights["w_up"], sizes_e)
    gate = multiply_groups(x_ad, weights["w_gate"], sizes_e) if "w_gate" in weights else None
    y_ad = multiply_groups(activate(up, gate) * gates_a[:, None], weights["w_down"], sizes_e)
    return bring_back(y_ad, order_a // k, slots_nk)


@jax.custom_vjp
def multiply_groups(x_ai: jax.Array, w_eio: jax.Array, sizes_e: jax.Array) -> jax.Array:
    """x [a, i] @ w [e, i, o], the first sizes[0] rows by the first matrix and so on.

    `jax.lax.ragged_dot`, but under vmap its members become more groups of one product.
    """
    return _groups(x_ai, w_eio, sizes_e)


def _multiply_backward(saved: tuple[jax.Array, ...], dy_ao: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x_ai, w_eio, sizes_e = saved
    return _groups(dy_ao, w_eio.mT, sizes_e), _groups_gradient(x_ai, dy_ao, sizes_e), None


@custom_vmap
def _groups(x_ai: jax.Array, w_eio: jax.Array, sizes_e: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot(x_ai, w_eio, sizes_e)


@custom_vmap
def _groups_gradient(x_ai: jax.Array, y_ao: jax.Array, sizes_e: jax.Array) -> jax.Array:
    """x^T y [e, i, o], a product a group over its own rows."""
    by_rows = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())
    return jax.lax.ragged_dot_general(x_ai, y_ao, sizes_e, by_rows)


def _fold_members(product: Any, size: int, batched: list[bool], *values: jax.Array) -> tuple[jax.Array, bool]:
    whole = [x if own else jnp.broadcast_to(x, (size, *x.shape)) for x, own in zip(values, batched, strict=True)]
    out = product(*(x.reshape(-1, *x.shape[2:]) for x in whole))
    return out.reshape(size, -1, *out.shape[1:]), True


multiply_groups.defvjp(lambda *values: (_groups(*values), values), _multiply_backward)
_groups.def_vmap(partial(_fold_members, _groups))
_groups_gradient.def_vmap(partial(_fold_members, _groups_gradient))


def _mix_on_mesh(
    weights: Mapping[str, jax.Array], x_btd: jax.Array, gates_btk: jax.Array, chosen_btk: jax.Array, mesh: Mesh,
    activate: Activate,
) -> jax.Array:  # fmt: skip
    """Each chip mixes its own tokens through its own part of every expert's width; the parts are added over tensor."""

    def spec(axes: tuple[str, ...], x: jax.Array) -> PartitionSpec:
        return PartitionSpec(*split_axes(axes, x.shape, mesh.shape))

    tokens = spec(("batch", "positions", "width"), x_btd)
    specs = {name: spec(("experts", "mlp", "width") if name == "w_down" else ("experts", "width", "mlp"), w)
             for name, w in weights.items()}  # fmt: skip
    split = specs["w_down"][1]

    def mix(weights: Mapping[str, jax.Array], *own: jax.Array) -> jax.Array:
        x_nd, gates_nk, chosen_nk = (part.reshape(-1, part.shape[-1]) for part in own)
        y_nd = _mix_sorted(weights, x_nd, gates_nk, chosen_nk, activate)
        return jax.lax.psum(y_nd.reshape(own[0].shape), split) if split else y_nd.reshape(own[0].shape)

    run = jax.shard_map(
        mix, mesh=mesh, in_specs=(specs, tokens, tokens, tokens), out_specs=tokens, check_vma=False
    )  # fmt: skip
    mixed: jax.Array = run(weights, x_btd, gates_btk, chosen_btk)
    return mixed
