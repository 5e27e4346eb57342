"""Masked (absorbing-state) diffusion: which tokens are hidden, and how their losses add up to a bound.

A text x of T tokens is hidden token by token, each by time t with probability t (alpha_t = 1 - t). A model that sees
what is left and predicts the rest has the negative evidence lower bound, in continuous time,

    -log p(x) <= int_0^1 1/t E_S sum_{i in S} -log p(x_i | x outside S) dt,   each i in S with probability t

(Sahoo et al. 2024, 2406.07524; Shi et al. 2024, 2406.04329). A set S of n tokens has the weight
int t^(n-1) (1-t)^(T-n) dt = 1 / (n binom(T, n)), so that the same number without its time is

    bound / T = E_n E_{S: |S| = n} 1/n sum_{i in S} -log p(x_i | x outside S),   n uniform in 1 .. T

which is that of any-order autoregressive models (Uria et al. 2014, 1310.1757; Hoogeboom et al. 2022, 2110.02037).
The second form is what is drawn here. Its t -> 0 end is n = 1: no time is cut off, no weight grows beyond one token's
loss, where 1/t in the first has infinite variance. Both are unbiased for the same bound.

The targets are those of an autoregressive model, ids[:, 1:] of a window of T + 1; the first id is not shown, for a
window of T positions has no place for it. The model is told no time: what stands at hidden places does not depend
on it, given what is seen.

Masks follow from (seed, step, row of the batch) alone, those of validation from the place of the window alone: no
microbatch, mesh, process or restart changes them, and all models of a study are validated under the same ones.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.flops import VALIDATION_DRAWS

__all__ = ["HALVES", "Draw", "draw_training", "draw_validation", "find_rows", "hide_tokens"]

HALVES = 2
"""Independent estimates that the draws of a validation window make: their difference is the Monte Carlo error."""
DOMAIN = zlib.crc32(b"masks")
"""Sets the keys of masks apart from those of initial weights, which come from the same seed."""
LAST = np.uint32(2**32 - 1)


class Draw(NamedTuple):
    """Which tokens are hidden, and the share of each token's loss in its row's mean: 1/n where one of the n."""

    hidden: jax.Array
    """bool [b, t]"""
    share: jax.Array
    """float32 [b, t]; a row adds up to 1, or to 0 where it has no token to predict."""


def hide_tokens(targets_bt: jax.Array, hidden_bt: jax.Array, mask_token: int) -> jax.Array:
    """What the model sees of its targets."""
    return jnp.where(hidden_bt, mask_token, targets_bt)


def draw_training(seed: jax.Array, step: jax.Array, rows_b: jax.Array, batch: jax.Array, length: int) -> Draw:
    """Masks of these rows of a step's batch of `batch` rows.

    Counts are stratified over the batch: row r has the level frac(u + r/batch) of one u a step (Kingma et al. 2021,
    2107.00630, appendix I), so that a batch has few and many tokens hidden in equal shares.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DOMAIN), step)
    level_key, place_key = jax.random.split(key)
    levels_b = jnp.mod(jax.random.uniform(level_key) + rows_b / batch, 1.0)
    keys_b = jax.vmap(jax.random.fold_in, (None, 0))(place_key, rows_b)
    return _draw(keys_b, levels_b, jnp.ones((len(rows_b), length), bool))


def draw_validation(windows_b: jax.Array, draw: jax.Array, counted_bt: jax.Array) -> Draw:
    """Masks number `draw` < VALIDATION_DRAWS of these windows, by their places in the validation text.

    The draws of a half divide the levels evenly among them, from an offset that is the window's own. Tokens that do not
    count (behind the end of the text) are always hidden.
    """
    each = VALIDATION_DRAWS // HALVES
    half, stratum = draw // each, draw % each
    keys_b = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(DOMAIN), windows_b * HALVES + half)
    level_b, place_b = jnp.moveaxis(jax.vmap(jax.random.split)(keys_b), 1, 0)
    levels_b = (jax.vmap(jax.random.uniform)(level_b) + stratum) / each
    return _draw(jax.vmap(jax.random.fold_in, (0, None))(place_b, stratum), levels_b, counted_bt)


def _draw(keys_b: jax.Array, levels_b: jax.Array, counted_bt: jax.Array) -> Draw:
    """n = 1 + floor(level * T) of the T tokens that count, each set of n as likely as any other.

    Those with the n smallest of T random words. Two equal words, 1 row in 8e9 / T^2, hide one more together; the mean
    is then over n + 1.
    """
    width = counted_bt.shape[1]
    words_bt = jax.vmap(lambda key: jax.random.bits(key, (width,)))(keys_b)
    words_bt = jnp.where(counted_bt, words_bt, LAST)
    most_b = jnp.sum(counted_bt, axis=1)
    wanted_b = jnp.clip(jnp.floor(levels_b * most_b).astype(jnp.int32), 0, jnp.maximum(most_b - 1, 0))
    limit_b1 = jnp.take_along_axis(jnp.sort(words_bt, axis=1), wanted_b[:, None], axis=1)
    chosen_bt = (words_bt <= limit_b1) & counted_bt
    share_bt = chosen_bt / jnp.maximum(jnp.sum(chosen_bt, axis=1, keepdims=True), 1)
    return Draw(chosen_bt | ~counted_bt, share_bt.astype(jnp.float32))


def find_rows(microbatch: jax.Array, rows: int, batch: jax.Array, groups: int) -> jax.Array:
    """Rows of the batch [rows] that one microbatch holds, where `groups` processes feed an equal part of it each.

    >>> [find_rows(i, 4, 8, 2).tolist() for i in (0, 1)]
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    each = rows // groups
    group, place = jnp.divmod(jnp.arange(rows), each)
    return group * (batch // groups) + microbatch * each + place
