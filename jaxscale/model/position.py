"""How a model is told where a token stands.

rope        queries and keys of a head turned by position * theta^(-2i/e) (Su et al. 2021, 2104.09864)
learned     a table of seq_len rows, added to the tokens' embedding; no longer sequences
sinusoidal  fixed rows of sin and cos of position * 10000^(-2i/d), added too (Vaswani et al. 2017, section 3.5; here all
            sines first): size 1/sqrt(2) an entry, meant for embeddings whose entries have about that size
alibi       a head's scores lowered by m |t - s|, m = 2^(-8 h / heads) for h = 1.. heads (Press et al. 2022, 2108.12409)
none        by the causal mask alone (Haviv et al. 2022, 2203.16634)

What is added has entries of size one at every width, as muP wants of inputs; alibi is added to scores, of size one too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.config import ModelConfig
from jaxscale.errors import MisuseError

__all__ = ["alibi_bias", "alibi_slopes", "position_rows", "rope_table", "rotate", "turns"]

Turns = tuple[jax.Array, jax.Array] | None


def turns(length: int, model: ModelConfig) -> Turns:
    """What `rotate` takes for this many positions; None where queries and keys are not turned."""
    return rope_table(length, model.d_head, model.rope_theta) if model.position == "rope" else None


def rope_table(length: int, d_head: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position * theta^(-2i/e): two arrays [t, 1, e/2]."""
    frequency = theta ** (-jnp.arange(0, d_head, 2) / d_head)
    angle = (jnp.arange(length)[:, None] * frequency)[:, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_bthe: jax.Array, rope: Turns) -> jax.Array:
    """Rotate the two halves of each head by the position's angles, in float32."""
    if rope is None:
        return x_bthe
    cos, sin = rope
    a, b = jnp.split(x_bthe.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_bthe.dtype)


def position_rows(length: int, model: ModelConfig, table_pd: jax.Array | None, scale: float) -> jax.Array | None:
    """What is added to the embedding of `length` tokens, float32 [t, d]; None where nothing is.

    `table_pd`, the learned one, is multiplied by `scale` (alpha_in) as the tokens' is. MisuseError for a sequence
    that is longer than it.
    """
    if model.position == "sinusoidal":
        return jnp.asarray(sinusoids(length, model.d_model))
    if table_pd is None:
        return None
    if length > table_pd.shape[0]:
        raise MisuseError(f"model.seq_len: {table_pd.shape[0]} positions were learned and these sequences have "
                          f"{length} tokens; cut them, or train with another model.position or seq_len")  # fmt: skip
    return table_pd[:length] * scale


def sinusoids(length: int, width: int) -> np.ndarray:
    """sin, then cos, of position * 10000^(-2i/d): float32 [t, d]."""
    frequency = 10_000.0 ** (-np.arange(0, width, 2) / width)
    angle = np.arange(length)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)[:, :width].astype(np.float32)


def alibi_slopes(model: ModelConfig) -> tuple[float, ...] | None:
    """m of each head, steepest first; None without alibi.

    The set depends on how many heads there are, one head having 2^-8 alone: where width brings heads, a narrow model
    looks farther than a wide one.

    >>> alibi_slopes(ModelConfig(d_model=32, head_dim=8, position="alibi"))
    (0.25, 0.0625, 0.015625, 0.00390625)
    """
    if model.position != "alibi":
        return None
    return tuple(2.0 ** (-8 * h / model.n_heads) for h in range(1, model.n_heads + 1))


def alibi_bias(slopes: tuple[float, ...], queries_t: jax.Array, keys_s: jax.Array) -> jax.Array:
    """-m |t - s|, float32 [h, t, s], of queries and keys at these positions."""
    distance_ts = jnp.abs(queries_t[:, None] - keys_s).astype(jnp.float32)
    return -jnp.array(slopes, jnp.float32)[:, None, None] * distance_ts
