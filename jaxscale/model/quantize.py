"""Matrix products in int8 whose gradient is the float product's (as in AQT: Abdolrashidi et al. 2021, 2105.03536).

    x ~ s q,   s = max|x| / 127 over what is contracted,   q = round(x / s) in -127 .. 127,   |s q - x| <= s / 2
    x w ~ s_x (q_x q_w) s_w,   summed in int32, exact up to 2^31 / 127^2 = 133,000 terms

One scale for a row of x and one for a column of w, found anew each time. Backwards the rounding counts as the identity
(straight through; Bengio et al. 2013, 1308.3432): dx = dy w^T and dw = x^T dy in float. Head, embedding, scores and
norms stay float.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.model import cpu

__all__ = ["check_int8", "multiply_int8", "quantize"]

MOST = 127


def quantize(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """(q int8, s float32): x as s q, one s along `axis`; 1 where all is zero."""
    x = x.astype(jnp.float32)
    most = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    scale = jnp.where(most > 0, most / MOST, 1.0)
    return jnp.round(x / scale).astype(jnp.int8), scale


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply_int8(x: jax.Array, w_io: jax.Array, cpu_forms: bool = False) -> jax.Array:
    """x [.., i] @ w [i, o], both sides rounded to int8, in the dtype of x."""
    (q_x, s_x), (q_w, s_w) = quantize(x, -1), quantize(w_io, 0)
    return (_multiply_exactly(q_x, q_w) * s_x * s_w).astype(x.dtype)


def _multiply_exactly(q_x: jax.Array, q_w: jax.Array) -> jax.Array:
    contracted = (((q_x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(q_x, q_w, contracted, preferred_element_type=jnp.int32)


def _forward(x: jax.Array, w_io: jax.Array, cpu_forms: bool) -> tuple[jax.Array, Any]:
    return multiply_int8(x, w_io, cpu_forms), (x, w_io)


def _backward(cpu_forms: bool, saved: Any, dy: jax.Array) -> Any:
    return jax.vjp(cpu.project if cpu_forms else jnp.matmul, *saved)[1](dy)


multiply_int8.defvjp(_forward, _backward)


@lru_cache(maxsize=1)
def check_int8() -> None:
    """MisuseError unless this backend multiplies int8 and sums without loss: asked of it with the largest numbers."""
    rng = np.random.default_rng(0)
    x, w = (rng.choice([-MOST, MOST, 1], size).astype(np.int8) for size in ((32, 256), (256, 64)))
    platform = jax.default_backend()
    try:
        told = np.asarray(jax.jit(_multiply_exactly)(x, w))
    except Exception as error:  # whatever a backend says that cannot
        raise MisuseError(f"recipe.precision: this {platform} does not multiply int8 ({type(error).__name__}); use "
                          f"float32 or bfloat16") from error  # fmt: skip
    if not np.array_equal(told, x.astype(np.int32) @ w.astype(np.int32)):
        raise MisuseError(f"recipe.precision: this {platform} loses bits in sums of int8 products; use float32 or "
                          f"bfloat16")  # fmt: skip
