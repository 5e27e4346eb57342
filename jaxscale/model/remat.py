"""What the backward pass of a block keeps from its forward pass.

none   all that it reads, but no second copy of a weight: not a cast one, not one that was gathered from other chips
dots   results of matrix products with weights
block  the block's input only

Casts and gathers are done again in all three: kept, a scan would hold every layer's weights whole at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.model.lowering import Lowering

__all__ = ["rematerialize"]

MOVES = ("convert_element_type", "sharding_constraint")


def _all_but_moves(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in MOVES


def rematerialize(body: Callable[..., Any], lowering: Lowering, dtype: Any) -> Callable[..., Any]:
    """`body` of a loop over layers, keeping what `lowering` says; as it is where it keeps all and moves nothing."""
    if lowering.remat == "none" and lowering.mesh is None and dtype == jnp.float32:
        return body
    policy = {
        "none": _all_but_moves,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "block": jax.checkpoint_policies.nothing_saveable,
    }[lowering.remat]
    return jax.checkpoint(body, policy=policy, prevent_cse=lowering.unroll)
